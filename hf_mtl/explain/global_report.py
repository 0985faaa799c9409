"""A report on a whole model: words that carry its labels, cues to doubt, sure mistakes, calibration, and what the tasks
are to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.errors import SpecError, one_of
from hf_mtl.explain.answered_rows import AnsweredRows, Calibration, Mistake
from hf_mtl.explain.explainer import AUTO, Explainer
from hf_mtl.explain.importance import HeadImportance, head_importance
from hf_mtl.explain.labelled import draw_rows
from hf_mtl.explain.marked_rows import MarkedRows, draw_marked_rows
from hf_mtl.explain.probing import LayerProbe, layer_probe
from hf_mtl.explain.relations import Relations, task_relations, transfer_of
from hf_mtl.explain.word_effects import (
    LABEL_RULE,
    MARK_RULE,
    LabelShares,
    WordEffect,
    clear,
    cue_candidates,
    word_effects,
)
from hf_mtl.writing import TextTable

TASK_PARTS = ("words", "cues", "mistakes", "calibration")
MODEL_PARTS = ("relations", "heads", "layers")
PARTS = (*TASK_PARTS, *MODEL_PARTS)


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """What holds for one task.

    Args:
        task: the task.
        measure: what an effect on a probability is measured in: `"probability"`, or `"value"`.
        texts: texts in which each word was left out.
        left_out: texts that were drawn and are too long for the model, or without words.
        least_texts: texts that a word needs to be counted.
        words: label -> the words with the largest mean effect that is clear; `None` where not asked for.
        cues: words that may be spurious cues; `None` where not asked for, or where nothing says what a cue is.
        cue_rule: what makes a word a candidate.
        answered: labelled rows that were answered, for mistakes and calibration.
        mistakes: the mistakes that the model was most sure of; `None` where not asked for.
        calibration: whether confidences are what they say; `None` where not asked for, or for numbers.
    """

    task: str
    measure: str
    texts: int
    left_out: int
    least_texts: int
    words: dict[str, tuple[WordEffect, ...]] | None
    cues: tuple[WordEffect, ...] | None
    cue_rule: str
    answered: int
    mistakes: tuple[Mistake, ...] | None
    calibration: Calibration | None

    def word_table(self, label: str) -> TextTable:
        """Return the words of a label with counts and standard errors."""
        rows = [
            (own.word, str(own.texts), f"{own.effect:+.3f} ± {own.standard_error:.3f}", self._fall(own))
            for own in (self.words or {}).get(label, ())
        ]
        return TextTable(f"{self.task}: {label}", ("word", "texts", "effect", self.measure), rows)

    def cue_table(self) -> TextTable:
        """Return the candidates for spurious cues."""
        rows = [
            (own.word, own.label, str(own.texts), f"{own.effect:+.3f} ± {own.standard_error:.3f}", self._fall(own),
             f"{own.same_sign:.0%}", _share(own.marked), _share(own.association, "+.0%"))
            for own in self.cues or ()
        ]  # fmt: skip
        header = ("word", "label", "texts", "effect", self.measure, "same sign", "marked", "label with it")
        return TextTable(f"{self.task}: words to doubt", header, rows)

    def _fall(self, own: WordEffect) -> str:
        return f"{own.probability:+.1%}" if self.measure == "probability" else f"{own.probability:+.3g}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **{name: getattr(self, name) for name in ("task", "measure", "texts", "left_out", "least_texts")},
            "words": None
            if self.words is None
            else {label: [own.to_dict() for own in words] for label, words in self.words.items()},
            "cues": None if self.cues is None else [own.to_dict() for own in self.cues],
            "cue_rule": self.cue_rule,
            "answered": self.answered,
            "mistakes": None if self.mistakes is None else [own.to_dict() for own in self.mistakes],
            "calibration": None if self.calibration is None else asdict(self.calibration),
        }


@dataclass(frozen=True, kw_only=True)
class GlobalReport:
    """A report on a model.

    Args:
        split: the rows it was made on, in words.
        seed: seed of every draw.
        tasks: what holds for each task; empty where no such part was asked for.
        relations: gradient cosines of the tasks.
        transfer: what the tasks gain from each other.
        heads: the attention heads of each task.
        layers: what each layer knows.
    """

    split: str
    seed: int
    tasks: tuple[TaskReport, ...] = ()
    relations: Relations | None = None
    transfer: Relations | None = None
    heads: HeadImportance | None = None
    layers: LayerProbe | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        parts: dict[str, Any] = {"relations": self.relations, "transfer": self.transfer, "heads": self.heads}
        parts["layers"] = self.layers
        known = {name: part.to_dict() for name, part in parts.items() if part is not None}
        return {"split": self.split, "seed": self.seed, "tasks": [own.to_dict() for own in self.tasks], **known}

    def tables(self) -> list[TextTable]:
        """Return everything that is a table and has rows."""
        found = [own.word_table(label) for own in self.tasks for label in own.words or ()]
        found += [own.cue_table() for own in self.tasks if own.cues]
        found += [own.table() for own in (self.relations, self.transfer, self.heads, self.layers) if own is not None]
        found += [] if self.heads is None else [self.heads.ablation_table()]
        return [table for table in found if table.rows]

    def to_html(self, title: str = "Model report") -> str:
        """Return one page that needs nothing from elsewhere, pictures included.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from hf_mtl.explain.global_page import report_page

        return report_page(self, title)

    def _repr_html_(self) -> str:
        from hf_mtl.explain.global_page import fragments

        return "\n".join(fragments(self))


