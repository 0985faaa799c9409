"""Files of rows to answer: rows in, one by one, and rows with their predictions out.

Files are read as training reads them (`hf_mtl.data.formats`), but a line that cannot be read is a row with an `error`.
"""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from hf_mtl.data.formats import header_of, shorten, unquoted
from hf_mtl.errors import DataError, OutputError, one_of
from hf_mtl.inference.parquet import join_parts, write_parquet, write_part
from hf_mtl.inference.parts import PartFormat
from hf_mtl.writing import check_target, replacing, to_json_line

INPUT_ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
OUTPUT_ENDINGS = (".jsonl", ".parquet")


def check_files(source: Path, target: Path) -> None:
    """Check that rows can be read from one file and written to another, before any work is done.

    Raises:
        DataError: the source is no file that can be read.
        OutputError: the target is no file that can be written.
    """
    read_rows(source)
    if target.suffix.lower() not in OUTPUT_ENDINGS:
        raise OutputError(
            f"{target.suffix!r} cannot be written", where=str(target), mend=f"use {one_of(OUTPUT_ENDINGS)}"
        )
    check_target(target)
    if target.exists() and target.samefile(source):
        raise OutputError("it is the input itself", where=str(target), mend="choose another name")


# ---------------------------------------------------------------------- reading


def read_rows(source: Path) -> Iterator[dict[str, Any]]:
    """Open a file of rows; a line that cannot be read becomes a row with an `error` alone.

    Raises:
        DataError: there is no such file, its ending is unknown, or it is not of its format at all.
    """
    ending = _ending(source)
    if not source.is_file():
        found = "it is a folder" if source.is_dir() else "there is no such file"
        raise DataError(found, where=str(source), mend="correct the path")
    if ending not in INPUT_ENDINGS:
        raise DataError(f"{ending!r} cannot be read", where=str(source), mend=f"use {one_of(INPUT_ENDINGS)}")
    if ending == ".parquet":
        return _parquet_rows(source)
    return _text_rows(source, ending, compressed=source.suffix.lower() == ".gz")


def is_table(source: Path) -> bool:
    """Tell whether the cells of a file are all text, and those without a value empty."""
    return _ending(source) in (".csv", ".tsv")


def _ending(source: Path) -> str:
    return Path(source.name.lower().removesuffix(".gz")).suffix


def jsonl_rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Read rows from lines of JSON; a JSON string is a text, an empty line is left out."""
    for number, line in _decoded(lines):
        if isinstance(line, DataError):
            yield {"error": str(line)}
        elif line.strip():
            yield _json_row(number, line)


def text_rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Read rows from what people pipe by hand: a line is a text, unless it is a JSON object or a JSON string."""
    for number, line in _decoded(lines):
        if isinstance(line, DataError):
            yield {"error": str(line)}
        elif line.lstrip().startswith("{"):
            yield _json_row(number, line)
        elif line.strip():
            yield {"text": _unquoted_string(line.rstrip("\r\n"))}


def _json_row(number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _unreadable(number, f"not JSON ({error})", "write one JSON object per line")
    if isinstance(row, str):
        return {"text": row}
    if not isinstance(row, dict):
        return _unreadable(number, f"{shorten(repr(row))} is no JSON object", "write one JSON object per line")
    return cast(dict[str, Any], row)


def _unquoted_string(line: str) -> str:
    try:
        text = json.loads(line) if line.lstrip().startswith('"') else line
    except ValueError:
        return line
    return text if isinstance(text, str) else line


def _unreadable(number: int, problem: str, mend: str) -> dict[str, Any]:
    return {"error": str(DataError(problem, where=f"line {number}", mend=mend))}


def _decoded(lines: Iterable[bytes]) -> Iterator[tuple[int, str | DataError]]:
    """Yield lines with their numbers, and an error in place of one that is not UTF-8."""
    for number, raw in enumerate(lines, start=1):
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            problem = f"byte {error.start + 1} of the line, 0x{raw[error.start]:02x}, is not UTF-8"
            yield number, DataError(problem, where=f"line {number}", mend="save the file as UTF-8")


def _text_rows(source: Path, ending: str, *, compressed: bool) -> Iterator[dict[str, Any]]:
    read = {".csv": _csv_rows, ".tsv": _tsv_rows}.get(ending, jsonl_rows)
    try:
        with cast("IO[bytes]", gzip.open(source)) if compressed else source.open("rb") as file:
            yield from read(file)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"it cannot be read ({error})", where=str(source), mend="check that the file is complete"
        ) from error
    except DataError as error:
        raise error.at(str(source)) from error.__cause__


def _csv_rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))
    reader = csv.reader(_all_decoded(lines), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if header is None or "end of data" in str(error):  # an open quote has swallowed the rest of the file
                raise DataError(
                    f"the row is not well-formed CSV ({error})", where=f"line {number}", mend="close every quoted field"
                ) from error
            yield _unreadable(number, f"the row is not well-formed CSV ({error})", 'write a quote inside one as ""')
            continue
        if cells is None:
            return
        if cells and header is None:
            header = header_of(cells)
        elif cells:
            yield _table_row(number, header or [], cells)


def _tsv_rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    header: list[str] | None = None
    for number, line in _decoded(lines):
        if isinstance(line, DataError):
            if header is None:
                raise line
            yield {"error": str(line)}
            continue
        line = line.rstrip("\r\n")
        if line:
            cells = [unquoted(cell) for cell in line.split("\t")]
            if header is None:
                header = header_of(cells)
            else:
                yield _table_row(number, header, cells)


def _all_decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for _, line in _decoded(lines):
        if isinstance(line, DataError):
            raise line
        yield line


def _table_row(number: int, header: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        problem = f"the row has {len(cells)} cells, the header has {len(header)}"
        return _unreadable(number, problem, "quote text that holds separators or line breaks")
    return dict(zip(header, cells, strict=True))


def _parquet_rows(source: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source) as file:
            header_of(file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"it cannot be read ({error})", where=str(source), mend="check that the file is complete"
        ) from error


# ---------------------------------------------------------------------- writing


def write_rows(rows: Iterable[Mapping[str, Any]], target: Path) -> None:
    """Write rows in the format of the file's ending; the file is replaced when the last row is written.

    Raises:
        OutputError: the file cannot be written.
    """
    if target.suffix.lower() == ".parquet":
        write_parquet(rows, target)
    else:
        with replacing(target) as temporary:
            write_jsonl(rows, temporary)


def write_jsonl(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write one JSON object per line."""
    with path.open("wb") as file:
        file.writelines(map(to_json_line, rows))


def join_jsonl(parts: Sequence[Path], path: Path) -> None:
    """Write the lines of some files to one."""
    with path.open("wb") as file:
        for part in parts:
            with part.open("rb") as lines:
                shutil.copyfileobj(lines, file)


def part_format(target: Path) -> PartFormat:
    """Return how parts of a file are written and joined, by the file's ending."""
    if target.suffix.lower() == ".parquet":
        return PartFormat(".arrow", write_part, join_parts)
    return PartFormat(".jsonl", write_jsonl, join_jsonl)
