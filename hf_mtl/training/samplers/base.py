"""`Sampler`: which dataset each next row comes from."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from hf_mtl.errors import SpecError, one_of

# What numpy's random streams of a seed are for. Without it they overlap: numpy takes (0, 1) and (0, 1, 0) for one seed.
DRAW_STREAM, ROW_STREAM, BATCH_STREAM, CLASS_STREAM, TASK_STREAM = 1, 2, 3, 4, 5

UPSAMPLED, DOWNSAMPLED = "upsampled", "downsampled"
EPOCH_SIZES = (UPSAMPLED, DOWNSAMPLED)


class Sampler(ABC):
    """Draws datasets, never rows: each source owns the order of its rows.

    A strategy is a formula, `probabilities`; this class makes whole rows of it. Its options are the keyword arguments
    of its `__init__`, which passes all others on to this one.

    Args:
        sizes: number of labelled rows per dataset, each at least 1.
        seed: seed of every draw.
        num_epochs: length of the training in epochs.
        epoch_size: rows of an epoch; the sum of `sizes` where not given. `"upsampled"`: `max_i n_i / p_i`, as many as
            it takes for every row to be drawn; `"downsampled"`: `min_i n_i / p_i`, as many as can be drawn without a
            row coming twice; where the probabilities move, over all epochs as far as they are known at the beginning.
        tasks: the tasks of each dataset; where not given its only task has the dataset's name.
        references: score of a task when trained alone, in [0, 1], where it is known.

    Raises:
        SpecError: there is no dataset, or one is empty; or an option is unknown, or has a value that is not allowed.
    """

    follows_scores: ClassVar[bool] = False
    """Whether the probabilities change with the scores that `observe` is told."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        seed: int = 0,
        num_epochs: float = 1.0,
        epoch_size: int | str | None = None,
        tasks: Mapping[str, Sequence[str]] | None = None,
        references: Mapping[str, float] | None = None,
        **unknown: Any,
    ) -> None:
        self.check_options(unknown)
        empty = [name for name, size in sizes.items() if size < 1]
        if empty or not sizes:
            raise SpecError(f"dataset {empty[0]!r} has no rows" if empty else "there is no dataset", mend="give rows")
        self.names = tuple(sizes)
        self.sizes = np.array([sizes[name] for name in self.names], dtype=np.int64)
        self.seed = seed
        self.num_epochs = num_epochs
        self.tasks = {name: tuple(tasks[name]) if tasks else (name,) for name in self.names}
        self.references = dict(references or {})
        self._wanted_size = check_epoch_size(epoch_size)

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Return the names of the strategy's options."""
        owners = [own for own in cls.__mro__ if "__init__" in vars(own) and issubclass(own, Sampler)]
        known = [inspect.signature(vars(own)["__init__"]).parameters.values() for own in owners if own is not Sampler]
        basics = inspect.signature(Sampler.__init__).parameters
        found = (one.name for own in known for one in own if one.kind is one.KEYWORD_ONLY and one.name not in basics)
        return tuple(dict.fromkeys(found))

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Check the names of options.

        Raises:
            SpecError: the strategy has no such option; lists those it has.
        """
        for name in options:
            if name not in cls.options():
                raise SpecError(f"{cls.__name__} has no option {name!r}", mend=f"use {one_of(cls.options())}")

    @abstractmethod
    def probabilities(self, epoch: int) -> np.ndarray:
        """Return each dataset's share of an epoch's rows, `(num_datasets,)`, for an epoch from 0."""

    def counts(self, epoch: int) -> np.ndarray:
        """Return each dataset's rows in an epoch, `(num_datasets,)`.

        They are the shares of `epoch_size` rows, rounded by largest remainder, so that they add up and the same shares
        give the same rows; a dataset that has a share has at least one row, if the epoch is large enough.
        """
        return apportion(self.probabilities(epoch), self.epoch_size())

    def draws(self, epoch: int) -> np.ndarray:
        """Return the datasets of an epoch's rows, one draw after the other.

        Args:
            epoch: number of the epoch, from 0.

        Returns:
            Indices into `names`, `(rows in the epoch,)`, in as few bytes as they need; the same for the same seed and
            epoch.
        """
        places = np.arange(len(self.names), dtype=np.min_scalar_type(len(self.names)))
        return self.generator(epoch).permutation(np.repeat(places, self.counts(epoch)))

    def epoch_size(self) -> int:
        """Return the number of rows in an epoch, the same for all of them: the Trainer counts its steps once."""
        return self._epoch_size

    @cached_property
    def _epoch_size(self) -> int:
        if isinstance(self._wanted_size, int):
            return self._wanted_size
        if self._wanted_size is None:
            return int(self.sizes.sum())
        shares = np.array([self.probabilities(epoch) for epoch in range(max(1, math.ceil(self.num_epochs)))])
        rows = (self.sizes / np.where(shares > 0, shares, np.nan)).round(6)  # n/(n/N) is not N to the last bit
        return math.ceil(np.nanmax(rows)) if self._wanted_size == UPSAMPLED else max(1, math.floor(np.nanmin(rows)))

    def generator(self, epoch: int) -> np.random.Generator:
        """Return the random generator of an epoch."""
        return np.random.default_rng((DRAW_STREAM, self.seed, epoch))

    # ------------------------------------------------------------------ strategies that follow the training

    def begin(self, epoch: int) -> None:  # noqa: B027 (most strategies need not know)
        """Take note that an epoch begins, or goes on after the training was interrupted."""

    def observe(self, scores: Mapping[str, float]) -> None:  # noqa: B027
        """Take note of an evaluation: the primary metric of each task, in [0, 1] where 1 is best."""

    def state_dict(self) -> dict[str, Any]:
        """Return what was taken note of, as plain JSON values; empty where nothing is."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take over what `state_dict` returned."""


