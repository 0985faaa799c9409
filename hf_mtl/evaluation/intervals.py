"""How sure a score is, given how few rows it was measured on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_mtl.errors import DataError, SpecError
from hf_mtl.evaluation.counting import check_lengths
from hf_mtl.evaluation.metrics import TaskMetric, load_metric

CELLS_PER_CHUNK = 2_000_000
"""Row weights held at a time: 16 MB, and for correlations some ten arrays of that size."""


def bootstrap_intervals(
    metric: TaskMetric | str,
    predictions: Sequence[Any],
    references: Sequence[Any],
    *,
    scheme: str | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return percentile bootstrap intervals of every value of a metric, resampling whole rows.

    Rows are reduced to statistics once, and scores are computed for all resamples of a chunk together. Resamples in
    which a value is not defined are left out of its interval. The same seed gives the same intervals.

    Args:
        metric: the metric or its name.
        predictions: one per row.
        references: one per row.
        scheme: the scheme of a metric given by name.
        resamples: number of resamples, at least 1.
        level: share of resamples within the interval, in (0, 1).
        seed: seed of the random generator.

    Returns:
        Per key the lower and upper end; both NaN where there is nothing to score.

    Raises:
        SpecError: an argument is not allowed, or there is no such metric.
        DataError: the rows cannot be scored.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.

    Example:
        >>> low, high = bootstrap_intervals("classification", ["a", "b"] * 50, ["a"] * 100)["accuracy"]
        >>> 0.35 < low < 0.45 and 0.55 < high < 0.65
        True
    """
    if resamples < 1:
        raise SpecError(f"resamples is {resamples}", mend="give at least 1")
    if not 0.0 < level < 1.0:
        raise SpecError(f"level is {level}", mend="give a number above 0 and below 1, such as 0.95")
    if isinstance(metric, str):
        metric = load_metric(metric, scheme=scheme)
    elif scheme is not None:
        raise SpecError(f"scheme is {scheme!r}", mend="name it where the metric is made")
    rows = check_lengths(predictions, references)
    if rows == 0:
        return dict.fromkeys(metric.keys, (math.nan, math.nan))
    statistics = metric.statistics(predictions, references)
    generator = np.random.default_rng(seed)
    chunk = max(1, CELLS_PER_CHUNK // rows)
    parts = [
        metric.scores(statistics, draw_weights(rows, min(chunk, resamples - start), generator))
        for start in range(0, resamples, chunk)
    ]
    return {key: percentiles(np.concatenate([part[key] for part in parts]), level) for key in metric.keys}


def paired_differences(
    metric: TaskMetric,
    key: str,
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    *,
    resamples: int = 1000,
    seed: int | Sequence[int] = 0,
) -> np.ndarray:
    """Return by how much one model scores above another in bootstrap resamples of the rows that both answered.

    Both are scored on the same rows of every resample, so what makes rows hard for both cancels out, and the spread is
    that of the difference alone. Where a side has several runs, their scores are averaged.

    Args:
        metric: the metric.
        key: the value of it that is compared.
        first: statistics of the rows (`metric.statistics`) for each run of one side, each `(rows, k)`; `k` may differ.
        second: the same for the other side, over the same rows in the same order.
        resamples: number of resamples, at least 1.
        seed: seed of the draws; the same seed and number of rows give the same draws.

    Returns:
        Mean score of `second` less mean score of `first`, `(resamples,)`; NaN where one is not defined.

    Raises:
        SpecError: `resamples` is less than 1.
        DataError: there are no rows, or not the same number of them everywhere.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 8.6 (paired data).

    Example:
        >>> metric = load_metric("classification")
        >>> answers = ["a"] * 60 + ["b"] * 40
        >>> one = metric.statistics(answers, ["a"] * 100)
        >>> paired_differences(metric, "accuracy", [one], [one], resamples=3).tolist()
        [0.0, 0.0, 0.0]
    """
    if resamples < 1:
        raise SpecError(f"resamples is {resamples}", mend="give at least 1")
    sizes = {len(statistics) for statistics in (*first, *second)}
    if len(sizes) != 1 or 0 in sizes or not first or not second:
        raise DataError(
            f"statistics of {', '.join(map(str, sorted(sizes))) or 'no'} rows are compared",
            mend="give those of the same rows, at least one",
        )
    rows = sizes.pop()
    generator = np.random.default_rng(seed)
    chunk = max(1, CELLS_PER_CHUNK // rows)
    parts: list[np.ndarray] = []
    for start in range(0, resamples, chunk):
        weights = draw_weights(rows, min(chunk, resamples - start), generator)
        means = [np.mean([metric.scores(run, weights)[key] for run in side], axis=0) for side in (first, second)]
        parts.append(means[1] - means[0])
    return np.concatenate(parts)


def draw_weights(rows: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Draw `rows` rows with replacement, `resamples` times.

    Returns:
        How often each row was drawn, `(resamples, rows)` in float64; every resample sums to `rows`.

    Example:
        >>> draw_weights(3, 2, np.random.default_rng(0)).sum(axis=1)
        array([3., 3.])
    """
    drawn = generator.integers(rows, size=(resamples, rows)) + rows * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * rows).reshape(resamples, rows).astype(np.float64)


def percentiles(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the ends between which a share `level` of the defined values lies; NaN where none is defined.

    Example:
        >>> percentiles(np.array([0.0, 1.0, 2.0, math.nan]), 0.5)
        (0.5, 1.5)
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.quantile(defined, ((1.0 - level) / 2, (1.0 + level) / 2))
    return float(low), float(high)
