"""Alone and together: the same budget, the same rows, and the same result however often it is interrupted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import TASKS, small_recipe

from hf_mtl.data.preparation import load_recipe
from hf_mtl.data.recipe import Recipe
from hf_mtl.errors import DataError, OutputError, SpecError
from hf_mtl.evaluation.intervals import draw_weights
from hf_mtl.evaluation.metrics import load_metric
from hf_mtl.evaluation.scoring import score
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.comparison import alone_arguments, compare
from hf_mtl.training.outcomes import comparison_tables, task_gain
from hf_mtl.training.recipe_arguments import training_arguments
from hf_mtl.training.selection import relative_gain

RUNS = ("together", *(f"alone-{task}" for task in TASKS))

pytestmark = pytest.mark.slow  # one comparison of trainings for all of them


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return small_recipe(tmp_path_factory.mktemp("small"), num_train_epochs=3)


@pytest.fixture(scope="module")
def folder(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished comparison; not to be changed."""
    place = tmp_path_factory.mktemp("comparison") / "runs"
    assert compare(recipe, place, resamples=50) is not None
    return place


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    import shutil

    # Beside the original: runs name their data by the way that leads to it.
    place = folder.parent / f"copy-{tmp_path.name}"
    shutil.copytree(folder, place)
    return place


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def results_of(folder: Path, run: str, seed: int = 42) -> dict[str, Any]:
    return read(folder / f"{run}-seed{seed}" / "train_results.json")


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    cost = {key: value for key, value in results["cost"].items() if not key.endswith("seconds")}
    return {**results, "cost": cost}


# ---------------------------------------------------------------------- what is compared


def test_scores_are_those_of_the_runs_on_the_test_rows(folder: Path) -> None:
    found = read(folder / "comparison.json")
    assert list(found["tasks"]) == list(TASKS)
    together = results_of(folder, "together")["test"]
    for name, task in found["tasks"].items():
        alone = results_of(folder, f"alone-{name}")["test"]
        assert set(alone) == {name, "average"}
        assert task["split"] == "test"
        assert task["alone"] == pytest.approx(alone[name][task["metric"]], abs=1e-12)
        assert task["together"] == pytest.approx(together[name][task["metric"]], abs=1e-12)
        assert task["difference"] == task["together"] - task["alone"]
    assert found["average"]["together"] == pytest.approx(together["average"], abs=1e-12)


def test_something_was_learnt_so_that_a_difference_means_something(folder: Path) -> None:
    tasks = read(folder / "comparison.json")["tasks"].values()
    assert any(task["difference"] for task in tasks)
    assert any(task["interval"][0] < task["interval"][1] for task in tasks)


def test_intervals_are_those_of_scoring_both_models_on_each_resample(recipe: Recipe, folder: Path) -> None:
    data = load_recipe(recipe, seed=42)
    found = read(folder / "comparison.json")["tasks"]
    for place, (dataset, names) in enumerate({"films": ["sentiment"], "orders": ["intent", "slots"]}.items()):
        split = data.test[dataset]
        for name in names:
            scored: list[Any] = []
            for run in (f"alone-{name}", "together"):
                model = MultiTaskModel.from_pretrained(folder / f"{run}-seed42")
                own = replace(split, tasks=tuple(task for task in split.tasks if task.spec.name == name))
                scored.append(score(model, data.tokenizer, {dataset: own}).tasks[name])
            rows = [own.rows for own in scored]
            metric = load_metric(scored[0].metric.name)
            draws: list[float] = []
            for weights in draw_weights(len(rows[0]), 50, np.random.default_rng((0, place))):
                values: list[float] = []
                for side in rows:
                    picked = [row for row, count in zip(side, weights, strict=True) for _ in range(int(count))]
                    computed = metric.compute(
                        predictions=[row.prediction for row in picked], references=[row.reference for row in picked]
                    )
                    values.append((computed or {})[metric.primary])
                draws.append(values[1] - values[0])
            assert found[name]["interval"] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=1e-12)


def test_the_relative_gain_is_the_literatures(folder: Path) -> None:
    found = read(folder / "comparison.json")
    single = {name: task["alone"] for name, task in found["tasks"].items()}
    joint = {name: task["together"] for name, task in found["tasks"].items()}
    if min(single.values()) > 0:
        assert found["average"]["relative_gain"] == pytest.approx(relative_gain(joint, single), abs=1e-9)
    else:
        assert found["average"]["relative_gain"] is None


def test_gains_where_less_is_better_or_nothing_was_scored() -> None:
    assert task_gain(2.0, 3.0, lower_is_better=True) == -50.0
    assert task_gain(0.5, math.nan) == -100.0
    assert math.isnan(task_gain(0.0, 0.5))
    assert math.isnan(task_gain(math.nan, 0.5))
    assert math.isnan(task_gain(-0.2, 0.5))


