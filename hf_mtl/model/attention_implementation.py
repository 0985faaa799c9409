"""Another implementation of attention while a block runs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from hf_mtl.errors import ModelError


@contextmanager
def attention_implementation(model: nn.Module, name: str) -> Generator[None]:
    """Use an implementation of attention inside the block.

    What was set before, for the model and for each model inside it, is set again afterwards, also after an error.

    Args:
        model: the model.
        name: a name that transformers' `AttentionInterface` knows, or `"eager"`.

    Raises:
        ModelError: a part of the model cannot change its attention, and has another kind.
    """
    # `set_attn_implementation` warns where there is nothing to change, and cannot put back what differed inside.
    changed: dict[int, tuple[Any, str | None]] = {}
    for part in model.modules():
        if not isinstance(part, PreTrainedModel) or id(part.config) in changed:
            continue
        config: Any = part.config
        before: str | None = config._attn_implementation_internal
        if before == name:
            continue
        kind: Any = type(part)
        if not kind._can_set_attn_implementation():
            raise ModelError(
                f"{kind.__name__} has {before} attention and cannot change it to {name}",
                mend=f"load it with attn_implementation={name!r}, or use an encoder that dispatches its attention",
            )
        changed[id(config)] = (config, before)
    try:
        for config, _ in changed.values():
            config._attn_implementation_internal = name
        yield
    finally:
        for config, before in changed.values():
            config._attn_implementation_internal = before
