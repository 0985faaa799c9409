"""How good explanations are: measured by intervention, and against the words that people marked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_mtl.data.masking import NOT_EXPLAINED, select_unmasked
from hf_mtl.errors import DataError, HfMtlError, MissingExtraError, ModelError, SpecError, one_of
from hf_mtl.explain.explainer import Explainer
from hf_mtl.explain.explanation import Explanation
from hf_mtl.explain.faithfulness import Faithfulness, Variants, faithfulness, greedy_choice, greedy_removal
from hf_mtl.explain.measurements import GREEDY, RANDOM, Measurements, Quality
from hf_mtl.explain.method_options import Run, read_methods
from hf_mtl.explain.plausibility import average_share, plausibility
from hf_mtl.explain.subject import REMOVALS, Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target, Wanted

logger = logging.getLogger(__name__)


def quality(
    explainer: Explainer,
    rows: Sequence[Any],
    task: str,
    *,
    methods: Sequence[str] | None = None,
    rationales: Sequence[Sequence[bool] | np.ndarray | None] | None = None,
    labels: Sequence[Any] | None = None,
    perturb: Sequence[str] = REMOVALS,
    top: int = 3,
    random_orders: int = 5,
    seed: int = 0,
    on_text: Callable[[int, int], None] | None = None,
) -> Quality:
    """Measure attribution methods on texts, beside random orders of the words and a greedy search.

    Words are ranked by their signed scores for the label that the model answers, what speaks most for it first, and
    taken away in this order; for a number that is predicted by the size of their scores, and what counts then is its
    absolute change. See `Faithfulness` for what is measured. The greedy search takes away at every step the word
    without which the probability is lowest; for sufficiency it adds at every step the word with which it is highest.

    Args:
        explainer: the model.
        rows: texts, or mappings with `text` (and perhaps `text_pair`) or `tokens`.
        task: the task.
        methods: the methods, each perhaps with options: `"shapley:pairs=10,seed=1"`; all that cover the model where not
            given.
        rationales: per row which words people marked as reasons, one for each word of the row, or `None`.
        labels: per row the label that its rationale is for, as the data has it. A row that the model answers otherwise
            has other reasons, and is not compared; all are where not given, and where a number is predicted.
        perturb: the ways of taking words away, `"delete"`, `"mask"` or both.
        top: number of words that are taken away to see whether the answer flips.
        random_orders: number of random orders of each text, whose mean is the reference.
        seed: seed of these orders.
        on_text: called with the number of texts that are done, and of all.

    Raises:
        SpecError: there is no such task, method, option or way, or a number is too small.
        DataError: a row cannot be read or has no words, or a rationale does not fit its row.
        ModelError: a method that is named does not cover the model.
    """
    select_unmasked(explainer.subject.model.specs, [task], NOT_EXPLAINED)
    for name, value in (("top", top), ("random_orders", random_orders)):
        if value < 1:
            raise SpecError(f"{name} is {value}", mend="give at least 1")
    unknown = [how for how in perturb if how not in REMOVALS]
    if unknown or not perturb:
        raise SpecError(f"perturb is {perturb!r}", mend=f"give one or more of {one_of(REMOVALS)}")
    texts = _read(explainer, rows)
    marked = _read_marked(texts, rationales)
    share = average_share(marked)
    if labels is not None:
        marked = _answered_alike(explainer.subject, texts, marked, labels, task)
    runs = _runs(explainer, texts[0], task, methods)
    found = {name: Measurements() for name in (*runs, RANDOM, GREEDY)}
    for number, (text, rationale) in enumerate(zip(texts, marked, strict=True)):
        explained = {name: _timed(explainer, text, task, run) for name, run in runs.items()}
        for name, (_, milliseconds) in explained.items():
            found[name].milliseconds.append(milliseconds)
        judge = _Judge(explainer, text, task, rationale, perturb=perturb, share=share, top=top)
        shuffled = _random_orders(len(text.units), random_orders, np.random.default_rng((seed, number)))
        judge.measure({name: one for name, (one, _) in explained.items()}, shuffled, found)
        if on_text is not None:
            on_text(number + 1, len(texts))
    return Quality(task, explainer.subject.head(task).measure, len(texts), top, random_orders, seed, found)


class _Judge:
    """Measures orders of one text's words, in every way of taking them away."""

    def __init__(
        self,
        explainer: Explainer,
        text: ExplainedText,
        task: str,
        rationale: np.ndarray | None,
        *,
        perturb: Sequence[str],
        share: float,
        top: int,
    ) -> None:
        subject = explainer.subject
        target: Target = subject.target(text, subject.forward(text, [task]), task, Wanted())
        self.variants = {how: Variants(subject, text, task, target, how) for how in perturb}
        self.rationale = rationale
        self.share = share
        self.top = top
        self.num_units = len(text.units)
        self.numeric = subject.head(task).measure == "value"

    def measure(
        self, explanations: dict[str, Explanation], shuffled: np.ndarray, found: dict[str, Measurements]
    ) -> None:
        """Measure explanations and references, and add what comes out to what was found."""
        ranking = {name: self._importance(one) for name, one in explanations.items()}
        orders = [np.argsort(-scores, kind="stable").tolist() for scores in ranking.values()]
        removals: list[list[int]] = []
        for how, variants in self.variants.items():
            removals.append(greedy_removal(variants.effect, self.num_units))
            choice = greedy_choice(variants.effect, self.num_units)
            measured = faithfulness(variants, [*orders, *shuffled.tolist(), removals[-1], choice], top=self.top)
            for name, one in zip(ranking, measured, strict=False):
                found[name].add(how, one)
            found[RANDOM].add(how, _mean(measured[len(orders) : -2]))
            removed, chosen = measured[-2:]
            found[GREEDY].add(how, Faithfulness(removed.removed, chosen.kept, removed.flips))
        for name, scores in ranking.items():
            found[name].agreement.append(self._agreement(scores))
        found[RANDOM].agreement.append(_mean_of([self._agreement(_descending(order)) for order in shuffled]))
        found[GREEDY].agreement.append(self._agreement(_descending(removals[0])))

    def _importance(self, explanation: Explanation) -> np.ndarray:
        scores = np.array(explanation.scores, dtype=np.float64)
        return np.abs(scores) if self.numeric else scores

    def _agreement(self, scores: np.ndarray) -> dict[str, float]:
        return {} if self.rationale is None else plausibility(scores, self.rationale, share=self.share)


