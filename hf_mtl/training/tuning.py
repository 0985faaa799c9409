"""The best training arguments for a recipe, searched by optuna.

`Trainer.hyperparameter_search` of transformers 5.23 is not used. It sets a trial's values on finished training
arguments, where nothing checks them and nothing follows from them (`precision: bf16` trains in fp32, `max_steps: -5` is
taken); what the trainer made of the arguments when it was built (adapters, frozen parts, callbacks) stays that of the
first; a trial counts what its last evaluation found, not the best one, whose model is kept; and a trial that was killed
begins anew. Here every trial is a whole run of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import should_reduce_batch_size
from transformers import TrainerCallback

from hf_mtl.data.preparation import RecipeData, load_recipe
from hf_mtl.data.recipe import Recipe
from hf_mtl.errors import DataError, SpecError
from hf_mtl.evaluation.scoring import counted_tasks
from hf_mtl.training.arguments import RELATIVE_GAIN, MultiTaskTrainingArguments
from hf_mtl.training.outcomes import metric_of
from hf_mtl.training.recipe_arguments import training_arguments
from hf_mtl.training.run import drop_checkpoints, make_folder, split_seed
from hf_mtl.training.selection import check_selection, relative_gain
from hf_mtl.training.series import free_memory, run_member
from hf_mtl.training.space import default_search, read_space, with_values
from hf_mtl.training.study import ArgumentStudy, TriedArguments, require_optuna
from hf_mtl.writing import write_text

BEST_NAME = "best_recipe.yaml"


@dataclass(frozen=True)
class Tuning:
    """What a search came to.

    Args:
        metric: what was searched for.
        greater_is_better: whether more of it is better.
        names: the arguments searched.
        trials: all trials, in their order.
        best: the best of them.
        training: the recipe's training arguments with those of the best trial.
    """

    metric: str
    greater_is_better: bool
    names: tuple[str, ...]
    trials: tuple[TriedArguments, ...]
    best: TriedArguments
    training: dict[str, Any]


def tune(
    recipe: Recipe,
    output_dir: str | Path,
    *,
    trials: int = 20,
    callbacks: Sequence[TrainerCallback] = (),
    on_trial: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> Tuning | None:
    """Search the training arguments with which a recipe gets the best `metric_for_best_model` on validation.

    A trial is a whole run, in a folder of its own, with values that optuna's TPE sampler suggests from the trials
    before. What it suggests depends on the seed and these trials alone, so that a search that was interrupted goes on
    as if it had not been: the trial in work is taken up at its last checkpoint. A trial whose arguments do not go
    together, or that runs out of memory, counts as failed. The test rows are not looked at. Of the models the best
    trial's alone is kept.

    Args:
        recipe: the recipe; `search` says what is searched (see `hf_mtl.training.space`), else `default_search`.
        output_dir: folder of the runs, `study.db` (of optuna) and `best_recipe.yaml`.
        trials: number of trials, those of earlier starts included.
        callbacks: callbacks for the Trainer, in place of those that print.
        on_trial: called before each trial with its number from 1, the number of trials, and its values.

    Returns:
        All trials and the best; `None` on processes other than the first.

    Raises:
        MissingExtraError: optuna is not installed.
        SpecError: the space is not valid, or no trial succeeded.
        DataError: there are no validation rows.
        OutputError: the folder holds the search of another recipe.

    Source: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization, https://papers.nips.cc/paper/4443.
    """
    require_optuna()
    folder = Path(output_dir)
    arguments = training_arguments(folder, recipe.training)
    if trials < 1:
        raise SpecError(f"trials is {trials!r}", mend="give at least 1")
    search = recipe.search or default_search(len(recipe.datasets), recipe.training)
    space = read_space(search)
    data = replace(load_recipe(recipe, seed=split_seed(recipe)), test={})
    if not data.validation:
        raise DataError("there are no validation rows to find the best by", mend="name validation files")
    check_selection(arguments, data.validation)
    make_folder(folder)
    study = None
    if arguments.process_index == 0:
        described = {**recipe.to_dict(relative_to=folder), "search": search}
        study = ArgumentStudy.open(folder, described, seed=arguments.seed, maximize=bool(arguments.greater_is_better))
    while True:
        number, values = _shared(study.next(space, recipe.training, trials) if study else None, arguments)
        if values is None:
            break
        if on_trial is not None and study is not None:
            on_trial(number + 1, trials, values)
        own = replace(recipe, training=with_values(recipe.training, values), search={})
        value, seconds, problem = _run_trial(own, _trial_folder(folder, number), data, arguments, callbacks)
        if study is not None:
            study.tell(TriedArguments(number, values, value, seconds, problem))
            _keep_best_model(study, folder)
    if study is None:
        return None
    best = study.best()
    if best is None:
        raise SpecError(f"no trial succeeded; the last: {study.tried()[-1].problem}", mend="correct the search")
    training = with_values(recipe.training, best.arguments)
    write_text(replace(recipe, training=training, search={}).to_yaml(relative_to=folder), folder / BEST_NAME)
    names = tuple(dimension.name for dimension in space.dimensions)
    metric = str(arguments.metric_for_best_model).removeprefix("eval_")
    return Tuning(metric, study.maximize, names, tuple(study.tried()), best, training)


# ---------------------------------------------------------------------- one trial


def _run_trial(
    recipe: Recipe,
    folder: Path,
    data: RecipeData,
    arguments: MultiTaskTrainingArguments,
    callbacks: Sequence[TrainerCallback],
) -> tuple[float | None, float, str | None]:
    """Train, and return the value of the model, the seconds it took, and the problem where there is one."""
    try:
        run = run_member(recipe, folder, data=data, callbacks=callbacks)
    except SpecError as error:
        problem = str(error)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        problem = "out of memory"
    else:
        value, seconds = _objective(run.results, data, arguments), run.results["train"]["train_seconds"]
        if math.isfinite(value):
            return value, seconds, None
        return None, seconds, f"{arguments.metric_for_best_model} is not a number"
    if arguments.process_index == 0:
        drop_checkpoints(folder)
    free_memory()  # now that nothing of the failed run is referred to
    return None, 0.0, problem


def _objective(results: Mapping[str, Any], data: RecipeData, arguments: MultiTaskTrainingArguments) -> float:
    """Return `metric_for_best_model` of a finished run's model."""
    name = str(arguments.metric_for_best_model).removeprefix("eval_")
    scores, losses = results["validation"], results["train"]["validation_loss"]
    known = {"average": scores["average"]}
    for task, loss in losses.items():
        known |= {f"{task}_{key}": value for key, value in scores[task].items()}
        known[f"{task}_loss"] = loss
    if arguments.single_task_scores:
        sources = [task for split in data.validation.values() for task in split.tasks]
        counted = counted_tasks([task.spec for task in sources])
        sources = [task for task in sources if task.spec.name in counted]
        primaries = {task.spec.name: scores[task.spec.name][metric_of(task).primary] for task in sources}
        numbers = {task: math.nan if value is None else value for task, value in primaries.items()}
        known[RELATIVE_GAIN] = relative_gain(numbers, cast(dict[str, float], arguments.single_task_scores))
    return math.nan if known.get(name) is None else float(known[name])


def _keep_best_model(study: ArgumentStudy, folder: Path) -> None:
    """Remove the weights of all finished trials but the best, whose number may be great."""
    best = study.best()
    for trial in study.tried():
        if best is None or trial.number != best.number:
            for weights in _trial_folder(folder, trial.number).glob("*.safetensors"):
                weights.unlink()


def _shared(value: tuple[int, dict[str, Any] | None] | None, arguments: MultiTaskTrainingArguments) -> Any:
    """Return the first process's value on all of them."""
    if arguments.world_size == 1:
        return value
    return broadcast_object_list([value])[0]


def _trial_folder(folder: Path, number: int) -> Path:
    return folder / f"trial-{number + 1}"
