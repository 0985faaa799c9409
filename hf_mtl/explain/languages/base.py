"""What a language says in explanations and reports; a language is one subclass, in a file of its own."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hf_mtl.errors import SpecError, one_of

if TYPE_CHECKING:
    from hf_mtl.explain.explanation import Explanation

LANGUAGES = ("en", "zh")
"""Languages of reports: the names of the files of this package."""


@dataclass(frozen=True)
class TargetName:
    """The parts of a target's name: a label, perhaps the one it is compared with, and for tagging its words."""

    label: str
    over: str | None = None
    span: str | None = None


@dataclass(frozen=True)
class Change:
    """A measured change, written out.

    Args:
        of: what changed, such as a label.
        before: its value with all words, such as `"97%"`.
        after: how the words were taken away -> its value then; one entry, `""`, where that makes no difference.
        rises: whether it rose; `None` where it hardly moved.
    """

    of: str
    before: str
    after: dict[str, str]
    rises: bool | None


class Language(ABC):
    """The words and sentences of one language; labels and words of the text stay as they are."""

    supports: ClassVar[str]
    opposes: ClassVar[str]
    matters: ClassVar[str]
    target_itself: ClassVar[str]
    value: ClassVar[str]
    """What a regression task predicts, inside a sentence."""

    # ------------------------------------------------------------------ names

    @abstractmethod
    def text_name(self, part: int) -> str:
        """Name the first (0) or the second (1) text of a pair."""

    @abstractmethod
    def word(self, word: str, *, part: int | None = None, occurrence: int | None = None) -> str:
        """Quote a word; say which text of a pair it stands in, and which of several like it it is, counted from 1."""

    @abstractmethod
    def listed(self, items: Sequence[str]) -> str:
        """Join items to a list."""

    @abstractmethod
    def against(self, label: str, over: str) -> str:
        """Name the probability of a label where only it and one other are weighed."""

    @abstractmethod
    def target(self, name: TargetName) -> str:
        """Name a target."""

    @abstractmethod
    def note(self, note: str) -> str:
        """Say a note of a method, which is in English, in this language; an unknown one stays as it is."""

    # ------------------------------------------------------------------ lines

    @abstractmethod
    def line(self, name: str, value: str) -> str:
        """Say what a named thing is, such as a task's answer."""

    @abstractmethod
    def explained(self, explanation: Explanation) -> str:
        """Say what is explained and how probable it is."""

    @abstractmethod
    def method_line(self, explanation: Explanation) -> str:
        """Say how it was explained: method, baseline, seed, convergence."""

    def heading(self, explanation: Explanation) -> str:
        """Say what the model answers."""
        return self.line(explanation.task, self.note(explanation.predicted))

    # ------------------------------------------------------------------ sentences, each backed by a measurement

    @abstractmethod
    def carried(self, words: Sequence[str], change: Change, outcome: str, *, decides: bool, target: str | None) -> str:
        """Say that words carry or support a target.

        Args:
            words: the words, quoted.
            change: what happens without them.
            outcome: what becomes of the answer (see `becomes` and its like), empty where it stays.
            decides: whether the answer is another without them.
            target: the target, where it is not what the model answers.
        """

    @abstractmethod
    def alone(self, word: str, change: Change, outcome: str) -> str:
        """Say what one word does alone."""

    @abstractmethod
    def opposed(self, words: Sequence[str], change: Change, *, target: str | None) -> str:
        """Say that words speak against a target, which is named where it is not what the model answers."""

    @abstractmethod
    def moved(self, words: Sequence[str], change: Change) -> str:
        """Say that words raise or lower a value that is predicted."""

    @abstractmethod
    def own(self, words: str, change: Change, outcome: str, *, barely: bool) -> str:
        """Say what the words of a tagging target do themselves, which are masked."""

    @abstractmethod
    def context(self, change: Change, outcome: str, *, barely: bool) -> str:
        """Say what all other words do for a tagging target."""

    @abstractmethod
    def becomes(self, answer: str | None) -> str:
        """Say that another label becomes the answer; that of which the change is told, where `None`."""

    @abstractmethod
    def ceases(self) -> str:
        """Say that the target is the answer no more."""

    @abstractmethod
    def overtakes(self, label: str) -> str:
        """Say that the label it is compared with is ahead."""

    @abstractmethod
    def unsure(self, first: tuple[str, str], second: tuple[str, str] | None) -> str:
        """Say that the model is not sure.

        Args:
            first: the likeliest label, and its probability.
            second: the next one; `None` where labels do not compete.
        """

    @abstractmethod
    def nothing(self, ways: Sequence[str]) -> str:
        """Say that no sentence about the words stood the check."""

    @abstractmethod
    def checked(self, ways: Sequence[str], least: float, *, points: bool) -> str:
        """Say how the sentences were checked, and which changes, in the value's unit or in points, are too small."""


def language_of(code: str) -> Language:
    """Return a language.

    Raises:
        SpecError: there is no such language.
    """
    if code not in LANGUAGES:
        raise SpecError(f"language is {code!r}", mend=f"use one of {one_of(LANGUAGES)}")
    return importlib.import_module(f"hf_mtl.explain.languages.{code}").LANGUAGE


def target_name(explanation: Explanation) -> TargetName:
    """Take the name of an explanation's target apart.

    Args:
        explanation: the explanation.
    """
    name, span = explanation.target, None
    if explanation.own:
        units = [explanation.units[place] for place in explanation.own]
        span = explanation.text[units[0].start : units[-1].end]
        name = name.removesuffix(f": {span!r}")
    label, _, over = name.partition(" rather than ")
    return TargetName(label, over or None, span)


def percent(value: float) -> str:
    """Write a probability, near 0 and 1 with a decimal.

    Example:
        >>> percent(0.034), percent(0.0034), percent(0.99999)
        ('3%', '0.3%', '>99.9%')
    """
    if not 0.0005 <= value < 0.9995:
        return "<0.1%" if value < 0.5 else ">99.9%"
    return f"{value:.0%}" if 0.01 <= value <= 0.99 else f"{value:.1%}"


def number(value: float) -> str:
    """Write a value that was predicted, with three digits that count.

    Example:
        >>> number(3.21987), number(1234.5)
        ('3.22', '1234')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
