"""Compare the methods of multi-task learning under one budget: `python scripts/bench/methods.py DATA --encoder FOLDER`.

Every method is a recipe that differs from the default in a few keys. Each is trained on the same number of rows, once
for every seed, in a process of its own, so that its peak memory is its own. The table has the test score of each task,
their average and how far it is from the default's, seconds of training and peak memory, as means over the seeds.
Finished runs are kept in the output folder, so a benchmark that was stopped goes on where it was; a method that fails
is named, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import machine
from sampling import primary, spaced, spread
from scores import DATASETS, TASKS, make_recipe

from hf_mtl.training.balancing_methods import AGGREGATIONS, BALANCINGS

BENCH_TASKS = ("sentiment", "topic", "entities", "upos", "intent", "slots", "emotions", "similarity")
DEFAULT = "default"
RESULT = "result.json"
TAGGING, CHOOSING = ("token_classification",), ("sequence_classification", "token_classification")
POOLED = ("sequence_classification", "multi_label_classification", "regression")
LABELLED = (*CHOOSING, "multi_label_classification")
EVERYWHERE, WITH_SPANS = tuple(DATASETS), ("snips", "wnut17")


@dataclass(frozen=True)
class Method:
    """What a method changes in the recipe.

    Args:
        training: training arguments.
        tasks: keys of tasks, by the types of tasks that they are set for.
        recipe: keys of the recipe itself.
        datasets: keys of datasets, by the names of datasets that they are set for.
    """

    training: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[Sequence[str], Mapping[str, Any]] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    datasets: Mapping[Sequence[str], Mapping[str, Any]] = field(default_factory=dict)

    def applied(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Return a recipe of plain values with the changes."""
        changed = {**recipe, **self.recipe, "training": {**recipe["training"], **self.training}}
        changed["datasets"] = {name: _joined(own, name, self.datasets) for name, own in recipe["datasets"].items()}
        changed["tasks"] = [_joined(task, task["type"], self.tasks) for task in recipe["tasks"]]
        return changed


def _joined(values: Mapping[str, Any], name: str, changes: Mapping[Sequence[str], Mapping[str, Any]]) -> dict[str, Any]:
    own = [keys for names, keys in changes.items() if name in names]
    return {key: value for part in (values, *own) for key, value in part.items()}


def _perturbed(name: str, **options: Any) -> Method:
    return Method(training={"perturbation": name, **({"perturbation_kwargs": options} if options else {})})


def _augmented(operation: str, datasets: Sequence[str] = EVERYWHERE) -> Method:
    return Method(datasets={datasets: {"augmentation": [{"operation": operation}]}})


def _balanced(name: str) -> Method:
    every = {"every_task_in_batch": True} if BALANCINGS[name].every_task else {}
    return Method(training={"balancing": name, **every})


def _aggregated(name: str) -> Method:
    every = {"every_task_in_batch": True} if AGGREGATIONS[name].every_task else {}
    return Method(training={"aggregation": name, **every})


