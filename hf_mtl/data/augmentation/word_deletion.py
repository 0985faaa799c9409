"""Words left out at random."""

from __future__ import annotations

import random

from hf_mtl.data.augmentation.base import Augmentation, TaggedWords
from hf_mtl.registry import AUGMENTATIONS


@AUGMENTATIONS.register("word_deletion")
class WordDeletion(Augmentation):
    """Leaves out each word with the probability, with its tags, but none of a span, and never all words.

    Source: Wei and Zou, EDA: Easy Data Augmentation Techniques, 2019, https://arxiv.org/abs/1901.11196.
    """

    def apply(self, row: TaggedWords, rng: random.Random) -> TaggedWords:
        gone = {place for place in row.free() if rng.random() < self.chance}
        kept = [(place, word) for place, word in enumerate(row.words) if place not in gone]
        return row.with_words(kept) if kept else row
