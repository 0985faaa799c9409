"""Training arguments on the command line, for the commands that train."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Context settings of a command that takes any training argument."""


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


def check_recipe_first(recipe: Path) -> None:
    """Refuse options before the recipe, which would be taken for it.

    Raises:
        SpecError: the recipe begins with a dash.
    """
    from hf_mtl.errors import SpecError

    if str(recipe).startswith("-"):
        raise SpecError(f"{str(recipe)!r} stands before the recipe", mend="write the recipe first, then options")


@contextmanager
def naming_recipe(recipe: Path, overrides: Mapping[str, Any]) -> Generator[None]:
    """Put the recipe's path before an error of training arguments that were not given on the command line."""
    from hf_mtl.errors import RecipeError

    try:
        yield
    except RecipeError as error:  # everything else in the recipe is checked when it is read
        given_here = any(name in error.problem for name in overrides)
        raise error if given_here else error.at(str(recipe)) from error.__cause__
