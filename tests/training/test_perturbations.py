"""Perturbations: each against its formula, exact over micro-batches and processes, resumed to the bit, or refused."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import families
import fixed_batches
import pytest
import torch
from fixed_batches import SPECS, FixedTrainer, assert_close, model_of, rows_of, weights
from random_rows import model_of as random_model
from random_rows import rows_of as random_rows
from random_rows import spec_of
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig

from hf_mtl.data.collator import MultiTaskCollator
from hf_mtl.errors import HfMtlError, SpecError
from hf_mtl.model.modeling import MultiTaskModel, MultiTaskOutput
from hf_mtl.registry import HEADS, PERTURBATIONS
from hf_mtl.training.objective import loss_parts, shared_terms, step_totals
from hf_mtl.training.perturbations.base import MicroBatch, Perturbation, adding, row_norms
from hf_mtl.training.random_state import drawn_from
from hf_mtl.training.trainer import MultiTaskTrainer

CPU = torch.device("cpu")
COLLATE = MultiTaskCollator(SPECS)
every_method = pytest.mark.parametrize("name", PERTURBATIONS.names())
# Options without which a method draws at random; mixup always does.
STILL: dict[str, dict[str, Any]] = {"fgm": {}, "freelb": {"init_size": 0.0}, "r_drop": {}}
MOMENTUM = {"momentum": 0.9, "proximity": 2.0}


def micro_batch(model: MultiTaskModel, inputs: Mapping[str, Any], *, key: tuple[object, ...] = (1,)) -> MicroBatch:
    totals = step_totals(model, [inputs], device=CPU)

    def objective(means: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([*shared_terms(model, loss_parts(means, inputs, totals), totals).values()]).sum()

    return MicroBatch(model, model, inputs, objective=objective, key=key)


def made(name: str, **options: Any) -> Perturbation:
    return PERTURBATIONS.get(name)(**options)


@pytest.mark.parametrize("size", [1e-30, 1e-36, 1.0, 1e30])
def test_noise_has_the_length_that_is_asked_for_however_small_its_gradient_is(size: float) -> None:
    direction = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    noise = direction * size
    torch.testing.assert_close((noise / row_norms(noise)).flatten(1).norm(dim=1), torch.ones(3))
    assert torch.equal(noise.new_zeros(1, 5, 4) / row_norms(noise.new_zeros(1, 5, 4)), torch.zeros(1, 5, 4))


def embedded(model: MultiTaskModel, inputs: Mapping[str, Any], noise: Tensor) -> MultiTaskOutput:
    """Run a model on noisy embeddings by BERT's own way of taking them."""
    table: Any = model.get_input_embeddings()
    own = {name: value for name, value in inputs.items() if name != "input_ids"}
    return model(inputs_embeds=table(inputs["input_ids"]) + noise, **own)


def steepest(model: MultiTaskModel, inputs: Mapping[str, Any], noise: Tensor) -> Tensor:
    """Return the gradient of the model's own loss on noise, by autograd alone."""
    leaf = noise.detach().requires_grad_()
    loss = embedded(model, inputs, leaf).loss
    assert loss is not None
    return torch.autograd.grad(loss, leaf)[0]


def unit(noise: Tensor) -> Tensor:
    return torch.stack([row / max(row.norm(), 1e-30) for row in noise])


def no_noise(model: MultiTaskModel, inputs: Mapping[str, Any]) -> Tensor:
    return torch.zeros(*inputs["input_ids"].shape, model.encoder.config.hidden_size)


def check_losses(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, atol: float = 1e-6) -> None:
    assert list(found) == list(wanted)
    for task, loss in wanted.items():
        torch.testing.assert_close(found[task], loss, rtol=1e-5, atol=atol)


# ---------------------------------------------------------------------- formulas


