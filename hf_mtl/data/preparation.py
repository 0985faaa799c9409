"""From a recipe to its data: rows read, validation rows set aside, labels found, everything tokenized."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.balanced_weights import balanced
from hf_mtl.data.choice_labels import number_choices
from hf_mtl.data.dataset_source import SPLITS, DatasetSource
from hf_mtl.data.encoded import EncodedSplit, encode_split
from hf_mtl.data.encoding import set_max_length
from hf_mtl.data.loading import RawSplit, read_files, read_hub, split_validation
from hf_mtl.data.own_encoder import VOCAB_SIZE, OwnEncoder, train_tokenizer, training_texts
from hf_mtl.data.recipe import Recipe, TaskSource, check_windows, near, read_recipe
from hf_mtl.data.refinement import held_out_splits, refine, training_rows
from hf_mtl.data.streamed import StreamedSplit, open_stream, stream_split
from hf_mtl.data.streaming import RowStream, require_columns
from hf_mtl.errors import DataError, HfMtlError, ModelError, SpecError
from hf_mtl.model.encoders.base import check_task_lengths, load_encoder_config
from hf_mtl.registry import HEADS

logger = logging.getLogger(__name__)

TrainingSplit = EncodedSplit | StreamedSplit
"""Training rows: in memory (mapped from the cache), or read as they are asked for."""


@dataclass(frozen=True)
class RecipeData:
    """What a recipe comes to: tasks with their labels, the tokenizer, and the datasets of each split by name."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    tasks: tuple[TaskSpec, ...]
    train: dict[str, TrainingSplit]
    validation: dict[str, EncodedSplit]
    test: dict[str, EncodedSplit]

    @property
    def encoder(self) -> str | PreTrainedConfig:
        """The encoder as `MultiTaskModel.from_encoder` takes it."""
        own = self.recipe.encoder
        return own.config(self.tokenizer) if isinstance(own, OwnEncoder) else self.recipe.encoder_path

    def split(self, name: str) -> dict[str, EncodedSplit]:
        """Return the datasets of `"train"`, `"validation"` or `"test"`.

        Raises:
            DataError: there is no such split, or a dataset of it is streamed.
        """
        if name not in SPLITS:
            raise DataError(f"there is no split {name!r}", mend=near(name, SPLITS))
        splits: dict[str, TrainingSplit] = getattr(self, name)
        for dataset, split in splits.items():
            if isinstance(split, StreamedSplit):
                raise DataError(
                    f"its {name} rows are streamed, which works for training only",
                    where=f"dataset {dataset!r}",
                    mend="use another split, or leave streaming out",
                )
        return cast(dict[str, EncodedSplit], splits)


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
        tokenizer = recipe_tokenizer(recipe, seed=seed)
    sources = recipe.tasks if tasks is None else known_tasks(recipe, tasks)
    # Labels are those of all splits, whichever are asked for.
    raw = read_splits(recipe, sources, splits=SPLITS if tasks is None else held_out_splits(recipe, splits), seed=seed)
    streams = open_streams(recipe, sources) if tasks is None or "train" in splits else {}
    sources = tuple(find_labels(source, raw, streams) for source in sources)
    raw = training_rows(recipe, sources, raw, seed=seed)
    sources = tuple(balanced(source, raw) for source in sources)
    encoded: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    names = dict.fromkeys(source.dataset for source in sources)
    for dataset, split in itertools.product(names, splits):
        own = tuple(source for source in sources if source.dataset == dataset)
        if (dataset, split) in raw:
            rows = raw[dataset, split]
            encoded[split][dataset] = encode_split(dataset, split, rows, recipe.datasets[dataset], own, tokenizer)
        elif split == "train" and dataset in streams:
            encoded[split][dataset] = stream_split(dataset, streams[dataset], recipe.datasets[dataset], own, tokenizer)
    return RecipeData(recipe, tokenizer, tuple(source.spec for source in sources), **encoded)


