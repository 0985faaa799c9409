"""Which attention heads a task needs, and whether it hurts to remove them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.errors import SpecError
from hf_mtl.evaluation.prediction import evaluation_mode
from hf_mtl.evaluation.scoring import TaskScores, score
from hf_mtl.explain.attention_heads import head_counts, head_mask
from hf_mtl.explain.labelled import LabelledRows, draw_rows, items_by_row
from hf_mtl.explain.reliability import LEAST, check_least, pattern_reliability, shown
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.writing import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Head = tuple[int, int]
"""Layer and head, both counted from 0."""


@dataclass(frozen=True)
class Ablation:
    """What removing heads does to a task, on rows that their importance was not measured on.

    Args:
        removed: number of heads removed.
        rows: number of rows scored.
        metric: name of the score.
        loss: mean loss with all heads.
        top_loss: without the most important ones.
        random_losses: without as many random ones, one for each draw.
        score: score with all heads.
        top_score: without the most important ones.
        random_scores: without as many random ones.
    """

    removed: int
    rows: int
    metric: str
    loss: float
    top_loss: float
    random_losses: tuple[float, ...]
    score: float
    top_score: float
    random_scores: tuple[float, ...]

    @property
    def random_loss(self) -> tuple[float, float]:
        """Mean loss without random heads, and its standard error over the draws."""
        return _mean_and_error(self.random_losses)

    @property
    def random_score(self) -> tuple[float, float]:
        """Mean score without random heads, and its standard error over the draws."""
        return _mean_and_error(self.random_scores)


@dataclass(frozen=True)
class TaskHeads:
    """How important each attention head is for one task.

    Args:
        task: the task.
        importance: mean size of the gradient of the loss, per layer and head.
        standard_error: of each, over the rows.
        reliability: split-half reliability of the pattern over all heads, in [0, 1].
        known: whether that is enough for the heads to be ranked.
        rows: number of rows it was measured on.
        ablation: whether removing the top heads hurts more than removing others.
    """

    task: str
    importance: tuple[tuple[float, ...], ...]
    standard_error: tuple[tuple[float, ...], ...]
    reliability: float
    known: bool
    rows: int
    ablation: Ablation | None

    def top(self, count: int) -> list[Head]:
        """Return the most important heads, the first the most."""
        return _top(np.array(self.importance), count)


@dataclass(frozen=True)
class HeadImportance:
    """The attention heads of a model, task by task.

    Args:
        tasks: the tasks.
        share: share of the heads that count as a task's most important ones.
        least_reliability: reliability below which a task's heads are not ranked.
    """

    tasks: tuple[TaskHeads, ...]
    share: float
    least_reliability: float

    @property
    def num_top(self) -> int:
        """Number of heads that count as a task's most important ones."""
        return _num_top(int(np.array(self.tasks[0].importance).size), self.share)

    @property
    def users(self) -> dict[Head, tuple[str, ...]]:
        """Head -> the tasks that it is among the most important of, for tasks whose heads can be ranked."""
        tops = {own.task: set(own.top(self.num_top)) for own in self.tasks if own.known}
        heads = sorted(set().union(*tops.values()))
        return {head: tuple(task for task, top in tops.items() if head in top) for head in heads}

    @property
    def shared(self) -> list[Head]:
        """The heads that are among the most important of every task that can be ranked, if there are two or more."""
        known = sum(own.known for own in self.tasks)
        return [head for head, users in self.users.items() if len(users) == known > 1]

    def specific(self, task: str) -> list[Head]:
        """Return the heads that are among the most important of one task alone."""
        return [head for head, users in self.users.items() if users == (task,)]

    def table(self) -> TextTable:
        """Return the most important heads of each task, as layer.head, both counted from 1."""
        rows = [
            (own.task, str(own.rows), f"{own.reliability:.2f}", _names(own.top(self.num_top)) if own.known else "?",
             _names(self.specific(own.task)) if own.known else "?")
            for own in self.tasks
        ]  # fmt: skip
        header = ("task", "rows", "reliability", f"top {self.num_top}", "of them of this task alone")
        return TextTable("Attention heads, as layer.head", header, rows)

    def ablation_table(self) -> TextTable:
        """Return whether removing the most important heads hurts more than removing others."""
        rows: list[tuple[str, ...]] = []
        for own in self.tasks:
            found = own.ablation
            if found is not None:
                loss, score = (
                    shown(*random, known=True, form=".3f") for random in (found.random_loss, found.random_score)
                )
                numbers = [f"{value:.3f}" for value in (found.loss, found.top_loss, found.score, found.top_score)]
                rows.append((own.task, str(found.rows), *numbers[:2], loss, found.metric, *numbers[2:], score))
        header = ("task", "rows", "loss", "without top", "without random", "metric", "score", "without top",
                  "without random")  # fmt: skip
        return TextTable(f"Without {self.num_top} heads, on other rows", header, rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        tasks = [
            {**asdict(own), "top": [list(head) for head in own.top(self.num_top)] if own.known else None}
            for own in self.tasks
        ]
        return {"share": self.share, "least_reliability": self.least_reliability, "tasks": tasks,
                "shared": [list(head) for head in self.shared]}  # fmt: skip

    def figure(self) -> Figure:
        """Draw a heat map of layers by heads for each task, and one of how many tasks share each head.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from hf_mtl.explain.figures import head_maps

        return head_maps(self)


def head_importance(
    model: MultiTaskModel,
    tokenizer: Any,
    splits: Mapping[str, EncodedSplit],
    tasks: Sequence[str] | None = None,
    *,
    rows: int = 256,
    batch_size: int = 32,
    share: float = 0.1,
    draws: int = 10,
    seed: int = 0,
    least_reliability: float = LEAST,
) -> HeadImportance:
    """Measure how much each task needs each attention head.

    The importance of a head is the mean over rows of `|dL/dm|`, for the row's loss `L` and a factor `m` at 1 that the
    head's output is multiplied by: Michel et al. 2019, "Are Sixteen Heads Really Better than One?",
    https://arxiv.org/abs/1905.10650. One backward pass gives it for all heads and rows of a batch.

    Half of the rows serve for that. On the other half the most important heads are removed, and as many heads drawn at
    random from all, several times: if importance means anything, the first hurts more.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        splits: labelled rows by dataset.
        tasks: the tasks; all that have labels where not given.
        rows: rows of a task, drawn at random.
        batch_size: rows of a batch.
        share: share of the heads that is removed; at least one head.
        draws: random draws of heads; 0 leaves the removal out.
        seed: seed of rows and heads.
        least_reliability: reliability below which a task's heads are not ranked.

    Raises:
        ModelError: the architecture has no attention heads that can be reached.
        SpecError: an option is out of range.
        DataError: no row is labelled.
    """
    check_least(least_reliability)
    if not 0.0 < share < 1.0:
        raise SpecError(f"share is {share}", mend="use a number between 0 and 1")
    layers, heads = head_counts(model)
    if draws < 0:
        raise SpecError(f"draws is {draws}", mend="use 0 or more")
    found: list[TaskHeads] = []
    for number, (task, drawn) in enumerate(draw_rows(model, splits, tasks, limit=rows, seed=seed).items()):
        half = len(drawn) if not draws else max(1, len(drawn) // 2)
        sizes = np.concatenate([*gradient_sizes(model, tokenizer, drawn.part(0, half), batch_size)])
        importance = sizes.mean(axis=0)
        error = (
            sizes.std(axis=0, ddof=1) / math.sqrt(len(sizes)) if len(sizes) > 1 else np.full((layers, heads), np.nan)
        )
        reliability = pattern_reliability(sizes.reshape(len(sizes), -1))
        count = _num_top(layers * heads, share)
        rest = drawn.part(half)
        generator = np.random.default_rng((seed, number))
        removals = [_random(generator, layers, heads, count) for _ in range(draws)]
        ablation = _ablation(model, tokenizer, rest, _top(importance, count), removals) if len(rest) else None
        known = reliability >= least_reliability
        nested = [tuple(tuple(row) for row in values.tolist()) for values in (importance, error)]
        found.append(TaskHeads(task, nested[0], nested[1], reliability, known, half, ablation))
    return HeadImportance(tuple(found), share, least_reliability)


def gradient_sizes(model: MultiTaskModel, tokenizer: Any, rows: LabelledRows, batch_size: int) -> Iterable[np.ndarray]:
    """Yield `|dL/dm|` of each row and head, batch by batch, `(batch_size, num_layers, num_heads)`."""
    task = rows.spec.name
    layers, heads = head_counts(model)
    for batch in rows.batches(model, tokenizer, batch_size):
        mask = torch.ones(layers, len(batch.rows), heads, device=model.device, requires_grad=True)
        with evaluation_mode(model), head_mask(model, mask):
            logits = (model(**batch.inputs, tasks=[task]).logits or {})[task]
        # Rows do not meet, so the gradient of their sum on a row's own factors is that of the row's loss.
        total = model.head(task).loss_sum(logits, batch.labels)
        (gradient,) = torch.autograd.grad(total, mask)
        by_row = gradient.transpose(0, 1) / items_by_row(model, task, batch.labels)[:, None, None]
        yield by_row.abs().double().cpu().numpy()


def _ablation(
    model: MultiTaskModel, tokenizer: Any, rows: LabelledRows, top: Sequence[Head], removals: Sequence[Sequence[Head]]
) -> Ablation:
    split = {rows.split.name: rows.as_split()}
    layers, heads = head_counts(model)

    def measure(removed: Sequence[Head]) -> TaskScores:
        mask = torch.ones(layers, heads, device=model.device)
        for layer, head in removed:
            mask[layer, head] = 0.0
        with head_mask(model, mask):
            return score(model, tokenizer, split).tasks[rows.spec.name]

    full, without, random = measure([]), measure(top), [measure(removed) for removed in removals]
    metric = full.metric.primary
    return Ablation(
        removed=len(top),
        rows=len(rows),
        metric=metric,
        loss=full.loss,
        top_loss=without.loss,
        random_losses=tuple(one.loss for one in random),
        score=full.metrics[metric],
        top_score=without.metrics[metric],
        random_scores=tuple(one.metrics[metric] for one in random),
    )


def _num_top(count: int, share: float) -> int:
    return max(1, round(share * count))


def _top(importance: np.ndarray, count: int) -> list[Head]:
    order = np.argsort(-importance, axis=None, kind="stable")[:count]
    return [(int(place) // importance.shape[1], int(place) % importance.shape[1]) for place in order]


def _random(generator: np.random.Generator, layers: int, heads: int, count: int) -> list[Head]:
    drawn = generator.choice(layers * heads, size=count, replace=False)
    return [(int(place) // heads, int(place) % heads) for place in drawn]


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return a mean and its standard error; NaN where there are too few values."""
    found = np.array(values)
    if not len(found):
        return math.nan, math.nan
    return float(found.mean()), float(found.std(ddof=1) / math.sqrt(len(found))) if len(found) > 1 else math.nan


def _names(heads: Sequence[Head]) -> str:
    return " ".join(f"{layer + 1}.{head + 1}" for layer, head in heads) or "-"
