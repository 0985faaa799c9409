"""Calibration: bins and expected calibration error against hand calculation and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from hf_mtl.errors import DataError, SpecError
from hf_mtl.evaluation.calibration import calibration_bins, expected_calibration_error


def test_the_error_equals_a_calculation_by_hand() -> None:
    confidences = [0.1, 0.3, 0.35, 0.9, 1.0]
    correct = [False, True, False, True, True]
    # Five bins: (0.1), (0.3, 0.35), none, none, (0.9, 1.0).
    expected = 1 / 5 * abs(0.0 - 0.1) + 2 / 5 * abs(0.5 - 0.325) + 2 / 5 * abs(1.0 - 0.95)
    assert expected_calibration_error(confidences, correct, bins=5) == pytest.approx(expected, abs=1e-12)


def test_the_curve_equals_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    confidences = generator.random(500)
    correct = generator.random(500) < confidences**2
    bins = [own for own in calibration_bins(confidences, correct, bins=7) if own.count]
    accuracy, confidence = calibration_curve(correct, confidences, n_bins=7)
    assert [own.accuracy for own in bins] == pytest.approx(accuracy.tolist(), abs=1e-12)
    assert [own.confidence for own in bins] == pytest.approx(confidence.tolist(), abs=1e-12)
    assert sum(own.count for own in bins) == 500


def test_well_calibrated_answers_have_a_small_error_and_sure_wrong_ones_a_large_one() -> None:
    generator = np.random.default_rng(0)
    confidences = generator.random(20_000)
    assert expected_calibration_error(confidences, generator.random(20_000) < confidences) < 0.02
    assert expected_calibration_error([1.0] * 10, [False] * 10) == 1.0


def test_every_confidence_has_a_bin_and_its_upper_edge_belongs_to_it() -> None:
    bins = calibration_bins([0.0, 0.5, 0.500001, 1.0], [True] * 4, bins=2)
    assert [own.count for own in bins] == [2, 2]
    assert math.isnan(calibration_bins([], [], bins=1)[0].accuracy)
    assert math.isnan(expected_calibration_error([], []))


@pytest.mark.parametrize(
    ("confidences", "correct", "bins", "error"),
    [
        ([0.5], [True, False], 10, DataError),
        ([1.5], [True], 10, DataError),
        ([math.nan], [True], 10, DataError),
        ([0.5], [True], 0, SpecError),
    ],
)
def test_bad_input_is_refused(confidences: list[float], correct: list[bool], bins: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        calibration_bins(confidences, correct, bins)
