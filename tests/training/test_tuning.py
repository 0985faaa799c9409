"""The search: each trial is a run, what is suggested depends on what is known, and a kill changes nothing."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from small import small_recipe
from transformers import TrainerCallback

from hf_mtl.data.recipe import Recipe, read_recipe
from hf_mtl.errors import DataError, MissingExtraError, OutputError, RecipeError, SpecError
from hf_mtl.training.recipe_arguments import training_arguments
from hf_mtl.training.run import run_training
from hf_mtl.training.space import Space, default_search, read_space, with_values
from hf_mtl.training.tuning import Tuning, tune

SEARCH: dict[str, Any] = {
    "learning_rate": {"low": 1e-4, "high": 5e-2, "log": True},
    "per_device_train_batch_size": {"low": 4, "high": 12, "step": 4},
    "lr_scheduler_type": ["linear", "constant"],
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    place = tmp_path_factory.mktemp("small")
    return replace(small_recipe(place, tasks=("sentiment",), max_steps=4, seed=3), search=SEARCH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Characters that mean something in a URL.
    return tmp_path_factory.mktemp("search") / "50% of a? #1"


@pytest.fixture(scope="module")
def found(recipe: Recipe, folder: Path) -> Tuning:
    """A search of four trials in `folder`."""
    result = tune(recipe, folder, trials=4)
    assert result is not None
    return result


def timeless(tuning: Tuning | None) -> list[Any]:
    assert tuning is not None
    return [(trial.number, trial.arguments, trial.value, trial.problem) for trial in tuning.trials]


def space_of(**search: Any) -> Space:
    return read_space(search)


class Interrupt(TrainerCallback):
    """Stops training as Ctrl-C does, at a step of one trial."""

    def __init__(self, trial: int, step: int) -> None:
        self.trial, self.step = trial, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and Path(args.output_dir).name == f"trial-{self.trial}":
            raise KeyboardInterrupt


# ---------------------------------------------------------------------- the space


def test_trials_draw_from_the_ranges_and_values() -> None:
    space = space_of(
        learning_rate={"low": 1e-5, "high": 1e-3, "log": True},
        num_train_epochs={"low": 2, "high": 5},
        weight_decay={"low": 0, "high": 0.25, "step": 0.1},
        sampling=["proportional", "temperature"],
        peft=[None, {"r": 4}],
        bf16=[True, False],
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [space.suggest(study.ask(), {}) for _ in range(60)]
    assert all(1e-5 <= values["learning_rate"] <= 1e-3 for values in drawn)
    assert 15 < sum(values["learning_rate"] < 1e-4 for values in drawn) < 45
    assert {values["num_train_epochs"] for values in drawn} == {2, 3, 4, 5}
    assert {values["weight_decay"] for values in drawn} == {0.0, 0.1, 0.2}
    assert {values["sampling"] for values in drawn} == {"proportional", "temperature"}
    assert {json.dumps(values["peft"]) for values in drawn} == {"null", '{"r": 4}'}
    assert {values["bf16"] for values in drawn} == {True, False}


def test_a_condition_is_met_or_the_argument_left_out() -> None:
    space = space_of(
        **{"sampling_kwargs.temperature": {"low": 1.0, "high": 3.0, "when": {"sampling": "temperature"}}},
        sampling=["proportional", "temperature"],
        layer_decay={"values": [0.8, 0.9], "when": {"freeze_encoder": False}},
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        values = space.suggest(study.ask(), {"freeze_encoder": True})
        assert ("sampling_kwargs.temperature" in values) == (values["sampling"] == "temperature")
        assert "layer_decay" not in values
    assert "layer_decay" in space.suggest(study.ask(), {"freeze_encoder": False})


def test_values_are_put_into_the_arguments() -> None:
    training = {"seed": 1, "sampling_kwargs": {"a": 1}}
    changed = with_values(training, {"sampling_kwargs.temperature": 2.0, "balancing_kwargs.lr": 0.1, "bf16": None})
    assert changed == {
        "seed": 1, "sampling_kwargs": {"a": 1, "temperature": 2.0}, "balancing_kwargs": {"lr": 0.1}, "bf16": None,
    }  # fmt: skip
    assert training == {"seed": 1, "sampling_kwargs": {"a": 1}}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("learning_rat", [1], "search, learning_rat: unknown argument 'learning_rat'; did you mean 'learning_rate'?"),
        ("learning_rate", [1, "fast"], "search, learning_rate: learning_rate is 'fast'; give a number"),
        ("learning_rate", {"low": 1, "high": "x"}, "high is 'x'; give a number"),
        ("learning_rate", {"low": 1}, "high is None; give low and high, or a list of values"),
        ("learning_rate", {}, "low is None; give low and high"),
        ("learning_rate", {"low": 2, "high": 1}, "low is 2 and high is 1; give the lesser as low"),
        ("learning_rate", {"low": 0, "high": 1, "log": True}, "log goes with low 0; give low above 0"),
        ("learning_rate", {"low": 1, "high": 2, "log": True, "step": 1}, "log goes with step; give one of them"),
        ("learning_rate", {"low": 1, "high": 2, "log": 1}, "log is 1; give true or false"),
        ("learning_rate", {"low": 1, "high": 2, "step": 0}, "step is 0; give a number above 0"),
        ("learning_rate", {"low": 1, "high": math.inf}, "high is inf; give a number"),
        ("learning_rate", {"low": 1, "hihg": 2}, "unknown key 'hihg'; did you mean 'high'?"),
        ("learning_rate", {"values": 3}, "values is 3; give a list"),
        ("learning_rate", {"values": [3], "low": 1}, "values and low are both given"),
        ("learning_rate", {"values": [3], "log": True}, "values and log are both given"),
        ("learning_rate", [], "there are no values; give a list of values, or low and high"),
        ("learning_rate", [1, 2, 1], "the value 1 stands twice; name each value once"),
        ("learning_rate", 3, "it is 3; give a list of values, or low and high"),
        ("learning_rate", {"values": [1], "when": 3}, "when is 3; give a mapping"),
        ("learning_rate", {"values": [1], "when": {"samplign": "x"}}, "unknown argument 'samplign'"),
        ("learning_rate", {"values": [1], "when": {"learning_rate": 1}}, "when names 'learning_rate'"),
        ("bf16", {"low": 0, "high": 1}, "bf16 is 0; give true or false"),
        ("learning_rate.x", [1], "'learning_rate' is no argument with keys; use one of 'sampling_kwargs'"),
        ("kwargs.x", [1], "'kwargs' is no argument with keys"),
        ("metric_for_best_model", ["average"], "it says what is searched for; set it in training"),
        ("output_dir", ["x"], "it says what is searched for"),
    ],
)
def test_a_wrong_space_is_refused(name: str, given: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_space({name: given})
    assert message in str(caught.value)
    assert f"search, {name}: " in str(caught.value)


def test_conditions_of_conditions_are_refused() -> None:
    with pytest.raises(RecipeError, match="when names 'layer_decay'"):
        space_of(
            layer_decay={"values": [0.9], "when": {"bf16": True}}, seed={"values": [1], "when": {"layer_decay": 0.9}}
        )


def test_the_default_space_suits_the_recipe() -> None:
    assert "sampling" in default_search(2, {})
    assert "sampling" not in default_search(1, {})
    assert "sampling" not in default_search(2, {"sampling_kwargs": {"weights": {}}})
    for values in (space.suggest(optuna.create_study().ask(), {}) for space in [read_space(default_search(2, {}))] * 5):
        training_arguments("unused", values)


# ---------------------------------------------------------------------- the search


def test_a_trial_is_a_run_with_its_values(recipe: Recipe, folder: Path, found: Tuning, tmp_path: Path) -> None:
    assert found.names == tuple(SEARCH)
    for trial in found.trials:
        assert set(trial.arguments) == set(SEARCH)
        place = folder / f"trial-{trial.number + 1}"
        results = json.loads((place / "train_results.json").read_text())
        assert trial.value == results["validation"]["average"]
        assert trial.seconds == results["train"]["train_seconds"]
        assert "test" not in results
        assert read_recipe(place / "recipe.yaml").training == {**recipe.training, **trial.arguments}
    alone = replace(recipe, training={**recipe.training, **found.best.arguments})
    assert run_training(alone, tmp_path / "again").results["validation"]["average"] == found.best.value


def test_the_best_has_the_best_value_and_the_only_model(recipe: Recipe, folder: Path, found: Tuning) -> None:
    values = [trial.value for trial in found.trials]
    assert (found.metric, found.greater_is_better) == ("average", True)
    assert found.best == found.trials[values.index(max(values))]  # type: ignore[type-var]
    models = [path.parent.name for path in folder.glob("trial-*/model.safetensors")]
    assert models == [f"trial-{found.best.number + 1}"]
    assert not list(folder.glob("trial-*/checkpoint-*"))
    best = read_recipe(folder / "best_recipe.yaml")
    assert best.training == found.training == {**recipe.training, **found.best.arguments}
    assert not best.search
    assert best.tasks == recipe.tasks


def test_trials_differ_and_follow_the_seed(recipe: Recipe, found: Tuning, tmp_path: Path) -> None:
    rates = [trial.arguments["learning_rate"] for trial in found.trials]
    assert len(set(rates)) == len(rates)
    training = {**recipe.training, "seed": 4}
    other = tune(replace(recipe, training=training), tmp_path / "other", trials=1)
    assert other is not None
    assert other.trials[0].arguments["learning_rate"] != rates[0]


@pytest.mark.slow
def test_a_search_that_goes_on_is_that_of_one_start(recipe: Recipe, found: Tuning, tmp_path: Path) -> None:
    """Stopped after a trial, then within one, at a step that a checkpoint lies before."""
    place = tmp_path / "search"
    again = replace(recipe, training={**recipe.training, "save_strategy": "steps", "save_steps": 1, "eval_steps": 1})
    whole = timeless(tune(again, tmp_path / "whole", trials=3))
    started: list[int] = []
    assert timeless(tune(again, place, trials=1)) == whole[:1]
    with pytest.raises(KeyboardInterrupt):
        tune(again, place, trials=3, callbacks=[Interrupt(trial=2, step=2)])
    assert (place / "trial-2" / "checkpoint-2").is_dir()
    ended = tune(again, place, trials=3, on_trial=lambda number, total, values: started.append(number))
    assert started == [2, 3]
    assert timeless(ended) == whole
    study = optuna.load_study(study_name="hf_mtl", storage=f"sqlite:///{place}/study.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_finished_search_does_nothing(recipe: Recipe, folder: Path, found: Tuning) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.glob("trial-*/*")}
    again = tune(recipe, folder, trials=4, on_trial=lambda *_: pytest.fail("a trial was begun"))
    assert again == found
    assert {path: path.stat().st_mtime_ns for path in folder.glob("trial-*/*")} == before


@pytest.mark.slow
def test_less_is_better_for_a_loss(recipe: Recipe, tmp_path: Path) -> None:
    training = {**recipe.training, "metric_for_best_model": "sentiment_loss", "max_steps": 2}
    found = tune(replace(recipe, training=training), tmp_path / "search", trials=2)
    assert found is not None
    assert not found.greater_is_better
    assert found.best.value == min(trial.value or math.inf for trial in found.trials)
    folder = tmp_path / "search" / f"trial-{found.best.number + 1}"
    assert (
        found.best.value
        == json.loads((folder / "train_results.json").read_text())["train"]["validation_loss"]["sentiment"]
    )


@pytest.mark.slow
def test_the_relative_gain_can_be_searched_for(recipe: Recipe, tmp_path: Path) -> None:
    training = {**recipe.training, "metric_for_best_model": "relative_gain", "single_task_scores": {"sentiment": 0.5}}
    found = tune(replace(recipe, training=training), tmp_path / "search", trials=1)
    assert found is not None
    results = json.loads((tmp_path / "search" / "trial-1" / "train_results.json").read_text())
    accuracy = results["validation"]["sentiment"]["accuracy"]
    assert found.best.value == pytest.approx(100 * (accuracy - 0.5) / 0.5)


@pytest.mark.slow
def test_arguments_that_do_not_go_together_make_a_trial_fail(recipe: Recipe, tmp_path: Path) -> None:
    search = {"sampling": ["proportional", "temperature"], "sampling_kwargs.temperature": [2.0, 3.0]}
    other = replace(recipe, search=search, training={**recipe.training, "max_steps": 1})
    found = tune(other, tmp_path / "search", trials=4)
    assert found is not None
    for trial in found.trials:
        assert (trial.value is None) == (trial.arguments["sampling"] == "proportional") == (trial.problem is not None)
    problems = [trial.problem for trial in found.trials if trial.problem]
    assert problems
    assert all("has no option 'temperature'" in problem for problem in problems)
    assert found.best.arguments["sampling"] == "temperature"
    assert found.training["sampling_kwargs"] == {"temperature": found.best.arguments["sampling_kwargs.temperature"]}


@pytest.mark.slow
def test_a_search_without_success_says_why(recipe: Recipe, tmp_path: Path) -> None:
    other = replace(recipe, search={"freeze_layers": [7, 8]})
    with pytest.raises(SpecError, match="no trial succeeded; the last: freeze_layers is"):
        tune(other, tmp_path / "search", trials=2)
    assert not (tmp_path / "search" / "best_recipe.yaml").exists()


# ---------------------------------------------------------------------- refusals


def test_a_search_of_another_recipe_is_refused(recipe: Recipe, folder: Path, found: Tuning) -> None:
    for other in (
        replace(recipe, training={**recipe.training, "seed": 4}),
        replace(recipe, search={**SEARCH, "seed": [1, 2]}),
    ):
        with pytest.raises(OutputError, match="the search there was of another recipe"):
            tune(other, folder, trials=5)


def test_a_file_that_is_no_study_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("a text, and long enough to be taken for a header of something")
    with pytest.raises(OutputError, match=r"study\.db: it cannot be used"):
        tune(recipe, tmp_path, trials=1)
    assert (tmp_path / "study.db").read_text().startswith("a text")


@pytest.mark.parametrize("wrong", [{"metric_for_best_model": "sentiment_acuracy"}, {"learning_rate": "x"}])
def test_what_no_trial_could_do_is_refused_before_the_first(
    recipe: Recipe, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(SpecError, match=next(iter(wrong))):
        tune(replace(recipe, training={**recipe.training, **wrong}), tmp_path / "search")
    assert not (tmp_path / "search").exists()


def test_without_trials_or_validation_rows_it_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="trials is 0"):
        tune(recipe, tmp_path / "search", trials=0)
    films = replace(recipe.datasets["films"], train=None, validation=None)
    with pytest.raises(DataError, match="no validation rows"):
        tune(replace(recipe, datasets={"films": films}), tmp_path / "search")
    assert not (tmp_path / "search").exists()


def test_a_folder_that_is_a_file_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "search").write_text("mine")
    with pytest.raises(OutputError, match="cannot be made"):
        tune(recipe, tmp_path / "search")


def test_without_optuna_it_says_what_to_install(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r'pip install "hf-mtl\[tune\]"'):
        tune(recipe, tmp_path / "search")
