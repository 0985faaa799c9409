"""Prediction over files: every row answered, in order, in bounded memory, and written whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from hf_mtl.inference.files import check_files, is_table, part_format, read_rows
from hf_mtl.inference.identity import identity
from hf_mtl.inference.parts import Parts
from hf_mtl.inference.predictor import Columns, Predictor
from hf_mtl.model.modeling import MultiTaskModel

__all__ = [
    "CHUNK_ROWS", "FIRST_ROWS", "Columns", "Predictor", "Throughput", "cut_chunks", "predict_file", "predict_rows",
]  # fmt: skip

Row = TypeVar("Row")

CHUNK_ROWS = 4096
"""Rows read, sorted by length, answered together, and kept when the run is killed."""
FIRST_ROWS = 512
"""Rows of the first chunk of a file: nothing can be computed until they are tokenized."""


@dataclass(frozen=True)
class Throughput:
    """How fast rows were answered.

    Args:
        rows: rows written.
        errors: those of them that could not be answered.
        seconds: from the first row read to the last row written; loading the model is left out.
        first_error: what was wrong with the first of them.
        continued: those of the rows that an earlier run had answered.
        tokens: tokens read in this run, special tokens included.
        precision: what products were computed in.
    """

    rows: int
    errors: int
    seconds: float
    first_error: str | None = None
    continued: int = 0
    tokens: int = 0
    precision: str = "fp32"

    @property
    def rows_per_second(self) -> float:
        """Rows of this run a second."""
        return (self.rows - self.continued) / max(self.seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of this run a second."""
        return self.tokens / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return `rows`, `errors`, `continued`, `seconds`, `rows_per_second`, `tokens_per_second` and `precision`."""
        return {
            "rows": self.rows,
            "errors": self.errors,
            "continued": self.continued,
            "seconds": self.seconds,
            "rows_per_second": self.rows_per_second,
            "tokens_per_second": self.tokens_per_second,
            "precision": self.precision,
        }


def predict_file(
    model: MultiTaskModel,
    tokenizer: Any,
    source: str | Path,
    target: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    columns: Columns | None = None,
    precision: str = "auto",
    batch_size: int | None = None,
    max_tokens: int | None = None,
    compile: bool = False,
    on_rows: Callable[[int], None] | None = None,
) -> Throughput:
    """Answer every row of a file and write the rows with their predictions.

    Finished chunks are kept beside the target until all are: called again after it was killed, it goes on where it
    was, and the output is the same to the byte. See `hf_mtl.inference.parts`.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        source: jsonl, csv, tsv or parquet, the first three perhaps with `.gz`.
        target: jsonl or parquet; replaced when the last row is written, untouched until then.
        tasks: the tasks to answer; all where not given.
        columns: the fields to read.
        precision: `"auto"`, `"fp32"`, `"bf16"` or `"fp16"`; see `Predictor`. `"fp32"` gives the answers of `evaluate`.
        batch_size: rows a batch may have; as many as `max_tokens` allow where not given.
        max_tokens: tokens a batch may have, padding included; chosen by the device where not given.
        compile: whether to compile the model.
        on_rows: called with the number of rows written so far.

    Returns:
        Rows, rows with an error, and seconds. Each row written has the input's fields and `predictions`, or `error`
        where it could not be answered.

    Raises:
        DataError: the file cannot be read at all.
        OutputError: the target cannot be written, or another run is writing it.
        SpecError: the model has no such task, or an argument cannot be.
    """
    source, target = Path(source), Path(target)
    check_files(source, target)
    start = time.perf_counter()
    predictor = Predictor(
        model, tokenizer, tasks=tasks, columns=columns, precision=precision,
        batch_size=batch_size, max_tokens=max_tokens, compile=compile,
    )  # fmt: skip
    job = identity(predictor, source) | {"rows of a part": [FIRST_ROWS, CHUNK_ROWS]}
    with Parts(target, job, part_format(target)) as parts:
        continued = parts.rows
        rows = islice(_file_rows(source, predictor.columns), continued, None)
        chunks = cut_chunks(rows, CHUNK_ROWS, first=None if continued else FIRST_ROWS)
        for answered in predictor.chunks(chunks, ahead=1):
            parts.add(answered)
            if on_rows is not None:
                on_rows(parts.rows)
        parts.merge()
    seconds = time.perf_counter() - start
    return Throughput(
        parts.rows, parts.errors, seconds, parts.first_error, continued, predictor.tokens, predictor.precision
    )


def predict_rows(
    model: MultiTaskModel,
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    *,
    tasks: Sequence[str] | None = None,
    columns: Columns | None = None,
    precision: str = "auto",
    batch_size: int | None = None,
    max_tokens: int | None = None,
    chunk_rows: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Answer rows as they come, a chunk at a time; arguments as in `predict_file`.

    Args:
        chunk_rows: rows read, sorted by length and answered together; 4096 where not given.

    Yields:
        Each row in its order, with `predictions` or `error`, which take the place of fields of these names.
    """
    predictor = Predictor(
        model,
        tokenizer,
        tasks=tasks,
        columns=columns,
        precision=precision,
        batch_size=batch_size,
        max_tokens=max_tokens,
    )
    for answered in predictor.chunks(cut_chunks(rows, chunk_rows or CHUNK_ROWS)):
        yield from answered


def cut_chunks(rows: Iterable[Row], size: int, *, first: int | None = None) -> Iterator[list[Row]]:
    """Yield rows in lists of a size, the last perhaps shorter, and the first of another size where that is smaller.

    Example:
        >>> list(cut_chunks("abcdefg", 3, first=1))
        [['a'], ['b', 'c', 'd'], ['e', 'f', 'g']]
    """
    rows = iter(rows)
    if first is not None and (chunk := list(islice(rows, min(first, size)))):
        yield chunk
    yield from iter(lambda: list(islice(rows, size)), [])


def _file_rows(source: Path, columns: Columns) -> Iterator[dict[str, Any]]:
    rows = read_rows(source)
    if not is_table(source):
        return rows
    pair = columns.text_pair  # an empty cell is no second text, in training too
    return ({**row, pair: row[pair] or None} if pair in row else row for row in rows)
