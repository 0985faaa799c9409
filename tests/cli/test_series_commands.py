"""`hf-mtl compare`, `tune` and `cross-validate`: what they print and leave, killed and in two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from calling import Called, call
from small import TASKS, small_recipe

from hf_mtl.data.recipe import read_recipe
from hf_mtl.data.yaml import parse_yaml, read_yaml

COMMANDS = ("compare", "tune", "cross-validate")
QUICK = ("--max-steps", "2")
RESULTS = {"compare": "comparison.json", "tune": "best_recipe.yaml", "cross-validate": "cross_validation.json"}
OPTIONS: dict[str, tuple[str, ...]] = {
    "compare": ("--resamples", "20", "--eval-strategy", "no"),
    "tune": ("--trials", "2"),
    "cross-validate": ("--folds", "2"),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file; not to be changed."""
    folder = tmp_path_factory.mktemp("series")
    path = folder / "recipe.yaml"
    path.write_text(small_recipe(folder, seed=3).to_yaml() + "search:\n  learning_rate: {low: 1e-3, high: 1e-2}\n")
    return path


def start(command: str, recipe: Path, folder: Path, *options: str, fails: bool = False) -> Called:
    return call(command, recipe, "--output-dir", folder, *OPTIONS[command], *options, fails=fails)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│┃ \n").replace("┃", "│").split("│")]


def test_compare_prints_both_tables_and_goes_on(recipe: Path, tmp_path: Path) -> None:
    done = start("compare", recipe, tmp_path / "runs", *QUICK)
    results = json.loads((tmp_path / "runs" / "comparison.json").read_text())
    rows = {cells(line)[0]: cells(line) for line in done.out.splitlines()}
    assert set(TASKS) | {"average", "training rows seen", "parameters"} <= set(rows)
    for name, task in results["tasks"].items():
        assert rows[name][3:5] == [f"{task['alone']:.4f}", f"{task['together']:.4f}"]
    assert results["budget"] in done.out
    assert "run 1 of 4: together" in done.err
    assert "run 4 of 4: alone slots" in done.err
    again = start("compare", recipe, tmp_path / "runs", *QUICK)
    assert again.out == done.out
    assert "run " not in again.err


def test_tune_prints_trials_and_the_best_arguments(recipe: Path, tmp_path: Path) -> None:
    done = start("tune", recipe, tmp_path / "runs", *QUICK)
    table, _, pasted = done.out.partition("# the best arguments, for the recipe\n")
    best = read_recipe(tmp_path / "runs" / "best_recipe.yaml").training
    arguments = parse_yaml(pasted, where="what was printed")
    assert list(arguments["training"]) == ["learning_rate"]
    assert best == {**read_yaml(recipe)["training"], "max_steps": 2, **arguments["training"]}
    assert [cells(line)[0] for line in table.splitlines() if line.startswith("│")] in (["1 best", "2"], ["1", "2 best"])
    assert "trial 2 of 2: learning_rate=" in done.err
    # What was found can be trained.
    call("train", tmp_path / "runs" / "best_recipe.yaml", "--output-dir", tmp_path / "best", "--save-strategy", "no")


@pytest.mark.slow
def test_cross_validate_prints_mean_and_standard_deviation(recipe: Path, tmp_path: Path) -> None:
    done = start("cross-validate", recipe, tmp_path / "runs", *QUICK)
    results = json.loads((tmp_path / "runs" / "cross_validation.json").read_text())
    rows = {cells(line)[0]: cells(line) for line in done.out.splitlines()}
    for name, task in results["tasks"].items():
        spread = task["metrics"][task["primary"]]
        assert rows[name][1:4] == [task["primary"], f"{spread['mean']:.4f}", f"{spread['std']:.4f}"]
    assert "fold 1 of 2" in done.err


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--learning-rat", "1"], ["unknown argument 'learning_rat'", "did you mean 'learning_rate'?"]),
        (["--num-train-epochs", "three"], ["num_train_epochs is 'three'", "give a number"]),
        (["--metric-for-best-model", "slots_f2"], ["metric_for_best_model is 'slots_f2'"]),
        (["stray"], ["'stray' is not an option"]),
    ],
)
def test_wrong_options_are_one_clear_error(
    recipe: Path, tmp_path: Path, command: str, options: list[str], fragments: list[str]
) -> None:
    done = start(command, recipe, tmp_path / "runs", *options, fails=True)
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert all(fragment in line for fragment in fragments)
    assert "recipe.yaml" not in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_errors_of_the_recipe_name_it(recipe: Path, tmp_path: Path, command: str) -> None:
    wrong = recipe.with_name(f"wrong-{tmp_path.name}.yaml")
    wrong.write_text(recipe.read_text().replace("learning_rate: 0.003", "learning_rate: quick"))
    done = start(command, wrong, tmp_path / "runs", fails=True)
    assert done.err.startswith(f"error: {wrong}, training: learning_rate is 'quick'; give a number")
    start(command, tmp_path / "none.yaml", tmp_path / "runs", fails=True)
    assert not (tmp_path / "runs").exists()


