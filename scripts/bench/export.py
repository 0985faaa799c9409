"""Speed and scores of exported graphs beside torch: `python scripts/bench/export.py MODEL RECIPE`.

The model is exported in every format that can be read back, as it is and in int8, whose ranges are measured on rows of
the recipe's training data. The rows of a split, sorted by length and cut into batches beforehand, are then answered by
torch and by each graph in turn, several rounds in one run, all tasks at once; only the model's own time counts. Ratios
are medians over the rounds, each round over torch in the precision that is the machine's fastest (bfloat16 is left out
where it is emulated), once by the clock and once by the processor time, which jobs beside it disturb less. Every one is
scored on the whole split, too.

Prints a table, and writes `export.json` to the output folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from report import table

from hf_mtl.cli._terminal import quiet_libraries
from hf_mtl.data.preparation import load_recipe
from hf_mtl.data.recipe import read_recipe
from hf_mtl.evaluation.prediction import collator_for, length_batches
from hf_mtl.evaluation.scoring import score
from hf_mtl.inference.export import choose_rows, export_model
from hf_mtl.inference.loading import load_model
from hf_mtl.model.precision import best_precision
from hf_mtl.training.run import split_seed

BASE = f"torch {best_precision('cpu')}"
MAX_LOSS = 0.5
"""Points of a task's score that a faster graph may cost."""
GRAPHS: dict[str, tuple[dict[str, Any], bool, str | None]] = {
    "ONNX fp32": ({"format": "onnx"}, False, None),
    "ONNX int8": ({"format": "onnx", "quantize": "int8"}, False, None),
    "OpenVINO fp32": ({"format": "openvino"}, False, "fp32"),
    "OpenVINO bf16": ({"format": "openvino"}, False, "bf16"),
    "OpenVINO int8": ({"format": "openvino", "quantize": "int8"}, True, None),
    "OpenVINO int8, not fitted": ({"format": "openvino", "quantize": "int8"}, False, None),
}
"""By name what is exported, whether on rows of training data, and the dtype it is loaded in."""


