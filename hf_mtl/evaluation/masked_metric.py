"""What masked language modeling is scored with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import List, Value

from hf_mtl.errors import DataError
from hf_mtl.evaluation.counting import Disagreement, ratio
from hf_mtl.evaluation.task_metric import TaskMetric


class MaskedTokensMetric(TaskMetric):
    """Accuracy over all masked tokens: the share for which the most probable token is the one that stood there.

    A row's prediction and reference are the ids of its masked tokens. Perplexity is `exp` of the task's loss, which
    evaluations give beside it.
    """

    name = "masked_tokens"
    keys = ("accuracy",)
    primary = "accuracy"
    row_features = (List(Value("int64")), List(Value("int64")))

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        rows = enumerate(zip(predictions, references, strict=True))
        return np.array([[_right(*row, where=f"row {index}"), len(row[1])] for index, row in rows], dtype=np.float64)

    def from_sums(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        right, masks = sums.T
        return {"accuracy": ratio(right, masks, empty=math.nan)}

    def disagreements(self, prediction: Any, reference: Any, labels: Sequence[str] | None = None) -> list[Disagreement]:
        return []  # tokens are no labels

    def error(self, prediction: Any, reference: Any) -> float:
        """Return the number of masked tokens that were not found."""
        return float(len(reference) - _right(prediction, reference, where="row"))


def _right(prediction: Any, reference: Any, *, where: str) -> int:
    if any(isinstance(side, str) or not hasattr(side, "__len__") for side in (prediction, reference)):
        raise DataError(f"{prediction!r} or {reference!r} is no list of token ids", where=where, mend="give lists")
    if len(prediction) != len(reference):
        raise DataError(
            f"{len(prediction)} tokens for {len(reference)} masks", where=where, mend="give one token per mask"
        )
    return sum(found == true for found, true in zip(prediction, reference, strict=True))