def load_tokenizer(name_or_path: str | Path, *, of_encoder: bool = True, **hub_kwargs: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer from the Hub or a folder.

    Args:
        name_or_path: id on the Hub, or a folder.
        of_encoder: whether an encoder stands beside it.
        hub_kwargs: passed to `from_pretrained`.

    Raises:
        ModelError: it cannot be found.
    """
    if of_encoder:
        load_encoder_config(name_or_path, **hub_kwargs)  # says clearly when there is nothing at all
    try:
        return AutoTokenizer.from_pretrained(str(name_or_path), **hub_kwargs)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"its tokenizer cannot be loaded ({reason})", where=f"{str(name_or_path)!r}", mend="check its files"
        ) from error


def recipe_tokenizer(
    recipe: Recipe, *, seed: int = 0, rows: Mapping[tuple[str, str], RawSplit] | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a recipe's encoder, or train it, and settle how many tokens a row may have.

    Args:
        recipe: the recipe.
        seed: seed of the rows set aside, which a tokenizer is not trained on.
        rows: rows by dataset and split, of whose training rows a tokenizer is trained; the recipe's where not given.

    Raises:
        ModelError: it cannot be found.
        DataError: it is to be trained on rows that are streamed.
        SpecError: the recipe or one of its tasks asks for more tokens than the encoder can read.
    """
    if isinstance(recipe.encoder, OwnEncoder):
        tokenizer = _own_tokenizer(recipe, recipe.encoder, seed, rows)
        config = recipe.encoder.config(tokenizer)
    else:
        tokenizer, config = load_tokenizer(recipe.encoder_path), load_encoder_config(recipe.encoder_path)
    set_max_length(tokenizer, config, recipe.max_length)
    check_task_lengths([task.spec for task in recipe.tasks], config)
    return tokenizer


def _own_tokenizer(
    recipe: Recipe, encoder: OwnEncoder, seed: int, rows: Mapping[tuple[str, str], RawSplit] | None
) -> PreTrainedTokenizerBase:
    if encoder.tokenizer is not None:
        return load_tokenizer(recipe.place_of(encoder.tokenizer), of_encoder=False)
    streamed = next((name for name, dataset in recipe.datasets.items() if dataset.streaming), None)
    if streamed is not None:
        raise DataError(
            "a tokenizer cannot be trained on rows that are streamed",
            where=f"dataset {streamed!r}",
            mend="name a folder in tokenizer, or leave streaming out",
        )
    if rows is None:
        rows = read_splits(recipe, recipe.tasks, splits=("train", "validation"), seed=seed)
    texts = training_texts(recipe.datasets, rows)
    return train_tokenizer(texts, vocab_size=encoder.vocab_size or VOCAB_SIZE, lowercase=encoder.lowercase)


def read_splits(
    recipe: Recipe,
    sources: Sequence[TaskSource],
    *,
    splits: Sequence[str] = SPLITS,
    seed: int = 0,
    set_aside: bool = True,
) -> dict[tuple[str, str], RawSplit]:
    """Read the raw rows of every dataset that a task needs.

    Args:
        recipe: the recipe.
        sources: the tasks.
        splits: the splits to read.
        seed: seed of the rows set aside.
        set_aside: whether a part of train is set aside where a dataset has no validation split.

    Returns:
        The rows by dataset and split. What is set aside is missing from train whether or not validation is read.
        Training rows that are streamed are not among them: see `open_streams`.

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
            for split in SPLITS[1:] if dataset.streaming else SPLITS:
                divided = split == "train" and dataset.validation is None and "validation" in splits
                read = _read_split(dataset, split, base=recipe.base) if split in splits or divided else None
                if read is not None:
                    known, wanted = read.dataset.column_names, _wanted_columns(dataset, own)
                    require_columns(known, wanted, where=read.sources[0].name)
                    everyone = _all_tasks(recipe, name, read)
                    read = number_choices(read, dataset, everyone)
                    rows[name, split] = refine(name, split, read, recipe=recipe, tasks=everyone)
            if set_aside and dataset.validation is None and (name, "train") in rows:
                train = rows[name, "train"]
                stratify = class_column(train, _all_tasks(recipe, name, train))
                parts = split_validation(train, seed=seed, stratify=stratify)
                rows[name, "train"], rows[name, "validation"] = parts
        except HfMtlError as error:
            raise error.at(f"dataset {name!r}") from error.__cause__
    return {(name, split): read for (name, split), read in rows.items() if split in splits}


def _all_tasks(recipe: Recipe, dataset: str, raw: RawSplit) -> list[TaskSource]:
    """Return the tasks whose labels stand in rows: which rows are held out must not depend on those asked for."""
    return [task for task in recipe.tasks_of(dataset) if task.label in raw.dataset.column_names]


def open_streams(recipe: Recipe, sources: Sequence[TaskSource]) -> dict[str, RowStream]:
    """Open the training rows of the datasets that are streamed, of those that a task needs.

    Raises:
        DataError: a file or column is missing, or the rows cannot be streamed.
    """
    streams: dict[str, RowStream] = {}
    for name in dict.fromkeys(source.dataset for source in sources):
        dataset = recipe.datasets[name]
        if not dataset.streaming:
            continue
        own = [source for source in sources if source.dataset == name]
        try:
            streams[name] = open_stream(dataset, base=recipe.base, wanted=_wanted_columns(dataset, own))
        except HfMtlError as error:
            raise error.at(f"dataset {name!r}") from error.__cause__
        if dataset.validation is None:
            logger.warning(
                "dataset %r: no part of a stream can be set aside, so its tasks are not evaluated while they are "
                "trained; give the dataset validation rows",
                name,
            )
    return streams


def find_labels(
    source: TaskSource, raw: Mapping[tuple[str, str], RawSplit], streams: Mapping[str, RowStream] | None = None
) -> TaskSource:
    """Complete a task's spec with the labels of the data, unless it names them.

    Where the data names its classes (`datasets.ClassLabel`) these are the labels, in their order and with those that no
    row has; otherwise the labels are those of the rows of all splits, sorted.

    Raises:
        DataError: a label cannot be read (names file and line), or a stream would have to be read for the labels.
        SpecError: the labels do not suit the task type.
    """
    head = HEADS.get(source.spec.type)
    if source.spec.labels is None:
        columns = [rows for (dataset, _), rows in raw.items() if dataset == source.dataset]
        stream = (streams or {}).get(source.dataset)
        values = (value for rows in columns for value in cast(Any, rows.dataset[source.label]))
        try:
            labels = head.infer_labels(values)
        except DataError as error:
            raise _located(error, source, columns, head.infer_labels) from None
        if labels is not None:
            if stream is not None and source.label not in stream.classes:
                raise DataError(
                    "the labels of a stream are not known before it is read",
                    where=f"dataset {source.dataset!r}, task {source.spec.name!r}",
                    mend="name them in the task's 'labels'",
                )
            named = [rows.classes for rows in (stream, *columns) if rows is not None]
            classes = dict.fromkeys(name for own in named for name in own.get(source.label, ()))
            labels = (*classes, *(label for label in labels if label not in classes))
        source = replace(source, spec=replace(source.spec, labels=labels))
    try:
        head.check_options(source.spec)
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


def _wanted_columns(source: DatasetSource, tasks: Sequence[TaskSource]) -> dict[str, str]:
    return {**source.input_columns, **{f"label of task {task.spec.name!r}": task.label for task in tasks}}


def known_tasks(recipe: Recipe, specs: Sequence[TaskSpec]) -> tuple[TaskSource, ...]:
    """Return the tasks of a recipe that a model has, with the model's specs, in their order.

    Raises:
        ModelError: there is none, or one is of another type.
        RecipeError: their rows cannot be read as the specs ask.
    """
    by_name = {task.spec.name: task for task in recipe.tasks}
    for spec in specs:
        task = by_name.get(spec.name)
        if task is not None and task.spec.type != spec.type:
            raise ModelError(
                f"the model's task {spec.name!r} is of type {spec.type}, the recipe's of type {task.spec.type}",
                mend="use the recipe that the model was trained with",
            )
    known = tuple(replace(by_name[spec.name], spec=spec) for spec in specs if spec.name in by_name)
    for task in known:
        check_windows(task, recipe.datasets[task.dataset])
    if not known:
        raise ModelError(
            f"the recipe has none of the model's tasks ({', '.join(spec.name for spec in specs)})",
            mend="use a recipe with at least one of them",
        )
    return known


def class_column(raw: RawSplit, tasks: Sequence[TaskSource]) -> str | None:
    """Return the first label column that holds one name or whole number per row, to draw evenly from each.

    Args:
        raw: the rows.
        tasks: the tasks whose labels stand in them.
    """
    for task in tasks:
        if HEADS.get(task.spec.type).masks_tokens:
            continue  # its column is that of the texts
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
