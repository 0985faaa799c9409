"""Texts rewritten by a function of the user's, such as a translation there and back."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Any, ClassVar, cast

from hf_mtl.data.augmentation.base import Augmentation, TaggedWords
from hf_mtl.errors import RecipeError
from hf_mtl.registry import AUGMENTATIONS


@AUGMENTATIONS.register("back_translation")
class BackTranslation(Augmentation):
    """Hands each text, with the probability, to a function `rewrite(text, seed) -> text` that the user names.

    The function must return the same for the same text and seed. What it returns is kept in the cache under its name:
    change the name when the function changes. Rows of tokens are refused, for their tags would not fit.

    Source: Sennrich, Haddow and Birch, Improving Neural Machine Translation Models with Monolingual Data, 2016,
    https://arxiv.org/abs/1511.06709.

    Args:
        function: where it is, as `module:name`.

    Raises:
        RecipeError: there is no such function.
    """

    probability: ClassVar[float] = 1.0
    options = ("function",)
    takes_tokens = False

    def __init__(self, probability: float | None = None, **options: Any) -> None:
        super().__init__(probability, **options)
        self.function = _imported(options["function"])

    def apply(self, row: TaggedWords, rng: random.Random) -> TaggedWords:
        if rng.random() >= self.chance:
            return row
        text = cast(object, self.function(" ".join(row.words), rng.getrandbits(32)))
        if not isinstance(text, str):
            raise RecipeError(f"the function returned {text!r}", where="back_translation", mend="return a text")
        return TaggedWords(tuple(text.split())) if text.split() else row


def _imported(address: str) -> Callable[[str, int], str]:
    module, _, name = address.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"there is no function {address!r} ({error})", mend="give function as 'module:name'"
        ) from error
    if not callable(function):
        raise RecipeError(f"{address!r} is no function", mend="give function as 'module:name'")
    return cast(Callable[[str, int], str], function)
