"""The fast gradient method: one step against the model, in the embeddings."""

from __future__ import annotations

from hf_mtl.model.modeling import MultiTaskOutput
from hf_mtl.registry import PERTURBATIONS
from hf_mtl.training.perturbations.base import Losses, MicroBatch, Perturbation, check_number, mixed, row_norms


@PERTURBATIONS.register("fgm")
class Fgm(Perturbation):
    """Trains on each text and on its worst neighbour, as far as the gradient tells.

    `(1 - weight) L(x) + weight L(x + r)`, with `r = epsilon * g / ||g||` and `g` the gradient of the loss on a text's
    token embeddings; the norm is over all tokens of the text. After Miyato et al. 2017, "Adversarial Training Methods
    for Semi-Supervised Text Classification" (https://arxiv.org/abs/1605.07725); the mean of both losses is that of
    Goodfellow et al. 2015 (https://arxiv.org/abs/1412.6572), at which epsilon 0 is plain training.

    Costs 2 passes forward and 3 backward, one of those without gradients of weights; memory of 2 passes.

    Args:
        epsilon: Euclidean length of the noise of a text, in the unit of the token embeddings, from 0.
        weight: weight of the loss on disturbed texts, in [0, 1].

    Raises:
        SpecError: an option has a value that is not allowed.
    """

    needs_embeddings = True
    needs_hooks = True

    def __init__(self, *, epsilon: float = 1.0, weight: float = 0.5) -> None:
        self.epsilon = check_number("epsilon", epsilon)
        self.weight = check_number("weight", weight, most=1.0)

    def losses(self, batch: MicroBatch) -> tuple[MultiTaskOutput, Losses]:
        noise = batch.no_noise()
        outputs = batch.run(noise)
        plain = outputs.losses or {}
        if not plain:
            return outputs, {}
        gradient = batch.gradient(plain, noise, keep_graph=True)
        disturbed = batch.run(self.epsilon * gradient / row_norms(gradient))
        return outputs, mixed(plain, disturbed.losses or {}, self.weight)
