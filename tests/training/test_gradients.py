"""Gradients of single tasks are those of autograd, wherever the parts of their losses come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixed_batches import SPECS, TASKS, FixedTrainer, model_of, rows_of, weights
from torch import Tensor, nn
from transformers import TrainerCallback

from hf_mtl.data.collator import MultiTaskCollator
from hf_mtl.errors import SpecError
from hf_mtl.training.gradients import TaskGradients, conflict, own_parameters, shared_parameters

COLLATE = MultiTaskCollator(SPECS)


class Net(nn.Module):
    """Two tasks on one layer; the second uses only its first column of weights, and nobody uses `idle`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(3, 4)
        self.idle = nn.Linear(2, 2)
        self.one, self.two = nn.Linear(4, 1), nn.Linear(1, 1)

    def losses(self, inputs: Tensor) -> dict[str, Tensor]:
        hidden = self.shared(inputs).tanh()
        return {"one": self.one(hidden).pow(2).mean(), "two": self.two(hidden[:, :1]).pow(2).mean()}

    def gradients(self) -> TaskGradients:
        shared = [*self.shared.parameters(), *self.idle.parameters()]
        own = {"one": list(self.one.parameters()), "two": list(self.two.parameters())}
        return TaskGradients(shared, own)


def flat(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])


def add(gradients: TaskGradients, losses: dict[str, Tensor]) -> None:
    for task, loss in losses.items():
        gradients.add(task, loss, retain_graph=True)


def test_rows_are_the_jacobian_and_add_up_over_parts() -> None:
    net, inputs = Net(), torch.randn(6, 3)
    gradients = net.gradients()
    losses = net.losses(inputs)
    wanted = torch.stack([flat(loss, gradients.shared) for loss in losses.values()])
    add(gradients, losses)
    assert torch.equal(gradients.matrix, wanted)
    add(gradients, losses)
    torch.testing.assert_close(gradients.matrix, 2 * wanted)
    assert all(p.grad is None for p in net.parameters())


def test_assigned_gradients_are_those_of_backward() -> None:
    net, inputs = Net(), torch.randn(6, 3)
    gradients, losses = net.gradients(), net.losses(inputs)
    add(gradients, losses)
    gradients.assign(gradients.matrix.sum(dim=0))
    found = {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad()
    sum(net.losses(inputs).values()).backward()
    for name, parameter in net.named_parameters():
        if parameter.grad is None:
            assert name.startswith("idle")
            assert found[name] is None
        else:
            torch.testing.assert_close(found[name], parameter.grad)


def test_processes_add_up_where_one_has_no_rows_of_a_task() -> None:
    net, inputs = Net(), torch.randn(6, 3)
    whole, parts = net.gradients(), [net.gradients(), net.gradients()]
    add(whole, net.losses(inputs))
    # The first process has all rows of task one, the second those of task two.
    parts[0].add("one", net.losses(inputs)["one"], retain_graph=False)
    parts[1].add("two", net.losses(inputs)["two"], retain_graph=False)
    sent: list[list[Tensor]] = [[], []]
    for place, part in enumerate(parts):
        part.reduce(lambda value, place=place: (sent[place].append(value.clone()), value)[1])
    assert [len(values) for values in sent] == [5, 5]
    second = iter(sent[1])
    parts[0].reduce(lambda value: value + next(second))
    torch.testing.assert_close(parts[0].matrix, whole.matrix)
    parts[0].assign(parts[0].matrix.sum(dim=0))
    assert all((p.grad is None) == name.startswith("idle") for name, p in net.named_parameters())


def test_gradients_of_half_precision_are_gathered_in_float32() -> None:
    net = Net().bfloat16()
    gradients = net.gradients()
    add(gradients, net.losses(torch.randn(6, 3, dtype=torch.bfloat16)))
    assert gradients.matrix.dtype == torch.float32
    gradients.assign(gradients.matrix[0])
    assert net.shared.weight.grad is not None
    assert net.shared.weight.grad.dtype == torch.bfloat16


def test_a_parameter_is_shared_or_of_one_task() -> None:
    model = model_of()
    own = {task: own_parameters(model, task) for task in TASKS}
    shared = shared_parameters(model)
    assert {id(p) for p in shared} == {id(p) for p in model.encoder.parameters()}
    everything = [id(p) for p in (*shared, *(p for parameters in own.values() for p in parameters))]
    assert sorted(everything) == sorted(id(p) for p in model.parameters())
    assert [len(own[task]) for task in TASKS] == [2, 2, 3]  # attention pooling
    model.encoder.embeddings.requires_grad_(False)
    model.head("tags").requires_grad_(False)
    assert len(shared_parameters(model)) < len(shared)
    assert own_parameters(model, "tags") == []


def test_a_task_without_gradient_has_no_cosine() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    logs = conflict(["a", "b", "c"], rows @ rows.T)
    assert logs == pytest.approx(
        {"gradient_norm_a": 1.0, "gradient_norm_b": 0.0, "gradient_norm_c": 2**0.5, "gradient_cosine_a_c": 0.5**0.5}
    )


# ---------------------------------------------------------------------- log_gradient_conflict


def train(folder: Path, **values: Any) -> FixedTrainer:
    model = model_of(dropout=values.pop("dropout", 0.0))
    trainer = FixedTrainer(rows_of(32, missing=0.5), folder=folder, batch_size=8, model=model, **values)
    trainer.train()
    return trainer


@pytest.mark.mostly_slow(fast=2)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "aggregation": "pcgrad"},
        {"balancing": "random", "activation_checkpointing": True},
        {"precision": "bf16"},
    ],
)
def test_logging_conflict_does_not_change_a_bit_of_training(options: dict[str, Any], tmp_path: Path) -> None:
    values = {"optim": "adamw_torch_fused", "max_grad_norm": 1.0, "max_steps": 4, "dropout": 0.1, **options}
    plain = train(tmp_path / "plain", **values)
    logging = train(tmp_path / "logging", log_gradient_conflict=1, **values)
    assert any("gradient_norm_topic" in log for log in logging.state.log_history)
    found, wanted = weights(logging), weights(plain)
    assert [name for name, value in wanted.items() if not torch.equal(found[name], value)] == []


