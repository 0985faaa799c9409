"""Batches of rows of any tasks: shuffled, of like length, the same plan on every process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler as TorchSampler

from hf_mtl.errors import DataError
from hf_mtl.training.samplers.base import BATCH_STREAM, Sampler
from hf_mtl.training.sources import ShuffledRows

POOL_BATCHES = 64
"""Batches whose rows are sorted by length together: more of them pad less, fewer shuffle better."""


class MixedBatchSampler(TorchSampler[list[int]]):
    """Draws rows as the sampler says, sorts pools of them by length, and shuffles the batches cut from a pool.

    No row is dropped or drawn twice: the rows of a pool are dealt out to batches whose sizes differ by one at most, and
    a batch's rows to the processes in turn. Every process computes the same plan from the seed and the epoch. Only
    where several processes take one row each, and rows are left over, does a process get a batch of two.

    Args:
        sampler: says which dataset each row comes from.
        sources: the datasets' rows, in the order of `sampler.names`.
        batch_size: rows of a batch per process.
        process: this process's number and the number of processes.
        pool_batches: batches per pool.

    Raises:
        DataError: there are fewer rows than processes.
    """

    def __init__(
        self,
        sampler: Sampler,
        sources: Sequence[ShuffledRows],
        *,
        batch_size: int,
        process: tuple[int, int] = (0, 1),
        pool_batches: int = POOL_BATCHES,
    ) -> None:
        self.sampler = sampler
        self.sources = sources
        self.batch_size = batch_size
        self.process = process
        self.pool_batches = pool_batches
        self.epoch = 0
        if sampler.epoch_size() < process[1]:
            raise DataError(
                f"{sampler.epoch_size()} rows for {process[1]} processes", mend="give more rows, or use fewer processes"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches are drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(batches for _, _, batches in self._pools())

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = self.process
        rows, lengths = self._rows()
        generator = np.random.default_rng((BATCH_STREAM, self.sampler.seed, self.epoch))
        for start, end, batches in self._pools():
            # Rows of one length stay in the order they were drawn in: a mix of datasets.
            order = start + np.argsort(lengths[start:end], kind="stable")
            cut = np.array_split(order, batches)
            for number in generator.permutation(batches).tolist():
                yield rows[cut[number][rank::world]].tolist()

    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the epoch's rows in the order of the draws, and their lengths."""
        draws = self.sampler.draws(self.epoch)
        rows = np.empty(len(draws), dtype=np.int64)
        lengths = np.empty(len(draws), dtype=np.int64)
        for place, source in enumerate(self.sources):
            drawn = np.flatnonzero(draws == place)
            rows[drawn], lengths[drawn] = source.take(len(drawn), epoch=self.epoch)
        return rows, lengths

    def _pools(self) -> Iterator[tuple[int, int, int]]:
        """Yield the begin and end of each pool among the epoch's draws, and the number of its batches."""
        world = self.process[1]
        per_step = self.batch_size * world
        size = self.sampler.epoch_size(self.epoch)
        start = 0
        while start < size:
            end = min(size, start + per_step * self.pool_batches)
            if size - end < world:  # too few rows would be left for every process to get one
                end = size
            # As few batches as the batch size allows, but none in which a process would have no row.
            yield start, end, min(-(-(end - start) // per_step), (end - start) // world)
            start = end
