"""Every method of balancing and aggregation: exact over micro-batches and processes, resumed to the bit, or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fixed_batches
import pytest
import torch
import torchjd.aggregation
import torchjd.scalarization
from fixed_batches import (
    METHODS,
    OPTIONS,
    SPECS,
    TASKS,
    FixedTrainer,
    assert_close,
    choose,
    method_of,
    model_of,
    rows_of,
    weights,
)
from torch import Tensor

from hf_mtl.data.collator import MultiTaskCollator
from hf_mtl.errors import DataError
from hf_mtl.training.balancing import Aggregation, Balancing
from hf_mtl.training.balancing_methods import AGGREGATIONS, BALANCINGS, Method
from hf_mtl.training.random_state import drawn_from

CPU = torch.device("cpu")
COLLATE = MultiTaskCollator(SPECS)
every_method = pytest.mark.parametrize(("family", "name"), METHODS, ids=[name for _, name in METHODS])
SAME_IN_PARTS = [(family, name) for family, name in METHODS if method_of(family, name).linear]


def torchjd_method(family: str, name: str) -> Any:
    """Build a method as torchjd's documentation does, without a line of ours."""
    method = method_of(family, name)
    options = {
        key: torch.tensor([value[task] for task in TASKS]) if isinstance(value, dict) else value
        for key, value in {**method.defaults, **OPTIONS.get(name, {})}.items()
    }
    if method.learned:
        options.pop("lr")
    if method.sized:
        options[method.sized] = len(TASKS)
    module = torchjd.scalarization if family == "balancing" else torchjd.aggregation
    return getattr(module, method.target)(**options)


# ---------------------------------------------------------------------- a whole training against plain torch


def shares(batch: dict[str, Any]) -> dict[str, float]:
    return {task: len(rows) / len(batch["input_ids"]) for task, rows in batch["rows"].items()}


def reference(family: str, name: str, batches: list[dict[str, Any]], *, epochs: int, lr: float) -> dict[str, Tensor]:
    """Train with plain gradient descent, autograd and torchjd, one batch a step; return the final weights."""
    model, made = model_of().train(), torchjd_method(family, name)
    learned = list(made.parameters()) if method_of(family, name).learned else []
    groups = [{"params": list(model.parameters())}, {"params": learned, "lr": OPTIONS.get(name, {}).get("lr", lr)}]
    optimizer = torch.optim.SGD(groups if learned else groups[:1], lr=lr)
    shared = list(model.encoder.parameters())
    scale = torch.tensor([spec.loss_weight for spec in SPECS])
    step = 0
    for _ in range(epochs):
        for batch in batches:
            optimizer.zero_grad()
            found = model(**batch).losses
            losses = scale * torch.stack([found[task] for task in TASKS])
            with drawn_from(42, family, step, device=CPU):
                if family == "balancing":
                    made(losses).backward()
                else:
                    terms = [losses[i] * shares(batch)[task] for i, task in enumerate(TASKS)]
                    jacobian = torch.stack([flat_gradient(term, shared) for term in terms])
                    torch.stack(terms).sum().backward()
                    write(made(jacobian), shared)
            optimizer.step()
            if hasattr(made, "update"):
                with torch.no_grad():
                    found = model(**batch).losses
                    made.update(scale * torch.stack([found[task] for task in TASKS]))
            step += 1
        if family == "balancing" and hasattr(made, "step"):
            made.step()
    prefix = {f"balancing.{key}": value for key, value in made.state_dict().items()} if family == "balancing" else {}
    return {**model.state_dict(), **prefix}


def flat_gradient(loss: Tensor, parameters: list[Any]) -> Tensor:
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


def write(gradient: Tensor, parameters: list[Any]) -> None:
    for part, parameter in zip(gradient.split([p.numel() for p in parameters]), parameters, strict=True):
        if parameter.grad is not None:  # the unused pooler
            parameter.grad = part.view_as(parameter)


