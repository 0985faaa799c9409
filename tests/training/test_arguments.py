"""Training arguments from recipes: what is accepted, what follows from what, and how mistakes read."""

from __future__ import annotations

import logging
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_mtl.data.yaml import parse_yaml
from hf_mtl.errors import RecipeError, SpecError
from hf_mtl.registry import SAMPLERS
from hf_mtl.training.arguments import CHOICES, LEAST, MultiTaskTrainingArguments
from hf_mtl.training.recipe_arguments import GONE, training_arguments


def read(values: str | dict[str, Any]) -> MultiTaskTrainingArguments:
    """Read arguments written as in a recipe."""
    return training_arguments("unused", parse_yaml(values, where="test") if isinstance(values, str) else values)


# ---------------------------------------------------------------------- defaults


def test_the_defaults() -> None:
    arguments = read({})
    wanted = {
        "sampling": "adaptive",
        "learning_rate": 1e-4,
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 32,
        "metric_for_best_model": "average",
        "greater_is_better": True,
        "load_best_model_at_end": True,
        "eval_strategy": IntervalStrategy.EPOCH,
        "save_strategy": SaveStrategy.EPOCH,
        "report_to": [],
    }
    assert {name: getattr(arguments, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("text", "sampling"),
    [
        ("sampling: auto", "adaptive"),
        ("{eval_strategy: steps, save_strategy: steps}", "adaptive"),
        ("{eval_strategy: no, load_best_model_at_end: false}", "proportional"),
        ("{eval_strategy: epoch, save_strategy: steps, load_best_model_at_end: false}", "proportional"),
        ("max_tokens_per_batch: 512", "proportional"),
        ("{sampling: uniform, max_tokens_per_batch: 512}", "uniform"),
    ],
)
def test_sampling_follows_scores_where_evaluations_can_steer_it(text: str, sampling: str) -> None:
    assert read(text).sampling == sampling


def test_options_of_sampling_need_its_name() -> None:
    with pytest.raises(
        SpecError, match=r"sampling_kwargs is \{'temperature': 2\}, but sampling is 'auto'; set .*'uniform'"
    ):
        read("sampling_kwargs: {temperature: 2}")


def test_making_arguments_writes_nothing(tmp_path: Path) -> None:
    training_arguments(tmp_path / "run", {})
    assert list(tmp_path.iterdir()) == []


def test_every_argument_of_transformers_can_be_given() -> None:
    """Its default is accepted wherever YAML could write it."""
    defaults = {f.name: f.default for f in fields(TrainingArguments) if f.init and f.name != "output_dir"}
    for name, value in defaults.items():
        if isinstance(value, bool | int | float | str | None):
            plain = value.value if hasattr(value, "value") else value
            read({name: plain, "load_best_model_at_end": False, "save_strategy": "no"} | {name: plain})


# ---------------------------------------------------------------------- what is accepted


@pytest.mark.parametrize(
    ("text", "name", "wanted"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("num_train_epochs: 2", "num_train_epochs", 2.0),
        ("per_device_train_batch_size: 16.0", "per_device_train_batch_size", 16),
        ("eval_strategy: no", "eval_strategy", IntervalStrategy.NO),
        ("bf16: true", "bf16", True),
        ("use_cpu: true", "use_cpu", True),
        ("warmup_steps: 0.2", "warmup_steps", 0.2),
        ("save_total_limit: null", "save_total_limit", None),
        ("lr_scheduler_type: cosine", "lr_scheduler_type", "cosine"),
        ("lr_scheduler_kwargs: {num_cycles: 2}", "lr_scheduler_kwargs", {"num_cycles": 2}),
        ("optim: adafactor", "optim", "adafactor"),
        ("logging_steps: 0.1", "logging_steps", 0.1),
        ("seed: 7", "seed", 7),
        ("sampling: proportional", "sampling", "proportional"),
    ],
)
def test_values_as_yaml_gives_them(text: str, name: str, wanted: Any) -> None:
    found = getattr(read(text), name)
    assert found == wanted
    assert type(found) is type(wanted) or isinstance(found, str)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('learning_rate: "1e-4"', "learning_rate is '1e-4'; give a number"),
        ("learning_rate: fast", "learning_rate is 'fast'; give a number"),
        ("learning_rate: true", "learning_rate is True; give a number"),
        ("learning_rate: null", "learning_rate is None; give a number"),
        ("learning_rate: [1, 2]", "learning_rate is [1, 2]; give a number"),
        ("learning_rate: {a: 1}", "learning_rate is {'a': 1}; give a number"),
        ("learning_rate: -1", "learning_rate is -1.0; give a number at least 0"),
        ("learning_rate: .nan", "learning_rate is nan; give a number at least 0"),
        ("learning_rate: .inf", "learning_rate is inf; give a number at least 0"),
        ("num_train_epochs: 0", "num_train_epochs is 0.0; give a number above 0"),
        ("max_steps: 0", "max_steps is 0; give at least 1, or -1 for no limit"),
        ("per_device_train_batch_size: 0", "per_device_train_batch_size is 0; give a number at least 1"),
        ("per_device_train_batch_size: 2.5", "per_device_train_batch_size is 2.5; give a whole number"),
        ("per_device_train_batch_size: many", "per_device_train_batch_size is 'many'; give a whole number"),
        ("bf16: 1", "bf16 is 1; give true or false"),
        ("bf16: yes", "bf16 is 'yes'; give true or false"),
        ("run_name: 5", "run_name is 5; give text or null"),
        ("save_total_limit: all", "save_total_limit is 'all'; give a whole number or null"),
        ("save_total_limit: 0", "save_total_limit is 0; give a number at least 1"),
        ("eval_strategy: never", "eval_strategy is 'never'; use one of 'no', 'steps', 'epoch'"),
        ("eval_strategy: false", "eval_strategy is False; give one of 'no', 'steps', 'epoch'"),
        ("save_strategy: never", "save_strategy is 'never'; use one of 'no', 'steps', 'epoch', 'best'"),
        ("lr_scheduler_type: cosin", "lr_scheduler_type is 'cosin'; use one of 'linear', 'cosine', "),
        ("optim: adamw", "optim is 'adamw'; use one of 'adamw_torch'"),
        ("log_level: loud", "log_level is 'loud'; use one of 'debug'"),
        ("sampling: fair", "'fair' is not a sampling strategy; use one of "),
        ("report_to: paper", "report_to is 'paper', which is not known or not installed; install it, or use one"),
        ("label_smoothing_factor: 0.1", "label_smoothing_factor is 0.1, which would have no effect; set label_"),
        ("dataloader_drop_last: true", "dataloader_drop_last is True, which would have no effect; leave it out"),
        ("train_sampling_strategy: group_by_length", "would have no effect; set sampling"),
        ("learning_rte: 1", "unknown argument 'learning_rte'; did you mean 'learning_rate'?"),
        ("tasks: [topic]", "unknown argument 'tasks'; leave it out, or look its name up"),
        ("warmup_ratio: 0.1", "unknown argument 'warmup_ratio'; use warmup_steps, which below 1 is a share"),
        ("evaluation_strategy: no", "unknown argument 'evaluation_strategy'; use eval_strategy"),
        ("output_dir: here", "unknown argument 'output_dir'; give the folder where the run is started"),
        ("fp16: true\nbf16: true", "fp16 and bf16"),
    ],
)  # fmt: skip
def test_mistakes_name_argument_value_and_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        read(text)
    assert str(caught.value).startswith("training: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*LEAST, "num_train_epochs", "logging_steps"])
def test_numbers_below_the_least_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} is -1"):
        read({name: -1})


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_is_taken(name: str) -> None:
    for choice in CHOICES[name]:
        if (name, choice) == ("save_strategy", "no"):
            continue
        read({name: choice})


