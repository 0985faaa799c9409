"""Messages between the tokens of one text, passed along its dependency graph."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from hf_mtl.errors import SpecError
from hf_mtl.model.interaction import gatv2


class TokenGraphAttention(nn.Module):
    """Graph attention between the tokens of a text: each layer makes `x_t + scale_l * sum_s a_ts W x_s` of states `x`.

    `s` are the tokens that share an edge with `t`, and `t` itself; `a_ts` are the weights of GATv2 (Brody et al. 2022,
    "How Attentive are Graph Attention Networks?", https://arxiv.org/abs/2105.14491), the heads side by side. Edges join
    a word with its governor, in both directions, as in Marcheggiani and Titov 2017, "Encoding Sentences with Graph
    Convolutional Networks for Semantic Role Labeling" (https://aclanthology.org/D17-1159), whose weights by direction
    and relation are left out; graph attention over dependencies of words is that of Huang and Carley 2019,
    "Syntax-Aware Aspect Level Sentiment Classification with Graph Attention Networks"
    (https://aclanthology.org/D19-1549). A word is its first token, and its other tokens share an edge with that one.

    `scale_l` is 0 at first (Bachlechner et al. 2021, "ReZero is All You Need", https://arxiv.org/abs/2003.04887), so
    that a task begins with the states that it would read without.

    Args:
        hidden_size: size of the token states, a multiple of `num_heads`.
        num_heads: number of attention heads.
        num_layers: number of layers.

    Raises:
        MissingExtraError: torch_geometric is not installed.
        SpecError: the states cannot be divided among the heads.
    """

    def __init__(self, hidden_size: int, *, num_heads: int, num_layers: int = 1) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise SpecError(
                f"token_graph_heads is {num_heads}, and states have {hidden_size} numbers",
                mend=f"use a number that divides {hidden_size}",
            )
        self.layers = nn.ModuleList([gatv2(hidden_size, num_heads) for _ in range(num_layers)])
        self.scales = nn.Parameter(torch.zeros(num_layers))

    def forward(self, states: Tensor, governors: Tensor, *, with_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """Pass messages along the edges.

        Args:
            states: `(rows, seq_len, hidden_size)`.
            governors: `(rows, seq_len)`, as in `token_edges`.
            with_weights: whether to return the weights.

        Returns:
            The states after all layers, `(rows, seq_len, hidden_size)`, and where asked for the weights of each layer,
            `(rows, num_layers, seq_len, seq_len)` in float32, the mean of the heads: those of a token over the tokens
            it hears, which sum to 1, and 0 for the others.
        """
        rows, seq_len, hidden_size = states.shape
        edges = token_edges(governors)
        weights: list[Tensor] = []
        for layer, scale in zip(self.layers, self.scales.to(states.dtype), strict=True):
            flat = states.reshape(rows * seq_len, hidden_size)
            nodes = torch.cat([flat, flat.new_zeros(1, hidden_size)])  # the last takes the places of absent edges
            heard, (_, shares) = layer(nodes, edges, return_attention_weights=True)
            heard = cast(Tensor, heard)[:-1].to(states.dtype).reshape(rows, seq_len, hidden_size)
            states = states + scale * heard
            if with_weights:
                found = torch.zeros(rows * seq_len + 1, seq_len, device=states.device)
                found = found.index_put((edges[1], edges[0] % seq_len), shares.float().mean(dim=1))
                weights.append(found[:-1].reshape(rows, seq_len, seq_len))
        return states, torch.stack(weights, dim=1) if with_weights else None


def token_edges(governors: Tensor) -> Tensor:
    """Return the edges of the graphs of a batch: each token with itself, and with its governor in both directions.

    There are as many for every batch of a shape, so that nothing waits for a device to count them: an edge that is not
    there, or is there already, joins a node after the last token with itself.

    Args:
        governors: position of the token that governs each token, its own where none does, `(rows, seq_len)`.

    Returns:
        Numbers of the nodes that send and of those that hear, `(2, 3 * rows * seq_len)`; a row's tokens are numbered
        from `row * seq_len` on.

    Example:
        >>> token_edges(torch.tensor([[1, 1, 1]])).T.tolist()
        [[0, 0], [1, 1], [2, 2], [0, 1], [3, 3], [2, 1], [1, 0], [3, 3], [1, 2]]
    """
    rows, seq_len = governors.shape
    own = torch.arange(rows * seq_len, device=governors.device)
    above = (governors + torch.arange(rows, device=governors.device).unsqueeze(1) * seq_len).flatten()
    none = torch.full_like(own, rows * seq_len)
    joined = above != own
    # Of two tokens that govern each other the first direction has both edges already.
    once = joined & (above[above] != own)
    senders = torch.cat([own, torch.where(joined, own, none), torch.where(once, above, none)])
    receivers = torch.cat([own, torch.where(joined, above, none), torch.where(once, own, none)])
    return torch.stack([senders, receivers])


def neighbours(attention_mask: Tensor) -> Tensor:
    """Return governors that make a chain of the tokens of each text: every token's is the one before it.

    Args:
        attention_mask: 1 for real tokens, `(rows, seq_len)`.

    Example:
        >>> neighbours(torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])).tolist()
        [[0, 0, 1, 3], [0, 1, 1, 2]]
    """
    real = attention_mask != 0
    joined = real & torch.cat([torch.zeros_like(real[:, :1]), real[:, :-1]], dim=1)
    return torch.arange(real.shape[1], device=real.device) - joined.long()
