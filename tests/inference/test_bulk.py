"""Prediction over many rows: the order of the input, bounded memory, and a file that is whole or untouched."""

from __future__ import annotations

import copy
import datetime
import functools
import gzip
import json
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from hf_mtl.errors import DataError, OutputError, SpecError
from hf_mtl.inference import bulk, parquet
from hf_mtl.inference.bulk import Columns, Predictor, Throughput, predict_file, predict_rows
from hf_mtl.inference.compiling import bucket
from hf_mtl.inference.files import write_rows
from hf_mtl.inference.parquet import write_parquet
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.precision import best_precision

Rows = list[dict[str, Any]]
Predict = Callable[..., Any]


@pytest.fixture
def predict(model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase) -> Predict:
    """`predict_rows` with the model, in fp32 and as a list unless told otherwise."""

    def run(rows: Any, *, lazy: bool = False, **options: Any) -> Any:
        answers = predict_rows(model, tokenizer, rows, **{"precision": "fp32", **options})
        return answers if lazy else list(answers)

    return run


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "CHUNK_ROWS", 3)
    monkeypatch.setattr(parquet, "CHUNK_ROWS", 3)


def rows_of_random_lengths(count: int) -> Rows:
    chance = random.Random(5)
    words = ["good", "film", "rome", "the", "music"]
    return [{"id": number, "text": " ".join(chance.choices(words, k=chance.randint(0, 30)))} for number in range(count)]