# ---------------------------------------------------------------------- the budget


def test_alone_each_labelled_row_is_seen_as_often_as_together(recipe: Recipe, folder: Path) -> None:
    data = load_recipe(recipe, seed=42)
    epochs = 3
    rows = {name: results_of(folder, name)["train"]["train_rows"] for name in RUNS}
    assert rows["together"] == epochs * (24 + len(np.union1d(*map(data.train["orders"].labelled, ("intent", "slots")))))
    for name, dataset in {"sentiment": "films", "intent": "orders", "slots": "orders"}.items():
        assert rows[f"alone-{name}"] == epochs * len(data.train[dataset].labelled(name))
    cost = read(folder / "comparison.json")["cost"]
    assert cost["train_rows"] == {"alone": sum(rows[name] for name in RUNS[1:]), "together": rows["together"]}


def test_costs_are_sums_of_the_single_runs(folder: Path) -> None:
    cost = read(folder / "comparison.json")["cost"]
    for side, runs in (("alone", RUNS[1:]), ("together", RUNS[:1])):
        models = [MultiTaskModel.from_pretrained(folder / f"{run}-seed42") for run in runs]
        assert cost["parameters"][side] == sum(model.num_parameters() for model in models)
        seconds = [results_of(folder, run)["train"]["train_seconds"] for run in runs]
        assert cost["train_seconds"][side] == pytest.approx(sum(seconds))
    assert cost["inference_rows"] == 40
    assert all(seconds > 0 for seconds in cost["inference_seconds"].values())


def test_a_larger_epoch_is_larger_alone_as_well(recipe: Recipe, tmp_path: Path) -> None:
    twice = replace(recipe, training={**recipe.training, "num_train_epochs": 1, "epoch_size": 2 * (24 + 24)})
    found = compare(twice, tmp_path / "runs", resamples=5)
    assert found is not None
    rows = {name: results_of(tmp_path / "runs", name)["train"]["train_rows"] for name in RUNS}
    labelled = load_recipe(recipe, seed=42).train["orders"].labelled
    assert rows["together"] == 96
    assert rows["alone-sentiment"] == 48
    assert rows["alone-intent"] == 2 * len(labelled("intent"))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (
            {"sampling": "temperature", "sampling_kwargs": {"temperature": 3}, "every_task_in_batch": True, "seed": 1},
            {"seed": 1},
        ),
        (
            {"batching": "homogeneous", "dataset_batch_size": {"orders": 4, "films": 2}},
            {"per_device_train_batch_size": 4},
        ),
        ({"class_balanced": ["intent", "sentiment"]}, {"class_balanced": ["intent"]}),
        ({"freeze_heads": ["sentiment"]}, {}),
        ({"metric_for_best_model": "intent_loss"}, {"metric_for_best_model": "intent_loss"}),
        ({"metric_for_best_model": "slots_f1", "greater_is_better": True}, {}),
        ({"max_steps": 100, "warmup_steps": 8}, {"max_steps": 25, "warmup_steps": 2}),
        ({"max_steps": 2, "warmup_steps": 0.2}, {"max_steps": 1, "warmup_steps": 0.2}),
        (
            {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 10, "save_steps": 20},
            {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 4},
        ),
    ],
)
def test_arguments_of_a_run_on_one_task(recipe: Recipe, given: dict[str, Any], wanted: dict[str, Any]) -> None:
    task = next(task for split in load_recipe(recipe).train.values() for task in split.tasks if task.label == "intent")
    arguments = training_arguments("unused", given)
    found = alone_arguments(given, arguments, task, share=0.25, epoch_size=None)
    assert found == wanted
    training_arguments("unused", found)
    assert alone_arguments(given, arguments, task, share=0.25, epoch_size=7) == {**wanted, "epoch_size": 7}


# ---------------------------------------------------------------------- interrupted


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def cut_off(folder: Path) -> None:
    """As it stands when it is killed in the first run on one task."""
    import shutil

    for run in RUNS[2:]:
        shutil.rmtree(folder / f"{run}-seed42")
    remove("comparison.json", "comparison.md", "inference_seconds.json")(folder)
    own = f"{RUNS[1]}-seed42"
    remove(*(f"{own}/{name}" for name in ("train_results.json", "comparison_statistics.npz", "model.safetensors")))(
        folder
    )


@pytest.mark.parametrize(
    "change",
    [
        remove("comparison.json", "comparison.md"),
        remove("together-seed42/comparison_statistics.npz", "inference_seconds.json"),
        cut_off,
    ],
    ids=["tables", "statistics", "runs"],
)
def test_what_is_missing_is_done_again_and_nothing_else(
    recipe: Recipe, folder: Path, copy: Path, change: Callable[[Path], None]
) -> None:
    change(copy)
    kept = {path: path.read_bytes() for path in copy.glob("*/model.safetensors")}
    times = {path: path.stat().st_mtime_ns for path in kept}
    started: list[str] = []
    compare(recipe, copy, resamples=50, on_run=lambda number, total, what: started.append(f"{number}/{total} {what}"))
    assert timeless(read(copy / "comparison.json")) == timeless(read(folder / "comparison.json"))
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    assert started == ([f"{n}/4 alone {task}" for n, task in enumerate(TASKS, start=2)] if change is cut_off else [])


