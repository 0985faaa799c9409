"""What FSDP2 must know of a model whose heads do not all run on every process in every step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from hf_mtl.errors import SpecError
from hf_mtl.training.optimization import head_parameters

if TYPE_CHECKING:
    from hf_mtl.model.modeling import MultiTaskModel


def check_asked_for(*, fsdp: bool, deepspeed: bool) -> None:
    """Refuse to train whole where the launcher was told to shard: accelerate 1.15 does so on CPUs, without a word.

    Args:
        fsdp: whether FSDP is in use.
        deepspeed: whether DeepSpeed is in use.

    Raises:
        SpecError: one was asked for and is not in use.
    """
    for name, used in (("FSDP", fsdp), ("DEEPSPEED", deepspeed)):
        if not used and os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise SpecError(
                f"accelerate launch was told to use {name}, which it leaves out on CPUs and in a single process",
                mend="start two or more processes on GPUs, or choose another config of accelerate",
            )


def check_fsdp(plugin: Any) -> None:
    """Refuse settings of FSDP under which training would fail or leave no model behind.

    Args:
        plugin: accelerate's `FullyShardedDataParallelPlugin`.

    Raises:
        SpecError: it is FSDP1, whose flat parameters know no learning rates of single layers and heads; it would save
            no whole model; or this torch cannot reduce the gradients of heads that ran on some processes only.
    """
    if plugin.fsdp_version != 2:
        raise SpecError(f"fsdp_version is {plugin.fsdp_version}", mend="set fsdp_version to 2")
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        # transformers 5.23 saves a model with no other, and says nothing.
        raise SpecError(
            "fsdp_state_dict_type is SHARDED_STATE_DICT, and no whole model would be saved",
            mend="set fsdp_state_dict_type to FULL_STATE_DICT",
        )
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise SpecError(
            "this torch cannot reduce the gradients of heads that ran on some processes only under FSDP",
            mend="use torch 2.13 or later, or train without FSDP",
        )


def choose_units(plugin: Any, model: MultiTaskModel) -> None:
    """Shard the encoder layer by layer where nothing else is asked for.

    Left to itself, accelerate 1.15 takes the embeddings as a unit since the encoder names them as one not to split, and
    then their token embeddings as another within it, which torch refuses with a `TypeError`.

    Args:
        plugin: accelerate's `FullyShardedDataParallelPlugin`, changed in place.
        model: the model, not sharded yet.
    """
    if plugin.transformer_cls_names_to_wrap is not None:
        return
    tokens = model.encoder.get_input_embeddings()
    unsplit: set[str] = set(model._no_split_modules or ())  # pyright: ignore[reportPrivateUsage]
    above = {type(module).__name__ for module in model.modules() if any(part is tokens for part in module.modules())}
    present = {type(module).__name__ for module in model.modules()}
    plugin.transformer_cls_names_to_wrap = sorted((unsplit & present) - above)


def reduce_unused_parameters(model: nn.Module) -> None:
    """Let the processes add up gradients of heads that only some of them ran, as `find_unused_parameters` does for DDP.

    Without it the processes exchange gradients of unlike sizes, which fails or mixes up the parameters.

    Args:
        model: the model as FSDP2 sharded it, changed in place.
    """
    if isinstance(model, FSDPModule):
        model.set_reduce_scatter_unused_params(True)


def drop_unused_gradients(model: MultiTaskModel, items: Mapping[str, Tensor]) -> None:
    """Take away the zero gradients of heads that no process ran in a step, lest weight decay and momentum move them.

    Args:
        model: the sharded model, after the last backward pass of the step.
        items: per task its labelled items in the step, on all processes together.
    """
    counts: list[float] = torch.stack([*items.values()]).tolist()
    for task, count in zip(items, counts, strict=True):
        if count == 0:
            for parameter in head_parameters(model, task):
                parameter.grad = None
