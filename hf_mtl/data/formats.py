"""The file formats: one reader each, from a file to numbered rows or to Arrow tables."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from hf_mtl.data.conll import read_conll, read_conllu
from hf_mtl.errors import DataError

BATCH_ROWS = 2_000
CONLL_ENDINGS = (".conll", ".txt", ".iob", ".bio")
JSON_ENDINGS = (".json", ".jsonl", ".ndjson")

_NumberedRows = Iterator[tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class DataFile:
    """A data file: its absolute path, its name for error messages, and its ending without `.gz`."""

    path: Path
    name: str
    ending: str

    @property
    def unit(self) -> str:
        return "row" if self.ending in (".json", *_TABLE_READERS) else "line"

    def at(self, number: int) -> str:
        return f"{self.name}, {self.unit} {number}"

    def open(self) -> IO[bytes]:
        if self.path.suffix.lower() == ".gz":
            return cast(IO[bytes], gzip.open(self.path, "rb"))
        return self.path.open("rb")

    @property
    def is_table(self) -> bool:
        """Whether `read_tables` reads it; if not, `read_batches` does."""
        return self.ending in _TABLE_READERS


def read_batches(file: DataFile, columns: Sequence[str] | None) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Yield a file's rows, some at a time, each with the line it begins at.

    Args:
        file: a file of text.
        columns: names for the columns of CoNLL files.

    Raises:
        DataError: the file or a line of it cannot be read.
    """
    rows = _conll_rows(file, columns) if file.ending in CONLL_ENDINGS else _ROW_READERS[file.ending](file)
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch


def read_tables(file: DataFile) -> Iterator[pa.Table]:
    """Yield a file's rows as tables; what `datasets` wrote about their columns is in the schema's metadata.

    Raises:
        DataError: the file cannot be read.
    """
    return _TABLE_READERS[file.ending](file)


def raw_lines(file: DataFile, *, offset: int = 0, number: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yield a file's lines, which end at line feeds only, with their numbers.

    Args:
        file: a file of text.
        offset: byte to begin at, the first of a line.
        number: number of that line.

    Raises:
        DataError: the file cannot be read.
    """
    with _reading(file), file.open() as stream:
        if offset:
            stream.seek(offset)
        yield from enumerate(stream, start=number)


def is_blank(raw: bytes, *, number: int) -> bool:
    """Tell whether a line holds white space alone; what is not UTF-8 is something.

    Args:
        raw: the line.
        number: its number, from 1: the first may begin with a byte order mark.
    """
    return raw[:1] != b"{" and not raw.decode(_encoding(number), "replace").strip()


def read_json_lines(file: DataFile, *, offset: int = 0, number: int = 1, skip: int = 0) -> _NumberedRows:
    """Yield the objects of a file with one on each line, each with its line.

    Args:
        file: the file.
        offset: byte to begin at, the first of a line.
        number: number of that line.
        skip: objects to leave out first; these are not parsed.

    Raises:
        DataError: the file or a line of it cannot be read.
    """
    for place, raw in raw_lines(file, offset=offset, number=number):
        if is_blank(raw, number=place):
            continue
        if skip:
            skip -= 1
            continue
        line = _decoded(file, place, raw)
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{shorten(repr(line.strip()))} is not JSON ({error})",
                where=file.at(place),
                mend="write one JSON object on each line; a file with a single list of objects ends in .json",
            ) from error
        yield place, _json_object(row, file, place)


def row_groups(file: DataFile) -> tuple[pa.Schema, list[int]]:
    """Return the schema of a Parquet file and the number of rows of each of its row groups.

    Raises:
        DataError: the file cannot be read.
    """
    with _reading(file), file.open() as stream:
        metadata = pq.read_metadata(stream)
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        return metadata.schema.to_arrow_schema(), sizes


def shorten(text: str, length: int = 80) -> str:
    """Cut a text to a length, for error messages.

    Example:
        >>> shorten("a very long text", length=9)
        'a very...'
    """
    return text if len(text) <= length else f"{text[: length - 3]}..."


# ---------------------------------------------------------------------- readers of rows


@contextmanager
def _reading(file: DataFile) -> Generator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        reason = shorten(str(error).split("\n")[0], 200)
        raise DataError(
            f"the file cannot be read ({reason})",
            where=file.name,
            mend=f"check that it is a complete {''.join(file.path.suffixes[-2:])} file you may read",
        ) from error


def _lines(file: DataFile) -> Iterator[tuple[int, str]]:
    """Yield a file's lines as text, with their numbers from 1."""
    for number, raw in raw_lines(file):
        yield number, _decoded(file, number, raw)


def _decoded(file: DataFile, number: int, raw: bytes) -> str:
    try:
        line = raw.decode(_encoding(number))
    except UnicodeDecodeError as error:
        raise _not_utf8(file, number, raw, error) from None
    if number == 1 and "\0" in line:
        raise DataError("the line has NUL bytes", where=f"{file.name}, line 1", mend="save the file as UTF-8")
    return line


def _encoding(number: int) -> str:
    return "utf-8-sig" if number == 1 else "utf-8"


def _not_utf8(file: DataFile, number: int, raw: bytes, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"byte {error.start + 1} of the line, 0x{raw[error.start]:02x}, is not UTF-8",
        where=f"{file.name}, line {number}",
        mend="save the file as UTF-8",
    )


def _csv_rows(file: DataFile) -> _NumberedRows:
    # A process-wide limit of the csv module; its default of 131,072 characters is less than a long document.
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))
    # strict: a quote that is never closed is an error, not a field that swallows the rest of the file.
    reader = csv.reader((line for _, line in _lines(file)), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"the row is not well-formed CSV: {error}",
                where=file.at(number),
                mend='close every quoted field, write a quote inside one as "", and end lines with \\n or \\r\\n',
            ) from error
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = _header(file, number, cells)
        else:
            yield number, _csv_row(file, number, header, cells)


