"""`EncoderAdapter`: how one family of encoder architectures is built, loaded and run."""

from __future__ import annotations

import inspect
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

from hf_mtl.configuration import MultiTaskConfig
from hf_mtl.errors import ModelError
from hf_mtl.registry import ENCODERS

ENCODER_HALVES = ("t5", "mt5", "umt5")
"""Encoder-decoder models whose encoder half is a class of its own."""


class EncoderAdapter(ABC):
    """What differs between families of encoders; stateless, one subclass per family."""

    default_pooling: ClassVar[str] = "mean"
    """Pooling of tasks whose spec names none."""

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
            ModelError: it cannot be found, or the checkpoint lacks weights of the encoder.
        """
        options = {**cls.model_kwargs(config), **hub_kwargs, "ignore_mismatched_sizes": True}
        try:
            with _without_load_report():
                encoder, info = cls.auto_class().from_pretrained(
                    name_or_path, config=config, output_loading_info=True, **options
                )
        except (OSError, ValueError, SafetensorError) as error:
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
    # RoBERTa and its relatives begin to count after the padding index.
    counts_after_padding = any(family in config.model_type for family in _COUNTING_AFTER_PADDING)
    return positions - (config.pad_token_id or 0) - 1 if counts_after_padding else positions


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
