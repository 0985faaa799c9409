"""`hf-mtl predict`: every task's answer for a text, a file or standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hf_mtl.inference.bulk import Throughput

STDIN_ROWS = 64
"""Rows of standard input that are answered together."""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("predict")(predict)


def predict(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.", show_default=False)],
    text: Annotated[str | None, typer.Option(help="A text to answer.")] = None,
    text_pair: Annotated[str | None, typer.Option(help="The second text of a pair.")] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="A choice of a multiple-choice task; given several times.")
    ] = None,
    source: Annotated[Path | None, typer.Option("--input", help="File of rows: jsonl, csv, tsv, parquet.")] = None,
    target: Annotated[Path | None, typer.Option("--output", help="File to write: jsonl or parquet.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given several times.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the text.", show_default="text")] = None,
    text_pair_column: Annotated[str, typer.Option(help="Column of the second text.")] = "text_pair",
    tokens_column: Annotated[str | None, typer.Option(help="Column of tokens.", show_default="tokens")] = None,
    heads_column: Annotated[str, typer.Option(help="Column of the tokens' heads, for token graphs.")] = "heads",
    choices_column: Annotated[str, typer.Option(help="Column of the choices, lists of texts.")] = "choices",
    precision: Annotated[
        str, typer.Option(help="What is computed in: auto (bf16 where that is faster), fp32, bf16 or fp16.")
    ] = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of a batch at most.", show_default=False)] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a batch at most.", show_default="by device")
    ] = None,
    compile: Annotated[bool, typer.Option(help="Compile the model, which takes minutes: for very long runs.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="What weights are loaded as: fp32, bf16 or fp16.", show_default="as saved")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write rows, seconds and rows per second here, as JSON.")] = None,
) -> None:
    """Answer every task from one pass over the text: --text, --input with --output, or standard input to output.

    An --output is written when the last row is answered; until then finished parts are kept beside it, and the same
    command goes on where it was killed.
    """
    from hf_mtl.errors import SpecError

    if source is None and text is None and sys.stdin.isatty():
        raise SpecError(
            "there is nothing to answer", mend="give --text, --input with --output, or rows on standard input"
        )
    if source is not None and (target is None or text is not None):
        raise SpecError("--input goes with --output and without --text", mend="give --input and --output")
    if target is not None and source is None:
        raise SpecError("--output goes with --input", mend="give --input and --output")
    if text is None and text_pair is not None:
        raise SpecError("--text-pair goes with --text", mend="give --text too")
    if text is None and choice:
        raise SpecError("--choice goes with --text", mend="give --text too")

    from hf_mtl.cli._terminal import progress, quiet_libraries
    from hf_mtl.configuration import select_tasks
    from hf_mtl.inference.bulk import predict_file
    from hf_mtl.inference.files import check_files
    from hf_mtl.inference.loading import load_model
    from hf_mtl.inference.predictor import Columns, settle_precision
    from hf_mtl.writing import check_target, to_json, write_text

    quiet_libraries()
    if source is not None and target is not None:
        check_files(source, target)  # before the model is loaded
    if report is not None:
        check_target(report)
    loaded, tokenizer = load_model(model, device=device, dtype=dtype)
    settle_precision(loaded, precision)
    tasks = [spec.name for spec in select_tasks(loaded.specs, task)]
    # A tokens column named without a text column is what the user wants to be read.
    columns = Columns(
        text=text_column or (None if tokens_column else "text"),
        text_pair=text_pair_column,
        tokens=tokens_column or "tokens",
        heads=heads_column,
        choices=choices_column,
    )
    if text is not None:
        given = {"text": text, "text_pair": text_pair, "choices": choice or None}
        row = {key: value for key, value in given.items() if value is not None}
        _answer_text(loaded, tokenizer, row, tasks, precision)
    elif source is not None and target is not None:
        with progress("Answering", "rows") as show:
            throughput = predict_file(
                loaded,
                tokenizer,
                source,
                target,
                tasks=tasks,
                columns=columns,
                precision=precision,
                batch_size=batch_size,
                max_tokens=max_tokens,
                compile=compile,
                on_rows=lambda done: show(done, None),
            )
        if report is not None:
            write_text(to_json(throughput.to_dict(), indent=2) + "\n", report)
        typer.echo(f"{_done(throughput)}: {target}", err=True)
        if throughput.rows and throughput.errors == throughput.rows:  # a wrong column, most likely
            raise typer.Exit(1)
    else:
        _answer_stdin(loaded, tokenizer, tasks, columns, precision, batch_size or STDIN_ROWS)


def _done(throughput: Throughput) -> str:
    """Say what was done, and how fast."""
    failed = f", {throughput.errors} with an error ({throughput.first_error})" if throughput.errors else ""
    continued = f", {throughput.continued} of them by an earlier run," if throughput.continued else ""
    speed = f"{throughput.rows_per_second:,.0f} rows/s, {throughput.tokens_per_second:,.0f} tokens/s"
    return f"{throughput.rows} rows{failed}{continued} in {throughput.seconds:.1f} s ({speed}, {throughput.precision})"


def _answer_text(model: Any, tokenizer: Any, row: dict[str, Any], tasks: list[str], precision: str) -> None:
    from hf_mtl.cli._terminal import answer_table, out
    from hf_mtl.errors import DataError
    from hf_mtl.inference.bulk import predict_rows
    from hf_mtl.writing import to_json

    answered = next(predict_rows(model, tokenizer, [row], tasks=tasks, precision=precision))
    if "error" in answered:
        raise DataError(str(answered["error"]))
    answers = answered["predictions"]
    if sys.stdout.isatty():
        out().print(answer_table(model.specs, answers))
    else:
        typer.echo(to_json(answers, indent=2))


def _answer_stdin(model: Any, tokenizer: Any, tasks: list[str], columns: Any, precision: str, chunk_rows: int) -> None:
    from hf_mtl.inference.bulk import predict_rows
    from hf_mtl.inference.files import text_rows
    from hf_mtl.writing import to_json

    rows = text_rows(sys.stdin.buffer)
    for row in predict_rows(
        model, tokenizer, rows, tasks=tasks, columns=columns, precision=precision, chunk_rows=chunk_rows
    ):
        typer.echo(to_json(row))
