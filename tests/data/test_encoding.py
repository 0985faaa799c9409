"""Words and tokens: every word is found again by its offsets, in any script and with any kind of tokenizer."""

from __future__ import annotations

import copy
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5Config

from hf_mtl.data.encoding import (
    Encoded,
    Inputs,
    encode,
    find_words,
    join_tokens,
    read_inputs,
    set_max_length,
    word_spans,
    words_of,
)
from hf_mtl.data.windows import Reading, window_starts
from hf_mtl.errors import DataError, ModelError, SpecError

SCRIPTS = {
    "latin": "the quick, brown Fox's jump! 3.14 naïve cafe\u0301 Straße e-mail @user #tag İstanbul ﬁne",
    "chinese": "他们说：“好”。上海2024年 ㊗ 𠮷野家",
    "japanese": "東京タワーへ行く、カタカナ。",
    "korean": "안녕하세요 세계 한국어",
    "arabic": "مرحبا بالعالم، كَتَبَ ١٢٣ می\u200cخواهم",
    "hebrew": "שָׁלוֹם עולם",
    "devanagari": "नमस्ते दुनिया। क्षत्रिय १२३",
    "thai": "สวัสดีชาวโลก",
    "emoji": "🎉 👩\u200d👩\u200d👧 👍🏽 🇫🇷 ☺\ufe0f",
    "odd": "\0 \x07 \t \n \r\n \u00a0 \u3000 \u2028 \u0085 \u200b \ufeff \u00ad ￼ \ud7ff \U0010ffff",
}
CORPUS = [*SCRIPTS.values(), "to be or not to be", "play some jazz in the living room"]


def random_texts(seed: int, count: int, length: int = 40) -> list[str]:
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(count):
        parts: list[str] = []
        for _ in range(rng.randrange(1, 6)):
            source = rng.choice(list(SCRIPTS.values()))
            start = rng.randrange(len(source))
            parts.append(source[start : start + rng.randrange(1, length // 3)])
            parts.append(rng.choice(["", " ", "  ", "\n"]))
        texts.append("".join(parts))
    return texts


def random_tokens(seed: int, count: int) -> list[list[str]]:
    rng = random.Random(seed)
    words = [word for text in CORPUS for word in text.split(" ") if word]
    return [[rng.choice(words) for _ in range(rng.randrange(12))] for _ in range(count)]


# ---------------------------------------------------------------------- tokenizers


@pytest.fixture(scope="session")
def bert(minilm: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(minilm))


def byte_level(*, trim_offsets: bool, add_prefix_space: bool, roberta: bool) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer, as GPT-2 (no special tokens) and RoBERTa have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    if roberta:
        tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", 1), ("<s>", 0), trim_offsets=trim_offsets, add_prefix_space=add_prefix_space
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)


def metaspace(scheme: str, *, normalize: bool) -> PreTrainedTokenizerBase:
    """A Unigram tokenizer, as T5 and XLM-R have it."""
    tokenizer = Tokenizer(models.Unigram())
    if normalize:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>", "<pad>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B:1 </s>:1", special_tokens=[("</s>", 1)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    **{
        f"{'roberta' if roberta else 'gpt2'} trim={trim} prefix={prefix}": (
            lambda t=trim, p=prefix, r=roberta: byte_level(trim_offsets=t, add_prefix_space=p, roberta=r)
        )
        for roberta in (True, False)
        for trim in (True, False)
        for prefix in (True, False)
    },
    "t5 always": lambda: metaspace("always", normalize=False),
    "xlm-r always": lambda: metaspace("always", normalize=True),
    "unigram never": lambda: metaspace("never", normalize=False),
    "llama first": lambda: metaspace("first", normalize=False),
}


@pytest.fixture(scope="session", params=["bert", *KINDS])
def tokenizer(request: pytest.FixtureRequest, minilm: Path) -> PreTrainedTokenizerBase:
    kind = request.param
    made = AutoTokenizer.from_pretrained(str(minilm)) if kind == "bert" else KINDS[kind]()
    made.model_max_length = 512
    return made


