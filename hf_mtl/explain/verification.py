"""An explanation checked by intervention: what happens without the words that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

from hf_mtl.errors import SpecError
from hf_mtl.explain.effects import Effect, Intervention, ways_of
from hf_mtl.explain.explanation import Explanation

SEARCH_TOKENS = 8192
"""Tokens that the search for the smallest set may read in sets of all words, for each way of taking words away."""

LARGEST_SET = 32
"""Words of the largest set that is looked for along the ranking: one any larger explains nothing."""


@dataclass(frozen=True)
class Flip:
    """A set of words without which the answer is another, and of which no word can be spared for that.

    Args:
        effect: what happens without them.
        exact: whether it is proved to be a smallest set, all smaller ones having been tried; otherwise it was found
            along the ranking, and a smaller one may exist.
    """

    effect: Effect
    exact: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**self.effect.to_dict(), "exact": self.exact}


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was measured without the top words of an explanation.

    Args:
        task: name of the task.
        target: what was explained.
        method: the method that ranked the words.
        measure: what is measured: `"probability"` of the target, its `"share"` of the probability of the two labels
            that are compared, or the `"value"` predicted.
        perturb: how words were taken away.
        before: the measure with all words.
        answered: whether the target is what the model answers with all words; only then it can flip.
        alone: each of the top words without the others, each way.
        together: the top word, the top two, the top three and so on, each way.
        flips: the smallest set found whose loss flips the answer, for each way in which there is one; always empty
            where a number is predicted.
        tried: per way, up to how many words all sets were tried; where `flips` has none for this way, none of them
            flips the answer, nor does any start of the ranking of up to `LARGEST_SET` words.
    """

    task: str
    target: str
    method: str
    measure: str
    perturb: tuple[str, ...]
    before: float
    answered: bool
    alone: tuple[Effect, ...]
    together: tuple[Effect, ...]
    flips: tuple[Flip, ...]
    tried: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **{name: getattr(self, name) for name in ("task", "target", "method", "measure", "before", "answered")},
            "perturb": list(self.perturb),
            "alone": [effect.to_dict() for effect in self.alone],
            "together": [effect.to_dict() for effect in self.together],
            "flips": [flip.to_dict() for flip in self.flips],
            "tried": dict(self.tried),
        }

    def _repr_html_(self) -> str:
        from hf_mtl.explain.rendering import STYLE, table

        groups = [(name, effect) for name in ("alone", "together") for effect in getattr(self, name)]
        groups += [("smallest flip" if flip.exact else "minimal flip", flip.effect) for flip in self.flips]
        header = ("without", "", "how", f"{self.measure} before", "after", "change", "answer")
        rows = [
            (
                " + ".join(effect.words),
                name,
                effect.how,
                f"{effect.before:.3f}",
                f"{effect.after:.3f}",
                f"{effect.change:+.3f}",
                (effect.answer or "another") if effect.flips else "",
            )
            for name, effect in groups
        ]
        return f'{STYLE}\n<div class="hf-mtl scroll">{table(header, rows)}</div>'


def verify(
    explanation: Explanation, perturb: Sequence[str] | str = ("delete", "mask"), *, top: int = 5
) -> Verification:
    """Take the top words of an explanation away, and measure what happens.

    Words are taken away on token ids, never by tokenizing another text: what is measured is the model on what was
    explained. The words of a tagging target cannot be left out; they are masked either way.

    Args:
        explanation: the explanation, with its model.
        perturb: how words are taken away, one or several of `"delete"` and `"mask"`.
        top: how many of the words with the largest positive scores are taken away.

    Raises:
        SpecError: there is no such way, `top` is not positive, or the explanation has lost its model.
    """
    return verify_with(Intervention(explanation), ways_of(perturb), top=top)


def verify_with(intervention: Intervention, ways: tuple[str, ...], *, top: int) -> Verification:
    """Do what `verify` does, with what an intervention has measured already."""
    if top < 1:
        raise SpecError(f"top is {top!r}", mend="give a whole number of at least 1")
    explanation = intervention.explanation
    ranked = explanation.ranked()
    best = [unit for unit in ranked if explanation.scores[unit] > 0][:top]
    alone: list[Effect] = []
    together: list[Effect] = []
    flips: list[Flip] = []
    tried: dict[str, int] = {}
    for how in ways:
        starts = [best[: place + 1] for place in range(len(best))]
        found = intervention.effects([*([unit] for unit in best), *starts], how)
        alone += found[: len(best)]
        together += found[len(best) :]
        flip, tried[how] = smallest_flip(intervention, how)
        flips += [flip] if flip else []
    return Verification(
        task=explanation.task,
        target=explanation.target,
        method=explanation.method,
        measure=intervention.measure,
        perturb=ways,
        before=intervention.before,
        answered=intervention.answered,
        alone=tuple(alone),
        together=tuple(together),
        flips=tuple(flips),
        tried=tried,
    )


def smallest_flip(intervention: Intervention, how: str) -> tuple[Flip | None, int]:
    """Look for the smallest set of words whose loss flips the answer.

    The shortest start of the ranking that flips it is pruned: words are dropped from it for as long as the answer stays
    flipped. Then all smaller sets are tried, the smallest first, while they cost no more than `SEARCH_TOKENS`.

    Args:
        intervention: the text and its model.
        how: `"delete"` or `"mask"`.

    Returns:
        The set, if there is one; and up to how many words all sets were tried.
    """
    if intervention.measure == "value" or not intervention.answered:
        return None, 0
    ranked = intervention.explanation.ranked()
    starts = [ranked[: size + 1] for size in range(min(len(ranked), LARGEST_SET))]
    found = next((effect for effect in intervention.effects(starts, how) if effect.flips), None)
    if found is not None:
        found = _pruned(intervention, found)
    budget = SEARCH_TOKENS // len(intervention.text.input_ids)
    tried = 0
    while tried + 1 < (len(found.units) if found else len(ranked) + 1):
        budget -= comb(len(ranked), tried + 1)
        if budget < 0:
            break
        effects = intervention.effects(list(combinations(ranked, tried + 1)), how)
        better = [effect for effect in effects if effect.flips]
        if better:
            found = min(better, key=lambda effect: effect.after)
            break
        tried += 1
    return (None if found is None else Flip(found, exact=len(found.units) <= tried + 1)), tried


def _pruned(intervention: Intervention, effect: Effect) -> Effect:
    """Drop words from a set for as long as the answer stays flipped, each time that which matters least."""
    while True:
        smaller = [tuple(unit for unit in effect.units if unit != dropped) for dropped in effect.units]
        still = [one for one in intervention.effects(smaller, effect.how) if one.flips]
        if not still:
            return effect
        effect = min(still, key=lambda one: one.after)
