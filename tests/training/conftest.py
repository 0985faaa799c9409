"""The tiny world of `tiny.py`, built once a session; models and trainers are made for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import build, load, write_encoder, write_recipe

from hf_mtl.data.preparation import RecipeData
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.trainer import MultiTaskTrainer


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the encoder (`encoder`, and `plain` without dropout) and the datasets' files."""
    folder = tmp_path_factory.mktemp("tiny")
    write_encoder(folder / "encoder")
    write_encoder(folder / "plain", dropout=0.0)
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tiny_folder: Path) -> dict[str, Any]:
    return write_recipe(tiny_folder, tiny_folder / "encoder")


@pytest.fixture(scope="session")
def tiny_data(tiny_folder: Path, tiny_recipe: dict[str, Any]) -> RecipeData:
    """Four datasets, six tasks: sentiment, intent and slots and grammar (with missing labels), similarity, moods."""
    return load(tiny_folder, tiny_recipe)


@pytest.fixture
def trainer_for(tiny_data: RecipeData, tmp_path: Path) -> Callable[..., MultiTaskTrainer]:
    """Makes a trainer on the tiny data from training arguments, or `model`, `folder`, `data` and `callbacks`."""

    def make(
        *,
        model: MultiTaskModel | None = None,
        folder: Path | None = None,
        data: RecipeData | None = None,
        callbacks: list[Any] | None = None,
        **values: Any,
    ) -> MultiTaskTrainer:
        data = data or tiny_data
        values = {"per_device_train_batch_size": 8, "disable_tqdm": True, "learning_rate": 1e-3, **values}
        return MultiTaskTrainer(
            model or build(data),
            MultiTaskTrainingArguments(output_dir=str(folder or tmp_path / "run"), **values),
            train_datasets=data.train,
            eval_datasets=data.validation,
            tokenizer=data.tokenizer,
            callbacks=callbacks,
        )

    return make
