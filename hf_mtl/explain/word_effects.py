"""What each word does over many texts: measured by leaving it out, text by text, and never read off a gradient."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.data.encoding import Inputs
from hf_mtl.data.recipe import TaskSource
from hf_mtl.data.words import word_spans
from hf_mtl.explain.marked_rows import MarkedRows
from hf_mtl.explain.subject import Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target, Wanted
from hf_mtl.registry import HEADS

LARGE = 0.9
"""A cue's effect is among the largest tenth of the words of its label."""
SAME_SIGN = 0.8
"""A cue has the same effect in at least this share of its texts."""
SURE = 3.0
"""A cue's mean effect is at least this many standard errors from 0; that of a word that is listed, two."""
UNMARKED = 0.1
"""People mark a cue in at most this share of its texts; or its label is at most so much more frequent with it."""
ROWS_FOR_LABELS = 20_000

MARK_RULE = (
    f"effect in the largest {1 - LARGE:.0%}, at least {SURE:g} standard errors from 0 and of the same sign in"
    f" {SAME_SIGN:.0%} of its texts, while people mark it as a reason in at most {UNMARKED:.0%} of them"
)
LABEL_RULE = (
    f"effect in the largest {1 - LARGE:.0%}, at least {SURE:g} standard errors from 0 and of the same sign in"
    f" {SAME_SIGN:.0%} of its texts, while the label is at most {UNMARKED:.0%} more frequent in texts with the word"
    " than in all"
)


@dataclass(frozen=True)
class WordEffect:
    """What a word does to a label that is answered.

    Args:
        word: the word, without regard to capitals.
        label: the label.
        texts: number of texts with the word in which that label is answered.
        effect: by how much the label's score falls without the word, mean over these texts (a difference of logits, or
            the label's unit for regression).
        standard_error: of the effect.
        probability: by how much the label's probability (or the value) falls, mean over these texts.
        same_sign: share of these texts where the effect has the sign of the mean.
        marked: share of these texts where people mark the word as a reason; `None` where nobody marked any.
        association: by how much more frequent the label is in labelled texts with the word than in all; `None` for
            numbers, and where the word is in none.
    """

    word: str
    label: str
    texts: int
    effect: float
    standard_error: float
    probability: float
    same_sign: float
    marked: float | None
    association: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def word_effects(
    subject: Subject,
    rows: MarkedRows,
    task: str,
    *,
    least_texts: int = 5,
    most_texts: int = 25,
    labels: LabelShares | None = None,
) -> list[WordEffect]:
    """Leave out each word of each text, and average what happens over the texts of the same answer.

    Words that are the target of a tagging task themselves are not counted: what is told is what their context does.

    Args:
        subject: the model.
        rows: the texts.
        task: the task.
        least_texts: texts that a word needs to be counted, at least 2.
        most_texts: texts in which a word is left out, for each label that is answered.
        labels: how frequent each label is with each word.

    Returns:
        Words with at least as many texts, by label, the largest effect first.
    """
    texts = [subject.read(row) for row in rows.rows]
    words = [[unit.text.casefold() for unit in text.units] for text in texts]
    counts = Counter(word for own in words for word in set(own))
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
    for place, text in enumerate(texts):
        target = subject.target(text, subject.forward(text, [task]), task, Wanted())
        names = target.names or subject.spec(task).labels
        label = names[target.labels[0]] if names else "value"
        own = text.units_of_words(target.words) if target.words is not None else np.zeros(len(text.units), dtype=bool)
        # Readings are spent on words that can be counted, and on none of them without end.
        wanted = [counts[word] >= least_texts and len(found[label, word]) < most_texts for word in words[place]]
        units = np.flatnonzero(~own & np.array(wanted, dtype=bool))
        marks = None if rows.rationales is None else rows.rationales[place]
        for word, values in _text_effects(subject, text, task, target, units, marks).items():
            found[label, word].append(values)
    effects = [
        _word_effect(word, label, np.array(own), labels)
        for (label, word), own in found.items()
        if len(own) >= least_texts
    ]
    order = {label: place for place, label in enumerate(subject.spec(task).labels or ())}
    return sorted(effects, key=lambda own: (order.get(own.label, -1), -own.effect, own.word))


def clear(effects: Sequence[WordEffect]) -> list[WordEffect]:
    """Return the words of a label whose mean effect is at least two standard errors above 0, and at least a tenth of
    the largest such effect."""
    sure = [own for own in effects if own.effect > 0 and own.effect >= 2 * own.standard_error]
    return [own for own in sure if own.effect >= max(one.effect for one in sure) / 10]


