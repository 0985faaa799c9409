"""From token states to one vector per row."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def first_token(hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the state of the first real token, such as `[CLS]`; padding may stand on either side.

    Args:
        hidden_states: `(batch_size, seq_len, hidden_size)`.
        attention_mask: `(batch_size, seq_len)`, 1 for real tokens.

    Returns:
        `(batch_size, hidden_size)`.
    """
    first = attention_mask.to(torch.int8).argmax(dim=1)
    return hidden_states[torch.arange(len(hidden_states), device=hidden_states.device), first]


def last_token(hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the state of the last real token, which in a decoder has seen all others; shapes as in `first_token`."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = (positions * (attention_mask > 0)).argmax(dim=1)
    return hidden_states[torch.arange(len(hidden_states), device=hidden_states.device), last]


def mean_of_tokens(hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean of the states of the real tokens, summed in float32; shapes as in `first_token`."""
    weights = attention_mask.float().unsqueeze(1)  # (batch_size, 1, seq_len)
    total = torch.bmm(weights, hidden_states.float()).squeeze(1)
    return (total / weights.sum(dim=2).clamp(min=1.0)).to(hidden_states.dtype)


POOLINGS = {"cls": first_token, "last": last_token, "mean": mean_of_tokens}


def weighted_states(hidden_states: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of the states, in float32; with several heads each sums its part of the states.

    Args:
        hidden_states: `(batch_size, seq_len, hidden_size)`.
        weights: `(batch_size, seq_len)` or `(batch_size, num_heads, seq_len)`.

    Returns:
        `(batch_size, hidden_size)`, in the dtype of the states.
    """
    if weights.dim() == 2:
        return torch.bmm(weights.unsqueeze(1), hidden_states.float()).squeeze(1).to(hidden_states.dtype)
    batch_size, num_heads, seq_len = weights.shape
    parts = hidden_states.float().reshape(batch_size, seq_len, num_heads, -1)
    pooled = torch.einsum("bht,bthd->bhd", weights, parts)  # (batch_size, num_heads, part of hidden_size)
    return pooled.flatten(1).to(hidden_states.dtype)


class AttentionPooling(nn.Module):
    """A learned query per task over the token states.

    The weights are `softmax(H q / sqrt(hidden_size))` over the real tokens and exactly 0 on padding, after Yang et al.
    2016, "Hierarchical Attention Networks for Document Classification" (https://aclanthology.org/N16-1174), without
    their extra layer.

    Args:
        hidden_size: size of the token states.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pool the states.

        Args:
            hidden_states: `(batch_size, seq_len, hidden_size)`.
            attention_mask: `(batch_size, seq_len)`, 1 for real tokens.

        Returns:
            The pooled output `(batch_size, hidden_size)` and the weights `(batch_size, seq_len)` in float32, which sum
            to 1 in each row that has a real token.
        """
        # A matrix of one column gives what a vector does, faster in bfloat16, and OpenVINO 2026.4 loads no vector here.
        query = self.query.to(hidden_states.dtype).unsqueeze(1)
        scores = (hidden_states @ query).squeeze(2).float() * len(self.query) ** -0.5
        padding = attention_mask == 0
        # The lowest finite number instead of -inf: a row of padding alone gives zeros then, not NaN.
        weights = scores.masked_fill(padding, torch.finfo(torch.float32).min).softmax(dim=1)
        weights = weights.masked_fill(padding, 0.0)
        return weighted_states(hidden_states, weights), weights
