"""`hf-mtl explain-model`: one page and tables, of the parts that were asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calling import Called, call

QUICK = ("--rows", 32, "--texts", 24)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "page.html"


@pytest.fixture(scope="module")
def done(trained: Path, recipe: Path, page: Path) -> Called:
    return call("explain-model", trained, recipe, "--output", page, "--task", "sentiment", "--task", "moods", *QUICK)


def test_the_page_holds_the_tasks_that_were_asked_for(done: Called, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "Task sentiment" in text
    assert "Task moods" in text
    assert "Task slots" not in text
    assert "films validation" in text
    assert "Attention heads" not in text


def test_the_terminal_shows_words_with_counts_and_errors(done: Called, page: Path) -> None:
    assert "sentiment: pos" in done.out
    assert " ± " in done.out
    assert str(page) in done.err
    assert "looking at moods" in done.err


@pytest.mark.slow
def test_parts_of_the_whole_model_are_chosen(trained: Path, recipe: Path, tmp_path: Path) -> None:
    compared = {"alone_by_seed": [0.5, 0.5], "together_by_seed": [0.6, 0.7]}
    comparison = tmp_path / "comparison.json"
    comparison.write_text(json.dumps({"tasks": {"moods": compared, "intent": compared}}))
    parts = [value for part in ("relations", "heads", "layers", "calibration") for value in ("--part", part)]
    tasks = ("--task", "moods", "--task", "intent")
    target = tmp_path / "page.html"
    found = call(
        "explain-model", trained, recipe, "--output", target, *tasks, *parts,
        "--comparison", comparison, "--split", "test", "--json",
    )  # fmt: skip
    values = json.loads(found.out)
    assert set(values) == {"split", "seed", "tasks", "relations", "transfer", "heads", "layers"}
    assert values["tasks"][0]["words"] is None
    assert values["transfer"]["cells"][0]["value"] == pytest.approx(0.15)
    assert [own["task"] for own in values["layers"]["tasks"]] == ["intent", "moods"]
    assert "What each" not in found.err
    text = target.read_text(encoding="utf-8")
    assert text.count("<img ") >= 5  # two calibrations, transfer, heads, layers; the cosine, if it is known


def test_bad_input_gets_one_line(trained: Path, recipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    for arguments, message in (
        (("--output", target, "--part", "weather"), "weather"),
        (("--output", target, "--split", "weather"), "weather"),
        (("--output", target, "--task", "weather"), "weather"),
        (("--output", tmp_path), "folder"),
        (("--output", target, "--rationales", "marks"), "marks"),
        (("--output", target, "--comparison", tmp_path / "none.json"), "comparison"),
    ):
        failed = call("explain-model", trained, recipe, *arguments, *QUICK, fails=True)
        assert failed.code == 1
        assert message in failed.err
        assert failed.err.splitlines()[-1].startswith("error: ")
    assert not target.exists()
