"""FreeLB: several steps against the model, each of which trains it as well."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mtl.model.modeling import MultiTaskOutput
from hf_mtl.registry import PERTURBATIONS
from hf_mtl.training.perturbations.base import (
    Losses,
    MicroBatch,
    Perturbation,
    check_count,
    check_number,
    row_norms,
)


@PERTURBATIONS.register("freelb")
class FreeLB(Perturbation):
    """Trains on all points of a way uphill, from a random one near each text.

    `1/K sum_k L(x + d_k)` for k from 0 to K - 1, with `d_0` uniform in a cube of half the side
    `init_size / sqrt(numbers of the text)`, and `d_{k+1} = P(d_k + step_size * g_k / ||g_k||)`, where `g_k` is the
    gradient of the loss on the noise, and `P` shortens it to `max_norm`. Norms are over all tokens of a text. All
    passes of a step drop the same values, as in the paper: Zhu et al. 2020, "FreeLB: Enhanced Adversarial Training
    for Natural Language Understanding" (https://arxiv.org/abs/1909.11764).

    Costs K passes forward, and 2 K - 1 backward, of which K - 1 without gradients of weights; memory of K passes. With
    one step there is nothing but the random noise.

    Args:
        steps: K, the number of passes.
        step_size: Euclidean length of a step, in the unit of the token embeddings.
        max_norm: Euclidean length that noise may have; 0 for any.
        init_size: about the length of the random noise that is begun with; 0 for none.

    Raises:
        SpecError: an option has a value that is not allowed.
    """

    needs_embeddings = True
    needs_hooks = True

    def __init__(
        self, *, steps: int = 3, step_size: float = 0.1, max_norm: float = 0.3, init_size: float = 0.1
    ) -> None:
        self.steps = check_count("steps", steps)
        self.step_size = check_number("step_size", step_size)
        self.max_norm = check_number("max_norm", max_norm)
        self.init_size = check_number("init_size", init_size)

    def losses(self, batch: MicroBatch) -> tuple[MultiTaskOutput, Losses]:
        noise = self._shortened(self._begin(batch)).requires_grad_()
        first = batch.run(noise)
        found = [first.losses or {}]
        while found[0] and len(found) < self.steps:
            gradient = batch.gradient(found[-1], noise, keep_graph=True)
            step = self.step_size * gradient / row_norms(gradient)
            noise = self._shortened(noise.detach() + step).requires_grad_()
            found.append(batch.run(noise).losses or {})
        return first, {task: torch.stack([own[task] for own in found]).mean() for task in found[0]}

    def _begin(self, batch: MicroBatch) -> Tensor:
        noise = batch.no_noise().detach()
        if not self.init_size:
            return noise
        with batch.drawing():
            noise = batch.on_tokens(noise.uniform_(-1.0, 1.0))
        tokens = batch.on_tokens(torch.ones_like(noise)).sum(dim=(1, 2), keepdim=True)  # numbers of each text
        return self.init_size * noise / tokens.clamp(min=1.0).sqrt()

    def _shortened(self, noise: Tensor) -> Tensor:
        return noise * (self.max_norm / row_norms(noise)).clamp(max=1.0) if self.max_norm else noise
