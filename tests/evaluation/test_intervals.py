from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hf_mtl.errors import DataError, SpecError
from hf_mtl.evaluation import intervals
from hf_mtl.evaluation.intervals import bootstrap_intervals, draw_weights, paired_differences, percentiles
from hf_mtl.evaluation.metrics import METRICS, load_metric

every_metric = pytest.mark.parametrize("name", METRICS)


def rows_of(name: str, rows: int = 60, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Right about 70 % of the time."""
    rng = np.random.default_rng(seed)
    if name == "regression":
        references = np.round(rng.normal(size=rows), 1)
        return np.round(references + rng.normal(size=rows), 1).tolist(), references.tolist()
    right = rng.random((rows, 4)) < 0.7
    if name == "answers":
        words = np.array(["new york", "oslo", "york", "rome"])[rng.integers(4, size=(2, rows))]
        return [[word] for word in np.where(right[:, 0], words[1], words[0])], [[word] for word in words[1]]
    if name == "ordinal":
        ranks = rng.integers(4, size=(2, rows))
        return np.where(right[:, 0], ranks[1], ranks[0]).tolist(), ranks[1].tolist()
    if name == "multi_label":
        truth = rng.integers(2, size=(rows, 4))
        return np.where(right, truth, 1 - truth).tolist(), np.where(rng.random((rows, 4)) < 0.1, -1, truth).tolist()
    labels = ["O", "B-day", "I-day", "B-city"]
    truth, guess = rng.integers(4, size=(rows, 4)), rng.integers(4, size=(rows, 4))
    tags = [[[labels[i] for i in row] for row in side] for side in (np.where(right, truth, guess), truth)]
    if name == "classification":
        return [row[0] for row in tags[0]], [row[0] for row in tags[1]]
    return tags[0], [[None, *row[1:]] if index % 5 == 0 else row for index, row in enumerate(tags[1])]


def repeated(values: list[Any], weights: np.ndarray) -> list[Any]:
    return [value for value, count in zip(values, weights, strict=True) for _ in range(int(count))]


@every_metric
def test_intervals_equal_scoring_every_resample_anew(name: str) -> None:
    predictions, references = rows_of(name)
    found = bootstrap_intervals(name, predictions, references, resamples=40, level=0.8, seed=3)
    weights = draw_weights(len(references), 40, np.random.default_rng(3))
    metric = load_metric(name)
    draws = [
        metric.compute(predictions=repeated(predictions, row), references=repeated(references, row)) for row in weights
    ]
    assert list(found) == list(metric.keys)
    for key, interval in found.items():
        values = [draw[key] for draw in draws if draw is not None]
        assert interval == pytest.approx(np.quantile(values, [0.1, 0.9]), abs=1e-12)
        assert interval[0] < interval[1]


@pytest.mark.parametrize("scheme", [None, "IOB2"])
def test_the_scheme_of_a_metric_is_heeded(scheme: str | None) -> None:
    predictions, references = rows_of("spans")
    by_name = bootstrap_intervals("spans", predictions, references, scheme=scheme, resamples=50)
    assert by_name == bootstrap_intervals(load_metric("spans", scheme=scheme), predictions, references, resamples=50)
    assert (by_name == bootstrap_intervals("spans", predictions, references, resamples=50)) == (scheme is None)


@every_metric
def test_weights_of_one_give_the_point_estimate(name: str) -> None:
    predictions, references = rows_of(name)
    metric = load_metric(name)
    scores = metric.scores(metric.statistics(predictions, references), np.ones((3, len(references))))
    point = metric.compute(predictions=predictions, references=references)
    assert point is not None
    for key, value in point.items():
        assert scores[key] == pytest.approx([value] * 3, abs=1e-12)


@every_metric
def test_intervals_hold_the_point_estimate(name: str) -> None:
    predictions, references = rows_of(name, rows=300)
    point = load_metric(name).compute(predictions=predictions, references=references)
    assert point is not None
    for key, (low, high) in bootstrap_intervals(name, predictions, references, resamples=300).items():
        assert low < point[key] < high


@every_metric
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(name: str) -> None:
    rows = rows_of(name)
    first = bootstrap_intervals(name, *rows, resamples=50, seed=1)
    assert first == bootstrap_intervals(name, *rows, resamples=50, seed=1)
    assert first != bootstrap_intervals(name, *rows, resamples=50, seed=2)


@every_metric
def test_chunks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(name)
    whole = bootstrap_intervals(name, *rows, resamples=50)
    monkeypatch.setattr(intervals, "CELLS_PER_CHUNK", 7 * 60)
    assert bootstrap_intervals(name, *rows, resamples=50) == whole
    monkeypatch.setattr(intervals, "CELLS_PER_CHUNK", 1)  # fewer cells than rows: one resample at a time
    assert bootstrap_intervals(name, *rows, resamples=50) == whole


@every_metric
def test_rows_are_read_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = METRICS[name].statistics

    def counted(self: Any, predictions: Any, references: Any) -> np.ndarray:
        calls.append(len(references))
        return original(self, predictions, references)

    monkeypatch.setattr(METRICS[name], "statistics", counted)
    bootstrap_intervals(name, *rows_of(name), resamples=200)
    assert calls == [60]


def test_a_higher_level_widens_and_more_rows_narrow_an_interval() -> None:
    def width(rows: int, level: float) -> float:
        low, high = bootstrap_intervals("classification", *rows_of("classification", rows), level=level)["accuracy"]
        return high - low

    assert width(100, 0.5) < width(100, 0.95)
    assert width(1600, 0.95) == pytest.approx(width(100, 0.95) / 4, rel=0.35)


def test_intervals_cover_the_truth_about_as_often_as_their_level_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        predictions = np.where(rng.random(200) < 0.7, "right", "wrong").tolist()
        low, high = bootstrap_intervals(
            "classification", predictions, ["right"] * 200, resamples=200, level=0.9, seed=int(rng.integers(1 << 30))
        )["accuracy"]
        covered += low <= 0.7 <= high
    assert 0.83 <= covered / 200 <= 0.96


def test_perfect_predictions_leave_no_doubt() -> None:
    _, references = rows_of("classification")
    found = bootstrap_intervals("classification", references, references, resamples=50)
    assert all(interval == pytest.approx((1.0, 1.0)) for interval in found.values())


@every_metric
def test_no_rows_give_nan(name: str) -> None:
    found = bootstrap_intervals(name, [], [])
    assert list(found) == list(METRICS[name].keys)
    assert all(math.isnan(end) for interval in found.values() for end in interval)


def test_values_that_are_never_defined_have_no_interval() -> None:
    found = bootstrap_intervals("regression", [1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0], resamples=50)
    assert all(math.isnan(end) for key in ("pearson", "spearman") for end in found[key])
    assert found["rmse"][0] < found["rmse"][1]


def test_resamples_without_a_value_are_left_out() -> None:
    # Half of the resamples of two rows hold one row twice, and have no correlation.
    assert bootstrap_intervals("regression", [1.0, 2.0], [3.0, 5.0], resamples=50)["spearman"] == pytest.approx((1, 1))


def test_every_row_is_drawn_equally_often() -> None:
    weights = draw_weights(20, 5000, np.random.default_rng(0))
    assert (weights.sum(axis=1) == 20).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(20), abs=0.08)
    assert weights.var() == pytest.approx(1 - 1 / 20, abs=0.05)  # binomial: a row drawn 20 times with chance 1/20


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"resamples": 0}, "resamples is 0"),
        ({"level": 1.0}, "level is 1.0"),
        ({"level": 0.0}, "level is 0.0"),
        ({"scheme": "IOB2"}, "has no scheme 'IOB2'"),
    ],
)
def test_bad_arguments_are_refused(options: Any, problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        bootstrap_intervals("classification", ["a"], ["a"], **options)


def test_a_scheme_beside_a_metric_is_refused() -> None:
    with pytest.raises(SpecError, match="name it where the metric is made"):
        bootstrap_intervals(load_metric("spans"), [["O"]], [["O"]], scheme="IOB2")


def test_differing_numbers_of_rows_are_refused() -> None:
    with pytest.raises(DataError, match="1 predictions for 2 references"):
        bootstrap_intervals("classification", ["a"], ["a", "b"])


# ---------------------------------------------------------------------- pairs


def statistics_of(name: str, seeds: tuple[int, ...]) -> list[np.ndarray]:
    """Of several models' answers to the same rows."""
    _, references = rows_of(name)
    return [load_metric(name).statistics(answers(name, seed), references) for seed in seeds]


def answers(name: str, seed: int) -> list[Any]:
    """Six in ten answers are right, the others those of other rows."""
    _, references = rows_of(name)
    known: dict[Any, Any] = {-1: 0, None: "O"}
    predictions = [row if not isinstance(row, list) else [known.get(tag, tag) for tag in row] for row in references]
    other = np.random.default_rng(seed)
    return [predictions[int(other.integers(len(predictions)))] if other.random() < 0.4 else own for own in predictions]


@every_metric
def test_paired_differences_equal_scoring_both_sides_on_every_resample_anew(name: str) -> None:
    metric = load_metric(name)
    _, references = rows_of(name)
    first, second = statistics_of(name, (1, 2)), statistics_of(name, (3,))
    found = paired_differences(metric, metric.primary, first, second, resamples=30, seed=5)
    wanted: list[float] = []
    for weights in draw_weights(len(references), 30, np.random.default_rng(5)):
        scores = [
            metric.compute(predictions=repeated(answers(name, seed), weights), references=repeated(references, weights))
            for seed in (1, 2, 3)
        ]
        one, two, other = ((score or {})[metric.primary] for score in scores)
        wanted.append(other - (one + two) / 2)
    assert found.tolist() == pytest.approx(wanted, abs=1e-12)
    assert len(set(wanted)) > 10


@every_metric
def test_a_model_does_not_differ_from_itself(name: str) -> None:
    metric = load_metric(name)
    (rows,) = statistics_of(name, (1,))
    assert not paired_differences(metric, metric.primary, [rows], [rows, rows], resamples=20).any()


def test_pairs_of_like_models_leave_less_doubt_than_two_intervals() -> None:
    """Models that err on the same rows: the rows drawn shift both scores alike."""
    references = ["a"] * 400
    first = ["b"] * 100 + ["a"] * 300
    second = ["b"] * 90 + ["a"] * 310
    metric = load_metric("classification")
    draws = paired_differences(
        metric, "accuracy", [metric.statistics(first, references)], [metric.statistics(second, references)]
    )
    low, high = percentiles(draws)
    assert 0 < low < 0.025 < high
    widths = [bound[1] - bound[0] for bound in (bootstrap_intervals(metric, first, references)["accuracy"],)]
    assert high - low < widths[0] / 2


@every_metric
def test_paired_draws_follow_the_seed_and_no_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = load_metric(name)
    first, second = statistics_of(name, (1,)), statistics_of(name, (2,))

    def draws(seed: int | tuple[int, ...]) -> list[float]:
        return paired_differences(metric, metric.primary, first, second, resamples=20, seed=seed).tolist()

    whole = draws(1)
    assert draws(2) != whole
    assert draws((1, 2)) == draws((1, 2))
    monkeypatch.setattr(intervals, "CELLS_PER_CHUNK", 7 * 60)
    assert draws(1) == whole


def test_pairs_of_other_rows_are_refused() -> None:
    metric = load_metric("classification")
    some, others = (metric.statistics(["a"] * rows, ["a"] * rows) for rows in (3, 4))
    for first, second in (([some], [others]), ([some], []), ([], [])):
        with pytest.raises(DataError, match="same rows"):
            paired_differences(metric, "accuracy", first, second)
    with pytest.raises(SpecError, match="resamples is 0"):
        paired_differences(metric, "accuracy", [some], [some], resamples=0)


def test_percentiles_leave_out_what_is_not_defined() -> None:
    assert percentiles(np.array([0.0, math.nan, 1.0]), 0.5) == (0.25, 0.75)
    assert all(math.isnan(bound) for bound in percentiles(np.array([math.nan])))
