"""Compare ways of sampling and balancing under one budget: `python scripts/bench/sampling.py DATA --encoder FOLDER`.

Trains all tasks of sst2, ag_news, wnut17, ewt and snips together, once per setting and seed, each on the same number
of rows, in a few short epochs (strategies that move with the epochs then do so), and prints test scores per task and
their average, as mean and half the range over the seeds. Finished runs are kept in the output folder, so a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scores import TASKS, make_recipe

from hf_mtl.cli._terminal import quiet_libraries
from hf_mtl.cli._training_progress import TrainingProgress
from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.data.preparation import load_recipe
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.training.run import drop_checkpoints, run_training

BENCH_TASKS = ("sentiment", "topic", "entities", "upos", "intent", "slots")
SETTINGS: dict[str, dict[str, Any]] = {
    "proportional": {"sampling": "proportional"},
    "temperature-2": {"sampling": "temperature", "sampling_kwargs": {"temperature": 2}},
    "temperature-5": {"sampling": "temperature", "sampling_kwargs": {"temperature": 5}},
    "uniform": {"sampling": "uniform"},
    "annealed": {"sampling": "annealed"},
    "adaptive-1": {"sampling": "adaptive", "sampling_kwargs": {"temperature": 1}},
    "adaptive-2": {"sampling": "adaptive", "sampling_kwargs": {"temperature": 2}},  # the default
    "round-robin-homogeneous": {"sampling": "round_robin", "batching": "homogeneous"},
    "proportional-uw": {"sampling": "proportional", "every_task_in_batch": True, "balancing": "uw"},
    "proportional-dwa": {"sampling": "proportional", "every_task_in_batch": True, "balancing": "dwa"},
    "proportional-pcgrad": {"sampling": "proportional", "aggregation": "pcgrad"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(BENCH_TASKS))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--epoch-rows", type=int, default=2400)
    parser.add_argument("--validation-rows", type=int, default=300, help="rows of each validation set that are used")
    parser.add_argument("--test-rows", type=int, default=10**6, help="rows of each test set that are used, at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/sampling"))
    options = parser.parse_args()

    quiet_libraries()
    results: dict[str, list[dict[str, float]]] = {}
    for setting in options.settings:
        for seed in options.seeds:
            folder = options.output_dir / f"{setting}-{seed}"
            training = {"num_train_epochs": options.epochs, "epoch_size": options.epoch_rows, "seed": seed}
            values = make_recipe(
                options.data.resolve(), options.encoder, tuple(options.tasks), {**training, **SETTINGS[setting]}
            )
            recipe = parse_recipe(values, base=Path.cwd())
            data = load_recipe(recipe)
            data = replace(
                data,
                validation={name: spaced(own, options.validation_rows) for name, own in data.validation.items()},
                test={name: spaced(own, options.test_rows) for name, own in data.test.items()},
            )
            run = run_training(recipe, folder, resume=True, callbacks=[TrainingProgress()], data=data)
            drop_checkpoints(folder)
            results.setdefault(setting, []).append(primary(run.results["test"]))
    print(table(results, options.tasks))
    rows = options.epochs * options.epoch_rows
    print(f"\n{rows:,} rows in {options.epochs} epochs, batches of 32, seeds {options.seeds}; {machine()}")
    (options.output_dir / "sampling.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def spaced(split: EncodedSplit, rows: int) -> EncodedSplit:
    """Return rows of a split, evenly spaced: files may be sorted by label, and their first rows of one label alone."""
    chosen = np.linspace(0, len(split), min(rows, len(split)), endpoint=False).astype(np.int64)
    # Flattened: what reads columns as they lie in memory knows nothing of a selection.
    return replace(split, raw=split.raw.select(chosen), features=split.features.select(chosen).flatten_indices())


def primary(test: Mapping[str, Any]) -> dict[str, float]:
    """Return the primary metric of each task, and the average, in per cent."""
    scores = {"average": test["average"]}
    for task, metrics in test.items():
        if isinstance(metrics, Mapping):
            # Of spans it is the third, of numbers the second; of everything else here the first.
            scores[task] = metrics.get("f1", metrics.get("spearman", next(iter(metrics.values()))))
    return {task: 100 * value for task, value in scores.items()}


def table(results: Mapping[str, Sequence[Mapping[str, float]]], tasks: Sequence[str]) -> str:
    """Return a table in Markdown: one line per setting, best average first."""
    columns = [*tasks, "average"]
    lines = [f"| setting | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    by_average = sorted(results.items(), key=lambda item: -statistics.fmean(run["average"] for run in item[1]))
    for setting, runs in by_average:
        cells = [spread([run[column] for run in runs]) for column in columns]
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Return mean and half the range."""
    half = (max(values) - min(values)) / 2
    return f"{statistics.fmean(values):.1f}" + (f" ± {half:.1f}" if len(values) > 1 else "")


def machine() -> str:
    """Describe the machine."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
