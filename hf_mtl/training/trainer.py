"""`MultiTaskTrainer`: transformers' Trainer over mixed batches, with one evaluation for all tasks."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Never, cast

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import seed_worker, speed_metrics

from hf_mtl.data.encoding import forget_last_call
from hf_mtl.data.masking import check_masking
from hf_mtl.data.preparation import EncodedSplit, TrainingSplit
from hf_mtl.errors import DataError, SpecError
from hf_mtl.evaluation.prediction import collator_for
from hf_mtl.evaluation.scoring import Scores, score
from hf_mtl.model.lora import save_merged
from hf_mtl.model.modeling import MultiTaskModel, MultiTaskOutput
from hf_mtl.model.packing import packed
from hf_mtl.training.arguments import RELATIVE_GAIN, MultiTaskTrainingArguments
from hf_mtl.training.batching import EpochBatchSampler
from hf_mtl.training.checkpointing import Stateful, load_parts, save_parts
from hf_mtl.training.frozen_states import RemoveStates, with_states
from hf_mtl.training.mean_losses import MeanLosses
from hf_mtl.training.objective import StepTotals, step_loss, step_totals
from hf_mtl.training.optimization import prepare_model, refusing_schedules, set_learning_rates
from hf_mtl.training.plan import SampledRows, TrainingPlan, make_batches
from hf_mtl.training.samplers.base import Sampler
from hf_mtl.training.selection import check_selection, relative_gain, selection_callbacks
from hf_mtl.training.sharding import (
    check_asked_for,
    check_fsdp,
    choose_units,
    drop_unused_gradients,
    reduce_unused_parameters,
)
from hf_mtl.training.step import StepCallback, StepObjective
from hf_mtl.training.step_checks import check_accelerator, check_architecture, check_tasks
from hf_mtl.training.streams import TrainingRows
from hf_mtl.writing import write_text

logger = logging.getLogger(__name__)

TRAINING_ARGS_NAME = "training_args.json"

LOCAL_ARGUMENTS = ("output_dir", "resume_from_checkpoint", "local_rank")

WITHOUT_EFFECT = {
    "compute_metrics": "every task type brings its metrics",
    "preprocess_logits_for_metrics": "every task type brings its metrics",
    "compute_loss_func": "every task type brings its loss",
    "model_init": "give the model; hf_mtl.training.tuning searches training arguments",
}
"""Arguments of the Trainer that this one would ignore, and why."""


class MultiTaskTrainer(Trainer):
    """Trains one model on several datasets, in batches that mix their rows.

    Checkpoints, callbacks, schedulers, logging and `accelerate launch` are the Trainer's. What differs: batches are
    drawn by a sampling strategy and hold rows of like length; the loss of an optimizer step is exact over its
    micro-batches and processes; one evaluation answers for all tasks, with `eval_<task>_<metric>`, `eval_<task>_loss`
    and `eval_average`, the mean of the tasks' primary metrics without those of auxiliary tasks.

    Args:
        model: the model.
        args: the training arguments; the defaults, into `trainer_output`, where not given.
        train_dataset: training splits by dataset, as `load_recipe` gives them.
        eval_dataset: validation splits by dataset.
        processing_class: the tokenizer, saved with the model.
        trainer_kwargs: passed to `Trainer`: `callbacks`, `optimizers` and others.

    Raises:
        SpecError: a dataset holds labels of a task that the model does not have, or has other labels for it; or an
            argument would have no effect, or names a metric that the evaluation will not have.
    """

    # `compute_loss` divides by the items of the whole step, so the Trainer must not divide by the micro-batches.
    loss_is_scaled_for_ga = True
    args: MultiTaskTrainingArguments  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        model: MultiTaskModel,
        args: MultiTaskTrainingArguments | None = None,
        *,
        train_dataset: Mapping[str, TrainingSplit] | None = None,
        eval_dataset: Mapping[str, EncodedSplit] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        args = args if args is not None else MultiTaskTrainingArguments(output_dir="trainer_output")
        if not isinstance(cast(object, args), MultiTaskTrainingArguments):
            raise SpecError(f"args is of type {type(args).__name__}", mend="give MultiTaskTrainingArguments")
        self.train_splits = dict(train_dataset or {})
        for split in (*self.train_splits.values(), *(eval_dataset or {}).values()):
            check_tasks(model, split)
        check_selection(args, eval_dataset or {})
        prepare_model(model, args, [task.spec.name for split in self.train_splits.values() for task in split.tasks])
        for name, mend in WITHOUT_EFFECT.items():
            if trainer_kwargs.get(name) is not None:
                raise SpecError(f"{name} is given, which would have no effect", mend=mend)
        check_masking([task.spec for split in self.train_splits.values() for task in split.tasks], processing_class)
        seed = args.seed if args.data_seed is None else args.data_seed
        super().__init__(
            model=model,
            args=args,
            data_collator=cast(Any, collator_for(model, processing_class, seed=seed)),
            train_dataset=TrainingRows(self.train_splits) if self.train_splits else None,
            eval_dataset=cast(Any, dict(eval_dataset)) if eval_dataset else None,
            processing_class=processing_class,
            **trainer_kwargs,
        )
        self._losses = MeanLosses([spec.name for spec in model.specs], device=self.args.device)
        self._sampler: Sampler | None = None
        self._sampled: SampledRows | None = None
        self._plan: TrainingPlan | None = None
        self._stateful: dict[str, Stateful] = {}  # parts with state of their own, by their name in a checkpoint
        check_asked_for(fsdp=self.is_fsdp_enabled, deepspeed=self.is_deepspeed_enabled)
        if self.is_fsdp_enabled:
            check_fsdp(self.accelerator.state.fsdp_plugin)
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        for name, callback in selection_callbacks(model, args, eval_dataset or {}, sharded=sharded).items():
            self.add_callback(callback)
            self._stateful[name] = callback
        self.add_callback(RemoveStates())
        self._objective = self._step_objective()
        self._stateful |= self._objective.stateful()

    @property
    def multi_task_model(self) -> MultiTaskModel:
        """The model without the wrappers of data parallelism."""
        return cast(MultiTaskModel, self.accelerator.unwrap_model(cast(nn.Module, self.model)))

    # ------------------------------------------------------------------ batches

    def get_train_dataloader(self) -> DataLoader[Any]:
        if not self.train_splits:
            raise DataError("there are no training rows", mend="name training files in the recipe's datasets")
        rows = cast(TrainingRows, self.train_dataset)
        process = (self.args.process_index, self.args.world_size)
        batches = make_batches(self.args, rows, self.train_splits, batch_size=self._train_batch_size, process=process)
        self._follow(batches)
        self._losses.take()  # of an earlier training, after its last log
        collator = cast(Any, self.data_collator)
        dataset, collate = with_states(self.multi_task_model, self.args, rows, batches, collator, self.accelerator)
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=cast(Any, collate),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            in_order=self.args.dataloader_in_order,
            worker_init_fn=partial(seed_worker, num_workers=self.args.dataloader_num_workers, rank=process[0]),
        )
        # The plan is rank-aware already: prepared for one process, nothing is sharded or dropped a second time.
        return prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True, rng_types=[]
        )

    def _follow(self, batches: EpochBatchSampler) -> None:
        """Keep count of what is sampled, and with every checkpoint what the sampler remembers."""
        self._sampled = SampledRows(batches, batches_per_step=self.args.gradient_accumulation_steps)
        self._stateful["sampled_rows"] = self._sampled
        self._sampler = batches.sampler
        self._plan = TrainingPlan.of(batches)
        self._stateful.pop("sampler", None)
        if self._sampler.state_dict():
            self._stateful["sampler"] = self._sampler

    def _observe(self, scores: Scores, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Tell the sampler how good each task is; not on resuming, since the run before did not evaluate there."""
        step = self.state.global_step
        if self._sampler is not None and (step == 0 or step > self._initial_global_step):
            primaries = {task: metrics[task][scores.tasks[task].metric.primary] for task in scores.counted}
            self._sampler.observe({task: 0.0 if math.isnan(value) else value for task, value in primaries.items()})

    def sampling_shares(self) -> dict[str, float]:
        """Return each dataset's share of the rows that were trained on; empty before training."""
        rows = {} if self._sampled is None else self._sampled.state_dict()
        return {name: own / sum(rows.values()) for name, own in rows.items()} if any(rows.values()) else {}

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        return int(cast(EpochBatchSampler, dataloader.batch_sampler).counts(0).sum())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with packed(self.multi_task_model) if self.args.packing else nullcontext():
            return super().train(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Resumed at max_steps within an epoch, transformers 5.23 trains one step more (no upstream issue is known).
        # One that had stopped early has no more to train either.
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            if self.state.global_step == 0 and self._plan is not None:
                self.log(self._plan.logs())
            super()._run_epoch(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Never:
        """There is none: rows are batched by length for each dataset.

        Raises:
            SpecError: always; names what to call.
        """
        raise SpecError(
            "this trainer has no dataloader for evaluation and prediction",
            mend="use evaluate(splits) or score(splits); hf_mtl.predict_file or the pipeline for rows without labels",
        )

    def get_test_dataloader(self, test_dataset: Any) -> Never:
        """There is none, and so no `predict`: see `get_eval_dataloader`."""
        return self.get_eval_dataloader(test_dataset)

    # ------------------------------------------------------------------ optimizer

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        logger.info("training in %s", self.args.precision)
        if self.is_fsdp_enabled:
            choose_units(self.accelerator.state.fsdp_plugin, self.multi_task_model)
        model, loader = cast(Any, super())._prepare_for_training(*args, **kwargs)
        if self.is_fsdp_enabled:
            reduce_unused_parameters(model)
        return model, loader

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if not given:
            set_learning_rates(optimizer, self.multi_task_model, self.args)
        self._objective.join(optimizer, given=given)
        return optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> torch.optim.lr_scheduler.LRScheduler:
        with refusing_schedules(self.args):
            return super().create_scheduler(*args, **kwargs)

    # ------------------------------------------------------------------ loss

    def _step_objective(self) -> StepObjective:
        fp16 = self.accelerator.scaler is not None
        check_accelerator(self.args, fsdp=self.is_fsdp_enabled, deepspeed=self.is_deepspeed_enabled, fp16=fp16)
        alone = self.args.world_size == 1
        objective = StepObjective(
            self.args,
            {spec.name: spec.loss_weight for spec in self.multi_task_model.specs},
            reduce=None if alone else self._sum_over_processes,
            broadcast=None if alone else cast(Any, broadcast),
        )
        objective.check_model(self.multi_task_model)
        check_architecture(self.multi_task_model.config, fsdp=self.is_fsdp_enabled, deepspeed=self.is_deepspeed_enabled)
        self.add_callback(StepCallback(objective, self.log))
        return objective

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        return cast(Tensor, self.accelerator.reduce(values))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._sampled is not None:
            self._sampled.add(self.state.global_step, len(batches))
        processes = self.args.world_size
        totals = step_totals(
            self.multi_task_model,
            batches,
            device=device,
            processes=processes,
            reduce=self._sum_over_processes if processes > 1 else None,
        )
        self._objective.begin(
            self.multi_task_model,
            totals,
            micro_batches=len(batches),
            step=self.state.global_step,
            epoch=int(self.state.epoch or 0),
        )
        return batches, totals

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        if self._objective.aggregation is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
            if self.is_fsdp_enabled and self.accelerator.sync_gradients:
                drop_unused_gradients(self.multi_task_model, num_items_in_batch.items)
            return loss
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            cast(Any, self.optimizer).train()
        # Not the wrapped model: the gradients are reduced over the processes before they are aggregated.
        loss = self.compute_loss(
            self.multi_task_model, cast(Any, self)._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch
        )
        return cast(Tensor, loss).detach()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        totals = num_items_in_batch
        if isinstance(totals, StepTotals):
            heads = self.multi_task_model
            outputs, terms = self._objective.terms(model, inputs, totals, heads=heads)
            self._losses.add(outputs.losses or {}, inputs.get("items", {}))
            self._objective.gather(terms)
            loss = step_loss(terms, outputs.logits or {}, totals.processes) + self._objective.tie(outputs, heads)
        else:
            outputs = cast(MultiTaskOutput, model(**inputs))
            loss = step_loss({}, outputs.logits or {}, 1) if outputs.loss is None else outputs.loss
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._sampled is not None and ("loss" in logs or "train_loss" in logs):
            logs.update(self._sampled.logs())
        if "loss" in logs:
            losses = self._losses.take(self._sum_over_processes if self.args.world_size > 1 else None)
            logs.update({f"loss_{task}": loss for task, loss in losses.items()})
            logs.update(self._objective.mean_weights())
        super().log(logs, start_time)

    # ------------------------------------------------------------------ evaluation

    def evaluate(  # pyright: ignore[reportIncompatibleMethodOverride]  # takes splits, where Trainer takes datasets
        self,
        eval_dataset: Mapping[str, EncodedSplit] | EncodedSplit | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score all tasks, log the result once and fire `on_evaluate` once.

        Args:
            eval_dataset: splits by dataset, or one split; those the trainer was made with where not given.
            ignore_keys: not used.
            metric_key_prefix: what the keys begin with.

        Returns:
            `<prefix>_<task>_<metric>`, `<prefix>_<task>_loss`, `<prefix>_average`, `<prefix>_relative_gain` where there
            are single-task scores, and speed.

        Raises:
            DataError: there are no splits.
        """
        if isinstance(eval_dataset, EncodedSplit):
            eval_dataset = {eval_dataset.name: eval_dataset}
        splits: Mapping[str, EncodedSplit] = eval_dataset or cast(
            Any, self.eval_dataset if eval_dataset is None else {}
        )
        if not splits:
            raise DataError("there are no rows to evaluate on", mend="name validation files in the recipe's datasets")
        self._memory_tracker.start()
        start = time.time()
        scores = self.score(splits)
        metrics: dict[str, float] = {}
        by_task = scores.metrics
        for task, values in by_task.items():
            metrics |= {f"{metric_key_prefix}_{task}_{key}": value for key, value in values.items()}
            metrics[f"{metric_key_prefix}_{task}_loss"] = scores.tasks[task].loss
        metrics[f"{metric_key_prefix}_average"] = scores.average(by_task)
        if self.args.single_task_scores:
            primaries = {task: by_task[task][scores.tasks[task].metric.primary] for task in scores.counted}
            single = cast(dict[str, float], self.args.single_task_scores)
            metrics[f"{metric_key_prefix}_{RELATIVE_GAIN}"] = relative_gain(primaries, single)
        if eval_dataset is None and self.is_in_train:
            self._observe(scores, by_task)
        rows = sum(len(split) for split in splits.values())
        metrics |= speed_metrics(metric_key_prefix, start, num_samples=rows)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def score(self, splits: Mapping[str, EncodedSplit], *, model: MultiTaskModel | None = None) -> Scores:
        """Answer and score labelled splits on all processes; the path that `hf-mtl evaluate` takes too.

        Args:
            splits: splits by dataset.
            model: a model to score instead of the one in training, such as the one saved.
        """
        # The parts of a sharded model meet in every batch, so that each process must run all of them.
        together = model is None and (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        process = (0, 1) if together else (self.args.process_index, self.args.world_size)
        return score(
            model or self.multi_task_model,
            self.processing_class,
            splits,
            batch_size=self.args.per_device_eval_batch_size,
            process=process,
            gather=gather_object if process[1] > 1 else None,
            on_batch=self._show_progress,
        )

    def _show_progress(self, done: int, total: int) -> None:
        # The progress callbacks read nothing of a dataloader but its length.
        self.callback_handler.eval_dataloader = cast(Any, range(total))
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    # ------------------------------------------------------------------ saving

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            save_parts(self._stateful, output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # What is written next, the trainer's state, says that the checkpoint is whole: on all processes, then.
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_parts(self._stateful, checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.processing_class is not None:
            forget_last_call(cast(PreTrainedTokenizerBase, self.processing_class))
        super()._save(output_dir, state_dict=state_dict)
        folder = Path(output_dir if output_dir is not None else cast(str, self.args.output_dir))
        if self.args.should_save:
            if self.multi_task_model.config.peft is not None and not self.is_in_train:
                # Checkpoints keep adapters and weights apart, to go on from; the model that others load is whole.
                save_merged(self.multi_task_model, folder)
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; the same in JSON stands beside it
            # Paths of this machine do not travel with the model; `to_dict` masks tokens.
            values = {key: value for key, value in self.args.to_dict().items() if key not in LOCAL_ARGUMENTS}
            write_text(json.dumps(values, indent=2, default=str) + "\n", folder / TRAINING_ARGS_NAME)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        # A card that stands there says more, be it a user's own or that of a whole run.
        if not Path(cast(str, self.args.output_dir), "README.md").exists():
            super().create_model_card(*args, **kwargs)
