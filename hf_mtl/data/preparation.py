"""From a recipe to its data: rows read, validation rows set aside, labels found, everything tokenized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.encoded import EncodedSplit, encode_split
from hf_mtl.data.encoding import set_max_length
from hf_mtl.data.loading import RawSplit, read_files, read_hub, split_validation
from hf_mtl.data.recipe import SPLITS, DatasetSource, Recipe, TaskSource, near, read_recipe
from hf_mtl.errors import DataError, HfMtlError, ModelError, SpecError
from hf_mtl.model.encoders.base import load_encoder_config
from hf_mtl.registry import HEADS


@dataclass(frozen=True)
class RecipeData:
    """What a recipe comes to: tasks with their labels, the tokenizer, and the datasets of each split by name."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    tasks: tuple[TaskSpec, ...]
    train: dict[str, EncodedSplit]
    validation: dict[str, EncodedSplit]
    test: dict[str, EncodedSplit]

    def split(self, name: str) -> dict[str, EncodedSplit]:
        """Return the datasets of `"train"`, `"validation"` or `"test"`."""
        if name not in SPLITS:
            raise DataError(f"there is no split {name!r}", mend=near(name, SPLITS))
        return getattr(self, name)


def load_recipe(
    recipe: str | Path | Recipe,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tasks: Sequence[TaskSpec] | None = None,
    splits: Sequence[str] = SPLITS,
    seed: int = 0,
) -> RecipeData:
    """Read a recipe's data, find its labels and tokenize it.

    Args:
        recipe: the file, or a recipe already read.
        tokenizer: the tokenizer of a trained model; without it that of the recipe's encoder.
        tasks: the specs of a trained model, whose labels then hold; without them labels are read from the data. Tasks
            of the recipe that are not among them are left out.
        splits: the splits to tokenize.
        seed: seed of the rows set aside where a dataset has no validation split.

    Returns:
        Tasks, tokenizer and datasets.

    Raises:
        RecipeError: the recipe is not valid.
        SpecError: there is no such split, or the labels do not suit a task's type.
        DataError: a file, row or label cannot be used; names the place.
        ModelError: the encoder's tokenizer cannot be found.
    """
    _check_splits(splits)
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    if tokenizer is None:
        tokenizer = load_tokenizer(recipe.encoder_path)
        set_max_length(tokenizer, load_encoder_config(recipe.encoder_path), recipe.max_length)
    sources = recipe.tasks if tasks is None else _known_tasks(recipe, tasks)
    # Labels are those of all splits, whichever are asked for.
    raw = read_splits(recipe, sources, splits=SPLITS if tasks is None else splits, seed=seed)
    sources = tuple(find_labels(source, raw) for source in sources)
    encoded: dict[str, dict[str, EncodedSplit]] = {split: {} for split in SPLITS}
    for (dataset, split), rows in raw.items():
        if split not in splits:
            continue
        own = tuple(source for source in sources if source.dataset == dataset)
        encoded[split][dataset] = encode_split(dataset, split, rows, recipe.datasets[dataset], own, tokenizer)
    return RecipeData(recipe, tokenizer, tuple(source.spec for source in sources), **encoded)


