"""`hf-mtl meta-train`: a model from which a few steps on a few rows of a new task go far."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("meta-train")(meta_train)


def meta_train(
    recipe: Annotated[Path, typer.Argument(help="The recipe.", show_default=False)],
    output_dir: Annotated[Path, typer.Option(help="Folder for the model.", show_default=False)],
    algorithm: Annotated[str, typer.Option(help="reptile, fomaml or maml.")] = "reptile",
    steps: Annotated[int, typer.Option(min=1, help="Outer steps.")] = 200,
    tasks_per_step: Annotated[int, typer.Option(min=1, help="Tasks that each outer step draws.")] = 4,
    inner_steps: Annotated[int, typer.Option(min=1, help="Steps on the rows of a task.")] = 5,
    inner_rate: Annotated[float, typer.Option(help="Learning rate of these steps.")] = 0.05,
    max_grad_norm: Annotated[float, typer.Option(help="Longest gradient of these steps; 0 for any length.")] = 1.0,
    outer_rate: Annotated[
        float | None, typer.Option(help="Rate of the outer steps.", show_default="0.5 for reptile, else 1e-4")
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="Support rows per label, and as many query rows.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of an inner step.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all draws.")] = 42,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last state there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model there.")] = False,
) -> None:
    """Meta-train one model on all tasks of a recipe; hf-mtl adapt then takes it to a new task with a few rows."""
    from hf_mtl.cli._terminal import err, out, progress, quiet_libraries, score_table
    from hf_mtl.data.recipe import read_recipe
    from hf_mtl.errors import SpecError
    from hf_mtl.training.meta_learning import MetaOptions
    from hf_mtl.training.meta_learning_run import meta_train as run_meta_training

    if resume and overwrite:
        raise SpecError("--resume and --overwrite are both given", mend="give one of them")
    quiet_libraries()
    options = MetaOptions(
        algorithm=algorithm,
        steps=steps,
        tasks_per_step=tasks_per_step,
        inner_steps=inner_steps,
        inner_rate=inner_rate,
        max_grad_norm=max_grad_norm,
        outer_rate=outer_rate,
        shots=shots,
        batch_size=batch_size,
        seed=seed,
    )
    read = read_recipe(recipe)
    with progress("Meta-training", "steps") as show:

        def told(step: int, total: int, loss: float) -> None:
            show(step, total)
            if step % max(1, total // 10) == 0 or step == total:
                err().print(f"step {step} of {total}: loss {loss:.4f} on query rows")

        run = run_meta_training(read, output_dir, options, resume=resume, overwrite=overwrite, on_step=told)
    if run.was_finished:
        err().print(f"the run in {output_dir} is finished: nothing to do")
    elif run.test is not None:
        out().print(score_table(run.test, title="test split"))
    err().print(f"model: {output_dir}")
