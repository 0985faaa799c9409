"""Batches: shuffled, of rows of like length, the same plan on every process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler as TorchSampler

from hf_mtl.errors import DataError, SpecError
from hf_mtl.training.samplers.base import BATCH_STREAM, Sampler, apportion
from hf_mtl.training.sources import RowSource, TaskRows

POOL_BATCHES = 64
"""Batches whose rows are sorted by length together: more of them pad less, fewer shuffle better."""


class EpochRows(list[Any]):
    """The rows of a batch, with the epoch that draws them: so it reaches processes that fetch rows, too.

    Args:
        rows: the rows.
        epoch: the epoch, from 0.
    """

    def __init__(self, rows: Iterable[Any], epoch: int) -> None:
        super().__init__(rows)
        self.epoch = epoch


class EpochBatchSampler(TorchSampler[list[Any]], ABC):
    """Gives each process its rows of every batch of an epoch.

    Every process computes the same plan from the seed and the epoch and takes its rows of each batch, at least one. No
    row is dropped: a source goes on in an epoch where it ended in the one before. All epochs have as many batches as
    the first, since the Trainer counts its steps once.

    Args:
        sampler: says how many rows come from each dataset.
        sources: the datasets' rows, in the order of `sampler.names`.
        batch_size: most rows of a batch per process, which accelerate reads.
        process: this process's number and the number of processes.
        pool_batches: batches whose rows are sorted by length together.
    """

    def __init__(
        self,
        sampler: Sampler,
        sources: Sequence[RowSource],
        *,
        batch_size: int,
        process: tuple[int, int],
        pool_batches: int,
    ) -> None:
        self.sampler = sampler
        self.sources = sources
        self.batch_size = batch_size
        self.process = process
        self.pool_batches = pool_batches
        self.epoch = 0
        self.drawn = np.zeros((0, len(sources)), dtype=np.uint32)
        """Rows of each dataset in the batches of the epoch that were handed out, `(num_batches, num_datasets)`."""
        self._starts = [np.zeros(len(sources), dtype=np.int64)]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches are drawn next."""
        self.epoch = epoch

    @abstractmethod
    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[Any]]:
        rank, world = self.process
        self.sampler.begin(self.epoch)
        self.drawn = np.zeros((len(self), len(self.sources)), dtype=np.uint32)
        for number, (rows, drawn) in enumerate(self.global_batches()):
            self.drawn[number] = drawn
            yield EpochRows(rows[rank::world].tolist(), self.epoch)

    @abstractmethod
    def counts(self, epoch: int) -> np.ndarray:
        """Return the rows that an epoch draws from each dataset, `(num_datasets,)`."""

    @abstractmethod
    def batch_counts(self, epoch: int) -> np.ndarray:
        """Return the batches of an epoch that draw from each dataset, `(num_datasets,)`."""

    @abstractmethod
    def global_batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the rows of each batch, all processes together, and how many come from each dataset."""

    def starts(self, epoch: int) -> np.ndarray:
        """Return the position in each source that an epoch begins at, `(num_datasets,)`."""
        while len(self._starts) <= epoch:
            self._starts.append(self._starts[-1] + self.counts(len(self._starts) - 1))
        return self._starts[epoch].copy()

    def take(self, datasets: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows in the order of the datasets drawn, and their lengths; moves the positions in the sources on."""
        counts = np.bincount(datasets, minlength=len(self.sources))
        taken = [
            source.take(int(position), int(count))
            for source, position, count in zip(self.sources, positions, counts, strict=True)
        ]
        positions += counts
        rows = np.empty(len(datasets), dtype=np.result_type(*(own.dtype for own, _ in taken)))
        lengths = np.empty(len(datasets), dtype=np.int64)
        for place, own in enumerate(taken):
            rows[datasets == place], lengths[datasets == place] = own
        return rows, lengths

    def generator(self, *parts: int) -> np.random.Generator:
        """Return a random generator of the epoch; `parts` are numbers above 0 that tell several apart."""
        return np.random.default_rng((BATCH_STREAM, self.sampler.seed, self.epoch, *parts))


