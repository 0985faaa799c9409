"""Prediction over files: every row answered, in order, in bounded memory, and written whole or not at all."""

from __future__ import annotations

import csv
import gzip
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from hf_mtl.data.encoding import Inputs, read_inputs
from hf_mtl.errors import DataError, OutputError, one_of
from hf_mtl.evaluation.prediction import Answers, answer, needs_words
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.writing import replacing

CHUNK_ROWS = 4096
"""Rows read, sorted by length and answered together."""
INPUT_ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
OUTPUT_ENDINGS = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Columns:
    """Which fields of a row are read: `text` (with `text_pair`) where the row has one, else `tokens`.

    Args:
        text: field of the text; `None` reads tokens alone.
        text_pair: field of the second text.
        tokens: field of the tokens.
    """

    text: str | None = "text"
    text_pair: str = "text_pair"
    tokens: str = "tokens"


@dataclass(frozen=True)
class Throughput:
    """How fast rows were answered: from the first row read to the last row written, loading the model left out."""

    rows: int
    errors: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Rows a second."""
        return self.rows / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, float]:
        """Return `rows`, `errors`, `seconds` and `rows_per_second`."""
        return {**asdict(self), "rows_per_second": self.rows_per_second}


def predict_file(
    model: MultiTaskModel,
    tokenizer: Any,
    source: str | Path,
    target: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    columns: Columns | None = None,
    batch_size: int = 64,
    on_rows: Callable[[int], None] | None = None,
) -> Throughput:
    """Answer every row of a file and write the rows with their predictions.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        source: jsonl, csv, tsv or parquet, the first three perhaps with `.gz`.
        target: jsonl or parquet; replaced when the last row is written, untouched until then.
        tasks: the tasks to answer; all where not given.
        columns: the fields to read.
        batch_size: rows a batch may have.
        on_rows: called with the number of rows written so far.

    Returns:
        Rows, rows with an error, and seconds. Each row written has the input's fields and `predictions`, or `error`
        where it could not be answered.

    Raises:
        DataError: the file cannot be read at all.
        OutputError: the target cannot be written.
        SpecError: the model has no such task.
    """
    source, target = Path(source), Path(target)
    check_files(source, target)
    writer = {".jsonl": write_jsonl, ".parquet": write_parquet}[target.suffix.lower()]
    rows = read_rows(source)
    start = time.perf_counter()
    counted = _Counted(
        predict_rows(model, tokenizer, rows, tasks=tasks, columns=columns, batch_size=batch_size), on_rows
    )
    writer(counted, target)
    return Throughput(counted.rows, counted.errors, time.perf_counter() - start)


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
    if not target.parent.is_dir():
        raise OutputError("there is no such folder", where=str(target.parent), mend="make it first")
    if target.is_dir() or (target.exists() and target.samefile(source)):
        raise OutputError("it is a folder, or the input itself", where=str(target), mend="choose another name")


def predict_rows(
    model: MultiTaskModel,
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    *,
    tasks: Sequence[str] | None = None,
    columns: Columns | None = None,
    batch_size: int = 64,
    chunk_rows: int = CHUNK_ROWS,
) -> Iterator[dict[str, Any]]:
    """Answer rows as they come, a chunk at a time; arguments as in `predict_file`.

    Yields:
        Each row in its order, with `predictions` or `error`.
    """
    columns = columns or Columns()
    split_words = needs_words(model, tasks)
    rows = iter(rows)
    while chunk := list(islice(rows, chunk_rows)):
        results = [dict(row) for row in chunk]
        good: list[tuple[int, Inputs]] = []
        for place, row in enumerate(results):
            if "error" in row and len(row) == 1:  # the line itself could not be read
                continue
            try:
                good.append((place, _inputs(row, columns, split_words)))
            except DataError as error:
                row["error"] = str(error)
        answers = _answer(model, tokenizer, [inputs for _, inputs in good], tasks, batch_size)
        for (place, _), found in zip(good, answers, strict=True):
            results[place]["predictions"] = found
        yield from results


def read_rows(source: Path) -> Iterator[dict[str, Any]]:
    """Open a file of rows; a line that cannot be read becomes a row with an `error` alone.

    Raises:
        DataError: there is no such file, its ending is unknown, or it is not of its format at all.
    """
    name = source.name.lower()
    ending = _ending(source)
    if not source.is_file():
        raise DataError("there is no such file", where=str(source), mend="correct the path")
    if ending not in INPUT_ENDINGS:
        raise DataError(f"{ending!r} cannot be read", where=str(source), mend=f"use {one_of(INPUT_ENDINGS)}")
    if ending == ".parquet":
        return _parquet_rows(source)
    return _text_rows(source, ending, compressed=name.endswith(".gz"))


def jsonl_rows(lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
    """Read rows from lines of JSON; a JSON string is a text, an empty line is left out."""
    for number, raw in enumerate(lines, start=1):
        try:
            line = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        except UnicodeDecodeError as error:
            yield {"error": f"line {number}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"}
            continue
        line = line.removeprefix("\ufeff") if number == 1 else line
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield {"error": f"line {number}: not JSON ({error}); write one JSON object per line"}
            continue
        if isinstance(row, str):
            row = {"text": row}
        yield (
            row if isinstance(row, dict) else {"error": f"line {number}: {row!r} is no JSON object; write one per line"}
        )


def write_jsonl(rows: Iterable[Mapping[str, Any]], target: Path) -> None:
    """Write one JSON object per line."""
    with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(to_json(row) + "\n")


def to_json(row: Mapping[str, Any]) -> str:
    """Write a row as one line of JSON, text of every script as it is; what JSON has no type for is written as text."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    # A lone surrogate can stand in JSON as an escape, but not in UTF-8.
    return text if text.isascii() or _encodable(text) else json.dumps(row, default=str)