METHODS: dict[str, Method] = {
    DEFAULT: Method(),
    # What is trained on is disturbed.
    "fgm": _perturbed("fgm"),
    "freelb": _perturbed("freelb"),
    "smart": _perturbed("smart"),
    "smart-momentum": _perturbed("smart", momentum=0.99),
    "r_drop": _perturbed("r_drop"),
    "mixup": _perturbed("mixup"),
    # What the network is.
    "gat": Method(recipe={"interaction": "gat"}),
    "soft-sharing": Method(recipe={"sharing": "soft"}),
    "attention": Method(tasks={POOLED: {"pooling": "attention"}}),
    "attention-4-heads": Method(tasks={POOLED: {"pooling": "attention", "attention_heads": 4}}),
    "attention-gate": Method(tasks={POOLED: {"pooling": "attention", "attention_gate": True}}),
    "layer-mix": Method(tasks={(*POOLED, *TAGGING): {"layer_mix": True}}),
    "token-graph": Method(tasks={(*POOLED, *TAGGING): {"token_graph": True}}),
    "crf": Method(tasks={TAGGING: {"type": "crf_token_classification"}}),
    "lstm": Method(recipe={"encoder": {"type": "lstm", "lowercase": True}}, training={"learning_rate": 1e-3}),
    # What is done to the rows.
    "cleaning": Method(recipe={"cleaning": ["unicode", "html", "whitespace", "mask_urls", "mask_users"]}),
    "deduplicate": Method(recipe={"deduplicate": "near"}),
    "leakage-drop": Method(recipe={"leakage": "drop"}),
    "leakage-drop-near": Method(recipe={"leakage": "drop_near"}),
    "word-deletion": _augmented("word_deletion"),
    "word-swap": _augmented("word_swap"),
    "mention-replacement": _augmented("mention_replacement", WITH_SPANS),
    # What is done about rare labels.
    "focal": Method(tasks={LABELLED: {"focal_gamma": 2.0}}),
    "balanced-weights": Method(tasks={LABELLED: {"class_weights": "balanced"}}),
    "tuned-thresholds": Method(tasks={("multi_label_classification",): {"tune_thresholds": True}}),
    # How losses are weighed, and gradients made one.
    **{f"balancing-{name}": _balanced(name) for name in BALANCINGS},
    **{f"aggregation-{name}": _aggregated(name) for name in AGGREGATIONS},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(BENCH_TASKS))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--epoch-rows", type=int, default=2400)
    parser.add_argument("--batch-size", type=int, default=32, help="rows of a training batch")
    parser.add_argument("--validation-rows", type=int, default=300, help="rows of each validation set that are used")
    parser.add_argument("--test-rows", type=int, default=1000, help="rows of each test set that are used")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/methods"))
    parser.add_argument("--job", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job is not None:
        train(options, options.job[0], int(options.job[1]))
        return

    given = list(sys.argv[1:] if arguments is None else arguments)
    results: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    for method in options.methods:
        for seed in options.seeds:
            if method not in failed and read_result(options, method, seed) is None:
                print(f"{method}, seed {seed}", file=sys.stderr, flush=True)
                problem = run(given, method, seed)
                if problem is not None:
                    failed[method] = problem
        runs = [read_result(options, method, seed) for seed in options.seeds]
        if method not in failed:
            results[method] = [run for run in runs if run is not None]
    print(table(results, options.tasks))
    for method, problem in failed.items():
        print(f"\n{method} did not run: {problem}")
    rows = options.epochs * options.epoch_rows
    batches = f"{options.epochs} epochs, batches of {options.batch_size}"
    print(f"\n{rows:,} rows in {batches}, seeds {options.seeds}; {machine.describe()}")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    values = {"machine": machine.describe(), "rows": rows, "runs": results, "failed": failed}
    (options.output_dir / "methods.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (options.output_dir / "methods.md").write_text(table(results, options.tasks) + "\n", encoding="utf-8")


def run(arguments: Sequence[str], method: str, seed: int) -> str | None:
    """Train in a process of its own; return the last line of what went wrong, `None` where nothing did."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--job", method, str(seed)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit {done.returncode}"


def train(options: argparse.Namespace, method: str, seed: int) -> None:
    """Train one method with one seed, and keep its scores, seconds and peak memory."""
    import torch

    from hf_mtl.cli._terminal import quiet_libraries
    from hf_mtl.data.preparation import load_recipe
    from hf_mtl.data.recipe import parse_recipe
    from hf_mtl.training.run import drop_checkpoints, run_training

    quiet_libraries()
    recipe = parse_recipe(recipe_of(options, method, seed), base=Path.cwd())
    data = load_recipe(recipe, seed=seed)
    data = replace(
        data,
        validation={name: spaced(own, options.validation_rows) for name, own in data.validation.items()},
        test={name: spaced(own, options.test_rows) for name, own in data.test.items()},
    )
    folder = run_folder(options, method, seed)
    results = run_training(recipe, folder, resume=True, data=data).results
    drop_checkpoints(folder)
    (folder / "model.safetensors").unlink(missing_ok=True)  # as many models fill a disk
    found = {
        "settings": settings(options, method, seed),
        "scores": primary(results["test"]),
        "seconds": results["train"]["train_seconds"],
        "rows": results["train"]["train_rows"],
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
    }
    (folder / RESULT).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def read_result(options: argparse.Namespace, method: str, seed: int) -> dict[str, Any] | None:
    """Return what a finished run left; `None` where there is none, or it was one with other settings."""
    file = run_folder(options, method, seed) / RESULT
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["settings"] != settings(options, method, seed):
        sys.exit(f"{file.parent} holds a run with other settings; give another --output-dir")
    return found


def settings(options: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """Return all that a run's figures depend on, as JSON holds it."""
    rows = [options.validation_rows, options.test_rows]
    return json.loads(json.dumps({"recipe": recipe_of(options, method, seed), "rows": rows}))


def recipe_of(options: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """Return the recipe of a run as plain values."""
    training = {"num_train_epochs": options.epochs, "epoch_size": options.epoch_rows, "seed": seed}
    training |= {"per_device_train_batch_size": options.batch_size}
    plain = make_recipe(options.data.resolve(), options.encoder, tuple(options.tasks), training)
    return METHODS[method].applied(plain)


def run_folder(options: argparse.Namespace, method: str, seed: int) -> Path:
    """Return the folder of a run."""
    return options.output_dir / f"{method}-{seed}"


def table(results: Mapping[str, Sequence[Mapping[str, Any]]], tasks: Sequence[str]) -> str:
    """Return a table in Markdown: one line per method, in the order given."""
    columns = [*tasks, "average"]
    header = ["method", *columns, "to default", "seconds", "peak memory (GB)"]
    lines = [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|"]
    default = results.get(DEFAULT)
    for method, runs in results.items():
        cells = [spread([run["scores"][column] for run in runs]) for column in columns]
        cells.append("" if default is None or method == DEFAULT else f"{average(runs) - average(default):+.1f}")
        cells.append(f"{statistics.fmean(run['seconds'] for run in runs):.0f}")
        # What stands on the GPU where there is one: the process's own is mostly the libraries then.
        cells.append(f"{statistics.fmean(run['gpu_memory_gb'] or run['memory_gb'] for run in runs):.2f}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def average(runs: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean of the runs' average scores."""
    return statistics.fmean(run["scores"]["average"] for run in runs)


if __name__ == "__main__":
    main()
