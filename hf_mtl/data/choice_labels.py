"""Labels of multiple-choice rows: what names a choice by its text becomes the choice's number, before rows change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import datasets

from hf_mtl.data.arrow_cache import cache_folder
from hf_mtl.data.choices import read_choices
from hf_mtl.errors import DataError, RecipeError
from hf_mtl.model.choices import choice_index
from hf_mtl.registry import HEADS

if TYPE_CHECKING:
    from hf_mtl.data.dataset_source import DatasetSource
    from hf_mtl.data.loading import RawSplit
    from hf_mtl.data.recipe import TaskSource

NUMBERS_VERSION = 1
"""Part of every cache key: raise it when the same label gets another number."""


def check_choices(sources: Mapping[str, DatasetSource], tasks: Sequence[TaskSource]) -> None:
    """Check that a dataset names a column of choices where a task of it chooses among them, and nowhere else.

    Raises:
        RecipeError: it does not. Rows to be answered have choices only for a model that has such a task.
    """
    for name, source in sources.items():
        choosing = [t for t in tasks if t.dataset == name and HEADS.get(t.spec.type).reads_choices]
        if choosing and source.choices is None:
            raise RecipeError(
                f"dataset {name!r} names no choices, among which {choosing[0].spec.type} chooses",
                where=f"task {choosing[0].spec.name!r}",
                mend="name the column that holds each row's list of choices, in the dataset's 'choices'",
            )
        if source.choices is not None and not choosing and any(task.dataset == name for task in tasks):
            raise RecipeError(
                f"choices is {source.choices!r}, and no task of the dataset chooses among them",
                where=f"dataset {name!r}",
                mend="leave choices out, or add a task of type multiple_choice",
            )


def number_choices(raw: RawSplit, source: DatasetSource, tasks: Sequence[TaskSource]) -> RawSplit:
    """Write the labels of tasks that choose as numbers of choices, where the data has the choices' texts.

    Args:
        raw: the rows as they were read.
        source: their dataset.
        tasks: the tasks whose labels stand in them.

    Raises:
        DataError: a label names no choice of its row, or a row has a label but no choices; names file and line.
        RecipeError: another kind of task reads the same column.
    """
    choosing = {task.label: task for task in tasks if HEADS.get(task.spec.type).reads_choices}
    for column, task in choosing.items():
        if source.choices is None or getattr(raw.dataset.features[column], "dtype", "") not in (
            "string",
            "large_string",
        ):
            continue
        other = next((t for t in tasks if t.label == column and not HEADS.get(t.spec.type).reads_choices), None)
        if other is not None:
            raise RecipeError(
                f"column {column!r} names choices by their text for task {task.spec.name!r}, and is read by task "
                f"{other.spec.name!r}",
                mend="give each its own column, or choices by their number",
            )
        raw = _numbered(raw, column, source.choices, task.spec.name)
    return raw


def _numbered(raw: RawSplit, column: str, choices: str, task: str) -> RawSplit:
    classes = raw.classes.get(column)

    def number(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        labels: list[int | None] = []
        for value, texts, index in zip(batch[column], batch[choices], indices, strict=True):
            try:
                labels.append(None if value is None else _number(value, read_choices(texts), classes))
            except DataError as error:
                raise error.at(f"task {task!r}").at(raw.where(index)) from None
        return {column: labels}

    parts = (NUMBERS_VERSION, raw.fingerprint, column, choices, classes)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    cache = cache_folder()
    numbered = raw.dataset.map(
        number,
        with_indices=True,
        batched=True,
        features=datasets.Features({**raw.dataset.features, column: datasets.Value("int64")}),
        new_fingerprint=key,
        cache_file_name=None if cache is None else str(cache / f"numbered-{key}.arrow"),
        keep_in_memory=cache is None,
        desc="Numbering choices",
    )
    kept = {name: names for name, names in raw.classes.items() if name != column}
    return replace(raw, dataset=numbered, classes=kept)


def _number(value: str, texts: tuple[str, ...] | None, classes: tuple[str, ...] | None) -> int:
    if texts is None:
        raise DataError("the row has a label but no choices", mend="give its choices, or null in place of the label")
    # Classes such as A, B, C name places, whatever the choices say.
    return choice_index(value if classes is None else classes.index(value), texts)
