"""Training rows behind an answer: which of them pushed the model towards it, and what happens without them."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.errors import ModelError, SpecError, one_of
from hf_mtl.explain.labelled import LabelledRows, draw_rows
from hf_mtl.explain.linear_heads import fit_head, layer_states, pooling_of, standardise
from hf_mtl.explain.subject import Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.explain.tracin import Pull, influences
from hf_mtl.inference.loading import load_model
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.targets import Target, Wanted
from hf_mtl.registry import HEADS
from hf_mtl.writing import TextTable, read_json

SIMILARITIES = ("dot", "cosine")
SHOWN = 90
"""Characters of a row's text in a table."""


@dataclass(frozen=True)
class Checkpoint:
    """A state of the model while it was trained.

    Args:
        folder: its folder.
        learning_rate: the learning rate of that time, its weight.
    """

    folder: Path
    learning_rate: float


@dataclass(frozen=True)
class InfluentialRow:
    """A training row and what it did.

    Args:
        row: its number in the dataset's training rows, from 0.
        text: its text.
        label: its label, as the data has it.
        influence: by how much a step of training on it raises the target's score, per unit of learning rate; a cosine
            where that was asked for.
    """

    row: int
    text: str
    label: Any
    influence: float


@dataclass(frozen=True)
class LeaveOut:
    """What the head comes to when it is fitted anew without some rows, the encoder frozen.

    Args:
        removed: number of rows left out.
        score: the target's score with all rows.
        probability: its probability (or value) with all rows.
        top_score: the score without the rows that raise it most.
        top_probability: the probability without them.
        random_scores: scores without as many random rows, one for each draw.
        random_probabilities: the probabilities of the same.
    """

    removed: int
    score: float
    probability: float
    top_score: float
    top_probability: float
    random_scores: tuple[float, ...]
    random_probabilities: tuple[float, ...]

    @property
    def fell_as_much(self) -> float:
        """Share of the random draws without which the score falls at least as much."""
        return float(np.mean(np.array(self.random_scores) <= self.top_score))


