"""Windows: every token is read, every word belongs to one window, and rows that fit are as they were."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from long_rows import CUT, LENGTH, STRIDE, WINDOWS, random_words, write_long_recipe
from tiny import load, write_encoder
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_mtl.cli.check import describe
from hf_mtl.configuration import TaskSpec
from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.data.encoding import Inputs, encode
from hf_mtl.data.leakage import count_repeated
from hf_mtl.data.preparation import RecipeData
from hf_mtl.data.streamed import StreamedSplit
from hf_mtl.data.windows import (
    Reading,
    choose_windows,
    cut_windows,
    merge_windows,
    reading_of,
    split_label,
    window_starts,
)
from hf_mtl.errors import HfMtlError, ModelError, SpecError
from hf_mtl.registry import HEADS

SIZES = [(length, size, stride) for size in (3, 4, 7, 10) for stride in range((size + 1) // 2)
         for length in (size + 1, size + 2, 2 * size, 3 * size + 1, 57)]  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("windows") / "encoder")


@pytest.fixture
def tokenizer(encoder: Path) -> PreTrainedTokenizerBase:
    """Cuts words that it does not know into letters: words may have several tokens."""
    return AutoTokenizer.from_pretrained(encoder)


def spec(kind: str = "sequence_classification", **options: Any) -> TaskSpec:
    return TaskSpec(name="task", type=kind, labels=("a", "b"), **options)


# ---------------------------------------------------------------------- cutting


@pytest.mark.parametrize(("length", "size", "stride"), SIZES)
def test_windows_cover_the_text_and_share_the_stride(length: int, size: int, stride: int) -> None:
    starts = window_starts(length, size, stride).tolist()
    assert starts[0] == 0
    assert starts[-1] + size == length
    shared = [one + size - other for one, other in pairwise(starts)]
    assert all(own == stride for own in shared[:-1])
    assert stride <= shared[-1] < size


@pytest.mark.parametrize(("length", "size", "stride"), SIZES)
def test_every_word_belongs_to_the_window_with_the_most_context(length: int, size: int, stride: int) -> None:
    starts = window_starts(length, size, stride)
    for token, found in enumerate(choose_windows(np.arange(length), starts, size).tolist()):
        nearer = [
            min(token - start, start + size - 1 - token) if start <= token < start + size else -1
            for start in starts.tolist()
        ]
        assert found == nearer.index(max(nearer))  # the first of the best


@pytest.mark.parametrize("from_end", [False, True])
@pytest.mark.parametrize(("length", "size", "stride"), SIZES)
def test_positions_point_at_the_words_own_tokens(length: int, size: int, stride: int, from_end: bool) -> None:
    rng = np.random.default_rng(length)
    first = np.sort(rng.choice(length, length // 2, replace=False))
    first[rng.random(len(first)) < 0.2] = -1
    text = [100 + token for token in range(length)]
    windows = cut_windows(text, first, around=([1], [2, 3]), size=size, stride=stride, from_end=from_end)
    assert {len(ids) for ids in windows.input_ids} == {size + 3}
    assert all(ids[0] == 1 and ids[-2:] == [2, 3] for ids in windows.input_ids)
    assert windows.input_ids[0][1:-2] == (text[-size:] if from_end else text[:size])
    assert windows.first_tokens is not None
    joined = [token for ids in windows.input_ids for token in ids]
    assert [joined[place] for place in windows.first_tokens if place >= 0] == [text[own] for own in first if own >= 0]
    assert ((windows.first_tokens < 0) == (first < 0)).all()


def test_labels_and_logits_are_split_and_merged_alike() -> None:
    pooled, tagging = HEADS.get("sequence_classification"), HEADS.get("token_classification")
    assert split_label(pooled, 1, 3) == [1, 1, 1]
    assert split_label(tagging, [0, 1, 2, 3, 4, 5], 3) == [[0, 1], [2, 3], [4, 5]]
    logits = [np.full((2, 3), number, dtype=np.float32) for number in range(4)]
    assert merge_windows(tagging, logits).shape == (8, 3)
    mean = merge_windows(pooled, [own[0] for own in logits])
    assert mean.dtype == np.float32
    assert mean.tolist() == [1.5, 1.5, 1.5]


# ---------------------------------------------------------------------- how much is read


def test_tasks_asked_together_are_read_as_far_as_one_of_them(tokenizer: PreTrainedTokenizerBase) -> None:
    assert reading_of([], tokenizer) == reading_of([spec()], tokenizer) == Reading(48)
    assert reading_of([spec(max_length=20)], tokenizer) == Reading(20)
    assert reading_of([spec(max_length=20), spec(max_length=30)], tokenizer) == Reading(30)
    assert reading_of([spec(max_length=20), spec()], tokenizer) == Reading(48)  # who names none reads as ever
    assert reading_of([spec(max_length=20, stride=4), spec(stride=0)], tokenizer) == Reading(48, 4)
    tokenizer.model_max_length = 10
    assert reading_of([spec(max_length=20, stride=0)], tokenizer) == Reading(20, 0)


def test_a_stride_without_room_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    assert reading_of([spec(stride=23)], tokenizer) == Reading(48, 23)
    with pytest.raises(SpecError, match=r"task 'task': stride is 24, and the windows have 48 tokens; use 0 to 23"):
        reading_of([spec(stride=24)], tokenizer)
    crowded: Any = SimpleNamespace(model_max_length=8, num_special_tokens_to_add=lambda: 5, is_fast=True)
    with pytest.raises(SpecError, match=r"stride is 3, and windows of 8 tokens have 5 special tokens; use less than 3"):
        reading_of([spec(stride=3)], crowded)
    slow: Any = SimpleNamespace(model_max_length=48, num_special_tokens_to_add=lambda: 2, is_fast=False)
    assert reading_of([spec(max_length=9)], slow) == Reading(9)
    with pytest.raises(ModelError, match=r"does not say what it cuts off.*leave stride out"):
        reading_of([spec(stride=3)], slow)


# ---------------------------------------------------------------------- encoding


def test_rows_that_fit_are_encoded_as_without_a_stride(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [Inputs.of(tokens=random_words(number, seed=number)) for number in range(5)]
    rows += [Inputs.of("the film"), Inputs.of("", "a story"), Inputs.of("the film " * 20, "a story " * 20)]
    plain, read = encode(tokenizer, rows, Reading(LENGTH)), encode(tokenizer, rows, Reading(LENGTH, STRIDE))
    assert read.windows == {}
    assert read.input_ids == plain.input_ids
    assert read.token_type_ids == plain.token_type_ids
    assert read.truncated == plain.truncated == [False] * 7 + [True]  # pairs are cut
    for one, other in zip(read.first_tokens, plain.first_tokens, strict=True):
        assert np.array_equal(one, other) if one is not None else other is None
    tokenizer.model_max_length = LENGTH
    assert encode(tokenizer, rows).input_ids == plain.input_ids


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("number", [9, 13, 14, 15, 30, 100])
def test_windows_are_those_of_the_whole_text(tokenizer: PreTrainedTokenizerBase, number: int, side: str) -> None:
    tokenizer.truncation_side = side
    row = Inputs.of(tokens=random_words(number))
    plain, read = encode(tokenizer, [row], Reading(LENGTH)), encode(tokenizer, [row], Reading(LENGTH, STRIDE))
    assert read.input_ids == plain.input_ids
    assert np.array_equal(read.first_tokens[0], plain.first_tokens[0])
    whole = encode(tokenizer, [row], Reading(10**4))
    text = whole.input_ids[0][1:-1]
    assert (0 in read.windows) == (len(text) > LENGTH - 2) == plain.truncated[0]
    if 0 not in read.windows:
        return
    windows = read.windows[0]
    assert windows.input_ids[0] == plain.input_ids[0]
    ascending = windows.input_ids if side == "right" else windows.input_ids[::-1]
    starts = window_starts(len(text), LENGTH - 2, STRIDE).tolist()
    assert [ids[1:-1] for ids in ascending] == [text[start : start + LENGTH - 2] for start in starts]
    joined = [token for ids in windows.input_ids for token in ids]
    assert windows.first_tokens is not None
    assert [joined[own] for own in windows.first_tokens] == [whole.input_ids[0][own] for own in whole.first_tokens[0]]
    layout = read.layout([row])
    assert layout.windows.tolist() == [len(starts)]
    assert layout.words_for(spec(stride=STRIDE), 0).first_tokens.tolist() == windows.first_tokens.tolist()
    assert layout.words_for(spec(), 0).first_tokens.tolist() == plain.first_tokens[0].tolist()


# ---------------------------------------------------------------------- recipes


@pytest.fixture
def data(tmp_path: Path, encoder: Path) -> RecipeData:
    return load(tmp_path, write_long_recipe(tmp_path, encoder, tone=WINDOWS, tags=WINDOWS, first=CUT))


def split_of(data: RecipeData) -> EncodedSplit:
    split = data.train["long"]
    assert isinstance(split, EncodedSplit)
    return split


def test_specs_and_recipes_keep_both_keys(data: RecipeData) -> None:
    assert [(own.max_length, own.stride) for own in data.tasks] == [(LENGTH, STRIDE), (LENGTH, STRIDE), (LENGTH, None)]
    written = data.recipe.to_dict()["tasks"]
    assert [(own.get("max_length"), own.get("stride")) for own in written] == [(16, 5), (16, 5), (16, None)]


def test_a_split_counts_rows_and_trains_on_windows(data: RecipeData, tmp_path: Path) -> None:
    split = split_of(data)
    raw = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len(split) == len(split.raw.dataset) == len(split.words()) == len(raw) == 30
    assert len(split.features) == len(split.rows) == len(split.lengths) > 60
    assert sorted(set(split.rows.tolist())) == list(range(30))
    assert split.labelled("tone").tolist() == [n for n, row in enumerate(raw) if row["tone"] is not None]
    encoded = [n for n, row in enumerate(split.rows.tolist()) if raw[row]["tone"] is not None]
    assert split.labelled_encoded("tone").tolist() == encoded
    layout = split.layout()
    long = (layout.windows > 1).sum()
    assert split.truncated("tone") == split.truncated("tags") == 0
    assert split.truncated("first") == long > 10
    problems = describe(data)["problems"]
    assert f"task first, train: {long} of 30 labelled rows are cut to 16 tokens" in problems
    assert not any("task tags" in problem or "task tone" in problem for problem in problems)
    assert count_repeated(split) == 0
    assert split.lengths.max() == LENGTH


def test_every_window_has_the_rows_class(data: RecipeData) -> None:
    split = split_of(data)
    gold = split.raw.dataset["tone"][:]
    for row, label in zip(split.rows.tolist(), split.features["labels/tone"][:], strict=True):
        assert label == (None if gold[row] is None else "ab".index(gold[row]))


def test_every_word_is_labelled_in_one_window(data: RecipeData) -> None:
    split = split_of(data)
    tags, words = split.raw.dataset["tags"][:], split.layout()
    for row in range(len(split)):
        places = np.flatnonzero(split.rows == row).tolist()
        own = words.words_for(data.tasks[1], row)
        assert own is not None
        assert (own.first_tokens >= 0).all()
        lengths = [0, *np.cumsum([split.features[place]["length"] for place in places]).tolist()]
        found = np.full(lengths[-1], -100)
        for number, place in enumerate(places):
            label = split.features[place]["labels/tags"]
            if label is not None:
                found[lengths[number] : lengths[number + 1]] = label
        wanted = [-100 if tag is None else "XY".index(tag) for tag in tags[row]]
        assert found[own.first_tokens].tolist() == wanted
        assert (found != -100).sum() == sum(tag is not None for tag in tags[row])


def test_tasks_without_a_stride_are_labelled_in_the_first_window_as_if_no_task_had_one(
    data: RecipeData, tmp_path: Path, encoder: Path
) -> None:
    plain = split_of(load(tmp_path, write_long_recipe(tmp_path, encoder, tone=CUT, tags=CUT, first=CUT)))
    split = split_of(data)
    starts = np.searchsorted(split.rows, np.arange(len(split))).tolist()
    firsts = [split.features[start] for start in starts]
    for found, wanted in zip(firsts, plain.features, strict=True):
        for column in ("input_ids", "first_tokens", "length", "truncated", "labels/first", "labels/tone"):
            assert found[column] == wanted[column]
    others = set(range(len(split.features))) - set(starts)
    assert {json.dumps(split.features[other]["labels/first"]) for other in others} == {"null"}


def test_no_key_no_change(tmp_path: Path, encoder: Path) -> None:
    """The columns and the cache's names are those that were, unless a task uses one of the keys."""
    plain = split_of(load(tmp_path, write_long_recipe(tmp_path, encoder)))
    assert plain.features.column_names == [
        "input_ids", "token_type_ids", "first_tokens", "length", "truncated", "labels/tone", "labels/tags",
        "labels/first",
    ]  # fmt: skip
    assert plain.rows.tolist() == list(range(30))
    assert plain.lengths.max() == 48
    assert np.array_equal(plain.labelled("tags"), plain.labelled_encoded("tags"))


