"""Signed attention times gradient: what the answer would lose, to first order, without each attention weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_mtl.errors import ModelError
from hf_mtl.explain.methods._attentions import attentions_of, check_attentions, forward_with_attentions
from hf_mtl.explain.methods._gradients import unit_scores
from hf_mtl.explain.methods.base import Attribution, AttributionMethod
from hf_mtl.explain.subject import Forward, Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target
from hf_mtl.registry import EXPLAINERS


@EXPLAINERS.register("attention_x_gradient")
@dataclass(frozen=True)
class AttentionXGradient(AttributionMethod):
    """`a_j = sum_l sum_h sum_i A_lhij * dS/dA_lhij`, for the attention `A` from token `i` to token `j`.

    `l` are the layers, `h` their heads and `S` the target's score: the sum is over all that token `j` gives to others.
    Hao et al. 2021, "Self-Attention Attribution", https://arxiv.org/abs/2004.11207, who integrate the gradient from no
    attention on; here it is taken once, at the attention as it is.
    """

    def check(self, subject: Subject) -> None:
        check_attentions(subject)

    def forward(self, subject: Subject, text: ExplainedText, tasks: Sequence[str]) -> Forward:
        return forward_with_attentions(subject, text, tasks, gradients=True)

    def attribute(
        self, subject: Subject, text: ExplainedText, forward: Forward, targets: Mapping[str, Target]
    ) -> dict[str, Attribution]:
        attentions = attentions_of(subject, text, forward)
        found: dict[str, Attribution] = {}
        for task, target in targets.items():
            with torch.enable_grad():  # whatever the caller has set
                score = subject.score(text, target, task, forward).sum()
            gradients: Any = torch.autograd.grad(score, attentions, retain_graph=True, allow_unused=True)
            if any(gradient is None for gradient in gradients):
                raise ModelError(
                    f"the architecture {subject.model.encoder.config.model_type!r} returns attention weights that it"
                    " does not compute with",
                    mend="choose another method, such as integrated_gradients",
                )
            given = [
                (weights.detach() * gradient).sum(dim=(0, 1, 2))  # over queries; (num_tokens,) is left
                for weights, gradient in zip(attentions, gradients, strict=True)
            ]
            found[task] = Attribution(scores=unit_scores(text, torch.stack(given).sum(dim=0)))
        return found
