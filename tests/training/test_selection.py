"""What follows from an evaluation: the best model, when training stops, which heads are frozen, also when resumed."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TASKS, load, write_recipe
from torch import Tensor
from transformers import TrainerCallback

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import SpecError
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.optimization import head_parameters
from hf_mtl.training.selection import EarlyStopping, PlateauFreezing, relative_gain, selection_callbacks
from hf_mtl.training.trainer import MultiTaskTrainer

Make = Callable[..., MultiTaskTrainer]

SINGLE = {"sentiment": 0.6, "intent": 0.9, "slots": 0.5, "grammar": 0.7, "similarity": 0.4, "moods": 0.8}
PRIMARIES = {
    "sentiment": "accuracy",
    "intent": "accuracy",
    "slots": "f1",
    "grammar": "accuracy",
    "similarity": "spearman",
    "moods": "f1_micro",
}
OFTEN: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_strategy": "steps",
    "save_steps": 4,
    "save_total_limit": None,
    "load_best_model_at_end": False,
}


def evaluations(trainer: MultiTaskTrainer) -> list[dict[str, Any]]:
    return [log for log in trainer.state.log_history if "eval_average" in log]


def weights(trainer: MultiTaskTrainer) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in trainer.multi_task_model.state_dict().items()}


def differences(found: MultiTaskTrainer, wanted: MultiTaskTrainer) -> list[str]:
    theirs = weights(wanted)
    return [name for name, weight in weights(found).items() if not torch.equal(weight, theirs[name])]


def checkpoint(trainer: MultiTaskTrainer, step: int) -> str:
    return str(Path(str(trainer.args.output_dir)) / f"checkpoint-{step}")


# ---------------------------------------------------------------------- relative gain


def test_relative_gain_is_the_mean_of_the_relative_differences() -> None:
    scores = {"a": 0.9, "b": 0.25, "c": 0.5}
    single = {"a": 0.8, "b": 0.5, "c": 0.5, "d": 0.1}
    wanted = 100 * ((0.9 - 0.8) / 0.8 + (0.25 - 0.5) / 0.5 + 0.0) / 3
    assert relative_gain(scores, single) == pytest.approx(wanted, rel=1e-12)
    assert relative_gain({"a": math.nan}, single) == -100.0
    assert relative_gain({task: single[task] for task in scores}, single) == 0.0


def test_evaluations_report_the_relative_gain_where_single_task_scores_are_given(
    trainer_for: Make, tiny_data: RecipeData
) -> None:
    assert "eval_relative_gain" not in trainer_for().evaluate()
    trainer = trainer_for(single_task_scores=SINGLE)
    metrics = trainer.evaluate()
    gains = [(metrics[f"eval_{task}_{key}"] - SINGLE[task]) / SINGLE[task] for task, key in PRIMARIES.items()]
    assert metrics["eval_relative_gain"] == pytest.approx(100 * sum(gains) / len(gains), rel=1e-12)
    alone = trainer.evaluate({"films": tiny_data.validation["films"]}, metric_key_prefix="test")
    accuracy = alone["test_sentiment_accuracy"]
    assert alone["test_relative_gain"] == pytest.approx(100 * (accuracy - 0.6) / 0.6, rel=1e-12)


def test_the_best_model_is_that_of_the_greatest_relative_gain(trainer_for: Make) -> None:
    trainer = trainer_for(num_train_epochs=3, single_task_scores=SINGLE, metric_for_best_model="relative_gain")
    trainer.train()
    gains = [log["eval_relative_gain"] for log in evaluations(trainer)]
    assert len(gains) == 3
    assert trainer.state.best_metric == max(gains)
    best = MultiTaskModel.from_pretrained(checkpoint(trainer, 20 * (1 + gains.index(max(gains))))).state_dict()
    assert all(torch.equal(weight, best[name]) for name, weight in weights(trainer).items())


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({**SINGLE, "mood": 0.5}, "single_task_scores has 'mood'; did you mean 'moods'"),
        ({"sentiment": 0.5}, "single_task_scores lacks 'intent'; give the score of every task"),
        ({**SINGLE, "moods": 0.0}, "single_task_scores has 0.0 for 'moods'; give a number above 0 and at most 1"),
        ({**SINGLE, "moods": 88.3}, "single_task_scores has 88.3 for 'moods'; give a number above 0 and at most 1"),
        ({**SINGLE, "moods": "high"}, "single_task_scores has 'high' for 'moods'; give a number above 0"),
    ],
)
def test_single_task_scores_that_cannot_be_are_refused(scores: dict[str, Any], message: str, trainer_for: Make) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        trainer_for(single_task_scores=scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric_for_best_model": "eval_relative_gain"}, "metric_for_best_model is 'relative_gain'; set single_task"),
        (
            {"early_stopping_threshold": 0.1},
            "early_stopping_threshold is 0.1, which would have no effect; set early_st",
        ),
        ({"early_stopping_patience": 0}, "early_stopping_patience is 0; give a number at least 1"),
        (
            {"early_stopping_patience": 2, "eval_strategy": "no"},
            "early_stopping_patience is 2, but eval_strategy is 'no'",
        ),
        (
            {"head_patience": 2, "eval_strategy": "no"},
            "head_patience is 2, but eval_strategy is 'no'; set eval_strategy",
        ),
    ],
)
def test_what_no_evaluation_would_answer_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    if options.get("eval_strategy") == "no":
        options = {**options, "load_best_model_at_end": False}
    with pytest.raises(SpecError, match=re.escape(message)):
        MultiTaskTrainingArguments(str(tmp_path), **options)


# ---------------------------------------------------------------------- early stopping


def stopping_point(values: list[float], patience: int, threshold: float) -> int | None:
    """Return after how many evaluations training stops: the rule, written down once more."""
    best, waited = -math.inf, 0
    for number, value in enumerate(values, start=1):
        waited = 0 if value > best and value - best > threshold else waited + 1
        best = max(best, value)
        if waited >= patience:
            return number
    return None


@pytest.mark.parametrize(
    ("options", "metric", "patience", "threshold"),
    [
        ({}, "eval_average", 2, 0.0),
        ({}, "eval_average", 1, 0.05),
        ({"metric_for_best_model": "moods_f1_micro"}, "eval_moods_f1_micro", 1, 0.0),
        (
            {"metric_for_best_model": "relative_gain", "single_task_scores": SINGLE, "learning_rate": 0.0},
            "eval_relative_gain",
            2,
            0.0,
        ),
    ],
)
def test_training_stops_after_so_many_evaluations_without_a_better_value(
    options: dict[str, Any], metric: str, patience: int, threshold: float, trainer_for: Make
) -> None:
    stopping = {"early_stopping_patience": patience, "early_stopping_threshold": threshold}
    trainer = trainer_for(**{**OFTEN, "max_steps": 60, "save_strategy": "no", **stopping, **options})
    trainer.train()
    values = [log[metric] for log in evaluations(trainer)]
    point = stopping_point(values, patience, threshold)
    assert point is None or point == len(values)
    assert trainer.state.global_step == (4 * point if point else 60)
    assert point is not None or len(values) == 15
    if not options or "learning_rate" in options:
        assert point is not None  # or this test would say little


@pytest.mark.slow
def test_a_resumed_run_waits_no_longer_than_an_uninterrupted_one(trainer_for: Make) -> None:
    options = {**OFTEN, "max_steps": 40, "learning_rate": 0.0, "early_stopping_patience": 3}
    whole = trainer_for(**options)
    whole.train()
    assert whole.state.global_step == 16  # the first evaluation is better than none, three are not better than it
    for step in (4, 12):
        resumed = trainer_for(**options)
        resumed.train(resume_from_checkpoint=checkpoint(whole, step))
        assert resumed.state.global_step == 16
        assert [log["step"] for log in evaluations(resumed)] == [4, 8, 12, 16]


@pytest.mark.slow
def test_a_run_that_had_stopped_early_is_not_trained_on(trainer_for: Make) -> None:
    options = {**OFTEN, "max_steps": 40, "early_stopping_patience": 1, "early_stopping_threshold": 1.0}
    whole = trainer_for(**options)
    whole.train()
    assert whole.state.global_step == 8
    resumed = trainer_for(**options)
    resumed.train(resume_from_checkpoint=checkpoint(whole, 8))
    assert resumed.state.global_step == 8
    assert differences(resumed, whole) == []
    resumed.train()  # from the beginning, the patience with it
    assert resumed.state.global_step == 8
    assert len(evaluations(resumed)) == 2


@pytest.mark.slow
def test_transformers_can_restore_the_callback_as_well(trainer_for: Make) -> None:
    options = {**OFTEN, "max_steps": 40, "learning_rate": 0.0, "early_stopping_patience": 3}
    whole = trainer_for(**options)
    whole.train()
    resumed = trainer_for(**options, restore_callback_states_from_checkpoint=True)
    resumed.train(resume_from_checkpoint=checkpoint(whole, 12))
    assert resumed.state.global_step == 16
    restored = [c for c in resumed.callback_handler.callbacks if isinstance(c, EarlyStopping)]
    assert [callback.early_stopping_patience_counter for callback in restored] == [3]


# ---------------------------------------------------------------------- heads that are frozen when they are stuck


class Snapshots(TrainerCallback):
    """Keeps the parameters of each head and of the encoder, and what the evaluation found, at each evaluation."""

    def __init__(self) -> None:
        self.taken: list[dict[str, list[Tensor]]] = []
        self.metrics: list[dict[str, float]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model: MultiTaskModel = kwargs["model"]
        parts = {task: head_parameters(model, task) for task in TASKS} | {"encoder": [*model.encoder.parameters()]}
        self.taken.append({name: [p.detach().clone() for p in part] for name, part in parts.items()})
        self.metrics.append(dict(kwargs["metrics"]))

    def moved(self, name: str) -> list[bool]:
        """Return whether a part changed from each evaluation to the next."""
        pairs = zip(self.taken, self.taken[1:], strict=False)
        return [any(not torch.equal(a, b) for a, b in zip(old[name], new[name], strict=True)) for old, new in pairs]

    def frozen_at(self, task: str, patience: int) -> int | None:
        values = [metrics[f"eval_{task}_{PRIMARIES[task]}"] for metrics in self.metrics]
        return stopping_point([-math.inf if math.isnan(value) else value for value in values], patience, 0.0)


def freezing(trainer: MultiTaskTrainer) -> PlateauFreezing:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, PlateauFreezing))


@pytest.mark.mostly_slow(fast=1)
@pytest.mark.parametrize("options", [{}, {"freeze_encoder": True}, {"aggregation": "mgda"}], ids=str)
def test_a_head_that_gets_no_better_stays_as_it_is_from_then_on(options: dict[str, Any], trainer_for: Make) -> None:
    snapshots = Snapshots()
    trainer = trainer_for(
        **{**OFTEN, "save_strategy": "no"},
        max_steps=40,
        head_patience=2,
        weight_decay=0.1,
        callbacks=[snapshots],
        logging_steps=4,
        sampling="proportional",  # whose four steps hold rows of every task
        **options,
    )
    trainer.train()
    points = {task: snapshots.frozen_at(task, 2) for task in TASKS}
    frozen = {task: point for task, point in points.items() if point is not None}
    assert set(freezing(trainer).frozen) == set(frozen)
    assert any(point < 10 for point in frozen.values())
    for task, point in points.items():
        moves = (point or 10) - 1  # between the evaluations until then
        assert snapshots.moved(task) == [True] * moves + [False] * (9 - moves), task
    assert snapshots.moved("encoder") == ["freeze_encoder" not in options] * 9
    last = [log for log in trainer.state.log_history if "loss" in log][-1]
    assert {f"loss_{task}" for task in TASKS} <= set(last)  # frozen heads, too, train the encoder
    assert all(
        parameter.requires_grad for head in trainer.multi_task_model.heads.values() for parameter in head.parameters()
    )


def test_a_frozen_head_does_not_count_in_the_norm_of_the_gradients(trainer_for: Make) -> None:
    """Else the gradients of all others would be clipped the more, the less it fits."""

    class Norms(TrainerCallback):
        def __init__(self) -> None:
            self.found: list[float] = []

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            grads = [
                p.grad.norm().item() for p in kwargs["model"].head("similarity").parameters() if p.grad is not None
            ]
            self.found += grads

    norms = Norms()
    trainer = trainer_for(
        max_steps=3, eval_strategy="no", save_strategy="no", load_best_model_at_end=False, callbacks=[norms]
    )
    callback = PlateauFreezing(trainer.multi_task_model, {"similarity": "spearman"}, patience=1)
    for frozen in (["similarity"], []):
        norms.found.clear()
        callback.load_state_dict({"best": {}, "waited": {}, "frozen": frozen})
        trainer.train()
        assert norms.found
        assert all(norm == 0.0 for norm in norms.found) == bool(frozen)


def test_frozen_heads_stay_frozen_in_a_resumed_run_to_the_bit(trainer_for: Make) -> None:
    options = {**OFTEN, "max_steps": 20, "head_patience": 1, "learning_rate": 3e-3}
    whole = trainer_for(**options)
    whole.train()
    resumed = trainer_for(**options)
    resumed.train(resume_from_checkpoint=checkpoint(whole, 12))
    assert differences(resumed, whole) == []
    assert freezing(resumed).state_dict() == freezing(whole).state_dict()
    assert freezing(whole).frozen


@pytest.mark.slow
def test_a_new_training_begins_with_nothing_frozen(trainer_for: Make) -> None:
    snapshots = Snapshots()
    trainer = trainer_for(**{**OFTEN, "save_strategy": "no"}, max_steps=12, head_patience=1, callbacks=[snapshots])
    trainer.train()
    before = freezing(trainer).frozen
    assert before
    snapshots.taken.clear()
    trainer.evaluate()
    trainer.train()
    assert all(snapshots.moved(task)[0] for task in before)


def test_a_metric_that_is_not_defined_never_gets_better(tiny_folder: Path, tmp_path: Path, trainer_for: Make) -> None:
    recipe = write_recipe(tmp_path, tiny_folder / "encoder")
    file = tmp_path / "pairs-validation.jsonl"
    rows = [{**json.loads(line), "score": 2.0} for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    snapshots = Snapshots()
    trainer = trainer_for(
        data=load(tmp_path, recipe),
        **{**OFTEN, "save_strategy": "no"},
        max_steps=16,
        head_patience=2,
        callbacks=[snapshots],
    )
    trainer.train()
    assert math.isnan(snapshots.metrics[-1]["eval_similarity_spearman"])
    assert snapshots.moved("similarity") == [True, False, False]


def test_tasks_without_validation_rows_are_never_frozen(tiny_data: RecipeData, trainer_for: Make) -> None:
    validation = {"films": tiny_data.validation["films"]}
    trainer = trainer_for(data=RecipeData(**{**vars(tiny_data), "validation": validation}), head_patience=1)
    assert list(freezing(trainer).primaries) == ["sentiment"]


def test_heads_of_sharded_parameters_are_not_frozen_half_way(trainer_for: Make, tiny_data: RecipeData) -> None:
    trainer = trainer_for(head_patience=1)
    with pytest.raises(SpecError, match="head_patience is 1, which needs whole parameters, and FSDP or DeepSpeed"):
        selection_callbacks(trainer.multi_task_model, trainer.args, tiny_data.validation, sharded=True)


# ---------------------------------------------------------------------- several processes


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {**OFTEN, "save_strategy": "no", "max_steps": 30, "head_patience": 1, "freeze_layers": 1, "layer_decay": 0.5},
        {"freeze_encoder": True},
        {"peft": {"r": 2}},
    ],
    ids=str,
)
def test_two_processes_freeze_and_train_as_one(options: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_folder / "plain")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    reports: dict[int, Any] = {}
    for processes, batch_size in ((1, 8), (2, 4)):
        folder = tmp_path / f"on{processes}"
        values = {"per_device_train_batch_size": batch_size, "per_device_eval_batch_size": 16, **options}
        job = tmp_path / f"job{processes}.json"
        job.write_text(
            json.dumps({"files": str(tmp_path), "output": str(folder), "training": values}), encoding="utf-8"
        )
        launch(processes, job)
        reports[processes] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        assert reports[processes]["world_size"] == processes
    one, two = (MultiTaskModel.from_pretrained(tmp_path / f"on{n}" / "model").state_dict() for n in (1, 2))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def launch(processes: int, job: Path) -> None:
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [str(Path(__file__).with_name("train_job.py")), str(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
