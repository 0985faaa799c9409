"""How good a model is: every task's metrics over labelled splits, from the answers that users get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_mtl.configuration import TaskSpec, select_tasks
from hf_mtl.data.masking import masked_tasks, probability_of
from hf_mtl.data.preparation import EncodedSplit
from hf_mtl.data.recipe import TaskSource
from hf_mtl.data.windows import Layout
from hf_mtl.evaluation.intervals import bootstrap_intervals
from hf_mtl.evaluation.metrics import TaskMetric, average, load_metric
from hf_mtl.evaluation.mistakes import Judged, mistakes
from hf_mtl.evaluation.prediction import Answers, RowLogits, collator_for, predict_batches, row_batches
from hf_mtl.model.heads.base import TaskHead
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import HEADS

MOST_LOGITS = 2**25
"""Logits of masked tokens that a batch may have, 128 MiB."""


@dataclass(frozen=True)
class TaskScores:
    """One task's labelled rows with their answers, and what they are scored with.

    Args:
        spec: the task.
        metric: its metric.
        rows: the labelled rows: number, text, prediction, reference, confidence.
        loss: mean loss over the labelled items, as in training; NaN where it was not computed.
    """

    spec: TaskSpec
    metric: TaskMetric
    rows: list[Judged]
    loss: float

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics' values by key."""
        values = self.metric.compute(predictions=self._predictions, references=self._references)
        return dict(values or {})

    @property
    def statistics(self) -> np.ndarray:
        """What the metrics are computed from, row by row: `(num_rows, k)`, see `TaskMetric.statistics`."""
        return self.metric.statistics(self._predictions, self._references)

    def intervals(self, *, resamples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Return a bootstrap 95% interval per metric."""
        return bootstrap_intervals(self.metric, self._predictions, self._references, resamples=resamples, seed=seed)

    def mistakes(self, *, limit: int = 50) -> dict[str, Any]:
        """Return the most confident mistakes and the confusion counts, as plain JSON values."""
        return mistakes(self.metric, self.rows, labels=self.spec.labels, limit=limit)

    @property
    def _predictions(self) -> list[Any]:
        return [row.prediction for row in self.rows]

    @property
    def _references(self) -> list[Any]:
        return [row.reference for row in self.rows]


@dataclass(frozen=True)
class Scores:
    """The scores of all tasks, in the order of the specs."""

    tasks: dict[str, TaskScores]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Task -> metric -> value."""
        return {name: task.metrics for name, task in self.tasks.items()}

    def average(self, metrics: Mapping[str, Mapping[str, float]] | None = None) -> float:
        """Return the mean of the tasks' primary metrics; a NaN counts as 0.

        Auxiliary tasks, such as masked language modeling, are no part of it unless there are no others.
        """
        primaries = {name: self.tasks[name].metric.primary for name in self.counted}
        found = self.metrics if metrics is None else metrics
        return average({name: found[name] for name in primaries}, primaries)

    @property
    def counted(self) -> list[str]:
        """The tasks that the average is taken over."""
        return counted_tasks([task.spec for task in self.tasks.values()])


def counted_tasks(specs: Sequence[TaskSpec]) -> list[str]:
    """Return the names of the tasks that count: all but the auxiliary ones, which count where there are no others."""
    main = [spec.name for spec in specs if not HEADS.get(spec.type).auxiliary]
    return main or [spec.name for spec in specs]


Gather = Callable[[list[Any]], list[Any]]
"""Joins the lists of all processes, the same on each of them."""


def score(
    model: MultiTaskModel,
    tokenizer: Any,
    splits: Mapping[str, EncodedSplit],
    *,
    batch_size: int = 64,
    max_tokens: int = 16384,
    process: tuple[int, int] = (0, 1),
    gather: Gather | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Scores:
    """Answer labelled splits and score the answers.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        splits: the splits by dataset; rows without a label for a task are left out of its scores.
        batch_size: rows a batch may have.
        max_tokens: tokens a batch may have, padding included.
        process: this process's number and the number of processes, which share the batches.
        gather: joins what the processes found.
        on_batch: called after each batch with its number and the number of batches.

    Returns:
        Scores of every task of the model that has labels in the splits.
    """
    judged: dict[str, list[Judged]] = {}
    sums: dict[str, np.ndarray] = {}
    layouts = {name: split.layout() for name, split in splits.items()}
    plans = {
        name: row_batches(
            layouts[name],
            split.lengths,
            batch_size=batch_size,
            max_tokens=_fitting(model, split, max_tokens),
            process=process,
        )
        for name, split in splits.items()
    }
    total, done = sum(map(len, plans.values())), 0
    for name, split in splits.items():
        names = [task.spec.name for task in split.tasks]
        layout, merged = layouts[name], RowLogits(model, layouts[name])
        gold = {task.spec.name: split.gold(task) for task in split.tasks} if layout.windows.max(initial=1) > 1 else {}
        answers: list[tuple[int, dict[str, tuple[Any, float]]]] = []
        losses = {task: np.zeros(2) for task in names}
        collator = collator_for(model, tokenizer, names)
        for predicted in predict_batches(model, collator, split.features, plans[name], tasks=names):
            in_windows = layout.windows[layout.rows[predicted.rows[0]]] > 1  # then so are all rows of the batch
            complete = list(merged.take(predicted))
            answers.extend((row, _scored(split, found)) for row, found in merged.answers(complete))
            for row, logits in complete if in_windows else ():
                for task in names:
                    losses[task] += _row_loss(model.head(task), logits[task], gold[task][row], layout, row)
            for task, rows in predicted.batch.get("rows", {}).items() if not in_windows else ():
                labels = predicted.batch["labels"][task]
                losses[task] += _loss(model.head(task), predicted.logits[task], labels, rows)
            done += 1
            if on_batch is not None:
                on_batch(done, total)
        if gather is not None:
            answers = gather(answers)
            losses = {task: np.sum(gather([pair]), axis=0) for task, pair in losses.items()}
        by_row = dict(answers)
        for task in split.tasks:
            judged[task.spec.name] = _judge(split, task, by_row)
            sums[task.spec.name] = losses[task.spec.name]
    return Scores(
        {spec.name: _scores(spec, judged[spec.name], sums[spec.name]) for spec in model.specs if spec.name in judged}
    )


def _scores(spec: TaskSpec, rows: list[Judged], loss: np.ndarray) -> TaskScores:
    metric = load_metric(HEADS.get(spec.type).metric_name(spec), scheme=spec.scheme)
    return TaskScores(spec, metric, rows, float(loss[0] / loss[1]) if loss[1] else float("nan"))


def _loss(head: TaskHead, logits: np.ndarray, labels: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
    """Return the sum of the losses of a batch's labelled items, and what it is divided by."""
    own, wanted = torch.from_numpy(logits)[rows], labels[rows]
    return np.array([float(head.loss_sum(own, wanted)), float(head.num_items(head.spec, wanted))])


def _row_loss(head: TaskHead, logits: np.ndarray, gold: Any, layout: Layout, row: int) -> np.ndarray:
    """Return the same of one row that was read in windows, from its merged logits, so that it counts once."""
    if gold is None:
        return np.zeros(2)
    label = head.encode(head.spec, gold, layout.words_for(head.spec, row), len(logits))
    labels = head.collate(head.spec, [label], len(logits))
    return _loss(head, logits[None], labels, torch.zeros(1, dtype=torch.int64))


def _fitting(model: MultiTaskModel, split: EncodedSplit, max_tokens: int) -> int:
    """Return how many tokens a batch may have, so that the logits of masked tokens stay within `MOST_LOGITS`."""
    for spec in masked_tasks([task.spec for task in split.tasks]):
        per_token = probability_of(spec) * int(model.config.get_text_config().vocab_size)
        max_tokens = min(max_tokens, max(1, int(MOST_LOGITS / per_token)))
    return max_tokens


def _scored(split: EncodedSplit, answers: Answers) -> dict[str, tuple[Any, float]]:
    """Return what is scored of a row's answers: the prediction of each task, and how sure it is."""
    heads = {task.spec.name: (task.spec, HEADS.get(task.spec.type)) for task in split.tasks}
    return {
        name: (head.prediction(spec, answers[name]), head.confidence(spec, answers[name]))
        for name, (spec, head) in heads.items()
    }


def _judge(
    split: EncodedSplit, task: TaskSource, answers: Mapping[int, Mapping[str, tuple[Any, float]]]
) -> list[Judged]:
    spec, head = task.spec, HEADS.get(task.spec.type)
    gold = split.gold(task)
    labelled: list[int] = split.labelled(spec.name).tolist()
    texts = [inputs.text for inputs in split.inputs()]
    return [
        Judged(
            row=row,
            text=texts[row],
            prediction=answers[row][spec.name][0],
            reference=head.reference(spec, gold[row]),
            confidence=answers[row][spec.name][1],
        )
        for row in labelled
    ]


def tasks_without_labels(model: MultiTaskModel, scores: Scores, tasks: Sequence[str] | None = None) -> list[str]:
    """Return the model's tasks that the splits held no labels for."""
    return [spec.name for spec in select_tasks(model.specs, tasks) if spec.name not in scores.tasks]
