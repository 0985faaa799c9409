"""Encoders proper: BERT, RoBERTa, DistilBERT, ELECTRA, ALBERT, DeBERTa, ModernBERT, FNet, Longformer and relatives."""

from __future__ import annotations

from typing import Any

from transformers import AutoModel
from transformers.configuration_utils import PreTrainedConfig

from hf_mtl.model.encoders.base import ENCODER_HALVES, LSTM_TYPE, EncoderAdapter
from hf_mtl.registry import ENCODERS


@ENCODERS.register("encoder_only")
class EncoderOnlyAdapter(EncoderAdapter):
    """Bidirectional encoders; those without token type ids or attention mask are simply not given any."""

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
        )
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED,
        )

        kind = config.model_type
        if config.is_encoder_decoder or kind in (*ENCODER_HALVES, LSTM_TYPE):
            return False
        return kind in MASKED or kind not in CAUSAL

    @classmethod
    def auto_class(cls) -> Any:
        return AutoModel