# ---------------------------------------------------------------------- words of a text


def test_words_are_the_signs_and_runs_of_a_text() -> None:
    def words(text: str) -> list[str]:
        return [text[start:end] for start, end in word_spans(text)]

    assert words("It's 3.14, e-mail!") == ["It", "'", "s", "3", ".", "14", ",", "e", "-", "mail", "!"]
    assert words("cafe\u0301 naïve") == ["cafe\u0301", "naïve"]
    assert words("上海2024年") == ["上", "海", "2024", "年"]
    assert words("नमस्ते दुनिया।") == ["नमस्ते", "दुनिया", "।"]
    assert words("كَتَبَ، می\u200cخواهم") == ["كَتَبَ", "،", "می\u200cخواهم"]
    assert words("שָׁלוֹם") == ["שָׁלוֹם"]
    assert words("กำลังดี") == ["ก", "ำ", "ลั", "ง", "ดี"]
    assert words("☺\ufe0f 👩\u200d👧!") == ["☺\ufe0f", "👩\u200d", "👧", "!"]
    assert words("안녕하세요 세계") == ["안녕하세요", "세계"]
    assert words("𠮷野家") == ["𠮷", "野", "家"]
    assert words(" \t\n") == words("") == []


@pytest.mark.parametrize("seed", range(20))
def test_words_cover_every_character_but_spaces_once(seed: int) -> None:
    rng = random.Random(seed)
    anything = "".join(chr(rng.choice([rng.randrange(0x250), rng.randrange(0xD800), rng.randrange(0x1F000, 0x20000)]))
                       for _ in range(300))  # fmt: skip
    for text in (anything, *random_texts(seed, 20)):
        spans = word_spans(text)
        assert spans.shape == (len(spans), 2)
        assert spans.dtype == np.int64
        covered = np.zeros(len(text), dtype=int)
        for start, end in spans:
            covered[start:end] += 1
        assert [bool(times) for times in covered] == [not character.isspace() for character in text]
        assert covered.max(initial=0) <= 1
        assert np.array_equal(spans, np.sort(spans, axis=0))
        for start, end in spans:
            # Only letters and digits stand together, and marks and joiners with what they follow.
            word = [c for c in text[start:end] if unicodedata.category(c)[0] != "M" and c not in "\u200c\u200d"]
            assert len(word) <= 1 or all(c.isalnum() or c == "_" for c in word)


# ---------------------------------------------------------------------- joined tokens


@pytest.mark.parametrize("seed", range(20))
def test_spans_of_a_joined_text_are_its_tokens(seed: int) -> None:
    rng = random.Random(seed)
    for tokens in random_tokens(seed, 30):
        tokens = [*tokens, *rng.sample(["", " ", "\u3000", "\0", "a b", "上"], k=rng.randrange(3))]
        text, spans = join_tokens(tokens)
        assert [text[start:end] for start, end in spans] == tokens
        assert spans.shape == (len(tokens), 2)
        gaps = [text[end:start] for end, start in zip(spans[:-1, 1], spans[1:, 0], strict=True)]
        assert set(gaps) <= {"", " "}
        for gap, left, right in zip(gaps, tokens[:-1], tokens[1:], strict=True):
            spaced = not (left and right) or min(left[-1], right[0]) < "\u0e00"
            assert gap == " " or not spaced
        assert join_tokens(tuple(tokens))[0] == join_tokens(np.array(tokens, dtype=object))[0] == text


def test_scripts_without_spaces_are_joined_without() -> None:
    assert join_tokens(["我", "爱", "NLP", "。", "好", "！"])[0] == "我爱 NLP 。好！"
    assert join_tokens(["東京", "タワー", "へ"])[0] == "東京タワーへ"
    assert join_tokens(["안녕", "세계"])[0] == "안녕 세계"
    assert join_tokens([]) == ("", pytest.approx(np.zeros((0, 2))))


