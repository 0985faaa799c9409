"""`hf-mtl check`: what a recipe's data holds, and what is wrong with it, before anything is trained."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from hf_mtl.data.preparation import EncodedSplit, RecipeData
    from hf_mtl.data.recipe import TaskSource
    from hf_mtl.data.stream_summary import StreamSummary
    from hf_mtl.data.streamed import StreamedSplit


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("check")(check)


def check(
    recipe: Annotated[Path, typer.Argument(help="The recipe.", show_default=False)],
    near: Annotated[
        bool, typer.Option("--near", help="Also find rows that differ from held-out ones in a few words.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Read a recipe's data and report rows, labels, lengths, truncation and problems; trains nothing."""
    from hf_mtl.cli._terminal import out, progress, quiet_libraries
    from hf_mtl.data.preparation import load_recipe
    from hf_mtl.data.recipe import read_recipe
    from hf_mtl.errors import RecipeError
    from hf_mtl.training.recipe_arguments import training_arguments
    from hf_mtl.training.space import read_space
    from hf_mtl.writing import to_json

    quiet_libraries()
    read = read_recipe(recipe)
    try:
        arguments = training_arguments("unused", read.training)
        read_space(read.search)
    except RecipeError as error:
        raise error.at(str(recipe)) from error.__cause__
    data = load_recipe(read, seed=arguments.seed)
    with progress("Reading streams", "rows") as show:
        report = describe(data, near=near, on_rows=show)
    if as_json:
        typer.echo(to_json(report, indent=2))
    else:
        from rich.text import Text

        for table in _tables(report):
            out().print(table)
        for entry in report["changes"]:
            out().print(Text.assemble(f"{entry['dataset']} {entry['split']}: {entry['change']}"))
        for problem in report["problems"]:
            out().print(Text.assemble(("problem:", "yellow"), " ", problem))
        for omission in report["not_checked"]:
            out().print(Text.assemble("not checked: ", omission))
        if not report["problems"]:
            out().print("no problems found")


def describe(
    data: RecipeData, *, near: bool = False, on_rows: Callable[[int, int | None], None] | None = None
) -> dict[str, Any]:
    """Return datasets, tasks and problems as plain JSON values.

    Args:
        data: the recipe's data; what is streamed is read once.
        near: whether to look for rows that are nearly those of a held-out split.
        on_rows: called with the number of rows read of a stream, and that of all its rows.
    """
    from hf_mtl.data.encoded import EncodedSplit
    from hf_mtl.data.leakage import count_repeated, find_leaks, find_near_leaks
    from hf_mtl.data.stream_summary import summarize
    from hf_mtl.data.streamed import StreamedSplit

    held_out = {"validation": data.validation, "test": data.test}
    in_memory = {name: rows for name, rows in data.train.items() if isinstance(rows, EncodedSplit)}
    splits = {"train": in_memory, **held_out}
    leaks = find_leaks(splits) + (find_near_leaks(splits) if near else [])
    datasets: list[dict[str, Any]] = []
    tasks: list[dict[str, Any]] = []
    problems: list[str] = []
    changes: list[dict[str, str]] = []
    streams = {name: rows for name, rows in data.train.items() if isinstance(rows, StreamedSplit)}
    for name, stream in streams.items():
        summary = summarize(stream, held_out, on_rows=on_rows)
        leaks += summary.leaks
        graphs = {"graphs": summary.graphs} if _reads_graphs(stream) else {}
        datasets.append({"dataset": name, "split": "train", "rows": summary.rows, **graphs, **_stream_lengths(summary)})
        for task in stream.tasks:
            tasks.append(_stream_task(stream, task, summary))
            problems.extend(_task_problems(tasks[-1], data))
    for split, by_name in splits.items():
        for name, rows in by_name.items():
            datasets.append({"dataset": name, "split": split, "rows": len(rows), **_graphs(rows), **_lengths(rows)})
            changes += [{"dataset": name, "split": split, "change": str(change)} for change in rows.raw.changes]
            repeated = count_repeated(rows)
            if repeated and not any(change.added for change in rows.raw.changes):
                problems.append(f"{name} {split}: {repeated} of {len(rows)} rows repeat the text of an earlier row")
            for task in rows.tasks:
                entry = _task(rows, task)
                tasks.append(entry)
                problems.extend(_task_problems(entry, data))
    for leak in leaks:
        problems.append(
            f"{leak.rows} of the {leak.split} rows of {leak.dataset} {'nearly ' if leak.near else ''}stand in the "
            f"{leak.held_out_split} rows of "
            f"{leak.held_out} too: {_shortened(leak.example)!r} ({leak.place}; {leak.held_out_place})"
        )
    trained = {task["task"] for task in tasks if task["split"] == "train"}
    problems += [f"task {spec.name}: there are no training rows" for spec in data.tasks if spec.name not in trained]
    unseen = "whether rows repeat an earlier one" + (", or nearly stand in a held-out split" if near else "")
    omissions = [f"{name} train: {unseen}, for they are streamed" for name in streams]
    return {
        "datasets": datasets,
        "tasks": tasks,
        "changes": changes,
        "problems": problems,
        "not_checked": omissions,
    }


def _reads_graphs(rows: EncodedSplit | StreamedSplit) -> bool:
    return any(task.spec.token_graph for task in rows.tasks)