class MixedBatchSampler(EpochBatchSampler):
    """Draws rows as the sampler says, sorts pools of them by length, and shuffles the batches cut from a pool.

    The rows of a pool are dealt out to batches whose sizes differ by one at most, and a batch's rows to the processes
    in turn. Only where several processes take one row each, and rows are left over, does a process get a batch of two.

    With `task_rows` every batch holds its share of each dataset, and a row labelled for each task: where the rows drawn
    do not give a batch one, a row from those labelled for the task joins it, over and above the batch size.

    Args:
        sampler: says which dataset each row comes from.
        sources: the datasets' rows, in the order of `sampler.names`.
        batch_size: rows of a batch per process.
        task_rows: where rows labelled for each task come from, if every batch is to hold every task.
        process: this process's number and the number of processes.
        pool_batches: batches per pool.

    Raises:
        DataError: there are fewer rows than processes.
        SpecError: every batch is to hold every task, and there are more tasks than rows in a batch.
    """

    def __init__(
        self,
        sampler: Sampler,
        sources: Sequence[RowSource],
        *,
        batch_size: int,
        task_rows: TaskRows | None = None,
        process: tuple[int, int] = (0, 1),
        pool_batches: int = POOL_BATCHES,
    ) -> None:
        super().__init__(sampler, sources, batch_size=batch_size, process=process, pool_batches=pool_batches)
        self.per_step = batch_size * process[1]
        self.task_rows = task_rows
        if sampler.epoch_size() < process[1]:
            raise DataError(
                f"{sampler.epoch_size()} rows for {process[1]} processes", mend="give more rows, or use fewer processes"
            )
        if task_rows is not None and len(task_rows.tasks) > self.per_step:
            raise SpecError(
                f"every_task_in_batch is set for {len(task_rows.tasks)} tasks, but a batch has {self.per_step} rows",
                mend="set a larger per_device_train_batch_size",
            )

    def __len__(self) -> int:
        return sum(batches for _, _, batches in self._pools())

    def counts(self, epoch: int) -> np.ndarray:
        return self.sampler.counts(epoch)

    def batch_counts(self, epoch: int) -> np.ndarray:
        return np.where(self.counts(epoch) > 0, len(self), 0)

    def global_batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        draws = self.sampler.draws(self.epoch)
        positions = self.starts(self.epoch)
        # An epoch takes one row of a task per batch at most.
        extra = [self.epoch * len(self)] * len(self.task_rows.tasks if self.task_rows else ())
        generator = self.generator()
        for start, end, batches in self._pools():
            datasets = draws[start:end]
            rows, lengths = self.take(datasets, positions)
            if self.task_rows is None:
                # Rows of one length stay in the order they were drawn in: a mix of datasets.
                cut = np.array_split(np.argsort(lengths, kind="stable"), batches)
            else:
                cut = spread(datasets, lengths, batches)
            pool = [rows[own] for own in cut]
            drawn = np.array([np.bincount(datasets[own], minlength=len(self.sources)) for own in cut])
            if self.task_rows is not None:
                _complete(pool, drawn, self.task_rows, extra)
            for number in generator.permutation(batches).tolist():
                yield pool[number], drawn[number]

    def _pools(self) -> Iterator[tuple[int, int, int]]:
        """Yield the begin and end of each pool among the epoch's draws, and the number of its batches."""
        world = self.process[1]
        size = self.sampler.epoch_size()
        start = 0
        while start < size:
            end = min(size, start + self.per_step * self.pool_batches)
            if size - end < world:  # too few rows would be left for every process to get one
                end = size
            yield start, end, int(_fewest(np.array(end - start), self.per_step, world))
            start = end


