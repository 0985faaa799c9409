"""Put the results of the benchmarks together: `python scripts/bench/report.py`.

Reads all JSON files of the output folder, and writes `report.md`, which holds a table of what must be reached and
tables of all figures, and `report.png`, a plot of the speeds, beside them. Prints the first table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TARGETS: dict[tuple[str, str], tuple[str, float, str]] = {
    ("training", "ours/stock"): ("training tokens/s over the stock Trainer's default", 4.0, "at least"),
    ("training", "ours/bare"): ("training tokens/s over the bare like-length loop", 0.9, "at least"),
    ("inference", "3 tasks over 3 stock pipelines"): (
        "bulk inference, 3 tasks, over 3 stock pipelines",
        10.0,
        "at least",
    ),
    ("inference", "8 tasks over one bare pass"): ("bulk inference, 8 tasks, over one bare pass", 0.9, "at least"),
    ("export", "fastest graph without loss"): ("int8, OpenVINO or ONNX over our own torch", 1.3, "at least"),
    ("inference-memory", "peak memory, many rows over few"): ("peak memory of bulk prediction", 1.1, "at most"),
}
"""What must be reached: by file and ratio its name, the bound, and which kind of bound it is."""
SPEEDS = {"tokens_per_second": "tokens/s", "texts_per_second": "texts/s"}


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results by name of their file."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def reached(reports: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    """Return a row per target: what, the bound, what was measured, whether it is reached."""
    rows: list[list[Any]] = []
    for (file, key), (what, bound, kind) in TARGETS.items():
        found = reports.get(file, {}).get("ratios", {}).get(key)
        good = found is not None and (found >= bound if kind == "at least" else found <= bound)
        rows.append([what, f"{kind} {bound:g}", "not measured" if found is None else found, "yes" if good else "no"])
    return rows


def tables(report: Mapping[str, Any]) -> str:
    """Return all figures of a result: its numbers by name side by side, its rows, and what stands alone."""
    parts: list[str] = []
    named = {
        k: v for k, v in report.items() if k != "ratios" and isinstance(v, Mapping) and all(map(is_plain, v.values()))
    }
    while named:  # those that tell of the same things stand side by side
        keys = list(next(iter(named.values())))
        group = {name: named[name] for name in list(named) if list(named[name]) == keys}
        named = {name: own for name, own in named.items() if name not in group}
        if keys:
            parts.append(
                table(["", *map(words, group)], [[key, *(own[key] for own in group.values())] for key in keys])
            )
    if isinstance(report.get("rows"), Sequence) and report["rows"]:
        heads = list(report["rows"][0])
        parts.append(table(list(map(words, heads)), [[row.get(head) for head in heads] for row in report["rows"]]))
    if report.get("ratios"):
        parts.append(table(["ratio", ""], [[name, own] for name, own in report["ratios"].items() if own is not None]))
    alone = [f"{words(name)}: {shown(own)}" for name, own in report.items() if name != "machine" and is_plain(own)]
    return "\n\n".join([*parts, *([", ".join(alone)] if alone else [])])


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *([shown(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(value: Any) -> str:
    """Return a value as text, a number in as many digits as can be read."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def words(name: str) -> str:
    return SPEEDS.get(name, name.replace("_", " "))


def draw(reports: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Plot the speeds of each result as bars."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.use("agg")
    panels = [(name, key, own[key]) for name, own in reports.items() for key in SPEEDS if own.get(key)]
    kept = {name: (key, speeds) for name, key, speeds in panels}  # texts/s where a result has both
    if not kept:
        return
    heights = [len(speeds) for _, speeds in kept.values()]
    figure = Figure(figsize=(8, 0.9 * len(kept) + 0.35 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(kept), 1, squeeze=False, height_ratios=[height + 1 for height in heights])[:, 0]
    for axis, (name, (key, speeds)) in zip(axes, kept.items(), strict=True):
        bars = axis.barh(
            list(speeds), list(speeds.values()), color=["#2a6f97" if "ours" in s else "#a9b4bd" for s in speeds]
        )
        axis.bar_label(bars, labels=[f"{value:,.0f}" for value in speeds.values()], padding=3, fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(f"{words(name)}, {SPEEDS[key]}", loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    reports = read(options.output_dir)
    goals = table(["what", "wanted", "measured", "reached"], reached(reports))
    machines = dict.fromkeys(str(report["machine"]) for report in reports.values() if "machine" in report)
    text = ["# Benchmarks", *machines, "## What must be reached", goals]
    for name, report in reports.items():
        text += [f"## {words(name)}", tables(report)]
    (options.output_dir / "report.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    draw(reports, options.output_dir / "report.png")
    print(goals)
    print(f"\nall figures: {options.output_dir / 'report.md'}, plot: {options.output_dir / 'report.png'}")


if __name__ == "__main__":
    main()
