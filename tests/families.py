"""Small random encoders of every family of architectures that has to work, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import ENCODERS

ROWS, LENGTH = 4, 10
PAD = 1

BERT_SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
T5_SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "pad_token_id": PAD,
}
DECODER_SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
    "attention_dropout": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A small encoder of one architecture.

    Args:
        settings: its configuration.
        adapter: name of the adapter it belongs to.
        positions: how many tokens it can read.
        sees_padding: whether padding changes a row's states, because there is no attention mask.
        pads_left: whether padding on the left changes nothing either, positions being relative or counted by mask.
        unused: parts of names of parameters that stand in the encoder but never take part.
        marks: slow ones are left to the long run.
    """

    settings: dict[str, Any]
    adapter: str = "encoder_only"
    positions: int | None = 40
    sees_padding: bool = False
    pads_left: bool = False
    unused: tuple[str, ...] = ()
    marks: tuple[pytest.MarkDecorator, ...] = field(default=())

    def config(self, model_type: str) -> PreTrainedConfig:
        ENCODERS.get("lstm")  # which registers its configuration
        return AutoConfig.for_model(model_type, **self.settings)


FAMILIES = {
    "bert": Family(settings=BERT_SIZES),
    "roberta": Family(settings=BERT_SIZES, positions=38, pads_left=True),
    "xlm-roberta": Family(settings=BERT_SIZES, positions=38, pads_left=True),
    "camembert": Family(settings=BERT_SIZES, positions=38, pads_left=True),
    "mpnet": Family(settings=BERT_SIZES, positions=38, pads_left=True),
    "electra": Family(settings={**BERT_SIZES, "embedding_size": 8}),
    "albert": Family(settings={**BERT_SIZES, "embedding_size": 8}),
    "deberta-v2": Family(
        settings={
            **BERT_SIZES,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        },
        pads_left=True,
    ),
    "distilbert": Family(
        settings={
            "vocab_size": 40,
            "dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 32,
            "max_position_embeddings": 40,
            "pad_token_id": PAD,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        }
    ),
    "modernbert": Family(
        settings={**BERT_SIZES, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
        pads_left=True,
    ),
    "fnet": Family(settings=BERT_SIZES, sees_padding=True),
    "big_bird": Family(settings={**BERT_SIZES, "attention_type": "original_full"}),
    "longformer": Family(
        settings={**BERT_SIZES, "attention_window": 4}, positions=38, pads_left=True, unused=("_global",)
    ),
    "t5": Family(settings=T5_SIZES, adapter="encoder_half", positions=None, pads_left=True),
    "mt5": Family(settings=T5_SIZES, adapter="encoder_half", positions=None, pads_left=True),
    "gpt2": Family(
        settings={
            "vocab_size": 40,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 40,
            "pad_token_id": PAD,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        adapter="decoder",
        pads_left=True,
    ),
    "qwen2": Family(settings=DECODER_SIZES, adapter="decoder", pads_left=True),
    "llama": Family(settings=DECODER_SIZES, adapter="decoder", pads_left=True),
}


OWN = {
    "hf_mtl_lstm": Family(
        settings={
            "vocab_size": 40,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "pad_token_id": PAD,
            "hidden_dropout_prob": 0.0,
        },
        adapter="lstm",
        positions=None,
        pads_left=True,
    ),
}
"""The encoder that this package brings: it has no attention, no linear layers and no relatives in transformers."""
EVERY = {**FAMILIES, **OWN}


def model_types(keep: Callable[[Family], bool] = lambda family: True) -> list[Any]:
    return [pytest.param(name, marks=family.marks) for name, family in FAMILIES.items() if keep(family)]


every_family = pytest.mark.parametrize("model_type", model_types())
every_encoder = pytest.mark.parametrize("model_type", [*model_types(), *OWN])

TASKS = [
    TaskSpec(name="topic", type="sequence_classification", labels=("a", "b", "c")),
    TaskSpec(name="query", type="regression", pooling="attention"),
    TaskSpec(name="mean", type="regression", pooling="mean"),
    TaskSpec(name="first", type="regression", pooling="cls"),
    TaskSpec(name="tags", type="token_classification", labels=("x", "y")),
]


def new_model(model_type: str, seed: int = 0) -> MultiTaskModel:
    torch.manual_seed(seed)
    config = MultiTaskConfig(encoder_config=EVERY[model_type].config(model_type), tasks=TASKS)
    model = MultiTaskModel(config).eval()
    model.attention_poolings["query"].query.data.normal_()
    return model


def batch(*, left: bool = False) -> dict[str, Tensor]:
    """Make rows of 4 to `LENGTH` tokens, padded on one side."""
    ids = torch.randint(4, 40, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros_like(ids)
    for row in range(ROWS):
        length = LENGTH - 2 * row
        mask[row, LENGTH - length if left else 0 :][:length] = 1
    return {"input_ids": torch.where(mask == 1, ids, PAD), "attention_mask": mask}


def labels() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "topic": torch.tensor([0, 1, 2, 0]),
        **{name: torch.randn(ROWS, generator=generator) for name in ("query", "mean", "first")},
        "tags": torch.where(batch()["attention_mask"] == 1, torch.arange(LENGTH) % 2, -100),
    }


def logits_of(model: MultiTaskModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits is not None
    return logits
