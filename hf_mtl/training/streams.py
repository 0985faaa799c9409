"""Training rows of any kind: those of sets in memory by their numbers, those of streams as they are read."""

from __future__ import annotations

import json
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from hf_mtl import errors
from hf_mtl.data.collator import LABEL_PREFIX, MODEL_COLUMNS
from hf_mtl.data.masking import EPOCH, masked_tasks
from hf_mtl.data.preparation import EncodedSplit, TrainingSplit
from hf_mtl.data.streamed import StreamedSplit
from hf_mtl.data.streaming import StreamedRow
from hf_mtl.errors import HfMtlError, SpecError
from hf_mtl.training.batching import EpochRows
from hf_mtl.training.samplers.base import ROW_STREAM, TASK_STREAM
from hf_mtl.training.sources import JointRows, RowSource, TaskRows

SHUFFLE_BUFFER = 10_000
"""Rows of a stream that are in memory to be shuffled, where the recipe gives no number."""

TASK_BUFFER = 1_000
"""The same for rows that join a batch because it has none of a task."""


@dataclass(frozen=True, slots=True)
class DrawnRow:
    """A row of a stream on its way to the process that tokenizes it."""

    dataset: str
    row: StreamedRow


class ShuffledStream:
    """The rows of a stream, each once a round, in a new order each time round.

    The parts of the stream are read in a random order, and what is read is shuffled in blocks of `buffer` rows. Unlike
    in a full shuffle, rows that stand side by side in a part come near each other: within a block, or two. The order
    depends on the seed and the number of the round alone, and a block can be read without those before it, so nothing
    needs to be saved to resume it. All rows count, those without any label too: they teach nothing.

    Args:
        dataset: name of the dataset.
        split: the rows.
        seed: seed of the order: numbers that no other source has in this stream.
        stream: what the order is for.
        buffer: rows of a block.
    """

    def __init__(
        self, dataset: str, split: StreamedSplit, *, seed: Sequence[int], stream: int = ROW_STREAM, buffer: int
    ) -> None:
        self.dataset = dataset
        self.split = split
        self.seed = (stream, *seed)
        self.buffer = buffer
        self._latest: tuple[tuple[int, int] | None, list[StreamedRow]] = None, []
        self._readers: list[Generator[StreamedRow]] = []  # the one in use
        # It holds a file open, which the end of the process would close after the modules that do it are gone.
        weakref.finalize(self, _close, self._readers)

    def __len__(self) -> int:
        return len(self.split)

    def take(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows at the positions from `start` on, and their lengths in tokens, each `(count,)`."""
        rows = self.read(start, count)
        drawn = np.empty(len(rows), dtype=object)
        for place, row in enumerate(rows):
            drawn[place] = DrawnRow(self.dataset, row)
        return drawn, self.split.lengths(rows)

    def read(self, start: int, count: int) -> list[StreamedRow]:
        """Return the rows at the positions from `start` on."""
        rows: list[StreamedRow] = []
        while count > 0:
            number, place = divmod(start, len(self))
            block, offset = divmod(place, self.buffer)
            own = self._block(number, block)[offset : offset + count]
            rows += own
            start, count = start + len(own), count - len(own)
        return rows

    def _block(self, number: int, block: int) -> list[StreamedRow]:
        """Return the rows of a block of a round, shuffled."""
        latest, rows = self._latest
        if latest == (number, block):
            return rows
        rows = []
        self._latest = None, rows  # two blocks need not be in memory at once
        if latest is None or latest != (number, block - 1):
            order = np.random.default_rng((*self.seed, number)).permutation(self.split.stream.num_parts)
            _close(self._readers)
            self._readers[:] = [self.split.stream.read(order, start=block * self.buffer)]
        rows = list(islice(self._readers[0], self.buffer))
        places = np.random.default_rng((*self.seed, number, 1 + block)).permutation(len(rows))
        rows = [rows[place] for place in places.tolist()]
        self._latest = (number, block), rows
        return rows


def _close(readers: Sequence[Generator[StreamedRow]]) -> None:
    for reader in readers:
        reader.close()


class LabelledStream(ShuffledStream):
    """Rows of a stream that are labelled for a task, for batches that have none of it.

    A position stands for a place in the shuffled stream, and gives the first row from there on that has a label. Where
    few rows have one, positions are as far apart as labels are on average.

    Args:
        dataset: name of the dataset.
        split: the rows.
        task: position of the task among those of the dataset.
        seed: seed of the order: numbers that no other source has in this stream.
    """

    def __init__(self, dataset: str, split: StreamedSplit, task: int, *, seed: Sequence[int]) -> None:
        super().__init__(dataset, split, seed=seed, stream=TASK_STREAM, buffer=TASK_BUFFER)
        self.task = task
        self.stride = round(1 / split.labelled_shares[split.tasks[task].spec.name])

    def read(self, start: int, count: int) -> list[StreamedRow]:
        return [self._labelled_from(position * self.stride) for position in range(start, start + count)]

    def _labelled_from(self, start: int) -> StreamedRow:
        for position in range(start, start + len(self)):
            row = super().read(position, 1)[0]
            if self.split.labelled([row])[0, self.task]:
                return row
        raise errors.DataError(
            f"none of the {len(self)} training rows has a label",
            where=f"dataset {self.dataset!r}, task {self.split.tasks[self.task].spec.name!r}",
            mend="give labels, or leave the task out",
        )


class TrainingRows(torch.utils.data.Dataset[Any]):
    """The rows of all training sets, fetched a batch at a time: numbers, and rows of streams, which are tokenized here.

    Where rows are masked each of them has the epoch that draws it, as `EpochRows` bring it.

    Args:
        splits: the training sets by name.
    """

    def __init__(self, splits: Mapping[str, TrainingSplit]) -> None:
        self.names = tuple(splits)
        self.encoded = {name: split for name, split in splits.items() if isinstance(split, EncodedSplit)}
        self.streams = {name: split for name, split in splits.items() if isinstance(split, StreamedSplit)}
        self.joint = JointRows(self.encoded)
        self.masked = bool(masked_tasks([task.spec for split in splits.values() for task in split.tasks]))

    def __len__(self) -> int:
        return len(self.joint) + sum(map(len, self.streams.values()))

    def __getitem__(self, row: Any) -> Mapping[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[Any]) -> list[Mapping[str, Any]]:
        features = self._features(rows)
        if self.masked and isinstance(rows, EpochRows):
            return [{**row, EPOCH: rows.epoch} for row in features]
        return features

    def _features(self, rows: Sequence[Any]) -> list[Mapping[str, Any]]:
        if not self.streams:
            return self.joint.__getitems__(rows)
        result: list[Any] = [None] * len(rows)
        owners = [row.dataset if isinstance(row, DrawnRow) else None for row in rows]
        for owner in dict.fromkeys(owners):
            places = [place for place, own in enumerate(owners) if own == owner]
            own = [rows[place] for place in places]
            features = self.joint.__getitems__(own) if owner is None else self._tokenized(owner, own)
            for place, row in zip(places, features, strict=True):
                result[place] = row
        return result

    def _tokenized(self, name: str, rows: Sequence[DrawnRow]) -> list[dict[str, Any]]:
        try:
            encoded = self.streams[name].encode([row.row for row in rows])
        except HfMtlError as error:
            if get_worker_info() is None:
                raise
            raise _WorkerError(_WorkerError.written(error)) from None
        return [
            {key: value for key, value in row.items() if key in MODEL_COLUMNS or key.startswith(LABEL_PREFIX)}
            for row in encoded
        ]

    def sources(self, *, seed: int, class_balanced: Sequence[str] = ()) -> Iterator[RowSource]:
        """Yield the source of each training set.

        Args:
            seed: seed of the rows' order.
            class_balanced: tasks whose classes come equally often.

        Raises:
            SpecError: `class_balanced` names what is no task, has not one class per row, or is of a stream.
        """
        streamed = {task.spec.name: name for name, split in self.streams.items() for task in split.tasks}
        for task in class_balanced:
            if task in streamed:
                raise SpecError(
                    f"class_balanced names {task!r}, whose rows are streamed",
                    mend=f"leave it out, or take streaming out of dataset {streamed[task]!r}",
                )
        joint = self.joint.sources(self.encoded, seed=seed, class_balanced=class_balanced)
        sources = dict(zip(self.encoded, joint, strict=True))
        for place, (name, split) in enumerate(self.streams.items(), start=len(sources)):
            buffer = split.source.shuffle_buffer or SHUFFLE_BUFFER
            sources[name] = ShuffledStream(name, split, seed=(seed, place), buffer=buffer)
        yield from (sources[name] for name in self.names)

    def task_rows(self, *, seed: int) -> TaskRows:
        """Return the rows labelled for each task.

        Args:
            seed: seed of the rows' order.
        """
        joint = self.joint.task_rows(self.encoded, seed=seed)
        owners = [(name, place) for name, split in self.streams.items() for place in range(len(split.tasks))]
        first = len(joint.tasks)
        sources = [
            LabelledStream(name, self.streams[name], place, seed=(seed, number))
            for number, (name, place) in enumerate(owners, start=first)
        ]
        columns = {name: [first + number for number, own in enumerate(owners) if own[0] == name] for name, _ in owners}

        def look_up(rows: np.ndarray) -> np.ndarray:
            found = np.zeros((len(rows), first + len(owners)), dtype=bool)
            numbers = np.array([not isinstance(row, DrawnRow) for row in rows], dtype=bool)
            found[numbers, :first] = joint.labelled(rows[numbers].astype(np.int64))
            for place in np.flatnonzero(~numbers).tolist():
                drawn: DrawnRow = rows[place]
                found[place, columns[drawn.dataset]] = self.streams[drawn.dataset].labelled([drawn.row])[0]
            return found

        names = list(self.encoded)
        places = [
            *(self.names.index(names[place]) for place in joint.places),
            *(self.names.index(n) for n, _ in owners),
        ]
        tasks = [*joint.tasks, *(self.streams[name].tasks[place].spec.name for name, place in owners)]
        return TaskRows(tuple(tasks), tuple(places), (*joint.sources, *sources), look_up)


class _WorkerError(Exception):
    """Brings an error out of a process of a DataLoader as it was.

    torch 2.13 makes errors of its workers anew, as `type(text of the traceback)`: an error of ours would come out with
    the traceback as its problem, and without its place and mend. No upstream issue is known.
    """

    MARK = "<error of hf_mtl> "

    def __new__(cls, text: str) -> Any:
        if text.startswith(cls.MARK):  # in the worker
            return super().__new__(cls, text)
        fields = json.loads(text.partition(cls.MARK)[2].splitlines()[0])
        kind = getattr(errors, fields.pop("kind"), HfMtlError)
        return kind(fields.pop("problem"), **fields)

    def __init__(self, text: str) -> None:
        super().__init__(text)

    @classmethod
    def written(cls, error: HfMtlError) -> str:
        """Write an error on one line."""
        fields = {"problem": error.problem, "where": error.where, "mend": error.mend}
        return cls.MARK + json.dumps({"kind": type(error).__name__, **fields})
