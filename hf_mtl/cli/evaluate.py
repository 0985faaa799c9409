"""`hf-mtl evaluate`: how good a model is on every task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.", show_default=False)],
    recipe: Annotated[Path, typer.Argument(help="Recipe that names the data.", show_default=False)],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given several times.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    errors: Annotated[
        Path | None, typer.Option(help="Write the most confident mistakes and confusion counts here.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
) -> None:
    """Score a model on every task of a recipe's split, with bootstrap 95% intervals."""
    from hf_mtl.cli._terminal import out, progress, quiet_libraries, score_table
    from hf_mtl.configuration import select_tasks
    from hf_mtl.data.dataset_source import SPLITS
    from hf_mtl.data.preparation import load_recipe
    from hf_mtl.data.recipe import near, read_recipe
    from hf_mtl.errors import DataError, SpecError
    from hf_mtl.evaluation.scoring import score
    from hf_mtl.inference.loading import load_model
    from hf_mtl.training.run import split_seed
    from hf_mtl.writing import check_target, to_json, write_text

    quiet_libraries()
    if split not in SPLITS:
        raise SpecError(f"split is {split!r}", mend=near(split, SPLITS))
    if errors is not None:
        check_target(errors)
    read = read_recipe(recipe)
    loaded, tokenizer = load_model(model, device=device, dtype=dtype)
    # Training rows are those that were trained on: without the rows that were set aside for validation.
    splits = ["train", "validation"] if split == "train" else [split]
    tasks = select_tasks(loaded.specs, task)
    data = load_recipe(read, tokenizer=tokenizer, tasks=tasks, splits=splits, seed=split_seed(read, loaded.config))
    if not data.split(split):
        raise DataError(f"no dataset has a {split} split", where=str(recipe), mend=f"name files in {split}")
    with progress("Evaluating", "batches") as show:
        scores = score(loaded, tokenizer, data.split(split), batch_size=batch_size, on_batch=show)
    if errors is not None:
        found = {name: judged.mistakes() for name, judged in scores.tasks.items()}
        write_text(to_json(found, indent=2) + "\n", errors)
    if as_json:
        metrics = scores.metrics
        typer.echo(to_json({**metrics, "average": scores.average(metrics)}, indent=2))
    else:
        out().print(score_table(scores, title=f"{split} split"))
