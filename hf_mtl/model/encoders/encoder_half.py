"""The encoder half of encoder-decoder models that transformers offers as a class of its own: T5, mT5, UMT5."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForTextEncoding
from transformers.configuration_utils import PreTrainedConfig

from hf_mtl.model.encoders.base import ENCODER_HALVES, EncoderAdapter
from hf_mtl.registry import ENCODERS


@ENCODERS.register("encoder_half")
class EncoderHalfAdapter(EncoderAdapter):
    """Encoder-decoder models of which only the encoder is built and loaded."""

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        # `is_encoder_decoder` would not do: the encoder half sets it to False in the configuration it is given.
        return config.model_type in ENCODER_HALVES

    @classmethod
    def auto_class(cls) -> Any:
        return AutoModelForTextEncoding