def test_errors_of_the_search_name_it(recipe: Path, tmp_path: Path) -> None:
    wrong = recipe.with_name(f"wrong-{tmp_path.name}.yaml")
    wrong.write_text(recipe.read_text().replace("low: 1e-3", "lwo: 1e-3"))
    done = start("tune", wrong, tmp_path / "runs", fails=True)
    assert done.err == call("check", wrong, fails=True).err
    assert done.err == f"error: {wrong}, search, learning_rate: unknown key 'lwo'; did you mean 'low'?\n"


@pytest.mark.parametrize("seeds", ["1,x", "", "1,1"])
def test_wrong_seeds_are_one_clear_error(recipe: Path, tmp_path: Path, seeds: str) -> None:
    done = start("compare", recipe, tmp_path / "runs", "--seeds", seeds, fails=True)
    assert done.code == 1
    assert "seeds is" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_another_recipe_there_is_one_clear_error(recipe: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "runs").write_text("a file")
    done = start(command, recipe, tmp_path / "runs", *QUICK, fails=True)
    assert done.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.err
    assert (tmp_path / "runs").read_text() == "a file"


# ---------------------------------------------------------------------- processes


def timeless(results: Any) -> Any:
    if isinstance(results, dict):
        return {key: timeless(value) for key, value in results.items() if not key.endswith("seconds")}
    return results


def read(path: Path) -> Any:
    return timeless(read_yaml(path) if path.suffix == ".yaml" else json.loads(path.read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kill_after", [1, 2])
def test_a_killed_series_ends_as_an_uninterrupted_one(
    recipe: Path, tmp_path: Path, command: str, kill_after: int
) -> None:
    """Killed in its first or second run, after a checkpoint was written."""
    options = ("--num-train-epochs", "3", "--save-strategy", "epoch", "--eval-strategy", "epoch")
    whole, killed = recipe.parent / f"whole-{tmp_path.name}", recipe.parent / f"killed-{tmp_path.name}"
    start(command, recipe, whole, *options)
    line = [sys.executable, "-m", "hf_mtl", command, str(recipe), "--output-dir", str(killed)]
    process = subprocess.Popen([*line, *OPTIONS[command], *options], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        seen: set[str] = set()
        while len(seen) < kill_after:
            assert process.poll() is None
            seen |= {path.parent.parent.name for path in killed.glob("*/checkpoint-*/trainer_state.json")}
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (killed / RESULTS[command]).exists()
    start(command, recipe, killed, *options)
    assert read(killed / RESULTS[command]) == read(whole / RESULTS[command])
    models = {path.relative_to(whole) for path in whole.glob("*/model.safetensors")}
    assert models == {path.relative_to(killed) for path in killed.glob("*/model.safetensors")}
    assert all((killed / path).read_bytes() == (whole / path).read_bytes() for path in models)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_two_processes_report_once_and_go_on(recipe: Path, tmp_path: Path, command: str) -> None:
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "hf_mtl", command, str(recipe)]
    options = ("--output-dir", str(tmp_path / "two"), *OPTIONS[command], *QUICK, "--per-device-train-batch-size", "4")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *launch, *options], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("average") == 1
    begun = ("run 1 of", "trial 1 of", "fold 1 of")[COMMANDS.index(command)]
    assert done.stderr.count(begun) == 1
    trained = [json.loads(path.read_text())["train"] for path in (tmp_path / "two").glob("*/train_results.json")]
    assert max(run["train_rows"] for run in trained) > 8  # two steps, each of four rows on two processes
    again = subprocess.run(
        [sys.executable, "-m", *launch, *options], env=environment, capture_output=True, text=True, timeout=600
    )
    assert again.returncode == 0, again.stderr[-4000:]
    assert again.stdout == done.stdout
