"""Switching attention heads off, in part or whole, in any architecture whose heads meet in one output projection."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hf_mtl.errors import ModelError
from hf_mtl.model.modeling import MultiTaskModel

# Such as `encoder.layer.0.attention.output.dense`, `h.0.attn.c_proj`, `block.0.layer.0.SelfAttention.o`.
_PROJECTION = re.compile(r"(?i:attn|attention)(\.\w+)*\.(dense|o|o_proj|out_proj|out_lin|Wo|c_proj)$")


def head_counts(model: MultiTaskModel) -> tuple[int, int]:
    """Return the number of layers and of attention heads in each.

    Raises:
        ModelError: the encoder has no attention heads, or none that are known to meet in one projection.
    """
    head_projections(model)
    config = model.encoder.config.get_text_config()
    return int(config.num_hidden_layers), int(config.num_attention_heads)


def head_projections(model: MultiTaskModel) -> list[nn.Module]:
    """Return the output projection of each layer's attention; of layers that share their weights, one.

    Raises:
        ModelError: there are none.
    """
    found: list[nn.Module] = [module for name, module in model.encoder.named_modules() if _PROJECTION.search(name)]
    heads = getattr(model.encoder.config.get_text_config(), "num_attention_heads", None)
    if not found or not isinstance(heads, int):
        raise ModelError(
            f"the architecture {model.encoder.config.model_type!r} has no attention heads that meet in one output"
            " projection",
            mend="use an encoder with standard multi-head attention, such as BERT or its relatives",
        )
    return found


@contextmanager
def head_mask(model: MultiTaskModel, mask: Tensor) -> Generator[None]:
    """Multiply the output of each attention head by a number inside the block.

    What each head gives stands side by side in the input of the attention's output projection, where a hook reaches it.
    Calls are counted, so that layers that share their weights, as ALBERT's do, are told apart.

    Args:
        model: the model.
        mask: `(num_layers, num_heads)`, or one for each row of the batch, `(num_layers, batch_size, num_heads)`.

    Raises:
        ModelError: the encoder has no such heads, or a pass calls their projections more or less often than it has
            layers.
    """
    layers, heads = head_counts(model)
    calls = 0

    def begin(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls = 0

    def apply(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal calls
        states: Tensor = args[0]
        if calls >= layers or states.dim() != 3 or states.shape[-1] % heads:
            raise _unexpected(model, calls + 1, layers)
        own = mask[calls].to(states.dtype).unsqueeze(-2).unsqueeze(-1)  # (batch_size or nothing, 1, heads, 1)
        calls += 1
        return ((states.unflatten(-1, (heads, -1)) * own).flatten(-2), *args[1:])

    def end(module: nn.Module, args: Any, output: Any) -> None:
        if calls != layers:
            raise _unexpected(model, calls, layers)

    handles = [model.encoder.register_forward_pre_hook(begin), model.encoder.register_forward_hook(end)]
    handles += [module.register_forward_pre_hook(apply) for module in head_projections(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unexpected(model: MultiTaskModel, calls: int, layers: int) -> ModelError:
    return ModelError(
        f"the attention of the architecture {model.encoder.config.model_type!r} is not as expected: call {calls} of its"
        f" output projections, in {layers} layers",
        mend="use an encoder with standard multi-head attention, such as BERT or its relatives",
    )
