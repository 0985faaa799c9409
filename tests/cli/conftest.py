"""A recipe of every task type on files, and one model trained on it through the command line, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from calling import OPTIONS, call
from tiny import write_encoder, write_recipe

from hf_mtl.data.yaml import write_yaml


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an encoder, data files and `recipe.yaml`; not to be changed."""
    folder = tmp_path_factory.mktemp("workspace")
    encoder = write_encoder(folder / "encoder")
    recipe = write_recipe(folder, encoder, rows={"train": 48, "validation": 24, "test": 32})
    recipe["encoder"] = "encoder"
    recipe["training"] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 32,
        "learning_rate": 3e-3,
        "bf16": True,
        "seed": 3,
    }
    (folder / "recipe.yaml").write_text(write_yaml(recipe), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def recipe(workspace: Path) -> Path:
    return workspace / "recipe.yaml"


@pytest.fixture(scope="session")
def trained(workspace: Path, recipe: Path) -> Path:
    """Folder of a model trained with `hf-mtl train`; not to be changed."""
    folder = workspace / "run"
    call("train", recipe, "--output-dir", folder, *OPTIONS)
    return folder
