"""From rows of text to token ids, and from words to the tokens that stand for them.

Texts and rows of tokens take one path: tokens are joined to a text whose word offsets are known, the text is tokenized
as it is, and each word is found again by its offsets. So a model trained on tokens reads a plain text in just the same
way, with every tokenizer that gives offsets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

from hf_mtl.data.choices import encode_choices, join_choices, read_choices
from hf_mtl.data.token_governors import GOVERNORS, read_heads, token_governors
from hf_mtl.data.windows import Layout, Reading, Windows, cut_windows
from hf_mtl.data.word_places import find_words, find_words_of_rows
from hf_mtl.data.words import join_tokens, word_spans
from hf_mtl.errors import DataError, ModelError
from hf_mtl.model.choices import Choices
from hf_mtl.model.encoders.base import check_max_length, max_positions
from hf_mtl.model.heads.base import Words

DEFAULT_MAX_LENGTH = 512
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Inputs:
    """What users hand in for one row: a text (and perhaps its pair), or tokens.

    Args:
        text: the text; the tokens joined, where tokens were given.
        text_pair: the second text of a pair.
        word_spans: character offsets of the words, `(num_words, 2)`; `None` where nobody asks for words.
        tokens_given: whether the words are tokens that the user gave.
        heads: number of the word that governs each word, counted from 1, 0 for roots, `(num_words,)`; `None` where
            the graph is not known.
        choices: the choices of a row that brings some; its words are then known, too.
    """

    text: str
    text_pair: str | None = None
    word_spans: np.ndarray | None = None
    tokens_given: bool = False
    heads: np.ndarray | None = None
    choices: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        text: Any = None,
        text_pair: Any = None,
        tokens: Any = None,
        heads: Any = None,
        choices: Any = None,
        *,
        split_words: bool = False,
    ) -> Inputs:
        """Check and take in what a row holds.

        Args:
            text: a string; `None` counts as an empty text where there are no tokens.
            text_pair: a string or `None`.
            tokens: a list of strings, used instead of `text`.
            heads: for each token the number of the one that governs it, see `hf_mtl.data.token_governors.read_heads`.
            choices: a list of strings or `None`.
            split_words: whether to split a text into words, for tasks that answer word by word.

        Raises:
            DataError: a value is of the wrong kind.
        """
        if text_pair is not None and not isinstance(text_pair, str):
            raise DataError(f"text_pair is {text_pair!r}", mend="give text_pair as a string")
        choices = read_choices(choices)
        if tokens is not None:
            joined, spans = join_tokens(tokens)
            return cls(joined, text_pair, spans, tokens_given=True, heads=read_heads(heads, tokens), choices=choices)
        if heads is not None:
            raise DataError("heads are given without tokens", mend="give the tokens that they are numbers of")
        if text is not None and not isinstance(text, str):
            raise DataError(f"text is {text!r}", mend="give text as a string")
        text = text or ""
        spans = word_spans(text) if split_words or choices is not None else None
        return cls(text, text_pair, spans, choices=choices)

    @property
    def beside(self) -> str | None:
        """What stands beside the text as one text: its pair, then the choices; `None` where there is neither."""
        if self.choices is None:
            return self.text_pair
        return "\n".join(self.choices if self.text_pair is None else (self.text_pair, *self.choices))


def read_inputs(
    row: Any,
    *,
    text: str = "text",
    text_pair: str = "text_pair",
    tokens: str = "tokens",
    heads: str | None = None,
    choices: str | None = None,
    split_words: bool = False,
) -> Inputs:
    """Take in a row as users hand it to a pipeline or keep it in a file.

    Args:
        row: a text, or a mapping with a text (and perhaps its pair), else with tokens; other keys are not read.
        text: key of the text.
        text_pair: key of the second text of a pair.
        tokens: key of the tokens, read where there is no text, or where the row has heads.
        heads: key of the tokens' heads; `None` does not read them.
        choices: key of the choices; not read where not given.
        split_words: whether to split a text into words, for tasks that answer word by word.

    Raises:
        DataError: the row has neither, or a value is of the wrong kind.

    Example:
        >>> read_inputs({"tokens": ["play", "jazz"]}).text
        'play jazz'
    """
    if isinstance(row, str):
        return Inputs.of(row, split_words=split_words)
    if not isinstance(row, Mapping):
        raise DataError(f"{row!r} is no row", mend=f"give a text, or a mapping with {text!r} or {tokens!r}")
    graph = None if heads is None else row.get(heads)
    given = None if choices is None else row.get(choices)
    if row.get(text) is not None and (graph is None or row.get(tokens) is None):
        return Inputs.of(row[text], row.get(text_pair), heads=graph, choices=given, split_words=split_words)
    if row.get(tokens) is not None:
        return Inputs.of(tokens=row[tokens], heads=graph, choices=given)
    raise DataError(f"the row has neither {text!r} nor {tokens!r}", mend="give one of them")


@dataclass(frozen=True)
class Encoded:
    """Rows as the encoder reads them.

    Args:
        input_ids: token ids per row, special tokens included, at least one.
        token_type_ids: segment ids per row; `None` for rows without a second text.
        first_tokens: per row the position of each word's first token, -1 where it was cut off or has none; `None` for
            rows without words.
        truncated: per row whether tokens were cut off.
        governors: per row the position of the token that governs each token; empty where they are not read.
        choice_tokens: of each row with choices `[start, end)` of their tokens, -1 where they are too long,
            `(num_choices, 2)`.
        windows: the windows of each row that is longer and was to be read in windows; what stands above is its first.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int] | None]
    first_tokens: list[np.ndarray | None]
    truncated: list[bool]
    governors: list[np.ndarray] = field(default_factory=list[np.ndarray])
    choice_tokens: dict[int, np.ndarray] = field(default_factory=dict[int, np.ndarray])
    windows: dict[int, Windows] = field(default_factory=dict[int, Windows])

    def features(self) -> Iterator[dict[str, Any]]:
        """Yield `input_ids`, `token_type_ids` and, where read, `governors` of each row, or of each of its windows."""
        for row, (ids, types) in enumerate(zip(self.input_ids, self.token_type_ids, strict=True)):
            windows = self.windows.get(row)
            for place, own in enumerate([ids] if windows is None else windows.input_ids):
                feature: dict[str, Any] = {"input_ids": own, "token_type_ids": types}
                if self.governors:
                    feature[GOVERNORS] = self.governors[row] if windows is None else windows.governors[place]
                yield feature

    def layout(self, rows: Sequence[Inputs]) -> Layout:
        """Return what belongs to which of the rows that were encoded."""
        counts = np.ones(len(rows), dtype=np.int64)
        joined: dict[int, Words] = {}
        for row, windows in self.windows.items():
            counts[row] = len(windows.input_ids)
            words = words_of(rows[row], windows.first_tokens)
            if words is not None:
                joined[row] = words
        first = enumerate(zip(rows, self.first_tokens, strict=True))
        words = [words_of(row, own, self.choice_tokens.get(place)) for place, (row, own) in first]
        return Layout(np.repeat(np.arange(len(rows)), counts), words, joined)


