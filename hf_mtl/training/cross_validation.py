"""How much a recipe's scores depend on which rows are trained on: K folds, each held out once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from hf_mtl.data.balanced_weights import balanced
from hf_mtl.data.encoded import encode_split
from hf_mtl.data.loading import RawSplit, split_folds, split_validation
from hf_mtl.data.preparation import RecipeData, class_column, find_labels, read_splits, recipe_tokenizer
from hf_mtl.data.recipe import Recipe, TaskSource
from hf_mtl.data.refinement import training_rows
from hf_mtl.errors import DataError, HfMtlError
from hf_mtl.training.outcomes import metric_of
from hf_mtl.training.recipe_arguments import training_arguments
from hf_mtl.training.run import is_finished, split_seed
from hf_mtl.training.selection import check_selection
from hf_mtl.training.series import run_member
from hf_mtl.writing import TextTable, to_json, write_text

RESULTS_NAME = "cross_validation.json"


def cross_validate(
    recipe: Recipe,
    output_dir: str | Path,
    *,
    folds: int = 5,
    callbacks: Sequence[TrainerCallback] = (),
    on_fold: Callable[[int, int], None] | None = None,
) -> dict[str, Any] | None:
    """Train a recipe once per fold, on the rows of the other folds, and score it on the fold held out.

    The folds are those of each dataset's training rows; every row is held out exactly once. They are stratified by the
    first label column that holds one class a row. The best checkpoint of a fold is found on the recipe's validation
    rows or, where a dataset has none, on a part that is set aside of the rows trained on, never on the fold held out.
    The recipe's test rows are not looked at.

    Folds that are finished are not trained again, so that a cross-validation that was interrupted goes on where it was.

    Args:
        recipe: the recipe, with its training arguments; the seed is that of the folds too.
        output_dir: folder of the runs and of `cross_validation.json`.
        folds: number of folds, at least 2.
        callbacks: callbacks for the Trainer, in place of those that print.
        on_fold: called before each fold that is not finished with its number from 1 and the number of folds.

    Returns:
        As plain JSON values each task's metrics over the folds: `mean`, `std` (of the sample, with K - 1 below the
        line) and `folds`; the same of the average. `None` on processes other than the first.

    Raises:
        SpecError: `folds` is less than 2.
        DataError: a dataset has fewer rows than folds, a fold has no label of a task, or a dataset is streamed.
        OutputError: the folder holds runs of another recipe.
        HfMtlError: the recipe, its data or its encoder cannot be used.
    """
    folder = Path(output_dir)
    arguments = training_arguments(folder, recipe.training)
    parts = list(fold_data(recipe, folds, seed=split_seed(recipe)))
    check_selection(arguments, parts[0].validation)
    found: list[Mapping[str, Any]] = []
    for number, data in enumerate(parts, start=1):
        place = folder / f"fold-{number}-of-{folds}"
        if on_fold is not None and arguments.process_index == 0 and not is_finished(place):
            on_fold(number, folds)
        run = run_member(recipe, place, data=data, callbacks=callbacks)
        found.append(run.results["test"])
    if arguments.process_index != 0:
        return None
    tasks = {task.spec.name: task for split in parts[0].train.values() for task in split.tasks}
    trained = [tasks[spec.name] for spec in parts[0].tasks if spec.name in tasks]
    results = {"folds": folds, "seed": split_seed(recipe), **_summary(trained, found)}
    write_text(to_json(results, indent=2) + "\n", folder / RESULTS_NAME)
    return results


def fold_data(recipe: Recipe, folds: int, *, seed: int = 0) -> Iterator[RecipeData]:
    """Yield the data of each fold: the rows held out as `test`, the others as `train` and `validation`.

    Args:
        recipe: the recipe.
        folds: number of folds, at least 2.
        seed: seed of the folds, and of the rows set aside for validation.

    Raises:
        SpecError: `folds` is less than 2.
        DataError: as in `cross_validate`.
    """
    for name, dataset in recipe.datasets.items():
        if dataset.streaming:
            raise DataError(
                "it is streamed, and cannot be divided into folds",
                where=f"dataset {name!r}",
                mend="leave streaming out",
            )
    # The labels are those of all rows, as in training, so that each fold has the same.
    raw = read_splits(recipe, recipe.tasks, set_aside=False)
    labelled = tuple(find_labels(source, raw) for source in recipe.tasks)
    owned = _owned(recipe, labelled)
    divided = _divided(raw, owned, folds, seed=seed)
    if not divided:
        raise DataError("there are no training rows", mend="name training files in the recipe's datasets")
    for number in range(folds):
        splits: dict[str, dict[str, Any]] = {"train": {}, "validation": {}, "test": {}}
        rows: dict[tuple[str, str], RawSplit] = {}
        for name, parts in divided.items():
            own = _fold(raw, name, parts, number, class_column(raw[name, "train"], owned[name]), seed=seed)
            rows |= {(name, split): found for split, found in own.items()}
        # What is learnt from rows is learnt from those that the fold trains on.
        tokenizer = recipe_tokenizer(recipe, rows=rows)
        rows = training_rows(recipe, labelled, rows, seed=seed)
        sources = tuple(balanced(source, rows) for source in labelled)
        weighted = _owned(recipe, sources)
        for (name, split), own in rows.items():
            try:
                encoded = encode_split(name, split, own, recipe.datasets[name], weighted[name], tokenizer)
                splits[split][name] = encoded
            except HfMtlError as error:
                held_out = f"fold {number + 1} of {folds}, which is test here"
                raise error.at(held_out) from error.__cause__
        yield RecipeData(recipe, tokenizer, tuple(source.spec for source in sources), **splits)


def _owned(recipe: Recipe, tasks: Sequence[TaskSource]) -> dict[str, tuple[TaskSource, ...]]:
    """Return the tasks of each dataset."""
    return {name: tuple(task for task in tasks if task.dataset == name) for name in recipe.datasets}


def _divided(
    raw: Mapping[tuple[str, str], RawSplit], owned: Mapping[str, Sequence[TaskSource]], folds: int, *, seed: int
) -> dict[str, list[np.ndarray]]:
    """Return for each dataset with training rows the rows of each fold."""
    divided: dict[str, list[np.ndarray]] = {}
    for name, tasks in owned.items():
        if (name, "train") in raw:
            rows = raw[name, "train"]
            try:
                divided[name] = split_folds(rows, folds, seed=seed, stratify=class_column(rows, tasks))
            except DataError as error:
                raise error.at(f"dataset {name!r}") from None
    return divided


def _fold(
    raw: Mapping[tuple[str, str], RawSplit],
    name: str,
    parts: Sequence[np.ndarray],
    number: int,
    stratify: str | None,
    *,
    seed: int,
) -> dict[str, RawSplit]:
    """Return a dataset's rows by what they are for in a fold."""
    rows = raw[name, "train"]
    others = np.sort(np.concatenate([part for place, part in enumerate(parts) if place != number]))
    train, validation = rows.select(others), raw.get((name, "validation"))
    if validation is None:
        train, validation = split_validation(train, seed=seed, stratify=stratify)
    return {"train": train, "validation": validation, "test": rows.select(parts[number])}