def cue_candidates(effects: Sequence[WordEffect]) -> list[WordEffect]:
    """Return words that may be spurious cues: their effect is large and consistent, and nobody would say why.

    See `MARK_RULE`, and `LABEL_RULE` where nobody marked reasons. They are candidates to look at, not a verdict.

    Args:
        effects: the words of a task.
    """
    found: list[WordEffect] = []
    for label in dict.fromkeys(own.label for own in effects):
        words = [own for own in effects if own.label == label]
        least = float(np.quantile([own.effect for own in words], LARGE))
        found += [own for own in words if own.effect >= least and own.effect > 0 and _is_cue(own)]
    return found


def _is_cue(own: WordEffect) -> bool:
    against = own.association if own.marked is None else own.marked
    consistent = own.same_sign >= SAME_SIGN and own.effect >= SURE * own.standard_error
    return consistent and against is not None and against <= UNMARKED


def _text_effects(
    subject: Subject, text: ExplainedText, task: str, target: Target, units: np.ndarray, marks: np.ndarray | None
) -> dict[str, tuple[float, float, float]]:
    """Return for some words of a text the fall of score and probability without each, and whether it is marked; means,
    where a word comes more than once."""
    if not len(units):
        return {}
    removed = np.zeros((1 + len(units), len(text.units)), dtype=bool)
    removed[1 + np.arange(len(units)), units] = True
    measured = subject.measure(text, removed, {task: target})[task]
    falls = [(values[0] - values[1:]).tolist() for values in (measured.scores, measured.probabilities)]
    words: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for unit, score, probability in zip(units.tolist(), *falls, strict=True):
        marked = math.nan if marks is None else float(marks[unit])
        words[text.units[unit].text.casefold()].append((score, probability, marked))
    return {word: tuple(np.mean(values, axis=0).tolist()) for word, values in words.items()}


def _word_effect(word: str, label: str, values: np.ndarray, labels: LabelShares | None) -> WordEffect:
    effects, probabilities, marks = values.T
    mean = float(effects.mean())
    marks = marks[~np.isnan(marks)]
    return WordEffect(
        word=word,
        label=label,
        texts=len(effects),
        effect=mean,
        standard_error=float(effects.std(ddof=1) / math.sqrt(len(effects))),
        probability=float(probabilities.mean()),
        same_sign=float((np.sign(effects) == np.sign(mean)).mean()),
        marked=float((marks > 0).mean()) if len(marks) else None,
        association=None if labels is None else labels.association(word, label),
    )


class LabelShares:
    """How frequent each label is in labelled texts, and in those of them with a word.

    Args:
        texts: per text its words and its labels.
    """

    def __init__(self, texts: Sequence[tuple[set[str], set[str]]]) -> None:
        self._count = len(texts)
        self._labels: dict[str, int] = defaultdict(int)
        self._words: dict[str, int] = defaultdict(int)
        self._both: dict[tuple[str, str], int] = defaultdict(int)
        for words, labels in texts:
            for word in words:
                self._words[word] += 1
            for label in labels:
                self._labels[label] += 1
                for word in words:
                    self._both[word, label] += 1

    @classmethod
    def of(cls, splits: Mapping[str, EncodedSplit], task: str) -> LabelShares:
        """Count over the labelled rows of a task, at most 20,000."""
        texts: list[tuple[set[str], set[str]]] = []
        for split in splits.values():
            for source in split.tasks:
                if source.spec.name == task:
                    texts += _counted(split, source)
        return cls(texts)

    def association(self, word: str, label: str) -> float | None:
        """Return by how much more frequent a label is with a word; `None` without such texts or labels.

        Example:
            >>> LabelShares([({"a", "b"}, {"x"}), ({"b"}, {"y"})]).association("a", "x")
            0.5
        """
        if not self._labels or word not in self._words:
            return None
        return self._both[word, label] / self._words[word] - self._labels[label] / self._count


def _counted(split: EncodedSplit, source: TaskSource) -> list[tuple[set[str], set[str]]]:
    head, gold = HEADS.get(source.spec.type), split.gold(source)
    labelled = set(split.labelled(source.spec.name).tolist()[:ROWS_FOR_LABELS])
    return [
        (_words(row), set(head.describe(source.spec, gold[number])))
        for number, row in enumerate(split.inputs())
        if number in labelled
    ]


def _words(row: Inputs) -> set[str]:
    spans = word_spans(row.text) if row.word_spans is None else row.word_spans
    words = {row.text[start:end].casefold() for start, end in spans}
    if row.beside is not None:
        words |= {row.beside[start:end].casefold() for start, end in word_spans(row.beside)}
    return words
