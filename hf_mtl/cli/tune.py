"""`hf-mtl tune`: the best training arguments for a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_mtl.cli._training_options import EXTRA, check_recipe_first, naming_recipe, training_options

if TYPE_CHECKING:
    from hf_mtl.training.tuning import Tuning
    from hf_mtl.writing import TextTable


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tune", context_settings=EXTRA)(tune)


def tune(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="The recipe.", show_default=False)],
    output_dir: Annotated[Path, typer.Option(help="Folder for the trials.", show_default=False)],
    trials: Annotated[int, typer.Option(min=1, help="Number of trials, those of earlier starts included.")] = 20,
) -> None:
    """Search the training arguments that a recipe names under 'search'; takes any training argument. Started again on
    the same folder, it goes on where it was."""
    check_recipe_first(recipe)
    overrides = training_options(context.args)

    from hf_mtl.cli._terminal import err, out, quiet_libraries, text_table
    from hf_mtl.cli._training_progress import TrainingProgress
    from hf_mtl.data.recipe import read_recipe
    from hf_mtl.data.yaml import write_yaml
    from hf_mtl.training import tuning
    from hf_mtl.training.space import shown_values, with_values
    from hf_mtl.training.study import quiet_optuna

    quiet_libraries()
    quiet_optuna()
    read = read_recipe(recipe, training=overrides)
    progress = TrainingProgress()

    def show(number: int, total: int, values: dict[str, object]) -> None:
        shown = ", ".join(map("=".join, zip(values, shown_values(values, list(values)), strict=True)))
        err().print(f"trial {number} of {total}: {shown}")

    try:
        with naming_recipe(recipe, overrides):
            found = tuning.tune(read, output_dir, trials=trials, callbacks=[progress], on_trial=show)
    finally:
        progress.close()
    if found is None:
        return
    out().print(text_table(_table(found)))
    out().print("# the best arguments, for the recipe")
    out().print(write_yaml({"training": with_values({}, found.best.arguments)}).rstrip())
    err().print(f"recipe: {output_dir / tuning.BEST_NAME}")


def _table(found: Tuning) -> TextTable:
    from hf_mtl.training.space import shown_values
    from hf_mtl.writing import TextTable

    rows = [
        (
            f"{trial.number + 1}{' best' if trial == found.best else ''}",
            *shown_values(trial.arguments, found.names),
            f"{trial.seconds:,.1f}",
            f"{trial.value:.4f}" if trial.value is not None else f"failed: {trial.problem}",
        )
        for trial in found.trials
    ]
    return TextTable("Trials", ("trial", *found.names, "seconds", found.metric), rows)
