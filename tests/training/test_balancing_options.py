"""Methods of balancing and aggregation by name: options, refusals, what is learned and what is logged."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchjd.aggregation
import torchjd.scalarization
from fixed_batches import METHODS, OPTIONS, SPECS, TASKS, FixedTrainer, choose, method_of, rows_of
from torch import Tensor

from hf_mtl.errors import MissingExtraError, SpecError
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.balancing import Aggregation, Balancing
from hf_mtl.training.balancing_methods import BALANCINGS
from hf_mtl.training.recipe_arguments import training_arguments

CPU = torch.device("cpu")
every_method = pytest.mark.parametrize(("family", "name"), METHODS, ids=[name for _, name in METHODS])


# ---------------------------------------------------------------------- the table and torchjd


@every_method
def test_the_table_fits_the_signature_of_torchjd(family: str, name: str) -> None:
    method = method_of(family, name)
    module = torchjd.scalarization if family == "balancing" else torchjd.aggregation
    parameters = inspect.signature(getattr(module, method.target)).parameters
    ours = {*method.defaults, *method.by_task, *([method.sized] if method.sized else [])}
    assert ours <= parameters.keys()
    needed = {key for key, parameter in parameters.items() if parameter.default is parameter.empty}
    assert needed <= {*method.defaults, method.sized}
    # Tensors are what is given by task; what else is an object cannot be given.
    assert {key for key, p in parameters.items() if "Tensor" in str(p.annotation)} == set(method.by_task)


@pytest.mark.parametrize("name", BALANCINGS)
def test_a_method_is_linear_where_its_weights_do_not_depend_on_the_losses(name: str) -> None:
    weights = [
        Balancing(name, OPTIONS.get(name), tasks=TASKS, device=CPU, seed=0)(torch.tensor(losses), 5)
        for losses in ([1.0, 2.0, 3.0], [4.0, 0.5, 1.0])
    ]
    assert torch.equal(*weights) == BALANCINGS[name].linear


@pytest.mark.parametrize("name", [name for name, method in BALANCINGS.items() if method.linear])
def test_looking_ahead_gives_the_weights_and_leaves_no_trace(name: str) -> None:
    one, two = (Balancing(name, OPTIONS.get(name), tasks=TASKS, device=CPU, seed=0) for _ in range(2))
    for epoch in range(4):
        losses = torch.tensor([1.0, 2.0, 3.0]) / (1 + epoch) ** torch.tensor([0.0, 1.0, 2.0])
        one.begin(epoch)
        two.begin(epoch)
        ahead = one.ahead(epoch)
        assert torch.equal(ahead, one(losses, epoch))
        assert torch.equal(ahead, two(losses, epoch))
        assert repr(one.state_dict()) == repr(two.state_dict())
    assert name != "dwa" or ahead[0] > 1.2 * ahead[2]  # the loss of the first task does not fall


@every_method
def test_draws_depend_on_seed_and_step_alone(family: str, name: str) -> None:
    """Whoever drew before, the method draws the same, and whoever draws after does not notice it."""

    def call(step: int) -> Tensor:
        if family == "balancing":
            made = Balancing(name, None, tasks=TASKS, device=CPU, seed=7)
            return made(torch.tensor([1.0, 2.0, 3.0]), step)
        rows = torch.tensor([[1.0, 2.0, -1.0, 0.5], [-2.0, 1.0, 1.0, 1.0], [0.5, -3.0, 0.5, -1.0]])
        return Aggregation(name, None, tasks=TASKS, device=CPU, seed=7)(rows, TASKS, step)

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = [call(step) for step in range(6)]
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, call(step)) for step, value in enumerate(first))
    draws = name in ("random", "pcgrad", "graddrop", "gradvac")
    assert draws == any(not torch.equal(value, first[0]) for value in first)


# ---------------------------------------------------------------------- the optimizer, and what is logged


@pytest.mark.mostly_slow(fast=2)
@pytest.mark.parametrize(("options", "rate"), [({}, 5e-3), ({"lr": 0.5}, 0.5), ({"lr": 0}, 0.0)])
@pytest.mark.parametrize("name", ["uw", "imtl_l"])
def test_learned_weights_are_in_the_optimizer(name: str, options: dict[str, Any], rate: float, tmp_path: Path) -> None:
    values = {**choose("balancing", name), "balancing_kwargs": options, "head_learning_rate": 5e-3, "weight_decay": 0.1}
    trainer = FixedTrainer(rows_of(8), folder=tmp_path, batch_size=8, max_steps=1, **values)
    trainer.train()
    assert trainer.optimizer is not None
    assert trainer._objective.balancing is not None
    [learned] = trainer._objective.balancing.learned
    [group] = [g for g in trainer.optimizer.param_groups if any(p is learned for p in g["params"])]
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (rate, 0.0, 1)
    assert bool(learned.any()) == (rate > 0)


def test_an_optimizer_that_was_given_cannot_learn_weights(tmp_path: Path) -> None:
    trainer = FixedTrainer(rows_of(8), folder=tmp_path, batch_size=8, **choose("balancing", "uw"))
    trainer.optimizer = torch.optim.SGD(trainer.multi_task_model.parameters(), lr=0.1)
    with pytest.raises(SpecError, match="balancing 'uw' learns weights, which the optimizer given does not know"):
        trainer.train()


def test_logged_weights_are_means_since_the_last_log(tmp_path: Path) -> None:
    trainer = FixedTrainer(
        rows_of(16), folder=tmp_path, batch_size=8, max_steps=4, logging_steps=2, **choose("balancing", "uw")
    )
    trainer.train()
    # s begins at 0 and follows its gradient at the rate of 0.2; the weight is exp(-s) / 2.
    logs = [log for log in trainer.state.log_history if "loss" in log]
    s, weights = torch.zeros(3), []
    for gradients in trainer.gradients:
        weights.append((-s).exp() / 2)
        s = s - 0.2 * gradients["balancing.0"]
    for log, pair in zip(logs, (weights[:2], weights[2:]), strict=True):
        wanted = dict(zip(TASKS, torch.stack(pair).mean(dim=0).tolist(), strict=True))
        assert {task: log[f"weight_{task}"] for task in TASKS} == pytest.approx(wanted, rel=1e-5)
        assert log["loss_topic"] > 0


def test_the_logged_loss_is_the_weighted_sum(tmp_path: Path) -> None:
    rows = rows_of(8)
    trainer = FixedTrainer(
        rows, folder=tmp_path, batch_size=8, max_steps=1, logging_steps=1, **choose("balancing", "constant")
    )
    trainer.train()
    [log] = [log for log in trainer.state.log_history if "loss" in log]
    terms = [OPTIONS["constant"]["weights"][s.name] * s.loss_weight * log[f"loss_{s.name}"] for s in SPECS]
    assert log["loss"] == pytest.approx(sum(terms), rel=1e-5)


# ---------------------------------------------------------------------- refusals


def test_methods_are_named_in_a_recipe_or_on_the_command_line(tmp_path: Path) -> None:
    for options in ({"c": 0.2}, '{"c": 0.2}'):
        arguments = training_arguments(tmp_path, {"aggregation": "cagrad", "aggregation_kwargs": options})
        assert (arguments.aggregation, arguments.aggregation_kwargs) == ("cagrad", {"c": 0.2})


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"balancing": "uncertainty"}, "balancing is 'uncertainty'; use one of 'constant', 'uw', 'dwa'"),
    ({"aggregation": "sum"}, "aggregation is 'sum'; use one of 'upgrad', 'pcgrad'"),
    ({"balancing_kwargs": {"lr": 1}}, "balancing_kwargs is {'lr': 1}, which would have no effect; give balancing"),
    ({"aggregation_kwargs": {"c": 1}}, "which would have no effect; give aggregation"),
    ({"balancing": "constant", "balancing_kwargs": {"weight": 1}}, "has no option 'weight'; use one of 'weights'"),
    ({"aggregation": "pcgrad", "aggregation_kwargs": {"c": 1}}, "has no option 'c'; it has no options"),
    ({"aggregation": "upgrad", "aggregation_kwargs": {"projector": 1}}, "has no option 'projector'"),
    (
        {"balancing": "famo", "every_task_in_batch": True, "gradient_accumulation_steps": 2},
        "set gradient_accumulation_ste",
    ),
    ({"aggregation": "mgda", "fsdp": "full_shard"}, "aggregation 'mgda' needs whole parameters, and FSDP shards them"),
    (
        {"aggregation": "mgda", "fp16": True, "precision": "fp16"},
        "aggregation 'mgda' cannot work with the scaled losses",
    ),
    ({"balancing": "uw", "every_task_in_batch": True, "fp16": True, "precision": "fp16"}, "balancing 'uw' cannot work"),
    ({"log_gradient_conflict": 5, "fsdp": "full_shard"}, "log_gradient_conflict needs whole parameters"),
    ({"aggregation": "mgda", "freeze_encoder": True}, "freeze_encoder leaves none in training"),
    ({"log_gradient_conflict": 5, "freeze_encoder": True}, "freeze_encoder leaves none in training"),
    ({"aggregation": "mgda", "optim": "lomo"}, "optim lomo steps while it goes backward"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message[-30:] for _, message in REFUSED])
def test_what_cannot_work_is_refused_before_training(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        MultiTaskTrainingArguments(output_dir=str(tmp_path), **{"precision": "fp32", **options})
    assert message in str(caught.value)


@every_method
def test_methods_that_need_every_task_or_one_batch_are_refused_without(family: str, name: str, tmp_path: Path) -> None:
    needing = ["uw", "dwa", "famo", "imtl_l", "stch", "geometric_mean", "nash_mtl", "gradvac"]
    values: dict[str, Any] = {"output_dir": str(tmp_path), "precision": "fp32", family: name}
    if name in needing:
        with pytest.raises(
            SpecError, match=f"{family} is '{name}', which needs every task.*every_task_in_batch to true"
        ):
            MultiTaskTrainingArguments(**values)
    else:
        MultiTaskTrainingArguments(**values)
    values |= {"every_task_in_batch": True, "gradient_accumulation_steps": 2}
    if name in ("famo", "stch", "geometric_mean"):
        with pytest.raises(SpecError, match="not linear in the losses, and gradient_accumulation_steps is 2"):
            MultiTaskTrainingArguments(**values)
    else:
        MultiTaskTrainingArguments(**values)


@pytest.mark.parametrize(
    ("family", "name", "options", "message"),
    [
        ("balancing", "constant", {"weights": {"topic": 1.0}}, "one for each of 'topic', 'tags', 'stars'"),
        ("balancing", "constant", {"weights": [1.0, 2.0, 3.0]}, "one for each of 'topic', 'tags', 'stars'"),
        ("balancing", "constant", {"weights": {"topic": 1, "tags": "2", "stars": 3}}, "'2' is given for 'tags'"),
        ("balancing", "constant", {"weights": float("nan")}, "nan is given for 'topic'"),
        ("balancing", "stch", {"mu": -1.0}, "`mu` should be strictly positive"),
        ("balancing", "uw", {"lr": "fast"}, "lr is 'fast'; give a number from 0"),
        ("aggregation", "cagrad", {"c": -1.0}, "c must be non-negative"),
        ("aggregation", "cagrad", {"c": "much"}, "torchjd refuses"),
        ("aggregation", "aligned_mtl", {"scale_mode": "max"}, "Expected 'min', 'median', or 'rmse'"),
    ],
)
def test_values_of_options_are_looked_at_before_training(
    family: str, name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = {**choose(family, name), f"{family}_kwargs": options}
    with pytest.raises(SpecError) as caught:
        FixedTrainer(rows_of(8), folder=tmp_path, batch_size=8, **values)
    assert message in str(caught.value)
    assert f"{family}_kwargs" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "name", "package", "extra"),
    [
        ("balancing", "uw", "torchjd", "balancing"),
        ("aggregation", "pcgrad", "torchjd", "balancing"),
        ("aggregation", "cagrad", "cvxpy", "balancing"),
        ("aggregation", "fairgrad", "scipy", "balancing"),
        ("aggregation", "upgrad", "quadprog", "balancing,gpl"),
        ("aggregation", "dualproj", "qpsolvers", "balancing,gpl"),
        ("aggregation", "nash_mtl", "ecos", "balancing,gpl"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    family: str, name: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as Python itself marks what cannot be imported
    values: dict[str, Any] = {family: name, "every_task_in_batch": True}
    with pytest.raises(MissingExtraError) as caught:
        MultiTaskTrainingArguments(output_dir=str(tmp_path), precision="fp32", **values)
    assert str(caught.value) == f"the package '{package}' is not installed; pip install \"hf-mtl[{extra}]\""
