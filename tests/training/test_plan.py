"""The plan is what is drawn, what was drawn is logged, and a resumed run draws what an uninterrupted one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tiny import TASKS
from torch import Tensor
from transformers import TrainerCallback

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import RecipeError, SpecError
from hf_mtl.registry import SAMPLERS
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.batching import EpochBatchSampler, HomogeneousBatchSampler, MixedBatchSampler
from hf_mtl.training.plan import TrainingPlan
from hf_mtl.training.recipe_arguments import training_arguments
from hf_mtl.training.samplers.base import Sampler
from hf_mtl.training.trainer import MultiTaskTrainer

Make = Callable[..., MultiTaskTrainer]
ONLY_TRAIN: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
DATASETS = ("films", "orders", "pairs", "posts")


def batches_of(trainer: MultiTaskTrainer) -> EpochBatchSampler:
    return trainer.get_train_dataloader().batch_sampler  # type: ignore[return-value]


class CountRows(TrainerCallback):
    """Counts the rows of each dataset that reach the model, by the tasks that all rows of three datasets have."""

    def __init__(self) -> None:
        self.rows = dict.fromkeys(DATASETS, 0)

    def watch(self, trainer: MultiTaskTrainer) -> None:
        train = trainer.training_step

        def counted(model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            rows = {task: len(own) for task, own in inputs["rows"].items()}
            known = [rows.get(task, 0) for task in ("sentiment", "similarity", "moods")]
            for dataset, number in zip(("films", "pairs", "posts"), known, strict=True):
                self.rows[dataset] += number
            self.rows["orders"] += len(inputs["input_ids"]) - sum(known)
            return train(model, inputs, num_items_in_batch)

        trainer.training_step = counted  # type: ignore[method-assign]


def sampled(log: Mapping[str, Any]) -> dict[str, int]:
    return {key.removeprefix("sampled_"): value for key, value in log.items() if key.startswith("sampled_")}


def weights(trainer: MultiTaskTrainer) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in trainer.multi_task_model.state_dict().items()}


# ---------------------------------------------------------------------- the plan


@pytest.mark.parametrize("batching", ["mixed", "homogeneous"])
def test_the_plan_is_what_is_drawn(batching: str, trainer_for: Make) -> None:
    weights = {"films": 4, "orders": 2, "pairs": 1, "posts": 1}
    trainer = trainer_for(
        sampling="explicit",
        sampling_kwargs={"weights": weights},
        batching=batching,
        epoch_size=120,
        num_train_epochs=3,
        **ONLY_TRAIN,
    )
    batches = batches_of(trainer)
    plan = TrainingPlan.of(batches)
    assert [own.name for own in plan.datasets] == list(DATASETS)
    assert [own.tasks for own in plan.datasets][1] == ("intent", "slots", "grammar")
    assert [own.rows for own in plan.datasets] == [40, 40, 40, 40]
    assert (
        [own.share for own in plan.datasets] == [own.last_share for own in plan.datasets] == [0.5, 0.25, 0.125, 0.125]
    )
    assert [own.epoch_rows for own in plan.datasets] == [60, 30, 15, 15]
    assert [own.rounds for own in plan.datasets] == [4.5, 2.25, 1.125, 1.125]
    assert (plan.epochs, plan.batches) == (3, len(list(batches)))
    assert [own.epoch_rows for own in plan.datasets] == batches.drawn.sum(axis=0).tolist()
    held = (batches.drawn > 0).sum(axis=0).tolist()
    if batching == "homogeneous":
        assert [own.batches for own in plan.datasets] == held == [8, 4, 2, 2]
        assert plan.datasets[0].rows_per_batch == 7.5
    else:
        assert [own.batches for own in plan.datasets] == [15] * 4
        assert plan.datasets[3].rows_per_batch == 1.0
    assert plan.logs()["plan/films_epoch_rows"] == 60
    assert len(plan.logs()) == 5 * len(DATASETS)


def test_rounds_count_what_a_moving_strategy_draws(trainer_for: Make, tiny_data: RecipeData) -> None:
    fewer = datasets.Dataset.select(tiny_data.train["films"].features, range(10))
    films = replace(tiny_data.train["films"], features=fewer)
    trainer = trainer_for(
        sampling="annealed",
        data=replace(tiny_data, train={**tiny_data.train, "films": films}),
        epoch_size=50,
        num_train_epochs=2.5,
        **ONLY_TRAIN,
    )
    batches = batches_of(trainer)
    rows = [batches.counts(epoch) for epoch in range(3)]
    assert rows[0][0] < rows[1][0] < rows[2][0]
    expected = (rows[0] + rows[1] + 0.5 * rows[2]) / [10, 40, 40, 40]
    assert [own.rounds for own in TrainingPlan.of(batches).datasets] == pytest.approx(expected.tolist())


def test_the_length_of_training_follows_from_max_steps(trainer_for: Make) -> None:
    trainer = trainer_for(sampling="annealed", max_steps=50, gradient_accumulation_steps=2, **ONLY_TRAIN)
    assert batches_of(trainer).sampler.num_epochs == 5.0  # ten steps an epoch


def test_one_dataset_alone_has_batches_of_its_size(trainer_for: Make, tiny_data: RecipeData) -> None:
    trainer = trainer_for(batching="homogeneous", dataset_batch_size={"films": 5}, **ONLY_TRAIN)
    assert isinstance(batches_of(trainer), HomogeneousBatchSampler)
    alone = replace(tiny_data, train={"films": tiny_data.train["films"]})
    batches = batches_of(trainer_for(data=alone, batching="homogeneous", dataset_batch_size={"films": 5}, **ONLY_TRAIN))
    assert isinstance(batches, MixedBatchSampler)
    assert {len(batch) for batch in batches} == {5}


def test_every_batch_holds_every_task(trainer_for: Make) -> None:
    for batch in trainer_for(every_task_in_batch=True, **ONLY_TRAIN).get_train_dataloader():
        assert set(batch["labels"]) == set(TASKS)
    lacking = [set(TASKS) - set(batch["labels"]) for batch in trainer_for(**ONLY_TRAIN).get_train_dataloader()]
    assert any(lacking)  # which it would not without


# ---------------------------------------------------------------------- what is logged


@pytest.mark.parametrize(
    "options",
    [
        {"num_train_epochs": 2},
        {"max_steps": 7, "gradient_accumulation_steps": 3, "batching": "homogeneous"},
        {"max_steps": 9, "every_task_in_batch": True, "dataloader_num_workers": 2},
    ],
)
def test_sampled_rows_are_those_that_reach_the_model(options: dict[str, Any], trainer_for: Make) -> None:
    count = CountRows()
    trainer = trainer_for(logging_steps=4, sampling="uniform", **options, **ONLY_TRAIN)
    count.watch(trainer)
    result = trainer.train()
    assert sampled(result.metrics) == count.rows
    logged = [sampled(log) for log in trainer.state.log_history if "loss" in log]
    assert len(logged) >= 1
    assert all(set(log) == set(DATASETS) for log in logged)
    assert [sum(log.values()) for log in logged] == sorted(sum(log.values()) for log in logged)


def test_the_plan_is_logged_once_before_the_first_step(trainer_for: Make) -> None:
    trainer = trainer_for(num_train_epochs=2, logging_steps=5, **ONLY_TRAIN)
    trainer.train()
    plans = [place for place, log in enumerate(trainer.state.log_history) if "plan/films_rows" in log]
    assert plans == [0]
    log = trainer.state.log_history[0]
    assert all(isinstance(value, int | float) for value in log.values())
    assert (log["plan/films_share"], log["plan/films_rounds"], log["step"]) == (0.25, 2.0, 0)


# ---------------------------------------------------------------------- resuming


@pytest.mark.mostly_slow(fast=1)
@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ({"sampling": "adaptive", "batching": "homogeneous", "dataset_batch_size": {"films": 3}}, "epoch"),
        (
            {"sampling": "adaptive", "every_task_in_batch": True, "sampling_kwargs": {"temperature": 2.0}},
            "steps",
        ),
        ({"sampling": "annealed", "batching": "homogeneous"}, "steps"),
        ({"sampling": "round_robin", "class_balanced": ["intent", "sentiment"]}, "epoch"),
    ],
)
def test_resuming_gives_the_same_weights_to_the_bit(
    options: dict[str, Any], strategy: str, trainer_for: Make, tmp_path: Path
) -> None:
    options |= {"num_train_epochs": 3, "epoch_size": 41, "save_total_limit": None, "load_best_model_at_end": False}
    options |= {"eval_strategy": strategy, "save_strategy": strategy, "eval_steps": 7, "save_steps": 5}
    # An evaluation at the start of a resumed run is one that the whole run did not have: the sampler must not hear it.
    options |= {"logging_steps": 3, "eval_on_start": True, "learning_rate": 5e-3}
    whole = trainer_for(folder=tmp_path / "whole", **options)
    whole.train()
    checkpoints = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    resumed = trainer_for(folder=tmp_path / "resumed", **options)
    # After the first epoch, or within the second.
    resumed.train(resume_from_checkpoint=str(checkpoints[0 if strategy == "epoch" else 1]))
    assert resumed.state.global_step == whole.state.global_step > 12
    expected = weights(whole)
    assert [name for name, weight in weights(resumed).items() if not torch.equal(weight, expected[name])] == []
    states = [{name: part.state_dict() for name, part in one._stateful.items()} for one in (whole, resumed)]
    assert states[0] == states[1]
    counts = {log["step"]: sampled(log) for log in whole.state.log_history if sampled(log)}
    assert {log["step"]: sampled(log) for log in resumed.state.log_history if sampled(log)} == counts
    assert [log["step"] for log in resumed.state.log_history if "plan/films_rows" in log] == [0]


def test_adaptive_sampling_draws_by_what_evaluations_found(trainer_for: Make) -> None:
    trainer = trainer_for(sampling="adaptive", num_train_epochs=3, logging_strategy="epoch", save_strategy="no",
                          load_best_model_at_end=False, epoch_size=240, sampling_kwargs={"floor": 0.01})  # fmt: skip
    trainer.train()
    logs = [sampled(log) for log in trainer.state.log_history if "loss" in log]
    evaluations = [log for log in trainer.state.log_history if "eval_average" in log]
    assert list(logs[0].values()) == [60] * 4
    for epoch in (1, 2):
        found = evaluations[epoch - 1]
        intent, slots, grammar = (
            1 - found[f"eval_{key}"] for key in ("intent_accuracy", "slots_f1", "grammar_accuracy")
        )
        similarity = found["eval_similarity_spearman"]
        gaps = np.array([
            1 - found["eval_sentiment_accuracy"],
            (intent + slots + grammar) / 3,
            1 - max(0.0, similarity if similarity == similarity else 0.0),
            1 - found["eval_moods_f1_micro"],
        ])  # fmt: skip
        wanted = 240 * np.maximum(gaps, 0.01) / np.maximum(gaps, 0.01).sum()
        drawn = np.array(list(logs[epoch].values())) - np.array(list(logs[epoch - 1].values()))
        assert np.abs(drawn - wanted).max() < 1
        assert np.ptp(drawn) > 5
    assert trainer.sampling_shares() == {
        name: rows / 720 for name, rows in zip(trainer.train_splits, logs[-1].values(), strict=True)
    }


def test_only_evaluations_in_training_are_followed(trainer_for: Make, tiny_data: RecipeData) -> None:
    class EvaluateElsewhere(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.evaluate(tiny_data.validation, metric_key_prefix="other")

    options = {"sampling": "adaptive", "num_train_epochs": 1, "save_strategy": "no", "load_best_model_at_end": False}
    trainer = trainer_for(callbacks=[EvaluateElsewhere()], **options, per_device_train_batch_size=40)
    trainer.evaluate()  # there is no sampler yet
    trainer.train()
    state = trainer._stateful["sampler"].state_dict()
    assert [first for first, _ in state["gaps"]] == [1]  # of the evaluation after the epoch
    trainer.evaluate()
    assert trainer._stateful["sampler"].state_dict() == state


# ---------------------------------------------------------------------- a strategy of the user's own


@pytest.fixture
def own_strategy() -> Iterator[str]:
    class FirstOnly(Sampler):
        """`p_0 = share`, all others alike."""

        def __init__(self, sizes: Mapping[str, int], *, share: float = 0.5, **basics: Any) -> None:
            super().__init__(sizes, **basics)
            self.share = share

        def probabilities(self, epoch: int) -> np.ndarray:
            others = len(self.names) - 1
            return np.array([self.share] + [(1 - self.share) / others] * others)

    SAMPLERS.register("first_only")(FirstOnly)
    yield "first_only"
    SAMPLERS._members.pop("first_only")


def test_a_registered_strategy_is_used_by_its_name(
    own_strategy: str, tiny_data: RecipeData, trainer_for: Make, tmp_path: Path
) -> None:
    values = {"sampling": own_strategy, "sampling_kwargs": {"share": 0.7}, "epoch_size": 100}
    arguments = training_arguments(tmp_path, {**values, "num_train_epochs": 1, "precision": "fp32", **ONLY_TRAIN})
    trainer = trainer_for(folder=tmp_path)
    trainer.args = arguments
    assert sampled(trainer.train().metrics) == {"films": 70, "orders": 10, "pairs": 10, "posts": 10}
    with pytest.raises(RecipeError, match=r"training: sampling_kwargs: FirstOnly has no option 'shares'"):
        training_arguments(tmp_path, {**values, "sampling_kwargs": {"shares": 0.7}})


# ---------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"sampling": "random"}, "'random' is not a sampling strategy; use one of 'adaptive', 'annealed'"),
        (
            {"sampling": "proportional", "sampling_kwargs": {"temperature": 2}},
            "sampling_kwargs: Proportional.* has no option 'temperature'",
        ),
        (
            {"sampling": "temperature", "sampling_kwargs": {"seed": 2}},
            "sampling_kwargs: Temperature.* has no option 'seed'; use 'temperature'",
        ),
        ({"epoch_size": 0}, "epoch_size is 0; give a whole number of at least 1, or 'upsampled', 'downsampled'"),
        ({"epoch_size": "double"}, "epoch_size is 'double'"),
        ({"batching": "single"}, "batching is 'single'; use one of 'mixed', 'homogeneous'"),
        ({"dataset_batch_size": {"films": 4}}, "but batching is 'mixed'.*; set batching to homogeneous, or set per_de"),
        (
            {"dataset_batch_size": {"films": 0}, "batching": "homogeneous"},
            "dataset_batch_size has 0 for 'films'; give a whole number above 0",
        ),
        ({"class_balanced": "sentiment"}, "class_balanced is 'sentiment'; give a list of tasks"),
        ({"sampling": "adaptive", **ONLY_TRAIN}, "eval_strategy is 'no', so there would be no scores to follow; set"),
        (
            {"sampling": "adaptive", "save_strategy": "steps", "load_best_model_at_end": False},
            "could not be resumed exactly; give eval_strategy and save_strategy the same value",
        ),
    ],
)
def test_arguments_that_cannot_work_are_refused(values: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=problem):
        MultiTaskTrainingArguments(output_dir=str(tmp_path), **values)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            {"batching": "homogeneous", "dataset_batch_size": {"film": 4}},
            "dataset_batch_size names 'film', which is no dataset; did you mean 'films'",
        ),
        (
            {"batching": "homogeneous", "every_task_in_batch": True},
            "each batch is of one dataset; set batching to mixed",
        ),
        ({"every_task_in_batch": True, "per_device_train_batch_size": 5}, "set for 6 tasks, but a batch has 5 rows"),
        ({"class_balanced": ["slots"]}, "class_balanced names 'slots', whose rows do not have one class each"),
        ({"sampling": "explicit"}, "weights has no 'films'; give a weight for each of 'films', 'orders'"),
        ({"sampling": "temperature", "sampling_kwargs": {"temperature": 0}}, "temperature is 0; give a number above 0"),
    ],
)
def test_what_cannot_work_with_the_data_is_refused_before_the_first_step(
    values: dict[str, Any], problem: str, trainer_for: Make
) -> None:
    trainer = trainer_for(**values)
    with pytest.raises(SpecError, match=problem):
        trainer.train()
    assert trainer.state.global_step == 0
