"""Streams: the same rows as when files are read whole, from any place on, and the same errors with file and line."""

from __future__ import annotations

import gzip
import json
import logging
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import load, write_encoder, write_recipe
from transformers import AutoTokenizer

from hf_mtl.configuration import TaskSpec
from hf_mtl.data import file_stream, token_counter
from hf_mtl.data.collator import LABEL_PREFIX
from hf_mtl.data.dataset_source import DatasetSource
from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.data.file_stream import PART_ROWS, FileStream
from hf_mtl.data.hub_stream import HubStream
from hf_mtl.data.loading import find_files, read_files
from hf_mtl.data.preparation import RecipeData, load_recipe
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.data.streamed import SAMPLE_ROWS, StreamedSplit
from hf_mtl.data.streaming import RowStream
from hf_mtl.data.token_counter import TokenCounter
from hf_mtl.errors import DataError, HfMtlError

WANTED = {"text": "text", "label": "label"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    datasets.disable_progress_bars()
    return folder


def rows_of(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"row {n} {'é' * (n % 7)}", "id": n, "label": "ab"[n % 2]} for n in range(start, start + count)]


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=row["id"] % 3 == 0) + "\n" * (1 + row["id"] % 5 // 4) for row in rows)
    raw = ("\ufeff" if rows[0]["id"] % 2 else "").encode() + text.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], *, group: int = 30) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=group)
    return path


