"""`hf-mtl train`: one model for all tasks of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_mtl.cli._training_options import EXTRA, check_recipe_first, naming_recipe, training_options


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train", context_settings=EXTRA)(train)


def train(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="The recipe.", show_default=False)],
    output_dir: Annotated[Path, typer.Option(help="Folder for checkpoints and the model.", show_default=False)],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model and checkpoints there.")] = False,
) -> None:
    """Train one model on all tasks of a recipe; takes any training argument: --num-train-epochs 3 --bf16 true ..."""
    from hf_mtl.errors import SpecError

    check_recipe_first(recipe)
    overrides = training_options(context.args)
    if resume and overwrite:
        raise SpecError("--resume and --overwrite are both given", mend="give one of them")
    from hf_mtl.cli._terminal import err, out, quiet_libraries, score_table
    from hf_mtl.cli._training_progress import TrainingProgress
    from hf_mtl.data.recipe import read_recipe
    from hf_mtl.training.run import run_training

    quiet_libraries()
    read = read_recipe(recipe, training=overrides)
    progress = TrainingProgress()
    try:
        with naming_recipe(recipe, overrides):
            run = run_training(read, output_dir, resume=resume, overwrite=overwrite, callbacks=[progress])
    finally:
        progress.close()
    if not run.reports:
        return
    if run.was_finished:
        err().print(f"the run in {output_dir} is finished: nothing to do")
    elif run.test is not None:
        out().print(score_table(run.test, title="test split"))
    err().print(f"model: {output_dir}")