def test_fgm_is_the_mean_of_the_losses_at_a_text_and_epsilon_uphill() -> None:
    model, inputs = model_of().train(), COLLATE(rows_of(12, missing=0.5))
    _, losses = made("fgm", epsilon=0.7, weight=0.25).losses(micro_batch(model, inputs))
    noise = 0.7 * unit(steepest(model, inputs, no_noise(model, inputs)))
    norms = noise.flatten(1).norm(dim=1)
    assert {round(norm, 4) for norm in norms.tolist()} == {0.0, 0.7}  # some rows have no label
    plain, disturbed = model(**inputs).losses, embedded(model, inputs, noise).losses
    check_losses(losses, {task: 0.75 * plain[task] + 0.25 * disturbed[task] for task in plain})
    assert any(disturbed[task] > plain[task] + 1e-3 for task in plain)


def test_noise_of_fgm_is_epsilon_times_the_unit_gradient_of_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = model_of().train(), COLLATE(rows_of(12, missing=0.0))
    batch, seen = micro_batch(model, inputs), []
    run = batch.run
    monkeypatch.setattr(batch, "run", lambda noise=None: (seen.append(noise), run(noise))[1])
    made("fgm", epsilon=0.3).losses(batch)
    wanted = 0.3 * unit(steepest(model, inputs, no_noise(model, inputs)))
    torch.testing.assert_close(seen[1], wanted, rtol=1e-4, atol=1e-6)
    assert not seen[1][inputs["attention_mask"] == 0].any()


@pytest.mark.parametrize(("max_norm", "shortened"), [(0.0, False), (0.05, True)])
def test_freelb_is_the_mean_loss_on_the_way_uphill(max_norm: float, shortened: bool) -> None:
    model, inputs = model_of().train(), COLLATE(rows_of(12, missing=0.0))
    options = {"steps": 3, "step_size": 0.1, "init_size": 0.02, "max_norm": max_norm}
    _, losses = made("freelb", **options).losses(micro_batch(model, inputs))
    with drawn_from(1, device=CPU):
        noise = no_noise(model, inputs).uniform_(-1, 1) * inputs["attention_mask"].unsqueeze(2)
    noise = noise * 0.02 / (inputs["attention_mask"].sum(1) * noise.shape[2]).sqrt().view(-1, 1, 1)
    found: list[dict[str, Tensor]] = []
    for _ in range(3):
        found.append(embedded(model, inputs, noise).losses or {})
        noise = noise + 0.1 * unit(steepest(model, inputs, noise))
        if max_norm:
            noise = torch.stack([row * min(1.0, max_norm / row.norm()) for row in noise])
    check_losses(losses, {task: sum(own[task] for own in found) / 3 for task in found[0]}, atol=1e-5)
    assert (noise.flatten(1).norm(dim=1).max() <= 0.05 + 1e-6) == shortened


def test_freelb_of_one_step_without_noise_is_plain() -> None:
    model, inputs = model_of(dropout=0.3).train(), COLLATE(rows_of(12))
    torch.manual_seed(0)
    _, losses = made("freelb", steps=1, init_size=0.0).losses(micro_batch(model, inputs))
    torch.manual_seed(0)
    plain = model(**inputs).losses
    assert all(torch.equal(losses[task], plain[task]) for task in plain)


def test_freelb_of_two_steps_without_noise_is_fgm() -> None:
    model, inputs = model_of().train(), COLLATE(rows_of(12))
    _, losses = made("freelb", steps=2, step_size=0.2, max_norm=0.0, init_size=0.0).losses(micro_batch(model, inputs))
    check_losses(losses, made("fgm", epsilon=0.2).losses(micro_batch(model, inputs))[1])


