"""The part of a text that answers a question: extractive question answering."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import DataError, SpecError
from hf_mtl.model.cross_entropy import IGNORE_INDEX
from hf_mtl.model.heads._tagging import words_in
from hf_mtl.model.heads.base import TaskHead, Words, padded_labels, refuse
from hf_mtl.model.targets import Target, Wanted
from hf_mtl.registry import HEADS

START, END = 1, 2
"""Flags of the words that begin and end an answer, added up; 0 is any other word."""
SHAPES = "{'text': [...], 'answer_start': [...]}, empty lists for no answer, or {'text': ..., 'start': ..., 'end': ...}"


@HEADS.register("span_extraction")
class SpanExtractionHead(TaskHead):
    """Cross-entropy of the word that begins the answer and of the one that ends it, over the words of the text.

        loss = -(log p_start(i) + log p_end(j)) / 2,    p_start(i) = exp(s_i) / (1 + sum_k exp(s_k))

    The text is the one that is searched; the question, if any, stands in its `text_pair`. Beside the words stands no
    answer, with a logit of 0, so that a text, or a window of one, may hold none. The answer is the span with the
    highest `s_i + e_j`, `i <= j`, where that is above 0; its score is `p_start(i) * p_end(j)`, as that of transformers'
    `question-answering` pipeline. Logits `(rows, seq_len, 2)`; labels `(batch_size, seq_len)` long, at the first token
    of each word 0, plus 1 where the answer begins and 2 where it ends, and -100 elsewhere.

    Source: Rajpurkar et al., SQuAD: 100,000+ questions for machine comprehension of text, 2016,
    https://arxiv.org/abs/1606.05250; Devlin et al., BERT, 2019, section 4.3, for texts without an answer.

    Args:
        spec: the task.
        hidden_size: size of the features the head reads.
        dropout: dropout of the features, used where the spec names none.
    """

    pooled = False
    by_characters = True
    stored_as: ClassVar[str | list[str]] = ["int64"]
    explained_by = "shapley"
    measure = "value"
    exclusive = False
    points_into_text = True

    def __init__(self, spec: TaskSpec, hidden_size: int, *, dropout: float) -> None:
        super().__init__(spec, hidden_size, dropout=dropout)
        self.output = nn.Linear(hidden_size, 2)

    @classmethod
    def validate_spec(cls, spec: TaskSpec) -> None:
        refuse(spec, "labels", "class_weights", "label_smoothing", "scheme")

    @classmethod
    def infer_labels(cls, values: Iterable[Any]) -> None:
        return None

    @classmethod
    def num_logits(cls, spec: TaskSpec) -> int:
        return 2

    @classmethod
    def encode(cls, spec: TaskSpec, value: Any, words: Words | None, num_tokens: int) -> list[int]:
        answers = read_answers(value)
        if words is None:
            raise DataError("the row has an answer but no text", mend="name the column of the text")
        first = words.first_tokens
        labels = np.full(num_tokens, IGNORE_INDEX, dtype=np.int64)
        labels[first[first >= 0]] = 0
        for answer in answers:
            _check_answer(words.text, *answer)
        if answers:  # of several the first, as in SQuAD's training rows
            begin, last = first[list(_words_of(words, *answers[0][1:]))]
            if min(begin, last) < 0:  # cut off: no loss could know of it
                return [IGNORE_INDEX] * num_tokens
            labels[begin] += START
            labels[last] += END
        return labels.tolist()

    @classmethod
    def collate(cls, spec: TaskSpec, values: Sequence[Any], seq_len: int) -> Tensor:
        return padded_labels(values, seq_len)

    @classmethod
    def labelled_rows(cls, labels: Tensor) -> Tensor:
        return (labels != IGNORE_INDEX).any(dim=-1)

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        scores, total = _with_nothing(logits, labels), logits.new_zeros((), dtype=torch.float32)
        for place, flag in enumerate((START, END)):
            hit = (labels > 0) & (labels.clamp(min=0) & flag > 0)  # at most one word of a row
            chosen = torch.where(hit, logits[..., place].float(), 0.0).sum(dim=-1)  # 0 is no answer's logit
            total = total + (scores[place].logsumexp(dim=-1) - chosen).sum()
        return total / 2

    def divergence_sum(self, logits: Tensor, others: Tensor, labels: Tensor) -> Tensor:
        total = logits.new_zeros((), dtype=torch.float32)
        for one, other in zip(_with_nothing(logits, labels), _with_nothing(others, labels), strict=True):
            p, q = one.log_softmax(dim=-1), other.log_softmax(dim=-1)
            total = total + ((p.exp() - q.exp()) * (p - q)).sum()
        return total / 2

    @classmethod
    def num_items(cls, spec: TaskSpec, labels: Tensor) -> Tensor:
        return cls.labelled_rows(labels).sum().float()

    @classmethod
    def decode(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None) -> dict[str, Any]:
        assert words is not None  # a token-level head is always handed the words
        seen = np.flatnonzero(words.first_tokens >= 0)
        own = logits[words.first_tokens[seen]].astype(np.float64)
        total = np.logaddexp.reduce(np.pad(own, ((1, 0), (0, 0))), axis=0).sum()  # of starts and of ends
        span = best_span(own)
        score = 0.0 if span is None else float(own[span[0], 0] + own[span[1], 1])
        if span is None or score <= 0.0:
            return {"answer": "", "score": float(np.exp(-total)), "start": 0, "end": 0}
        start, end = int(words.spans[seen[span[0]]][0]), int(words.spans[seen[span[1]]][1])
        chance = min(float(np.exp(score - total)), 1.0)
        return {"answer": words.text[start:end], "score": chance, "start": start, "end": end}

    @classmethod
    def summary(cls, spec: TaskSpec, answer: dict[str, Any]) -> list[tuple[str, float | None]]:
        return [(answer["answer"] or "(none)", answer["score"])]

    @classmethod
    def prediction(cls, spec: TaskSpec, answer: dict[str, Any]) -> list[str]:
        return [answer["answer"]] if answer["end"] else []

    @classmethod
    def reference(cls, spec: TaskSpec, value: Any) -> list[str]:
        return [text for text, _, _ in read_answers(value)]

    @classmethod
    def as_label(cls, spec: TaskSpec, answer: dict[str, Any]) -> dict[str, list[Any]]:
        found = cls.prediction(spec, answer)
        return {"text": found, "answer_start": [answer["start"]] if found else []}

    @classmethod
    def confidence(cls, spec: TaskSpec, answer: dict[str, Any]) -> float:
        return answer["score"]

    @classmethod
    def judgements(cls, spec: TaskSpec, answer: dict[str, Any], value: Any) -> list[tuple[float, bool]]:
        found, true = cls.prediction(spec, answer), cls.reference(spec, value)
        return [(answer["score"], found[0] in true if found else not true)]

    @classmethod
    def metric_name(cls, spec: TaskSpec) -> str:
        return "answers"

    @classmethod
    def target(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None, wanted: Wanted) -> Target:
        """Choose what is explained: the mean of the logits to begin and to end the best span, or the one asked for."""
        assert words is not None
        where = f"task {spec.name!r}"
        if wanted.label is not None or wanted.over is not None:
            raise SpecError("target names a label, but answers are spans", where=where, mend="name words, or no target")
        seen = np.flatnonzero(words.first_tokens >= 0)
        if not len(seen):
            raise SpecError("the text has no words to explain", where=where, mend="give a text")
        if wanted.span is not None:
            chosen = words_in(spec, words, wanted.span)
            first, last = chosen[0], chosen[-1]
        else:
            span: Any = best_span(logits[words.first_tokens[seen]])
            first, last = int(seen[span[0]]), int(seen[span[1]])
        name = repr(words.text[words.spans[first][0] : words.spans[last][1]])
        return Target(name, (0, 1), np.eye(2), (first, last))

    @classmethod
    def probabilities(cls, spec: TaskSpec, logits: np.ndarray) -> np.ndarray:
        """Return the logits, each against no answer, `(..., 2)`."""
        return logits.astype(np.float64)

    @classmethod
    def holds(cls, spec: TaskSpec, target: Target, logits: np.ndarray) -> np.ndarray:
        """Tell whether the span still beats no answer."""
        return logits[:, 0, 0] + logits[:, 1, 1] > 0.0


def best_span(logits: np.ndarray) -> tuple[int, int] | None:
    """Return the words `(first, last)` of the span with the highest sum of a start and an end, `first <= last`.

    Args:
        logits: to begin and to end at each word, `(words, 2)`.

    Example:
        >>> best_span(np.array([[0.0, 9.0], [5.0, 0.0], [1.0, 3.0]]))
        (0, 0)
    """
    if not len(logits):
        return None
    highest = np.maximum.accumulate(logits[:, 0])  # the best start up to each word
    last = int((highest + logits[:, 1]).argmax())
    return int(logits[: last + 1, 0].argmax()), last


def read_answers(value: Any) -> list[tuple[str, int, int]]:
    """Return a label's answers with their character offsets `[start, end)`; none where there is no answer.

    Raises:
        DataError: it has neither of the known shapes.

    Example:
        >>> read_answers({"text": ["York"], "answer_start": [4]}), read_answers({"text": "York", "start": 4, "end": 8})
        ([('York', 4, 8)], [('York', 4, 8)])
    """
    if not isinstance(value, Mapping):
        raise DataError(f"{value!r} is no answer", mend=f"write answers as {SHAPES}")
    key = "answer_start" if "answer_start" in value else "start"
    texts, starts = (_list(value.get(name)) for name in ("text", key))
    if key == "start":
        ends = _list(value.get("end"))
    else:
        ends = [start + len(text) for text, start in zip(texts, starts, strict=False) if _is_answer(text, start)]
    known = (
        len(texts) == len(starts) == len(ends) and all(map(_is_answer, texts, starts)) and all(map(_is_offset, ends))
    )
    if not known or not {"text", key} <= value.keys():
        raise DataError(f"{value!r} is no answer", mend=f"write answers as {SHAPES}")
    return [(text, int(start), int(end)) for text, start, end in zip(texts, starts, ends, strict=True)]


def _with_nothing(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """Return the scores of starts and of ends, no answer first and tokens that begin no word out of reach.

    Returns:
        Two of `(rows, seq_len + 1)` in float32.
    """
    lowest = torch.finfo(torch.float32).min / 4
    nothing = logits.new_zeros((*labels.shape[:1], 1), dtype=torch.float32)
    outside = labels == IGNORE_INDEX
    return [torch.cat([nothing, logits[..., place].float().masked_fill(outside, lowest)], dim=1) for place in range(2)]


def _words_of(words: Words, start: int, end: int) -> tuple[int, int]:
    """Return the first and the last word that share a character with a span.

    Raises:
        DataError: none does.
    """
    inside = np.flatnonzero((words.spans[:, 1] > start) & (words.spans[:, 0] < end))
    if not len(inside):
        raise DataError(f"there is no word at {start} to {end}", mend="let answers hold at least one word")
    return int(inside[0]), int(inside[-1])


def _check_answer(text: str, answer: str, start: int, end: int) -> None:
    if text[start:end] != answer:
        raise DataError(
            f"the answer {answer!r} does not stand at {start}, where there is {text[start:end]!r}",
            mend="count characters, not bytes, in the text as it is given",
        )


def _list(value: Any) -> list[Any]:
    """Return one value, several of them or none as a list."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return list(cast(Sequence[Any], value))
    return [] if value is None else [value]


def _is_answer(text: Any, start: Any) -> bool:
    return isinstance(text, str) and len(text) > 0 and _is_offset(start)


def _is_offset(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 0
