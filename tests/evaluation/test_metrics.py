from __future__ import annotations

import math
import re
import socket
import string
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import seqeval.metrics
import seqeval.scheme
import sklearn.metrics
from scipy import stats

from hf_mtl.errors import DataError, SpecError
from hf_mtl.evaluation.metrics import METRICS, TaskMetric, average, load_metric

Rows = tuple[list[Any], list[Any]]
SPAN_TAGS = ["O", "O", "B-city", "I-city", "B-day", "I-day"]
IOBES_TAGS = [*SPAN_TAGS, "E-city", "S-city", "E-day", "S-day"]


def classification_rows(rng: np.random.Generator, rows: int, noise: float = 0.3) -> Rows:
    names = np.array(["sport", "world", "art", "law"])
    references = rng.integers(len(names), size=rows)
    predictions = np.where(rng.random(rows) < noise, rng.integers(len(names), size=rows), references)
    return names[predictions].tolist(), names[references].tolist()


def multi_label_rows(rng: np.random.Generator, rows: int, noise: float = 0.3, unknown: float = 0.2) -> Rows:
    truth = (rng.random((rows, 5)) < 0.4).astype(int)
    predictions = np.where(rng.random(truth.shape) < noise, 1 - truth, truth)
    return predictions.tolist(), np.where(rng.random(truth.shape) < unknown, -1, truth).tolist()


def regression_rows(rng: np.random.Generator, rows: int, noise: float = 0.3) -> Rows:
    references = np.round(rng.normal(size=rows), 1)  # rounded, so that there are ties
    return np.round(references + noise * rng.normal(size=rows), 1).tolist(), references.tolist()


def tagged_rows(rng: np.random.Generator, rows: int, noise: float, tags: list[str], missing: float) -> Rows:
    predictions: list[Any] = []
    references: list[Any] = []
    for length in rng.integers(0, 12, size=rows):
        truth = [tags[index] for index in rng.integers(len(tags), size=length)]
        predictions.append([tags[rng.integers(len(tags))] if rng.random() < noise else tag for tag in truth])
        references.append([None if rng.random() < missing else tag for tag in truth])
    return predictions, references


def span_rows(rng: np.random.Generator, rows: int, noise: float = 0.3, missing: float = 0.1) -> Rows:
    return tagged_rows(rng, rows, noise, SPAN_TAGS, missing)


def tag_rows(rng: np.random.Generator, rows: int, noise: float = 0.3, missing: float = 0.1) -> Rows:
    return tagged_rows(rng, rows, noise, ["NOUN", "VERB", "ADJ"], missing)


def rank_rows(rng: np.random.Generator, rows: int, noise: float = 0.3) -> Rows:
    references = rng.integers(5, size=rows)
    return np.where(rng.random(rows) < noise, rng.integers(5, size=rows), references).tolist(), references.tolist()


def answer_rows(rng: np.random.Generator, rows: int, noise: float = 0.3) -> Rows:
    words = ["The", "new", "york", "Times", "a", "jazz", "song!", "of"]
    draw = lambda: " ".join([*rng.choice(words, size=rng.integers(0, 4)), "city"])  # noqa: E731
    references = [[draw() for _ in range(rng.integers(0, 3))] for _ in range(rows)]
    wrong = [[[], [draw()], own[:1]][rng.integers(3)] for own in references]
    return [bad if rng.random() < noise else own[:1] for bad, own in zip(wrong, references, strict=True)], references


def token_rows(rng: np.random.Generator, rows: int, noise: float = 0.3) -> Rows:
    references = [rng.integers(9, size=size).tolist() for size in rng.integers(1, 6, size=rows)]
    return [[int(rng.integers(9)) if rng.random() < noise else own for own in row] for row in references], references


RANDOM_ROWS: dict[str, Callable[..., Rows]] = {
    "classification": classification_rows,
    "multi_label": multi_label_rows,
    "regression": regression_rows,
    "ordinal": rank_rows,
    "answers": answer_rows,
    "choices": rank_rows,
    "spans": span_rows,
    "tags": tag_rows,
    "masked_tokens": token_rows,
}
every_metric = pytest.mark.parametrize("name", METRICS)
seeds = pytest.mark.parametrize("seed", range(5))


def random_rows(name: str, rows: int = 40, seed: int = 0, **options: Any) -> Rows:
    return RANDOM_ROWS[name](np.random.default_rng(seed), rows, **options)


