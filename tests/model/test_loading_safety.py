"""What a model's folder may hold: no pickles, and no configuration that asks for more than its weights are."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_encoder
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

import hf_mtl.auto  # noqa: F401  (AutoModel must know the model)
from hf_mtl.configuration import MAX_SIZE, MultiTaskConfig, TaskSpec
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.inference.loading import load_model
from hf_mtl.model.modeling import MultiTaskModel

PROGRAM = Path(__file__).with_name("loading_job.py")
TASKS = [
    TaskSpec(name="topic", type="sequence_classification", labels=("world", "sport", "art")),
    TaskSpec(name="slots", type="token_classification", labels=("O", "B-city", "I-city")),
    TaskSpec(name="stars", type="regression", pooling="attention"),
]
SPARE_MIB = 400


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model with its tokenizer; not to be changed."""
    root = tmp_path_factory.mktemp("good")
    encoder = write_encoder(root / "encoder")
    MultiTaskModel.from_encoder(encoder, TASKS).save_pretrained(root / "model")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(root / "model")
    return root / "model"


def edited(good: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(good, folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# ---------------------------------------------------------------------- absurd configurations

HUGE = 10**9
LARGE = 2**21
"""A size that could be, but is not that of the weights."""


def other_encoder(config: dict[str, Any]) -> None:
    """Weights of a large encoder, none of which the file has."""
    sizes = {"vocab_size": MAX_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": MAX_SIZE}
    config["encoder_config"] = {"model_type": "gpt2", **sizes}


ABSURD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "hidden size": (
        lambda c: c["encoder_config"].update(hidden_size=HUGE),
        r"encoder_config\.hidden_size is 1000000000",
    ),
    "vocabulary": (lambda c: c["encoder_config"].update(vocab_size=HUGE), r"encoder_config\.vocab_size is 1000000000"),
    "layers": (lambda c: c["encoder_config"].update(num_hidden_layers=HUGE), r"num_hidden_layers is 1000000000"),
    "too many layers": (lambda c: c["encoder_config"].update(num_hidden_layers=2000), r"num_hidden_layers is 2000"),
    "positions": (lambda c: c["encoder_config"].update(max_position_embeddings=HUGE), r"max_position_embeddings is"),
    "labels of the encoder": (lambda c: c["encoder_config"].update(num_labels=HUGE), r"encoder_config\.num_labels is"),
    "labels of the model": (lambda c: c.update(num_labels=HUGE), r"num_labels is 1000000000"),
    "a size inside": (
        lambda c: c["encoder_config"].update(model_type="qwen2", text_config={"sizes": [{"hidden_size": -HUGE}]}),
        r"encoder_config\.text_config\.sizes\.hidden_size is -1000000000",
    ),
    "layers of a decoder": (
        lambda c: c.update(encoder_config={"model_type": "qwen2", "num_hidden_layers": 10**8}),
        r"num_hidden_layers is 100000000",
    ),
    "a larger hidden size": (lambda c: c["encoder_config"].update(hidden_size=LARGE), r"weights have another shape"),
    "a larger vocabulary": (lambda c: c["encoder_config"].update(vocab_size=LARGE), r"1 weights have another shape"),
    "a larger layer": (lambda c: c["encoder_config"].update(intermediate_size=LARGE), r"weights have another shape"),
    "more layers": (lambda c: c["encoder_config"].update(num_hidden_layers=200), r"weights of the encoder are missing"),
    "another encoder": (other_encoder, r"weights of the encoder are missing"),
    "one label more": (lambda c: c["tasks"][0]["labels"].append("x"), r"2 weights have another shape.*heads\.topic"),
    "one label less": (lambda c: c["tasks"][1]["labels"].pop(), r"2 weights have another shape.*heads\.slots"),
    "many labels": (
        lambda c: c["tasks"][0].update(labels=[f"label {number}" for number in range(10**5)]),
        r"2 weights have another shape.*heads\.topic",
    ),
    "an unknown task type": (lambda c: c["tasks"][0].update(type="mind_reading"), r"'mind_reading' is not a task type"),
    "an unknown key": (lambda c: c["tasks"][0].update(num_labels=HUGE), r"unknown key 'num_labels'"),
    "pickled weights named": (lambda c: c.update(transformers_weights="adapter_model.bin"), r"transformers_weights is"),
}


@pytest.fixture(scope="module")
def errors(good: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What each way of loading says of each folder, in a process without memory for what they ask."""
    root = tmp_path_factory.mktemp("absurd")
    folders = {case: str(edited(good, root / case, change)) for case, (change, _) in ABSURD.items()}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(root / "result.json"), str(SPARE_MIB), str(good), *folders.values()],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "MALLOC_ARENA_MAX": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((root / "result.json").read_text())
    return {case: found[folder] for case, folder in folders.items()}


@pytest.mark.parametrize("way", ["class", "auto", "load_model"])
@pytest.mark.parametrize("case", ABSURD)
@pytest.mark.slow
def test_a_configuration_that_cannot_be_is_an_error_before_memory_is_taken(
    errors: dict[str, dict[str, str]], case: str, way: str
) -> None:
    message = errors[case][way]
    assert re.search(ABSURD[case][1], message), message
    assert not re.match(r"[A-Z]\w*Error:", message)
    assert "; " in message  # says what to do


def test_sizes_of_real_models_are_allowed() -> None:
    real = {
        "rope_theta": 1_000_000_000,
        "rope_parameters": {"rope_theta": 150_000_000, "original_max_position_embeddings": 131_072},
        "max_position_embeddings": 10_485_760,
        "vocab_size": 262_144,
        "num_hidden_layers": 126,
        "num_labels": 21_841,
        "pad_token_id": -1,
        "use_cache": True,
    }
    MultiTaskConfig(encoder_config={"model_type": "llama", **real}, tasks=TASKS)


@pytest.mark.parametrize("size", [MAX_SIZE + 1, -MAX_SIZE - 1, 10**30])
def test_a_size_is_bounded_on_both_sides(size: int) -> None:
    with pytest.raises(SpecError, match=rf"encoder_config\.hidden_size is {size}, more than the {MAX_SIZE}"):
        MultiTaskConfig(encoder_config={"model_type": "bert", "hidden_size": size}, tasks=TASKS)


def test_another_shape_is_allowed_where_it_is_asked_for(good: Path, tmp_path: Path) -> None:
    folder = edited(good, tmp_path / "model", lambda config: config["tasks"][0]["labels"].append("x"))
    model = MultiTaskModel.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert model.head("topic").output.out_features == 4


# ---------------------------------------------------------------------- pickles


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


def pickled(good: Path, folder: Path, name: str, *, bomb: Path | None = None) -> Path:
    """Copy a model with its weights in a pickle."""
    shutil.copytree(good, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if bomb is not None:
        (folder / name).write_bytes(pickle.dumps(Bomb(bomb)))
    else:
        torch.save(weights, folder / name)
    return folder


WAYS: dict[str, Callable[[Path], Any]] = {
    "class": MultiTaskModel.from_pretrained,
    "auto": AutoModel.from_pretrained,
    "load_model": load_model,
    "dtype": lambda folder: MultiTaskModel.from_pretrained(folder, dtype="auto"),
    "use_safetensors": lambda folder: MultiTaskModel.from_pretrained(folder, use_safetensors=None),
}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt", "pytorch_model-00001-of-00002.bin"])
@pytest.mark.parametrize("way", WAYS)
def test_a_pickled_model_is_refused_unread(good: Path, tmp_path: Path, way: str, name: str) -> None:
    folder = pickled(good, tmp_path / "model", name, bomb=tmp_path / "went off")
    with pytest.raises(ModelError, match=rf"its weights are pickled \({name}\).*convert a file that you trust"):
        WAYS[way](folder)
    assert not (tmp_path / "went off").exists()


def test_pickled_weights_are_refused_even_where_they_are_asked_for(good: Path, tmp_path: Path) -> None:
    folder = pickled(good, tmp_path / "model", "pytorch_model.bin")
    with pytest.raises(SpecError, match=r"use_safetensors is False; leave it out"):
        MultiTaskModel.from_pretrained(folder, use_safetensors=False)


def test_what_the_error_says_to_do_helps(good: Path, tmp_path: Path) -> None:
    folder = pickled(good, tmp_path / "model", "pytorch_model.bin")
    file = folder / "pytorch_model.bin"
    save_file(torch.load(file, weights_only=True), folder / "model.safetensors", {"format": "pt"})
    wanted = MultiTaskModel.from_pretrained(good).state_dict()
    found = MultiTaskModel.from_pretrained(folder).state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_an_encoder_that_is_pickled_is_refused_unread(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    (encoder / "model.safetensors").unlink()
    (encoder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "went off")))
    with pytest.raises(ModelError, match=r"encoder '.*encoder': its weights are pickled \(pytorch_model\.bin\)"):
        MultiTaskModel.from_encoder(encoder, TASKS)
    assert not (tmp_path / "went off").exists()


def test_a_saved_model_holds_no_pickle(good: Path) -> None:
    assert {path.suffix for path in good.iterdir()} <= {".safetensors", ".json", ".py", ".txt"}


def test_an_encoder_of_one_file_is_still_loaded_from_several(tmp_path: Path, tiny_encoder_config: BertConfig) -> None:
    """The weights of a large model stand in several files."""
    config = MultiTaskConfig(encoder_config=tiny_encoder_config.to_dict(), tasks=TASKS)
    model = MultiTaskModel(config)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded = MultiTaskModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in model.state_dict().items())
    wide = json.loads((tmp_path / "config.json").read_text())
    wide["encoder_config"]["intermediate_size"] = 48
    (tmp_path / "config.json").write_text(json.dumps(wide))
    with pytest.raises(ModelError, match="weights have another shape"):
        MultiTaskModel.from_pretrained(tmp_path)


def test_weights_that_transformers_renames_are_found(tmp_path: Path, tiny_encoder_config: BertConfig) -> None:
    """Checkpoints of the first years call a norm's weight and bias gamma and beta."""
    model = MultiTaskModel(MultiTaskConfig(encoder_config=tiny_encoder_config.to_dict(), tasks=TASKS))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    names = {name: re.sub("LayerNorm.weight$", "LayerNorm.gamma", name) for name in weights}
    assert len({*names.values()} - {*names}) > 2
    save_file(
        {names[name]: weight for name, weight in weights.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    loaded, info = MultiTaskModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())
    assert isinstance(loaded.encoder, BertModel)
