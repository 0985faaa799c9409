"""What training changed: which layers and heads each task moves, where tasks meet, and which parts they need."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.evaluation.intervals import paired_differences, percentiles
from hf_mtl.evaluation.scoring import TaskScores, score
from hf_mtl.explain.encoder_pieces import Piece, State, encoder_state, head_pieces, layer_pieces, put_back
from hf_mtl.explain.labelled import draw_rows
from hf_mtl.model.lora import merge_and_unload
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.writing import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

TOGETHER = "all together"
"""What the change of the model itself is called, which was trained on all tasks."""

ALL = "all of them"
"""What it is called when the whole encoder is put back."""

FOREIGN = 1.0
"""Relative change above which a model hardly began from the encoder that it is compared with."""


@dataclass(frozen=True)
class Change:
    """How far training moved an encoder from where it began.

    Args:
        task: the task that it was trained on, or `"all together"`.
        total: `||new - old|| / ||old||` over the whole encoder.
        parts: the same for embeddings, each layer and the rest, in the order of the parts.
        heads: the same for each attention head, by layer; `None` where they are not looked at.
    """

    task: str
    total: float
    parts: tuple[float, ...]
    heads: tuple[tuple[float, ...], ...] | None


@dataclass(frozen=True)
class Overlap:
    """How far the updates of two tasks are alike.

    Args:
        task: the one.
        other: the other.
        cosine: of the two updates, in [-1, 1]; NaN where one of them is 0.
        jaccard: numbers among the most changed of both over those of either.
        parts: the cosine in each part.
    """

    task: str
    other: str
    cosine: float
    jaccard: float
    parts: tuple[float, ...]


@dataclass(frozen=True)
class Drop:
    """What a task loses when a part of the encoder is put back to where it began.

    Args:
        task: the task.
        part: the part, or head.
        reset: the task's score then.
        drop: its score with the part as trained, less that.
        low: lower end of the drop's 95% interval over the rows.
        high: upper end.
    """

    task: str
    part: str
    reset: float
    drop: float
    low: float
    high: float


@dataclass(frozen=True)
class TaskUpdates:
    """What training changed.

    Args:
        parts: names of embeddings, layers and the rest.
        changes: the change of the model, and those of single tasks.
        overlaps: the overlap of each pair of tasks, and of each with itself.
        share: share of the numbers that count as the most changed.
        scores: score of each task, by the model as it is trained, and the metric's name.
        drops: what is lost by putting parts back.
        least_drop: drop that makes a part critical, where its interval is above 0 as well.
        rows: rows a task was scored on at most.
        how: how the single tasks' encoders came about, in words.
    """

    parts: tuple[str, ...]
    changes: tuple[Change, ...]
    overlaps: tuple[Overlap, ...]
    share: float
    scores: dict[str, tuple[str, float]]
    drops: tuple[Drop, ...]
    least_drop: float
    rows: int
    how: str

    def overlap(self, task: str, other: str) -> Overlap:
        """Return the overlap of two tasks, in either order."""
        return next(own for own in self.overlaps if {own.task, own.other} == {task, other})

    def drop(self, task: str, part: str) -> Drop:
        """Return what a task loses without the training of a part."""
        return next(own for own in self.drops if (own.task, own.part) == (task, part))

    def is_critical(self, drop: Drop) -> bool:
        """Tell whether a task needs a part: its drop is large enough, and not a matter of chance."""
        return drop.drop >= self.least_drop and drop.low > 0.0

    @property
    def critical(self) -> dict[str, tuple[str, ...]]:
        """Part -> the tasks that need it as it is trained."""
        names = dict.fromkeys(own.part for own in self.drops)
        found = {name: tuple(d.task for d in self.drops if d.part == name and self.is_critical(d)) for name in names}
        return {name: tasks for name, tasks in found.items() if tasks}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have an update of their own."""
        return tuple(own.task for own in self.changes if own.task != TOGETHER)

    def tables(self) -> list[TextTable]:
        """Return the tables of changes, overlaps and drops; those that there are."""
        moved = [(own.task, f"{own.total:.4f}", *(f"{part:.4f}" for part in own.parts)) for own in self.changes]
        found = [TextTable("Relative change", ("trained on", "encoder", *self.parts), moved)]
        if self.overlaps:
            lines = [
                (
                    task,
                    *(f"{one.cosine:+.2f} ({one.jaccard:.2f})" for one in (self.overlap(task, o) for o in self.tasks)),
                )
                for task in self.tasks
            ]
            title = f"Cosine of the updates (Jaccard index of the {self.share:.1%} most changed numbers)"
            found.append(TextTable(title, ("", *self.tasks), lines))
        if self.drops:
            names = list(dict.fromkeys(own.part for own in self.drops if own.part in (*self.parts, ALL)))
            lines = [
                (task, f"{value:.3f}", *(self._shown(self.drop(task, name)) for name in names))
                for task, (_, value) in self.scores.items()
            ]
            title = (
                f"Score lost when a part is put back to where it began (* is critical: {self.least_drop:.2f} or more)"
            )
            found.append(TextTable(title, ("task", "score", *names), lines))
        return found

    def _shown(self, drop: Drop) -> str:
        return f"{drop.drop:+.3f}{'*' if self.is_critical(drop) else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        drops = [{**asdict(own), "critical": self.is_critical(own)} for own in self.drops]
        shared = {part: list(tasks) for part, tasks in self.critical.items() if len(tasks) > 1}
        return {**asdict(self), "drops": drops, "critical_for_several": shared}

    def figures(self) -> dict[str, Figure]:
        """Draw what there is: `changes`, `overlaps`, `drops`, `heads`.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from hf_mtl.explain.update_figures import update_figures

        return update_figures(self)

    def to_html(self, title: str) -> str:
        """Return a page of its own that needs no network; errors as in `figures`."""
        from hf_mtl.explain.update_page import update_page

        return update_page(self, title)


def task_updates(
    model: MultiTaskModel,
    tokenizer: Any,
    splits: Mapping[str, EncodedSplit],
    encoder: nn.Module,
    *,
    alone: Mapping[str, nn.Module | State] | None = None,
    tasks: Sequence[str] | None = None,
    rows: int = 500,
    share: float = 0.01,
    heads: bool = True,
    head_drops: bool = False,
    least_drop: float = 0.01,
    resamples: int = 500,
    seed: int = 0,
    how: str = "",
    on_part: Callable[[int, int, str], None] | None = None,
) -> TaskUpdates:
    """Compare a trained model with the encoder it began from, and with encoders trained on single tasks from there.

    - The change of a part is `||new - old|| / ||old||` over its parameters.
    - The overlap of two tasks is the cosine of their updates `new - old`, and the Jaccard index of the numbers that
      each has changed most: Panigrahi et al. 2023, "Task-Specific Skill Localization in Fine-tuned Language Models",
      https://arxiv.org/abs/2302.06600, find skills in so few numbers.
    - A part is critical for a task if its score falls when the part alone is put back to where it began: Zhang et al.
      2022, "Are All Layers Created Equal?", https://arxiv.org/abs/1902.01996. The interval is a paired bootstrap's.

    Every encoder is held in memory as float32. The scores take one pass over the rows for each part, and with
    `head_drops` for each attention head.

    Args:
        model: the trained model, which is left as it is; adapters count as merged into the weights.
        tokenizer: its tokenizer.
        splits: labelled rows by dataset, to score on.
        encoder: the encoder as it was before training.
        alone: encoders, or their parameters, by the task that they were trained on, from the same beginning.
        tasks: the tasks to score; all that have labels where not given.
        rows: rows of a task, drawn at random.
        share: share of an encoder's numbers that count as the most changed, above 0 and below 1.
        heads: whether the change of each attention head is told, where the architecture has such.
        head_drops: whether heads are put back, too, one at a time.
        least_drop: drop of the score that makes a part critical, at least 0.
        resamples: draws of the bootstrap.
        seed: seed of rows and draws.
        how: how the encoders of single tasks came about, in words.
        on_part: called before each part is put back with its number from 1, the number of parts, and its name.

    Raises:
        ModelError: an encoder has other parameters than the model's, or its layers cannot be told apart.
        SpecError: an argument is out of range.
        DataError: no row is labelled.
    """
    if not 0.0 < share < 1.0:
        raise SpecError(f"share is {share}", mend="use a number between 0 and 1")
    if not least_drop >= 0.0:
        raise SpecError(f"least_drop is {least_drop}", mend="use 0 or more")
    if model.config.peft is not None:
        model = merge_and_unload(copy.deepcopy(model))
    start, parts = encoder_state(encoder), layer_pieces(model)
    by_layer = _heads(model, required=head_drops) if heads or head_drops else None
    changes = [_change(TOGETHER, _update(encoder_state(model.encoder), start, "the model"), start, parts, by_layer)]
    if changes[0].total > FOREIGN:
        logger.warning(
            "the encoder changed by %.1f times its size, so the model hardly began from it", changes[0].total
        )
    updates: dict[str, dict[str, Tensor]] = {}
    for task, own in (alone or {}).items():
        state = encoder_state(own) if isinstance(own, nn.Module) else {name: v.float().cpu() for name, v in own.items()}
        updates[task] = _update(state, start, f"task {task!r}")
        changes.append(_change(task, updates[task], start, parts, by_layer))
    overlaps = _overlaps(updates, parts, share)
    drawn = draw_rows(model, splits, tasks, limit=rows, seed=seed)
    scored = {task: {own.split.name: own.as_split()} for task, own in drawn.items()}

    def measure() -> dict[str, TaskScores]:
        return {task: score(model, tokenizer, split).tasks[task] for task, split in scored.items()}

    full = measure()
    trials: list[tuple[str, list[Piece]]] = [(piece.name, [piece]) for piece in parts] + [(ALL, parts)]
    if head_drops:
        trials += [(head.name, [head]) for layer in by_layer or () for head in layer]
    drops: list[Drop] = []
    for number, (name, pieces) in enumerate(trials, start=1):
        if on_part is not None:
            on_part(number, len(trials), name)
        with put_back(model, pieces, start):
            reset = measure()
        drops += [_drop(task, name, own, reset[task], resamples, seed) for task, own in full.items()]
    scores = {task: (own.metric.primary, own.metrics[own.metric.primary]) for task, own in full.items()}
    names = tuple(piece.name for piece in parts)
    return TaskUpdates(names, tuple(changes), overlaps, share, scores, tuple(drops), least_drop, rows, how)


def _heads(model: MultiTaskModel, *, required: bool) -> list[list[Piece]] | None:
    try:
        return head_pieces(model)
    except ModelError:
        if required:
            raise
        return None


def _update(state: State, start: State, what: str) -> dict[str, Tensor]:
    """Return what was added to each parameter.

    Raises:
        ModelError: the two are not of one shape.
    """
    odd = sorted(state.keys() ^ start.keys()) or [n for n, own in state.items() if own.shape != start[n].shape]
    if odd:
        raise ModelError(
            f"{what} and the encoder it should have begun from differ in the parameter {odd[0]!r}",
            mend="name the encoder that training began from",
        )
    return {name: own - start[name] for name, own in state.items()}


def _change(
    task: str, update: State, start: State, parts: Sequence[Piece], heads: Sequence[Sequence[Piece]] | None
) -> Change:
    def relative(pieces: Sequence[Piece]) -> float:
        moved, size = (math.sqrt(sum(_dot(p, state, state) for p in pieces)) for state in (update, start))
        return moved / size if size else math.inf if moved else 0.0

    by_layer = None if heads is None else tuple(tuple(relative([head]) for head in layer) for layer in heads)
    return Change(task, relative(parts), tuple(relative([part]) for part in parts), by_layer)


def _overlaps(updates: Mapping[str, State], parts: Sequence[Piece], share: float) -> tuple[Overlap, ...]:
    most = {task: _most_changed(update, share) for task, update in updates.items()}
    tasks = list(updates)
    found: list[Overlap] = []
    for place, task in enumerate(tasks):
        for other in tasks[place:]:
            products = [
                np.array([_dot(part, updates[a], updates[b]) for part in parts])
                for a, b in ((task, other), (task, task), (other, other))
            ]
            each = tuple(_cosine(*(float(own[index]) for own in products)) for index in range(len(parts)))
            both, either = (most[task] & most[other]).sum(), (most[task] | most[other]).sum()
            cosine = _cosine(*(float(own.sum()) for own in products))
            found.append(Overlap(task, other, cosine, float(both / either) if either else math.nan, each))
    return tuple(found)


def _most_changed(update: State, share: float) -> Tensor:
    """Return which numbers of an encoder changed most, `(num_parameters,)`; never those that did not change."""
    sizes = torch.cat([own.flatten().abs() for own in update.values()])
    count = max(1, round(share * len(sizes)))
    chosen = torch.zeros(len(sizes), dtype=torch.bool)
    chosen[sizes.topk(count).indices] = True
    return chosen & (sizes > 0)


def _dot(piece: Piece, first: State, second: State) -> float:
    pairs = zip(piece.of(first), piece.of(second), strict=True)
    return float(sum(float((a.double() * b.double()).sum()) for a, b in pairs))


def _cosine(product: float, first: float, second: float) -> float:
    return product / math.sqrt(first * second) if first > 0.0 and second > 0.0 else math.nan


def _drop(task: str, part: str, full: TaskScores, reset: TaskScores, resamples: int, seed: int) -> Drop:
    key = full.metric.primary
    differences = paired_differences(
        full.metric, key, [reset.statistics], [full.statistics], resamples=resamples, seed=seed
    )
    score = reset.metrics[key]
    return Drop(task, part, score, full.metrics[key] - score, *percentiles(differences))
