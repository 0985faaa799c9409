"""`hf-mtl export`: a trained model for other software."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hf_mtl.writing import TextTable


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


def export(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.", show_default=False)],
    output_dir: Annotated[Path, typer.Option(help="Folder to write; new or empty.", show_default=False)],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given several times.")] = None,
    format: Annotated[
        str, typer.Option(help="transformers: a stock model of one task. onnx, openvino: one graph of all tasks.")
    ] = "transformers",
    quantize: Annotated[str | None, typer.Option(help="int8: a graph that is faster and a little less exact.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Recipe to score model and graph on; OpenVINO's int8 is fitted to its training rows."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split to score: train, validation or test.")] = "validation",
    seed: Annotated[int, typer.Option(help="Seed of the choice of training rows.")] = 0,
) -> None:
    """Write a model in another format, and compare its logits, and with a recipe its scores, with the model's own."""
    from hf_mtl.cli._terminal import out, quiet_libraries, text_table
    from hf_mtl.data.dataset_source import SPLITS
    from hf_mtl.data.recipe import near, read_recipe
    from hf_mtl.errors import SpecError
    from hf_mtl.inference.export import check_empty, check_quantize, choose_rows, export_model
    from hf_mtl.inference.exporters.base import GraphExporter
    from hf_mtl.inference.loading import load_model
    from hf_mtl.registry import EXPORTERS

    quiet_libraries()
    check_quantize(format, quantize)
    check_empty(output_dir)
    exporter = EXPORTERS.get(format)
    if split not in SPLITS:
        raise SpecError(f"split is {split!r}", mend=near(split, SPLITS))
    if recipe is not None and not issubclass(exporter, GraphExporter):
        raise SpecError(f"--recipe does not go with --format {format}", mend="leave it out, or export a graph")
    read = read_recipe(recipe) if recipe is not None else None
    loaded, tokenizer = load_model(model, device="cpu")
    calibration = []
    if read is not None and quantize is not None and exporter.calibrates:
        calibration = choose_rows(_split(read, loaded, tokenizer, task, "train"), seed=seed)
    done = export_model(
        loaded, tokenizer, output_dir, format=format, tasks=task, quantize=quantize, calibration=calibration
    )
    typer.echo(f"{output_dir}: {done.kind}, logits differ by {_differences(done)} at most", err=True)
    if read is not None:
        rows = _split(read, loaded, tokenizer, task, split)
        out().print(text_table(_compared(loaded, load_model(output_dir)[0], tokenizer, rows, split)))


def _differences(done: Any) -> str:
    if done.quantized_difference is None:
        return f"{done.difference:.1e}"
    return f"{done.difference:.1e} in float32 and {done.quantized_difference:.1e} quantized"


def _split(recipe: Any, model: Any, tokenizer: Any, tasks: list[str] | None, split: str) -> Any:
    from hf_mtl.data.preparation import load_recipe
    from hf_mtl.errors import DataError
    from hf_mtl.inference.export import exported_tasks
    from hf_mtl.training.run import split_seed

    # Training rows are those that were trained on: without the rows that were set aside for validation.
    splits = ["train", "validation"] if split == "train" else [split]
    specs = exported_tasks(model, tasks)
    data = load_recipe(recipe, tokenizer=tokenizer, tasks=specs, splits=splits, seed=split_seed(recipe, model.config))
    if not data.split(split):
        raise DataError(f"no dataset has a {split} split", mend=f"name files in {split}")
    return data.split(split)


def _compared(model: Any, graph: Any, tokenizer: Any, rows: Any, split: str) -> TextTable:
    """Score a model and its graph, in the metrics that the tasks are chosen by."""
    from hf_mtl.cli._terminal import progress
    from hf_mtl.evaluation.scoring import score
    from hf_mtl.writing import TextTable

    with progress("Evaluating", "batches") as show:
        before, after = (score(one, tokenizer, rows, on_batch=show) for one in (model, graph))
    lines = [
        (name, scored.metric.primary, *map(_primary, (scored, after.tasks[name])))
        for name, scored in before.tasks.items()
    ]
    lines.append(("average", "of primaries", before.average(), after.average()))
    shown = [(name, key, f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}") for name, key, old, new in lines]
    return TextTable(f"{split} split", ("task", "metric", "model", "graph", "difference"), shown)


def _primary(scored: Any) -> float:
    return scored.metrics[scored.metric.primary]
