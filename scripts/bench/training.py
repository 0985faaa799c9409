"""Training speed side by side: `python scripts/bench/training.py DATA --encoder FOLDER`.

Three ways to train on sst2, ag_news and wnut17 take turns, several rounds in one run:

- bare: a loop of encoder, linear heads, fused AdamW and nothing else, over batches of like length, in our precision;
- ours: `MultiTaskTrainer` as it is by default, all tasks in one model;
- stock: `transformers.Trainer` as it is by default, one model per task, one after the other, each for its share of the
  steps: as many rows of each dataset as ours.

With `--packing` ours comes three times more, with `packing`, with `every_task_in_batch`, and with both.

Each is timed over its steps, the first few left out. Speed is in tokens that are not padding. Prints a table, and
writes `training.json` to the output folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from scores import make_recipe
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_mtl import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments
from hf_mtl.cli._terminal import quiet_libraries
from hf_mtl.data.preparation import RecipeData, load_recipe
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.evaluation.prediction import collator_for
from hf_mtl.model.precision import best_precision

TASKS = ("sentiment", "topic", "entities")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WARM_UP = 5
"""Steps that are not timed, of every training."""
QUIET: dict[str, Any] = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "disable_tqdm": True,
}


class Clock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())

    def seconds(self) -> float:
        return self.times[-1] - self.times[WARM_UP - 1]


class Counting:
    """A collator that counts tokens, by batch: real ones and with padding."""

    def __init__(self, collator: Callable[[Any], Any]) -> None:
        self.collator = collator
        self.counts: list[tuple[int, int]] = []

    def __call__(self, features: Any) -> Any:
        batch = self.collator(features)
        mask = batch["attention_mask"]
        self.counts.append((int(mask.sum()), mask.numel()))
        return batch

    def tokens(self, steps: int) -> tuple[int, int]:
        """Return real tokens, and tokens with padding, of the steps that are timed."""
        timed = np.array(self.counts[WARM_UP:steps])
        return int(timed[:, 0].sum()), int(timed[:, 1].sum())


def ours(data: RecipeData, steps: int, **arguments: Any) -> dict[str, float]:
    """Train with MultiTaskTrainer."""
    model = MultiTaskModel.from_encoder(data.recipe.encoder_path, data.tasks)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = MultiTaskTrainingArguments(output_dir=folder, **{"max_steps": steps, **QUIET, **arguments})
        trainer = MultiTaskTrainer(
            model, args, train_dataset=data.train, processing_class=data.tokenizer, callbacks=[clock]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.data_collator = counting = Counting(trainer.data_collator)
        trainer.train()
    real, padded = counting.tokens(steps)
    return {"tokens": real, "padded": padded, "seconds": clock.seconds()}


def bare(data: RecipeData, steps: int) -> dict[str, float]:
    """Train an encoder with a linear head per task in a loop of our own batches, without anything around it."""
    encoder: Any = AutoModel.from_pretrained(data.recipe.encoder_path, add_pooling_layer=False).train()
    heads = torch.nn.ModuleDict(
        {spec.name: torch.nn.Linear(encoder.config.hidden_size, spec.num_labels) for spec in data.tasks}
    )
    encoder.to(DEVICE), heads.to(DEVICE)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=True)
    batches = list(own_batches(data, steps))  # made beforehand: the loop has nothing to do but to train
    start, tokens, padded = 0.0, 0, 0
    for number, batch in enumerate(batches):
        if number == WARM_UP:
            start, tokens, padded = time.perf_counter(), 0, 0
        inputs = {key: batch[key].to(DEVICE) for key in INPUTS if key in batch}
        with torch.autocast(DEVICE, torch.bfloat16, enabled=best_precision(DEVICE) == "bf16"):
            states = encoder(**inputs).last_hidden_state
            loss: Any = 0.0
            for name, labels in batch["labels"].items():
                labels, rows = labels.to(DEVICE), batch["rows"][name].to(DEVICE)
                features = states[rows]
                if labels.ndim == 1:  # the mean over the tokens
                    weights = inputs["attention_mask"][rows].unsqueeze(-1)
                    features = (features * weights).sum(dim=1) / weights.sum(dim=1)
                logits = heads[name](features).float()
                loss = loss + F.cross_entropy(logits.flatten(0, -2), labels[rows].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += int(batch["attention_mask"].sum())
        padded += batch["attention_mask"].numel()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return {"tokens": tokens, "padded": padded, "seconds": time.perf_counter() - start}


def own_batches(data: RecipeData, steps: int) -> Iterator[dict[str, Any]]:
    """Yield the batches that our trainer would make."""
    model = MultiTaskModel.from_encoder(data.recipe.encoder_path, data.tasks)
    with tempfile.TemporaryDirectory() as folder:
        args = MultiTaskTrainingArguments(output_dir=folder, max_steps=steps, **QUIET)
        trainer = MultiTaskTrainer(model, args, train_dataset=data.train, processing_class=data.tokenizer)
        loader = trainer.get_train_dataloader()
        collate, rows = collator_for(model, data.tokenizer), loader.dataset
        for _, batch in zip(range(steps), loader.batch_sampler, strict=False):
            yield collate(rows.__getitems__(batch))


def stock(data: RecipeData, steps: int) -> dict[str, float]:
    """Train one stock model per task with the stock Trainer, all arguments at their defaults but the batch of 32."""
    total = {"tokens": 0.0, "padded": 0.0, "seconds": 0.0}
    all_rows = sum(len(split) for split in data.train.values())
    for source in data.recipe.tasks:
        spec = next(spec for spec in data.tasks if spec.name == source.spec.name)
        split = data.train[source.dataset]
        own_steps = WARM_UP + max(1, round((steps - WARM_UP) * len(split) / all_rows))
        tagging = spec.type == "token_classification"
        column = f"labels/{spec.name}"
        features = split.features.select_columns(["input_ids", column]).rename_column(column, "labels")
        kind = AutoModelForTokenClassification if tagging else AutoModelForSequenceClassification
        model = kind.from_pretrained(data.recipe.encoder_path, num_labels=spec.num_labels)
        collator: Any = (DataCollatorForTokenClassification if tagging else DataCollatorWithPadding)(data.tokenizer)
        clock, counting = Clock(), Counting(collator)
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                output_dir=folder, max_steps=own_steps, per_device_train_batch_size=32, save_strategy="no",
                report_to="none", disable_tqdm=True, use_cpu=DEVICE == "cpu",
            )  # fmt: skip
            trainer = Trainer(model, args, data_collator=counting, train_dataset=features, callbacks=[clock])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        real, padded = counting.tokens(own_steps)
        for key, value in {"tokens": real, "padded": padded, "seconds": clock.seconds()}.items():
            total[key] += value
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packing", action="store_true", help="measure what packing gains, too")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()

    quiet_libraries()
    values = make_recipe(options.data.resolve(), options.encoder, TASKS, {})
    data = load_recipe(parse_recipe(values, base=Path.cwd()))
    ways: dict[str, Callable[[], dict[str, float]]] = {
        "bare": lambda: bare(data, options.steps),
        "ours": lambda: ours(data, options.steps),
        "stock": lambda: stock(data, options.steps),
    }
    if options.packing:
        ways |= {
            "packed": lambda: ours(data, options.steps, packing=True),
            "every task": lambda: ours(data, options.steps, every_task_in_batch=True),
            "every task, packed": lambda: ours(data, options.steps, every_task_in_batch=True, packing=True),
        }
    pairs = (("ours", "bare"), ("ours", "stock"), ("packed", "ours"), ("every task, packed", "every task"))
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for number in range(options.rounds):
        for name, way in ways.items():
            runs[name].append(way())
            print(f"round {number + 1}: {name} {speed(runs[name][-1]):,.0f} tokens/s", flush=True)
    report = {
        "machine": describe(),
        "runs": runs,
        "tokens_per_second": {name: statistics.median(map(speed, own)) for name, own in runs.items()},
        "padding": {
            name: 1 - sum(r["tokens"] for r in own) / sum(r["padded"] for r in own) for name, own in runs.items()
        },
        "ratios": {
            f"{one}/{other}": statistics.median(
                speed(mine) / speed(theirs) for mine, theirs in zip(runs[one], runs[other], strict=True)
            )
            for one, other in pairs
            if one in ways
        },
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{describe()}; medians of {options.rounds} rounds of {options.steps - WARM_UP} steps\n")
    print("| way | tokens/s | padding |\n|---|---|---|")
    for name in ways:
        print(f"| {name} | {report['tokens_per_second'][name]:,.0f} | {report['padding'][name]:.1%} |")
    print("\n" + ", ".join(f"{name} {value:.2f}" for name, value in report["ratios"].items()))


def speed(run: dict[str, float]) -> float:
    """Return tokens that are not padding per second."""
    return run["tokens"] / run["seconds"]


if __name__ == "__main__":
    main()
