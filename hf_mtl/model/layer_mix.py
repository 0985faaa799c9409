"""A task's own mix of the encoder's layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hf_mtl.errors import ModelError


class LayerMix(nn.Module):
    """A learned scalar mix of the states after the embeddings and after each layer: `scale * sum_l s_l h_l`.

    `s = softmax(scores)`, the same for all layers at first. Peters et al. 2018, "Deep contextualized word
    representations" (https://arxiv.org/abs/1802.05365), without layer normalization. No encoder pass more, and the
    states of all layers are kept for it.

    Args:
        num_layers: number of states that are mixed, those after the embeddings included.

    Example:
        >>> states = [torch.full((1, 2, 3), value) for value in (1.0, 2.0, 6.0)]
        >>> LayerMix(3)(states)[0, 0].tolist()
        [3.0, 3.0, 3.0]
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_layers))
        self.scale = nn.Parameter(torch.ones(1))

    def weights(self) -> Tensor:
        """Return the weight of each layer, `(num_layers,)` in float32; they sum to 1."""
        return self.scores.float().softmax(dim=0)

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Mix states.

        Args:
            layers: `(rows, seq_len, hidden_size)` each, the lowest first.

        Returns:
            `(rows, seq_len, hidden_size)`.

        Raises:
            ModelError: the encoder gives the states of another number of layers.
        """
        if len(layers) != len(self.scores):
            raise ModelError(
                f"the encoder gives {len(layers)} states, and layer_mix has a weight for {len(self.scores)}",
                mend="leave layer_mix out",
            )
        factors = (self.weights() * self.scale.float()).to(layers[-1].dtype).unbind()
        mixed = layers[0] * factors[0]
        for states, factor in zip(layers[1:], factors[1:], strict=True):  # never a second copy of all layers
            mixed = mixed + states * factor
        return mixed
