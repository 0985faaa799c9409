"""`hf-mtl label`: a file that a recipe trains on, and a table of what was filled."""

from __future__ import annotations

import json
from pathlib import Path

from calling import call

from hf_mtl.data.preparation import load_recipe
from hf_mtl.data.yaml import read_yaml, write_yaml


def test_a_filled_file_is_written_and_can_be_trained_on(
    trained: Path, recipe: Path, workspace: Path, tmp_path: Path
) -> None:
    target = tmp_path / "orders.jsonl"
    thresholds = ("--threshold", "0.5", "--threshold", "slots=0.3")
    done = call("label", trained, recipe, "--dataset", "orders", "--output", target, *thresholds)
    assert "Missing labels of 48 rows" in done.out
    for text in ("intent", "slots", "grammar", "ECE before", "ECE after", "temperature", "0.300", "0.500"):
        assert text in done.out
    assert f"48 rows: {target}" in done.err
    values = read_yaml(recipe)
    values["encoder"] = str(workspace / "encoder")
    values["datasets"] = {"orders": values["datasets"]["orders"] | {"train": str(target)}}
    values["datasets"]["orders"]["validation"] = str(workspace / "orders-validation.jsonl")
    values["datasets"]["orders"].pop("test", None)
    values["tasks"] = [task for task in values["tasks"] if task["dataset"] == "orders"]
    again = tmp_path / "recipe.yaml"
    again.write_text(write_yaml(values), encoding="utf-8")
    before, after = (load_recipe(path).train["orders"] for path in (recipe, again))
    assert len(after.labelled("intent")) > len(before.labelled("intent"))


def test_json_says_the_same(trained: Path, recipe: Path, tmp_path: Path) -> None:
    arguments = ("--dataset", "films", "--output", tmp_path / "out.jsonl", "--task", "sentiment", "--json")
    values = json.loads(call("label", trained, recipe, *arguments).out)
    assert values["rows"] == 48
    (own,) = values["tasks"]
    assert (own["task"], own["missing"], own["filled"], own["confidence"]) == ("sentiment", 0, 0, None)
    assert own["calibration"]["decisions"] == 24
    bare = json.loads(call("label", trained, recipe, *arguments, "--uncalibrated").out)
    assert bare["tasks"][0]["calibration"] is None


def test_bad_input_gets_one_line(trained: Path, recipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    for arguments, message in (
        (("--output", target), "4 datasets"),
        (("--output", target, "--dataset", "films", "--threshold", "much"), "'much'"),
        (("--output", target, "--dataset", "films", "--threshold", "slots=0.5"), "'slots'"),
        (("--output", target, "--dataset", "pairs"), "answers numbers"),
        (("--output", tmp_path, "--dataset", "films"), "folder"),
        (("--output", tmp_path / "out.xml", "--dataset", "films"), "'.xml'"),
    ):
        failed = call("label", trained, recipe, *arguments, fails=True)
        assert failed.code == 1
        assert message in failed.err
        assert failed.err.splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.glob("out*"))
