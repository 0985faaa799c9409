"""Long texts: how much of a row is read, the windows of a longer one, and the window that each word belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_mtl.configuration import TaskSpec, check_stride
from hf_mtl.data.token_governors import cut_governors
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.model.heads.base import TaskHead, Words


@dataclass(frozen=True)
class Reading:
    """How much of a row is read, for all tasks that are asked together.

    Args:
        max_length: tokens of a row, or of each of its windows, special tokens included.
        stride: tokens that two neighbouring windows share; `None` cuts longer rows.
        governors: whether the tokens' governors are read, which tasks with a token graph need.
    """

    max_length: int
    stride: int | None = None
    governors: bool = False


def reading_of(specs: Sequence[TaskSpec], tokenizer: PreTrainedTokenizerBase) -> Reading:
    """Return how rows are read for some tasks: as far as any of them reads, and in windows if any of them does.

    Args:
        specs: the tasks that are asked together.
        tokenizer: its `model_max_length` is what tasks read that name no `max_length`.

    Raises:
        SpecError: a stride leaves no room for new tokens.
        ModelError: windows are asked for, and the tokenizer does not say what it cuts off.
    """
    own = tokenizer.model_max_length
    reading = Reading(
        max((spec.max_length or own for spec in specs), default=own),
        max((spec.stride for spec in specs if spec.stride is not None), default=None),
        any(spec.token_graph for spec in specs),
    )
    if reading.stride is None:
        return reading
    for spec in specs:
        try:
            check_stride(spec.stride, spec.max_length or own)
        except SpecError as error:
            raise error.at(f"task {spec.name!r}") from None
    special = tokenizer.num_special_tokens_to_add()
    if reading.stride >= reading.max_length - special:
        raise SpecError(
            f"stride is {reading.stride}, and windows of {reading.max_length} tokens have {special} special tokens",
            mend=f"use less than {reading.max_length - special}",
        )
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} does not say what it cuts off, which windows need",
            mend="use an encoder that has a fast tokenizer, or leave stride out",
        )
    return reading


@dataclass(frozen=True)
class Windows:
    """The windows of one row, all of one length.

    Args:
        input_ids: token ids of each window, special tokens included; the first window is what the row is cut to
            where it is not read in windows.
        first_tokens: position of each word's first token, counted over the tokens of all windows end to end, in the
            window that the word belongs to; -1 where it has none, `(num_words,)`. `None` for rows without words.
        governors: position in its window of the token that governs each token of it, its own where that one stands in
            another; empty where they are not read.
    """

    input_ids: list[list[int]]
    first_tokens: np.ndarray | None = None
    governors: list[np.ndarray] = field(default_factory=list[np.ndarray], repr=False)


def cut_windows(
    tokens: Sequence[int],
    first_tokens: np.ndarray | None,
    governors: np.ndarray | None = None,
    *,
    around: tuple[Sequence[int], Sequence[int]],
    size: int,
    stride: int,
    from_end: bool = False,
) -> Windows:
    """Cut a text's tokens into windows.

    Args:
        tokens: ids of all tokens of the text, without special tokens, more than a window holds.
        first_tokens: position of each word's first token among them, -1 where it has none, `(num_words,)`.
        governors: position of the token that governs each of them, `(num_tokens,)`; `None` where they are not read.
        around: ids of the special tokens before and after those of each window.
        size: tokens of the text in a window.
        stride: tokens that two neighbouring windows share at least.
        from_end: whether the first window is the end of the text, as for tokenizers that cut off the beginning.

    Example:
        >>> cut_windows([1, 2, 3, 4, 5], np.array([2, 4]), around=([0], []), size=3, stride=1)
        Windows(input_ids=[[0, 1, 2, 3], [0, 3, 4, 5]], first_tokens=array([3, 7]))
    """
    starts = window_starts(len(tokens), size, stride)
    before, after = around
    windows = [[*before, *tokens[start : start + size], *after] for start in starts.tolist()]
    outside = len(before), len(after)
    cut = [cut_governors(governors, start, size, outside) for start in starts.tolist()] if governors is not None else []
    if from_end:
        windows.reverse()
        cut.reverse()
    if first_tokens is None:
        return Windows(windows, governors=cut)
    chosen = choose_windows(first_tokens, starts, size)
    inside = len(before) + first_tokens - starts[chosen]
    places = len(windows) - 1 - chosen if from_end else chosen
    positions = places * len(windows[0]) + inside
    return Windows(windows, np.where(first_tokens >= 0, positions, -1), cut)


def window_starts(length: int, size: int, stride: int) -> np.ndarray:
    """Return where windows begin that cover a text; the last is moved back to be as long as the others.

    Args:
        length: tokens of the text, more than `size`.
        size: tokens of a window.
        stride: tokens that two neighbouring windows share at least, less than `size`.

    Returns:
        First tokens of the windows, ascending, `(num_windows,)`.

    Example:
        >>> window_starts(12, size=5, stride=2).tolist()
        [0, 3, 6, 7]
    """
    return np.array([*range(0, length - size, size - stride), length - size], dtype=np.int64)


def choose_windows(tokens: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
    """Return the window in which each token has the most context on its nearer side, the earlier one of two.

    That is the window whose middle is nearest to the token.

    Args:
        tokens: positions in the text, `(num_tokens,)`.
        starts: first tokens of the windows, ascending, `(num_windows,)`.
        size: tokens of a window.

    Returns:
        Places of the windows among `starts`, `(num_tokens,)`.

    Example:
        >>> choose_windows(np.arange(8), np.array([0, 3]), size=5).tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    middles = 2 * starts + size - 1  # doubled, as is their mean below, to stay among whole numbers
    return np.searchsorted(middles[:-1] + middles[1:], 4 * tokens, side="left")