def global_report(
    model: Any,
    tokenizer: Any,
    splits: Mapping[str, EncodedSplit],
    tasks: Sequence[str] | None = None,
    *,
    parts: Sequence[str] = TASK_PARTS,
    rows: int = 2000,
    texts: int = 500,
    least_texts: int = 5,
    most_texts: int = 25,
    top: int = 15,
    num_mistakes: int = 5,
    bins: int = 10,
    method: str = AUTO,
    rationale_column: str | None = None,
    tokens_column: str | None = None,
    train: Mapping[str, EncodedSplit] | None = None,
    comparisons: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
    on_part: Callable[[str], None] | None = None,
) -> GlobalReport:
    """Report on a model as a whole.

    What a word does is measured by leaving it out, text by text; why a mistake was made is said in sentences that were
    checked by intervention; numbers that would not come out again on other rows are not shown.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        splits: labelled rows by dataset, which the model was not trained on.
        tasks: the tasks; all that have labels where not given.
        parts: what the report holds, of `words`, `cues`, `mistakes`, `calibration` of each task, and `relations`,
            `heads` and `layers` of the model.
        rows: labelled rows of a task that are answered.
        texts: texts of a task in which words are left out, one reading for each word.
        least_texts: texts that a word needs to be counted, at least 2.
        most_texts: texts in which a word is left out, for each label that is answered.
        top: words listed for each label.
        num_mistakes: mistakes listed for each task.
        bins: bins of the calibration curve.
        method: the attribution method that mistakes are explained by.
        rationale_column: column with a number for each token that says whether people see a reason in it.
        tokens_column: column of these tokens.
        train: training rows by dataset, for `layers`.
        comparisons: what `hf-mtl compare` wrote in `comparison.json`, for the transfer between tasks.
        seed: seed of every draw.
        on_part: called with what is about to be done.

    Raises:
        SpecError: there is no such part or task, or an option is out of range.
        DataError: no row is labelled.
        ModelError: the model cannot be looked into in this way.
    """
    _check(parts, train)
    for name, value, least in (
        ("least_texts", least_texts, 2),
        ("most_texts", most_texts, least_texts),
        ("top", top, 1),
        ("num_mistakes", num_mistakes, 1),
    ):
        if value < least:
            raise SpecError(f"{name} is {value}", mend=f"use {least} or more")
    tell = on_part or (lambda what: None)
    explainer = Explainer(model, tokenizer)
    found: list[TaskReport] = []
    if any(part in TASK_PARTS for part in parts):
        drawn = draw_rows(model, splits, tasks, limit=rows, seed=seed)
        marked: dict[str, MarkedRows] = {}
        if {"words", "cues"} & set(parts):
            columns: Any = {"rationale_column": rationale_column, "tokens_column": tokens_column}
            marked = draw_marked_rows(explainer, splits, list(drawn), limit=texts, seed=seed, **columns)
        for task, own in drawn.items():
            tell(task)
            words = _Words.of(explainer, splits, task, marked.get(task), least_texts, most_texts)
            answered = AnsweredRows.of(explainer, own) if {"mistakes", "calibration"} & set(parts) else None
            found.append(
                TaskReport(
                    task=task,
                    measure=explainer.subject.head(task).measure,
                    texts=words.texts,
                    left_out=words.left_out,
                    least_texts=least_texts,
                    words=words.by_label(top) if "words" in parts else None,
                    cues=words.cues if "cues" in parts else None,
                    cue_rule=words.rule,
                    answered=len(own) if answered else 0,
                    mistakes=tuple(answered.mistakes(explainer, num_mistakes, method=method))
                    if answered and "mistakes" in parts
                    else None,
                    calibration=answered.calibration(bins) if answered and "calibration" in parts else None,
                )
            )
    options: Any = {"tasks": tasks, "seed": seed}
    relations = heads = layers = None
    if "relations" in parts:
        tell("relations")
        relations = task_relations(model, tokenizer, splits, **options)
    if "heads" in parts:
        tell("heads")
        heads = head_importance(model, tokenizer, splits, **options)
    if "layers" in parts:
        tell("layers")
        layers = layer_probe(model, tokenizer, train or {}, splits, **options)
    return GlobalReport(
        split=", ".join(
            f"{split.name} {split.split}"
            for split in splits.values()
            if tasks is None or any(own.spec.name in tasks for own in split.tasks)
        ),
        seed=seed,
        tasks=tuple(found),
        relations=relations,
        transfer=transfer_of(comparisons) if comparisons else None,
        heads=heads,
        layers=layers,
    )


