"""Messages between the tasks of one text, passed along a graph of tasks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_mtl.errors import MissingExtraError, SpecError
from hf_mtl.model.transfer import on_device

INTERACTION_HEADS = 4
"""Attention heads of the interaction where no number is given."""


class GraphAttention(nn.Module):
    """Graph attention between the tasks' pooled outputs: `x_t + scale * sum_s a_ts W x_s`, the heads side by side.

    `a_ts` are the weights of GATv2 (Brody et al. 2022, "How Attentive are Graph Attention Networks?",
    https://arxiv.org/abs/2105.14491) over the tasks that `t` hears, itself among them, with a learned vector for each
    task added to what is compared and sent. `scale` is 0 at first (Bachlechner et al. 2021, "ReZero is All You Need",
    https://arxiv.org/abs/2003.04887), so that tasks begin apart.

    Args:
        hidden_size: size of the pooled outputs, a multiple of `num_heads`.
        tasks: the tasks, in the order of the nodes.
        graph: task -> tasks that it hears; of all others where not given, and a task that is not among the keys hears
            itself alone.
        num_heads: number of attention heads.

    Raises:
        MissingExtraError: torch_geometric is not installed.
        SpecError: the pooled outputs cannot be divided among the heads.
    """

    def __init__(
        self, hidden_size: int, tasks: Sequence[str], *, graph: Mapping[str, Sequence[str]] | None, num_heads: int
    ) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise SpecError(
                f"interaction_heads is {num_heads}, and pooled outputs have {hidden_size} numbers",
                mend=f"use a number that divides {hidden_size}",
            )
        self.edges = task_edges(tasks, graph)
        self.num_tasks = len(tasks)
        self.embeddings = nn.Parameter(torch.zeros(len(tasks), hidden_size))
        self.attention = gatv2(hidden_size, num_heads)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pass one round of messages.

        Args:
            pooled: `(rows, num_tasks, hidden_size)`.

        Returns:
            What each task hears, `(rows, num_tasks, hidden_size)`, to be added to what it has, and the weights
            `(rows, num_tasks, num_tasks)` in float32, the mean of the heads: those of a task over the tasks it hears,
            which sum to 1, and 0 for the others.
        """
        rows, num_tasks, hidden_size = pooled.shape
        senders, receivers = (on_device(ends, dtype=torch.long, device=pooled.device) for ends in self.edges)
        first = torch.arange(rows, device=pooled.device).unsqueeze(1) * num_tasks  # number of each row's first node
        edges = torch.stack([(first + senders).flatten(), (first + receivers).flatten()])  # (2, rows * num_edges)
        nodes = (pooled + self.embeddings.to(pooled.dtype)).reshape(rows * num_tasks, hidden_size)
        heard, (_, shares) = self.attention(nodes, edges, return_attention_weights=True)
        shares = shares.float().mean(dim=1).reshape(rows, len(self.edges[0]))
        weights = shares.new_zeros(rows, num_tasks * num_tasks)
        weights = weights.index_copy(1, receivers * num_tasks + senders, shares)
        messages = self.scale.to(pooled.dtype) * heard.to(pooled.dtype).reshape(rows, num_tasks, hidden_size)
        return messages, weights.reshape(rows, num_tasks, num_tasks)


def task_edges(tasks: Sequence[str], graph: Mapping[str, Sequence[str]] | None) -> tuple[list[int], list[int]]:
    """Return the ends of the edges of a graph of tasks: who sends, and who hears; every task hears itself.

    Example:
        >>> task_edges(["ner", "topic"], {"topic": ["ner"]})
        ([0, 0, 1], [0, 1, 1])
    """
    pairs = [
        (sender, receiver)
        for receiver, hearing in enumerate(tasks)
        for sender, sending in enumerate(tasks)
        if sender == receiver or graph is None or sending in graph.get(hearing, ())
    ]
    return [sender for sender, _ in pairs], [receiver for _, receiver in pairs]


def gatv2(hidden_size: int, num_heads: int) -> nn.Module:
    """Make a GATv2 layer of torch_geometric over given edges, its heads side by side.

    Args:
        hidden_size: size of the nodes, before and after.
        num_heads: number of attention heads, which divides it.

    Raises:
        MissingExtraError: torch_geometric is not installed.
    """
    with warnings.catch_warnings():
        # torch_geometric 2.8 calls `torch.jit.script`, which torch 2.13 deprecates, when it is imported.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            from torch_geometric.nn import GATv2Conv
        except ImportError as error:
            raise MissingExtraError("torch_geometric", extra="graph") from error
    made: Any = GATv2Conv(hidden_size, hidden_size // num_heads, heads=num_heads, add_self_loops=False)
    return cast(nn.Module, made)
