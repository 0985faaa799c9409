"""A whole training run: from a recipe to a folder with the model, its scores and the recipe as it was used."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from hf_mtl.configuration import MultiTaskConfig
from hf_mtl.data.preparation import RecipeData, load_recipe
from hf_mtl.data.recipe import Recipe
from hf_mtl.errors import DataError, OutputError
from hf_mtl.evaluation.scoring import Scores
from hf_mtl.evaluation.thresholds import check_tunable, set_thresholds, tuned
from hf_mtl.hub.push import push_folder
from hf_mtl.model.lora import FOLDER as ADAPTER_FOLDER
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.card import write_training_card
from hf_mtl.training.clock import TrainingClock
from hf_mtl.training.recipe_arguments import training_arguments
from hf_mtl.training.trainer import MultiTaskTrainer
from hf_mtl.writing import to_json, write_text

RECIPE_NAME = "recipe.yaml"
RESULTS_NAME = "train_results.json"
OF_ONE_START = ("train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second")
"""What transformers measures from the start of a process on, even where that went on with a checkpoint."""


@dataclass(frozen=True)
class TrainingRun:
    """What a finished run left behind.

    Args:
        output_dir: folder of the model.
        results: `train`, `validation` and `test` results, as in `train_results.json`.
        test: scores on the test split; `None` where there is none, or the run had been finished before.
        was_finished: whether there was nothing left to do.
        reports: whether this process is the one that tells the user, of those that trained together.
    """

    output_dir: Path
    results: dict[str, Any]
    test: Scores | None = None
    was_finished: bool = False
    reports: bool = True


def run_training(
    recipe: Recipe,
    output_dir: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    data: RecipeData | None = None,
) -> TrainingRun:
    """Train a recipe, score the model on validation and test, and save everything.

    Nothing that stands in the folder is touched before recipe, data and plan have been found without error.

    Args:
        recipe: the recipe, with its training arguments.
        output_dir: folder of checkpoints, the model, `recipe.yaml` and `train_results.json`.
        resume: go on from the last whole checkpoint; on a finished run nothing is done.
        overwrite: replace the model or checkpoints that stand in the folder.
        callbacks: callbacks for the Trainer, in place of those that print.
        data: the recipe's data where it is loaded already, or the part of it to train and score on.

    Returns:
        The results.

    Raises:
        OutputError: the folder holds a model or checkpoint and neither `resume` nor `overwrite` is set, or resuming a
            run of another recipe.
        HfMtlError: the recipe, its data or its encoder cannot be used.
    """
    folder = Path(output_dir)
    recipe = replace(recipe, search={})  # which `hf-mtl tune` alone reads
    arguments = training_arguments(folder, recipe.training)
    _check_folder(folder, recipe, resume=resume, overwrite=overwrite)
    if resume and is_finished(folder):
        results = json.loads((folder / RESULTS_NAME).read_text(encoding="utf-8"))
        return TrainingRun(folder, results, was_finished=True, reports=arguments.process_index == 0)
    checkpoint = last_checkpoint(folder) if resume else None

    data = data if data is not None else load_recipe(recipe, seed=split_seed(recipe))
    if not data.train:
        raise DataError("there are no training rows", mend="name training files in the recipe's datasets")
    if not data.validation and arguments.eval_strategy != "no":
        raise DataError("there are no validation rows", mend="name some in the recipe, or set eval_strategy to no")
    check_tunable(data.tasks, data.validation)
    make_folder(folder)
    set_seed(arguments.seed)
    options: dict[str, Any] = {"seed": arguments.seed, "architecture": recipe.architecture_of(data.tasks)}
    model = MultiTaskModel.from_encoder(data.encoder, data.tasks, **options)
    model.config.split_seed = split_seed(recipe)
    trainer = MultiTaskTrainer(
        model,
        arguments,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=data.tokenizer,
        callbacks=[*callbacks, clock := TrainingClock(), _Beginning(folder, recipe, overwrite=overwrite)],
    )
    for printing in (PrinterCallback, ProgressCallback):  # the callers' own callbacks say how it goes
        trainer.remove_callback(printing)
    writes = trainer.is_world_process_zero()
    if writes and checkpoint is not None:
        _bring_best_home(checkpoint)
    trainer.accelerator.wait_for_everyone()

    trained = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    results: dict[str, Any] = {"train": _effort(trainer, trained.metrics, clock)}
    _save(trainer, folder)
    # What is scored is what others will load: the saved weights, without the mixed precision of training.
    saved = MultiTaskModel.from_pretrained(folder).to(arguments.device)
    if any(spec.tune_thresholds for spec in saved.specs):
        _tune_thresholds(trainer, saved, data, folder)
    test: Scores | None = None
    for split in ("validation", "test"):
        rows = data.split(split)
        if rows:
            scores = trainer.score(rows, model=saved)
            metrics = scores.metrics
            results[split] = {**metrics, "average": scores.average(metrics)}
            results["train"][f"{split}_loss"] = {name: task.loss for name, task in scores.tasks.items()}
            test = scores if split == "test" else test
    if writes:
        write_training_card(
            folder,
            data,
            arguments,
            results=results,
            history=trainer.state.log_history,
            shares=trainer.sampling_shares(),
            seconds=clock.seconds,
        )
        write_text(to_json(results, indent=2) + "\n", folder / RESULTS_NAME)
        if arguments.push_to_hub:
            push_folder(
                folder,
                arguments.hub_model_id or folder.resolve().name,
                private=arguments.hub_private_repo,
                revision=arguments.hub_revision,
                token=arguments.hub_token,
            )
    return TrainingRun(folder, results, test, reports=writes)


class _Beginning(TrainerCallback):
    """Clears the folder when training begins: until then the Trainer may still refuse its arguments."""

    def __init__(self, folder: Path, recipe: Recipe, *, overwrite: bool) -> None:
        self.folder, self.recipe, self.overwrite = folder, recipe, overwrite

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            if self.overwrite:
                _clear(self.folder)
            write_text(self.recipe.to_yaml(relative_to=self.folder), self.folder / RECIPE_NAME)


def _effort(trainer: MultiTaskTrainer, metrics: Mapping[str, Any], clock: TrainingClock) -> dict[str, Any]:
    """Return what a training took, the part before it was resumed included: what is of one start alone is left out."""
    rows = trainer.num_examples(cast(Any, trainer.callback_handler.train_dataloader))
    trained = round(rows * (trainer.state.epoch or 0.0))
    kept = {name: value for name, value in metrics.items() if name not in OF_ONE_START or not clock.was_resumed}
    return {**kept, "rows_per_epoch": rows, "train_rows": trained, "train_seconds": clock.seconds}


def split_seed(recipe: Recipe, trained: MultiTaskConfig | None = None) -> int:
    """Return the seed of the rows that training sets aside where a dataset has no validation split.

    Args:
        recipe: the recipe.
        trained: configuration of a model, which knows the seed it was trained with: the recipe may have had another.
    """
    known = getattr(trained, "split_seed", None)
    seed = recipe.training.get("seed") if known is None else known
    return seed if isinstance(seed, int) else MultiTaskTrainingArguments.seed


def is_finished(folder: Path) -> bool:
    """Return whether a run in a folder came to its end."""
    return (folder / RESULTS_NAME).is_file()


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end; `None` where there is none."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    # The trainer's state is the last file of a checkpoint that is written.
    whole = [path for path in found if _is_json(path / "trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def drop_checkpoints(folder: Path) -> None:
    """Remove a run's checkpoints, which nobody needs once it is finished."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def _bring_best_home(checkpoint: Path) -> None:
    """Name the best checkpoint where it is now: the trainer's state remembers the folder it was written to."""
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    written = state.get("best_model_checkpoint")
    best = checkpoint.parent / Path(written or "").name
    if written and str(best) != written and best.is_dir():
        write_text(json.dumps({**state, "best_model_checkpoint": str(best)}, indent=2) + "\n", path)


