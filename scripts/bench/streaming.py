"""Measure that streamed data takes constant memory: `python scripts/bench/streaming.py`.

Makes a jsonl (or Parquet) file for each number of rows, and trains a tiny model on it with `streaming: true`, each in a
process of its own with an empty cache: the rows are counted, shuffled, tokenized and trained on as `hf-mtl train` does.
Prints the peak resident memory of each process, and its ratio to that of the first; `--json` prints JSON alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from hf_mtl.cli._terminal import quiet_libraries

CLASSES = ("sport", "world", "science", "business")
WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which"
)
BLOCK = 100_000
"""Rows written at once."""


def lines(seed: int) -> Iterator[tuple[str, str]]:
    """Yield texts of 6 to 20 words, each with a class that its first word tells, without end."""
    draw, words = random.Random(seed), WORDS.split()
    ends = [" ".join(draw.choices(words, k=draw.randint(4, 18))) for _ in range(10_000)]
    number = 0
    while True:
        label = draw.choice(CLASSES)
        yield f"{label} {number} {draw.choice(ends)}", label
        number += 1


def write_rows(path: Path, rows: int, *, seed: int = 0) -> None:
    """Write made-up rows as jsonl or Parquet, unless they stand there already."""
    if path.exists():
        return
    made, temporary = lines(seed), path.with_name(f"{path.name}.tmp")
    blocks = (list(islice(made, min(BLOCK, rows - start))) for start in range(0, rows, BLOCK))
    if path.suffix == ".jsonl":
        with temporary.open("w", encoding="utf-8") as file:
            for block in blocks:
                file.write("".join(f'{{"text": "{text}", "label": "{label}"}}\n' for text, label in block))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema({"text": pa.string(), "label": pa.string()})
        with pq.ParquetWriter(temporary, schema) as writer:
            for block in blocks:
                texts, labels = zip(*block, strict=True)
                writer.write_table(pa.table([pa.array(texts), pa.array(labels)], schema=schema))
    temporary.replace(path)


def write_encoder(folder: Path) -> None:
    """Write a one-layer BERT with random weights, and a tokenizer of the words above."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    pieces = [*"0123456789", *(f"##{digit}" for digit in range(10))]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *CLASSES, *WORDS.split(), *pieces]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(dict.fromkeys(tokens))}))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)


def recipe(folder: Path, train: str, training: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of a run as plain values."""
    files = {"train": train, "validation": "validation.jsonl", "streaming": True}
    task = {"name": "topic", "type": "sequence_classification", "dataset": "rows", "label": "label"}
    return {
        "encoder": str(folder / "encoder"),
        "datasets": {"rows": {**files, "text": "text"}},
        "tasks": [{**task, "labels": list(CLASSES)}],
        "training": training,
    }


def measure(folder: Path, train: str, training: dict[str, Any]) -> dict[str, Any]:
    """Train in this process, and return its peak resident memory in MB."""
    import torch

    from hf_mtl.data.recipe import parse_recipe
    from hf_mtl.training.run import run_training

    torch.set_num_threads(1)  # the model is too small for more
    quiet_libraries()
    before = peak_memory()
    read = parse_recipe(recipe(folder, train, training), base=folder)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        results = run_training(read, Path(output) / "run").results
    return {
        "before_data_mb": before,
        "peak_mb": peak_memory(),
        "peak_of_workers_mb": peak_memory(resource.RUSAGE_CHILDREN),
        "seconds": time.perf_counter() - start,
        "rows_trained": results["train"]["sampled_rows"],
        "accuracy": results["validation"]["topic"]["accuracy"],
    }


def peak_memory(whose: int = resource.RUSAGE_SELF) -> float:
    """Return the peak resident memory of this process, or of the largest of its children, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes or kilobytes
    return resource.getrusage(whose).ru_maxrss * unit / 1024**2


def in_process(folder: Path, train: str, training: dict[str, Any]) -> dict[str, Any]:
    """Call `measure` in a new process with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "HF_DATASETS_CACHE": cache, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, "--measure", json.dumps([str(folder), train, training])]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 5_000_000])
    parser.add_argument("--format", choices=["jsonl", "parquet"], default="jsonl")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each run; 0 for a whole epoch")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0, help="dataloader_num_workers")
    parser.add_argument("--folder", type=Path, help="where the made files are kept; a temporary folder if not given")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, train, training = json.loads(options.measure)
        print(json.dumps(measure(Path(folder), train, training)))
        return

    training = {
        **({"max_steps": options.steps} if options.steps else {"num_train_epochs": 1}),
        "per_device_train_batch_size": options.batch_size,
        "dataloader_num_workers": options.workers,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "save_strategy": "no",
    }
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        quiet_libraries()
        write_encoder(folder / "encoder")
        write_rows(folder / "validation.jsonl", 1_000, seed=1)
        for rows in options.rows:
            train = folder / f"train-{rows}.{options.format}"
            start = time.perf_counter()
            write_rows(train, rows)
            made = {"rows": rows, "file_mb": train.stat().st_size / 1024**2, "made_in": time.perf_counter() - start}
            runs.append({**made, **in_process(folder, train.name, training)})
    for run in runs:
        run["ratio"] = run["peak_mb"] / runs[0]["peak_mb"]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    if options.json:
        print(json.dumps({"machine": machine, "runs": runs}, indent=2))
        return
    print(f"{machine}; {options.format}, batches of {options.batch_size}\n")
    print("| rows | file MB | peak MB | of it before data | ratio | rows trained | seconds |")
    print("|---|---|---|---|---|---|---|")
    for run in runs:
        print(
            f"| {run['rows']:,} | {run['file_mb']:.0f} | {run['peak_mb']:.0f} | {run['before_data_mb']:.0f} "
            f"| {run['ratio']:.3f} | {run['rows_trained']:,} | {run['seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
