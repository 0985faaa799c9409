"""Attention pooling with several heads, and with a gate that lets it lean on the encoder's own attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.model.pooling import AttentionPooling, weighted_states

BEFORE_GATE = "_attention_before_gate"
"""Attribute of an encoder that a gate has switched to eager attention: what it computed attention with before."""


class TaskAttention(AttentionPooling):
    """Attention pooling by several queries, each over all of a token's state and for a part of the pooled output.

    Head `h` weighs the tokens with `p_h = softmax(H q_h / sqrt(hidden_size))` and pools its part of the states, as the
    heads of Vaswani et al. 2017, "Attention Is All You Need" (https://arxiv.org/abs/1706.03762), divide theirs; several
    learned queries over one text are those of Lin et al. 2017, "A Structured Self-attentive Sentence Embedding"
    (https://arxiv.org/abs/1703.03130). With a gate the weights are `g_h p_h + (1 - g_h) a`, where `a` is the attention
    that the encoder's last layer pays to each token and `g_h = sigmoid(gate_h)` is learned, 1/2 at first. One head
    without a gate is `AttentionPooling`.

    Args:
        hidden_size: size of the token states, a multiple of `num_heads`.
        num_heads: number of queries.
        gated: whether the encoder's attention takes part.

    Raises:
        SpecError: the states cannot be divided among the heads.

    Example:
        >>> pooling = TaskAttention(4, num_heads=2)
        >>> pooled, weights = pooling(torch.ones(1, 3, 4), torch.tensor([[1, 1, 0]]))
        >>> tuple(pooled.shape), weights.tolist()
        ((1, 4), [[[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]])
    """

    def __init__(self, hidden_size: int, *, num_heads: int = 1, gated: bool = False) -> None:
        super().__init__(hidden_size)
        if hidden_size % num_heads:
            raise SpecError(
                f"attention_heads is {num_heads}, and states have {hidden_size} numbers",
                mend=f"use a number that divides {hidden_size}",
            )
        self.query = nn.Parameter(torch.zeros(num_heads, hidden_size))
        self.gate = nn.Parameter(torch.zeros(num_heads)) if gated else None

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, self_attention: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pool the states.

        Args:
            hidden_states: `(batch_size, seq_len, hidden_size)`.
            attention_mask: `(batch_size, seq_len)`, 1 for real tokens.
            self_attention: what `attention_paid` returns, `(batch_size, seq_len)`; needed where there is a gate.

        Returns:
            The pooled output `(batch_size, hidden_size)` and the weights `(batch_size, num_heads, seq_len)` in float32,
            of which each row sums to 1 where there is a real token and is 0 on padding.
        """
        query = self.query.to(hidden_states.dtype)
        scores = (hidden_states @ query.T).float().transpose(1, 2) * query.shape[1] ** -0.5
        padding = (attention_mask == 0).unsqueeze(1)
        weights = scores.masked_fill(padding, torch.finfo(torch.float32).min).softmax(dim=2)
        weights = weights.masked_fill(padding, 0.0)
        if self.gate is not None:
            share = self.gate.float().sigmoid().view(1, -1, 1)
            weights = share * weights + (1.0 - share) * cast(Tensor, self_attention).unsqueeze(1)
        return weighted_states(hidden_states, weights), weights


def attention_paid(attentions: Sequence[Tensor] | None, attention_mask: Tensor) -> Tensor:
    """Return the attention that an encoder's last layer pays to each token: the mean over heads and real tokens.

    Args:
        attentions: attention of each layer, `(batch_size, num_heads, seq_len, seq_len)`, queries before keys.
        attention_mask: `(batch_size, seq_len)`, 1 for real tokens.

    Returns:
        `(batch_size, seq_len)` in float32; each row sums to 1 where there is a real token and is 0 on padding, also
        while dropout has taken some of the attention away.

    Raises:
        ModelError: the encoder gives no attention, or its tokens do not attend to all others.
    """
    last = attentions[-1] if attentions else None
    tokens = attention_mask.shape[1]
    if last is None or tuple(last.shape[-2:]) != (tokens, tokens):
        raise ModelError(
            "attention_gate needs the attention of every token to every token, which the encoder does not give",
            mend='call model.set_attn_implementation("eager"); where that changes nothing, leave attention_gate out',
        )
    real = (attention_mask != 0).float()
    paid = torch.bmm(real.unsqueeze(1), last.float().mean(dim=1)).squeeze(1) * real
    return paid / paid.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def attend_eagerly(encoder: nn.Module, specs: Sequence[TaskSpec]) -> None:
    """Switch an encoder to eager attention, which alone gives its weights, where a task has a gate; else back again.

    Raises:
        ModelError: the encoder computes attention in another way and cannot change it.
    """
    if not isinstance(encoder, PreTrainedModel):
        return
    gated = [spec.name for spec in specs if spec.attention_gate]
    config: Any = encoder.config
    before: str | None = getattr(encoder, BEFORE_GATE, None)
    if not gated and before is not None:
        encoder.set_attn_implementation(before)
        setattr(encoder, BEFORE_GATE, None)
    if not gated or config._attn_implementation == "eager":
        return
    kind: Any = type(encoder)
    if not kind._can_set_attn_implementation():
        raise ModelError(
            f"attention_gate needs eager attention, and {kind.__name__} cannot change its own",
            where=f"task {gated[0]!r}",
            mend="leave attention_gate out",
        )
    setattr(encoder, BEFORE_GATE, config._attn_implementation)
    encoder.set_attn_implementation("eager")
