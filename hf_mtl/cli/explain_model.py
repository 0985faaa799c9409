"""`hf-mtl explain-model`: what a model goes by, as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("explain-model")(explain_model)


def explain_model(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.", show_default=False)],
    recipe: Annotated[Path, typer.Argument(help="Recipe that names the data.", show_default=False)],
    output: Annotated[Path, typer.Option(help="HTML page to write, in one file.", show_default=False)],
    split: Annotated[str, typer.Option(help="Rows to look at: validation or test.")] = "validation",
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given several times.")] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="words, cues, mistakes, calibration, relations, heads or layers; may be given several times.",
            show_default="the first four",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Labelled rows of a task that are answered.")] = 2000,
    texts: Annotated[int, typer.Option(min=1, help="Texts of a task in which words are left out.")] = 500,
    rationales: Annotated[
        str | None, typer.Option(help="Column that says of each token whether people see a reason in it.")
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="Column of these tokens.", show_default="tokens")] = None,
    comparison: Annotated[
        list[Path] | None, typer.Option(help="comparison.json of hf-mtl compare, for the transfer between tasks.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON as well, and nothing else.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every draw.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
) -> None:
    """Report on a model as a whole: words that carry its labels, words to doubt, mistakes it is sure of, calibration;
    and where asked, what the tasks are to each other, their attention heads, and what each layer knows."""
    from hf_mtl.cli._terminal import err, out, quiet_libraries, text_table
    from hf_mtl.configuration import select_tasks
    from hf_mtl.data.dataset_source import SPLITS
    from hf_mtl.data.preparation import load_recipe
    from hf_mtl.data.recipe import near, read_recipe
    from hf_mtl.errors import DataError, SpecError
    from hf_mtl.explain.figures import new_figure
    from hf_mtl.explain.global_report import TASK_PARTS, global_report
    from hf_mtl.inference.loading import load_model
    from hf_mtl.training.run import split_seed
    from hf_mtl.writing import check_target, read_json, to_json, write_text

    quiet_libraries()
    if split not in SPLITS:
        raise SpecError(f"split is {split!r}", mend=near(split, SPLITS))
    check_target(output)
    new_figure(1, 1)  # before the work is done that nobody could draw
    read = read_recipe(recipe)
    comparisons = [read_json(path) or {} for path in comparison or ()]
    loaded, tokenizer = load_model(model, device=device)
    chosen = select_tasks(loaded.specs, task)
    # Training rows are those that were trained on: without the rows that were set aside for validation.
    splits = list(dict.fromkeys(("train", "validation", split) if "layers" in (part or ()) else ("validation", split)))
    data = load_recipe(read, tokenizer=tokenizer, tasks=chosen, splits=splits, seed=split_seed(read, loaded.config))
    if not data.split(split):
        raise DataError(f"no dataset has a {split} split", where=str(recipe), mend=f"name files in {split}")
    report = global_report(
        loaded,
        tokenizer,
        data.split(split),
        [spec.name for spec in chosen] if task else None,
        parts=tuple(part or TASK_PARTS),
        rows=rows,
        texts=texts,
        rationale_column=rationales,
        tokens_column=tokens,
        train=data.split("train") if "layers" in (part or ()) else None,
        comparisons=comparisons,
        seed=seed,
        on_part=lambda what: err().print(f"looking at {what}"),
    )
    write_text(report.to_html(f"What the model {Path(model).resolve().name or model!r} goes by"), output)
    if as_json:
        typer.echo(to_json(report.to_dict(), indent=2))
        return
    for table in report.tables():
        out().print(text_table(table))
    err().print(f"report: {output}")
