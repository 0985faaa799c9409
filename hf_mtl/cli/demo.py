"""`hf-mtl demo`: a real encoder on three real tasks, from packages alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DRAWS = 10
"""Sentences drawn from each template: enough to learn from, few enough for a few minutes."""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder for the data and the model.")] = Path("runs/demo"),
    language: Annotated[str, typer.Option(help="Language of the home commands: en or zh-CN.")] = "en",
    seed: Annotated[int, typer.Option(help="Seed of sampling and training.")] = 0,
) -> None:
    """Train sentiment, intent and slots together in a few minutes, and show what the model says."""
    from hf_mtl.cli._terminal import answer_table, err, out, quiet_libraries, score_table
    from hf_mtl.cli._training_progress import TrainingProgress
    from hf_mtl.data.recipe import read_recipe
    from hf_mtl.demo import example_sentences, write_demo_data
    from hf_mtl.inference.bulk import predict_rows
    from hf_mtl.inference.loading import load_model
    from hf_mtl.training.run import run_training

    examples = example_sentences(language)
    quiet_libraries()
    err().print("writing the data: film reviews, and home commands drawn from their grammar")
    recipe = write_demo_data(output_dir / "data", language=language, seed=seed, draws=DRAWS)
    err().print(f"training on it: hf-mtl train {recipe} --output-dir {output_dir / 'model'}")
    run = run_training(read_recipe(recipe), output_dir / "model", overwrite=True, callbacks=[TrainingProgress()])
    if run.test is not None:
        out().print(score_table(run.test, title="test split"))
    model, tokenizer = load_model(run.output_dir)
    rows = predict_rows(model, tokenizer, [{"text": sentence} for sentence in examples])
    for row in rows:
        out().print(f"\n{row['text']}")
        out().print(answer_table(model.specs, row["predictions"]))
    out().print(f"\nmodel: {run.output_dir}")
    out().print(f'try it: hf-mtl predict {run.output_dir} --text "..."')
