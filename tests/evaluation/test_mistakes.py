from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics

from hf_mtl.errors import SpecError
from hf_mtl.evaluation.metrics import METRICS, load_metric
from hf_mtl.evaluation.mistakes import Judged, mistakes

RIGHT_AND_WRONG: dict[str, tuple[list[Any], list[Any]]] = {
    # Predictions and references; those at even positions are right.
    "classification": (["a", "b", "b", "a"], ["a", "a", "b", "b"]),
    "multi_label": ([[1, 0], [1, 0], [1, 1], [0, 0]], [[1, 0], [0, 0], [1, -1], [-1, 1]]),
    "regression": ([1.0, 2.0, 3.0, 4.0], [1.0, 2.5, 3.0, 3.0]),
    "answers": ([["new york"], ["oslo"], [], ["rome"]], [["the New York", "NY"], ["rome"], [], []]),
    "ordinal": ([1, 2, 0, 3], [1, 1, 0, 0]),
    "choices": ([1, 2, 0, 3], [1, 1, 0, 0]),
    "spans": (
        [["B-x", "O"], ["B-x", "I-x"], ["I-x", "B-y"], ["O", "O"]],
        [["B-x", "O"], ["B-x", "O"], ["B-x", None], ["B-x", "O"]],
    ),
    "masked_tokens": ([[7, 3], [1], [2], [5, 6]], [[7, 3], [2], [2], [6, 6]]),
    "tags": (
        [["N", "V"], ["N", "N"], ["V", "N"], ["V"]],
        [["N", "V"], ["N", "V"], [None, "N"], ["N"]],
    ),
}
every_metric = pytest.mark.parametrize("name", METRICS)


def judged(predictions: list[Any], references: list[Any], confidences: list[float] | None = None) -> list[Judged]:
    confidences = confidences or [0.5] * len(references)
    return [
        Judged(row=index + 1, text=f"text {index + 1}", prediction=prediction, reference=reference, confidence=sure)
        for index, (prediction, reference, sure) in enumerate(zip(predictions, references, confidences, strict=True))
    ]


def listed(found: dict[str, list[dict[str, Any]]]) -> list[int]:
    return [row["row"] for row in found["mistakes"]]


def counts(found: dict[str, list[dict[str, Any]]]) -> dict[tuple[Any, Any], int]:
    return {(entry["reference"], entry["prediction"]): entry["count"] for entry in found["confusions"]}


# ---------------------------------------------------------------------- what holds for every metric


def test_every_metric_has_examples() -> None:
    assert set(RIGHT_AND_WRONG) == set(METRICS)


@every_metric
def test_wrong_rows_are_listed_and_right_ones_are_not(name: str) -> None:
    found = mistakes(load_metric(name), judged(*RIGHT_AND_WRONG[name]))
    assert sorted(listed(found)) == [2, 4]


@every_metric
def test_the_most_confident_mistakes_come_first(name: str) -> None:
    rows = judged(*RIGHT_AND_WRONG[name])
    for order, confidences in (([2, 4], [1.0, 0.9, 1.0, 0.3]), ([4, 2], [1.0, 0.3, 1.0, 0.9])):
        rows = judged(*RIGHT_AND_WRONG[name], confidences)
        assert listed(mistakes(load_metric(name), rows)) == order
        assert listed(mistakes(load_metric(name), rows[::-1])) == order
        assert listed(mistakes(load_metric(name), rows, limit=1)) == order[:1]


@every_metric
def test_the_limit_leaves_the_confusions_whole(name: str) -> None:
    rows = judged(*RIGHT_AND_WRONG[name])
    none, all_rows = mistakes(load_metric(name), rows, limit=0), mistakes(load_metric(name), rows)
    assert none["mistakes"] == []
    assert none["confusions"] == all_rows["confusions"]
    assert bool(all_rows["confusions"]) == (name not in ("regression", "answers", "masked_tokens"))


@every_metric
def test_the_result_is_plain_json(name: str) -> None:
    found = mistakes(load_metric(name), judged(*RIGHT_AND_WRONG[name]))
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"mistakes", "confusions"}
    assert {key for row in found["mistakes"] for key in row} == {
        "row",
        "text",
        "prediction",
        "reference",
        "confidence",
    }