@pytest.mark.mostly_slow(fast=3)
@every_method
@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
def test_training_equals_plain_torch_and_torchjd(family: str, name: str, tmp_path: Path) -> None:
    """Three epochs of two steps: the weights of DWA change in the third, Nash-MTL's are kept every second step."""
    rows = rows_of(16)
    batches = [COLLATE(rows[:8]), COLLATE(rows[8:])]
    assert all(set(batch["rows"]) == set(TASKS) for batch in batches)
    trainer = FixedTrainer(rows, folder=tmp_path, batch_size=8, num_train_epochs=3, **choose(family, name))
    trainer.train()
    assert trainer.state.global_step == 6
    wanted = reference(family, name, batches, epochs=3, lr=0.1)
    assert_close(weights(trainer), wanted, atol=1e-6)
    assert max(float((wanted[key] - value).abs().max()) for key, value in model_of().state_dict().items()) > 0.02


# ---------------------------------------------------------------------- parts of a step


def first_gradients(rows: list[dict[str, Any]], folder: Path, **values: Any) -> dict[str, Tensor]:
    trainer = FixedTrainer(rows, folder=folder, max_steps=1, **values)
    trainer.train()
    return trainer.gradients[0]


@pytest.mark.mostly_slow(fast=2)
@pytest.mark.parametrize(("family", "name"), SAME_IN_PARTS, ids=[name for _, name in SAME_IN_PARTS])
def test_one_batch_of_32_equals_four_accumulated_of_8(family: str, name: str, tmp_path: Path) -> None:
    """Labels are spread unevenly: one micro-batch has no stars, another no tags."""
    rows = [*rows_of(8, seed=1, without=["stars"]), *rows_of(8, seed=2, without=["tags"]), *rows_of(16, missing=0.6)]
    wanted = first_gradients(rows, tmp_path / "1", batch_size=32, **choose(family, name))
    found = first_gradients(rows, tmp_path / "4", batch_size=8, gradient_accumulation_steps=4, **choose(family, name))
    assert_close(found, wanted, atol=1e-6)
    assert any("encoder" in key for key in found)
    assert {f"balancing.{i}" for i in range(method_of(family, name).learned)} <= found.keys()


