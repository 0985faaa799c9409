"""What each layer of the encoder knows of each task: linear probes, beside what a probe gets for nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.errors import DataError, SpecError
from hf_mtl.evaluation.metrics import load_metric
from hf_mtl.evaluation.scoring import score
from hf_mtl.explain.labelled import LabelledRows, draw_rows
from hf_mtl.explain.linear_heads import States, fit_head, layer_states, standardise
from hf_mtl.model.heads.base import TaskHead
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import HEADS
from hf_mtl.writing import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TaskProbe:
    """How well a task can be read off each layer.

    Args:
        task: the task.
        metric: name of the score.
        train_rows: rows that the probes were fitted on.
        rows: rows that were scored.
        scores: score of a probe on the embeddings and on each layer, `(num_layers + 1,)`.
        shuffled: the same for probes fitted on the labels in random order.
        majority: score without looking at the text: the most frequent label, or the mean.
        model: score of the model's own head on the same rows.
    """

    task: str
    metric: str
    train_rows: int
    rows: int
    scores: tuple[float, ...]
    shuffled: tuple[float, ...]
    majority: float
    model: float


@dataclass(frozen=True)
class LayerProbe:
    """Probes of every layer, task by task."""

    tasks: tuple[TaskProbe, ...]

    def table(self) -> TextTable:
        """Return the score of each layer's probe, of the controls and of the model's own head."""
        layers = max(len(own.scores) for own in self.tasks)
        header = ("task", "metric", "majority", "embeddings", *(f"layer {number}" for number in range(1, layers)),
                  "model", "shuffled labels")  # fmt: skip
        rows = [
            (own.task, own.metric, _score(own.majority), *map(_score, own.scores), _score(own.model),
             f"{_score(min(own.shuffled))} to {_score(max(own.shuffled))}")
            for own in self.tasks
        ]  # fmt: skip
        return TextTable("Score of a linear probe on each layer", header, rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"tasks": [asdict(own) for own in self.tasks]}

    def figure(self) -> Figure:
        """Draw the scores over the layers, with the controls.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from hf_mtl.explain.figures import layer_curves

        return layer_curves(self)


def layer_probe(
    model: MultiTaskModel,
    tokenizer: Any,
    train: Mapping[str, EncodedSplit],
    validation: Mapping[str, EncodedSplit],
    tasks: Sequence[str] | None = None,
    *,
    rows: int = 500,
    penalty: float = 0.01,
    seed: int = 0,
) -> LayerProbe:
    """Fit a linear probe for each task on the frozen states of each layer, and score it on other rows.

    A probe is the task's own kind of head (logistic or ridge regression, one for each label of a multi-label task) on
    standardised states, pooled as the task pools; see `hf_mtl.explain.linear_heads.fit_head`. Beside it stand the same
    probe on labels in random order, which shows what fitting alone brings (after Hewitt and Liang 2019,
    https://arxiv.org/abs/1909.03368), and the answer that needs no text. Alain and Bengio 2016,
    https://arxiv.org/abs/1610.01644.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        train: rows to fit on, by dataset.
        validation: rows to score, by dataset.
        tasks: the tasks; all that have labels in both where not given, but none that chooses among a row's choices.
        rows: rows of a task in each, drawn at random.
        penalty: weight of the probes' penalty.
        seed: seed of rows and of the random order.

    Raises:
        SpecError: there is no such task, or an option is out of range.
        DataError: no row is labelled for a task.
    """
    if not penalty > 0:
        raise SpecError(f"penalty is {penalty}", mend="use a number above 0")
    fitted = draw_rows(model, train, tasks, limit=rows, seed=seed)
    scored = draw_rows(model, validation, tasks, limit=rows, seed=seed)
    both = [task for task in fitted if task in scored]
    if not both:
        raise DataError("no task has labels in both", where="train and validation", mend="use other splits")
    choosing = [task for task in both if HEADS.get(fitted[task].spec.type).reads_choices]
    if choosing and (tasks is not None or choosing == both):
        raise SpecError(
            "it compares the choices of a row, and a probe reads one token at a time",
            where=f"task {choosing[0]!r}",
            mend="probe other tasks",
        )
    both = [task for task in both if task not in choosing]
    return LayerProbe(
        tuple(_probe(model, tokenizer, fitted[task], scored[task], penalty=penalty, seed=seed) for task in both)
    )


def _probe(
    model: MultiTaskModel, tokenizer: Any, train: LabelledRows, rows: LabelledRows, *, penalty: float, seed: int
) -> TaskProbe:
    spec = train.spec
    known = layer_states(model, tokenizer, train, only_labelled=True)
    unknown = layer_states(model, tokenizer, rows)
    scoring = _Scoring(rows, unknown)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(known.labels)))
    scores: list[float] = []
    shuffled: list[float] = []
    for layer in range(len(known.layers)):
        features, others = (standardise(own.layers[layer], known.layers[layer]) for own in (known, unknown))
        scores.append(scoring.score(fit_head(spec, features, known.labels, penalty=penalty), others))
        shuffled.append(scoring.score(fit_head(spec, features, known.labels[order], penalty=penalty), others))
    nothing = torch.zeros_like(known.layers[0]), torch.zeros_like(unknown.layers[0])
    majority = scoring.score(fit_head(spec, nothing[0], known.labels, penalty=penalty), nothing[1].double())
    own = score(model, tokenizer, {rows.split.name: rows.as_split()}).tasks[spec.name]
    return TaskProbe(
        task=spec.name,
        metric=scoring.metric.primary,
        train_rows=len(train),
        rows=len(rows),
        scores=tuple(scores),
        shuffled=tuple(shuffled),
        majority=majority,
        model=own.metrics[scoring.metric.primary],
    )


class _Scoring:
    """Scores heads on rows, from the features of the rows' items, as evaluation scores the model."""

    def __init__(self, rows: LabelledRows, states: States) -> None:
        self.spec, self.kind = rows.spec, HEADS.get(rows.spec.type)
        self.metric = load_metric(self.kind.metric_name(self.spec), scheme=self.spec.scheme)
        self.starts = states.starts
        gold, words = rows.split.gold(rows.task), rows.split.layout().words
        self.words = [words[row] for row in rows.rows]
        self.references = [self.kind.reference(self.spec, gold[row]) for row in rows.rows]

    def score(self, head: TaskHead, features: Tensor) -> float:
        logits = head(features).float().numpy()
        if not self.kind.pooled:
            logits = logits[:, 0]
        rows = [logits[start:end] for start, end in zip(self.starts, self.starts[1:], strict=False)]
        answers = [
            self.kind.decode(self.spec, own[0] if self.kind.pooled else own, words)
            for own, words in zip(rows, self.words, strict=True)
        ]
        predictions = [self.kind.prediction(self.spec, answer) for answer in answers]
        values: dict[str, float] = self.metric.compute(predictions=predictions, references=self.references) or {}
        return values[self.metric.primary]


def _score(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"  # a correlation with what does not vary is not defined
