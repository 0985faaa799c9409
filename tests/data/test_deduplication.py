"""Duplicates, exact and near: found where they were planted, and nowhere else."""

from __future__ import annotations

import random
import sys
import time

import numpy as np
import pytest

from hf_mtl.data.deduplication import ExactTexts, NearTexts, first_of_each
from hf_mtl.errors import MissingExtraError

WORDS = ["".join(random.Random(f"w{n}").choices("abcdefghijklmnoprstuvw", k=2 + n % 8)) for n in range(3000)]


def drawn(rng: random.Random, length: int) -> list[str]:
    return rng.choices(WORDS, k=length)


def near_copy(rng: random.Random, words: list[str]) -> str:
    """Change one word of fifteen: replaced, left out or said twice, and letter case and spacing on top."""
    words = list(words)
    for _ in range(max(1, len(words) // 15)):
        place = rng.randrange(len(words))
        words[place : place + 1] = rng.choice([[rng.choice(WORDS)], [], [words[place]] * 2])
    return "  ".join(word.upper() if rng.random() < 0.1 else word for word in words)


def test_95_percent_of_planted_near_duplicates_are_found_with_under_1_percent_false_ones() -> None:
    rng = random.Random(0)
    originals = [drawn(rng, rng.randint(15, 60)) for _ in range(1500)]
    planted = [near_copy(rng, words) for words in originals[:750]]
    others = [" ".join(drawn(rng, rng.randint(15, 60))) for _ in range(1500)]
    texts = NearTexts()
    for place, words in enumerate(originals):
        texts.add(" ".join(words), place)
    found = [texts.find(text) == place for place, text in enumerate(planted)]
    false = [texts.find(text) is not None for text in others]
    assert np.mean(found) >= 0.95
    assert np.mean(false) < 0.01
    stays = first_of_each([" ".join(w) for w in originals] + planted, [1] * 2250, how="near")
    assert stays[:1500].all()
    assert (~stays[1500:]).mean() >= 0.95


def test_what_is_found_agrees_with_a_comparison_of_all_pairs() -> None:
    rng = random.Random(1)
    texts = [drawn(rng, 30) for _ in range(60)]
    rows = [" ".join(words) for words in texts] + [near_copy(rng, rng.choice(texts)) for _ in range(60)]

    def shingles(text: str) -> set[str]:
        text = " ".join(text.lower().split())
        return {text[i : i + 5] for i in range(len(text) - 4)}

    def jaccard(a: set[str], b: set[str]) -> float:
        return len(a & b) / len(a | b)

    sets = [shingles(row) for row in rows]
    kept: list[int] = []
    for row, own in enumerate(sets):
        if not any(jaccard(own, sets[other]) >= 0.7 for other in kept):
            kept.append(row)
    assert np.flatnonzero(first_of_each(rows, [1] * len(rows), how="near")).tolist() == kept


def test_exact_duplicates_differ_in_case_and_spacing_alone() -> None:
    rows = ["A  film", "a film ", "a films", "A FILM"]
    assert first_of_each(rows, [1] * 4, how="exact").tolist() == [True, False, True, False]


def test_a_row_with_a_label_that_the_first_lacks_stays() -> None:
    assert first_of_each(["a", "a", "a", "a"], [1, 2, 3, 0], how="exact").tolist() == [True, True, False, False]


def test_many_copies_of_one_text_take_linear_time() -> None:
    def seconds(count: int) -> float:
        start = time.process_time()
        first_of_each([f"the very same sentence in all rows, but for number {n % 7}" for n in range(count)],
                      [1] * count, how="near")  # fmt: skip
        texts = NearTexts()
        for n in range(count):  # all of them in the same buckets
            texts.add("the very same sentence in all rows", n)
            texts.find("the very same sentence in all rows")
        return time.process_time() - start

    seconds(50)
    assert seconds(1600) < 14 * max(seconds(200), 0.01)


def test_short_and_empty_texts() -> None:
    for texts in (ExactTexts(), NearTexts()):
        texts.add("", 0)
        texts.add("ab", 1)
        assert (texts.find(" "), texts.find("AB"), texts.find("ac")) == (0, 1, None)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(MissingExtraError, match=r"hf-mtl\[dedup\]"):
        NearTexts()