def _graphs(rows: EncodedSplit) -> dict[str, int]:
    """Count the rows with a dependency graph where a task reads it."""
    from hf_mtl.data.token_governors import count_graphs

    if not _reads_graphs(rows):
        return {}
    column: Any = [] if rows.source.heads is None else rows.raw.dataset[rows.source.heads]
    return {"graphs": count_graphs(column[:])}


def _lengths(rows: EncodedSplit) -> dict[str, Any]:
    import numpy as np

    lengths = rows.lengths
    quantiles = np.percentile(lengths, [50, 95, 100]).astype(int).tolist() if len(lengths) else [0, 0, 0]
    return {
        "tokens": {"mean": float(np.mean(lengths)), "median": quantiles[0], "p95": quantiles[1], "max": quantiles[2]}
    }


def _task(rows: EncodedSplit, task: TaskSource) -> dict[str, Any]:
    from hf_mtl.registry import HEADS

    head = HEADS.get(task.spec.type)
    counts: Counter[str] = Counter()
    for value in rows.gold(task):
        if value is not None:
            counts.update(head.describe(task.spec, value))
    return {
        "task": task.spec.name,
        "dataset": rows.name,
        "split": rows.split,
        "labelled": len(rows.labelled(task.spec.name)),
        "truncated": rows.truncated(task.spec.name),
        "labels": {label: counts.get(label, 0) for label in task.spec.labels or ()},
        **(_choices(rows, task) if head.reads_choices else {}),
    }


def _choices(rows: EncodedSplit, task: TaskSource) -> dict[str, Any]:
    gold, given = rows.gold(task), [row.choices or () for row in rows.inputs()]
    known = rows.labelled(task.spec.name).tolist()
    return _choice_counts(Counter(len(given[row]) for row in known), Counter(int(gold[row]) for row in known))


def _choice_counts(sizes: Counter[int], places: Counter[int]) -> dict[str, Any]:
    """Return how many labelled rows have how many choices, and at which place the right one stands how often."""
    return {
        "choices": {str(size): sizes[size] for size in sorted(sizes)},
        "right": {str(place): places[place] for place in range(max(sizes, default=0))},
    }


def _stream_lengths(summary: StreamSummary) -> dict[str, Any]:
    median, p95, longest = (int(summary.quantile(share)) for share in (0.5, 0.95, 1.0))
    return {"tokens": {"mean": summary.mean_length, "median": median, "p95": p95, "max": longest}}


def _stream_task(rows: StreamedSplit, task: TaskSource, summary: StreamSummary) -> dict[str, Any]:
    name = task.spec.name
    return {
        "task": name,
        "dataset": rows.name,
        "split": "train",
        "labelled": summary.labelled[name],
        "truncated": summary.truncated[name],
        "labels": {label: summary.labels[name][label] for label in task.spec.labels or ()},
        **(_choice_counts(summary.choices[name], summary.right[name]) if name in summary.choices else {}),
    }


def _task_problems(entry: dict[str, Any], data: RecipeData) -> list[str]:
    from hf_mtl.data.windows import reading_of

    place = f"task {entry['task']}, {entry['split']}"
    problems: list[str] = []
    if entry["truncated"]:
        own = [task.spec.name for task in data.recipe.tasks_of(entry["dataset"])]
        limit = reading_of([spec for spec in data.tasks if spec.name in own], data.tokenizer).max_length
        problems.append(f"{place}: {entry['truncated']} of {entry['labelled']} labelled rows are cut to {limit} tokens")
    absent = [label for label, count in entry["labels"].items() if not count]
    if absent and entry["split"] == "train":
        shown = ", ".join(absent[:5]) + (" ..." if len(absent) > 5 else "")
        problems.append(f"{place}: {len(absent)} labels have no training row: {shown}")
    return problems


def _tables(report: dict[str, Any]) -> list[Any]:
    from rich.table import Table

    rows = Table(title="Datasets", title_justify="left")
    for name in ("dataset", "split"):
        rows.add_column(name)
    with_graphs = any("graphs" in entry for entry in report["datasets"])
    for name in ("rows", *(["with a graph"] if with_graphs else []), "mean tokens", "median", "95%", "max"):
        rows.add_column(name, justify="right")
    for entry in report["datasets"]:
        tokens = entry["tokens"]
        numbers = (
            f"{entry['rows']:,}",
            *([f"{entry['graphs']:,}" if "graphs" in entry else "-"] if with_graphs else []),
            f"{tokens['mean']:.1f}",
            *(str(tokens[key]) for key in ("median", "p95", "max")),
        )
        rows.add_row(entry["dataset"], entry["split"], *numbers)
    labels = Table(title="Tasks", title_justify="left")
    for name in ("task", "split"):
        labels.add_column(name)
    for name in ("labelled", "cut"):
        labels.add_column(name, justify="right")
    labels.add_column("labels", overflow="fold")
    for entry in report["tasks"]:
        counts = sorted(entry["labels"].items(), key=lambda item: -item[1])
        shown = ", ".join(f"{label} {count:,}" for label, count in counts[:6])
        shown += f" and {len(counts) - 6} more" if len(counts) > 6 else ""
        if "choices" in entry:
            sizes = ", ".join(f"{count:,} of {size}" for size, count in entry["choices"].items())
            places = ", ".join(f"{place} {count:,}" for place, count in entry["right"].items())
            shown = f"choices: {sizes}; the right one at {places}"
        labels.add_row(entry["task"], entry["split"], f"{entry['labelled']:,}", str(entry["truncated"]), shown)
    return [rows, labels]


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