def split_label(head: type[TaskHead], label: Any, windows: int) -> list[Any]:
    """Give the label of a row to each of its windows, for training.

    Args:
        head: the head's class.
        label: the encoded label; that of a token-level head covers the tokens of all windows end to end.
        windows: number of windows, all of one length.

    Returns:
        The same label for every window where the head is pooled, else each window's own part of it.
    """
    if head.pooled:
        return [label] * windows
    length = len(label) // windows
    return [label[start : start + length] for start in range(0, len(label), length)]


def merge_windows(head: type[TaskHead], logits: Sequence[np.ndarray]) -> np.ndarray:
    """Make the logits of a row from those of its windows.

    Args:
        head: the head's class.
        logits: of each window, in their order, float32 `(num_labels,)`, or `(tokens, num_labels)` of token-level heads.

    Returns:
        Their mean, `(num_labels,)`, where the head is pooled. Else all of them end to end, `(tokens of all windows,
        num_labels)`: the first token of each word stands in the window with the most context (`choose_windows`).
    """
    if head.pooled:
        return np.asarray(np.mean(logits, axis=0, dtype=np.float64), dtype=np.float32)
    return np.concatenate(logits)


@dataclass(frozen=True)
class Layout:
    """Which encoded rows are the windows of which row, and where its words stand in them.

    Args:
        rows: the row that each encoded row belongs to, ascending, `(num_encoded,)`.
        words: the words of each row as its first window has them, `None` for rows without.
        joined: the words of rows of several windows, each in its own window, with positions counted over the tokens
            of all windows end to end.
    """

    rows: np.ndarray
    words: Sequence[Words | None]
    joined: Mapping[int, Words]

    @cached_property
    def windows(self) -> np.ndarray:
        """Number of windows of each row, `(num_rows,)`."""
        return np.bincount(self.rows, minlength=len(self.words))

    @cached_property
    def starts(self) -> np.ndarray:
        """The encoded row that is each row's first window, `(num_rows,)`."""
        return np.searchsorted(self.rows, np.arange(len(self.words)))

    def words_for(self, spec: TaskSpec, row: int) -> Words | None:
        """Return a row's words for a task: of all windows if the task reads them, else of the first."""
        joined = self.joined.get(row) if spec.stride is not None else None
        return self.words[row] if joined is None else joined
