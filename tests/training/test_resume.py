"""Runs killed at a random step: resumed, they end with the bits of an uninterrupted one, on one process and on two."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from calling import call, contents

from hf_mtl.data.yaml import write_yaml
from hf_mtl.training.run import last_checkpoint

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
TRAINING = {
    "num_train_epochs": 2,  # of 160 rows
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "precision": "fp32",
    "seed": 7,
    "logging_steps": 1,  # the mean losses since the last log are not in a checkpoint
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 3,
}
BY_EPOCH = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": False}
EVERY_TASK = {"batching": "mixed", "every_task_in_batch": True}


@dataclass(frozen=True)
class Case:
    """A run to be killed: its training arguments, over `TRAINING`, and the number of its processes."""

    name: str
    processes: int = 1
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return 160 * self.values["num_train_epochs"] // 8 // self.values.get("gradient_accumulation_steps", 1)

    @property
    def saved(self) -> list[int]:
        """The steps in the first half of the training that end with a checkpoint."""
        every = self.values["save_steps"] if self.values["save_strategy"] == "steps" else 20
        return list(range(every, self.steps // 2 + 1, every))

    @property
    def values(self) -> dict[str, Any]:
        per_device = {"per_device_train_batch_size": 8 // self.processes}
        return {**TRAINING, **per_device, **self.training}


FAST = Case("mixed-temperature", 1, {"sampling": "temperature", "sampling_kwargs": {"temperature": 2}})
ADAPTIVE = {"batching": "homogeneous", "sampling": "adaptive", "num_train_epochs": 4, **BY_EPOCH}
SLOW = (
    Case("homogeneous-adaptive", 1, ADAPTIVE),
    Case("uw", 1, {**EVERY_TASK, "balancing": "uw", "gradient_accumulation_steps": 2, "num_train_epochs": 4}),
    Case("pcgrad", 1, {"aggregation": "pcgrad"}),
    Case("two-mixed-temperature", 2, FAST.training),
    Case("two-homogeneous-adaptive", 2, ADAPTIVE),
    Case("two-dwa", 2, {**EVERY_TASK, "balancing": "dwa"}),
)
CASES = [pytest.param(c, id=c.name, marks=pytest.mark.slow) for c in (FAST, *SLOW)]


@pytest.fixture(scope="module")
def recipe_for(tiny_folder: Path, tiny_recipe: dict[str, Any]) -> Callable[[Case], Path]:
    """Writes a case's recipe; the encoder has dropout, so that the random state matters."""

    def write(case: Case) -> Path:
        path = tiny_folder / f"resume-{case.name}.yaml"
        path.write_text(write_yaml({**tiny_recipe, "training": case.values}), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def whole(recipe_for: Callable[[Case], Path], tiny_folder: Path) -> Path:
    """Folder of the fast case's uninterrupted run; not to be changed."""
    folder = tiny_folder / "resume-whole"
    train(FAST, recipe_for(FAST), folder)
    return folder


def start(case: Case, recipe: Path, folder: Path, *options: str, script: Path = SCRIPT) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(case.processes)]
    command = [*command, str(script)] if case.processes > 1 else [sys.executable, "-m", "hf_mtl", "train"]
    command += [str(recipe), "--output-dir", str(folder), *options]
    # The thread count of this process, which takes runs up again: sums are rounded otherwise with another one.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def train(case: Case, recipe: Path, folder: Path, *options: str, script: Path = SCRIPT) -> None:
    """Run `hf-mtl train` to its end: in this process, or on as many as the case has."""
    if case.processes == 1:
        call("train", recipe, "--output-dir", folder, *options)
    else:
        code = start(case, recipe, folder, *options, script=script).wait(300)
        assert code == 0, folder.with_suffix(".log").read_text(encoding="utf-8")[-4000:]


def kill(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to a process and, since torchrun's workers are in sessions of their own, to all it has started."""
    with suppress(psutil.NoSuchProcess):
        # The launcher first, so that it does not end its workers in good order.
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family[1:], timeout=30)
    process.wait()


def kill_at(case: Case, process: subprocess.Popen[bytes], folder: Path, generator: random.Random) -> None:
    """Kill a run at some moment between two of its checkpoints, or while it writes one."""
    step, delay = generator.choice(case.saved), generator.uniform(0.0, 0.1)
    try:
        while not any(int(path.name.split("-")[1]) >= step for path in whole_checkpoints(folder)):
            assert process.poll() is None, folder.with_suffix(".log").read_text(encoding="utf-8")[-4000:]
            time.sleep(0.01)
        time.sleep(delay)
    finally:
        kill(process)


def whole_checkpoints(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]


def unfinished(run: Path, folder: Path) -> Path:
    """Copy a run as it stood before its model was saved."""
    shutil.copytree(run, folder)
    for name in ("train_results.json", "model.safetensors", "config.json"):
        (folder / name).unlink()
    return folder


def final_state(case: Case, folder: Path) -> dict[str, Any]:
    """Return the bytes of the model and of all that the last checkpoint remembers, and the logs without times."""
    last = folder / f"checkpoint-{case.steps}"
    files = [folder / "model.safetensors", *(path for path in last.iterdir() if path.suffix != ".json")]
    state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
    logs = [{k: v for k, v in log.items() if "runtime" not in k and "second" not in k} for log in state["log_history"]]
    return {"logs": logs, **{str(path.relative_to(folder)): _bits(path) for path in files}}


