"""`hf-mtl cross-validate`: how much scores depend on which rows are trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_mtl.cli._training_options import EXTRA, check_recipe_first, naming_recipe, training_options


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("cross-validate", context_settings=EXTRA)(cross_validate)


def cross_validate(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="The recipe.", show_default=False)],
    output_dir: Annotated[Path, typer.Option(help="Folder for the runs.", show_default=False)],
    folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 5,
) -> None:
    """Train a recipe once per fold of its training rows, score it on the fold held out, and print mean and standard
    deviation; takes any training argument. Started again on the same folder, it goes on where it was."""
    check_recipe_first(recipe)
    overrides = training_options(context.args)

    from hf_mtl.cli._terminal import err, out, quiet_libraries, text_table
    from hf_mtl.cli._training_progress import TrainingProgress
    from hf_mtl.data.recipe import read_recipe
    from hf_mtl.training import cross_validation

    quiet_libraries()
    read = read_recipe(recipe, training=overrides)
    progress = TrainingProgress()
    try:
        with naming_recipe(recipe, overrides):
            results = cross_validation.cross_validate(
                read,
                output_dir,
                folds=folds,
                callbacks=[progress],
                on_fold=lambda number, total: err().print(f"fold {number} of {total}"),
            )
    finally:
        progress.close()
    if results is None:
        return
    out().print(text_table(cross_validation.cross_validation_table(results)))
    err().print(f"results: {output_dir / cross_validation.RESULTS_NAME}")
