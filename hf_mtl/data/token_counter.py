"""How many tokens texts have, without tokenizing them: the tokens of each word are counted once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

# A space belongs to the word after it, as tokenizers of the SentencePiece and GPT-2 kind take it.
_WORD = re.compile(r" ?\w+| ?[^\w\s]")

TABLE_WORDS = 1 << 15
"""Words whose tokens are remembered; when there are more, all are forgotten."""

BATCH_TEXTS = 500
"""Texts whose words are in memory together."""


class TokenCounter:
    """Counts the tokens of texts by their words.

    The count is exact where a tokenizer cuts words and signs apart before anything else, as BERT's does, and close to
    it otherwise; special tokens are not counted.

    Args:
        tokenizer: the tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._counts: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the number of tokens of each text, `(num_texts,)`."""
        tokens = np.empty(len(texts), dtype=np.int64)
        for start in range(0, len(texts), BATCH_TEXTS):
            words = [_WORD.findall(text) for text in texts[start : start + BATCH_TEXTS]]
            self._learn(set(chain.from_iterable(words)))
            count = self._counts.__getitem__
            tokens[start : start + BATCH_TEXTS] = [sum(map(count, own)) for own in words]
        return tokens

    def _learn(self, words: set[str]) -> None:
        unknown = words - self._counts.keys()
        if len(self._counts) + len(unknown) > TABLE_WORDS:
            self._counts.clear()
            unknown = words
        if unknown:
            options: Any = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
            ids: Any = self._tokenizer(list(unknown), **options)["input_ids"]
            self._counts.update(zip(unknown, map(len, ids), strict=True))
