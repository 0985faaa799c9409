"""Batches of as many rows as a number of tokens allows."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hf_mtl.errors import DataError, SpecError
from hf_mtl.training.batching import POOL_BATCHES, EpochBatchSampler, interleaved
from hf_mtl.training.samplers.base import Sampler
from hf_mtl.training.sources import RowSource


@dataclass(frozen=True)
class _Batch:
    """Rows of a batch, all processes together, longest first: their numbers, lengths and datasets, `(num_rows,)`."""

    rows: np.ndarray
    lengths: np.ndarray
    datasets: np.ndarray

    def __getitem__(self, places: slice | np.ndarray) -> _Batch:
        return _Batch(self.rows[places], self.lengths[places], self.datasets[places])


_Pools = list[list[_Batch]]


class TokenBatchSampler(EpochBatchSampler):
    """Fills each batch up to a number of tokens per process, padding included.

    The rows of a pool are sorted by length and cut, longest first, where one more row for each process would be too
    much. A row longer than the budget stands alone; and where each process has one row, and fewer rows than processes
    are left over in a pool, some processes get a batch of two.

    Batches take all rows of an epoch, so that their number follows from the lengths and differs a little from epoch to
    epoch, while the Trainer counts its steps once. Therefore all epochs have as many batches as the one that needs the
    most; in the others the batches of most tokens are halved. The plan depends on nothing but the seed and the epoch.
    Lengths and shares must be known beforehand, which those of streams and of samplers that follow scores are not.

    Args:
        sampler: says how many rows come from each dataset.
        sources: the datasets' rows, in the order of `sampler.names`.
        max_tokens: most tokens of a batch per process.
        homogeneous: whether each batch is of one dataset; those of all datasets are then spread evenly over the epoch.
        process: this process's number and the number of processes.
        pool_batches: batches, of rows of mean length, whose rows are sorted together.

    Raises:
        DataError: there are fewer rows than processes.
    """

    def __init__(
        self,
        sampler: Sampler,
        sources: Sequence[RowSource],
        *,
        max_tokens: int,
        homogeneous: bool = False,
        process: tuple[int, int] = (0, 1),
        pool_batches: int = POOL_BATCHES,
    ) -> None:
        super().__init__(sampler, sources, batch_size=1, process=process, pool_batches=pool_batches)
        self.max_tokens = max_tokens
        self.homogeneous = homogeneous
        if sampler.epoch_size() < process[1]:
            raise DataError(
                f"{sampler.epoch_size()} rows for {process[1]} processes", mend="give more rows, or use fewer processes"
            )
        lengths = np.array([source.take(0, len(source))[1].mean() for source in sources])
        lengths = lengths if homogeneous else np.atleast_1d(lengths @ sampler.probabilities(0))
        rows = np.maximum(max_tokens // np.maximum(lengths, 1.0), 1.0).astype(np.int64)
        self._pool_rows: list[int] = (rows * process[1] * pool_batches).tolist()
        self._epochs = max(1, math.ceil(sampler.num_epochs))
        self._length = 0
        for epoch in range(self._epochs):
            batches = [batch for pools in self._cut(epoch) for pool in pools for batch in pool]
            self._length = max(self._length, len(batches))
            self.batch_size = max(self.batch_size, *(-(-len(batch.rows) // process[1]) for batch in batches))

    def __len__(self) -> int:
        return self._length

    def counts(self, epoch: int) -> np.ndarray:
        counts = self.sampler.counts(epoch)
        return np.where(counts > 0, np.maximum(counts, self.process[1]), 0) if self.homogeneous else counts

    def batch_counts(self, epoch: int) -> np.ndarray:
        if not self.homogeneous:
            return np.where(self.counts(epoch) > 0, len(self), 0)
        return np.array([sum(map(len, pools)) for pools in self._planned(epoch)])

    def global_batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        groups = self._planned(self.epoch)
        readers = [self._shuffled(place, pools) for place, pools in enumerate(groups)]
        numbers = np.array([sum(map(len, pools)) for pools in groups])
        for group in interleaved(numbers, self.generator()).tolist():
            batch = next(readers[group])
            yield batch.rows, np.bincount(batch.datasets, minlength=len(self.sources))

    def _shuffled(self, group: int, pools: _Pools) -> Iterator[_Batch]:
        generator = self.generator(1 + group)
        for pool in pools:
            for number in generator.permutation(len(pool)).tolist():
                yield pool[number]

    def _planned(self, epoch: int) -> list[_Pools]:
        """Return the batches of an epoch, as many as all epochs have."""
        groups = self._cut(epoch)
        pools = [pool for pools in groups for pool in pools]
        missing = len(self) - sum(map(len, pools))
        if missing < 0:
            problem = f"epoch {epoch + 1} needs more batches than the {self._epochs} that were planned"
            raise SpecError(problem, mend="give num_train_epochs as many as are trained")
        _halve(pools, missing, self.process[1])
        return groups

    def _cut(self, epoch: int) -> list[_Pools]:
        """Return as few batches as the tokens allow, by group of rows that may come together."""
        return [
            [_filled(pool, self.max_tokens, self.process[1]) for pool in _pools(rows, size, self.process[1])]
            for rows, size in zip(self._groups(epoch), self._pool_rows, strict=True)
        ]

    def _groups(self, epoch: int) -> Iterator[_Batch]:
        """Yield the rows of an epoch that may come together in a batch, in the order they are drawn in."""
        starts = self.starts(epoch)
        places = np.arange(len(self.sources), dtype=np.min_scalar_type(len(self.sources)))
        if self.homogeneous:
            for place, count in zip(places, self.counts(epoch).tolist(), strict=True):
                datasets = np.repeat(place, count)
                yield _Batch(*self.take(datasets, starts), datasets)
        else:
            draws = self.sampler.draws(epoch)
            yield _Batch(*self.take(draws, starts), draws)


def _pools(rows: _Batch, size: int, world: int) -> Iterator[_Batch]:
    """Cut rows into pools, none of which has fewer rows than there are processes."""
    start, count = 0, len(rows.rows)
    while start < count:
        end = start + size if count - start - size >= world else count
        yield rows[start:end]
        start = end


def _filled(pool: _Batch, max_tokens: int, world: int) -> list[_Batch]:
    """Cut the rows of a pool into as few batches as the tokens allow.

    Rows are dealt to the processes in turn, so that sizes are multiples of their number, but for the last batch.
    """
    rows = pool[np.argsort(-pool.lengths, kind="stable")]
    sizes: list[int] = []
    start, count = 0, len(rows.rows)
    while start < count:
        size = world * max(1, max_tokens // int(rows.lengths[start]))
        sizes.append(min(size, count - start))
        start += size
    if sizes[-1] < world and len(sizes) > 1:  # each process must get a row
        last = sizes.pop()
        if sizes[-1] > world:
            sizes[-1] -= world
            sizes.append(last + world)  # two rows a process at most, as there were of longer ones before
        else:
            sizes[-1] += last
    ends = np.cumsum(sizes).tolist()
    return [rows[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _halve(pools: _Pools, times: int, world: int) -> None:
    """Halve the batch that has most tokens, so many times, in place; none is left with fewer rows than processes."""
    heap = [
        (-_tokens(batch, world), place, number)
        for place, pool in enumerate(pools)
        for number, batch in enumerate(pool)
        if len(batch.rows) >= 2 * world
    ]
    heapq.heapify(heap)
    for _ in range(times):
        if not heap:
            raise SpecError(
                "epochs cannot have as many batches: there are too few rows for the processes",
                mend="set a larger max_tokens_per_batch, or use fewer processes",
            )
        _, place, number = heapq.heappop(heap)
        batch = pools[place][number]
        middle = len(batch.rows) // world // 2 * world
        pools[place][number] = batch[:middle]
        pools[place].append(batch[middle:])
        for half in (number, len(pools[place]) - 1):
            if len(pools[place][half].rows) >= 2 * world:
                heapq.heappush(heap, (-_tokens(pools[place][half], world), place, half))


def _tokens(batch: _Batch, world: int) -> int:
    """Return the tokens of a batch on the process that has most, padding included."""
    return -(-len(batch.rows) // world) * int(batch.lengths[0])
