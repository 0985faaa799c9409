"""Pseudo-labels: missing labels of partially labelled rows, filled where a trained model is sure enough.

A row's missing label becomes `argmax p` where `max p >= threshold`, with `p = softmax(logits / T)`; every word of a
tagged text must be as sure.

Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", ICML
workshop on challenges in representation learning; confidences are calibrated first, by temperature scaling.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.cleaning import CleaningStep, clean_row, cleaning_steps
from hf_mtl.data.dataset_source import DatasetSource
from hf_mtl.data.encoded import splits_words
from hf_mtl.data.encoding import Inputs, encode
from hf_mtl.data.masking import select_unmasked
from hf_mtl.data.preparation import known_tasks, read_splits
from hf_mtl.data.recipe import Recipe, TaskSource
from hf_mtl.data.streaming import require_columns
from hf_mtl.data.windows import reading_of
from hf_mtl.errors import DataError, HfMtlError, SpecError, one_of
from hf_mtl.evaluation.decisions import Decided, Decisions, decide, has_confidence
from hf_mtl.evaluation.prediction import RowLogits, collator_for, predict_batches, row_batches
from hf_mtl.evaluation.temperature_scaling import Calibrated, calibrate, confidences
from hf_mtl.inference.labelled_files import Row, RowFiles, earlier_marks, write_labelled
from hf_mtl.model.heads.base import TaskHead, Words
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import HEADS
from hf_mtl.training.run import split_seed
from hf_mtl.writing import TextTable

logger = logging.getLogger(__name__)

MARK = "filled_labels"
"""Column that names the tasks whose labels were filled in a row, and how sure the model was of each."""

CHUNK_ROWS = 4096
FEW_ROWS = 50
"""Labelled validation rows below which a calibration is warned of."""


@dataclass
class FilledTask:
    """What became of one task's missing labels.

    Args:
        task: the task.
        threshold: least calibrated confidence of a filled label; `None` for numbers, which have none.
        calibrated: its temperature, and the calibration error before and after; `None` without calibration.
        missing: rows that had no label.
        filled: those of them that have one now.
    """

    task: str
    threshold: float | None
    calibrated: Calibrated | None
    missing: int = 0
    filled: int = 0
    sure: list[float] = field(default_factory=list[float], repr=False)

    @property
    def confidence(self) -> float | None:
        """Mean calibrated confidence of the filled labels; of a row of several choices, the least sure one counts."""
        return float(np.mean(self.sure)) if self.sure else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        calibrated = None if self.calibrated is None else asdict(self.calibrated)
        return {"task": self.task, "threshold": self.threshold, "missing": self.missing, "filled": self.filled,
                "confidence": self.confidence, "calibration": calibrated}  # fmt: skip


@dataclass(frozen=True)
class Labelling:
    """What `label_file` did.

    Args:
        rows: rows written.
        tasks: the tasks, in the order of the model's.
        numbers: tasks that were left out because they answer numbers, which have no confidence.
    """

    rows: int
    tasks: tuple[FilledTask, ...]
    numbers: tuple[str, ...] = ()

    def table(self) -> TextTable:
        """Return a line for each task."""
        lines: list[tuple[str, ...]] = []
        for own in self.tasks:
            known = own.calibrated
            lines.append((
                own.task, str(own.missing), str(own.filled), _shown(own.confidence), _shown(own.threshold),
                *(("-",) * 4 if known is None else (
                    f"{known.temperature:.2f}", str(known.decisions), _shown(known.error_before),
                    _shown(known.error_after),
                )),
            ))  # fmt: skip
        header = ("task", "missing", "filled", "mean confidence", "threshold", "temperature", "validation decisions",
                  "ECE before", "ECE after")  # fmt: skip
        return TextTable(f"Missing labels of {self.rows} rows", header, lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"rows": self.rows, "tasks": [own.to_dict() for own in self.tasks], "numbers": list(self.numbers)}


def label_file(
    model: MultiTaskModel,
    tokenizer: Any,
    recipe: Recipe,
    target: str | Path,
    *,
    dataset: str | None = None,
    source: str | Path | None = None,
    tasks: Sequence[str] | None = None,
    threshold: float = 0.9,
    thresholds: Mapping[str, float] | None = None,
    calibrated: bool = True,
    numbers: bool = False,
    batch_size: int = 64,
    max_tokens: int = 16384,
    on_rows: Callable[[int], None] | None = None,
) -> Labelling:
    """Fill the missing labels of a dataset's training rows where the model is sure enough, and write all rows.

    A label that is given is never changed, not even where a part of it is open. The confidence of a row's answer is
    that of its least sure choice: every word of a tagged text, and every label of a multi-label text, absent or
    present, must reach the threshold. A text whose end was cut off gets no tags. Texts are read as the recipe's
    cleaning leaves them, and written as they are.

    Confidences are tempered with a temperature for each task, which is fitted on the labelled rows of the dataset's
    validation split and never changes what is answered. The `filled_labels` of a row list the tasks that were filled
    in it, with their confidence, and are null where none was; training does not read them.

    Args:
        model: the trained model, in evaluation mode.
        tokenizer: its tokenizer.
        recipe: the recipe, which says where rows and labels stand.
        target: jsonl, csv, tsv or parquet, replaced when the last row is written. Tables of text (csv, tsv) only where
            the rows come from such; classes that have numbers in Parquet are written by name.
        dataset: the dataset; may be left out where the tasks have one.
        source: file of rows to label instead of the dataset's training files, with the same columns but perhaps
            without those of labels.
        tasks: the tasks to fill; all of the dataset that the model has, where not given.
        threshold: least confidence of a filled label, above 0 and at most 1.
        thresholds: the same for single tasks.
        calibrated: whether confidences are tempered; if not, no validation rows are needed.
        numbers: whether tasks that answer numbers are filled as well: every missing number, for there is no confidence
            to hold against a threshold.
        batch_size: rows of a batch.
        max_tokens: tokens of a batch, padding included.
        on_rows: called with the number of rows written so far.

    Raises:
        SpecError: an argument cannot be, a task answers numbers and `numbers` is not set, or it cannot be calibrated.
        DataError: the rows cannot be read.
        OutputError: the target cannot be written.
    """
    own = _tasks_of(model, recipe, dataset, tasks)
    kept = [task for task in own if numbers or has_confidence(HEADS.get(task.spec.type))]
    left_out = tuple(task.spec.name for task in own if task not in kept)
    if left_out and (tasks is not None or not kept):
        raise SpecError(
            "it answers numbers, which have no confidence to hold against a threshold",
            where=f"task {left_out[0]!r}",
            mend="leave it out, or ask for numbers: then every missing one is filled",
        )
    limits = _limits(kept, threshold, thresholds or {})
    files = RowFiles(recipe.datasets[kept[0].dataset], recipe.base, None if source is None else Path(source))
    target = Path(target)
    files.check(target)
    given = files.dataset.cleaning if files.dataset.cleaning is not None else recipe.refinement.get("cleaning")
    steps = cleaning_steps(list(given) if isinstance(given, tuple) else given)
    answers = _Answers(
        model, tokenizer, files.dataset, kept, cleaning=steps, batch_size=batch_size, max_tokens=max_tokens
    )
    choosing = [task for task in kept if answers.heads[task.spec.name].reads_choices]
    answers.by_text = frozenset(task.spec.name for task in choosing if _holds_text(files, task.label))
    temperatures = _calibrate(answers, recipe) if calibrated else {}
    found = {name: FilledTask(name, limits[name], temperatures.get(name)) for name in limits}
    if recipe.datasets[kept[0].dataset].validation is None and source is None:
        logger.warning(
            "dataset %r has no validation files: training on %s would set validation rows aside from it, and score "
            "itself on its own answers; name validation files",
            kept[0].dataset, target.name,
        )  # fmt: skip
    written = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal written
        for chunk in files.batches():
            if not written:
                require_columns(
                    list(dict.fromkeys(name for row in chunk for name in row.values)),
                    files.dataset.input_columns
                    | ({} if source else {f"label of {t.spec.name}": t.label for t in kept}),
                    where=chunk[0].where,
                )
            for row in _filled(chunk, answers, found):
                yield row
                written += 1
            if on_rows is not None:
                on_rows(written)

    write_labelled(rows(), target, mark=MARK)
    return Labelling(written, tuple(found.values()), left_out)


class _Answers:
    """Answers rows of a dataset, with the choices each answer is made of."""

    def __init__(
        self,
        model: MultiTaskModel,
        tokenizer: Any,
        dataset: DatasetSource,
        tasks: Sequence[TaskSource],
        *,
        cleaning: Sequence[CleaningStep],
        batch_size: int,
        max_tokens: int,
    ) -> None:
        self.model, self.tokenizer, self.dataset, self.cleaning = model, tokenizer, dataset, cleaning
        self.batch_size, self.max_tokens = batch_size, max_tokens
        self.split_words = splits_words(tasks)
        self.by_text = frozenset[str]()  # tasks whose labels are choices by their text
        self.tasks = {task.spec.name: task for task in tasks}
        self.heads: dict[str, type[TaskHead]] = {name: HEADS.get(own.spec.type) for name, own in self.tasks.items()}

    def cleaned(self, row: Row) -> Row | None:
        """Return a row as training reads it; `None` where training would leave it out."""
        columns = {name: row.values.get(name) for name in self.dataset.text_columns.values()}
        values, _, dropped = clean_row(self.cleaning, columns, texts_in=[self.dataset.choices])
        return Row({**row.values, **values}, row.where) if dropped is None else None

    def as_written(self, task: str, label: Any, row: Row) -> Any:
        """Return a label as the rows have it; `None` where the text of a choice would name several."""
        if task not in self.by_text:
            return label
        texts: Any = row.values[str(self.dataset.choices)]
        return texts[label] if list(texts).count(texts[label]) == 1 else None

    def logits(
        self, rows: Sequence[Row]
    ) -> Iterator[tuple[int, dict[str, np.ndarray], Callable[[TaskSpec], Words | None]]]:
        """Yield the place of each row, its logits by task, and what gives its words."""
        inputs: list[Inputs] = []
        for row in rows:
            try:
                read: dict[str, Any] = {r: row.values.get(name) for r, name in self.dataset.input_columns.items()}
                inputs.append(Inputs.of(**read, split_words=self.split_words))
            except DataError as error:
                raise error.at(row.where) from None
        names = list(self.tasks)
        encoded = encode(self.tokenizer, inputs, reading_of([own.spec for own in self.tasks.values()], self.tokenizer))
        features, layout = list(encoded.features()), encoded.layout(inputs)
        merged = RowLogits(self.model, layout)
        lengths = np.array([len(feature["input_ids"]) for feature in features], dtype=np.int64)
        collator = collator_for(self.model, self.tokenizer, names)
        batches = row_batches(layout, lengths, batch_size=self.batch_size, max_tokens=self.max_tokens)
        for predicted in predict_batches(self.model, collator, features, batches, tasks=names):
            for row, logits in merged.take(predicted):
                yield row, logits, lambda spec, row=row: layout.words_for(spec, row)


def _filled(rows: Sequence[Row], answers: _Answers, found: Mapping[str, FilledTask]) -> Iterator[dict[str, Any]]:
    """Yield rows with their missing labels filled, and count them."""
    open_rows = [row for row in rows if any(row.values.get(own.label) is None for own in answers.tasks.values())]
    labels: dict[int, dict[str, tuple[Any, float | None]]] = {}
    for start in range(0, len(open_rows), CHUNK_ROWS):
        cleaned = ((row, answers.cleaned(row)) for row in open_rows[start : start + CHUNK_ROWS])
        chunk = [(row, read) for row, read in cleaned if read is not None]
        for place, logits, words in answers.logits([read for _, read in chunk]):
            row = chunk[place][0]
            labels[id(row)] = _row_labels(row, logits, words, answers, found)
    for row in rows:
        values, marks = dict(row.values), earlier_marks(row, MARK)
        for name, own in answers.tasks.items():
            found[name].missing += values.setdefault(own.label, None) is None
            if values[own.label] is None and name in labels.get(id(row), {}):
                values[own.label], sure = labels[id(row)][name]
                marks.append({"task": name, "confidence": sure})
        yield {**values, MARK: marks or None}


def _row_labels(
    row: Row,
    logits: Mapping[str, np.ndarray],
    words: Callable[[TaskSpec], Words | None],
    answers: _Answers,
    found: Mapping[str, FilledTask],
) -> dict[str, tuple[Any, float | None]]:
    """Return the labels that a row lacks and the model is sure of, with how sure it is."""
    labels: dict[str, tuple[Any, float | None]] = {}
    for name, task in answers.tasks.items():
        if row.values.get(task.label) is not None:
            continue
        own, head, spec = found[name], answers.heads[name], task.spec
        if own.threshold is None:
            labels[name] = (head.as_label(spec, head.decode(spec, logits[name], words(spec))), None)
            own.filled += 1
            continue
        decided = decide(head, spec, logits[name], words(spec))
        sure = _least_sure(decided, own.calibrated)
        if decided is None or sure is None or sure < own.threshold:
            continue
        label = answers.as_written(name, decided.label, row)
        if label is not None:
            labels[name] = (label, sure)
            own.filled += 1
            own.sure.append(sure)
    return labels


def _holds_text(files: RowFiles, column: str) -> bool:
    """Tell whether the first label of a column is text."""
    values = (row.values.get(column) for chunk in files.batches() for row in chunk)
    return isinstance(next((value for value in values if value is not None), None), str)


def _least_sure(decided: Decided | None, calibrated: Calibrated | None) -> float | None:
    if decided is None or not decided.whole or not len(decided.decisions):
        return None
    return float(confidences(decided.decisions, 1.0 if calibrated is None else calibrated.temperature).min())


def _calibrate(answers: _Answers, recipe: Recipe) -> dict[str, Calibrated]:
    """Fit the temperature of each task that has probabilities on the labelled validation rows."""
    tasks = [own for name, own in answers.tasks.items() if has_confidence(answers.heads[name])]
    if not tasks:
        return {}
    split = read_splits(recipe, tasks, splits=["validation"], seed=split_seed(recipe, answers.model.config)).get(
        (tasks[0].dataset, "validation")
    )
    parts: dict[str, list[Decisions]] = {own.spec.name: [] for own in tasks}
    places: dict[str, list[int]] = {own.spec.name: [] for own in tasks}
    values: list[dict[str, Any]] = [] if split is None else list(split.dataset)  # type: ignore[arg-type]
    for start in range(0, len(values), CHUNK_ROWS):
        rows = [Row(own, "") for own in values[start : start + CHUNK_ROWS]]
        for place, logits, words in answers.logits(rows):
            for task in tasks:
                name, gold = task.spec.name, rows[place].values[task.label]
                if gold is None:
                    continue
                try:
                    head = answers.heads[name]
                    decided = decide(head, task.spec, logits[name], words(task.spec), gold)
                except HfMtlError as error:
                    raise error if split is None else error.at(split.where(start + place)) from None
                if decided is not None:
                    parts[name].append(decided.decisions)
                    places[name] += [start + place] * len(decided.decisions)
    found: dict[str, Calibrated] = {}
    for name, own in parts.items():
        if not sum(map(len, own)):
            raise SpecError(
                "there are no labelled validation rows to calibrate it on",
                where=f"task {name!r}",
                mend="give the dataset validation rows, or leave calibration out",
            )
        known = len(set(places[name]))
        if known < FEW_ROWS:
            said = "task %r: its confidence is calibrated on %d labelled validation rows, which tell little of it"
            logger.warning(said, name, known)
        order = np.argsort(np.array(places[name]), kind="stable")  # batches do not come in the order of rows
        joined = Decisions.joined(own)
        gold = joined.gold
        assert gold is not None
        found[name] = calibrate(
            Decisions(joined.probabilities[order], joined.chosen[order], gold[order]), np.array(places[name])[order]
        )
    return found


def _tasks_of(
    model: MultiTaskModel, recipe: Recipe, dataset: str | None, names: Sequence[str] | None
) -> list[TaskSource]:
    """Return the tasks to fill, all of one dataset."""
    tasks = known_tasks(recipe, select_unmasked(model.specs, names, "has no labels to fill"))
    datasets = list(dict.fromkeys(task.dataset for task in tasks))
    if dataset is None and len(datasets) > 1:
        raise SpecError(f"the tasks have {len(datasets)} datasets", mend=f"name one of {one_of(datasets)} in dataset")
    if dataset is not None and dataset not in datasets:
        raise SpecError(f"no task to fill has the dataset {dataset!r}", mend=f"use one of {one_of(datasets)}")
    return [task for task in tasks if dataset in (None, task.dataset)]


def _limits(tasks: Sequence[TaskSource], threshold: float, thresholds: Mapping[str, float]) -> dict[str, float | None]:
    names = [task.spec.name for task in tasks]
    for name, value in (("threshold", threshold), *thresholds.items()):
        if name != "threshold" and name not in names:
            raise SpecError(
                f"a threshold is given for {name!r}, which is not filled", mend=f"use one of {one_of(names)}"
            )
        if not 0.0 < value <= 1.0:
            raise SpecError(
                f"the {name} is {value}" if name == "threshold" else f"the threshold of {name!r} is {value}",
                mend="use a number above 0 and at most 1",
            )
    return {
        task.spec.name: thresholds.get(task.spec.name, threshold) if has_confidence(HEADS.get(task.spec.type)) else None
        for task in tasks
    }


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
