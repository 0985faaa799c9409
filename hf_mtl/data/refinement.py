"""What a recipe does to rows before they are tokenized: cleaned, duplicates dropped, leaks dropped, augmented."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np

from hf_mtl.data.arrow_cache import cache_folder
from hf_mtl.data.augmentation.base import Augmentation, TaggedWords
from hf_mtl.data.cleaning import CLEANING_VERSION, CleaningStep, clean_row, cleaning_steps
from hf_mtl.data.dataset_source import SPLITS, DatasetSource
from hf_mtl.data.deduplication import first_of_each, texts_of
from hf_mtl.data.loading import Change, RawSplit
from hf_mtl.data.recipe import Recipe, TaskSource
from hf_mtl.data.refinement_keys import Operation, augmentation_of
from hf_mtl.data.words import join_tokens
from hf_mtl.errors import HfMtlError, RecipeError
from hf_mtl.model.heads._tagging import are_span_tags
from hf_mtl.registry import AUGMENTATIONS, HEADS

logger = logging.getLogger(__name__)

AUGMENTATION_VERSION = 2
"""Part of every cache key: raise it when an operation gives another result."""

_MARK = "_hf_mtl_mark"


def refine(name: str, split: str, raw: RawSplit, *, recipe: Recipe, tasks: Sequence[TaskSource]) -> RawSplit:
    """Clean the rows of a split, and drop duplicates from training rows.

    Args:
        name: name of the dataset.
        split: the split.
        raw: its rows as they were read.
        recipe: the recipe, with `cleaning` and `deduplicate`.
        tasks: the tasks whose labels stand in the dataset.

    Raises:
        RecipeError: a label counts the characters of a text that would be changed.
        MissingExtraError: a step's package is not installed.
    """
    source = recipe.datasets[name]
    given = source.cleaning if source.cleaning is not None else recipe.refinement.get("cleaning")
    steps = cleaning_steps(list(given) if isinstance(given, tuple) else given)
    if steps:
        if any(step.change is not None for step in steps):
            _refuse_offsets(tasks, "cleaning would change the text")
        raw = _clean(raw, source, given, steps)
    how = source.deduplicate or recipe.refinement.get("deduplicate")
    if how is not None and split == "train":
        columns: list[Any] = [raw.dataset[task.label][:] for task in tasks]
        labelled = [sum(1 << bit for bit, own in enumerate(row) if own is not None) for row in zip(*columns)]  # noqa: B905
        stays = first_of_each(texts(raw, source), labelled, how=how)
        raw = _kept(raw, stays, f"deduplicate {how}")
    for change in raw.changes:
        logger.info("%s %s: %s", name, split, change)
    return raw


def training_rows(
    recipe: Recipe, tasks: Sequence[TaskSource], rows: Mapping[tuple[str, str], RawSplit], *, seed: int
) -> dict[tuple[str, str], RawSplit]:
    """Drop training rows that stand in held-out rows of any dataset, and add augmented ones.

    Args:
        recipe: the recipe, with `leakage` and `augmentation`.
        tasks: the tasks, with their labels.
        rows: the rows by dataset and split.
        seed: seed of what is augmented.

    Raises:
        RecipeError: an operation does not suit the rows.
        DataError: a file of an operation cannot be read.
    """
    result = dict(rows)
    leakage = recipe.refinement.get("leakage") or "report"
    if leakage != "report":
        held_out = texts_of("near" if leakage == "drop_near" else "exact")
        for (name, split), raw in rows.items():
            if split != "train":
                for place, text in enumerate(texts(raw, recipe.datasets[name])):
                    held_out.add(text, place)
        for (name, split), raw in rows.items():
            if split == "train":
                own = texts(raw, recipe.datasets[name])
                stays = np.array([held_out.find(text) is None for text in own], dtype=bool)
                result[name, split] = _kept(raw, stays, f"leakage {leakage}")
    for (name, split), raw in result.items():
        operations = recipe.datasets[name].augmentation
        if split == "train" and operations:
            own_tasks = [task for task in tasks if task.dataset == name]
            try:
                for operation in augmentation_of(operations):
                    result[name, split] = raw = _augmented(raw, recipe, name, own_tasks, operation, seed=seed)
            except HfMtlError as error:
                raise error.at(f"dataset {name!r}, augmentation") from error.__cause__
    return result


def texts(raw: RawSplit, source: DatasetSource) -> Iterator[str]:
    """Yield what each row says as one text: its text and its pair, or its tokens joined, and its choices."""
    columns = list(source.text_columns.values())
    for row in cast(Iterator[dict[str, Any]], raw.dataset.select_columns(columns)):
        values = [row[column] for column in columns]
        if source.tokens is not None and isinstance(values[0], list):
            values[0] = join_tokens([word for word in cast(list[Any], values[0]) if isinstance(word, str)])[0]
        if source.choices is not None and isinstance(values[-1], list):
            values[-1:] = cast(list[Any], values[-1])
        yield "\n".join(value for value in values if isinstance(value, str))


# ---------------------------------------------------------------------- cleaning


def _clean(raw: RawSplit, source: DatasetSource, given: Any, steps: Sequence[CleaningStep]) -> RawSplit:
    columns = list(source.text_columns.values())
    features = datasets.Features({**raw.dataset.features, _MARK: datasets.List(datasets.Value("int32"))})

    def clean(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        result: dict[str, list[Any]] = {column: [] for column in columns}
        marks: list[list[int]] = []
        for values in zip(*(batch[column] for column in columns), strict=True):
            row = dict(zip(columns, values, strict=True))
            cleaned, changed, dropped = clean_row(steps, row, texts_in=[source.choices])
            marks.append(changed if dropped is None else [-1 - dropped])
            for column in columns:
                result[column].append(cleaned[column])
        return {**result, _MARK: marks}

    key = _key(CLEANING_VERSION, raw.fingerprint, columns, given)
    marked = _mapped(raw.dataset, clean, features, f"cleaned-{key}", input_columns=None)
    marks: list[list[int]] = marked[_MARK][:]
    counts = [sum(number in own for own in marks) for number in range(len(steps))]
    gone = [sum(own == [-1 - number] for own in marks) for number in range(len(steps))]
    changes = tuple(
        Change(f"cleaning {step.name}", counts[number] or gone[number], dropped=step.keep is not None, of=len(marks))
        for number, step in enumerate(steps)
    )
    result = replace(raw, dataset=marked.remove_columns(_MARK), changes=(*raw.changes, *changes))
    stays = [place for place, own in enumerate(marks) if not own or own[0] >= 0]
    return result if len(stays) == len(marks) else result.select(stays)


def _refuse_offsets(tasks: Sequence[TaskSource], problem: str) -> None:
    for task in tasks:
        if HEADS.get(task.spec.type).by_characters:
            raise RecipeError(
                f"{problem}, whose characters the labels of task {task.spec.name!r} count", mend="leave it out"
            )


def _kept(raw: RawSplit, stays: np.ndarray, step: str) -> RawSplit:
    gone = int(len(stays) - stays.sum())
    change = Change(step, gone, dropped=True, of=len(stays))
    kept = raw.select(np.flatnonzero(stays)) if gone else raw
    return replace(kept, changes=(*raw.changes, change))


# ---------------------------------------------------------------------- augmentation


def _augmented(
    raw: RawSplit, recipe: Recipe, name: str, tasks: Sequence[TaskSource], operation: Operation, *, seed: int
) -> RawSplit:
    """Add the copies that one operation makes of the rows; a copy that came out as the row was is left out.

    What is drawn depends on the seed, the operation, the row and the number of the copy alone.
    """
    source = recipe.datasets[name]
    kind = AUGMENTATIONS.get(operation.name)
    options = {key: str(recipe.base / Path(value).expanduser()) if key in kind.paths else value
               for key, value in operation.options.items()}  # fmt: skip
    made = kind(operation.probability, **options)
    _refuse_offsets(tasks, f"{operation.name} would change the text")
    heads = [(task, HEADS.get(task.spec.type)) for task in tasks]
    tagging = [task for task, head in heads if not (head.pooled or head.masks_tokens or head.points_into_text)]
    spans = frozenset(task.spec.name for task in tagging if are_span_tags(task.spec.labels or ()))
    if source.tokens is not None and not kind.takes_tokens:
        raise RecipeError(f"{operation.name} rewrites texts, the rows are tokens", mend=f"leave {operation.name} out")
    if kind.needs_spans and not spans:
        raise RecipeError(f"{operation.name} needs a task with span tags (B-, I-)", mend=f"leave {operation.name} out")
    columns = [*source.text_columns.values(), *(task.label for task in tagging)]
    original = raw.dataset

    def read(values: Mapping[str, Any]) -> list[tuple[str, TaggedWords]]:
        return _words(values, source, tagging, spans)

    made.prepare(words for row in original.select_columns(columns) for _, words in read(cast(dict[str, Any], row)))

    def augment(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        result: dict[str, list[Any]] = {column: list(batch[column]) for column in columns}
        marks: list[list[int]] = []
        for place, index in enumerate(indices):
            values = {column: batch[column][place] for column in columns}
            changed = _applied(made, read(values), random.Random(f"{seed}/{operation.name}/{copy}/{index}"))
            for column, words in changed.items():
                values |= _written(column, words, source, tagging, values)
            for column in columns:
                result[column][place] = values[column]
            marks.append([1] if changed else [])
        return {**result, _MARK: marks}

    features = datasets.Features({**original.features, _MARK: datasets.List(datasets.Value("int32"))})
    parts, origins = [original], [np.arange(len(original)) if raw.rows is None else raw.rows]
    labels = [[task.spec.name, task.label, list(task.spec.labels or ())] for task in tagging]
    keys: list[str] = []
    for copy in range(operation.copies):
        key = _key(AUGMENTATION_VERSION, raw.fingerprint, columns, labels, operation.to_dict(), made.state, seed, copy)
        marked = _mapped(original, augment, features, f"augmented-{key}", with_indices=True)
        chosen = np.flatnonzero([bool(own) for own in marked[_MARK][:]])
        parts.append(marked.remove_columns(_MARK).select(chosen))
        origins.append(origins[0][chosen])
        keys.append(key)
    joined = datasets.concatenate_datasets(parts)
    # Named by what it depends on: the same in every process.
    joined._fingerprint = _key(raw.fingerprint, keys)  # pyright: ignore[reportPrivateUsage]
    change = Change(f"augmentation {operation.name}", len(joined) - len(original), added=True, of=len(original))
    logger.info("%s train: %s", name, change)
    return replace(raw, dataset=joined, rows=np.concatenate(origins), changes=(*raw.changes, change))


def _words(
    values: Mapping[str, Any], source: DatasetSource, tagging: Sequence[TaskSource], spans: frozenset[str]
) -> list[tuple[str, TaggedWords]]:
    """Return each input column of a row with its words; none where they cannot be used, which is told later."""
    found: list[tuple[str, TaggedWords]] = []
    for role, column in source.text_columns.items():
        value = values[column]
        if role != "tokens":
            if isinstance(value, str) and value.split():
                found.append((column, TaggedWords(tuple(value.split()))))
        elif isinstance(value, list) and value and all(isinstance(word, str) for word in cast(list[Any], value)):
            tags: dict[str, tuple[str | None, ...]] = {}
            for task in tagging:
                if values[task.label] is not None:
                    tags[task.spec.name] = tuple(HEADS.get(task.spec.type).reference(task.spec, values[task.label]))
            if all(len(own) == len(cast(list[Any], value)) for own in tags.values()):
                found.append((column, TaggedWords(tuple(cast(list[str], value)), tags, spans)))
    return found


def _applied(
    made: Augmentation, inputs: Sequence[tuple[str, TaggedWords]], rng: random.Random
) -> dict[str, TaggedWords]:
    """Return the input columns that came out otherwise."""
    results = [(column, words, made.apply(words, rng)) for column, words in inputs]
    return {column: new for column, old, new in results if new.words != old.words}


def _written(
    column: str, words: TaggedWords, source: DatasetSource, tagging: Sequence[TaskSource], before: Mapping[str, Any]
) -> dict[str, Any]:
    """Return changed words as the row's columns hold them: tags as numbers where they were."""
    if column != source.tokens:
        return {column: " ".join(words.words)}
    values: dict[str, Any] = {column: list(words.words)}
    for task in tagging:
        tags = words.tags.get(task.spec.name)
        if tags is not None:
            named = any(isinstance(tag, str) for tag in before[task.label])
            ids = task.spec.label2id
            values[task.label] = [tag if named or tag is None else ids[tag] for tag in tags]
    return values


# ---------------------------------------------------------------------- the cache


def _mapped(dataset: datasets.Dataset, function: Any, features: datasets.Features, name: str, **options: Any) -> Any:
    """Return the dataset that a function makes of batches, from the cache where it was made before."""
    cache = cache_folder()
    return dataset.map(
        function,
        batched=True,
        features=features,
        new_fingerprint=name.rpartition("-")[2],
        cache_file_name=None if cache is None else str(cache / f"{name}.arrow"),
        keep_in_memory=cache is None,
        desc=name.partition("-")[0].capitalize(),
        **options,
    )


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def held_out_splits(recipe: Recipe, splits: Sequence[str]) -> Sequence[str]:
    """Return the splits that must be read for some: all of them where leaks of training rows are dropped."""
    drops = (recipe.refinement.get("leakage") or "report") != "report"
    return SPLITS if drops and "train" in splits else splits
