"""Texts that stand in several splits, of one dataset or of two.

A model may remember them, and its scores then say less of other texts: Elangovan, He and Verspoor 2021, "Memorization
vs. Generalization: Quantifying Data Leakage in NLP Performance Evaluation", https://arxiv.org/abs/2102.01818. Texts are
the same where their keys are (`text_key`), and nearly so where the MinHash estimate of their Jaccard similarity is high
enough (`NearTexts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_mtl.data.deduplication import NearTexts, text_key
from hf_mtl.data.encoded import EncodedSplit

COMPARED = (("train", "validation"), ("train", "test"), ("validation", "test"))


@dataclass(frozen=True)
class Leak:
    """Rows of one split whose text also stands in a later, held-out split.

    Args:
        dataset: dataset of the rows.
        split: `"train"` or `"validation"`.
        held_out: dataset of the held-out rows, the same or another.
        held_out_split: `"validation"` or `"test"`.
        rows: number of rows of `dataset` and `split`.
        example: one of the texts.
        place: file and line of that text's row.
        held_out_place: file and line of that text's held-out row.
        near: whether the texts differ in a few words.
    """

    dataset: str
    split: str
    held_out: str
    held_out_split: str
    rows: int
    example: str
    place: str
    held_out_place: str
    near: bool = False


def find_leaks(splits: Mapping[str, Mapping[str, EncodedSplit]]) -> list[Leak]:
    """Find texts that stand in several splits of any datasets; letter case and spacing make no difference.

    Args:
        splits: split name -> dataset name -> rows, as in `RecipeData`.

    Returns:
        One entry per pair of a set of rows and a held-out set that share texts.
    """
    keys = {(split, name): _keys(rows) for split, by_name in splits.items() for name, rows in by_name.items()}
    first = {place: _first_of(found) for place, found in keys.items()}
    leaks: list[Leak] = []
    for split, held_out_split in COMPARED:
        for name, rows in splits.get(split, {}).items():
            for held_out, held_out_rows in splits.get(held_out_split, {}).items():
                known = first[held_out_split, held_out]
                shared = [(row, known[key]) for row, key in enumerate(keys[split, name]) if key in known]
                if shared:
                    leaks.append(_leak(rows, held_out_rows, shared))
    return leaks


def find_near_leaks(splits: Mapping[str, Mapping[str, EncodedSplit]]) -> list[Leak]:
    """Find texts that differ from those of later splits in a few words; those that do not differ are left out.

    Args:
        splits: split name -> dataset name -> rows, as in `RecipeData`.

    Returns:
        One entry per pair of a set of rows and a held-out set that share texts.

    Raises:
        MissingExtraError: `rensa` is not installed.
    """
    leaks: list[Leak] = []
    for held_out_split in dict.fromkeys(later for _, later in COMPARED):
        for held_out_rows in splits.get(held_out_split, {}).values():
            known, exact = NearTexts(), set(_keys(held_out_rows))
            for place, text in enumerate(_texts(held_out_rows)):
                known.add(text, place)
            for split in (earlier for earlier, later in COMPARED if later == held_out_split):
                for rows in splits.get(split, {}).values():
                    own = enumerate(zip(_keys(rows), _texts(rows), strict=True))
                    found = [(row, known.find(text)) for row, (key, text) in own if key not in exact]
                    shared = [(row, there) for row, there in found if there is not None]
                    if shared:
                        leaks.append(_leak(rows, held_out_rows, shared, near=True))
    return leaks


def _leak(rows: EncodedSplit, held_out: EncodedSplit, shared: Sequence[tuple[int, int]], *, near: bool = False) -> Leak:
    """Describe rows that stand in held-out ones, by pairs of their numbers."""
    place, there = shared[0]
    return Leak(
        dataset=rows.name,
        split=rows.split,
        held_out=held_out.name,
        held_out_split=held_out.split,
        rows=len(shared),
        example=_text(rows, place),
        place=rows.raw.where(place),
        held_out_place=held_out.raw.where(there),
        near=near,
    )


def count_repeated(rows: EncodedSplit) -> int:
    """Return how many rows of a split repeat the text of an earlier one."""
    return len(rows) - len(set(_keys(rows)))


def first_rows(rows: EncodedSplit) -> dict[bytes, int]:
    """Return the key of each text, and the first row that has it."""
    return _first_of(_keys(rows))


def _keys(rows: EncodedSplit) -> list[bytes]:
    return [text_key(inputs.text, inputs.beside) for inputs in rows.inputs()]


def _texts(rows: EncodedSplit) -> list[str]:
    return ["\n".join(filter(None, (inputs.text, inputs.beside))) for inputs in rows.inputs()]


def _first_of(keys: list[bytes]) -> dict[bytes, int]:
    return {key: row for row, key in reversed(list(enumerate(keys)))}


def _text(rows: EncodedSplit, wanted: int) -> str:
    return next(inputs.text for row, inputs in enumerate(rows.inputs()) if row == wanted)
