"""Encoded rows with random labels of every task type, and small models for them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BertConfig

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.data.collator import LABEL_PREFIX
from hf_mtl.model.modeling import MultiTaskModel

# Per task type its spec, and a label for a row of so many tokens; a type without an entry here fails the tests.
KINDS: dict[str, tuple[dict[str, Any], Callable[[random.Random, int], Any]]] = {
    "sequence_classification": ({"labels": ("a", "b", "c")}, lambda draw, tokens: draw.randrange(3)),
    "ordinal_regression": ({"labels": ("1", "2", "3", "4")}, lambda draw, tokens: draw.randrange(4)),
    "span_extraction": (
        {},
        lambda draw, tokens: draw.choices((0, 0, -100), k=tokens - 2) + draw.choice(([1, 2], [0, 3])),
    ),
    # Two to four choices of one token or more, the first of them right or the second.
    "multiple_choice": (
        {},
        lambda draw, tokens: draw.choice(([1, 2], [0, 3])) + [draw.choice((-100, 4, 6)) for _ in range(tokens - 2)],
    ),
    "token_classification": (
        {"labels": ("O", "B-x", "I-x")},
        # Some tokens have no label; those of a row may all lack one.
        lambda draw, tokens: [draw.choice((-100, -100, 0, 1, 2)) for _ in range(tokens)],
    ),
    "crf_token_classification": (
        {"labels": ("O", "B-x", "I-x")},
        lambda draw, tokens: [draw.choice((-100, -100, 0, 1, 2)) for _ in range(tokens)],
    ),
    "multi_label_classification": (
        {"labels": ("p", "q", "r")},
        lambda draw, tokens: [draw.choice((None, 0.0, 1.0)) for _ in range(3)],
    ),
    # The places of the masked tokens, which stay as they are: `MultiTaskCollator` replaces none without `masking`.
    "masked_language_modeling": (
        {},
        lambda draw, tokens: sorted(draw.sample(range(tokens), draw.randint(1, min(tokens, 3)))),
    ),
    "regression": ({}, lambda draw, tokens: draw.gauss(0.0, 2.0)),
}


def spec_of(kind: str, name: str = "task", **options: Any) -> TaskSpec:
    return TaskSpec(name=name, type=kind, **KINDS[kind][0], **options)


def model_of(encoder: BertConfig, *specs: TaskSpec) -> MultiTaskModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return MultiTaskModel(MultiTaskConfig(encoder_config=encoder, tasks=list(specs))).train()


def rows_of(specs: Sequence[TaskSpec], count: int, *, missing: float = 0.4, seed: int = 0) -> list[dict[str, Any]]:
    """Make rows of 2 to 12 tokens, of which the first lack labels more often than the last."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for index in range(count):
        tokens = draw.randint(2, 12)
        row: dict[str, Any] = {"input_ids": [draw.randrange(1, 40) for _ in range(tokens)]}
        for spec in specs:
            absent = draw.random() < missing * 2 * (1 - index / count)
            row[LABEL_PREFIX + spec.name] = None if absent else KINDS[spec.type][1](draw, tokens)
        rows.append(row)
    return rows


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A fetched row with lists for arrays, to be compared."""
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in row.items()}
