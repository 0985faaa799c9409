"""One of the choices that a row brings with it: multiple-choice questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import DataError, SpecError
from hf_mtl.model.choices import Choices, choice_index, is_number
from hf_mtl.model.cross_entropy import IGNORE_INDEX, softmax
from hf_mtl.model.heads.base import TaskHead, Words, padded_labels, refuse
from hf_mtl.model.targets import RUNNER_UP, Target, Wanted, contrast, contrast_name
from hf_mtl.registry import HEADS


@HEADS.register("multiple_choice")
class MultipleChoiceHead(TaskHead):
    """Cross-entropy over the choices of each row, however many it has.

        s_c = w . mean(h_t, t in choice c),    p_c = exp(s_c) / sum_k exp(s_k),    loss = -log p_right

    A row is one sequence, `[CLS] text [SEP] choice 1 [SEP] ... choice n [SEP]`, and costs one encoder pass, shared with
    all other tasks; choices attend to each other. `AutoModelForMultipleChoice` of transformers reads one sequence per
    choice instead, `n` passes over text and choice, in which no choice knows of the others. A long text is cut, never a
    choice. The head scores every token, and the score of a choice is the mean over its tokens, which is the score of
    its mean-pooled states. Logits `(rows, seq_len, 1)`; labels `(batch_size, seq_len)` long, at the tokens of choice
    `c` the number `2 c`, plus 1 where it is the right one, and -100 elsewhere.

    Source: Zellers et al., SWAG: a large-scale adversarial dataset for grounded commonsense inference, 2018,
    https://arxiv.org/abs/1808.05326, for the task and the loss; Liu et al., RoBERTa, 2019, section 5.3, for one
    sequence per choice, the other way.

    Args:
        spec: the task.
        hidden_size: size of the features the head reads.
        dropout: dropout of the features, used where the spec names none.
    """

    pooled = False
    reads_choices = True
    points_into_text = True
    stored_as: ClassVar[str | list[str]] = ["int64"]
    no_stock_class = "AutoModelForMultipleChoice reads one sequence per choice, this task one with all choices"

    def __init__(self, spec: TaskSpec, hidden_size: int, *, dropout: float) -> None:
        super().__init__(spec, hidden_size, dropout=dropout)
        self.output = nn.Linear(hidden_size, 1, bias=False)  # all choices would have the same bias

    @classmethod
    def validate_spec(cls, spec: TaskSpec) -> None:
        refuse(spec, "labels", "class_weights", "scheme")
        if spec.stride is not None:
            raise SpecError(
                f"stride is {spec.stride}, but rows with choices are not read in windows",
                where=f"task {spec.name!r}",
                mend="leave stride out: the text is cut, never a choice",
            )

    @classmethod
    def infer_labels(cls, values: Iterable[Any]) -> None:
        return None

    @classmethod
    def num_logits(cls, spec: TaskSpec) -> int:
        return 1

    @classmethod
    def encode(cls, spec: TaskSpec, value: Any, words: Words | None, num_tokens: int) -> list[int]:
        if words is None or words.choices is None:
            raise DataError(
                "the row has a label but no choices", mend="give its choices, or null in place of the label"
            )
        choices = words.choices
        right = choice_index(value, choices.texts)
        if not choices.whole:
            raise DataError(
                f"its {len(choices.texts)} choices alone are longer than the {num_tokens} tokens that are read",
                mend="raise max_length, or shorten the choices",
            )
        labels = np.full(num_tokens, IGNORE_INDEX, dtype=np.int64)
        for place, (start, end) in enumerate(choices.tokens.tolist()):
            labels[start:end] = 2 * place + (place == right)
        return labels.tolist()

    @classmethod
    def collate(cls, spec: TaskSpec, values: Sequence[Any], seq_len: int) -> Tensor:
        return padded_labels(values, seq_len)

    @classmethod
    def labelled_rows(cls, labels: Tensor) -> Tensor:
        return (labels != IGNORE_INDEX).any(dim=-1)

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        scores, present, right = _of_choices(logits, labels)
        log_p, smoothing = scores.log_softmax(dim=-1), self.spec.label_smoothing
        total = torch.where(right, log_p, 0.0).sum()
        if smoothing:
            count = present.sum(dim=-1, keepdim=True).clamp(min=1)
            total = (1 - smoothing) * total + smoothing * torch.where(present, log_p / count, 0.0).sum()
        return -total

    def divergence_sum(self, logits: Tensor, others: Tensor, labels: Tensor) -> Tensor:
        (one, present, _), (other, _, _) = _of_choices(logits, labels), _of_choices(others, labels)
        p, q = one.log_softmax(dim=-1), other.log_softmax(dim=-1)
        return torch.where(present, (p.exp() - q.exp()) * (p - q), 0.0).sum()

    @classmethod
    def num_items(cls, spec: TaskSpec, labels: Tensor) -> Tensor:
        return cls.labelled_rows(labels).sum().float()

    @classmethod
    def decode(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None) -> dict[str, Any]:
        choices = None if words is None else words.choices
        if choices is None or not choices.whole:
            return {"choice": None, "index": None, "score": None, "scores": []}
        chances = softmax(_means(logits, choices))
        best = int(chances.argmax())
        scores: list[float] = chances.tolist()
        return {"choice": choices.texts[best], "index": best, "score": scores[best], "scores": scores}

    @classmethod
    def summary(cls, spec: TaskSpec, answer: dict[str, Any]) -> list[tuple[str, float | None]]:
        return [("(no choices)" if answer["choice"] is None else answer["choice"], answer["score"])]

    @classmethod
    def prediction(cls, spec: TaskSpec, answer: dict[str, Any]) -> int | None:
        return answer["index"]

    @classmethod
    def reference(cls, spec: TaskSpec, value: Any) -> int:
        """Return the number of the right choice; rows that are read from data have no other label."""
        if not is_number(value):
            raise DataError(f"{value!r} is not the number of a choice", mend="count the choices of the row from 0")
        return int(value)

    @classmethod
    def confidence(cls, spec: TaskSpec, answer: dict[str, Any]) -> float:
        return answer["score"] or 0.0

    @classmethod
    def metric_name(cls, spec: TaskSpec) -> str:
        return "choices"

    @classmethod
    def target(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None, wanted: Wanted) -> Target:
        """Choose what is explained: the logit of a choice against the mean of all others, or against one of them."""
        choices, where = None if words is None else words.choices, f"task {spec.name!r}"
        if choices is None or not choices.whole:
            raise SpecError("the row has no choices to explain", where=where, mend="give its choices")
        wanted = wanted.without_span(spec.name)
        means, texts = _means(logits, choices), choices.texts
        ranked: list[int] = np.argsort(-means, kind="stable").tolist()
        label = ranked[0] if wanted.label is None else _named(spec, wanted.label, texts)
        over = None
        if wanted.over == RUNNER_UP and RUNNER_UP not in texts:
            over = next(other for other in ranked if other != label)
        elif wanted.over is not None:
            over = _named(spec, wanted.over, texts)
        if over == label:
            raise SpecError(f"target compares {wanted.over!r} with itself", where=where, mend="name two choices")
        return Target(
            contrast_name(texts[label], None if over is None else texts[over]),
            (label,),
            contrast(len(texts), label, over)[None],
            spans=tuple((start, end) for start, end in choices.tokens.tolist()),
            names=texts,
        )


def _of_choices(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the choices' scores, the mean of their tokens' logits, and which there are and which is right.

    Args:
        logits: `(rows, seq_len, 1)`.
        labels: `(rows, seq_len)`.

    Returns:
        Scores in float32, those of choices that a row does not have out of reach, and two bools, all
        `(rows, seq_len)`: no row has more choices than tokens, so that nobody needs to look at their number.
    """
    known = labels != IGNORE_INDEX
    place, zeros = labels.clamp(min=0) // 2, torch.zeros_like(labels, dtype=torch.float32)
    values = torch.where(known, logits.squeeze(-1).float(), 0.0)
    counts = zeros.scatter_add(1, place, known.float())
    right = zeros.scatter_add(1, place, (known & (labels % 2 == 1)).float()) > 0
    present = counts > 0
    means = zeros.scatter_add(1, place, values) / counts.clamp(min=1)
    return means.masked_fill(~present, torch.finfo(torch.float32).min / 4), present, right


def _means(logits: np.ndarray, choices: Choices) -> np.ndarray:
    """Return the mean logit of each choice, `(num_choices,)`."""
    return np.array([logits[start:end, 0].mean(dtype=np.float64) for start, end in choices.tokens.tolist()])


def _named(spec: TaskSpec, name: str, texts: Sequence[str]) -> int:
    try:
        return choice_index(name, texts)
    except DataError as error:
        raise SpecError(f"target: {error.problem}", where=f"task {spec.name!r}", mend=error.mend) from None