def test_arguments_that_are_gone_are_not_arguments() -> None:
    known = {f.name for f in fields(MultiTaskTrainingArguments)}
    assert [name for name in GONE if name in known] == ["output_dir"]


def test_every_sampling_strategy_is_taken() -> None:
    for name in SAMPLERS.names():
        assert read({"sampling": name}).sampling == name


# ---------------------------------------------------------------------- what follows from what


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"eval_strategy": "no"}, {"load_best_model_at_end": False}),
        ({"save_strategy": "no"}, {"load_best_model_at_end": False, "eval_strategy": "epoch"}),
        ({"eval_strategy": "steps", "eval_steps": 20}, {"save_strategy": "steps", "save_steps": 20, "eval_steps": 20}),
        ({"eval_strategy": "steps", "logging_steps": 30}, {"save_strategy": "steps", "save_steps": 30}),
        ({"eval_strategy": "steps"}, {"save_strategy": "steps", "save_steps": 50, "eval_steps": 50}),
        ({"save_strategy": "steps", "save_steps": 20}, {"eval_strategy": "steps", "eval_steps": 20}),
        ({"save_strategy": "best"}, {"eval_strategy": "epoch", "load_best_model_at_end": True}),
        ({"eval_strategy": "steps", "eval_steps": 5, "save_steps": 10}, {"save_steps": 10, "eval_steps": 5}),
    ],
)  # fmt: skip
def test_what_is_not_given_follows(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    arguments = read(given)
    assert {name: getattr(arguments, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"eval_strategy": "steps", "save_strategy": "epoch"},
            "eval_strategy is 'steps' and save_strategy is 'epoch', so the best model would not be saved; "
            "give both the same value, or set load_best_model_at_end to false",
        ),
        ({"eval_strategy": "no", "load_best_model_at_end": True}, "eval_strategy is 'no' and save_strategy is 'epoch'"),
        ({"eval_strategy": "no", "save_strategy": "best"}, "save_strategy is 'best', but eval_strategy is 'no'"),
        ({"eval_strategy": "steps", "eval_steps": 20, "save_steps": 30}, "multiple of 20"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        read(given)


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("average", True), ("a_accuracy", True), ("a_loss", False), ("a_rmse", False), ("eval_a_rmse", False)],
)
def test_the_best_is_the_least_of_losses_and_errors(metric: str, greater: bool) -> None:
    assert read({"metric_for_best_model": metric}).greater_is_better is greater
    assert read({"metric_for_best_model": metric, "greater_is_better": not greater}).greater_is_better is not greater


