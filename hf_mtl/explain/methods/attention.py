"""Raw attention of the last layer: where the task's answer was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from hf_mtl.explain.methods._attentions import (
    ROUTING,
    attentions_of,
    check_attentions,
    forward_with_attentions,
    read_at,
)
from hf_mtl.explain.methods._gradients import unit_scores
from hf_mtl.explain.methods.base import Attribution, AttributionMethod
from hf_mtl.explain.subject import Forward, Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target
from hf_mtl.registry import EXPLAINERS


@EXPLAINERS.register("attention")
@dataclass(frozen=True)
class RawAttention(AttributionMethod):
    """`a_j = sum_i r_i mean_h A_hij`, for the attention `A` of the last layer's heads `h` from token `i` to token `j`.

    `r_i` is the share of token `i` in what the task reads: its pooling's weights, or the first tokens of the target's
    words. Offered for comparison: Jain and Wallace 2019, "Attention is not Explanation",
    https://aclanthology.org/N19-1357.
    """

    signed: ClassVar[bool] = False

    def check(self, subject: Subject) -> None:
        check_attentions(subject)

    def forward(self, subject: Subject, text: ExplainedText, tasks: Sequence[str]) -> Forward:
        return forward_with_attentions(subject, text, tasks)

    def attribute(
        self, subject: Subject, text: ExplainedText, forward: Forward, targets: Mapping[str, Target]
    ) -> dict[str, Attribution]:
        last = attentions_of(subject, text, forward)[-1][0].float().mean(dim=0)  # (num_tokens, num_tokens)
        found: dict[str, Attribution] = {}
        for task, target in targets.items():
            scores = unit_scores(text, read_at(subject, text, forward, task, target) @ last)
            found[task] = Attribution(scores=scores, notes=(ROUTING,))
        return found
