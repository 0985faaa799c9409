"""Rows that bring choices with them: one sequence of a text and all its choices, of which only the text is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_mtl.data.word_places import find_words
from hf_mtl.errors import DataError, ModelError

NEWLINE = "\n"


@dataclass(frozen=True)
class RowOfChoices:
    """One row with choices as the encoder reads it.

    Args:
        input_ids: token ids, special tokens included.
        token_type_ids: segment ids, 1 for the choices; `None` where the tokenizer gives none.
        first_tokens: position of each word's first token, -1 where it was cut off or has none, `(num_words,)`.
        choice_tokens: `[start, end)` of the tokens of each choice, -1 where the choices alone are too long, or one of
            them has no token, `(num_choices, 2)`.
        truncated: whether tokens were cut off.
    """

    input_ids: list[int]
    token_type_ids: list[int] | None
    first_tokens: np.ndarray
    choice_tokens: np.ndarray
    truncated: bool


def read_choices(value: Any) -> tuple[str, ...] | None:
    """Take in the choices of a row.

    Args:
        value: a list of texts, at least two; `None`, or an empty cell of a table, where the row has no choices.

    Raises:
        DataError: it is something else, or a choice is empty.

    Example:
        >>> read_choices(["red", "blue"])
        ('red', 'blue')
    """
    if value is None or (isinstance(value, str) and not value):
        return None
    texts: Any = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(texts, list | tuple) or len(texts) < 2:
        raise DataError(f"choices is {value!r}", mend="give choices as a list of two texts or more")
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"choice {number} is {text!r}", mend="give every choice as a text that is not empty")
    return tuple(map(str, texts))


def separator(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what stands between two choices: the token that separates texts, else that which ends them, else a new
    line."""
    for name in ("sep_token", "eos_token"):
        token = getattr(tokenizer, name, None)
        if isinstance(token, str) and token:
            return token
    return NEWLINE


def join_choices(
    tokenizer: PreTrainedTokenizerBase, choices: Sequence[str], text_pair: str | None = None
) -> tuple[str, np.ndarray]:
    """Join the choices to the second text of a pair, so that the first one is all that is ever cut.

    Before each choice stands a space, as for many tokenizers a word is another one without. A tokenizer that puts
    nothing between the texts of a pair gets a separator in front as well.

    Args:
        tokenizer: the tokenizer.
        choices: the choices.
        text_pair: the row's own second text, which goes in front of them.

    Returns:
        The text and the character offsets of the choices, `(num_choices, 2)`.
    """
    between = separator(tokenizer)
    apart = tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False)
    parts = ["" if apart else between]
    if text_pair is not None:
        parts += [text_pair, between]
    position, spans = sum(map(len, parts)), list[tuple[int, int]]()
    for text in choices:
        start = position + (len(between) if spans else 0) + 1
        parts += [between] * bool(spans) + [" ", text]
        position = start + len(text)
        spans.append((start, position))
    return "".join(parts), np.array(spans, dtype=np.int64)


def encode_choices(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[str, str, np.ndarray, np.ndarray]],
    *,
    max_length: int,
) -> list[RowOfChoices]:
    """Tokenize rows with choices; of a longer row the text is cut, on the side that the tokenizer cuts.

    Args:
        tokenizer: the tokenizer.
        rows: per row the text, what `join_choices` made beside it, the offsets of the choices in that,
            `(num_choices, 2)`, and those of the words in the text, `(num_words, 2)`.
        max_length: tokens of a row, special tokens included.

    Raises:
        ModelError: the tokenizer gives no offsets.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} gives no character offsets, which choices need",
            mend="use an encoder that has a fast tokenizer",
        )
    texts, seconds = [text for text, *_ in rows], [second for _, second, *_ in rows]
    options: Any = {"return_attention_mask": False, "return_offsets_mapping": True, "verbose": False}
    batch: Any = tokenizer(texts, seconds, truncation=False, padding=False, **options)
    token_types = batch.get("token_type_ids")
    from_end = tokenizer.truncation_side == "left"
    found: list[RowOfChoices] = []
    for place, (_, _, choice_spans, word_spans) in enumerate(rows):
        ids = np.array(batch["input_ids"][place], dtype=np.int64)
        offsets = np.array(batch["offset_mapping"][place], dtype=np.int64).reshape(-1, 2)
        parts = np.array([-1 if part is None else part for part in batch.sequence_ids(place)], dtype=np.int64)
        kept = _kept(parts, max_length, from_end=from_end)
        places = np.where(kept, np.cumsum(kept) - 1, -1)  # of each token, after some were cut off
        first = find_words(word_spans, offsets, parts == 0)
        tokens = _tokens_of(choice_spans, offsets, parts == 1)
        if (tokens < 0).any() or (places[tokens[:, 1] - 1] < 0).any():
            tokens = np.full_like(tokens, -1)
        else:
            tokens = np.stack([places[tokens[:, 0]], places[tokens[:, 1] - 1] + 1], axis=1)
        types = None if token_types is None else np.array(token_types[place])[kept].tolist()
        found.append(
            RowOfChoices(
                input_ids=ids[kept].tolist(),
                token_type_ids=types,
                first_tokens=np.where(first >= 0, places[first], -1),
                choice_tokens=tokens,
                truncated=not kept.all(),
            )
        )
    return found


def check_fit(tokenizer: PreTrainedTokenizerBase, choices: Sequence[str], text_pair: str | None, limit: int) -> None:
    """Check that the choices of a row are read to their ends, whatever its text is.

    Args:
        tokenizer: the tokenizer.
        choices: the choices.
        text_pair: the row's second text.
        limit: tokens that are read of a row.

    Raises:
        DataError: they are not, or one of them has no token.
    """
    second, spans = join_choices(tokenizer, choices, text_pair)
    # No tokenizer makes more tokens than letters of such a text, and the special ones are a few.
    if tokenizer.is_fast and second.isascii() and second.isprintable() and len(second) + 2 * len(choices) + 8 <= limit:
        return
    (row,) = encode_choices(tokenizer, [("", second, spans, spans[:0])], max_length=limit)
    if (row.choice_tokens >= 0).all():
        return
    if row.truncated:
        raise DataError(
            f"its {len(choices)} choices alone are longer than the {limit} tokens that are read of a row",
            mend="shorten the choices, or give fewer",
        )
    raise DataError("a choice has no token that the tokenizer knows", mend="give every choice as a readable text")


def _kept(parts: np.ndarray, limit: int, *, from_end: bool) -> np.ndarray:
    """Return which tokens are read: without as many of the text as are too many, and of the choices only in need."""
    kept = np.ones(len(parts), dtype=bool)
    excess = len(parts) - limit
    for part in (0, 1):
        own = np.flatnonzero(parts == part)
        if excess > 0 and len(own):
            gone = own[:excess] if part == 0 and from_end else own[-excess:]
            kept[gone] = False
            excess -= len(gone)
    return kept


def _tokens_of(spans: np.ndarray, offsets: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return `[start, end)` of the tokens that share a character with each span, -1 where none does."""
    tokens = np.flatnonzero(inside & (offsets[:, 1] > offsets[:, 0]))
    found = np.full((len(spans), 2), -1, dtype=np.int64)
    first = np.searchsorted(offsets[tokens, 1], spans[:, 0], side="right")
    end = np.searchsorted(offsets[tokens, 0], spans[:, 1], side="left")
    known = end > first
    found[known] = np.stack([tokens[first[known]], tokens[end[known] - 1] + 1], axis=1)
    return found