def test_r_drop_adds_the_divergence_of_two_passes() -> None:
    model, inputs = model_of(dropout=0.3).train(), COLLATE(rows_of(12))
    torch.manual_seed(0)
    _, losses = made("r_drop", weight=3.0).losses(micro_batch(model, inputs))
    torch.manual_seed(0)
    first, second = model(**inputs), model(**inputs)
    p, q = first.logits["topic"].log_softmax(-1), second.logits["topic"].log_softmax(-1)
    kl = [F.kl_div(a, b, log_target=True, reduction="batchmean") for a, b in ((p, q), (q, p))]
    stars = (first.logits["stars"] - second.logits["stars"]).square().mean()
    means = {task: (first.losses[task] + second.losses[task]) / 2 for task in ("topic", "stars")}
    found = {task: losses[task] for task in means}
    check_losses(found, {"topic": means["topic"] + 3 / 2 * sum(kl) / 2, "stars": means["stars"] + 3 / 4 * stars})
    assert stars > 1e-3


def test_r_drop_without_dropout_adds_nothing() -> None:
    model, inputs = model_of().train(), COLLATE(rows_of(12))
    _, losses = made("r_drop", weight=5.0).losses(micro_batch(model, inputs))
    plain = model(**inputs).losses
    assert all(torch.equal(losses[task], plain[task]) for task in plain)