@pytest.mark.mostly_slow(fast=2)
@pytest.mark.parametrize("options", [{}, {"balancing": "constant", "balancing_kwargs": {"weights": 3.0}}])
@pytest.mark.parametrize("aggregation", [None, "upgrad"])
def test_logged_norms_and_cosines_are_those_of_the_whole_step(
    aggregation: str | None, options: dict[str, Any], tmp_path: Path
) -> None:
    trainer = train(
        tmp_path,
        gradient_accumulation_steps=4,
        max_steps=1,
        log_gradient_conflict=1,
        aggregation=aggregation,
        **options,
    )
    model, batch = model_of().train(), COLLATE(rows_of(32, missing=0.5))
    losses = model(**batch).losses
    rows: dict[str, Tensor] = {}
    for spec in SPECS:
        factor = 3.0 if options else len(batch["rows"][spec.name]) / 32
        rows[spec.name] = flat(spec.loss_weight * factor * losses[spec.name], list(model.encoder.parameters()))
    wanted = {f"gradient_norm_{task}": float(row.norm()) for task, row in rows.items()}
    for place, a in enumerate(TASKS):
        for b in TASKS[place + 1 :]:
            wanted[f"gradient_cosine_{a}_{b}"] = float(torch.cosine_similarity(rows[a], rows[b], dim=0))
    found = next(log for log in trainer.state.log_history if "gradient_norm_topic" in log)
    assert {key: value for key, value in found.items() if key.startswith("gradient")} == pytest.approx(wanted, rel=1e-4)
    assert min(wanted.values()) < 0  # some tasks disagree, or the tests of aggregation would say little


class Events(TrainerCallback):
    def __init__(self) -> None:
        self.logs: list[tuple[int, str]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for kind in ("gradient_norm_topic", "loss_topic"):
            if kind in logs:
                self.logs.append((state.global_step, kind))


def test_conflict_is_logged_every_so_many_steps_beside_the_regular_logs(tmp_path: Path) -> None:
    events = Events()
    train(tmp_path, max_steps=8, log_gradient_conflict=3, logging_steps=2, callbacks=[events])
    assert [step for step, kind in events.logs if kind.startswith("gradient")] == [3, 6]
    assert [step for step, kind in events.logs if kind.startswith("loss")] == [2, 4, 6, 8]


def test_tasks_that_share_nothing_in_training_are_refused(tmp_path: Path) -> None:
    model = model_of()
    model.encoder.requires_grad_(False)
    for options in ({"log_gradient_conflict": 1}, {"aggregation": "mgda"}):
        trainer = FixedTrainer(rows_of(8), folder=tmp_path, batch_size=8, model=model, **options)
        with pytest.raises(SpecError, match="the tasks share no parameter in training"):
            trainer.train()
