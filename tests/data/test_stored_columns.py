"""Columns read where they lie: the same rows as datasets gives, however the table is cut."""

from __future__ import annotations

import itertools
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value, concatenate_datasets

from hf_mtl.data.stored_columns import StoredColumns

FEATURES = Features(
    {
        "ids": List(Value("int32")),
        "kinds": List(Value("int8")),
        "flags": List(Value("float32")),
        "class": Value("int64"),
        "score": Value("float32"),
    }
)
WITHOUT_NULLS = Features({"ids": List(Value("int32")), "class": Value("int64")})


def random_rows(count: int, *, seed: int) -> list[dict[str, Any]]:
    """Rows of all kinds of columns; a value is missing in a third of them, and lists may be empty."""
    draw = np.random.default_rng(seed)

    def some(value: Any) -> Any:
        return None if draw.random() < 1 / 3 else value

    def numbers() -> list[int]:
        return draw.integers(100, size=draw.integers(6)).tolist()

    return [
        {
            "ids": numbers(),
            "kinds": some(numbers()),
            "flags": some([some(float(flag)) for flag in draw.integers(2, size=4)]),
            "class": some(int(draw.integers(5))),
            "score": some(float(np.float32(draw.random()))),
        }
        for _ in range(count)
    ]


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row with lists for arrays, and `None` for the NaN that stands for a null within a list."""
    return {
        name: [None if isinstance(own, float) and math.isnan(own) else own for own in value.tolist()]
        if isinstance(value, np.ndarray)
        else value
        for name, value in row.items()
    }


def in_memory(rows: list[dict[str, Any]], tmp_path: Path) -> Dataset:
    return Dataset.from_list(rows, features=FEATURES)


def on_disk(rows: list[dict[str, Any]], tmp_path: Path) -> Dataset:
    in_memory(rows, tmp_path).save_to_disk(tmp_path / "rows", num_shards=3)
    return Dataset.load_from_disk(tmp_path / "rows")


def in_pieces(rows: list[dict[str, Any]], tmp_path: Path) -> Dataset:
    """Slices of a table, some of them empty: their offsets do not begin at 0."""
    whole = in_memory(rows, tmp_path)
    edges = [0, 0, 1, 7, 7, len(rows) // 2, len(rows)]
    tables = [whole.data.slice(start, end - start) for start, end in itertools.pairwise(edges)]
    return concatenate_datasets([Dataset(table, fingerprint=str(place)) for place, table in enumerate(tables)])


@pytest.mark.parametrize("made", [in_memory, on_disk, in_pieces])
def test_rows_are_those_of_the_dataset(made: Any, tmp_path: Path) -> None:
    rows = random_rows(200, seed=0)
    dataset = made(rows, tmp_path)
    stored = StoredColumns(dataset)
    draw = np.random.default_rng(1)
    assert len(stored) == len(dataset) == 200
    for count in (0, 1, 200, 500):
        numbers = draw.integers(200, size=count)
        fetched = [plain(row) for row in stored.fetch(numbers)]
        assert fetched == dataset.__getitems__(numbers.tolist()) == [rows[number] for number in numbers.tolist()]


def test_lists_are_views_and_numbers_are_pythons(tmp_path: Path) -> None:
    rows = [{"ids": [1, 2, 3], "class": 4}]
    Dataset.from_list(rows, features=WITHOUT_NULLS).save_to_disk(tmp_path / "rows")
    [row] = StoredColumns(Dataset.load_from_disk(tmp_path / "rows")).fetch([0])
    assert row["ids"].base is not None
    assert not row["ids"].flags.writeable
    assert type(row["class"]) is int


def test_a_worker_maps_the_file_anew(tmp_path: Path) -> None:
    stored = StoredColumns(on_disk(random_rows(5_000, seed=0), tmp_path))
    before = [plain(row) for row in stored.fetch(range(20))]
    sent = pickle.dumps(stored)
    assert len(sent) < 5_000
    assert [plain(row) for row in pickle.loads(sent).fetch(range(20))] == before


def test_no_rows_can_be_fetched_from_an_empty_dataset() -> None:
    assert StoredColumns(Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)).fetch([]) == []
