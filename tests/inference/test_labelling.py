"""Pseudo-labels: only what is missing is filled, only where the model is sure, and the file can be trained on."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from tiny import build, write_quiz

from hf_mtl.data.encoding import Inputs, encode
from hf_mtl.data.preparation import RecipeData, load_recipe
from hf_mtl.data.recipe import Recipe, parse_recipe
from hf_mtl.errors import DataError, OutputError, SpecError
from hf_mtl.evaluation.prediction import answer
from hf_mtl.inference.labelling import MARK, label_file
from hf_mtl.model.cross_entropy import softmax
from hf_mtl.model.heads.base import TaskHead
from hf_mtl.model.modeling import MultiTaskModel

HIDDEN = 3
"""One in so many labels is hidden."""


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_jsonl(rows: list[dict[str, Any]], path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def hide(folder: Path, name: str, columns: tuple[str, ...]) -> tuple[list[dict[str, Any]], Path]:
    """Write the rows of a training file with some labels hidden, and return the rows as they were."""
    rows = read_jsonl(folder / f"{name}-train.jsonl")
    hidden = [
        row | {column: None for place, column in enumerate(columns) if (number + place) % HIDDEN == 0}
        for number, row in enumerate(rows)
    ]  # fmt: skip
    path = folder / f"{name}-open.jsonl"
    write_jsonl(hidden, path)
    return rows, path


def recipe_of(data: RecipeData, folder: Path, **changes: Any) -> Recipe:
    values = json.loads(json.dumps(data.recipe.to_dict()))
    for name, change in changes.items():
        values["datasets"][name] |= change
    return parse_recipe(values, base=folder)


def agreement(head: TaskHead, label: Any, gold: Any) -> float:
    """Return the share of a label's choices that are right, of those that are known."""
    found, known = head.reference(head.spec, label), head.reference(head.spec, gold)
    pairs = zip(found, known, strict=True) if isinstance(known, list) else [(found, known)]
    return float(np.mean([own == right for own, right in pairs if right is not None]))


@pytest.fixture
def folder(tiny_folder: Path, tiny_recipe: dict[str, Any], tmp_path: Path) -> Path:
    """A folder of its own with the files of the tiny world."""
    for path in tiny_folder.glob("*.jsonl"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("name", "labels", "threshold", "share"),
    [
        ("films", {"sentiment": "label"}, 0.7, 0.7),
        ("posts", {"moods": "moods"}, 0.4, 0.6),
        ("orders", {"intent": "intent", "slots": "slots", "grammar": "grammar"}, 0.7, 0.8),
    ],
)
def test_given_labels_stay_and_filled_ones_are_the_models_and_sure(
    learnt: MultiTaskModel,
    tiny_data: RecipeData,
    folder: Path,
    name: str,
    labels: dict[str, str],
    threshold: float,
    share: float,
) -> None:
    gold, path = hide(folder, name, tuple(labels.values()))
    recipe = recipe_of(tiny_data, folder, **{name: {"train": path.name}})
    target = folder / "filled.jsonl"
    done = label_file(learnt, tiny_data.tokenizer, recipe, target, dataset=name, threshold=threshold)
    given, filled = read_jsonl(path), read_jsonl(target)
    assert len(given) == len(filled) == done.rows
    inputs = list(load_recipe(recipe, tokenizer=tiny_data.tokenizer, tasks=learnt.specs).train[name].inputs())
    answers = answer(learnt, tiny_data.tokenizer, inputs, tasks=list(labels))
    for own in done.tasks:
        column, missing, sure, right = labels[own.task], 0, [], []
        for before, after, true, said in zip(given, filled, gold, answers, strict=True):
            marks = {mark["task"]: mark["confidence"] for mark in after[MARK] or ()}
            assert {key: after[key] for key in before if before[key] is not None} == {
                key: value for key, value in before.items() if value is not None
            }
            if before[column] is not None:
                assert own.task not in marks
                continue
            missing += 1
            assert (after[column] is not None) == (own.task in marks)
            if own.task in marks:
                head = learnt.head(own.task)
                assert after[column] == head.as_label(head.spec, said[own.task])
                assert marks[own.task] >= threshold
                sure.append(marks[own.task])
                right += [] if true[column] is None else [agreement(head, after[column], true[column])]
        assert (own.missing, own.filled) == (missing, len(sure))
        assert own.filled > 0
        assert own.confidence == pytest.approx(np.mean(sure))
        assert own.calibrated is not None
        assert 0.0 <= own.calibrated.error_after <= 1.0
        assert np.mean(right) >= share


