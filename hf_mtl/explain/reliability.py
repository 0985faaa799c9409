"""How far a measured number would come out again on other rows: split-half reliability."""

from __future__ import annotations

import numpy as np

from hf_mtl.errors import SpecError

LEAST = 0.8
"""Reliability below which a number is not shown; the errors then make up a fifth of what varies."""


def split_half(products: np.ndarray) -> float:
    """Return the reliability of a mean of measurements, the mean over all ways to halve them.

    For halves with the means `a` and `b` the agreement is `r = 2 <a, b> / (|a|^2 + |b|^2)`, and by Spearman and Brown
    the whole has `2 r / (1 + r) = 4 <a, b> / |a + b|^2`. The mean over all halvings is, as Cronbach showed, the mean
    product of two different measurements over the mean of all products, which is what is computed. Cronbach 1951,
    "Coefficient alpha and the internal structure of tests", https://doi.org/10.1007/BF02310555.

    Args:
        products: inner products of the measurements, `(n, n)`; those of their deviations from their own mean where
            only the pattern counts, as in a correlation.

    Returns:
        A number in [0, 1]; 0 for a single measurement.

    Example:
        >>> split_half(np.array([[2.0, 1.0], [1.0, 2.0]]))
        0.6666666666666666
    """
    count, total = len(products), float(products.sum())
    if count < 2 or total <= 0.0:
        return 0.0
    between = (total - float(np.trace(products))) / (count * (count - 1))
    return min(1.0, max(0.0, between / (total / count**2)))


def pattern_reliability(measurements: np.ndarray) -> float:
    """Return the reliability of the pattern that the mean of measurements shows, whatever its level.

    Args:
        measurements: `(n, k)`, such as the importance of `k` heads measured on each of `n` rows.

    Example:
        >>> pattern_reliability(np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]))
        1.0
    """
    centred = measurements - measurements.mean(axis=1, keepdims=True)
    return split_half(centred @ centred.T)


def check_least(least: float) -> float:
    """Return the reliability that a number needs to be shown.

    Raises:
        SpecError: it is not in [0, 1].
    """
    if not 0.0 <= least <= 1.0:
        raise SpecError(f"least_reliability is {least}", mend="use a number from 0 to 1")
    return least


def shown(value: float, error: float | None, *, known: bool, form: str = "+.2f") -> str:
    """Write a measured number with its standard error, or `?` where it is not known well enough.

    Example:
        >>> shown(0.25, 0.031, known=True), shown(0.25, 0.3, known=False)
        ('+0.25 ± 0.03', '?')
    """
    if not known:
        return "?"
    return f"{value:{form}}" if error is None else f"{value:{form}} ± {error:{form.lstrip('+')}}"