class Linear(torch.nn.Module):
    """`f(x) = <a, x>` of one text's embeddings, in the place of a whole model."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(5, 4)
        self.a = torch.nn.Parameter(torch.tensor([[0.5, -2.0, 1.0, 0.0], [0.0, 1.0, -0.25, 0.5]]))
        self.device = CPU

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.table

    def head(self, task: str) -> Any:
        return HEADS.get("regression")(spec_of("regression"), 4, dropout=0.0)

    def forward(self, input_ids: Tensor, **kwargs: Any) -> MultiTaskOutput:
        logits = (self.table(input_ids) * self.a).sum(dim=(1, 2)).unsqueeze(1)
        return MultiTaskOutput(losses={"task": logits.square().mean()}, logits={"task": logits})


def test_smart_on_a_linear_model_has_its_closed_form() -> None:
    """With `f(x) = <a, x>`: `D = <a, d>^2`, its gradient `2 <a, d> a`, so `d` goes `step_size` along `± a / max|a|`."""
    model: Any = Linear()
    inputs = {
        "input_ids": torch.tensor([[1, 2]]),
        "labels": {"task": torch.tensor([0.0])},
        "rows": {"task": torch.tensor([0])},
        "items": {"task": 1.0},
    }
    batch = MicroBatch(model, model, inputs, objective=lambda means: means["task"], key=("smart",))
    options = {"weight": 3.0, "epsilon": 0.03, "step_size": 0.04, "noise": 0.001}
    outputs, losses = made("smart", **options).losses(batch)
    with drawn_from("smart", device=CPU):
        noise = 0.001 * torch.randn(1, 2, 4)
    a = model.a.detach()
    noise = (noise + 0.04 * ((a * noise).sum()).sign() * a / 2.0).clamp(-0.03, 0.03)
    torch.testing.assert_close(losses["task"], outputs.losses["task"] + 3.0 * (a * noise).sum() ** 2)
    # Both answers are trained to come together: its gradient on a is 2 <a, d> d.
    (gradient,) = torch.autograd.grad(losses["task"] - outputs.losses["task"], model.a)
    torch.testing.assert_close(gradient, 6.0 * (a * noise).sum() * noise[0])


def test_momentum_keeps_answers_near_those_of_the_mean_weights(tmp_path: Path) -> None:
    """Two steps by hand: no distance in the first, in the second that from `0.9 w_0 + 0.1 w_1`."""
    rows = rows_of(16, missing=0.0)
    options = {"weight": 0.0, **MOMENTUM}
    trainer = FixedTrainer(rows, folder=tmp_path, batch_size=8, perturbation="smart", perturbation_kwargs=options,
                           max_steps=2)  # fmt: skip
    trainer.train()
    plain = FixedTrainer(rows, folder=tmp_path / "plain", batch_size=8, max_steps=1)
    begun = {name: weight.clone() for name, weight in plain.multi_task_model.named_parameters()}
    plain.train()
    assert_close(trainer.gradients[0], plain.gradients[0], atol=1e-6)

    model, inputs = plain.multi_task_model.train(), COLLATE(rows[8:])
    average = copy.deepcopy(model)
    for name, weight in average.named_parameters():
        weight.data = 0.9 * begun[name].data + 0.1 * weight.data
    outputs, others = model(**inputs), average(**inputs)
    loss = outputs.loss
    for spec in SPECS:
        near = others.logits[spec.name].detach()
        labels = inputs["labels"][spec.name][inputs["rows"][spec.name]]
        apart = model.head(spec.name).divergence(outputs.logits[spec.name], near, labels)
        loss = loss + 2.0 * spec.loss_weight * len(labels) / 8 * apart
    model.zero_grad()
    loss.backward()
    wanted = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert_close(trainer.gradients[1], wanted, atol=1e-5)
    assert any((wanted[name] - trainer.gradients[0][name]).abs().max() > 1e-3 for name in wanted)


def test_mixup_has_the_gradients_of_mixed_labels() -> None:
    model, inputs = model_of().train(), COLLATE(rows_of(12))
    outputs, losses = made("mixup", alpha=1.0).losses(micro_batch(model, inputs, key=("mixup",)))
    with drawn_from("mixup", device=CPU):
        drawn = {}
        for task in ("topic", "stars"):
            share = float(torch.distributions.Beta(1.0, 1.0).sample())
            drawn[task] = max(share, 1.0 - share), torch.randperm(len(inputs["rows"][task]))
    assert all(0.5 <= share < 1.0 for share, _ in drawn.values())
    plain = model(**inputs)  # the heads are linear: what they make of mixed states is the mix of their answers
    wanted = {"tags": plain.losses["tags"]}
    share, order = drawn["topic"]
    logits = share * plain.logits["topic"] + (1 - share) * plain.logits["topic"][order]
    labels = F.one_hot(inputs["labels"]["topic"][inputs["rows"]["topic"]], 3).float()
    wanted["topic"] = F.cross_entropy(logits, share * labels + (1 - share) * labels[order])
    share, order = drawn["stars"]
    logits = share * plain.logits["stars"] + (1 - share) * plain.logits["stars"][order]
    labels = inputs["labels"]["stars"][inputs["rows"]["stars"]]
    wanted["stars"] = F.mse_loss(logits.squeeze(1), share * labels + (1 - share) * labels[order])
    check_losses({"topic": losses["topic"], "tags": losses["tags"]}, {name: wanted[name] for name in ("topic", "tags")})
    for task, loss in wanted.items():
        found, expected = (
            torch.autograd.grad(own, list(model.parameters()), retain_graph=True, allow_unused=True)
            for own in (losses[task], loss)
        )
        for one, other in zip(found, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert outputs.losses is losses


# ---------------------------------------------------------------------- every method


def test_methods_run_the_encoder_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"fgm": 2, "freelb": 3, "r_drop": 2, "smart": 3, "mixup": 1}
    assert set(wanted) == set(PERTURBATIONS.names())
    for name, passes in wanted.items():
        model, count = model_of().train(), []
        model.encoder.register_forward_hook(lambda *_, count=count: count.append(1))
        made(name).losses(micro_batch(model, COLLATE(rows_of(8))))
        assert len(count) == passes, name
        assert not model.heads["topic"]._forward_pre_hooks, name
        assert not model.get_input_embeddings()._forward_hooks, name


@pytest.mark.parametrize(("name", "options"), [("fgm", {"epsilon": 0.0}), ("freelb", {"steps": 1, "init_size": 0.0})])
def test_without_noise_the_gradients_are_plain(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """With dropout, too: all passes drop the same, and the generators stand where one pass leaves them."""
    steps = []
    for more in ({}, {"perturbation": name, "perturbation_kwargs": options}):
        torch.manual_seed(0)
        trainer = FixedTrainer(
            rows_of(16), folder=tmp_path, batch_size=8, max_steps=2, model=model_of(dropout=0.2), **more
        )
        trainer.train()
        steps.append(trainer.gradients)
    for plain, found in zip(*steps, strict=True):
        assert_close(found, plain, atol=1e-6)


@pytest.mark.parametrize("kind", HEADS.names())
@every_method
def test_every_task_type_is_disturbed(kind: str, name: str, tiny_encoder_config: BertConfig) -> None:
    specs = [spec_of(kind), spec_of("regression", "other")]
    encoder = copy.deepcopy(tiny_encoder_config)
    encoder.hidden_dropout_prob = 0.2
    encoder.initializer_range = 0.5
    model, inputs = random_model(encoder, *specs), MultiTaskCollator(tuple(specs))(random_rows(specs, 12))
    torch.manual_seed(0)
    _, losses = made(name).losses(micro_batch(model, inputs))
    torch.manual_seed(0)
    plain = model(**inputs).losses
    assert list(losses) == list(plain)
    assert all(loss.isfinite() and loss.grad_fn is not None for loss in losses.values())
    unmixed = name == "mixup" and not model.head("task").pooled
    assert torch.equal(losses["task"], plain["task"]) == unmixed
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_method
def test_a_batch_without_labels_has_no_losses(name: str) -> None:
    inputs = COLLATE(rows_of(4, without=["topic", "tags", "stars"]))
    outputs, losses = made(name).losses(micro_batch(model_of().train(), inputs))
    assert losses == {}
    assert outputs.losses is None


@pytest.mark.parametrize("name", STILL)
def test_four_micro_batches_have_the_gradients_of_one_batch(name: str, tmp_path: Path) -> None:
    steps: list[dict[str, Tensor]] = []
    for size, micro_batches in ((32, 1), (8, 4)):
        trainer = FixedTrainer(
            rows_of(32), folder=tmp_path / str(size), batch_size=size, gradient_accumulation_steps=micro_batches,
            max_steps=1, perturbation=name, perturbation_kwargs=STILL[name],
        )  # fmt: skip
        trainer.train()
        steps += trainer.gradients
    assert_close(steps[1], steps[0], atol=2e-5)


@pytest.mark.mostly_slow(fast=1)
@every_method
def test_activation_checkpointing_changes_nothing(name: str, tmp_path: Path) -> None:
    steps = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        trainer = FixedTrainer(
            rows_of(8), folder=tmp_path, batch_size=8, max_steps=1, model=model_of(dropout=0.2), perturbation=name,
            activation_checkpointing=checkpointing,
        )  # fmt: skip
        trainer.train()
        steps += trainer.gradients
    assert_close(steps[1], steps[0], atol=1e-6)


COMPOSED: dict[str, dict[str, Any]] = {
    "uw": {"balancing": "uw", "every_task_in_batch": True},
    "dwa-accumulated": {"balancing": "dwa", "every_task_in_batch": True, "gradient_accumulation_steps": 2},
    "pcgrad": {"aggregation": "pcgrad"},
    "conflict": {"log_gradient_conflict": 1},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.mostly_slow(fast=4)
@pytest.mark.parametrize("how", COMPOSED)
@every_method
def test_it_goes_together_with_the_other_parts_of_a_step(name: str, how: str, tmp_path: Path) -> None:
    trainer = FixedTrainer(
        rows_of(16, missing=0.1), folder=tmp_path, batch_size=8, num_train_epochs=1, perturbation=name, **COMPOSED[how]
    )
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(before[key], after[key]) for key in before)
    logged = [log for log in trainer.state.log_history if "gradient_norm_topic" in log]
    assert bool(logged) == (how == "conflict")


def test_aggregation_of_equal_weights_gives_the_gradients_of_the_sum(tmp_path: Path) -> None:
    """One task alone: PCGrad projects nothing, and what is aggregated must be what goes backward otherwise."""
    rows = rows_of(8, without=["tags", "stars"])
    steps = []
    for more in ({}, {"aggregation": "pcgrad"}):
        trainer = FixedTrainer(rows, folder=tmp_path, batch_size=8, max_steps=1, perturbation="fgm", **more)
        trainer.train()
        steps += trainer.gradients
    assert_close(steps[1], steps[0], atol=1e-6)


def test_smart_in_bf16_moves_answers(tiny_encoder_config: BertConfig) -> None:
    """Its default noise is seen by eight bits: the penalty is near that of float32."""
    specs = (spec_of("sequence_classification"), spec_of("token_classification", "tags"))
    encoder = copy.deepcopy(tiny_encoder_config)
    encoder.initializer_range = 0.5
    model, inputs = random_model(encoder, *specs), MultiTaskCollator(specs)(random_rows(specs, 32))
    penalties = []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs, losses = made("smart").losses(micro_batch(model, inputs))
        penalties.append(sum(losses[task] - outputs.losses[task] for task in losses).item())
    assert penalties[0] > 1e-5
    assert penalties[1] == pytest.approx(penalties[0], rel=0.5)


# ---------------------------------------------------------------------- exact resume


@pytest.mark.mostly_slow(fast=2)
@pytest.mark.parametrize(
    ("name", "options"), [("fgm", {}), ("freelb", {}), ("r_drop", {}), ("mixup", {}), ("smart", MOMENTUM)]
)
def test_a_resumed_run_ends_with_the_same_bits(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """The momentum's mean of the weights stands in the checkpoint."""
    values = {"perturbation": name, "perturbation_kwargs": options, "save_strategy": "steps", "save_steps": 2}
    values |= {"num_train_epochs": 2, "optim": "adamw_torch", "learning_rate": 1e-2}

    def trainer(**more: Any) -> FixedTrainer:
        return FixedTrainer(
            rows_of(24), folder=tmp_path, batch_size=8, model=model_of(dropout=0.2), **{**values, **more}
        )

    whole = trainer()
    whole.train()
    resumed = trainer()
    torch.manual_seed(5)  # whatever was drawn in the new process
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    wanted, found = weights(whole), weights(resumed)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    if options:
        assert (
            whole._objective.perturbation.state_dict()["average"].keys() == dict(model_of().named_parameters()).keys()
        )