@pytest.fixture(params=["jsonl", "jsonl.gz", "parquet", "mixed"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with three files of rows, of one format or of all."""
    endings = ["jsonl", "ndjson.gz", "parquet"] if request.param == "mixed" else [request.param] * 3
    start = 0
    for number, (ending, count) in enumerate(zip(endings, (PART_ROWS * 2, 137, 1), strict=True)):
        write = write_parquet if ending == "parquet" else write_lines
        write(tmp_path / f"rows-{number}.{ending}", rows_of(count, start=start))
        start += count
    return tmp_path


def opened(folder: Path, files: str = "rows*") -> FileStream:
    return FileStream.open(find_files(files, base=folder), WANTED)


def values(stream: RowStream, **options: Any) -> list[dict[str, Any]]:
    return [row.values for row in stream.read(np.arange(stream.num_parts), **options)]


# ---------------------------------------------------------------------- files


def test_a_stream_has_the_rows_and_places_that_reading_the_files_gives(folder: Path) -> None:
    stream, read = opened(folder), read_files("rows-*", base=folder)
    rows = list(stream.read(np.arange(stream.num_parts)))
    assert len(rows) == len(stream) == len(read.dataset) == PART_ROWS * 2 + 138
    assert [row.values for row in rows] == read.dataset.select_columns(list(stream.columns)).to_list()
    assert [stream.where(row) for row in rows] == [read.where(index) for index in range(len(rows))]


def test_parts_in_any_order_hold_each_row_once_and_can_be_read_from_any_place(folder: Path) -> None:
    stream = opened(folder)
    generator = np.random.default_rng(0)
    for _ in range(5):
        order = generator.permutation(stream.num_parts)
        whole = list(stream.read(order))
        assert len({(row.source, row.number) for row in whole}) == len(stream)
        for start in (0, *generator.integers(0, len(stream), 6).tolist(), len(stream) - 1, len(stream)):
            assert list(stream.read(order, start=start)) == whole[start:]


def test_parts_of_lines_are_small_and_those_of_parquet_its_row_groups(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", rows_of(PART_ROWS * 3 + 1))
    assert opened(tmp_path, "rows.jsonl").parts[3].tolist() == [PART_ROWS] * 3 + [1]
    write_parquet(tmp_path / "rows.parquet", rows_of(100), group=30)
    assert opened(tmp_path, "rows.parquet").parts[3].tolist() == [30, 30, 30, 10]


def test_skipped_lines_are_not_parsed(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in rows_of(PART_ROWS * 2)]
    lines[1] = lines[PART_ROWS + 1] = "no json"
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    stream = opened(tmp_path)
    assert len(values(stream, start=PART_ROWS + 2)) == PART_ROWS - 2
    with pytest.raises(DataError, match=rf"rows.jsonl, line {PART_ROWS + 2}: 'no json' is not JSON"):
        values(stream, start=PART_ROWS + 1)


def test_lines_are_counted_once_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "rows.jsonl", rows_of(250))
    before = opened(tmp_path)
    count = file_stream._count_lines
    monkeypatch.setattr(file_stream, "_count_lines", lambda file: pytest.fail("counted again"))
    assert np.array_equal(opened(tmp_path).parts, before.parts)
    monkeypatch.setattr(file_stream, "_count_lines", count)
    write_lines(path, rows_of(251))
    assert len(opened(tmp_path)) == 251


def test_lines_are_counted_without_a_cache_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "rows.jsonl", rows_of(250))
    monkeypatch.setattr(file_stream, "cache_folder", lambda: None)
    assert len(opened(tmp_path)) == 250


@pytest.mark.parametrize("blank", ["\n", "  \t \n", "\r\n", "\u2003\n", "\x1c\n"])
def test_blank_lines_are_no_rows_here_as_elsewhere(tmp_path: Path, blank: str) -> None:
    text = (blank * 2).join(json.dumps(row) + "\n" for row in rows_of(250))
    (tmp_path / "rows.jsonl").write_bytes((blank + text + blank).encode())
    stream, read = opened(tmp_path), read_files("rows.jsonl", base=tmp_path)
    rows = list(stream.read(np.arange(stream.num_parts)))
    assert [stream.where(row) for row in rows] == [read.where(index) for index in range(250)]


def test_keys_that_a_row_lacks_are_none_as_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"label": "x", "text": null}\n')
    assert values(opened(tmp_path)) == [{"text": "a", "label": None}, {"text": None, "label": "x"}]


def test_class_labels_are_read_by_name(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neutral", "good"]),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B"])),
        }
    )
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1], "tags": [[0], [1, -1], None]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    stream = FileStream.open(find_files("rows.parquet", base=tmp_path), {**WANTED, "tags": "tags"})
    assert stream.classes == {"label": ("neutral", "good"), "tags": ("O", "B")}
    whole = read_files("rows.parquet", base=tmp_path).dataset
    assert values(stream) == whole.to_list()
    assert [row["label"] for row in values(stream)] == ["good", "neutral", None]


def test_files_whose_classes_differ_are_refused(tmp_path: Path) -> None:
    for number, names in enumerate((["x", "y"], ["y", "x"])):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        rows = datasets.Dataset.from_dict({"text": ["a"], "label": [0]}, features=features)
        rows.to_parquet(tmp_path / f"{number}.parquet")
    with pytest.raises(DataError, match=r"^1.parquet: the column 'label' has other label names"):
        opened(tmp_path, "*.parquet")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("rows.csv", b"text,label\na,b\n", "a .csv file cannot be streamed; leave streaming out, or convert it"),
        ("rows.conll", b"a\tb\n", "a .conll file cannot be streamed"),
        ("rows.json", b'[{"text": "a"}]', "a .json file cannot be streamed"),
        ("rows.parquet.gz", b"", "a compressed Parquet file cannot be streamed; unpack it"),
        ("rows.jsonl", b"\n\n", "the file has no rows"),
        ("rows.jsonl", b'{"text": "a", "lable": "b"}\n', "there is no column 'label' (label); did you mean 'lable'?"),
        ("rows.parquet", b"PAR1", "the file cannot be read"),
        ("rows.jsonl.gz", b"no gzip", "the file cannot be read"),
    ],
)
def test_what_cannot_be_streamed_is_refused_with_the_mend(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    assert str(caught.value).startswith(f"{name}: ")
    assert problem in str(caught.value)


def test_a_parquet_file_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows-0.parquet", rows_of(3))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "rows-1.parquet")
    with pytest.raises(DataError, match=r"^rows-1.parquet: there is no column 'label' \(label\)"):
        opened(tmp_path)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path, ending: str) -> None:
    path = write_lines(tmp_path / f"rows.{ending}", rows_of(250))
    stream = opened(tmp_path)
    write_lines(path, rows_of(240))
    with pytest.raises(DataError, match=r"the file has fewer rows than when they were counted"):
        values(stream)


# ---------------------------------------------------------------------- datasets of the Hub, on folders


def hub(folder: Path, **options: Any) -> HubStream:
    return HubStream.open(
        DatasetSource(path=str(folder), text="text", streaming=True, **options), base=folder, wanted=WANTED
    )


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    return folder


@pytest.fixture(params=["parquet", "jsonl", "saved"])
def dataset_folder(request: pytest.FixtureRequest, hub_folder: Path) -> Path:
    """A folder as `datasets` loads it, with 250 rows."""
    if request.param == "saved":
        datasets.Dataset.from_list(rows_of(250)).save_to_disk(hub_folder)
    else:
        write = write_parquet if request.param == "parquet" else write_lines
        for number, start in enumerate((0, 100, 150)):
            rows = rows_of(100 if number != 1 else 50, start=start)
            write(hub_folder / f"train-{number}.{request.param}", [{**row, "id": 2 * row["id"]} for row in rows])
    return hub_folder


def test_a_streamed_dataset_has_each_row_once_from_any_place_on(dataset_folder: Path) -> None:
    stream = hub(dataset_folder, rows=250)
    generator = np.random.default_rng(0)
    texts = sorted(row["text"] for row in rows_of(250))
    for _ in range(3):
        order = generator.permutation(stream.num_parts)
        whole = list(stream.read(order))
        assert sorted(row.values["text"] for row in whole) == texts
        assert len({stream.where(row) for row in whole}) == 250
        for start in generator.integers(0, 250, 4).tolist():
            assert list(stream.read(order, start=start)) == whole[start:]


def test_the_number_of_rows_is_given_where_the_dataset_does_not_say_it(hub_folder: Path) -> None:
    write_parquet(hub_folder / "train.parquet", rows_of(250))
    with pytest.raises(DataError, match=r"\(train\): nobody says how many rows it has; give their number in 'rows'"):
        hub(hub_folder)
    assert len(values(hub(hub_folder, rows=200))) == 200
    with pytest.raises(DataError, match=r"\(train\): there are 250 rows, and not 300; give the right number"):
        values(hub(hub_folder, rows=300))
    with pytest.raises(DataError, match=r"there are 250 rows, and not 300"):
        values(hub(hub_folder, rows=300), start=280)


def test_a_saved_dataset_says_how_many_rows_it_has(hub_folder: Path) -> None:
    datasets.Dataset.from_list(rows_of(250)).save_to_disk(hub_folder / "saved")
    assert len(hub(hub_folder / "saved")) == 250


def test_a_dataset_card_says_how_many_rows_there_are(hub_folder: Path) -> None:
    write_parquet(hub_folder / "train.parquet", rows_of(250))
    types = {"text": "string", "id": "int64", "label": "string"}
    features = [{"name": name, "dtype": dtype} for name, dtype in types.items()]
    info = {"features": features, "splits": [{"name": "train", "num_bytes": 1, "num_examples": 250}]}
    (hub_folder / "README.md").write_text(f"---\n{json.dumps({'dataset_info': info})}\n---\n")
    assert len(hub(hub_folder)) == 250


def test_classes_of_a_streamed_dataset_are_names(hub_folder: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    rows.to_parquet(hub_folder / "train.parquet")
    stream = hub(hub_folder, rows=3)
    assert stream.classes == {"label": ("x", "y")}
    assert [row["label"] for row in values(stream)] == ["y", "x", None]


def test_a_column_that_a_streamed_dataset_lacks_is_named(hub_folder: Path) -> None:
    write_parquet(hub_folder / "train.parquet", [{"text": "a", "lable": "b"}])
    with pytest.raises(DataError, match=r"\(train\): there is no column 'label' \(label\); did you mean 'lable'\?"):
        hub(hub_folder, rows=1)


@pytest.mark.parametrize("path", ["nobody/nothing-here", "./nothing"])
def test_a_streamed_dataset_that_is_not_there_is_named(hub_folder: Path, path: str) -> None:
    with pytest.raises(DataError, match=path):
        HubStream.open(DatasetSource(path=path, text="text", streaming=True), base=hub_folder, wanted=WANTED)


def test_rows_that_break_off_are_told_with_their_place(hub_folder: Path) -> None:
    (hub_folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(10)) + "no json\n")
    with pytest.raises(DataError, match=r"\(train\): the rows cannot be read: "):
        values(hub(hub_folder, rows=11))


# ---------------------------------------------------------------------- recipes


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_encoder(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def both(tiny: Path) -> tuple[RecipeData, RecipeData]:
    """The tiny data, and the same with every dataset streamed."""
    recipe = write_recipe(tiny, tiny / "encoder")
    encoded = load(tiny, recipe)
    return encoded, load(tiny, streamed(recipe, encoded.tasks))


def streamed(recipe: dict[str, Any], tasks: Sequence[TaskSpec]) -> dict[str, Any]:
    """Set `streaming` in every dataset, and name the labels of all tasks."""
    labels = {spec.name: list(spec.labels) if spec.labels else None for spec in tasks}
    return {
        **recipe,
        "datasets": {name: {**source, "streaming": True} for name, source in recipe["datasets"].items()},
        "tasks": [{**task, "labels": labels[task["name"]]} for task in recipe["tasks"]],
    }


def pairs(both: tuple[RecipeData, RecipeData]) -> list[tuple[EncodedSplit, StreamedSplit]]:
    found: list[tuple[EncodedSplit, StreamedSplit]] = []
    for encoded, stream in zip(both[0].train.values(), both[1].train.values(), strict=True):
        assert isinstance(encoded, EncodedSplit)
        assert isinstance(stream, StreamedSplit)
        found.append((encoded, stream))
    return found


def test_streamed_rows_are_encoded_as_all_others(both: tuple[RecipeData, RecipeData]) -> None:
    for encoded, stream in pairs(both):
        rows = list(stream.stream.read(np.arange(stream.stream.num_parts)))
        wanted = encoded.features.to_list()
        found = datasets.Dataset.from_list(stream.encode(rows), features=encoded.features.features).to_list()
        assert found == wanted
        assert len(rows) == 40


def test_only_training_rows_are_streamed(both: tuple[RecipeData, RecipeData]) -> None:
    assert list(both[0].train) == list(both[1].train)
    assert both[0].tasks == both[1].tasks
    for name, split in both[1].validation.items():
        assert split.features.to_list() == both[0].validation[name].features.to_list()


def test_streamed_rows_know_whether_they_have_a_label(both: tuple[RecipeData, RecipeData]) -> None:
    for encoded, stream in pairs(both):
        rows = list(stream.stream.read(np.arange(stream.stream.num_parts)))
        for column, task in enumerate(stream.tasks):
            labelled = stream.labelled(rows)[:, column]
            assert np.flatnonzero(labelled).tolist() == encoded.labelled(task.spec.name).tolist()
            assert stream.labelled_shares[task.spec.name] == pytest.approx(labelled.mean())


def test_lengths_are_counted_before_rows_are_tokenized(both: tuple[RecipeData, RecipeData]) -> None:
    for encoded, stream in pairs(both):
        rows = list(stream.stream.read(np.arange(stream.stream.num_parts)))
        assert stream.lengths(rows).tolist() == encoded.lengths.tolist()


def test_tokens_are_counted_exactly_however_many_words_are_remembered(
    minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(minilm))
    texts = [
        "",
        " ",
        "Don't stop, 上海!",
        "a  film\tof 1,000 km/h",
        "film film film",
        "unaffable naïveté e_mail",
        "(x)",
    ]
    wanted = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    for remembered in (token_counter.TABLE_WORDS, 3):
        monkeypatch.setattr(token_counter, "TABLE_WORDS", remembered)
        count = TokenCounter(tokenizer)
        assert count(texts).tolist() == wanted
        assert [count([text]).item() for text in reversed(texts)] == wanted[::-1]


def test_lengths_are_at_most_what_a_row_is_cut_to(tiny: Path) -> None:
    (tiny / "long.jsonl").write_text('{"text": "' + "film " * 500 + '", "label": 1}\n{"text": "film", "label": 0}\n')
    recipe = one_task(tiny, "long.jsonl", {"labels": ["0", "1"]})
    split = load_recipe(recipe).train["rows"]
    assert isinstance(split, StreamedSplit)
    assert sorted(split.lengths(split.stream.sample(2)).tolist()) == [3, 48]


def test_a_streamed_set_survives_the_trip_to_a_worker(both: tuple[RecipeData, RecipeData]) -> None:
    for _, stream in pairs(both):
        rows = stream.stream.sample(3)
        copy: StreamedSplit = pickle.loads(pickle.dumps(stream))
        ours, theirs = stream.encode(rows), copy.encode(pickle.loads(pickle.dumps(rows)))
        assert [row["input_ids"] for row in ours] == [row["input_ids"] for row in theirs]
        assert list(ours[0]) == list(theirs[0])


def one_task(folder: Path, train: str, task: dict[str, Any] | None = None, **source: Any) -> Any:
    if "path" not in source:
        (folder / "validation.jsonl").write_text('{"text": "a film", "label": 1}\n{"text": "a film", "label": 0}\n')
        source = {"train": train, "validation": "validation.jsonl", **source}
    own = {"name": "topic", "type": "sequence_classification", "dataset": "rows", "label": "label", **(task or {})}
    values = {
        "encoder": "encoder",
        "datasets": {"rows": {"text": "text", "streaming": True, **source}},
        "tasks": [own],
    }
    return parse_recipe(values, base=folder)


def test_labels_are_named_in_the_recipe_or_by_the_data(tiny: Path) -> None:
    write_lines(tiny / "rows.jsonl", rows_of(10))
    with pytest.raises(DataError) as caught:
        load_recipe(one_task(tiny, "rows.jsonl"))
    assert str(caught.value) == (
        "dataset 'rows', task 'topic': the labels of a stream are not known before it is read; "
        "name them in the task's 'labels'"
    )
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 1]}, features=features)
    rows.to_parquet(tiny / "classes.parquet")
    (tiny / "named.jsonl").write_text('{"text": "a film", "label": "x"}\n')
    data = load_recipe(one_task(tiny, "classes.parquet", validation="named.jsonl"))
    assert data.tasks[0].labels == ("x", "y")


def test_a_task_without_labels_needs_none_named(tiny: Path) -> None:
    (tiny / "scores.jsonl").write_text('{"text": "a film", "label": 1.5}\n')
    data = load_recipe(one_task(tiny, "scores.jsonl", {"type": "regression"}))
    assert data.tasks[0].labels is None


def test_bad_rows_among_those_looked_at_are_told_before_anything_is_trained(tiny: Path) -> None:
    for row, problem in (
        ('{"text": "a film", "label": "c"}', "bad.jsonl, line 3, task 'topic': label 'c' is not in"),
        ('{"text": 5, "label": "a"}', "bad.jsonl, line 3: text is 5; give text as a string"),
        ('{"text": "a film"', 'bad.jsonl, line 3: \'{"text": "a film"\' is not JSON'),
    ):
        (tiny / "bad.jsonl").write_text('{"text": "a film", "label": "a"}\n\n' + row + "\n")
        with pytest.raises(HfMtlError) as caught:
            load_recipe(one_task(tiny, "bad.jsonl", {"labels": ["a", "b"]}))
        assert str(caught.value).startswith(problem)


def test_what_is_wrong_with_the_rows_looked_at_is_told(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = {"text": "film " * 100, "label": None}
    (tiny / "rows.jsonl").write_text(f"{json.dumps(long)}\n" * 2)
    with caplog.at_level(logging.WARNING, logger="hf_mtl"):
        load_recipe(one_task(tiny, "rows.jsonl", {"labels": ["0", "1"]}))
    assert [record.getMessage() for record in caplog.records] == [
        "dataset 'rows', task 'topic', column 'label': none of the 2 training rows looked at has a label",
        "rows train: 2 of the 2 rows looked at were cut to the maximum length",
    ]


def test_no_part_of_a_stream_is_set_aside(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_lines(tiny / "rows.jsonl", rows_of(20))
    with caplog.at_level(logging.WARNING, logger="hf_mtl"):
        data = load_recipe(one_task(tiny, "rows.jsonl", {"labels": ["a", "b"]}, validation=None))
    assert len(data.train["rows"]) == 20
    assert not data.validation
    assert "no part of a stream can be set aside" in caplog.text


def test_streamed_rows_are_for_training_only(tiny: Path) -> None:
    write_lines(tiny / "rows.jsonl", rows_of(20))
    data = load_recipe(one_task(tiny, "rows.jsonl", {"labels": ["0", "1", "a", "b"]}))
    assert len(data.split("validation")["rows"]) == 2
    with pytest.raises(DataError, match=r"dataset 'rows': its train rows are streamed, which works for training only"):
        data.split("train")


def test_a_trained_model_is_evaluated_without_a_look_at_the_stream(tiny: Path) -> None:
    recipe = one_task(tiny, "gone.jsonl")
    spec = TaskSpec(name="topic", type="sequence_classification", labels=("0", "1"))
    data = load_recipe(recipe, tasks=[spec], splits=["validation"])
    assert len(data.validation["rows"]) == 2
    assert not data.train


def test_a_sample_is_of_rows_from_all_over_a_large_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", rows_of(20_000))
    numbers = [row.number for row in opened(tmp_path).sample(SAMPLE_ROWS)]
    assert len(numbers) == SAMPLE_ROWS
    assert max(numbers) - min(numbers) > 15_000


def test_labels_of_a_streamed_hub_dataset_are_its_classes(tiny: Path) -> None:
    place = tiny / "hub"
    place.mkdir()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    rows = datasets.Dataset.from_dict({"text": ["a film"] * 4, "label": [1, 0, 1, -1]}, features=features)
    for split in ("train", "validation"):
        rows.to_parquet(place / f"{split}.parquet")
    data = load_recipe(one_task(tiny, "", path="hub", rows=4, validation="validation"))
    assert data.tasks[0].labels == ("x", "y")
    split = data.train["rows"]
    assert isinstance(split, StreamedSplit)
    assert [row[LABEL_PREFIX + "topic"] for row in split.encode(split.stream.sample(4))] == [1, 0, 1, None]
    assert data.validation["rows"].features[LABEL_PREFIX + "topic"][:] == [1, 0, 1, None]
