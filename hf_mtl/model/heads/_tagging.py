"""What all heads have that give each word a tag: BIO spans such as names and slots, or plain tags."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import DataError, SpecError
from hf_mtl.model.cross_entropy import IGNORE_INDEX, softmax
from hf_mtl.model.heads.base import TaskHead, Words, as_list, padded_labels, require_labels
from hf_mtl.model.labels import known_label, label_id, label_name, sorted_labels, wanted_labels
from hf_mtl.model.targets import RUNNER_UP, Target, Wanted, contrast, contrast_name

OUTSIDE = "O"
UNKNOWN_TAG = "_"
"""What stands for the tag of a word the model did not see, in a tag set without `O` (as CoNLL-U writes it)."""


class TaggingHead(TaskHead):
    """A tag for the first token of each word; labels `(batch_size, seq_len)` long, -100 elsewhere."""

    pooled = False
    stored_as: ClassVar[str | list[str]] = ["int64"]
    explained_by = "shapley"

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
        return padded_labels(values, seq_len)

    @classmethod
    def labelled_rows(cls, labels: Tensor) -> Tensor:
        return (labels != IGNORE_INDEX).any(dim=-1)

    @classmethod
    def describe(cls, spec: TaskSpec, value: Any) -> list[str]:
        return [tag for tag in cls.reference(spec, value) if tag is not None]

    @classmethod
    def decode(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None) -> dict[str, Any]:
        return cls.decode_rows(spec, [logits], [words])[0]

    @classmethod
    def decode_rows(
        cls, spec: TaskSpec, logits: Sequence[np.ndarray], words: Sequence[Words | None]
    ) -> list[dict[str, Any]]:
        labels = spec.labels or ()
        span_tags = are_span_tags(labels)
        missing = OUTSIDE if span_tags or OUTSIDE in labels else UNKNOWN_TAG
        best, scores = cls.best_tags(spec, logits, words)
        names: list[str] = np.array([*labels, missing], dtype=object)[best].tolist()  # -1 is the last
        bridges = span_tags and bool((best < 0).any())
        answers: list[dict[str, Any]] = []
        end = 0
        for row in words:
            assert row is not None  # a token-level head is always handed the words
            start, end = end, end + len(row.spans)
            tags = _bridged(names[start:end], best[start:end] >= 0) if bridges else names[start:end]
            found = tag_spans(tags, span_tags=span_tags)
            spans = _spans(found, row, best[start:end], scores[start:end]) if found else []
            answers.append({"spans": spans, "tags": tags} if row.given else {"spans": spans})
        return answers

    @classmethod
    def best_tags(
        cls, spec: TaskSpec, logits: Sequence[np.ndarray], words: Sequence[Words | None]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the tag of each word of all rows, -1 for words that were cut off, and its probability."""
        places = [np.zeros(0, dtype=np.int64) if row is None else row.first_tokens for row in words]
        read = np.concatenate([row[own[own >= 0]] for row, own in zip(logits, places, strict=True)])
        seen = np.concatenate(places) >= 0
        best, scores = np.full(len(seen), -1, dtype=np.int64), np.zeros(len(seen))
        best[seen] = read.argmax(axis=1)
        # What `softmax` gives for the highest of them, for the exponential of 0 is 1.
        scores[seen] = 1.0 / np.exp(read.astype(np.float64) - read.max(axis=1, keepdims=True)).sum(axis=1)
        return best, scores

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
    def judgements(cls, spec: TaskSpec, answer: dict[str, Any], value: Any) -> list[tuple[float, bool]]:
        # Span by span, those that were found; what was missed has no confidence.
        span_tags = are_span_tags(spec.labels or ())
        tags = cls.reference(spec, value)
        true = set(tag_spans([OUTSIDE if tag is None else tag for tag in tags], span_tags=span_tags))
        found = tag_spans(cls.prediction(spec, answer), span_tags=span_tags)
        # Words that were cut off stand at the end and have no span in the answer.
        return [
            (float(span["score"]), own in true)
            for span, own in zip(answer["spans"], found, strict=False)
            if None not in tags[own[1] : own[2] + 1]
        ]

    @classmethod
    def metric_name(cls, spec: TaskSpec) -> str:
        return "spans" if are_span_tags(spec.labels or ()) else "tags"

    @classmethod
    def target(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None, wanted: Wanted) -> Target:
        assert words is not None
        seen = np.flatnonzero(words.first_tokens >= 0)
        if not len(seen):
            raise SpecError("the text has no words to explain", where=f"task {spec.name!r}", mend="give a text")
        own = logits[words.first_tokens[seen]]
        chosen = words_in(spec, words, wanted.span) if wanted.span else _surest_span(spec, own, seen)
        rows = own[np.searchsorted(seen, chosen)]
        labels: list[int] = []
        weights: list[np.ndarray] = []
        for place, row in enumerate(rows):
            tag = _tag_of(spec, wanted.label, place)
            label, over = wanted_labels(spec, row, Wanted(tag, _tag_of(spec, wanted.over, place)))
            labels.append(label)
            weights.append(contrast(spec.num_labels, label, over))
        text = words.text[words.spans[chosen[0]][0] : words.spans[chosen[-1]][1]]
        names = spec.labels or ()
        kind = _kind(wanted.label or names[labels[0]], span_tags=are_span_tags(names))
        return Target(f"{contrast_name(kind, wanted.over)}: {text!r}", tuple(labels), np.stack(weights), tuple(chosen))


