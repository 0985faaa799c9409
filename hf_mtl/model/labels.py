"""Labels by name and by number, as data and users write them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import DataError, SpecError, one_of
from hf_mtl.model.targets import RUNNER_UP, Wanted


def label_name(value: Any) -> str:
    """Write a label value as label name: booleans as `true` and `false`, whole numbers without a fraction.

    Raises:
        DataError: the value is neither text, a boolean nor a whole number.

    Example:
        >>> label_name(True), label_name(2.0), label_name("no")
        ('true', '2', 'no')
    """
    if isinstance(value, str):
        return str(value)  # a numpy string is one, too
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, int | np.integer) or (isinstance(value, float | np.floating) and float(value).is_integer()):
        return str(int(value))
    raise DataError(f"{value!r} is not a label", mend="give a label as text or as a whole number")


def label_id(spec: TaskSpec, value: Any) -> int:
    """Return the position of a label given by name or, where no label has a number as its name, by its position.

    Raises:
        DataError: the value is not in the label set. Where labels are named by numbers a number is only ever a name:
            0 is not the first of the stars 1 to 5.

    Example:
        >>> spec = TaskSpec(name="topic", type="sequence_classification", labels=("sport", "world"))
        >>> label_id(spec, "world"), label_id(spec, 0)
        (1, 0)
    """
    name = label_name(value)
    index = spec.label2id.get(name)
    if index is not None:
        return index
    labels = spec.labels or ()
    if not isinstance(value, str | bool | np.bool_) and 0 <= int(value) < len(labels) and not _any_number(labels):
        return int(value)
    shown = one_of(labels[:12]) + (f" and {len(labels) - 12} more" if len(labels) > 12 else "")
    raise DataError(f"label {value!r} is not in the label set", mend=f"use one of {shown}")


def wanted_labels(spec: TaskSpec, logits: np.ndarray, wanted: Wanted) -> tuple[int, int | None]:
    """Return the label to explain and the one to compare it with, if any.

    Args:
        spec: the task.
        logits: `(num_labels,)`; without a wish the label of the highest is explained.
        wanted: what the user asks for.

    Raises:
        SpecError: there is no such label, or one is to be compared with itself.
    """
    ranked = np.argsort(-logits, kind="stable")
    label = int(ranked[0]) if wanted.label is None else known_label(spec, wanted.label)
    if wanted.over is None:
        return label, None
    if wanted.over == RUNNER_UP and RUNNER_UP not in spec.label2id:
        return label, next((int(other) for other in ranked if other != label), None)
    over = known_label(spec, wanted.over)
    if over == label:
        raise SpecError(
            f"target compares {wanted.over!r} with itself", where=f"task {spec.name!r}", mend="name two labels"
        )
    return label, over


def known_label(spec: TaskSpec, name: object) -> int:
    """Return the position of a label that an explanation names.

    Raises:
        SpecError: there is no such label.
    """
    try:
        return label_id(spec, name)
    except DataError as error:
        raise SpecError(f"target: {error.problem}", where=f"task {spec.name!r}", mend=error.mend) from None


def sorted_labels(names: Iterable[str]) -> tuple[str, ...]:
    """Return each name once: numbers in their order, anything else in the order of its letters.

    Example:
        >>> sorted_labels(["10", "9", "10"]), sorted_labels(["b", "a", "1"])
        (('9', '10'), ('1', 'a', 'b'))
    """
    distinct = sorted(set(names))
    return tuple(sorted(distinct, key=int) if are_numbers(distinct) else distinct)


def are_numbers(names: Iterable[str]) -> bool:
    """Tell whether all names are whole numbers, and so have an order that everybody knows."""
    return all(map(_is_number, names))


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


@lru_cache(maxsize=64)  # asked for every row, of the same few label sets
def _any_number(labels: tuple[str, ...]) -> bool:
    return any(map(_is_number, labels))