def test_the_higher_the_threshold_the_fewer_are_filled(
    learnt: MultiTaskModel, tiny_data: RecipeData, folder: Path
) -> None:
    _, path = hide(folder, "orders", ("intent", "slots", "grammar"))
    recipe, counts = recipe_of(tiny_data, folder, orders={"train": path.name}), []
    for threshold in (1e-9, 0.7, 0.95, 1.0):
        done = label_file(
            learnt, tiny_data.tokenizer, recipe, folder / "out.jsonl", dataset="orders", threshold=threshold
        )
        counts.append([own.filled for own in done.tasks])
    assert counts[0] == [own.missing for own in done.tasks]
    assert (np.diff(np.array(counts), axis=0) <= 0).all()
    one = label_file(
        learnt, tiny_data.tokenizer, recipe, folder / "out.jsonl", dataset="orders",
        threshold=0.95, thresholds={"intent": 0.7},
    )  # fmt: skip
    assert [own.filled for own in one.tasks] == [counts[1][0], counts[2][1], counts[2][2]]


def test_every_word_of_a_tagged_text_must_be_sure(learnt: MultiTaskModel, tiny_data: RecipeData, folder: Path) -> None:
    rows = [{"tokens": ["fly", "to", "oslo"]}, {"tokens": ["music"] * 60}, {"tokens": ["play", "ann", "old"]}]
    write_jsonl(rows, folder / "new.jsonl")
    done = label_file(
        learnt, tiny_data.tokenizer, tiny_data.recipe, folder / "out.jsonl", source=folder / "new.jsonl",
        dataset="orders", tasks=["slots"], threshold=1e-9,
    )  # fmt: skip
    filled = read_jsonl(folder / "out.jsonl")
    assert filled[1]["slots"] is None  # its end was cut off
    assert done.tasks[0].filled == 2
    calibrated = done.tasks[0].calibrated
    assert calibrated is not None
    encoded = encode(tiny_data.tokenizer, [row := Inputs.of(tokens=rows[0]["tokens"])])
    with torch.no_grad():
        logits = learnt(input_ids=torch.tensor(encoded.input_ids), tasks=["slots"]).logits["slots"][0].numpy()
    words = encoded.layout([row]).words[0]
    assert words is not None
    p = softmax(logits[words.first_tokens].astype(np.float64) / calibrated.temperature)
    assert filled[0][MARK][0]["confidence"] == pytest.approx(p.max(axis=1).min(), abs=1e-6)


def test_texts_are_read_as_training_reads_them_and_written_as_they_are(
    learnt: MultiTaskModel, tiny_data: RecipeData, folder: Path
) -> None:
    said: list[Any] = []
    for name, text in (("plain", "a good film &"), ("marked", "a <b>good</b>\tfilm &amp;")):
        write_jsonl([{"text": text, "label": None}], folder / f"{name}.jsonl")
        recipe = recipe_of(tiny_data, folder, films={"train": f"{name}.jsonl", "cleaning": ["html", "whitespace"]})
        label_file(learnt, tiny_data.tokenizer, recipe, folder / "out.jsonl", dataset="films", threshold=0.01)
        (row,) = read_jsonl(folder / "out.jsonl")
        assert row.pop("text") == text
        said.append(row)
    assert said[0] == said[1]


