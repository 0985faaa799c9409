"""`hf-mtl label`: missing labels filled where a model is sure of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("label")(label)


def label(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.", show_default=False)],
    recipe: Annotated[Path, typer.Argument(help="Recipe that names the data.", show_default=False)],
    output: Annotated[Path, typer.Option(help="File to write: jsonl, csv, tsv or parquet.", show_default=False)],
    dataset: Annotated[
        str | None, typer.Option(help="Dataset whose training rows are filled.", show_default="the only one")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--input", help="File of rows to fill instead, with the columns of the dataset.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given several times.")] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            help="Least confidence of a filled label, for all tasks or as task=0.8; may be given several times.",
            show_default="0.9",
        ),
    ] = None,
    numbers: Annotated[
        bool, typer.Option("--numbers", help="Fill tasks that answer numbers, too, without any threshold.")
    ] = False,
    uncalibrated: Annotated[
        bool, typer.Option("--uncalibrated", help="Take confidences as they are; needs no validation rows.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
) -> None:
    """Fill missing labels of partially labelled rows where the model is sure, and mark what was filled.

    Confidences are calibrated first, on the validation rows. Labels that are given stay as they are, and a recipe can
    train on the file that is written.
    """
    from hf_mtl.cli._terminal import err, out, progress, quiet_libraries, text_table
    from hf_mtl.data.recipe import read_recipe
    from hf_mtl.inference.labelling import label_file
    from hf_mtl.inference.loading import load_model
    from hf_mtl.writing import check_target, to_json

    quiet_libraries()
    check_target(output)
    general, own = _thresholds(threshold or [])
    read = read_recipe(recipe)
    loaded, tokenizer = load_model(model, device=device, dtype=dtype)
    with progress("Labelling", "rows") as show:
        done = label_file(
            loaded,
            tokenizer,
            read,
            output,
            dataset=dataset,
            source=source,
            tasks=task,
            threshold=general,
            thresholds=own,
            calibrated=not uncalibrated,
            numbers=numbers,
            batch_size=batch_size,
            on_rows=lambda rows: show(rows, None),
        )
    if as_json:
        typer.echo(to_json(done.to_dict(), indent=2))
        return
    out().print(text_table(done.table()))
    for name in done.numbers:
        err().print(f"{name} answers numbers, which have no confidence; --numbers fills them all the same")
    err().print(f"{done.rows} rows: {output}")


def _thresholds(given: list[str]) -> tuple[float, dict[str, float]]:
    """Return the threshold of all tasks and those of single tasks."""
    from hf_mtl.errors import SpecError

    general, own = 0.9, dict[str, float]()
    for text in given:
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise SpecError(
                f"threshold is {text!r}", mend="give a number, or a task and a number: intent=0.8"
            ) from None
        if equals:
            own[name] = value
        else:
            general = value
    return general, own
