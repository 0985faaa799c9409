"""What the methods share that take words away: their options, and scores of variants, each of which is read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hf_mtl.errors import SpecError, one_of
from hf_mtl.explain.methods.base import AttributionMethod
from hf_mtl.explain.subject import REMOVALS, Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target


@dataclass(frozen=True)
class RemovalMethod(AttributionMethod):
    """A method that reads a text with some of its words taken away.

    Args:
        perturb: how words are taken away: `"delete"` or `"mask"`.

    Raises:
        SpecError: an option is not allowed.
    """

    perturb: str = "delete"

    def __post_init__(self) -> None:
        if self.perturb not in REMOVALS:
            raise SpecError(f"perturb is {self.perturb!r}", mend=f"use one of {one_of(REMOVALS)}")

    @property
    def baseline(self) -> str:
        """What words are compared with."""
        return "the text without them" if self.perturb == "delete" else "the mask token in their place"

    def scores(
        self, subject: Subject, text: ExplainedText, kept: np.ndarray, targets: Mapping[str, Target]
    ) -> dict[str, np.ndarray]:
        """Return each target's score in variants of a text; equal variants are read once, all tasks share the passes.

        Args:
            subject: the model.
            text: the text.
            kept: which units each variant still has, bool `(variants, num_units)`.
            targets: task name -> target.

        Returns:
            Task name -> `(variants,)` float64.
        """
        distinct, place = np.unique(kept, axis=0, return_inverse=True)
        measured = subject.measure(text, ~distinct, targets, how=self.perturb)
        return {task: values.scores[place.reshape(-1)] for task, values in measured.items()}


def check_whole(name: str, value: object, *, least: int) -> None:
    """Check an option that counts.

    Raises:
        SpecError: it is no whole number, or too small.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SpecError(f"{name} is {value!r}", mend=f"give a whole number of at least {least}")