@dataclass(frozen=True, eq=False)
class _Words:
    """What was found by leaving words out."""

    effects: list[WordEffect]
    texts: int = 0
    left_out: int = 0
    rule: str = ""

    @classmethod
    def of(
        cls,
        explainer: Explainer,
        splits: Mapping[str, EncodedSplit],
        task: str,
        rows: MarkedRows | None,
        least_texts: int,
        most_texts: int,
    ) -> _Words:
        if rows is None:
            return cls([])
        shares = LabelShares.of(splits, task)
        limits = {"least_texts": least_texts, "most_texts": most_texts}
        effects = word_effects(explainer.subject, rows, task, **limits, labels=shares)
        rule = LABEL_RULE if rows.rationales is None else MARK_RULE
        return cls(effects, len(rows.rows), rows.left_out, rule)

    def by_label(self, top: int) -> dict[str, tuple[WordEffect, ...]]:
        labels = dict.fromkeys(own.label for own in self.effects)
        return {label: tuple(clear([own for own in self.effects if own.label == label])[:top]) for label in labels}

    @property
    def cues(self) -> tuple[WordEffect, ...] | None:
        if all(own.marked is None and own.association is None for own in self.effects):
            return None
        return tuple(cue_candidates(self.effects))


def _check(parts: Sequence[str], train: Mapping[str, EncodedSplit] | None) -> None:
    for part in parts:
        if part not in PARTS:
            raise SpecError(f"parts has {part!r}", mend=f"use {one_of(PARTS)}")
    if "layers" in parts and not train:
        raise SpecError("parts has 'layers', and there are no training rows", mend="give train, to fit probes on")


def _share(value: float | None, form: str = ".0%") -> str:
    return "" if value is None else format(value, form)
