"""What was read from files, kept as Arrow: each file is parsed once, then memory-mapped."""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets.config
import pyarrow as pa
from datasets.table import InMemoryTable, MemoryMappedTable, Table

from hf_mtl.data.formats import JSON_ENDINGS, DataFile, read_batches, read_tables, shorten
from hf_mtl.errors import DataError

READER_VERSION = 1
"""Part of every cache key: raise it when a reader gives other rows for the same file."""

FILE_COLUMN, LINE_COLUMN = "_hf_mtl_file", "_hf_mtl_line"
"""Columns that say where a row comes from: the file's position among the files, and the line it begins at."""


def cache_folder() -> Path | None:
    """Return the folder for Arrow files, within the cache of `datasets`; `None` where it cannot be written."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hf_mtl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def cached_table(files: Sequence[DataFile], columns: Sequence[str] | None) -> tuple[Table, str]:
    """Return the rows of the files as Arrow, read once and then memory-mapped, and their fingerprint."""
    key = files_key(files, READER_VERSION, columns and list(columns))
    target = Path(datasets.config.HF_DATASETS_CACHE) / "hf_mtl" / key / "data.arrow"
    if not target.exists():
        cache = cache_folder()
        if cache is None:
            # Read anew in every process, and keep the rows in memory.
            with tempfile.TemporaryDirectory() as temporary:
                return InMemoryTable.from_file(str(_write_arrow(files, columns, Path(temporary)))), key
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="tmp-") as scratch:
            _write_arrow(files, columns, Path(scratch)).replace(target)
    return MemoryMappedTable.from_file(str(target)), key


def files_key(files: Sequence[DataFile], *parts: Any) -> str:
    """Name files as they are now, and what else (plain values) a result depends on."""
    stats = [(str(file.path.resolve()), file.path.stat()) for file in files]
    state = [(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats]
    identity = json.dumps([*parts, state])
    return hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _write_arrow(files: Sequence[DataFile], columns: Sequence[str] | None, folder: Path) -> Path:
    """Write the rows of all files to one Arrow file in the folder, and return its path."""
    writer = _ArrowWriter(folder)
    first: tuple[DataFile, list[str]] | None = None
    for index, file in enumerate(files):
        rows = 0
        for lines, table in _tables(file, columns, writer):
            names = table.column_names
            _check_names(file, names)
            if not rows and file.ending not in JSON_ENDINGS:
                first = first or (file, names)
                _check_columns(file, names, first)
            origin = {
                FILE_COLUMN: pa.array([index] * len(lines), pa.int32()),
                LINE_COLUMN: pa.array(lines, pa.int64()),
            }
            with_origin = {**origin, **dict(zip(names, table.columns, strict=True))}
            writer.write(pa.table(with_origin, metadata=table.schema.metadata), file)
            rows += len(lines)
        if not rows or len(writer.schema) == 2:
            raise DataError(
                "the file has no rows" if not rows else "the rows are empty",
                where=file.name,
                mend="give it rows, or leave it out",
            )
    return writer.finish()


def _check_names(file: DataFile, names: Sequence[str]) -> None:
    for name in names:
        if name in (FILE_COLUMN, LINE_COLUMN) or names.count(name) > 1:
            problem = f"the column {name!r} stands twice" if names.count(name) > 1 else f"the name {name!r} is reserved"
            raise DataError(problem, where=file.name, mend="rename the column")


def _check_columns(file: DataFile, found: Sequence[str], first: tuple[DataFile, list[str]]) -> None:
    other, wanted = first
    missing, extra = [c for c in wanted if c not in found], [c for c in found if c not in wanted]
    if missing or extra:
        lacks = f"lacks the column {missing[0]!r}" if missing else f"has the column {extra[0]!r}"
        raise DataError(
            f"the file {lacks}, unlike {other.name}",
            where=file.name,
            mend="give all files the same columns, or read them as separate datasets",
        )


class _ArrowWriter:
    """Writes tables to one Arrow file whose types are those that fit all of them.

    Types can widen while rows come in (all empty, then text; whole numbers, then fractions): tables are written in
    parts of one schema each, and only where there are several are the parts rewritten at the end.
    """

    def __init__(self, folder: Path) -> None:
        self.schema = pa.schema([])
        self._folder = folder
        self._parts: list[Path] = []
        self._part_schema = self.schema
        self._stream: Any = None

    def type_of(self, column: str) -> pa.DataType:
        """Return the type of the column so far, null where it is new."""
        return self.schema.field(column).type if column in self.schema.names else pa.null()

    def write(self, table: pa.Table, file: DataFile) -> None:
        """Write a table; columns it lacks are null."""
        self._describe(_hub_features(table.schema), file)
        try:
            schema = pa.unify_schemas([self.schema, table.schema.remove_metadata()], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(
                f"the types of the columns differ from the files before: {error}",
                where=file.name,
                mend="give the column one type, or read the files as separate datasets",
            ) from error
        if not self._parts or not schema.equals(self._part_schema, check_metadata=True):
            self._begin(schema)
        self._stream.write_table(_conform(table, schema))

    def finish(self) -> Path:
        """Close the file and return its path."""
        self._stream.close()
        parts = self._parts
        if len(parts) > 1:
            self._begin(self.schema)
            for part in parts:
                with pa.memory_map(str(part)) as source:
                    for batch in pa.ipc.open_stream(source):
                        self._stream.write_table(_conform(pa.Table.from_batches([batch]), self.schema))
                part.unlink()
            self._stream.close()
        return self._parts[-1]

    def _describe(self, features: dict[str, Any], file: DataFile) -> None:
        """Keep what `datasets` knows of columns (the names of class labels), the same in all files that say so."""
        known = _hub_features(self.schema)
        for name in known.keys() & features.keys():
            if known[name] != features[name]:
                raise DataError(
                    f"the column {name!r} is of another kind, or has other label names, than in the files before",
                    where=file.name,
                    mend="read the files as separate datasets",
                )
        if features:
            merged = {"info": {"features": {**features, **known}}}
            self.schema = self.schema.with_metadata({b"huggingface": json.dumps(merged).encode()})

    def _begin(self, schema: pa.Schema) -> None:
        if self._parts:
            self._stream.close()
        self.schema = self._part_schema = schema
        self._parts = [*self._parts, self._folder / f"part-{len(self._parts)}.arrow"]
        self._stream = pa.ipc.new_stream(str(self._parts[-1]), schema)


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give a table the columns and types of a schema that it fits into."""
    columns: list[Any] = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        column = table.column(field.name)
        if column.type == field.type:
            columns.append(column)
        elif pa.types.is_nested(field.type):
            # Rebuilt, not cast, until apache/arrow#43838 is closed: the cast of a list of structs with a null field,
            # even to its own type, gives a broken array.
            columns.append(pa.array(column.to_pylist(), field.type))
        else:
            columns.append(column.cast(field.type, safe=False))
    return pa.table(columns, schema=schema)


