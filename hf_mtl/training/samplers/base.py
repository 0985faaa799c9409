"""`Sampler`: which dataset each next row comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from hf_mtl.errors import SpecError

# What numpy's random streams of a seed are for. Without it they overlap: numpy takes (0, 1) and (0, 1, 0) for one seed.
DRAW_STREAM, ROW_STREAM, BATCH_STREAM = 1, 2, 3


class Sampler(ABC):
    """Draws datasets, never rows: each source owns the order of its rows.

    Args:
        sizes: number of labelled rows per dataset, each at least 1.
        seed: seed of every draw.

    Raises:
        SpecError: there is no dataset, or one is empty.
    """

    def __init__(self, sizes: Mapping[str, int], *, seed: int = 0) -> None:
        empty = [name for name, size in sizes.items() if size < 1]
        if empty or not sizes:
            raise SpecError(f"dataset {empty[0]!r} has no rows" if empty else "there is no dataset", mend="give rows")
        self.names = tuple(sizes)
        self.sizes = np.array([sizes[name] for name in self.names], dtype=np.int64)
        self.seed = seed

    @abstractmethod
    def probabilities(self, epoch: int) -> np.ndarray:
        """Return each dataset's share of an epoch's rows, `(num_datasets,)`."""

    @abstractmethod
    def draws(self, epoch: int) -> np.ndarray:
        """Return the datasets of an epoch's rows, one draw after the other.

        Args:
            epoch: number of the epoch, from 0.

        Returns:
            Indices into `names`, `(rows in the epoch,)`; the same for the same seed and epoch.
        """

    def epoch_size(self, epoch: int = 0) -> int:
        """Return the number of rows in an epoch."""
        return int(self.sizes.sum())

    def generator(self, epoch: int) -> np.random.Generator:
        """Return the random generator of an epoch."""
        return np.random.default_rng((DRAW_STREAM, self.seed, epoch))