def _spans(
    found: Sequence[tuple[str, int, int]], words: Words, best: np.ndarray, scores: np.ndarray
) -> list[dict[str, Any]]:
    """Describe spans of words, but those of words that were cut off: where `O` is a plain tag, it is no answer."""
    starts, ends, seen = words.spans[:, 0].tolist(), words.spans[:, 1].tolist(), best >= 0
    own = scores.tolist()
    return [
        {
            "label": label,
            "text": words.text[starts[first] : ends[last]],
            "start": starts[first],
            "end": ends[last],
            "score": own[first] if first == last else float(scores[first : last + 1][seen[first : last + 1]].mean()),
        }
        for label, first, last in found
        if seen[first]
    ]


def _bridged(tags: list[str], seen: np.ndarray) -> list[str]:
    """Carry spans on over words between two others that have no token, such as an invisible character.

    Args:
        tags: valid tags of the words that were seen, `O` for others.
        seen: which words were, `(num_words,)`.
    """
    tags, places = list(tags), np.flatnonzero(seen).tolist()
    for before, after in itertools.pairwise(places):
        inside = f"I-{tags[before][2:]}"
        if tags[after] in (inside, f"E-{inside[2:]}") and tags[before] in (f"B-{inside[2:]}", inside):
            tags[before + 1 : after] = [inside] * (after - before - 1)
    return tags


def words_in(spec: TaskSpec, words: Words, span: tuple[int, int]) -> list[int]:
    """Return the indices of the words of a span.

    Raises:
        SpecError: there are no such words.
    """
    chosen = list(range(*span))
    if span[1] > len(words.spans) or any(words.first_tokens[word] < 0 for word in chosen):
        raise SpecError(
            f"target names word {chosen[-1]}, the text has {len(words.spans)} words",
            where=f"task {spec.name!r}",
            mend="count words from 0",
        )
    return chosen


def _surest_span(spec: TaskSpec, logits: np.ndarray, words: np.ndarray) -> list[int]:
    """Return the words of the surest span; where none is found, the word that is least surely outside.

    Args:
        spec: the task.
        logits: `(words, num_labels)`.
        words: index of each of these words in the text.
    """
    labels: tuple[str, ...] = spec.labels or ()
    probabilities = softmax(logits)
    best, tags = probabilities.max(axis=1), [labels[int(index)] for index in probabilities.argmax(axis=1)]
    found = tag_spans(tags, span_tags=are_span_tags(labels))
    if found:
        _, first, last = max(found, key=lambda span: best[span[1] : span[2] + 1].mean())
        return words[first : last + 1].tolist()
    return [int(words[best.argmin()])]


def _tag_of(spec: TaskSpec, name: str | None, place: int) -> str | None:
    """Return the tag of a word of a span that a user names by the span's type: `B-` for the first, then `I-`."""
    if name is None or name in spec.label2id or name == RUNNER_UP:
        return name
    tag = f"{'B' if place == 0 else 'I'}-{name}"
    if tag not in spec.label2id:
        tag = f"B-{name}"
    return tag if tag in spec.label2id else (spec.labels or ())[known_label(spec, name)]


def _kind(tag: str, *, span_tags: bool) -> str:
    return tag[2:] if span_tags and tag[1:2] == "-" else tag


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
    if tags.count(OUTSIDE) == len(tags):  # most rows of most tasks
        return spans
    open_label: str | None = None
    for index, tag in enumerate(tags):
        prefix, label = (tag[0], tag[2:]) if tag != OUTSIDE else (OUTSIDE, None)
        if label is not None and label == open_label and prefix in "IE":
            spans[-1] = (label, spans[-1][1], index)
        elif label is not None:
            spans.append((label, index, index))
        open_label = None if prefix in "OES" else label
    return spans
