"""Streams: the rows of a dataset read as they are asked for, so that it never stands in memory as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa
from datasets.table import InMemoryTable

from hf_mtl.data.class_labels import name_class_labels
from hf_mtl.data.loading import Source
from hf_mtl.data.recipe import near
from hf_mtl.errors import DataError


@dataclass(frozen=True, slots=True)
class StreamedRow:
    """A row as the data has it, and where it stands.

    Args:
        source: position of its file among the stream's sources.
        number: its line or row there, from 1.
        values: the columns that were asked for; `None` where the row lacks one.
    """

    source: int
    number: int
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowStream(ABC):
    """The rows of one dataset, in parts that can be read in any order; no row is kept.

    Args:
        sources: the files the rows come from, as error messages name them.
        columns: the columns that are read.
        num_rows: number of rows.
        num_parts: number of parts.
        classes: the names of the classes, in their order, of the columns that say so (`datasets.ClassLabel`).
    """

    sources: tuple[Source, ...]
    columns: tuple[str, ...]
    num_rows: int
    num_parts: int
    classes: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return self.num_rows

    @abstractmethod
    def read(self, order: np.ndarray, *, start: int = 0) -> Generator[StreamedRow]:
        """Yield the rows of all parts, one part after the other.

        Args:
            order: the parts, in the order to read them in, `(num_parts,)`.
            start: number of rows to skip, which are not parsed where that can be avoided.

        Raises:
            DataError: a row cannot be read, or there are fewer than `num_rows`; names the place.
        """

    def sample(self, count: int) -> list[StreamedRow]:
        """Return some rows of parts from all over the data, always the same ones."""
        return list(islice(self.read(np.random.default_rng(0).permutation(self.num_parts)), count))

    def where(self, row: StreamedRow) -> str:
        """Name the place of a row for an error message, such as `"train.jsonl, line 17"`."""
        source = self.sources[row.source]
        return f"{source.name}, {source.unit} {row.number}"


def require_columns(known: Sequence[str], wanted: Mapping[str, str], *, where: str) -> None:
    """Check that all columns are there.

    Args:
        known: the columns that are there.
        wanted: the columns that are needed, by what they are for.
        where: what to call the data in errors.

    Raises:
        DataError: one is missing.
    """
    for role, column in wanted.items():
        if column not in known:
            raise DataError(f"there is no column {column!r} ({role})", where=where, mend=near(column, known))


def class_names(schema: pa.Schema, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes of those columns whose schema says so."""
    empty = datasets.Dataset(InMemoryTable(schema.empty_table()), fingerprint="empty")
    return {column: names for column, names in name_class_labels(empty, where="")[1].items() if column in columns}


def named_rows(table: pa.Table, where: str) -> list[dict[str, Any]]:
    """Return a table's rows, with class labels by name.

    Args:
        table: the rows, with what `datasets` wrote about their columns in the schema's metadata.
        where: what to call the data in errors.
    """
    if b"huggingface" in (table.schema.metadata or {}):
        dataset = datasets.Dataset(InMemoryTable(table), fingerprint="stream")
        table = cast(Any, name_class_labels(dataset, where=where)[0].data).table
    return table.to_pylist()
