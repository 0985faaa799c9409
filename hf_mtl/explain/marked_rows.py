"""Rows of a split to explain, with the words that people marked in them where the data has such."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.errors import DataError, one_of
from hf_mtl.explain.explainer import Explainer
from hf_mtl.explain.labelled import LabelledRows, draw_rows
from hf_mtl.explain.plausibility import read_rationales

TOKENS = "tokens"


@dataclass(frozen=True, eq=False)
class MarkedRows:
    """Rows of one task.

    Args:
        rows: mappings with `text` (and perhaps `text_pair`) or `tokens`.
        rationales: per row which words people marked, bool `(num_words,)`, or `None`; `None` where the data has none.
        labels: their labels as the data has them.
        left_out: number of rows that were drawn and left out, too long for the model or without words.
    """

    rows: list[Any]
    rationales: list[np.ndarray | None] | None
    labels: list[Any]
    left_out: int


def draw_marked_rows(
    explainer: Explainer,
    splits: Mapping[str, EncodedSplit],
    tasks: Sequence[str] | None = None,
    *,
    limit: int,
    seed: int,
    rationale_column: str | None = None,
    tokens_column: str | None = None,
) -> dict[str, MarkedRows]:
    """Draw labelled rows of each task at random that can be explained.

    Args:
        explainer: the model.
        splits: the splits by dataset.
        tasks: the tasks; all that have labels where not given.
        limit: rows a task may have.
        seed: seed of the draw.
        rationale_column: column with a number for each token, see `hf_mtl.explain.plausibility.read_rationales`. The
            rows of a dataset that has it are read as tokens.
        tokens_column: column of these tokens; the dataset's, else `tokens`, where not given.

    Returns:
        Task name -> rows.

    Raises:
        SpecError: the model has no such task.
        DataError: no row can be explained, there is no such column, or a rationale cannot be read.
    """
    drawn = draw_rows(explainer.subject.model, splits, tasks, limit=10**9, seed=seed)
    known = sorted({column for one in drawn.values() for column in one.split.raw.dataset.column_names})
    if rationale_column is not None and rationale_column not in known:
        raise DataError(f"no dataset has a column {rationale_column!r}", mend=f"use one of {one_of(known)}")
    found: dict[str, MarkedRows] = {}
    for name, one in drawn.items():
        columns, rationales = one.split.source.input_columns, None
        if rationale_column is not None and rationale_column in one.split.raw.dataset.column_names:
            columns, rationales = _token_columns(one.split, tokens_column), _rationales(one, rationale_column)
        found[name] = _choose(explainer, one, columns, rationales, limit)
        if not found[name].rows:
            raise DataError("no row has words and fits the model", where=f"task {name!r}", mend="use another split")
    return found


def _choose(
    explainer: Explainer,
    drawn: LabelledRows,
    columns: Mapping[str, str],
    rationales: Sequence[np.ndarray | None] | None,
    limit: int,
) -> MarkedRows:
    rows: list[Any] = []
    marked: list[np.ndarray | None] = []
    labels: list[Any] = []
    left_out = 0
    gold = drawn.split.gold(drawn.task)
    raw: Any = drawn.split.raw.dataset.select_columns(list(columns.values()))
    for number in drawn.rows.tolist():
        if len(rows) == limit:
            break
        row = {role: raw[number][column] for role, column in columns.items()}
        if _can_be_explained(explainer, row):
            rows.append(row)
            marked.append(None if rationales is None else rationales[number])
            labels.append(gold[number])
        else:
            left_out += 1
    return MarkedRows(rows, None if rationales is None else marked, labels, left_out)


def _can_be_explained(explainer: Explainer, row: Mapping[str, Any]) -> bool:
    try:
        return bool(explainer.subject.read(row).units)
    except DataError:  # too long; the row was read before, so nothing else is wrong with it
        return False


def _token_columns(split: EncodedSplit, tokens_column: str | None) -> dict[str, str]:
    column = tokens_column or split.source.tokens or TOKENS
    if column not in split.raw.dataset.column_names:
        raise DataError(
            f"there is no column {column!r} with the tokens that the rationales are about",
            where=f"dataset {split.name!r}",
            mend=f"use one of {one_of(split.raw.dataset.column_names)}",
        )
    if split.source.text_pair is not None:
        raise DataError(
            "its rows are pairs, for which there are no rationales",
            where=f"dataset {split.name!r}",
            mend="leave the rationale column out",
        )
    own = split.source
    heads = {} if own.heads is None or own.tokens != column else {"heads": own.heads}
    return {TOKENS: column, **heads}


def _rationales(drawn: LabelledRows, column: str) -> list[np.ndarray | None]:
    values: Any = drawn.split.raw.dataset[column]
    try:
        return read_rationales(values[:], drawn.split.gold(drawn.task))
    except DataError as error:
        raise error.at(f"dataset {drawn.split.name!r}, column {column!r}") from None
