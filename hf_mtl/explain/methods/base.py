"""What an attribution method is: it shares out the score of a target among the units of a text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mtl.explain.subject import Forward, Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target


@dataclass(frozen=True, eq=False, kw_only=True)
class Attribution:
    """What a method found for one target.

    Args:
        scores: what each unit contributes to the target's score, `(num_units,)` float64.
        baseline: what the text is compared with, in words; empty where with nothing.
        convergence: by how much the scores miss the difference they should add up to, relative to it; `None` where the
            method promises no sum.
        notes: what a reader should know, such as that a limit was reached.
    """

    scores: np.ndarray
    baseline: str = ""
    convergence: float | None = None
    notes: tuple[str, ...] = ()


class AttributionMethod(ABC):
    """Shares out the scores of targets among the units of a text.

    A subclass is a frozen dataclass whose fields are the method's options, each checked in `__post_init__`, and is
    registered: `@EXPLAINERS.register("name")`.
    """

    seed: int | None = None
    """Seed of a method that draws at random; `None` for those that do not."""

    signed: ClassVar[bool] = True
    """Whether scores tell for from against; if not, they are never negative."""

    def check(self, subject: Subject) -> None:  # noqa: B027  # most methods explain every model
        """Check that the method can explain this model.

        Raises:
            ModelError: the architecture is not covered; says why.
        """

    def forward(self, subject: Subject, text: ExplainedText, tasks: Sequence[str]) -> Forward:
        """Run the model on the text once, for all tasks; the targets are chosen from its logits.

        Args:
            subject: the model.
            text: the text.
            tasks: names of the tasks to explain.
        """
        return subject.forward(text, tasks)

    @abstractmethod
    def attribute(
        self, subject: Subject, text: ExplainedText, forward: Forward, targets: Mapping[str, Target]
    ) -> dict[str, Attribution]:
        """Share out the score of each target.

        Args:
            subject: the model.
            text: the text.
            forward: what `forward` returned.
            targets: task name -> target.

        Returns:
            Task name -> attribution.

        Raises:
            ModelError: the method cannot explain this model.
        """
