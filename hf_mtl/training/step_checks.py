"""What of tasks, steps and LoRA cannot work with the model or the other arguments, said before training starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from hf_mtl.data.masking import masked_tasks
from hf_mtl.errors import SpecError
from hf_mtl.registry import PERTURBATIONS
from hf_mtl.training.balancing import find_method
from hf_mtl.training.balancing_methods import FAMILIES
from hf_mtl.training.perturbations.base import Perturbation

if TYPE_CHECKING:
    from hf_mtl.configuration import MultiTaskConfig
    from hf_mtl.data.preparation import TrainingSplit
    from hf_mtl.model.modeling import MultiTaskModel
    from hf_mtl.training.arguments import MultiTaskTrainingArguments


def check_balancing(args: MultiTaskTrainingArguments) -> None:
    """Refuse balancing, aggregation and logs of gradients that cannot work with the other arguments.

    Raises:
        SpecError: they cannot; says what to change.
        MissingExtraError: a package is not installed.
    """
    for family in FAMILIES:
        name, options = getattr(args, family), getattr(args, f"{family}_kwargs")
        if name is None:
            if options:
                raise SpecError(f"{family}_kwargs is {options!r}, which would have no effect", mend=f"give {family}")
            continue
        method = find_method(family, name, options or ())
        if method.every_task and not args.every_task_in_batch:
            raise SpecError(
                f"{family} is {name!r}, which needs every task in each step", mend="set every_task_in_batch to true"
            )
        if not method.linear and args.gradient_accumulation_steps > 1:
            raise SpecError(
                f"{family} is {name!r}, which is not linear in the losses, "
                f"and gradient_accumulation_steps is {args.gradient_accumulation_steps}",
                mend="set gradient_accumulation_steps to 1, or choose another method",
            )
    if args.freeze_encoder and (args.aggregation or args.log_gradient_conflict):
        raise SpecError(
            f"{_what(args)} needs parameters that the tasks share, and freeze_encoder leaves none in training",
            mend="set freeze_encoder to false",
        )
    if args.aggregation and str(args.optim).endswith("lomo"):
        raise SpecError(
            f"aggregation is {args.aggregation!r}, but optim {args.optim!s} steps while it goes backward",
            mend="choose another optim",
        )
    check_accelerator(args, fsdp=bool(args.fsdp), deepspeed=bool(args.deepspeed), fp16=args.fp16)


FINEST_IN_HALF = 1e-3
"""Disturbances of a single number that are smaller get lost where numbers have the eight bits of bfloat16."""


def make_perturbation(args: MultiTaskTrainingArguments) -> Perturbation | None:
    """Make the perturbation that the arguments ask for; `None` where they ask for none.

    Raises:
        SpecError: there is no such method, or it has no such option, or one with another value.
    """
    options = cast(dict[str, Any], args.perturbation_kwargs or {})
    if args.perturbation is None:
        if options:
            raise SpecError(f"perturbation_kwargs is {options!r}, which would have no effect", mend="give perturbation")
        return None
    method = PERTURBATIONS.get(args.perturbation)
    try:
        method.check_options(options)
        return method(**options)
    except SpecError as error:
        raise SpecError(error.problem, where="perturbation_kwargs", mend=error.mend) from None


def check_perturbation(args: MultiTaskTrainingArguments) -> None:
    """Refuse a perturbation that cannot work with the other arguments.

    Raises:
        SpecError: it cannot; says what to change.
    """
    method, name = make_perturbation(args), f"perturbation {args.perturbation!r}"
    if method is None:
        return
    if args.balancing == "famo":
        raise SpecError(
            f"{name} makes losses that balancing 'famo' cannot compute again after the step",
            mend="choose another balancing",
        )
    if method.needs_embeddings and args.freeze_encoder:
        raise SpecError(
            f"{name} needs gradients on the embeddings, and freeze_encoder leaves the encoder out of training",
            mend="set freeze_encoder to false, or choose r_drop or mixup",
        )
    if method.needs_embeddings and args.fp16:
        raise SpecError(f"{name} takes gradients that are too small for fp16", mend="set precision to bf16 or fp32")
    if args.bf16 and method.finest < FINEST_IN_HALF:
        raise SpecError(
            f"{name} moves numbers by {method.finest:g}, which is lost in bf16",
            mend=f"give at least {FINEST_IN_HALF:g}, or set precision to fp32",
        )
    if method.needs_hooks and args.torch_compile:
        raise SpecError(
            f"{name} reaches into the model while it runs, and torch_compile would leave that out",
            mend="set torch_compile to false",
        )


def check_packed(args: MultiTaskTrainingArguments) -> None:
    """Refuse packing beside what it cannot work with.

    Raises:
        SpecError: it cannot; says what to change.
    """
    if args.packing and args.torch_compile:
        raise SpecError(
            "packing is true, and torch_compile, too: every batch would be compiled for its number of tokens",
            mend="leave one of them out",
        )
    if args.packing and args.perturbation is not None and PERTURBATIONS.get(args.perturbation).needs_embeddings:
        raise SpecError(
            f"packing is true, and perturbation {args.perturbation!r} disturbs embeddings of whole rows",
            mend="leave packing out, or choose r_drop or mixup",
        )


def check_tasks(model: MultiTaskModel, split: TrainingSplit) -> None:
    """Refuse a training split whose tasks are not those of the model.

    Raises:
        SpecError: the model lacks one, or has it with other labels or lengths.
    """
    specs = {spec.name: spec for spec in model.specs}
    for task in split.tasks:
        known = specs.get(task.spec.name)
        found = None
        if known is None:
            found = "the model has no such task"
        elif known.labels != task.spec.labels or known.type != task.spec.type:
            found = "the model's task has other labels or another type"
        elif (known.max_length, known.stride) != (task.spec.max_length, task.spec.stride):
            found = "the model's task has another max_length or stride"
        if found is not None:
            raise SpecError(
                found,
                where=f"dataset {split.name!r}, task {task.spec.name!r}",
                mend="load the recipe with tasks=model.specs",
            )


def check_architecture(config: MultiTaskConfig, *, fsdp: bool, deepspeed: bool) -> None:
    """Refuse parts between encoder and heads that need whole parameters, where they are sharded.

    Raises:
        SpecError: they would be.
    """
    for wrapper, used in (("FSDP", fsdp), ("DeepSpeed", deepspeed)):
        for key, value in (("sharing", config.sharing), ("interaction", config.interaction)):
            if used and value not in (None, "hard"):
                raise SpecError(
                    f"{key} is {value!r}, which does not work with the parameters that {wrapper} shards",
                    mend=f"train without {wrapper}, or leave {key} out",
                )
        graph = next((spec.name for spec in config.task_specs if spec.token_graph), None)
        if used and graph is not None:
            raise SpecError(
                f"token_graph is true, which does not work with the parameters that {wrapper} shards",
                where=f"task {graph!r}",
                mend=f"train without {wrapper}, or leave token_graph out",
            )
        masked = masked_tasks(config.task_specs) if used else []
        if masked:
            raise SpecError(
                f"task {masked[0].name!r} reads the encoder's embeddings, which {wrapper} shards",
                mend=f"train without {wrapper}, or leave the task out",
            )


def check_accelerator(args: MultiTaskTrainingArguments, *, fsdp: bool, deepspeed: bool, fp16: bool) -> None:
    """Refuse what cannot work with sharded parameters or scaled losses.

    Args:
        args: the training arguments.
        fsdp: whether parameters are sharded by FSDP.
        deepspeed: whether training runs in DeepSpeed.
        fp16: whether losses are scaled for float16.

    Raises:
        SpecError: it cannot work.
    """
    for wrapper, used in (("FSDP", fsdp), ("DeepSpeed", deepspeed)):
        if used and args.peft:
            raise SpecError(
                f"peft needs whole parameters to merge them into the saved model, and {wrapper} shards them",
                mend=f"train without {wrapper}, or leave it out",
            )
        if used and args.perturbation:
            raise SpecError(
                f"perturbation {args.perturbation!r} runs the model more than once before it goes backward, "
                f"which does not work with the parameters that {wrapper} shards",
                mend=f"train without {wrapper}, or leave it out",
            )
    learned = args.balancing is not None and FAMILIES["balancing"][0][args.balancing].learned
    if not (args.aggregation or learned or args.log_gradient_conflict):
        return
    for wrapper, used in (("FSDP", fsdp), ("DeepSpeed", deepspeed)):
        if used:
            raise SpecError(
                f"{_what(args)} needs whole parameters, and {wrapper} shards them",
                mend=f"train without {wrapper}, or leave it out",
            )
    if fp16:
        raise SpecError(
            f"{_what(args)} cannot work with the scaled losses of fp16", mend="set precision to bf16 or fp32"
        )


def _what(args: MultiTaskTrainingArguments) -> str:
    if args.aggregation:
        return f"aggregation {args.aggregation!r}"
    return "log_gradient_conflict" if args.log_gradient_conflict else f"balancing {args.balancing!r}"
