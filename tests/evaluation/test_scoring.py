"""Scores are those of the answers that users get, as scikit-learn and seqeval compute them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from seqeval.metrics import f1_score as span_f1
from seqeval.metrics import precision_score as span_precision
from seqeval.metrics import recall_score as span_recall
from sklearn import metrics as sk
from sklearn.preprocessing import MultiLabelBinarizer
from tiny import load, write_recipe

from hf_mtl.data.encoding import Inputs
from hf_mtl.data.preparation import EncodedSplit, RecipeData
from hf_mtl.evaluation.prediction import answer, collator_for
from hf_mtl.evaluation.scoring import Scores, score, tasks_without_labels
from hf_mtl.model.modeling import MultiTaskModel


@pytest.fixture(scope="module")
def scores(learnt: MultiTaskModel, tiny_data: RecipeData) -> Scores:
    return score(learnt, tiny_data.tokenizer, tiny_data.validation)


def answers_and_labels(model: MultiTaskModel, data: RecipeData, task: str) -> tuple[list[Any], list[Any]]:
    """Answer a task's labelled rows as a user would, from the raw rows, and read their labels from the files."""
    split, label = next((s, t.label) for s in data.validation.values() for t in s.tasks if t.spec.name == task)
    raw = [row for row in split.raw.dataset if row[label] is not None]
    rows = [Inputs.of(**{role: row[column] for role, column in split.source.input_columns.items()}) for row in raw]
    found = answer(model, data.tokenizer, rows, tasks=[task])
    return [own[task] for own in found], [row[label] for row in raw]


@pytest.mark.parametrize("task", ["sentiment", "intent"])
def test_classification_is_as_scikit_learn_has_it(
    task: str, scores: Scores, learnt: MultiTaskModel, tiny_data: RecipeData
) -> None:
    answers, labels = answers_and_labels(learnt, tiny_data, task)
    found = [own["label"] for own in answers]
    assert scores.metrics[task] == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, found),
            "f1_macro": sk.f1_score(labels, found, average="macro"),
            "f1_micro": sk.f1_score(labels, found, average="micro"),
            "f1_weighted": sk.f1_score(labels, found, average="weighted"),
            "mcc": sk.matthews_corrcoef(labels, found),
        }
    )
    assert task != "sentiment" or 0.5 < scores.metrics[task]["accuracy"] < 1  # neither by chance nor perfect