@every_metric
def test_right_predictions_leave_nothing_to_list(name: str) -> None:
    rows = judged(*(side[::2] for side in RIGHT_AND_WRONG[name]))
    assert mistakes(load_metric(name), rows)["mistakes"] == []
    assert mistakes(load_metric(name), []) == {"mistakes": [], "confusions": []}


# ---------------------------------------------------------------------- each kind of task


def test_label_confusions_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    names = ["art", "law", "sport"]
    references, predictions = ([names[i] for i in rng.integers(3, size=80)] for _ in range(2))
    found = mistakes(load_metric("classification"), judged(predictions, references))
    matrix = sklearn.metrics.confusion_matrix(references, predictions, labels=names)
    expected = {(names[i], names[j]): matrix[i, j] for i in range(3) for j in range(3) if i != j}
    assert counts(found) == expected
    frequencies = [entry["count"] for entry in found["confusions"]]
    assert frequencies == sorted(frequencies, reverse=True)
    assert len(found["mistakes"]) == 50 < sum(frequencies)


@pytest.mark.parametrize("name", ["spans", "tags"])
def test_word_confusions_leave_unlabelled_words_out(name: str) -> None:
    predictions = [["B-x", "O", "O"], ["O", "B-x"]]
    references: list[Any] = [["O", None, "B-x"], ["B-x", "B-x"]]
    found = mistakes(load_metric(name), judged(predictions, references))
    assert found["confusions"] == [
        {"reference": "B-x", "prediction": "O", "count": 2},
        {"reference": "O", "prediction": "B-x", "count": 1},
    ]


def test_spans_are_wrong_as_their_scheme_reads_them() -> None:
    rows = judged([["I-x", "O"]], [["B-x", "O"]])
    assert listed(mistakes(load_metric("spans"), rows)) == []
    assert listed(mistakes(load_metric("spans", scheme="IOB2"), rows)) == [1]


def test_span_errors_count_missed_and_spurious_spans() -> None:
    metric = load_metric("spans")
    assert metric.error(["B-x", "I-x", "B-y"], ["B-x", "O", "B-y"]) == 2.0
    assert metric.error(["O", "O", "B-y"], ["B-x", "O", "B-y"]) == 1.0


def test_multi_label_counts_false_positives_and_negatives_per_label() -> None:
    rng = np.random.default_rng(0)
    predictions, references = (rng.integers(2, size=(60, 3)) for _ in range(2))
    labels = ["joy", "anger", "fear"]
    found = mistakes(load_metric("multi_label"), judged(predictions.tolist(), references.tolist()), labels=labels)
    matrices = sklearn.metrics.multilabel_confusion_matrix(references, predictions)
    expected = {(None, label): matrix[0, 1] for label, matrix in zip(labels, matrices, strict=True)}
    expected |= {(label, None): matrix[1, 0] for label, matrix in zip(labels, matrices, strict=True)}
    assert counts(found) == expected


def test_multi_label_rows_are_shown_with_their_label_names() -> None:
    rows = judged([[1, 0, 1], [1, 1, 0]], [[0, 0, 1], [0, -1, 1]])
    found = mistakes(load_metric("multi_label"), rows, labels=["joy", "anger", "fear"])
    by_row = {row["row"]: row for row in found["mistakes"]}
    assert (by_row[1]["prediction"], by_row[1]["reference"]) == (["joy", "fear"], ["fear"])
    assert (by_row[2]["prediction"], by_row[2]["reference"]) == (["joy", "anger"], {"joy": False, "fear": True})
    assert listed(found) == [2, 1]  # equally confident: two wrong labels before one
    assert mistakes(load_metric("multi_label"), rows)["mistakes"][1]["prediction"] == ["0", "2"]


def test_regression_lists_the_largest_absolute_errors() -> None:
    rows = judged([1.0, 2.0, 3.0, math.nan], [1.5, -2.0, 2.0, 1.0], [1.0] * 4)
    assert listed(mistakes(load_metric("regression"), rows)) == [4, 2, 3, 1]


def test_a_confidence_that_is_nan_comes_last() -> None:
    rows = judged(["a", "a", "a"], ["b", "b", "b"], [math.nan, 0.1, 0.9])
    assert listed(mistakes(load_metric("classification"), rows)) == [3, 2, 1]


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(SpecError, match="limit is -1"):
        mistakes(load_metric("classification"), [], limit=-1)
