"""`MultiTaskTrainer`: transformers' Trainer over mixed batches, with one evaluation for all tasks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Never, cast

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import seed_worker, speed_metrics

from hf_mtl.data.preparation import EncodedSplit
from hf_mtl.data.recipe import near
from hf_mtl.errors import DataError, SpecError
from hf_mtl.evaluation.metrics import load_metric
from hf_mtl.evaluation.prediction import collator_for
from hf_mtl.evaluation.scoring import Scores, score
from hf_mtl.model.modeling import MultiTaskModel, MultiTaskOutput
from hf_mtl.registry import HEADS, SAMPLERS
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.batching import MixedBatchSampler
from hf_mtl.training.objective import StepTotals, step_loss, step_totals
from hf_mtl.training.sources import JointRows
from hf_mtl.writing import write_text

TRAINING_ARGS_NAME = "training_args.json"

LOCAL_ARGUMENTS = ("output_dir", "resume_from_checkpoint", "local_rank")

WITHOUT_EFFECT = {
    "compute_metrics": "every task type brings its metrics",
    "preprocess_logits_for_metrics": "every task type brings its metrics",
    "compute_loss_func": "every task type brings its loss",
    "model_init": "give the model",
}
"""Arguments of the Trainer that this one would ignore, and why."""


HEAD_RATE = 10.0
"""Learning rate of the heads over that of the encoder, where none is given."""


class MultiTaskTrainer(Trainer):
    """Trains one model on several datasets, in batches that mix their rows.

    Checkpoints, callbacks, schedulers, logging and `accelerate launch` are the Trainer's. What differs: batches are
    drawn by a sampling strategy and hold rows of like length; the loss of an optimizer step is exact over its
    micro-batches and processes; one evaluation answers for all tasks, with `eval_<task>_<metric>`, `eval_<task>_loss`
    and `eval_average`, the mean of the tasks' primary metrics.

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
        train_dataset: Mapping[str, EncodedSplit] | None = None,
        eval_dataset: Mapping[str, EncodedSplit] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        args = args if args is not None else MultiTaskTrainingArguments(output_dir="trainer_output")
        if not isinstance(cast(object, args), MultiTaskTrainingArguments):
            raise SpecError(f"args is of type {type(args).__name__}", mend="give MultiTaskTrainingArguments")
        self.train_splits = dict(train_dataset or {})
        for split in (*self.train_splits.values(), *(eval_dataset or {}).values()):
            _check_tasks(model, split)
        _check_best_metric(args.metric_for_best_model, eval_dataset or {})
        for name, mend in WITHOUT_EFFECT.items():
            if trainer_kwargs.get(name) is not None:
                raise SpecError(f"{name} is given, which would have no effect", mend=mend)
        super().__init__(
            model=model,
            args=args,
            data_collator=cast(Any, collator_for(model, processing_class)),
            train_dataset=JointRows(self.train_splits) if self.train_splits else None,
            eval_dataset=cast(Any, dict(eval_dataset)) if eval_dataset else None,
            processing_class=processing_class,
            **trainer_kwargs,
        )
        self._loss_sums: dict[str, Tensor] = {}

    @property
    def multi_task_model(self) -> MultiTaskModel:
        """The model without the wrappers of data parallelism."""
        return cast(MultiTaskModel, self.accelerator.unwrap_model(cast(nn.Module, self.model)))

    # ------------------------------------------------------------------ batches

    def get_train_dataloader(self) -> DataLoader[Any]:
        if not self.train_splits:
            raise DataError("there are no training rows", mend="name training files in the recipe's datasets")
        rows = cast(JointRows, self.train_dataset)
        process = (self.args.process_index, self.args.world_size)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        sources = list(rows.sources(self.train_splits, seed=seed))
        sampler = SAMPLERS.get(self.args.sampling)(
            {name: len(source) for name, source in zip(self.train_splits, sources, strict=True)}, seed=seed
        )
        batches = MixedBatchSampler(sampler, sources, batch_size=self._train_batch_size, process=process)
        self._loss_sums = {}  # of an earlier training, after its last log
        loader = DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=cast(Any, self.data_collator),
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

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        return cast(MixedBatchSampler, dataloader.batch_sampler).sampler.epoch_size()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Resumed at max_steps within an epoch, transformers 5.23 trains one step more (no upstream issue is known).
        if self.state.global_step < self.state.max_steps:
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

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if not given:
            rate = self.args.head_learning_rate
            heads = [*self.multi_task_model.heads.parameters(), *self.multi_task_model.attention_poolings.parameters()]
            set_apart(optimizer, heads, lr=HEAD_RATE * self.args.learning_rate if rate is None else rate)
        return optimizer

    # ------------------------------------------------------------------ loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        processes = self.args.world_size
        totals = step_totals(
            self.multi_task_model,
            batches,
            device=device,
            processes=processes,
            reduce=(lambda counts: cast(Tensor, self.accelerator.reduce(counts))) if processes > 1 else None,
        )
        return batches, totals

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        outputs: MultiTaskOutput = model(**inputs)
        losses, totals = outputs.losses, num_items_in_batch
        if losses is None:
            # No row has a label left, since truncation cut them off: nothing to learn, but a graph to go back.
            loss = torch.stack([logits.sum() * 0.0 for logits in (outputs.logits or {}).values()]).sum()
        elif isinstance(totals, StepTotals):
            loss = step_loss(self.multi_task_model, losses, inputs, totals)
            self._remember_losses(losses, inputs)
        else:
            loss = cast(Tensor, outputs.loss)
        return (loss, outputs) if return_outputs else loss

    def _remember_losses(self, losses: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> None:
        for task, loss in losses.items():
            items = self.multi_task_model.head(task).num_items(inputs["labels"][task][inputs["rows"][task]])
            pair = torch.stack([loss.detach().float() * items, items])
            self._loss_sums[task] = self._loss_sums[task] + pair if task in self._loss_sums else pair

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._mean_losses())
        super().log(logs, start_time)

    def _mean_losses(self) -> dict[str, float]:
        """Return the mean training loss of each task since the last time, `loss_<task>`; one device synchronisation."""
        names = [spec.name for spec in self.multi_task_model.specs]
        zero = torch.zeros(2, device=self.args.device)
        sums = torch.stack([self._loss_sums.get(name, zero) for name in names])
        if self.args.world_size > 1:
            sums = cast(Tensor, self.accelerator.reduce(sums))
        self._loss_sums = {}
        return {
            f"loss_{name}": total / items for name, (total, items) in zip(names, sums.tolist(), strict=True) if items
        }

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
            `<prefix>_<task>_<metric>`, `<prefix>_<task>_loss`, `<prefix>_average` and speed.

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
        return score(
            model or self.multi_task_model,
            self.processing_class,
            splits,
            batch_size=self.args.per_device_eval_batch_size,
            process=(self.args.process_index, self.args.world_size),
            gather=gather_object if self.args.world_size > 1 else None,
            on_batch=self._show_progress,
        )

    def _show_progress(self, done: int, total: int) -> None:
        # The progress callbacks read nothing of a dataloader but its length.
        self.callback_handler.eval_dataloader = cast(Any, range(total))
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    # ------------------------------------------------------------------ saving

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict=state_dict)
        folder = Path(output_dir if output_dir is not None else cast(str, self.args.output_dir))
        if self.args.should_save:
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; the same in JSON stands beside it
            # Paths of this machine do not travel with the model; `to_dict` masks tokens.
            values = {key: value for key, value in self.args.to_dict().items() if key not in LOCAL_ARGUMENTS}
            write_text(json.dumps(values, indent=2, default=str) + "\n", folder / TRAINING_ARGS_NAME)


