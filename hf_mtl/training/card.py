"""The model card of a training run: its facts, gathered from what the run knows, and the picture of its course."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence, Sized
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hf_mtl.data.dataset_source import SPLITS
from hf_mtl.data.preparation import RecipeData
from hf_mtl.evaluation.metrics import load_metric
from hf_mtl.hub.model_card import CURVE_NAME, CardFacts, DatasetFacts, write_card
from hf_mtl.registry import HEADS
from hf_mtl.training.arguments import MultiTaskTrainingArguments, plain
from hf_mtl.writing import replacing

TOLD = (
    "learning_rate", "head_learning_rate", "layer_decay", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "max_tokens_per_batch",
    "gradient_accumulation_steps", "seed", "precision", "sampling", "sampling_kwargs", "batching",
    "every_task_in_batch", "epoch_size", "balancing", "aggregation", "perturbation", "freeze_encoder", "freeze_layers",
    "peft",
)  # fmt: skip
"""Training arguments that a card tells, where they have a value."""
LIBRARIES = ("hf-mtl", "transformers", "torch", "datasets", "accelerate")


def write_training_card(
    folder: Path,
    data: RecipeData,
    arguments: MultiTaskTrainingArguments,
    *,
    results: Mapping[str, Mapping[str, Any]],
    history: Sequence[Mapping[str, Any]],
    shares: Mapping[str, float],
    seconds: float | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
) -> None:
    """Write the card of a trained model, and the picture of its training where matplotlib is installed.

    Args:
        folder: the model's folder.
        data: the recipe with its tasks and datasets.
        arguments: the training arguments.
        results: what `train_results.json` holds: split -> task -> metric -> value.
        history: the Trainer's log history.
        shares: share of the training rows by dataset.
        seconds: seconds of training.
        hyperparameters: what tells how the model was trained, in place of the training arguments.
    """
    card = data.recipe.card
    language = card.get("language", ())
    facts = CardFacts(
        name=str(card.get("name") or arguments.hub_model_id or folder.resolve().name),
        encoder=data.recipe.encoder_name,
        tasks=data.tasks,
        task_datasets={task.spec.name: task.dataset for task in data.recipe.tasks},
        datasets=[_dataset(name, data, shares) for name in data.recipe.datasets],
        results={split: _task_metrics(results[split]) for split in ("validation", "test") if split in results},
        primary={spec.name: load_metric(HEADS.get(spec.type).metric_name(spec)).primary for spec in data.tasks},
        hyperparameters=_hyperparameters(arguments) if hyperparameters is None else hyperparameters,
        versions={name: version(name) for name in LIBRARIES},
        seconds=seconds,
        hardware=_hardware(),
        has_curve=draw_curve(history, folder / CURVE_NAME),
        language=(language,) if isinstance(language, str) else tuple(language),
        license=card.get("license"),
    )
    write_card(folder, facts)


def _dataset(name: str, data: RecipeData, shares: Mapping[str, float]) -> DatasetFacts:
    source = data.recipe.datasets[name]
    splits: dict[str, Mapping[str, Sized]] = {split: getattr(data, split) for split in SPLITS}  # streams are among them
    rows = {split: len(own[name]) for split, own in splits.items() if name in own}
    on_hub = source.path is not None and not Path(source.path).expanduser().exists()
    return DatasetFacts(name=name, rows=rows, share=shares.get(name), hub_id=source.path if on_hub else None)


def _task_metrics(by_task: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {task: dict(metrics) for task, metrics in by_task.items() if isinstance(metrics, Mapping)}


def _hyperparameters(arguments: MultiTaskTrainingArguments) -> dict[str, Any]:
    values = {name: plain(getattr(arguments, name)) for name in TOLD}
    return {name: value for name, value in values.items() if value not in (None, False, -1)}


def _hardware() -> str:
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return (f"{count} x " if count > 1 else "") + torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def draw_curve(history: Sequence[Mapping[str, Any]], target: Path) -> bool:
    """Draw the training loss of each task, and each task's validation loss and the average score, over the steps.

    Args:
        history: log entries with `step` and values, as the Trainer keeps them.
        target: the PNG file.

    Returns:
        Whether there was anything to draw, and matplotlib to draw it with.
    """
    losses = _series(history, "loss_")
    scores = _series(history, "eval_average")
    if find_spec("matplotlib") is None or not (losses or scores):
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, series, title in zip(
        figure.subplots(1, 2), (losses, scores), ("training loss", "average on validation"), strict=True
    ):
        for name, points in series.items():
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 20 else None)
        axes.set_title(title)
        axes.set_xlabel("step")
        if series is losses and len(series) > 1:
            axes.legend(fontsize=8)
    with replacing(target) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
    return True


def _series(history: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, list[tuple[int, float]]]:
    """Return the logged values whose names have a prefix, over the steps, by what follows it."""
    series: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        for key, value in entry.items():
            if key.startswith(prefix) and isinstance(value, int | float):
                series.setdefault(key[len(prefix) :], []).append((int(entry["step"]), float(value)))
    return dict(sorted(series.items()))  # a history read back from a checkpoint has another order