TYPES: dict[str, dict[str, Any]] = {
    "crf_token_classification": {"dataset": "orders", "label": "slots"},
    "ordinal_regression": {"dataset": "films", "label": "label", "labels": ["neg", "pos"]},
    "span_extraction": {"dataset": "films", "label": "answer"},
    "multiple_choice": {"dataset": "quiz", "label": "right"},
}
"""Types that the tiny world has no task of."""


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_whose_answers_have_a_confidence_is_filled(
    tiny_recipe: dict[str, Any], tiny_folder: Path, folder: Path, kind: str
) -> None:
    task = {"name": "task", "type": kind, **TYPES[kind]}
    name = task["dataset"]
    known = {**tiny_recipe["datasets"], "quiz": write_quiz(folder)}
    for split in ("train", "validation"):
        rows = read_jsonl(folder / f"{name}-{split}.jsonl")
        answers = [{"text": [], "answer_start": []}, {"text": None, "answer_start": [0]}]
        for number, row in enumerate(rows if name == "films" else []):
            row["answer"] = answers[number % 2] | ({"text": [row["text"].split()[0]]} if number % 2 else {})
        write_jsonl(rows, folder / f"{name}-{split}.jsonl")
    _, path = hide(folder, name, (task["label"],))
    values = {**tiny_recipe, "datasets": {name: {**known[name], "train": path.name}}, "tasks": [task]}
    data = load_recipe(parse_recipe(values, base=folder))
    model = build(data).eval()
    done = label_file(model, data.tokenizer, data.recipe, folder / "out.jsonl", threshold=1e-300)
    (own,) = done.tasks
    assert own.filled == own.missing >= 14
    assert own.calibrated is not None
    assert own.calibrated.decisions > 0
    values["datasets"][name]["train"] = "out.jsonl"
    again = load_recipe(parse_recipe(values, base=folder), tokenizer=data.tokenizer, tasks=data.tasks).train[name]
    assert len(again.labelled("task")) == 40


# ---------------------------------------------------------------------- files


def test_a_recipe_trains_on_what_is_written_in_each_format(
    learnt: MultiTaskModel, tiny_data: RecipeData, folder: Path
) -> None:
    _, path = hide(folder, "orders", ("intent", "slots", "grammar"))
    recipe = recipe_of(tiny_data, folder, orders={"train": path.name})
    read: list[Any] = []
    for ending in ("jsonl", "parquet"):
        target = folder / f"filled.{ending}"
        label_file(learnt, tiny_data.tokenizer, recipe, target, dataset="orders", threshold=0.5)
        again = load_recipe(recipe_of(tiny_data, folder, orders={"train": target.name}))
        split = again.train["orders"]
        read.append([split.gold(task) for task in split.tasks])
        before = load_recipe(recipe).train["orders"]
        for task in before.tasks:
            assert len(split.labelled(task.spec.name)) > len(before.labelled(task.spec.name))
    assert read[0] == read[1]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_table_of_text_stays_one_and_keeps_every_cell(
    learnt: MultiTaskModel, tiny_data: RecipeData, folder: Path, ending: str
) -> None:
    texts = [
        'a "good" film',
        "bad, dull film",
        '"""great"""',
        "old\nsongs" if ending == "csv" else "old  songs",
        "=1+1",
    ]
    path, comma = folder / f"films.{ending}", "," if ending == "csv" else "\t"
    cells = [["id", "text", "label"], *([f"0{n}", text, "" if n % 2 else "pos"] for n, text in enumerate(texts))]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=comma).writerows(cells)
    recipe = recipe_of(tiny_data, folder, films={"train": path.name})
    target = folder / f"filled.{ending}"
    done = label_file(learnt, tiny_data.tokenizer, recipe, target, dataset="films", threshold=0.01)
    assert [(own.missing, own.filled) for own in done.tasks] == [(2, 2)]
    split = load_recipe(recipe_of(tiny_data, folder, films={"train": target.name})).train["films"]
    before = load_recipe(recipe).train["films"]
    for column in ("id", "text"):
        assert split.raw.dataset[column][:] == before.raw.dataset[column][:]
    labels = split.raw.dataset["label"][:]
    assert labels[::2] == ["pos"] * 3
    assert set(labels[1::2]) <= {"pos", "neg"}
    marks = [None if text is None else json.loads(text) for text in split.raw.dataset[MARK][:]]
    assert [mark and mark[0]["task"] for mark in marks] == [None, "sentiment"] * 2 + [None]


