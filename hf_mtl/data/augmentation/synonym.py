"""Words replaced by others that a lexicon gives."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

from hf_mtl.data.augmentation.base import Augmentation, TaggedWords
from hf_mtl.errors import DataError
from hf_mtl.registry import AUGMENTATIONS


@AUGMENTATIONS.register("synonym")
class Synonym(Augmentation):
    """Replaces each word that the lexicon has by one of its synonyms with the probability; none of a span.

    The lexicon is a UTF-8 text file with one entry a line: a word, a tab, and its synonyms with commas between them,
    each a single word. Words are looked up in small letters, and a capital that begins the word stays.

    Source: Zhang, Zhao and LeCun, Character-level Convolutional Networks for Text Classification, 2015,
    https://arxiv.org/abs/1509.01626.

    Args:
        lexicon: path of the file.

    Raises:
        DataError: the file cannot be read, or a line of it is none; names it.
    """

    options = ("lexicon",)
    paths = ("lexicon",)

    def __init__(self, probability: float | None = None, **options: Any) -> None:
        super().__init__(probability, **options)
        self.lexicon, self._state = _read(Path(options["lexicon"]))

    @property
    def state(self) -> str:
        return self._state

    def apply(self, row: TaggedWords, rng: random.Random) -> TaggedWords:
        words = list(row.words)
        for place in row.free():
            choices = self.lexicon.get(words[place].casefold())
            if choices and rng.random() < self.chance:
                chosen = rng.choice(choices)
                words[place] = chosen[0].upper() + chosen[1:] if words[place][0].isupper() else chosen
        return row.with_words(list(enumerate(words)))


def _read(path: Path) -> tuple[dict[str, list[str]], str]:
    """Return the entries of a lexicon, and a name for what it holds."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the lexicon cannot be read ({error})", where=str(path), mend="give a UTF-8 file") from error
    entries: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        word, _, rest = line.partition("\t")
        synonyms = [synonym.strip() for synonym in rest.split(",")]
        if len(word.split()) != 1 or any(len(synonym.split()) != 1 for synonym in synonyms):
            raise DataError(
                f"{line!r} is no entry",
                where=f"{path}, line {number}",
                mend="write a word, a tab, and synonyms of one word each with commas between them",
            )
        entries.setdefault(word.strip().casefold(), []).extend(synonyms)
    return entries, hashlib.sha256(text.encode()).hexdigest()
