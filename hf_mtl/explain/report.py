"""Why a model answered as it did, in plain sentences: each was measured before it is said."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape
from unicodedata import bidirectional

import numpy as np

from hf_mtl.errors import SpecError, one_of
from hf_mtl.explain.claims import Claim, claims_with
from hf_mtl.explain.effects import Effect, Intervention
from hf_mtl.explain.explainer import CONTEXT_NOTE
from hf_mtl.explain.explanation import Explanation
from hf_mtl.explain.languages.base import Change, Language, language_of, number, percent, target_name
from hf_mtl.explain.rendering import STYLE, coloured_html, visible
from hf_mtl.explain.subject import REMOVALS

FORMATS = ("text", "markdown", "html")

LOW_PROBABILITY = 0.6
"""Below this the likeliest label is said to be unsure."""

SMALL_MARGIN = 0.2
"""So is one that is ahead of the next by less than this; where labels do not compete, one this near to even odds."""


def report(explanation: Explanation, format: str = "text", language: str = "en") -> str:
    """Say in plain sentences why a model answered as it did.

    Every sentence about words is a claim of `hf_mtl.explain.claims.claims`: it was measured by deleting the words and
    by masking them, and both agree. What does not stand this check is not said; where nothing does, that is said. A
    model that is not sure (see `LOW_PROBABILITY` and `SMALL_MARGIN`) is said to be. Notes of the method are part of it.

    Args:
        explanation: the explanation, with its model.
        format: `"text"`, `"markdown"`, or `"html"`: a part of a page, with the words coloured.
        language: `"en"` or `"zh"`; labels and words of the text stay as they are.

    Raises:
        SpecError: there is no such format or language, or the explanation was read from JSON, without its model.
    """
    if format not in FORMATS:
        raise SpecError(f"format is {format!r}", mend=f"use one of {one_of(FORMATS)}")
    words = language_of(language)
    intervention = Intervention(explanation)
    heading, explained = words.heading(explanation), words.explained(explanation)
    told = sentences(intervention, words)
    notes = [words.method_line(explanation), *map(words.note, _notes(explanation)), _checked(intervention, words)]
    if format == "text":
        return visible("\n".join([heading, explained, "", *told, "", *notes]) + "\n")
    if format == "markdown":
        lines = [
            f"### {_markdown(heading)}",
            "",
            _markdown(explained),
            "",
            *(f"- {_markdown(one)}" for one in told),
            "",
        ]
        return "\n".join([*lines, *(f"*{_markdown(note)}*  " for note in notes)]) + "\n"
    shown = "".join(f"<li>{escape(one)}</li>" for one in told)
    small = "".join(f'<p class="small">{escape(note)}</p>' for note in notes)
    head = f"<p><b>{escape(heading)}</b> · {escape(explained)}</p>"
    return f'{STYLE}\n<div class="hf-mtl">{head}{coloured_html(explanation, words)}<ul>{shown}</ul>{small}</div>\n'


def sentences(intervention: Intervention, language: Language) -> list[str]:
    """Return what can be said: whether the model is sure, and one sentence for each claim.

    Args:
        intervention: the text and its model.
        language: the language.
    """
    found = claims_with(intervention, REMOVALS)
    unsure = _unsure(intervention, language)
    told = [sentence(claim, intervention, language) for claim in found] or [language.nothing(REMOVALS)]
    return [unsure, *told] if unsure else told


def sentence(claim: Claim, intervention: Intervention, language: Language) -> str:
    """Say a claim.

    Args:
        claim: the claim, which was measured.
        intervention: the text and its model.
        language: the language.
    """
    explanation = intervention.explanation
    target = None if intervention.answered else language.target(target_name(explanation))
    words = [_word(unit, explanation, language) for unit in claim.units]
    change, outcome = _change(claim, intervention, language), _outcome(claim, intervention, language)
    if claim.kind in ("own", "own_barely"):
        itself = language.word(_isolated(target_name(explanation).span or ""))
        return language.own(itself, change, outcome, barely=claim.kind == "own_barely")
    if claim.kind in ("context", "context_barely"):
        return language.context(change, outcome, barely=claim.kind == "context_barely")
    if claim.kind == "alone":
        return language.alone(words[0], change, outcome)
    if intervention.measure == "value":
        return language.moved(words, change)
    if claim.kind == "opposes":
        return language.opposed(words, change, target=target)
    return language.carried(words, change, outcome, decides=claim.kind == "flips", target=target)


def _change(claim: Claim, intervention: Intervention, language: Language) -> Change:
    """Write out what was measured: of the answer that takes the target's place, where all ways agree on one."""
    rival = _rival(claim)
    if rival and intervention.over is None and claim.kind == "flips":
        pairs = [(effect.answer_before or 0.0, effect.answer_after or 0.0) for effect in claim.effects]
        return _written(rival, pairs, claim.effects, percent, rises=True)
    pairs = [(effect.before, effect.after) for effect in claim.effects]
    rises = None if claim.kind.endswith("barely") else claim.effects[0].change > 0
    write = number if intervention.measure == "value" else percent
    return _written(_measure_name(intervention, language), pairs, claim.effects, write, rises=rises)


