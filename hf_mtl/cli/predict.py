"""`hf-mtl predict`: every task's answer for a text, a file or standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("predict")(predict)


def predict(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.", show_default=False)],
    text: Annotated[str | None, typer.Option(help="A text to answer.")] = None,
    text_pair: Annotated[str | None, typer.Option(help="The second text of a pair.")] = None,
    source: Annotated[Path | None, typer.Option("--input", help="File of rows: jsonl, csv, tsv, parquet.")] = None,
    target: Annotated[Path | None, typer.Option("--output", help="File to write: jsonl or parquet.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given several times.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the text.", show_default="text")] = None,
    text_pair_column: Annotated[str, typer.Option(help="Column of the second text.")] = "text_pair",
    tokens_column: Annotated[str | None, typer.Option(help="Column of tokens.", show_default="tokens")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write rows, seconds and rows per second here, as JSON.")] = None,
) -> None:
    """Answer every task from one pass over the text: --text, --input with --output, or standard input to output."""
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

    from hf_mtl.cli._terminal import progress, quiet_libraries
    from hf_mtl.configuration import select_tasks
    from hf_mtl.inference.bulk import Columns, predict_file
    from hf_mtl.inference.files import check_files
    from hf_mtl.inference.loading import load_model
    from hf_mtl.writing import check_target, to_json, write_text

    quiet_libraries()
    if source is not None and target is not None:
        check_files(source, target)  # before the model is loaded
    if report is not None:
        check_target(report)
    loaded, tokenizer = load_model(model, device=device, dtype=dtype)
    tasks = [spec.name for spec in select_tasks(loaded.specs, task)]
    # A tokens column named without a text column is what the user wants to be read.
    columns = Columns(
        text=text_column or (None if tokens_column else "text"),
        text_pair=text_pair_column,
        tokens=tokens_column or "tokens",
    )
    if text is not None:
        _answer_text(loaded, tokenizer, text, text_pair, tasks)
    elif source is not None and target is not None:
        with progress("Answering", "rows") as show:
            throughput = predict_file(
                loaded,
                tokenizer,
                source,
                target,
                tasks=tasks,
                columns=columns,
                batch_size=batch_size,
                on_rows=lambda done: show(done, None),
            )
        if report is not None:
            write_text(to_json(throughput.to_dict(), indent=2) + "\n", report)
        failed = f", {throughput.errors} with an error ({throughput.first_error})" if throughput.errors else ""
        speed = f"{throughput.rows_per_second:,.0f} rows/s"
        typer.echo(f"{throughput.rows} rows{failed} in {throughput.seconds:.1f} s ({speed}): {target}", err=True)
    else:
        _answer_stdin(loaded, tokenizer, tasks, columns, batch_size)


def _answer_text(model: Any, tokenizer: Any, text: str, text_pair: str | None, tasks: list[str]) -> None:
    from hf_mtl.cli._terminal import answer_table, out
    from hf_mtl.inference.bulk import predict_rows
    from hf_mtl.writing import to_json

    row = {"text": text, "text_pair": text_pair} if text_pair is not None else {"text": text}
    answers = next(predict_rows(model, tokenizer, [row], tasks=tasks))["predictions"]
    if sys.stdout.isatty():
        out().print(answer_table(model.specs, answers))
    else:
        typer.echo(to_json(answers, indent=2))


def _answer_stdin(model: Any, tokenizer: Any, tasks: list[str], columns: Any, batch_size: int) -> None:
    from hf_mtl.inference.bulk import predict_rows
    from hf_mtl.inference.files import text_rows
    from hf_mtl.writing import to_json

    rows = text_rows(sys.stdin.buffer)
    for row in predict_rows(
        model, tokenizer, rows, tasks=tasks, columns=columns, batch_size=batch_size, chunk_rows=batch_size
    ):
        typer.echo(to_json(row))
