"""What a model is: `TaskSpec`, one task as data, and `MultiTaskConfig`, an encoder's configuration and its tasks."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache, cached_property
from typing import Any, ClassVar, Literal, cast

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig
from transformers import __version__ as transformers_version
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from hf_mtl.checks import check_choice, check_count, check_number
from hf_mtl.errors import SpecError, one_of
from hf_mtl.registry import ENCODERS, HEADS

FORMAT_VERSION = 1
POOLING_KINDS = ("cls", "mean", "last", "attention")
SCHEMES = ("IOB2", "IOBES")
SHARINGS = ("hard", "soft")
INTERACTIONS = ("gat",)
ARCHITECTURE = ["sharing", "sharing_strength", "sharing_size", "interaction", "interaction_heads", "interaction_graph"]
"""What a configuration says of the network beside its encoder and its tasks; keys of a recipe, too."""
# "average" is the mean over tasks in reports and metrics.
RESERVED_NAMES = ("average",)
MIN_LENGTH = 8
"""The least number of tokens that a row may be cut to."""
MAX_SIZE = 2**24
"""The greatest number that may stand in an encoder's configuration: sizes, ids and positions of texts are far below."""
SIZE_LIMITS = {"theta": None, "layer": 1024, "num_labels": 2**17}
"""Limits of their own, by a part of the key; `None` where the number is no size, such as a base of frequencies."""


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
        attention_heads: queries of attention pooling, each for a part of the pooled output; a number that divides the
            encoder's hidden size.
        attention_gate: whether attention pooling joins the attention that the encoder's last layer pays to each token,
            by a learned gate; the encoder then computes attention eagerly.
        layer_mix: whether the task reads a learned mix of all layers of the encoder, not the last one.
        token_graph: whether graph attention passes messages between the tokens that the task reads, along the
            dependency graph of the text or, without one, between neighbours; see `hf_mtl.model.token_graph`. Not for
            pooling `"cls"`, whose token is no word.
        token_graph_heads: its attention heads; a number that divides the encoder's hidden size.
        token_graph_layers: how often messages are passed, each time as far as one edge.
        loss_weight: factor of this task's loss in the total, greater than 0.
        class_weights: one factor per label; for multi-label tasks the weight of positives. `None` weighs all alike, and
            `"balanced"` takes what the training rows call for, see `hf_mtl.data.balanced_weights`.
        focal_gamma: power of the focal loss, at least 0; see `hf_mtl.model.focal`. 0 is the plain loss.
        thresholds: for multi-label tasks the least probability of each label that is answered; `None` takes 1/2.
        tune_thresholds: whether a training run ends with a search for the best thresholds, on the validation rows.
        label_smoothing: share of probability moved from the true label to all labels, in [0, 1).
        mask_probability: share of a row's tokens that masked language modeling masks, in (0, 1); `None` takes 0.15.
        dropout: dropout before the head in [0, 1); `None` takes the encoder's hidden dropout.
        scheme: `"IOB2"` or `"IOBES"` makes span metrics strict; `None` reads spans leniently, as conlleval does.
        max_length: tokens that the task reads of a row, special tokens included, at least 8; `None` takes the
            tokenizer's `model_max_length`. Tasks that are asked together share one pass, over the most of theirs.
        stride: tokens that two windows share when a longer text is read in windows; `None` cuts it. Less than half of
            `max_length`; of tasks asked together the most counts. The answer of a pooled task is made from the mean of
            the windows' logits, and that of a word from the window with the most context on its nearer side. Other
            tasks see the first window alone, and pairs of texts are always cut.

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
    attention_heads: int = 1
    attention_gate: bool = False
    layer_mix: bool = False
    token_graph: bool = False
    token_graph_heads: int = 4
    token_graph_layers: int = 1
    loss_weight: float = 1.0
    class_weights: tuple[float, ...] | Literal["balanced"] | None = None
    focal_gamma: float = 0.0
    thresholds: tuple[float, ...] | None = None
    tune_thresholds: bool = False
    label_smoothing: float = 0.0
    mask_probability: float | None = None
    dropout: float | None = None
    scheme: Literal["IOB2", "IOBES"] | None = None
    max_length: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        try:
            self._freeze_sequences()
            self._validate()
        except SpecError as error:
            raise error.at(f"task {self.name!r}") from None

    def _freeze_sequences(self) -> None:
        for key in ("labels", "class_weights", "thresholds"):
            value = getattr(self, key)
            if (key, value) == ("class_weights", "balanced"):
                continue
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
        check_choice("pooling", self.pooling, (*POOLING_KINDS, None))
        self._validate_attention()
        check_choice("scheme", self.scheme, (*SCHEMES, None))
        check_number("loss_weight", self.loss_weight, above=0.0)
        check_number("label_smoothing", self.label_smoothing, at_least=0.0, below=1.0)
        check_number("focal_gamma", self.focal_gamma, at_least=0.0)
        if self.dropout is not None:
            check_number("dropout", self.dropout, at_least=0.0, below=1.0)
        self._validate_lengths()
        self._validate_labels()

    def _validate_attention(self) -> None:
        for key in ("attention_heads", "token_graph_heads", "token_graph_layers"):
            check_count(key, getattr(self, key))
        for key in ("attention_gate", "layer_mix", "tune_thresholds", "token_graph"):
            if not isinstance(getattr(self, key), bool):
                raise SpecError(f"{key} is {getattr(self, key)!r}", mend="give true or false")
        for key, default in (("attention_heads", 1), ("attention_gate", False)):
            if getattr(self, key) != default and self.pooling != "attention":
                raise SpecError(
                    f"{key} is {getattr(self, key)!r}, and pooling is {self.pooling!r}",
                    mend=f"set pooling to 'attention', or leave {key} out",
                )
        for key, default in (("token_graph_heads", 4), ("token_graph_layers", 1)):
            if getattr(self, key) != default and not self.token_graph:
                raise SpecError(
                    f"{key} is {getattr(self, key)!r}, and token_graph is false",
                    mend=f"set token_graph to true, or leave {key} out",
                )
        if self.token_graph and self.pooling == "cls":
            raise SpecError(
                "token_graph is true, and pooling is 'cls', which reads a token that no edge reaches",
                mend="set pooling to 'mean' or 'attention', or leave token_graph out",
            )

    def _validate_lengths(self) -> None:
        for key, least in (("max_length", MIN_LENGTH), ("stride", 0)):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise SpecError(f"{key} is {value!r}", mend=f"give a whole number of tokens, at least {least}")
        if self.max_length is not None:
            check_stride(self.stride, self.max_length)

    def _validate_labels(self) -> None:
        labels = self.labels
        if labels is not None:
            for label in labels:
                if not isinstance(cast(object, label), str):
                    raise SpecError(f"label {label!r} is not text", mend="write every label as a string")
            twice = sorted(label for label, count in Counter(labels).items() if count > 1)
            if twice:
                raise SpecError(f"label {twice[0]!r} stands twice in labels", mend="name each label once")
        if self.tune_thresholds and self.thresholds is not None:
            raise SpecError("thresholds are given and are to be tuned", mend="leave one of the two out")
        for key, below in (("class_weights", None), ("thresholds", 1.0)):
            values = getattr(self, key)
            for value in values if isinstance(values, tuple) else ():
                check_number(key, value, at_least=0.0, below=below)
            if labels is not None and isinstance(values, tuple) and len(values) != len(labels):
                raise SpecError(f"{len(values)} {key} for {len(labels)} labels", mend="give one per label")

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
        for key in ("labels", "class_weights", "thresholds"):
            values[key] = list(values[key]) if isinstance(values[key], tuple) else values[key]
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
        peft: options of the low-rank adapters that the encoder carries; `None` where it carries none.
        sharing: `"soft"` gives each task an adapter of its own on top of the encoder, and ties them to each other while
            training; `None` or `"hard"`, tasks share all but their heads.
        sharing_strength: weight of that tie in the loss, at least 0.
        sharing_size: width of these adapters.
        interaction: `"gat"` passes messages between the pooled outputs of the tasks by graph attention; it needs
            torch_geometric.
        interaction_heads: its attention heads; a number that divides the encoder's hidden size.
        interaction_graph: task -> tasks that it hears; each hears all others where not given.
        split_seed: seed of the rows that training set aside as validation rows where a dataset has none of its own.
        format_version: version of this format; a newer one than this package knows is refused.

    Raises:
        SpecError: a task is not valid, two tasks share a name, the encoder's model type is not known, a size is absurd,
            or the format is too new.

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
    peft: dict[str, Any] | None = None
    sharing: str | None = None
    sharing_strength: float | int | None = None
    sharing_size: int | None = None
    interaction: str | None = None
    interaction_heads: int | None = None
    interaction_graph: dict[str, list[str]] | None = None
    split_seed: int | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        # First, because a newer format may well break the rules below.
        _check_format_version(self.format_version)
        _check_encoder_config(self.encoder_config)
        _check_sizes({"encoder_config": self.encoder_config, **kwargs})
        _check_weights_name(kwargs.get("transformers_weights"))
        if self._auto_class is None:
            # They name the code that travels with a model, which nobody needs who has this package: `pipeline` would
            # ask to trust it. Transformers sets the class's `_auto_class` where it has loaded that code.
            for key in ("auto_map", "custom_pipelines"):
                kwargs.pop(key, None)
        self.encoder_config = copy.deepcopy(self.encoder_config)
        self.task_specs = self.tasks
        check_architecture(vars(self), self.task_specs)
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

    @property
    def architecture(self) -> dict[str, Any]:
        """What is set of the options in `ARCHITECTURE`, by name."""
        return {key: getattr(self, key) for key in ARCHITECTURE if getattr(self, key) is not None}

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """Return the encoder's text configuration: its vocabulary is the model's."""
        return cast(PreTrainedConfig, self.encoder_config).get_text_config(*args, **kwargs)


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