def compute(name: str, predictions: Any, references: Any, scheme: str | None = None) -> dict[str, float]:
    scores = load_metric(name, scheme=scheme).compute(predictions=predictions, references=references)
    assert scores is not None
    return scores


# ---------------------------------------------------------------------- what holds for every metric


def test_every_metric_has_random_rows() -> None:
    assert set(RANDOM_ROWS) == set(METRICS)


@every_metric
def test_keys_are_those_promised(name: str) -> None:
    metric = load_metric(name)
    scores = metric.compute(predictions=random_rows(name)[0], references=random_rows(name)[1])
    assert scores is not None
    assert tuple(scores) == metric.keys
    assert metric.primary in metric.keys
    assert metric.name == name
    assert all(type(value) is float for value in scores.values())


@every_metric
def test_perfect_predictions_score_best_and_noise_lowers_the_primary_value(name: str) -> None:
    perfect = compute(name, *random_rows(name, noise=0.0))
    noisy = compute(name, *random_rows(name, noise=0.5))
    assert perfect == pytest.approx({key: 0.0 if key in ("rmse", "mae") else 1.0 for key in perfect})
    assert noisy[METRICS[name].primary] < 0.95


@every_metric
def test_adding_rows_equals_computing_them_at_once(name: str) -> None:
    predictions, references = random_rows(name)
    expected = compute(name, predictions, references)
    metric = load_metric(name)
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert len(metric) == len(references)
    assert metric.compute() == expected
    for start in range(0, len(references), 7):
        metric.add_batch(predictions=predictions[start : start + 7], references=references[start : start + 7])
    assert metric.compute() == expected
    metric.add_batch(predictions=predictions[:7], references=references[:7])
    assert metric.compute(predictions=predictions[7:], references=references[7:]) == expected


@every_metric
def test_a_metric_forgets_its_rows_after_compute(name: str) -> None:
    metric = load_metric(name)
    predictions, references = random_rows(name)
    metric.add_batch(predictions=predictions, references=references)
    metric.compute()
    assert metric.compute(predictions=predictions[:5], references=references[:5]) == pytest.approx(
        compute(name, predictions[:5], references[:5]), nan_ok=True
    )
    with pytest.raises(DataError, match="was handed no rows"):
        metric.compute()


@every_metric
def test_row_order_does_not_matter(name: str) -> None:
    predictions, references = random_rows(name)
    order = np.random.default_rng(1).permutation(len(references))
    shuffled = compute(name, [predictions[i] for i in order], [references[i] for i in order])
    assert shuffled == pytest.approx(compute(name, predictions, references), abs=1e-12)


@every_metric
def test_every_row_twice_scores_the_same(name: str) -> None:
    predictions, references = random_rows(name)
    twice = compute(name, predictions * 2, references * 2)
    assert twice == pytest.approx(compute(name, predictions, references), abs=1e-12)


@every_metric
def test_no_rows_score_nan(name: str) -> None:
    assert all(math.isnan(value) for value in compute(name, [], []).values())
    metric = load_metric(name)
    metric.add_batch(predictions=[], references=[])
    scores = metric.compute()
    assert scores is not None
    assert all(math.isnan(value) for value in scores.values())


@every_metric
def test_differing_numbers_of_rows_are_refused(name: str) -> None:
    predictions, references = random_rows(name)
    metric = load_metric(name)
    for call in (metric.compute, metric.add_batch):
        with pytest.raises(DataError, match="39 predictions for 40 references"):
            call(predictions=predictions[1:], references=references)
        with pytest.raises(DataError, match="references are missing"):
            call(predictions=predictions)


@every_metric
def test_unknown_options_are_refused(name: str) -> None:
    predictions, references = random_rows(name)
    with pytest.raises(SpecError, match="no option 'average'"):
        load_metric(name).compute(predictions=predictions, references=references, average="macro")


@every_metric
def test_neither_network_nor_files_are_needed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    cache = tmp_path / "cache"
    metric = METRICS[name](cache_dir=str(cache))
    predictions, references = random_rows(name)
    metric.add_batch(predictions=predictions, references=references)
    assert metric.compute() == compute(name, predictions, references)
    assert not cache.exists()


@every_metric
def test_metrics_of_several_processes_write_files(name: str, tmp_path: Path) -> None:
    metric = METRICS[name](cache_dir=str(tmp_path), num_process=2, process_id=0)
    assert not metric.keep_in_memory
    assert Path(metric.data_dir).is_dir()


