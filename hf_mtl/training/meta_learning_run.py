"""A whole meta-training: from a recipe to a folder with the model, its scores and the recipe as it was used."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.data.encoding import forget_last_call
from hf_mtl.data.masking import masked_tasks
from hf_mtl.data.preparation import RecipeData, load_recipe
from hf_mtl.data.recipe import Recipe
from hf_mtl.errors import DataError, OutputError, SpecError
from hf_mtl.evaluation.scoring import Scores, score
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.card import write_training_card
from hf_mtl.training.meta_learning import MetaOptions, OuterLoop
from hf_mtl.training.meta_learning_episodes import Episodes
from hf_mtl.training.optimization import prepare_model
from hf_mtl.training.random_state import drawn_from
from hf_mtl.training.recipe_arguments import training_arguments
from hf_mtl.training.run import RECIPE_NAME, RESULTS_NAME, TrainingRun, make_folder, split_seed
from hf_mtl.writing import to_json, write_text

STATE_NAME = "meta_state.pt"
SAVE_EVERY = 50
"""Outer steps between two states from which an interrupted run can go on."""
STANDING = ("config.json", "model.safetensors", RESULTS_NAME, STATE_NAME)

OnStep = Callable[[int, int, float], None]
"""Told after each outer step its number, from 1, their number, and the mean loss of its tasks on query rows."""


def meta_train(
    recipe: Recipe,
    output_dir: str | Path,
    options: MetaOptions,
    *,
    resume: bool = False,
    overwrite: bool = False,
    data: RecipeData | None = None,
    on_step: OnStep | None = None,
) -> TrainingRun:
    """Meta-train on the tasks of a recipe, score the model on validation and test, and save everything.

    Of the recipe's training arguments those count that say what is trained: `freeze_embeddings`, `freeze_layers`,
    `freeze_encoder` and `freeze_heads`. Numbers are float32, and one process does it all.

    Args:
        recipe: the recipe.
        output_dir: folder of the model, `recipe.yaml` and `train_results.json`.
        options: how to meta-learn.
        resume: go on from the last state that was saved; the end is the same to the bit.
        overwrite: replace the model or state that stands in the folder.
        data: the recipe's data where it is loaded already.
        on_step: told after each outer step.

    Returns:
        The results; `train` holds the options, seconds and the last loss on query rows.

    Raises:
        OutputError: the folder holds a model or state and neither `resume` nor `overwrite` is set, or the state is of
            another recipe or other options.
        HfMtlError: the recipe, its data or its encoder cannot be used.
    """
    folder = Path(output_dir)
    arguments = _arguments(recipe, folder, options)
    _check_folder(folder, resume=resume, overwrite=overwrite)
    if resume and (folder / RESULTS_NAME).is_file():
        return TrainingRun(folder, json.loads((folder / RESULTS_NAME).read_text(encoding="utf-8")), was_finished=True)
    for task in masked_tasks([task.spec for task in recipe.tasks]):
        where = f"task {task.name!r}"
        raise SpecError(f"{task.type} has no labels to draw shots of", where=where, mend="leave the task out")
    data = data if data is not None else load_recipe(recipe, seed=split_seed(recipe))
    train = _in_memory(data)
    make_folder(folder)
    set_seed(options.seed)
    architecture = recipe.architecture_of(data.tasks)
    model = MultiTaskModel.from_encoder(data.encoder, data.tasks, seed=options.seed, architecture=architecture)
    model.config.split_seed = split_seed(recipe)
    model.to(cast(Any, arguments.device))
    prepare_model(model, arguments, [task.spec.name for split in train.values() for task in split.tasks])
    episodes = Episodes(model, data.tokenizer, train, options)
    outer = OuterLoop(model, options)
    run = to_json({"options": asdict(options), "recipe": replace(recipe, search={}).to_dict()})
    state = folder / STATE_NAME
    seconds = _load(outer, state, run) if resume and state.is_file() else 0.0
    if overwrite:
        for name in STANDING:
            (folder / name).unlink(missing_ok=True)
    write_text(recipe.to_yaml(relative_to=folder), folder / RECIPE_NAME)

    history: list[dict[str, float]] = []
    start = time.monotonic() - seconds
    model.train()
    while outer.step < options.steps:
        losses = _step(outer, episodes, options.seed)
        mean = sum(losses.values()) / len(losses)
        history.append({"step": outer.step, **{f"loss_{task}": value for task, value in losses.items()}})
        if on_step is not None:
            on_step(outer.step, options.steps, mean)
        if outer.step % SAVE_EVERY == 0 and outer.step < options.steps:
            _save(outer, state, run, seconds=time.monotonic() - start)
    taken = time.monotonic() - start

    model.eval().save_pretrained(folder)
    forget_last_call(data.tokenizer)
    data.tokenizer.save_pretrained(folder)
    results: dict[str, Any] = {"train": {**asdict(options), "outer_rate": options.rate, "train_seconds": taken}}
    test = score_saved(folder, data.tokenizer, data, arguments, results)
    told = {f"meta_{name}": value for name, value in asdict(options).items()} | {"meta_outer_rate": options.rate}
    write_training_card(
        folder, data, arguments, results=results, history=history, shares={}, seconds=taken, hyperparameters=told
    )
    write_text(to_json(results, indent=2) + "\n", folder / RESULTS_NAME)
    state.unlink(missing_ok=True)
    return TrainingRun(folder, results, test)


def score_saved(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    data: RecipeData,
    arguments: MultiTaskTrainingArguments,
    results: dict[str, Any],
) -> Scores | None:
    """Score the model that stands in a folder on the splits there are, into `results`; return those of the test."""
    saved = MultiTaskModel.from_pretrained(folder).to(arguments.device)
    test: Scores | None = None
    for split in ("validation", "test"):
        rows = data.split(split)
        if rows:
            scores = score(saved, tokenizer, rows, batch_size=arguments.per_device_eval_batch_size)
            results[split] = {**scores.metrics, "average": scores.average()}
            test = scores if split == "test" else test
    return test


def _step(outer: OuterLoop, episodes: Episodes, seed: int) -> dict[str, float]:
    """Take an outer step; return the loss of each of its tasks on query rows."""
    step, losses, gradients = outer.step, dict[str, float](), []
    for task in episodes.tasks(step):
        support, query = episodes(task, step)
        with drawn_from(seed, "meta", task, step, device=outer.model.device):  # dropout
            gradient, losses[task] = outer.task(task, support, query)
        gradients.append(gradient)
    outer.take(gradients)
    return losses


def _arguments(recipe: Recipe, folder: Path, options: MetaOptions) -> MultiTaskTrainingArguments:
    arguments = training_arguments(
        folder, {**recipe.training, "bf16": False, "fp16": False, "precision": "fp32", "seed": options.seed}
    )
    if arguments.world_size > 1:
        raise SpecError(f"{arguments.world_size} processes were started", mend="meta-train with one process")
    for name in ("peft", "perturbation", "balancing", "aggregation", "packing"):
        if getattr(arguments, name):
            raise SpecError(
                f"{name} is {getattr(arguments, name)!r}, which meta-training does not know",
                where="training",
                mend=f"leave {name} out",
            )
    return arguments


def _in_memory(data: RecipeData) -> Mapping[str, EncodedSplit]:
    if not data.train:
        raise DataError("there are no training rows", mend="name training files in the recipe's datasets")
    return data.split("train")


def _check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError("it is a file", where=str(folder), mend="name a folder")
    holds = [name for name in STANDING if (folder / name).exists()]
    if holds and not (resume or overwrite):
        raise OutputError(
            f"the folder holds {holds[0]}", where=str(folder), mend="give --resume, --overwrite or another --output-dir"
        )


def _save(outer: OuterLoop, path: Path, run: str, *, seconds: float) -> None:
    unfinished = path.with_suffix(".tmp")
    torch.save({**outer.state_dict(), "run": run, "seconds": seconds}, unfinished)
    unfinished.replace(path)


def _load(outer: OuterLoop, path: Path, run: str) -> float:
    """Give the outer loop a state that was saved; return the seconds that led to it. No code is unpickled."""
    state = cast(dict[str, Any], torch.load(path, map_location=outer.model.device, weights_only=True))
    if state["run"] != run:
        raise OutputError(
            "the run there was of another recipe or other options",
            where=str(path.parent),
            mend="resume with the same ones, or give another --output-dir",
        )
    outer.load_state_dict(state)
    return float(state["seconds"])
