"""The command line: one file per command, each imported when the command line starts and light until it runs."""

from __future__ import annotations

import sys

import typer

from hf_mtl.cli import (
    adapt,
    check,
    compare,
    cross_validate,
    demo,
    evaluate,
    explain,
    explain_model,
    explain_quality,
    export,
    info,
    init,
    label,
    meta_train,
    predict,
    push,
    task_updates,
    train,
    tune,
)
from hf_mtl.errors import HfMtlError

app = typer.Typer(
    help="Multi-task models: one encoder, one head per task.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    train,
    evaluate,
    predict,
    label,
    explain,
    explain_model,
    explain_quality,
    task_updates,
    compare,
    tune,
    cross_validate,
    meta_train,
    adapt,
    export,
    push,
    info,
    check,
    init,
    demo,
):
    command.add_to(app)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 when it succeeded, 1 for bad input, 2 for bad usage."""
    try:
        app(args=arguments, prog_name="hf-mtl")
    except HfMtlError as error:
        _fail(str(error))
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; nobody is left to tell
        sys.exit(1)
    except OSError as error:  # a full disk, a folder without permission
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _fail(message: str) -> None:
    # Values of the user's files and messages of libraries may hold line breaks and control characters.
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.split()))
    print(f"error: {line}", file=sys.stderr)
    sys.exit(1)
