"""Thresholds maximise F1 on the rows they are chosen from, and travel with the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score
from tiny import write_encoder

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.errors import HfMtlError
from hf_mtl.evaluation.thresholds import best_threshold
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import HEADS
from hf_mtl.training.run import run_training


@pytest.mark.parametrize("seed", range(30))
def test_no_other_threshold_has_a_higher_f1(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.random(25), int(rng.integers(1, 4)))  # with ties
    gold = (rng.random(25) < 0.3).astype(int)
    gold[0], gold[1] = 1, 0
    found = f1_score(gold, scores >= best_threshold(scores, gold), zero_division=0)
    best = max(f1_score(gold, scores >= t, zero_division=0) for t in [0.0, *scores])
    assert found == pytest.approx(best)


def test_where_nothing_can_be_chosen_it_is_one_half() -> None:
    for gold in (np.zeros(3), np.ones(3)):
        assert best_threshold(np.array([0.1, 0.2, 0.9]), gold) == 0.5
    assert best_threshold(np.array([0.2, 0.8]), np.array([0, 1])) == 0.5


def test_answers_heed_the_thresholds() -> None:
    head = HEADS.get("multi_label_classification")
    spec = TaskSpec(name="m", type="multi_label_classification", labels=("a", "b"), thresholds=(0.2, 0.9))
    logits = np.log(np.array([0.3, 0.8]) / np.array([0.7, 0.2])).astype(np.float32)
    answer = head.decode(spec, logits, None)
    assert (answer["labels"], head.prediction(spec, answer)) == (["a"], [1, 0])
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_run_tunes_saves_and_scores_with_them(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder")
    rng = np.random.default_rng(0)
    rows = [{"text": "good film" if n % 2 else "bad film", "labels": [x for x in "ab" if rng.random() < 0.3]}
            for n in range(24)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "m", "type": "multi_label_classification", "labels": ["a", "b"], "dataset": "d", "label": "labels",
            "tune_thresholds": True, "focal_gamma": 2.0, "class_weights": "balanced"}  # fmt: skip
    values = {
        "encoder": "encoder",
        "datasets": {"d": {"train": "rows.jsonl", "validation": "rows.jsonl", "text": "text"}},
        "tasks": [task],
        "training": {"max_steps": 2, "report_to": "none", "use_cpu": True},
    }
    run = run_training(parse_recipe(values, base=tmp_path), tmp_path / "run")
    spec = MultiTaskModel.from_pretrained(tmp_path / "run").specs[0]
    assert spec.thresholds is not None
    assert not spec.tune_thresholds
    # An untrained model answers all or nothing at 1/2; tuned it finds at least what answering everything finds.
    flags = np.array([[x in row["labels"] for x in "ab"] for row in rows])
    everything = np.mean([f1_score(flags[:, k], np.ones(24)) for k in range(2)])
    scores = run.results["validation"]["m"]
    assert scores["f1_macro"] >= everything - 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": [0.5]}, "1 thresholds for 2 labels"),
        ({"thresholds": [0.5, 1.0]}, "thresholds is 1.0"),
        ({"thresholds": [0.5, 0.5], "tune_thresholds": True}, "to be tuned"),
        ({"focal_gamma": -1.0}, "focal_gamma is -1.0"),
        ({"tune_thresholds": 1}, "tune_thresholds is 1"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(HfMtlError, match=message):
        TaskSpec(name="m", type="multi_label_classification", labels=("a", "b"), **options)


@pytest.mark.parametrize("key", ["thresholds", "tune_thresholds", "focal_gamma"])
def test_types_without_an_option_refuse_it(key: str) -> None:
    value = {"thresholds": [0.5, 0.5], "tune_thresholds": True, "focal_gamma": 2.0}[key]
    for name in HEADS.files:
        head = HEADS.get(name)
        if key not in head.options:
            spec = TaskSpec(name="m", type=name, labels=("a", "b"), **{key: value})
            with pytest.raises(HfMtlError, match=key):
                head.check_options(spec)
