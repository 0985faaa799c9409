"""Runs that belong together, trained one after the other, each in a folder of its own."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_mtl.data.preparation import RecipeData
from hf_mtl.data.recipe import Recipe
from hf_mtl.training.run import TrainingRun, drop_checkpoints, run_training


def run_member(
    recipe: Recipe, folder: Path, *, data: RecipeData, callbacks: Sequence[TrainerCallback] = ()
) -> TrainingRun:
    """Train one run of a series, or go on with it where it was left; a finished one is not repeated.

    It is not pushed to the Hub, reports under the name of its folder, and leaves no checkpoints and no memory in use.

    Args:
        recipe: what to train.
        folder: folder of the run.
        data: the data to train and score on.
        callbacks: callbacks for the Trainer, as in `run_training`.

    Returns:
        The results.

    Raises:
        HfMtlError: as `run_training` raises.
    """
    recipe = replace(recipe, training=_arguments(recipe.training, folder))
    run = run_training(recipe, folder, resume=True, callbacks=callbacks, data=replace(data, recipe=recipe))
    if run.reports:
        drop_checkpoints(folder)
    wandb: Any = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()  # else the next run would be logged as more steps of this one
    free_memory()
    return run


def free_memory() -> None:
    """Give back the memory of models that nothing refers to any more: trainers are full of circles."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def _arguments(training: dict[str, Any], folder: Path) -> dict[str, Any]:
    kept = {name: value for name, value in training.items() if name != "push_to_hub"}
    if kept.get("report_to", "none") != "none":
        kept["run_name"] = f"{kept['run_name']} {folder.name}" if kept.get("run_name") else folder.name
    return kept
