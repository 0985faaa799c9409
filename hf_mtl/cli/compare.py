"""`hf-mtl compare`: was multi-task worth it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_mtl.cli._training_options import EXTRA, check_recipe_first, naming_recipe, training_options


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare", context_settings=EXTRA)(compare)


def compare(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="The recipe.", show_default=False)],
    output_dir: Annotated[Path, typer.Option(help="Folder for the runs and the comparison.", show_default=False)],
    seeds: Annotated[str | None, typer.Option(help="Seeds to train with: 0,1,2.", show_default="the recipe's")] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Draws of the bootstrap.")] = 1000,
) -> None:
    """Train each task alone and all together under the same budget, and print what each gained; takes any training
    argument. Started again on the same folder, it goes on where it was."""
    check_recipe_first(recipe)
    overrides = training_options(context.args)
    chosen = None if seeds is None else whole_numbers(seeds)

    from hf_mtl.cli._terminal import err, out, quiet_libraries, text_table
    from hf_mtl.cli._training_progress import TrainingProgress
    from hf_mtl.data.recipe import read_recipe
    from hf_mtl.training import comparison
    from hf_mtl.training.outcomes import comparison_tables

    quiet_libraries()
    read = read_recipe(recipe, training=overrides)
    progress = TrainingProgress()
    try:
        with naming_recipe(recipe, overrides):
            results = comparison.compare(
                read,
                output_dir,
                seeds=chosen,
                resamples=resamples,
                callbacks=[progress],
                on_run=lambda number, total, what: err().print(f"run {number} of {total}: {what}"),
            )
    finally:
        progress.close()
    if results is None:
        return
    for table in comparison_tables(results):
        out().print(text_table(table))
    out().print(f"budget: {results['budget']}")
    err().print(f"comparison: {output_dir / comparison.COMPARISON_NAME}, {output_dir / comparison.TABLE_NAME}")


def whole_numbers(text: str) -> list[int]:
    """Read a list of whole numbers.

    Raises:
        SpecError: it is none.

    Example:
        >>> whole_numbers("0,1, 2")
        [0, 1, 2]
    """
    from hf_mtl.errors import SpecError

    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise SpecError(f"--seeds is {text!r}", mend="give whole numbers with commas between: 0,1,2") from None
