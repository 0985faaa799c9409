"""`hf-mtl info`: tasks, labels and where the parameters are."""

from __future__ import annotations

import json
from pathlib import Path

from calling import call
from safetensors import safe_open


def test_parameters_of_heads_and_encoder_sum_to_the_file(trained: Path) -> None:
    facts = json.loads(call("info", trained, "--json").out)
    with safe_open(trained / "model.safetensors", framework="pt") as weights:
        stored = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    assert facts["parameters"]["total"] == stored
    assert facts["parameters"]["shared"] + sum(task["parameters"] for task in facts["tasks"]) == stored


def test_tasks_come_in_their_order_with_type_pooling_and_labels(trained: Path) -> None:
    facts = json.loads(call("info", trained, "--json").out)
    tasks = {task["name"]: task for task in facts["tasks"]}
    assert list(tasks) == ["sentiment", "intent", "slots", "grammar", "similarity", "moods"]
    assert tasks["sentiment"] == {
        "name": "sentiment", "type": "sequence_classification", "pooling": "mean", "labels": ["neg", "pos"],
        "parameters": 2 * 33,
    }  # fmt: skip
    assert tasks["slots"]["pooling"] is None
    assert tasks["similarity"]["labels"] is None
    assert (facts["encoder"], facts["max_length"]) == ("bert", 48)


def test_the_table_shows_the_same(trained: Path) -> None:
    table = call("info", trained).out
    for text in ("bert encoder, 48 tokens", "sequence_classification", "neg, pos", "shared encoder", "B-city"):
        assert text in table
