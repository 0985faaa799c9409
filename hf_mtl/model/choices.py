"""The choices of one row, and which of them a label names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_mtl.errors import DataError


@dataclass(frozen=True)
class Choices:
    """The choices of one row and where the encoder sees them.

    Args:
        texts: the choices, in their order.
        tokens: position of the first token of each choice and after its last one, shape `(num_choices, 2)`; -1 where
            the choices alone are longer than what is read of a row.
    """

    texts: tuple[str, ...]
    tokens: np.ndarray

    @property
    def whole(self) -> bool:
        """Whether every choice is read to its end."""
        return bool((self.tokens >= 0).all())


def choice_index(value: Any, texts: Sequence[str]) -> int:
    """Return the position of the choice that a label names: by its number, counted from 0, or by its text.

    Args:
        value: a whole number, or the text of one choice. A number written as text is a number, too, where no choice of
            the row is one.
        texts: the choices of the row.

    Raises:
        DataError: there is no such choice, or several have this text.

    Example:
        >>> choice_index(1, ["red", "blue"]), choice_index("red", ["red", "blue"]), choice_index("1", ["red", "blue"])
        (1, 0, 1)
    """
    mend = f"give the number of a choice, from 0 to {len(texts) - 1}, or its text as it stands among the choices"
    if isinstance(value, str):
        found = [place for place, text in enumerate(texts) if text == value]
        if len(found) > 1:
            raise DataError(f"{value!r} is the text of {len(found)} choices", mend="give the number of the choice")
        if found:
            return found[0]
        if not value.isdecimal() or any(text.strip().isdecimal() for text in texts):
            raise DataError(f"{value!r} is none of the choices", mend=mend)
        number = int(value)
    elif is_number(value):
        number = int(value)
    else:
        raise DataError(f"{value!r} is no choice", mend=mend)
    if not 0 <= number < len(texts):
        raise DataError(f"there is no choice {number} among {len(texts)}", mend=mend)
    return number


def is_number(value: Any) -> bool:
    """Tell whether a value is a whole number, in whatever type; a boolean is none.

    Example:
        >>> is_number(2), is_number(2.0), is_number(True), is_number("2")
        (True, True, False, False)
    """
    if isinstance(value, bool | np.bool_):
        return False
    return isinstance(value, int | np.integer) or (isinstance(value, float | np.floating) and float(value).is_integer())
