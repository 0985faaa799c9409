"""What each kind of task is scored with; `TaskMetric` says what all metrics have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import List, Value

from hf_mtl.configuration import SCHEMES
from hf_mtl.errors import DataError, SpecError, one_of
from hf_mtl.evaluation.answer_metric import AnswersMetric
from hf_mtl.evaluation.choice_metric import ChoicesMetric
from hf_mtl.evaluation.counting import (
    Disagreement,
    average_ranks,
    correlation,
    label_counts,
    label_flags,
    labelled_words,
    mean_f1,
    per_label,
    ratio,
    span_reader,
    word_disagreements,
)
from hf_mtl.evaluation.masked_metric import MaskedTokensMetric
from hf_mtl.evaluation.ordinal_metric import OrdinalMetric
from hf_mtl.evaluation.task_metric import TaskMetric


class ClassificationMetric(TaskMetric):
    """Accuracy, F1 (macro, micro, weighted) and Matthews correlation of label names, as scikit-learn defines them.

    F1 of a label is 0 where it is never right; the macro mean is over the labels that occur.

    Source: Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004 (mcc).
    """

    name = "classification"
    keys = ("accuracy", "f1_macro", "f1_micro", "f1_weighted", "mcc")
    primary = "accuracy"
    row_features = (Value("string"), Value("string"))

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        return label_counts([[value] for value in predictions], [[value] for value in references])

    def from_sums(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        right, predicted, true = per_label(sums, 3)  # each (resamples, labels)
        rows = true.sum(axis=1)
        accuracy = ratio(right.sum(axis=1), rows, empty=math.nan)
        covariance = right.sum(axis=1) * rows - (predicted * true).sum(axis=1)
        spread = np.sqrt(rows**2 - (predicted**2).sum(axis=1)) * np.sqrt(rows**2 - (true**2).sum(axis=1))
        return {
            "accuracy": accuracy,
            "f1_macro": mean_f1(right, predicted, true, predicted + true > 0),
            "f1_micro": accuracy,  # a row has one label: a wrong one is a false positive and a false negative
            "f1_weighted": mean_f1(right, predicted, true, true),
            "mcc": ratio(covariance, spread),
        }

    def disagreements(self, prediction: Any, reference: Any, labels: Sequence[str] | None = None) -> list[Disagreement]:
        return [(reference, prediction)] if prediction != reference else []


class MultiLabelMetric(TaskMetric):
    """F1 (micro, macro over labels) and subset accuracy of rows of 0 and 1, as scikit-learn defines them.

    A reference of -1 is unknown: that label of that row counts nowhere. Labels that no row knows are left out of the
    macro mean, rows without a known label out of the subset accuracy.
    """

    name = "multi_label"
    keys = ("f1_micro", "f1_macro", "subset_accuracy")
    primary = "f1_micro"
    row_features = (List(Value("int64")), List(Value("int64")))

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        predicted = label_flags(predictions, "predictions", (0, 1))
        true = label_flags(references, "references", (0, 1, -1))
        if predicted.shape != true.shape:
            raise DataError(f"{predicted.shape[1]} labels per prediction, {true.shape[1]} per reference")
        known = true >= 0
        flags = (known & (predicted == 1) & (true == 1), known & (predicted == 1), known & (true == 1), known)
        any_known = known.any(axis=1)
        exact = any_known & ((predicted == true) | ~known).all(axis=1)
        return np.column_stack((*flags, any_known, exact)).astype(np.float64)

    def from_sums(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        right, predicted, true, known = per_label(sums[:, :-2], 4)  # each (resamples, labels)
        rows, exact = sums[:, -2], sums[:, -1]
        micro = ratio(2 * right.sum(axis=1), (predicted + true).sum(axis=1))
        return {
            "f1_micro": np.where(rows > 0, micro, math.nan),
            "f1_macro": mean_f1(right, predicted, true, known > 0),
            "subset_accuracy": ratio(exact, rows, empty=math.nan),
        }

    def disagreements(self, prediction: Any, reference: Any, labels: Sequence[str] | None = None) -> list[Disagreement]:
        names = labels or [str(index) for index in range(len(reference))]
        return [
            (name, None) if true else (None, name)
            for name, predicted, true in zip(names, prediction, reference, strict=True)
            if true >= 0 and predicted != true
        ]

    def readable(self, value: Any, labels: Sequence[str] | None = None) -> Any:
        """Return the labels present; where some are unknown, a mapping from each known label to its truth."""
        flags = list(zip(labels or map(str, range(len(value))), value, strict=True))
        if any(flag < 0 for _, flag in flags):
            return {label: bool(flag) for label, flag in flags if flag >= 0}
        return [label for label, flag in flags if flag]


class RegressionMetric(TaskMetric):
    """Pearson's and Spearman's correlation and the root mean squared error, in the unit of the references.

    Correlations are NaN where predictions or references are all the same; every value is NaN where a number is not
    finite.
    """

    name = "regression"
    keys = ("pearson", "spearman", "rmse")
    primary = "spearman"
    row_features = (Value("float64"), Value("float64"))

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        try:
            return np.column_stack((np.asarray(predictions, np.float64), np.asarray(references, np.float64)))
        except (TypeError, ValueError) as error:
            raise DataError(f"a number was expected: {error}", mend="give one number per row") from None

    def scores(self, statistics: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        if not np.isfinite(statistics).all():
            return {key: np.full(len(weights), math.nan) for key in self.keys}
        predicted, true = statistics.T
        predicted_ranks, true_ranks = average_ranks(predicted, weights), average_ranks(true, weights)
        spearman = correlation(predicted_ranks, true_ranks, weights)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = (weights * (predicted - true) ** 2).sum(axis=1)
            # Ranks are exact, so they tell equal numbers from numbers that differ by rounding alone.
            pearson = np.where(np.isnan(spearman), math.nan, correlation(predicted, true, weights))
        return {"pearson": pearson, "spearman": spearman, "rmse": np.sqrt(squares / weights.sum(axis=1))}

    def disagreements(self, prediction: Any, reference: Any, labels: Sequence[str] | None = None) -> list[Disagreement]:
        return []

    def error(self, prediction: Any, reference: Any) -> float:
        difference = abs(float(prediction) - float(reference))
        return math.inf if math.isnan(difference) else difference


class SpansMetric(TaskMetric):
    """Precision, recall and F1 over spans of BIO or IOBES tags, as seqeval defines them (micro); 0 where undefined.

    Without a scheme spans are read leniently, as conlleval does; with one, as seqeval's strict mode does. A reference
    of `None` is a word without a label: it is dropped on both sides. A predicted `_` (a word the model did not see)
    counts as `O`.

    Source: Ramshaw and Marcus, Text chunking using transformation-based learning, 1995; https://github.com/chakki-works/seqeval.
    """

    name = "spans"
    keys = ("precision", "recall", "f1")
    primary = "f1"
    row_features = (List(Value("string")), List(Value("string")))
    schemes = SCHEMES

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        read = span_reader(self.scheme)
        counts = np.zeros((len(references), 4))
        for index, row in enumerate(zip(predictions, references, strict=True)):
            predicted_tags, true_tags = labelled_words(*row, where=f"row {index}")
            predicted, true = (read(tags, f"row {index}") for tags in (predicted_tags, true_tags))
            counts[index] = len(predicted & true), len(predicted), len(true), len(true_tags)
        return counts

    def from_sums(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        right, predicted, true, words = sums.T
        scores = {
            "precision": ratio(right, predicted),
            "recall": ratio(right, true),
            "f1": ratio(2 * right, predicted + true),
        }
        return {key: np.where(words > 0, score, math.nan) for key, score in scores.items()}

    def disagreements(self, prediction: Any, reference: Any, labels: Sequence[str] | None = None) -> list[Disagreement]:
        return word_disagreements(prediction, reference)

    def error(self, prediction: Any, reference: Any) -> float:
        """Return the number of spans that are missed or wrongly predicted."""
        read = span_reader(self.scheme)
        predicted_tags, true_tags = labelled_words(prediction, reference)
        return float(len(read(predicted_tags, None) ^ read(true_tags, None)))


class TagsMetric(TaskMetric):
    """Accuracy and macro F1 over all words of plain tags, as scikit-learn defines them.

    A reference of `None` is a word without a label: it is dropped on both sides.
    """

    name = "tags"
    keys = ("accuracy", "f1_macro")
    primary = "accuracy"
    row_features = (List(Value("string")), List(Value("string")))

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        pairs = enumerate(zip(predictions, references, strict=True))
        rows = [labelled_words(*row, where=f"row {index}") for index, row in pairs]
        return label_counts([predicted for predicted, _ in rows], [true for _, true in rows])

    def from_sums(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        right, predicted, true = per_label(sums, 3)  # each (resamples, labels)
        return {
            "accuracy": ratio(right.sum(axis=1), true.sum(axis=1), empty=math.nan),
            "f1_macro": mean_f1(right, predicted, true, predicted + true > 0),
        }

    def disagreements(self, prediction: Any, reference: Any, labels: Sequence[str] | None = None) -> list[Disagreement]:
        return word_disagreements(prediction, reference)


METRICS: dict[str, type[TaskMetric]] = {
    metric.name: metric
    for metric in (
        ClassificationMetric,
        MultiLabelMetric,
        RegressionMetric,
        SpansMetric,
        TagsMetric,
        OrdinalMetric,
        AnswersMetric,
        MaskedTokensMetric,
        ChoicesMetric,
    )
}


def load_metric(name: str, *, scheme: str | None = None) -> TaskMetric:
    """Make the metric of that name; needs no network.

    Args:
        name: a key of `METRICS`, as `TaskHead.metric_name` gives it.
        scheme: `"IOB2"` or `"IOBES"` for strict spans.

    Returns:
        A metric without rows.

    Raises:
        SpecError: there is no metric of that name, or it has no such scheme.

    Example:
        >>> scores = load_metric("spans").compute(predictions=[["B-city", "O"]], references=[["B-city", "B-day"]])
        >>> scores["precision"], scores["recall"]
        (1.0, 0.5)
    """
    if name not in METRICS:
        raise SpecError(f"{name!r} is not a metric", mend=f"use one of {one_of(METRICS)}")
    return METRICS[name](scheme=scheme)


def average(results: Mapping[str, Mapping[str, float]], primaries: Mapping[str, str]) -> float:
    """Return the mean of the tasks' primary values; NaN counts as 0, so that a broken task cannot raise the mean.

    Args:
        results: per task the values of its metric.
        primaries: per task the key of its primary value; tasks that are not in `results` are ignored.

    Returns:
        The mean, in the range of the primary values.

    Raises:
        DataError: there is no task, or a task has no primary value.

    Example:
        >>> average({"topic": {"accuracy": 0.9}, "names": {"f1": 0.7}}, {"topic": "accuracy", "names": "f1"})
        0.8
    """
    if not results:
        raise DataError("there is no task to average over", mend="evaluate at least one task")
    values: list[float] = []
    for task, scores in results.items():
        key = primaries.get(task)
        if key is None or key not in scores:
            raise DataError(f"the primary value {key!r} is missing", where=f"task {task!r}", mend="name one it has")
        values.append(0.0 if math.isnan(scores[key]) else float(scores[key]))
    return math.fsum(values) / len(values)
