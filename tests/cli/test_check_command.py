"""`hf-mtl check`: what the data holds, and every problem that was planted in it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from calling import call, contents

from hf_mtl.data.yaml import write_yaml


@pytest.fixture(scope="session")
def report(recipe: Path) -> dict[str, Any]:
    done = call("check", recipe, "--json")
    assert done.err == ""
    return json.loads(done.out)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


def test_rows_are_counted_by_dataset_and_split(report: dict[str, Any]) -> None:
    found = {(entry["dataset"], entry["split"]): entry["rows"] for entry in report["datasets"]}
    sizes = {"train": 48, "validation": 24, "test": 32}
    assert found == {(name, split): sizes[split] for name in ("films", "orders", "pairs", "posts") for split in sizes}


def test_labels_are_counted_as_the_file_has_them(report: dict[str, Any], workspace: Path) -> None:
    found = {(entry["task"], entry["split"]): entry for entry in report["tasks"]}
    films, orders, posts = (rows_of(workspace / f"{name}-test.jsonl") for name in ("films", "orders", "posts"))
    assert found["sentiment", "test"]["labels"] == Counter(row["label"] for row in films)
    assert found["intent", "test"]["labelled"] == sum(row["intent"] is not None for row in orders)
    tags = Counter(tag for row in orders for tag in row["slots"] or [])
    assert found["slots", "test"]["labels"] == {**dict.fromkeys(found["slots", "test"]["labels"], 0), **tags}
    moods = Counter(mood for row in posts for mood in row["moods"])
    assert found["moods", "test"]["labels"] == moods
    assert found["similarity", "test"]["labels"] == {}


def test_lengths_are_in_tokens(report: dict[str, Any]) -> None:
    for entry in report["datasets"]:
        tokens = entry["tokens"]
        assert 2 < tokens["median"] <= tokens["p95"] <= tokens["max"] <= 48


def test_nothing_is_trained_and_nothing_written(recipe: Path, trained: Path) -> None:
    before = contents(recipe.parent)
    text = call("check", recipe).out
    assert contents(recipe.parent) == before
    for word in ("films", "sentiment", "labelled", "pos 32"):
        assert word in text


@pytest.fixture(scope="session")
def planted(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose data has texts in several splits, doubles, long rows, and a label without a training row."""
    folder = tmp_path_factory.mktemp("planted")
    a = {
        "train": [
            {"text": "seen in test", "label": "x"},
            {"text": "Only  here", "label": "y"},
            {"text": "only here", "label": "y"},
            {"text": "[bold]in the other[/]", "label": "x"},
        ],
        "validation": [{"text": "in validation", "label": "x"}],
        "test": [{"text": "Seen in  TEST", "label": "x"}, {"text": "in validation", "label": "y"}],
    }
    b = {
        "train": [{"text": "word " * 100, "tag": "u"}, {"text": "of b", "tag": "v"}],
        "validation": [{"text": "of b too", "tag": "u"}],
        "test": [{"text": "fine", "tag": "w"}, {"text": "[bold]in the other[/]", "tag": "u"}],
    }
    files = {
        name: {split: write(folder / f"{name}-{split}.jsonl", rows) for split, rows in splits.items()}
        for name, splits in (("a", a), ("b", b))
    }
    recipe = {
        "encoder": str(workspace / "encoder"),
        "datasets": {name: {**files[name], "text": "text"} for name in files},
        "tasks": [
            {"name": "first", "type": "sequence_classification", "dataset": "a", "label": "label"},
            {"name": "second", "type": "sequence_classification", "dataset": "b", "label": "tag"},
        ],
    }
    (folder / "recipe.yaml").write_text(write_yaml(recipe), encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.mark.parametrize(
    "problem",
    [
        "1 of the train rows of a stand in the test rows of a too: 'seen in test' (",
        "1 of the train rows of a stand in the test rows of b too: '[bold]in the other[/]' (",
        "1 of the validation rows of a stand in the test rows of a too: 'in validation' (",
        "a train: 1 of 4 rows repeat the text of an earlier row",
        "task second, train: 1 of 2 labelled rows are cut to 48 tokens",
        "task second, train: 1 labels have no training row: w",
    ],
)
def test_planted_problems_are_found(planted: Path, problem: str) -> None:
    found = json.loads(call("check", planted, "--json").out)["problems"]
    assert len([one for one in found if one.startswith(problem)]) == 1
    assert problem in call("check", planted).out


def test_rows_that_are_nearly_held_out_are_found_where_asked_for(workspace: Path, tmp_path: Path) -> None:
    texts = {
        "train": "the quick brown fox jumps over the lazy dog near the bank of the river",
        "validation": "something else",
        "test": "the quick brown fox jumps over the lazy dog near the bank of a river",
    }
    files = {split: write(tmp_path / f"{split}.jsonl", [{"text": text, "label": 1.0}]) for split, text in texts.items()}
    recipe = {
        "encoder": str(workspace / "encoder"),
        "datasets": {"a": {**files, "text": "text"}},
        "tasks": [{"name": "score", "type": "regression", "dataset": "a", "label": "label"}],
    }
    (tmp_path / "recipe.yaml").write_text(write_yaml(recipe), encoding="utf-8")
    assert "nearly" not in call("check", tmp_path / "recipe.yaml").out
    problems = json.loads(call("check", tmp_path / "recipe.yaml", "--near", "--json").out)["problems"]
    (problem,) = [one for one in problems if "nearly" in one]
    assert problem.startswith("1 of the train rows of a nearly stand in the test rows of a too: 'the quick brown fox")
    assert problem.endswith("train.jsonl, line 1; test.jsonl, line 1)")


def test_leaks_name_both_files_and_lines(planted: Path) -> None:
    leak = next(one for one in json.loads(call("check", planted, "--json").out)["problems"] if "test rows of b" in one)
    assert leak.endswith("a-train.jsonl, line 4; b-test.jsonl, line 2)")


def test_a_task_that_has_no_training_rows_is_a_problem(planted: Path, tmp_path: Path) -> None:
    folder = planted.parent
    text = planted.read_text().replace("    train: b-train.jsonl\n", "")
    (folder / "without.yaml").write_text(text)
    problems = json.loads(call("check", folder / "without.yaml", "--json").out)["problems"]
    assert "task second: there are no training rows" in problems


def test_clean_data_has_no_problems(workspace: Path, tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "label": "xy"[number % 2]} for number in range(40)]
    recipe = {
        "encoder": str(workspace / "encoder"),
        "datasets": {"data": {"train": write(tmp_path / "data.jsonl", rows), "text": "text"}},
        "tasks": [{"name": "one", "type": "sequence_classification", "dataset": "data", "label": "label"}],
    }
    (tmp_path / "recipe.yaml").write_text(write_yaml(recipe), encoding="utf-8")
    assert "no problems found" in call("check", tmp_path / "recipe.yaml").out
    assert json.loads(call("check", tmp_path / "recipe.yaml", "--json").out)["problems"] == []


