"""`hf-mtl evaluate`: the numbers are those of scikit-learn and seqeval over the answers that `hf-mtl predict` gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calling import call
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as span_f1
from seqeval.metrics import precision_score as span_precision
from seqeval.metrics import recall_score as span_recall
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from hf_mtl.configuration import MultiTaskConfig
from hf_mtl.data.yaml import read_yaml, write_yaml

Rows = list[dict[str, Any]]
Answered = Callable[[str], Rows]


@pytest.fixture(scope="session")
def scores(trained: Path, recipe: Path) -> dict[str, Any]:
    done = call("evaluate", trained, recipe, "--json")
    assert done.err == ""
    return json.loads(done.out)


@pytest.fixture(scope="session")
def answered(trained: Path, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Answered:
    """The rows of a dataset's test file as `hf-mtl predict` answers them."""
    folder = tmp_path_factory.mktemp("answered")

    def answer(dataset: str) -> Rows:
        target = folder / f"{dataset}.jsonl"
        if not target.exists():
            files = ("--input", workspace / f"{dataset}-test.jsonl", "--output", target)
            call("predict", trained, *files, "--precision", "fp32")  # that of `evaluate`
        return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]

    return answer


@pytest.mark.parametrize(
    ("task", "dataset", "column"), [("sentiment", "films", "label"), ("intent", "orders", "intent")]
)
def test_classification_equals_scikit_learn(
    scores: dict[str, Any], answered: Answered, task: str, dataset: str, column: str
) -> None:
    rows = [row for row in answered(dataset) if row[column] is not None]
    wanted, found = [row[column] for row in rows], [row["predictions"][task]["label"] for row in rows]
    assert scores[task] == pytest.approx(
        {
            "accuracy": accuracy_score(wanted, found),
            **{
                f"f1_{kind}": f1_score(wanted, found, average=kind, zero_division=0.0)
                for kind in ("macro", "micro", "weighted")
            },
            "mcc": matthews_corrcoef(wanted, found),
        },
        abs=1e-9,
    )


def test_spans_equal_seqeval(scores: dict[str, Any], answered: Answered) -> None:
    rows = [row for row in answered("orders") if row["slots"] is not None]
    wanted, found = [row["slots"] for row in rows], [row["predictions"]["slots"]["tags"] for row in rows]
    assert scores["slots"]["f1"] > 0.2
    assert scores["slots"] == pytest.approx(
        {
            "precision": span_precision(wanted, found),
            "recall": span_recall(wanted, found),
            "f1": span_f1(wanted, found),
        },
        abs=1e-9,
    )


def test_tags_equal_scikit_learn(scores: dict[str, Any], answered: Answered) -> None:
    rows = [row for row in answered("orders") if row["grammar"] is not None]
    pairs = [
        (gold, tag)
        for row in rows
        for gold, tag in zip(row["grammar"], row["predictions"]["grammar"]["tags"], strict=True)
        if gold is not None
    ]
    wanted, found = zip(*pairs, strict=True)
    assert scores["grammar"] == pytest.approx(
        {
            "accuracy": accuracy_score(wanted, found),
            "f1_macro": f1_score(wanted, found, average="macro", zero_division=0.0),
        },
        abs=1e-9,
    )


def test_regression_equals_scipy(scores: dict[str, Any], answered: Answered) -> None:
    rows = answered("pairs")
    wanted = np.array([row["score"] for row in rows])
    found = np.array([row["predictions"]["similarity"]["value"] for row in rows])
    expected = {
        "pearson": pearsonr(wanted, found)[0],
        "spearman": spearmanr(wanted, found)[0],
        "rmse": float(np.sqrt(np.mean((wanted - found) ** 2))),
    }
    assert scores["similarity"] == pytest.approx(expected, abs=1e-9)