def test_spans_are_as_seqeval_has_them(scores: Scores, learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    answers, labels = answers_and_labels(learnt, tiny_data, "slots")
    found = [own["tags"] for own in answers]
    wanted = {"precision": span_precision(labels, found), "recall": span_recall(labels, found)}
    assert scores.metrics["slots"] == pytest.approx({**wanted, "f1": span_f1(labels, found)})


def test_tags_are_as_scikit_learn_has_them(scores: Scores, learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    answers, labels = answers_and_labels(learnt, tiny_data, "grammar")
    pairs = [
        (predicted, true)
        for own, row in zip(answers, labels, strict=True)
        for predicted, true in zip(own["tags"], row, strict=True)
        if true is not None
    ]
    found, wanted = zip(*pairs, strict=True)
    assert len(found) < sum(map(len, labels))  # some words have no tag
    assert scores.metrics["grammar"] == pytest.approx(
        {"accuracy": sk.accuracy_score(wanted, found), "f1_macro": sk.f1_score(wanted, found, average="macro")}
    )


def test_regression_is_as_scipy_has_it(scores: Scores, learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    answers, labels = answers_and_labels(learnt, tiny_data, "similarity")
    found = np.array([own["value"] for own in answers])
    wanted = {
        "pearson": stats.pearsonr(found, labels).statistic,
        "spearman": stats.spearmanr(found, labels).statistic,
        "rmse": np.sqrt(np.mean((found - np.array(labels)) ** 2)),
    }
    assert scores.metrics["similarity"] == pytest.approx(wanted, abs=1e-4)


def test_multi_label_is_as_scikit_learn_has_it(scores: Scores, learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    answers, labels = answers_and_labels(learnt, tiny_data, "moods")
    binarizer = MultiLabelBinarizer(classes=["glad", "musical", "sad"])
    wanted, found = binarizer.fit_transform(labels), binarizer.transform([own["labels"] for own in answers])
    assert scores.metrics["moods"] == pytest.approx(
        {
            "f1_micro": sk.f1_score(wanted, found, average="micro"),
            "f1_macro": sk.f1_score(wanted, found, average="macro"),
            "subset_accuracy": sk.accuracy_score(wanted, found),
        }
    )


def test_the_loss_is_the_mean_over_all_labelled_items(
    scores: Scores, learnt: MultiTaskModel, tiny_data: RecipeData
) -> None:
    small = score(learnt, tiny_data.tokenizer, tiny_data.validation, batch_size=5)
    collator = collator_for(learnt, tiny_data.tokenizer)
    for split in tiny_data.validation.values():
        whole = learnt(**collator([split.features[row] for row in range(len(split))])).losses
        assert whole is not None
        for task, loss in whole.items():
            assert scores.tasks[task].loss == pytest.approx(loss.item(), rel=1e-5)
            assert small.tasks[task].loss == pytest.approx(loss.item(), rel=1e-5)


def test_rows_without_a_label_are_left_out(scores: Scores, tiny_data: RecipeData) -> None:
    orders = tiny_data.validation["orders"]
    for task in orders.tasks:
        values = orders.raw.dataset[task.label][:]
        labelled = [row for row, value in enumerate(values) if value is not None]
        assert [judged.row for judged in scores.tasks[task.spec.name].rows] == labelled
        assert len(labelled) < len(orders)
    assert scores.tasks["intent"].rows[0].text == " ".join(orders.raw.dataset[0]["tokens"])


def test_words_cut_off_count_as_outside(tiny_folder: Path, tmp_path: Path, learnt: MultiTaskModel) -> None:
    recipe = write_recipe(tmp_path, tiny_folder / "encoder")
    words = [*["music"] * 60, "to", "rome"]
    row = {"tokens": words, "intent": "fly", "slots": ["O"] * 61 + ["B-city"], "grammar": ["X"] * 61 + ["PROPN"]}
    (tmp_path / "orders-validation.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    data = load(tmp_path, recipe, tasks=learnt.specs)
    scores = score(learnt, data.tokenizer, {"orders": data.validation["orders"]})
    (slots,), (grammar,) = scores.tasks["slots"].rows, scores.tasks["grammar"].rows
    assert len(slots.prediction) == len(slots.reference) == 62
    assert slots.prediction[-1] == "O"
    assert grammar.prediction[-1] == "_"
    assert scores.metrics["slots"]["recall"] == 0.0
    assert scores.metrics["grammar"]["accuracy"] <= 46 / 62
    assert tasks_without_labels(learnt, scores) == ["sentiment", "similarity", "moods"]
    assert tasks_without_labels(learnt, scores, ["moods", "slots"]) == ["moods"]


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_find_together_what_one_finds(world: int, learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    """Some of seven processes have no batch of a dataset at all."""
    alone = score(learnt, tiny_data.tokenizer, tiny_data.validation, batch_size=8)
    for own in together(world, learnt, tiny_data):
        assert own.metrics == alone.metrics
        assert own.average() == alone.average()
        for task, wanted in alone.tasks.items():
            assert own.tasks[task].rows == wanted.rows
            assert own.tasks[task].loss == pytest.approx(wanted.loss, rel=1e-9)


def together(world: int, model: MultiTaskModel, data: RecipeData) -> list[Scores]:
    """Score on threads that stand for processes, and join their lists as `gather_object` does."""
    barrier, shared, found = threading.Barrier(world, timeout=60), [[] for _ in range(world)], [None] * world

    def run(rank: int) -> None:
        def gather(own: list[Any]) -> list[Any]:
            shared[rank] = own
            barrier.wait()
            joined = [value for values in shared for value in values]
            rows = [value[0] for value in joined if isinstance(value, tuple)]
            assert len(set(rows)) == len(rows)  # no row is answered twice
            barrier.wait()
            return joined

        found[rank] = score(model, data.tokenizer, data.validation, batch_size=8, process=(rank, world), gather=gather)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None not in found
    return found


def test_progress_is_told_batch_by_batch(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    told: list[tuple[int, int]] = []
    score(
        learnt,
        tiny_data.tokenizer,
        tiny_data.validation,
        batch_size=10,
        on_batch=lambda done, total: told.append((done, total)),
    )
    assert told == [(number, 12) for number in range(1, 13)]


def test_scores_stand_in_the_order_of_the_specs(scores: Scores, learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    names = [spec.name for spec in learnt.specs]
    backwards: dict[str, EncodedSplit] = dict(reversed(tiny_data.validation.items()))
    assert list(scores.tasks) == list(scores.metrics) == names
    assert list(score(learnt, tiny_data.tokenizer, backwards).tasks) == names


def test_every_score_has_an_interval_around_it(scores: Scores) -> None:
    for task in scores.tasks.values():
        intervals = task.intervals(resamples=200)
        assert intervals.keys() == task.metrics.keys()
        for key, (low, high) in intervals.items():
            assert low <= task.metrics[key] + 0.1
            assert high >= task.metrics[key] - 0.1


def test_mistakes_are_plain_json_values(scores: Scores) -> None:
    for task in scores.tasks.values():
        found = task.mistakes(limit=3)
        assert json.loads(json.dumps(found)) == found