def _hub_features(schema: pa.Schema) -> dict[str, Any]:
    """Return the features that `datasets` wrote into a schema, by column."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return (metadata.get("info") or {}).get("features") or {}


# ---------------------------------------------------------------------- from rows to columns


def _tables(
    file: DataFile, columns: Sequence[str] | None, writer: _ArrowWriter
) -> Iterator[tuple[Sequence[int], pa.Table]]:
    """Yield a file's rows as tables, each with the lines its rows begin at."""
    if file.is_table:
        start = 1
        for table in read_tables(file):
            yield range(start, start + len(table)), table
            start += len(table)
        return
    for batch in read_batches(file, columns):
        lines = [line for line, _ in batch]
        names = dict.fromkeys(name for _, row in batch for name in row)
        values = {name: [row.get(name) for _, row in batch] for name in names}
        yield lines, pa.table({name: _column(name, values[name], writer.type_of(name), file, lines) for name in names})


def _column(name: str, values: list[Any], before: pa.DataType, file: DataFile, lines: Sequence[int]) -> pa.Array:
    """Turn a column into the type that fits it and the rows before, or name the first line that does not fit."""
    try:
        return _fit(values, before)
    except _MISFITS:
        pass
    row = bisect.bisect_left(range(len(values)), True, key=lambda last: not _fits(values[: last + 1], before))
    value, mend = values[row], "write the same kind of value in every row"
    found = f"column {name!r} holds {shorten(repr(value))}"
    if not _fits([value], pa.null()):
        raise DataError(f"{found}, which cannot be stored", where=file.at(lines[row]), mend="change the value")
    other = next((i for i in range(row - 1, -1, -1) if not _fits([values[i], value], pa.null())), None)
    if other is None:
        contrast = f"the rows before hold {_kind(before)}"
    else:
        contrast = f"{file.unit} {lines[other]} holds {shorten(repr(values[other]))}"
    raise DataError(f"{found}, but {contrast}", where=file.at(lines[row]), mend=mend)


_MISFITS = (pa.ArrowException, OverflowError, UnicodeEncodeError)


def _fit(values: list[Any], before: pa.DataType) -> pa.Array:
    array = pa.array(values)
    if array.type == before:
        return array
    schemas = [pa.schema([("column", type_)]) for type_ in (before, array.type)]
    shared = pa.unify_schemas(schemas, promote_options="permissive").field("column").type
    return array if array.type == shared else pa.array(values, shared)


def _fits(values: list[Any], before: pa.DataType) -> bool:
    try:
        _fit(values, before)
    except _MISFITS:
        return False
    return True


def _kind(type_: pa.DataType) -> str:
    words = {"string": "text", "int64": "whole numbers", "double": "numbers", "bool": "true or false"}
    if pa.types.is_list(type_):
        return f"lists of {_kind(type_.value_type)}"
    return words.get(str(type_), f"{type_}")