def check_stride(stride: int | None, max_length: int) -> None:
    """Check that windows move on by more than half of their length.

    Raises:
        SpecError: the stride is not less than half of the windows' length.
    """
    if stride is not None and 2 * stride >= max_length:
        raise SpecError(
            f"stride is {stride}, and the windows have {max_length} tokens", mend=f"use 0 to {(max_length - 1) // 2}"
        )


def _checked_tasks(tasks: object) -> tuple[TaskSpec, ...]:
    if isinstance(tasks, str | bytes) or not isinstance(tasks, Sequence):
        raise SpecError(f"tasks is {tasks!r}", mend="give a list of tasks")
    given = cast(Sequence[Any], tasks)
    specs = tuple(task if isinstance(task, TaskSpec) else TaskSpec.from_dict(task) for task in given)
    for name, count in Counter(spec.name for spec in specs).items():
        if count > 1:
            raise SpecError(f"two tasks are named {name!r}", mend="give every task its own name")
    return specs


def check_architecture(options: Mapping[str, Any], specs: Sequence[TaskSpec]) -> None:
    """Check the options in `ARCHITECTURE`.

    Args:
        options: their values; those not given are not set.
        specs: the model's tasks.

    Raises:
        SpecError: a value is not allowed, would have no effect, or does not go with an option of a task.
    """
    check_choice("sharing", options.get("sharing"), (*SHARINGS, None))
    check_choice("interaction", options.get("interaction"), (*INTERACTIONS, None))
    for key in ARCHITECTURE:
        family = key.partition("_")[0]
        found, needed = options.get(family), {"sharing": "soft", "interaction": "gat"}[family]
        if key != family and options.get(key) is not None and found != needed:
            mend = f"set {family} to {needed!r}, or leave {key} out"
            raise SpecError(f"{key} is {options[key]!r}, and {family} is {found!r}", mend=mend)
    if options.get("sharing_strength") is not None:
        check_number("sharing_strength", options["sharing_strength"], at_least=0.0)
    check_count("sharing_size", options.get("sharing_size"), optional=True)
    check_count("interaction_heads", options.get("interaction_heads"), optional=True)
    graph = options.get("interaction_graph")
    if not (graph is None or (isinstance(graph, Mapping) and all(isinstance(heard, list) for heard in graph.values()))):
        raise SpecError(f"interaction_graph is {graph!r}", mend="give each task a list of the tasks that it hears")
    tasks = [spec.name for spec in specs]
    for task in [name for hearing, heard in (graph or {}).items() for name in (hearing, *heard)]:
        if task not in tasks:
            raise SpecError(f"interaction_graph names a task {task!r}", mend=f"use {one_of(tasks)}")
    graphs = [spec.name for spec in specs if spec.token_graph]
    if graphs and options.get("interaction") is not None:  # which asks tasks about rows whose graph is not theirs
        problem = f"interaction is {options['interaction']!r}, and token_graph is true"
        raise SpecError(problem, where=f"task {graphs[0]!r}", mend="leave one of them out")


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
    if model_type == "hf_mtl_lstm":
        ENCODERS.get("lstm")  # the one configuration of our own, which its file registers
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise SpecError(
            f"encoder_config has the model_type {model_type!r}, not known to transformers {transformers_version}",
            mend="use the model_type of an encoder, such as 'bert', or install the transformers version that has it",
        )


def _check_sizes(values: object, key: str = "") -> None:
    """Refuse numbers that no text model has, before anything is made of that size.

    They would only be found where memory or patience ends: some configurations make a list entry for each layer and
    each label.
    """
    if isinstance(values, Mapping):
        for name, value in cast(Mapping[str, Any], values).items():
            _check_sizes(value, f"{key}.{name}" if key else name)
    elif isinstance(values, list | tuple):
        for value in cast(Sequence[Any], values):
            _check_sizes(value, key)
    elif isinstance(values, int) and not isinstance(values, bool):
        name = key.rpartition(".")[2]
        limit = next((limit for part, limit in SIZE_LIMITS.items() if part in name), MAX_SIZE)
        if limit is not None and abs(values) > limit:
            raise SpecError(f"{key} is {values}, more than the {limit} that a model may have", mend="correct the size")


def _check_weights_name(name: object) -> None:
    if name is not None and not str(name).endswith((".safetensors", ".safetensors.index.json")):
        raise SpecError(f"transformers_weights is {name!r}", mend="name a safetensors file, or leave it out")


@cache
def _module_attributes() -> frozenset[str]:
    from torch import nn

    return frozenset(dir(nn.ModuleDict())) | {"training"}
