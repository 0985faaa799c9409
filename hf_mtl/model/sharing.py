"""Soft sharing: a small layer per task on top of the shared encoder, and a tie between these layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

ADAPTER_SIZE = 64
"""Width of an adapter where none is given."""
TIE_STRENGTH = 0.01
"""Weight of the tie where none is given."""


class TaskAdapter(nn.Module):
    """A bottleneck on top of the encoder, `h + W_up gelu(W_down h + b_down) + b_up`, of one task.

    `W_up` is zero at first, so that a task begins with the states that all share, and `W_down` is the same in all
    tasks. Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP" (https://arxiv.org/abs/1902.00751), put
    such adapters into every layer.

    Args:
        hidden_size: size of the token states.
        size: width of the bottleneck.
    """

    def __init__(self, hidden_size: int, size: int) -> None:
        super().__init__()
        self.down = nn.Parameter(_first_weights(size, hidden_size).to(torch.get_default_device()))
        self.down_bias = nn.Parameter(torch.zeros(size))
        self.up = nn.Parameter(torch.zeros(hidden_size, size))
        self.up_bias = nn.Parameter(torch.zeros(hidden_size))
        self.activation = nn.GELU()  # a module, which explanations know

    def first_weights(self) -> Tensor:
        """Return the values that `down` begins with, `(size, hidden_size)`."""
        return _first_weights(*self.down.shape)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Change states, `(rows, seq_len, hidden_size)`, into states of the same shape."""
        inner = self.activation(nn.functional.linear(hidden_states, self.down, self.down_bias))
        return hidden_states + nn.functional.linear(inner, self.up, self.up_bias)


def tie(modules: Iterable[nn.Module], strength: float) -> Tensor | None:
    """Return the tie between the parameters of tasks, `strength * sum_t |theta_t - mean_s theta_s|^2`.

    The mean is that over all tasks, so that the sum is also that of the squared distances of all pairs of tasks,
    divided by the number of tasks. As the strength grows the parameters become one: hard sharing. Evgeniou and Pontil
    2004, "Regularized multi-task learning" (https://doi.org/10.1145/1014052.1014067); for layers of a network Duong et
    al. 2015, "Low Resource Dependency Parsing" (https://aclanthology.org/P15-2139).

    Args:
        modules: one module per task, all alike.
        strength: at least 0.

    Returns:
        A scalar in float32; `None` where there is no module.

    Example:
        >>> one, two = nn.Embedding(1, 2), nn.Embedding(1, 2)
        >>> one.weight.data[:], two.weight.data[:] = 1.0, 3.0
        >>> tie([one, two], strength=0.5).item()
        2.0
    """
    parameters: Sequence[Sequence[Tensor]] = [list(module.parameters()) for module in modules]
    if not parameters:
        return None
    total = torch.zeros((), device=parameters[0][0].device)
    for alike in zip(*parameters, strict=True):
        stacked = torch.stack([*alike]).float()  # (num_tasks, *shape)
        total = total + (stacked - stacked.mean(dim=0)).square().sum()
    return strength * total


def _first_weights(size: int, hidden_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, hidden_size, generator=generator, device="cpu") * hidden_size**-0.5