def set_apart(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], *, lr: float) -> None:
    """Give some parameters of a new optimizer a learning rate of their own, each with the options of its group.

    Args:
        optimizer: an optimizer that has made no step yet.
        parameters: the parameters, wherever they stand among its groups.
        lr: their learning rate.
    """
    apart = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) in apart]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in apart]
        if own:
            optimizer.add_param_group({**group, "params": own, "lr": lr})


def _check_tasks(model: MultiTaskModel, split: EncodedSplit) -> None:
    specs = {spec.name: spec for spec in model.specs}
    for task in split.tasks:
        known = specs.get(task.spec.name)
        if known is None or known.labels != task.spec.labels or known.type != task.spec.type:
            found = (
                "the model has no such task" if known is None else "the model's task has other labels or another type"
            )
            raise SpecError(
                found,
                where=f"dataset {split.name!r}, task {task.spec.name!r}",
                mend="load the recipe with tasks=model.specs",
            )


def _check_best_metric(name: str | None, splits: Mapping[str, EncodedSplit]) -> None:
    """Find a wrong `metric_for_best_model` before the first epoch is trained, not after it."""
    if name is None or not splits:
        return
    specs = [task.spec for split in splits.values() for task in split.tasks]
    metrics = {spec.name: load_metric(HEADS.get(spec.type).metric_name(spec), scheme=spec.scheme) for spec in specs}
    known = [f"{task}_{key}" for task, metric in metrics.items() for key in (*metric.keys, "loss")]
    name, known = name.removeprefix("eval_"), ["average", *known]
    if name not in known:
        raise SpecError(f"metric_for_best_model is {name!r}", mend=near(name, known))
