"""One label for each word: BIO spans such as names and slots, or plain tags such as parts of speech."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import DataError, SpecError
from hf_mtl.model.heads.base import (
    IGNORE_INDEX,
    TaskHead,
    Words,
    as_list,
    cross_entropy_sum,
    label_id,
    label_name,
    require_labels,
    softmax,
    sorted_labels,
    weighted_count,
)
from hf_mtl.registry import HEADS

OUTSIDE = "O"
UNKNOWN_TAG = "_"
"""What stands for the tag of a word the model did not see, in a tag set without `O` (as CoNLL-U writes it)."""


@HEADS.register("token_classification")
class TokenClassificationHead(TaskHead):
    """Cross-entropy over the first token of each word; labels `(batch_size, seq_len)` long, -100 elsewhere."""

    pooled = False
    stored_as: ClassVar[str | list[str]] = ["int64"]

    @classmethod
    def validate_spec(cls, spec: TaskSpec) -> None:
        require_labels(spec, at_least=2)
        if spec.scheme is not None and not are_span_tags(spec.labels or ()):
            raise SpecError(
                f"scheme is {spec.scheme!r}, but the labels are no span tags (B-, I-, O)",
                where=f"task {spec.name!r}",
                mend="leave scheme out",
            )

    @classmethod
    def infer_labels(cls, values: Iterable[Any]) -> tuple[str, ...]:
        rows = (as_list(value, "tags") for value in values if value is not None)
        names = sorted_labels(label_name(tag) for row in rows for tag in row if tag is not None)
        # `O` first, and the tags of one type side by side: the order people read.
        return (
            tuple(sorted(names, key=lambda tag: (tag != OUTSIDE, tag[2:], tag[:2]))) if are_span_tags(names) else names
        )

    @classmethod
    def encode(cls, spec: TaskSpec, value: Any, words: Words | None, num_tokens: int) -> list[int]:
        tags = as_list(value, "tags")
        if words is None or not words.given:
            raise DataError(
                "the row has tags but no tokens", mend="name the column of tokens in the dataset's 'tokens'"
            )
        if len(tags) != len(words.spans):
            raise DataError(f"{len(tags)} tags for {len(words.spans)} tokens", mend="give one tag per token")
        ids = np.array([IGNORE_INDEX if tag is None else label_id(spec, tag) for tag in tags], dtype=np.int64)
        labels = np.full(num_tokens, IGNORE_INDEX, dtype=np.int64)
        seen = words.first_tokens >= 0
        # Where two words begin in one token the first of them keeps it, so the assignment runs backwards.
        labels[words.first_tokens[seen][::-1]] = ids[seen][::-1]
        return labels.tolist()

    @classmethod
    def collate(cls, spec: TaskSpec, values: Sequence[Any], seq_len: int) -> Tensor:
        labels = torch.full((len(values), seq_len), IGNORE_INDEX, dtype=torch.long)
        for row, value in enumerate(values):
            if value is not None:
                labels[row, : len(value)] = torch.tensor(value, dtype=torch.long)
        return labels

    @classmethod
    def labelled_rows(cls, labels: Tensor) -> Tensor:
        return (labels != IGNORE_INDEX).any(dim=-1)

    @classmethod
    def describe(cls, spec: TaskSpec, value: Any) -> list[str]:
        return [tag for tag in cls.reference(spec, value) if tag is not None]

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy_sum(
            logits.flatten(0, 1), labels.flatten(), self._weights(logits), self.spec.label_smoothing
        )

    def num_items(self, labels: Tensor) -> Tensor:
        return weighted_count(labels, self._weights(labels))

    @classmethod
    def decode(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None) -> dict[str, Any]:
        assert words is not None  # a token-level head is always handed the words
        labels = spec.labels or ()
        span_tags = are_span_tags(labels)
        missing = OUTSIDE if span_tags or OUTSIDE in labels else UNKNOWN_TAG
        seen = words.first_tokens >= 0
        probabilities = softmax(logits[words.first_tokens[seen]]) if seen.any() else np.zeros((0, len(labels)))
        tags = [missing] * len(words.spans)
        scores = np.zeros(len(words.spans))
        for index, row in zip(np.flatnonzero(seen), probabilities, strict=True):
            tags[index] = labels[int(row.argmax())]
            scores[index] = row.max()
        spans = [
            {
                "label": label,
                "text": words.text[words.spans[first][0] : words.spans[last][1]],
                "start": int(words.spans[first][0]),
                "end": int(words.spans[last][1]),
                "score": float(scores[first : last + 1].mean()),
            }
            for label, first, last in tag_spans(tags, span_tags=span_tags)
            if seen[first]  # where `O` is a plain tag, it is no answer for words that were cut off
        ]
        return {"spans": spans, "tags": tags} if words.given else {"spans": spans}

    @classmethod
    def summary(cls, spec: TaskSpec, answer: dict[str, Any]) -> list[tuple[str, float | None]]:
        spans = answer["spans"]
        return [(f"{span['label']}: {span['text']}", span["score"]) for span in spans] or [("(none)", None)]

    @classmethod
    def prediction(cls, spec: TaskSpec, answer: dict[str, Any]) -> list[str]:
        return answer["tags"]

    @classmethod
    def reference(cls, spec: TaskSpec, value: Any) -> list[str | None]:
        labels = spec.labels or ()
        return [None if tag is None else labels[label_id(spec, tag)] for tag in as_list(value, "tags")]

    @classmethod
    def confidence(cls, spec: TaskSpec, answer: dict[str, Any]) -> float:
        return min((span["score"] for span in answer["spans"]), default=0.0)

    @classmethod
    def metric_name(cls, spec: TaskSpec) -> str:
        return "spans" if are_span_tags(spec.labels or ()) else "tags"


def are_span_tags(labels: Sequence[str]) -> bool:
    """Tell span tags (`B-` and `I-`, `E-`, `S-` with a type, and `O`) from plain tags.

    Example:
        >>> are_span_tags(["O", "B-city", "I-city"]), are_span_tags(["NOUN", "VERB"])
        (True, False)
    """
    typed = [label for label in labels if label != OUTSIDE]
    return any(label.startswith("B-") for label in typed) and all(
        label[:2] in ("B-", "I-", "E-", "S-") for label in typed
    )


def tag_spans(tags: Sequence[str], *, span_tags: bool) -> list[tuple[str, int, int]]:
    """Join tags to spans `(label, first word, last word)`, leniently as conlleval does: an `I-` may begin a span.

    Args:
        tags: one tag per word.
        span_tags: whether the tags are BIO or IOBES tags; plain tags give one span per word.

    Example:
        >>> tag_spans(["B-city", "I-city", "O", "I-day"], span_tags=True)
        [('city', 0, 1), ('day', 3, 3)]
    """
    if not span_tags:
        return [(tag, index, index) for index, tag in enumerate(tags) if tag != UNKNOWN_TAG]
    spans: list[tuple[str, int, int]] = []
    open_label: str | None = None
    for index, tag in enumerate(tags):
        prefix, label = (tag[0], tag[2:]) if tag != OUTSIDE else (OUTSIDE, None)
        if label is not None and label == open_label and prefix in "IE":
            spans[-1] = (label, spans[-1][1], index)
        elif label is not None:
            spans.append((label, index, index))
        open_label = None if prefix in "OES" else label
    return spans
