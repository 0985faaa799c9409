"""A trained model adapted to a new task: a new head, a few rows, a few steps."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, TrainerCallback, set_seed

from hf_mtl.data.encoded import EncodedSplit, encode_split
from hf_mtl.data.loading import RawSplit
from hf_mtl.data.preparation import RecipeData, find_labels, read_splits
from hf_mtl.data.recipe import Recipe, TaskSource, parse_recipe
from hf_mtl.errors import DataError, OutputError, SpecError
from hf_mtl.model.encoders.base import check_task_lengths
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.card import write_training_card
from hf_mtl.training.meta_learning_episodes import RowsByLabel
from hf_mtl.training.meta_learning_run import score_saved
from hf_mtl.training.recipe_arguments import training_arguments
from hf_mtl.training.run import RESULTS_NAME, TrainingRun, make_folder
from hf_mtl.training.trainer import MultiTaskTrainer
from hf_mtl.writing import to_json, write_text


@dataclass(frozen=True, kw_only=True)
class FewRows:
    """A new task and where its rows stand.

    Args:
        task: name of the task.
        type: its type.
        train: file of the rows to learn from.
        test: file of rows to score on.
        text: column of the text.
        text_pair: column of the second text of a pair.
        tokens: column of tokens, instead of `text`.
        choices: column of the choices, for `multiple_choice`.
        label: column of the labels.
        labels: the labels, where the rows do not hold all of them.
        shots: rows per label that are drawn from the file; all of them where not given. Of a task that answers
            numbers, rows in all.
        seed: seed of the draw.
    """

    task: str
    type: str
    train: str | Path
    test: str | Path | None = None
    text: str | None = None
    text_pair: str | None = None
    tokens: str | None = None
    choices: str | None = None
    label: str = "label"
    labels: tuple[str, ...] | None = None
    shots: int | None = 8
    seed: int = 42

    def recipe(self) -> Recipe:
        """Return the rows and the task as a recipe has them.

        Raises:
            RecipeError: a column or the type cannot be.
        """
        text = self.text if self.text is not None or self.tokens is not None else "text"
        columns = {"text": text, "text_pair": self.text_pair, "tokens": self.tokens, "choices": self.choices}
        files = {"train": str(self.train), **({"test": str(self.test)} if self.test is not None else {})}
        task: dict[str, Any] = {"name": self.task, "type": self.type, "dataset": "few", "label": self.label}
        if self.labels is not None:
            task["labels"] = list(self.labels)
        dataset = files | {role: column for role, column in columns.items() if column is not None}
        return parse_recipe({"encoder": "given", "datasets": {"few": dataset}, "tasks": [task]}, base=Path())

    def load(self, tokenizer: PreTrainedTokenizerBase) -> RecipeData:
        """Read, draw and tokenize the rows.

        Raises:
            HfMtlError: a file, a row or a label cannot be used.
        """
        if self.shots is not None and self.shots < 1:
            raise SpecError(f"shots is {self.shots!r}", mend="give a whole number above 0")
        recipe = self.recipe()
        raw = read_splits(recipe, recipe.tasks, splits=("train", "test"), set_aside=False)
        source = find_labels(recipe.tasks[0], raw)
        if self.shots is not None:
            raw["few", "train"] = self._drawn(source, raw["few", "train"])
        encoded: dict[str, dict[str, EncodedSplit]] = {
            split: {"few": encode_split("few", split, rows, recipe.datasets["few"], (source,), tokenizer)}
            for (_, split), rows in raw.items()
        }
        recipe = replace(recipe, tasks=(source,))
        train: dict[str, Any] = dict(encoded["train"])
        return RecipeData(recipe, tokenizer, (source.spec,), train, {}, encoded.get("test", {}))

    def _drawn(self, source: TaskSource, rows: RawSplit) -> RawSplit:
        column: Any = rows.dataset[source.label]
        try:
            known = RowsByLabel(source.spec, column[:])
        except DataError as error:
            raise error.at(str(self.train)) from None
        chosen = known.few(self.shots or 1, random.Random(f"{self.seed}/few"))
        if not chosen:
            raise DataError(
                f"no row has a label in the column {source.label!r}", where=str(self.train), mend="give labelled rows"
            )
        return rows.select(sorted(chosen))


def adapt(
    model: MultiTaskModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: FewRows,
    output_dir: str | Path,
    *,
    steps: int = 50,
    training: Mapping[str, Any] | None = None,
    freeze_encoder: bool = False,
    overwrite: bool = False,
    name: str | None = None,
    data: RecipeData | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainingRun:
    """Give a model a head for a new task, train it for a few steps, and save it as any other model.

    The encoder moves with the new head, so the heads of its other tasks, which it no longer fits, are left out; with
    `freeze_encoder` they stay, to the bit.

    Args:
        model: the model; changed in place.
        tokenizer: its tokenizer.
        rows: the task and its rows.
        output_dir: folder of the model.
        steps: steps of the optimizer, each on a batch of the rows.
        training: training arguments, over those that few rows ask for: batches of at most 16 rows, no evaluation.
        freeze_encoder: whether only the new head is trained.
        overwrite: replace a model that stands in the folder.
        name: what the card calls the model that was begun with.
        data: what `rows.load` gives, or a part of it, where that is there already.
        callbacks: callbacks for the Trainer, in place of those that print.

    Returns:
        The results, with the scores on the test rows where there are any.

    Raises:
        OutputError: a model stands in the folder, and `overwrite` is not set.
        HfMtlError: the task, the rows or an argument cannot be used.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise OutputError("it is a file", where=str(folder), mend="name a folder")
    if (folder / "config.json").exists() and not overwrite:
        raise OutputError("a model stands there", where=str(folder), mend="give --overwrite or another --output-dir")
    values: dict[str, Any] = {"max_steps": steps, "seed": rows.seed, "per_device_train_batch_size": 16}
    values |= {"eval_strategy": "no", "save_strategy": "no", "freeze_encoder": freeze_encoder, **(training or {})}
    arguments = training_arguments(folder, values)
    data = rows.load(tokenizer) if data is None else data
    (spec,) = data.tasks
    check_task_lengths([spec], model.config.get_text_config())
    others = [own.name for own in model.specs]
    model.add_task(spec, seed=rows.seed)
    if not freeze_encoder:
        for other in others:
            model.remove_task(other)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    make_folder(folder)
    set_seed(rows.seed)
    trainer = MultiTaskTrainer(
        model, arguments, train_dataset=data.train, processing_class=tokenizer, callbacks=list(callbacks)
    )
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    trained = trainer.train()
    trainer.save_model(str(folder))
    results: dict[str, Any] = {"train": {**trained.metrics, "rows": len(data.split("train")["few"])}}
    test = score_saved(folder, tokenizer, data, arguments, results)
    told = replace(data, recipe=replace(data.recipe, encoder=name or "another model of hf_mtl"), tasks=model.specs)
    write_training_card(folder, told, arguments, results=results, history=trainer.state.log_history, shares={})
    write_text(to_json(results, indent=2) + "\n", folder / RESULTS_NAME)
    return TrainingRun(folder, results, test)
