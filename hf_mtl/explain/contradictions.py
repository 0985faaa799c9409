"""What tasks contradict each other in on one text: answers, words, and how they rank the words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from hf_mtl.explain.effects import Effect, Intervention
from hf_mtl.explain.explanation import Explanation
from hf_mtl.explain.languages.base import percent, target_name
from hf_mtl.explain.subject import REMOVALS

STRONG = 0.25
"""Share of a task's largest score from which a word is strongly for or against its target."""

OPPOSITE = -0.5
"""Rank correlation from which on two tasks are said to read the words in opposite ways."""

SIGNIFICANT = 0.05
"""Two-sided p-value below which that is said."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Contradiction:
    """A word that was measured to speak for a label in one task, and against a label of the same name in another.

    Args:
        word: the word.
        unit: its index.
        label: the name of both labels.
        supports: the task whose label falls without the word.
        opposes: the task whose label rises without it.
        effects: what was measured: each way for the first task, then each way for the second.
    """

    word: str
    unit: int
    label: str
    supports: str
    opposes: str
    effects: tuple[Effect, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        names = ("word", "unit", "label", "supports", "opposes")
        return {**{name: getattr(self, name) for name in names}, "effects": [one.to_dict() for one in self.effects]}


def contradictions(explanations: Mapping[str, Explanation]) -> Iterator[Contradiction]:
    """Find words that are strongly for a label in one task and against its namesake in another; measured both ways."""
    interventions = {task: Intervention(explanation) for task, explanation in explanations.items()}
    for one, other in combinations(explanations, 2):
        labels = [target_name(explanations[task]).label for task in (one, other)]
        if labels[0] != labels[1] or "value" in [interventions[task].measure for task in (one, other)]:
            continue
        shares = [_shares(explanations[task]) for task in (one, other)]
        for unit, (here, there) in enumerate(zip(*shares, strict=True)):
            if min(abs(here), abs(there)) < STRONG or here * there > 0:
                continue
            supports, opposes = (one, other) if here > 0 else (other, one)
            falls = _effects(interventions[supports], unit)
            rises = _effects(interventions[opposes], unit)
            if all(-effect.change >= interventions[supports].least for effect in falls) and all(
                effect.change >= interventions[opposes].least for effect in rises
            ):
                word = explanations[one].units[unit].text
                yield Contradiction(
                    word=word, unit=unit, label=labels[0], supports=supports, opposes=opposes, effects=(*falls, *rises)
                )


def _effects(intervention: Intervention, unit: int) -> list[Effect]:
    return [intervention.effects([[unit]], how)[0] for how in REMOVALS]


def _shares(explanation: Explanation) -> np.ndarray:
    scores = np.array(explanation.scores)
    return scores / (np.abs(scores).max(initial=0.0) or 1.0)


def sentences(
    explanations: Mapping[str, Explanation],
    agreement: np.ndarray,
    p_values: np.ndarray,
    found: Sequence[Contradiction],
) -> Iterator[str]:
    tasks = list(explanations)
    for one, other in combinations(tasks, 2):
        specs = [explanations[task].require_origin().subject.spec(task) for task in (one, other)]
        answers = [explanations[task].predicted for task in (one, other)]
        if specs[0].labels and set(specs[0].labels) == set(specs[1].labels or ()) and answers[0] != answers[1]:
            yield f"{one} and {other} have the same labels and contradict each other: {answers[0]}, and {answers[1]}."
    for word in found:
        numbers = [f"{percent(effect.before)} to {percent(effect.after)}" for effect in word.effects]
        ways = len(word.effects) // 2
        yield (
            f"'{word.word}' is taken in opposite ways: without it {word.label} falls in {word.supports} (from "
            f"{' or '.join(numbers[:ways])}) and rises in {word.opposes} (from {' or '.join(numbers[ways:])})."
        )
    for first, second in combinations(range(len(tasks)), 2):
        if agreement[first, second] <= OPPOSITE and p_values[first, second] < SIGNIFICANT:
            yield (
                f"{tasks[first]} and {tasks[second]} rank the words in opposite ways: what speaks for the one's target "
                f"speaks against the other's (rank correlation {agreement[first, second]:.2f})."
            )
