"""A model of every task type with random weights, in memory and saved; it answers something for every word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build, learnt, load, tiny_data, tiny_folder, tiny_recipe, write_encoder, write_recipe
from transformers import PreTrainedTokenizerBase

from hf_mtl.model.modeling import MultiTaskModel

__all__ = ["learnt", "tiny_data", "tiny_folder", "tiny_recipe"]


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> tuple[MultiTaskModel, Any]:
    folder = tmp_path_factory.mktemp("made")
    data = load(folder, write_recipe(folder, write_encoder(folder / "encoder")))
    model = build(data).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for head in model.heads.values():  # answers that differ from word to word
            for parameter in head.parameters():
                parameter.normal_()
    return model, data.tokenizer


@pytest.fixture
def model(_made: tuple[MultiTaskModel, Any]) -> MultiTaskModel:
    """Not to be changed."""
    return _made[0]


@pytest.fixture
def tokenizer(_made: tuple[MultiTaskModel, Any]) -> PreTrainedTokenizerBase:
    return _made[1]


@pytest.fixture(scope="session")
def saved(_made: tuple[MultiTaskModel, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the model and its tokenizer."""
    folder = tmp_path_factory.mktemp("saved")
    for part in _made:
        part.save_pretrained(folder)
    return folder