def test_metrics_combine() -> None:
    predictions, references = random_rows("tags", missing=0.0)
    combined = evaluate.combine([load_metric("tags"), load_metric("spans")], force_prefix=True)
    spans = [["B-" + tag for tag in row] for row in predictions], [["B-" + tag for tag in row] for row in references]
    scores = combined.compute(predictions=spans[0], references=spans[1])
    assert {key: scores[f"tags_{key}"] for key in METRICS["tags"].keys} == compute("tags", *spans)
    assert {key: scores[f"spans_{key}"] for key in METRICS["spans"].keys} == compute("spans", *spans)


def test_unknown_names_and_schemes_are_refused() -> None:
    with pytest.raises(SpecError, match="'accuracy' is not a metric; use one of 'classification', 'multi_label'"):
        load_metric("accuracy")
    with pytest.raises(SpecError, match="'classification' has no scheme 'IOB2'; use one of None"):
        load_metric("classification", scheme="IOB2")
    with pytest.raises(SpecError, match="'spans' has no scheme 'IOB1'; use one of 'IOB2', 'IOBES', None"):
        load_metric("spans", scheme="IOB1")


# ---------------------------------------------------------------------- masked tokens


def test_accuracy_of_masked_tokens_is_that_of_scikit_learn_over_all_of_them() -> None:
    predictions, references = random_rows("masked_tokens")
    wanted = sklearn.metrics.accuracy_score(
        *([token for row in side for token in row] for side in (references, predictions))
    )
    assert compute("masked_tokens", predictions, references) == {"accuracy": pytest.approx(wanted)}


@pytest.mark.parametrize(("prediction", "message"), [([1], "1 tokens for 2 masks"), ("ab", "no list of token ids")])
def test_tokens_that_are_not_those_of_the_masks_are_refused(prediction: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"row 0: .*{message}; give"):
        compute("masked_tokens", [prediction], [[1, 2]])


# ---------------------------------------------------------------------- answers


def official_answers(predictions: Any, references: Any) -> dict[str, float]:
    """The functions of SQuAD 2.0's evaluation script, in their own order of steps."""

    def normalize(text: str) -> str:
        text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    def f1(gold: str, found: str) -> float:
        gold_words, found_words = normalize(gold).split(), normalize(found).split()
        same = sum((Counter(gold_words) & Counter(found_words)).values())
        if not gold_words or not found_words:
            return float(gold_words == found_words)
        if same == 0:
            return 0.0
        precision, recall = same / len(found_words), same / len(gold_words)
        return 2 * precision * recall / (precision + recall)

    scores: list[tuple[float, float]] = []
    for found, gold in zip(predictions, references, strict=True):
        text, golds = (found or [""])[0], [own for own in gold if normalize(own)] or [""]
        exact = max(float(normalize(own) == normalize(text)) for own in golds)
        scores.append((max(f1(own, text) for own in golds), exact))
    return dict(zip(("f1", "exact_match"), np.mean(scores, axis=0).tolist(), strict=True))


@seeds
@pytest.mark.parametrize("noise", [0.0, 0.6, 1.0])
def test_answers_are_scored_as_squad_does(seed: int, noise: float) -> None:
    rows = random_rows("answers", 60, seed, noise=noise)
    assert compute("answers", *rows) == pytest.approx(official_answers(*rows), abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "reference", "f1", "exact"),
    [
        (["the New York"], ["new york!"], 1.0, 1.0),
        (["York"], ["New York", "a city"], 2 / 3, 0.0),
        ([], [], 1.0, 1.0),
        ([], ["York"], 0.0, 0.0),
        (["York"], [], 0.0, 0.0),
        (["york york"], ["york new"], 0.5, 0.0),
    ],
)
def test_answers_by_hand(prediction: list[str], reference: list[str], f1: float, exact: float) -> None:
    assert compute("answers", [prediction], [reference]) == pytest.approx({"f1": f1, "exact_match": exact})


def test_answers_that_are_no_lists_are_refused() -> None:
    with pytest.raises(DataError, match="row 0: 'York' is no list of texts"):
        compute("answers", ["York"], [["York"]])


# ---------------------------------------------------------------------- ranks