def _check_folder(folder: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError("it is a file", where=str(folder), mend="name a folder")
    standing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK):
        raise OutputError("it cannot be made or written", where=str(folder), mend="give another --output-dir")
    holds = [name for name in ("model.safetensors", "config.json", RESULTS_NAME) if (folder / name).exists()]
    holds += [path.name for path in folder.glob("checkpoint-*")]
    if holds and not (resume or overwrite):
        raise OutputError(
            f"the folder holds {holds[0]}", where=str(folder), mend="give --resume, --overwrite or another --output-dir"
        )
    written = folder / RECIPE_NAME
    wanted = recipe.to_yaml(relative_to=folder).encode("utf-8")
    if resume and written.is_file() and written.read_bytes() != wanted:
        raise OutputError(
            f"the run there was of another recipe or other arguments (see {RECIPE_NAME})",
            where=str(folder),
            mend="resume with the same recipe and arguments, or give another --output-dir",
        )


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they do not stand.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"it cannot be made ({error.strerror})", where=str(folder), mend="give another --output-dir"
        ) from error


def _clear(folder: Path) -> None:
    """Remove the model and checkpoints of an earlier run, and nothing else."""
    drop_checkpoints(folder)
    for name in (RESULTS_NAME, RECIPE_NAME, "config.json", "model.safetensors", "training_args.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / ADAPTER_FOLDER, ignore_errors=True)


def _save(trainer: MultiTaskTrainer, folder: Path) -> None:
    """Save the model under a temporary name, then move its files into place."""
    temporary = folder / ".model.tmp"
    trainer.save_model(str(temporary), _internal_call=True)  # pushed when all is written, not now
    if trainer.is_world_process_zero():
        for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
            place = folder / path.relative_to(temporary)
            place.parent.mkdir(exist_ok=True)
            path.replace(place)
        shutil.rmtree(temporary)
    trainer.accelerator.wait_for_everyone()


def _tune_thresholds(trainer: MultiTaskTrainer, saved: MultiTaskModel, data: RecipeData, folder: Path) -> None:
    """Choose thresholds on the validation rows, and write them into the saved model's configuration."""
    size = trainer.args.per_device_eval_batch_size
    set_thresholds(saved, tuned(saved, data.tokenizer, data.validation, batch_size=size))
    if trainer.is_world_process_zero():
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["tasks"] = [spec.to_dict() for spec in saved.specs]
        write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", path)
    trainer.accelerator.wait_for_everyone()


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False
