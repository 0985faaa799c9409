"""Epoch time of heads on a frozen encoder: `python scripts/bench/frozen.py DATA --encoder FOLDER`.

Trains with the encoder running in every step and with its states kept (`cache_hidden_states`), in turn, several rounds
in one run: once a task that needs a pooled output per row, once with a task that needs the states of all tokens. Prints
a table with the seconds that an epoch takes and those it takes to compute the states once, and writes `frozen.json` to
the output folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe
from scores import make_recipe
from training import QUIET, WARM_UP, Clock
from transformers import PrinterCallback

from hf_mtl import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments
from hf_mtl.cli._terminal import quiet_libraries
from hf_mtl.data.preparation import RecipeData, load_recipe
from hf_mtl.data.recipe import parse_recipe

WAYS: dict[str, tuple[str, ...]] = {"pooled": ("sentiment",), "tokens": ("sentiment", "entities")}


def train(data: RecipeData, *, steps: int, kept: bool) -> dict[str, float]:
    """Train heads; seconds of an epoch, from those of some steps, and of computing the states."""
    model = MultiTaskModel.from_encoder(data.recipe.encoder_path, data.tasks)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        options = {"freeze_encoder": True, "cache_hidden_states": kept, "max_steps": steps, **QUIET}
        args = MultiTaskTrainingArguments(output_dir=folder, **options)
        trainer = MultiTaskTrainer(
            model, args, train_dataset=data.train, processing_class=data.tokenizer, callbacks=[clock]
        )
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        batches = len(trainer.get_train_dataloader())  # where states are kept this computes them
        once = time.perf_counter() - start
        trainer.train()
    return {"epoch_seconds": clock.seconds() / (steps - WARM_UP) * batches, "once_seconds": once}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()

    quiet_libraries()
    report: dict[str, Any] = {"machine": describe(), "rows": []}
    for name, tasks in WAYS.items():
        data = load_recipe(
            parse_recipe(make_recipe(options.data.resolve(), options.encoder, tasks, {}), base=Path.cwd())
        )
        runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for number in range(options.rounds):
            for kept, own in runs.items():
                own.append(train(data, steps=options.steps, kept=kept))
                print(f"{name}, round {number + 1}: kept {kept}, {own[-1]['epoch_seconds']:.2f} s an epoch", flush=True)
        seconds = {kept: [run["epoch_seconds"] for run in own] for kept, own in runs.items()}
        report["rows"].append(
            {
                "states": name,
                "rows": sum(map(len, data.train.values())),
                "running": statistics.median(seconds[False]),
                "kept": statistics.median(seconds[True]),
                "once": statistics.median(run["once_seconds"] for run in runs[True]),
                "ratio": statistics.median(a / b for a, b in zip(seconds[False], seconds[True], strict=True)),
            }
        )
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "frozen.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{describe()}; medians of {options.rounds} rounds of {options.steps - WARM_UP} steps\n")
    print(
        "| states | rows | encoder runs | states kept | ratio | computing them once |\n|---|---:|---:|---:|---:|---:|"
    )
    for row in report["rows"]:
        print(
            f"| {row['states']} | {row['rows']:,} | {row['running']:.2f} s | {row['kept']:.2f} s "
            f"| {row['ratio']:.1f} | {row['once']:.2f} s |"
        )


if __name__ == "__main__":
    main()