def test_training_arguments_are_checked_too(workspace: Path, tmp_path: Path) -> None:
    text = (workspace / "recipe.yaml").read_text().replace("learning_rate:", "learning_rat:")
    (tmp_path / "recipe.yaml").write_text(text)
    done = call("check", tmp_path / "recipe.yaml", fails=True)
    assert done.err.startswith(f"error: {tmp_path / 'recipe.yaml'}, training: unknown argument 'learning_rat'")


def test_a_stream_is_read_once_and_reported_as_it_would_be_otherwise(planted: Path, report: dict[str, Any]) -> None:
    text = planted.read_text()
    spec = "type: sequence_classification\n"
    for name, labels in (("first", "[x, y]"), ("second", "[u, v, w]")):
        assert f"- name: {name}\n  {spec}" in text
        text = text.replace(f"- name: {name}\n  {spec}", f"- name: {name}\n  labels: {labels}\n  {spec}")
    (planted.parent / "named.yaml").write_text(text)
    (planted.parent / "streamed.yaml").write_text(
        text.replace("    text: text\n", "    text: text\n    streaming: true\n")
    )
    found, wanted = (
        json.loads(call("check", planted.parent / f"{name}.yaml", "--json").out) for name in ("streamed", "named")
    )
    for key in ("datasets", "tasks"):
        by_place = [sorted(entries[key], key=lambda entry: json.dumps(entry)) for entries in (found, wanted)]
        assert by_place[0] == by_place[1]
    repeated = "a train: 1 of 4 rows repeat the text of an earlier row"
    assert sorted([*found["problems"], repeated]) == sorted(wanted["problems"])
    assert wanted["not_checked"] == []
    assert found["not_checked"] == [
        f"{name} train: whether rows repeat an earlier one, for they are streamed" for name in "ab"
    ]
    assert "not checked: a train" in call("check", planted.parent / "streamed.yaml").out