def test_multi_label_equals_scikit_learn(scores: dict[str, Any], answered: Answered) -> None:
    labels = ("glad", "musical", "sad")
    wanted, found = (
        np.array([[label in chosen for label in labels] for chosen in rows])
        for rows in (
            [row["moods"] for row in answered("posts")],
            [row["predictions"]["moods"]["labels"] for row in answered("posts")],
        )
    )
    assert scores["moods"] == pytest.approx(
        {
            "f1_micro": f1_score(wanted, found, average="micro", zero_division=0.0),
            "f1_macro": f1_score(wanted, found, average="macro", zero_division=0.0),
            "subset_accuracy": accuracy_score(wanted, found),
        },
        abs=1e-9,
    )


def test_average_is_the_mean_of_the_primary_metrics(scores: dict[str, Any]) -> None:
    primary = {"sentiment": "accuracy", "intent": "accuracy", "slots": "f1", "grammar": "accuracy"}
    primary |= {"similarity": "spearman", "moods": "f1_micro"}
    assert list(scores) == [*primary, "average"]
    values = [scores[task][metric] for task, metric in primary.items()]
    assert scores["average"] == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_one_task_is_scored_alone_and_alike(trained: Path, recipe: Path, scores: dict[str, Any]) -> None:
    found = json.loads(call("evaluate", trained, recipe, "--task", "similarity", "--task", "intent", "--json").out)
    assert set(found) == {"intent", "similarity", "average"}
    assert found["intent"] == scores["intent"]


def test_the_batch_size_changes_no_score(trained: Path, recipe: Path, scores: dict[str, Any]) -> None:
    found = json.loads(call("evaluate", trained, recipe, "--batch-size", 5, "--json").out)
    for task in ("sentiment", "slots", "similarity"):
        assert found[task] == pytest.approx(scores[task], abs=1e-5)


def test_the_table_shows_every_task_with_intervals(trained: Path, recipe: Path, scores: dict[str, Any]) -> None:
    table = call("evaluate", trained, recipe).out
    for task in (*scores, "95% interval", "test split"):
        assert task in table
    assert f"{scores['slots']['f1']:.4f}" in table


def test_mistakes_are_written_with_confusions(
    trained: Path, recipe: Path, scores: dict[str, Any], tmp_path: Path
) -> None:
    target = tmp_path / "errors.json"
    call("evaluate", trained, recipe, "--errors", target, "--json")
    found = json.loads(target.read_text(encoding="utf-8"))
    assert set(found) == set(scores) - {"average"}
    confusions = sum(entry["count"] for entry in found["sentiment"]["confusions"])
    assert confusions == round(32 * (1 - scores["sentiment"]["accuracy"]))
    assert all(entry["prediction"] != entry["reference"] for entry in found["sentiment"]["mistakes"])


def test_the_set_aside_validation_split_is_the_one_of_the_training_seed(workspace: Path, tmp_path: Path) -> None:
    recipe = read_yaml(workspace / "recipe.yaml")
    recipe["encoder"] = str(workspace / "encoder")
    recipe["datasets"] = {"films": {"train": str(workspace / "films-train.jsonl"), "text": "text"}}
    recipe["tasks"] = recipe["tasks"][:1]
    recipe["training"] |= {"num_train_epochs": 3}
    path = tmp_path / "recipe.yaml"
    path.write_text(write_yaml(recipe), encoding="utf-8")
    call(
        "train", path, "--output-dir", tmp_path / "run", "--bf16", "false", "--seed", 11
    )  # of which the file knows nothing
    trained = json.loads((tmp_path / "run" / "train_results.json").read_text())
    errors = tmp_path / "errors.json"
    found = {}
    for split in ("train", "validation"):
        found[split] = json.loads(
            call("evaluate", tmp_path / "run", path, "--split", split, "--errors", errors, "--json").out
        )
    assert found["validation"] == trained["validation"]
    assert MultiTaskConfig.from_pretrained(tmp_path / "run").split_seed == 11
    report = json.loads(call("check", path, "--json").out)
    assert {entry["split"]: entry["rows"] for entry in report["datasets"]} == {"train": 43, "validation": 5}
