"""Folds: every training row is held out once, by models that have not seen it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from small import TASKS, small_recipe

from hf_mtl.data.loading import RawSplit, Source, split_folds
from hf_mtl.data.preparation import RecipeData, load_recipe
from hf_mtl.data.recipe import Recipe, parse_recipe
from hf_mtl.errors import DataError, OutputError, SpecError
from hf_mtl.training.cross_validation import cross_validate, cross_validation_table, fold_data


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return small_recipe(tmp_path_factory.mktemp("small"), seed=5, num_train_epochs=3)


@pytest.fixture(scope="module")
def folder(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished cross-validation of two folds; not to be changed."""
    place = tmp_path_factory.mktemp("folds") / "runs"
    assert cross_validate(recipe, place, folds=2) is not None
    return place


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows_of(values: list[Any]) -> RawSplit:
    return RawSplit(datasets.Dataset.from_dict({"label": values}), (Source("rows"),))


def numbers(data: RecipeData, split: str, dataset: str) -> list[int]:
    """Return the places of a split's rows in the dataset's training file; those of its validation file are negative."""
    raw = data.split(split)[dataset].raw
    places = range(len(raw.dataset)) if raw.rows is None else raw.rows.tolist()
    return [place if "train" in raw.sources[0].name else -1 - place for place in places]


# ---------------------------------------------------------------------- folds


@pytest.mark.parametrize("folds", [2, 3, 7])
@pytest.mark.parametrize("stratify", [None, "label"])
def test_every_row_is_in_one_fold_and_folds_are_even(folds: int, stratify: str | None) -> None:
    values = ["a"] * 20 + ["b"] * 9 + [None] * 4 + ["c"]
    found = split_folds(rows_of(values), folds, seed=1, stratify=stratify)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(values)))
    assert all(np.array_equal(fold, np.sort(fold)) for fold in found)
    sizes = [len(fold) for fold in found]
    assert max(sizes) - min(sizes) <= 1
    for value in ("a", "b", None, "c") if stratify else ():
        counts = [sum(values[row] == value for row in fold) for fold in found]
        assert max(counts) - min(counts) <= 1


