"""Rows of encoded columns by their numbers, read where they lie: views of the mapped file, no Python lists."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset


class StoredColumns:
    """The columns of a dataset that is not formatted, fetched a batch of rows at a time.

    `Dataset.__getitems__` cuts a table out of the file for every batch and makes Python lists of it. Here a row's list
    is a view of the file, which a collator copies once, into the batch.

    Args:
        dataset: its columns are numbers, or lists of numbers of any length; a selection of rows is not known to it, see
            `Dataset.flatten_indices`.

    Example:
        >>> rows = StoredColumns(Dataset.from_dict({"places": [[1, 2], [3]], "label": [None, 0]}))
        >>> rows.fetch([1, 0])
        [{'places': array([3]), 'label': 0}, {'places': array([1, 2]), 'label': None}]
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.dataset)

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset}  # mapped anew, not copied

    @cached_property
    def _columns(self) -> dict[str, _Numbers | _Lists]:
        table = self.dataset.data.table
        kinds = {name: _Lists if pa.types.is_list(table.column(name).type) else _Numbers for name in table.column_names}
        return {name: kind(table.column(name)) for name, kind in kinds.items()}

    def fetch(self, rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Return rows: numbers as Python has them, lists as arrays not to be written to, `None` where there is none.

        Args:
            rows: their numbers, from 0.
        """
        numbers = np.asarray(rows, dtype=np.int64)
        columns = [column.fetch(numbers) for column in self._columns.values()]
        names = tuple(self._columns)
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


class _Numbers:
    """A column of numbers, all of it in memory."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.valid = _valid(column)
        self.values = (column if self.valid is None else column.fill_null(0)).to_numpy()

    def fetch(self, rows: np.ndarray) -> list[Any]:
        values = self.values[rows].tolist()
        if self.valid is None:
            return values
        return [value if known else None for value, known in zip(values, self.valid[rows].tolist(), strict=True)]


class _Lists:
    """A column of lists, each of them a part of the values of its chunk."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        self.valid = _valid(column)
        self.starts = np.cumsum([0, *map(len, chunks)])
        self.offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self.values = [chunk.values.to_numpy(zero_copy_only=False) for chunk in chunks]  # nulls in a list become NaN

    def fetch(self, rows: np.ndarray) -> list[Any]:
        chunks = np.searchsorted(self.starts, rows, side="right") - 1
        places = rows - self.starts[chunks]
        known = repeat(True) if self.valid is None else self.valid[rows].tolist()
        result: list[Any] = []
        for chunk, place, is_there in zip(chunks.tolist(), places.tolist(), known, strict=False):
            offsets = self.offsets[chunk]
            result.append(self.values[chunk][offsets[place] : offsets[place + 1]] if is_there else None)
        return result


def _valid(column: pa.ChunkedArray) -> np.ndarray | None:
    """Tell of each row whether it has a value, `(num_rows,)`; `None` where all have."""
    return column.is_valid().to_numpy() if column.null_count else None
