"""The LSTM: against torch's own with packed sequences, wherever padding stands, and from a recipe to a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import EVERY, batch, logits_of, new_model
from tiny import load, tiny_folder, tiny_recipe  # noqa: F401 (fixtures)
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import AutoModel, AutoTokenizer

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.data.own_encoder import OwnEncoder, train_tokenizer
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.data.schema import recipe_schema
from hf_mtl.errors import DataError, HfMtlError, ModelError
from hf_mtl.explain.explainer import Explainer
from hf_mtl.inference.export import export_model
from hf_mtl.model.encoders.lstm import LstmModel
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.remote_code import remote_files
from hf_mtl.training.run import run_training

OWN = {"type": "lstm", "hidden_size": 16, "num_layers": 1, "vocab_size": 320}


def new_encoder(**options: Any) -> LstmModel:
    torch.manual_seed(0)
    config: Any = EVERY["hf_mtl_lstm"].config("hf_mtl_lstm")
    for name, value in options.items():
        setattr(config, name, value)
    encoder = LstmModel(config).eval()
    for parameter in encoder.parameters():
        parameter.data.normal_(std=0.5)
    return encoder


def packed(encoder: Any, states: Tensor, lengths: Tensor) -> Tensor:
    """Read right-padded states with torch's bidirectional LSTM over packed sequences, layer by layer."""
    for layer in encoder.layers:
        size = states.shape[2]
        stock = nn.LSTM(size, size // 2, batch_first=True, bidirectional=True)
        given = dict(layer.ahead.state_dict())
        given |= {f"{name}_reverse": value for name, value in layer.back.state_dict().items()}
        stock.load_state_dict(given)
        read, _ = stock(pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False))
        states, _ = pad_packed_sequence(read, batch_first=True)
    return states


@torch.no_grad()
def test_states_are_those_of_packed_sequences() -> None:
    encoder, inputs = new_encoder(), batch()
    found = encoder(**inputs, output_hidden_states=True)
    lengths = inputs["attention_mask"].sum(dim=1)
    expected = packed(encoder, encoder.embeddings(inputs["input_ids"]), lengths)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found.last_hidden_state[real], expected[real], rtol=0, atol=1e-6)
    assert len(found.hidden_states) == 3


@pytest.mark.parametrize("more", [1, 7])
@pytest.mark.parametrize("left", [False, True])
@torch.no_grad()
def test_padding_changes_no_state_of_a_real_token(left: bool, more: int) -> None:
    encoder, inputs = new_encoder(embedding_size=6), batch(left=left)
    side = (more, 0) if left else (0, more)
    longer = {name: nn.functional.pad(value, side, value=0) for name, value in inputs.items()}
    real, there = inputs["attention_mask"].bool(), longer["attention_mask"].bool()
    expected, found = encoder(**inputs).last_hidden_state, encoder(**longer).last_hidden_state
    assert torch.equal(found[there], expected[real])


def test_a_row_of_padding_alone_is_finite() -> None:
    inputs = batch()
    inputs["attention_mask"][1] = 0
    assert new_encoder()(**inputs).last_hidden_state.isfinite().all()


def test_saving_and_loading_is_exact_to_the_bit_and_the_code_travels(tmp_path: Path) -> None:
    model = new_model("hf_mtl_lstm")
    model.save_pretrained(tmp_path / "model")
    loaded = MultiTaskModel.from_pretrained(tmp_path / "model").eval()
    expected, found = logits_of(model, batch()), logits_of(loaded, batch())
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert "class LstmModel(" in remote_files(model)["modeling_hf_mtl.py"]
    model.encoder.save_pretrained(tmp_path / "encoder")
    alone = AutoModel.from_pretrained(tmp_path / "encoder")
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in model.encoder.state_dict().items())
    assert MultiTaskModel.from_encoder(tmp_path / "encoder", model.specs).config.get_text_config().hidden_size == 16


