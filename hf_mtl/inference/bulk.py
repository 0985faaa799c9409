"""Prediction over files: every row answered, in order, in bounded memory, and written whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hf_mtl.data.encoding import Inputs, read_inputs
from hf_mtl.errors import DataError
from hf_mtl.evaluation.prediction import Answers, answer, needs_words
from hf_mtl.inference.files import check_files, is_table, read_rows, write_rows
from hf_mtl.model.modeling import MultiTaskModel

CHUNK_ROWS = 4096
"""Rows read, sorted by length and answered together."""


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
    """How fast rows were answered.

    Args:
        rows: rows written.
        errors: those of them that could not be answered.
        seconds: from the first row read to the last row written; loading the model is left out.
        first_error: what was wrong with the first of them.
    """

    rows: int
    errors: int
    seconds: float
    first_error: str | None = None

    @property
    def rows_per_second(self) -> float:
        """Rows a second."""
        return self.rows / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, float]:
        """Return `rows`, `errors`, `seconds` and `rows_per_second`."""
        return {
            "rows": self.rows,
            "errors": self.errors,
            "seconds": self.seconds,
            "rows_per_second": self.rows_per_second,
        }


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
    columns = columns or Columns()
    rows = read_rows(source)
    if is_table(source):
        # An empty cell is no second text, in training too.
        rows = ({**row, columns.text_pair: row[columns.text_pair] or None} if columns.text_pair in row else row
                for row in rows)  # fmt: skip
    start = time.perf_counter()
    counted = _Counted(
        predict_rows(model, tokenizer, rows, tasks=tasks, columns=columns, batch_size=batch_size), on_rows
    )
    write_rows(counted, target)
    return Throughput(counted.rows, counted.errors, time.perf_counter() - start, counted.first_error)


def predict_rows(
    model: MultiTaskModel,
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    *,
    tasks: Sequence[str] | None = None,
    columns: Columns | None = None,
    batch_size: int = 64,
    chunk_rows: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Answer rows as they come, a chunk at a time; arguments as in `predict_file`.

    Args:
        chunk_rows: rows read, sorted by length and answered together; 4096 where not given.

    Yields:
        Each row in its order, with `predictions` or `error`, which take the place of fields of these names.
    """
    columns = columns or Columns()
    split_words = needs_words(model, tasks)
    rows = iter(rows)
    while chunk := list(islice(rows, chunk_rows or CHUNK_ROWS)):
        results = [dict(row) for row in chunk]
        good: list[tuple[int, Inputs]] = []
        for place, row in enumerate(results):
            if row.keys() == {"error"}:  # the line itself could not be read
                continue
            for name in ("predictions", "error"):  # of an earlier run
                row.pop(name, None)
            try:
                good.append((place, _inputs(row, columns, split_words)))
            except DataError as error:
                row["error"] = str(error)
        answers = _answer(model, tokenizer, [inputs for _, inputs in good], tasks, batch_size)
        for (place, _), found in zip(good, answers, strict=True):
            results[place]["predictions"] = found
        yield from results


class _Counted:
    """Rows on their way to the writer, counted."""

    def __init__(self, rows: Iterable[dict[str, Any]], on_rows: Callable[[int], None] | None) -> None:
        self._rows = rows
        self._on_rows = on_rows
        self.rows = 0
        self.errors = 0
        self.first_error: str | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._rows:
            self.rows += 1
            if "predictions" not in row:
                self.errors += 1
                self.first_error = self.first_error or row["error"]
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
