"""A dataset of the Hub as a stream: its shards are read over the network, one after the other."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
import datasets.exceptions
import numpy as np
import pyarrow as pa

from hf_mtl.data.dataset_source import DatasetSource
from hf_mtl.data.formats import BATCH_ROWS, shorten
from hf_mtl.data.loading import Source, load_hub
from hf_mtl.data.streaming import RowStream, StreamedRow, class_names, named_rows, require_columns
from hf_mtl.errors import DataError

SAVED_SHARDS = 1024
"""Parts, at most, of a dataset that `save_to_disk` wrote."""

_UNREADABLE = (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError, pa.ArrowException)


@dataclass(frozen=True, kw_only=True, eq=False)
class HubStream(RowStream):
    """A split of a Hub dataset, or of a folder that holds one, as `datasets` streams it; its parts are its shards.

    Args:
        dataset: the rows.
    """

    dataset: datasets.IterableDataset

    @classmethod
    def open(cls, source: DatasetSource, *, base: Path, wanted: Mapping[str, str]) -> HubStream:
        """Open the training split.

        Args:
            source: the dataset.
            base: the folder that a relative folder starts from.
            wanted: the columns to read, by what they are for.

        Raises:
            DataError: there is no such dataset or column, or nobody says how many rows it has.
        """
        path, split = cast(str, source.path), cast(str, source.train or "train")
        where = f"{path} ({split})"
        dataset = load_hub(path, name=source.name, split=split, revision=source.revision, base=base, streaming=True)
        rows = source.rows
        if isinstance(dataset, datasets.Dataset):  # one that `save_to_disk` wrote, which is memory-mapped
            rows = len(dataset) if rows is None else rows
            dataset = dataset.to_iterable_dataset(num_shards=max(1, min(SAVED_SHARDS, len(dataset) // 100)))
        if rows is None:
            rows = getattr((dataset.info.splits or {}).get(split), "num_examples", None)
        if not rows:
            raise DataError("nobody says how many rows it has", where=where, mend="give their number in 'rows'")
        parts = dataset.num_shards
        names = [where] if parts == 1 else [f"{where}, part {part}" for part in range(1, parts + 1)]
        columns = tuple(dict.fromkeys(wanted.values()))
        features = dataset.features
        stream = cls(
            dataset=dataset,
            sources=tuple(map(Source, names)),
            columns=columns,
            num_rows=rows,
            num_parts=parts,
            classes={} if features is None else class_names(features.arrow_schema, columns),
        )
        known = dataset.column_names or [name for table in stream.first_table() for name in table.column_names]
        require_columns(known, wanted, where=where)
        return stream

    def read(self, order: np.ndarray, *, start: int = 0) -> Generator[StreamedRow]:
        left, skip = self.num_rows - start, start
        for part in order.tolist():
            number = 1
            for table in self._tables(part):
                if skip < len(table):
                    chosen = _with_columns(table, self.columns).slice(skip, left)
                    rows = named_rows(chosen, self.sources[part].name)
                    for place, values in enumerate(rows, start=number + skip):
                        yield StreamedRow(part, place, values)
                    left -= len(rows)
                    if not left:
                        return
                number, skip = number + len(table), max(0, skip - len(table))
        raise DataError(
            f"there are {self.num_rows - left - skip} rows, and not {self.num_rows}",
            where=self.sources[0].name.removesuffix(", part 1"),
            mend="give the right number in 'rows'",
        )

    def first_table(self) -> list[pa.Table]:
        """Return the first rows, or nothing where there are none."""
        first = next(self._tables(0), None)
        return [] if first is None else [first]

    def _tables(self, part: int) -> Iterator[pa.Table]:
        shard: Any = self.dataset if self.num_parts == 1 else self.dataset.shard(self.num_parts, part)
        try:
            yield from shard.with_format("arrow").iter(batch_size=BATCH_ROWS)
        except _UNREADABLE as error:
            cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
            raise DataError(
                f"the rows cannot be read: {shorten(str(cause or error).splitlines()[0].rstrip('.'), 300)}",
                where=self.sources[part].name,
                mend="check the network and the dataset, and resume",
            ) from error


def _with_columns(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Select columns; those that are not there are null."""
    for column in columns:
        if column not in table.column_names:
            table = table.append_column(column, pa.nulls(len(table)))
    return table.select(list(columns))
