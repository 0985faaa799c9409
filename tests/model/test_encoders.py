"""Encoder adapters: what holds for every family of architectures, on small random encoders."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from families import (
    BERT_SIZES,
    EVERY,
    LENGTH,
    ROWS,
    TASKS,
    batch,
    every_encoder,
    labels,
    logits_of,
    model_types,
    new_model,
)
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    BartConfig,
    FunnelBaseModel,
    ViTConfig,
    ViTModel,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import hf_mtl.auto  # noqa: F401  (AutoModel must know the model)
from hf_mtl.configuration import MultiTaskConfig
from hf_mtl.errors import ModelError
from hf_mtl.model.encoders.base import adapter_for, max_positions
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import ENCODERS


@every_encoder
def test_a_step_changes_every_parameter_and_lowers_the_loss(model_type: str) -> None:
    model = new_model(model_type).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    first = model(**batch(), labels=labels()).loss
    first.backward()
    optimizer.step()
    assert model(**batch(), labels=labels()).loss < first
    unchanged = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    unused = EVERY[model_type].unused
    assert [name for name in unchanged if not any(part in name for part in unused)] == []
    assert not unused or unchanged


@every_encoder
def test_a_saved_model_gives_the_same_logits_to_the_bit(model_type: str, tmp_path: Path) -> None:
    model = new_model(model_type)
    model.save_pretrained(tmp_path)
    loaded, info = MultiTaskModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(loaded.encoder) is type(model.encoder)
    assert loaded.adapter is model.adapter
    expected = logits_of(model, batch())
    for task, logits in logits_of(loaded, batch()).items():
        assert torch.equal(logits, expected[task]), task


def assert_rows_do_not_depend_on_padding(model_type: str, *, left: bool) -> None:
    model = new_model(model_type)
    padded = logits_of(model, batch(left=left))
    for row in range(ROWS):
        length = LENGTH - 2 * row
        real = slice(LENGTH - length, LENGTH) if left else slice(0, length)
        alone = logits_of(model, {name: value[row : row + 1, real] for name, value in batch(left=left).items()})
        for task, logits in alone.items():
            expected = padded[task][row : row + 1]
            expected = expected[:, real] if task == "tags" else expected
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5, msg=lambda m, task=task: f"{task}: {m}")


@pytest.mark.parametrize("model_type", model_types(lambda family: not family.sees_padding))
def test_padding_on_the_right_does_not_change_a_row(model_type: str) -> None:
    assert_rows_do_not_depend_on_padding(model_type, left=False)


@pytest.mark.parametrize("model_type", model_types(lambda family: family.pads_left))
def test_padding_on_the_left_does_not_change_a_row(model_type: str) -> None:
    assert_rows_do_not_depend_on_padding(model_type, left=True)


@pytest.mark.parametrize("model_type", model_types(lambda family: family.sees_padding))
def test_architectures_without_a_mask_mix_padding_in(model_type: str) -> None:
    # Not a wish but a fact, kept here so that a change of it is noticed.
    with pytest.raises(AssertionError, match="close"):
        assert_rows_do_not_depend_on_padding(model_type, left=False)


@every_encoder
def test_from_encoder_gives_the_weights_of_a_saved_auto_model(model_type: str, tmp_path: Path) -> None:
    saved = AutoModel.from_config(EVERY[model_type].config(model_type)).eval()
    saved.save_pretrained(tmp_path)
    model = MultiTaskModel.from_encoder(tmp_path, TASKS)
    weights = saved.state_dict()
    own = model.encoder.state_dict()
    assert set(own) <= set(weights)
    for name, value in own.items():
        assert torch.equal(value, weights[name]), name
    model.save_pretrained(tmp_path / "model")
    loaded = MultiTaskModel.from_pretrained(tmp_path / "model")
    assert all(torch.equal(value, weights[name]) for name, value in loaded.encoder.state_dict().items())
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()


@every_encoder
def test_hidden_states_are_those_of_the_stock_encoder(model_type: str) -> None:
    config = EVERY[model_type].config(model_type)
    auto_class = AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel
    stock = auto_class.from_config(copy.deepcopy(config)).eval()
    model = new_model(model_type)
    weights = {name: value for name, value in stock.state_dict().items() if name in model.encoder.state_dict()}
    model.encoder.load_state_dict(weights)
    inputs = {**batch(), "token_type_ids": torch.zeros(ROWS, LENGTH, dtype=torch.long)}
    known = {"input_ids": inputs["input_ids"]} if EVERY[model_type].sees_padding else batch()
    with torch.no_grad():
        expected = stock(**known).last_hidden_state
        states = model(**inputs, output_hidden_states=True).hidden_states[-1]
        tags = model(**inputs).logits["tags"]
    real = inputs["attention_mask"] == 1
    torch.testing.assert_close(states[real], expected[real], rtol=0, atol=1e-6)
    torch.testing.assert_close(tags[real], model.head("tags")(expected)[real], rtol=0, atol=1e-5)


@every_encoder
def test_positions_are_as_many_as_the_encoder_can_read(model_type: str) -> None:
    family = EVERY[model_type]
    config = family.config(model_type)
    assert max_positions(config) == family.positions
    model = new_model(model_type)
    length = family.positions or 200
    ids = torch.randint(4, 40, (1, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    assert logits_of(model, {"input_ids": ids, "attention_mask": mask})["tags"].shape == (1, length, 2)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "gpt2", "longformer"])
def test_one_position_more_is_one_too_many(model_type: str) -> None:
    positions = EVERY[model_type].positions
    assert positions is not None
    ids = torch.full((1, positions + 1), 5)
    with pytest.raises((IndexError, RuntimeError)):
        logits_of(new_model(model_type), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


@pytest.mark.parametrize(
    ("model_type", "settings", "positions"),
    [
        ("roberta", {"max_position_embeddings": 514}, 512),
        ("mpnet", {"max_position_embeddings": 514}, 512),
        ("longformer", {"max_position_embeddings": 4098, "pad_token_id": 1}, 4096),
        ("bert", {}, 512),
        ("gpt2", {}, 1024),
        ("t5", {"n_positions": 512}, None),  # the Hub's configurations have it, and it means nothing
        ("xlnet", {}, None),
        ("bloom", {}, None),
    ],
)
def test_positions_of_configurations_as_the_hub_has_them(
    model_type: str, settings: dict[str, Any], positions: int | None
) -> None:
    assert max_positions(AutoConfig.for_model(model_type, **settings)) == positions


@every_encoder
def test_exactly_one_adapter_matches(model_type: str) -> None:
    config = EVERY[model_type].config(model_type)
    matching = [name for name in ENCODERS.names() if ENCODERS.get(name).matches(config)]
    assert matching == [EVERY[model_type].adapter]
    assert adapter_for(config) is ENCODERS.get(matching[0])
    # The encoder half of an encoder-decoder model changes the configuration it is built from.
    assert adapter_for(new_model(model_type).encoder.config) is adapter_for(config)


@pytest.mark.parametrize("is_encoder_decoder", [False, True])
def test_no_two_adapters_match_any_architecture(is_encoder_decoder: bool) -> None:
    for model_type in CONFIG_MAPPING_NAMES:
        config = SimpleNamespace(model_type=model_type, is_encoder_decoder=is_encoder_decoder)
        matching = [name for name in ENCODERS.names() if ENCODERS.get(name).matches(cast(PreTrainedConfig, config))]
        assert len(matching) == 1 or (is_encoder_decoder and not matching), model_type


def test_decoders_pool_the_last_token_by_default_and_others_the_mean() -> None:
    poolings = {model_type: new_model(model_type).poolings["topic"] for model_type in ("bert", "t5", "gpt2", "qwen2")}
    assert poolings == {"bert": "mean", "t5": "mean", "gpt2": "last", "qwen2": "last"}


def test_an_encoder_decoder_without_an_encoder_half_is_refused() -> None:
    with pytest.raises(ModelError, match="no encoder adapter knows the architecture 'bart'"):
        MultiTaskModel(MultiTaskConfig(encoder_config=BartConfig(), tasks=TASKS))


def test_an_encoder_of_images_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="it reads pixel_values, not text"):
        MultiTaskModel.from_encoder(tmp_path, TASKS)


def test_big_bird_reads_short_rows_with_full_attention() -> None:
    full = new_model("big_bird")
    settings = {**BERT_SIZES, "attention_type": "block_sparse"}
    config = MultiTaskConfig(encoder_config=AutoConfig.for_model("big_bird", **settings), tasks=TASKS)
    sparse = MultiTaskModel(config).eval()
    sparse.load_state_dict(full.state_dict())
    expected = logits_of(full, batch())
    for task, logits in logits_of(sparse, batch()).items():
        torch.testing.assert_close(logits, expected[task], rtol=0, atol=1e-6)


def test_decoders_keep_no_cache_and_are_given_no_token_types() -> None:
    model = new_model("gpt2")
    seen: dict[str, Any] = {}
    model.encoder.register_forward_pre_hook(lambda _, __, kwargs: seen.update(kwargs), with_kwargs=True)
    logits_of(model, {**batch(), "token_type_ids": torch.zeros(ROWS, LENGTH, dtype=torch.long)})
    assert seen["use_cache"] is False
    assert "token_type_ids" not in seen


def test_positions_that_are_given_to_a_decoder_are_used() -> None:
    model, inputs = new_model("gpt2"), batch()
    given = {**inputs, "position_ids": torch.arange(LENGTH).expand(ROWS, LENGTH) + 5}
    assert not torch.allclose(logits_of(model, given)["tags"], logits_of(model, inputs)["tags"])


@pytest.mark.parametrize("model_type", ["bert", "roberta", "modernbert", "t5", "gpt2", "qwen2", "deberta-v2", "mpnet"])
def test_eager_attention_comes_back(model_type: str) -> None:
    config = MultiTaskConfig(encoder_config=EVERY[model_type].config(model_type), tasks=TASKS)
    model = MultiTaskModel(config).eval()
    if model.encoder.config._attn_implementation != "eager":
        model.set_attn_implementation("eager")
    attentions = model(**batch(), output_attentions=True).attentions
    assert [tuple(attention.shape) for attention in attentions] == [(ROWS, 2, LENGTH, LENGTH)] * 2


@every_encoder
def test_gradient_checkpointing_gives_the_same_gradients(model_type: str) -> None:
    grads: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        model = new_model(model_type).train()
        if checkpointing:
            if not model.encoder.supports_gradient_checkpointing:
                pytest.skip("the architecture does not offer it")
            model.activation_checkpointing_enable()
        model(**batch(), labels=labels()).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert set(grads[0]) == set(grads[1])
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=0, atol=1e-6)


# What the names of parameters of these families say about their depth, for people who know the families.
EMBEDDINGS = re.compile(
    r"^(embeddings\.|embeddings_project\.|shared\.|wte\.|wpe\.|embed_tokens\.)|embedding_hidden_map"
)
LAYER = re.compile(r"^(?:encoder\.|transformer\.)?(?:layers?|block|h|albert_layer_groups)\.(\d+)\.")


@every_encoder
def test_parts_are_embeddings_layers_and_the_rest(model_type: str) -> None:
    model = new_model(model_type)
    parts = model.adapter.parts(model.encoder)
    found = {id(parameter): "embeddings" for parameter in parts.embeddings}
    for depth, parameters in enumerate(parts.layers):
        found |= {id(parameter): str(depth) for parameter in parameters}
    found |= {id(parameter): "rest" for parameter in parts.rest}
    named = dict(model.encoder.named_parameters())
    assert len(found) == len(named) == sum(map(len, (parts.embeddings, *parts.layers, parts.rest)))
    for name, parameter in named.items():
        layer = LAYER.match(name)
        wanted = "embeddings" if EMBEDDINGS.search(name) else layer.group(1) if layer else "rest"
        assert found[id(parameter)] == wanted, name
    assert len(parts.layers) == (1 if model_type == "albert" else 2)
    assert all(parts.layers)


def test_a_layer_whose_parts_stand_in_several_lists_is_one_layer() -> None:
    config = AutoConfig.for_model("xlm", vocab_size=40, emb_dim=16, n_layers=3, n_heads=2, max_position_embeddings=40)
    encoder = AutoModel.from_config(config)
    parts = adapter_for(config).parts(encoder)
    third = {id(p) for module in (encoder.attentions[2], encoder.ffns[2]) for p in module.parameters()}
    assert len(parts.layers) == 3
    assert third < {id(parameter) for parameter in parts.layers[2]}


def test_layers_that_cannot_be_told_apart_are_refused() -> None:
    # Funnel's layers stand in blocks of unequal length.
    config = AutoConfig.for_model(
        "funnel", vocab_size=40, d_model=16, n_head=2, d_head=8, d_inner=32, block_sizes=[1, 2]
    )
    with pytest.raises(
        ModelError, match="the layers of the architecture 'funnel' cannot be told apart; leave layer_decay"
    ):
        adapter_for(config).parts(FunnelBaseModel(config))
