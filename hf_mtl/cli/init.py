"""`hf-mtl init`: a first recipe from a data file, and the JSON schema of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init")(init)


def init(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Data file, or train, (validation,) test.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a recipe that stands there.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes instead.")] = False,
) -> None:
    """Write a commented recipe from a look at a data file."""
    from hf_mtl.cli._terminal import quiet_libraries
    from hf_mtl.errors import OutputError, SpecError
    from hf_mtl.writing import check_target, to_json, write_text

    if schema:
        from hf_mtl.data.schema import recipe_schema

        typer.echo(to_json(recipe_schema(), indent=2))
        return
    if not files or len(files) > 3:
        raise SpecError(f"{len(files or [])} data files are named", mend="name one to three: train, validation, test")
    if output.exists() and not overwrite:
        raise OutputError("the file exists already", where=str(output), mend="give --overwrite or another --output")
    check_target(output)
    from hf_mtl.data.drafting import draft_recipe

    quiet_libraries()
    text = draft_recipe(files, recipe=output)
    write_text(text, output)
    typer.echo(f"wrote {output}; look it over, then: hf-mtl check {output}", err=True)
