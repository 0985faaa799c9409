"""What the tasks are to each other: whether their gradients agree, and whether one helps another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.errors import DataError, ModelError, SpecError
from hf_mtl.evaluation.prediction import evaluation_mode
from hf_mtl.explain.labelled import LabelledRows, draw_rows
from hf_mtl.explain.reliability import LEAST, check_least, shown, split_half
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.gradients import TaskGradients, shared_parameters
from hf_mtl.writing import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COSINE, TRANSFER = "gradient cosine", "transfer"


@dataclass(frozen=True)
class Relation:
    """What one task is to another.

    Args:
        task: the task.
        other: the other task, or several joined by ` + `.
        value: the cosine of their gradients, or what the task's score gains with the other.
        standard_error: of the value; NaN where one measurement is all there is.
        reliability: split-half reliability, in [0, 1].
        known: whether that is enough for the value to be shown.
    """

    task: str
    other: str
    value: float
    standard_error: float
    reliability: float
    known: bool


@dataclass(frozen=True)
class Relations:
    """A table of tasks by tasks.

    Args:
        measure: `"gradient cosine"` or `"transfer"`.
        cells: what was measured.
        least_reliability: reliability below which a value is not known.
        measurements: how many measurements a cell is the mean of, in words.
    """

    measure: str
    cells: tuple[Relation, ...]
    least_reliability: float
    measurements: str

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that stand for rows."""
        return tuple(dict.fromkeys(cell.task for cell in self.cells))

    @property
    def others(self) -> tuple[str, ...]:
        """The tasks that stand for columns, those that are rows in the same order."""
        found = dict.fromkeys(cell.other for cell in self.cells)
        return (*(task for task in self.tasks if task in found), *(task for task in found if task not in self.tasks))

    def cell(self, task: str, other: str) -> Relation | None:
        """Return what one task is to another, if it was measured."""
        return next((cell for cell in self.cells if (cell.task, cell.other) == (task, other)), None)

    def table(self) -> TextTable:
        """Return the values with their standard errors; `?` where the reliability is too low."""
        rows = [(task, *(self._text(self.cell(task, other)) for other in self.others)) for task in self.tasks]
        title = f"{self.measure.capitalize()} (? is a reliability under {self.least_reliability:.2f})"
        return TextTable(title, ("", *self.others), rows)

    def reliabilities(self) -> TextTable:
        """Return the reliability of each cell."""
        cells = [[self.cell(task, other) for other in self.others] for task in self.tasks]
        shown = [["" if cell is None else f"{cell.reliability:.2f}" for cell in row] for row in cells]
        rows = [(task, *row) for task, row in zip(self.tasks, shown, strict=True)]
        return TextTable(f"Reliability of the {self.measure}", ("", *self.others), rows)

    def _text(self, cell: Relation | None) -> str:
        if cell is None:
            return ""
        form = "+.2f" if self.measure == COSINE else "+.4f"
        return shown(cell.value, cell.standard_error, known=cell.known, form=form)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "cells": [asdict(cell) for cell in self.cells]}

    def figure(self) -> Figure:
        """Draw a heat map; unknown cells are grey.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from hf_mtl.explain.figures import relation_map

        return relation_map(self)


def task_relations(
    model: MultiTaskModel,
    tokenizer: Any,
    splits: Mapping[str, EncodedSplit],
    tasks: Sequence[str] | None = None,
    *,
    rows: int = 1000,
    batch_size: int = 16,
    groups: int = 4,
    seed: int = 0,
    least_reliability: float = LEAST,
) -> Relations:
    """Measure whether the tasks pull the shared encoder the same way: the cosine of their mean gradients.

    The cosine is `<g_a, g_b> / (|g_a| |g_b|)`, for the mean gradients of the two tasks' losses over batches, on all
    shared weights that are trained and without dropout. Batches are dealt out to groups, and the groups' gradients say
    how far the direction of each task's gradient would come out again on other rows: `R_a` by `split_half`. A cosine
    has the reliability `sqrt(R_a R_b)`, by which noise shrinks it (Spearman 1904, https://doi.org/10.2307/1412159).
    Its standard error is a jackknife's over the groups.

    Where training has ended a mean gradient is near 0 and mostly noise, so that many rows are needed; the gradients of
    an early checkpoint, or of new heads, are far more reliable.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        splits: labelled rows by dataset.
        tasks: the tasks; all that have labels where not given.
        rows: rows of a task, drawn at random.
        batch_size: rows of a batch; less where there would be fewer batches than groups.
        groups: groups of batches, at least 2. As many gradients of the whole encoder are held for each task, in
            float32.
        seed: seed of the draw.
        least_reliability: reliability below which a cosine is not known.

    Returns:
        The cosine of every pair of tasks, in both orders.

    Raises:
        SpecError: there are fewer than two tasks or groups.
        DataError: a task has fewer rows than groups.
        ModelError: the encoder is frozen as a whole.
    """
    check_least(least_reliability)
    if groups < 2:
        raise SpecError(f"groups is {groups}", mend="use 2 or more")
    drawn = draw_rows(model, splits, tasks, limit=rows, seed=seed)
    if len(drawn) < 2:
        raise SpecError("there is one task with labels", where=repr(next(iter(drawn))), mend="name at least two tasks")
    products = _group_products(model, tokenizer, drawn, batch_size, groups)  # (tasks, groups, tasks, groups)
    of_tasks = {task: split_half(products[place, :, place]) for place, task in enumerate(drawn)}
    found: dict[tuple[str, str], Relation] = {}
    for (a, task), (b, other) in combinations(enumerate(drawn), 2):
        reliability = math.sqrt(of_tasks[task] * of_tasks[other])
        value, error = _cosine(products, a, b)
        known = reliability >= least_reliability and math.isfinite(value)
        for first, second in ((task, other), (other, task)):
            found[first, second] = Relation(first, second, value, error, reliability, known)
    names = list(drawn)
    cells = tuple(found[task, other] for task in names for other in names if task != other)
    counts = ", ".join(f"{task} {len(own)}" for task, own in drawn.items())
    return Relations(COSINE, cells, least_reliability, f"rows: {counts}; batches of {batch_size} in {groups} groups")


def _group_products(
    model: MultiTaskModel, tokenizer: Any, drawn: Mapping[str, LabelledRows], batch_size: int, groups: int
) -> np.ndarray:
    """Return the inner products of the mean gradients of all tasks' groups, `(tasks, groups, tasks, groups)`."""
    parameters = shared_parameters(model)
    if not parameters:
        raise ModelError("no shared weight is trained", mend="give a model whose encoder is not frozen")
    names = {task: [f"{task}, group {group}" for group in range(groups)] for task in drawn}
    gradients = TaskGradients(parameters, {name: () for own in names.values() for name in own})
    with evaluation_mode(model):
        for task, rows in drawn.items():
            if len(rows) < groups:
                raise DataError(
                    f"{len(rows)} rows for {groups} groups",
                    where=f"task {task!r}",
                    mend="give more rows, or fewer groups",
                )
            size = min(batch_size, len(rows) // groups)
            count = math.ceil(len(rows) / size)
            for number, batch in enumerate(rows.batches(model, tokenizer, size)):
                losses = model(**batch.inputs, labels={task: batch.labels}, tasks=[task]).losses
                group = number % groups
                share = 1.0 / len(range(group, count, groups))
                gradients.add(names[task][group], losses[task] * share, retain_graph=False)
    with torch.inference_mode():
        gramian = gradients.gramian().double().cpu().numpy()
    return np.asarray(gramian).reshape(len(drawn), groups, len(drawn), groups)


def _cosine(products: np.ndarray, a: int, b: int) -> tuple[float, float]:
    """Return the cosine of two tasks' mean gradients and its jackknife standard error."""
    groups = products.shape[1]

    def cosine(kept: np.ndarray) -> float:
        inner, first, second = (float(products[i][kept][:, j][:, kept].sum()) for i, j in ((a, b), (a, a), (b, b)))
        return inner / math.sqrt(first * second) if first > 0 and second > 0 else math.nan

    everything = np.arange(groups)
    without = np.array([cosine(np.delete(everything, group)) for group in everything])
    error = math.sqrt((groups - 1) / groups * float(((without - without.mean()) ** 2).sum()))
    return cosine(everything), error


# ---------------------------------------------------------------------- transfer

Scores = Mapping[str, Mapping[str, Sequence[float]]]
"""Task -> other task -> scores of the task, one for each seed."""


def transfer(without: Scores, together: Scores, *, least_reliability: float = LEAST) -> Relations:
    """Say what each task's score gains with each other task.

    Scores with and without the other task belong to the same seeds, and their differences are what is averaged.
    Whether a gain is told from none is its reliability over the seeds, by `split_half`: with the standard error `e` of
    a mean gain `d` it is about `1 - e^2 / d^2`. A single seed says nothing of it, so its gain is not known.

    Args:
        without: per task and other task, the scores of the task trained without the other, one for each seed.
        together: the same with the other.
        least_reliability: reliability below which a gain is not known.

    Raises:
        DataError: a score is missing on one side.

    Example:
        >>> without = {"topic": {"tags": [0.80, 0.81, 0.79]}}
        >>> print(transfer(without, {"topic": {"tags": [0.84, 0.86, 0.83]}}).table().markdown())
        **Transfer (? is a reliability under 0.80)**
        <BLANKLINE>
        |  | tags |
        | --- | ---: |
        | topic | +0.0433 ± 0.0033 |
        <BLANKLINE>
    """
    check_least(least_reliability)
    cells: list[Relation] = []
    seeds: set[int] = set()
    for task, others in together.items():
        for other, scores in others.items():
            base = without.get(task, {}).get(other, ())
            if len(base) != len(scores) or not scores:
                raise DataError(
                    f"{len(base)} scores without {other!r} and {len(scores)} with it",
                    where=f"task {task!r}",
                    mend="give as many on both sides, one for each seed",
                )
            gains = np.array(scores, dtype=np.float64) - np.array(base, dtype=np.float64)
            seeds.add(len(gains))
            error = float(gains.std(ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else math.nan
            reliability = split_half(np.outer(gains, gains))
            known = len(gains) > 1 and reliability >= least_reliability
            cells.append(Relation(task, other, float(gains.mean()), error, reliability, known))
    return Relations(TRANSFER, tuple(cells), least_reliability, f"{_range(seeds)} seeds")


def transfer_of(comparisons: Sequence[Mapping[str, Any]], *, least_reliability: float = LEAST) -> Relations:
    """Read the transfer from what `hf-mtl compare` found, alone and together.

    A comparison of two tasks says what each is to the other; one of more says what all others together are to each.

    Args:
        comparisons: what `comparison.json` of each comparison holds.
        least_reliability: reliability below which a gain is not known.

    Raises:
        DataError: it is no comparison, or two comparisons are of the same tasks.
    """
    alone: dict[str, dict[str, Sequence[float]]] = {}
    together: dict[str, dict[str, Sequence[float]]] = {}
    for results in comparisons:
        tasks: Any = results.get("tasks")
        if not isinstance(tasks, Mapping) or not all("alone_by_seed" in own for own in tasks.values()):
            raise DataError("no scores by seed", where="comparison", mend="give what hf-mtl compare wrote")
        for task, own in tasks.items():
            other = " + ".join(name for name in tasks if name != task)
            if other in together.get(task, {}):
                raise DataError(f"{task} with {other} was compared twice", where="comparisons", mend="give one of them")
            alone.setdefault(task, {})[other] = own["alone_by_seed"]
            together.setdefault(task, {})[other] = own["together_by_seed"]
    return transfer(alone, together, least_reliability=least_reliability)


def _range(numbers: set[int]) -> str:
    return "no" if not numbers else "-".join(str(number) for number in sorted({min(numbers), max(numbers)}))
