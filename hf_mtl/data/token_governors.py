"""Dependency graphs: from the heads of words, as CoNLL-U counts them, to the token that governs each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from hf_mtl.errors import DataError

GOVERNORS = "governors"
"""Column that encoded rows have where a task has a token graph."""


def read_heads(heads: Any, words: Sequence[str]) -> np.ndarray | None:
    """Check the heads of a row's words.

    Args:
        heads: for each word the number of the word that governs it, counted from 1, 0 for the root, and `None` where
            it is open; a list, or `None`.
        words: the words.

    Returns:
        The heads, 0 where they are open, `(num_words,)`; `None` where all are.

    Raises:
        DataError: they are of the wrong kind or number, or not among the words.

    Example:
        >>> read_heads([2, 0, 2], ["dogs", "chase", "cats"]).tolist()
        [2, 0, 2]
    """
    if heads is None:
        return None
    numbers = f"give whole numbers from 0, the root, to {len(words)}, one for each of the words"
    if isinstance(heads, str) or not isinstance(heads, list | tuple | np.ndarray):
        raise DataError(f"heads is {heads!r}, not a list", mend=numbers)
    given: Sequence[Any] = heads.tolist() if isinstance(heads, np.ndarray) else cast(Sequence[Any], heads)
    if len(given) != len(words):
        raise DataError(f"there are {len(given)} heads for {len(words)} words", mend=numbers)
    for place, head in enumerate(given, start=1):
        if head is None:
            continue
        if not isinstance(head, int) or isinstance(head, bool) or not 0 <= head <= len(words):
            raise DataError(f"the head of word {place}, {words[place - 1]!r}, is {head!r}", mend=numbers)
        if head == place:
            raise DataError(
                f"the head of word {place}, {words[place - 1]!r}, is itself", mend="count from 1, and write 0 for roots"
            )
    if all(head is None for head in given):
        return None
    return np.array([head or 0 for head in given], dtype=np.int64)


def count_graphs(rows: Sequence[Any]) -> int:
    """Return how many rows have a graph, given the heads of each.

    Example:
        >>> count_graphs([[2, 0], None, [None, None]])
        1
    """
    return sum(row is not None and any(head is not None for head in row) for row in rows)


def token_governors(
    inside: np.ndarray, first_tokens: np.ndarray | None = None, heads: np.ndarray | None = None
) -> np.ndarray:
    """Find the token that governs each token: the first one of its word, or of the word that governs that word.

    Without heads each word is governed by the one before it, and without words each token: neighbours share an edge.

    Args:
        inside: whether a token has characters of the text, `(num_tokens,)`; no edge reaches the others.
        first_tokens: position of each word's first token, -1 where it has none or was cut off, `(num_words,)`.
        heads: the number of each word's governor, counted from 1, 0 where it has none, `(num_words,)`.

    Returns:
        Positions, a token's own where nothing governs it, `(num_tokens,)`. So it is with words whose governor was cut
        off.

    Example:
        "Dogs don't bark" with one token each but for "don't", which has two, between special tokens:

        >>> inside, first = np.array([0, 1, 1, 1, 1, 0], dtype=bool), np.array([1, 2, 4])
        >>> token_governors(inside, first, np.array([3, 3, 0])).tolist()
        [0, 4, 4, 2, 4, 5]
        >>> token_governors(inside, first).tolist(), token_governors(inside).tolist()
        ([0, 1, 1, 2, 2, 5], [0, 1, 1, 2, 3, 5])
    """
    governors = np.arange(len(inside))
    tokens = np.flatnonzero(inside)
    if first_tokens is None:
        governors[tokens[1:]] = tokens[:-1]
        return governors
    starts = np.unique(first_tokens[first_tokens >= 0])
    if not len(starts):
        return governors
    word = np.searchsorted(starts, tokens, side="right") - 1
    governors[tokens[word >= 0]] = starts[word[word >= 0]]
    if heads is None:
        governors[starts[1:]] = starts[:-1]
        return governors
    above = np.where(heads > 0, first_tokens[heads - 1], -1)
    # Words of one token have one governor: the first that is not that token.
    joined = np.flatnonzero((first_tokens >= 0) & (above >= 0) & (above != first_tokens))[::-1]
    governors[first_tokens[joined]] = above[joined]
    return governors


def cut_governors(governors: np.ndarray, start: int, size: int, around: tuple[int, int]) -> np.ndarray:
    """Return the governors of a window's tokens.

    Args:
        governors: those of a text's tokens, without special tokens, `(num_tokens,)`.
        start: the first token of the window.
        size: tokens of the text in the window.
        around: special tokens before and after them.

    Example:
        >>> cut_governors(np.array([0, 0, 1, 2]), 1, 2, (1, 1)).tolist()
        [0, 1, 1, 3]
    """
    before, after = around
    window = np.arange(before + size + after)
    own = governors[start : start + size] - start
    inside = (own >= 0) & (own < size)
    window[before : before + size][inside] = own[inside] + before
    return window


def keep_tokens(governors: np.ndarray, kept: np.ndarray) -> list[np.ndarray]:
    """Return the governors of what is left of a text where tokens are taken out of it.

    A token whose governor is gone is governed by the next one above that is left; so neighbours stay a chain.

    Args:
        governors: those of the text, `(num_tokens,)`.
        kept: the tokens that stay, bool `(variants, num_tokens)`.

    Returns:
        For each variant the governors of its tokens, `(tokens left,)`.

    Example:
        >>> [left.tolist() for left in keep_tokens(np.array([0, 0, 1, 2]), np.array([[1, 0, 1, 1], [0, 1, 0, 1]]) > 0)]
        [[0, 0, 1], [0, 0]]
    """
    above = np.where(kept, np.arange(len(governors)), governors)
    for _ in range(max(1, len(governors)).bit_length()):  # each time twice as far up
        above = np.take_along_axis(above, above, axis=1)
    above = above[:, governors]
    left: list[np.ndarray] = []
    for found, own in zip(above, kept, strict=True):
        places = np.cumsum(own) - 1
        left.append(np.where(own[found], places[found], places)[own])
    return left
