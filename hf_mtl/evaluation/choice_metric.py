"""What multiple-choice answers are scored with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Value

from hf_mtl.evaluation.counting import Disagreement, ratio
from hf_mtl.evaluation.task_metric import TaskMetric


class ChoicesMetric(TaskMetric):
    """Accuracy of the numbers of choices: the share of rows whose right choice is chosen.

    A choice has a meaning in its row alone, so there is no F1 per choice. Mistakes are counted by the places of the
    right and the chosen one, which shows where a model prefers a place.
    """

    name = "choices"
    keys = ("accuracy",)
    primary = "accuracy"
    row_features = (Value("int64"), Value("int64"))

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        return np.array([[float(own == true), 1.0] for own, true in zip(predictions, references, strict=True)])

    def from_sums(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        right, rows = sums.T
        return {"accuracy": ratio(right, rows, empty=math.nan)}

    def disagreements(self, prediction: Any, reference: Any, labels: Sequence[str] | None = None) -> list[Disagreement]:
        return [(str(reference), str(prediction))] if prediction != reference else []
