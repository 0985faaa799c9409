"""`hf-mtl init`: a recipe that can be read and trained on, drafted from files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from calling import call

from hf_mtl.data.dataset_source import SPLITS
from hf_mtl.data.recipe import read_recipe

CONLL = "".join(f"fly O\nto O\n{city} B-city\n\n" for city in ("rome", "oslo", "york") * 10)


def test_a_drafted_recipe_trains(workspace: Path, tmp_path: Path) -> None:
    files = [workspace / f"films-{split}.jsonl" for split in SPLITS]
    path = tmp_path / "recipe.yaml"
    done = call("init", *files, "--output", path)
    assert str(path) in done.err
    recipe = read_recipe(path)
    assert [(task.spec.name, task.spec.type, task.label) for task in recipe.tasks] == [
        ("label", "sequence_classification", "label")
    ]
    path.write_text(re.sub(r"encoder: .*", f"encoder: {workspace / 'encoder'}", path.read_text()))
    call("train", path, "--output-dir", tmp_path / "run", "--max-steps", 2)
    assert json.loads(call("info", tmp_path / "run", "--json").out)["tasks"][0]["labels"] == ["neg", "pos"]


@pytest.mark.parametrize(
    ("name", "content", "inputs", "tasks"),
    [
        ("a.csv", "text,label,id\n" + "".join(f"t{n},{n % 3},{n}\n" for n in range(60)), {"text": "text"},
         {"label": "sequence_classification"}),
        ("a.conll", CONLL, {"tokens": "tokens"}, {"tags": "token_classification"}),
    ],
)  # fmt: skip
def test_recipes_of_other_formats_load(
    tmp_path: Path, name: str, content: str, inputs: dict[str, str], tasks: dict[str, str]
) -> None:
    (tmp_path / name).write_text(content)
    call("init", tmp_path / name, "--output", tmp_path / "recipe.yaml")
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert recipe.datasets["data"].input_columns == inputs
    assert {task.label: task.spec.type for task in recipe.tasks} == tasks
    assert recipe.datasets["data"].train == name


def test_a_recipe_that_stands_there_is_kept_unless_told_otherwise(workspace: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("mine")
    done = call("init", workspace / "films-train.jsonl", "--output", path, fails=True)
    assert done.err.startswith(f"error: {path}: the file exists already")
    assert path.read_text() == "mine"
    call("init", workspace / "films-train.jsonl", "--output", path, "--overwrite")
    assert read_recipe(path).tasks


@pytest.mark.parametrize("count", [0, 4])
def test_one_to_three_files_are_named(workspace: Path, count: int) -> None:
    done = call("init", *[workspace / "films-train.jsonl"] * count, fails=True)
    assert f"{count} data files are named" in done.err


def test_the_schema_describes_every_key(trained: Path) -> None:
    schema: dict[str, Any] = json.loads(call("init", "--schema").out)
    assert schema["required"] == ["encoder", "datasets", "tasks"]
    task = schema["properties"]["tasks"]["items"]
    assert {"name", "type", "dataset", "label", "pooling", "loss_weight"} <= set(task["properties"])
    assert "token_classification" in task["properties"]["type"]["enum"]
    assert all("description" in value for key, value in task["properties"].items() if key not in ("dataset", "label"))