# ---------------------------------------------------------------------- two processes

JOBS: dict[str, dict[str, Any]] = {
    "fgm": {"perturbation": "fgm"},
    "freelb": {"perturbation": "freelb", "perturbation_kwargs": STILL["freelb"], "gradient_accumulation_steps": 2},
    "r_drop": {"perturbation": "r_drop"},
    "smart": {"perturbation": "smart", "perturbation_kwargs": {**MOMENTUM, "weight": 0.0}},
    "fgm-pcgrad": {"perturbation": "fgm", "aggregation": "pcgrad"},
}


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one(tmp_path: Path) -> None:
    job = {name: {"batch_size": 8, "num_train_epochs": 2, **values} for name, values in JOBS.items()}
    script = [fixed_batches.__file__, str(tmp_path / "job.json")]
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    tests = Path(__file__).parents[1]
    paths = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *script]
    done = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    for name, values in job.items():
        rows = [*rows_of(4, seed=1), *rows_of(4, seed=2, without=["stars"])]
        rows += [*rows_of(4, seed=3, without=["tags"]), *rows_of(4, seed=4, without=["stars"])]
        one = FixedTrainer(rows, folder=tmp_path / f"one-{name}", **values)
        one.train()
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2))
        assert json.loads((tmp_path / f"{name}-1.json").read_text())["world_size"] == 2
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert_close(first, weights(one), atol=1e-4)


