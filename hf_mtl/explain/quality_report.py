"""Tables and pictures of how good explanations are."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from hf_mtl.errors import MissingExtraError
from hf_mtl.explain.faithfulness import STEPS
from hf_mtl.explain.measurements import GREEDY, RANDOM, REFERENCES, Quality
from hf_mtl.explain.plausibility import MEASURES as AGREEMENTS
from hf_mtl.writing import TextTable, replacing

PICTURES = (".png", ".svg", ".pdf")


def quality_table(quality: Quality, *, how: str | None = None) -> TextTable:
    """Lay out what was measured of every method, the most comprehensive first; `±` is the standard error.

    Args:
        quality: what was measured.
        how: how words were taken away; the first of the ways measured where not given.
    """
    how = how or quality.removals[0]
    numeric, marked = quality.measure == "value", quality.has_rationales
    header = ["method", "norm. comp.", "comp.", "norm. suff.", "suff."]
    header += [] if numeric else [f"flips at {quality.top}"]
    header += ["AUPRC", "token F1", "IOU"] if marked else []
    rows: list[list[str]] = []
    for name in ranked_methods(quality, how=how):
        cells = [name]
        for measure in ("comprehensiveness", "sufficiency"):
            cells += [str(quality.normalised(name, measure, how)), str(quality.estimate(name, measure, how))]
        cells += [] if numeric else [f"{quality.estimate(name, 'flips', how).mean:.0%}"]
        cells += [str(quality.estimate(name, measure)) for measure in AGREEMENTS] if marked else []
        time = quality.milliseconds(name)
        rows.append([*cells, "" if np.isnan(time) else f"{time:.0f}"])
    taken = "deleted" if how == "delete" else "masked"
    return TextTable(f"{quality.task}: {quality.texts} texts, words {taken}", [*header, "ms"], rows)


def difference_table(quality: Quality, *, how: str | None = None) -> TextTable:
    """Lay out how far each method stands behind the most comprehensive, paired text by text."""
    best, *others = (name for name in ranked_methods(quality, how=how) if name in quality.methods)
    rows = [
        [name, *(str(quality.difference(name, best, m, how)) for m in ("comprehensiveness", "sufficiency"))]
        for name in others
    ]
    return TextTable(f"{quality.task}: difference from {best}", ["method", "comp.", "suff."], rows)


def ranked_methods(quality: Quality, *, how: str | None = None) -> list[str]:
    """Return all methods and references, the most comprehensive first; equal ones as they were given."""
    names = list(quality.found)
    return sorted(names, key=lambda name: -quality.estimate(name, "comprehensiveness", how).mean)


def quality_tables(qualities: Sequence[Quality]) -> list[TextTable]:
    """Return all tables: of each task one for each way of taking words away, and how far the methods differ."""
    found: list[TextTable] = []
    for one in qualities:
        found += [quality_table(one, how=how) for how in one.removals]
        found += [difference_table(one)] if len(one.methods) > 1 else []
    return found


def need_matplotlib() -> None:
    """Check that a picture can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", extra="plots")


def draw_quality(qualities: Sequence[Quality], target: Path, *, how: str | None = None) -> None:
    """Draw the curve of every method as its words are taken away, and bars of its comprehensiveness; a row per task.

    Args:
        qualities: what was measured, of at least one task.
        target: the picture; its ending is one of `PICTURES`.
        how: how words were taken away.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tall = sum(1.4 + 0.28 * max(6, len(quality.found)) for quality in qualities)
    figure = Figure(figsize=(11, tall), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(qualities), 2, squeeze=False)
    for (left, right), quality in zip(grid, qualities, strict=True):
        _draw_curves(left, quality, how or quality.removals[0])
        _draw_bars(right, quality, how or quality.removals[0])
    kind = target.suffix[1:].lower()
    # Without a date and a version equal figures make equal files.
    fixed = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with replacing(target) as temporary:
        figure.savefig(temporary, format=kind, dpi=120, metadata=fixed)


def _draw_curves(axes: Any, quality: Quality, how: str) -> None:
    steps, colors = np.arange(STEPS + 1) / STEPS, _colors(quality, how)
    for name in ranked_methods(quality, how=how):
        lost = np.concatenate([[0.0], quality.found[name].curve(how)])
        style = {RANDOM: ":", GREEDY: "--"}.get(name, "-")
        axes.plot(steps, lost, style, color=colors[name], label=name if name in REFERENCES else None, linewidth=1.4)
    axes.set_title(f"{quality.task}: without the words that matter most", fontsize=10)
    axes.set_xlabel(f"share of the words {'deleted' if how == 'delete' else 'masked'}")
    axes.set_ylabel("absolute change" if quality.measure == "value" else "probability lost")
    axes.legend(fontsize=8)


def _draw_bars(axes: Any, quality: Quality, how: str) -> None:
    names = [name for name in ranked_methods(quality, how=how) if name in quality.methods]
    found, colors = [quality.normalised(name, how=how) for name in names], _colors(quality, how)
    labels = [f"{name}  {one.mean:.2f}" for name, one in zip(names, found, strict=True)]
    errors, means = [one.error for one in found], [one.mean for one in found]
    axes.barh(labels, means, xerr=errors, color=[colors[name] for name in names], capsize=2)
    axes.invert_yaxis()
    axes.axvline(0.0, color=colors[RANDOM], linestyle=":")
    axes.axvline(1.0, color=colors[GREEDY], linestyle="--")
    axes.set_title(f"{quality.task}: comprehensiveness, random 0, greedy 1", fontsize=10)


def _colors(quality: Quality, how: str) -> dict[str, Any]:
    """Return a colour for each method, the same in both pictures: the bars' names are the curves' legend."""
    from matplotlib import colormaps

    names = [name for name in ranked_methods(quality, how=how) if name in quality.methods]
    palette: Any = colormaps["tab20"]
    ordered = [*range(0, 20, 2), *range(1, 20, 2)]  # strong colours first
    found = {name: palette(ordered[place % 20]) for place, name in enumerate(names)}
    return {**found, RANDOM: "0.5", GREEDY: "0.2"}