def _read(explainer: Explainer, rows: Sequence[Any]) -> list[ExplainedText]:
    """Tokenize all rows, before hours of work are lost to one that is too long."""
    if not len(rows):
        raise DataError("there are no rows", mend="give at least one")
    texts: list[ExplainedText] = []
    for number, row in enumerate(rows):
        try:
            texts.append(explainer.subject.read(row))
            if not texts[-1].units:
                raise DataError("the text has no words", mend="leave the row out")
        except HfMtlError as error:
            raise error.at(f"row {number + 1}") from None
    return texts


def _read_marked(
    texts: Sequence[ExplainedText], rationales: Sequence[Sequence[bool] | np.ndarray | None] | None
) -> list[np.ndarray | None]:
    if rationales is None:
        return [None] * len(texts)
    if len(rationales) != len(texts):
        raise DataError(f"there are {len(rationales)} rationales for {len(texts)} rows", mend="give one for each row")
    marked = [None if one is None else np.asarray(one, dtype=bool) for one in rationales]
    for number, (text, one) in enumerate(zip(texts, marked, strict=True)):
        if one is not None and one.shape != (len(text.units),):
            raise DataError(
                f"the rationale has {one.size} values, the text {len(text.units)} words",
                where=f"row {number + 1}",
                mend="give the row's tokens in place of its text, and a value for each",
            )
    return marked


def _answered_alike(
    subject: Subject,
    texts: Sequence[ExplainedText],
    marked: Sequence[np.ndarray | None],
    labels: Sequence[Any],
    task: str,
) -> list[np.ndarray | None]:
    """Keep the rationales of texts that the model answers as people do."""
    if len(labels) != len(texts):
        raise DataError(f"there are {len(labels)} labels for {len(texts)} rows", mend="give one for each row")
    spec, head = subject.spec(task), subject.head(task)
    if head.measure == "value":  # no two numbers are the same answer
        return list(marked)
    found: list[np.ndarray | None] = []
    for text, rationale, label in zip(texts, marked, labels, strict=True):
        alike = False
        if rationale is not None and label is not None:
            logits = subject.forward(text, [task]).logits(task)[0].detach().float().cpu().numpy()
            alike = head.prediction(spec, head.decode(spec, logits, text.words)) == head.reference(spec, label)
        found.append(rationale if alike else None)
    return found


def _runs(explainer: Explainer, text: ExplainedText, task: str, methods: Sequence[str] | None) -> dict[str, Run]:
    """Return the methods that can be measured, each tried once: what is slow the first time is not measured."""
    runs = read_methods(methods)
    for name, run in list(runs.items()):
        try:
            explainer.explain(text.row, task, run.method, **run.options)
        except (ModelError, MissingExtraError) as error:
            if methods is not None:
                raise
            logger.warning("%s is left out: %s", name, error)
            del runs[name]
    if not runs:
        raise SpecError("there are no methods to measure", mend="name at least one")
    return runs


def _timed(explainer: Explainer, text: ExplainedText, task: str, run: Run) -> tuple[Explanation, float]:
    start = time.perf_counter()
    explanation = explainer.explain(text.row, task, run.method, **run.options)[task]
    return explanation, 1000 * (time.perf_counter() - start)


def _random_orders(num_units: int, count: int, generator: np.random.Generator) -> np.ndarray:
    return np.stack([generator.permutation(num_units) for _ in range(count)])


def _descending(order: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return scores that rank words in an order."""
    return -np.argsort(np.asarray(order)).astype(np.float64)


def _mean(measured: Sequence[Faithfulness]) -> Faithfulness:
    removed, kept = (np.mean([getattr(one, part) for one in measured], axis=0) for part in ("removed", "kept"))
    return Faithfulness(removed, kept, float(np.mean([one.flips for one in measured])))


def _mean_of(values: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([value[key] for value in values])) for key in values[0]}
