"""From a recipe to tokenized rows: labels found, every row checked, held-out rows apart, and nothing done twice."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import numpy as np
import pytest
from tiny import write_encoder, write_recipe
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_mtl.configuration import TaskSpec
from hf_mtl.data import encoded
from hf_mtl.data.collator import LABEL_PREFIX
from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.data.encoding import encode
from hf_mtl.data.loading import read_files, read_hub
from hf_mtl.data.preparation import RecipeData, load_recipe, load_tokenizer
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.data.yaml import write_yaml
from hf_mtl.errors import DataError, HfMtlError, ModelError, SpecError
from hf_mtl.registry import HEADS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    datasets.disable_progress_bars()
    return folder


@pytest.fixture
def tokenizer(minilm: Path) -> PreTrainedTokenizerBase:
    made = AutoTokenizer.from_pretrained(str(minilm))
    made.model_max_length = 64
    return made


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def home(n: int) -> dict[str, Any]:
    """A row with an intent and slots; every third lacks one of them, every seventh both."""
    room = ["kitchen", "bath", "hall"][n % 3]
    return {
        "tokens": ["turn", ["on", "off"][n % 2], "the", room, "light", str(n)],
        "slots": None if n % 7 == 6 or n % 3 == 2 else ["O", "O", "O", "B-room", "O", None],
        "intent": None if n % 7 == 6 or n % 3 == 1 else ["on", "off"][n % 2],
    }


CONLLU = "# sent_id = {n}\n1\tbirds\tbird\t{upos}\t_\t_\t2\tnsubj\t_\t_\n2\tsing\tsing\tVERB\t_\t_\t0\troot\t_\t_\n\n"


@pytest.fixture
def recipe(tmp_path: Path, minilm: Path) -> Path:
    """Joint rows, multi-label rows, pairs with numbers, and CoNLL-U."""
    write_rows(tmp_path / "home/train.jsonl", [home(n) for n in range(60)])
    write_rows(tmp_path / "home/test.jsonl", [home(n) for n in range(60, 80)])
    mood = [{"text": f"text {n}", "moods": [["b", "a"], [], ["c"], None][n % 4]} for n in range(40)]
    write_rows(tmp_path / "mood.jsonl", mood)
    write_rows(tmp_path / "mood-dev.jsonl", [{"text": "dev", "moods": ["d", "a"]}])
    pairs = "\n".join(["one,two,score", *(f"first {n},second {n},{n / 2 if n % 5 else ''}" for n in range(20))])
    (tmp_path / "pairs.csv").write_text(pairs, encoding="utf-8")
    (tmp_path / "pairs-dev.csv").write_text("one,two,score\na,b,1\n", encoding="utf-8")
    tree = "".join(CONLLU.format(n=n, upos=["NOUN", "PROPN"][n % 2]) for n in range(20))
    (tmp_path / "tree.conllu").write_text(tree, encoding="utf-8")
    values = {
        "encoder": str(minilm),
        "max_length": 16,
        "datasets": {
            "home": {"train": "home/train.jsonl", "test": "home/test.jsonl", "tokens": "tokens"},
            "mood": {"train": "mood.jsonl", "validation": "mood-dev.jsonl", "text": "text"},
            "pairs": {"train": "pairs.csv", "validation": "pairs-dev.csv", "text": "one", "text_pair": "two"},
            "tree": {"train": "tree.conllu", "tokens": "tokens"},
        },
        "tasks": [
            {"name": "intent", "type": "sequence_classification", "dataset": "home", "label": "intent"},
            {"name": "slots", "type": "token_classification", "dataset": "home", "label": "slots"},
            {"name": "moods", "type": "multi_label_classification", "dataset": "mood", "label": "moods"},
            {"name": "close", "type": "regression", "dataset": "pairs", "label": "score"},
            {"name": "upos", "type": "token_classification", "dataset": "tree", "label": "upos"},
        ],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(write_yaml(values), encoding="utf-8")
    return path


def load(folder: Path, tokenizer: PreTrainedTokenizerBase, *, task: Any, source: Any, **options: Any) -> RecipeData:
    """Load a recipe of one dataset `d`, and one task or several."""
    tasks = [{"dataset": "d", **one} for one in (task if isinstance(task, list) else [task])]
    values = {"encoder": "unused", "datasets": {"d": source}, "tasks": tasks}
    return load_recipe(parse_recipe(values, base=folder), tokenizer=tokenizer, **options)


TOPIC = {"name": "topic", "type": "sequence_classification", "label": "label"}
TAGS = {"name": "tags", "type": "token_classification", "label": "tags"}


# ---------------------------------------------------------------------- what comes out


def test_a_recipe_becomes_tasks_and_encoded_splits(recipe: Path) -> None:
    data = load_recipe(recipe)
    assert data.tokenizer.model_max_length == 16
    assert {spec.name: spec.labels for spec in data.tasks} == {
        "intent": ("off", "on"),
        "slots": ("O", "B-room"),
        "moods": ("a", "b", "c", "d"),
        "close": None,
        "upos": ("NOUN", "PROPN", "VERB"),
    }
    assert {name: len(split) for name, split in data.train.items()} == {"home": 54, "mood": 40, "pairs": 20, "tree": 18}
    assert {name: len(split) for name, split in data.validation.items()} == {
        "home": 6, "mood": 1, "pairs": 1, "tree": 2,
    }  # fmt: skip
    assert {name: len(split) for name, split in data.test.items()} == {"home": 20}
    assert data.split("test") is data.test
    only = load_recipe(recipe, splits=["test"])
    assert only.tasks == data.tasks
    assert (only.train, only.validation, list(only.test)) == ({}, {}, ["home"])
    for split in (*data.train.values(), *data.validation.values(), *data.test.values()):
        check_rows(split, data.tokenizer)


def check_rows(split: EncodedSplit, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check a split against encoding its rows one at a time."""
    features = split.features.to_list()
    assert split.features.column_names == [
        "input_ids", "token_type_ids", "first_tokens", "length", "truncated",
        *(LABEL_PREFIX + task.spec.name for task in split.tasks),
    ]  # fmt: skip
    inputs, words = list(split.inputs()), split.words()
    assert len(features) == len(inputs) == len(words) == len(split) == len(split.raw.dataset)
    assert split.lengths.tolist() == [len(row["input_ids"]) for row in features]
    for n, (row, own) in enumerate(zip(features, inputs, strict=True)):
        alone = encode(tokenizer, [own])
        assert row["input_ids"] == alone.input_ids[0]
        assert row["token_type_ids"] == alone.token_type_ids[0]
        first = alone.first_tokens[0]
        assert row["first_tokens"] == (None if first is None else first.tolist())
        assert (words[n] is None) == (first is None)
    for task in split.tasks:
        head, gold = HEADS.get(task.spec.type), split.gold(task)
        labels = [row[LABEL_PREFIX + task.spec.name] for row in features]
        assert split.labelled(task.spec.name).tolist() == [n for n, label in enumerate(labels) if label is not None]
        for label, value, own, row in zip(labels, gold, words, features, strict=True):
            if label is None:
                assert value is None
            else:
                assert label == head.encode(task.spec, value, own, len(row["input_ids"]))


