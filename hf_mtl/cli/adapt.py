"""`hf-mtl adapt`: a trained model taken to a new task with a few rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("adapt")(adapt)


def adapt(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.", show_default=False)],
    task: Annotated[str, typer.Option(help="Name of the new task.", show_default=False)],
    data: Annotated[Path, typer.Option(help="File of its rows: jsonl, csv, tsv, parquet, conll.", show_default=False)],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "--output", help="Folder for the adapted model.", show_default=False)
    ],
    task_type: Annotated[str, typer.Option("--type", help="Type of the task.")] = "sequence_classification",
    shots: Annotated[
        int | None, typer.Option(min=1, help="Rows per label that are drawn.", show_default="all rows")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="File of rows to score on.")] = None,
    text: Annotated[str | None, typer.Option(help="Column of the text.", show_default="text")] = None,
    text_pair: Annotated[str | None, typer.Option(help="Column of the second text of a pair.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Column of tokens, instead of the text.")] = None,
    choices: Annotated[str | None, typer.Option(help="Column of the choices, for multiple_choice.")] = None,
    label: Annotated[str, typer.Option(help="Column of the labels.")] = "label",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimizer.")] = 50,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of the encoder; ten times that of heads.")] = 1e-4,
    freeze_encoder: Annotated[
        bool, typer.Option("--freeze-encoder", help="Train the new head alone, and keep the other tasks.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw and the head.")] = 42,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model there.")] = False,
) -> None:
    """Give a trained model a head for a new task, and train it for a few steps on a few rows."""
    from hf_mtl.cli._terminal import err, out, quiet_libraries, score_table
    from hf_mtl.cli._training_progress import TrainingProgress
    from hf_mtl.errors import ModelError
    from hf_mtl.inference.loading import load_model
    from hf_mtl.model.modeling import MultiTaskModel
    from hf_mtl.training.meta_learning_adaptation import FewRows
    from hf_mtl.training.meta_learning_adaptation import adapt as adapt_model

    quiet_libraries()
    rows = FewRows(
        task=task,
        type=task_type,
        train=data,
        test=test,
        text=text,
        text_pair=text_pair,
        tokens=tokens,
        choices=choices,
        label=label,
        shots=shots,
        seed=seed,
    )
    rows.recipe()  # refused before anything is loaded
    loaded, tokenizer = load_model(model, dtype="fp32")
    if not isinstance(cast(object, loaded), MultiTaskModel):
        raise ModelError("an exported graph cannot be trained", where=f"model {model!r}", mend="name the model itself")
    progress = TrainingProgress()
    try:
        run = adapt_model(
            loaded,
            tokenizer,
            rows,
            output_dir,
            steps=steps,
            training={"learning_rate": learning_rate},
            freeze_encoder=freeze_encoder,
            overwrite=overwrite,
            name=Path(model).name,
            callbacks=[progress],
        )
    finally:
        progress.close()
    if run.test is not None:
        out().print(score_table(run.test, title="test rows"))
    err().print(f"{run.results['train']['rows']} rows; model: {output_dir}")