def _bits(path: Path) -> bytes:
    if not path.name.startswith("rng_state"):
        return path.read_bytes()
    # Python's own generator, from which no training draws, moves when a process first imports some library.
    state = torch.load(path, weights_only=False)
    return state["cpu"].numpy().tobytes() + state["numpy"][1].tobytes() + bytes(str(state["numpy"][2:]), "ascii")


def cut_off(file: Path, *, missing: bool) -> None:
    """Leave a checkpoint as it stands when the process dies before a file is written, or half-way through it."""
    data = file.read_bytes()
    for last in ("trainer_state.json", "training_seconds.json"):
        (file.parent / last).unlink()
    if missing:
        file.unlink(missing_ok=True)
    else:
        file.write_bytes(data[: len(data) // 2])


def parts(checkpoint: Path) -> dict[str, int]:
    """Return the files of a checkpoint, and when each was written.

    The training seconds, which a callback adds when the checkpoint is whole, are none of them: where they are missing
    or cut off, the clock begins at zero.
    """
    files = (path for path in checkpoint.iterdir() if path.name != "training_seconds.json")
    return {path.name: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(
    case: Case, recipe_for: Callable[[Case], Path], tiny_folder: Path, request: pytest.FixtureRequest
) -> None:
    recipe, killed = recipe_for(case), tiny_folder / f"resume-{case.name}-killed"
    if case is FAST:
        uninterrupted: Path = request.getfixturevalue("whole")
    else:
        uninterrupted = tiny_folder / f"resume-{case.name}-whole"
        train(case, recipe, uninterrupted)
    kill_at(case, start(case, recipe, killed), killed, random.Random(case.name))
    assert not (killed / "train_results.json").exists()
    checkpoint = last_checkpoint(killed)
    assert checkpoint is not None
    assert checkpoint.name != f"checkpoint-{case.steps}"
    train(case, recipe, killed, "--resume")

    found, wanted = final_state(case, killed), final_state(case, uninterrupted)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []
    ranks = {path.name for path in killed.glob(f"checkpoint-{case.steps}/rng_state*")}
    assert ranks == ({"rng_state.pth"} if case.processes == 1 else {f"rng_state_{n}.pth" for n in range(2)})
    scores = [json.loads((run / "train_results.json").read_text(encoding="utf-8")) for run in (killed, uninterrupted)]
    assert scores[0]["validation"] == scores[1]["validation"]

    before = contents(killed)
    train(case, recipe, killed, "--resume")
    assert contents(killed) == before


@pytest.mark.parametrize("missing", [False, True], ids=["cut", "missing"])
def test_a_checkpoint_that_was_cut_off_at_any_of_its_files_is_passed_over(
    whole: Path, tmp_path: Path, missing: bool
) -> None:
    written = parts(whole / f"checkpoint-{FAST.steps}")
    remembered = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "multi_task_state.pt"}
    assert remembered | {"trainer_state.json"} <= written.keys()
    assert written["trainer_state.json"] == max(written.values())
    for name in written:
        folder = unfinished(whole, tmp_path / name)
        newest = last_checkpoint(folder)
        assert newest == folder / f"checkpoint-{FAST.steps}"
        cut_off(newest / name, missing=missing)
        older = last_checkpoint(folder)
        assert older is not None, name
        assert older.name == f"checkpoint-{FAST.steps - 1}", name  # 40 steps, saved every 3 and at the end


@pytest.mark.mostly_slow(fast=1)
@pytest.mark.parametrize("name", ["model.safetensors", "multi_task_state.pt", "trainer_state.json"])
def test_a_run_whose_last_checkpoint_was_cut_off_ends_with_the_same_bits(
    whole: Path, recipe_for: Callable[[Case], Path], tiny_folder: Path, name: str
) -> None:
    folder = unfinished(whole, tiny_folder / f"resume-cut-{name}")
    cut_off(folder / f"checkpoint-{FAST.steps}" / name, missing=False)
    train(FAST, recipe_for(FAST), folder, "--resume")
    assert final_state(FAST, folder) == final_state(FAST, whole)


LATE = """
import os, sys, time
from pathlib import Path
import torch
from hf_mtl.cli import main

save = torch.save
if os.environ["RANK"] == "1":
    def late(state, place, *args, **kwargs):
        while not Path(place).with_name("rng_state_0.pth").exists():
            time.sleep(0.01)
        time.sleep(0.5)
        save(state, place, *args, **kwargs)
    torch.save = late
main(["train", *sys.argv[1:]])
"""
"""The command, but the second process writes its part of a checkpoint half a second after the first."""


@pytest.mark.slow
def test_a_checkpoint_counts_as_whole_only_when_all_processes_have_written(
    recipe_for: Callable[[Case], Path], tiny_folder: Path, tmp_path: Path
) -> None:
    case, script = Case("two-late", 2), tmp_path / "late.py"
    script.write_text(LATE, encoding="utf-8")
    train(case, recipe_for(case), tiny_folder / "resume-late", "--max-steps", "3", script=script)
    written = parts(tiny_folder / "resume-late" / "checkpoint-3")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= written.keys()
    assert written["trainer_state.json"] == max(written.values())
