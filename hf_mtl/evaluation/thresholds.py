"""Thresholds of labels: the probability from which on each is answered, chosen on validation rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.preparation import EncodedSplit
from hf_mtl.errors import DataError
from hf_mtl.evaluation.prediction import RowLogits, collator_for, predict_batches, row_batches
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import HEADS


def best_threshold(scores: np.ndarray, gold: np.ndarray) -> float:
    """Return the threshold with the highest F1 of one label; the nearest to 1/2 of those that are as good.

    `F1(t) = 2 TP(t) / (rows answered from t on + rows with the label)`. Of probabilities that are right, the best
    threshold is half of the F1 that it reaches: Lipton, Elkan and Naryanaswamy 2014, "Optimal Thresholding of
    Classifiers to Maximize F1 Measure", https://arxiv.org/abs/1402.1892.

    Only the places between two scores that follow one another can differ, so n rows take one sort and one pass. Where
    no row has the label, or all do, nothing can be chosen: 1/2.

    Args:
        scores: the label's probability in each row, `(num_rows,)`.
        gold: 1 where the row has the label, 0 where not, `(num_rows,)`.

    Example:
        >>> best_threshold(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0, 0, 1, 1]))
        0.25
    """
    positives = int(gold.sum())
    if positives in (0, len(gold)):
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(gold[order])
    # Answering the k highest: possible where the next score is lower.
    last = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))
    f1 = 2 * hits[last] / (last + 1 + positives)
    upper, lower = ranked[last], np.append(ranked[1:], 0.0)[last]
    # At 1/2 itself where that lies between the two scores. A threshold is above `lower`, and no higher than `upper`.
    places = np.where((lower < 0.5) & (upper >= 0.5), 0.5, (upper + lower) / 2)
    places = np.where(places > lower, places, upper)
    best = np.flatnonzero(f1 == f1.max())
    chosen = float(places[best[np.abs(places[best] - 0.5).argmin()]])
    return min(chosen, float(np.nextafter(1.0, 0.0)))


def tuned(
    model: MultiTaskModel, tokenizer: Any, splits: Mapping[str, EncodedSplit], *, batch_size: int = 64
) -> tuple[TaskSpec, ...]:
    """Return the model's tasks with the thresholds found for those that ask for it (`tune_thresholds`).

    Args:
        model: the trained model.
        tokenizer: its tokenizer.
        splits: validation rows by dataset; one encoder pass over those of these tasks.
        batch_size: rows a batch may have.

    Raises:
        DataError: there are no validation rows of a task.
    """
    return tuple(
        _tuned(model, tokenizer, spec, splits, batch_size) if spec.tune_thresholds else spec for spec in model.specs
    )


def check_tunable(specs: tuple[TaskSpec, ...], splits: Mapping[str, EncodedSplit]) -> None:
    """Check, before anything is trained, that there are labelled validation rows of every task to be tuned.

    Raises:
        DataError: there are none.
    """
    for spec in specs:
        if spec.tune_thresholds and not any(
            task.spec.name == spec.name and len(rows.labelled(spec.name))
            for rows in splits.values()
            for task in rows.tasks
        ):
            raise DataError(
                "tune_thresholds is set, and there are no validation rows with labels",
                where=f"task {spec.name!r}",
                mend="give the dataset validation rows, or leave tune_thresholds out",
            )


def _tuned(
    model: MultiTaskModel, tokenizer: Any, spec: TaskSpec, splits: Mapping[str, EncodedSplit], batch_size: int
) -> TaskSpec:
    check_tunable((spec,), splits)
    head = HEADS.get(spec.type)
    scores: list[np.ndarray] = []
    gold: list[list[float]] = []
    for rows in splits.values():
        task = next((task for task in rows.tasks if task.spec.name == spec.name), None)
        if task is None:
            continue
        values, layout = rows.gold(task), rows.layout()
        merged = RowLogits(model, layout)
        batches = row_batches(layout, rows.lengths, batch_size=batch_size, max_tokens=16384)
        collator = collator_for(model, tokenizer, [spec.name])
        for predicted in predict_batches(model, collator, rows.features, batches, tasks=[spec.name]):
            for row, logits in merged.take(predicted):
                if values[row] is not None:
                    scores.append(head.probabilities(spec, logits[spec.name]))
                    gold.append([np.nan if own is None else own for own in head.encode(spec, values[row], None, 0)])
    found, known = np.stack(scores), np.array(gold, dtype=float)
    places = range(spec.num_labels)
    own = [~np.isnan(known[:, place]) for place in places]
    thresholds = tuple(best_threshold(found[own[place], place], known[own[place], place]) for place in places)
    return replace(spec, thresholds=thresholds, tune_thresholds=False)


def set_thresholds(model: MultiTaskModel, specs: tuple[TaskSpec, ...]) -> None:
    """Give a model the thresholds of other specs of its tasks; weights and all else stay as they are."""
    model.config.task_specs = model.specs = specs
    for spec in specs:
        model.head(spec.name).spec = spec