def _summary(tasks: Sequence[TaskSource], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation over the folds."""
    return {
        "tasks": {
            task.spec.name: {
                "primary": metric_of(task).primary,
                "metrics": {key: spread([fold[task.spec.name][key] for fold in found]) for key in metric_of(task).keys},
            }
            for task in tasks
        },
        "average": spread([fold["average"] for fold in found]),
    }


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return `mean`, `std` (of the sample) and `folds`; mean and std are NaN where a fold has no value.

    Example:
        >>> spread([0.5, 0.75, 1.0])
        {'mean': 0.75, 'std': 0.25, 'folds': [0.5, 0.75, 1.0]}
    """
    numbers = [math.nan if value is None else float(value) for value in values]
    defined = not any(map(math.isnan, numbers))
    mean, std = (statistics.fmean(numbers), statistics.stdev(numbers)) if defined else (math.nan, math.nan)
    return {"mean": mean, "std": std, "folds": numbers}


def cross_validation_table(results: Mapping[str, Any]) -> TextTable:
    """Lay out a cross-validation: of each task the mean and standard deviation of its metrics, the primary one first.

    Args:
        results: what `cross_validate` returned.
    """
    rows: list[tuple[str, ...]] = []
    for name, task in results["tasks"].items():
        keys = sorted(task["metrics"], key=lambda key: key != task["primary"])
        rows += [(name if place == 0 else "", key, *_cells(task["metrics"][key])) for place, key in enumerate(keys)]
    rows.append(("average", "of primaries", *_cells(results["average"])))
    header = ("task", "metric", "mean", "std", "least", "greatest")
    return TextTable(f"{results['folds']}-fold cross-validation", header, rows)


def _cells(own: Mapping[str, Any]) -> tuple[str, ...]:
    if own["mean"] is None or math.isnan(own["mean"]):
        return ("-",) * 4
    numbers = (own["mean"], own["std"], min(own["folds"]), max(own["folds"]))
    return tuple(f"{number:.4f}" for number in numbers)
