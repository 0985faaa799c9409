"""A whole training: what changes, what is logged, what is kept, what can be resumed, on one process and on two."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TASKS, build, load, write_recipe
from torch import Tensor
from transformers import EarlyStoppingCallback, ProgressCallback, TrainerCallback, TrainingArguments

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import DataError, SpecError
from hf_mtl.evaluation.scoring import score
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.remote_code import FILE_NAMES
from hf_mtl.training.trainer import TRAINING_ARGS_NAME, MultiTaskTrainer

Make = Callable[..., MultiTaskTrainer]

CLASSES = ("accuracy", "f1_macro", "f1_micro", "f1_weighted", "mcc")
METRICS = {
    "sentiment": CLASSES,
    "intent": CLASSES,
    "slots": ("precision", "recall", "f1"),
    "grammar": ("accuracy", "f1_macro"),
    "similarity": ("pearson", "spearman", "rmse"),
    "moods": ("f1_micro", "f1_macro", "subset_accuracy"),
}
PRIMARIES = {
    "sentiment": "accuracy",
    "intent": "accuracy",
    "slots": "f1",
    "grammar": "accuracy",
    "similarity": "spearman",
    "moods": "f1_micro",
}
ONLY_TRAIN: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


class Recorder(TrainerCallback):
    """Notes the events that evaluation fires."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(("evaluate", dict(kwargs["metrics"])))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(("log", dict(kwargs["logs"])))

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(("batch", len(kwargs["eval_dataloader"])))

    def of(self, kind: str) -> list[Any]:
        return [value for event, value in self.events if event == kind]


