"""Labelled rows with the model's answers: what it gets wrong though it is sure, and whether it is sure for good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_mtl.data.encoding import Inputs
from hf_mtl.errors import DataError
from hf_mtl.evaluation.calibration import CalibrationBin, calibration_bins, expected_calibration_error
from hf_mtl.evaluation.metrics import load_metric
from hf_mtl.evaluation.mistakes import Judged, mistakes
from hf_mtl.evaluation.prediction import answer
from hf_mtl.explain.explainer import Explainer
from hf_mtl.explain.explanation import Explanation
from hf_mtl.explain.labelled import LabelledRows
from hf_mtl.registry import HEADS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Calibration:
    """Whether a task's confidences are what they say.

    Args:
        bins: answers of like confidence.
        error: expected calibration error, in [0, 1].
        items: number of answers: texts, labels of a multi-label task, spans that a tagging task found.
    """

    bins: tuple[CalibrationBin, ...]
    error: float
    items: int

    def figure(self) -> Figure:
        """Draw the share of right answers over their confidence.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from hf_mtl.explain.figures import calibration_curve

        return calibration_curve(list(self.bins))


@dataclass(frozen=True)
class Mistake:
    """A row that the model got wrong.

    Args:
        row: its number in the split, from 0.
        text: its text.
        prediction: what was answered.
        reference: what is right.
        confidence: how sure the model was, in [0, 1].
        words: for tagging, the words that got a wrong tag, with that tag and the right one.
        explanation: why it answered so; `None` where the text is longer than the model reads.
    """

    row: int
    text: str
    prediction: Any
    reference: Any
    confidence: float
    words: tuple[tuple[str, str, str], ...]
    explanation: Explanation | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; the reasons are the sentences of a report, each checked by intervention."""
        values = {name: getattr(self, name) for name in ("row", "text", "prediction", "reference", "confidence")}
        values["words"] = [list(word) for word in self.words]
        if self.explanation is None:
            return {**values, "explanation": None, "why": None}
        return {**values, "explanation": self.explanation.to_dict(), "why": self.explanation.report()}


@dataclass(frozen=True, eq=False)
class AnsweredRows:
    """Labelled rows of one task and the model's answers.

    Args:
        rows: the rows.
        inputs: what was read of each.
        answers: the task's answer for each.
    """

    rows: LabelledRows
    inputs: list[Inputs]
    answers: list[dict[str, Any]]

    @classmethod
    def of(cls, explainer: Explainer, rows: LabelledRows) -> AnsweredRows:
        """Answer rows."""
        task = rows.spec.name
        subject = explainer.subject
        inputs = list(rows.as_split().inputs())
        found = answer(subject.model, subject.tokenizer, inputs, tasks=[task])
        return cls(rows, inputs, [own[task] for own in found])

    def calibration(self, bins: int) -> Calibration | None:
        """Compare confidences with what is right; `None` for a task that is never sure or unsure, such as regression.

        Args:
            bins: number of bins of equal width.
        """
        spec = self.rows.spec
        head, gold = HEADS.get(spec.type), self._gold
        pairs = [
            pair for own, value in zip(self.answers, gold, strict=True) for pair in head.judgements(spec, own, value)
        ]
        if not pairs:
            return None
        confidences, correct = zip(*pairs, strict=True)
        found = calibration_bins(confidences, correct, bins)
        return Calibration(tuple(found), expected_calibration_error(confidences, correct, bins), len(pairs))

    def mistakes(self, explainer: Explainer, limit: int, *, method: str) -> list[Mistake]:
        """Return the mistakes that the model was most confident of, explained.

        Args:
            explainer: the model.
            limit: number of mistakes at most.
            method: the attribution method.
        """
        spec = self.rows.spec
        head = HEADS.get(spec.type)
        judged = [
            Judged(
                row=place,
                text=row.text if row.beside is None else f"{row.text} / {row.beside}",
                prediction=head.prediction(spec, own),
                reference=head.reference(spec, value),
                confidence=head.confidence(spec, own),
            )
            for place, (row, own, value) in enumerate(zip(self.inputs, self.answers, self._gold, strict=True))
        ]
        metric = load_metric(head.metric_name(spec), scheme=spec.scheme)
        wrong = mistakes(metric, judged, limit=limit, labels=spec.labels)["mistakes"]
        found: list[Mistake] = []
        for own in wrong:
            place: int = own.pop("row")
            why = _explained(explainer, self.inputs[place], spec.name, method)
            tagged = not (head.pooled or head.points_into_text)
            words = _wrong_words(self.inputs[place], own["prediction"], own["reference"]) if tagged else ()
            found.append(Mistake(row=int(self.rows.rows[place]), words=words, explanation=why, **own))
        return found

    @property
    def _gold(self) -> Sequence[Any]:
        gold = self.rows.split.gold(self.rows.task)
        return [gold[row] for row in self.rows.rows.tolist()]


def _wrong_words(row: Inputs, found: Sequence[str], true: Sequence[str | None]) -> tuple[tuple[str, str, str], ...]:
    spans = np.zeros((0, 2), dtype=np.int64) if row.word_spans is None else row.word_spans
    return tuple(
        (row.text[start:end], tag, right)
        for (start, end), tag, right in zip(spans.tolist(), found, true, strict=True)
        if right is not None and tag != right
    )


def _explained(explainer: Explainer, row: Inputs, task: str, method: str) -> Explanation | None:
    given: dict[str, Any] = {"text": row.text, "text_pair": row.text_pair}
    if row.tokens_given and row.word_spans is not None:
        given = {"tokens": [row.text[start:end] for start, end in np.asarray(row.word_spans).tolist()]}
    if row.choices is not None:
        given["choices"] = list(row.choices)
    try:
        return explainer.explain(given, task, method=method)[task]
    except DataError:  # longer than the model reads
        return None