@dataclass(frozen=True)
class Influence:
    """The training rows behind an answer.

    Args:
        text: the text that was answered.
        task: the task.
        target: what is explained.
        probability: its probability, or the value predicted.
        rows: number of training rows looked at.
        for_it: the rows that push towards the target most.
        against_it: the rows that push away from it most.
        similarity: `"dot"` or `"cosine"`.
        checkpoints: number of states of the model.
        leave_out: what was measured without the first of them, where it was asked for.
    """

    text: str
    task: str
    target: str
    probability: float
    rows: int
    for_it: tuple[InfluentialRow, ...]
    against_it: tuple[InfluentialRow, ...]
    similarity: str
    checkpoints: int
    leave_out: LeaveOut | None = None

    def table(self) -> TextTable:
        """Return the rows that push most, for and against."""
        title = f"Training rows behind {self.target} (of {self.rows})"
        rows = [
            (side, str(own.row), f"{own.influence:+.3g}", str(own.label), _cut(own.text))
            for side, group in (("for", self.for_it), ("against", self.against_it))
            for own in group
        ]
        return TextTable(title, ("", "row", "influence", "label", "text"), rows)

    def check_table(self) -> TextTable | None:
        """Return what leaving rows out did, if that was measured."""
        own = self.leave_out
        if own is None:
            return None
        scores, probabilities = np.array(own.random_scores), np.array(own.random_probabilities)
        error = f" ± {scores.std(ddof=1) / math.sqrt(len(scores)):.3f}" if len(scores) > 1 else ""
        rows = [
            ("all rows", f"{own.score:.3f}", f"{own.probability:.3f}"),
            (f"without the {own.removed} most influential", f"{own.top_score:.3f}", f"{own.top_probability:.3f}"),
            (f"without {own.removed} random rows", f"{scores.mean():.3f}{error}", f"{probabilities.mean():.3f}"),
        ]
        return TextTable("Head fitted anew, encoder frozen", ("", "score", "probability"), rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def influence(
    model: MultiTaskModel,
    tokenizer: Any,
    text: Any,
    train: Mapping[str, EncodedSplit],
    *,
    task: str,
    target: Any = None,
    rows: int = 10_000,
    top: int = 10,
    similarity: str = "cosine",
    checkpoints: Sequence[Checkpoint] = (),
    leave_out: int = 0,
    draws: int = 10,
    penalty: float = 0.1,
    batch_size: int = 32,
    seed: int = 0,
) -> Influence:
    """Find the training rows that pushed the model most towards an answer, and away from it (TracIn).

    The influence of a row `z` on the target's score `S` of a text `x` is `- sum_k r_k dL(z)/dw_k . dS(x)/dw_k` over
    checkpoints with learning rates `r_k`: what steps of gradient descent on `z` alone add to `S`. With `-L(x)` in place
    of `S` it is TracInCP of Pruthi et al. 2020, https://arxiv.org/abs/2002.08484; a score also has a gradient where an
    answer is right and sure. The weights `w` are those of the task's head and the word embeddings, whose gradients meet
    in the tokens that both texts have: Yeh et al. 2022, https://arxiv.org/abs/2202.11844.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        text: a text or row as for `Explainer.explain`.
        train: training rows by dataset.
        task: the task.
        target: as for `Explainer.explain`; the answer where not given.
        rows: training rows looked at, drawn at random where there are more.
        top: rows listed for and against.
        similarity: `"cosine"` divides the product by the lengths of both gradients, as TracIn's authors do not: with
            `"dot"`, as published, the rows that the model fits worst come first for almost every text.
        checkpoints: states of the model while it was trained; the model alone where not given.
        leave_out: number of the most influential rows to leave out as a check; 0 leaves the check out.
        draws: random draws it is compared with.
        penalty: weight of the penalty when the head is fitted anew, see `hf_mtl.explain.linear_heads.fit_head`.
        batch_size: rows of a batch.
        seed: seed of the draws.

    Raises:
        SpecError: an option is out of range, or there is no such task or label.
        DataError: no training row is labelled for the task, or the text is longer than the model reads.
        ModelError: a checkpoint cannot be loaded or has no such task.
    """
    for name, value, least in (("top", top, 1), ("leave_out", leave_out, 0), ("draws", draws, 1)):
        if value < least:
            raise SpecError(f"{name} is {value}", mend=f"use {least} or more")
    if not penalty > 0:
        raise SpecError(f"penalty is {penalty}", mend="use a number above 0")
    if similarity not in SIMILARITIES:
        raise SpecError(f"similarity is {similarity!r}", mend=f"use one of {one_of(SIMILARITIES)}")
    drawn = draw_rows(model, train, [task], limit=rows, seed=seed)[task]
    if leave_out and HEADS.get(drawn.spec.type).reads_choices:
        raise SpecError(
            f"leave_out is {leave_out}, but a head that compares choices is not fitted anew token by token",
            where=f"task {task!r}",
            mend="leave leave_out at 0",
        )
    if leave_out >= len(drawn):
        raise SpecError(f"leave_out is {leave_out}, and there are {len(drawn)} rows", mend="leave fewer out")
    subject = Subject(model, tokenizer)
    read = subject.read(text)
    forward = subject.forward(read, [task])
    chosen = subject.target(read, forward, task, Wanted.read(target))
    logits = forward.logits(task).detach().float().cpu()
    found = np.zeros(len(drawn))
    for state, rate in _states(model, checkpoints, task):
        pull = Pull.of(Subject(state, tokenizer), read, chosen, task)
        found += rate * influences(state, tokenizer, drawn, pull, similarity=similarity, batch_size=batch_size)
    order = np.argsort(-found, kind="stable")
    measured = None
    if leave_out:
        measured = _left_out(subject, drawn, read, chosen, order[:leave_out], draws=draws, penalty=penalty, seed=seed)
    own = subject.at_target(read, chosen, logits).numpy()
    return Influence(
        text=read.row.text if read.row.text_pair is None else f"{read.row.text} / {read.row.text_pair}",
        task=task,
        target=chosen.name,
        probability=float(chosen.probability(subject.head(task).probabilities(subject.spec(task), own))[0]),
        rows=len(drawn),
        for_it=_listed(drawn, found, [place for place in order[:top] if found[place] > 0]),
        against_it=_listed(drawn, found, [place for place in order[::-1][:top] if found[place] < 0]),
        similarity=similarity,
        checkpoints=max(1, len(checkpoints)),
        leave_out=measured,
    )


def _states(
    model: MultiTaskModel, checkpoints: Sequence[Checkpoint], task: str
) -> Generator[tuple[MultiTaskModel, float]]:
    """Yield each state of the model with its weight, one at a time."""
    if not checkpoints:
        yield model, 1.0
    for checkpoint in checkpoints:
        state, _ = load_model(checkpoint.folder, device=str(model.device))
        if task not in [spec.name for spec in state.specs]:
            raise ModelError(f"it has no task {task!r}", where=str(checkpoint.folder), mend="name other checkpoints")
        yield state, checkpoint.learning_rate


def read_checkpoints(folder: str | Path) -> list[Checkpoint]:
    """Find the checkpoints of a training run, with the learning rates that they were saved at.

    Args:
        folder: the run's folder.

    Returns:
        The checkpoints in the order of their steps.

    Raises:
        ModelError: there are none.
    """
    found: list[tuple[int, Checkpoint]] = []
    for place in Path(folder).glob("checkpoint-*"):
        state: Any = read_json(place / "trainer_state.json") or {}
        rates = [entry["learning_rate"] for entry in state.get("log_history", ()) if "learning_rate" in entry]
        if rates:
            found.append((int(state["global_step"]), Checkpoint(place, float(rates[-1]))))
    if not found:
        raise ModelError("there are no checkpoints with a learning rate", where=str(folder), mend="name a run's folder")
    return [checkpoint for _, checkpoint in sorted(found, key=lambda pair: pair[0])]


# ---------------------------------------------------------------------- the check


def _left_out(
    subject: Subject,
    rows: LabelledRows,
    text: ExplainedText,
    target: Target,
    top: np.ndarray,
    *,
    draws: int,
    penalty: float,
    seed: int,
) -> LeaveOut:
    """Fit the head anew without the most influential rows, and without random ones."""
    spec = rows.spec
    states = layer_states(subject.model, subject.tokenizer, rows, only_labelled=True)
    known = states.layers[-1]
    features = standardise(known, known)
    own = standardise(_own_state(subject, text, spec.name, target), known)

    def measure(gone: np.ndarray) -> tuple[float, float]:
        kept = np.ones(len(rows), dtype=bool)
        kept[gone] = False
        items = torch.from_numpy(np.repeat(kept, np.diff(states.starts)))
        logits = fit_head(spec, features[items], states.labels[items], penalty=penalty)(own).float()
        at_target = logits.reshape(1, len(target.labels), -1)
        probabilities = subject.head(spec.name).probabilities(spec, at_target.numpy())
        return float(target.score(at_target)[0]), float(target.probability(probabilities)[0])

    generator = np.random.default_rng(seed)
    full, without = measure(top[:0]), measure(top)
    random = [measure(generator.permutation(len(rows))[: len(top)]) for _ in range(draws)]
    return LeaveOut(len(top), *full, *without, tuple(score for score, _ in random), tuple(value for _, value in random))


def _own_state(subject: Subject, text: ExplainedText, task: str, target: Target) -> Tensor:
    """Return what a head reads of the text at the target: `(1, hidden_size)`, or `(positions, 1, hidden_size)`."""
    states: Any = subject.forward(text, [], output_hidden_states=True).output.hidden_states
    state = states[-1].float().cpu()
    if target.spans is not None:
        return torch.stack([state[0, start:end].mean(dim=0) for start, end in target.spans]).unsqueeze(1)
    if target.words is None:
        return pooling_of(subject.model, task)(state, torch.ones(state.shape[:2], dtype=torch.long))
    return state[0, text.words.first_tokens[list(target.words)].tolist()].unsqueeze(1)


def _listed(rows: LabelledRows, found: np.ndarray, places: Sequence[Any]) -> tuple[InfluentialRow, ...]:
    numbers = [int(rows.rows[place]) for place in places]
    raw = rows.split.raw.dataset.select(numbers)
    texts = list(replace(rows.split, raw=rows.split.raw.select(numbers)).inputs()) if numbers else []
    labels: Any = raw[rows.task.label] if numbers else []
    return tuple(
        InfluentialRow(
            row=number,
            text=text.text if text.text_pair is None else f"{text.text} / {text.text_pair}",
            label=label,
            influence=float(found[place]),
        )
        for number, text, label, place in zip(numbers, texts, labels, places, strict=True)
    )


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
