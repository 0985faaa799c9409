"""Was multi-task worth it? Each task trained alone, and all of them together, under the same budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from hf_mtl.data.dataset_source import SPLITS
from hf_mtl.data.preparation import EncodedSplit, RecipeData, TrainingSplit, load_recipe
from hf_mtl.data.recipe import Recipe, TaskSource
from hf_mtl.errors import DataError, SpecError
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.outcomes import (
    Outcome,
    Scoring,
    compared_cost,
    compared_scores,
    comparison_tables,
    inference_seconds,
    metric_of,
    read_outcome,
)
from hf_mtl.training.recipe_arguments import training_arguments
from hf_mtl.training.run import is_finished, split_seed
from hf_mtl.training.selection import check_selection
from hf_mtl.training.series import run_member
from hf_mtl.writing import to_json, write_text

COMPARISON_NAME = "comparison.json"
TABLE_NAME = "comparison.md"
SECONDS_NAME = "inference_seconds.json"

BUDGET = "every run passes over the rows it trains on equally often, in batches of the same size"

OF_SEVERAL_TASKS = (
    *("sampling", "sampling_kwargs", "batching", "dataset_batch_size", "every_task_in_batch", "epoch_size"),
    *("balancing", "balancing_kwargs", "aggregation", "aggregation_kwargs", "log_gradient_conflict"),
    "single_task_scores",
)
"""Training arguments that mean nothing for a single task."""

IN_STEPS = ("max_steps", "warmup_steps", "eval_steps", "save_steps")
"""Training arguments in steps of the optimizer, of which a run on fewer rows has fewer."""


@dataclass(frozen=True)
class _Plan:
    """What all runs share: the recipe, its arguments and its data."""

    recipe: Recipe
    arguments: MultiTaskTrainingArguments
    data: RecipeData

    @property
    def num_rows(self) -> int:
        """The rows of an epoch that passes once over all datasets."""
        return sum(_num_labelled(split, split.tasks) for split in self.data.train.values())

    def together(self, seed: int) -> tuple[Recipe, RecipeData]:
        """Return what the joint run trains on."""
        return replace(self.recipe, training={**self.recipe.training, "seed": seed}), self.data

    def alone(self, task: TaskSource, seed: int, *, rows_per_epoch: int) -> tuple[Recipe, RecipeData]:
        """Return what the run on one task trains on.

        Args:
            task: the task.
            seed: seed of the run.
            rows_per_epoch: rows of an epoch of the joint run.
        """
        all_rows, own_rows = self.num_rows, _num_labelled(self.data.train[task.dataset], [task])
        training = alone_arguments(
            self.recipe.training,
            self.arguments,
            task,
            share=own_rows / all_rows,
            epoch_size=None if rows_per_epoch == all_rows else max(1, round(own_rows * rows_per_epoch / all_rows)),
        )
        recipe = replace(
            self.recipe,
            tasks=tuple(source for source in self.recipe.tasks if source.spec.name == task.spec.name),
            datasets={task.dataset: self.recipe.datasets[task.dataset]},
            training={**training, "seed": seed},
        )
        splits: dict[str, Any] = {split: _only(getattr(self.data, split), task) for split in SPLITS}
        return recipe, replace(self.data, recipe=recipe, tasks=(task.spec,), **splits)


def compare(
    recipe: Recipe,
    output_dir: str | Path,
    *,
    seeds: Sequence[int] | None = None,
    resamples: int = 1000,
    callbacks: Sequence[TrainerCallback] = (),
    on_run: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any] | None:
    """Train each task alone and all together, and say what each task gained or lost.

    The budget is one of rows: alone as together, every dataset's rows are passed over equally often (`num_train_epochs`
    times, or as often as the joint run's `epoch_size` comes to), in batches of the same size and with the same other
    arguments. With proportional sampling the joint run so draws as many rows of each dataset as the runs on its tasks;
    other strategies deal the same total out in another way. Two tasks on one dataset need a pass each when they are
    trained alone. What is given in steps (`max_steps`, `eval_steps` ...) is cut to a single task's share of the rows.

    All are scored on the test rows (where a dataset has none, on its validation rows). The interval of a difference is
    a paired bootstrap's: both models are scored on the same resampled rows. It says how much the rows leave in doubt,
    not how much another training would differ: that is what several seeds are for. Inference seconds are those of
    answering every task for every row, which takes one model per task or one in all; at most 1,000 rows, drawn at
    random.

    Runs stand in folders of their own. Whatever is finished is not done again, so that a comparison that was
    interrupted goes on where it was, and ends with the same scores.

    Args:
        recipe: the recipe, with its training arguments.
        output_dir: folder of the runs, `comparison.json` and `comparison.md`.
        seeds: seeds to train with, scores being the mean over them; the recipe's where not given. The rows set aside
            for validation are those of the recipe's seed.
        resamples: draws of the bootstrap.
        callbacks: callbacks for the Trainer, in place of those that print.
        on_run: called before each run that is not finished with its number from 1, the number of runs, and what is
            trained.

    Returns:
        The comparison as plain JSON values; `None` on processes other than the first.

    Raises:
        SpecError: there are fewer than two tasks, or a seed stands twice.
        OutputError: the folder holds runs of another recipe.
        HfMtlError: the recipe, its data or its encoder cannot be used.

    Source: the mean relative gain delta-m is that of Maninis et al. 2019, https://arxiv.org/abs/1904.08918.
    """
    folder = Path(output_dir)
    plan, scoring = _plan(recipe, folder)
    seeds = check_seeds((plan.arguments.seed,) if seeds is None else seeds)
    reports = plan.arguments.process_index == 0
    together: list[Outcome] = []
    alone: dict[str, list[Outcome]] = {task.spec.name: [] for task in scoring.tasks}
    total = len(seeds) * (1 + len(alone))
    number = 0

    def run(what: str, seed: int, member: tuple[Recipe, RecipeData], outcomes: list[Outcome]) -> dict[str, Any]:
        nonlocal number
        number += 1
        place = run_folder(folder, what, seed)
        if on_run is not None and reports and not is_finished(place):
            on_run(number, total, what if len(seeds) == 1 else f"{what}, seed {seed}")
        own, data = member
        train = run_member(own, place, data=data, callbacks=callbacks).results["train"]
        if reports:
            outcomes.append(read_outcome(place, train, [spec.name for spec in data.tasks], scoring))
        return train

    for seed in seeds:
        rows = run("together", seed, plan.together(seed), together)["rows_per_epoch"]
        for task in scoring.tasks:
            name = task.spec.name
            run(f"alone {name}", seed, plan.alone(task, seed, rows_per_epoch=rows), alone[name])
    if not reports:
        return None
    singles = [run_folder(folder, f"alone {name}", seeds[0]) for name in alone]
    times = inference_seconds(scoring, singles, run_folder(folder, "together", seeds[0]), folder / SECONDS_NAME)
    results: dict[str, Any] = {
        "seeds": list(seeds),
        "budget": BUDGET,
        **compared_scores(scoring, alone, together, resamples=resamples),
        "cost": compared_cost(alone, together, times),
    }
    write_text(to_json(results, indent=2) + "\n", folder / COMPARISON_NAME)
    write_text("\n".join(table.markdown() for table in comparison_tables(results)), folder / TABLE_NAME)
    return results


def run_folder(folder: Path, what: str, seed: int) -> Path:
    """Return the folder of a run of a comparison.

    Args:
        folder: folder of the comparison.
        what: `"together"`, or `"alone"` and the task.
        seed: seed of the run.

    Example:
        >>> run_folder(Path("comparison"), "alone topic", 0).name
        'alone-topic-seed0'
    """
    return folder / f"{what.replace(' ', '-')}-seed{seed}"


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Return seeds that are whole numbers, not negative and all different.

    Raises:
        SpecError: they are not.
    """
    if not seeds or len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
        raise SpecError(f"seeds is {list(seeds)!r}", mend="give different whole numbers of at least 0")
    return tuple(seeds)


