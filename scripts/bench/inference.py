"""Speed of bulk prediction side by side: `python scripts/bench/inference.py DATA MODEL`.

MODEL is a trained model of the tasks sentiment, topic and entities; DATA holds sst2/, ag_news/ and wnut17/, whose texts
are mixed. These take turns, several rounds in one run:

- bare: the encoder alone over batches that are made beforehand, in our order, sizes and precision;
- bare, a batch a core: the same batches, each on one core, as many at a time as there are cores;
- ours, 1, 3 and 8 tasks: `predict_file`, from a file of rows to a file of answers; five of the eight have random heads;
- ours, fp32, 3 tasks: the same without the fast precision;
- stock: a `transformers.pipeline` for each of the three tasks, of the same weights, one after the other, with
  `batch_size=32` and all else at its defaults, from a list of texts to a list of answers.

Prints a table, and writes `inference.json` to the output folder. With `--memory`: peak memory of 1,000,000 made-up rows
and of 10,000, each in a process of its own. With `--compile`: ours with 3 tasks, compiled and not.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import describe

from hf_mtl.cli._terminal import quiet_libraries
from hf_mtl.configuration import MultiTaskConfig
from hf_mtl.data.collator import MultiTaskCollator
from hf_mtl.data.encoding import encode, read_inputs
from hf_mtl.data.windows import Reading
from hf_mtl.evaluation.prediction import length_batches
from hf_mtl.inference.bulk import CHUNK_ROWS, FIRST_ROWS, Predictor, cut_chunks, predict_file
from hf_mtl.inference.export import export_model
from hf_mtl.inference.loading import load_model
from hf_mtl.model.modeling import MultiTaskModel

THREE = ("sentiment", "topic", "entities")
SLOTS = ("O", *(f"{prefix}-slot{number}" for number in range(39) for prefix in "BI"))
MORE: tuple[dict[str, Any], ...] = (
    {"name": "intent", "type": "sequence_classification", "labels": [f"intent{number}" for number in range(7)]},
    {"name": "slots", "type": "token_classification", "labels": SLOTS},
    {"name": "upos", "type": "token_classification", "labels": [f"POS{number}" for number in range(17)]},
    {"name": "emotions", "type": "multi_label_classification", "labels": [f"mood{number}" for number in range(28)]},
    {"name": "similarity", "type": "regression"},
)
WORDS = "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they"
Way = Callable[[], float]
"""Does the work once, and returns texts a second."""


# ---------------------------------------------------------------------- texts and models


def read_texts(data: Path, rows: int) -> list[str]:
    """Return texts of the three datasets, mixed with a seed."""
    texts = [json.loads(line)["text"] for line in (data / "sst2" / "train.jsonl").open(encoding="utf-8")]
    with (data / "ag_news" / "train.csv").open(encoding="utf-8", newline="") as file:
        texts += [row["text"] for row in csv.DictReader(file)]
    for block in (data / "wnut17" / "train.conll").read_text(encoding="utf-8").split("\n\n"):
        texts.append(" ".join(line.split("\t")[0] for line in block.strip().split("\n")))
    texts = [text for text in texts if text.strip()]
    random.Random(0).shuffle(texts)
    return texts[:rows]


def with_more_tasks(path: Path) -> Any:
    """Return the model with five tasks more, whose heads are random but leave most words outside of spans."""
    model, _ = load_model(path)
    for number, spec in enumerate(MORE):
        model.add_task(spec, seed=number)
    with torch.no_grad():
        model.head("slots").output.bias[0] += 3
    return model.eval()


# ---------------------------------------------------------------------- the ways


def own_batches(model: Any, tokenizer: Any, texts: list[str], max_tokens: int) -> Iterator[dict[str, Any]]:
    """Yield the batches that `predict_file` makes of the texts."""
    collate = MultiTaskCollator((), pad_token_id=tokenizer.pad_token_id)
    for chunk in cut_chunks(texts, CHUNK_ROWS, first=FIRST_ROWS):
        inputs = [read_inputs(text) for text in chunk]
        features = list(encode(tokenizer, inputs, Reading(tokenizer.model_max_length)).features())
        lengths = torch.tensor([len(feature["input_ids"]) for feature in features]).numpy()
        for rows in length_batches(lengths, batch_size=max_tokens, max_tokens=max_tokens):
            batch = collate([features[row] for row in rows.tolist()])
            yield {name: values.to(model.device) for name, values in batch.items()}


def bare(model: Any, batches: list[dict[str, Any]], precision: str) -> None:
    """Run the encoder over batches, and do nothing with what it gives."""
    with torch.inference_mode(), autocast(model, precision):
        for batch in batches:
            model.encoder(**batch)
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def bare_by_core(model: Any, batches: list[dict[str, Any]], precision: str) -> None:
    """Run the encoder over batches, each on a core of its own."""
    threads = torch.get_num_threads()

    def enter() -> None:
        torch.set_num_threads(1)
        autocast(model, precision).__enter__()

    def one(batch: dict[str, Any]) -> None:
        with torch.inference_mode():
            model.encoder(**batch)

    with ThreadPoolExecutor(threads, initializer=enter) as pool:
        list(pool.map(one, batches))
    torch.clear_autocast_cache()
    torch.set_num_threads(threads)


def autocast(model: Any, precision: str) -> Any:
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def ours(model: Any, tokenizer: Any, source: Path, **options: Any) -> float:
    """Answer a file of rows, and return texts a second."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = predict_file(model, tokenizer, source, Path(folder) / "out.jsonl", **options)
        return done.rows / (time.perf_counter() - start)


