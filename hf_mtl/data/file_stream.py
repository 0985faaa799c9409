"""Files of JSON lines or Parquet as a stream: counted once, then read in parts."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hf_mtl.data.arrow_cache import cache_folder, files_key
from hf_mtl.data.formats import DataFile, is_blank, raw_lines, read_json_lines, read_parquet, row_groups
from hf_mtl.data.loading import Source
from hf_mtl.data.streaming import RowStream, StreamedRow, class_names, named_rows, require_columns
from hf_mtl.errors import DataError

PART_ROWS = 100
"""Rows of a part of a jsonl file: parts are shuffled as wholes, small ones mix better, large ones read faster."""

KEY_ROWS = 1_000
"""Rows of each jsonl file that are searched for a column."""

INDEX_VERSION = 1
"""Part of the key of a cached index: raise it when the same file gets other parts."""

STREAMED_ENDINGS = (".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True, kw_only=True, eq=False)
class FileStream(RowStream):
    """Rows of files, of which is kept where every hundredth line, or each row group, begins.

    Args:
        files: the files.
        parts: for each part its file, where it begins there (byte, or row group), the number of its first line or row,
            and how many rows it has, `(4, num_parts)`.
    """

    files: tuple[DataFile, ...]
    parts: np.ndarray

    @classmethod
    def open(cls, files: Sequence[DataFile], wanted: Mapping[str, str]) -> FileStream:
        """Count the rows of files.

        Args:
            files: the files.
            wanted: the columns to read, by what they are for.

        Raises:
            DataError: a file cannot be read or streamed, is empty, or lacks a column.
        """
        columns = tuple(dict.fromkeys(wanted.values()))
        classes: dict[str, tuple[str, ...]] = {}
        found: list[np.ndarray] = []
        for place, file in enumerate(files):
            _check_streamable(file)
            if file.is_table:
                schema, sizes = row_groups(file)
                require_columns(schema.names, wanted, where=file.name)
                for column, names in class_names(schema, columns).items():
                    if classes.setdefault(column, names) != names:
                        raise DataError(
                            f"the column {column!r} has other label names than in the files before",
                            where=file.name,
                            mend="read the files as separate datasets",
                        )
                own = _group_parts(sizes)
            else:
                own = _line_parts(file)
            if not own.size:
                raise DataError("the file has no rows", where=file.name, mend="give it rows, or leave it out")
            found.append(np.concatenate([np.full((1, own.shape[1]), place), own]))
        if not any(file.is_table for file in files):
            require_columns(_keys(files, columns), wanted, where=files[0].name)
        parts = np.concatenate(found, axis=1)
        return cls(
            files=tuple(files),
            parts=parts,
            sources=tuple(Source(file.name, file.unit) for file in files),
            columns=columns,
            num_rows=int(parts[3].sum()),
            num_parts=parts.shape[1],
            classes=classes,
        )

    def read(self, order: np.ndarray, *, start: int = 0) -> Generator[StreamedRow]:
        ends = np.cumsum(self.parts[3][order])
        first = int(np.searchsorted(ends, start, side="right"))
        skip = start - (int(ends[first - 1]) if first else 0)
        for part in order[first:].tolist():
            yield from self._read_part(part, skip)
            skip = 0

    def _read_part(self, part: int, skip: int) -> Iterator[StreamedRow]:
        place, begin, number, size = self.parts[:, part].tolist()
        file = self.files[place]
        if file.is_table:
            rows = _parquet_rows(file, begin, number, self.columns, skip)
        else:
            rows = read_json_lines(file, offset=begin, number=number, skip=skip)
        left = size - skip
        for line, values in islice(rows, left):
            yield StreamedRow(place, line, {column: values.get(column) for column in self.columns})
            left -= 1
        if left:
            raise DataError(
                "the file has fewer rows than when they were counted",
                where=file.name,
                mend="leave files as they are while they are read, and start again",
            )


def _check_streamable(file: DataFile) -> None:
    if file.ending not in STREAMED_ENDINGS:
        raise DataError(
            f"a {file.ending} file cannot be streamed",
            where=file.name,
            mend="leave streaming out, or convert it to .jsonl or .parquet",
        )
    if file.is_table and _is_compressed(file):
        raise DataError("a compressed Parquet file cannot be streamed", where=file.name, mend="unpack it")


def _is_compressed(file: DataFile) -> bool:
    return file.path.suffix.lower() == ".gz"


# ---------------------------------------------------------------------- JSON lines


def _keys(files: Sequence[DataFile], columns: Sequence[str]) -> list[str]:
    """Return the keys of the first rows of the files, as far as it takes to find the columns."""
    known: dict[str, None] = {}
    for file in files:
        for _, values in islice(read_json_lines(file), KEY_ROWS):
            known |= dict.fromkeys(values)
            if known.keys() >= set(columns):
                return list(known)
    return list(known)


def _line_parts(file: DataFile) -> np.ndarray:
    """Return the parts of a file of lines: first byte, first line, rows; `(3, num_parts)`, from the cache if known."""
    cache = cache_folder()
    if cache is None:
        return _count_lines(file)
    target = cache / f"lines-{files_key([file], INDEX_VERSION, PART_ROWS)}.npy"
    if target.exists():
        return np.load(target)
    parts = _count_lines(file)
    descriptor, temporary = tempfile.mkstemp(dir=cache, prefix="tmp-")
    with os.fdopen(descriptor, "wb") as stream:
        np.save(stream, parts)
    Path(temporary).replace(target)
    return parts


def _count_lines(file: DataFile) -> np.ndarray:
    compressed = _is_compressed(file)  # can be read from the beginning only, so it is one part
    begins, lines = array("q"), array("q")
    offset = rows = 0
    for number, raw in raw_lines(file):
        if not is_blank(raw, number=number):
            if rows % (1 << 62 if compressed else PART_ROWS) == 0:
                begins.append(offset)
                lines.append(number)
            rows += 1
        offset += len(raw)
    sizes = np.full(len(begins), PART_ROWS)
    sizes[-1:] = rows - sizes[:-1].sum()
    return np.stack([np.array(begins, np.int64), np.array(lines, np.int64), sizes])


# ---------------------------------------------------------------------- Parquet


def _group_parts(sizes: Sequence[int]) -> np.ndarray:
    """Return the parts of a Parquet file, its row groups: number, first row, rows; `(3, num_parts)`."""
    rows = np.array(sizes, dtype=np.int64)
    parts = np.stack([np.arange(len(rows)), np.cumsum(rows) - rows + 1, rows])
    return parts[:, rows > 0]


def _parquet_rows(
    file: DataFile, group: int, number: int, columns: Sequence[str], skip: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    for table in read_parquet(file, groups=[group], columns=columns):
        if skip < len(table):
            yield from enumerate(named_rows(table.slice(skip), file.name), start=number + skip)
        number, skip = number + len(table), max(0, skip - len(table))
