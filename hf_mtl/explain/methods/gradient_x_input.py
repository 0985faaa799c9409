"""Gradient times input, the oldest attribution, offered for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_mtl.explain.methods._gradients import embedding_gradient, unit_scores
from hf_mtl.explain.methods.base import Attribution, AttributionMethod
from hf_mtl.explain.subject import Forward, Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target
from hf_mtl.registry import EXPLAINERS

WARNING = "gradient x input is offered for comparison: on transformers it can be worse than a random choice of words"


@EXPLAINERS.register("gradient_x_input")
@dataclass(frozen=True)
class GradientXInput(AttributionMethod):
    """`a_i = sum_d e_id * dS/de_id`, for the embedding `e_i` of token `i` and the target's score `S`.

    Shrikumar et al. 2016, "Not Just a Black Box", https://arxiv.org/abs/1605.01713. Layer normalization and attention
    make gradients of transformers noisy; see `attn_lrp` for the same product with rules that mend this.
    """

    def forward(self, subject: Subject, text: ExplainedText, tasks: Sequence[str]) -> Forward:
        return subject.forward(text, tasks, gradients=True)

    def attribute(
        self, subject: Subject, text: ExplainedText, forward: Forward, targets: Mapping[str, Target]
    ) -> dict[str, Attribution]:
        found: dict[str, Attribution] = {}
        for task, target in targets.items():
            gradient, embeddings = embedding_gradient(subject, text, task, target, forward)
            scores = unit_scores(text, (gradient * embeddings).sum(dim=-1))
            found[task] = Attribution(scores=scores, baseline="the zero vector", notes=(WARNING,))
        return found
