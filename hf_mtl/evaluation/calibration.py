"""Whether confidences are what they say: of answers given with 80% confidence, 80% should be right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_mtl.errors import DataError, SpecError


@dataclass(frozen=True)
class CalibrationBin:
    """Answers of like confidence.

    Args:
        low: least confidence of the bin, not included but for the first.
        high: greatest confidence of the bin.
        count: number of answers in it.
        confidence: their mean confidence; NaN without answers.
        accuracy: share of them that are right; NaN without answers.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def calibration_bins(
    confidences: Sequence[float] | np.ndarray, correct: Sequence[bool] | np.ndarray, bins: int = 10
) -> list[CalibrationBin]:
    """Sort answers into bins of equal width by their confidence.

    Args:
        confidences: in [0, 1], `(num_answers,)`.
        correct: whether each answer is right, `(num_answers,)`.
        bins: number of bins.

    Returns:
        All bins, the lowest first, also those without answers.

    Raises:
        DataError: the two differ in length, or a confidence is not in [0, 1].
        SpecError: there are no bins.

    Example:
        >>> [own.count for own in calibration_bins([0.2, 0.9, 1.0], [False, True, True], bins=2)]
        [1, 2]
    """
    if bins < 1:
        raise SpecError(f"bins is {bins}", mend="use 1 or more")
    sure, right = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if sure.shape != right.shape or sure.ndim != 1:
        raise DataError(f"{sure.shape} confidences for {right.shape} answers", mend="give one for each answer")
    if not ((sure >= 0.0) & (sure <= 1.0)).all():
        raise DataError(f"a confidence is {sure[~((sure >= 0.0) & (sure <= 1.0))][0]}", mend="give numbers in [0, 1]")
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.searchsorted(edges[1:-1], sure, side="left")
    found: list[CalibrationBin] = []
    for number, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        own = place == number
        means = (float(sure[own].mean()), float(right[own].mean())) if own.any() else (float("nan"), float("nan"))
        found.append(CalibrationBin(low, high, int(own.sum()), *means))
    return found


def expected_calibration_error(
    confidences: Sequence[float] | np.ndarray, correct: Sequence[bool] | np.ndarray, bins: int = 10
) -> float:
    """Return by how much confidence and accuracy differ: `sum_b n_b / n * |accuracy_b - confidence_b|`.

    Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning",
    https://ojs.aaai.org/index.php/AAAI/article/view/9602; with bins of equal width as Guo et al. 2017,
    https://arxiv.org/abs/1706.04599.

    Args:
        confidences: in [0, 1], `(num_answers,)`.
        correct: whether each answer is right, `(num_answers,)`.
        bins: number of bins of equal width.

    Returns:
        A number in [0, 1]; NaN without answers. Errors as in `calibration_bins`.

    Example:
        >>> round(expected_calibration_error([0.6, 0.8, 0.9, 0.9], [True, False, True, True], bins=2), 3)
        0.05
    """
    found = [own for own in calibration_bins(confidences, correct, bins) if own.count]
    total = sum(own.count for own in found)
    if not total:
        return float("nan")
    return sum(own.count / total * abs(own.accuracy - own.confidence) for own in found)
