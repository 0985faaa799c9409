"""What answers taken from a text are scored with."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import List, Value

from hf_mtl.errors import DataError
from hf_mtl.evaluation.counting import Disagreement, ratio
from hf_mtl.evaluation.task_metric import TaskMetric

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_SIGNS = str.maketrans("", "", string.punctuation)


class AnswersMetric(TaskMetric):
    """F1 over words and exact match of answers, as SQuAD defines them, in [0, 1].

    A row's prediction is a list of one text, or of none where there is said to be no answer; its reference is a list of
    all right answers, of which the best match counts. Case, signs, articles and spaces are not compared.

    Source: Rajpurkar, Jia and Liang, Know what you don't know: unanswerable questions for SQuAD, 2018,
    https://arxiv.org/abs/1806.03822.
    """

    name = "answers"
    keys = ("f1", "exact_match")
    primary = "f1"
    row_features = (List(Value("string")), List(Value("string")))

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        rows = enumerate(zip(predictions, references, strict=True))
        return np.array([[*_match(*row, where=f"row {index}"), 1.0] for index, row in rows])

    def from_sums(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        f1, exact, rows = sums.T
        return {"f1": ratio(f1, rows, empty=math.nan), "exact_match": ratio(exact, rows, empty=math.nan)}

    def disagreements(self, prediction: Any, reference: Any, labels: Sequence[str] | None = None) -> list[Disagreement]:
        return []  # texts are no labels

    def error(self, prediction: Any, reference: Any) -> float:
        """Return 1 less the mean of F1 and exact match."""
        return 1.0 - sum(_match(prediction, reference, where="row")) / 2

    def readable(self, value: Any, labels: Sequence[str] | None = None) -> Any:
        """Return the distinct texts as one."""
        return " / ".join(dict.fromkeys(value)) or "(none)"


def plain_words(text: str) -> list[str]:
    """Return the words of an answer without case, signs and articles.

    Example:
        >>> plain_words("The  New-York Times!")
        ['newyork', 'times']
    """
    return _ARTICLES.sub(" ", text.lower().translate(_WITHOUT_SIGNS)).split()


def _match(prediction: Any, reference: Any, *, where: str) -> tuple[float, float]:
    """Return F1 and exact match of an answer with that of the right ones it is nearest to."""
    for side in (prediction, reference):
        if isinstance(side, str) or not all(isinstance(text, str) for text in side):
            raise DataError(f"{side!r} is no list of texts", where=where, mend="give the answers of a row as a list")
    found = plain_words(prediction[0]) if prediction else []
    right = [words for words in map(plain_words, reference) if words] or [[]]
    return max(_f1(found, words) for words in right), float(found in right)


def _f1(found: Sequence[str], right: Sequence[str]) -> float:
    if not found or not right:
        return float(found == right)
    both = (Counter(found) & Counter(right)).total()
    return 2.0 * both / (len(found) + len(right))
