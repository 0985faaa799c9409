"""Texts that stand there twice, word for word or nearly so."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hf_mtl.errors import MissingExtraError

DUPLICATES = ("exact", "near")
NEAR = 0.7
"""Share of shingles in common from which on two texts are nearly the same."""

_SHINGLE, _BANDS, _BAND = 5, 25, 5
_MOST = 32
"""Texts of one bucket that a text is compared with, which keeps the time linear where thousands are alike."""


def text_key(text: str, text_pair: str | None = None) -> bytes:
    """Return a short key that texts share which differ in letter case and spacing alone.

    Example:
        >>> text_key("A  good film") == text_key("a good film ")
        True
    """
    parts = normalized(text), normalized(text_pair or "")
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=12).digest()


def normalized(text: str) -> str:
    """Return a text without its letter case, and with single spaces."""
    return " ".join(text.casefold().split())


class ExactTexts:
    """Texts found again where only letter case and spacing differ."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}

    def find(self, text: str) -> int | None:
        """Return the place of the first text that is the same; `None` where there is none."""
        return self._places.get(text_key(text))

    def add(self, text: str, place: int) -> None:
        """Take a text in, at a place of the caller's."""
        self._places.setdefault(text_key(text), place)


class NearTexts:
    """Texts found again where a few words differ: MinHash with locality-sensitive hashing, candidates then measured.

    Two texts are nearly the same if the Jaccard similarity of their sets of shingles (runs of 5 characters) is at least
    `NEAR`. Of such a pair at s a candidate is missed with the probability `(1 - s^5)^25`, 1% at 0.7 and 0.005% at 0.8.
    What is found has been measured exactly. Time and memory grow linearly with the texts.

    Source: Broder, On the resemblance and containment of documents, 1997, https://doi.org/10.1109/SEQUEN.1997.666900.

    Raises:
        MissingExtraError: `rensa` is not installed.

    Example:
        >>> texts = NearTexts()
        >>> texts.add("the quick brown fox jumps over the lazy dog near the bank of the river", 7)
        >>> texts.find("The quick brown fox jumps over the lazy dog near the bank of a river")
        7
    """

    def __init__(self) -> None:
        try:
            rensa: Any = importlib.import_module("rensa")
        except ImportError as error:
            raise MissingExtraError("rensa", extra="dedup") from error
        self._minhash = rensa.RMinHash
        self._buckets: dict[bytes, list[int]] = {}
        self._texts: list[str] = []
        self._places: list[int] = []

    def find(self, text: str) -> int | None:
        """Return the place of the most similar text that is nearly the same; `None` where there is none."""
        own = _shingles(normalized(text))
        candidates = dict.fromkeys(
            number for bucket in self._buckets_of(own) for number in self._buckets.get(bucket, ())[-_MOST:]
        )
        best, place = NEAR, None
        for number in candidates:
            similarity = _jaccard(own, _shingles(self._texts[number]))
            if similarity > best or (similarity == best and place is None):
                best, place = similarity, self._places[number]
        return place

    def add(self, text: str, place: int) -> None:
        """Take a text in, at a place of the caller's."""
        text = normalized(text)
        for bucket in self._buckets_of(_shingles(text)):
            self._buckets.setdefault(bucket, []).append(len(self._texts))
        self._texts.append(text)
        self._places.append(place)

    def _buckets_of(self, shingles: set[str]) -> list[bytes]:
        minhash = self._minhash(num_perm=_BANDS * _BAND, seed=1)
        # Sorted: nothing here may depend on the hash seed of a process.
        minhash.update(sorted(shingles))
        signature = np.asarray(minhash.digest(), dtype=np.uint64).reshape(_BANDS, _BAND)
        return [bytes([number]) + band.tobytes() for number, band in enumerate(signature)]


def texts_of(how: str) -> ExactTexts | NearTexts:
    """Return an empty set of texts that finds `"exact"` or `"near"` duplicates."""
    return NearTexts() if how == "near" else ExactTexts()


def first_of_each(texts: Iterable[str], labelled: Sequence[int], *, how: str) -> np.ndarray:
    """Tell which rows stay when duplicates go, `(num_rows,)` bool.

    A row goes if the text of an earlier row that stays is the same, or nearly so, unless it has a label for a task that
    row has none for.

    Args:
        texts: the text of each row.
        labelled: for each row the tasks that it has a label for, one bit each.
        how: `"exact"` or `"near"`.
    """
    known, stays = texts_of(how), np.ones(len(labelled), dtype=bool)
    has = dict[int, int]()
    for row, text in enumerate(texts):
        first = known.find(text)
        if first is None:
            known.add(text, row)
            has[row] = labelled[row]
        elif labelled[row] & ~has[first]:
            has[first] |= labelled[row]
        else:
            stays[row] = False
    return stays


def _shingles(text: str) -> set[str]:
    if len(text) <= _SHINGLE:
        return {text}
    return {text[start : start + _SHINGLE] for start in range(len(text) - _SHINGLE + 1)}


def _jaccard(first: set[str], second: set[str]) -> float:
    common = len(first & second)
    return common / (len(first) + len(second) - common)
