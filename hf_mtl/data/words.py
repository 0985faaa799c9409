"""The words of a text, and the text of words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from unicodedata import category

import numpy as np

from hf_mtl.errors import DataError

# Scripts written without spaces: Han, kana, Thai, Lao, Myanmar and Khmer; Hangul is spaced.
_UNSPACED = (
    r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}，。、？！；：「」『』（）]")
_ASCII_WORD = re.compile(r"[A-Za-z0-9_]+|[^A-Za-z0-9_\s]")  # what `_word` finds in ASCII, five times as fast


@cache
def _word() -> re.Pattern[str]:
    """Return the pattern of a word: a run of letters and digits, a character of an unspaced script, or any one sign.

    Marks (accents, vowel signs) and joiners belong to what they follow; `re` has no class for marks.
    """
    marks = "".join(chr(code) for code in range(0x300, 0x20000) if category(chr(code))[0] == "M") + "\u200c\u200d"
    return re.compile(rf"[{_UNSPACED}][{marks}]*|(?:(?![{_UNSPACED}])[\w{marks}])+|[^\w\s][{marks}]*")


def word_spans(text: str) -> np.ndarray:
    """Split a text of any script into words, signs and, where no spaces are written, characters, each with its marks.

    Returns:
        Character offsets `[start, end)`, shape `(num_words, 2)`.

    Example:
        >>> [("Don't stop, 上海!"[start:end]) for start, end in word_spans("Don't stop, 上海!")]
        ['Don', "'", 't', 'stop', ',', '上', '海', '!']
    """
    pattern = _ASCII_WORD if text.isascii() else _word()
    return np.array([match.span() for match in pattern.finditer(text)], dtype=np.int64).reshape(-1, 2)


def join_tokens(tokens: Sequence[str] | np.ndarray) -> tuple[str, np.ndarray]:
    """Join tokens to a text, with a space between two of them unless both sides belong to a script without spaces.

    Returns:
        The text and the character offsets of the tokens, shape `(num_tokens, 2)`.

    Raises:
        DataError: the tokens are not a list of strings.

    Example:
        >>> join_tokens(["to", "上", "海"])[0]
        'to 上海'
    """
    if isinstance(tokens, str) or not isinstance(tokens, list | tuple | np.ndarray):
        raise DataError(f"tokens is {tokens!r}", mend="give tokens as a list of strings")
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    position, previous = 0, ""
    for token in tokens:
        if not isinstance(token, str):
            raise DataError(f"token {token!r} is not a string", mend="write every token as a string")
        if parts and not (_is_unspaced(previous[-1:]) and _is_unspaced(token[:1])):
            parts.append(" ")
            position += 1
        parts.append(token)
        spans.append((position, position + len(token)))
        position, previous = position + len(token), token
    return "".join(parts), np.array(spans, dtype=np.int64).reshape(-1, 2)


def _is_unspaced(character: str) -> bool:
    return bool(_UNSPACED_CHARACTER.match(character))
