"""Sentences about words before they are words: claims, each with the measurements that it stands on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hf_mtl.explain.effects import Effect, Intervention, ways_of
from hf_mtl.explain.explanation import Explanation
from hf_mtl.explain.verification import verify_with

Kind = Literal["flips", "supports", "alone", "opposes", "own", "own_barely", "context", "context_barely"]

TOP = 5
"""Words at the top of the ranking, and at its end, that sentences may be about one by one."""

MOST_WORDS = 8
"""Words of the largest set that a sentence lists."""

MOST_SINGLE = 3
"""Sentences about one word alone, and about one word that speaks against the target."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that is said about words, and was measured in every way of taking them away.

    Args:
        kind: what is said. `flips`: without them the answer is another. `supports`: without them the target falls.
            `alone`: the same of one of the top words. `opposes`: without it the target rises. `own` and `context`: the
            words of a tagging target, and all others, matter; `own_barely`, `context_barely`: they hardly do.
        task: name of the task.
        effects: what was measured, one for each way.
    """

    kind: Kind
    task: str
    effects: tuple[Effect, ...]

    @property
    def units(self) -> tuple[int, ...]:
        """Indices of the words."""
        return self.effects[0].units

    @property
    def words(self) -> tuple[str, ...]:
        """The words."""
        return self.effects[0].words

    @property
    def before(self) -> float:
        """The measure with all words."""
        return self.effects[0].before

    @property
    def after(self) -> tuple[float, ...]:
        """The measure without them, one for each way."""
        return tuple(effect.after for effect in self.effects)

    @property
    def perturb(self) -> tuple[str, ...]:
        """The ways they were taken away."""
        return tuple(effect.how for effect in self.effects)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"kind": self.kind, "task": self.task, "effects": [effect.to_dict() for effect in self.effects]}


def claims(explanation: Explanation, perturb: Sequence[str] | str = ("delete", "mask")) -> tuple[Claim, ...]:
    """Return what can be said about an explanation's words: what was measured, in every way alike.

    A claim stands only if all ways of taking the words away agree on its sign and each changes the measure by at least
    `Intervention.least`; a claim that words barely matter only if all ways change it by less. The scores of the
    explanation choose which words are measured, and nothing else.

    Args:
        explanation: the explanation, with its model.
        perturb: the ways.

    Returns:
        The claims, the most telling first; none where nothing can be said.

    Raises:
        SpecError: there is no such way, or the explanation has lost its model.
    """
    return claims_with(Intervention(explanation), ways_of(perturb))


def claims_with(intervention: Intervention, ways: tuple[str, ...]) -> tuple[Claim, ...]:
    """Do what `claims` does, with what an intervention has measured already."""
    finder = _Finder(intervention, ways)
    own = finder.own()
    group = finder.flips() or finder.supports()
    return (*own, *group, *finder.alone(group), *finder.opposes())


class _Finder:
    """Measures candidates in every way, and keeps those on which all agree."""

    def __init__(self, intervention: Intervention, ways: tuple[str, ...]) -> None:
        self.intervention, self.ways = intervention, ways
        explanation = intervention.explanation
        context = [unit for unit in explanation.ranked() if unit not in explanation.own]
        scores = explanation.scores
        self.best = [unit for unit in context if scores[unit] > 0][:MOST_WORDS]
        self.worst = [unit for unit in reversed(context) if scores[unit] < 0][:TOP]

    def kept(self, kind: Kind, sets: Sequence[Sequence[int]], stands: Callable[[Effect], bool]) -> list[Claim]:
        """Return a claim for each set for which every way agrees."""
        sets = [units for units in sets if units]
        by_way = [self.intervention.effects(sets, how) for how in self.ways]
        return [
            Claim(kind=kind, task=self.intervention.explanation.task, effects=effects)
            for effects in zip(*by_way, strict=True)
            if all(map(stands, effects))
        ]

    def falls(self, effect: Effect) -> bool:
        return -effect.change >= self.intervention.least

    def rises(self, effect: Effect) -> bool:
        return effect.change >= self.intervention.least

    def still(self, effect: Effect) -> bool:
        return abs(effect.change) < self.intervention.least and not effect.flips

    def flips(self) -> list[Claim]:
        """The smallest set whose loss flips the answer in every way: found for one way, or a start of the ranking."""
        explanation = self.intervention.explanation
        found = [flip.effect.units for flip in verify_with(self.intervention, self.ways, top=TOP).flips]
        found.append(tuple(sorted({unit for units in found for unit in units})))
        found += [tuple(self.best[: size + 1]) for size in range(len(self.best))]
        # What the target's own words do is told anyway.
        sets = [units for units in found if len(units) <= MOST_WORDS and not set(units) <= set(explanation.own)]
        return self.kept("flips", sorted(sets, key=len), lambda effect: effect.flips and self.falls(effect))[:1]

    def supports(self) -> list[Claim]:
        """The shortest start of the ranking that does at least half of what the best one does."""
        starts = [self.best[: size + 1] for size in range(len(self.best))]
        found = self.kept("supports", starts, self.falls)
        most = max((_weakest(claim) for claim in found), default=0.0)
        return [claim for claim in found if _weakest(claim) >= most / 2][:1]

    def alone(self, told: Sequence[Claim]) -> list[Claim]:
        """Single words, but for one that is told of already."""
        sets = [[unit] for unit in self.best[:TOP] if (unit,) not in [claim.units for claim in told]]
        found = self.kept("alone", sets, self.falls)
        return sorted(found, key=_weakest, reverse=True)[:MOST_SINGLE]

    def opposes(self) -> list[Claim]:
        """Single words whose loss makes the target rise: from the end of the ranking, or its top without signs."""
        candidates = self.worst if self.intervention.explanation.signed else self.best[:TOP]
        found = self.kept("opposes", [[unit] for unit in candidates], self.rises)
        return sorted(found, key=_weakest, reverse=True)[:MOST_SINGLE]

    def own(self) -> list[Claim]:
        """What the words of a tagging target do themselves, and what all others do."""
        own = list(self.intervention.explanation.own)
        if not own:
            return []
        context = [unit for unit in range(len(self.intervention.text.units)) if unit not in own]
        return [
            *self.kept("own", [own], self.falls),
            *self.kept("own_barely", [own], self.still),
            *self.kept("context", [context], self.falls),
            *self.kept("context_barely", [context], self.still),
        ]


def _weakest(claim: Claim) -> float:
    return min(abs(effect.change) for effect in claim.effects)
