"""Low-rank adapters (LoRA) on the shared encoder, through peft; the heads are no part of them.

Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_mtl.errors import MissingExtraError, SpecError, one_of

if TYPE_CHECKING:
    from hf_mtl.model.modeling import MultiTaskModel

OPTIONS = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights",
)  # fmt: skip
"""Options of peft's `LoraConfig` that an adapted encoder can be rebuilt from; others need data or other weights."""
INITIALISATIONS = (True, False, "gaussian")
"""Those that leave the encoder's own weights as they are."""
FOLDER = "adapter"
"""Where a saved model keeps the adapters it was merged from, in peft's format."""
_NAME = "default"


def lora_config(options: Mapping[str, Any]) -> Any:
    """Return peft's configuration; all linear layers of the encoder are adapted where no `target_modules` are given.

    Args:
        options: options of peft's `LoraConfig`, by name.

    Raises:
        MissingExtraError: peft is not installed.
        SpecError: an option is unknown, would have no effect, or has a value that peft refuses.

    Example:
        >>> config = lora_config({"r": 4})
        >>> config.r, config.lora_alpha, config.target_modules
        (4, 8, 'all-linear')
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingExtraError("peft", extra="peft") from error
    for name in options:
        if name not in OPTIONS:
            raise SpecError(f"peft has the option {name!r}", mend=f"use one of {one_of(OPTIONS)}")
    start = options.get("init_lora_weights", True)
    if start not in INITIALISATIONS:
        raise SpecError(f"peft has init_lora_weights {start!r}", mend=f"use one of {one_of(INITIALISATIONS)}")
    values: dict[str, Any] = {"target_modules": "all-linear", **options}
    try:
        return LoraConfig(**values)
    except (TypeError, ValueError) as error:
        raise SpecError(f"peft: {error}", mend="see the documentation of LoraConfig") from error


def add_lora(model: MultiTaskModel, options: Mapping[str, Any], *, seed: int = 0) -> None:
    """Put adapters on a model's encoder, in place: they are trained in place of its weights, heads as before.

    The configuration keeps the options, so that a model that is saved with its adapters is loaded with them.

    Args:
        model: the model; one that has the very same adapters already is left alone.
        options: options of peft's `LoraConfig`.
        seed: seed of the adapters' random weights.

    Raises:
        MissingExtraError: peft is not installed.
        SpecError: an option cannot be used, or the model has other adapters.
    """
    known = model.config.peft
    if known is not None and known != dict(options):
        raise SpecError(
            f"peft is {dict(options)!r}, and the model has adapters of {known!r}",
            mend="give the same options, or call merge_and_unload first",
        )
    if known is None:
        with torch.random.fork_rng(devices=[]):
            # Not `torch.manual_seed`, which would seed the GPUs as well: adapters are made on the CPU.
            torch.default_generator.manual_seed(seed)
            attach(model.encoder, options)
        borrowing = [spec for spec in model.specs if model.head(spec.name).masks_tokens]
        if borrowing and hasattr(model.get_input_embeddings(), "get_base_layer"):
            raise SpecError(
                f"peft adapts the token embeddings, which {borrowing[0].type} multiplies with",
                where=f"task {borrowing[0].name!r}",
                mend="leave them out of target_modules, or leave the task out",
            )
        model.config.peft = dict(options)


def attach(encoder: PreTrainedModel, options: Mapping[str, Any]) -> None:
    """Put adapters on an encoder, in place, and freeze its own weights; arguments and errors as in `add_lora`."""
    config = lora_config(options)
    from peft import inject_adapter_in_model

    # GPT-2 stores its weights the other way round; peft sees it too, and warns.
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in encoder.modules())
    try:
        inject_adapter_in_model(config, encoder, _NAME)
    except (TypeError, ValueError) as error:
        raise SpecError(f"peft: {error}", mend="correct target_modules, or leave it out") from error


def train_only_adapters(encoder: nn.Module) -> None:
    """Freeze an adapted encoder's own weights; loading a model makes them trainable again."""
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merge_and_unload(model: MultiTaskModel) -> MultiTaskModel:
    """Add the adapters to the weights they adapt and remove them, in place.

    Args:
        model: the model; one without adapters is left alone.

    Returns:
        The same model, which is an ordinary one again and needs no peft. Its parameters can all be trained.
    """
    if model.config.peft is None:
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.encoder.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.encoder.get_submodule(parent), child, module.get_base_layer())
    del model.encoder.peft_config
    model.config.peft = None
    model.encoder.requires_grad_(True)
    return model


def save_merged(model: MultiTaskModel, folder: str | Path) -> None:
    """Save a model as an ordinary one, its adapters merged, and the adapters beside it; the model stays as it is.

    Args:
        model: a model with adapters.
        folder: where the model is saved, with the adapters in `adapter/`, as `peft.PeftModel` reads them.
    """
    merge_and_unload(copy.deepcopy(model)).save_pretrained(folder)
    beside = Path(folder) / FOLDER
    beside.mkdir(exist_ok=True)
    weights = {f"base_model.model.{name}": weight for name, weight in adapter_weights(model.encoder).items()}
    save_file(weights, beside / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.deepcopy(model.encoder.peft_config[_NAME])
    config.inference_mode = True
    config.save_pretrained(str(beside))


def adapter_weights(encoder: nn.Module) -> dict[str, Tensor]:
    """Return the weights of an encoder's adapters on the CPU, under peft's names."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(encoder, adapter_name=_NAME, save_embedding_layers=False)
    return {name: weight.detach().cpu().contiguous() for name, weight in state.items()}