@seeds
@pytest.mark.parametrize(("rows", "noise"), [(2, 1.0), (5, 0.8), (200, 0.6), (50, 1.0)])
def test_ranks_are_scored_as_scikit_learn_does(seed: int, rows: int, noise: float) -> None:
    predictions, references = random_rows("ordinal", rows, seed, noise=noise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where all ranks are the same
        kappa = sklearn.metrics.cohen_kappa_score(references, predictions, weights="quadratic", labels=range(5))
    expected = {
        "qwk": kappa,
        "mae": sklearn.metrics.mean_absolute_error(references, predictions),
        "accuracy": sklearn.metrics.accuracy_score(references, predictions),
    }
    assert compute("ordinal", predictions, references) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_ranks_that_are_all_the_same_have_no_kappa() -> None:
    scores = compute("ordinal", [2, 2], [2, 2])
    assert math.isnan(scores["qwk"])
    assert (scores["mae"], scores["accuracy"]) == (0.0, 1.0)


@pytest.mark.parametrize("value", [1.5, None, "a", [1]])
def test_ranks_that_are_no_whole_numbers_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match="a rank is not a whole number"):
        compute("ordinal", [value], [1])


# ---------------------------------------------------------------------- classification


def sklearn_classification(predictions: list[str], references: list[str]) -> dict[str, float]:
    f1 = {
        f"f1_{mean}": sklearn.metrics.f1_score(references, predictions, average=mean, zero_division=0)
        for mean in ("macro", "micro", "weighted")
    }
    return {
        "accuracy": sklearn.metrics.accuracy_score(references, predictions),
        **f1,
        "mcc": sklearn.metrics.matthews_corrcoef(references, predictions),
    }


@seeds
@pytest.mark.parametrize("rows", [2, 5, 200])
def test_classification_equals_scikit_learn(seed: int, rows: int) -> None:
    predictions, references = random_rows("classification", rows, seed, noise=0.6)
    expected = sklearn_classification(predictions, references)
    assert compute("classification", predictions, references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        (["a", "a", "a"], ["a", "a", "b"]),  # constant predictions: mcc is 0
        (["a", "b", "c"], ["a", "a", "a"]),  # labels that are never true
        (["c", "c"], ["a", "b"]),  # nothing right
    ],
)
def test_classification_equals_scikit_learn_at_the_edges(predictions: list[str], references: list[str]) -> None:
    expected = sklearn_classification(predictions, references)
    assert compute("classification", predictions, references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("value", [1, None, ["a"]])
def test_labels_that_are_not_text_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match="is not a label name"):
        compute("classification", [value], ["a"])


# ---------------------------------------------------------------------- multi-label


@seeds
def test_multi_label_equals_scikit_learn_where_everything_is_known(seed: int) -> None:
    predictions, references = random_rows("multi_label", 30, seed, unknown=0.0)
    predictions, references = ([[*row, 0] for row in side] for side in (predictions, references))  # a label without any
    expected = {
        **{
            f"f1_{mean}": sklearn.metrics.f1_score(references, predictions, average=mean, zero_division=0)
            for mean in ("micro", "macro")
        },
        "subset_accuracy": sklearn.metrics.accuracy_score(references, predictions),
    }
    assert compute("multi_label", predictions, references) == pytest.approx(expected, abs=1e-12)


@seeds
def test_unknown_labels_count_nowhere(seed: int) -> None:
    predictions, references = random_rows("multi_label", 30, seed, unknown=0.5)
    references = [[*row[:-1], -1] for row in references]  # nothing is known of the last label
    references[0] = [-1] * 5  # nor of the first row
    predicted, true = np.array(predictions), np.array(references)
    known = true >= 0
    f1s = [sklearn.metrics.f1_score(true[known[:, i], i], predicted[known[:, i], i], zero_division=0) for i in range(4)]
    exact = [(predicted[i][known[i]] == true[i][known[i]]).all() for i in range(30) if known[i].any()]
    expected = {
        "f1_micro": sklearn.metrics.f1_score(true[known], predicted[known]),
        "f1_macro": np.mean(f1s),
        "subset_accuracy": np.mean(exact),
    }
    assert compute("multi_label", predictions, references) == pytest.approx(expected, abs=1e-12)


def test_multi_label_rows_without_any_known_label_score_nan() -> None:
    assert all(math.isnan(value) for value in compute("multi_label", [[1, 0]], [[-1, -1]]).values())


