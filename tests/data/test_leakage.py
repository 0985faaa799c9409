"""Texts in several splits are found with their places, whatever their case and spacing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny import write_encoder

from hf_mtl.data.dataset_source import SPLITS
from hf_mtl.data.leakage import Leak, count_repeated, find_leaks, text_key
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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RecipeData:
    folder = tmp_path_factory.mktemp("leaks")
    for name, texts in ROWS.items():
        rows = [{"text": text, "label": float(number)} for number, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe: dict[str, Any] = {
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


def test_nothing_is_found_in_splits_that_are_not_there(data: RecipeData) -> None:
    assert find_leaks({"train": data.train}) == find_leaks({}) == []


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