def alone_arguments(
    training: Mapping[str, Any],
    arguments: MultiTaskTrainingArguments,
    task: TaskSource,
    *,
    share: float,
    epoch_size: int | None,
) -> dict[str, Any]:
    """Return the training arguments of a run on one task, from those of the run on all.

    Args:
        training: the arguments as the recipe gives them.
        arguments: the same, checked and complete.
        task: the task.
        share: the task's rows over the rows of all datasets.
        epoch_size: rows of an epoch; `None` where it is one pass over the task's rows.
    """
    values = {name: value for name, value in training.items() if name not in OF_SEVERAL_TASKS}
    batch_sizes: Any = arguments.dataset_batch_size or {}
    if arguments.batching == "homogeneous" and task.dataset in batch_sizes:
        values["per_device_train_batch_size"] = batch_sizes[task.dataset]
    if epoch_size is not None:
        values["epoch_size"] = epoch_size
    for name in ("class_balanced", "freeze_heads"):
        if task.spec.name in (getattr(arguments, name) or ()):
            values[name] = [task.spec.name]
        else:
            values.pop(name, None)
    best = str(arguments.metric_for_best_model).removeprefix("eval_")
    if best not in [f"{task.spec.name}_{key}" for key in (*metric_of(task).keys, "loss")]:
        for name in ("metric_for_best_model", "greater_is_better"):
            values.pop(name, None)
    for name in IN_STEPS:
        if isinstance(values.get(name), int | float) and values[name] >= 1:
            values[name] = max(1, round(values[name] * share))
    every, saved = training.get("eval_steps") or 0, training.get("save_steps") or 0
    if every >= 1 and saved >= 1 and saved % every == 0:  # what is saved must have been evaluated
        values["save_steps"] = values["eval_steps"] * int(saved // every)
    return values


def _plan(recipe: Recipe, folder: Path) -> tuple[_Plan, Scoring]:
    """Load the data, and find what cannot work before anything is trained."""
    arguments = training_arguments(folder, recipe.training)
    if len(recipe.tasks) < 2:
        raise SpecError("the recipe has one task", mend="give it at least two, to compare alone and together")
    data = load_recipe(recipe, seed=split_seed(recipe))
    check_selection(arguments, data.validation)
    splits: dict[str, EncodedSplit] = {}
    for task in recipe.tasks:
        place = f"dataset {task.dataset!r}, task {task.spec.name!r}"
        if task.dataset not in data.train:
            raise DataError(
                "there are no training rows", where=place, mend="name training files, or leave the task out"
            )
        split = data.test.get(task.dataset) or data.validation.get(task.dataset)
        if split is None or not len(split.labelled(task.spec.name)):
            raise DataError("there are no labelled rows to score", where=place, mend="name files in test or validation")
        splits[task.dataset] = split
        validation = data.validation.get(task.dataset)
        if arguments.eval_strategy != "no" and (validation is None or not len(validation.labelled(task.spec.name))):
            raise DataError(
                "there are no labelled validation rows to choose a checkpoint by, when the task is trained alone",
                where=place,
                mend="name files in validation, or set eval_strategy to no",
            )
    found = {task.spec.name: task for split in data.train.values() for task in split.tasks}
    tasks = tuple(found[spec.name] for spec in data.tasks)
    scoring = Scoring(tasks, splits, data.tokenizer, arguments.per_device_eval_batch_size, arguments.device)
    plan = _Plan(recipe, arguments, data)
    for task in tasks:
        own, _ = plan.alone(task, arguments.seed, rows_per_epoch=plan.num_rows)
        training_arguments(folder, own.training)
    return plan, scoring


def _num_labelled(split: TrainingSplit, tasks: Sequence[TaskSource]) -> int:
    if not isinstance(split, EncodedSplit):
        return len(split)  # which rows of a stream have labels is not known before they are read
    return len(np.unique(np.concatenate([split.labelled_encoded(task.spec.name) for task in tasks])))


def _only(splits: Mapping[str, TrainingSplit], task: TaskSource) -> dict[str, TrainingSplit]:
    """Return a task's dataset as if it had no other task."""
    return {name: replace(split, tasks=(task,)) for name, split in splits.items() if name == task.dataset}
