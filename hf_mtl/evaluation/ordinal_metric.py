"""What ordered labels are scored with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Value

from hf_mtl.errors import DataError
from hf_mtl.evaluation.counting import Disagreement, ratio
from hf_mtl.evaluation.task_metric import TaskMetric


class OrdinalMetric(TaskMetric):
    """Quadratic weighted kappa, mean absolute error and accuracy of ranks, which are whole numbers from 0.

        kappa = 1 - sum_r (p_r - t_r)^2 / (1/n sum_{r, s} (p_r - t_s)^2)

    with the predicted ranks p and the true ranks t of n rows: 1 where all are right, 0 where the predictions have
    nothing to do with the references, NaN where all ranks are the same. The error is in ranks.

    Source: Cohen, Weighted kappa: nominal scale agreement with provision for scaled disagreement, 1968.
    """

    name = "ordinal"
    keys = ("qwk", "mae", "accuracy")
    primary = "qwk"
    row_features = (Value("int64"), Value("int64"))

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        p, t = (_ranks(side, name) for side, name in ((predictions, "predictions"), (references, "references")))
        return np.column_stack((np.ones_like(p), p == t, np.abs(p - t), (p - t) ** 2, p, t, p**2 + t**2))

    def from_sums(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        rows, right, apart, squares, predicted, true, both = sums.T
        by_chance = both - 2.0 * ratio(predicted * true, rows)
        return {
            "qwk": 1.0 - ratio(squares, by_chance, empty=math.nan),
            "mae": ratio(apart, rows, empty=math.nan),
            "accuracy": ratio(right, rows, empty=math.nan),
        }

    def disagreements(self, prediction: Any, reference: Any, labels: Sequence[str] | None = None) -> list[Disagreement]:
        if prediction == reference:
            return []
        return [(str(self.readable(reference, labels)), str(self.readable(prediction, labels)))]

    def error(self, prediction: Any, reference: Any) -> float:
        return float(abs(prediction - reference))

    def readable(self, value: Any, labels: Sequence[str] | None = None) -> Any:
        """Return the label of a rank."""
        return labels[value] if labels else value


def _ranks(values: Sequence[Any], side: str) -> np.ndarray:
    ranks = np.asarray(values)
    if ranks.ndim != 1 or ranks.dtype.kind not in "iu":
        raise DataError("a rank is not a whole number", where=side, mend="give one rank per row, from 0")
    return ranks.astype(np.float64)
