"""`hf-mtl train`: what it leaves behind, what the command line overrides, and what it takes up again after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
from calling import OPTIONS, Called, call, contents

from hf_mtl.cli.train import training_options
from hf_mtl.data.yaml import read_yaml
from hf_mtl.errors import SpecError
from hf_mtl.training.run import OF_ONE_START, last_checkpoint


def train(recipe: Path, folder: Path, *options: object, fails: bool = False) -> Called:
    return call("train", recipe, "--output-dir", folder, *options, fails=fails)


def unfinished(trained: Path, folder: Path) -> Path:
    """Copy a run as it stood before its model was saved."""
    shutil.copytree(trained, folder)
    for name in ("train_results.json", "model.safetensors", "config.json"):
        (folder / name).unlink()
    return folder


def test_a_run_leaves_model_tokenizer_recipe_and_results(trained: Path) -> None:
    files = {path.name for path in trained.iterdir() if path.is_file()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= files
    assert {"recipe.yaml", "train_results.json", "training_args.json"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".tmp"))]
    results = json.loads((trained / "train_results.json").read_text())
    assert set(results) == {"train", "validation", "test"}
    tasks = {"sentiment", "intent", "slots", "grammar", "similarity", "moods"}
    assert set(results["test"]) == set(results["validation"]) == {*tasks, "average"}


def test_the_command_line_beats_the_recipe(trained: Path) -> None:
    training = read_yaml(trained / "recipe.yaml")["training"]
    assert (training["num_train_epochs"], training["learning_rate"], training["bf16"]) == (8, 5e-3, False)
    assert training["seed"] == 3
    used = json.loads((trained / "training_args.json").read_text())
    assert (used["num_train_epochs"], used["learning_rate"], used["bf16"], used["seed"]) == (8, 5e-3, False, 3)


def test_the_recipe_as_used_describes_the_data_from_its_new_place(trained: Path) -> None:
    report = json.loads(call("check", trained / "recipe.yaml", "--json").out)
    assert {entry["dataset"] for entry in report["datasets"]} == {"films", "orders", "pairs", "posts"}


def test_results_are_what_evaluate_finds(trained: Path, recipe: Path) -> None:
    found = json.loads(call("evaluate", trained, recipe, "--json").out)
    assert found == json.loads((trained / "train_results.json").read_text())["test"]


def test_resuming_a_finished_run_changes_nothing(trained: Path, recipe: Path) -> None:
    before = contents(trained)
    done = train(recipe, trained, *OPTIONS, "--resume")
    assert "nothing to do" in done.err
    assert contents(trained) == before


def test_a_checkpoint_that_was_cut_off_is_passed_over(trained: Path, recipe: Path, tmp_path: Path) -> None:
    folder = unfinished(trained, trained.parent / f"cut-{tmp_path.name}")
    try:
        newest = last_checkpoint(folder)
        assert newest is not None
        state = newest / "trainer_state.json"
        state.write_bytes(state.read_bytes()[:100])
        older = last_checkpoint(folder)
        assert older is not None
        assert older != newest
        train(recipe, folder, *OPTIONS, "--resume")
        assert (folder / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
        # What is of the last start alone is left out; the rest is as if there had been no cut.
        ours, theirs = (json.loads((run / "train_results.json").read_text())["train"] for run in (folder, trained))
        assert theirs.keys() - ours.keys() == set(OF_ONE_START)
        assert ours["train_rows"] == theirs["train_rows"]
    finally:
        shutil.rmtree(folder)


def test_a_run_without_a_whole_checkpoint_starts_anew(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-final").mkdir()
    assert last_checkpoint(tmp_path) is None


def test_the_newest_checkpoint_is_the_one_with_the_greatest_number(tmp_path: Path) -> None:
    for number in (9, 10):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_the_best_checkpoint_is_found_after_the_run_was_moved(trained: Path, recipe: Path, tmp_path: Path) -> None:
    folder = unfinished(trained, trained.parent / f"moved-{tmp_path.name}")
    try:
        for checkpoint in folder.glob("checkpoint-*"):
            state = checkpoint / "trainer_state.json"
            values = json.loads(state.read_text())
            values["best_model_checkpoint"] = f"gone/{Path(values['best_model_checkpoint']).name}"
            state.write_text(json.dumps(values))
        train(recipe, folder, *OPTIONS, "--resume")
        assert (folder / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    finally:
        shutil.rmtree(folder)


def test_overwriting_replaces_the_run_and_nothing_else(workspace: Path, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "checkpoint-999").mkdir()
    (folder / "model.safetensors").write_text("old")
    call("train", recipe, "--output-dir", folder, "--overwrite", "--max-steps", "1", "--save-strategy", "no")
    assert (folder / "notes.txt").read_text() == "mine"
    assert not list(folder.glob("checkpoint-*"))
    assert (folder / "model.safetensors").stat().st_size > 1000
    assert json.loads(call("info", folder, "--json").out)["tasks"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--class-balanced", '["mood"]'), "class_balanced names 'mood', which is no task"),
        (
            ("--lr-scheduler-type", "cosine_with_min_lr"),
            "lr_scheduler_kwargs is None, which 'cosine_with_min_lr' refuses",
        ),
        (("--lr-scheduler-kwargs", '{"zz": 1}'), "lr_scheduler_kwargs is {'zz': 1}, which 'linear' refuses"),
        (("--sampling", "explicit", "--sampling-kwargs", '{"weights": {"zz": 1}}'), "weights"),
    ],
)
def test_what_is_refused_when_training_begins_leaves_the_model_that_stood_there(
    workspace: Path, recipe: Path, tmp_path: Path, options: tuple[str, ...], problem: str
) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoint-9").mkdir(parents=True)
    (folder / "model.safetensors").write_text("old")
    (folder / "recipe.yaml").write_text("older")
    before = sorted(folder.rglob("*"))
    done = call("train", recipe, "--output-dir", folder, "--overwrite", *options, fails=True)
    assert problem in done.err
    assert "Traceback" not in done.err
    assert sorted(folder.rglob("*")) == before
    assert (folder / "recipe.yaml").read_text() == "older"


def test_the_saved_tokenizer_does_not_depend_on_what_the_cache_held(
    workspace: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("cold", "warm"):
        call("train", recipe, "--output-dir", tmp_path / name, "--max-steps", "1", "--save-strategy", "no")
    cold, warm = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("cold", "warm"))
    assert list((tmp_path / "cache").rglob("*.arrow"))
    assert cold == warm


@pytest.mark.slow
@pytest.mark.parametrize("kill_after", [1, 3])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    trained: Path, recipe: Path, tmp_path: Path, kill_after: int
) -> None:
    folder = trained.parent / f"killed-{tmp_path.name}"
    command = [sys.executable, "-m", "hf_mtl", "train", str(recipe), "--output-dir", str(folder), *map(str, OPTIONS)]
    # The thread count of this process, which goes on with the run: sums are rounded otherwise with another one.
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        seen: set[str] = set()
        while len(seen) < kill_after:
            assert process.poll() is None
            seen |= {path.parent.name for path in folder.glob("checkpoint-*/trainer_state.json")}
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "train_results.json").exists()
        train(recipe, folder, *OPTIONS, "--resume")
        assert (folder / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
        ours, theirs = (json.loads((run / "train_results.json").read_text()) for run in (folder, trained))
        assert (ours["test"], ours["validation"]) == (theirs["test"], theirs["validation"])
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_the_plan_is_shown_before_training(recipe: Path, tmp_path: Path) -> None:
    options = ["--batching", "homogeneous", "--dataset-batch-size", '{"films": 4}', "--class-balanced", "[sentiment]"]
    options += ["--sampling", "temperature", "--sampling-kwargs", '{"temperature": 2}', "--epoch-size", "downsampled"]
    done = train(recipe, tmp_path / "run", *options, "--max-steps", "1", "--save-strategy", "no")
    lines = done.err.splitlines()
    films = next(line for line in lines if "films" in line).replace("│", " ").split()
    rows = films.index("sentiment") + 1
    assert films[rows + 1] == "25.0%"
    assert int(films[rows + 3]) == -(-int(films[rows + 2]) // 4)  # batches of four rows
    assert lines.index(next(line for line in lines if "batches an epoch" in line)) < lines.index(
        next(line for line in lines if line.startswith("training 1 steps"))
    )
    written = read_yaml(tmp_path / "run" / "recipe.yaml")["training"]
    assert written["sampling_kwargs"] == {"temperature": 2}
    assert written["class_balanced"] == ["sentiment"]


def test_options_are_typed_as_yaml_types_them() -> None:
    options = [
        "--num-train-epochs",
        "2",
        "--bf16",
        "--learning-rate=1e-4",
        "--optim",
        "adamw_torch",
        "--warmup-steps",
        "-1",
    ]
    assert training_options(options) == {
        "num_train_epochs": 2,
        "bf16": True,
        "learning_rate": 1e-4,
        "optim": "adamw_torch",
        "warmup_steps": -1,
    }


def test_a_value_without_its_option_is_refused() -> None:
    with pytest.raises(SpecError, match="'stray' is not an option"):
        training_options(["stray"])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_train_one_model_and_report_once(recipe: Path, tmp_path: Path, launcher: str) -> None:
    script = Path(__file__).parents[2] / "scripts" / "train.py"
    launch = {
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        "accelerate": [
            *(
                "accelerate.commands.launch",
                "--main_process_port",
                "0",
                "--multi_gpu",
                "--num_processes",
                "2",
                "--num_machines",
                "1",
            ),
            *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "hf_mtl", "train"),
        ],
    }[launcher]
    command = [sys.executable, "-m", *launch, str(recipe), "--output-dir", str(tmp_path / "run"), *map(str, OPTIONS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("test split") == 1
    assert done.stderr.count("model: ") == 1
    results = json.loads((tmp_path / "run" / "train_results.json").read_text(encoding="utf-8"))
    assert set(results) == {"train", "validation", "test"}
