"""`TaskHead`: everything that differs between task types lives in one subclass of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import DataError, SpecError, one_of

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Words:
    """The words of one text and where the encoder sees them.

    Args:
        text: the text the character offsets point into.
        spans: character offsets `[start, end)` per word, shape `(num_words, 2)`.
        first_tokens: position of each word's first token, -1 where truncation cut the word off, shape `(num_words,)`.
        given: whether the user gave the words as tokens, rather than a text that was split.
    """

    text: str
    spans: np.ndarray
    first_tokens: np.ndarray
    given: bool = False


class TaskHead(nn.Module, ABC):
    """A head: label encoding, logits, loss, answers and metrics of one task type.

    The class methods need no weights: the data side uses them before a model exists.

    Args:
        spec: the task; its labels are known.
        hidden_size: size of the features the head reads.
        dropout: dropout before the output layer, used where the spec names none.

    Raises:
        SpecError: the spec cannot work for this type.
    """

    pooled: ClassVar[bool] = True
    """Whether the head reads the pooled output `(rows, hidden_size)`; if not, the hidden states of every token."""

    stored_as: ClassVar[str | list[str]]
    """Arrow type of an encoded label, or a list of that one type where a label is a list."""

    def __init__(self, spec: TaskSpec, hidden_size: int, *, dropout: float) -> None:
        super().__init__()
        self.validate_spec(spec)
        self.spec = spec
        self.dropout = nn.Dropout(dropout if spec.dropout is None else spec.dropout)
        self.output = nn.Linear(hidden_size, spec.num_labels)
        # A plain attribute, not a buffer: it is rebuilt from the spec and never part of the weights.
        self._class_weights = spec.class_weights

    # ------------------------------------------------------------------ specs and labels

    @classmethod
    def validate_spec(cls, spec: TaskSpec) -> None:
        """Check what the type asks of a complete spec.

        Raises:
            SpecError: labels are missing, or an option does not belong to this type.
        """

    @classmethod
    @abstractmethod
    def infer_labels(cls, values: Iterable[Any]) -> tuple[str, ...] | None:
        """Read the label set from label values of training data (`None` values are unlabelled rows)."""

    @classmethod
    @abstractmethod
    def encode(cls, spec: TaskSpec, value: Any, words: Words | None, num_tokens: int) -> Any:
        """Turn one row's label into numbers.

        Args:
            spec: the task with its labels.
            value: the label as the data has it, never `None`.
            words: the row's words; `None` where the row was given as text.
            num_tokens: number of tokens of the row, special tokens included.

        Returns:
            An int, a float or a list of them, for `collate`.

        Raises:
            DataError: the value is not in the label set, or not of the kind this type needs.
        """

    @classmethod
    @abstractmethod
    def collate(cls, spec: TaskSpec, values: Sequence[Any], seq_len: int) -> Tensor:
        """Make the label tensor of a batch.

        Args:
            spec: the task with its labels.
            values: one encoded label per row, `None` where the row has none.
            seq_len: length the batch is padded to, in tokens.

        Returns:
            Labels over the whole batch, the ignore value (-100 or NaN) where a row has none.
        """

    @classmethod
    @abstractmethod
    def labelled_rows(cls, labels: Tensor) -> Tensor:
        """Return a bool per row, shape `(batch_size,)`: whether the row has any label."""

    @classmethod
    def describe(cls, spec: TaskSpec, value: Any) -> list[str]:
        """Name the labels one row's label value holds, for label distributions; empty for numbers.

        Raises:
            DataError: the value is not a label of this type.
        """
        return []

    # ------------------------------------------------------------------ logits and loss

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits.

        Args:
            features: `(rows, hidden_size)`, or `(rows, seq_len, hidden_size)` for token-level heads.

        Returns:
            Logits `(rows, num_labels)`, or `(rows, seq_len, num_labels)`.
        """
        return self.output(self.dropout(features))

    @abstractmethod
    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the losses of all labelled items, a scalar in float32."""

    @abstractmethod
    def num_items(self, labels: Tensor) -> Tensor:
        """Return what `loss_sum` is divided by: labelled items, or the sum of their class weights; a float32 scalar."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over the labelled items; 0 where there are none, or where all of them weigh nothing."""
        items = self.num_items(labels)
        # Items of weight 0 still have a smoothing loss, which must not be divided by almost nothing.
        return self.loss_sum(logits, labels) * (items > 0) / items.clamp(min=torch.finfo(torch.float32).tiny)

    # ------------------------------------------------------------------ answers and metrics

    @classmethod
    @abstractmethod
    def decode(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None) -> dict[str, Any]:
        """Turn one row's logits (float32, padding cut off) into the answer a user reads: plain JSON values."""

    @classmethod
    @abstractmethod
    def summary(cls, spec: TaskSpec, answer: dict[str, Any]) -> list[tuple[str, float | None]]:
        """Return an answer as lines for a table: what was answered, and how sure; at least one line."""

    @classmethod
    @abstractmethod
    def prediction(cls, spec: TaskSpec, answer: dict[str, Any]) -> Any:
        """Return the part of an answer that metrics compare with `reference`."""

    @classmethod
    @abstractmethod
    def reference(cls, spec: TaskSpec, value: Any) -> Any:
        """Return a row's gold label in the form that metrics compare with `prediction`."""

    @classmethod
    def confidence(cls, spec: TaskSpec, answer: dict[str, Any]) -> float:
        """Return how sure the answer is, in [0, 1]; used to list the most confident mistakes first."""
        return 1.0

    @classmethod
    @abstractmethod
    def metric_name(cls, spec: TaskSpec) -> str:
        """Return the name of this task's metric in `hf_mtl.evaluation.metrics`."""

    def _weights(self, like: Tensor) -> Tensor | None:
        if self._class_weights is None:
            return None
        return torch.tensor(self._class_weights, dtype=torch.float32, device=like.device)


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


