"""`hf-mtl task-updates`: what training changed, for which task, and what each task needs of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("task-updates")(task_updates)


def task_updates(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.", show_default=False)],
    recipe: Annotated[Path, typer.Argument(help="Recipe that names encoder and data.", show_default=False)],
    output: Annotated[Path, typer.Option(help="HTML page to write, in one file.", show_default=False)],
    encoder: Annotated[
        str | None, typer.Option(help="Encoder that training began from.", show_default="the recipe's")
    ] = None,
    steps: Annotated[
        int, typer.Option(min=0, help="Steps that each task is trained alone from this encoder; 0 leaves it out.")
    ] = 50,
    alone: Annotated[
        list[str] | None,
        typer.Option(
            help="task=FOLDER of a model trained on the task alone from this encoder, such as hf-mtl compare leaves;"
            " in place of the steps; may be given several times."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Rows to score on: validation or test.")] = "validation",
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given several times.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Labelled rows of a task that are scored.")] = 500,
    heads: Annotated[
        bool, typer.Option("--heads", help="Put back attention heads, too, one at a time: a pass over the rows each.")
    ] = False,
    share: Annotated[float, typer.Option(help="Share of the numbers that count as the most changed.")] = 0.01,
    least_drop: Annotated[float, typer.Option(min=0.0, help="Lost score that makes a part critical.")] = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON as well, and nothing else.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of training and of every draw.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
) -> None:
    """Say which layers and heads training moved, together and for each task alone, where tasks overlap, and what each
    task loses when a part is put back to where it began."""
    from hf_mtl.cli._terminal import err, out, quiet_libraries, text_table
    from hf_mtl.configuration import select_tasks
    from hf_mtl.data.dataset_source import SPLITS
    from hf_mtl.data.preparation import load_recipe
    from hf_mtl.data.recipe import near, read_recipe
    from hf_mtl.errors import DataError, ModelError, SpecError
    from hf_mtl.explain.alone_training import train_alone
    from hf_mtl.explain.figures import new_figure
    from hf_mtl.explain.task_updates import task_updates as compare_updates
    from hf_mtl.inference.exported import ExportedModel
    from hf_mtl.inference.loading import load_model
    from hf_mtl.model.encoders.base import load_encoder
    from hf_mtl.model.lora import merge_and_unload
    from hf_mtl.training.run import split_seed
    from hf_mtl.writing import check_target, to_json, write_text

    quiet_libraries()
    if split not in SPLITS:
        raise SpecError(f"split is {split!r}", mend=near(split, SPLITS))
    check_target(output)
    new_figure(1, 1)  # before the work is done that nobody could draw
    read = read_recipe(recipe)
    loaded, tokenizer = load_model(model, device=device)
    if isinstance(cast(object, loaded), ExportedModel):
        raise ModelError("an exported graph has no weights", where=f"model {model!r}", mend="name the model itself")
    chosen = select_tasks(loaded.specs, task)
    named = _folders(alone or [], [spec.name for spec in chosen])
    place = encoder or read.encoder_path
    start = load_encoder(place)
    splits = list(dict.fromkeys(("train", "validation", split)))
    data = load_recipe(read, tokenizer=tokenizer, tasks=chosen, splits=splits, seed=split_seed(read, loaded.config))
    if not data.split(split):
        raise DataError(f"no dataset has a {split} split", where=str(recipe), mend=f"name files in {split}")

    def tell(what: str) -> Any:
        return lambda number, total, name: err().print(f"{what} {name} ({number} of {total})")

    encoders: dict[str, Any] = {n: merge_and_unload(load_model(folder)[0]).encoder for n, folder in named.items()}
    how = "Single tasks: trained models that were given."
    if not named and steps:
        names = [spec.name for spec in chosen]
        encoders = train_alone(data, place, steps=steps, tasks=names, seed=seed, on_task=tell("training on"))
        how = f"Single tasks: {steps} steps each with a new head, the recipe's arguments and a constant learning rate."
    updates = compare_updates(
        loaded,
        tokenizer,
        data.split(split),
        start,
        alone=encoders,
        tasks=[spec.name for spec in chosen] if task else None,
        rows=rows,
        share=share,
        head_drops=heads,
        least_drop=least_drop,
        seed=seed,
        how=how if encoders else "",
        on_part=tell("putting back"),
    )
    write_text(updates.to_html(f"What training changed in {Path(model).resolve().name or model}"), output)
    if as_json:
        typer.echo(to_json(updates.to_dict(), indent=2))
        return
    for table in updates.tables():
        out().print(text_table(table))
    err().print(f"report: {output}")


def _folders(given: list[str], tasks: list[str]) -> dict[str, str]:
    """Return the models of single tasks that were named."""
    from hf_mtl.errors import SpecError, one_of

    found: dict[str, str] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not folder or name not in tasks:
            raise SpecError(f"alone is {text!r}", mend=f"give task=FOLDER, with one of {one_of(tasks)}")
        found[name] = folder
    return found
