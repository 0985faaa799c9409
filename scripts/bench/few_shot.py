"""Compare where to begin with few rows of a new task: `python scripts/bench/few_shot.py DATA --encoder FOLDER`.

Leaves each task out in turn, with every task on the same texts; trains the others together (`multi-task`), meta-trains
them (`meta`) on as many rows, and takes the encoder as it is (`plain`); then adapts all three to the task with 4, 8 and
16 rows per label, drawn with ten seeds, the same rows for all three. Prints test scores, as mean and standard error
over the seeds, and writes them to `few_shot.json`. What is finished is kept in the output folder, so a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sampling import machine, spaced
from scores import DATASETS, TASKS, make_recipe
from transformers import AutoTokenizer

from hf_mtl.cli._terminal import quiet_libraries
from hf_mtl.data.preparation import load_recipe, recipe_tokenizer
from hf_mtl.data.recipe import Recipe, parse_recipe
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.meta_learning import MetaOptions
from hf_mtl.training.meta_learning_adaptation import FewRows, adapt
from hf_mtl.training.meta_learning_run import meta_train
from hf_mtl.training.run import drop_checkpoints, run_training
from hf_mtl.writing import write_text

STARTS = ("plain", "multi-task", "meta")
LEFT_OUT = ("sentiment", "topic", "intent")
OTHERS = ("sentiment", "topic", "entities", "upos", "intent", "slots", "emotions", "similarity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--left-out", nargs="+", choices=TASKS, default=list(LEFT_OUT))
    parser.add_argument("--others", nargs="+", choices=TASKS, default=list(OTHERS), help="tasks to train on before")
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--steps", type=int, default=50, help="steps of an adaptation")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="that of an adaptation")
    parser.add_argument("--test-rows", type=int, default=500, help="rows of the test set that are used")
    parser.add_argument("--algorithm", default="reptile")
    parser.add_argument("--meta-steps", type=int, default=200)
    parser.add_argument("--inner-steps", type=int, default=5)
    parser.add_argument("--inner-rate", type=float, default=MetaOptions.inner_rate)
    parser.add_argument("--outer-rate", type=float)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/few_shot"))
    options = parser.parse_args()

    quiet_libraries()
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("seeds", "shots", "left_out")}
    path = options.output_dir / "few_shot.json"
    report = read(path, settings)
    for task in options.left_out:
        starts = {start: begin(start, task, options) for start in STARTS}
        for shots in options.shots:
            for seed in options.seeds:
                for start in STARTS:
                    key = f"{task}/{start}/{shots}/{seed}"
                    if key not in report["scores"]:
                        report["scores"][key] = adapted(starts[start], task, options, shots=shots, seed=seed)
                        write_text(json.dumps(report, indent=2) + "\n", path)
    print(table(report["scores"], options.left_out, options.shots, options.seeds))
    print(f"\n{options.steps} steps, seeds {options.seeds}, {options.test_rows} test rows; {report['machine']}")


def read(path: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    """Return the report that stands in a file, or an empty one; one of other settings ends the program."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        return {"machine": machine(), "settings": dict(settings), "scores": {}}
    report = json.loads(path.read_text(encoding="utf-8"))
    differing = [key for key, value in settings.items() if report["settings"].get(key) != value]
    if differing:
        raise SystemExit(f"{path} is of another {differing[0]}; give another --output-dir")
    return report


def begin(start: str, task: str, options: argparse.Namespace) -> Path | str:
    """Return the folder of the model that adaptations to a task begin with, trained first where it is not there yet."""
    if start == "plain":
        return options.encoder
    recipe = recipe_without(task, options)
    folder = options.output_dir / f"{task}-{start}"
    meta = MetaOptions(
        algorithm=options.algorithm,
        steps=options.meta_steps,
        inner_steps=options.inner_steps,
        inner_rate=options.inner_rate,
        outer_rate=options.outer_rate,
        seed=0,
    )
    began = time.perf_counter()
    # Only what is adapted is scored.
    data = replace(load_recipe(recipe, seed=meta.seed), validation={}, test={})
    if start == "meta":
        meta_train(recipe, folder, meta, resume=True, data=data)
    else:
        tasks = min(meta.tasks_per_step, len(recipe.tasks))
        rows = meta.steps * tasks * (meta.inner_steps + 1) * meta.batch_size  # as many as meta-training reads
        training = {"num_train_epochs": 1, "epoch_size": rows, "sampling": "uniform", "seed": 0}
        training |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
        run_training(replace(recipe, training=training), folder, resume=True, data=data)
        drop_checkpoints(folder)
    print(f"{folder}: {time.perf_counter() - began:.0f} s", flush=True)
    return folder


def recipe_without(task: str, options: argparse.Namespace) -> Recipe:
    """Return the recipe of the tasks that stand on other texts than one does."""
    names = tuple(name for name in options.others if TASKS[name][1] != TASKS[task][1])
    return parse_recipe(make_recipe(options.data.resolve(), options.encoder, names, {}), base=Path.cwd())


def adapted(model: Path | str, task: str, options: argparse.Namespace, *, shots: int, seed: int) -> float:
    """Adapt a model or an encoder to a task with few rows; return the test score, the primary metric."""
    kind, dataset, label = TASKS[task]
    source: dict[str, Any] = dict(DATASETS[dataset])
    files = options.data / dataset
    ending = source.pop("files")
    train, test = (files / f"{split}.{ending}" for split in ("train", "test"))
    rows = FewRows(task=task, type=kind, train=train, test=test, label=label, shots=shots, seed=seed, **source)
    if model == options.encoder:
        # An encoder has no tasks, and a model needs one until it has the new one.
        begun = MultiTaskModel.from_encoder(model, [{"name": "none", "type": "regression"}])
        tokenizer: Any = recipe_tokenizer(recipe_without(task, options))
    else:
        begun, tokenizer = MultiTaskModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    data = rows.load(tokenizer)
    data = replace(data, test={name: spaced(split, options.test_rows) for name, split in data.test.items()})
    folder = options.output_dir / "adapted"
    training = {"learning_rate": options.learning_rate, "precision": "fp32", "disable_tqdm": True}
    run = adapt(begun, tokenizer, rows, folder, steps=options.steps, training=training, overwrite=True, data=data)
    shutil.rmtree(folder)
    assert run.test is not None
    return run.test.average()


def table(scores: Mapping[str, float], tasks: Sequence[str], shots: Sequence[int], seeds: Sequence[int]) -> str:
    """Return a table in Markdown: for each task and start the mean and standard error in per cent, by shots."""
    lines = ["| task | start | " + " | ".join(f"{own} shots" for own in shots) + " |", "|---" * (len(shots) + 2) + "|"]
    for task in tasks:
        for start in STARTS:
            cells = [spread([100 * scores[f"{task}/{start}/{own}/{seed}"] for seed in seeds]) for own in shots]
            lines.append(f"| {task} | {start} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Return mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return f"{statistics.fmean(values):.1f}" + (f" ± {error:.1f}" if error is not None else "")


if __name__ == "__main__":
    main()
