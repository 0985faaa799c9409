"""Mentions replaced by others of the same type."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import ClassVar

from hf_mtl.data.augmentation.base import Augmentation, TaggedWords
from hf_mtl.registry import AUGMENTATIONS


@AUGMENTATIONS.register("mention_replacement")
class MentionReplacement(Augmentation):
    """Replaces each mention, with the probability, by another of its type from the training rows, tags and all.

    The new mention brings the tags it stood with, so that IOB2 and IOBES tags are as valid as before; mentions that
    begin or end against the scheme of the tags, and the words outside, stay as they are. Where a dataset has several
    tagging tasks, mentions are those of the first with span tags, and the new words have no tags for the others.

    Source: Dai and Adel, An Analysis of Simple Data Augmentation for Named Entity Recognition, 2020,
    https://arxiv.org/abs/2010.11683.
    """

    probability: ClassVar[float] = 0.5
    needs_spans = True

    def prepare(self, rows: Iterable[TaggedWords]) -> None:
        found: dict[str, dict[tuple[tuple[str, ...], tuple[str, ...]], None]] = {}
        for row in rows:
            for label, start, end in _mentions(row):
                tags = tuple(str(tag) for tag in _span_tags(row)[start:end])
                found.setdefault(label, {})[row.words[start:end], tags] = None
        self.mentions = {label: list(own) for label, own in found.items()}
        self.several = {label for label, own in self.mentions.items() if len({words for words, _ in own}) > 1}

    def apply(self, row: TaggedWords, rng: random.Random) -> TaggedWords:
        task = next((task for task in row.tags if task in row.spans), None)
        words, tags = list(row.words), {name: list(own) for name, own in row.tags.items()}
        for label, start, end in reversed(_mentions(row)):  # so that the places before stay true
            if label not in self.several or rng.random() >= self.chance:
                continue
            new_words, new_tags = rng.choice(self.mentions[label])
            while new_words == row.words[start:end]:
                new_words, new_tags = rng.choice(self.mentions[label])
            words[start:end] = new_words
            for name, own in tags.items():
                own[start:end] = new_tags if name == task else [None] * len(new_words)
        return TaggedWords(tuple(words), {name: tuple(own) for name, own in tags.items()}, row.spans)


def _span_tags(row: TaggedWords) -> tuple[str | None, ...]:
    return next((tags for task, tags in row.tags.items() if task in row.spans), ())


def _mentions(row: TaggedWords) -> list[tuple[str, int, int]]:
    """Return type, first word and end of each mention that is whole: `B I*`, `S`, or `B I* E`, all of one type."""
    tags, found = _span_tags(row), list[tuple[str, int, int]]()
    start = 0
    while start < len(tags):
        tag, end = tags[start], start + 1
        if tag is None or tag[:2] not in ("B-", "S-"):
            start += 1
            continue
        label = tag[2:]
        while tag[0] == "B" and end < len(tags) and tags[end] in (f"I-{label}", f"E-{label}"):
            end += 1
            if tags[end - 1] == f"E-{label}":
                break
        # A word after it that goes on with the span, or has no tag at all, leaves it open where the mention ends.
        after = tags[end] if end < len(tags) else "O"
        if after is not None and after[:2] not in ("I-", "E-"):
            found.append((label, start, end))
        start = end
    return found
