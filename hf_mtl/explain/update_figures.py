"""Pictures of what training changed: heat maps of changes, overlaps and drops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_mtl.explain.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hf_mtl.explain.task_updates import TaskUpdates

UNKNOWN = "0.88"
DARK = 0.6
"""Share of the largest value above which a number is written in white."""

MAPS_ABREAST = 4


def update_figures(updates: TaskUpdates) -> dict[str, Figure]:
    """Draw `changes`, and where there are such `overlaps`, `drops` and `heads`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    found = {"changes": _changes(updates)}
    if len(updates.tasks) > 1:
        found["overlaps"] = _overlaps(updates)
    if updates.drops:
        found["drops"] = _drops(updates)
    if updates.changes[0].heads is not None:
        found["heads"] = _heads(updates)
    return found


def _changes(updates: TaskUpdates) -> Figure:
    values = np.array([own.parts for own in updates.changes])
    figure = new_figure(2.4 + 0.62 * len(updates.parts), 1.3 + 0.42 * len(values))
    axes = figure.subplots()
    names = [own.task for own in updates.changes]
    # Colours row by row: a few steps on one task move the encoder less than a whole training.
    largest = np.where(values.max(axis=1, keepdims=True) > 0.0, values.max(axis=1, keepdims=True), 1.0)
    image = _written(
        axes, values / largest, names, updates.parts, "viridis", 0.0, 1.0, "{:.4f}", numbers=values, bright=True
    )
    figure.colorbar(image, ax=axes, shrink=0.8, label="over the row's largest")
    return figure


def _overlaps(updates: TaskUpdates) -> Figure:
    tasks = updates.tasks
    figure = new_figure(3.0 + 1.5 * len(tasks), 1.4 + 0.6 * len(tasks))
    panels = figure.subplots(1, 2)
    for axes, name, title in zip(panels, ("cosine", "jaccard"), ("cosine", "Jaccard index"), strict=True):
        values = np.array([[getattr(updates.overlap(a, b), name) for b in tasks] for a in tasks])
        low, colours = (-1.0, "RdBu") if name == "cosine" else (0.0, "Blues")
        _written(axes, values, tasks, tasks, colours, low, 1.0, "{:.2f}")
        axes.set_title(f"{title} of the updates" if name == "cosine" else f"{title} of the most changed", fontsize=10)
    return figure


def _drops(updates: TaskUpdates) -> Figure:
    tasks = list(updates.scores)
    names = [name for name in dict.fromkeys(own.part for own in updates.drops) if "." not in name]
    drops = [[updates.drop(task, name) for name in names] for task in tasks]
    values = np.array([[own.drop for own in row] for row in drops])
    marks = [["*" if updates.is_critical(own) else "" for own in row] for row in drops]
    figure = new_figure(2.4 + 0.66 * len(names), 1.5 + 0.42 * len(tasks))
    axes = figure.subplots()
    limit = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    # Blue is a loss that the part's training has spared the task: the colour that stands for what helps.
    image = _written(axes, values, tasks, names, "RdBu", -limit, limit, "{:+.3f}", marks=marks)
    figure.colorbar(image, ax=axes, shrink=0.8, label="score lost")
    return figure


def _heads(updates: TaskUpdates) -> Figure:
    maps = [(own.task, np.array(own.heads)) for own in updates.changes]
    layers, width = maps[0][1].shape
    columns = min(len(maps), MAPS_ABREAST)
    rows = -(-len(maps) // columns)
    figure = new_figure(0.6 + columns * (0.9 + max(0.17 * width, 1.0)), rows * (0.9 + max(0.2 * layers, 0.8)))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (task, values) in zip(panels, maps, strict=False):
        image = axes.imshow(values, cmap="viridis", vmin=0.0, vmax=float(values.max()) or 1.0, aspect="auto")
        axes.set_title(_short(task), fontsize=9)
        axes.set_xlabel("head", fontsize=8)
        axes.set_ylabel("layer", fontsize=8)
        for axis, count in ((axes.xaxis, width), (axes.yaxis, layers)):
            step = 1 if count <= 12 else 4
            axis.set_ticks(range(0, count, step), [str(n + 1) for n in range(0, count, step)], fontsize=7)
        figure.colorbar(image, ax=axes, shrink=0.7).ax.tick_params(labelsize=7)
    for axes in panels[len(maps) :]:
        axes.set_axis_off()
    return figure


def _written(
    axes: Any,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    colours: str,
    low: float,
    high: float,
    form: str,
    *,
    numbers: np.ndarray | None = None,
    marks: Sequence[Sequence[str]] | None = None,
    bright: bool = False,
) -> Any:
    """Draw a heat map with its numbers, or others, written in it; `bright` where the largest have bright colours."""
    from matplotlib import colormaps

    colormap = colormaps[colours].with_extremes(bad=UNKNOWN)
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colormap, vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        strong = abs(value) > DARK * max(abs(low), abs(high))
        text = form.format(value if numbers is None else numbers[row, column]) + (
            "" if marks is None else str(marks[row][column])
        )
        axes.text(
            column, row, text, ha="center", va="center", color="white" if strong != bright else "black", fontsize=7
        )
    axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=35, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), [_short(name) for name in rows], fontsize=8)
    return image


def _short(name: str, limit: int = 24) -> str:
    # A dollar sign would begin a formula.
    return (name if len(name) <= limit else f"{name[: limit - 1]}…").replace("$", r"\$")
