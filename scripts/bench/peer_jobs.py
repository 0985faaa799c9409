"""Train one classifier with one library, in an environment that has it: run by `peers.py`.

Each job trains an encoder for one epoch, in batches of 32 and with all else as its library has it by default, on the
rows of a JSON file, `{"encoder": FOLDER, "rows": [{"text": ..., "label": ...}, ...]}`. Prints the seconds of the
training call as JSON on its last line.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH_SIZE = 32
Row = dict[str, str]


def timed(train: Callable[[], Any]) -> float:
    start = time.perf_counter()
    train()
    return time.perf_counter() - start


def ours(encoder: str, rows: list[Row], folder: Path) -> float:
    """Train with hf_mtl."""
    from hf_mtl import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments
    from hf_mtl.data.preparation import load_recipe
    from hf_mtl.data.recipe import parse_recipe

    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {"name": "sentiment", "type": "sequence_classification", "dataset": "rows", "label": "label"}
    files = dict.fromkeys(("train", "validation"), "rows.jsonl")  # no row is set aside
    recipe = {"encoder": encoder, "datasets": {"rows": {**files, "text": "text"}}, "tasks": [task]}
    data = load_recipe(parse_recipe(recipe, base=folder))
    quiet: dict[str, Any] = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
    args = MultiTaskTrainingArguments(
        output_dir=str(folder), num_train_epochs=1, per_device_train_batch_size=BATCH_SIZE, **quiet
    )
    model = MultiTaskModel.from_encoder(encoder, data.tasks)
    return timed(MultiTaskTrainer(model, args, train_dataset=data.train, processing_class=data.tokenizer).train)


def arguments_of(folder: Path) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder), num_train_epochs=1, per_device_train_batch_size=BATCH_SIZE, save_strategy="no",
        report_to="none",
    )  # fmt: skip


def tokenized(encoder: str, rows: list[Row]) -> tuple[Any, Any, int]:
    """Return the tokenizer, the rows as features, and the number of labels."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder)
    labels = sorted({row["label"] for row in rows})
    texts = tokenizer([row["text"] for row in rows], truncation=True, max_length=min(512, tokenizer.model_max_length))
    features = [{key: own[number] for key, own in texts.items()} for number in range(len(rows))]
    return (
        tokenizer,
        [f | {"labels": labels.index(r["label"])} for f, r in zip(features, rows, strict=True)],
        len(labels),
    )


def stock(encoder: str, rows: list[Row], folder: Path) -> float:
    """Train with transformers' Trainer."""
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer

    tokenizer, features, labels = tokenized(encoder, rows)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=labels)
    collator = DataCollatorWithPadding(tokenizer)
    return timed(Trainer(model, arguments_of(folder), data_collator=collator, train_dataset=features).train)


def adapters(encoder: str, rows: list[Row], folder: Path) -> float:
    """Train a bottleneck adapter and a head, the encoder itself being frozen, as the library is meant to be used."""
    from adapters import AdapterTrainer, AutoAdapterModel
    from transformers import DataCollatorWithPadding

    tokenizer, features, labels = tokenized(encoder, rows)
    model = AutoAdapterModel.from_pretrained(encoder)
    model.add_classification_head("sentiment", num_labels=labels)
    model.add_adapter("sentiment", config="seq_bn")
    model.train_adapter("sentiment")
    collator = DataCollatorWithPadding(tokenizer)
    return timed(AdapterTrainer(model, arguments_of(folder), data_collator=collator, train_dataset=features).train)


def tasknet(encoder: str, rows: list[Row], folder: Path) -> float:
    """Train with tasknet."""
    import tasknet as tn
    from datasets import ClassLabel, Dataset, DatasetDict

    split = Dataset.from_list(rows).cast_column("label", ClassLabel(names=sorted({row["label"] for row in rows})))
    small = split.select(range(BATCH_SIZE))
    task = tn.Classification(DatasetDict(train=split, validation=small, test=small), s1="text", y="label")
    args = {
        "model_name": encoder, "output_dir": str(folder), "num_train_epochs": 1, "save_strategy": "no",
        "per_device_train_batch_size": BATCH_SIZE, "eval_strategy": "no", "report_to": "none",
    }  # fmt: skip
    model = tn.Model([task], args)
    return timed(tn.Trainer(model, [task], args).train)


def flair(encoder: str, rows: list[Row], folder: Path) -> float:
    """Train with flair."""
    from flair.data import Corpus, Sentence
    from flair.datasets import FlairDatapointDataset
    from flair.embeddings import TransformerDocumentEmbeddings
    from flair.models import TextClassifier
    from flair.trainers import ModelTrainer

    sentences = []
    for row in rows:
        sentences.append(Sentence(row["text"]))
        sentences[-1].add_label("sentiment", row["label"])
    corpus = Corpus(train=FlairDatapointDataset(sentences), dev=None, test=None, sample_missing_splits=False)
    embeddings = TransformerDocumentEmbeddings(encoder, fine_tune=True)
    dictionary = corpus.make_label_dictionary("sentiment")
    model = TextClassifier(embeddings, label_type="sentiment", label_dictionary=dictionary)
    trainer = ModelTrainer(model, corpus)
    options: dict[str, Any] = {"max_epochs": 1, "mini_batch_size": BATCH_SIZE, "save_final_model": False}
    return timed(lambda: trainer.fine_tune(folder, **options))


JOBS = {"ours": ours, "stock": stock, "adapters": adapters, "tasknet": tasknet, "flair": flair}


def main() -> None:
    name, path = sys.argv[1:]
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        seconds = JOBS[name](job["encoder"], job["rows"], Path(folder))
    print("\n" + json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
