"""Rows of tokens that are longer than a window, and a recipe of three tasks on them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tiny import FILLER

LENGTH, STRIDE = 16, 5
WINDOWS = {"max_length": LENGTH, "stride": STRIDE}
CUT = {"max_length": LENGTH}
TYPES = {"tone": "sequence_classification", "tags": "token_classification", "first": "token_classification"}


def random_words(number: int, *, seed: int = 0) -> list[str]:
    """Words of one, two and four tokens."""
    return random.Random(seed).choices([*FILLER, "xy", "abcd"], k=number)


def long_rows(count: int, *, seed: int) -> list[dict[str, Any]]:
    """Rows of 1 to 60 words; every fifth has no tone, and a tenth of the words no tag."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        tokens = random_words(rng.randrange(1, 60), seed=rng.randrange(10**6))
        tags = [None if rng.random() < 0.1 else "XY"[word in FILLER] for word in tokens]
        rows.append({"tokens": tokens, "tone": None if number % 5 == 4 else "ab"[number % 2], "tags": tags})
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_long_recipe(folder: Path, encoder: Path, **options: dict[str, Any]) -> dict[str, Any]:
    """Write the files and return the recipe: `tone` of a row, `tags` of its words and, once more, `first`.

    Args:
        options: more keys of a task, by its name.
    """
    for split, count in (("train", 30), ("validation", 12)):
        write_rows(folder / f"{split}.jsonl", long_rows(count, seed=count))
    tasks = [
        {"name": name, "type": kind, "dataset": "long", "label": "tone" if name == "tone" else "tags"}
        for name, kind in TYPES.items()
    ]
    return {
        "encoder": str(encoder),
        "datasets": {"long": {"train": "train.jsonl", "validation": "validation.jsonl", "tokens": "tokens"}},
        "tasks": [{**task, **options.get(task["name"], {})} for task in tasks],
    }
