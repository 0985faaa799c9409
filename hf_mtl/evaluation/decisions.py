"""The choices that an answer is made of, for every type of task whose answers have probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import SpecError
from hf_mtl.model.heads.base import TaskHead, Words

NOTHING_LESS = 2.0**-54
"""Probability of what is as good as shut out: 1 less the largest number below it is twice as much."""


@dataclass(frozen=True)
class Decisions:
    """Choices of one label out of several, each with the probabilities it was made by.

    A classified text is one decision, a tagged text one for each word, and a text with any number of labels one for
    each label, between absent and present.

    Args:
        probabilities: `(num_decisions, num_labels)`, rows sum to 1.
        chosen: the label that was answered, `(num_decisions,)`.
        gold: the right label, `(num_decisions,)`; `None` where nobody knows.
    """

    probabilities: np.ndarray
    chosen: np.ndarray
    gold: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.chosen)

    @classmethod
    def joined(cls, parts: Sequence[Decisions]) -> Decisions:
        """Return the decisions of several rows of one task, whose right labels are known."""
        golds = [part.gold for part in parts if part.gold is not None]
        return cls(
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate([part.chosen for part in parts]),
            np.concatenate(golds),
        )


@dataclass(frozen=True)
class Decided:
    """A row's answer to a task.

    Args:
        label: the answer as the data would hold it.
        decisions: what it was made of; those with a right label alone, where right labels are given.
        whole: whether the answer is about all of the row: not where words were cut off, or there are none; of a row
            with choices, about all of these.
    """

    label: Any
    decisions: Decisions
    whole: bool


def has_confidence(head: type[TaskHead]) -> bool:
    """Tell whether answers of a type come with a confidence: numbers do not.

    Example:
        >>> from hf_mtl.registry import HEADS
        >>> has_confidence(HEADS.get("token_classification")), has_confidence(HEADS.get("regression"))
        (True, False)
    """
    own: Any = head.confidence
    return head.measure == "probability" or own.__func__ is not cast(Any, TaskHead.confidence).__func__


def decide(
    head: type[TaskHead], spec: TaskSpec, logits: np.ndarray, words: Words | None, gold: Any = None
) -> Decided | None:
    """Return what a row is answered, and how sure each choice in it is.

    The choices are those that `encode` makes of the answer, which need not be the most probable ones of a head that
    decides otherwise, such as by the best path or by a threshold. Where labels are no choices with a probability each,
    or are a row's own, the answer as a whole is one choice, between wrong and right, with the confidence that the head
    gives it.

    Args:
        head: the task's head.
        spec: the task.
        logits: one row's logits, padding cut off, as `decode` takes them.
        words: the row's words, for token-level heads.
        gold: the row's label as the data has it; `None` where it has none.

    Returns:
        The answer; `None` where the row's words were not given as tokens, and so can have no labels.

    Raises:
        SpecError: the type's answers have no confidence.
        DataError: the label cannot be used.
    """
    if not has_confidence(head):
        raise SpecError(
            f"{spec.type} answers numbers, which have no confidence",
            where=f"task {spec.name!r}",
            mend="leave the task out",
        )
    whole = True
    if not head.pooled:
        if words is None or not (words.given or head.points_into_text):
            return None
        whole = bool((words.first_tokens >= 0).all()) and len(words.first_tokens) > 0
        if head.reads_choices:
            whole = words.choices is not None and words.choices.whole
    if head.measure != "probability" or head.reads_choices:
        return _as_one(head, spec, logits, words, gold, whole=whole)
    probabilities = np.asarray(head.choice_probabilities(spec, logits, words), dtype=np.float64)
    label = None
    if whole:
        label = head.as_label(spec, head.decode(spec, logits, words))
        chosen = _encoded(head, spec, label, words, len(logits))
    else:  # the words that were read still tell how sure the task is
        chosen = probabilities.argmax(axis=-1)
    known = chosen if gold is None else _encoded(head, spec, gold, words, len(logits))
    if not head.exclusive:
        probabilities = _two(probabilities)
        known, chosen = (np.where(np.isnan(labels), -1, labels).astype(np.int64) for labels in (known, chosen))
    probabilities, chosen, known = probabilities.reshape(-1, probabilities.shape[-1]), chosen.ravel(), known.ravel()
    own = (known >= 0) & (chosen >= 0)
    decisions = Decisions(probabilities[own], chosen[own], None if gold is None else known[own])
    return Decided(label, decisions, whole)


def _as_one(
    head: type[TaskHead], spec: TaskSpec, logits: np.ndarray, words: Words | None, gold: Any, *, whole: bool
) -> Decided:
    """Return an answer as one choice between wrong and right, or as the head judges its parts."""
    answer = head.decode(spec, logits, words)
    judged = [(head.confidence(spec, answer), True)] if gold is None else head.judgements(spec, answer, gold)
    sure = np.array([confidence for confidence, _ in judged], dtype=np.float64)
    right = np.array([own for _, own in judged], dtype=np.int64)
    decisions = Decisions(_two(sure), np.ones(len(sure), dtype=np.int64), None if gold is None else right)
    return Decided(head.as_label(spec, answer), decisions, whole)


def _two(chances: np.ndarray) -> np.ndarray:
    """Return the probabilities of no and yes from those of yes, `(..., 2)`."""
    return np.stack([np.maximum(1.0 - chances, NOTHING_LESS), chances], axis=-1)


def _encoded(head: type[TaskHead], spec: TaskSpec, label: Any, words: Words | None, tokens: int) -> np.ndarray:
    """Return a label as the loss reads it; the ignored are below 0, or NaN."""
    return head.collate(spec, [head.encode(spec, label, words, tokens)], tokens)[0].numpy()