# ---------------------------------------------------------------------- refused before training

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"perturbation": "fgn"}, "'fgn' is not a perturbation; use one of 'fgm', 'freelb', 'mixup', 'r_drop', 'smart'"),
    ({"perturbation_kwargs": {"epsilon": 1}}, "would have no effect; give perturbation"),
    ({"perturbation": "fgm", "perturbation_kwargs": {"eps": 1}}, "no option 'eps'; use 'epsilon', 'weight'"),
    ({"perturbation": "fgm", "perturbation_kwargs": {"epsilon": -1}}, "epsilon is -1; give a number from 0"),
    ({"perturbation": "fgm", "perturbation_kwargs": {"weight": 2}}, "weight is 2; give a number from 0 to 1"),
    ({"perturbation": "freelb", "perturbation_kwargs": {"steps": 0}}, "steps is 0; give a whole number above 0"),
    ({"perturbation": "freelb", "perturbation_kwargs": {"max_norm": "x"}}, "max_norm is 'x'; give a number from 0"),
    ({"perturbation": "smart", "perturbation_kwargs": {"noise": 0}}, "noise is 0; give a number above 0"),
    ({"perturbation": "smart", "perturbation_kwargs": {"momentum": 1.0}}, "momentum is 1.0; give a number from 0"),
    ({"perturbation": "r_drop", "perturbation_kwargs": {"weight": True}}, "weight is True; give a number from 0"),
    ({"perturbation": "mixup", "perturbation_kwargs": {"alpha": 0}}, "alpha is 0; give a number above 0"),
    ({"perturbation": "fgm", "balancing": "famo", "every_task_in_batch": True}, "balancing 'famo' cannot compute"),
    ({"perturbation": "fgm", "freeze_encoder": True}, "set freeze_encoder to false, or choose r_drop or mixup"),
    ({"perturbation": "fgm", "torch_compile": True}, "set torch_compile to false"),
    ({"perturbation": "freelb", "precision": "fp16"}, "too small for fp16; set precision to bf16 or fp32"),
    (
        {"perturbation": "smart", "perturbation_kwargs": {"epsilon": 1e-5}, "precision": "bf16"},
        "moves numbers by 1e-05, which is lost in bf16",
    ),
    ({"perturbation": "r_drop", "fsdp": "full_shard"}, "FSDP shards"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_work_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as error:
        FixedTrainer(rows_of(8), folder=tmp_path, batch_size=8, **values)
    assert message in str(error.value)


def test_mixup_without_pooled_outputs_is_refused(tiny_encoder_config: BertConfig, tmp_path: Path) -> None:
    model = random_model(tiny_encoder_config, spec_of("token_classification"))
    with pytest.raises(SpecError, match="'mixup', which mixes pooled outputs, and no task of the model reads one"):
        FixedTrainer([], folder=tmp_path, batch_size=8, model=model, perturbation="mixup")


def test_an_encoder_that_never_looks_up_its_embeddings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = model_of().train(), COLLATE(rows_of(8))
    other = torch.nn.Embedding(40, 16)
    monkeypatch.setattr(model, "get_input_embeddings", lambda: other)
    with pytest.raises(HfMtlError, match="0 times in a pass"):
        made("fgm").losses(micro_batch(model, inputs))


@pytest.mark.parametrize("name", ["r_drop", "mixup"])
def test_a_frozen_encoder_can_be_kept_and_its_heads_disturbed(
    name: str, trainer_for: Callable[..., MultiTaskTrainer]
) -> None:
    trainer = trainer_for(perturbation=name, freeze_encoder=True, cache_hidden_states=True, max_steps=3)
    before = {key: weight.clone() for key, weight in trainer.multi_task_model.heads.state_dict().items()}
    trainer.train()
    after = trainer.multi_task_model.heads.state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in before)