def _tsv_rows(file: DataFile) -> _NumberedRows:
    # In TSV a tab always separates and a line is a row: a quote in public data sets is mostly text, not the begin of
    # a field that may hold tabs.
    header: list[str] | None = None
    for number, line in _lines(file):
        line = line.rstrip("\r\n")
        if not line:
            continue
        cells = [unquoted(cell) for cell in line.split("\t")]
        if header is None:
            header = _header(file, number, cells)
        else:
            yield number, _csv_row(file, number, header, cells)


def unquoted(cell: str) -> str:
    """Undo the quotes that spreadsheets put around a TSV cell with quotes or commas in it; leave any others."""
    inner = cell[1:-1]
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else cell


def header_of(cells: Sequence[str]) -> list[str]:
    """Return the names of a table's columns; those without one are counted.

    Raises:
        DataError: two have one name, as a row can hold but one of them.
    """
    names = [cell.strip() or f"column_{index}" for index, cell in enumerate(cells, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"the column {twice!r} stands twice in the header", mend="rename one")
    return names


def _header(file: DataFile, number: int, cells: list[str]) -> list[str]:
    try:
        return header_of(cells)
    except DataError as error:
        raise error.at(file.at(number)) from None


def _csv_row(file: DataFile, number: int, header: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        raise DataError(
            f"the row has {len(cells)} {'cell' if len(cells) == 1 else 'cells'}, the header has {len(header)}: "
            f"{shorten(repr(cells))}",
            where=file.at(number),
            mend='put text with commas or line breaks in double quotes, as in "one, two"'
            if file.ending == ".csv"
            else "take tabs and line breaks out of the text, or save it as .csv",
        )
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _json_rows(file: DataFile) -> _NumberedRows:
    with _reading(file), file.open() as stream:
        raw = stream.read()
    try:
        content = json.loads(raw.decode("utf-8-sig")) if raw.strip() else []
    except UnicodeDecodeError as error:
        start = raw.rfind(b"\n", 0, error.start) + 1
        error.start -= start
        raise _not_utf8(file, raw.count(b"\n", 0, start) + 1, raw[start:], error) from None
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise DataError(
            f"the file is not JSON ({error})",
            where=f"{file.name}, line {line}",
            mend="write a list of objects; a file with one object on each line ends in .jsonl",
        ) from error
    if isinstance(content, dict) and isinstance(cast(dict[str, Any], content).get("data"), list):
        content = cast(dict[str, Any], content)["data"]
    if not isinstance(content, list):
        raise DataError(
            f"the file holds {shorten(repr(content))}",
            where=file.name,
            mend='write a list of objects, or {"data": [...]}',
        )
    for number, row in enumerate(cast(list[Any], content), start=1):
        yield number, _json_object(row, file, number)


def _json_object(row: Any, file: DataFile, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(
            f"{shorten(repr(row))} is not an object",
            where=file.at(number),
            mend='write rows as objects, such as {"text": "...", "label": "..."}',
        )
    return cast(dict[str, Any], row)


def _conll_rows(file: DataFile, columns: Sequence[str] | None) -> _NumberedRows:
    return read_conll(lambda: _lines(file), name=file.name, columns=columns)


def _conllu_rows(file: DataFile) -> _NumberedRows:
    return read_conllu(_lines(file), name=file.name)


_ROW_READERS: dict[str, Callable[[DataFile], _NumberedRows]] = {
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".json": _json_rows,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".conllu": _conllu_rows,
}


# ---------------------------------------------------------------------- readers of tables


def read_parquet(
    file: DataFile, *, groups: Sequence[int] | None = None, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet file as tables of at most `BATCH_ROWS` rows.

    Args:
        file: the file.
        groups: the row groups to read, all where not given.
        columns: the columns to read, all where not given.

    Raises:
        DataError: the file cannot be read.
    """
    with _reading(file), file.open() as stream:
        source = pa.BufferReader(stream.read()) if isinstance(stream, gzip.GzipFile) else stream
        # Read page by page: a row group may hold a million rows.
        parquet = pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 16)
        for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns):
            yield _plain(batch, parquet.schema_arrow)


def _arrow_tables(file: DataFile) -> Iterator[pa.Table]:
    with _reading(file), file.open() as stream:
        source = pa.BufferReader(stream.read()) if isinstance(stream, gzip.GzipFile) else pa.memory_map(str(file.path))
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
        for batch in batches:
            yield _plain(batch, reader.schema)


def _plain(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """Turn a batch into a table of nullable columns of types that `datasets` knows, with the metadata of its file."""
    views = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    columns: list[Any] = []
    for column in batch.columns:
        type_ = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        type_ = views.get(type_, type_)
        columns.append(column if column.type == type_ else column.cast(type_))
    return pa.table(columns, names=batch.schema.names, metadata=schema.metadata)


_TABLE_READERS: dict[str, Callable[[DataFile], Iterator[pa.Table]]] = {
    ".parquet": read_parquet,
    ".arrow": _arrow_tables,
}

ENDINGS = (*_ROW_READERS, *CONLL_ENDINGS, *_TABLE_READERS)
"""Every ending there is a reader for."""
