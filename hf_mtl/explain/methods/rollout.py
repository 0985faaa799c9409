"""Attention rollout: attention multiplied through all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from hf_mtl.errors import SpecError
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


@EXPLAINERS.register("rollout")
@dataclass(frozen=True)
class Rollout(AttributionMethod):
    """`a = r B_L ... B_1` with `B_l = residual * I + (1 - residual) * mean_h A_lh`, for the attention of layers `l`.

    `r` is the share of each token in what the task reads, as in the method `attention`. Abnar and Zuidema 2020,
    "Quantifying Attention Flow in Transformers", https://arxiv.org/abs/2005.00928.

    Args:
        residual: weight of the connection past the attention, in [0, 1).

    Raises:
        SpecError: an option is not allowed.
    """

    residual: float = 0.5
    signed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.residual < 1:
            raise SpecError(f"residual is {self.residual!r}", mend="give a number from 0 to below 1")

    def check(self, subject: Subject) -> None:
        check_attentions(subject)

    def forward(self, subject: Subject, text: ExplainedText, tasks: Sequence[str]) -> Forward:
        return forward_with_attentions(subject, text, tasks)

    def attribute(
        self, subject: Subject, text: ExplainedText, forward: Forward, targets: Mapping[str, Target]
    ) -> dict[str, Attribution]:
        attentions = attentions_of(subject, text, forward)
        found: dict[str, Attribution] = {}
        for task, target in targets.items():
            share = read_at(subject, text, forward, task, target)
            for layer in reversed(attentions):
                share = self.residual * share + (1 - self.residual) * (share @ layer[0].float().mean(dim=0))
            found[task] = Attribution(scores=unit_scores(text, share), notes=(ROUTING,))
        return found
