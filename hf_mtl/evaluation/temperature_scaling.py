"""Temperature scaling: one number a task makes its confidences say how often its answers are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_mtl.errors import DataError, SpecError
from hf_mtl.evaluation.calibration import expected_calibration_error
from hf_mtl.evaluation.decisions import Decisions

COLDEST, HOTTEST = 0.05, 20.0
"""Between which temperatures are looked for: where every answer is right, none would be cold enough."""

HALVINGS = 60
LEAST = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Calibrated:
    """A temperature and what it does to the calibration error.

    Args:
        temperature: the temperature, fitted on all decisions.
        decisions: their number.
        error_before: expected calibration error of the confidences as they are.
        error_after: that of tempered ones, each half of the decisions with the temperature of the other half, so that
            no decision is judged by a temperature that it helped to fit.
    """

    temperature: float
    decisions: int
    error_before: float
    error_after: float


def temper(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return `p ** (1 / T) / sum(p ** (1 / T))`, which is the softmax of the logits over `T`; the order stays.

    Working on probabilities it serves every head that has them, whatever it makes them from.

    Args:
        probabilities: `(..., num_labels)`, the last axis sums to 1.
        temperature: above 1 makes them flatter, below 1 sharper.

    Raises:
        SpecError: the temperature is not above 0.

    Example:
        >>> temper(np.array([[0.8, 0.2]]), 2.0).round(3).tolist(), temper(np.array([[0.8, 0.2]]), 0.5).round(3).tolist()
        ([[0.667, 0.333]], [[0.941, 0.059]])
    """
    if not temperature > 0.0:
        raise SpecError(f"temperature is {temperature}", mend="use a number above 0")
    return _softmax(_log(probabilities) / temperature)


def negative_log_likelihood(probabilities: np.ndarray, gold: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean of `-log p[gold]` at a temperature; arguments as in `fit_temperature`."""
    scaled = _log(probabilities) / temperature
    top = scaled.max(axis=-1)
    total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=-1))
    return float((total - scaled[np.arange(len(gold)), gold]).mean())


def fit_temperature(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Return the temperature under which the right labels are most likely: the argmin of the mean of `-log p_T[gold]`.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599. In `1 / T` the
    negative log-likelihood is convex: its slope, the mean of `E_p[log p] - log p[gold]`, is followed to where it
    is 0.

    Args:
        probabilities: `(num_decisions, num_labels)`, rows sum to 1.
        gold: the right labels, `(num_decisions,)`.

    Returns:
        A number from 0.05 to 20; an end of this range where the likelihood grows to beyond it, as it does where every
        answer is right.

    Raises:
        DataError: there is nothing to fit it on.

    Example:
        >>> sure = np.array([[0.99, 0.01]] * 4)  # right three times out of four
        >>> temperature = fit_temperature(sure, np.array([0, 0, 0, 1]))
        >>> round(float(temper(sure, temperature)[0, 0]), 4)
        0.75
    """
    if not len(gold):
        raise DataError("there are no decisions to fit a temperature on", mend="give labelled rows")
    logs = _log(probabilities)
    right = logs[np.arange(len(gold)), gold].mean()

    def slope(inverse: float) -> float:
        return float((_softmax(logs * inverse) * logs).sum(axis=-1).mean() - right)

    low, high = 1.0 / HOTTEST, 1.0 / COLDEST
    if slope(low) >= 0.0:
        return HOTTEST
    if slope(high) <= 0.0:
        return COLDEST
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0.0 else (low, middle)
    return 1.0 / (low * high) ** 0.5


def confidences(decisions: Decisions, temperature: float = 1.0) -> np.ndarray:
    """Return the probability of what was answered at a temperature, `(num_decisions,)`."""
    return temper(decisions.probabilities, temperature)[np.arange(len(decisions)), decisions.chosen]


def calibrate(decisions: Decisions, rows: np.ndarray, *, seed: int = 0, bins: int = 10) -> Calibrated:
    """Fit a temperature, and measure on decisions that it was not fitted on what it does.

    Args:
        decisions: decisions whose right labels are known.
        rows: the row that each of them belongs to, `(num_decisions,)`: the words of a text are not torn apart.
        seed: seed of the halves.
        bins: bins of the expected calibration error.

    Raises:
        DataError: there are no decisions.
    """
    gold = decisions.gold
    if gold is None or not len(gold):
        raise DataError("there are no decisions to fit a temperature on", mend="give labelled rows")
    right = decisions.chosen == gold
    known = np.unique(rows)
    order = np.random.default_rng(seed).permutation(known)
    in_first = np.isin(rows, order[: (len(order) + 1) // 2])
    tempered = confidences(decisions)
    for own in (in_first, ~in_first) if len(known) > 1 else ():
        other = fit_temperature(decisions.probabilities[~own], gold[~own])
        tempered[own] = confidences(decisions, other)[own]
    return Calibrated(
        temperature=fit_temperature(decisions.probabilities, gold),
        decisions=len(decisions),
        error_before=expected_calibration_error(confidences(decisions), right, bins),
        error_after=expected_calibration_error(tempered, right, bins),
    )


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), LEAST))


def _softmax(logs: np.ndarray) -> np.ndarray:
    shifted = np.exp(logs - logs.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