@pytest.mark.parametrize(
    ("predictions", "references", "problem"),
    [
        ([[0, 1]], [[0, 2]], r"references\[0\]: 2 in a row"),
        ([[0, 1], [-1, 0]], [[0, 1], [0, 0]], r"predictions\[1\]: -1 in a row"),
        ([[0, 1], [0]], [[0, 1], [0, 0]], "predictions: the rows are not lists of equal length"),
        ([[0, 1]], [[0, 1, 1]], "2 labels per prediction, 3 per reference"),
        ([[0, None]], [[0, 1]], r"predictions\[0\]: None in a row"),
        ([["0", "1"]], [[0, 1]], r"predictions\[0\]: 0 in a row"),
        (["no"], [[0, 1]], "predictions: the rows are not lists"),
    ],
)
def test_bad_multi_label_rows_are_refused(predictions: Any, references: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        compute("multi_label", predictions, references)


# ---------------------------------------------------------------------- regression


@seeds
def test_regression_equals_scipy_and_scikit_learn(seed: int) -> None:
    predictions, references = random_rows("regression", 50, seed)
    expected = {
        "pearson": stats.pearsonr(predictions, references).statistic,
        "spearman": stats.spearmanr(predictions, references).statistic,
        "rmse": sklearn.metrics.root_mean_squared_error(references, predictions),
    }
    assert compute("regression", predictions, references) == pytest.approx(expected, abs=1e-12)


def test_a_monotone_relation_has_spearman_one_and_pearson_below() -> None:
    scores = compute("regression", [1.0, 8.0, 27.0, 64.0], [1.0, 2.0, 3.0, 4.0])
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["pearson"] < 0.99


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9 + 0.1])
def test_constant_predictions_have_no_correlation(constant: float) -> None:
    references = [0.1, 0.2, 0.7]
    for predictions, truth in (([constant] * 3, references), (references, [constant] * 3)):
        scores = compute("regression", predictions, truth)
        assert math.isnan(scores["pearson"])
        assert math.isnan(scores["spearman"])
        assert scores["rmse"] == pytest.approx(math.sqrt(np.mean((np.array(predictions) - truth) ** 2)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_score_nan(value: float) -> None:
    assert all(math.isnan(score) for score in compute("regression", [1.0, value, 2.0], [1.0, 2.0, 3.0]).values())


def test_predictions_far_from_zero_keep_their_correlation() -> None:
    predictions, references = random_rows("regression", 50)
    moved = compute("regression", [value * 1e-3 + 1e6 for value in predictions], references)
    assert moved["pearson"] == pytest.approx(compute("regression", predictions, references)["pearson"], abs=1e-6)


def test_values_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="a number was expected"):
        compute("regression", ["much"], [1.0])


# ---------------------------------------------------------------------- spans


def seqeval_scores(predictions: Any, references: Any, **options: Any) -> dict[str, float]:
    scores = {
        "precision": seqeval.metrics.precision_score,
        "recall": seqeval.metrics.recall_score,
        "f1": seqeval.metrics.f1_score,
    }
    return {key: score(references, predictions, zero_division=0, **options) for key, score in scores.items()}


@seeds
@pytest.mark.parametrize("tags", [SPAN_TAGS, IOBES_TAGS])
def test_lenient_spans_equal_seqeval(seed: int, tags: list[str]) -> None:
    rows = tagged_rows(np.random.default_rng(seed), 40, 0.3, tags, missing=0.0)
    expected = seqeval_scores(*rows)
    assert 0 < expected["f1"] < 1
    assert compute("spans", *rows) == pytest.approx(expected, abs=1e-12)


@seeds
@pytest.mark.parametrize(("scheme", "tags"), [("IOB2", SPAN_TAGS), ("IOBES", IOBES_TAGS)])
def test_strict_spans_equal_seqeval(seed: int, scheme: str, tags: list[str]) -> None:
    rows = tagged_rows(np.random.default_rng(seed), 60, 0.3, tags, missing=0.0)
    expected = seqeval_scores(*rows, mode="strict", scheme=getattr(seqeval.scheme, scheme))
    assert 0 < expected["f1"] < 1
    assert expected != seqeval_scores(*rows)
    assert compute("spans", *rows, scheme=scheme) == pytest.approx(expected, abs=1e-12)


def test_spans_of_known_rows() -> None:
    predictions = [["B-city", "I-city", "O", "B-day"], ["O", "I-day"]]
    references = [["B-city", "I-city", "O", "O"], ["B-day", "I-day"]]
    assert compute("spans", predictions, references) == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 0.4})


@pytest.mark.parametrize("scheme", [None, "IOB2", "IOBES"])
@pytest.mark.parametrize(("predicted", "true"), [("O", "O"), ("O", "B-day"), ("B-day", "O")])
def test_sides_without_spans_score_zero_without_a_warning(scheme: str | None, predicted: str, true: str) -> None:
    assert compute("spans", [[predicted, "O"]], [[true, "O"]], scheme) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def without_unlabelled(predictions: Any, references: Any) -> Rows:
    kept = [[tag is not None for tag in row] for row in references]
    return tuple(  # type: ignore[return-value]
        [[tag for tag, keep in zip(row, flags, strict=True) if keep] for row, flags in zip(side, kept, strict=True)]
        for side in (predictions, references)
    )


