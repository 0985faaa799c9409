"""A drafted recipe: it can be read, and guesses inputs and tasks from the values of the columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hf_mtl.data.drafting import draft_recipe
from hf_mtl.data.recipe import Recipe, read_recipe
from hf_mtl.errors import DataError

TEXTS = [f"a longer text of some words, number {number}" for number in range(40)]


def drafted(folder: Path, rows: Sequence[dict[str, Any]], *, others: Sequence[str] = ()) -> Recipe:
    for name in ("data.jsonl", *others):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(draft_recipe([folder / name for name in ("data.jsonl", *others)], recipe=path), encoding="utf-8")
    return read_recipe(path)


def tasks(recipe: Recipe) -> dict[str, str]:
    return {task.label: task.spec.type for task in recipe.tasks}


def columns(**values: Sequence[Any]) -> list[dict[str, Any]]:
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (["pos", "neg"] * 20, "sequence_classification"),
        (["pos", None] + ["neg", "pos"] * 19, "sequence_classification"),
        ([0, 1] * 20, "sequence_classification"),
        ([True, False] * 20, "sequence_classification"),
        ([n / 7 for n in range(40)], "regression"),
        ([f"{n / 4}" for n in range(40)], "regression"),
        ([["a"], ["a", "b"], [], ["c"]] * 10, "multi_label_classification"),
        ([f"id-{n}" for n in range(40)], None),
        (list(range(40)), None),
        (["the same"] * 40, None),
        ([None] * 40, None),
        ([[f"tag {n}"] for n in range(40)], None),
        ([{"a": 1}] * 40, None),
        ([[[1]]] * 40, None),
    ],
)
def test_the_task_type_follows_from_the_values(tmp_path: Path, values: list[Any], wanted: str | None) -> None:
    found = tasks(drafted(tmp_path, columns(text=TEXTS, sure=["x", "y"] * 20, column=values)))
    assert found == {"sure": "sequence_classification", **({"column": wanted} if wanted else {})}


def test_answers_with_their_places_are_looked_for_in_the_longer_text(tmp_path: Path) -> None:
    answers = [{"text": ["words"], "answer_start": [22]}, {"text": [], "answer_start": []}] * 20
    recipe = drafted(tmp_path, columns(question=["what?"] * 40, context=TEXTS, answers=answers))
    assert tasks(recipe) == {"answers": "span_extraction"}
    assert recipe.datasets["data"].input_columns == {"text": "context", "text_pair": "question"}


def test_lists_beside_tokens_are_tags(tmp_path: Path) -> None:
    rows = columns(tokens=[["fly", "to", "rome"]] * 40, slots=[["O", "O", "B-city"]] * 40, intent=["a", "b"] * 20)
    recipe = drafted(tmp_path, rows)
    assert recipe.datasets["data"].input_columns == {"tokens": "tokens"}
    assert tasks(recipe) == {"slots": "token_classification", "intent": "sequence_classification"}


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("text", "other"), {"text": "text"}),
        (("other", "sentence"), {"text": "sentence"}),
        (("premise", "hypothesis"), {"text": "premise", "text_pair": "hypothesis"}),
        (("sentence1", "sentence2"), {"text": "sentence1", "text_pair": "sentence2"}),
        (("unknown", "label2"), {"text": "unknown"}),
    ],
)
def test_the_text_is_found_by_name_then_by_length(
    tmp_path: Path, names: tuple[str, str], wanted: dict[str, str]
) -> None:
    rows = [{names[0]: text, names[1]: text[:20], "label": str(n % 2)} for n, text in enumerate(TEXTS)]
    assert drafted(tmp_path, rows).datasets["data"].input_columns == wanted


@pytest.mark.parametrize(
    ("others", "splits"),
    [
        ((), ("data.jsonl", None, None)),
        (("test.jsonl",), ("data.jsonl", None, "test.jsonl")),
        (("dev.jsonl", "test.jsonl"), ("data.jsonl", "dev.jsonl", "test.jsonl")),
    ],
)
def test_files_are_the_splits_relative_to_the_recipe(
    tmp_path: Path, others: Sequence[str], splits: tuple[str | None, ...]
) -> None:
    source = drafted(tmp_path, columns(text=TEXTS, label=["x", "y"] * 20), others=others).datasets["data"]
    assert (source.train, source.validation, source.test) == splits


def test_task_names_are_such_as_heads_may_have(tmp_path: Path) -> None:
    names = ["average", "training", "forward", "2nd label", "a b", "a_b", "标签", "x: y", "yes"]
    rows = [{"text": text, **dict.fromkeys(names, f"label {n % 2}")} for n, text in enumerate(TEXTS)]
    recipe = drafted(tmp_path, rows)
    assert [task.label for task in recipe.tasks] == names
    assert [task.spec.name for task in recipe.tasks] == [
        "task_average", "task_training", "task_forward", "task_2nd_label", "a_b", "a_b_2", "task", "x__y", "yes",
    ]  # fmt: skip


def test_the_recipe_says_what_can_be_changed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "some words,x\nother words,y\n" * 10)
    text = draft_recipe([tmp_path / "a.csv"], recipe=tmp_path / "recipe.yaml")
    for word in ("# A recipe", "hf-mtl train recipe.yaml", "token_classification", "max_length", "loss_weight"):
        assert word in text


def test_conllu_gives_its_tags(tmp_path: Path) -> None:
    lines = [
        f"{n}\t{word}\t{word}\t{tag}\t_\t_\t{n - 1}\tdep\t_\t_"
        for n, (word, tag) in enumerate([("go", "VERB"), ("on", "ADP")], 1)
    ]
    (tmp_path / "a.conllu").write_text(("\n".join(lines) + "\n\n") * 20)
    path = tmp_path / "recipe.yaml"
    path.write_text(draft_recipe([tmp_path / "a.conllu"], recipe=path))
    recipe = read_recipe(path)
    assert recipe.datasets["data"].input_columns == {"tokens": "tokens"}
    assert tasks(recipe)["upos"] == "token_classification"
    assert "heads" not in tasks(recipe)  # what governs a word is the place of another, no tag


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"id": n} for n in range(10)], "no column of text among id"),
        ([{"text": text} for text in TEXTS], "no column that looks like labels among text"),
    ],
)
def test_a_file_without_text_or_labels_is_refused(tmp_path: Path, rows: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        drafted(tmp_path, rows)
