"""Tasks of a trained model added, removed and renamed; heads of several models put on one encoder.

Whatever is not named stays as it is, to the bit; but a task with `attention_gate` switches the encoder to eager
attention, which rounds otherwise, for as long as it is there. A new head is trained like any other, alone where the
encoder is frozen:

    model, tokenizer = MultiTaskModel.from_pretrained("runs/first"), AutoTokenizer.from_pretrained("runs/first")
    data = load_recipe("more.yaml", tokenizer=tokenizer)
    for spec in data.tasks:
        model.add_task(spec)
    arguments = MultiTaskTrainingArguments(output_dir="runs/second", freeze_encoder=True)
    MultiTaskTrainer(
        model, arguments, train_dataset=data.train, eval_dataset=data.validation, processing_class=tokenizer
    ).train()
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig

from hf_mtl.configuration import ARCHITECTURE, MultiTaskConfig, TaskSpec, select_tasks
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.model.features import TASK_PARTS
from hf_mtl.model.heads.base import TaskHead
from hf_mtl.model.task_attention import attend_eagerly
from hf_mtl.registry import HEADS

if TYPE_CHECKING:
    from hf_mtl.model.modeling import MultiTaskModel

WITHOUT_MEANING = ("_name_or_path", "transformers_version", "architectures", "dtype", "id2label", "label2id",
                   "problem_type")  # fmt: skip
"""What two configurations of the same encoder may differ in."""


@dataclass(frozen=True)
class _Part:
    """What a model holds for one task: its spec, its head, how the tokens are pooled for it, and its other modules."""

    spec: TaskSpec
    head: TaskHead
    pooling: str | None
    modules: dict[str, nn.Module]


def add_task(model: MultiTaskModel, spec: TaskSpec | Mapping[str, Any], *, seed: int = 0) -> None:
    """Give a model one more task, in place; its head comes last.

    Args:
        model: the model.
        spec: the new task, with its labels.
        seed: seed of the head's random weights, which are those that `MultiTaskModel.from_encoder` would draw for
            this task alone.

    Raises:
        SpecError: the model has a task of that name, or the task cannot work.
    """
    spec = spec if isinstance(spec, TaskSpec) else TaskSpec.from_dict(spec)
    _check_apart(model)
    _check_free(model, spec.name)
    _set_parts(model, [*_parts(model), _new_part(model, spec, seed)])


def remove_task(model: MultiTaskModel, task: str) -> None:
    """Take a task and its head away from a model, in place.

    Raises:
        SpecError: the model has no such task, or no other.
    """
    _spec(model, task)
    _check_apart(model)
    kept = [part for part in _parts(model) if part.spec.name != task]
    if not kept:
        raise SpecError(f"{task!r} is the model's only task", mend="add another one first")
    _set_parts(model, kept)


def rename_task(model: MultiTaskModel, task: str, name: str) -> None:
    """Give a task of a model another name, in place; it keeps its head and its place among the tasks.

    Raises:
        SpecError: the model has no such task, or has one of the new name, or the new name is not allowed.
    """
    spec = replace(_spec(model, task), name=name)
    _check_apart(model)
    if name != task:
        _check_free(model, name)
    _set_parts(model, [replace(part, spec=spec) if part.spec.name == task else part for part in _parts(model)])


def add_labels(
    model: MultiTaskModel,
    task: str,
    labels: Sequence[str],
    *,
    class_weights: Sequence[float] | None = None,
    seed: int = 0,
) -> None:
    """Give a task of a model more labels, in place; they come after those it has, whose weights stay as they are.

    Args:
        model: the model.
        task: the task.
        labels: the new labels.
        class_weights: one per new label, for a task that has class weights.
        seed: seed of the new labels' random weights.

    Raises:
        SpecError: the model has no such task, its type has no labels, a label is there already, the labels are of
            another kind than those the task has (span tags and plain tags), or class weights are missing.
    """
    old = _spec(model, task)
    spec = _with_labels(old, labels, class_weights)
    part = next(part for part in _parts(model) if part.spec.name == task)
    grown = _new_part(model, spec, seed)
    _copy_rows(part.head, grown.head)
    grown = replace(grown, modules=part.modules)
    _set_parts(model, [grown if part.spec.name == task else part for part in _parts(model)])


def merge(models: Sequence[MultiTaskModel]) -> MultiTaskModel:
    """Put the heads of several models on one encoder, which must be the same in all of them, to the bit.

    Args:
        models: at least two models, such as those of which each trained its heads with the encoder frozen; they stay
            as they are.

    Returns:
        A new model with the tasks of all of them, in their order.

    Raises:
        SpecError: there are fewer than two models, or two of them have a task of the same name.
        ModelError: their encoders differ.

    Example:
        >>> from hf_mtl import MultiTaskConfig, MultiTaskModel, TaskSpec
        >>> encoder = {"model_type": "bert", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1,
        ...            "num_attention_heads": 2, "intermediate_size": 8}
        >>> stars = TaskSpec(name="stars", type="regression")
        >>> first = MultiTaskModel(MultiTaskConfig(encoder_config=encoder, tasks=[stars]))
        >>> second = copy.deepcopy(first)
        >>> second.rename_task("stars", "price")
        >>> [spec.name for spec in merge([first, second]).specs]
        ['stars', 'price']
    """
    if len(models) < 2:
        raise SpecError(f"models holds {len(models)}", mend="give at least two")
    names: set[str] = set()
    for place, model in enumerate(models, start=1):
        for spec in model.specs:
            if spec.name in names:
                raise SpecError(
                    f"model {place} has a task {spec.name!r}, and so has one before it", mend="call rename_task first"
                )
            names.add(spec.name)
        _check_apart(model)
        _check_same_encoder(models[0], model, place)
    merged = copy.deepcopy(models[0])
    device = merged.device
    others = [copy.deepcopy(part) for model in models[1:] for part in _parts(model)]
    _set_parts(merged, [*_parts(merged), *others])
    for modules in (merged.heads, *map(merged.get_submodule, TASK_PARTS)):
        modules.to(device)
    return merged


# ---------------------------------------------------------------------- parts


def _parts(model: MultiTaskModel) -> list[_Part]:
    members = {name: cast(nn.ModuleDict, model.get_submodule(name)) for name in TASK_PARTS}
    return [
        _Part(
            spec,
            model.head(spec.name),
            model.poolings.get(spec.name),
            {name: modules[spec.name] for name, modules in members.items() if spec.name in modules},
        )
        for spec in model.specs
    ]


def _set_parts(model: MultiTaskModel, parts: Sequence[_Part]) -> None:
    model.config.task_specs = [part.spec for part in parts]  # first, for it checks them
    model.specs = model.config.task_specs
    for part in parts:
        part.head.spec = part.spec
    model.heads = nn.ModuleDict({part.spec.name: part.head for part in parts})
    model.poolings = {part.spec.name: part.pooling for part in parts if part.pooling is not None}
    for name in TASK_PARTS:
        members = {part.spec.name: part.modules[name] for part in parts if name in part.modules}
        setattr(model, name, nn.ModuleDict(members))
    attend_eagerly(model.encoder, model.specs)


def _new_part(model: MultiTaskModel, spec: TaskSpec, seed: int) -> _Part:
    """Make the parts of a task as the constructor makes them; without an encoder, which so stays untouched."""
    own = model.config
    apart = {key: value for key, value in own.architecture.items() if not key.startswith("interaction")}
    config = MultiTaskConfig(encoder_config=own.encoder_config, tasks=[spec], **apart)
    with torch.random.fork_rng(devices=[]):
        # Not `torch.manual_seed`, which would seed the GPUs as well: heads are made on the CPU.
        torch.default_generator.manual_seed(seed)
        made = type(model)(config, encoder=cast(Any, nn.Identity()))
    for modules in made.own_modules(spec.name):
        modules.to(device=model.device, dtype=model.dtype).train(model.training)
    return _parts(made)[0]


def _copy_rows(old: TaskHead, new: TaskHead) -> None:
    """Write the weights of a head into one of more labels: they are the first rows of what depends on the labels."""
    sources = dict(old.named_parameters()) | dict(old.named_buffers())
    with torch.no_grad():
        for name, target in (*new.named_parameters(), *new.named_buffers()):
            source = sources[name]
            if target.shape == source.shape:
                target.copy_(source)
            elif target.shape[1:] == source.shape[1:]:
                target[: len(source)].copy_(source)
            else:
                where = f"task {old.spec.name!r}"
                raise SpecError(f"the rows of its {name!r} are not its labels", where=where, mend="add a task instead")
            target.requires_grad_(source.requires_grad)


# ---------------------------------------------------------------------- checks


def _spec(model: MultiTaskModel, task: str) -> TaskSpec:
    return select_tasks(model.specs, [task])[0]


def _check_apart(model: MultiTaskModel) -> None:
    if model.interaction is not None:
        raise SpecError(
            f"the tasks of the model hear each other (interaction {model.config.interaction!r})",
            mend="train a model of the tasks that are wanted",
        )


def _check_free(model: MultiTaskModel, name: str) -> None:
    if name in model.heads:
        raise SpecError(f"the model has a task {name!r} already", mend="choose another name, or remove that task first")


def _with_labels(spec: TaskSpec, labels: Sequence[str], class_weights: Sequence[float] | None) -> TaskSpec:
    where = f"task {spec.name!r}"
    if isinstance(labels, str) or not labels:
        raise SpecError(f"labels is {labels!r}", where=where, mend="give a list of new labels")
    if spec.labels is None:
        raise SpecError(f"{spec.type} has no labels", where=where, mend="add a task of another type")
    known = next((label for label in labels if label in spec.labels), None)
    if known is not None:
        raise SpecError(f"the label {known!r} is there already", where=where, mend="give new labels only")
    if (class_weights is None) != (spec.class_weights is None):
        found = "has class_weights" if class_weights is None else "has no class_weights"
        mend = "give class_weights for the new labels" if class_weights is None else "leave class_weights out"
        raise SpecError(f"the task {found}", where=where, mend=mend)
    weights = (*(spec.class_weights or ()), *(class_weights or ())) or None
    least = None if spec.thresholds is None else (*spec.thresholds, *(0.5 for _ in labels))
    grown = replace(spec, labels=(*spec.labels, *labels), class_weights=weights, thresholds=least)
    head = HEADS.get(spec.type)
    head.validate_spec(grown)
    if head.metric_name(grown) != head.metric_name(spec):
        # Such as a plain tag among span tags, which would make plain tags of them all.
        raise SpecError(
            f"with {list(labels)!r} the task would be scored as {head.metric_name(grown)}, "
            f"not as {head.metric_name(spec)}",
            where=where,
            mend="give labels of the kind that the task has",
        )
    return grown


def _check_same_encoder(first: MultiTaskModel, other: MultiTaskModel, place: int) -> None:
    mend = "merge models whose heads were trained on the same encoder, frozen"
    where = f"model {place}"
    ours, theirs = (_meaning(model.config.get_text_config()) for model in (first, other))
    ours, theirs = ours | {"peft": first.config.peft}, theirs | {"peft": other.config.peft}
    for key in ARCHITECTURE:
        ours[key], theirs[key] = getattr(first.config, key), getattr(other.config, key)
    differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if differing:
        key = differing[0]
        raise ModelError(
            f"its encoder's {key} is {theirs.get(key)!r}, the first model's {ours.get(key)!r}", where=where, mend=mend
        )
    mine, yours = first.encoder.state_dict(), other.encoder.state_dict()
    differing = [key for key in mine.keys() | yours.keys() if key not in mine or key not in yours]
    differing = differing or [key for key in mine if not _equal(mine[key], yours[key])]
    if differing:
        raise ModelError(
            f"{len(differing)} weights of its encoder are not the first model's, {min(differing)!r} among them",
            where=where,
            mend=mend,
        )


def _meaning(config: PreTrainedConfig) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in WITHOUT_MEANING}


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first.cpu(), second.cpu())