def load_tokenizer(name_or_path: str | Path, **hub_kwargs: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer from the Hub or a folder.

    Raises:
        ModelError: it cannot be found.
    """
    load_encoder_config(name_or_path, **hub_kwargs)  # says clearly when there is nothing at all
    try:
        return AutoTokenizer.from_pretrained(str(name_or_path), **hub_kwargs)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"its tokenizer cannot be loaded ({reason})", where=f"{str(name_or_path)!r}", mend="check its files"
        ) from error


def read_splits(
    recipe: Recipe, sources: Sequence[TaskSource], *, splits: Sequence[str] = SPLITS, seed: int = 0
) -> dict[tuple[str, str], RawSplit]:
    """Read the raw rows of every dataset that a task needs.

    Returns:
        The rows by dataset and split. Where a dataset has no validation split a part of train is set aside for it, and
        is missing from train whether or not validation is read.

    Raises:
        DataError: a file cannot be read, or a column is missing.
        SpecError: there is no such split.
    """
    _check_splits(splits)
    rows: dict[tuple[str, str], RawSplit] = {}
    for name in dict.fromkeys(source.dataset for source in sources):
        own = [source for source in sources if source.dataset == name]
        dataset = recipe.datasets[name]
        try:
            for split in SPLITS:
                divided = split == "train" and dataset.validation is None and "validation" in splits
                read = _read_split(dataset, split, base=recipe.base) if split in splits or divided else None
                if read is not None:
                    _check_columns(read, dataset, own)
                    rows[name, split] = read
            if dataset.validation is None and (name, "train") in rows:
                train = rows[name, "train"]
                parts = split_validation(train, seed=seed, stratify=_scalar_label(train, own))
                rows[name, "train"], rows[name, "validation"] = parts
        except HfMtlError as error:
            raise error.at(f"dataset {name!r}") from error.__cause__
    return {(name, split): read for (name, split), read in rows.items() if split in splits}


def find_labels(source: TaskSource, raw: Mapping[tuple[str, str], RawSplit]) -> TaskSource:
    """Complete a task's spec with the labels of the data, unless it names them.

    Where the data names its classes (`datasets.ClassLabel`) these are the labels, in their order and with those that no
    row has; otherwise the labels are those of the rows of all splits, sorted.

    Raises:
        DataError: a label cannot be read; names file and line.
        SpecError: the labels do not suit the task type.
    """
    head = HEADS.get(source.spec.type)
    if source.spec.labels is None:
        columns = [rows for (dataset, _), rows in raw.items() if dataset == source.dataset]
        values = (value for rows in columns for value in cast(Any, rows.dataset[source.label]))
        try:
            labels = head.infer_labels(values)
        except DataError as error:
            raise _located(error, source, columns, head.infer_labels) from None
        if labels is not None:
            classes = dict.fromkeys(name for rows in columns for name in rows.classes.get(source.label, ()))
            labels = (*classes, *(label for label in labels if label not in classes))
        source = replace(source, spec=replace(source.spec, labels=labels))
    try:
        head.validate_spec(source.spec)
    except HfMtlError as error:
        raise error.at(f"dataset {source.dataset!r}, column {source.label!r}") from None
    return source


def _check_splits(splits: Sequence[str]) -> None:
    for split in splits:
        if split not in SPLITS:
            raise SpecError(f"there is no split {split!r}", mend=near(split, SPLITS))


def _read_split(source: DatasetSource, split: str, *, base: Path) -> RawSplit | None:
    named = getattr(source, split)
    if source.path is not None:
        if named is None and split != "train":
            return None
        return read_hub(source.path, name=source.name, split=named or split, revision=source.revision, base=base)
    if named is None:
        return None
    return read_files(named, base=base, columns=source.columns)


def _check_columns(raw: RawSplit, source: DatasetSource, tasks: Sequence[TaskSource]) -> None:
    known = raw.dataset.column_names
    wanted = {**source.input_columns, **{f"label of task {task.spec.name!r}": task.label for task in tasks}}
    for role, column in wanted.items():
        if column not in known:
            raise DataError(
                f"there is no column {column!r} ({role})", where=raw.sources[0].name, mend=near(column, known)
            )


def _known_tasks(recipe: Recipe, specs: Sequence[TaskSpec]) -> tuple[TaskSource, ...]:
    by_name = {task.spec.name: task for task in recipe.tasks}
    for spec in specs:
        task = by_name.get(spec.name)
        if task is not None and task.spec.type != spec.type:
            raise ModelError(
                f"the model's task {spec.name!r} is of type {spec.type}, the recipe's of type {task.spec.type}",
                mend="use the recipe that the model was trained with",
            )
    known = tuple(replace(by_name[spec.name], spec=spec) for spec in specs if spec.name in by_name)
    if not known:
        raise ModelError(
            f"the recipe has none of the model's tasks ({', '.join(spec.name for spec in specs)})",
            mend="use a recipe with at least one of them",
        )
    return known


def _scalar_label(raw: RawSplit, tasks: Sequence[TaskSource]) -> str | None:
    """Return the first label column that holds one name or whole number per row, to draw evenly from each."""
    for task in tasks:
        kind = getattr(raw.dataset.features[task.label], "dtype", None)
        if isinstance(kind, str) and ("string" in kind or kind.startswith(("int", "uint", "bool"))):
            return task.label
    return None


def _located(
    error: DataError, task: TaskSource, columns: Sequence[RawSplit], check: Callable[[list[Any]], Any]
) -> HfMtlError:
    """Find the row whose label raises the error, and put its place in front."""
    for raw in columns:
        for index, value in enumerate(raw.dataset[task.label]):
            try:
                check([value])
            except DataError as found:
                return found.at(f"task {task.spec.name!r}").at(raw.where(index))
    return error