def _written(
    of: str,
    pairs: Sequence[tuple[float, float]],
    effects: Sequence[Effect],
    write: Callable[[float], str],
    *,
    rises: bool | None,
) -> Change:
    after = {effect.how: write(value) for effect, (_, value) in zip(effects, pairs, strict=True)}
    if len(set(after.values())) == 1:
        after = {"": next(iter(after.values()))}
    return Change(of, write(pairs[0][0]), after, rises)


def _rival(claim: Claim) -> str | None:
    """Return the answer that takes the target's place, where it does in every way and is the same."""
    answers = {effect.answer if effect.flips else None for effect in claim.effects}
    return answers.pop() if len(answers) == 1 else None


def _outcome(claim: Claim, intervention: Intervention, language: Language) -> str:
    """Say what becomes of the answer; nothing, where the ways differ."""
    if not all(effect.flips for effect in claim.effects):
        return ""
    rival = _rival(claim)
    if rival is None:
        return language.ceases()
    if intervention.over is not None:
        return language.overtakes(rival)
    return language.becomes(None if claim.kind == "flips" else rival)


def _measure_name(intervention: Intervention, language: Language) -> str:
    name = target_name(intervention.explanation)
    if intervention.measure == "value":
        return language.value
    if intervention.over is None:
        return name.label
    labels = intervention.names
    over = " ".join(dict.fromkeys(labels[int(label)] for label in intervention.over))
    return language.against(name.label, over)


def _word(unit: int, explanation: Explanation, language: Language) -> str:
    """Quote a word, so that one can tell which it is."""
    word = explanation.units[unit]
    alike = [place for place, one in enumerate(explanation.units) if (one.text, one.part) == (word.text, word.part)]
    occurrence = alike.index(unit) + 1 if len(alike) > 1 else None
    part = word.part if explanation.text_pair is not None else None
    return language.word(_isolated(word.text), part=part, occurrence=occurrence)


def _isolated(word: str) -> str:
    """Keep a word written from right to left from turning what stands beside it, its quotes and the next word."""
    if any(bidirectional(character) in ("R", "AL") for character in word):
        return f"\u2068{word}\u2069"
    return word


def _unsure(intervention: Intervention, language: Language) -> str:
    """Say that the model is not sure, where it is not; empty where it is, or where it predicts a number."""
    spec, names = intervention.spec, intervention.names
    if intervention.explanation.measure == "value":
        return ""
    probabilities = intervention.head.probabilities(spec, intervention.base.logits[0])  # (positions, num_labels)
    if not intervention.head.exclusive:
        label = intervention.target.labels[0]
        given = float(probabilities[0, label])
        return language.unsure((names[label], percent(given)), None) if abs(given - 0.5) < SMALL_MARGIN / 2 else ""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
    first, second = np.take_along_axis(probabilities, order, axis=1).mean(axis=0).tolist()
    if first >= LOW_PROBABILITY and first - second >= SMALL_MARGIN:
        return ""
    ranked = [" ".join(dict.fromkeys(names[int(label)] for label in order[:, place])) for place in (0, 1)]
    return language.unsure((ranked[0], percent(first)), (ranked[1], percent(second)))


def _markdown(text: str) -> str:
    """Write text so that Markdown shows it as it is.

    Example:
        >>> _markdown("2 * <b>")
        '2 \\\\* \\\\<b\\\\>'
    """
    return re.sub(r"([\\`*_\[\]<>#|~&])", r"\\\1", visible(" ".join(text.split())))


def _notes(explanation: Explanation) -> list[str]:
    # That context barely matters is said where it was measured, not where scores say so.
    return [note for note in explanation.notes if not note.startswith(CONTEXT_NOTE)]


def _checked(intervention: Intervention, language: Language) -> str:
    return language.checked(REMOVALS, intervention.least, points=intervention.measure != "value")
