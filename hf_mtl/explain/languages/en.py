"""English."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_mtl.explain.languages.base import Change, Language, TargetName, number, percent, target_name

if TYPE_CHECKING:
    from hf_mtl.explain.explanation import Explanation

_WAYS = {"delete": "deleted", "mask": "masked"}
_ORDINALS = ("first", "second", "third")


class English(Language):
    """English sentences.

    Example:
        >>> change = Change("positive", "3%", {"delete": "61%", "mask": "55%"}, rises=True)
        >>> words = [English().word(word) for word in ("dull", "mess")]
        >>> English().carried(words, change, English().becomes(None), decides=True, target=None)
        "'dull' and 'mess' carry it: without them positive rises from 3% to 61% (deleted) or 55% (masked) and becomes
        the answer."
    """

    supports = "for"
    opposes = "against"
    matters = "matters"
    target_itself = "the target itself"
    value = "the value"

    def text_name(self, part: int) -> str:
        return f"{_ORDINALS[part].capitalize()} text"

    def word(self, word: str, *, part: int | None = None, occurrence: int | None = None) -> str:
        places = [] if occurrence is None else [f"the {_ordinal(occurrence)} one"]
        places += [] if part is None else [f"{_ORDINALS[part]} text"]
        return f"'{word}'" + (f" ({', '.join(places)})" if places else "")

    def listed(self, items: Sequence[str]) -> str:
        return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)

    def against(self, label: str, over: str) -> str:
        return f"{label} against {over} alone"

    def target(self, name: TargetName) -> str:
        label = self.value if name.label == "value" and name.over is None else name.label
        label = label if name.over is None else f"{label} rather than {name.over}"
        return label if name.span is None else f"{label} for '{name.span}'"

    def note(self, note: str) -> str:
        return note

    def line(self, name: str, value: str) -> str:
        return f"{name}: {value}"

    def explained(self, explanation: Explanation) -> str:
        if explanation.measure == "value":
            return f"explained: {self.value}, {number(explanation.probability)}"
        return f"explained: {self.target(target_name(explanation))}, {percent(explanation.probability)}"

    def method_line(self, explanation: Explanation) -> str:
        parts = [f"method: {explanation.method}"]
        parts += [f"compared with {explanation.baseline}"] if explanation.baseline else []
        parts += [f"seed {explanation.seed}"] if explanation.seed is not None else []
        if explanation.convergence is not None:
            parts.append(f"the scores miss the sum they promise by {explanation.convergence:.1%}")
        return ", ".join(parts)

    def carried(self, words: Sequence[str], change: Change, outcome: str, *, decides: bool, target: str | None) -> str:
        them, plural = ("them", "") if len(words) > 1 else ("it", "s")
        verb = f"carr{'ies' if plural else 'y'}" if decides else f"support{plural}"
        said = f"speak{plural} for {target}" if target else f"{verb} it"
        return f"{self.listed(words)} {said}: without {them} {_said(change)}{outcome}."

    def alone(self, word: str, change: Change, outcome: str) -> str:
        return f"{word} alone: without it {_said(change)}{outcome}."

    def opposed(self, words: Sequence[str], change: Change, *, target: str | None) -> str:
        them, plural = ("them", "") if len(words) > 1 else ("it", "s")
        said = f"speak{plural} against {target or 'it'}"
        return f"{self.listed(words)} {said}: without {them} {_said(change)}."

    def moved(self, words: Sequence[str], change: Change) -> str:
        them, plural = ("them", "") if len(words) > 1 else ("it", "s")
        return (
            f"{self.listed(words)} {'lower' if change.rises else 'raise'}{plural} it: without {them} {_said(change)}."
        )

    def own(self, words: str, change: Change, outcome: str, *, barely: bool) -> str:
        return f"{words} itself {'barely matters' if barely else 'matters'}: masked, {_said(change)}{outcome}."

    def context(self, change: Change, outcome: str, *, barely: bool) -> str:
        said = "context barely matters" if barely else "context matters"
        return f"The {said}: without all other words {_said(change)}{outcome}."

    def becomes(self, answer: str | None) -> str:
        return f" and {answer} becomes the answer" if answer else " and becomes the answer"

    def ceases(self) -> str:
        return " and is the answer no more"

    def overtakes(self, label: str) -> str:
        return f" and {label} is ahead"

    def unsure(self, first: tuple[str, str], second: tuple[str, str] | None) -> str:
        rest = "" if second is None else f", and {second[0]} {second[1]}"
        return f"The model is not sure: it gives {first[0]} {first[1]}{rest}."

    def nothing(self, ways: Sequence[str]) -> str:
        agree = " in both ways of taking words away" if len(ways) > 1 else ""
        return f"Nothing can be said about single words: no measured effect was large enough{agree}."

    def checked(self, ways: Sequence[str], least: float, *, points: bool) -> str:
        shown = " and ".join(f"once {_WAYS[way]}" for way in ways)
        small = f"{100 * least:.0f} percentage points" if points else number(least)
        return f"Each sentence about words was checked without them ({shown}); changes under {small} are left out."


def _said(change: Change) -> str:
    verb = {True: "rises", False: "falls", None: "goes"}[change.rises]
    ways = " or ".join(f"{value} ({_WAYS[way]})" if way else value for way, value in change.after.items())
    return f"{change.of} {verb} from {change.before} to {ways}"


def _ordinal(place: int) -> str:
    return f"{place}{'th' if place % 100 in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(place % 10, 'th')}"


LANGUAGE = English()
