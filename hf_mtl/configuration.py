"""What a model is: `TaskSpec`, one task as data, and `MultiTaskConfig`, an encoder's configuration and its tasks."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache, cached_property
from typing import Any, ClassVar, Literal, cast

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig
from transformers import __version__ as transformers_version
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from hf_mtl.errors import SpecError, one_of
from hf_mtl.registry import HEADS

FORMAT_VERSION = 1
POOLINGS = ("cls", "mean", "last", "attention")
SCHEMES = ("IOB2", "IOBES")
# "average" is the mean over tasks in reports and metrics.
RESERVED_NAMES = ("average",)


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task as data: immutable, checked when made, and the same after a round trip through JSON.

    Args:
        name: letters, digits, `_` and `-`, beginning with a letter; names the head, its logits and its metrics.
        type: the task type, the name of a registered head such as `"sequence_classification"`.
        labels: the label names in the order of the logits; `None` for regression, and until they are read from data.
        pooling: how token states become one vector: `"cls"`, `"mean"`, `"last"` or `"attention"` (a learned query over
            the tokens). `None` lets the encoder choose: `"last"` for decoders, `"mean"` for the others. Ignored by
            token-level tasks.
        loss_weight: factor of this task's loss in the total, greater than 0.
        class_weights: one factor per label; for multi-label tasks the weight of positives. `None` weighs all alike.
        label_smoothing: share of probability moved from the true label to all labels, in [0, 1).
        dropout: dropout before the head in [0, 1); `None` takes the encoder's hidden dropout.
        scheme: `"IOB2"` or `"IOBES"` makes span metrics strict; `None` reads spans leniently, as conlleval does.

    Raises:
        SpecError: an argument is not one of the values allowed.

    Example:
        >>> spec = TaskSpec(name="topic", type="sequence_classification", labels=("sport", "world"))
        >>> TaskSpec.from_dict(spec.to_dict()) == spec
        True
    """

    name: str
    type: str
    labels: tuple[str, ...] | None = None
    pooling: Literal["cls", "mean", "last", "attention"] | None = None
    loss_weight: float = 1.0
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    dropout: float | None = None
    scheme: Literal["IOB2", "IOBES"] | None = None

    def __post_init__(self) -> None:
        try:
            self._freeze_sequences()
            self._validate()
        except SpecError as error:
            raise error.at(f"task {self.name!r}") from None

    def _freeze_sequences(self) -> None:
        for key in ("labels", "class_weights"):
            value = getattr(self, key)
            if isinstance(value, str | bytes) or not (value is None or isinstance(value, Sequence)):
                raise SpecError(f"{key} is {value!r}", mend=f"give {key} as a list")
            if value is not None:
                object.__setattr__(self, key, tuple(value))

    def _validate(self) -> None:
        if not isinstance(cast(object, self.name), str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", self.name):
            raise SpecError(f"name is {self.name!r}", mend="use letters, digits, '_' and '-', beginning with a letter")
        if self.name in RESERVED_NAMES or self.name in _module_attributes():
            raise SpecError(f"the name {self.name!r} is reserved and cannot name a head", mend="choose another name")
        HEADS.check(self.type)
        _check_choice("pooling", self.pooling, (*POOLINGS, None))
        _check_choice("scheme", self.scheme, (*SCHEMES, None))
        _check_number("loss_weight", self.loss_weight, above=0.0)
        _check_number("label_smoothing", self.label_smoothing, at_least=0.0, below=1.0)
        if self.dropout is not None:
            _check_number("dropout", self.dropout, at_least=0.0, below=1.0)
        self._validate_labels()

    def _validate_labels(self) -> None:
        labels = self.labels
        if labels is not None:
            for label in labels:
                if not isinstance(cast(object, label), str):
                    raise SpecError(f"label {label!r} is not text", mend="write every label as a string")
            twice = sorted({label for label in labels if labels.count(label) > 1})
            if twice:
                raise SpecError(f"label {twice[0]!r} stands twice in labels", mend="name each label once")
        if self.class_weights is not None:
            for weight in self.class_weights:
                _check_number("class_weights", weight, at_least=0.0)
            if labels is not None and len(self.class_weights) != len(labels):
                raise SpecError(
                    f"{len(self.class_weights)} class_weights for {len(labels)} labels", mend="give one per label"
                )

    @property
    def num_labels(self) -> int:
        """Number of labels; 1 for a task without a label set, such as regression."""
        return len(self.labels) if self.labels else 1

    @cached_property
    def label2id(self) -> dict[str, int]:
        """Position of each label in the logits."""
        return {label: index for index, label in enumerate(self.labels or ())}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, as plain JSON values."""
        values = asdict(self)
        for key in ("labels", "class_weights"):
            values[key] = list(values[key]) if values[key] is not None else None
        return {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskSpec:
        """Build a spec from plain values.

        Raises:
            SpecError: a key is unknown or missing, or a value is not allowed.
        """
        if not isinstance(cast(object, values), Mapping):
            raise SpecError(f"a task is {values!r}", mend="give each task as a mapping with a name and a type")
        place = f"task {values.get('name')!r}"
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known), key=repr)
        if unknown:
            raise SpecError(f"unknown key {unknown[0]!r}", where=place, mend=f"use {one_of(known)}")
        for key in ("name", "type"):
            if key not in values:
                raise SpecError(f"the key {key!r} is missing", where=place, mend="every task has a name and a type")
        return cls(**values)


@strict(accept_kwargs=True)
class MultiTaskConfig(PreTrainedConfig):
    """An encoder's configuration and a list of tasks: all that is needed to rebuild a model.

    Args:
        encoder_config: configuration of the shared encoder, or its dictionary with a `model_type`.
        tasks: the tasks in the order of their heads, as `TaskSpec` or dictionaries; stored as a list, since JSON
            written with sorted keys would reorder a mapping.
        format_version: version of this format; a newer one than this package knows is refused.

    Raises:
        SpecError: a task is not valid, two tasks share a name, the encoder's model type is not known, or the format is
            too new.

    Example:
        >>> spec = TaskSpec(name="topic", type="sequence_classification", labels=("sport", "world"))
        >>> config = MultiTaskConfig(encoder_config={"model_type": "bert"}, tasks=[spec])
        >>> config.task_specs[0].labels
        ('sport', 'world')
    """

    model_type: ClassVar[str] = "hf_mtl"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")
    }

    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    tasks: list[Any] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        # First, because a newer format may well break the rules below.
        _check_format_version(self.format_version)
        _check_encoder_config(self.encoder_config)
        self.encoder_config = copy.deepcopy(self.encoder_config)
        self.task_specs = self.tasks
        super().__post_init__(**kwargs)
        # A path of this machine does not travel with the model.
        cast(PreTrainedConfig, self.encoder_config).name_or_path = ""

    @property
    def task_specs(self) -> tuple[TaskSpec, ...]:
        """The tasks, in the order of their heads; assigning a sequence of specs or dictionaries replaces them."""
        return _checked_tasks(self.tasks)

    @task_specs.setter
    def task_specs(self, tasks: Sequence[TaskSpec | Mapping[str, Any]]) -> None:
        self.tasks = [spec.to_dict() for spec in _checked_tasks(tasks)]

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """Return the encoder's text configuration: its vocabulary is the model's."""
        return cast(PreTrainedConfig, self.encoder_config).get_text_config(*args, **kwargs)


# Whoever has imported this module can load a saved configuration by its type.
AutoConfig.register(MultiTaskConfig.model_type, MultiTaskConfig, exist_ok=True)


def select_tasks(specs: Sequence[TaskSpec], names: Sequence[str] | None) -> tuple[TaskSpec, ...]:
    """Return the specs with the given names, in the order of the specs; `None` selects all.

    Raises:
        SpecError: a name is not among the specs.
    """
    if names is None:
        return tuple(specs)
    known = [spec.name for spec in specs]
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in known:
            raise SpecError(f"the model has no task {name!r}", mend=f"choose from {one_of(known)}")
    return tuple(spec for spec in specs if spec.name in chosen)


def _checked_tasks(tasks: object) -> tuple[TaskSpec, ...]:
    if isinstance(tasks, str | bytes) or not isinstance(tasks, Sequence):
        raise SpecError(f"tasks is {tasks!r}", mend="give a list of tasks")
    given = cast(Sequence[Any], tasks)
    specs = tuple(task if isinstance(task, TaskSpec) else TaskSpec.from_dict(task) for task in given)
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"two tasks are named {name!r}", mend="give every task its own name")
    return specs


def _check_format_version(version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise SpecError(f"format_version is {version!r}", mend=f"use {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise SpecError(
            f"format_version is {version}, this hf_mtl reads up to {FORMAT_VERSION}",
            mend="pip install --upgrade hf-mtl",
        )


def _check_encoder_config(encoder_config: object) -> None:
    if encoder_config is None or isinstance(encoder_config, PreTrainedConfig):
        return
    if not isinstance(encoder_config, dict):
        raise SpecError(
            f"encoder_config is {encoder_config!r}",
            mend="give a configuration, such as AutoConfig.from_pretrained(name), or its dictionary",
        )
    model_type = cast(dict[str, Any], encoder_config).get("model_type", "bert")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise SpecError(
            f"encoder_config has the model_type {model_type!r}, not known to transformers {transformers_version}",
            mend="use the model_type of an encoder, such as 'bert', or install the transformers version that has it",
        )


def _check_choice(argument: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise SpecError(f"{argument} is {value!r}", mend=f"use one of {one_of(allowed)}")


def _check_number(
    argument: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
) -> None:
    bounds = {"above": above, "at least": at_least, "below": below}
    wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if good:
        number = float(cast(float, value))
        good = (above is None or number > above) and (at_least is None or number >= at_least)
        good = good and (below is None or number < below)
    if not good:
        raise SpecError(f"{argument} is {value!r}", mend=f"give a number {wanted}")


@cache
def _module_attributes() -> frozenset[str]:
    from torch import nn

    return frozenset(dir(nn.ModuleDict())) | {"training"}
