"""The rules of AttnLRP, as changes of the model that leave its outputs as they are and change only its gradients."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from hf_mtl.errors import ModelError
from hf_mtl.model.attention_implementation import attention_implementation
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.pooling import AttentionPooling, weighted_states

IMPLEMENTATION = "hf_mtl_attn_lrp"
"""What the attention below is called in transformers' `AttentionInterface`."""


@dataclass
class RulesInForce:
    """What happens while the rules are in force.

    Args:
        through_softmax: whether what attention weights take is passed on to queries and keys.
        linear: whether one factor of every product is a constant and the other takes all, which leaves nothing in the
            model that is not linear.
        attention_calls: how often attention was computed by the rule.
    """

    through_softmax: bool = False
    linear: bool = False
    attention_calls: int = 0


_IN_FORCE: ContextVar[RulesInForce] = ContextVar("_IN_FORCE")


@contextmanager
def relevance_rules(
    model: MultiTaskModel, *, through_softmax: bool = False, linear: bool = False
) -> Generator[RulesInForce]:
    """Put the rules of AttnLRP in force inside the block; outputs stay as they are, gradients become relevance.

    Args:
        model: the model; it is as it was afterwards, also after an error.
        through_softmax: as in `RulesInForce`.
        linear: as in `RulesInForce`.

    Raises:
        ModelError: the encoder's attention cannot be exchanged.
    """
    rules = RulesInForce(through_softmax, linear)
    token = _IN_FORCE.set(rules)
    with ExitStack() as stack:
        stack.callback(_IN_FORCE.reset, token)
        stack.enter_context(attention_implementation(model, IMPLEMENTATION))
        for module in model.modules():
            for handle in _hooks(module, rules):
                stack.callback(handle.remove)
        yield rules


def _hooks(module: nn.Module, rules: RulesInForce) -> list[RemovableHandle]:
    """Hook one module by its kind."""
    if isinstance(module, nn.LayerNorm):
        return [module.register_forward_hook(_layer_norm_rule)]
    if is_activation(module) or is_rms_norm(module):
        return [module.register_forward_hook(_identity_rule)]
    if is_gated(module):
        return [module.register_forward_hook(_cut) if rules.linear else module.register_forward_pre_hook(_halve)]
    if isinstance(module, AttentionPooling):
        through = rules.through_softmax and not rules.linear
        return [module.register_forward_pre_hook(_halve) if through else module.register_forward_hook(_fix)]
    return []


# ---------------------------------------------------------------------- which rule a module gets


def is_activation(module: nn.Module) -> bool:
    """Tell whether a module is an activation `f` with `f(0) = 0` that acts on each number alone."""
    place = type(module).__module__
    if place not in ("transformers.activations", "torch.nn.modules.activation") or [*module.children()]:
        return False
    try:
        with torch.no_grad():
            return not module(torch.zeros(2)).any()
    except (TypeError, RuntimeError):  # attention is an "activation" in torch, too
        return False


def is_rms_norm(module: nn.Module) -> bool:
    """Tell whether a module divides by the root mean square: every architecture has its own class for it."""
    return type(module).__name__.endswith(("RMSNorm", "T5LayerNorm"))


def is_gated(module: nn.Module) -> bool:
    """Tell whether a module is a feed-forward layer `W(f(U x) * V x)`, with `U` and `V` apart or in one matrix.

    Such a layer is twice as wide inside as what its last part reads.
    """
    children = [child for child in module.children() if not isinstance(child, nn.Dropout)]
    linear = [child for child in children if isinstance(child, nn.Linear)]
    if len(linear) < 2 or [is_activation(child) for child in children if child not in linear] != [True]:
        return False
    *inner, last = linear
    return sum(part.out_features for part in inner) == 2 * last.in_features


# ---------------------------------------------------------------------- the rules


def _shared(values: Tensor, parts: int) -> Tensor:
    """Return the same values, whose gradient is divided by `parts`."""
    return values.detach() + (values - values.detach()) / parts


def _with_gradient_of(output: Tensor, linear: Tensor) -> Tensor:
    """Return the values of one tensor with the gradient of another."""
    return output.detach() + (linear - linear.detach())


def _layer_norm_rule(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Layer normalization with its standard deviation taken for a constant."""
    norm, states = cast(nn.LayerNorm, module), cast(Tensor, args[0])
    dims = [*range(-len(norm.normalized_shape), 0)]
    centred = states - states.mean(dim=dims, keepdim=True)
    scale = (states.detach().var(dim=dims, correction=0, keepdim=True) + norm.eps).rsqrt()
    if norm.elementwise_affine:
        scale = scale * norm.weight.detach()
    return _with_gradient_of(output, centred * scale)


def _identity_rule(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """An elementwise function as a multiplication with the constant `f(x) / x`."""
    states = cast(Tensor, args[0])
    given, zero = states.detach(), states.detach() == 0
    ratio = torch.where(zero, 0.0, output.detach() / torch.where(zero, 1.0, given))
    return _with_gradient_of(output, states * ratio)


def _halve(module: nn.Module, args: Any) -> tuple[Any, ...]:
    """The two factors of a product take half each: both are functions of the module's input."""
    return (_shared(args[0], 2), *args[1:])


def _cut(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """The whole output is a constant."""
    return output.detach()


def _fix(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The weights of attention pooling are constants."""
    pooled, weights = output
    return _with_gradient_of(pooled, weighted_states(args[0], weights.detach())), weights


def _attention_rule(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention `softmax(Q K') V` sharing relevance: half for `V`, a quarter or nothing for `Q` and `K`."""
    rules = _IN_FORCE.get()
    rules.attention_calls += 1
    unknown = [name for name in ("softcap", "s_aux") if options.get(name) is not None]
    if unknown:
        raise ModelError(f"its attention has a {unknown[0]}", mend="choose another method")
    if not rules.linear:
        value = _shared(value, 2)
    if rules.through_softmax and not rules.linear:
        query, key = _shared(query, 4), _shared(key, 4)
    else:
        query, key = query.detach(), key.detach()
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


AttentionInterface.register(IMPLEMENTATION, _attention_rule)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