def test_labels_of_single_rows(recipe: Path) -> None:
    data = load_recipe(recipe)
    row = data.test["home"].features[0]  # number 60: an intent and slots
    assert row["labels/intent"] == 1
    tokens = data.tokenizer.convert_ids_to_tokens(row["input_ids"])
    tags = {token: label for token, label in zip(tokens, row["labels/slots"], strict=True) if label != -100}
    assert tags == {"turn": 0, "on": 0, "the": 0, "kitchen": 1, "light": 0}  # the open tag of "60" is none
    assert data.test["home"].features[1]["labels/intent"] is None  # number 61
    assert data.train["mood"].features[0]["labels/moods"] == [1.0, 1.0, 0.0, 0.0]
    assert data.train["mood"].features[1]["labels/moods"] == [0.0] * 4  # no label at all is known
    assert data.train["mood"].features[3]["labels/moods"] is None
    pairs = data.train["pairs"].features
    assert pairs[0]["labels/close"] is None
    assert pairs[3]["labels/close"] == 1.5
    assert pairs[0]["token_type_ids"] == [0] * 4 + [1] * 3
    assert data.train["home"].features[0]["token_type_ids"] is None


def test_rows_without_any_label_stay_in_place(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows: list[dict[str, Any]] = [
        {"tokens": ["a", "b"], "tags": None, "label": None},
        {"tokens": ["a", "b"], "tags": [None, None], "label": "x"},
        {"tokens": [], "tags": [], "label": "y"},
        {"tokens": None, "tags": None, "label": "y"},
        {"tokens": ["a"], "tags": ["X"], "label": None},
        {"tokens": ["\u200b", "a"], "tags": ["X", "Y"], "label": None},
        {"tokens": ["\u200b", "a"], "tags": ["X", None], "label": None},  # the encoder sees no zero-width space
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    source = {"train": "a.jsonl", "validation": "a.jsonl", "tokens": "tokens"}
    split = load(tmp_path, tokenizer, task=[TOPIC, TAGS], source=source).train["d"]
    assert len(split) == 7
    assert split.labelled("topic").tolist() == [1, 2, 3]
    assert split.labelled("tags").tolist() == [4, 5]
    assert split.raw.where(6) == "a.jsonl, line 7"
    assert split.gold(split.tasks[0]) == [None, "x", "y", "y", None, None, None]


def test_truncated_rows_are_counted_for_each_task(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": "word " * n, "a": "xy"[n % 2] if n < 40 else None, "b": "xy"[n % 2]} for n in range(5, 65, 2)]
    rows += [{"text": "more", "a": "x", "b": "y"}]
    write_rows(tmp_path / "a.jsonl", rows)
    tasks = [{"name": name, "type": "sequence_classification", "label": name} for name in "ab"]
    tokenizer.model_max_length = 32
    tasks[0]["labels"] = tasks[1]["labels"] = ["x", "y"]
    with caplog.at_level(logging.WARNING):
        split = load(
            tmp_path, tokenizer, task=tasks, source={"train": "a.jsonl", "validation": "a.jsonl", "text": "text"}
        ).train["d"]
    assert (split.truncated("a"), split.truncated("b")) == (5, 17)
    assert int(split.lengths.max()) == 32
    assert "d train: 5 of 19 rows labelled for task 'a' were cut to the maximum length" in caplog.text
    assert "d validation: 17 of 31 rows labelled for task 'b' were cut" in caplog.text


# ---------------------------------------------------------------------- labels


def test_labels_of_all_splits_are_found_and_sorted(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    for split, labels in (("train", [10, 9, None]), ("dev", [2, 9]), ("test", [7, 30])):
        write_rows(tmp_path / f"{split}.jsonl", [{"text": "x", "label": label} for label in labels])
    source = {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl", "text": "text"}
    assert load(tmp_path, tokenizer, task=TOPIC, source=source).tasks[0].labels == ("2", "7", "9", "10", "30")
    named = {**TOPIC, "labels": ["30", "2", "7", "9", "10"]}
    data = load(tmp_path, tokenizer, task=named, source=source)
    assert data.tasks[0].labels == ("30", "2", "7", "9", "10")
    assert data.train["d"].features["labels/topic"][:] == [4, 3, None]


def test_specs_of_a_model_keep_their_labels(recipe: Path, minilm: Path) -> None:
    specs = [
        TaskSpec(name="upos", type="token_classification", labels=("VERB", "X", "PROPN", "NOUN"), dropout=0.3),
        TaskSpec(name="elsewhere", type="regression"),
        TaskSpec(name="intent", type="sequence_classification", labels=("on", "off", "dim")),
    ]
    data = load_recipe(recipe, tokenizer=load_tokenizer(minilm), tasks=specs)
    assert data.tasks == (specs[0], specs[2])
    assert set(data.train) == {"tree", "home"}
    assert [task.spec for task in data.train["home"].tasks] == [specs[2]]
    assert data.test["home"].features[0]["labels/intent"] == 0
    assert [label for label in data.train["tree"].features[0]["labels/upos"] if label != -100] == [3, 0]
    with pytest.raises(ModelError, match=r"the recipe has none of the model's tasks \(elsewhere\)"):
        load_recipe(recipe, tasks=specs[1:2])
    with pytest.raises(ModelError, match=r"task 'intent' is of type regression, the recipe's of type sequence_class"):
        load_recipe(recipe, tasks=[TaskSpec(name="intent", type="regression")])


# ---------------------------------------------------------------------- class labels

TAG_NAMES = ["O", "I-PER", "B-PER"]
FEATURES = datasets.Features(
    {
        "id": datasets.Value("int32"),
        "label": datasets.ClassLabel(names=["world", "art", "unused"]),
        "tokens": datasets.List(datasets.Value("string")),
        "tags": datasets.List(datasets.ClassLabel(names=TAG_NAMES)),
        "moods": datasets.List(datasets.ClassLabel(names=["sad", "glad"])),
        "level": datasets.ClassLabel(num_classes=3),
    }
)
CLASSES: list[dict[str, Any]] = [
    {"id": 0, "label": 1, "tokens": ["Ann", "sang"], "tags": [2, 0], "moods": [1], "level": 0},
    {"id": 1, "label": -1, "tokens": ["Ann", "Lee"], "tags": [-1, 1], "moods": [], "level": -1},
    {"id": 2, "label": 0, "tokens": [], "tags": [], "moods": [1, 0], "level": 2},
    {"id": 3, "label": None, "tokens": ["no"], "tags": None, "moods": None, "level": None},
    {"id": 4, "label": 0, "tokens": ["no"], "tags": [-1], "moods": [0], "level": 1},
]
NAMED = [
    {"id": 0, "label": "art", "tokens": ["Ann", "sang"], "tags": ["B-PER", "O"], "moods": ["glad"], "level": 0},
    {"id": 1, "label": None, "tokens": ["Ann", "Lee"], "tags": [None, "I-PER"], "moods": [], "level": None},
    {"id": 2, "label": "world", "tokens": [], "tags": [], "moods": ["glad", "sad"], "level": 2},
    {"id": 3, "label": None, "tokens": ["no"], "tags": None, "moods": None, "level": None},
    {"id": 4, "label": "world", "tokens": ["no"], "tags": [None], "moods": ["sad"], "level": 1},
]


def class_rows(indices: range | None = None) -> datasets.Dataset:
    rows = datasets.Dataset.from_list(CLASSES, features=FEATURES)
    return rows if indices is None else rows.select(indices)


def save(folder: Path, kind: str) -> dict[str, Any]:
    """Save the rows of classes in some way, and return the dataset of a recipe that reads them."""
    if kind == "save_to_disk":
        class_rows().save_to_disk(str(folder / "saved"))
        return {"path": "saved"}
    if kind == "save_to_disk, splits":
        datasets.DatasetDict({"train": class_rows(), "validation": class_rows()}).save_to_disk(str(folder / "saved"))
        return {"path": "saved", "validation": "validation"}
    if kind == "folder of parquet":
        (folder / "set").mkdir()
        for split in ("train", "validation"):
            class_rows().to_parquet(str(folder / "set" / f"{split}.parquet"))
        return {"path": "./set", "validation": "validation"}
    if kind == "parquet":
        class_rows(range(3)).to_parquet(str(folder / "a.parquet"))
        class_rows(range(3, 5)).to_parquet(str(folder / "b.parquet"))
        return {"train": ["a.parquet", "b.parquet"]}
    (folder / "cache").mkdir(exist_ok=True)
    rows = class_rows().map(lambda row: row, cache_file_name=str(folder / "a.arrow"))
    assert len(rows)
    return {"train": "a.arrow"}


@pytest.mark.parametrize("kind", ["save_to_disk", "save_to_disk, splits", "folder of parquet", "parquet", "arrow"])
def test_class_labels_are_names_however_they_are_stored(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, kind: str
) -> None:
    source = save(tmp_path, kind)
    if "path" in source:
        raw = read_hub(source["path"], split="train", base=tmp_path)
        assert raw.where(4) == f"{source['path']} (train), row 5"
    else:
        raw = read_files(source["train"], base=tmp_path)
    assert raw.dataset.to_list() == NAMED
    assert raw.dataset.column_names == list(FEATURES)
    assert raw.classes == {
        "label": ("world", "art", "unused"), "tags": tuple(TAG_NAMES), "moods": ("sad", "glad"),
        "level": ("0", "1", "2"),
    }  # fmt: skip
    tasks = [
        {"name": "topic", "type": "sequence_classification", "label": "label"},
        {"name": "tags", "type": "token_classification", "label": "tags"},
        {"name": "moods", "type": "multi_label_classification", "label": "moods"},
        {"name": "level", "type": "sequence_classification", "label": "level"},
        {"name": "named", "type": "sequence_classification", "label": "level", "labels": ["low", "mid", "high"]},
        {"name": "number", "type": "regression", "label": "level"},
    ]
    train = source.get("train")
    source = {**source, "tokens": "tokens", "validation": source.get("validation", train or "train")}
    data = load(tmp_path, tokenizer, task=tasks, source=source)
    assert [spec.labels for spec in data.tasks] == [
        ("world", "art", "unused"), tuple(TAG_NAMES), ("sad", "glad"), ("0", "1", "2"), ("low", "mid", "high"), None,
    ]  # fmt: skip
    split = data.train["d"]
    columns = split.features.to_dict()
    assert columns["labels/topic"] == [1, None, 0, None, 0]
    assert [label and [tag for tag in label if tag != -100] for label in columns["labels/tags"]] == [
        [2, 0], [1], None, None, None,
    ]  # fmt: skip
    assert columns["labels/moods"] == [[0, 1], [0, 0], [1, 1], None, [1, 0]]
    assert columns["labels/level"] == columns["labels/named"] == columns["labels/number"] == [0, None, 2, None, 1]
    assert split.gold(split.tasks[0]) == ["art", None, "world", None, "world"]
    if (tmp_path / "saved").exists():
        assert not list((tmp_path / "saved").rglob("cache-*")), "nothing is written beside the user's data"


def test_class_names_go_before_labels_of_plain_columns(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    class_rows().to_parquet(str(tmp_path / "a.parquet"))
    write_rows(tmp_path / "dev.jsonl", [{"tokens": ["x"], "label": label} for label in ("sport", "art", "body")])
    source = {"train": "a.parquet", "validation": "dev.jsonl", "tokens": "tokens"}
    data = load(tmp_path, tokenizer, task=TOPIC, source=source)
    assert data.tasks[0].labels == ("world", "art", "unused", "body", "sport")
    assert data.validation["d"].features["labels/topic"][:] == [4, 1, 3]


def test_class_labels_survive_selection_and_nesting(tmp_path: Path) -> None:
    names = ["x", "y"]
    features = datasets.Features(
        {
            "deep": datasets.List(datasets.LargeList(datasets.ClassLabel(names=names))),
            "pair": datasets.List(datasets.ClassLabel(names=names), length=2),
            "other": {"label": datasets.ClassLabel(names=names)},
        }
    )
    row = {"deep": [[0, 1], [], None, [-1]], "pair": [1, 0], "other": {"label": 1}}
    rows = [row, {**row, "deep": None, "pair": None}, {**row, "deep": [], "pair": [-1, 1]}]
    whole = datasets.Dataset.from_list(rows, features=features)
    datasets.concatenate_datasets([whole.select([2, 0]), whole.select([1])]).save_to_disk(str(tmp_path / "saved"))
    raw = read_hub("saved", split="train", base=tmp_path)
    named = {**row, "deep": [["x", "y"], [], None, [None]], "pair": ["y", "x"]}
    assert raw.dataset.to_list() == [
        {**named, "deep": [], "pair": [None, "y"]}, named, {**named, "deep": None, "pair": None},
    ]  # fmt: skip
    assert raw.classes == {"deep": ("x", "y"), "pair": ("x", "y")}
    assert raw.select([1]).classes == raw.classes
    assert raw.select([1]).dataset[0] == named


def test_a_class_without_a_name_is_an_error(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"label": [0, 7]})
    features = datasets.Features({"label": datasets.ClassLabel(names=["a", "b"])})
    table = rows.data.table.replace_schema_metadata(features.arrow_schema.metadata)
    import pyarrow.parquet as pq

    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: column 'label' holds a class that has no name; it names 2"):
        read_files("a.parquet", base=tmp_path)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (
            {**TOPIC, "labels": ["x", "y"]}, [{"label": "x"}, {"label": "z"}],
            "a.jsonl, line 2, task 'topic': label 'z' is not in the label set; use one of 'x', 'y'",
        ),
        (TOPIC, [{"label": "x"}, {"label": "y"}, {"label": ["x"]}], "a.jsonl, line 3: column 'label' holds ['x']"),
        (TOPIC, [{"label": 1.0}, {"label": 0.5}], "a.jsonl, line 2, task 'topic': 0.5 is not a label"),
        (TOPIC, [{"label": "x"}, {"label": None}], "task 'topic': there is 1 label, sequence_classification needs"),
        (
            TAGS, [{"tags": ["X", "Y"]}, {"tags": ["X"]}],
            "a.jsonl, line 2, task 'tags': 1 tags for 2 tokens; give one tag per token",
        ),
        (TAGS, [{"tags": "X Y"}, {"tags": "X"}], "a.jsonl, line 1, task 'tags': 'X Y' is not a list of tags"),
        (
            {"name": "score", "type": "regression", "label": "label"}, [{"label": "1.5"}, {"label": "high"}],
            "a.jsonl, line 2, task 'score': a number was expected, found 'high'",
        ),
        (
            {"name": "moods", "type": "multi_label_classification", "label": "label"}, [{"label": "x"}, {"label": "y"}],
            "a.jsonl, line 1, task 'moods': 'x' is not a list of labels",
        ),
        (
            {**TOPIC, "labels": ["x", "y"]}, [{"label": None}, {"label": None}],
            "dataset 'd', task 'topic', column 'label': none of the 2 rows of train has a label; give labels, or leave",
        ),
        (
            {"name": "score", "type": "regression", "label": "label"}, [{"label": None}, {"label": None}],
            "dataset 'd', task 'score', column 'label': none of the 2 rows of train has a label",
        ),
        (
            {**TOPIC, "label": "lable"}, [{"label": "x"}],
            "dataset 'd', a.jsonl: there is no column 'lable' (label of task 'topic'); did you mean 'label'?",
        ),
    ],
)  # fmt: skip
def test_bad_labels_name_file_line_and_task(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, task: Any, rows: list[dict[str, Any]], message: str
) -> None:
    write_rows(tmp_path / "a.jsonl", [{"tokens": ["a", "b"], **row} for row in rows])
    source = {"train": "a.jsonl", "validation": "a.jsonl", "tokens": "tokens"}
    with pytest.raises(HfMtlError) as caught:
        load(tmp_path, tokenizer, task=task, source=source)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ({"text": "txt"}, '{"text": "x", "label": "x"}\n', "a.jsonl: there is no column 'txt' (text); did you mean"),
        ({"tokens": "text"}, '{"text": "x", "label": "x"}\n' * 2, "a.jsonl, line 2: tokens is 'x'; give tokens as"),
        ({"text": "text"}, '{"text": 3, "label": "x"}\n' * 2, "a.jsonl, line 2: text is 3; give text as a string"),
        (
            {"text": "text", "text_pair": "b"}, '{"text": "x", "b": ["y"], "label": "x"}\n' * 2,
            "a.jsonl, line 2: text_pair is ['y']",
        ),
        ({"text": "text"}, "", "dataset 'd', a.jsonl: the file has no rows"),
        ({"text": "text"}, '{"text": "x", "label": "x"}\n', "dataset 'd', a.jsonl, line 1: a single row cannot be"),
        ({"text": "text"}, '{"text": ', "dataset 'd', a.jsonl, line 1: '{\"text\":' is not JSON"),
    ],
)  # fmt: skip
def test_bad_data_names_file_and_line(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, source: dict[str, str], content: str, message: str
) -> None:
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load(tmp_path, tokenizer, task={**TOPIC, "labels": ["x", "y"]}, source={"train": "a.jsonl", **source})
    assert message in str(caught.value)


def test_a_missing_file_and_a_missing_folder_name_the_dataset(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(DataError, match=r"dataset 'd', missing\.jsonl: there is no such file"):
        load(tmp_path, tokenizer, task=TOPIC, source={"train": "missing.jsonl", "text": "text"})
    with pytest.raises(DataError, match=r"dataset 'd', \./missing: there is no such folder"):
        load(tmp_path, tokenizer, task=TOPIC, source={"path": "./missing", "text": "text"})


def test_unknown_splits_and_tokenizers_are_named(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no split 'dev'"):
        load_recipe(recipe, splits=["dev"])
    with pytest.raises(DataError, match="there is no split 'tets'; did you mean 'test'"):
        load_recipe(recipe, splits=["test"]).split("tets")
    with pytest.raises(ModelError):
        load_tokenizer(tmp_path)


# ---------------------------------------------------------------------- rows set aside


def numbered(folder: Path, count: int = 200) -> dict[str, Any]:
    rows = [{"text": f"text {n}", "label": "x" if n % 10 else "rare"} for n in range(count)]
    write_rows(folder / "a.jsonl", rows)
    return {"train": "a.jsonl", "text": "text"}


def texts(data: RecipeData, split: str) -> list[str]:
    return data.split(split)["d"].raw.dataset["text"][:]


def test_validation_rows_are_drawn_by_seed_and_apart_from_train(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    source = numbered(tmp_path)
    data = [load(tmp_path, tokenizer, task=TOPIC, source=source, seed=seed) for seed in (0, 0, 1)]
    train, validation = texts(data[0], "train"), texts(data[0], "validation")
    assert sorted([*train, *validation]) == sorted(f"text {n}" for n in range(200))
    assert len(validation) == 20
    assert data[0].validation["d"].gold(data[0].validation["d"].tasks[0]).count("rare") == 2
    assert texts(data[1], "validation") == validation
    assert texts(data[2], "validation") != validation
    assert [data[0].validation["d"].raw.where(n) for n in range(20)] == [
        f"a.jsonl, line {int(text.split()[1]) + 1}" for text in validation
    ]
    for splits in (["train"], ["validation"], ["validation", "train"]):
        part = load(tmp_path, tokenizer, task=TOPIC, source=source, splits=splits)
        assert [texts(part, split) for split in splits] == [texts(data[0], split) for split in splits]
        assert all(not part.split(split) for split in ("train", "validation", "test") if split not in splits)


def test_validation_rows_without_a_label_are_no_error_where_nobody_chose_them(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": f"t{n}", "label": "xy"[n % 2], "rare": n if n == 0 else None} for n in range(30)]
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b.jsonl", rows[1:3])
    tasks = [TOPIC, {"name": "rare", "type": "regression", "label": "rare"}]
    seed = next(s for s in range(9) if 0 not in np.random.default_rng(s).permutation(15)[:2])
    data = load(tmp_path, tokenizer, task=tasks, source={"train": "a.jsonl", "text": "text"}, seed=seed)
    assert data.train["d"].labelled("rare").tolist() == [0]
    assert len(data.validation["d"].labelled("rare")) == 0
    assert "task 'rare', column 'rare': none of the 3 rows of validation has a label" in caplog.text
    source = {"train": "a.jsonl", "validation": "b.jsonl", "text": "text"}
    with pytest.raises(DataError, match="none of the 2 rows of validation has a label"):
        load(tmp_path, tokenizer, task=tasks, source=source)


# ---------------------------------------------------------------------- the cache


@pytest.mark.slow
def test_a_second_load_tokenizes_nothing(recipe: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise AssertionError("rows were tokenized again")

    first = load_recipe(recipe)
    with monkeypatch.context() as patched:
        patched.setattr(encoded, "encode", refuse)
        # A tokenizer that was used has another inner state than a fresh one.
        for again in (load_recipe(recipe), load_recipe(recipe, tokenizer=first.tokenizer)):
            for split in ("train", "validation", "test"):
                for name, rows in first.split(split).items():
                    assert again.split(split)[name].features.to_dict() == rows.features.to_dict()
        # What acts on the loss alone changes no row.
        text = recipe.read_text()
        weighted = "label: intent\n  loss_weight: 2\n  dropout: 0.2\n  pooling: cls\n  label_smoothing: 0.1\n"
        recipe.write_text(text.replace("label: intent\n", weighted))
        load_recipe(recipe)
        for changed in (
            text.replace("max_length: 16", "max_length: 12"),
            text.replace("label: intent\n", "label: intent\n  labels: ['on', 'off']\n"),
        ):
            assert changed != text
            recipe.write_text(changed)
            with pytest.raises(AssertionError, match="tokenized again"):
                load_recipe(recipe)
        recipe.write_text(text)
        first.tokenizer.truncation_side = "left"
        with pytest.raises(AssertionError, match="tokenized again"):
            load_recipe(recipe, tokenizer=first.tokenizer)
        first.tokenizer.truncation_side = "right"
        first.tokenizer.add_tokens(["kitchen light"])
        with pytest.raises(AssertionError, match="tokenized again"):
            load_recipe(recipe, tokenizer=first.tokenizer)
    assert list(cache.rglob("encoded-*.arrow"))
    assert not list(cache.rglob("tmp*"))


def test_changed_data_is_tokenized_again(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source = numbered(tmp_path)
    before = load(tmp_path, tokenizer, task=TOPIC, source=source)
    write_rows(tmp_path / "a.jsonl", [{"text": "new", "label": "xy"[n % 2]} for n in range(20)])
    after = load(tmp_path, tokenizer, task=TOPIC, source=source)
    assert len(before.train["d"]) == 180
    assert set(texts(after, "train")) == {"new"}
    assert after.train["d"].lengths.tolist() == [3] * 18


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "occupied")
    data = load(tmp_path, tokenizer, task=TOPIC, source=numbered(tmp_path))
    assert len(data.train["d"]) == 180
    class_rows().save_to_disk(str(tmp_path / "saved"))
    before = sorted(os.listdir(tmp_path / "saved"))  # noqa: PTH208
    source = {"path": "saved", "tokens": "tokens", "validation": "train"}
    assert len(load(tmp_path, tokenizer, task=TOPIC, source=source).train["d"]) == 5
    assert sorted(os.listdir(tmp_path / "saved")) == before  # noqa: PTH208


def test_which_rows_are_held_out_does_not_depend_on_the_tasks_that_are_asked_for(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_encoder(tmp_path / "encoder"))
    del recipe["datasets"]["orders"]["validation"]
    recipe["deduplicate"] = "exact"
    whole = load_recipe(parse_recipe(recipe, base=tmp_path), seed=7)
    for spec in whole.tasks:
        if spec.name not in ("intent", "slots", "grammar"):
            continue
        own = parse_recipe(recipe, base=tmp_path)
        alone = load_recipe(own, seed=7, tasks=[spec], tokenizer=whole.tokenizer, splits=["validation"])
        expected = whole.validation["orders"].raw.dataset["tokens"][:]
        assert alone.validation["orders"].raw.dataset["tokens"][:] == expected