@dataclass
class Way:
    """A way to answer, and what it took in each round."""

    model: Any
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    seconds: list[float] = field(default_factory=list[float])
    processor_seconds: list[float] = field(default_factory=list[float])

    def run(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Answer the batches once, and note how long it took."""
        wall, processor = time.perf_counter(), time.process_time()
        with torch.inference_mode(), self.context():
            for batch in batches:
                self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        self.seconds.append(time.perf_counter() - wall)
        self.processor_seconds.append(time.process_time() - processor)


def make_ways(model: str, calibration: Sequence[Any], folder: Path) -> dict[str, Way]:
    """Load the model in both precisions and export it in every way."""
    own, tokenizer = load_model(model, device="cpu", dtype="fp32")
    ways = {"torch fp32": Way(own)}
    if best_precision("cpu") == "bf16":
        ways["torch bf16"] = Way(load_model(model, device="cpu", dtype="bf16")[0])
        ways["torch bf16, autocast"] = Way(own, lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    for name, (options, fitted, dtype) in GRAPHS.items():
        if dtype == "bf16" and best_precision("cpu") != "bf16":
            continue
        place = folder / "-".join(map(str, [*options.values(), fitted]))
        if not place.exists():
            said = export_model(own, tokenizer, place, **options, calibration=calibration if fitted else ())
            print(f"{name}: logits differ by {said.difference:.1e}, quantized {said.quantized_difference}", flush=True)
        ways[name] = Way(load_model(place, dtype=dtype)[0])
    return ways


def make_batches(model: Any, tokenizer: Any, splits: Mapping[str, Any], max_tokens: int, limit: int) -> list[Any]:
    """Return the rows of all datasets, sorted by length, in batches; every n-th where there are more than the limit."""
    rows = [{"input_ids": row["input_ids"]} for split in splits.values() for row in split.features]
    lengths = np.array([len(row["input_ids"]) for row in rows])
    batches = length_batches(lengths, batch_size=max_tokens, max_tokens=max_tokens)
    collator = collator_for(model, tokenizer)
    return [collator([rows[row] for row in batch.tolist()]) for batch in batches[:: -(-len(batches) // limit)]]


def scores_of(ways: Mapping[str, Way], tokenizer: Any, splits: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each way's primary metric by task, in points, and their average."""
    rows: list[dict[str, Any]] = []
    for name, way in ways.items():
        with way.context():
            found = score(way.model, tokenizer, splits)
        values = {task: 100 * own.metrics[own.metric.primary] for task, own in found.tasks.items()}
        rows.append({"scores": name, **values, "average": 100 * found.average()})
    return rows


def report(ways: Mapping[str, Way], tokens: int, scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Return speeds, ratios and scores as plain values."""

    def ratio(name: str, what: str) -> float:
        pairs = zip(getattr(ways[BASE], what), getattr(ways[name], what), strict=True)
        return statistics.median(base / own for base, own in pairs)

    return {
        "tokens_per_second": {name: tokens / statistics.median(way.seconds) for name, way in ways.items()},
        "tokens_per_processor_second": {
            name: tokens / statistics.median(way.processor_seconds) for name, way in ways.items()
        },
        "ratios": {
            **{f"{name} over {BASE}": ratio(name, "seconds") for name in ways},
            "fastest graph without loss": max([ratio(name, "seconds") for name in without_loss(scores)], default=None),
        },
        "processor_time_ratios": {name: ratio(name, "processor_seconds") for name in ways},
        "rows": scores,
    }


def without_loss(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the graphs that cost no task more than `MAX_LOSS` points of torch's score in the same precision."""
    tasks = [key for key in (scores[0] if scores else ()) if key not in ("scores", "average")]
    base = next((row for row in scores if row["scores"] == BASE), {})
    return [
        row["scores"]
        for row in scores
        if not row["scores"].startswith("torch") and all(row[task] >= base[task] - MAX_LOSS for task in tasks)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=2048, help="tokens of a batch, padding included")
    parser.add_argument("--batches", type=int, default=10**6, help="batches that are timed, at most")
    parser.add_argument("--only", nargs="+", choices=GRAPHS, default=list(GRAPHS), help="graphs to measure")
    parser.add_argument("--no-scores", action="store_true")
    parser.add_argument("--graphs", type=Path, help="folder that keeps the graphs; those that are there are not made")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()

    quiet_libraries()
    torch.set_num_threads(options.threads)
    model, tokenizer = load_model(options.model, device="cpu", dtype="fp32")
    recipe = read_recipe(options.recipe)
    data = load_recipe(
        recipe,
        tokenizer=tokenizer,
        tasks=model.specs,
        splits=list(dict.fromkeys(["train", "validation", options.split])),
        seed=split_seed(recipe, model.config),
    )
    splits = data.split(options.split)
    for name in set(GRAPHS) - set(options.only):
        del GRAPHS[name]
    with tempfile.TemporaryDirectory() as temporary:
        ways = make_ways(options.model, choose_rows(data.train), options.graphs or Path(temporary))
        batches = make_batches(model, tokenizer, splits, options.max_tokens, options.batches)
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        for way in ways.values():
            way.run(batches[:: max(1, len(batches) // 4)])
            way.seconds.clear()
            way.processor_seconds.clear()
        for _ in range(options.rounds):
            for way in ways.values():
                way.run(batches)
        scores = [] if options.no_scores else scores_of(ways, tokenizer, splits)
    found = {"machine": describe(), "tokens": tokens, "rounds": options.rounds, **report(ways, tokens, scores)}
    print(describe())
    columns = ("tokens_per_second", "ratios", "tokens_per_processor_second", "processor_time_ratios")
    print(
        table(
            ["", "tokens/s", f"over {BASE}", "tokens per processor second", "ratio"],
            [[name, *(list(found[column].values())[place] for column in columns)] for place, name in enumerate(ways)],
        )
    )
    if scores:
        print(
            table(
                list(scores[0]), [[f"{v:.2f}" if isinstance(v, float) else v for v in row.values()] for row in scores]
            )
        )
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "export.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
