"""`hf-mtl task-updates`: a page and tables of what training changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calling import call

QUICK = ("--rows", 12, "--task", "intent", "--task", "slots")


def test_tasks_are_trained_for_a_few_steps_from_the_recipes_encoder(
    trained: Path, recipe: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    done = call("task-updates", trained, recipe, "--output", page, "--steps", 3, *QUICK)
    for text in ("Relative change", "all together", "Cosine of the updates", "Score lost", "layer 2"):
        assert text in done.out
    assert "training on slots (2 of 2)" in done.err
    assert "putting back layer 1 (2 of 4)" in done.err
    text = page.read_text(encoding="utf-8")
    assert "3 steps each" in text
    assert text.count("<img ") == 4


@pytest.mark.slow
def test_models_of_single_tasks_take_the_place_of_the_steps(trained: Path, recipe: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    alone = [value for task in ("intent", "slots") for value in ("--alone", f"{task}={trained}")]
    done = call("task-updates", trained, recipe, "--output", page, "--json", "--heads", *alone, *QUICK)
    values = json.loads(done.out)
    assert [own["task"] for own in values["changes"]] == ["all together", "intent", "slots"]
    assert values["changes"][0]["parts"] == values["changes"][1]["parts"]
    assert all(abs(own["cosine"] - 1.0) < 1e-6 for own in values["overlaps"])
    assert {own["part"] for own in values["drops"]} > {"1.1", "2.2", "all of them"}
    bare = call("task-updates", trained, recipe, "--output", page, "--json", "--steps", 0, *QUICK)
    assert json.loads(bare.out)["overlaps"] == []


def test_bad_input_gets_one_line(trained: Path, recipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    for arguments, message in (
        (("--output", target, "--split", "weather"), "weather"),
        (("--output", target, "--task", "weather"), "weather"),
        (("--output", tmp_path), "folder"),
        (("--output", target, "--alone", "intent"), "task=FOLDER"),
        (("--output", target, "--encoder", tmp_path), "encoder"),
        (("--output", target, "--encoder", trained), "not an encoder"),
        (("--output", target, "--share", "2", "--steps", "0"), "share is 2"),
    ):
        failed = call("task-updates", trained, recipe, *arguments, fails=True)
        assert failed.code == 1
        assert message in failed.err
        assert failed.err.splitlines()[-1].startswith("error: ")
    assert not target.exists()
