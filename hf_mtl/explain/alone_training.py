"""A few steps of training on each task alone, all from the same encoder: what each would make of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor
from transformers import PrinterCallback, ProgressCallback

from hf_mtl.data.preparation import RecipeData
from hf_mtl.data.recipe import TaskSource
from hf_mtl.errors import DataError, SpecError
from hf_mtl.explain.encoder_pieces import encoder_state
from hf_mtl.model.lora import merge_and_unload
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.comparison import alone_arguments
from hf_mtl.training.recipe_arguments import training_arguments
from hf_mtl.training.trainer import MultiTaskTrainer

FEW_STEPS = {
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "load_best_model_at_end": False,
    "report_to": "none",
    "disable_tqdm": True,
    "push_to_hub": False,
}
"""Arguments that a handful of steps has in place of the recipe's: each step counts alike, and nothing is kept."""

OF_LONG_RUNS = (
    *("metric_for_best_model", "greater_is_better", "early_stopping_patience", "early_stopping_threshold"),
    *("head_patience", "single_task_scores", "save_steps", "eval_steps", "cache_hidden_states"),
)
"""Arguments that mean nothing without evaluation."""


def train_alone(
    data: RecipeData,
    encoder: str,
    *,
    steps: int,
    tasks: Sequence[str] | None = None,
    seed: int = 0,
    on_task: Callable[[int, int, str], None] | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Train each task alone for some steps, with a new head, the recipe's arguments and one learning rate throughout.

    Args:
        data: the recipe's data with training rows.
        encoder: Hub id or folder of the encoder that all begin from.
        steps: optimizer steps of each task.
        tasks: the tasks; all where not given.
        seed: seed of heads and rows, the same for all.
        on_task: called before each task with its number from 1, the number of tasks, and its name.

    Returns:
        Task -> the encoder's parameters afterwards, adapters merged into them.

    Raises:
        SpecError: `steps` is less than 1.
        DataError: a task has no training rows.
    """
    if steps < 1:
        raise SpecError(f"steps is {steps}", mend="use 1 or more")
    sources = [source for source in data.recipe.tasks if tasks is None or source.spec.name in tasks]
    found: dict[str, dict[str, Tensor]] = {}
    for number, source in enumerate(sources, start=1):
        if on_task is not None:
            on_task(number, len(sources), source.spec.name)
        found[source.spec.name] = _train(data, source, encoder, steps, seed)
    return found


def _train(data: RecipeData, source: TaskSource, encoder: str, steps: int, seed: int) -> dict[str, Tensor]:
    split = data.train.get(source.dataset)
    if split is None:
        raise DataError("there are no training rows", where=f"task {source.spec.name!r}", mend="name training files")
    own = next(task for task in split.tasks if task.spec.name == source.spec.name)
    given = data.recipe.training
    with tempfile.TemporaryDirectory() as folder:
        values = alone_arguments(given, training_arguments(folder, given), own, share=1.0, epoch_size=None)
        kept = {name: value for name, value in values.items() if name not in OF_LONG_RUNS}
        arguments = training_arguments(folder, {**kept, **FEW_STEPS, "max_steps": steps, "seed": seed})
        model = MultiTaskModel.from_encoder(encoder, [own.spec], seed=seed)
        trainer = MultiTaskTrainer(
            model,
            arguments,
            train_dataset={source.dataset: replace(split, tasks=(own,))},
            processing_class=data.tokenizer,
        )
        for printing in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printing)
        trainer.train()
    trained = trainer.model
    assert isinstance(trained, MultiTaskModel)
    return encoder_state(merge_and_unload(trained).encoder)
