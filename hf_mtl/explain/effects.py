"""What taking words away does to an answer: measurements, on which checks and sentences stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hf_mtl.errors import SpecError, one_of
from hf_mtl.explain.explanation import Explanation
from hf_mtl.explain.subject import REMOVALS, Measured

LEAST_CHANGE = 0.05
"""Changes of a probability below this are too small to be told; of a value, below this share of its size."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What happened when words were taken away together.

    Args:
        units: indices of the words (or tokens).
        words: the same as text.
        how: `"delete"` or `"mask"`.
        before: the measure with all words: a probability, a share (see `Intervention`) or a value.
        after: the measure without these.
        flips: whether the answer was the target's before, and is not now.
        answer: what is answered instead, where labels shut each other out and the answer flips.
        answer_before: the measure of that answer with all words.
        answer_after: the measure of that answer without these.
    """

    units: tuple[int, ...]
    words: tuple[str, ...]
    how: str
    before: float
    after: float
    flips: bool = False
    answer: str | None = None
    answer_before: float | None = None
    answer_after: float | None = None

    @property
    def change(self) -> float:
        """By how much the measure rose."""
        return self.after - self.before

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "units": list(self.units), "words": list(self.words)}


class Intervention:
    """Takes words away from the text of one explanation; what was measured once is not measured again.

    The measure is the target's probability, or the value predicted. Where a label is explained rather than another, it
    is the label's share of the probability of the two: it tells of no third label.

    Args:
        explanation: the explanation, with its model.

    Raises:
        SpecError: the explanation was read from JSON, without its model.
    """

    def __init__(self, explanation: Explanation) -> None:
        origin = explanation.require_origin()
        self.explanation = explanation
        self.subject, self.text, self.target = origin.subject, origin.text, origin.target
        self.spec = self.subject.spec(explanation.task)
        self.head = self.subject.head(explanation.task)
        self.over = self._compared_with()
        self.measure = "share" if self.over is not None else explanation.measure
        self._known: dict[tuple[str, frozenset[int]], Effect] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels, or of the row's own choices."""
        return self.target.names or self.spec.labels or ()

    @cached_property
    def base(self) -> Measured:
        """The text with all its words."""
        return self._measured([()], "mask")

    @property
    def before(self) -> float:
        """The measure with all words."""
        return float(self._values(self.base)[0])

    @property
    def answered(self) -> bool:
        """Whether the target is what the model answers; for a label rather than another, whether it is ahead."""
        return bool(self._holds(self.base)[0])

    @cached_property
    def least(self) -> float:
        """The smallest change that is told: see `LEAST_CHANGE`."""
        if self.measure != "value":
            return LEAST_CHANGE
        (empty,) = self.effects([range(len(self.text.units))], "delete")
        return LEAST_CHANGE * max(abs(self.before), abs(empty.change))

    def effects(self, sets: Sequence[Sequence[int]], how: str) -> list[Effect]:
        """Measure what happens without each of some sets of words, all in one go.

        Args:
            sets: indices of units.
            how: `"delete"` or `"mask"`; the words of a tagging target are always masked.
        """
        keys = [(how, frozenset(units)) for units in sets]
        missing = list({key: tuple(units) for key, units in zip(keys, sets, strict=True) if key not in self._known}
                       .values())  # fmt: skip
        if missing:
            measured = self._measured(missing, how)
            values, holds = self._values(measured), self._holds(measured)
            for place, units in enumerate(missing):
                flips = self.answered and not bool(holds[place])
                self._known[how, frozenset(units)] = Effect(
                    units=tuple(sorted(units)),
                    words=tuple(self.text.units[unit].text for unit in sorted(units)),
                    how=how,
                    before=self.before,
                    after=float(values[place]),
                    flips=flips,
                    **(self._instead(measured, place) if flips else {}),
                )
        return [self._known[key] for key in keys]

    def _compared_with(self) -> np.ndarray | None:
        """Return the labels that the target is compared with, `(positions,)`; `None` where it is with all others."""
        weights = self.target.weights
        if self.head.exclusive and weights.shape[1] == 2:
            return None  # the other label is all others
        compared = (np.sort(weights, axis=1)[:, [0, -1]] == [-1, 1]).all() and (np.abs(weights).sum(axis=1) == 2).all()
        return weights.argmin(axis=1) if compared and ((weights != 0).sum(axis=1) == 2).all() else None

    def _measured(self, sets: Sequence[Sequence[int]], how: str) -> Measured:
        removed = np.zeros((len(sets), len(self.text.units)), dtype=bool)
        for row, units in enumerate(sets):
            removed[row, list(units)] = True
        task = self.explanation.task
        return self.subject.measure(self.text, removed, {task: self.target}, how=how)[task]

    def _values(self, measured: Measured) -> np.ndarray:
        if self.over is None:
            return measured.probabilities
        probabilities = self.head.probabilities(self.spec, measured.logits)
        places = np.arange(len(self.over))
        first, second = probabilities[:, places, list(self.target.labels)], probabilities[:, places, self.over]
        return (first / (first + second)).mean(axis=1)

    def _holds(self, measured: Measured) -> np.ndarray:
        return measured.holds if self.measure != "share" else self._values(measured) >= 0.5

    def _instead(self, measured: Measured, place: int) -> dict[str, Any]:
        """Name the answer that took the target's place, and measure it."""
        names = self.names
        if self.over is not None:
            after = 1.0 - float(self._values(measured)[place])
            labels, values = self.over, (1.0 - self.before, after)
        elif self.head.exclusive:
            both = [
                self.head.probabilities(self.spec, logits) for logits in (self.base.logits[0], measured.logits[place])
            ]
            labels = both[1].argmax(axis=-1)
            values = tuple(float(one[np.arange(len(labels)), labels].mean()) for one in both)
        else:
            return {}
        answer = " ".join(dict.fromkeys(names[int(label)] for label in labels))
        return {"answer": answer, "answer_before": values[0], "answer_after": values[1]}


def ways_of(perturb: Sequence[str] | str) -> tuple[str, ...]:
    """Return ways of taking words away, each once.

    Raises:
        SpecError: there is none, or one is unknown.

    Example:
        >>> ways_of("mask"), ways_of(["delete", "mask"])
        (('mask',), ('delete', 'mask'))
    """
    ways = tuple(dict.fromkeys([perturb] if isinstance(perturb, str) else perturb))
    if not ways or any(way not in REMOVALS for way in ways):
        raise SpecError(f"perturb is {perturb!r}", mend=f"use one or several of {one_of(REMOVALS)}")
    return ways