def test_a_finished_comparison_is_read_again_to_the_byte(recipe: Recipe, folder: Path) -> None:
    names = ("comparison.json", "comparison.md", "inference_seconds.json")
    before = [(folder / name).read_bytes() for name in names]
    compare(recipe, folder, resamples=50)
    assert [(folder / name).read_bytes() for name in names] == before
    assert not list(folder.glob("*/checkpoint-*"))


def test_seeds_can_be_added_and_are_averaged(recipe: Recipe, copy: Path) -> None:
    started: list[str] = []
    found = compare(recipe, copy, seeds=(42, 1), resamples=20, on_run=lambda number, total, what: started.append(what))
    assert started == ["together, seed 1", *(f"alone {task}, seed 1" for task in TASKS)]
    assert found is not None
    for name, task in found["tasks"].items():
        values = [results_of(copy, "together", seed)["test"][name][task["metric"]] for seed in (42, 1)]
        assert task["together_by_seed"] == pytest.approx(values, abs=1e-12)
        assert task["together"] == pytest.approx(sum(values) / 2, abs=1e-12)
    rows = [results_of(copy, "together", seed)["train"]["train_rows"] for seed in (42, 1)]
    assert found["cost"]["train_rows"]["together"] == sum(rows) / 2
    assert "mean of 2 seeds" in comparison_tables(found)[0].title


# ---------------------------------------------------------------------- tables and refusals


def test_the_tables_hold_the_results(folder: Path) -> None:
    found = read(folder / "comparison.json")
    scores, cost = comparison_tables(found)
    assert [row[0] for row in scores.rows] == [*TASKS, "average"]
    assert scores.rows[0][3:5] == (f"{found['tasks']['sentiment']['alone']:.4f}",
                                   f"{found['tasks']['sentiment']['together']:.4f}")  # fmt: skip
    assert all(len(row) == len(table.header) for table in (scores, cost) for row in table.rows)
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    assert text == f"{scores.markdown()}\n{cost.markdown()}"


def test_tables_take_scores_that_are_not_defined(folder: Path) -> None:
    found = read(folder / "comparison.json")
    for own in (found["average"], found["tasks"]["slots"]):
        own |= {"alone": None, "difference": math.nan, "interval": [None, None], "relative_gain": None}
    rows = comparison_tables(found)[0].rows
    assert [row[3] for row in rows].count("-") == 2
    assert rows[-1][5:] == ("-", "-", "-")


def test_a_recipe_of_one_task_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="one task"):
        compare(replace(recipe, tasks=recipe.tasks[:1]), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1,)])
def test_seeds_that_are_none_are_refused(recipe: Recipe, tmp_path: Path, seeds: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="seeds is"):
        compare(recipe, tmp_path / "runs", seeds=seeds)
    assert not (tmp_path / "runs").exists()


def test_runs_of_another_recipe_are_refused(recipe: Recipe, folder: Path) -> None:
    other = replace(recipe, training={**recipe.training, "learning_rate": 1e-3})
    with pytest.raises(OutputError, match="another recipe"):
        compare(other, folder)


@pytest.mark.parametrize(
    ("split", "problem"), [("train", "no training rows"), ("validation", "no labelled validation rows")]
)
def test_a_task_without_rows_is_refused_before_anything_is_trained(
    recipe: Recipe, tmp_path: Path, split: str, problem: str
) -> None:
    films = replace(recipe.datasets["films"], **{split: None})
    if split == "validation":  # the one row that is set aside has no label
        (tmp_path / "few.jsonl").write_text('{"text": "good", "label": "pos"}\n{"text": "x", "label": null}\n')
        films = replace(films, train=str(tmp_path / "few.jsonl"))
    other = replace(recipe, datasets={**recipe.datasets, "films": films})
    with pytest.raises(DataError, match=problem):
        compare(other, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_without_test_rows_the_validation_rows_are_scored(recipe: Recipe, tmp_path: Path) -> None:
    films = replace(recipe.datasets["films"], test=None)
    other = replace(recipe, datasets={**recipe.datasets, "films": films}, training={"max_steps": 2})
    found = compare(other, tmp_path / "runs", resamples=5)
    assert found is not None
    assert {name: (task["split"], task["rows"]) for name, task in found["tasks"].items()} == {
        "sentiment": ("validation", 12),
        "intent": ("test", 15),
        "slots": ("test", 15),
    }