def as_list(value: Any, what: str) -> list[Any]:
    """Return a list given as list, tuple or array.

    Raises:
        DataError: the value is of another kind.
    """
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return list(value)
    raise DataError(f"{value!r} is not a list of {what}", mend=f"give a list of {what}")


def sorted_labels(names: Iterable[str]) -> tuple[str, ...]:
    """Return each name once: numbers in their order, anything else in the order of its letters.

    Example:
        >>> sorted_labels(["10", "9", "10"]), sorted_labels(["b", "a", "1"])
        (('9', '10'), ('1', 'a', 'b'))
    """
    distinct = sorted(set(names))
    return tuple(sorted(distinct, key=int) if all(map(_is_number, distinct)) else distinct)


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


@lru_cache(maxsize=64)  # asked for every row, of the same few label sets
def _any_number(labels: tuple[str, ...]) -> bool:
    return any(map(_is_number, labels))


def require_labels(spec: TaskSpec, *, at_least: int) -> None:
    """Check that a spec has its labels.

    Raises:
        SpecError: there are fewer labels than the type needs.
    """
    count = len(spec.labels or ())
    if count < at_least:
        found = f"there is {count or 'no'} label" if count < 2 else f"there are {count} labels"
        raise SpecError(
            f"{found}, {spec.type} needs at least {at_least}",
            where=f"task {spec.name!r}",
            mend="give data with more labels, or name them in labels",
        )


def refuse(spec: TaskSpec, *keys: str) -> None:
    """Check that options which mean nothing for this type are at their defaults.

    Raises:
        SpecError: one of them is set.
    """
    for key in keys:
        value = getattr(spec, key)
        if value:
            raise SpecError(
                f"{key} is {value!r}, but {spec.type} has no {key}",
                where=f"task {spec.name!r}",
                mend=f"leave {key} out",
            )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def cross_entropy_sum(logits: Tensor, labels: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
    """Return the sum of (class-weighted, label-smoothed) cross-entropies over labels that are not -100.

    Args:
        logits: `(items, num_labels)`.
        labels: `(items,)`.
        weight: `(num_labels,)` or `None`.
        label_smoothing: in [0, 1).
    """
    return F.cross_entropy(
        logits.float(),
        labels,
        weight,
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=label_smoothing,
    )


def weighted_count(labels: Tensor, weight: Tensor | None) -> Tensor:
    """Return the number of labels that are not -100, or the sum of their class weights; the divisor of a mean."""
    present = labels != IGNORE_INDEX
    if weight is None:
        return present.sum().float()
    return (weight[labels.clamp(min=0)] * present).sum()
