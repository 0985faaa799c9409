"""Which token a word begins in, found by the characters that both share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np


def find_words(spans: np.ndarray, offsets: np.ndarray, in_text: np.ndarray) -> np.ndarray:
    """Find the first token of each word.

    Args:
        spans: character offsets of the words, ascending, `(num_words, 2)`.
        offsets: character offsets of the tokens, `(num_tokens, 2)`.
        in_text: whether a token belongs to the text the spans point into, `(num_tokens,)`.

    Returns:
        Position of the first token that shares a character with the word, -1 where none does, `(num_words,)`.
    """
    return _find_words([spans], offsets, in_text, [len(offsets)])[0]


def find_words_of_rows(spans: Sequence[np.ndarray | None], batch: Any, *, paired: bool) -> list[np.ndarray | None]:
    """Find the first token of each word of each row, all rows at once.

    Args:
        spans: character offsets of the words of each row, `None` for rows without words.
        batch: what the tokenizer returned, with offsets.
        paired: whether the rows are pairs of texts; the spans point into the first.

    Returns:
        What `find_words` does for each row.
    """
    given: list[list[tuple[int, int]]] = batch["offset_mapping"]
    counts = [len(offsets) for offsets in given]
    offsets = np.fromiter(chain.from_iterable(chain.from_iterable(given)), np.int64, count=2 * sum(counts))
    in_text = np.ones(sum(counts), dtype=bool)  # special tokens have no characters
    if paired:
        numbers = chain.from_iterable(batch.sequence_ids(place) for place in range(len(spans)))
        in_text = np.array([number == 0 for number in numbers], dtype=bool)
    none = np.zeros((0, 2), dtype=np.int64)
    known = [none if own is None else own for own in spans]
    found = _find_words(known, offsets.reshape(-1, 2), in_text, counts)
    return [None if own is None else first for own, first in zip(spans, found, strict=True)]


def _find_words(
    spans: Sequence[np.ndarray], offsets: np.ndarray, in_text: np.ndarray, counts: Sequence[int]
) -> list[np.ndarray]:
    """Do what `find_words` does for many rows, whose tokens stand end to end: `counts` has their numbers."""
    words = np.concatenate(spans)
    word_counts = [len(own) for own in spans]
    rows = np.arange(len(spans))
    row_of_word, row_of_token = np.repeat(rows, word_counts), np.repeat(rows, counts)
    tokens = np.flatnonzero(in_text & (offsets[:, 1] > offsets[:, 0]))
    first = np.full(len(words), -1, dtype=np.int64)
    if len(tokens) and len(words):
        # Rows are set apart as if their texts stood end to end, with room between them.
        apart = 2 + max(int(offsets.max()), int(words.max()))
        ends = offsets[tokens, 1] + row_of_token[tokens] * apart
        place = np.searchsorted(ends, words[:, 0] + row_of_word * apart, side="right")  # the first that ends after it
        token = tokens[np.minimum(place, len(tokens) - 1)]
        found = (place < len(tokens)) & (row_of_token[token] == row_of_word) & (offsets[token, 0] < words[:, 1])
        # An empty word shares no character, not even with a token that reaches over its place.
        found &= words[:, 1] > words[:, 0]
        starts = np.cumsum([0, *counts])
        first[found] = (token - starts[row_of_word])[found]
    ends = np.cumsum(word_counts)
    return [first[end - count : end] for end, count in zip(ends.tolist(), word_counts, strict=True)]
