"""The tiny world of `tiny.py`, built once a session; models and trainers are made for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import build, tiny_data, tiny_folder, tiny_recipe  # noqa: F401 (fixtures)

from hf_mtl.data.preparation import RecipeData
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.trainer import MultiTaskTrainer


@pytest.fixture
def trainer_for(tiny_data: RecipeData, tmp_path: Path) -> Callable[..., MultiTaskTrainer]:  # noqa: F811
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
        precision = "auto" if values.get("bf16") else "fp32"
        defaults = {
            "per_device_train_batch_size": 8,
            "disable_tqdm": True,
            "learning_rate": 1e-3,
            "precision": precision,
        }
        values = {**defaults, **values}
        return MultiTaskTrainer(
            model or build(data),
            MultiTaskTrainingArguments(output_dir=str(folder or tmp_path / "run"), **values),
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=data.tokenizer,
            callbacks=callbacks,
        )

    return make
