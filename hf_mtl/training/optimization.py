"""What the optimizer trains, and how fast: frozen parts, learning rates of heads and encoder layers."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_mtl.data.recipe import near
from hf_mtl.errors import SpecError
from hf_mtl.model.lora import add_lora
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.packing import check_packing
from hf_mtl.training.arguments import MultiTaskTrainingArguments

HEAD_RATE = 10.0
"""Learning rate of the heads over that of the encoder, where none is given."""


def head_parameters(model: MultiTaskModel, task: str) -> list[nn.Parameter]:
    """Return the parameters that a task has for itself: its head's, and those it reads the encoder with."""
    return [parameter for module in model.own_modules(task) for parameter in module.parameters()]


def prepare_model(model: MultiTaskModel, args: MultiTaskTrainingArguments, trained: Sequence[str] = ()) -> None:
    """Put adapters on the encoder and freeze what shall stay as it is, in place; nothing is made trainable again.

    Args:
        model: the model.
        args: `peft`, `freeze_embeddings`, `freeze_layers`, `freeze_encoder`, `freeze_heads` and `packing`.
        trained: tasks that have training rows.

    Raises:
        SpecError: a task is unknown, the encoder has fewer layers, or nothing would be left to train.
        ModelError: the encoder's layers cannot be told apart, or its tokens not be packed.
    """
    if args.packing:
        check_packing(model)
    if args.peft is not None:
        add_lora(model, cast(dict[str, Any], args.peft), seed=args.seed)
    tasks = [spec.name for spec in model.specs]
    for task in args.freeze_heads or ():
        if task not in tasks:
            raise SpecError(f"freeze_heads has {task!r}", mend=near(task, tasks))
        if args.freeze_encoder and task in trained:
            raise SpecError(
                f"freeze_heads has {task!r}, whose training rows would train nothing: the encoder is frozen, too",
                mend="leave its training files out, or freeze less",
            )
        _freeze(head_parameters(model, task))
    if args.freeze_encoder:
        _freeze(list(model.encoder.parameters()))
    elif args.freeze_embeddings or args.freeze_layers or args.layer_decay != 1.0:
        parts = model.adapter.parts(model.encoder)
        if args.freeze_layers > len(parts.layers):
            raise SpecError(
                f"freeze_layers is {args.freeze_layers}, and the encoder has {len(parts.layers)} layers"
                " with weights of their own",
                mend="give fewer, or set freeze_encoder to true",
            )
        if args.freeze_embeddings or args.freeze_layers:
            _freeze([*parts.embeddings, *chain(*parts.layers[: args.freeze_layers])])
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SpecError("every parameter is frozen", mend="freeze less")


def _freeze(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(False)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, model: MultiTaskModel, args: MultiTaskTrainingArguments
) -> None:
    """Give heads and lower encoder layers learning rates of their own in a new optimizer.

    Of `L` layers, the one at depth `l` (the lowest is 1) learns at `learning_rate * layer_decay ** (L - l)`, the
    embeddings as layer 0 (as ELECTRA is fine-tuned: Clark et al. 2020, https://arxiv.org/abs/2003.10555);
    what stands above the layers learns at `learning_rate`, heads at `head_learning_rate`. The order of the groups is
    that of the top layers, embeddings, layers from the lowest, heads.

    Args:
        optimizer: an optimizer over the model's parameters that has made no step yet.
        model: the model.
        args: `learning_rate`, `head_learning_rate` and `layer_decay`.

    Raises:
        ModelError: the encoder's layers cannot be told apart.
    """
    if args.layer_decay != 1.0:
        parts = model.adapter.parts(model.encoder)
        for depth, parameters in enumerate((parts.embeddings, *parts.layers[:-1])):
            rate = args.learning_rate * args.layer_decay ** (len(parts.layers) - depth)
            set_apart(optimizer, parameters, lr=rate)
    heads = [parameter for spec in model.specs for parameter in head_parameters(model, spec.name)]
    heads += model.interaction.parameters() if model.interaction is not None else ()
    rate = args.head_learning_rate
    set_apart(optimizer, heads, lr=HEAD_RATE * args.learning_rate if rate is None else rate)


@contextmanager
def refusing_schedules(args: MultiTaskTrainingArguments) -> Generator[None]:
    """Say which argument is wrong where transformers cannot make a learning rate schedule.

    Raises:
        SpecError: `lr_scheduler_kwargs` does not suit `lr_scheduler_type`.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
        raise SpecError(
            f"lr_scheduler_kwargs is {args.lr_scheduler_kwargs!r}, which {kind!r} refuses ({error})",
            mend=f"give the options of transformers' {kind!r}, or another lr_scheduler_type",
        ) from error


def set_apart(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], *, lr: float) -> None:
    """Give some parameters of a new optimizer a learning rate of their own, each with the options of its group.

    Args:
        optimizer: an optimizer that has made no step yet.
        parameters: the parameters, wherever they stand among its groups; those it does not have are left alone.
        lr: their learning rate.
    """
    apart = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) in apart]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in apart]
        if own:
            optimizer.add_param_group({**group, "params": own, "lr": lr})
    # A frozen encoder leaves nothing behind in the first groups; the rate that is logged is that of the first.
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