@pytest.mark.mostly_slow(fast=1)
@pytest.mark.parametrize("options", [{}, {"balancing": "constant", "balancing_kwargs": OPTIONS["constant"]}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_aggregation_that_sums_gives_the_gradients_of_ordinary_training(
    precision: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(AGGREGATIONS, "sum", Method("Sum", "the sum of the rows"))
    values = {"batch_size": 8, "gradient_accumulation_steps": 2, "precision": precision, **options}
    rows = [*rows_of(8, seed=1, without=["stars"]), *rows_of(8, seed=2, without=["topic", "stars"])]
    wanted = first_gradients(rows, tmp_path / "plain", **values)
    found = first_gradients(rows, tmp_path / "summed", aggregation="sum", **values)
    # The same parameters have gradients: those that no loss reaches have none, so that no decay shrinks them.
    assert {key.split(".")[1] for key in wanted if not key.startswith("encoder")} == {"topic", "tags"}
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    # In bf16 the gradients that are summed have been rounded one by one.
    assert_close(found, wanted, atol=1e-6 if precision == "fp32" else 2e-2)


@pytest.mark.mostly_slow(fast=1)
@pytest.mark.parametrize("name", ["pcgrad", "upgrad", "nash_mtl"])
def test_aggregation_takes_balanced_losses(name: str, tmp_path: Path) -> None:
    """Ten times as much weight for every task is ten times the loss."""
    rows = rows_of(8)
    values: dict[str, Any] = {"batch_size": 8, **choose("aggregation", name), "balancing": "constant"}
    values["aggregation_kwargs"] = {"max_norm": 0.0} if name == "nash_mtl" else None
    one = first_gradients(rows, tmp_path / "1", **values, balancing_kwargs={"weights": 1.0})
    ten = first_gradients(rows, tmp_path / "10", **values, balancing_kwargs={"weights": 10.0})
    # Nash-MTL makes steps of the same length whatever the scale of the losses.
    scale = {"nash_mtl": 1.0}.get(name, 10.0)
    shared = [key for key in one if key.startswith("encoder")]
    assert_close({k: ten[k] for k in shared}, {k: scale * one[k] for k in shared}, atol=1e-3)
    assert_close(
        {k: ten[k] for k in one if k not in shared}, {k: 10 * one[k] for k in one if k not in shared}, atol=1e-5
    )


@pytest.mark.mostly_slow(fast=1)
@pytest.mark.parametrize("options", [{"activation_checkpointing": True}, {"freeze_layers": 1}, {"peft": {"r": 2}}])
def test_aggregation_beside_other_options(options: dict[str, Any], tmp_path: Path) -> None:
    rows, values = rows_of(8), {"batch_size": 8, "aggregation": "mgda"}
    plain = first_gradients(rows, tmp_path / "plain", **values)
    found = first_gradients(rows, tmp_path / "other", **values, **options)
    if "freeze_layers" in options:
        assert any("layer.1." in key for key in found)
        assert not any("layer.0." in key or "embeddings" in key for key in found)
    elif "peft" in options:
        assert {key for key in found if "lora" not in key} == {key for key in plain if not key.startswith("encoder")}
        assert any("lora" in key and value.any() for key, value in found.items())
    else:
        assert_close(found, plain, atol=1e-6)


@pytest.mark.slow
def test_half_precision_trains_with_every_kind_of_method(tmp_path: Path) -> None:
    for family, name in (
        ("balancing", "uw"),
        ("balancing", "famo"),
        ("aggregation", "upgrad"),
        ("aggregation", "imtl_g"),
    ):
        trainer = FixedTrainer(
            rows_of(16), folder=tmp_path / name, batch_size=8, max_steps=2, precision="bf16", **choose(family, name)
        )
        trainer.train()
        assert all(g.dtype == torch.float32 and g.isfinite().all() for kept in trainer.gradients for g in kept.values())
        exact = first_gradients(rows_of(16), tmp_path / f"{name}32", batch_size=8, **choose(family, name))
        found, wanted = (torch.cat([g.flatten() for g in kept.values()]) for kept in (trainer.gradients[0], exact))
        assert 0.99 < torch.cosine_similarity(found, wanted, dim=0) < 0.9999999


# ---------------------------------------------------------------------- tasks that a step lacks


@pytest.mark.mostly_slow(fast=3)
@pytest.mark.parametrize("name", [name for name, method in AGGREGATIONS.items() if not method.every_task])
@pytest.mark.parametrize("absent", [["stars"], pytest.param(["topic", "stars"], marks=pytest.mark.slow)])
def test_rows_of_absent_tasks_are_dropped(absent: list[str], name: str, tmp_path: Path) -> None:
    """With a row of zeros in their place MGDA and CAGrad would return zero."""
    rows = rows_of(8, without=absent)
    found = first_gradients(rows, tmp_path, batch_size=8, **choose("aggregation", name))
    model, batch = model_of().train(), COLLATE(rows)
    shared = list(model.encoder.parameters())
    losses = model(**batch).losses
    present = [task for task in TASKS if task in losses]
    terms = [losses[s.name] * s.loss_weight * shares(batch)[s.name] for s in SPECS if s.name in losses]
    made = torchjd_method("aggregation", name)
    for option, numbers in OPTIONS.get(name, {}).items():
        setattr(made, option, torch.tensor([numbers[task] for task in present]))
    with drawn_from(42, "aggregation", 0, device=CPU):
        wanted = made(torch.stack([flat_gradient(term, shared) for term in terms]))
    names = [key for key, _ in model.named_parameters() if key.startswith("encoder.")]
    whole = torch.cat(
        [found[key].flatten() if key in found else torch.zeros(p.numel()) for key, p in zip(names, shared, strict=True)]
    )
    torch.testing.assert_close(whole, wanted, rtol=1e-5, atol=1e-6)
    assert whole.norm() > 1e-3
    assert not any(task in key for key in found for task in absent)


@pytest.mark.mostly_slow(fast=2)
@pytest.mark.parametrize(("family", "name"), [m for m in METHODS if method_of(*m).every_task])
def test_a_step_without_a_task_is_an_error_where_every_task_is_needed(family: str, name: str, tmp_path: Path) -> None:
    trainer = FixedTrainer(rows_of(8, without=["stars"]), folder=tmp_path, batch_size=8, **choose(family, name))
    before = weights(trainer)
    with pytest.raises(DataError, match="needs every task: no row of step 1 has a label for 'stars'"):
        trainer.train()
    assert all(torch.equal(value, before[key]) for key, value in weights(trainer).items())


def test_weights_of_absent_tasks_do_nothing(tmp_path: Path) -> None:
    rows = rows_of(8, without=["stars"])
    found = first_gradients(rows, tmp_path, batch_size=8, balancing="random")
    with drawn_from(42, "balancing", 0, device=CPU):
        drawn = torch.randn(3).softmax(dim=0)
    model = model_of().train()
    losses = model(**COLLATE(rows)).losses
    torch.stack(
        [drawn[i] * SPECS[i].loss_weight * losses[t] for i, t in enumerate(TASKS) if t in losses]
    ).sum().backward()
    wanted = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert_close(found, wanted, atol=1e-6)


def test_a_step_without_any_label_changes_nothing(tmp_path: Path) -> None:
    trainer = FixedTrainer(
        rows_of(8, without=TASKS), folder=tmp_path, batch_size=8, max_steps=1, aggregation="mgda", balancing="random"
    )
    before = weights(trainer)
    trainer.train()
    assert all(torch.equal(value, before[key]) for key, value in weights(trainer).items())


def test_famo_sees_what_the_step_did_and_not_what_dropout_did(tmp_path: Path) -> None:
    """Where nothing is learned, the losses after the step are those before, to the bit, and no task falls behind."""
    values = {"batch_size": 8, "max_steps": 3, **choose("balancing", "famo"), "head_learning_rate": 0.0}
    for folder, rate in (("stuck", 0.0), ("moving", 0.1)):
        trainer = FixedTrainer(
            rows_of(8), folder=tmp_path / folder, model=model_of(dropout=0.3), learning_rate=rate, **values
        )
        trainer.train()
        assert bool(weights(trainer)["balancing._w"].any()) == (rate > 0)


# ---------------------------------------------------------------------- interrupted and resumed


DRAWING = ("random", "pcgrad", "graddrop", "gradvac")
REMEMBERING = [m for m in METHODS if m[1] in DRAWING or method_of(*m).memory or method_of(*m).learned]


@pytest.mark.mostly_slow(fast=3)
@pytest.mark.parametrize(
    ("family", "name", "checkpoint"),
    [*((family, name, 3) for family, name in REMEMBERING), ("balancing", "dwa", 4)]
    + [
        pytest.param(family, name, 3, marks=pytest.mark.slow)
        for family, name in METHODS
        if (family, name) not in REMEMBERING
    ],
)
def test_resumed_training_ends_with_the_same_bits(family: str, name: str, checkpoint: int, tmp_path: Path) -> None:
    """Three epochs of two steps, with dropout and AdamW."""
    values = {"batch_size": 8, "num_train_epochs": 3, "optim": "adamw_torch_fused", "learning_rate": 1e-2}
    values |= {"save_strategy": "steps", "save_steps": checkpoint, "logging_steps": checkpoint, "max_grad_norm": 1.0}
    values |= {"folder": tmp_path, **choose(family, name)}
    whole = FixedTrainer(rows_of(16), model=model_of(dropout=0.1), **values)
    whole.train()
    resumed = FixedTrainer(rows_of(16), model=model_of(dropout=0.1), **values)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
    assert resumed.state.global_step == whole.state.global_step == 6
    found, wanted = weights(resumed), weights(whole)
    assert [key for key, value in wanted.items() if not torch.equal(found[key], value)] == []
    assert resumed.state.log_history[:-1] == whole.state.log_history[:-1]


def test_every_state_outside_torchjds_own_is_kept() -> None:
    """Private attributes that change when a method is used must be among what is saved."""
    for name in AGGREGATIONS:
        made = Aggregation(name, None, tasks=TASKS, device=CPU, seed=0)
        before = attributes(made.aggregator)
        for step in range(2):
            made(torch.randn(3, 7, generator=torch.Generator().manual_seed(step)), TASKS, step)
        assert (attributes(made.aggregator) != before) == (made.method.memory is not None), name
    for name in BALANCINGS:
        made = Balancing(name, None, tasks=TASKS, device=CPU, seed=0)
        before = attributes(made.scalarizer)
        made(torch.tensor([1.0, 2.0, 3.0]), 0)
        assert (attributes(made.scalarizer) != before) == (made.method.memory is not None), name


def attributes(module: torch.nn.Module) -> dict[str, str]:
    """Write down what the modules below a module hold besides parameters."""
    kept: dict[str, str] = {}
    for path, part in module.named_modules():
        kept |= {
            f"{path}.{key}": repr(value) for key, value in vars(part).items() if not key.startswith(("_par", "_mod"))
        }
    return kept


# ---------------------------------------------------------------------- processes


PARALLEL: dict[str, dict[str, Any]] = {
    name: {"batch_size": 8, "num_train_epochs": 3, **choose(family, name)} for family, name in METHODS
}
PARALLEL |= {
    f"{name} in parts": {
        "batch_size": 8,
        "num_train_epochs": 3,
        "gradient_accumulation_steps": 2,
        **choose(family, name),
    }
    for family, name in (
        ("balancing", "uw"),
        ("balancing", "random"),
        ("aggregation", "mgda"),
        ("aggregation", "nash_mtl"),
    )
}
PARALLEL["conflict"] = {"batch_size": 8, "num_train_epochs": 1, "log_gradient_conflict": 1}
PARALLEL["conflict in parts"] = {**PARALLEL["conflict"], "gradient_accumulation_steps": 2, "aggregation": "pcgrad"}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with every method on two processes, by the real launcher, all in one launch."""
    job = tmp_path_factory.mktemp("two") / "job.json"
    job.write_text(json.dumps(PARALLEL), encoding="utf-8")
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [fixed_batches.__file__, str(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return job.parent


@pytest.mark.slow
@pytest.mark.parametrize("name", PARALLEL)
def test_two_processes_train_as_one(name: str, two_processes: Path, tmp_path: Path) -> None:
    """The second process never has stars, the first has no tags in every second batch."""
    job = tmp_path / "job.json"
    job.write_text(json.dumps({name: PARALLEL[name]}), encoding="utf-8")
    fixed_batches.run(job)

    def report(folder: Path, rank: int) -> dict[str, Any]:
        return json.loads((folder / f"{name}-{rank}.json").read_text(encoding="utf-8"))

    found = report(two_processes, 0)
    assert found["world_size"] == report(two_processes, 1)["world_size"] == 2
    assert found["imported"] == []  # torchjd and the solvers wait until they are needed
    first, second = (torch.load(two_processes / f"{name}-{rank}.pt") for rank in (0, 1))
    assert [key for key, value in first.items() if not torch.equal(second[key], value)] == []
    assert_close(first, torch.load(tmp_path / f"{name}-0.pt"), atol=1e-5)
    alone = report(tmp_path, 0)
    assert len(alone["logs"]) == len(found["logs"]) > 0
    for log, wanted in zip(found["logs"], alone["logs"], strict=True):
        assert log == pytest.approx(wanted, rel=1e-3, abs=1e-4)