class Scramble(TrainerCallback):
    """Makes the heads worse at the end of every epoch but the first, so that the best model is not the last."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.epoch > 1:
            for head in kwargs["model"].heads.values():
                head.output.weight.data.mul_(-5.0)


def weights(trainer: MultiTaskTrainer) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in trainer.multi_task_model.state_dict().items()}


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name, weight in wanted.items() if not torch.equal(found[name], weight)] == []


def evaluations(trainer: MultiTaskTrainer) -> list[dict[str, Any]]:
    return [log for log in trainer.state.log_history if "eval_average" in log]


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_precision_is_said_once(precision: str, trainer_for: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hf_mtl"):
        trainer_for(max_steps=1, **{**ONLY_TRAIN, "precision": precision}).train()
    assert [record.getMessage() for record in caplog.records if "training in" in record.getMessage()] == [
        f"training in {precision}"
    ]


def test_every_trainable_parameter_changes(trainer_for: Make) -> None:
    trainer = trainer_for(max_steps=6, **ONLY_TRAIN)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert [name for name, weight in before.items() if torch.equal(after[name], weight)] == []
    assert all(weight.isfinite().all() for weight in after.values())


def test_training_learns(trainer_for: Make) -> None:
    trainer = trainer_for(num_train_epochs=8, learning_rate=3e-3, **ONLY_TRAIN)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_average"] > before["eval_average"] + 0.2
    assert all(after[f"eval_{task}_loss"] < before[f"eval_{task}_loss"] for task in TASKS)


def test_the_same_seed_gives_the_same_weights_to_the_bit(trainer_for: Make, tmp_path: Path) -> None:
    runs: list[dict[str, Tensor]] = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        trainer = trainer_for(folder=tmp_path / name, max_steps=5, seed=seed, **ONLY_TRAIN)
        trainer.train()
        runs.append(weights(trainer))
    assert_equal(runs[0], runs[1])
    assert any(not torch.equal(weight, runs[0][name]) for name, weight in runs[2].items())


@pytest.mark.parametrize(
    ("checkpoint", "workers"),
    [pytest.param(3, 0, marks=pytest.mark.slow), pytest.param(12, 0, marks=pytest.mark.slow), (12, 2)],
)
def test_resuming_within_an_epoch_gives_the_same_weights_to_the_bit(
    checkpoint: int, workers: int, trainer_for: Make
) -> None:
    """Ten steps an epoch of two batches each, with dropout: steps 3 and 12 stand within the first and the second."""
    options = {"num_train_epochs": 2, "gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 3}
    options |= {"save_strategy": "steps", "save_steps": 3, "save_total_limit": None, "load_best_model_at_end": False}
    options |= {"logging_steps": 3, "dataloader_num_workers": workers}
    whole = trainer_for(**options)
    whole.train()
    assert whole.state.global_step == 20
    folder = Path(str(whole.args.output_dir)) / f"checkpoint-{checkpoint}"
    resumed = trainer_for(**options)
    resumed.train(resume_from_checkpoint=str(folder))
    assert_equal(weights(resumed), weights(whole))

    def logs(trainer: MultiTaskTrainer) -> list[dict[str, Any]]:
        timeless = [
            {k: v for k, v in log.items() if "second" not in k and "runtime" not in k}
            for log in trainer.state.log_history
        ]
        return [log for log in timeless if "train_loss" not in log]

    assert logs(resumed) == logs(whole)


def test_resuming_at_the_end_changes_nothing(trainer_for: Make) -> None:
    options: dict[str, Any] = {
        "max_steps": 3,
        "save_strategy": "steps",
        "save_steps": 3,
        "lr_scheduler_type": "constant",
    }
    options |= {"eval_strategy": "no", "load_best_model_at_end": False}
    whole = trainer_for(**options)
    whole.train()
    resumed = trainer_for(**options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3
    assert_equal(weights(resumed), weights(whole))


def test_bf16_trains_on_a_cpu(trainer_for: Make) -> None:
    trainer = trainer_for(
        max_steps=3, bf16=True, logging_steps=1, eval_strategy="steps", eval_steps=3, save_strategy="best"
    )
    trainer.train()
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in weights(trainer).values())
    assert math.isfinite(evaluations(trainer)[-1]["eval_average"])


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy", "cosine"])
@pytest.mark.slow
def test_schedules_run(schedule: str, trainer_for: Make) -> None:
    trainer = trainer_for(num_train_epochs=2, lr_scheduler_type=schedule, logging_steps=1)
    trainer.train()
    assert all(log["learning_rate"] >= 0 for log in trainer.state.log_history if "learning_rate" in log)


@pytest.mark.parametrize("options", [{"activation_checkpointing": True}, {"auto_find_batch_size": True}])
def test_other_ways_to_train(options: dict[str, Any], trainer_for: Make, tmp_path: Path) -> None:
    """They give the same weights: they change how much memory training takes, no more."""
    plain = trainer_for(folder=tmp_path / "plain", max_steps=2, **ONLY_TRAIN)
    plain.train()
    other = trainer_for(folder=tmp_path / "other", max_steps=2, **ONLY_TRAIN, **options)
    other.train()
    assert_equal(weights(other), weights(plain))


# ---------------------------------------------------------------------- what is logged


def test_logged_losses_are_those_of_the_rows_trained_on(
    tiny_folder: Path, tiny_recipe: dict[str, Any], trainer_for: Make
) -> None:
    data = load(tiny_folder, {**tiny_recipe, "encoder": str(tiny_folder / "plain")})  # no dropout
    trainer = trainer_for(data=data, learning_rate=0.0, num_train_epochs=1, logging_steps=7, **ONLY_TRAIN)
    model = build(data).eval()
    losses: dict[str, Tensor] = {}
    steps: list[float] = []
    wanted: list[dict[str, float]] = []
    batches = list(trainer.get_train_dataloader())
    for number, batch in enumerate(batches, start=1):
        with torch.no_grad():
            output = model(**batch)
        steps.append(output.loss.item())
        for task, rows in batch["rows"].items():
            items = model.head(task).num_items(model.head(task).spec, batch["labels"][task][rows])
            pair = torch.stack([output.losses[task] * items, items])
            losses[task] = losses.get(task, torch.zeros(2)) + pair
        if number % 7 == 0:
            mean = {f"loss_{task}": (pair[0] / pair[1]).item() for task, pair in losses.items()}
            wanted.append({"loss": sum(steps) / len(steps), **mean})
            losses, steps = {}, []
    trainer.train()
    found = [log for log in trainer.state.log_history if "loss" in log]
    assert len(batches) == 20
    assert len(found) == len(wanted) == 2
    for log, reference in zip(found, wanted, strict=True):
        assert {key: log[key] for key in reference} == pytest.approx(reference, rel=1e-5)


def test_a_second_training_does_not_log_what_the_first_left(trainer_for: Make) -> None:
    trainer = trainer_for(max_steps=3, logging_steps=2, learning_rate=0.0, **ONLY_TRAIN)
    trainer.train()  # the last of three steps is in no log
    trainer.get_train_dataloader()
    assert trainer._losses.take() == {}


def test_speed_is_counted_in_rows_trained_on(trainer_for: Make) -> None:
    trainer = trainer_for(num_train_epochs=1, **ONLY_TRAIN)
    rows = trainer.get_train_dataloader().batch_sampler.sampler.epoch_size()
    assert trainer.num_examples(trainer.get_train_dataloader()) == rows == 160


def test_evaluation_has_these_keys_and_no_others(trainer_for: Make) -> None:
    wanted = {f"eval_{task}_{key}" for task, keys in METRICS.items() for key in (*keys, "loss")}
    wanted |= {"eval_average", "eval_runtime", "eval_samples_per_second", "epoch"}
    found = trainer_for().evaluate()
    assert set(found) == wanted
    assert all(isinstance(value, float | int) for value in found.values())


def test_the_average_is_the_mean_of_the_primary_metrics(trainer_for: Make) -> None:
    metrics = trainer_for().evaluate()
    primaries = [metrics[f"eval_{task}_{key}"] for task, key in PRIMARIES.items()]
    assert metrics["eval_average"] == pytest.approx(sum(primaries) / len(primaries), rel=1e-12)


def test_a_primary_metric_that_is_not_defined_counts_as_zero(
    tiny_folder: Path, tmp_path: Path, trainer_for: Make
) -> None:
    recipe = write_recipe(tmp_path, tiny_folder / "encoder")
    file = tmp_path / "pairs-validation.jsonl"
    rows = [{**json.loads(line), "score": 2.0} for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    trainer = trainer_for(
        data=load(tmp_path, recipe), max_steps=2, eval_strategy="steps", eval_steps=2, save_strategy="best"
    )
    trainer.train()
    metrics = evaluations(trainer)[-1]
    assert math.isnan(metrics["eval_similarity_spearman"])
    others = [metrics[f"eval_{task}_{key}"] for task, key in PRIMARIES.items() if task != "similarity"]
    assert metrics["eval_average"] == pytest.approx(sum(others) / len(PRIMARIES))


def test_one_evaluation_fires_its_events_once(trainer_for: Make) -> None:
    recorder = Recorder()
    trainer = trainer_for(callbacks=[recorder], num_train_epochs=2, logging_steps=10**6, load_best_model_at_end=False)
    trainer.train()
    assert len(recorder.of("evaluate")) == 2
    logs = [log for log in recorder.of("log") if "eval_average" in log]
    assert [log["eval_average"] for log in logs] == [metrics["eval_average"] for metrics in recorder.of("evaluate")]


def test_one_split_or_other_splits_can_be_evaluated(trainer_for: Make, tiny_data: RecipeData) -> None:
    trainer = trainer_for()
    films = trainer.evaluate(tiny_data.train["films"], metric_key_prefix="test")
    assert {key for key in films if key.endswith("loss")} == {"test_sentiment_loss"}
    assert films == {
        **films,
        **trainer.evaluate({"films": tiny_data.train["films"]}, metric_key_prefix="test"),
        **speed(films),
    }
    with pytest.raises(DataError, match="there are no rows to evaluate on"):
        trainer.evaluate({})


def speed(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if "runtime" in key or "per_second" in key}


def test_memory_is_measured_where_asked_for(trainer_for: Make) -> None:
    pytest.importorskip("psutil")
    trainer = trainer_for(skip_memory_metrics=False)
    assert {"eval_mem_cpu_alloc_delta", "eval_mem_cpu_peaked_delta"} <= trainer.evaluate().keys()


# ---------------------------------------------------------------------- progress


def test_progress_counts_batches_of_all_datasets(trainer_for: Make) -> None:
    recorder = Recorder()
    trainer_for(callbacks=[recorder], per_device_eval_batch_size=10).evaluate()
    assert recorder.of("batch") == [12] * 12  # three batches for each of four datasets


def test_the_progress_bar_fills_and_closes(trainer_for: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    trainer = trainer_for(
        disable_tqdm=False, num_train_epochs=1, per_device_eval_batch_size=10, load_best_model_at_end=False
    )
    bars = next(c for c in trainer.callback_handler.callbacks if isinstance(c, ProgressCallback))
    trainer.evaluate()
    assert "12/12" in screen.getvalue()
    trainer.train()
    assert bars.prediction_bar is None
    assert "20/20" in screen.getvalue()


@pytest.mark.slow
def test_notebooks_show_progress(trainer_for: Make, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("IPython")
    from transformers.utils.notebook import NotebookProgressCallback

    trainer = trainer_for(num_train_epochs=1, per_device_eval_batch_size=10, load_best_model_at_end=False)
    trainer.add_callback(NotebookProgressCallback)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    assert "HTML object" in capsys.readouterr().out


# ---------------------------------------------------------------------- the best model


@pytest.mark.mostly_slow(fast=2)
@pytest.mark.parametrize(
    ("metric", "best"),
    [("average", max), ("eval_sentiment_accuracy", max), ("similarity_rmse", min), ("slots_loss", min)],
)
def test_the_best_checkpoint_is_loaded_at_the_end(metric: str, best: Callable[..., float], trainer_for: Make) -> None:
    trainer = trainer_for(num_train_epochs=3, metric_for_best_model=metric, callbacks=[Scramble()])
    trainer.train()
    key = f"eval_{metric.removeprefix('eval_')}"
    values = [log[key] for log in evaluations(trainer)]
    assert trainer.state.best_metric == best(values)
    step = (values.index(best(values)) + 1) * 20
    assert trainer.state.best_model_checkpoint == f"{trainer.args.output_dir}/checkpoint-{step}"
    kept = MultiTaskModel.from_pretrained(trainer.state.best_model_checkpoint)
    assert_equal(weights(trainer), kept.state_dict())
    assert trainer.evaluate()[key] == best(values)
    if best is min:
        assert step < 60  # not the last: the heads were made worse after the first epoch


def test_training_stops_early(trainer_for: Make) -> None:
    trainer = trainer_for(
        num_train_epochs=5, learning_rate=0.0, callbacks=[EarlyStoppingCallback(early_stopping_patience=2)]
    )
    trainer.train()
    assert len(evaluations(trainer)) == 3


def test_steps_and_limits_are_the_trainers(trainer_for: Make) -> None:
    trainer = trainer_for(
        max_steps=5, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, save_total_limit=1
    )
    trainer.train()
    assert [log["step"] for log in evaluations(trainer)] == [2, 4, 5]
    left = sorted(path.name for path in Path(str(trainer.args.output_dir)).glob("checkpoint-*"))
    assert left == [Path(trainer.state.best_model_checkpoint).name]


# ---------------------------------------------------------------------- what is saved


def test_what_is_saved_loads_and_scores_alike(trainer_for: Make, tiny_data: RecipeData, tmp_path: Path) -> None:
    trainer = trainer_for(num_train_epochs=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    model = MultiTaskModel.from_pretrained(tmp_path / "model")
    assert model.specs == tiny_data.tasks
    scores = score(model, tiny_data.tokenizer, tiny_data.validation, batch_size=64)
    metrics = trainer.evaluate()
    found = {f"eval_{task}_{key}": value for task, values in scores.metrics.items() for key, value in values.items()}
    found |= {f"eval_{task}_loss": own.loss for task, own in scores.tasks.items()} | {"eval_average": scores.average()}
    assert found == {key: metrics[key] for key in found}


def test_a_saved_model_holds_no_pickle_no_secret_and_no_path(trainer_for: Make, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    trainer = trainer_for(max_steps=1, hub_token="hf_secret", **ONLY_TRAIN, sampling="uniform")
    trainer.train()
    trainer.save_model(str(folder))
    trainer.save_model(str(folder))  # once more over itself
    names = {path.name for path in folder.iterdir()}
    saved = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", TRAINING_ARGS_NAME}
    assert names == {*saved, *FILE_NAMES}
    for path in folder.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"PK", b"\x80"))
        assert b"hf_secret" not in content
        assert str(tmp_path).encode() not in content
    arguments = json.loads((folder / TRAINING_ARGS_NAME).read_text(encoding="utf-8"))
    assert arguments["sampling"] == "uniform"
    assert arguments["learning_rate"] == 1e-3


def test_a_checkpoint_holds_no_pickled_arguments(trainer_for: Make) -> None:
    trainer = trainer_for(max_steps=2, eval_strategy="steps", eval_steps=2, save_strategy="best")
    trainer.train()
    names = {path.name for path in Path(trainer.state.best_model_checkpoint).iterdir()}
    assert {"model.safetensors", "trainer_state.json", "optimizer.pt", TRAINING_ARGS_NAME} <= names
    assert "training_args.bin" not in names


# ---------------------------------------------------------------------- what cannot be


def test_prediction_names_what_to_call_instead(trainer_for: Make, tiny_data: RecipeData) -> None:
    trainer = trainer_for()
    for call in (trainer.predict, trainer.get_eval_dataloader, trainer.get_test_dataloader):
        with pytest.raises(SpecError, match=r"no dataloader for evaluation and prediction; use evaluate\(splits\)"):
            call(tiny_data.validation)


def test_a_metric_that_will_not_be_there_is_found_before_training(trainer_for: Make) -> None:
    with pytest.raises(
        SpecError, match="metric_for_best_model is 'sentiment_acuracy'; did you mean 'sentiment_accuracy'"
    ):
        trainer_for(metric_for_best_model="eval_sentiment_acuracy")


@pytest.mark.parametrize(
    "name", ["compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics", "model_init"]
)
def test_trainer_arguments_without_effect_are_refused(name: str, tiny_data: RecipeData, trainer_for: Make) -> None:
    arguments = trainer_for().args
    with pytest.raises(SpecError, match=f"{name} is given, which would have no effect"):
        MultiTaskTrainer(build(tiny_data), arguments, eval_dataset=tiny_data.validation, **{name: lambda *_: None})


def test_data_of_other_tasks_is_refused(tiny_data: RecipeData, trainer_for: Make) -> None:
    encoder = tiny_data.recipe.encoder_path
    with pytest.raises(
        SpecError, match=r"dataset 'films', task 'sentiment': the model has no such task; load the recipe"
    ):
        trainer_for(model=MultiTaskModel.from_encoder(encoder, [TaskSpec(name="stars", type="regression")]))
    turned = [replace(spec, labels=spec.labels and spec.labels[::-1]) for spec in tiny_data.tasks]
    with pytest.raises(SpecError, match="the model's task has other labels or another type"):
        trainer_for(model=MultiTaskModel.from_encoder(encoder, turned))


# ---------------------------------------------------------------------- processes


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"activation_checkpointing": True}])
def test_two_processes_train_as_one(options: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    """Rows of a step are the same, half of them on each process, where some steps lack a task on one or on both."""
    recipe = write_recipe(tmp_path, tiny_folder / "plain")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    runs: dict[int, dict[str, Any]] = {}
    for processes, batch_size in ((1, 8), (2, 4)):
        folder = tmp_path / f"on{processes}"
        values = {"per_device_train_batch_size": batch_size, "per_device_eval_batch_size": 16, **options}
        job = {"files": str(tmp_path), "output": str(folder), "training": values}
        (tmp_path / f"job{processes}.json").write_text(json.dumps(job), encoding="utf-8")
        launch(processes, tmp_path / f"job{processes}.json")
        runs[processes] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        assert runs[processes]["world_size"] == processes
    one, two = (MultiTaskModel.from_pretrained(tmp_path / f"on{n}" / "model").state_dict() for n in (1, 2))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    for first, second in zip(runs[1]["logs"], runs[2]["logs"], strict=True):
        assert second == pytest.approx(first, rel=1e-3, abs=1e-4, nan_ok=True)


def launch(processes: int, job: Path) -> None:
    tests = Path(__file__).parents[1]
    script = Path(__file__).with_name("train_job.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*command, str(script), str(job)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_heads_have_a_learning_rate_of_their_own(trainer_for: Make) -> None:
    trainer = trainer_for(learning_rate=1e-3, head_learning_rate=5e-3)
    trainer.create_optimizer()
    assert trainer.optimizer is not None
    model = trainer.multi_task_model
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {rates.pop(id(p)) for p in model.encoder.parameters()} == {1e-3}
    assert set(rates.values()) == {5e-3}
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(list(model.parameters()))
    head = model.head(model.specs[0].name)
    assert (decays[id(head.output.weight)], decays[id(head.output.bias)]) == (trainer.args.weight_decay, 0.0)


def test_heads_learn_ten_times_as_fast_where_nothing_is_said(trainer_for: Make) -> None:
    trainer = trainer_for(learning_rate=2e-4)
    trainer.create_optimizer()
    assert trainer.optimizer is not None
    rates = sorted({group["lr"] for group in trainer.optimizer.param_groups})
    assert rates == pytest.approx([2e-4, 2e-3])


def test_an_optimizer_that_was_given_is_left_alone(trainer_for: Make) -> None:
    trainer = trainer_for()
    optimizer = torch.optim.SGD(trainer.multi_task_model.parameters(), lr=0.5)
    trainer.optimizer = optimizer
    trainer.create_optimizer()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5]


def test_arguments_of_transformers_alone_are_refused(tiny_data: RecipeData, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="give MultiTaskTrainingArguments"):
        MultiTaskTrainer(build(tiny_data), TrainingArguments(str(tmp_path), use_cpu=True))


def test_arguments_may_be_left_out(tiny_data: RecipeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = MultiTaskTrainer(build(tiny_data), eval_dataset=tiny_data.validation)
    assert Path(trainer.args.output_dir or "").name == "trainer_output"
