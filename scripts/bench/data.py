"""Bring the public data of the benchmarks from the Hub: `python scripts/bench/data.py FOLDER`.

Writes sst2/, ag_news/, snips/, wnut17/, ewt/, goemotions/ and stsb/ with training, validation and test files, in the
layout that the other scripts read. Look at each set's licence before you pass files on.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, load_dataset

PARQUET = "refs/convert/parquet"
"""The Hub's own conversion of sets that come as a program, which datasets runs no more."""
Rows = list[dict[str, Any]]
Tags = list[tuple[Sequence[str], Sequence[str]]]


@dataclass(frozen=True)
class Source:
    """Where a set comes from and how it is written.

    Args:
        name: its id on the Hub.
        convert: makes rows of a split.
        write: writes rows into a file.
        ending: how the files' names end.
        options: more arguments of `load_dataset`.
        validation: what the validation file is called.
    """

    name: str
    convert: Callable[[Dataset], Any]
    write: Callable[[Path, Any], None]
    ending: str
    options: Mapping[str, Any] = field(default_factory=dict)
    validation: str = "validation"


# ---------------------------------------------------------------------- rows


def sentiment(split: Dataset) -> Rows:
    """Convert rows of SetFit's SST-2."""
    return [{"text": row["text"], "label": row["label_text"]} for row in split]


def topics(split: Dataset) -> Rows:
    """Convert rows of AG News."""
    return [{"text": row["text"], "label": name} for row, name in zip(split, names(split, "label"), strict=True)]


def slots(split: Dataset) -> Rows:
    """Convert rows of SNIPS, whose words and tags are given as one text each."""
    return [{"tokens": r["input"].split(), "slots": r["slots"].split(), "intent": r["intent"]} for r in split]


def emotions(split: Dataset) -> Rows:
    """Convert rows of GoEmotions."""
    return [{"text": row["text"], "labels": own} for row, own in zip(split, names(split, "labels"), strict=True)]


def similarity(split: Dataset) -> Rows:
    """Convert rows of STS-B, whose scores are given from 0 to 1."""
    return [{"text": r["sentence1"], "text_pair": r["sentence2"], "score": round(5 * r["score"], 4)} for r in split]


def tagged(column: str) -> Callable[[Dataset], Tags]:
    """Return a converter of rows of tokens and tags, which stand in a column."""
    return lambda split: list(zip(split["tokens"], names(split, column), strict=True))


def names(split: Dataset, column: str) -> list[Any]:
    """Return the names of a column's class labels, one or a list for each row."""
    kind = split.features[column]
    label: ClassLabel = kind if isinstance(kind, ClassLabel) else kind.feature
    return [label.int2str(value) for value in split[column]]


# ---------------------------------------------------------------------- files


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_conll(path: Path, rows: Tags) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines("".join(f"{token}\t{tag}\n" for token, tag in zip(*row, strict=True)) + "\n" for row in rows)


def write_conllu(path: Path, rows: Tags) -> None:
    with path.open("w", encoding="utf-8") as file:
        for tokens, tags in rows:
            lines = enumerate(zip(tokens, tags, strict=True), start=1)
            file.writelines(f"{number}\t{token}\t_\t{tag}" + "\t_" * 6 + "\n" for number, (token, tag) in lines)
            file.write("\n")


SOURCES = {
    "sst2": Source("SetFit/sst2", sentiment, write_jsonl, "jsonl"),
    "ag_news": Source("fancyzhx/ag_news", topics, write_csv, "csv"),
    "snips": Source("bkonkle/snips-joint-intent", slots, write_jsonl, "jsonl"),
    "wnut17": Source("leondz/wnut_17", tagged("ner_tags"), write_conll, "conll", {"revision": PARQUET}),
    "ewt": Source(
        "universal-dependencies/universal_dependencies", tagged("upos"), write_conllu, "conllu",
        {"name": "en_ewt", "revision": PARQUET}, "dev",
    ),
    "goemotions": Source(
        "google-research-datasets/go_emotions", emotions, write_jsonl, "jsonl", {"name": "simplified"}
    ),
    "stsb": Source("sentence-transformers/stsb", similarity, write_jsonl, "jsonl"),
}  # fmt: skip


def three_splits(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Return training, validation and test rows; of a set without validation rows 6,000, 600 and 1,000 test rows."""
    splits = dict(splits)
    validation = next((splits[name] for name in ("validation", "valid", "dev") if name in splits), None)
    if validation is not None:
        return {"train": splits["train"], "validation": validation, "test": splits["test"]}
    rows = splits["test"].shuffle(seed=13)
    ends = {"train": (0, 6000), "validation": (6000, 6600), "test": (6600, 7600)}
    return {name: rows.select(range(*own)) for name, own in ends.items()}


def write(source: Source, splits: Mapping[str, Dataset], folder: Path) -> None:
    """Write the three files of a set."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in three_splits(splits).items():
        stem = source.validation if split == "validation" else split
        source.write(folder / f"{stem}.{source.ending}", source.convert(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SOURCES, default=list(SOURCES))
    options = parser.parse_args()
    for name in options.sets:
        source = SOURCES[name]
        write(source, load_dataset(source.name, **source.options), options.folder / name)
        print(f"{name}: {options.folder / name}, from {source.name}")


if __name__ == "__main__":
    main()