def forget_last_call(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer forget how its last call cut and padded texts, which it would be saved with.

    What is saved would depend on whether anything was tokenized, or all of it found in the cache; transformers says
    anew with every call what to cut and pad.
    """
    if tokenizer.is_fast:
        backend: Any = cast(Any, tokenizer).backend_tokenizer
        backend.no_truncation()
        backend.no_padding()


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Inputs], reading: Reading | None = None) -> Encoded:
    """Tokenize rows, cut to a length or, where they are longer, in windows of that length.

    Args:
        tokenizer: the tokenizer.
        rows: the rows; those with and without a second text may be mixed. Pairs are always cut, and of rows with
            choices the text alone.
        reading: how much is read; the tokenizer's `model_max_length` where not given.

    Raises:
        ModelError: words are asked for and the tokenizer gives no offsets.
    """
    reading = reading or Reading(tokenizer.model_max_length)
    plain = [index for index, row in enumerate(rows) if row.choices is None]
    single = [index for index in plain if rows[index].text_pair is None]
    paired = [index for index in plain if rows[index].text_pair is not None]
    encoded = Encoded([[]] * len(rows), [None] * len(rows), [None] * len(rows), [False] * len(rows))
    if reading.governors:
        encoded.governors.extend([np.zeros(0, dtype=np.int64)] * len(rows))
    for indices in (single, paired):
        if indices:
            _encode_into(encoded, tokenizer, rows, indices, reading)
    if len(plain) < len(rows):
        _encode_choices_into(encoded, tokenizer, rows, reading)
    return encoded


def _encode_choices_into(
    encoded: Encoded, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Inputs], reading: Reading
) -> None:
    none = np.zeros((0, 2), dtype=np.int64)
    joined: dict[int, tuple[str, str, np.ndarray, np.ndarray]] = {}
    for index, row in enumerate(rows):
        if row.choices is not None:
            pair = None if row.text_pair is None else _encodable(row.text_pair)
            second, spans = join_choices(tokenizer, [_encodable(text) for text in row.choices], pair)
            joined[index] = _encodable(row.text), second, spans, none if row.word_spans is None else row.word_spans
    found = encode_choices(tokenizer, list(joined.values()), max_length=reading.max_length)
    for index, own in zip(joined, found, strict=True):
        encoded.input_ids[index], encoded.token_type_ids[index] = own.input_ids, own.token_type_ids
        encoded.first_tokens[index], encoded.truncated[index] = own.first_tokens, own.truncated
        encoded.choice_tokens[index] = own.choice_tokens
        if reading.governors:  # nobody gives heads for the choices: all tokens are a chain
            encoded.governors[index] = np.maximum(np.arange(len(own.input_ids)) - 1, 0)


def _encode_into(
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Inputs],
    indices: Sequence[int],
    reading: Reading,
) -> None:
    chosen = [rows[index] for index in indices]
    texts = [_encodable(row.text) for row in chosen]
    pairs = [_encodable(row.text_pair) for row in chosen if row.text_pair is not None] or None
    with_words = reading.governors or any(row.word_spans is not None for row in chosen)
    if with_words and not tokenizer.is_fast:
        what = "token graphs need" if reading.governors else "tagging needs"
        raise ModelError(
            f"{type(tokenizer).__name__} gives no character offsets, which {what}",
            mend="use an encoder that has a fast tokenizer",
        )
    if pairs is not None and tokenizer.is_fast and tokenizer.truncation_side == "right":
        _shorten_pairs(tokenizer, texts, pairs, reading.max_length)
    batch = tokenizer(
        texts,
        pairs,
        truncation=True,
        padding=False,
        max_length=reading.max_length,
        return_attention_mask=False,
        return_offsets_mapping=with_words,
    )
    input_ids: Any = batch["input_ids"]
    token_types: Any = batch.get("token_type_ids") if pairs else None
    words = [row.word_spans for row in chosen]
    first = find_words_of_rows(words, batch, paired=pairs is not None) if with_words else [None] * len(chosen)
    for place, index in enumerate(indices):
        encoded.input_ids[index] = input_ids[place] or [_stand_in(tokenizer)]
        encoded.token_type_ids[index] = token_types[place] if token_types else None
        encoded.truncated[index] = _is_truncated(tokenizer, batch, place, reading.max_length)
        encoded.first_tokens[index] = first[place]
        if reading.governors:
            encoded.governors[index] = _governors(batch, place, first[place], chosen[place].heads)
        if reading.stride is not None and pairs is None and encoded.truncated[index]:
            encodings: Any = batch.encodings
            from_end = tokenizer.truncation_side == "left"
            encoded.windows[index] = _windows(encodings[place], chosen[place], reading, from_end=from_end)


def _windows(encoding: Any, row: Inputs, reading: Reading, *, from_end: bool) -> Windows:
    """Cut the windows of a text that was cut off, from the parts that the tokenizer has made of all of it."""
    in_text = np.flatnonzero([number == 0 for number in encoding.sequence_ids])
    inside = slice(int(in_text[0]), int(in_text[-1]) + 1)
    parts = [encoding, *encoding.overflowing]
    if from_end:
        parts.reverse()
    behind = len(encoding.ids) - inside.stop  # the last part may be shorter
    tokens = [token for part in parts for token in part.ids[inside.start : len(part.ids) - behind]]
    first = governors = None
    if row.word_spans is not None:
        pairs = [pair for part in parts for pair in part.offsets[inside.start : len(part.ids) - behind]]
        offsets = np.array(pairs, dtype=np.int64)
        first = find_words(row.word_spans, offsets, np.ones(len(tokens), dtype=bool))
        if reading.governors:
            governors = token_governors(offsets[:, 1] > offsets[:, 0], first, row.heads)
    around = encoding.ids[: inside.start], encoding.ids[inside.stop :]
    size, stride = inside.stop - inside.start, reading.stride or 0
    return cut_windows(tokens, first, governors, around=around, size=size, stride=stride, from_end=from_end)


def _governors(batch: Any, place: int, first_tokens: np.ndarray | None, heads: np.ndarray | None) -> np.ndarray:
    """Find the governors of a row's tokens; those of a second text, whose words nobody asks for, are a chain."""
    offsets = np.array(batch["offset_mapping"][place], dtype=np.int64).reshape(-1, 2)
    if not len(offsets):
        return np.zeros(1, dtype=np.int64)  # of a stand-in
    filled = offsets[:, 1] > offsets[:, 0]
    second = np.array([number == 1 for number in batch.sequence_ids(place)], dtype=bool)
    own = token_governors(filled & ~second, first_tokens, heads)
    return np.where(second, token_governors(filled & second), own) if second.any() else own


def _shorten_pairs(tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str], limit: int) -> None:
    """Cut long pairs, in place, to little more than the tokens that are kept of them.

    Tokenizers keep what they cut off of a pair: each part of one text with each part of the other, which takes
    gigabytes for two texts of 20,000 tokens.
    """
    long = [index for index, text in enumerate(texts) if len(text) + len(pairs[index]) > 4 * limit]
    if not long:
        return
    options: Any = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    ends = [
        [
            [end for _, end in offsets]
            for offsets in tokenizer([side[index] for index in long], **options)["offset_mapping"]
        ]
        for side in (texts, pairs)
    ]
    for place, index in enumerate(long):
        counts = [len(side[place]) for side in ends]
        for side, own, count, other in zip((texts, pairs), ends, counts, reversed(counts), strict=True):
            # The longer text is cut first, so none loses tokens while it has less than half. Some more than are kept,
            # for the last of them may be others where the text ends; and the longer one stays the longer.
            kept = max(limit - other, limit // 2 + 1) + 16 + (count > other)
            if count > kept:
                side[index] = side[index][: own[place][kept - 1]]


def _encodable(text: str) -> str:
    """Replace lone surrogates, which tokenizers refuse, by as many characters."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def words_of(row: Inputs, first: np.ndarray | None, choice_tokens: np.ndarray | None = None) -> Words | None:
    """Return a row's words, and its choices, with the tokens that stand for them; `None` for a row without words.

    Args:
        row: the row.
        first: position of each word's first token.
        choice_tokens: `[start, end)` of the tokens of each choice, perhaps in one row of numbers.
    """
    if row.word_spans is None or first is None:
        return None
    choices = None
    if row.choices is not None and choice_tokens is not None:
        choices = Choices(row.choices, np.asarray(choice_tokens, dtype=np.int64).reshape(-1, 2))
    positions = np.asarray(first, dtype=np.int64)
    return Words(row.text, row.word_spans, positions, given=row.tokens_given, choices=choices)


def _is_truncated(tokenizer: PreTrainedTokenizerBase, batch: Any, place: int, limit: int) -> bool:
    if tokenizer.is_fast:
        return bool(batch.encodings[place].overflowing)
    return len(batch["input_ids"][place]) >= limit


def _stand_in(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return a token for a text that has none (decoders add no special tokens): an encoder needs one to read."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if isinstance(token, int):
            return token
    return 0


def set_max_length(
    tokenizer: PreTrainedTokenizerBase, encoder_config: PreTrainedConfig, max_length: int | None = None
) -> int:
    """Settle how many tokens a row may have, and keep it in the tokenizer, where it is saved and loaded with the model.

    Args:
        tokenizer: gets the number as its `model_max_length`.
        encoder_config: configuration of the encoder, for the number of its positions.
        max_length: the number asked for; without it the least of the tokenizer's, the encoder's and 512.

    Returns:
        The number of tokens, special tokens included.

    Raises:
        SpecError: `max_length` is less than 8 or more than the encoder can read.
    """
    positions = max_positions(encoder_config)
    limits = [limit for limit in (tokenizer.model_max_length, positions) if limit is not None and limit < 10**6]
    if max_length is None:
        length = min([*limits, DEFAULT_MAX_LENGTH])
    else:
        check_max_length(max_length, encoder_config)
        length = max_length
    tokenizer.model_max_length = length
    return length
