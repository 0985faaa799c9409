"""Batches: equal to padding row by row, with the labels of exactly those tasks and rows that have them."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.collator import LABEL_PREFIX, MultiTaskCollator
from hf_mtl.registry import HEADS

TOPIC = TaskSpec(name="topic", type="sequence_classification", labels=("a", "b", "c"))
SLOTS = TaskSpec(name="slots", type="token_classification", labels=("O", "B-x", "I-x"))
MOOD = TaskSpec(name="mood", type="multi_label_classification", labels=("glad", "sad"))
STARS = TaskSpec(name="stars", type="regression")
SPECS = (TOPIC, SLOTS, MOOD, STARS)


def random_label(rng: random.Random, spec: TaskSpec, length: int) -> Any:
    return {
        "topic": lambda: rng.randrange(3),
        "slots": lambda: [rng.choice([-100, 0, 1, 2]) for _ in range(length)],
        "mood": lambda: [rng.choice([0.0, 1.0, None, math.nan]) for _ in range(2)],
        "stars": lambda: rng.uniform(-3, 3),
    }[spec.name]()


def random_rows(rng: random.Random, *, tasks: tuple[TaskSpec, ...] = SPECS) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for _ in range(rng.randrange(1, 9)):
        length = rng.randrange(1, 13)
        row: dict[str, Any] = {"input_ids": [rng.randrange(1, 1000) for _ in range(length)]}
        kind = rng.randrange(3)
        if kind:
            row["token_type_ids"] = None if kind == 1 else [rng.randrange(2) for _ in range(length)]
        for spec in tasks:
            draw = rng.randrange(3)
            if draw:
                row[LABEL_PREFIX + spec.name] = None if draw == 1 else random_label(rng, spec, length)
        row["length"] = length  # columns that are no input are not looked at
        rows.append(row)
    return rows


def padded_by_hand(rows: list[list[Any]], length: int, padding: Any) -> list[list[Any]]:
    return [[*row, *[padding] * (length - len(row))] for row in rows]


def has_label(spec: TaskSpec, value: Any) -> bool:
    if value is None or spec.name in ("topic", "stars"):
        return value is not None
    return any(item is not None and item != -100 and item == item for item in value)


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("seed", range(40))
def test_a_batch_is_padding_row_by_row(seed: int, multiple: int) -> None:
    rng = random.Random(seed)
    rows = random_rows(rng)
    batch = MultiTaskCollator(SPECS, pad_token_id=7, pad_to_multiple_of=multiple)(rows)
    ids = [row["input_ids"] for row in rows]
    length = math.ceil(max(map(len, ids)) / multiple) * multiple
    assert batch["input_ids"].tolist() == padded_by_hand(ids, length, 7)
    assert batch["attention_mask"].tolist() == padded_by_hand([[1] * len(row) for row in ids], length, 0)
    types = [row.get("token_type_ids") for row in rows]
    assert ("token_type_ids" in batch) == any(kind is not None for kind in types)
    if "token_type_ids" in batch:
        filled = [kind or [0] * len(row) for kind, row in zip(types, ids, strict=True)]
        assert batch["token_type_ids"].tolist() == padded_by_hand(filled, length, 0)
    assert all(batch[key].dtype == torch.int64 for key in batch if key not in ("labels", "rows", "items"))

    labels, indices, items = (batch.get(key, {}) for key in ("labels", "rows", "items"))
    present = {spec.name: [n for n, row in enumerate(rows) if has_label(spec, row.get(LABEL_PREFIX + spec.name))]
               for spec in SPECS}  # fmt: skip
    assert ("labels" in batch) == ("rows" in batch) == ("items" in batch) == any(present.values())
    assert list(labels) == list(indices) == list(items) == [name for name, numbers in present.items() if numbers]
    for spec in SPECS:
        if spec.name not in labels:
            continue
        found, own = labels[spec.name], indices[spec.name]
        assert own.dtype == torch.int64
        assert own.tolist() == present[spec.name]
        assert own.tolist() == HEADS.get(spec.type).labelled_rows(found).nonzero().squeeze(-1).tolist()
        assert items[spec.name] == HEADS.get(spec.type).num_items(spec, found).item() > 0
        values = [row.get(LABEL_PREFIX + spec.name) for row in rows]
        expected, dtype = labels_by_hand(spec, values, length)
        assert found.dtype == dtype
        assert torch.equal(found.nan_to_num(1e9), torch.tensor(expected, dtype=dtype).nan_to_num(1e9))


def labels_by_hand(spec: TaskSpec, values: list[Any], length: int) -> tuple[list[Any], torch.dtype]:
    if spec.name == "topic":  # (batch_size,)
        return [-100 if value is None else value for value in values], torch.int64
    if spec.name == "slots":  # (batch_size, seq_len)
        return padded_by_hand([value or [] for value in values], length, -100), torch.int64
    if spec.name == "mood":  # (batch_size, num_labels)
        rows = [value or [None, None] for value in values]
        return [[math.nan if item is None else item for item in row] for row in rows], torch.float32
    return [math.nan if value is None else value for value in values], torch.float32  # (batch_size,)


def test_labels_of_other_tasks_are_left_out() -> None:
    row = {"input_ids": [1, 2], "labels/topic": 1, "labels/stars": 2.0, "labels/unknown": 3}
    batch = MultiTaskCollator((TOPIC,))([row])
    assert list(batch["labels"]) == ["topic"]
    assert "labels" not in MultiTaskCollator(())([row])


def test_labels_stand_in_the_order_of_the_specs() -> None:
    row = {"input_ids": [1], "labels/stars": 2.0, "labels/topic": 1}
    assert list(MultiTaskCollator(SPECS)([row])["labels"]) == ["topic", "stars"]
    assert list(MultiTaskCollator(SPECS[::-1])([row])["labels"]) == ["stars", "topic"]


def test_a_task_whose_labels_are_all_open_is_left_out() -> None:
    rows = [
        {"input_ids": [1, 2], "labels/slots": [-100, -100], "labels/mood": [None, None], "labels/topic": None},
        {"input_ids": [1], "labels/slots": None, "labels/mood": [math.nan, None], "labels/stars": None},
    ]
    batch = MultiTaskCollator(SPECS)(rows)
    assert set(batch) == {"input_ids", "attention_mask"}


def test_rows_may_be_arrays() -> None:
    row = {"input_ids": np.array([4, 5]), "token_type_ids": np.array([0, 1]), "labels/stars": np.float32(0.5)}
    batch = MultiTaskCollator(SPECS)([row, {"input_ids": (6,)}])
    assert batch["input_ids"].tolist() == [[4, 5], [6, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 1], [0, 0]]
    assert batch["rows"]["stars"].tolist() == [0]


def test_the_collator_keeps_no_state() -> None:
    collator, rows = MultiTaskCollator(SPECS), random_rows(random.Random(0))
    first, _, again = collator(rows), collator(rows[:1]), collator(rows)
    assert all(torch.equal(first[key], again[key]) for key in ("input_ids", "attention_mask"))
    assert collator == MultiTaskCollator(SPECS)