def test_an_encoder_of_a_configuration_is_the_same_for_a_seed() -> None:
    config, spec = EVERY["hf_mtl_lstm"].config("hf_mtl_lstm"), TaskSpec(name="stars", type="regression")
    first, second, other = (MultiTaskModel.from_encoder(config, [spec], seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["encoder.embeddings.weight"], other["encoder.embeddings.weight"])


def test_the_same_texts_give_the_same_tokenizer() -> None:
    texts = ["a lovely old film", "songs with music and a story", "好电影", "Fly to New York"] * 5
    first, second = (train_tokenizer(iter(texts), vocab_size=340) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert len(first.tokenize("film")) == 1
    assert first("Fly")["input_ids"] != first("fly")["input_ids"]
    assert first.decode(first("好电影")["input_ids"], skip_special_tokens=True).strip() == "好电影"
    careless = train_tokenizer(texts, vocab_size=340, lowercase=True)
    assert careless("FILM")["input_ids"] == careless("film")["input_ids"]
    words = first(["old", "Rome"], is_split_into_words=True)
    assert words.word_ids()[1] == 0
    assert {*words.word_ids()} == {None, 0, 1}
    assert first("a film", "b")["input_ids"][0] == first.cls_token_id


def test_a_recipe_trains_it_and_what_is_saved_answers(
    tiny_folder: Path,  # noqa: F811
    tiny_recipe: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    training = {"max_steps": 3, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    recipe = parse_recipe(
        {**tiny_recipe, "encoder": OWN, "training": {**training, "learning_rate": 1e-2}}, base=tiny_folder
    )
    assert recipe.to_dict()["encoder"] == OWN
    run = run_training(recipe, tmp_path / "run")
    assert "test" not in run.results or run.results["test"]
    model, tokenizer = MultiTaskModel.from_pretrained(tmp_path / "run"), AutoTokenizer.from_pretrained(tmp_path / "run")
    data = load(tiny_folder, {**tiny_recipe, "encoder": OWN})
    assert data.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert model.config.get_text_config().vocab_size == len(tokenizer)
    explanation = Explainer(model, tokenizer).explain("a good film", ["sentiment"])["sentiment"]
    assert len(explanation.scores) == 3
    with pytest.raises(ModelError, match="cannot be written as a graph of any length"):
        export_model(model, tokenizer, tmp_path / "graph", format="onnx")
    again = {**OWN, "tokenizer": str(tmp_path / "run")}
    del again["vocab_size"]
    given = load(tiny_folder, {**tiny_recipe, "encoder": again})
    assert given.tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "gru"}, "encoder: type is 'gru'; use 'lstm'"),
        ({"hidden_size": 8}, "encoder: the key 'type' is missing"),
        ({"type": "lstm", "hidden_size": 7}, "hidden_size is 7; give an even number"),
        ({"type": "lstm", "num_layers": 0}, "num_layers is 0; give a whole number"),
        ({"type": "lstm", "dropout": 1}, "dropout is 1; give a number at least 0 and below 1"),
        ({"type": "lstm", "lowercase": "yes"}, "lowercase is 'yes'; give true or false"),
        ({"type": "lstm", "tokenizer": "x", "vocab_size": 9}, "leave vocab_size or tokenizer out"),
        ({"type": "lstm", "size": 9}, "unknown key 'size'; use 'type', 'hidden_size'"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str, tiny_recipe: dict[str, Any]) -> None:  # noqa: F811
    with pytest.raises(HfMtlError) as caught:
        parse_recipe({**tiny_recipe, "encoder": values}, base=Path())
    assert message in str(caught.value)


def test_streams_need_a_tokenizer_that_is_given(tiny_folder: Path, tiny_recipe: dict[str, Any]) -> None:  # noqa: F811
    datasets = {**tiny_recipe["datasets"], "films": {**tiny_recipe["datasets"]["films"], "streaming": True}}
    with pytest.raises(DataError, match="dataset 'films': a tokenizer cannot be trained on rows that are streamed"):
        load(tiny_folder, {**tiny_recipe, "datasets": datasets, "encoder": OWN})


def test_the_schema_tells_it() -> None:
    _, mapping = recipe_schema()["properties"]["encoder"]["anyOf"]
    assert list(mapping["properties"]) == list(OwnEncoder.__dataclass_fields__)


def test_a_configuration_knows_its_type() -> None:
    config = MultiTaskConfig(encoder_config={"model_type": "hf_mtl_lstm", "hidden_size": 8}, tasks=[])
    assert config.get_text_config().hidden_size == 8
