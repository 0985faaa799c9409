"""`hf-mtl push`: a trained model to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("push")(push)


def push(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model.", show_default=False)],
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hub; made if need be.", show_default=False)],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Who sees a new repository.", show_default="your settings")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.", show_default="main")] = None,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload model",
) -> None:
    """Push a model with its tokenizer, code, card and training arguments; log in first with `hf auth login`."""
    from hf_mtl.cli._terminal import quiet_libraries
    from hf_mtl.hub.push import push_folder

    quiet_libraries()
    typer.echo(push_folder(model, repo_id, private=private, revision=revision, message=message))
