"""Sources: where the rows of one dataset come from, and in which order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from hf_mtl.data.collator import LABEL_PREFIX, MODEL_COLUMNS
from hf_mtl.data.preparation import EncodedSplit
from hf_mtl.data.stored_columns import StoredColumns
from hf_mtl.errors import SpecError, one_of
from hf_mtl.training.samplers.base import CLASS_STREAM, ROW_STREAM, TASK_STREAM

NO_CLASS = -1
"""Class of a row that has no label for the task."""


class RowSource(Protocol):
    """An endless sequence of one dataset's labelled rows: all of them, then all again in another order, and so on.

    Rows are whatever the training set's `__getitems__` takes: numbers, or the rows of a stream themselves.
    """

    def __len__(self) -> int:
        """Return the number of rows in a round."""
        ...

    def take(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows from one position of the sequence on; asked for in ascending order within an epoch.

        Args:
            start: the first position, from 0.
            count: number of rows.

        Returns:
            The rows and their lengths in tokens, each `(count,)`.
        """
        ...


class _Rounds(ABC):
    """Rows in memory, round after round; only the order of the round in progress is kept."""

    def __init__(self, rows: np.ndarray, lengths: np.ndarray) -> None:
        self.rows = rows
        self.lengths = lengths
        self._latest = -1, np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows at the positions from `start` on, and their lengths in tokens, each `(count,)`."""
        parts = [np.zeros(0, dtype=np.int64)]
        while count > 0:
            number, offset = divmod(start, len(self))
            if self._latest[0] != number:
                self._latest = number, self.order(number)
            parts.append(self._latest[1][offset : offset + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        places = np.concatenate(parts)
        return self.rows[places], self.lengths[places]

    @abstractmethod
    def order(self, number: int) -> np.ndarray:
        """Return the places of the rows that a round has, `(num_rows,)`."""


class ShuffledRows(_Rounds):
    """The labelled rows of one dataset, each once a round, in a new order each time round.

    The order depends on the seed and the number of the round alone, so nothing needs to be saved to resume it.

    Args:
        rows: the rows that have a label, `(num_rows,)`.
        lengths: tokens of each of them, `(num_rows,)`.
        seed: seed of the order: numbers that no other source has in this stream.
        stream: what the order is for.
    """

    def __init__(self, rows: np.ndarray, lengths: np.ndarray, *, seed: Sequence[int], stream: int = ROW_STREAM) -> None:
        super().__init__(rows, lengths)
        self.seed = (stream, *seed)

    def order(self, number: int) -> np.ndarray:
        return np.random.default_rng((*self.seed, number)).permutation(len(self))


class BalancedRows(_Rounds):
    """The labelled rows of one dataset, drawn so that each class of a task comes equally often.

    A round has as many rows as the dataset. The rows that have a class of the task share their number equally among
    the classes: rows of a rare class come several times a round, rows of a frequent one not in every round, and within
    a class each row comes equally often. Rows without a label for the task, which other tasks need, come once. It is
    the class-aware sampling of Shen, Lin and Huang 2016, "Relay Backpropagation for Effective Learning of Deep
    Convolutional Neural Networks", https://arxiv.org/abs/1512.05830.

    Args:
        rows: the rows that have a label of any task, `(num_rows,)`.
        lengths: tokens of each of them, `(num_rows,)`.
        classes: the class of each of them, -1 where it has none, `(num_rows,)`.
        seed: seed of the order: numbers that no other source has.
    """

    def __init__(self, rows: np.ndarray, lengths: np.ndarray, classes: np.ndarray, *, seed: Sequence[int]) -> None:
        super().__init__(rows, lengths)
        self.seed = (ROW_STREAM, *seed)
        names = [NO_CLASS, *(own for own in np.unique(classes).tolist() if own != NO_CLASS)]
        places = [np.flatnonzero(classes == own) for own in names]
        self._groups = [
            ShuffledRows(own, lengths[own], seed=(*seed, place), stream=CLASS_STREAM)
            for place, own in enumerate(places)
        ]

    def order(self, number: int) -> np.ndarray:
        before, after = self._drawn(number), self._drawn(number + 1)
        drawn = [
            group.take(start, end - start)[0] for group, start, end in zip(self._groups, before, after, strict=True)
        ]
        return np.random.default_rng((*self.seed, number)).permutation(np.concatenate(drawn))

    def _drawn(self, rounds: int) -> list[int]:
        """Return how many rows of each group, those without a class first, the first rounds hold together."""
        without, *classes = self._groups
        each, left = divmod(sum(map(len, classes)), max(1, len(classes)))
        # What is left over goes to one class after the other, on from where the round before ended.
        shares = [rounds * each - (place - rounds * left) // len(classes) for place in range(len(classes))]
        return [rounds * len(without), *shares]


@dataclass(frozen=True)
class TaskRows:
    """Where rows labelled for a task come from, for batches that must hold every task.

    Args:
        tasks: the tasks.
        places: the place of each task's dataset among the datasets.
        sources: per task the rows labelled for it.
        labelled: tells of rows `(num_rows,)` whether each has a label for each task, bool `(num_rows, num_tasks)`.
    """

    tasks: tuple[str, ...]
    places: tuple[int, ...]
    sources: tuple[RowSource, ...]
    labelled: Callable[[np.ndarray], np.ndarray]


class JointRows(torch.utils.data.Dataset[Any]):
    """The rows of all training sets under one numbering, fetched a batch at a time.

    Args:
        splits: the training sets by name.
    """

    def __init__(self, splits: Mapping[str, EncodedSplit]) -> None:
        self.names = tuple(splits)
        self.features = [StoredColumns(_model_columns(split.features)) for split in splits.values()]
        self.starts = np.cumsum([0, *(len(split.features) for split in splits.values())])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Mapping[str, Any]]:
        numbers = np.asarray(rows, dtype=np.int64)
        datasets = self._datasets(numbers)
        result: list[Any] = [None] * len(numbers)
        for dataset in np.unique(datasets).tolist():
            places = np.flatnonzero(datasets == dataset)
            own = self.features[dataset].fetch(numbers[places] - self.starts[dataset])
            for place, row in zip(places.tolist(), own, strict=True):
                result[place] = row
        return result

    def sources(
        self, splits: Mapping[str, EncodedSplit], *, seed: int, class_balanced: Sequence[str] = ()
    ) -> Iterator[RowSource]:
        """Yield the source of each dataset: its labelled rows under the joint numbering.

        Args:
            splits: the training sets that these rows are of.
            seed: seed of the rows' order.
            class_balanced: tasks whose classes come equally often.

        Raises:
            SpecError: there is no such task, its rows do not have one class each, or two are of one dataset.
        """
        chosen = _balanced_tasks(splits, class_balanced)
        for place, (name, split) in enumerate(splits.items()):
            labelled = np.unique(np.concatenate([split.labelled_encoded(task.spec.name) for task in split.tasks]))
            rows, lengths = labelled + self.starts[place], split.lengths[labelled]
            if name in chosen:
                yield BalancedRows(rows, lengths, _classes(split, chosen[name])[labelled], seed=(seed, place))
            else:
                yield ShuffledRows(rows, lengths, seed=(seed, place))

    def task_rows(self, splits: Mapping[str, EncodedSplit], *, seed: int) -> TaskRows:
        """Return the rows labelled for each task, under the joint numbering.

        Args:
            splits: the training sets that these rows are of.
            seed: seed of the rows' order.
        """
        owners = [(place, split, task.spec.name) for place, split in enumerate(splits.values()) for task in split.tasks]
        labelled = [split.labelled_encoded(task) for _, split, task in owners]
        sources = [
            ShuffledRows(own + self.starts[place], split.lengths[own], seed=(seed, number), stream=TASK_STREAM)
            for number, ((place, split, _), own) in enumerate(zip(owners, labelled, strict=True))
        ]
        flags = [np.zeros((len(split.features), len(owners)), dtype=bool) for split in splits.values()]
        for number, ((place, _, _), own) in enumerate(zip(owners, labelled, strict=True)):
            flags[place][own, number] = True

        def look_up(rows: np.ndarray) -> np.ndarray:
            datasets = self._datasets(rows)
            found = np.empty((len(rows), len(owners)), dtype=bool)
            for place, own in enumerate(flags):
                inside = datasets == place
                found[inside] = own[rows[inside] - self.starts[place]]
            return found

        tasks = tuple(task for _, _, task in owners)
        return TaskRows(tasks, tuple(place for place, _, _ in owners), tuple(sources), look_up)

    def _datasets(self, rows: np.ndarray) -> np.ndarray:
        """Return the place of each row's dataset, `(num_rows,)`."""
        return np.searchsorted(self.starts, rows, side="right") - 1


