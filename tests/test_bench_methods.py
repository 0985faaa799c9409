"""The benchmark of methods: recipes that can be trained, an equal budget, a table that says what was measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_bench_scripts import script
from tiny import write_encoder, write_recipe

from hf_mtl.data.recipe import parse_recipe
from hf_mtl.errors import HfMtlError, MissingExtraError
from hf_mtl.training.recipe_arguments import training_arguments

pytestmark = pytest.mark.slow

SMALL = ("--tasks", "sentiment", "intent", "slots", "--epochs", "1", "--epoch-rows", "32", "--seeds", "0")


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("methods", monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as the benchmarks read it, of two small sets and an encoder."""
    folder = tmp_path_factory.mktemp("bench")
    write_encoder(folder / "encoder")
    write_recipe(folder, folder / "encoder", rows={"train": 32, "test": 16})
    for name, own in (("sst2", "films"), ("snips", "orders")):
        (folder / name).mkdir()
        for split in ("train", "validation", "test"):
            shutil.copy(folder / f"{own}-{split}.jsonl", folder / name / f"{split}.jsonl")
    return folder


def arguments(data: Path, output: Path, *more: str) -> list[str]:
    return [str(data), "--encoder", str(data / "encoder"), *SMALL, "--output-dir", str(output), *more]


def in_this_process(methods: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Let runs be in this process, which saves the seconds of starting others; return those that were."""
    runs: list[tuple[str, int]] = []

    def run(given: Sequence[str], method: str, seed: int) -> str | None:
        runs.append((method, seed))
        try:
            methods.main([*given, "--job", method, str(seed)])
        except HfMtlError as error:
            return str(error)
        return None

    monkeypatch.setattr(methods, "run", run)
    return runs


def test_every_method_is_a_recipe_that_can_be_trained(methods: ModuleType, tmp_path: Path) -> None:
    plain = methods.make_recipe(tmp_path, "encoder", methods.BENCH_TASKS, {"num_train_epochs": 1})
    recipes: dict[str, Any] = {}
    for name, method in methods.METHODS.items():
        recipes[name] = method.applied(plain)
        recipe = parse_recipe(recipes[name], base=tmp_path)
        try:
            training_arguments(tmp_path, recipe.training)
        except MissingExtraError:
            assert name.startswith(("balancing-", "aggregation-"))
    assert recipes["default"] == plain
    texts = [json.dumps(recipe, sort_keys=True) for recipe in recipes.values()]
    assert len(set(texts)) == len(texts)  # no two methods are the same


def test_methods_are_trained_once_and_stand_in_a_table(
    methods: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = in_this_process(methods, monkeypatch)
    broken = methods.Method(training={"perturbation": "magic"})
    monkeypatch.setitem(methods.METHODS, "broken", broken)
    chosen = arguments(data, tmp_path, "--methods", "default", "broken", "r_drop")
    methods.main(chosen)
    shown = capsys.readouterr().out.splitlines()
    assert runs == [("default", 0), ("broken", 0), ("r_drop", 0)]
    assert shown[0].split(" | ")[1:4] == ["sentiment", "intent", "slots"]
    assert [line.split(" | ")[0] for line in shown[2:4]] == ["| default", "| r_drop"]
    assert any(line.startswith("broken did not run: ") and "magic" in line for line in shown)
    assert any(line.startswith("32 rows in 1 epochs, batches of 32, seeds [0]; ") for line in shown)
    values = json.loads((tmp_path / "methods.json").read_text())
    assert {name: [run["rows"] for run in own] for name, own in values["runs"].items()} == {
        "default": [32],
        "r_drop": [32],
    }
    for own in values["runs"].values():
        assert own[0]["seconds"] > 0.0
        assert own[0]["memory_gb"] > 0.05
        assert set(own[0]["scores"]) == {"sentiment", "intent", "slots", "average"}
    methods.main(chosen)  # what is finished is not done again
    assert runs[3:] == [("broken", 0)]
    assert capsys.readouterr().out.splitlines()[:4] == shown[:4]
    with pytest.raises(SystemExit, match="other settings"):
        methods.main([*chosen, "--test-rows", "5"])


def test_a_run_in_a_process_of_its_own_says_why_it_failed(methods: ModuleType, data: Path, tmp_path: Path) -> None:
    problem = methods.run([str(data), "--epochs", "many"], "default", 0)
    assert problem is not None
    assert "invalid int value" in problem
    assert not list(tmp_path.iterdir())


def test_the_table_compares_with_the_default(methods: ModuleType) -> None:
    def result(score: float, seconds: float, memory: float) -> dict[str, Any]:
        scores = {"sentiment": score, "average": score}
        return {"scores": scores, "seconds": seconds, "memory_gb": memory, "gpu_memory_gb": None}

    runs = {"default": [result(80.0, 10.0, 1.0), result(82.0, 12.0, 1.2)], "fgm": [result(83.0, 20.0, 1.5)] * 2}
    lines = methods.table(runs, ["sentiment"]).splitlines()
    assert lines[0] == "| method | sentiment | average | to default | seconds | peak memory (GB) |"
    assert lines[2] == "| default | 81.0 ± 1.0 | 81.0 ± 1.0 |  | 11 | 1.10 |"
    assert lines[3] == "| fgm | 83.0 ± 0.0 | 83.0 ± 0.0 | +2.0 | 20 | 1.50 |"