@pytest.mark.parametrize("name", ["spans", "tags"])
def test_unlabelled_words_count_nowhere(name: str) -> None:
    rows = random_rows(name, missing=0.4)
    assert compute(name, *rows) == compute(name, *without_unlabelled(*rows))
    assert compute(name, *rows) != compute(name, *random_rows(name, missing=0.0))


@pytest.mark.parametrize("name", ["spans", "tags"])
def test_rows_without_labelled_words_score_nan_and_can_be_added_first(name: str) -> None:
    tag = "B-day"
    assert all(math.isnan(value) for value in compute(name, [[tag], []], [[None], []]).values())
    metric = load_metric(name)
    metric.add(prediction=[tag], reference=[None])
    metric.add(prediction=[tag], reference=[tag])
    assert set((metric.compute() or {}).values()) == {1.0}
    metric.add_batch(predictions=[[tag], [tag]], references=[[None], [tag]])
    assert set((metric.compute() or {}).values()) == {1.0}


def test_words_the_model_did_not_see_are_outside_spans() -> None:
    references = [["B-city", "I-city", "B-day"]]
    unseen = compute("spans", [["B-city", "I-city", "_"]], references)
    assert unseen == compute("spans", [["B-city", "I-city", "O"]], references)
    assert unseen["recall"] == 0.5


@pytest.mark.parametrize(
    ("scheme", "tag", "problem"),
    [
        (None, "NOUN", "row 1: 'NOUN' is not a span tag; use 'O' and tags that begin with 'B-', 'I-', 'E-', 'S-'"),
        ("IOB2", "E-day", "row 1: 'E-day' is not a tag of IOB2; use 'O' and tags that begin with 'B-', 'I-'"),
    ],
)
def test_tags_outside_the_scheme_are_refused(scheme: str | None, tag: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        compute("spans", [["O"], [tag]], [["O"], ["B-day"]], scheme)


@pytest.mark.parametrize("name", ["spans", "tags"])
def test_rows_that_do_not_line_up_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="row 1: 1 predicted tags for 2 reference tags; give one tag per word"):
        compute(name, [["O"], ["O"]], [["O"], ["O", "O"]])
    with pytest.raises(DataError, match="row 0: a text instead of a list of tags"):
        compute(name, ["O"], [["O"]])


# ---------------------------------------------------------------------- tags


@seeds
def test_tags_equal_scikit_learn_over_all_words(seed: int) -> None:
    predictions, references = random_rows("tags", 40, seed, missing=0.0)
    predictions[-1] = ["_"] * len(references[-1])  # a tag that is never true
    flat = [[tag for row in side for tag in row] for side in (references, predictions)]
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(*flat),
        "f1_macro": sklearn.metrics.f1_score(*flat, average="macro", zero_division=0),
    }
    assert compute("tags", predictions, references) == pytest.approx(expected, abs=1e-12)


# ---------------------------------------------------------------------- average


def test_average_is_the_mean_of_primary_values_and_nan_counts_as_zero() -> None:
    results = {
        "topic": {"accuracy": 0.5, "mcc": 0.9},
        "stars": {"spearman": math.nan, "rmse": 3.0},
        "names": {"f1": 1.0},
    }
    primaries = {"topic": "accuracy", "stars": "spearman", "names": "f1", "other": "f1"}
    assert average(results, primaries) == pytest.approx(0.5)
    assert average({"names": results["names"]}, primaries) == 1.0


@pytest.mark.parametrize(
    ("results", "primaries", "problem"),
    [
        ({}, {}, "there is no task to average over"),
        ({"topic": {"accuracy": 1.0}}, {}, "task 'topic': the primary value None is missing"),
        ({"topic": {"accuracy": 1.0}}, {"topic": "f1"}, "task 'topic': the primary value 'f1' is missing"),
    ],
)
def test_average_refuses_what_it_cannot_average(results: Any, primaries: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        average(results, primaries)


def test_a_metric_of_ones_own_needs_statistics_and_disagreements() -> None:
    class Unfinished(TaskMetric):
        name = "unfinished"

    with pytest.raises(TypeError, match="abstract"):
        Unfinished()  # type: ignore[abstract]