def close(found: Any, wanted: Any, *, within: float = 1e-5) -> bool:
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(close(found[key], wanted[key], within=within) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(
            close(one, other, within=within) for one, other in zip(found, wanted, strict=True)
        )
    return found == pytest.approx(wanted, abs=within)


def written(rows: Rows, path: Path) -> Rows:
    write_parquet(rows, path)
    return pq.read_table(path).to_pylist()


def test_order_is_kept_whatever_the_lengths(predict: Predict) -> None:
    rows = rows_of_random_lengths(150)
    found = predict(rows, batch_size=16)
    assert [(row["id"], row["text"]) for row in found] == [(row["id"], row["text"]) for row in rows]
    alone = predict([rows[77]])[0]
    assert close(found[77], alone)


@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
def test_chunks_change_no_answer(predict: Predict, chunk_rows: int) -> None:
    rows = rows_of_random_lengths(40)
    assert close(predict(rows, chunk_rows=chunk_rows), predict(rows))


def test_rows_are_read_as_answers_are_taken(predict: Predict) -> None:
    read: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(100):
            read.append(number)
            yield {"text": f"good {number}"}

    answers = predict(rows(), lazy=True, chunk_rows=10, tasks=["intent"])
    assert read == []
    next(answers)
    assert len(read) == 10
    for _ in range(10):
        next(answers)
    assert len(read) == 20


def test_the_rows_handed_in_stay_as_they_are(predict: Predict) -> None:
    rows = [{"text": "good"}, {"text": 5}]
    predict(rows)
    assert rows == [{"text": "good"}, {"text": 5}]


def test_columns_choose_what_is_read(predict: Predict) -> None:
    row = {"a": "good film", "b": "the music", "words": ["fly", "to"], "text": "bad"}
    by_name = predict([row], columns=Columns(text="a", text_pair="b"))[0]["predictions"]
    assert close(by_name, predict([{"text": "good film", "text_pair": "the music"}])[0]["predictions"])
    tokens = predict([row, {"text": "x"}], columns=Columns(text=None, tokens="words"))
    assert len(tokens[0]["predictions"]["slots"]["tags"]) == 2
    assert tokens[1]["error"].startswith("the row has no 'words'")


def test_an_unknown_task_is_an_error_before_any_row_is_read(predict: Predict) -> None:
    with pytest.raises(SpecError, match="no task 'mood'"):
        predict([{"text": "a"}], tasks=["mood"])


def test_lone_surrogates_are_answered_and_written(predict: Predict, tmp_path: Path) -> None:
    found = predict([{"text": "good \ud800 film", "tags": ["\udfff"]}])
    assert found[0]["text"] == "good \ud800 film"
    write_rows(found, tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == "good \ud800 film"
    assert written(found, tmp_path / "out.parquet")[0]["text"] == "good \ufffd film"


# ---------------------------------------------------------------------- parquet


@pytest.mark.parametrize(
    "rows",
    [
        [{"a": 1}, {"b": "x"}],
        [{"a": None}] * 4 + [{"a": "text"}],
        [{"a": []}] * 4 + [{"a": [{"x": 1, "y": None}]}],
        [{"a": {"x": 1}}] * 4 + [{"a": {"x": None, "y": "z"}}],
        [{"a": {"spans": []}}] * 3 + [{"a": {"spans": [{"label": "l", "end": 3}]}}, {"a": None}],
        [{"a": 1}] * 4 + [{"a": 2.5}],
        [{"a": "上海 🎬", "b": True}],
        [{"a": datetime.datetime(2024, 5, 6)}, {"a": None}],
        [{"text": "x", "error": "why"}] + [{"text": "x", "predictions": {"t": {"value": 1.0}}}] * 4,
    ],
)
def test_chunks_of_different_fields_share_a_schema(rows: Rows, tmp_path: Path, small_chunks: None) -> None:
    def filled(value: Any, like: Any) -> Any:
        """Add what parquet adds: the fields that other rows have, as None."""
        if isinstance(like, dict):
            return None if value is None else {key: filled(value.get(key), like[key]) for key in like}
        return value

    names = {name: None for row in rows for name in row}
    found = written(rows, tmp_path / "out.parquet")
    assert len(found) == len(rows)
    for got, row in zip(found, rows, strict=True):
        assert list(got) == list(names)
        for name in names:
            assert filled(row.get(name), got[name]) == got[name]


@pytest.mark.parametrize(
    "values",
    [
        [1, "a", None],
        [1, 2, 3, 4, "late", "later"],
        ["a", "b", "c", {"x": 1}],
        [1, "a", 2, 3, 4, 5],
        [[1], "x"],
        [True, 1],
        [2**70, 1],
        [{"x": 1}, {"x": "y"}],
        [{}, {}],
        [{}, {}, {}, {"x": 1}],
        [[{}]],
        [functools.reduce(lambda inner, _: [inner], range(100), "deep")],
    ],
)
def test_values_of_several_types_are_text_and_other_values_json(
    values: list[Any], tmp_path: Path, small_chunks: None
) -> None:
    found = written([{"id": number, "a": value} for number, value in enumerate(values)], tmp_path / "out.parquet")
    assert [row["id"] for row in found] == list(range(len(values)))
    wanted = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    assert [row["a"] for row in found] == wanted


def test_rows_without_fields_keep_their_number(tmp_path: Path) -> None:
    assert written([{"a": 1}, {}, {"a": 2}], tmp_path / "out.parquet") == [{"a": 1}, {"a": None}, {"a": 2}]


def test_no_rows_give_a_file_without_rows(tmp_path: Path) -> None:
    assert written([], tmp_path / "out.parquet") == []


def test_parts_are_removed(tmp_path: Path, small_chunks: None) -> None:
    write_parquet([{"a": number} for number in range(10)], tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_only_some_rows_are_kept_in_memory(tmp_path: Path, small_chunks: None) -> None:
    parts: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(9):
            parts.append(len(list(tmp_path.glob("*.arrow"))))
            yield {"a": number}

    write_parquet(rows(), tmp_path / "out.parquet")
    assert max(parts) == 2


# ---------------------------------------------------------------------- files


def test_parquet_equals_jsonl(
    model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, small_chunks: None
) -> None:
    rows: Rows = [*rows_of_random_lengths(7), {"tokens": ["fly", "to"]}, {"text": 5}, {"id": "x", "text": ""}]
    write_rows(rows, tmp_path / "in.jsonl")
    for ending in ("jsonl", "parquet"):
        done = predict_file(model, tokenizer, tmp_path / "in.jsonl", tmp_path / f"out.{ending}")
        assert (done.rows, done.errors) == (10, 1)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["error"] for row in table] == [row.get("error") for row in lines]
    for ours, theirs in zip(table, lines, strict=True):
        if "predictions" in theirs:
            assert close(ours["predictions"]["similarity"], theirs["predictions"]["similarity"])
            assert close(ours["predictions"]["grammar"]["spans"], theirs["predictions"]["grammar"]["spans"])
    # What is written can be read again: one row without text or tokens, one whose text was a number and now is text.
    again = predict_file(model, tokenizer, tmp_path / "out.parquet", tmp_path / "again.jsonl", tasks=["intent"])
    assert (again.rows, again.errors) == (10, 0)


def test_throughput_counts_rows_errors_and_seconds(
    model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    write_rows([{"text": "good"}, {"id": 1}, {"text": 5}], tmp_path / "in.jsonl")
    shown: list[int] = []
    done = predict_file(model, tokenizer, tmp_path / "in.jsonl", tmp_path / "out.jsonl", on_rows=shown.append)
    assert shown == [3]
    assert (done.rows, done.errors) == (3, 2)
    assert done.first_error is not None
    assert "neither" in done.first_error
    assert done.to_dict() == {
        "rows": 3, "errors": 2, "continued": 0, "seconds": done.seconds,
        "rows_per_second": pytest.approx(3 / done.seconds), "tokens_per_second": pytest.approx(3 / done.seconds),
        "precision": best_precision("cpu"),
    }  # fmt: skip


def test_no_time_at_all_is_no_division_by_zero() -> None:
    assert Throughput(rows=0, errors=0, seconds=0.0).rows_per_second == 0.0


@pytest.mark.parametrize("target", ["out.jsonl", "out.parquet"])
def test_a_failure_half_way_leaves_the_output_as_it_was(
    model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, target: str, small_chunks: None
) -> None:
    source = tmp_path / "in.jsonl.gz"
    rows = rows_of_random_lengths(400)
    source.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())[:-200])
    (tmp_path / target).write_text("before")
    with pytest.raises(DataError, match="check that the file is complete"):
        predict_file(model, tokenizer, source, tmp_path / target)
    assert (tmp_path / target).read_text() == "before"
    # What was answered is kept, beside the output alone.
    assert {path.name for path in tmp_path.iterdir()} == {source.name, target, f".{target}.parts"}


@pytest.mark.parametrize(
    ("source", "target", "error"),
    [("missing.csv", "out.jsonl", DataError), ("in.xml", "out.jsonl", DataError), ("in.jsonl", "out.csv", OutputError)],
)
def test_files_are_checked_before_anything_is_read(
    model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, source: str, target: str, error: type
) -> None:
    for name in ("in.xml", "in.jsonl"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(error):
        predict_file(model, tokenizer, tmp_path / source, tmp_path / target)


# ---------------------------------------------------------------------- speed changes no answer


def test_the_fast_precision_answers_nearly_as_fp32(predict: Predict) -> None:
    rows = rows_of_random_lengths(60)
    wanted, found = (
        predict(rows, tasks=["intent", "moods", "similarity"]),
        predict(rows, tasks=["intent", "moods", "similarity"], precision="auto"),
    )
    for one, other in zip(found, wanted, strict=True):
        for task, part in (("intent", "scores"), ("moods", "scores"), ("similarity", "value")):
            assert close(one["predictions"][task][part], other["predictions"][task][part], within=0.1)
    assert (found == wanted) == (best_precision("cpu") == "fp32")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Products on one thread, however many batches run at a time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("workers", [2, 5])
def test_batches_at_a_time_change_no_bit(
    model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase, one_thread: None, precision: str, workers: int
) -> None:
    chunks = [rows_of_random_lengths(50), [{"id": 7}, {"text": 8}], [], rows_of_random_lengths(30)]
    options: Any = {"precision": precision, "max_tokens": 64}
    wanted = list(Predictor(model, tokenizer, **options, workers=1).chunks(chunks))
    found = list(Predictor(model, tokenizer, **options, workers=workers).chunks(chunks, ahead=2))
    assert found == wanted
    assert [len(rows) for rows in found] == [50, 2, 0, 30]


def test_threads_and_mode_are_put_back(model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase) -> None:
    def threads_of_another() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    learning = copy.deepcopy(model).train()
    before = torch.get_num_threads(), threads_of_another()
    predictor = Predictor(learning, tokenizer, precision="fp32", workers=3)
    rows = rows_of_random_lengths(20)
    assert close(predictor.answer(rows), Predictor(model, tokenizer, precision="fp32").answer(rows))  # no dropout
    assert learning.training
    assert learning.encoder.training
    assert (torch.get_num_threads(), threads_of_another()) == before


def test_weights_that_change_between_two_runs_are_seen(
    model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    changing, rows = copy.deepcopy(model), rows_of_random_lengths(5)
    predictor = Predictor(changing, tokenizer, precision="bf16")
    before = predictor.answer(rows)
    with torch.no_grad():
        for weights in changing.encoder.parameters():
            weights.mul_(0.5)
    assert predictor.answer(rows) == Predictor(copy.deepcopy(changing), tokenizer, precision="bf16").answer(rows)
    assert predictor.answer(rows) != before


def test_an_error_in_a_batch_is_raised_and_nothing_runs_on(
    model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    broken = copy.deepcopy(model)
    broken.encoder.embeddings.word_embeddings = torch.nn.Embedding(2, 32)  # ids beyond it are an error
    threads = threading.active_count()
    with pytest.raises(IndexError):
        Predictor(broken, tokenizer, max_tokens=32).answer(rows_of_random_lengths(50))
    assert threading.active_count() == threads


def test_weights_are_computed_with_as_they_are_stored(
    model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert Predictor(half, tokenizer).precision == "bf16"
    assert "predictions" in Predictor(half, tokenizer).answer([{"text": "good"}])[0]
    with pytest.raises(SpecError, match="the weights are bf16"):
        Predictor(half, tokenizer, precision="fp32")


@pytest.mark.parametrize(
    "options", [{"precision": "int8"}, {"batch_size": 0}, {"max_tokens": 0}, {"workers": -1}, {"tasks": ["mood"]}]
)
def test_what_cannot_be_is_said_at_once(
    model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> None:
    with pytest.raises(SpecError, match=str(next(iter(options.values()))[0] if "tasks" in options else "is")):
        Predictor(model, tokenizer, **options)


# ---------------------------------------------------------------------- compiling


@pytest.mark.parametrize(("most", "count"), [(64, 4), (128, 6), (512, 10), (500, 10), (4096, 16), (7, 1)])
def test_lengths_are_padded_to_few(most: int, count: int) -> None:
    lengths = [bucket(length, most) for length in range(1, most + 1)]
    assert len(set(lengths)) == count
    assert lengths == sorted(lengths)
    assert max(lengths) == most
    for length, padded in enumerate(lengths, start=1):
        assert length <= padded <= max(length + 15, 1.5 * length)
        assert bucket(padded, most) == padded


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # the compiler's own, in torch 2.13
def test_a_compiled_model_answers_the_same_with_a_graph_for_each_length(
    model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = rows_of_random_lengths(300)
    wanted = Predictor(model, tokenizer, precision="fp32").answer(rows)
    torch._dynamo.reset()
    counters: Any = torch._dynamo.utils.counters
    counters.clear()
    predictor = Predictor(model, tokenizer, precision="fp32", max_tokens=256, compile=True)
    assert close(predictor.answer(rows), wanted)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs <= 2 * len({bucket(length, 48) for length in range(1, 49)})  # a row alone may have its own
    assert close(predictor.answer(rows[:100]), wanted[:100])
    assert counters["stats"]["unique_graphs"] == graphs
