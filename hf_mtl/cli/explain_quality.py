"""`hf-mtl explain-quality`: how good explanations of a model are, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_mtl.explain.measurements import Quality


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("explain-quality")(explain_quality)


def explain_quality(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.", show_default=False)],
    recipe: Annotated[Path, typer.Argument(help="Recipe that names the data.", show_default=False)],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given several times.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A method, perhaps with options: shapley:pairs=10; may be given several times.", show_default="all"
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    rows: Annotated[int, typer.Option(min=1, help="Texts of a task, drawn at random.")] = 150,
    perturb: Annotated[
        list[str] | None,
        typer.Option(help="How words are taken away, delete or mask; may be given twice.", show_default="both"),
    ] = None,
    rationale_column: Annotated[
        str | None,
        typer.Option(help="Column with a number for each token: above 0 where people marked it, or its sentiment."),
    ] = None,
    tokens_column: Annotated[
        str | None, typer.Option(help="Column of the tokens that the rationale is about.", show_default="tokens")
    ] = None,
    output: Annotated[
        list[Path] | None,
        typer.Option(help="Write .json, .md (tables), .png, .svg or .pdf (a plot); may be given several times."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rows and of the random orders.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
) -> None:
    """Measure attribution methods on a recipe's texts: what the answer loses without the words they point to, beside
    random choices and a greedy search; and how far they agree with people."""
    from hf_mtl.cli._terminal import err, out, progress, quiet_libraries, text_table
    from hf_mtl.configuration import select_tasks
    from hf_mtl.data.dataset_source import SPLITS
    from hf_mtl.data.preparation import load_recipe
    from hf_mtl.data.recipe import near, read_recipe
    from hf_mtl.errors import DataError, SpecError
    from hf_mtl.explain.explainer import Explainer
    from hf_mtl.explain.marked_rows import draw_marked_rows
    from hf_mtl.explain.method_options import read_methods
    from hf_mtl.explain.quality import quality
    from hf_mtl.explain.quality_report import quality_tables
    from hf_mtl.explain.subject import REMOVALS
    from hf_mtl.inference.loading import load_model
    from hf_mtl.training.run import split_seed

    quiet_libraries()
    if split not in SPLITS:
        raise SpecError(f"split is {split!r}", mend=near(split, SPLITS))
    read_methods(method)
    _check_targets(output or [])
    read = read_recipe(recipe)
    loaded, tokenizer = load_model(model, device=device, dtype=dtype)
    splits = ["train", "validation"] if split == "train" else [split]
    tasks = select_tasks(loaded.specs, task)
    data = load_recipe(read, tokenizer=tokenizer, tasks=tasks, splits=splits, seed=split_seed(read, loaded.config))
    if not data.split(split):
        raise DataError(f"no dataset has a {split} split", where=str(recipe), mend=f"name files in {split}")
    explainer = Explainer(loaded, tokenizer)
    drawn = draw_marked_rows(
        explainer,
        data.split(split),
        task,
        limit=rows,
        seed=seed,
        rationale_column=rationale_column,
        tokens_column=tokens_column,
    )
    found: list[Quality] = []
    for name, texts in drawn.items():
        if texts.left_out:
            err().print(f"{name}: {texts.left_out} rows left out, too long for the model or without words")
        with progress(f"Explaining {name}", "texts") as show:
            found.append(
                quality(
                    explainer,
                    texts.rows,
                    name,
                    methods=method,
                    rationales=texts.rationales,
                    labels=texts.labels,
                    perturb=perturb or REMOVALS,
                    seed=seed,
                    on_text=show,
                )
            )
    for table in quality_tables(found):
        out().print(text_table(table))
    for target in output or []:
        _write(found, target)
        err().print(f"written: {target}")


def _check_targets(targets: Sequence[Path]) -> None:
    """Check that every file can be written, before the work is done."""
    from hf_mtl.errors import SpecError, one_of
    from hf_mtl.explain.quality_report import PICTURES, need_matplotlib
    from hf_mtl.writing import check_target

    for target in targets:
        known = (".json", ".md", *PICTURES)
        if target.suffix.lower() not in known:
            raise SpecError(f"--output is {str(target)!r}", mend=f"give it one of the endings {one_of(known)}")
        if target.suffix.lower() in PICTURES:
            need_matplotlib()
        check_target(target)


def _write(found: Sequence[Quality], target: Path) -> None:
    from hf_mtl.explain.quality_report import draw_quality, quality_tables
    from hf_mtl.writing import to_json, write_text

    if target.suffix.lower() == ".json":
        write_text(to_json({one.task: one.to_dict() for one in found}, indent=2) + "\n", target)
    elif target.suffix.lower() == ".md":
        write_text("\n".join(table.markdown() for table in quality_tables(found)), target)
    else:
        draw_quality(found, target)