def test_conll_becomes_jsonl_and_nothing_else(learnt: MultiTaskModel, tiny_data: RecipeData, folder: Path) -> None:
    (folder / "new.conll").write_text("fly B-city\noslo B-city\n\nplay O\n", encoding="utf-8")
    recipe = recipe_of(tiny_data, folder)
    target = folder / "out.jsonl"
    done = label_file(
        learnt, tiny_data.tokenizer, recipe, target, source=folder / "new.conll", dataset="orders",
        tasks=["slots", "intent"], threshold=0.01,
    )  # fmt: skip
    assert done.rows == 2
    assert [row["tokens"] for row in read_jsonl(target)] == [["fly", "oslo"], ["play"]]
    assert all(row["intent"] in ("fly", "play") for row in read_jsonl(target))
    for ending in ("csv", "tsv", "conll"):
        with pytest.raises(OutputError, match=r"text alone|cannot be written"):
            label_file(
                learnt, tiny_data.tokenizer, recipe, folder / f"out.{ending}", source=folder / "new.conll",
                dataset="orders",
            )  # fmt: skip


def test_classes_that_have_numbers_are_written_by_name(
    learnt: MultiTaskModel, tiny_data: RecipeData, folder: Path
) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["pos", "neg"])})
    rows = Dataset.from_list([{"text": "a good film", "label": 1}, {"text": "a bad film", "label": -1}], features)
    rows.to_parquet(folder / "films.parquet")
    recipe = recipe_of(tiny_data, folder, films={"train": "films.parquet"})
    label_file(learnt, tiny_data.tokenizer, recipe, folder / "out.parquet", dataset="films", threshold=0.01)
    found = pq.read_table(folder / "out.parquet")
    assert found.schema.field("label").type == pa.string()
    assert found.column("label").to_pylist()[0] == "neg"
    assert found.column("label").to_pylist()[1] in ("pos", "neg")


def test_a_second_pass_keeps_the_marks_of_the_first(
    learnt: MultiTaskModel, tiny_data: RecipeData, folder: Path
) -> None:
    _, path = hide(folder, "orders", ("intent", "slots"))
    recipe = recipe_of(tiny_data, folder, orders={"train": path.name})
    options: dict[str, Any] = {"dataset": "orders", "threshold": 0.01}
    label_file(learnt, tiny_data.tokenizer, recipe, folder / "one.jsonl", tasks=["intent"], **options)
    again = recipe_of(tiny_data, folder, orders={"train": "one.jsonl"})
    label_file(learnt, tiny_data.tokenizer, again, folder / "two.jsonl", tasks=["slots"], **options)
    once = label_file(learnt, tiny_data.tokenizer, recipe, folder / "both.jsonl", tasks=["intent", "slots"], **options)
    assert all(own.filled for own in once.tasks)
    for two, both in zip(read_jsonl(folder / "two.jsonl"), read_jsonl(folder / "both.jsonl"), strict=True):
        assert two.keys() == both.keys()
        assert [mark["task"] for mark in two[MARK] or ()] == [mark["task"] for mark in both[MARK] or ()]
        assert two["intent"] == both["intent"]
        assert two["slots"] == both["slots"]


def test_nothing_is_written_where_a_row_cannot_be_read(
    learnt: MultiTaskModel, tiny_data: RecipeData, folder: Path
) -> None:
    (folder / "bad.jsonl").write_text('{"text": "good", "label": null}\n{"text": 3}\n', encoding="utf-8")
    target = folder / "out.jsonl"
    target.write_text("as it was")
    recipe = recipe_of(tiny_data, folder, films={"train": "bad.jsonl"})
    with pytest.raises(DataError, match=r"bad.jsonl, line 2.*text is 3"):
        label_file(learnt, tiny_data.tokenizer, recipe, target, dataset="films")
    assert target.read_text() == "as it was"
    assert not list(folder.glob(".out*"))


# ---------------------------------------------------------------------- numbers, calibration, refusals


def test_numbers_are_filled_on_request_alone(learnt: MultiTaskModel, tiny_data: RecipeData, folder: Path) -> None:
    _, path = hide(folder, "pairs", ("score",))
    recipe = recipe_of(tiny_data, folder, pairs={"train": path.name})
    target = folder / "out.jsonl"
    with pytest.raises(SpecError, match=r"'similarity': it answers numbers"):
        label_file(learnt, tiny_data.tokenizer, recipe, target, dataset="pairs")
    done = label_file(learnt, tiny_data.tokenizer, recipe, target, dataset="pairs", numbers=True)
    assert done.tasks[0].filled == done.tasks[0].missing > 0
    assert (done.tasks[0].threshold, done.tasks[0].confidence, done.tasks[0].calibrated) == (None, None, None)
    for before, after in zip(read_jsonl(path), read_jsonl(target), strict=True):
        if before["score"] is None:
            assert isinstance(after["score"], float)
            assert after[MARK] == [{"task": "similarity", "confidence": None}]