def test_without_a_metric_the_best_is_the_best_average() -> None:
    arguments = read({"metric_for_best_model": None})
    assert arguments.metric_for_best_model == "average"
    assert arguments.greater_is_better


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_schedules_that_follow_a_metric_know_which_way_is_up(name: str) -> None:
    assert read({"lr_scheduler_type": name}).lr_scheduler_kwargs == {"mode": "max"}
    assert read({"lr_scheduler_type": name, "metric_for_best_model": "a_loss"}).lr_scheduler_kwargs == {"mode": "min"}
    given = {"lr_scheduler_type": name, "lr_scheduler_kwargs": {"mode": "min", "patience": 2}}
    assert read(given).lr_scheduler_kwargs == {"mode": "min", "patience": 2}
    assert read({"lr_scheduler_type": "linear"}).lr_scheduler_kwargs is None


# ---------------------------------------------------------------------- machines


def test_a_process_may_lack_the_rows_of_a_task() -> None:
    assert read({"activation_checkpointing": True}).ddp_find_unused_parameters is True
    assert read({"ddp_find_unused_parameters": False}).ddp_find_unused_parameters is False


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without an accelerator")
def test_a_machine_without_accelerator_trains_on_the_cpu() -> None:
    arguments = read({"bf16": True})
    assert arguments.use_cpu
    assert arguments.device.type == "cpu"


def test_one_of_several_gpus_is_used_without_a_launcher(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MultiTaskTrainingArguments, "n_gpu", property(lambda self: 4))
    with caplog.at_level(logging.WARNING, logger="hf_mtl"):
        arguments = read({})
    assert arguments._n_gpu == 1
    assert "One of 4 GPUs is used; start with torchrun" in caplog.text


def test_processes_that_would_train_by_themselves_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MultiTaskTrainingArguments, "world_size", property(lambda self: 1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(SpecError, match="2 processes were started, but 1 would take part; set use_cpu to true"):
        MultiTaskTrainingArguments(output_dir="unused")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"precision": "fp32"}, "fp32"),
        ({"precision": "bf16"}, "bf16"),
        ({"bf16": True}, "bf16"),
        ({"bf16": False}, "fp32"),
        ({"precision": "bf16", "bf16": True}, "bf16"),
        ({"precision": "bf16", "fp16": False}, "bf16"),
    ],
)
def test_precision_is_the_one_asked_for(values: dict[str, Any], expected: str) -> None:
    arguments = read(values)
    assert arguments.precision == expected
    assert (arguments.bf16, arguments.fp16) == (expected == "bf16", expected == "fp16")


@pytest.mark.parametrize("fast", [True, False])
def test_automatic_precision_follows_the_processor(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    arguments = read({"use_cpu": True})
    assert arguments.bf16 is fast
    assert arguments.precision == ("bf16" if fast else "fp32")


def test_two_precisions_are_refused() -> None:
    with pytest.raises(RecipeError, match="precision is 'fp32'"):
        read({"precision": "fp32", "bf16": True})
    with pytest.raises(RecipeError, match=r"'auto', 'fp32', 'bf16', 'fp16'"):
        read({"precision": "fp8"})
