"""How well scores of words agree with the words that people mark as reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_mtl.errors import DataError

MEASURES = ("auprc", "token_f1", "iou")


def plausibility(scores: np.ndarray, rationale: np.ndarray, *, share: float) -> dict[str, float]:
    """Compare scores with a rationale.

    DeYoung et al. 2020, "ERASER", https://arxiv.org/abs/1911.03429. The area under the precision-recall curve is
    scikit-learn's average precision. For the other two the `share` of the words with the highest scores counts as
    marked; IOU is of words, not of spans.

    Args:
        scores: of the words, `(num_words,)`; high ones speak for the answer.
        rationale: which words people marked, bool `(num_words,)`.
        share: share of the words that people mark on average, in (0, 1].

    Returns:
        `auprc`, `token_f1` and `iou`, in [0, 1]; NaN where people marked none or all, for then every order is right.

    Example:
        >>> plausibility(np.array([0.9, 0.1, 0.8, 0.2]), np.array([True, False, False, True]), share=0.5)
        {'auprc': 0.83..., 'token_f1': 0.5, 'iou': 0.33...}
    """
    from sklearn.metrics import average_precision_score

    if rationale.all() or not rationale.any():
        return dict.fromkeys(MEASURES, float("nan"))
    count = max(1, round(share * len(scores)))
    marked = np.zeros(len(scores), dtype=bool)
    marked[np.argsort(-scores, kind="stable")[:count]] = True
    both = int((marked & rationale).sum())
    values = (
        float(average_precision_score(rationale, scores)),
        2 * both / (count + int(rationale.sum())),
        both / int((marked | rationale).sum()),
    )
    return dict(zip(MEASURES, values, strict=True))


def average_share(rationales: Sequence[np.ndarray | None]) -> float:
    """Return the share of its words that people mark of a text, on average over those with some; 1 without any.

    Example:
        >>> average_share([np.array([True, False]), np.array([True, False, False, False]), None])
        0.375
    """
    shares = [float(marked.mean()) for marked in rationales if marked is not None and marked.any()]
    return float(np.mean(shares)) if shares else 1.0


def read_rationales(values: Sequence[Any], labels: Sequence[Any]) -> list[np.ndarray | None]:
    """Make rationales of what people said of each word: a word is one where it speaks for the row's label.

    Where no value is below 0 that is every word with a value above 0. Where some are (a sentiment of each word), it is
    every word whose value has the sign of the label, and the sign of a label is that of the mean of all values in the
    rows that have it: words of positive rows are positive on balance.

    Args:
        values: per row a number for each word, or `None`.
        labels: the label of each row, or `None`.

    Returns:
        Per row bool `(num_words,)`, or `None` where there are no values, or no label where one is needed.

    Raises:
        DataError: values are no numbers, or a label's values have no sign.

    Example:
        >>> [marked.tolist() for marked in read_rationales([[0, 2, -1], [-2, 0, 1]], ["good", "bad"])]
        [[False, True, False], [True, False, False]]
    """
    rows = [_numbers(row, place) for place, row in enumerate(values)]
    if not any((row < 0).any() for row in rows if row is not None):
        return [None if row is None else row > 0 for row in rows]
    signs = _signs(rows, labels)
    return [
        None if row is None or label is None else np.sign(row) == signs[label]
        for row, label in zip(rows, labels, strict=True)
    ]


def _signs(rows: Sequence[np.ndarray | None], labels: Sequence[Any]) -> Mapping[Any, float]:
    by_label: dict[Any, list[np.ndarray]] = {}
    for row, label in zip(rows, labels, strict=True):
        if row is not None and label is not None:
            try:
                by_label.setdefault(label, []).append(row)
            except TypeError:
                raise DataError(
                    f"words have values below 0, and the label {label!r} has no sign",
                    mend="give rationales of 0 and 1",
                ) from None
    signs = {label: float(np.sign(np.concatenate(own).mean())) for label, own in by_label.items()}
    for label, sign in signs.items():
        if not sign:
            raise DataError(
                f"the values of the words in rows of label {label!r} add up to 0, which gives it no sign",
                mend="give rationales of 0 and 1",
            )
    return signs


def _numbers(row: Any, place: int) -> np.ndarray | None:
    if row is None:
        return None
    try:
        found = np.array([0.0 if value is None else float(value) for value in row])
    except (TypeError, ValueError):
        found = np.array([np.nan])
    if not np.isfinite(found).all():
        raise DataError(
            f"the rationale is {row!r}", where=f"row {place + 1}", mend="give a list with a number for each word"
        )
    return found
