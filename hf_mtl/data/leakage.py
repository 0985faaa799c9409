"""Texts that stand where they should not: in several splits, or in one dataset's training rows and another's test rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from hf_mtl.data.preparation import EncodedSplit

HELD_OUT = ("validation", "test")


@dataclass(frozen=True)
class Leak:
    """Training rows whose text also stands in a held-out split.

    Args:
        train: dataset of the training rows.
        held_out: dataset of the held-out rows, the same or another.
        split: `"validation"` or `"test"`.
        rows: number of training rows.
        example: one of the texts.
        train_place: file and line of that text's training row.
        held_out_place: file and line of that text's held-out row.
    """

    train: str
    held_out: str
    split: str
    rows: int
    example: str
    train_place: str
    held_out_place: str


def find_leaks(splits: Mapping[str, Mapping[str, EncodedSplit]]) -> list[Leak]:
    """Find texts of training rows in held-out rows of any dataset; letter case and spacing make no difference.

    Args:
        splits: split name -> dataset name -> rows, as in `RecipeData`.

    Returns:
        One entry per training set and held-out set that share texts.
    """
    held_out = {(name, split): _first_rows(rows) for split in HELD_OUT for name, rows in splits.get(split, {}).items()}
    leaks: list[Leak] = []
    for train_name, train in splits.get("train", {}).items():
        keys = [
            (row, text_key(inputs.text, inputs.text_pair), inputs.text) for row, inputs in enumerate(train.inputs())
        ]
        for (name, split), known in held_out.items():
            shared = [(row, key, text) for row, key, text in keys if key in known]
            if shared:
                row, key, text = shared[0]
                places = (train.raw.where(row), splits[split][name].raw.where(known[key]))
                leaks.append(Leak(train_name, name, split, len(shared), text, *places))
    return leaks


def count_repeated(rows: EncodedSplit) -> int:
    """Return how many rows of a split repeat the text of an earlier one."""
    return len(rows) - len(_first_rows(rows))


def text_key(text: str, text_pair: str | None = None) -> bytes:
    """Return a short key that texts share which differ in letter case and spacing alone.

    Example:
        >>> text_key("A  good film") == text_key("a good film ")
        True
    """
    parts = " ".join(text.casefold().split()), " ".join((text_pair or "").casefold().split())
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _first_rows(rows: EncodedSplit) -> dict[bytes, int]:
    first: dict[bytes, int] = {}
    for row, inputs in enumerate(rows.inputs()):
        first.setdefault(text_key(inputs.text, inputs.text_pair), row)
    return first
