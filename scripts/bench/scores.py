"""Train on real public data and print test scores: `python scripts/bench/scores.py DATA --encoder FOLDER`.

DATA is a folder with sst2/, ag_news/, snips/, wnut17/, ewt/, goemotions/ and stsb/, in the formats named below. One run
per recipe; results go to standard output as a table in Markdown, and to `scores.json` in the output folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from hf_mtl.cli._terminal import quiet_libraries
from hf_mtl.cli._training_progress import TrainingProgress
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.training.run import run_training

DATASETS = {
    "sst2": {"files": "jsonl", "text": "text"},
    "ag_news": {"files": "csv", "text": "text"},
    "snips": {"files": "jsonl", "tokens": "tokens"},
    "wnut17": {"files": "conll", "tokens": "tokens"},
    "ewt": {"files": "conllu", "tokens": "tokens"},
    "goemotions": {"files": "jsonl", "text": "text"},
    "stsb": {"files": "jsonl", "text": "text", "text_pair": "text_pair"},
}
TASKS = {
    "sentiment": ("sequence_classification", "sst2", "label"),
    "topic": ("sequence_classification", "ag_news", "label"),
    "intent": ("sequence_classification", "snips", "intent"),
    "slots": ("token_classification", "snips", "slots"),
    "entities": ("token_classification", "wnut17", "tags"),
    "upos": ("token_classification", "ewt", "upos"),
    "emotions": ("multi_label_classification", "goemotions", "labels"),
    "similarity": ("regression", "stsb", "score"),
}
RECIPES = {
    "three": ("sentiment", "topic", "intent", "slots"),
    "wnut17": ("entities",),
    "ewt": ("upos",),
    "everything": ("sentiment", "intent", "slots", "upos", "emotions", "similarity"),
    "speed": ("sentiment", "topic", "entities"),
}


def make_recipe(data: Path, encoder: str, names: tuple[str, ...], training: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe of some tasks as plain values."""
    datasets: dict[str, Any] = {}
    for name in dict.fromkeys(TASKS[task][1] for task in names):
        source = dict(DATASETS[name])
        ending = source.pop("files")
        validation = "dev" if name == "ewt" else "validation"
        files = {"train": "train", "validation": validation, "test": "test"}
        datasets[name] = {split: str(data / name / f"{stem}.{ending}") for split, stem in files.items()} | source
    tasks = [dict(zip(("name", "type", "dataset", "label"), (task, *TASKS[task]), strict=True)) for task in names]
    return {"encoder": encoder, "datasets": datasets, "tasks": tasks, "training": training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["three", "wnut17", "ewt", "everything"])
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of the training")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/scores"))
    options = parser.parse_args()

    quiet_libraries()
    results: dict[str, Any] = {}
    for name in options.recipes:
        training = {"num_train_epochs": options.epochs, "seed": options.seed, "precision": options.precision}
        values = make_recipe(options.data.resolve(), options.encoder, RECIPES[name], training)
        start = time.perf_counter()
        recipe = parse_recipe(values, base=Path.cwd())
        run = run_training(recipe, options.output_dir / name, overwrite=True, callbacks=[TrainingProgress()])
        results[name] = {"seconds": time.perf_counter() - start, **run.results}
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    (options.output_dir / "scores.json").write_text(json.dumps({"machine": machine, "runs": results}, indent=2))
    print(f"{machine}; {options.epochs:g} epochs, seed {options.seed}, precision {options.precision}\n")
    print("| run | task | test scores | training seconds |")
    print("|---|---|---|---|")
    for name, result in results.items():
        for task, metrics in result["test"].items():
            if task != "average":
                shown = ", ".join(f"{key} {value:.3f}" for key, value in metrics.items())
                print(f"| {name} | {task} | {shown} | {result['train']['train_runtime']:.0f} |")


if __name__ == "__main__":
    main()