def write_parquet(rows: Iterable[Mapping[str, Any]], target: Path) -> None:
    """Write parquet: chunks are kept in a file beside it until their common schema is known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = iter(rows)
    with replacing(target) as temporary:
        parts: list[Path] = []
        schemas: list[pa.Schema] = []
        try:
            while chunk := list(islice(rows, CHUNK_ROWS)):
                names = list(dict.fromkeys(name for row in chunk for name in row))
                table = pa.table({name: _array([row.get(name) for row in chunk]) for name in names})
                part = temporary.with_suffix(f".{len(parts)}.arrow")
                with pa.ipc.new_file(part, table.schema) as file:
                    parts.append(part)
                    file.write_table(table)
                schemas.append(table.schema)
            schema = pa.unify_schemas(schemas, promote_options="permissive") if schemas else pa.schema([])
            with pq.ParquetWriter(temporary, schema) as parquet:
                for part in parts:
                    with pa.ipc.open_file(part) as file:
                        table = file.read_all()
                    missing = [name for name in schema.names if name not in table.column_names]
                    for name in missing:
                        table = table.append_column(name, pa.nulls(len(table)))
                    parquet.write_table(table.select(schema.names).cast(schema))
        finally:
            for part in parts:
                part.unlink(missing_ok=True)


class _Counted:
    """Rows on their way to the writer, counted."""

    def __init__(self, rows: Iterable[dict[str, Any]], on_rows: Callable[[int], None] | None) -> None:
        self._rows = rows
        self._on_rows = on_rows
        self.rows = 0
        self.errors = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._rows:
            self.rows += 1
            self.errors += "predictions" not in row
            if self._on_rows is not None and self.rows % 256 == 0:
                self._on_rows(self.rows)
            yield row
        if self._on_rows is not None:
            self._on_rows(self.rows)


def _inputs(row: Mapping[str, Any], columns: Columns, split_words: bool) -> Inputs:
    if columns.text is None:
        if row.get(columns.tokens) is None:
            raise DataError(f"the row has no {columns.tokens!r}", mend="name the column of tokens")
        return Inputs.of(tokens=row[columns.tokens])
    return read_inputs(
        row, text=columns.text, text_pair=columns.text_pair, tokens=columns.tokens, split_words=split_words
    )


def _answer(
    model: MultiTaskModel, tokenizer: Any, rows: Sequence[Inputs], tasks: Sequence[str] | None, batch_size: int
) -> list[Answers]:
    return answer(model, tokenizer, rows, tasks=tasks, batch_size=batch_size) if rows else []


def _ending(source: Path) -> str:
    return Path(source.name.lower().removesuffix(".gz")).suffix


def _text_rows(source: Path, ending: str, *, compressed: bool) -> Iterator[dict[str, Any]]:
    try:
        with cast("IO[bytes]", gzip.open(source)) if compressed else source.open("rb") as file:
            if ending in (".jsonl", ".ndjson"):
                yield from jsonl_rows(file)
            else:
                yield from _csv_rows(file, source, delimiter="\t" if ending == ".tsv" else ",")
    except (OSError, EOFError) as error:
        raise DataError(f"it cannot be read ({error})", where=str(source), mend="check the file") from error


def _csv_rows(file: IO[bytes], source: Path, *, delimiter: str) -> Iterator[dict[str, Any]]:
    import io

    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.DictReader(text, delimiter=delimiter, restkey="", restval=None)
    try:
        for row in reader:
            if row.pop("", None) is not None:
                yield {"error": f"line {reader.line_num}: more columns than the header has; quote fields with commas"}
            else:
                yield dict(row)
    except (UnicodeDecodeError, csv.Error) as error:
        where = f"{source}, after line {reader.line_num}"
        raise DataError(f"it cannot be read ({error})", where=where, mend="save the file as UTF-8") from error


def _parquet_rows(source: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source) as file:
            for batch in file.iter_batches(batch_size=CHUNK_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"it cannot be read ({error})", where=str(source), mend="check the file") from error


def _array(values: list[Any]) -> Any:
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        # Values of several types in one field: parquet needs one type, so they are kept as JSON text.
        return pa.array(
            [None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in values]
        )


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