@pytest.mark.parametrize("wrong", ["a b", b"ab", 3, {"a": 1}, ["a", 3], ["a", None], [["a"]], np.array([1, 2])])
def test_tokens_are_a_list_of_strings(wrong: Any) -> None:
    with pytest.raises(DataError, match="string"):
        join_tokens(wrong)


# ---------------------------------------------------------------------- words and tokens


def first_tokens_by_hand(spans: np.ndarray, offsets: list[tuple[int, int]], in_text: list[bool]) -> list[int]:
    found: list[int] = []
    for start, end in spans:
        shared = [
            position
            for position, ((first, last), own) in enumerate(zip(offsets, in_text, strict=True))
            if own and any(first <= character < last for character in range(start, end))
        ]
        found.append(shared[0] if shared else -1)
    return found


def offsets_of(tokenizer: PreTrainedTokenizerBase, row: Inputs) -> tuple[list[tuple[int, int]], list[bool]]:
    batch = tokenizer(row.text, row.text_pair, truncation=True, max_length=512, return_offsets_mapping=True)
    return batch["offset_mapping"], [number == 0 for number in batch.sequence_ids(0)]


def rows_of(seed: int, count: int) -> list[Inputs]:
    rng = random.Random(seed)
    rows = [Inputs.of(tokens=tokens) for tokens in random_tokens(seed, count)]
    for text in random_texts(seed, count):
        rows.append(Inputs.of(text, split_words=True))
        rows.append(Inputs.of(text, rng.choice(CORPUS), split_words=True))
    rng.shuffle(rows)
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_the_first_token_of_a_word_is_the_first_that_shares_a_character(
    tokenizer: PreTrainedTokenizerBase, seed: int
) -> None:
    rows = rows_of(seed, 25)
    encoded = encode(tokenizer, rows)
    for row, first in zip(rows, encoded.first_tokens, strict=True):
        assert row.word_spans is not None
        assert first is not None
        assert first.tolist() == first_tokens_by_hand(row.word_spans, *offsets_of(tokenizer, row))


