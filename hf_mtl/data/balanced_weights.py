"""Class weights that the training rows call for, where a task says `class_weights: balanced`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.loading import RawSplit
from hf_mtl.data.recipe import TaskSource
from hf_mtl.errors import SpecError
from hf_mtl.registry import HEADS


def balanced(task: TaskSource, raw: Mapping[tuple[str, str], RawSplit]) -> TaskSource:
    """Put numbers in the place of `"balanced"`; other tasks stay as they are.

    Args:
        task: the task, with its labels.
        raw: the rows by dataset and split.

    Raises:
        SpecError: there are no training rows in memory to count.
    """
    if task.spec.class_weights != "balanced":
        return task
    rows = raw.get((task.dataset, "train"))
    if rows is None:
        raise SpecError(
            "class_weights is 'balanced', and there are no training rows to count, or they are streamed",
            where=f"task {task.spec.name!r}",
            mend="give class_weights as numbers, or leave them out",
        )
    values = (value for value in cast(Any, rows.dataset[task.label]) if value is not None)
    return replace(task, spec=replace(task.spec, class_weights=balanced_weights(task.spec, values)))


def balanced_weights(spec: TaskSpec, values: Iterable[Any]) -> tuple[float, ...]:
    """Return the weights that make the classes count alike.

    One label out of a set weighs `n / (k n_c)` for n labelled items (rows, or words), k labels that any of them has and
    n_c items of class c, as "balanced" does in scikit-learn (King and Zeng 2001, "Logistic Regression in Rare Events
    Data", https://doi.org/10.1093/oxfordjournals.pan.a004868). Where labels do not shut each other out it is the weight
    of the positives, negatives / positives among the rows that know. A label that no item has, or every item, weighs 1.

    Args:
        spec: the task.
        values: labels as the data has them, none of them `None`.

    Example:
        >>> spec = TaskSpec(name="topic", type="sequence_classification", labels=("sport", "world"))
        >>> balanced_weights(spec, ["sport", "sport", "sport", "world"])
        (0.6666666666666666, 2.0)
    """
    head, labels = HEADS.get(spec.type), spec.labels or ()
    if not head.exclusive:
        flags = np.array([head.encode(spec, value, None, 0) for value in values], dtype=float).reshape(-1, len(labels))
        positives, negatives = (flags == 1).sum(axis=0), (flags == 0).sum(axis=0)
        return tuple(
            float(no / yes) if no and yes else 1.0
            for yes, no in zip(positives.tolist(), negatives.tolist(), strict=True)
        )
    counts = Counter(label for value in values for label in head.describe(spec, value))
    total, present = sum(counts.values()), len(counts)
    return tuple(total / (present * counts[label]) if counts[label] else 1.0 for label in labels)
