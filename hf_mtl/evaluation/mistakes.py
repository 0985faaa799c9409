"""What a model got wrong, worst first: the data behind `hf-mtl evaluate --errors`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_mtl.errors import SpecError
from hf_mtl.evaluation.metrics import TaskMetric


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One labelled row beside what was predicted for it.

    Args:
        row: number of the row, as the user counts them.
        text: the text, the pair of texts or the tokens that were read.
        prediction: in the form the task's metric reads.
        reference: in the form the task's metric reads.
        confidence: how sure the model was, in [0, 1].
    """

    row: int
    text: Any
    prediction: Any
    reference: Any
    confidence: float


def mistakes(
    metric: TaskMetric, rows: Sequence[Judged], *, limit: int = 50, labels: Sequence[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """List the mistakes a model was most confident of, and count what it takes for what.

    Among equally confident mistakes those that are further off come first; regression, whose answers all have the same
    confidence, so begins with the largest absolute errors.

    Args:
        metric: the task's metric.
        rows: the labelled rows.
        limit: number of mistakes listed at most; confusions are counted over all rows.
        labels: the task's label names; multi-label rows are shown with their positions where it is `None`.

    Returns:
        Plain JSON data: `"mistakes"`, rows as in `Judged`, and `"confusions"`, the counts of every pair of differing
        labels (of words for spans and tags), most frequent first. A multi-label task counts false positives with the
        reference `None` and false negatives with the prediction `None`; regression counts nothing.

    Raises:
        SpecError: `limit` is negative.

    Example:
        >>> from hf_mtl.evaluation.metrics import load_metric
        >>> row = Judged(row=1, text="A goal", prediction="world", reference="sport", confidence=0.9)
        >>> mistakes(load_metric("classification"), [row])["confusions"]
        [{'reference': 'sport', 'prediction': 'world', 'count': 1}]
    """
    if limit < 0:
        raise SpecError(f"limit is {limit}", mend="give 0 or more")
    errors = [(metric.error(row.prediction, row.reference), row) for row in rows]
    wrong = sorted(((error, row) for error, row in errors if error > 0), key=lambda pair: _badness(*pair))
    counts = Counter(pair for row in rows for pair in metric.disagreements(row.prediction, row.reference, labels))
    return {
        "mistakes": [
            {
                "row": row.row,
                "text": row.text,
                "prediction": metric.readable(row.prediction, labels),
                "reference": metric.readable(row.reference, labels),
                "confidence": float(row.confidence),
            }
            for _, row in wrong[:limit]
        ],
        "confusions": [
            {"reference": reference, "prediction": prediction, "count": count}
            for (reference, prediction), count in sorted(
                counts.items(), key=lambda item: (-item[1], str(item[0][0]), str(item[0][1]))
            )
        ],
    }


def _badness(error: float, row: Judged) -> tuple[float, float, int]:
    confidence = -1.0 if math.isnan(row.confidence) else row.confidence  # NaN would break the order
    return -confidence, -error, row.row
