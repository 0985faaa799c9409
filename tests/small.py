"""A recipe of three tasks, two of them on one dataset, that trains in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import write_encoder, write_recipe

from hf_mtl.data.recipe import Recipe, parse_recipe

TASKS = ("sentiment", "intent", "slots")
ROWS = {"train": 24, "validation": 12, "test": 20}


def small_recipe(folder: Path, *, tasks: tuple[str, ...] = TASKS, **values: Any) -> Recipe:
    """Write encoder and data, and return a recipe of some tasks; `values` are training arguments."""
    encoder = write_encoder(folder / "encoder")
    recipe = write_recipe(folder, encoder, rows=ROWS)
    recipe["encoder"] = "encoder"
    recipe["tasks"] = [task for task in recipe["tasks"] if task["name"] in tasks]
    arguments = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 3e-3, "precision": "fp32"}
    recipe["training"] = {**arguments, "disable_tqdm": True, **values}
    return parse_recipe(recipe, base=folder)