def test_streams_are_cut_to_the_length_of_their_tasks(tmp_path: Path, encoder: Path) -> None:
    only = {**CUT, "labels": ["X", "Y"]}
    recipe = write_long_recipe(tmp_path, encoder, tone={**only, "labels": ["a", "b"]}, tags=only, first=only)
    wanted = split_of(load(tmp_path, recipe))
    recipe["datasets"]["long"]["streaming"] = True
    stream = load(tmp_path, recipe).train["long"]
    assert isinstance(stream, StreamedSplit)
    rows = list(stream.stream.read(np.arange(stream.stream.num_parts)))
    assert [row["input_ids"] for row in stream.encode(rows)] == wanted.features["input_ids"][:]
    assert stream.lengths(rows).tolist() == wanted.lengths.tolist()
    assert stream.max_length == LENGTH


REFUSED = {
    "pairs": ({"text_pair": "tone"}, "the rows of dataset 'long' are pairs of texts, which are not read in windows;"),
    "streaming": ({"streaming": True}, "the rows of dataset 'long' are streamed, which are not read in windows;"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_are_not_read_in_windows_are_refused_before_anything_is_read(
    tmp_path: Path, encoder: Path, case: str
) -> None:
    changes, message = REFUSED[case]
    recipe = write_long_recipe(tmp_path, encoder, tone=WINDOWS)
    recipe["datasets"]["long"] = {"train": "absent.jsonl", "text": "tokens", **changes}
    with pytest.raises(HfMtlError) as caught:
        load(tmp_path, recipe)
    assert str(caught.value).startswith(f"task 'tone': stride is 5, but {message} leave stride out")
    # And so where the stride is the trained model's alone.
    recipe = write_long_recipe(tmp_path, encoder)
    recipe["datasets"]["long"] |= {"text": "tone", "tokens": None, **changes}
    recipe["tasks"] = recipe["tasks"][:1]
    with pytest.raises(HfMtlError, match=f"task 'tone': .*{message}"):
        load(tmp_path, recipe, tasks=[replace(spec(**WINDOWS), name="tone")])


def test_more_than_the_encoder_can_read_is_refused(tmp_path: Path, encoder: Path) -> None:
    recipe = write_long_recipe(tmp_path, encoder, tags={"max_length": 49})
    with pytest.raises(SpecError, match=r"task 'tags': max_length is 49; use 8 to 48"):
        load(tmp_path, recipe)
    with pytest.raises(SpecError, match=r"dataset 'long'.*task 'tags': stride is 24, and the windows have 48 tokens"):
        load(tmp_path, write_long_recipe(tmp_path, encoder, tags={"stride": 24}))
