"""A step's gradients do not depend on how its rows are cut into micro-batches and processes, nor on other tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import recorded_steps
import torch
from fixed_batches import FixedTrainer
from random_rows import model_of, rows_of, spec_of
from recorded_steps import RECORDED, Gradients
from tiny import TASKS, build, load, write_recipe
from torch import Tensor
from transformers import BertConfig

from hf_mtl.data.collator import MultiTaskCollator
from hf_mtl.registry import HEADS
from hf_mtl.training.trainer import MultiTaskTrainer

ACCELERATE = Path(__file__).parents[2] / "scripts" / "accelerate" / "cpu_two_processes.yaml"


def check_same(found: Mapping[str, Tensor | None], wanted: Mapping[str, Tensor | None], *, atol: float) -> None:
    """Compare gradients; a parameter that no row reaches has none, or one of zeros."""
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        other = found[name]
        if gradient is None or other is None:
            assert gradient is None or not gradient.any(), name
            assert other is None or not other.any(), name
        else:
            torch.testing.assert_close(
                other, gradient, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )


# ---------------------------------------------------------------------- micro-batches


@pytest.mark.mostly_slow(fast=3)
@pytest.mark.parametrize("kind", HEADS.names())
def test_four_micro_batches_have_the_gradients_of_one_batch(
    kind: str, tiny_encoder_config: BertConfig, tmp_path: Path
) -> None:
    specs = [spec_of(kind, loss_weight=0.7), spec_of("regression", "other", loss_weight=0.1)]
    rows = rows_of(specs, 32)
    labelled = [sum(row["labels/task"] is not None for row in rows[start : start + 8]) for start in range(0, 32, 8)]
    assert len(set(labelled)) > 1
    steps: list[dict[str, Tensor]] = []
    for size, micro_batches in ((32, 1), (8, 4)):
        trainer = FixedTrainer(
            rows,
            folder=tmp_path / str(size),
            batch_size=size,
            model=model_of(tiny_encoder_config, *specs),
            gradient_accumulation_steps=micro_batches,
            max_steps=1,
        )
        trainer.train()
        steps += trainer.gradients
    assert len(steps) == 2
    assert any(gradient.abs().max() > 1e-2 for gradient in steps[0].values())
    check_same(steps[1], steps[0], atol=1e-6)


@pytest.mark.mostly_slow(fast=1)
@pytest.mark.parametrize("rows", [8, 7])
def test_accumulated_batches_of_all_tasks_have_the_gradients_of_large_ones(
    rows: int, tiny_folder: Path, tmp_path: Path, trainer_for: Callable[..., MultiTaskTrainer]
) -> None:
    """Through sampling and batching: 32 rows, or 28, of four datasets and six tasks, in one batch or in four."""
    data = load(tmp_path, write_recipe(tmp_path, tiny_folder / "plain", rows={"train": rows}))
    steps: list[dict[str, Tensor | None]] = []
    for size, micro_batches in ((32, 1), (8, 4)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": micro_batches}
        trainer = trainer_for(data=data, model=build(data), folder=tmp_path / str(size), **{**RECORDED, **options})
        gradients = Gradients(trainer)
        trainer.train()
        steps += gradients.steps
        logs = next(log for log in trainer.state.log_history if "loss" in log)
        parts = [share * logs[f"loss_{task}"] for task, share in shares(trainer).items()]
        assert logs["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert len(steps) == 2
    assert all(gradient is not None and gradient.any() for gradient in steps[0].values())
    check_same(steps[1], steps[0], atol=1e-6)


def shares(trainer: MultiTaskTrainer) -> dict[str, float]:
    """Return the labelled rows of every task, divided by the rows of any."""
    splits = trainer.train_splits.values()
    rows = sum(len({int(r) for task in split.tasks for r in split.labelled(task.spec.name)}) for split in splits)
    return {t.spec.name: len(split.labelled(t.spec.name)) / rows for split in splits for t in split.tasks}


# ---------------------------------------------------------------------- other tasks


@pytest.mark.parametrize("kind", HEADS.names())
def test_a_loss_and_its_gradients_stay_when_rows_of_other_tasks_join(
    kind: str, tiny_encoder_config: BertConfig
) -> None:
    specs = [spec_of(kind), *(spec_of(other, f"other{place}") for place, other in enumerate(HEADS.names()))]
    own, others = rows_of(specs[:1], 8, seed=1), rows_of(specs[1:], 24, seed=2)
    model, collate = model_of(tiny_encoder_config, *specs), MultiTaskCollator(tuple(specs))
    found: list[tuple[Tensor, dict[str, Tensor | None]]] = []
    for rows in (own, [*others[:9], *own, *others[9:]]):
        model.zero_grad()
        loss = model(**collate(rows)).losses["task"]
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=1e-6)
    check_same(found[1][1], found[0][1], atol=1e-6)


# ---------------------------------------------------------------------- processes

RUNS: dict[str, dict[str, Any]] = {
    "mixed": {"batch_size": 8},
    "accumulated": {"batch_size": 4, "gradient_accumulation_steps": 3},
    "homogeneous": {"batch_size": 8, "batching": "homogeneous", "sampling": "temperature"},
    "every_task": {"batch_size": 8, "every_task_in_batch": True, "sampling": "uniform"},
    "checkpointing": {"batch_size": 8, "activation_checkpointing": True},
    "frozen": {"batch_size": 8, "freeze_encoder": True, "cache_hidden_states": True},
    "soft": {"batch_size": 4, "gradient_accumulation_steps": 3, "architecture": {"sharing": "soft"}},
    "graph": {"batch_size": 4, "gradient_accumulation_steps": 3, "token_graphs": ("slots", "sentiment")},
}


@pytest.fixture(scope="module")
def records(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the records of all runs, on one process and on two that `accelerate launch` started."""
    folder = tmp_path_factory.mktemp("exactness")
    recipe = write_recipe(folder, tiny_folder / "plain", rows={"train": 15})
    job = folder / "job.json"
    job.write_text(json.dumps({"recipe": recipe, "runs": RUNS}), encoding="utf-8")
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--main_process_port",
        "0",
        "--config_file",
        str(ACCELERATE),
    ]
    command += [recorded_steps.__file__, str(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    recorded_steps.run(job)
    return folder


def record(folder: Path, name: str, rank: int, world: int) -> dict[str, Any]:
    found = torch.load(folder / f"{name}-{rank}-of-{world}.pt")
    assert found["world_size"] == world
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_gradients_of_one(name: str, records: Path) -> None:
    one, first, second = (record(records, name, *place) for place in ((0, 1), (0, 2), (1, 2)))
    assert len(one["gradients"]) == len(first["gradients"]) == len(second["gradients"]) > 3
    for whole, here, there in zip(one["gradients"], first["gradients"], second["gradients"], strict=True):
        check_same(here, whole, atol=1e-5)
        check_same(there, here, atol=0.0)
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_share_the_plan_of_one(name: str, records: Path) -> None:
    one, first, second = (record(records, name, *place) for place in ((0, 1), (0, 2), (1, 2)))
    assert first["drawn"] == second["drawn"] == one["drawn"]
    for whole, here, there in zip(one["rows"], first["rows"], second["rows"], strict=True):
        assert sorted(here + there) == sorted(whole)
        assert min(len(here), len(there)) >= 1
    # Else it would say little that the gradients are alike.
    tasks = list(zip(first["tasks"], second["tasks"], strict=True))
    assert name == "homogeneous" or any(here != there for here, there in tasks)
    assert name == "every_task" or any(len(here | there) < len(TASKS) for here, there in tasks)