@families.every_family
def test_noise_reaches_the_embeddings_of_every_architecture(model_type: str) -> None:
    model, inputs = families.new_model(model_type), families.batch()
    size = model.get_input_embeddings().weight.shape[-1]
    noise = torch.zeros(*inputs["input_ids"].shape, size, requires_grad=True)
    plain = families.logits_of(model, inputs)
    with adding(model, noise):
        found = model(**inputs).logits
    for task, logits in plain.items():  # where gradients are wanted, T5 takes another kernel
        torch.testing.assert_close(found[task].detach(), logits, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(sum(logits.square().sum() for logits in found.values()), noise)
    real = inputs["attention_mask"] > 0
    assert gradient[real].abs().sum(dim=-1).min() > 0
    with adding(model, 0.1 * noise.detach().normal_()):
        other = families.logits_of(model, inputs)
    assert all(not torch.equal(other[task], logits) for task, logits in plain.items())
    assert all(torch.equal(again, plain[task]) for task, again in families.logits_of(model, inputs).items())


# ---------------------------------------------------------------------- what heads give


@pytest.mark.parametrize("kind", HEADS.names())
def test_divergence_counts_labelled_items_alone(kind: str, tiny_encoder_config: BertConfig) -> None:
    spec = spec_of(kind)
    model = random_model(tiny_encoder_config, spec)
    head, inputs = model.head("task"), MultiTaskCollator((spec,))(random_rows([spec], 9))
    labels = inputs["labels"]["task"]
    logits, others = (
        model.eval()(**{**inputs, "input_ids": (inputs["input_ids"] + n) % 40}).logits["task"] for n in (0, 7)
    )
    logits, others = 20 * logits, 20 * others
    total = head.divergence_sum(logits, others, labels)
    assert total > 0
    assert head.divergence_sum(logits, logits, labels) == 0
    torch.testing.assert_close(head.divergence_sum(others, logits, labels), total)
    parts = [head.divergence_sum(logits[i : i + 1], others[i : i + 1], labels[i : i + 1]) for i in range(9)]
    torch.testing.assert_close(torch.stack(parts).sum(), total)
    unlabelled = ~head.labelled_rows(labels)
    assert unlabelled.any()
    torch.testing.assert_close(
        head.divergence_sum(torch.where(unlabelled.view(-1, *[1] * (logits.dim() - 1)), logits + 9.0 * others, logits),
                            others, labels), total,
    )  # fmt: skip
    items = head.num_items(spec, labels)
    torch.testing.assert_close(head.divergence(logits, others, labels), total / items)
    torch.testing.assert_close(head.divergence(logits, others, labels, items.item()), total / items)


def test_divergences_are_those_of_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 3, generator=generator) * 3 for _ in range(2))
    kl = torch.distributions.kl_divergence

    def both(p: Any, q: Any) -> Tensor:
        return kl(p, q) + kl(q, p)

    labels = torch.tensor([0, -100, 2, 1, -100])
    weighted = spec_of("sequence_classification", class_weights=(1.0, 2.0, 3.0))
    head = HEADS.get("sequence_classification")(weighted, 4, dropout=0.0)
    each = both(torch.distributions.Categorical(logits=a), torch.distributions.Categorical(logits=b))
    wanted = (each[[0, 2, 3]] * torch.tensor([1.0, 3.0, 2.0])).sum() / 6.0
    torch.testing.assert_close(head.divergence(a, b, labels), wanted)

    flags = torch.tensor([[0.0, 1.0, torch.nan]] * 5)
    head = HEADS.get("multi_label_classification")(spec_of("multi_label_classification"), 4, dropout=0.0)
    each = both(torch.distributions.Bernoulli(logits=a), torch.distributions.Bernoulli(logits=b))
    torch.testing.assert_close(head.divergence(a, b, flags), each[:, :2].mean())

    head = HEADS.get("regression")(spec_of("regression"), 4, dropout=0.0)
    numbers = torch.tensor([0.0, torch.nan, 1.0, 2.0, 3.0])
    wanted = (a[:, 0] - b[:, 0]).square()[[0, 2, 3, 4]].mean()
    torch.testing.assert_close(head.divergence(a[:, :1], b[:, :1], numbers), wanted)
