"""`hf-mtl train`: one model for all tasks of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}


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
    from hf_mtl.errors import RecipeError, SpecError

    if str(recipe).startswith("-"):
        raise SpecError(f"{str(recipe)!r} stands before the recipe", mend="write the recipe first, then options")
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
        run = run_training(read, output_dir, resume=resume, overwrite=overwrite, callbacks=[progress])
    except RecipeError as error:  # of the training arguments: everything else in the recipe is checked
        given_here = any(name in error.problem for name in overrides)
        raise error if given_here else error.at(str(recipe)) from error.__cause__
    finally:
        progress.close()
    if not run.reports:
        return
    if run.was_finished:
        err().print(f"the run in {output_dir} is finished: nothing to do")
    elif run.test is not None:
        out().print(score_table(run.test, title="test split"))
    err().print(f"model: {output_dir}")


def training_options(arguments: list[str]) -> dict[str, Any]:
    """Read training arguments from the command line.

    Args:
        arguments: `--num-train-epochs 3`, `--learning-rate=1e-4`, `--bf16` (true) and the like.

    Returns:
        Values by name, typed as YAML types them.

    Raises:
        SpecError: a value stands without its option.

    Example:
        >>> training_options(["--num-train-epochs", "2", "--bf16", "--learning-rate=1e-4"])
        {'num_train_epochs': 2, 'bf16': True, 'learning_rate': 0.0001}
    """
    from hf_mtl.data.yaml import parse_scalar
    from hf_mtl.errors import SpecError

    options: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--") or len(option) < 3:
            raise SpecError(f"{option!r} is not an option", mend="write training arguments as --name value")
        name, given, value = option[2:].partition("=")
        if not given:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        options[name.replace("-", "_")] = parse_scalar(value)
    return options
