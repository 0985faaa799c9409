"""How sure a score is, given how few rows it was measured on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_mtl.errors import SpecError
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
    return {key: _percentiles(np.concatenate([part[key] for part in parts]), level) for key in metric.keys}


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


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.quantile(defined, ((1.0 - level) / 2, (1.0 + level) / 2))
    return float(low), float(high)
