"""Texts in several splits are found with their places, whatever their case and spacing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import write_encoder

from hf_mtl.data.dataset_source import SPLITS
from hf_mtl.data.leakage import Leak, count_repeated, find_leaks, find_near_leaks, text_key
from hf_mtl.data.preparation import RecipeData, load_recipe
from hf_mtl.data.recipe import parse_recipe

ROWS = {
    "a-train": ["same text", "only here", "Same  TEXT", "in b"],
    "a-validation": ["validation", "new"],
    "a-test": ["same text", "validation"],
    "b-train": ["fine"],
    "b-validation": ["fine too"],
    "b-test": ["in B "],
}


NEAR_ROWS = {
    "a-train": [
        "the quick brown fox jumps over the lazy dog near the bank of the river",
        "a text that stands nowhere else, neither word for word nor nearly so",
        "Every word of this one stands in the test rows  of b",
    ],
    "a-validation": ["the quick brown fox jumps over the lazy dog near the bank of a river"],
    "a-test": ["nothing of the kind"],
    "b-train": ["something else again, of which nobody knows"],
    "b-validation": ["the quick brown fox jumped over the lazy dog near the bank of the river"],
    "b-test": ["every word of this one stands in the test rows of b"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RecipeData:
    return load_rows(tmp_path_factory.mktemp("leaks"), ROWS)


def load_rows(folder: Path, rows_by_file: dict[str, list[str]], **keys: Any) -> RecipeData:
    for name, texts in rows_by_file.items():
        rows = [{"text": text, "label": float(number)} for number, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe: dict[str, Any] = {
        **keys,
        "encoder": str(write_encoder(folder / "encoder")),
        "datasets": {
            name: {**{split: f"{name}-{split}.jsonl" for split in SPLITS}, "text": "text"} for name in ("a", "b")
        },
        "tasks": [{"name": f"score_{name}", "type": "regression", "dataset": name, "label": "label"} for name in "ab"],
    }
    return load_recipe(parse_recipe(recipe, base=folder))


def leaks(data: RecipeData) -> list[Leak]:
    return find_leaks({split: data.split(split) for split in SPLITS})


def test_every_pair_of_splits_is_compared_within_and_across_datasets(data: RecipeData) -> None:
    found = {(leak.dataset, leak.split, leak.held_out, leak.held_out_split): leak.rows for leak in leaks(data)}
    assert found == {
        ("a", "train", "a", "test"): 2,
        ("a", "train", "b", "test"): 1,
        ("a", "validation", "a", "test"): 1,
    }


def test_a_leak_names_an_example_and_both_places(data: RecipeData) -> None:
    leak = next(leak for leak in leaks(data) if leak.held_out == "b")
    assert leak.example == "in b"
    assert leak.place.endswith("a-train.jsonl, line 4")
    assert leak.held_out_place.endswith("b-test.jsonl, line 1")


def test_near_leaks_are_those_that_differ_and_are_nearly_the_same(tmp_path: Path) -> None:
    data = load_rows(tmp_path, NEAR_ROWS)
    splits = {split: data.split(split) for split in SPLITS}
    found = {(leak.dataset, leak.split, leak.held_out, leak.held_out_split): leak for leak in find_near_leaks(splits)}
    assert {place: leak.rows for place, leak in found.items()} == {
        ("a", "train", "a", "validation"): 1,
        ("a", "train", "b", "validation"): 1,
    }
    leak = found["a", "train", "b", "validation"]
    assert leak.near
    assert leak.example == NEAR_ROWS["a-train"][0]
    assert leak.place.endswith("a-train.jsonl, line 1")
    assert leak.held_out_place.endswith("b-validation.jsonl, line 1")
    assert [(leak.held_out, leak.near) for leak in find_leaks(splits)] == [("b", False)]


def test_what_is_found_nearly_or_exactly_is_what_leakage_drops(tmp_path: Path) -> None:
    found = load_rows(tmp_path, NEAR_ROWS)
    splits = {split: found.split(split) for split in SPLITS}
    leaking = {leak.example for leak in find_leaks(splits) + find_near_leaks(splits) if leak.split == "train"}
    dropped = load_rows(tmp_path, NEAR_ROWS, leakage="drop_near")
    kept = [row.text for own in dropped.train.values() for row in own.inputs()]
    everything = [row.text for own in found.train.values() for row in own.inputs()]
    assert leaking == {text for text in everything if text not in kept}


def test_nothing_is_found_in_splits_that_are_not_there(data: RecipeData) -> None:
    assert find_leaks({"train": data.train}) == find_leaks({}) == []
    assert find_near_leaks({"train": data.train}) == find_near_leaks({}) == []


def test_repeated_rows_are_counted(data: RecipeData) -> None:
    assert count_repeated(data.train["a"]) == 1
    assert count_repeated(data.test["a"]) == 0


@pytest.mark.parametrize(
    ("first", "second"), [(("a", "b"), ("a b", None)), (("a", "b"), ("b", "a")), (("a", None), ("b", None))]
)
def test_pairs_are_told_apart(first: tuple[str, str | None], second: tuple[str, str | None]) -> None:
    assert text_key(*first) != text_key(*second)


def test_a_lone_surrogate_has_a_key() -> None:
    assert text_key("\ud800") != text_key("\ud801")