def with_stock_pooling(model: Any) -> Any:
    """Return the model with the pooling that stock models of its encoder have, which costs the same; weights stay."""
    specs = [replace(spec, pooling="cls") if spec.name in model.poolings else spec for spec in model.specs]
    config = MultiTaskConfig(encoder_config=model.config.encoder_config, tasks=specs)
    pooled = MultiTaskModel(config, encoder=model.encoder)
    pooled.load_state_dict(model.state_dict())
    return pooled.to(model.device).eval()


def stock_pipelines(model: Any, tokenizer: Any, folder: Path) -> list[Any]:
    """Return a stock pipeline for each of the three tasks, of the same weights."""
    from transformers import pipeline

    kinds = {"sentiment": "text-classification", "topic": "text-classification", "entities": "token-classification"}
    for task in THREE:
        export_model(model, tokenizer, folder / task, format="transformers", tasks=[task])
    return [pipeline(kind, model=str(folder / task)) for task, kind in kinds.items()]  # type: ignore[call-overload]


def per_second(rows: int, work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return rows / (time.perf_counter() - start)


def agreement(model: Any, tokenizer: Any, pipelines: list[Any], texts: list[str]) -> dict[str, float]:
    """Return the share of texts to which we give the label that stock pipelines give, by task and precision."""
    found: dict[str, float] = {}
    rows = [{"text": text} for text in texts]
    for precision in ("fp32", "auto"):
        answers = [row["predictions"] for row in Predictor(model, tokenizer, precision=precision).answer(rows)]
        for task, stock in zip(("sentiment", "topic"), pipelines, strict=False):
            labels = [answer["label"] for answer in stock(texts, batch_size=32)]
            same = sum(row[task]["label"] == label for row, label in zip(answers, labels, strict=True))
            found[f"{task}, {precision}"] = same / len(texts)
    return found


# ---------------------------------------------------------------------- speed


def compare_speed(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Let the ways take turns, and return all figures."""
    texts = read_texts(options.data, options.rows)
    source = write_rows(folder / "in.jsonl", texts)
    trained, tokenizer = load_model(options.model)
    model = with_stock_pooling(trained)
    eight = with_more_tasks(options.model)
    predictor = Predictor(model, tokenizer)
    batches = list(own_batches(model, tokenizer, texts, predictor.max_tokens))
    real, padded = sum(int(b["attention_mask"].sum()) for b in batches), sum(b["input_ids"].numel() for b in batches)
    pipelines = stock_pipelines(model, tokenizer, folder)
    few = texts[: options.stock_rows]
    ways: dict[str, Way] = {
        "bare": lambda: per_second(len(texts), lambda: bare(model, batches, predictor.precision)),
        "bare, a batch a core": lambda: per_second(
            len(texts), lambda: bare_by_core(model, batches, predictor.precision)
        ),
        "ours, 1 task": lambda: ours(model, tokenizer, source, tasks=["sentiment"]),
        "ours, 3 tasks": lambda: ours(model, tokenizer, source),
        "ours, 8 tasks": lambda: ours(eight, tokenizer, source),
        "ours, fp32, 3 tasks": lambda: ours(model, tokenizer, source, precision="fp32"),
        "stock, 3 pipelines": lambda: per_second(len(few), lambda: [list(p(few, batch_size=32)) for p in pipelines]),
    }
    if model.device.type != "cpu":
        del ways["bare, a batch a core"]
    runs = take_turns(ways, options.rounds)
    return {
        "texts": len(texts),
        "tokens_per_text": real / len(texts),
        "padding": 1 - real / padded,
        "precision": predictor.precision,
        "same_label": agreement(model, tokenizer, pipelines, few[:500]),
        **summary(runs, real / len(texts)),
        "ratios": {
            "3 tasks over 3 stock pipelines": ratio(runs, "ours, 3 tasks", "stock, 3 pipelines"),
            "8 tasks over one bare pass": ratio(runs, "ours, 8 tasks", "bare"),
            "8 tasks over one bare pass, a batch a core": ratio(runs, "ours, 8 tasks", "bare, a batch a core"),
            "3 tasks over one bare pass": ratio(runs, "ours, 3 tasks", "bare"),
            "3 tasks, bf16 over fp32": ratio(runs, "ours, 3 tasks", "ours, fp32, 3 tasks"),
        },
    }


def compare_compiled(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Compare ours with and without `compile`, the first run, which compiles, apart."""
    texts = read_texts(options.data, options.rows)
    source = write_rows(folder / "in.jsonl", texts)
    model, tokenizer = load_model(options.model)
    start = time.perf_counter()
    ours(model, tokenizer, source, compile=True)
    first = time.perf_counter() - start
    ways: dict[str, Way] = {
        "as it is": lambda: ours(model, tokenizer, source),
        "compiled": lambda: ours(model, tokenizer, source, compile=True),
    }
    runs = take_turns(ways, options.rounds)
    return {"first_seconds": first, **summary(runs, 0.0), "ratios": {"compiled": ratio(runs, "compiled", "as it is")}}


def take_turns(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Return texts a second of each way in each round."""
    runs: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            runs[name].append(way())
            print(f"round {number + 1}: {name}: {runs[name][-1]:,.0f} texts/s", flush=True)
    return runs


def summary(runs: dict[str, list[float]], tokens_per_text: float) -> dict[str, Any]:
    medians = {name: statistics.median(own) for name, own in runs.items()}
    tokens = {name: value * tokens_per_text for name, value in medians.items()}
    return {"runs": runs, "texts_per_second": medians, "tokens_per_second": tokens}


def ratio(runs: dict[str, list[float]], one: str, other: str) -> float | None:
    """Return the median of the ratios within a round."""
    if other not in runs:
        return None
    return statistics.median(mine / theirs for mine, theirs in zip(runs[one], runs[other], strict=True))


# ---------------------------------------------------------------------- memory


def compare_memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the peak memory of processes that answer few rows and many, in MB."""
    peaks: dict[str, float] = {}
    draw, words = random.Random(0), WORDS.split()
    for rows in (10_000, options.memory_rows):
        texts = (" ".join(draw.choices(words, k=draw.randint(1, 8))) for _ in range(rows))
        source = write_rows(folder / f"{rows}.jsonl", texts)
        command = [sys.executable, __file__, "-", str(options.model), "--measure", str(source)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peaks[str(rows)] = float(done.stdout.split()[-1])
        print(f"{rows:,} rows: {peaks[str(rows)]:,.0f} MB", flush=True)
    few, many = peaks.values()
    return {"peak_megabytes": peaks, "ratios": {"peak memory, many rows over few": many / few}}


def measure_memory(model: Path, source: Path) -> None:
    """Answer a file, and print the peak memory of this process in MB."""
    loaded, tokenizer = load_model(model)
    ours(loaded, tokenizer, source)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KB, on macOS bytes
    print(peak / (1024 if sys.platform != "darwin" else 1024**2))


def write_rows(path: Path, texts: Any) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(texts))
    return path


# ---------------------------------------------------------------------- the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--stock-rows", type=int, default=1024, help="rows of the stock pipelines, which are slow")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="compare peak memory instead of speed")
    parser.add_argument("--memory-rows", type=int, default=1_000_000)
    parser.add_argument("--compile", action="store_true", help="compare ours with and without torch.compile instead")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    quiet_libraries()
    if options.measure is not None:
        measure_memory(options.model, options.measure)
        return
    name = "memory" if options.memory else "compile" if options.compile else "speed"
    compare = {"memory": compare_memory, "compile": compare_compiled, "speed": compare_speed}[name]
    with tempfile.TemporaryDirectory() as folder:
        report = {"machine": describe(), "rounds": options.rounds, **compare(options, Path(folder))}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    ending = "" if name == "speed" else f"-{name}"
    path = options.output_dir / f"inference{ending}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show(report)


def show(report: dict[str, Any]) -> None:
    """Print the medians and the ratios."""
    print(f"\n{report['machine']}\n")
    if "texts_per_second" in report:
        print("| way | texts/s | tokens/s |\n|---|---:|---:|")
        for name, value in report["texts_per_second"].items():
            print(f"| {name} | {value:,.0f} | {report['tokens_per_second'][name]:,.0f} |")
        print(f"\nmedians of {report['rounds']} rounds")
    for key in ("texts", "tokens_per_text", "padding", "precision", "same_label", "first_seconds"):
        if key in report:
            print(f"{key}: {report[key]}")
    for name, value in report["ratios"].items():
        if value is not None:
            print(f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()
