"""Rows of any fields to parquet, in bounded memory: the schema is known when the last row is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from hf_mtl.writing import replacing, to_json

CHUNK_ROWS = 4096
"""Rows kept in memory at a time."""


@dataclass(frozen=True)
class _Part:
    """A chunk of rows on disk, and which of its columns hold JSON text in place of values of several types."""

    path: Path
    as_json: frozenset[str]


def write_parquet(rows: Iterable[Mapping[str, Any]], target: Path) -> None:
    """Write parquet: chunks are kept in files beside it until their common schema is known.

    A field whose values have no type in common (numbers and text) holds each value as JSON text; fields that a row
    lacks are null; lone surrogates, which parquet cannot hold, become U+FFFD.

    Raises:
        OutputError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = iter(rows)
    with replacing(target) as temporary:
        parts: list[_Part] = []
        types: dict[str, Any] = {}  # by column; None where it is kept as JSON text
        try:
            while chunk := list(islice(rows, CHUNK_ROWS)):
                names = list(dict.fromkeys(name for row in chunk for name in row))
                columns = {name: [row.get(name) for row in chunk] for name in names}
                arrays = {name: _array(values) for name, values in columns.items()}
                as_json = frozenset(name for name, array in arrays.items() if array is None)
                table = pa.table({name: _json_array(columns[name]) if array is None else array
                                  for name, array in arrays.items()})  # fmt: skip
                part = _Part(temporary.with_suffix(f".{len(parts)}.arrow"), as_json)
                parts.append(part)
                with pa.ipc.new_file(part.path, table.schema) as file:
                    file.write_table(table)
                for name, array in arrays.items():
                    types[name] = _joined(types.get(name, pa.null()), None if array is None else array.type)
            schema = pa.schema([(name, _as_stored(kind)) for name, kind in types.items()])
            with pq.ParquetWriter(temporary, schema) as parquet:
                for part in parts:
                    parquet.write_table(_read_part(part, types, schema))
        finally:
            for part in parts:
                part.path.unlink(missing_ok=True)


def _read_part(part: _Part, types: Mapping[str, Any], schema: Any) -> Any:
    import pyarrow as pa

    with pa.ipc.open_file(part.path) as file:
        table = file.read_all()
    columns: list[Any] = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        column = table.column(field.name)
        if types[field.name] is None:
            columns.append(column if field.name in part.as_json else _json_array(column.to_pylist()))
        elif column.type == field.type:
            columns.append(column)
        else:
            # Rebuilt, not cast, until apache/arrow#43838 is closed: casts of nested null fields give broken arrays.
            columns.append(pa.array(column.to_pylist(), field.type))
    return pa.table(columns, schema=schema)


def _array(values: list[Any]) -> Any:
    """Return the values as an Arrow array of one type, or `None` where no type that parquet has fits them all."""
    import pyarrow as pa

    try:
        array = pa.array(values)
    except UnicodeEncodeError:
        return _array([_encodable(value) for value in values])
    except (pa.ArrowException, OverflowError):
        return None
    return array if _is_storable(array.type) else None


def _json_array(values: list[Any]) -> Any:
    import pyarrow as pa

    return pa.array([None if value is None else to_json(value) for value in values], pa.string())


def _joined(first: Any, second: Any) -> Any:
    """Return the type that holds values of both, `None` where there is none."""
    import pyarrow as pa

    if first is None or second is None:
        return None
    schemas = [pa.schema([("column", kind)]) for kind in (first, second)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("column").type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None


def _as_stored(kind: Any) -> Any:
    import pyarrow as pa

    return pa.string() if kind is None else kind


def _is_storable(kind: Any) -> bool:
    """Tell whether parquet can hold a type: it has no structs without fields."""
    import pyarrow as pa

    inner = [kind.field(index).type for index in range(kind.num_fields)]
    return not (pa.types.is_struct(kind) and not inner) and all(map(_is_storable, inner))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, Mapping):
        return {_encodable(key): _encodable(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list):
        return [_encodable(item) for item in cast(list[Any], value)]
    return value
