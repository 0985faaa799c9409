"""Files of partially labelled rows: read as training reads them, and written so that training can read them again."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hf_mtl.data.dataset_source import DatasetSource
from hf_mtl.data.formats import read_batches, unquoted
from hf_mtl.data.loading import RawSplit, find_files, read_files, read_hub
from hf_mtl.errors import DataError, OutputError, one_of
from hf_mtl.inference.files import write_jsonl
from hf_mtl.inference.parquet import write_parquet
from hf_mtl.writing import check_target, replacing, to_json

OUTPUT_ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet")
FLAT_ENDINGS = (".csv", ".tsv")
"""Files whose cells are text, and so can hold no lists."""

BATCH_ROWS = 2_000


@dataclass(frozen=True)
class Row:
    """A row as its file has it, classes by name, and where it stands; an empty cell is `None`."""

    values: dict[str, Any]
    where: str


@dataclass(frozen=True)
class RowFiles:
    """The training rows of a dataset, or those of one file that is laid out as they are.

    Args:
        dataset: the dataset.
        base: folder that its paths start from.
        source: the file; the dataset's own training rows where not given.
    """

    dataset: DatasetSource
    base: Path
    source: Path | None = None

    def check(self, target: Path) -> None:
        """Check that the rows can be found, and written to a file, before any work is done.

        Raises:
            DataError: there is no such file, or its ending is unknown.
            OutputError: the target cannot hold them.
        """
        ending = target.suffix.lower()
        if ending not in OUTPUT_ENDINGS:
            raise OutputError(f"{ending!r} cannot be written", where=str(target), mend=f"use {one_of(OUTPUT_ENDINGS)}")
        check_target(target)
        files = [] if self._from_hub else find_files(self._patterns(), base=self._base)
        for file in files:
            if target.exists() and target.samefile(file.path):
                raise OutputError("it is the input itself", where=str(target), mend="choose another name")
        if ending in FLAT_ENDINGS and (self._from_hub or any(file.ending not in FLAT_ENDINGS for file in files)):
            raise OutputError(
                f"{ending} holds text alone, and the rows come from files of other formats",
                where=str(target),
                mend="use .jsonl or .parquet",
            )

    def batches(self) -> Iterator[list[Row]]:
        """Yield the rows, some at a time.

        Raises:
            DataError: a file or a line of it cannot be read.
        """
        if not self._from_hub:
            files = find_files(self._patterns(), base=self._base)
            if not any(file.is_table for file in files):
                for file in files:
                    for batch in read_batches(file, self.dataset.columns):
                        yield [Row(values, file.at(number)) for number, values in batch]
                return
        yield from _split_batches(self._split())

    @property
    def _from_hub(self) -> bool:
        return self.source is None and self.dataset.path is not None

    @property
    def _base(self) -> Path:
        return self.base if self.source is None else Path()

    def _patterns(self) -> str | Sequence[str]:
        if self.source is not None:
            return str(self.source)
        if self.dataset.train is None:
            raise DataError("the dataset has no training files", mend="name a file of rows")
        return self.dataset.train

    def _split(self) -> RawSplit:
        own = self.dataset
        if self._from_hub:
            split = own.train if isinstance(own.train, str) else "train"
            return read_hub(str(own.path), name=own.name, split=split, revision=own.revision, base=self.base)
        return read_files(self._patterns(), base=self._base, columns=own.columns)


def _split_batches(split: RawSplit) -> Iterator[list[Row]]:
    for start in range(0, len(split.dataset), BATCH_ROWS):
        rows = cast(
            list[dict[str, Any]], split.dataset.select(range(start, min(start + BATCH_ROWS, len(split.dataset))))
        )
        yield [Row(dict(values), split.where(start + place)) for place, values in enumerate(rows)]


def earlier_marks(row: Row, column: str) -> list[Any]:
    """Return the marks that a row has from an earlier labelling.

    Raises:
        DataError: the column holds something else.
    """
    value = row.values.get(column)
    found = _parsed(value) if isinstance(value, str) else value
    if found is None or isinstance(found, list):
        return list(cast(list[Any], found or []))
    raise DataError(f"{column} is {value!r}, not what marks filled labels", where=row.where, mend="rename the column")


def write_labelled(rows: Iterable[Mapping[str, Any]], target: Path, *, mark: str) -> None:
    """Write rows in the format of the file's ending; the file is replaced when the last row is written.

    Args:
        rows: the rows.
        target: the file.
        mark: the column that marks filled labels with lists, which tables of text hold as JSON.

    Raises:
        OutputError: the file cannot be written.
        DataError: a row has other columns than the first, in a table of text.
    """
    ending = target.suffix.lower()
    if ending == ".parquet":
        write_parquet(rows, target)
        return
    with replacing(target) as temporary:
        if ending in FLAT_ENDINGS:
            flat = ({**row, mark: None if row[mark] is None else to_json(row[mark])} for row in rows)
            (_write_csv if ending == ".csv" else _write_tsv)(flat, temporary)
        else:
            write_jsonl(rows, temporary)


def _write_csv(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(_cells(rows))


def _write_tsv(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for cells in _cells(rows):
            # A cell that would be read without its quotes gets another pair of them.
            kept = [cell if unquoted(cell) == cell else '"' + cell.replace('"', '""') + '"' for cell in cells]
            file.write("\t".join(kept) + "\n")


def _cells(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Yield the header and the cells of each row as text."""
    header: list[str] = []
    for row in rows:
        if not header:
            header = list(row)
            yield header
        odd = sorted(set(row) ^ set(header))
        if odd:
            raise DataError(f"files of the dataset differ in the column {odd[0]!r}", mend="label them one by one")
        yield ["" if row[name] is None else str(row[name]) for name in header]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
