"""`Augmentation`: what makes another training row of a row, with the same labels."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hf_mtl.errors import RecipeError


@dataclass(frozen=True)
class TaggedWords:
    """The words of a row, and their tags.

    Args:
        words: the words; of a text what stands between its spaces.
        tags: task -> the tag of each word, `None` where it has none; a task whose row has no tags is left out.
        spans: the tasks whose tags are span tags (BIO or IOBES).
    """

    words: tuple[str, ...]
    tags: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict[str, tuple[str | None, ...]])
    spans: frozenset[str] = frozenset()

    def free(self) -> list[int]:
        """Return the places of the words that no span is made of, and that may so go, move or change."""
        bound = [tags for task, tags in self.tags.items() if task in self.spans]
        return [place for place in range(len(self.words)) if all(tags[place] == "O" for tags in bound)]

    def with_words(self, words: Sequence[tuple[int, str]]) -> TaggedWords:
        """Return other words, each with the tags of one of these.

        Args:
            words: place of the word whose tags it takes, and the word.
        """
        tags = {task: tuple(own[place] for place, _ in words) for task, own in self.tags.items()}
        return TaggedWords(tuple(word for _, word in words), tags, self.spans)


class Augmentation(ABC):
    """One operation of a recipe's `augmentation`; it changes words, and leaves what the labels say true.

    Args:
        probability: how likely each word, or each mention, is changed; above 0 and at most 1.
        options: options of the operation.

    Raises:
        RecipeError: an option cannot be.
    """

    probability: ClassVar[float] = 0.1
    """The probability where the recipe gives none."""
    options: ClassVar[tuple[str, ...]] = ()
    """Names of the operation's own options, which all must be given."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Those of them that are files."""
    takes_tokens: ClassVar[bool] = True
    """Whether rows of tokens can be augmented."""
    needs_spans: ClassVar[bool] = False
    """Whether only rows with span tags can be augmented."""

    def __init__(self, probability: float | None = None, **options: Any) -> None:
        self.check(probability, options)
        self.chance = type(self).probability if probability is None else probability

    @classmethod
    def check(cls, probability: Any, options: Mapping[str, Any]) -> None:
        """Check probability and options, without opening a file.

        Raises:
            RecipeError: one of them cannot be.
        """
        chance = cls.probability if probability is None else probability
        if isinstance(chance, bool) or not isinstance(chance, int | float) or not 0 < chance <= 1:
            raise RecipeError(f"probability is {probability!r}", mend="give a number above 0 and at most 1")
        for key in cls.options:
            if key not in options:
                raise RecipeError(f"the key {key!r} is missing", mend=f"give {key}")
            if not isinstance(options[key], str) or not options[key]:
                raise RecipeError(f"{key} is {options[key]!r}", mend="give text")

    @property
    def state(self) -> str:
        """What the result depends on beside the options, for the name of what is cached."""
        return ""

    def prepare(self, rows: Iterable[TaggedWords]) -> None:
        """Look at all training rows before one of them is augmented."""
        return

    @abstractmethod
    def apply(self, row: TaggedWords, rng: random.Random) -> TaggedWords:
        """Return a changed row; the same where there is nothing to change.

        Args:
            row: the row.
            rng: all that is drawn is drawn from here.
        """
