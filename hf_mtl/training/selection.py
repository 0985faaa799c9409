"""Which model is the best, when to stop, which heads to freeze: what follows from an evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_mtl.data.preparation import EncodedSplit
from hf_mtl.data.recipe import near
from hf_mtl.errors import SpecError
from hf_mtl.evaluation.metrics import TaskMetric, load_metric
from hf_mtl.evaluation.scoring import counted_tasks
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import HEADS
from hf_mtl.training.arguments import RELATIVE_GAIN, MultiTaskTrainingArguments
from hf_mtl.training.optimization import head_parameters

logger = logging.getLogger(__name__)


def relative_gain(scores: Mapping[str, float], single: Mapping[str, float]) -> float:
    """Return the mean over tasks of what they gained over their single-task scores, in per cent of those: delta-m.

    `100 / T * sum_t (scores_t - single_t) / single_t`, where more is better for every metric (Maninis et al. 2019,
    Attentive Single-Tasking of Multiple Tasks, https://arxiv.org/abs/1904.08918). A NaN counts as 0, as in the average.

    Args:
        scores: primary metric per task.
        single: the same of a model that was trained on the task alone, above 0, for at least these tasks.

    Example:
        >>> relative_gain({"topic": 0.75, "stars": 0.375}, {"topic": 0.5, "stars": 0.5})
        12.5
    """
    gains = [((0.0 if math.isnan(score) else score) - single[task]) / single[task] for task, score in scores.items()]
    return 100.0 * math.fsum(gains) / len(gains)


def check_selection(args: MultiTaskTrainingArguments, splits: Mapping[str, EncodedSplit]) -> None:
    """Find what an evaluation could not answer before the first epoch is trained, not after it.

    Args:
        args: `metric_for_best_model` and `single_task_scores`.
        splits: the validation splits by dataset; nothing is checked where there are none.

    Raises:
        SpecError: the metric is not one of the evaluation's, or the single-task scores are not those of its tasks.
    """
    if not splits:
        return
    metrics = task_metrics(splits)
    if args.single_task_scores is not None:
        for task in args.single_task_scores:
            if task not in metrics:
                raise SpecError(f"single_task_scores has {task!r}", mend=near(task, list(metrics)))
        for task in counted_tasks([task.spec for split in splits.values() for task in split.tasks]):
            if task not in args.single_task_scores:
                raise SpecError(f"single_task_scores lacks {task!r}", mend="give the score of every task")
    name = args.metric_for_best_model
    if name is not None:
        known = [f"{task}_{key}" for task, metric in metrics.items() for key in (*metric.keys, "loss")]
        name, known = name.removeprefix("eval_"), ["average", RELATIVE_GAIN, *known]
        if name not in known:
            raise SpecError(f"metric_for_best_model is {name!r}", mend=near(name, known))


def task_metrics(splits: Mapping[str, EncodedSplit]) -> dict[str, TaskMetric]:
    """Return the metric of every task that has labels in the splits."""
    specs = [task.spec for split in splits.values() for task in split.tasks]
    return {spec.name: load_metric(HEADS.get(spec.type).metric_name(spec), scheme=spec.scheme) for spec in specs}


class EarlyStopping(EarlyStoppingCallback):
    """transformers' early stopping, which a resumed run continues where it was: at its end, if it had stopped.

    Args:
        patience: evaluations in a row without a better `metric_for_best_model` after which training ends.
        threshold: by how much the metric must be better to count.
    """

    def __init__(self, patience: int, threshold: float = 0.0) -> None:
        super().__init__(early_stopping_patience=patience, early_stopping_threshold=threshold)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if state.global_step == 0:
            self.early_stopping_patience_counter = 0
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    def state(self) -> dict[str, Any]:
        """Return what transformers could make the callback of; its own resuming needs an argument to be set."""
        return {
            "args": {"patience": self.early_stopping_patience, "threshold": self.early_stopping_threshold},
            "attributes": self.state_dict(),
        }

    def state_dict(self) -> dict[str, int]:
        """Return the number of evaluations in a row without a better metric."""
        return {"early_stopping_patience_counter": self.early_stopping_patience_counter}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting."""
        self.early_stopping_patience_counter = state["early_stopping_patience_counter"]


class PlateauFreezing(TrainerCallback):
    """Freezes the head of a task whose primary metric no longer gets better; its loss still trains the encoder.

    A frozen head's parameters do not change at all: AdamW would move them without a gradient, too, by weight decay and
    momentum, so they have none when the optimizer steps. They still ask for one, and data parallelism sees no change.

    Args:
        model: the model in training.
        primaries: per task the key of its primary metric, of which more is better.
        patience: evaluations in a row without a better value after which a head is frozen, for the rest of training.
    """

    def __init__(self, model: MultiTaskModel, primaries: Mapping[str, str], *, patience: int) -> None:
        self.model = model
        self.primaries = dict(primaries)
        self.patience = patience
        self.best: dict[str, float] = {}
        self.waited: dict[str, int] = {}
        self._hooks: dict[str, list[RemovableHandle]] = {}

    @property
    def frozen(self) -> tuple[str, ...]:
        """The tasks whose heads are frozen, in the order in which that happened."""
        return tuple(self._hooks)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self.load_state_dict({"best": {}, "waited": {}, "frozen": []})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        for task, key in self.primaries.items():
            value = (metrics or {}).get(f"eval_{task}_{key}")
            if value is None or task in self._hooks:
                continue
            better = value > self.best.get(task, -math.inf)
            self.waited[task] = 0 if better else self.waited.get(task, 0) + 1
            if better:
                self.best[task] = value
            elif self.waited[task] >= self.patience:
                self._freeze(task)
                logger.info("Step %d: the head of task %r is frozen from now on", state.global_step, task)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for task in self._hooks:
            for parameter in head_parameters(self.model, task):
                parameter.grad = None

    def _freeze(self, task: str) -> None:
        # Gradients of zero, so that they do not count when the norm of all gradients is clipped.
        own = head_parameters(self.model, task)
        self._hooks[task] = [p.register_hook(torch.zeros_like) for p in own if p.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        """Return best values, evaluations waited, and the frozen tasks."""
        return {"best": dict(self.best), "waited": dict(self.waited), "frozen": list(self._hooks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, whatever had been frozen before."""
        for hook in (hook for hooks in self._hooks.values() for hook in hooks):
            hook.remove()
        self.best, self.waited, self._hooks = dict(state["best"]), dict(state["waited"]), {}
        for task in state["frozen"]:
            self._freeze(task)


def selection_callbacks(
    model: MultiTaskModel,
    args: MultiTaskTrainingArguments,
    splits: Mapping[str, EncodedSplit],
    *,
    sharded: bool = False,
) -> dict[str, EarlyStopping | PlateauFreezing]:
    """Return the callbacks that the arguments ask for, by the name of their state in a checkpoint.

    Args:
        model: the model.
        args: `early_stopping_patience`, `early_stopping_threshold` and `head_patience`.
        splits: the validation splits by dataset.
        sharded: whether the model's parameters are divided among the processes.

    Raises:
        SpecError: heads that are stuck shall be frozen, and their parameters are sharded.
    """
    callbacks: dict[str, EarlyStopping | PlateauFreezing] = {}
    if args.early_stopping_patience is not None:
        callbacks["early_stopping"] = EarlyStopping(args.early_stopping_patience, args.early_stopping_threshold)
    if args.head_patience is not None:
        if sharded:
            raise SpecError(
                f"head_patience is {args.head_patience}, which needs whole parameters, "
                "and FSDP or DeepSpeed shards them",
                mend="leave head_patience out, or train without sharding",
            )
        primaries = {task: metric.primary for task, metric in task_metrics(splits).items()}
        callbacks["plateau_freezing"] = PlateauFreezing(model, primaries, patience=args.head_patience)
    return callbacks
