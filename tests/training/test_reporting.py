"""What tensorboard, wandb and trackio hold after a training: all that was logged, without a network."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from tiny import TASKS, write_recipe

pytestmark = pytest.mark.slow

REPORTERS = ("tensorboard", "wandb", "trackio")
DATASETS = ("films", "orders", "pairs", "posts")
Steps = dict[int, dict[str, float]]
"""What was logged at each step, under the names of the trainer's logs."""


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a training that reported to all of them; home, temporary files and all else stand below it.

    It runs in a process of its own: the libraries read their environment when they are imported, start threads and
    processes, and any warning ends it.
    """
    folder = tmp_path_factory.mktemp("reporting")
    recipe = write_recipe(folder, tiny_folder / "plain")
    (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    training = {
        "report_to": list(REPORTERS),
        "project": "tiny",
        "max_steps": 6,
        "logging_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "no",
        "balancing": "random",
        "log_gradient_conflict": 2,
        "single_task_scores": dict.fromkeys(TASKS, 0.5),
    }
    job = {"files": str(folder), "output": str(folder / "run"), "training": training}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    for name in ("home", "temporary"):
        (folder / name).mkdir()
    tests = Path(__file__).parents[1]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "temporary"),
        "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder / "home"),
        "TENSORBOARD_LOGGING_DIR": str(folder / "home" / "tensorboard"),
        # Where somebody asks for the network all the same, nobody answers.
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"),
    }
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("train_job.py")), str(folder / "job.json")]
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=folder / "home",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-4000:]
    with pytest.raises(ProcessLookupError):  # nothing of it runs on
        os.killpg(process.pid, 0)
    return folder


@pytest.fixture(scope="module")
def logged(folder: Path) -> Steps:
    """What the trainer itself remembers."""
    steps: Steps = {}
    for log in json.loads((folder / "run" / "report.json").read_text(encoding="utf-8"))["logs"]:
        steps.setdefault(log["step"], {}).update({key: value for key, value in log.items() if key != "step"})
    return steps


def trainers_name(key: str) -> str:
    """Undo how transformers names values for reporters."""
    place, _, name = key.partition("/")
    return f"eval_{name}" if place == "eval" else name


def add(steps: Steps, step: int, values: dict[str, Any]) -> None:
    steps.setdefault(step, {}).update({trainers_name(k): v for k, v in values.items() if k.partition("/")[1]})


def read_tensorboard(folder: Path) -> Steps:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "home" / "tensorboard"))
    events.Reload()
    steps: Steps = {}
    for key in events.Tags()["scalars"]:
        for event in events.Scalars(key):
            add(steps, event.step, {key: event.value})
    return steps


def read_wandb(folder: Path) -> Steps:
    """Read an offline run: records in blocks of 32 KiB as LevelDB's log has them, each a protocol buffer."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs = list((folder / "home" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 1
    data, position, parts, steps = runs[0].read_bytes(), 7, b"", Steps()
    while position < len(data):
        room = 2**15 - position % 2**15
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record.FromString(parts)
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            if values:
                add(steps, values.pop("train/global_step"), values)
            parts = b""
    return steps


def read_trackio(folder: Path) -> Steps:
    steps: Steps = {}
    with closing(sqlite3.connect(folder / "home" / ".cache" / "huggingface" / "trackio" / "tiny.db")) as database:
        for (row,) in database.execute("SELECT metrics FROM metrics ORDER BY id"):
            values = json.loads(row)
            add(steps, values.pop("train/global_step"), values)
    return steps


READERS: dict[str, Callable[[Path], Steps]] = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "trackio": read_trackio,
}


@pytest.mark.parametrize("reporter", REPORTERS)
def test_reporters_hold_all_that_was_logged(reporter: str, folder: Path, logged: Steps) -> None:
    found = READERS[reporter](folder)
    assert {2, 3, 4, 6} <= set(logged)
    for step, values in logged.items():
        assert {key: found[step].get(key) for key in values} == pytest.approx(values, rel=1e-6, nan_ok=True), step


def test_what_is_logged_are_losses_scores_counts_weights_and_conflicts(logged: Steps) -> None:
    for step in (2, 4, 6):
        names = set(logged[step])
        assert {f"sampled_{dataset}" for dataset in DATASETS} < names
        assert {f"weight_{task}" for task in TASKS} < names
        assert {f"gradient_norm_{task}" for task in TASKS} & names
    assert {f"loss_{task}" for task in TASKS} <= {name for values in logged.values() for name in values}
    norms = {task for task in TASKS if f"gradient_norm_{task}" in logged[6]}
    cosines = {f"gradient_cosine_{a}_{b}" for a, b in combinations(TASKS, 2) if {a, b} <= norms}
    assert cosines
    assert cosines < set(logged[6])
    for step in (3, 6):
        assert {"eval_average", "eval_relative_gain", "eval_slots_f1", "eval_sentiment_accuracy"} < set(logged[step])
