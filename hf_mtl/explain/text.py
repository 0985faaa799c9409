"""A text as explanations see it: tokens, and the words (or tokens) that share out what is explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_mtl.data.choices import join_choices
from hf_mtl.data.encoding import Inputs, encode, words_of
from hf_mtl.data.windows import Reading
from hf_mtl.data.word_places import find_words
from hf_mtl.data.words import word_spans
from hf_mtl.errors import DataError, ModelError, SpecError, one_of
from hf_mtl.model.heads.base import Words
from hf_mtl.model.targets import Target

UNITS = ("word", "token")


@dataclass(frozen=True)
class Unit:
    """One word or token of a text.

    Args:
        text: as it stands in the text.
        start: character offset of its first character.
        end: character offset after its last.
        part: 0 in the text, 1 in the second text of a pair.
    """

    text: str
    start: int
    end: int
    part: int = 0


@dataclass(frozen=True, eq=False)
class ExplainedText:
    """One row, tokenized whole.

    Args:
        row: the row as it was given, with its words.
        input_ids: token ids with special tokens, `(num_tokens,)`.
        token_type_ids: segment ids of a pair, `(num_tokens,)`.
        units: what scores are given to.
        unit_of_token: index of each token's unit, -1 for special tokens, `(num_tokens,)`.
        offsets: character offsets of the tokens, `(num_tokens, 2)`.
        parts: 0 or 1 as in `Unit`, -1 for special tokens, `(num_tokens,)`.
        words: the words of the text, for tagging.
        governors: position of the token that governs each token, for token graphs, `(num_tokens,)`.
        second: what is read beside the text, which offsets of part 1 count in: its pair, or its choices.
    """

    row: Inputs
    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    units: tuple[Unit, ...]
    unit_of_token: np.ndarray
    offsets: np.ndarray
    parts: np.ndarray
    words: Words
    governors: np.ndarray
    second: str | None = None

    def sum_over_units(self, token_scores: np.ndarray) -> np.ndarray:
        """Add up the scores of each unit's tokens; those of special tokens belong to none.

        Args:
            token_scores: `(num_tokens,)`.

        Returns:
            `(num_units,)`, in float64.
        """
        inside = self.unit_of_token >= 0
        weights = np.asarray(token_scores, dtype=np.float64)[inside]
        return np.bincount(self.unit_of_token[inside], weights=weights, minlength=len(self.units))

    def tokens_of(self, units: np.ndarray) -> np.ndarray:
        """Tell which tokens belong to some of the units.

        Args:
            units: a bool per unit, `(..., num_units)`.

        Returns:
            A bool per token, `(..., num_tokens)`.
        """
        inside = self.unit_of_token >= 0
        chosen = np.zeros((*units.shape[:-1], len(self.input_ids)), dtype=bool)
        chosen[..., inside] = units[..., self.unit_of_token[inside]]
        return chosen

    def tokens_of_words(self, words: tuple[int, ...]) -> np.ndarray:
        """Tell which tokens share a character with some words of the text; a bool per token, `(num_tokens,)`."""
        chosen = np.zeros(len(self.input_ids), dtype=bool)
        for word in words:
            start, end = self.words.spans[word]
            chosen |= (self.parts == 0) & (self.offsets[:, 0] < end) & (self.offsets[:, 1] > start)
        return chosen

    def tokens_of_target(self, target: Target) -> np.ndarray:
        """Tell which tokens a target's score is read at, for targets that are a part of the row; `(num_tokens,)`."""
        chosen = self.tokens_of_words(target.words or ())
        for start, end in target.spans or ():
            chosen[start:end] = True
        return chosen

    def units_of_words(self, words: tuple[int, ...]) -> np.ndarray:
        """Tell which units stand for some words of the text; a bool per unit, `(num_units,)`."""
        chosen = np.zeros(len(self.units), dtype=bool)
        places = self.unit_of_token[self.tokens_of_words(words)]
        chosen[places[places >= 0]] = True
        return chosen


