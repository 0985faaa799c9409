"""Rows of any fields to parquet, in bounded memory: the schema is known when the last row is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

from hf_mtl.writing import replacing, to_json

CHUNK_ROWS = 4096
"""Rows kept in memory at a time."""

MOST_LEVELS = 30
"""Lists and structs in each other that are stored as such: Arrow itself stops at 64."""


def write_parquet(rows: Iterable[Mapping[str, Any]], target: Path) -> None:
    """Write parquet: chunks are kept in files beside it until their common schema is known.

    A field whose values have no type in common (numbers and text) holds text, other values than text as JSON; fields
    that a row lacks are null; lone surrogates, which parquet cannot hold, become U+FFFD.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = iter(rows)
    with replacing(target) as temporary:
        parts: list[Path] = []
        try:
            while chunk := list(islice(rows, CHUNK_ROWS)):
                parts.append(temporary.with_suffix(f".{len(parts)}.arrow"))
                write_part(chunk, parts[-1])
            join_parts(parts, temporary)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)


def write_part(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows that are a part of a parquet file to come, with the types that they have."""
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: _array([row.get(name) for row in rows]) for name in names})
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)


def join_parts(parts: Sequence[Path], path: Path) -> None:
    """Write parquet from its parts, one in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types: dict[str, Any] = {}
    for part in parts:
        with pa.ipc.open_file(part) as file:
            types |= {field.name: _joined(types.get(field.name, pa.null()), field.type) for field in file.schema}
    schema = pa.schema(list(types.items()))
    with pq.ParquetWriter(path, schema) as parquet:
        for part in parts:
            parquet.write_table(_read_part(part, schema))


def _read_part(part: Path, schema: Any) -> Any:
    import pyarrow as pa

    with pa.ipc.open_file(part) as file:
        table = file.read_all()
    columns: list[Any] = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        column = table.column(field.name)
        if column.type == field.type:
            columns.append(column)
        elif field.type == pa.string():
            columns.append(_as_text(column.to_pylist()))
        else:
            # Rebuilt, not cast, until apache/arrow#43838 is closed: casts of nested null fields give broken arrays.
            columns.append(pa.array(column.to_pylist(), field.type))
    return pa.table(columns, schema=schema)


def _array(values: list[Any]) -> Any:
    """Return the values as an Arrow array, of text where no type that parquet has fits them all."""
    import pyarrow as pa

    try:
        array = pa.array(values)
    except UnicodeEncodeError:
        return _array([_encodable(value) for value in values])
    except (pa.ArrowException, OverflowError):
        return _as_text(values)
    return array if _is_storable(array.type, MOST_LEVELS) else _as_text(values)


def _as_text(values: list[Any]) -> Any:
    import pyarrow as pa

    texts = [value if value is None or isinstance(value, str) else to_json(value) for value in values]
    return pa.array([_encodable(text) for text in texts], pa.string())


def _joined(first: Any, second: Any) -> Any:
    """Return the type that holds values of both, text where there is no other."""
    import pyarrow as pa

    schemas = [pa.schema([("column", kind)]) for kind in (first, second)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("column").type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.string()


def _is_storable(kind: Any, levels: int) -> bool:
    """Tell whether parquet can hold a type: it has no structs without fields, and so many levels at most."""
    import pyarrow as pa

    inner = [kind.field(index).type for index in range(kind.num_fields)]
    if levels == 0 or (pa.types.is_struct(kind) and not inner):
        return False
    return all(_is_storable(own, levels - 1) for own in inner)


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, Mapping):
        return {_encodable(key): _encodable(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list):
        return [_encodable(item) for item in cast(list[Any], value)]
    return value