def test_no_word_of_a_plain_sentence_is_missed(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = ["Play", "some", "jazz", "in", "the", "living", "room", ",", "please", "!"]
    encoded = encode(tokenizer, [Inputs.of(tokens=tokens), Inputs.of(" ".join(tokens), split_words=True)])
    first, from_text = encoded.first_tokens
    assert first is not None
    assert from_text is not None
    assert (first >= 0).all()
    assert (np.diff(first) > 0).all(), "each word has a token of its own"
    assert first.tolist() == from_text.tolist(), "tokens and the text they stand for are one and the same"
    # The token found holds the word's first letter, not just the space before it.
    for position, token in zip(first, tokens, strict=True):
        piece = tokenizer.convert_ids_to_tokens(encoded.input_ids[0][position])
        assert piece == "<unk>" or piece.strip("Ġ▁")[:1].lower() in ("", token[0].lower())


def test_rows_of_tokens_are_encoded_as_bert_does_it(bert: PreTrainedTokenizerBase) -> None:
    compared = 0
    for tokens in random_tokens(7, 200):
        tokens = [token for token in tokens if not set(token) & set("\0\x07\u200b\ufeff\u00ad\u2028\u0085\ufffc")]
        # Without the gaps between words of Chinese the ids stay the same, as BERT puts spaces around its signs.
        row = Inputs.of(tokens=tokens)
        encoded = encode(bert, [row])
        batch = bert(tokens, is_split_into_words=True, truncation=True)
        numbers = batch.word_ids(0)
        assert encoded.first_tokens[0] is not None
        if encoded.input_ids[0] != batch["input_ids"]:
            continue  # a mark or joiner at a word's begin is one word with the letter before it
        expected = [numbers.index(number) if number in numbers else -1 for number in range(len(tokens))]
        assert encoded.first_tokens[0].tolist() == expected
        compared += 1
    assert compared > 150


@pytest.mark.parametrize("seed", range(50))
def test_find_words_is_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def spans(count: int) -> np.ndarray:
        edges = np.sort(rng.integers(0, 60, 2 * count))
        return edges.reshape(-1, 2)

    words, tokens = spans(int(rng.integers(0, 12))), spans(int(rng.integers(0, 20)))
    if seed % 2:  # byte-level tokens may cover one and the same character
        tokens = np.repeat(tokens, rng.integers(1, 3, len(tokens)), axis=0)
    in_text = rng.random(len(tokens)) < 0.8
    expected = first_tokens_by_hand(words, [(int(a), int(b)) for a, b in tokens], in_text.tolist())
    assert find_words(words, tokens, in_text).tolist() == expected


def test_words_of_a_row() -> None:
    row = Inputs.of(tokens=["a", "b"])
    words = words_of(row, [1, -1])  # type: ignore[arg-type]
    assert words is not None
    assert (words.text, words.given, words.first_tokens.tolist()) == ("a b", True, [1, -1])
    assert words_of(Inputs.of("a b"), np.array([1, 2])) is None
    assert words_of(row, None) is None


# ---------------------------------------------------------------------- rows


def test_pairs_and_single_texts_may_be_mixed(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [
        Inputs.of("one two", "three four", split_words=True), Inputs.of("five"), Inputs.of(tokens=["six", "seven"]),
        Inputs.of("", "eight"), Inputs.of("nine", ""),
    ]  # fmt: skip
    encoded = encode(tokenizer, rows)
    for row, ids, types, truncated in zip(
        rows, encoded.input_ids, encoded.token_type_ids, encoded.truncated, strict=True
    ):
        alone = tokenizer([row.text], None if row.text_pair is None else [row.text_pair])
        assert [ids] == alone["input_ids"]
        assert [types] == (alone.get("token_type_ids", [None]) if row.text_pair is not None else [None])
        assert not truncated
    assert [first is None for first in encoded.first_tokens] == [False, True, False, True, True]


def test_pairs_have_segments_and_words_of_the_first_text_only(bert: PreTrainedTokenizerBase) -> None:
    row = Inputs.of("good day", "good day", split_words=True)
    encoded = encode(bert, [row])
    assert encoded.token_type_ids == [[0, 0, 0, 0, 1, 1, 1]]
    assert encoded.first_tokens[0] is not None
    assert encoded.first_tokens[0].tolist() == [1, 2]


@pytest.mark.parametrize("max_length", [8, 16, 33])
@pytest.mark.parametrize("pair", [False, True])
def test_rows_are_flagged_exactly_when_they_were_cut(
    tokenizer: PreTrainedTokenizerBase, pair: bool, max_length: int
) -> None:
    rows = [Inputs.of(text, other if pair else None, split_words=True)
            for text, other in zip(random_texts(1, 60, 90), random_texts(2, 60, 90), strict=True)]  # fmt: skip
    before = tokenizer.model_max_length
    whole = [len(tokenizer(row.text, row.text_pair)["input_ids"]) for row in rows]
    tokenizer.model_max_length = max_length
    try:
        encoded = encode(tokenizer, rows)
    finally:
        tokenizer.model_max_length = before
    assert encoded.truncated == [length > max_length for length in whole]
    assert [len(ids) for ids in encoded.input_ids] == [min(length, max_length) or 1 for length in whole]
    assert any(encoded.truncated)
    for row, first, cut in zip(rows, encoded.first_tokens, encoded.truncated, strict=True):
        assert first is not None
        assert row.word_spans is not None
        assert len(first) == len(row.word_spans)
        assert first.max(initial=-1) < max_length
        if cut and not pair:
            seen = np.flatnonzero(first >= 0)
            offsets, in_text = offsets_of(tokenizer, row)
            there = np.flatnonzero(np.array(first_tokens_by_hand(row.word_spans, offsets, in_text)) >= 0)
            assert np.array_equal(seen, there[: len(seen)]), "the words cut off are the last ones"


@pytest.mark.parametrize("text", ["", " ", "\0", "\n\t", "\u200b"])
def test_a_row_has_at_least_one_token(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    encoded = encode(tokenizer, [Inputs.of(text, split_words=True), Inputs.of(tokens=[]), Inputs.of(tokens=[text])])
    assert all(len(ids) >= 1 for ids in encoded.input_ids)
    assert all(0 <= token < len(tokenizer) for ids in encoded.input_ids for token in ids)
    assert encoded.truncated == [False] * 3


def test_lone_surrogates_are_one_character(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [Inputs.of("go \ud83d on", split_words=True), Inputs.of("go", "on \udc00")]
    same = [Inputs.of("go \ufffd on", split_words=True), Inputs.of("go", "on \ufffd")]
    encoded, expected = encode(tokenizer, rows), encode(tokenizer, same)
    assert encoded.input_ids == expected.input_ids
    assert np.array_equal(encoded.first_tokens[0], expected.first_tokens[0])


def test_no_rows_are_no_rows(bert: PreTrainedTokenizerBase) -> None:
    assert encode(bert, []) == Encoded([], [], [], [])


def test_long_texts_are_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    text = ("long text " * 10_000)[:100_000]
    row = Inputs.of(text, split_words=True)
    encoded = encode(tokenizer, [row, Inputs.of(tokens=["word"] * 20_000)])
    assert encoded.truncated == [True, True]
    assert [len(ids) for ids in encoded.input_ids] == [512, 512]
    assert encoded.first_tokens[0] is not None
    assert len(encoded.first_tokens[0]) == 20_000
    assert (encoded.first_tokens[0][:50] >= 0).all()
    assert (encoded.first_tokens[0][1000:] == -1).all()


@pytest.mark.parametrize("side", ["right", "left"])
def test_windows_hold_all_of_a_text_with_every_tokenizer(tokenizer: PreTrainedTokenizerBase, side: str) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.truncation_side = side
    for text in random_texts(5, 30, length=90):
        row = Inputs.of(text, split_words=True)
        whole, read = encode(tokenizer, [row]), encode(tokenizer, [row], Reading(12, 4))
        if len(whole.input_ids[0]) <= 12:
            assert read.windows == {}
            assert read.input_ids == whole.input_ids
            continue
        windows, special = read.windows[0], tokenizer.num_special_tokens_to_add()
        plain = encode(tokenizer, [row], Reading(12))
        assert plain.input_ids[0] == windows.input_ids[0]
        assert {len(ids) for ids in windows.input_ids} == {12}
        ascending = windows.input_ids if side == "right" else windows.input_ids[::-1]
        before = 1 if special == 2 else 0
        text_ids = [ids[before : 12 - special + before] for ids in ascending]
        starts = window_starts(len(whole.input_ids[0]) - special, 12 - special, 4).tolist()
        for start, ids in zip(starts, text_ids, strict=True):
            assert ids == whole.input_ids[0][before + start : before + start + len(ids)]
        joined = [token for ids in windows.input_ids for token in ids]
        found, wanted = windows.first_tokens, whole.first_tokens[0]
        assert found is not None and wanted is not None  # noqa: PT018
        assert ((found < 0) == (wanted < 0)).all()
        assert [joined[own] for own in found if own >= 0] == [whole.input_ids[0][own] for own in wanted if own >= 0]


def test_words_need_a_tokenizer_with_offsets() -> None:
    class Slow:
        is_fast = False
        model_max_length = 8

        def __call__(self, texts: list[str], pairs: list[str] | None, **options: Any) -> dict[str, Any]:
            return {"input_ids": [list(range(min(len(text), 8))) for text in texts]}

        bos_token_id = eos_token_id = None
        pad_token_id = 0

    slow: Any = Slow()
    encoded = encode(slow, [Inputs.of("a text that is long"), Inputs.of("")])
    assert (encoded.input_ids, encoded.truncated) == ([list(range(8)), [0]], [True, False])
    with pytest.raises(ModelError, match="Slow gives no character offsets, which tagging needs; use an encoder"):
        encode(slow, [Inputs.of("x", split_words=True)])


# ---------------------------------------------------------------------- what users hand in


def test_rows_are_read_as_users_write_them() -> None:
    assert read_inputs("a b").text == "a b"
    assert read_inputs({"text": "a", "text_pair": "b", "id": 7}) == Inputs("a", "b")
    assert read_inputs({"text": "a", "tokens": ["b"]}).text == "a"
    assert read_inputs({"text": None, "tokens": ["b", "c"]}).tokens_given
    assert read_inputs({"q": "a", "p": "b"}, text="q", text_pair="p") == Inputs("a", "b")
    assert Inputs.of(None) == Inputs("")
    spans = read_inputs("a b", split_words=True).word_spans
    assert spans is not None
    assert spans.tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (3, "3 is no row"),
        (["a"], "is no row"),
        (None, "None is no row"),
        ({}, "the row has neither 'text' nor 'tokens'"),
        ({"text": None}, "neither"),
        ({"text": 3}, "text is 3; give text as a string"),
        ({"text": "a", "text_pair": 3}, "text_pair is 3"),
        ({"tokens": "a b"}, "tokens is 'a b'; give tokens as a list of strings"),
        ({"tokens": ["a", 1]}, "token 1 is not a string"),
    ],
)
def test_wrong_rows_are_refused(row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_inputs(row)


# ---------------------------------------------------------------------- length


def tokenizer_of(limit: int | None) -> PreTrainedTokenizerBase:
    made = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    options = {} if limit is None else {"model_max_length": limit}
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", **options)


@pytest.mark.parametrize(
    ("limit", "positions", "asked", "length"),
    [
        (256, 512, None, 256),
        (None, 128, None, 128),
        (2048, 4096, None, 512),
        (None, None, None, 512),
        (256, 512, 300, 300),
        (2048, 4096, 4096, 4096),
        (None, None, 100_000, 100_000),
        (64, 512, 8, 8),
    ],
)
def test_the_length_is_the_least_limit_or_the_one_asked_for(
    limit: int | None, positions: int | None, asked: int | None, length: int
) -> None:
    made = tokenizer_of(limit)
    config = T5Config() if positions is None else BertConfig(max_position_embeddings=positions)
    assert set_max_length(made, config, asked) == length
    assert made.model_max_length == length


@pytest.mark.parametrize(("asked", "mend"), [(7, "use 8 to 128"), (0, "8 to 128"), (-1, "8 to"), (129, "use 8 to 128")])
def test_a_length_beyond_the_encoder_is_refused(asked: int, mend: str) -> None:
    made = tokenizer_of(64)
    with pytest.raises(SpecError, match=f"max_length is {asked}; .*{mend}"):
        set_max_length(made, BertConfig(max_position_embeddings=128), asked)
    assert made.model_max_length == 64
    with pytest.raises(SpecError, match="use 8 or more"):
        set_max_length(made, T5Config(), 7)


@pytest.mark.parametrize("lengths", [(400, 400), (400, 3), (3, 400), (60, 400), (400, 60), (40, 30)])
def test_long_pairs_are_cut_as_the_tokenizer_cuts_them(bert: PreTrainedTokenizerBase, lengths: tuple[int, int]) -> None:
    bert = copy.deepcopy(bert)
    bert.model_max_length = 64
    text, other = (" ".join(f"word{n} unbelievable" for n in range(length)) for length in lengths)
    encoded = encode(bert, [Inputs.of(text, other, split_words=True)])
    plain = bert(text, other, truncation=True, max_length=64)
    assert encoded.input_ids == [plain["input_ids"]]
    assert encoded.token_type_ids == [plain["token_type_ids"]]
    assert encoded.truncated == [True]


def test_pairs_of_very_long_texts_take_little_time(bert: PreTrainedTokenizerBase) -> None:
    bert = copy.deepcopy(bert)
    bert.model_max_length = 32
    text = "word " * 20_000  # nearly a million combinations of what is cut off
    encoded = encode(bert, [Inputs.of(text, text)] * 3)
    assert [len(ids) for ids in encoded.input_ids] == [32] * 3
