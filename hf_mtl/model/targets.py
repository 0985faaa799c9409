"""What an explanation is about: a linear function of one row's logits, which the task's head chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from hf_mtl.errors import SpecError, one_of

RUNNER_UP = "runner-up"
"""As a target: the predicted label rather than the one that comes second."""

_KEYS = ("label", "over", "word", "span")


@dataclass(frozen=True)
class Wanted:
    """What a user asks to have explained.

    Args:
        label: a label; the predicted one where not given.
        over: the label it is to be compared with, or `RUNNER_UP`.
        span: words `[first, end)` of a tagging task; the head chooses where not given.
    """

    label: str | None = None
    over: str | None = None
    span: tuple[int, int] | None = None

    @classmethod
    def read(cls, value: Any) -> Wanted:
        """Read a target as users write it.

        Args:
            value: `None`, a label, `"runner-up"`, a pair of labels (the first rather than the second), the index of a
                word, a pair `(first, end)` of word indices, or a mapping with `label`, `over`, `word` or `span`.

        Raises:
            SpecError: it is none of these.

        Example:
            >>> Wanted.read(("world", "sport"))
            Wanted(label='world', over='sport', span=None)
            >>> Wanted.read({"word": 3, "label": "VERB"})
            Wanted(label='VERB', over=None, span=(3, 4))
        """
        if value is None:
            return cls()
        if isinstance(value, str):
            return cls(over=RUNNER_UP) if value == RUNNER_UP else cls(label=value)
        if isinstance(value, Mapping):
            return cls._of_mapping(cast(Mapping[str, Any], value))
        if _is_index(value):
            return cls(span=_span(value, (value, int(value) + 1)))
        if isinstance(value, tuple | list) and [*map(type, cast(list[Any], value))] == [str, str]:
            first, second = cast(list[str], value)
            return cls(label=first, over=second)
        return cls(span=_span(value, value))

    @classmethod
    def _of_mapping(cls, value: Mapping[str, Any]) -> Wanted:
        unknown = [key for key in value if key not in _KEYS]
        if unknown or ("word" in value and "span" in value):
            raise SpecError(f"target is {dict(value)!r}", mend=f"use the keys {one_of(_KEYS)}, either word or span")
        span = None
        if value.get("word") is not None:
            span = cls.read(value["word"]).span
        if value.get("span") is not None:
            span = _span(value, value["span"])
        return cls(label=value.get("label"), over=value.get("over"), span=span)

    def without_span(self, task: str) -> Wanted:
        """Return this request if it names no words.

        Raises:
            SpecError: it names words, of which a task that answers for the whole text has none.
        """
        if self.span is not None:
            raise SpecError(
                f"target names word {self.span[0]}, but the task answers for the whole text",
                where=f"task {task!r}",
                mend="name a label, or leave target out",
            )
        return self


@dataclass(frozen=True, eq=False)
class Target:
    """The score that is explained: the mean over some positions of `sum_l weights[position, l] * logits[position, l]`.

    Args:
        name: what it is called, such as `positive`, `positive rather than negative`, `city: 'New York'`.
        labels: index of the label at each position, whose probability is reported.
        weights: `(positions, num_labels)`; one position for tasks that answer for the whole text.
        words: indices of the words the positions stand for; `None` for tasks that answer for the whole text.
        spans: tokens `[start, end)` of each label, for tasks whose labels are parts of the row: the logit of a label is
            the mean over its tokens, of the one logit that each has.
        names: names of these labels.
    """

    name: str
    labels: tuple[int, ...]
    weights: np.ndarray
    words: tuple[int, ...] | None = None
    spans: tuple[tuple[int, int], ...] | None = None
    names: tuple[str, ...] | None = None

    def score(self, logits: Tensor) -> Tensor:
        """Return the score per row.

        Args:
            logits: `(rows, positions, num_labels)`.

        Returns:
            `(rows,)`.
        """
        weights = torch.as_tensor(self.weights, dtype=logits.dtype, device=logits.device)
        return (logits * weights).sum(dim=-1).mean(dim=-1)

    def probability(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the mean probability of the target's labels.

        Args:
            probabilities: `(rows, positions, num_labels)`.

        Returns:
            `(rows,)`.
        """
        return probabilities[:, np.arange(len(self.labels)), self.labels].mean(axis=1)


def contrast(num_labels: int, label: int, over: int | None = None) -> np.ndarray:
    """Return weights of a label's logit against another's, or against the mean of all others.

    Such weights sum to 0, as probabilities do not change when all logits rise alike.

    Returns:
        `(num_labels,)`.

    Example:
        >>> contrast(3, 0).tolist(), contrast(3, 0, over=2).tolist()
        ([1.0, -0.5, -0.5], [1.0, 0.0, -1.0])
    """
    weights = np.zeros(num_labels)
    if over is not None:
        weights[over] = -1.0
    elif num_labels > 1:
        weights[:] = -1.0 / (num_labels - 1)
    weights[label] = 1.0
    return weights


def contrast_name(label: str, over: str | None) -> str:
    """Name a contrast.

    Example:
        >>> contrast_name("world", None), contrast_name("world", "sport")
        ('world', 'world rather than sport')
    """
    return label if over is None else f"{label} rather than {over}"


def _is_index(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _span(given: Any, value: Any) -> tuple[int, int]:
    pair = list(cast(Any, value)) if isinstance(value, tuple | list) else []
    if len(pair) == 2 and all(map(_is_index, pair)) and 0 <= pair[0] < pair[1]:
        return int(pair[0]), int(pair[1])
    raise SpecError(
        f"target is {given!r}",
        mend="name a label, a pair of labels, the index of a word, or the first and the end of a span of words",
    )
