"""The contract of augmentations, over their registry, and what is particular to each."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, IOBES, Entities

from hf_mtl.data.augmentation.base import Augmentation, TaggedWords
from hf_mtl.errors import DataError, HfMtlError, RecipeError
from hf_mtl.registry import AUGMENTATIONS

NAMES = AUGMENTATIONS.files


def rewrite(text: str, seed: int) -> str:
    return f"again {text} {seed}"


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lexicon") / "words.tsv"
    path.write_text("w1\tone,uno\nw2\tdue\n\nw3\ttre, trois\n", encoding="utf-8")
    return path


def made(name: str, lexicon: Path, probability: float | None = None) -> Augmentation:
    options: dict[str, dict[str, Any]] = {
        "synonym": {"lexicon": str(lexicon)}, "back_translation": {"function": f"{__name__}:rewrite"},
    }  # fmt: skip
    return AUGMENTATIONS.get(name)(probability, **options.get(name, {}))


def tagged(rng: random.Random, *, iobes: bool) -> TaggedWords:
    words, tags = list[str](), list[str | None]()
    while len(words) < 12:
        kind, length = rng.choice(["x", "y"]), rng.randint(1, 3)
        if rng.random() < 0.6:
            words.append(f"w{rng.randint(0, 9)}")
            tags.append("O")
            continue
        words += [f"{kind}{rng.randint(0, 99)}" for _ in range(length)]
        inner = ["S"] if iobes and length == 1 else ["B", *"I" * (length - 1)]
        if iobes and length > 1:
            inner[-1] = "E"
        tags += [f"{tag}-{kind}" for tag in inner]
    return TaggedWords(tuple(words), {"t": tuple(tags)}, frozenset({"t"}))


@pytest.mark.parametrize("iobes", [False, True], ids=["IOB2", "IOBES"])
@pytest.mark.parametrize("name", NAMES)
def test_tags_stay_valid_and_each_mention_keeps_its_type(name: str, iobes: bool, lexicon: Path) -> None:
    if not AUGMENTATIONS.get(name).takes_tokens:
        pytest.skip("takes no tokens")
    rng = random.Random(0)
    rows = [tagged(rng, iobes=iobes) for _ in range(200)]
    augmentation = made(name, lexicon, 0.5)
    augmentation.prepare(rows)
    known = {(kind, row.words[a : b + 1]) for row in rows for kind, a, b in get_entities(list(row.tags["t"]))}
    changed = 0
    for row in rows:
        new = augmentation.apply(row, rng)
        tags = list(new.tags["t"])
        assert len(tags) == len(new.words) > 0
        # Strictly valid: every tag other than O belongs to an entity that the scheme accepts.
        strict = Entities([tags], IOBES if iobes else IOB2).entities[0]
        assert sum(entity.end - entity.start for entity in strict) == sum(tag != "O" for tag in tags)
        spans = get_entities(tags)
        assert {(kind, new.words[a : b + 1]) for kind, a, b in spans} <= known
        assert [kind for kind, *_ in spans] == [kind for kind, *_ in get_entities(list(row.tags["t"]))]
        changed += new.words != row.words
    assert changed > 100


@pytest.mark.parametrize("name", NAMES)
def test_the_same_draw_gives_the_same_row(name: str, lexicon: Path) -> None:
    augmentation = made(name, lexicon)
    rows = [tagged(random.Random(n), iobes=False) for n in range(20)]
    augmentation.prepare(rows)
    first, again = ([augmentation.apply(row, random.Random(5)) for row in rows] for _ in range(2))
    assert first == again


@pytest.mark.parametrize("name", NAMES)
def test_options_that_cannot_be_are_refused(name: str, lexicon: Path) -> None:
    for probability in (0, 1.5, "a", True):
        with pytest.raises(RecipeError, match="probability"):
            made(name, lexicon, probability)  # type: ignore[arg-type]
    for option in AUGMENTATIONS.get(name).options:
        with pytest.raises(RecipeError, match=option):
            AUGMENTATIONS.get(name)()


def test_word_deletion_leaves_out_the_share_it_is_told_and_never_all(lexicon: Path) -> None:
    row = TaggedWords(tuple(f"w{n}" for n in range(1000)))
    left = made("word_deletion", lexicon, 0.3).apply(row, random.Random(0)).words
    assert 600 < len(left) < 800
    assert list(left) == [word for word in row.words if word in set(left)]
    assert made("word_deletion", lexicon, 1.0).apply(row, random.Random(0)) == row


def test_word_swap_keeps_all_words_and_moves_each_by_one(lexicon: Path) -> None:
    words = tuple(map(str, range(100)))
    swapped = made("word_swap", lexicon, 0.5).apply(TaggedWords(words), random.Random(0)).words
    assert sorted(swapped) == sorted(words)
    assert {abs(int(word) - place) for place, word in enumerate(swapped)} == {0, 1}


def test_plain_tags_go_with_their_words(lexicon: Path) -> None:
    row = TaggedWords(tuple("abcdef"), {"pos": tuple("ABCDEF")})
    for name in ("word_swap", "word_deletion"):
        new = made(name, lexicon, 0.5).apply(row, random.Random(3))
        assert new.words != row.words
        assert new.tags["pos"] == tuple(word.upper() for word in new.words)


def test_synonyms_keep_a_capital_and_come_from_the_lexicon(lexicon: Path) -> None:
    new = made("synonym", lexicon, 1.0).apply(TaggedWords(("W2", "w2", "other")), random.Random(0))
    assert new.words == ("Due", "due", "other")
    lexicon.with_name("bad.tsv").write_text("one two\tthree\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"bad.tsv, line 1"):
        AUGMENTATIONS.get("synonym")(lexicon=str(lexicon.with_name("bad.tsv")))
    with pytest.raises(DataError, match="cannot be read"):
        AUGMENTATIONS.get("synonym")(lexicon="no-such-file")


def test_other_tags_of_a_replaced_mention_are_open(lexicon: Path) -> None:
    tags = {"pos": ("V", "N"), "t": ("O", "B-x")}
    rows = [TaggedWords(("see", word), tags, frozenset({"t"})) for word in ("a", "b")]
    augmentation = made("mention_replacement", lexicon, 1.0)
    augmentation.prepare(rows)
    assert augmentation.apply(rows[0], random.Random(0)) == TaggedWords(
        ("see", "b"), {"pos": ("V", None), "t": ("O", "B-x")}, frozenset({"t"})
    )


def test_a_function_that_is_not_there_is_refused() -> None:
    for address in ("no_such_module:f", f"{__name__}:no", "x", f"{__name__}:NAMES"):
        with pytest.raises(HfMtlError, match="function"):
            AUGMENTATIONS.get("back_translation")(function=address)
