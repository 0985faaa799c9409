"""Integrated gradients: gradients along the way from an empty text to the text, through captum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_mtl.errors import MissingExtraError, SpecError
from hf_mtl.explain.methods._gradients import Blank, unit_scores
from hf_mtl.explain.methods._removal import check_whole
from hf_mtl.explain.methods.base import Attribution, AttributionMethod
from hf_mtl.explain.subject import Forward, Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target
from hf_mtl.registry import EXPLAINERS


@EXPLAINERS.register("integrated_gradients")
@dataclass(frozen=True)
class IntegratedGradients(AttributionMethod):
    """`a_i = sum_d (e_id - e'_id) * integral over t in [0, 1] of dS(e' + t (e - e'))/de_id`.

    `e_i` is the embedding of token `i`, `S` the target's score and `e'` the text in which the padding token stands for
    every word. Scores add up to `S(e) - S(e')`; `convergence` is by how much they miss it, relative to it. Steps are
    doubled until that is no more than `tolerance`. Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks",
    https://arxiv.org/abs/1703.01365.

    Args:
        steps: number of points on the way to begin with, those of Gauss-Legendre quadrature.
        most_steps: no more points than these are taken; a note says if they did not do.
        tolerance: what may be missed, relative to the difference.

    Raises:
        SpecError: an option is not allowed.
    """

    steps: int = 20
    most_steps: int = 640
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, least=1)
        check_whole("most_steps", self.most_steps, least=self.steps)
        if not self.tolerance > 0:
            raise SpecError(f"tolerance is {self.tolerance!r}", mend="give a number above 0")

    def attribute(
        self, subject: Subject, text: ExplainedText, forward: Forward, targets: Mapping[str, Target]
    ) -> dict[str, Attribution]:
        assert forward.embeddings is not None
        blank = Blank.of(subject)
        embeddings = forward.embeddings.detach()  # (1, num_tokens or more, embedding_size)
        empty = embeddings.clone()
        empty[0, : len(text.input_ids)][torch.from_numpy(text.unit_of_token >= 0)] = blank.embedding.to(empty.dtype)
        found: dict[str, Attribution] = {}
        for task, target in targets.items():

            def score(points: Tensor, task: str = task, target: Target = target) -> Tensor:
                at_points = subject.forward(text, [task], gradients=points.requires_grad, embeddings=points)
                return subject.score(text, target, task, at_points)

            products, convergence, steps = self._integrate(subject, score, embeddings, empty)
            late = f"after {steps} steps the scores still miss the sum they promise by {convergence:.1%}"
            found[task] = Attribution(
                scores=unit_scores(text, products[0, : len(text.input_ids)]),
                baseline=f"{blank.name} in place of every word",
                convergence=convergence,
                notes=(late,) if convergence > self.tolerance else (),
            )
        return found

    def _integrate(
        self, subject: Subject, score: Callable[[Tensor], Tensor], embeddings: Tensor, empty: Tensor
    ) -> tuple[Tensor, float, int]:
        """Return what each token contributes, `(1, tokens)`, by how much that misses its sum, and the steps taken."""
        captum = _captum()(score)
        # One at a time: an encoder may round otherwise for two rows.
        difference = float(score(embeddings).double() - score(empty).double())
        rows = max(1, min(subject.batch_size, subject.max_tokens // embeddings.shape[1]))
        steps = self.steps
        while True:
            products = captum.attribute(embeddings, empty, n_steps=steps, internal_batch_size=rows).sum(dim=-1)
            missed = abs(float(products.double().sum()) - difference)
            convergence = missed / abs(difference) if difference else missed
            if convergence <= self.tolerance or steps * 2 > self.most_steps:
                return products, convergence, steps
            steps *= 2


def _captum() -> Any:
    try:
        from captum.attr import IntegratedGradients as CaptumIntegratedGradients
    except ImportError:
        raise MissingExtraError("captum", extra="explain") from None
    return CaptumIntegratedGradients
