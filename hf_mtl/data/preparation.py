"""From a recipe to tokenized datasets: labels found, rows checked, token ids cached."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.arrow_cache import cache_folder
from hf_mtl.data.collator import LABEL_PREFIX
from hf_mtl.data.encoding import Inputs, encode, set_max_length, words_of
from hf_mtl.data.loading import RawSplit, read_files, read_hub, split_validation
from hf_mtl.data.recipe import SPLITS, DatasetSource, Recipe, TaskSource, near, read_recipe
from hf_mtl.errors import DataError, HfMtlError, ModelError, SpecError
from hf_mtl.model.encoders.base import load_encoder_config
from hf_mtl.model.heads.base import Words
from hf_mtl.registry import HEADS

logger = logging.getLogger(__name__)

ENCODING_VERSION = 2
"""Part of every cache key: raise it when `Encoded` rows change."""


@dataclass(frozen=True)
class EncodedSplit:
    """One split of one dataset, raw and tokenized, row by row in the same order.

    Args:
        name: name of the dataset.
        split: `"train"`, `"validation"` or `"test"`.
        raw: the rows as the files have them.
        features: columns `input_ids`, `token_type_ids`, `first_tokens`, `length` (tokens), `truncated`, and
            `labels/<task>` for each task, null where the row has no label that a loss could use.
        tasks: the tasks whose labels stand in this dataset, with their specs complete.
        source: the columns of the dataset.
    """

    name: str
    split: str
    raw: RawSplit
    features: datasets.Dataset
    tasks: tuple[TaskSource, ...]
    source: DatasetSource

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens per row, `(num_rows,)`."""
        return np.asarray(self.features.data.column("length").to_numpy())

    def labelled(self, task: str) -> np.ndarray:
        """Return the indices of the rows that have a label for a task, `(num_labelled,)`."""
        return np.flatnonzero(self.features.data.column(LABEL_PREFIX + task).is_valid().to_numpy())

    def truncated(self, task: str) -> int:
        """Return how many rows labelled for a task were cut to the maximum length."""
        cut = np.asarray(self.features.data.column("truncated").to_numpy())
        return int(cut[self.labelled(task)].sum())

    def gold(self, task: TaskSource) -> list[Any]:
        """Return the label of each row as the file has it, classes by name, `None` where there is none."""
        column: Any = self.raw.dataset[task.label]
        return column[:]

    def inputs(self) -> Iterator[Inputs]:
        """Yield what the encoder reads, row by row, with words where the encoded rows have them."""
        columns = self.source.input_columns
        for row in cast(Iterator[dict[str, Any]], self.raw.dataset.select_columns(list(columns.values()))):
            yield Inputs.of(**{role: row[column] for role, column in columns.items()})

    def words(self) -> list[Words | None]:
        """Return the words of each row and the tokens that stand for them."""
        first = self.features["first_tokens"][:]
        return [words_of(row, tokens) for row, tokens in zip(self.inputs(), first, strict=True)]


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
        splits: the splits to read.
        seed: seed of the rows set aside where a dataset has no validation split.

    Returns:
        Tasks, tokenizer and datasets.

    Raises:
        RecipeError: the recipe is not valid.
        DataError: a file, row or label cannot be used; names the place.
        ModelError: the encoder's tokenizer cannot be found.
    """
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    if tokenizer is None:
        tokenizer = load_tokenizer(recipe.encoder_path)
        set_max_length(tokenizer, load_encoder_config(recipe.encoder_path), recipe.max_length)
    sources = recipe.tasks if tasks is None else _known_tasks(recipe, tasks)
    raw = read_splits(recipe, sources, splits=splits, seed=seed)
    sources = tuple(find_labels(source, raw) for source in sources)
    encoded: dict[str, dict[str, EncodedSplit]] = {split: {} for split in SPLITS}
    for (dataset, split), rows in raw.items():
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
    for split in splits:
        if split not in SPLITS:
            raise SpecError(f"there is no split {split!r}", mend=near(split, SPLITS))
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
    head.validate_spec(source.spec)
    return source


def encode_split(
    dataset: str,
    split: str,
    raw: RawSplit,
    source: DatasetSource,
    tasks: Sequence[TaskSource],
    tokenizer: PreTrainedTokenizerBase,
) -> EncodedSplit:
    """Tokenize a split and encode its labels, from the cache where it was done before.

    Raises:
        DataError: a text or label cannot be used (names file and line), or no row is labelled for a task.
    """
    columns = source.input_columns
    features: dict[str, Any] = {
        "input_ids": datasets.List(datasets.Value("int32")),
        "token_type_ids": datasets.List(datasets.Value("int8")),
        "first_tokens": datasets.List(datasets.Value("int32")),
        "length": datasets.Value("int32"),
        "truncated": datasets.Value("bool"),
    }
    for task in tasks:
        kind = HEADS.get(task.spec.type).stored_as
        value = datasets.Value(kind if isinstance(kind, str) else kind[0])
        features[LABEL_PREFIX + task.spec.name] = value if isinstance(kind, str) else datasets.List(value)
    fingerprint = _fingerprint(raw, columns, tasks, tokenizer)
    cache = cache_folder()
    # Named here, because map() itself would write into the folder the dataset was loaded from.
    cache_file = None if cache is None else str(cache / f"encoded-{fingerprint}.arrow")
    encoded = raw.dataset.map(
        _row_encoder(raw, columns, tasks, tokenizer),
        with_indices=True,
        batched=True,
        remove_columns=raw.dataset.column_names,
        features=datasets.Features(features),
        new_fingerprint=fingerprint,
        cache_file_name=cache_file,
        keep_in_memory=cache_file is None,
        desc=f"Tokenizing {dataset} {split}",
    )
    result = EncodedSplit(dataset, split, raw, encoded, tuple(tasks), source)
    for task in tasks:
        _check_labelled(result, task)
    return result


def _row_encoder(
    raw: RawSplit,
    columns: Mapping[str, str],
    tasks: Sequence[TaskSource],
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[Mapping[str, list[Any]], list[int]], dict[str, list[Any]]]:
    heads = [(task, HEADS.get(task.spec.type)) for task in tasks]

    def encode_rows(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows: list[Inputs] = []
        for place, index in enumerate(indices):
            try:
                rows.append(Inputs.of(**{role: batch[column][place] for role, column in columns.items()}))
            except DataError as error:
                raise error.at(raw.where(index)) from None
        encoded = encode(tokenizer, rows)
        result: dict[str, list[Any]] = {
            "input_ids": encoded.input_ids,
            "token_type_ids": encoded.token_type_ids,
            "first_tokens": encoded.first_tokens,
            "length": [len(ids) for ids in encoded.input_ids],
            "truncated": encoded.truncated,
        }
        words = [words_of(row, first) for row, first in zip(rows, encoded.first_tokens, strict=True)]
        for task, head in heads:
            labels: list[Any] = []
            for place, value in enumerate(batch[task.label]):
                try:
                    number = len(encoded.input_ids[place])
                    labels.append(None if value is None else head.encode(task.spec, value, words[place], number))
                except DataError as error:
                    raise error.at(f"task {task.spec.name!r}").at(raw.where(indices[place])) from None
            # A row of tags that are all open, or all cut off, has no label either.
            labelled = head.labelled_rows(head.collate(task.spec, labels, max(result["length"]))).tolist()
            result[LABEL_PREFIX + task.spec.name] = [
                label if known else None for label, known in zip(labels, labelled, strict=True)
            ]
        return result

    return encode_rows


def _fingerprint(
    raw: RawSplit, columns: Mapping[str, str], tasks: Sequence[TaskSource], tokenizer: PreTrainedTokenizerBase
) -> str:
    """Name the result by all it depends on: hashing the function would see the tokenizer's changing inner state."""
    backend: Any = tokenizer.get_vocab()
    if tokenizer.is_fast:
        backend = json.loads(cast(Any, tokenizer.backend_tokenizer).to_str())
        backend = {key: value for key, value in backend.items() if key not in ("truncation", "padding")}
    # What acts on the loss or on the network only.
    apart = {"pooling", "loss_weight", "class_weights", "label_smoothing", "dropout"}
    specs = [{key: value for key, value in task.spec.to_dict().items() if key not in apart} for task in tasks]
    parts = [
        ENCODING_VERSION,
        raw.fingerprint,
        dict(columns),
        list(zip([task.label for task in tasks], specs, strict=True)),
        [type(tokenizer).__name__, tokenizer.model_max_length, tokenizer.truncation_side, tokenizer.model_input_names],
        backend,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


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


def _check_labelled(encoded: EncodedSplit, task: TaskSource) -> None:
    if not len(encoded.labelled(task.spec.name)):
        problem = f"none of the {len(encoded)} rows of {encoded.split} has a label"
        where = f"dataset {encoded.name!r}, task {task.spec.name!r}, column {task.label!r}"
        if encoded.split == "validation" and encoded.source.validation is None:
            logger.warning("%s: %s, so the task is not evaluated; give the dataset validation rows", where, problem)
            return
        raise DataError(problem, where=where, mend="give labels, or leave the task or the split out")
    cut = encoded.truncated(task.spec.name)
    if cut:
        logger.warning(
            "%s %s: %d of %d rows labelled for task %r were cut to the maximum length",
            encoded.name, encoded.split, cut, len(encoded.labelled(task.spec.name)), task.spec.name,
        )  # fmt: skip


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