def _balanced_tasks(splits: Mapping[str, EncodedSplit], tasks: Sequence[str]) -> dict[str, str]:
    """Return the task by dataset."""
    owners = {task.spec.name: name for name, split in splits.items() for task in split.tasks}
    chosen: dict[str, str] = {}
    for task in tasks:
        if task not in owners:
            raise SpecError(f"class_balanced names {task!r}, which is no task", mend=f"name some of {one_of(owners)}")
        if owners[task] in chosen:
            raise SpecError(
                f"class_balanced names {chosen[owners[task]]!r} and {task!r}, both of dataset {owners[task]!r}",
                mend="name one of them: its rows can be balanced for one task only",
            )
        chosen[owners[task]] = task
    return chosen


def _classes(split: EncodedSplit, task: str) -> np.ndarray:
    """Return each row's class for a task, -1 where it has none, `(num_rows,)`."""
    column = split.features.data.column(LABEL_PREFIX + task)
    if not pa.types.is_integer(column.type):
        raise SpecError(
            f"class_balanced names {task!r}, whose rows do not have one class each",
            mend="name tasks with one class per row",
        )
    return np.asarray(column.fill_null(NO_CLASS).to_numpy())


def _model_columns(features: Dataset) -> Dataset:
    names = features.column_names
    return features.select_columns([c for c in names if c in MODEL_COLUMNS or c.startswith(LABEL_PREFIX)])