def test_folds_follow_the_seed() -> None:
    rows = rows_of(["a", "b"] * 20)
    first, again, other = (
        [fold.tolist() for fold in split_folds(rows, 4, seed=seed, stratify="label")] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_folds_that_cannot_be_are_refused() -> None:
    with pytest.raises(SpecError, match="folds is 1; give at least 2"):
        split_folds(rows_of(["a"] * 3), 1)
    with pytest.raises(DataError, match="rows: 3 rows for 4 folds; give more rows or fewer folds"):
        split_folds(rows_of(["a"] * 3), 4)


# ---------------------------------------------------------------------- data


@pytest.mark.parametrize("own_validation", [True, False])
def test_each_training_row_is_held_out_once_and_never_trained_on_then(recipe: Recipe, own_validation: bool) -> None:
    if not own_validation:
        sources = {name: replace(source, validation=None) for name, source in recipe.datasets.items()}
        recipe = replace(recipe, datasets=sources)
    held: dict[str, list[int]] = {"films": [], "orders": []}
    for data in fold_data(recipe, 3, seed=5):
        assert [spec.name for spec in data.tasks] == list(TASKS)
        for name in held:
            train, validation, test = (numbers(data, split, name) for split in ("train", "validation", "test"))
            held[name] += test
            if own_validation:
                assert validation == [-1 - place for place in range(12)]
                assert sorted(train + test) == list(range(24))
            else:
                assert sorted(train + validation + test) == list(range(24))
                assert len(validation) == 2
            assert len(data.test[name]) == len(test)
    assert all(sorted(rows) == list(range(24)) for rows in held.values())


def test_folds_are_stratified_by_the_first_class(recipe: Recipe) -> None:
    parts = list(fold_data(recipe, 3, seed=5))
    for name, label in (("films", "label"), ("orders", "intent")):
        counts = [Counter(data.test[name].raw.dataset[label][:]) for data in parts]
        for value in set().union(*counts):
            shares = [count[value] for count in counts]
            assert max(shares) - min(shares) <= 1


def test_folds_have_the_labels_and_numbers_of_the_whole(recipe: Recipe) -> None:
    whole = load_recipe(recipe, seed=5)
    for data in fold_data(recipe, 2, seed=5):
        assert data.tasks == whole.tasks
        assert data.tokenizer.model_max_length == whole.tokenizer.model_max_length


def test_class_weights_and_vocabulary_are_those_of_the_rows_a_fold_trains_on(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, tasks=("sentiment",))
    # The word of a row stands in no other; the rare class is the first rows'.
    rows = [{"text": f"word{chr(97 + row)}", "label": "neg" if row < 5 else "pos"} for row in range(24)]
    (tmp_path / "train-rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    films = replace(recipe.datasets["films"], train=str(tmp_path / "train-rows.jsonl"))
    [task] = recipe.tasks
    own = parse_recipe({**recipe.to_dict(), "encoder": {"type": "lstm", "hidden_size": 8}}, base=tmp_path).encoder
    task = replace(task, spec=replace(task.spec, class_weights="balanced"))
    recipe = replace(recipe, encoder=own, tasks=(task,), datasets={**recipe.datasets, "films": films})
    for data in fold_data(recipe, 3, seed=5):
        trained, held_out = ([rows[place] for place in numbers(data, split, "films")] for split in ("train", "test"))
        counts = Counter(row["label"] for row in trained)
        assert len(held_out) == 8
        assert counts["neg"] in (3, 4)
        assert data.tasks[0].class_weights == pytest.approx(
            [len(trained) / (2 * counts[label]) for label in data.tasks[0].labels or ()]
        )
        assert not any(row["text"] in " ".join(data.tokenizer.get_vocab()) for row in held_out)


def test_a_fold_without_a_label_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    rows = [{"text": "good", "label": "pos" if row == 0 else None} for row in range(6)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    films = replace(recipe.datasets["films"], train=str(tmp_path / "few.jsonl"))
    other = replace(recipe, datasets={**recipe.datasets, "films": films})
    with pytest.raises(DataError, match=r"fold \d of 2.*dataset 'films', task 'sentiment'.*none of the 3 rows"):
        list(fold_data(other, 2))


def test_streamed_rows_are_refused(recipe: Recipe) -> None:
    films = replace(recipe.datasets["films"], streaming=True)
    with pytest.raises(DataError, match="dataset 'films': it is streamed"):
        list(fold_data(replace(recipe, datasets={**recipe.datasets, "films": films}), 2))


def test_more_folds_than_rows_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset 'films'.*24 rows for 30 folds"):
        cross_validate(recipe, tmp_path / "runs", folds=30)
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------------- results


def test_results_are_mean_and_standard_deviation_of_the_folds(folder: Path) -> None:
    found = read(folder / "cross_validation.json")
    folds = [read(folder / f"fold-{number}-of-2" / "train_results.json")["test"] for number in (1, 2)]
    assert (found["folds"], found["seed"], list(found["tasks"])) == (2, 5, list(TASKS))
    for name, task in found["tasks"].items():
        assert set(task["metrics"]) == set(folds[0][name])
        assert task["primary"] in task["metrics"]
        for key, spread in task["metrics"].items():
            values = [fold[name][key] for fold in folds]
            assert spread["folds"] == values
            assert (spread["mean"], spread["std"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    averages = [fold["average"] for fold in folds]
    assert found["average"]["mean"] == pytest.approx(np.mean(averages))
    assert any(spread["std"] > 0 for task in found["tasks"].values() for spread in task["metrics"].values())


def test_an_interrupted_cross_validation_goes_on(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    place = folder.parent / f"copy-{tmp_path.name}"
    shutil.copytree(folder, place)
    (place / "cross_validation.json").unlink()
    shutil.rmtree(place / "fold-2-of-2")
    kept = (place / "fold-1-of-2" / "model.safetensors").stat().st_mtime_ns
    started: list[int] = []
    cross_validate(recipe, place, folds=2, on_fold=lambda number, total: started.append(number))
    assert started == [2]
    assert (place / "cross_validation.json").read_bytes() == (folder / "cross_validation.json").read_bytes()
    assert (place / "fold-1-of-2" / "model.safetensors").stat().st_mtime_ns == kept


def test_other_arguments_are_refused(recipe: Recipe, folder: Path) -> None:
    other = replace(recipe, training={**recipe.training, "seed": 6})
    with pytest.raises(OutputError, match="another recipe"):
        cross_validate(other, folder, folds=2)


def test_the_table_begins_each_task_with_its_primary_metric(folder: Path) -> None:
    found = read(folder / "cross_validation.json")
    table = cross_validation_table(found)
    first = [(row[0], row[1]) for row in table.rows if row[0]]
    assert first == [*((name, task["primary"]) for name, task in found["tasks"].items()), ("average", "of primaries")]
    spread = found["tasks"]["slots"]["metrics"]["f1"]
    (row,) = [row for row in table.rows if row[0] == "slots"]
    assert tuple(row[2:]) == tuple(
        f"{value:.4f}" for value in (spread["mean"], spread["std"], min(spread["folds"]), max(spread["folds"]))
    )


def test_a_fold_without_a_value_leaves_the_mean_open(folder: Path) -> None:
    from hf_mtl.training.cross_validation import spread

    open_ = spread([0.5, None])
    assert np.isnan(open_["mean"])
    found = read(folder / "cross_validation.json")
    found["average"] = {"mean": None, "std": None, "folds": [0.5, None]}
    assert cross_validation_table(found).rows[-1] == ("average", "of primaries", "-", "-", "-", "-")
