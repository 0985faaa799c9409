"""Gradient norm: how strongly the answer reacts to a small change of each word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from hf_mtl.explain.methods._gradients import embedding_gradient, unit_scores
from hf_mtl.explain.methods.base import Attribution, AttributionMethod
from hf_mtl.explain.subject import Forward, Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target
from hf_mtl.registry import EXPLAINERS


@EXPLAINERS.register("gradient_norm")
@dataclass(frozen=True)
class GradientNorm(AttributionMethod):
    """`a_i = ||dS/de_i||_2`, for the embedding `e_i` of token `i` and the target's score `S`; it is never negative.

    Simonyan et al. 2013, "Deep Inside Convolutional Networks", https://arxiv.org/abs/1312.6034; for texts Li et al.
    2016, "Visualizing and Understanding Neural Models in NLP", https://arxiv.org/abs/1506.01066.
    """

    signed: ClassVar[bool] = False

    def forward(self, subject: Subject, text: ExplainedText, tasks: Sequence[str]) -> Forward:
        return subject.forward(text, tasks, gradients=True)

    def attribute(
        self, subject: Subject, text: ExplainedText, forward: Forward, targets: Mapping[str, Target]
    ) -> dict[str, Attribution]:
        found: dict[str, Attribution] = {}
        for task, target in targets.items():
            gradient, _ = embedding_gradient(subject, text, task, target, forward)
            found[task] = Attribution(scores=unit_scores(text, gradient.norm(dim=-1)))
        return found