def apportion(shares: np.ndarray, total: int) -> np.ndarray:
    """Divide a whole number in given shares, rounding by largest remainder (Hamilton's method).

    Args:
        shares: the shares, not negative, of any sum above 0, `(n,)`.
        total: what to divide; if it is at least the number of shares above 0, each of these gets 1 or more.

    Returns:
        Whole numbers that add up to `total`, `(n,)`.

    Example:
        >>> apportion(np.array([0.5, 0.3, 0.2]), 7).tolist()
        [4, 2, 1]
        >>> apportion(np.array([0.99, 0.01, 0.0]), 10).tolist()
        [9, 1, 0]
    """
    least = (shares > 0).astype(np.int64)
    if least.sum() > total:
        least[:] = 0
    over = np.clip(shares / shares.sum() * total - least, 0.0, None)
    over *= (total - least.sum()) / max(over.sum(), np.finfo(np.float64).tiny)
    counts = least + np.floor(over).astype(np.int64)
    remainders = over - np.floor(over)
    counts[np.argsort(-remainders, kind="stable")[: total - counts.sum()]] += 1
    return counts


def power_shares(sizes: np.ndarray, exponent: float) -> np.ndarray:
    """Return `n_i^exponent / sum_j n_j^exponent`, `(num_datasets,)`.

    Example:
        >>> power_shares(np.array([900, 100]), 0.5)
        array([0.75, 0.25])
    """
    weights = (sizes / sizes.max()) ** exponent  # at most 1, so that a large exponent does not overflow
    return weights / weights.sum()


def check_number(name: str, value: Any, *, above: float | None = None, least: float = 0.0) -> float:
    """Return an option's value if it is a number above a bound, or at least `least`.

    Raises:
        SpecError: it is not.
    """
    number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    if not (number >= least if above is None else number > above):  # false for NaN
        bound = f"of at least {least:g}" if above is None else f"above {above:g}"
        raise SpecError(f"{name} is {value!r}", mend=f"give a number {bound}")
    return number


def check_epoch_size(value: Any) -> int | str | None:
    """Return an `epoch_size` if it is one.

    Raises:
        SpecError: it is not.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is None or value in EPOCH_SIZES or (whole and value >= 1):
        return value
    raise SpecError(f"epoch_size is {value!r}", mend=f"give a whole number of at least 1, or {one_of(EPOCH_SIZES)}")
