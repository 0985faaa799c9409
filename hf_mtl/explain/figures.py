"""Pictures of what holds for the whole model: heat maps and curves, drawn with matplotlib's own figures."""

from __future__ import annotations

import base64
import io
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_mtl.errors import MissingExtraError
from hf_mtl.evaluation.calibration import CalibrationBin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hf_mtl.explain.importance import HeadImportance
    from hf_mtl.explain.probing import LayerProbe
    from hf_mtl.explain.relations import Relations

UNKNOWN = "0.88"
"""Grey of a cell whose value is not known."""


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure that needs no display.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", extra="plots")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def relation_map(relations: Relations) -> Figure:
    """Draw tasks by tasks; blue agrees or gains, red opposes or loses, grey is unknown."""
    tasks, others = relations.tasks, relations.others
    values = np.full((len(tasks), len(others)), np.nan)
    for row, task in enumerate(tasks):
        for column, other in enumerate(others):
            cell = relations.cell(task, other)
            if cell is not None and cell.known:
                values[row, column] = cell.value
    figure = new_figure(2.5 + 0.95 * len(others), 1.2 + 0.6 * len(tasks))
    axes = figure.subplots()
    limit = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    image = _heat(axes, values, "RdBu", -limit, limit)
    for row, task in enumerate(tasks):
        for column, other in enumerate(others):
            cell = relations.cell(task, other)
            if cell is not None:
                text = f"{cell.value:+.2g}" if cell.known else "?"
                dark = cell.known and abs(cell.value) > 0.6 * limit
                axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=9)
    axes.set_xticks(range(len(others)), [_short(other) for other in others], rotation=30, ha="right")
    axes.set_yticks(range(len(tasks)), [_short(task) for task in tasks])
    figure.colorbar(image, ax=axes, shrink=0.8, label=relations.measure)
    return figure


def head_maps(heads: HeadImportance) -> Figure:
    """Draw layers by heads: the importance for each task, and the number of tasks that share a head as important."""
    count = len(heads.tasks) + 1
    importance = [np.array(own.importance) for own in heads.tasks]
    layers, width = importance[0].shape
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = new_figure(0.6 + columns * (0.9 + 0.17 * width), rows * (1.0 + 0.2 * layers))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, own, values in zip(panels, heads.tasks, importance, strict=False):
        image = _heat(axes, values, "viridis", 0.0, float(values.max()) or 1.0)
        reliable = "reliability" if own.known else "not reliable,"
        axes.set_title(f"{_short(own.task)}\n{reliable} {own.reliability:.2f}", fontsize=9)
        figure.colorbar(image, ax=axes, shrink=0.7).ax.tick_params(labelsize=7)
    users = np.zeros((layers, width))
    for (layer, head), tasks in heads.users.items():
        users[layer, head] = len(tasks)
    image = _heat(panels[count - 1], users, "Greys", 0, max(1, len(heads.tasks)))
    panels[count - 1].set_title(f"tasks that have it\namong their top {heads.num_top}", fontsize=9)
    figure.colorbar(image, ax=panels[count - 1], shrink=0.7, ticks=range(len(heads.tasks) + 1)).ax.tick_params(
        labelsize=7
    )
    for axes in panels[:count]:
        _count_from_one(axes.xaxis, width)
        _count_from_one(axes.yaxis, layers)
        axes.set_xlabel("head", fontsize=8)
        axes.set_ylabel("layer", fontsize=8)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure


def layer_curves(probe: LayerProbe) -> Figure:
    """Draw the score of each layer's probe, with that of shuffled labels, the majority and the model's own head."""
    count = len(probe.tasks)
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = new_figure(3.6 * columns, 2.9 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, own in zip(panels, probe.tasks, strict=False):
        layers = range(len(own.scores))
        axes.plot(layers, own.scores, marker="o", markersize=4, label="probe")
        axes.plot(layers, own.shuffled, marker="x", markersize=4, linestyle=":", color="0.5", label="shuffled labels")
        axes.axhline(own.majority, linestyle="--", linewidth=1, color="0.5", label="majority")
        axes.axhline(own.model, linewidth=1, color="tab:orange", label="the model")
        axes.set_title(_short(own.task), fontsize=10)
        axes.set_xlabel("layer (0: embeddings)", fontsize=8)
        axes.set_ylabel(own.metric, fontsize=8)
        axes.set_xticks(layers if len(layers) <= 13 else range(0, len(layers), 4))
    panels[0].legend(fontsize=7)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure


def calibration_curve(bins: list[CalibrationBin]) -> Figure:
    """Draw accuracy over confidence, the size of a dot telling the number of answers; on the line all is well."""
    figure = new_figure(3.4, 3.1)
    axes = figure.subplots()
    filled = [own for own in bins if own.count]
    most = max((own.count for own in filled), default=1)
    axes.plot([0, 1], [0, 1], linewidth=1, color="0.6")
    axes.plot([own.confidence for own in filled], [own.accuracy for own in filled], linewidth=1, color="tab:blue")
    sizes = [12 + 90 * own.count / most for own in filled]
    axes.scatter([own.confidence for own in filled], [own.accuracy for own in filled], s=sizes, color="tab:blue")
    for own in filled:
        axes.annotate(str(own.count), (own.confidence, own.accuracy), textcoords="offset points", xytext=(5, -9),
                      fontsize=7, color="0.35")  # fmt: skip
    axes.set_xlim(-0.03, 1.06)
    axes.set_ylim(-0.06, 1.06)
    axes.set_xlabel("confidence", fontsize=8)
    axes.set_ylabel("share right", fontsize=8)
    return figure


def figure_html(figure: Figure, description: str) -> str:
    """Return a figure as an HTML image that stands in the page itself.

    Args:
        figure: the figure.
        description: what it shows, for those who do not see it.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, metadata={"Software": None})
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    width = round(figure.get_figwidth() * 80)
    return f'<img alt="{escape(description)}" width="{width}" src="data:image/png;base64,{data}">'


def _heat(axes: Any, values: np.ndarray, colours: str, low: float, high: float) -> Any:
    from matplotlib import colormaps

    colormap = colormaps[colours].with_extremes(bad=UNKNOWN)
    return axes.imshow(np.ma.masked_invalid(values), cmap=colormap, vmin=low, vmax=high, aspect="auto")


def _count_from_one(axis: Any, count: int) -> None:
    step = 1 if count <= 12 else 4
    axis.set_ticks(range(0, count, step), [str(number + 1) for number in range(0, count, step)], fontsize=7)


def _short(name: str, limit: int = 24) -> str:
    # A dollar sign would begin a formula.
    shown = name if len(name) <= limit else f"{name[: limit - 1]}…"
    return shown.replace("$", r"\$")
