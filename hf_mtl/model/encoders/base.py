"""`EncoderAdapter`: how one family of encoder architectures is built, loaded and run."""

from __future__ import annotations

import inspect
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

from hf_mtl.configuration import MIN_LENGTH, MultiTaskConfig, TaskSpec
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.model.weights import pickled_error
from hf_mtl.registry import ENCODERS

ENCODER_HALVES = ("t5", "mt5", "umt5")
"""Encoder-decoder models whose encoder half is a class of its own."""
LSTM_TYPE = "hf_mtl_lstm"
"""The model type of the LSTM that this package brings."""


@dataclass(frozen=True)
class EncoderParts:
    """An encoder's parameters by depth, each of them in one part.

    Args:
        embeddings: those below the first layer: of tokens, positions and segments, their norm, their projection.
        layers: those of each layer, the lowest first; layers that share their weights are one.
        rest: those above the last layer or of no single one, such as the last norm or shared relative positions.
    """

    embeddings: list[nn.Parameter]
    layers: list[list[nn.Parameter]]
    rest: list[nn.Parameter]


class EncoderAdapter(ABC):
    """What differs between families of encoders; stateless, one subclass per family."""

    default_pooling: ClassVar[str] = "mean"
    """Pooling of tasks whose spec names none."""

    reads_segments: ClassVar[bool] = True
    """Whether token type ids, where the encoder takes any, tell the two texts of a pair apart."""

    fits_graphs: ClassVar[bool] = True
    """Whether a graph can hold it; one that goes through the tokens in a loop does not fit."""

    @classmethod
    @abstractmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        """Tell whether encoders with this configuration belong to the family."""

    @classmethod
    @abstractmethod
    def auto_class(cls) -> Any:
        """Return the transformers Auto class that builds and loads the family."""

    @classmethod
    def model_kwargs(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return arguments for the encoder's constructor: no pooling layer of its own, where it can be left out."""
        model_class = cls.auto_class()._model_mapping.get(type(config), None)
        accepts = model_class is not None and "add_pooling_layer" in inspect.signature(model_class).parameters
        return {"add_pooling_layer": False} if accepts else {}

    @classmethod
    def build(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """Build an encoder with random weights, in torch's default dtype."""
        # A config saved from a bf16 model would otherwise give a bf16 encoder under float32 heads.
        dtype = torch.get_default_dtype()
        return cls.auto_class().from_config(config, dtype=dtype, **cls.model_kwargs(config))

    @classmethod
    def load(cls, name_or_path: str, config: PreTrainedConfig, **hub_kwargs: Any) -> PreTrainedModel:
        """Load a pretrained encoder from the Hub or a folder.

        Raises:
            ModelError: it cannot be found, its weights are pickled, or the checkpoint lacks weights of the encoder.
        """
        options = {
            "use_safetensors": True, **cls.model_kwargs(config), **hub_kwargs, "ignore_mismatched_sizes": True
        }  # fmt: skip
        try:
            with _without_load_report():
                encoder, info = cls.auto_class().from_pretrained(
                    name_or_path, config=config, output_loading_info=True, **options
                )
        except (OSError, ValueError, SafetensorError) as error:
            pickled = pickled_error(name_or_path, **hub_kwargs) if isinstance(error, OSError) else None
            if pickled is not None:
                raise pickled.at(f"encoder {name_or_path!r}") from error
            raise encoder_not_found(name_or_path, error) from error
        absent = {key for key in info["missing_keys"] if "pooler" not in key}
        wrong = {key for key, *_ in info["mismatched_keys"]}
        for keys, problem in ((absent, "lacks {} weights of the encoder"), (wrong, "has {} weights of another shape")):
            if keys:
                raise ModelError(
                    f"the checkpoint {problem.format(len(keys))}, {min(keys)!r} among them",
                    where=f"encoder {name_or_path!r}",
                    mend="name a checkpoint that holds a whole encoder; random weights are never used in their place",
                )
        return encoder

    @classmethod
    def run(cls, encoder: PreTrainedModel, inputs: dict[str, Tensor | None], **options: Any) -> BaseModelOutput:
        """Run the encoder on those of the inputs that it knows.

        Args:
            encoder: the encoder.
            inputs: `input_ids`, `attention_mask`, `token_type_ids`, `position_ids`, each `(batch_size, seq_len)`, and
                `inputs_embeds` `(batch_size, seq_len, hidden_size)`; `None` where not given.
            options: `output_attentions` and `output_hidden_states`.

        Returns:
            An output with `last_hidden_state` `(batch_size, seq_len, hidden_size)`.
        """
        known = inspect.signature(encoder.forward).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        given = {name: value for name, value in inputs.items() if value is not None and name in known}
        chosen = {name: value for name, value in options.items() if value is not None and (name in known or takes_any)}
        return encoder(**given, **chosen, return_dict=True)

    @classmethod
    def parts(cls, encoder: PreTrainedModel) -> EncoderParts:
        """Tell an encoder's embeddings and layers apart.

        A layer is what stands at one place of the module lists that are as long as the encoder has layers; what is
        registered before the first of them belongs to the embeddings.

        Raises:
            ModelError: the encoder has no such lists, or its token embeddings do not stand before them.
        """
        layers: dict[int, int] = {}
        stacks = _stacks(encoder)
        for stack in stacks:
            for depth, layer in enumerate(stack):
                layers |= {id(parameter): depth for parameter in layer.parameters() if id(parameter) not in layers}
        everything = list(encoder.parameters())
        first = next((place for place, parameter in enumerate(everything) if id(parameter) in layers), 0)
        embeddings = everything[:first]
        below = {id(parameter) for parameter in embeddings}
        if not below.issuperset(map(id, encoder.get_input_embeddings().parameters())) or not below:
            raise ModelError(
                f"the layers of the architecture {encoder.config.model_type!r} cannot be told apart",
                mend="leave layer_decay, freeze_layers and freeze_embeddings out",
            )
        parts = EncoderParts(embeddings, [[] for _ in stacks[0]], [])
        for parameter in everything[first:]:
            (parts.layers[layers[id(parameter)]] if id(parameter) in layers else parts.rest).append(parameter)
        return parts


def adapter_for(config: PreTrainedConfig) -> type[EncoderAdapter]:
    """Return the adapter of the family that an encoder's configuration belongs to.

    Raises:
        ModelError: no family knows it.
    """
    for name in ENCODERS.names():
        adapter = ENCODERS.get(name)
        if adapter.matches(config):
            return adapter
    raise ModelError(
        f"no encoder adapter knows the architecture {config.model_type!r}",
        mend="name a text encoder or decoder that AutoModel loads",
    )


def _stacks(encoder: PreTrainedModel) -> list[nn.ModuleList]:
    """Return the outermost module lists with one member per layer; several where a layer's parts stand apart (XLM)."""
    config = encoder.config.get_text_config()
    # ALBERT's layers share the weights of a few groups.
    length = getattr(config, "num_hidden_groups", config.num_hidden_layers)
    found: dict[str, nn.ModuleList] = {}
    for name, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == length and not name.startswith(tuple(found)):
            found[f"{name}."] = module
    return list(found.values())


def load_encoder(name_or_path: str | Path, **hub_kwargs: Any) -> PreTrainedModel:
    """Load a pretrained text encoder.

    Args:
        name_or_path: id on the Hub, or a folder.
        hub_kwargs: passed to `from_pretrained`: `revision`, `token`, `cache_dir`, `trust_remote_code`, `dtype` (torch's
            default where not given) and others.

    Raises:
        ModelError: it cannot be found, no adapter knows its architecture, it reads no text, or weights are missing.
    """
    name = str(name_or_path)
    config = load_encoder_config(name, **hub_kwargs)
    if isinstance(config, MultiTaskConfig):
        raise ModelError(
            "it is a multi-task model, not an encoder",
            where=f"encoder {name!r}",
            mend="load it with MultiTaskModel.from_pretrained, or name an encoder",
        )
    # Not in the checkpoint's dtype: those in half precision, such as DeBERTa-v3's, could not be trained as they are.
    encoder = adapter_for(config).load(name, config, **{"dtype": torch.get_default_dtype(), **hub_kwargs})
    if encoder.main_input_name != "input_ids":
        raise ModelError(
            f"it reads {encoder.main_input_name}, not text", where=f"encoder {name!r}", mend="name an encoder of text"
        )
    return encoder


def load_encoder_config(name_or_path: str | Path, **hub_kwargs: Any) -> PreTrainedConfig:
    """Load the configuration of an encoder from the Hub or a folder; arguments and errors as in `load_encoder`."""
    ENCODERS.get("lstm")  # which registers its configuration
    name = str(name_or_path)
    config_kwargs = {key: value for key, value in hub_kwargs.items() if key not in ("dtype", "device_map")}
    try:
        return AutoConfig.from_pretrained(name, **config_kwargs)
    except (OSError, ValueError, StrictDataclassError, KeyError, TypeError, AttributeError) as error:  # damaged, too
        raise encoder_not_found(name, error) from error


def encoder_not_found(name_or_path: str, error: Exception) -> ModelError:
    """Say where an encoder was looked for, and why it was not found there."""
    where = f"encoder {name_or_path!r}"
    reason = str(error).strip().split("\n")[0].rstrip(".")
    if Path(name_or_path).is_dir():
        return ModelError(
            f"the folder on disk holds no usable encoder ({reason})", where=where, mend="check the folder"
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path) or name_or_path.startswith("."):
        return ModelError("looked on disk, there is no such folder", where=where, mend="correct the path")
    return ModelError(
        f"there is no such folder on disk, and the Hub did not give it either ({reason})",
        where=where,
        mend="correct the name, or check the network and the access token",
    )


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return how many tokens an encoder can read at once; `None` where nothing limits it."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    return positions - first_position(config)


def first_position(config: PreTrainedConfig) -> int:
    """Return the position id of a row's first token: RoBERTa and its relatives count from after the padding index."""
    counts_after_padding = any(family in config.model_type for family in _COUNTING_AFTER_PADDING)
    return (config.pad_token_id or 0) + 1 if counts_after_padding else 0


def check_max_length(max_length: int, config: PreTrainedConfig) -> None:
    """Check that an encoder can read rows of a length.

    Args:
        max_length: tokens of a row, special tokens included.
        config: the encoder's configuration.

    Raises:
        SpecError: it is less than 8 or more than the encoder can read.
    """
    positions = max_positions(config)
    if max_length < MIN_LENGTH or (positions is not None and max_length > positions):
        allowed = f"{MIN_LENGTH} to {positions}" if positions is not None else f"{MIN_LENGTH} or more"
        raise SpecError(f"max_length is {max_length}", mend=f"use {allowed}")


def check_task_lengths(specs: Sequence[TaskSpec], config: PreTrainedConfig) -> None:
    """Check that an encoder can read what tasks read.

    Raises:
        SpecError: the `max_length` of a task is more than the encoder can read.
    """
    for spec in specs:
        if spec.max_length is not None:
            try:
                check_max_length(spec.max_length, config)
            except SpecError as error:
                raise error.at(f"task {spec.name!r}") from None


# The text encoders whose embeddings call `create_position_ids_from_input_ids`; XLM-RoBERTa is a "roberta", too.
_COUNTING_AFTER_PADDING = (
    "roberta", "camembert", "mpnet", "longformer", "data2vec", "xmod", "ibert", "lilt", "luke", "markuplm",
)  # fmt: skip


@contextmanager
def _without_load_report() -> Generator[None]:
    """Keep transformers from listing every weight of a checkpoint that an encoder has no use for, such as a pooler."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_something_else(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_something_else)
    try:
        yield
    finally:
        logger.removeFilter(is_something_else)