def read_text(tokenizer: Any, row: Inputs, *, units: str = "word") -> ExplainedText:
    """Tokenize a row and find its units.

    Args:
        tokenizer: a fast tokenizer whose `model_max_length` is the number of tokens the model reads.
        row: the row, with words.
        units: `"word"` or `"token"`.

    Raises:
        DataError: the text has more tokens than the model reads; explanations leave no part of a text out.
        ModelError: the tokenizer gives no offsets.
        SpecError: there are no such units.
    """
    if units not in UNITS:
        raise SpecError(f"units is {units!r}", mend=f"use one of {one_of(UNITS)}")
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} gives no character offsets, which explanations need",
            mend="use a model that has a fast tokenizer",
        )
    encoded = encode(tokenizer, [row], Reading(tokenizer.model_max_length, governors=True))
    if encoded.truncated[0]:
        raise DataError(
            f"the text has more than the {tokenizer.model_max_length} tokens that the model reads",
            mend="explain a part of it",
        )
    ids = np.array(encoded.input_ids[0], dtype=np.int64)
    second, pieces = second_text(tokenizer, row)
    batch = tokenizer(row.text, second, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    offsets = np.array(batch["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    parts = np.array([-1 if part is None else part for part in batch.sequence_ids(0)], dtype=np.int64)
    if not len(parts):  # a stand-in for a text without tokens
        offsets, parts = np.zeros((len(ids), 2), dtype=np.int64), np.full(len(ids), -1)
    found, unit_of_token = _find_units(row, second, pieces, offsets, parts, units)
    types = encoded.token_type_ids[0]
    words = words_of(row, encoded.first_tokens[0], encoded.choice_tokens.get(0))
    assert words is not None  # the row has its words
    return ExplainedText(
        row,
        ids,
        None if types is None else np.array(types),
        found,
        unit_of_token,
        offsets,
        parts,
        words,
        encoded.governors[0],
        second,
    )


def second_text(tokenizer: Any, row: Inputs) -> tuple[str | None, list[tuple[int, int]]]:
    """Return what is read beside a text, and the character offsets of what in it is the row's own: pair and choices."""
    if row.choices is None:
        return row.text_pair, [] if row.text_pair is None else [(0, len(row.text_pair))]
    second, spans = join_choices(tokenizer, row.choices, row.text_pair)
    start = second.index(row.text_pair) if row.text_pair else 0
    pair = [(start, start + len(row.text_pair))] if row.text_pair else []
    return second, [*pair, *((start, end) for start, end in spans.tolist())]


def _find_units(
    row: Inputs,
    second: str | None,
    pieces: list[tuple[int, int]],
    offsets: np.ndarray,
    parts: np.ndarray,
    units: str,
) -> tuple[tuple[Unit, ...], np.ndarray]:
    """Return the units, and the index of each token's unit; what separates choices is none."""
    found: list[Unit] = []
    unit_of_token = np.full(len(offsets), -1, dtype=np.int64)
    for part, text in enumerate((row.text, second)):
        if text is None:
            continue
        tokens = np.flatnonzero((parts == part) & (offsets[:, 1] > offsets[:, 0]))
        if part == 1 and row.choices is not None:
            inside = [((offsets[tokens, 0] < end) & (offsets[tokens, 1] > start)) for start, end in pieces]
            tokens = tokens[np.any(inside, axis=0)]
        if units == "token":
            spans, owner = offsets[tokens], np.arange(len(tokens))
        else:
            if part == 0:
                spans = row.word_spans if row.word_spans is not None else word_spans(text)
            else:
                spans = np.concatenate([start + word_spans(text[start:end]) for start, end in pieces])
            owner = _first_overlapping(spans, offsets[tokens])
        unit_of_token[tokens] = np.where(owner >= 0, owner + len(found), -1)
        found += [Unit(text[start:end], int(start), int(end), part) for start, end in spans]
    return tuple(found), unit_of_token


def _first_overlapping(spans: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return per token the first word that shares a character with it, -1 where none does."""
    everything = np.ones(len(spans), dtype=bool)
    return find_words(offsets, spans, everything) if len(spans) and len(offsets) else np.full(len(offsets), -1)
