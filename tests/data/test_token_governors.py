"""Dependency graphs in data: from the heads of words to the tokens of batches, whatever is cut, padded or missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import load, write_encoder
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_mtl.cli.check import describe
from hf_mtl.data.encoding import Inputs, encode, read_inputs
from hf_mtl.data.preparation import RecipeData
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.data.token_governors import keep_tokens, token_governors
from hf_mtl.data.windows import Reading
from hf_mtl.errors import DataError, HfMtlError, RecipeError
from hf_mtl.training.sources import JointRows

TREE = ["fly", "zebra", "to", "new", "oslo"]  # "zebra" has five tokens
HEADS = [0, 5, 5, 5, 1]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("governors") / "encoder")


@pytest.fixture(scope="module")
def tokenizer(encoder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(encoder)


def governors(tokenizer: Any, row: Inputs, *, max_length: int = 48, stride: int | None = None) -> list[list[int]]:
    encoded = encode(tokenizer, [row], Reading(max_length, stride, governors=True))
    return [list(feature["governors"]) for feature in encoded.features()]


def random_tree(rng: np.random.Generator, words: int) -> list[int]:
    """Return heads of a tree: each word but a root is governed by one that came before it in a random order."""
    order = rng.permutation(words)
    heads = np.zeros(words, dtype=int)
    for place in range(1, words):
        heads[order[place]] = order[rng.integers(place)] + 1
    return heads.tolist()


# ---------------------------------------------------------------------- from words to tokens


def test_a_word_is_its_first_token_and_its_governor_that_of_the_graph(tokenizer: PreTrainedTokenizerBase) -> None:
    found = governors(tokenizer, Inputs.of(tokens=TREE, heads=HEADS))
    assert found == [[0, 1, 9, 2, 2, 2, 2, 9, 9, 1, 10]]


@pytest.mark.parametrize("seed", range(5))
def test_tokens_of_random_trees_are_those_found_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = int(rng.integers(1, 9))
    heads, sizes = random_tree(rng, words), rng.integers(0, 4, size=words)  # words without a token, too
    first = np.where(sizes > 0, 1 + np.cumsum(sizes) - sizes, -1)
    inside = np.array([False, *[True] * int(sizes.sum()), False])
    expected = list(range(len(inside)))
    for word, (start, size) in enumerate(zip(first, sizes, strict=True)):
        for token in range(start + 1, start + size) if size else ():
            expected[token] = int(start)
        if size and heads[word] and first[heads[word] - 1] >= 0:
            expected[start] = int(first[heads[word] - 1])
    assert token_governors(inside, first, np.array(heads)).tolist() == expected


def test_a_text_without_a_graph_is_a_chain_of_words(tokenizer: PreTrainedTokenizerBase) -> None:
    chain = Inputs.of(tokens=TREE, heads=range_of(len(TREE)))
    for row in (Inputs.of(tokens=TREE), Inputs.of(" ".join(TREE), split_words=True)):
        assert governors(tokenizer, row) == governors(tokenizer, chain)
    open_heads: Any = [None] * len(TREE)
    assert Inputs.of(tokens=TREE, heads=open_heads).heads is None


def range_of(words: int) -> list[int]:
    return list(range(words))  # each word is governed by the one before it, the first by none


def test_the_second_text_of_a_pair_is_a_chain_of_its_own(tokenizer: PreTrainedTokenizerBase) -> None:
    found = governors(tokenizer, Inputs.of("play zebra", "to rome", split_words=True))
    assert found == [[0, 1, 1, 2, 2, 2, 2, 7, 8, 8, 10]]


def test_words_that_share_a_token_have_one_governor() -> None:
    first, inside = np.array([0, 1, 1]), np.ones(2, dtype=bool)
    assert token_governors(inside, first, np.array([2, 0, 1])).tolist() == [1, 0]  # each other's: one edge
    assert token_governors(inside, first, np.array([0, 3, 1])).tolist() == [0, 0]
    assert token_governors(inside, first).tolist() == [0, 0]


@pytest.mark.parametrize("text", ["", "   ", "a"])
def test_texts_of_next_to_nothing(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = encode(tokenizer, [Inputs.of(text)]).input_ids[0]
    assert governors(tokenizer, Inputs.of(text, split_words=True)) == [list(range(len(ids)))]


def test_governors_that_are_cut_off_leave_a_word_to_itself(tokenizer: PreTrainedTokenizerBase) -> None:
    found = governors(tokenizer, Inputs.of(tokens=TREE, heads=HEADS), max_length=8)
    assert found == [[0, 1, 2, 2, 2, 2, 2, 7]]
    assert governors(tokenizer, Inputs.of(tokens=TREE), max_length=8) == [[0, 1, 1, 2, 2, 2, 2, 7]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("given", [True, False])
def test_windows_have_the_edges_of_the_text_that_lie_inside(given: bool, side: str, encoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder, truncation_side=side)
    rng = np.random.default_rng(3)
    words = [("film", "zebra", "new")[place] for place in rng.integers(3, size=30)]
    row = Inputs.of(tokens=words, heads=random_tree(rng, 30) if given else None)
    whole = governors(tokenizer, row, max_length=200)[0]
    windows = encode(tokenizer, [row], Reading(20, 4, governors=True))
    covered: set[tuple[int, int]] = set()
    ids = encode(tokenizer, [row], Reading(200)).input_ids[0]
    starts = {
        tuple(ids[start : start + 18]): start for start in range(1, len(ids) - 18)
    }  # a window is known by its tokens
    for feature in windows.features():
        start = starts[tuple(feature["input_ids"][1:-1])]
        found = list(feature["governors"])
        assert (found[0], found[-1]) == (0, 19)
        for place, own in enumerate(found[1:-1]):
            token, wanted = start + place, whole[start + place]
            inside = start <= wanted < start + 18
            assert own - 1 + start == (wanted if inside else token)
            covered.add((token, own - 1 + start))
    assert {token for token, _ in covered} == set(range(1, len(ids) - 1))


# ---------------------------------------------------------------------- tokens taken out


@pytest.mark.parametrize("seed", range(3))
def test_what_is_taken_out_hands_on_its_dependents(seed: int) -> None:
    rng = np.random.default_rng(seed)
    heads = np.array(random_tree(rng, 12))
    above = np.where(heads > 0, heads - 1, np.arange(12))
    kept = rng.random((20, 12)) < 0.5
    for found, own in zip(keep_tokens(above, kept), kept, strict=True):
        left = np.flatnonzero(own).tolist()
        for place, token in enumerate(left):
            up = int(above[token])
            while up not in left and above[up] != up:
                up = int(above[up])
            assert found[place] == (left.index(up) if up in left else place)


def test_a_chain_stays_a_chain() -> None:
    kept = np.array([[True, False, False, True, True]])
    assert [left.tolist() for left in keep_tokens(np.array([0, 0, 1, 2, 3]), kept)] == [[0, 0, 1]]


# ---------------------------------------------------------------------- what rows may hold


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ("0 1", "heads is '0 1', not a list; give whole numbers from 0, the root, to 2, one for each of the words"),
        (3, "heads is 3, not a list"),
        ([0], "there are 1 heads for 2 words"),
        ([0, 1, 1], "there are 3 heads for 2 words"),
        ([0, 3], "the head of word 2, 'jazz', is 3; give whole numbers from 0, the root, to 2"),
        ([-1, 0], "the head of word 1, 'play', is -1"),
        ([0, 1.0], "the head of word 2, 'jazz', is 1.0"),
        ([0, "1"], "the head of word 2, 'jazz', is '1'"),
        ([0, True], "the head of word 2, 'jazz', is True"),
        ([1, 0], "the head of word 1, 'play', is itself; count from 1, and write 0 for roots"),
    ],
)
def test_bad_graphs_are_refused(heads: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        Inputs.of(tokens=["play", "jazz"], heads=heads)
    assert message in str(caught.value)


def test_what_is_read_of_a_row() -> None:
    row: Any = {"text": "play jazz now", "tokens": ["play", "jazz"], "heads": [0, 1]}
    assert read_inputs(row).text == "play jazz now"
    found = read_inputs(row, heads="heads")
    assert (found.text, found.heads is not None and found.heads.tolist()) == ("play jazz", [0, 1])
    assert read_inputs({**row, "heads": None}, heads="heads").text == "play jazz now"
    assert read_inputs({**row, "heads": np.array([2, 0])}, heads="heads").heads is not None
    with pytest.raises(DataError, match="heads are given without tokens"):
        read_inputs({"text": "play", "heads": [0]}, heads="heads")


# ---------------------------------------------------------------------- datasets


def write_rows(folder: Path, encoder: Path, *, graphs: bool = True, streaming: bool = False) -> dict[str, Any]:
    """Write rows of which every third has no graph, and the recipe of a tagging task and a classification task."""
    rng = np.random.default_rng(0)
    for split, count in {"train": 12, "validation": 6}.items():
        lines: list[str] = []
        for place in range(count):
            words = [("film", "zebra", "new")[number] for number in rng.integers(3, size=int(rng.integers(2, 7)))]
            row: dict[str, Any] = {"tokens": words, "tags": ["X" if word == "new" else "Y" for word in words]}
            heads = random_tree(rng, len(words)) if place % 3 else None
            lines.append(json.dumps({**row, "topic": "ab"[place % 2], "head": heads}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    graph = {"token_graph": True} if graphs else {}
    dataset: dict[str, Any] = {"train": "train.jsonl", "validation": "validation.jsonl", "tokens": "tokens"}
    dataset |= {"heads": "head", **({"streaming": True} if streaming else {})}
    tags = {"name": "tags", "type": "token_classification", "dataset": "trees", "label": "tags", "labels": ["X", "Y"]}
    topic = {"name": "topic", "type": "sequence_classification", "dataset": "trees", "label": "topic"}
    tasks: list[Any] = [{**tags, **graph}, {**topic, "labels": ["a", "b"]}]
    return {"encoder": str(encoder), "datasets": {"trees": dataset}, "tasks": tasks}


def encoded_rows(data: RecipeData) -> list[dict[str, Any]]:
    return [dict(row) for row in data.train["trees"].features]  # type: ignore[union-attr]


def test_rows_have_governors_only_where_a_task_reads_them(tmp_path: Path, encoder: Path) -> None:
    with_graph = encoded_rows(load(tmp_path, write_rows(tmp_path, encoder)))
    without = encoded_rows(load(tmp_path, write_rows(tmp_path, encoder, graphs=False)))
    assert all(len(row.pop("governors")) == len(row["input_ids"]) for row in with_graph)
    assert with_graph == without
    assert "governors" in JointRows(load(tmp_path, write_rows(tmp_path, encoder)).train)[0]  # type: ignore[arg-type]


def test_streamed_rows_have_the_governors_of_those_in_memory(tmp_path: Path, encoder: Path) -> None:
    kept = encoded_rows(load(tmp_path, write_rows(tmp_path, encoder)))
    stream: Any = load(tmp_path, write_rows(tmp_path, encoder, streaming=True)).train["trees"]
    rows = stream.encode(list(stream.stream.read(np.arange(stream.stream.num_parts))))
    assert [list(row["governors"]) for row in rows] == [row["governors"] for row in kept]


@pytest.mark.parametrize("streaming", [False, True])
def test_check_counts_rows_with_a_graph(streaming: bool, tmp_path: Path, encoder: Path) -> None:
    report = describe(load(tmp_path, write_rows(tmp_path, encoder, streaming=streaming)))
    assert {entry["split"]: entry["graphs"] for entry in report["datasets"]} == {"train": 8, "validation": 4}
    plain = describe(load(tmp_path, write_rows(tmp_path, encoder, graphs=False)))
    assert not any("graphs" in entry for entry in plain["datasets"])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_bad_graph_is_named_by_its_line(streaming: bool, tmp_path: Path, encoder: Path) -> None:
    recipe = write_rows(tmp_path, encoder, streaming=streaming)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps({"tokens": ["a", "film"], "tags": ["X", "Y"], "topic": "a", "head": [0, 9]}) + "\n")
    with pytest.raises(HfMtlError, match=r"train.jsonl, line 13.*the head of word 2, 'film', is 9; give whole .* to 2"):
        load(tmp_path, recipe)


def test_conllu_files_give_their_heads(tmp_path: Path, encoder: Path) -> None:
    lines = ["1\tfly\t_\tVERB\t_\t_\t0\troot\t_\t_", "2\toslo\t_\tPROPN\t_\t_\t1\tobj\t_\t_", ""]
    lines += ["1\tzebra\t_\tNOUN\t_\t_\t_\t_\t_\t_", ""]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.conllu").write_text("\n".join(lines) + "\n")
    dataset = {"train": "train.conllu", "validation": "validation.conllu", "tokens": "tokens", "heads": "heads"}
    task = {"name": "upos", "type": "token_classification", "dataset": "ud", "label": "upos", "token_graph": True}
    data = load(tmp_path, {"encoder": str(encoder), "datasets": {"ud": dataset}, "tasks": [task]})
    assert data.train["ud"].features["governors"][:] == [[0, 1, 1, 3], [0, 1, 1, 1, 1, 1, 6]]  # type: ignore[union-attr]
    assert describe(data)["datasets"][0]["graphs"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None, "text": "topic"}, "heads is given without tokens"),
        (
            {"augmentation": [{"operation": "word_swap"}]},
            "heads is given with augmentation, which changes the words that they count",
        ),
        ({"heads": 3}, "heads is 3; give text"),
    ],
)
def test_datasets_that_cannot_have_heads(change: dict[str, Any], message: str, tmp_path: Path, encoder: Path) -> None:
    recipe = write_rows(tmp_path, encoder)
    recipe["datasets"]["trees"] |= change
    with pytest.raises(RecipeError, match=message):
        parse_recipe(recipe, base=tmp_path)


def test_a_column_that_is_not_there_is_named(tmp_path: Path, encoder: Path) -> None:
    recipe = write_rows(tmp_path, encoder)
    recipe["datasets"]["trees"]["heads"] = "haeds"
    with pytest.raises(DataError, match="haeds"):
        load(tmp_path, recipe)


def test_a_recipe_says_it_all_again(tmp_path: Path, encoder: Path) -> None:
    recipe = write_rows(tmp_path, encoder)
    written = parse_recipe(recipe, base=tmp_path).to_dict()
    assert written["datasets"]["trees"]["heads"] == "head"
    assert written["tasks"][0]["token_graph"] is True
