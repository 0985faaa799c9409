"""Decoders read as encoders: GPT-2, Qwen, Llama and their relatives."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

from hf_mtl.model.encoders.base import EncoderAdapter
from hf_mtl.registry import ENCODERS


@ENCODERS.register("decoder")
class DecoderAdapter(EncoderAdapter):
    """Causal models: the last token has seen all others, so it is what tasks pool by default; no cache is kept."""

    default_pooling = "last"
    reads_segments = False

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
        )
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED,
        )

        kind = config.model_type
        return not config.is_encoder_decoder and kind in CAUSAL and kind not in MASKED

    @classmethod
    def auto_class(cls) -> Any:
        return AutoModel

    @classmethod
    def run(cls, encoder: PreTrainedModel, inputs: dict[str, Tensor | None], **options: Any) -> BaseModelOutput:
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        if mask is not None and positions is None:
            # Decoders' tokenizers often pad on the left; a row's first real token stands at position 0 all the same.
            positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        # In a decoder's vocabulary token type ids are ordinary embeddings (GPT-2), never segment numbers.
        given = {**inputs, "token_type_ids": None, "position_ids": positions}
        return super().run(encoder, given, use_cache=False, **options)