def test_without_calibration_the_temperature_is_1(learnt: MultiTaskModel, tiny_data: RecipeData, folder: Path) -> None:
    write_jsonl([{"text": "a good film", "label": None}], folder / "open.jsonl")
    recipe = recipe_of(tiny_data, folder, films={"train": "open.jsonl"})
    done = label_file(
        learnt, tiny_data.tokenizer, recipe, folder / "out.jsonl", dataset="films", threshold=0.01, calibrated=False
    )
    (row,) = read_jsonl(folder / "out.jsonl")
    said = answer(learnt, tiny_data.tokenizer, [Inputs.of("a good film")], tasks=["sentiment"])[0]["sentiment"]
    assert row[MARK][0]["confidence"] == pytest.approx(said["score"], abs=1e-6)
    assert done.tasks[0].calibrated is None
    assert "| sentiment | 1 | 1 |" in done.table().markdown()
    assert "| - | - | - | - |" in done.table().markdown()


def test_validation_rows_that_would_be_drawn_from_the_file_are_warned_of(
    learnt: MultiTaskModel, tiny_data: RecipeData, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = tiny_data.recipe.to_dict()
    del values["datasets"]["films"]["validation"]
    recipe = parse_recipe(values, base=folder)
    with caplog.at_level(logging.WARNING):
        label_file(learnt, tiny_data.tokenizer, recipe, folder / "out.jsonl", dataset="films")
    assert "no validation files" in caplog.text
    assert "is calibrated on 4 labelled validation rows" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "4 datasets"),
        ({"dataset": "songs"}, "'songs'"),
        ({"dataset": "films", "tasks": ["intent"]}, "'films'"),
        ({"dataset": "films", "threshold": 0.0}, "threshold is 0"),
        ({"dataset": "films", "threshold": 1.5}, "threshold is 1.5"),
        ({"dataset": "films", "thresholds": {"intent": 0.5}}, "'intent', which is not filled"),
        ({"dataset": "films", "thresholds": {"sentiment": -1.0}}, "'sentiment' is -1"),
        ({"dataset": "films", "tasks": ["songs"]}, "no task 'songs'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    learnt: MultiTaskModel, tiny_data: RecipeData, folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        label_file(learnt, tiny_data.tokenizer, tiny_data.recipe, folder / "out.jsonl", **options)
    assert not (folder / "out.jsonl").exists()


def test_files_that_cannot_be_are_refused(learnt: MultiTaskModel, tiny_data: RecipeData, folder: Path) -> None:
    recipe = recipe_of(tiny_data, folder)
    with pytest.raises(OutputError, match="the input itself"):
        label_file(learnt, tiny_data.tokenizer, recipe, folder / "films-train.jsonl", dataset="films")
    with pytest.raises(DataError, match="no such file"):
        label_file(learnt, tiny_data.tokenizer, recipe, folder / "o.jsonl", dataset="films", source=folder / "no.jsonl")
    write_jsonl([{"words": "good"}], folder / "other.jsonl")
    with pytest.raises(DataError, match="no column 'text'"):
        label_file(
            learnt, tiny_data.tokenizer, recipe, folder / "o.jsonl", dataset="films", source=folder / "other.jsonl"
        )
    write_jsonl([{"text": "good", MARK: 3}], folder / "marked.jsonl")
    with pytest.raises(DataError, match=f"{MARK} is 3"):
        label_file(
            learnt, tiny_data.tokenizer, recipe, folder / "o.jsonl", dataset="films", source=folder / "marked.jsonl"
        )
    values = recipe.to_dict()
    write_jsonl([{**row, "label": None} for row in read_jsonl(folder / "films-validation.jsonl")], folder / "v.jsonl")
    values["datasets"]["films"]["validation"] = "v.jsonl"
    with pytest.raises(SpecError, match="no labelled validation rows"):
        label_file(learnt, tiny_data.tokenizer, parse_recipe(values, base=folder), folder / "o.jsonl", dataset="films")