class HomogeneousBatchSampler(EpochBatchSampler):
    """Draws each batch from one dataset; the batches of all datasets are spread evenly over the epoch.

    With as many batches of A, B and C they come in turn: A B C A B C. The rows of a dataset's batches are sorted by
    length in pools, and the batches cut from a pool shuffled; their sizes differ by one at most. Where the sampler's
    shares move between epochs the batches of an epoch are divided so that rows keep the shares, in full batches.

    A dataset from which an epoch would draw fewer rows than there are processes gives one to each of them.

    Args:
        sampler: says how many rows come from each dataset.
        sources: the datasets' rows, in the order of `sampler.names`.
        batch_sizes: rows of a batch per process, for each dataset.
        process: this process's number and the number of processes.
        pool_batches: batches of a dataset per pool.
    """

    def __init__(
        self,
        sampler: Sampler,
        sources: Sequence[RowSource],
        *,
        batch_sizes: Sequence[int],
        process: tuple[int, int] = (0, 1),
        pool_batches: int = POOL_BATCHES,
    ) -> None:
        super().__init__(sampler, sources, batch_size=max(batch_sizes), process=process, pool_batches=pool_batches)
        self.per_step = np.array(batch_sizes, dtype=np.int64) * process[1]
        self._length = int(_fewest(self._wanted(0), self.per_step, process[1]).sum())

    def __len__(self) -> int:
        return self._length

    def counts(self, epoch: int) -> np.ndarray:
        return self._divided(epoch)[0]

    def batch_counts(self, epoch: int) -> np.ndarray:
        return self._divided(epoch)[1]

    def _wanted(self, epoch: int) -> np.ndarray:
        counts = self.sampler.counts(epoch)
        return np.where(counts > 0, np.maximum(counts, self.process[1]), 0)

    def _divided(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows and the batches of each dataset."""
        rows = self._wanted(epoch)
        batches = _fewest(rows, self.per_step, self.process[1])
        if batches.sum() != self._length:
            batches = apportion(rows / self.per_step, self._length)
            rows = batches * self.per_step
        return rows, batches

    def global_batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rows, batches = self._divided(self.epoch)
        readers = [
            self._batches_of(place, *numbers)
            for place, numbers in enumerate(
                zip(self.starts(self.epoch).tolist(), rows.tolist(), batches.tolist(), strict=True)
            )
        ]
        for place in interleaved(batches, self.generator()).tolist():
            batch = next(readers[place])
            yield batch, len(batch) * (np.arange(len(readers)) == place)

    def _batches_of(self, place: int, start: int, rows: int, batches: int) -> Iterator[np.ndarray]:
        """Yield the batches of one dataset, whose rows begin at a position of its source."""
        generator = self.generator(1 + place)
        for first in range(0, batches, self.pool_batches):
            number = min(self.pool_batches, batches - first)
            begin, end = first * rows // batches, (first + number) * rows // batches
            pool, lengths = self.sources[place].take(start + begin, end - begin)
            cut = np.array_split(np.argsort(lengths, kind="stable"), number)
            for own in generator.permutation(number).tolist():
                yield pool[cut[own]]


def interleaved(batches: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Spread each dataset's batches evenly over an epoch.

    Args:
        batches: number of batches of each dataset, `(num_datasets,)`.
        generator: says where in its first interval each dataset begins.

    Returns:
        The dataset of each batch, `(num_batches,)`.
    """
    offsets = generator.random(len(batches))
    # The j-th of k batches stands at (j + u) / k of the epoch, for a random u of each dataset.
    at = [(np.arange(own) + offset) / max(1, own) for own, offset in zip(batches, offsets, strict=True)]
    return np.repeat(np.arange(len(batches)), batches)[np.argsort(np.concatenate(at), kind="stable")]


def spread(datasets: np.ndarray, lengths: np.ndarray, batches: int) -> list[np.ndarray]:
    """Cut rows into batches of which each has its share of every dataset, of like length within a dataset.

    Args:
        datasets: the dataset of each row, `(num_rows,)`.
        lengths: their lengths, `(num_rows,)`.
        batches: number of batches.

    Returns:
        The places of each batch's rows; sizes differ by one at most, and so do the rows of one dataset.

    Example:
        >>> [own.tolist() for own in spread(np.array([0, 0, 0, 0, 1, 1]), np.array([9, 3, 8, 5, 2, 1]), 2)]
        [[1, 3, 5], [2, 0, 4]]
    """
    cut: list[list[np.ndarray]] = [[] for _ in range(batches)]
    longest = 0  # the batch that the next row left over goes to
    for place in np.unique(datasets).tolist():
        own = np.flatnonzero(datasets == place)
        own = own[np.argsort(lengths[own], kind="stable")]
        each, left = divmod(len(own), batches)
        sizes = each + ((np.arange(batches) - longest) % batches < left)
        longest = (longest + left) % batches
        for batch, part in zip(cut, np.split(own, np.cumsum(sizes)[:-1]), strict=True):
            batch.append(part)
    return [np.concatenate(parts) for parts in cut]


def _complete(pool: list[np.ndarray], drawn: np.ndarray, task_rows: TaskRows, positions: list[int]) -> None:
    """Add a row labelled for a task to each batch that has none; moves the tasks' positions on.

    Args:
        pool: the rows of each batch, by length.
        drawn: rows of each dataset in each batch, `(num_batches, num_datasets)`.
        task_rows: where the rows come from.
        positions: position in each task's rows.
    """
    has = np.array([task_rows.labelled(batch).any(axis=0) for batch in pool])
    for task, source in enumerate(task_rows.sources):
        lacking = np.flatnonzero(~has[:, task])
        rows, lengths = source.take(positions[task], len(lacking))
        positions[task] += len(lacking)
        # Longer rows go to batches of longer rows.
        for batch, place in zip(lacking.tolist(), np.argsort(lengths, kind="stable").tolist(), strict=True):
            row = rows[place : place + 1]
            pool[batch] = np.concatenate([pool[batch], row])
            has[batch] |= task_rows.labelled(row)[0]
            drawn[batch, task_rows.places[task]] += 1


def _fewest(rows: np.ndarray, per_step: np.ndarray | int, world: int) -> np.ndarray:
    """Return as few batches as the batch size allows, but none in which a process would have no row."""
    return np.minimum(-(-rows // per_step), rows // world)
