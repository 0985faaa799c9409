"""Speed of data loading: `python scripts/bench/collation.py DATA --encoder FOLDER`.

Fetches and collates batches of rows of sst2, ag_news and wnut17 as training does, on one core: short rows of 12 to 20
tokens, and rows of all lengths. Times are the process's own, so that other work on the machine does not count. Prints a
table, and writes `collation.json` to the output folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from machine import describe
from scores import make_recipe

from hf_mtl import MultiTaskCollator
from hf_mtl.cli._terminal import quiet_libraries
from hf_mtl.data.preparation import load_recipe
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.training.streams import TrainingRows

TASKS = ("sentiment", "topic", "entities")
SHORT = (12, 20)


def seconds(rows: TrainingRows, collator: MultiTaskCollator, batches: list[list[int]]) -> tuple[float, float]:
    """Return the seconds of fetching and of collating batches."""
    start = time.process_time()
    fetched = [rows.__getitems__(batch) for batch in batches]
    between = time.process_time()
    for features in fetched:
        collator(features)
    return between - start, time.process_time() - between


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()

    quiet_libraries()
    torch.set_num_threads(1)
    recipe = parse_recipe(make_recipe(options.data.resolve(), options.encoder, TASKS, {}), base=Path.cwd())
    data = load_recipe(recipe)
    rows, collator = TrainingRows(data.train), MultiTaskCollator(tuple(data.tasks))
    lengths = np.concatenate([split.lengths for split in rows.encoded.values()])
    generator = np.random.default_rng(0)
    kinds = {
        f"{SHORT[0]} to {SHORT[1]} tokens": np.flatnonzero((lengths >= SHORT[0]) & (lengths <= SHORT[1])),
        "all rows": np.arange(len(lengths)),
    }
    report = {"machine": describe(), "batch_size": options.batch_size, "rows": []}
    for name, chosen in kinds.items():
        order = generator.permutation(chosen)
        batches = [order[at : at + options.batch_size].tolist() for at in range(0, len(order), options.batch_size)]
        times = np.array([seconds(rows, collator, batches) for _ in range(options.rounds)])
        fetch, collate, both = (statistics.median(own) for own in (*times.T.tolist(), times.sum(axis=1).tolist()))
        speeds = {key: len(order) / own for key, own in {"fetch": fetch, "collate": collate, "both": both}.items()}
        report["rows"].append({"rows": name, "number": len(order), "tokens": float(lengths[order].mean()), **speeds})
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "collation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{describe()}; batches of {options.batch_size}, medians of {options.rounds} rounds\n")
    print("| rows | tokens per row | fetched, rows/s | collated, rows/s | both, rows/s |\n|---|---:|---:|---:|---:|")
    for row in report["rows"]:
        speeds = " | ".join(f"{row[key]:,.0f}" for key in ("fetch", "collate", "both"))
        print(f"| {row['number']:,}: {row['rows']} | {row['tokens']:.1f} | {speeds} |")


if __name__ == "__main__":
    main()
