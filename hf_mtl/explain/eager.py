"""Eager attention for one pass, the only one that returns its weights."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn

from hf_mtl.model.attention_implementation import attention_implementation


@contextmanager
def eager_attention(model: nn.Module) -> Generator[None]:
    """Use eager attention inside the block, the only one that returns attention weights.

    What was set before, for the model and for each model inside it, is set again afterwards, also after an error.

    Args:
        model: the model.

    Raises:
        ModelError: the model cannot change its attention, and has another kind.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, vocab_size=9))
        >>> with eager_attention(model):
        ...     model.config._attn_implementation
        'eager'
        >>> model.config._attn_implementation
        'sdpa'
    """
    with attention_implementation(model, "eager"):
        yield
