"""Words that change places."""

from __future__ import annotations

import random

from hf_mtl.data.augmentation.base import Augmentation, TaggedWords
from hf_mtl.registry import AUGMENTATIONS


@AUGMENTATIONS.register("word_swap")
class WordSwap(Augmentation):
    """Swaps each word with the next with the probability, each with its tags; none of a span, and no word twice.

    Source: Wei and Zou, EDA: Easy Data Augmentation Techniques, 2019, https://arxiv.org/abs/1901.11196.
    """

    def apply(self, row: TaggedWords, rng: random.Random) -> TaggedWords:
        order, free = list(range(len(row.words))), set(row.free())
        place = 0
        while place + 1 < len(order):
            if {place, place + 1} <= free and rng.random() < self.chance:
                order[place : place + 2] = order[place + 1], order[place]
                place += 1
            place += 1
        return row.with_words([(place, row.words[place]) for place in order])
