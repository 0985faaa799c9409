"""What tests of explanations share: a small model whose words act on one another, and what a model is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES
from tiny import learnt, tiny_data, tiny_folder, tiny_recipe
from torch import Tensor, nn

from hf_mtl.configuration import MultiTaskConfig
from hf_mtl.data.preparation import RecipeData
from hf_mtl.explain.explainer import Explainer
from hf_mtl.explain.subject import Subject
from hf_mtl.model.modeling import MultiTaskModel

__all__ = ["learnt", "tiny_data", "tiny_folder", "tiny_recipe"]

POOLINGS = {"sentiment": "attention", "intent": "cls", "similarity": "last", "moods": "mean"}


def strengthen(model: nn.Module) -> nn.Module:
    """Enlarge random weights, so that layers are far from linear and words act on one another."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter *= 20.0 if "embeddings" in name else 4.0
    return model


@pytest.fixture(scope="session")
def tiny_explainer(tiny_data: RecipeData) -> Explainer:
    """A model with every kind of head and of pooling; not to be changed."""
    tasks = [dataclasses.replace(spec, pooling=POOLINGS.get(spec.name)) for spec in tiny_data.tasks]
    model = MultiTaskModel.from_encoder(tiny_data.recipe.encoder_path, tasks, seed=0).eval()
    strengthen(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model.attention_poolings["sentiment"].query.normal_()
    return Explainer(model, tiny_data.tokenizer)


@pytest.fixture(scope="session")
def family_explainer(tiny_data: RecipeData) -> Callable[[str], Explainer]:
    """Make an explainer of a small model of any architecture."""

    def make(model_type: str, **settings: Any) -> Explainer:
        family = dataclasses.replace(
            FAMILIES[model_type],
            settings={**FAMILIES[model_type].settings, "vocab_size": len(tiny_data.tokenizer), **settings},
        )
        tasks = [spec for spec in tiny_data.tasks if spec.name in ("sentiment", "slots", "similarity")]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = MultiTaskModel(MultiTaskConfig(encoder_config=family.config(model_type), tasks=tasks)).eval()
        return Explainer(model, tiny_data.tokenizer)

    return make


@pytest.fixture(scope="session")
def state_of() -> Callable[[Subject], dict[str, Any]]:
    """Return everything of a model that an explanation could leave changed; compare with `==`."""
    return _state_of


def _state_of(subject: Subject) -> dict[str, Any]:
    model = subject.model
    state: dict[str, Any] = {"generator": _Bits(torch.get_rng_state())}
    for name, module in model.named_modules():
        hooks = [key for key in vars(module) if key.endswith("_hooks")]
        state[name] = {
            "mode": module.training,
            "attributes": sorted(vars(module)),
            "hooks": {key: list(vars(module)[key] or ()) for key in hooks},
            "attention": getattr(getattr(module, "config", None), "_attn_implementation", None),
        }
    for name, parameter in model.named_parameters():
        gradient = None if parameter.grad is None else _Bits(parameter.grad)
        state[f"parameter {name}"] = (_Bits(parameter), gradient, parameter.requires_grad)
    state |= {f"buffer {name}": _Bits(buffer) for name, buffer in model.named_buffers()}
    return state


class _Bits:
    """A tensor's values, equal to those that are the same to the bit."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach().clone()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bits) and torch.equal(self.tensor, other.tensor)

    __hash__ = None  # pyright: ignore[reportAssignmentType]
