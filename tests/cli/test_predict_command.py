"""`hf-mtl predict`: rows in, the same rows with answers out, in every format and from standard input."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from calling import Called, call, call_process
from tiny import write_encoder
from transformers import AutoTokenizer

from hf_mtl.configuration import TaskSpec
from hf_mtl.inference import bulk
from hf_mtl.inference.loading import load_model
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.precision import best_precision

Rows = list[dict[str, Any]]

TEXTS = ["the film was great", "", 'a dull story, with "old" songs', "好电影 🎬 bad", "fly to new york"]
TASKS = ["sentiment", "intent", "slots", "grammar", "similarity", "moods"]


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_gz(path: Path, rows: Rows) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def write_tsv(path: Path, rows: Rows) -> None:
    lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def read_rows(path: Path) -> Rows:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def predict_file(model: Path, source: Path, target: Path, *options: object) -> tuple[Rows, Called]:
    """Call the command, in the precision of `answers` unless another is named."""
    exact = () if "--precision" in options or "--dtype" in options else ("--precision", "fp32")
    done = call("predict", model, "--input", source, "--output", target, *exact, *options)
    return read_rows(target), done


@pytest.fixture(scope="session")
def answers(trained: Path) -> list[dict[str, Any]]:
    """What `--text` answers to each of `TEXTS`."""
    return [json.loads(call("predict", trained, "--text", text, "--precision", "fp32").out) for text in TEXTS]


def close(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(close(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(close, found, wanted))
    return found == pytest.approx(wanted, abs=1e-5)


def test_a_text_is_answered_in_json_where_the_output_is_piped(answers: list[dict[str, Any]]) -> None:
    assert all(list(answer) == TASKS for answer in answers)
    assert set(answers[0]["sentiment"]) == {"label", "score", "scores"}
    assert set(answers[0]["similarity"]) == {"value"}
    assert set(answers[0]["slots"]) == {"spans"}


def test_a_second_text_changes_the_answer(trained: Path) -> None:
    alone = call("predict", trained, "--text", "the film", "--task", "similarity").out
    pair = call("predict", trained, "--text", "the film", "--text-pair", "the film", "--task", "similarity").out
    assert json.loads(alone) != json.loads(pair)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("in.jsonl", write_jsonl),
        ("in.jsonl.gz", write_gz),
        ("in.csv", write_csv),
        ("in.tsv", write_tsv),
        ("in.parquet", write_parquet),
    ],
)
def test_every_format_keeps_fields_and_order_and_gives_the_same_answers(
    trained: Path,
    answers: list[dict[str, Any]],
    tmp_path: Path,
    name: str,
    write: Callable[[Path, Rows], None],
    ending: str,
) -> None:
    rows = [{"id": f"row-{number}", "text": text} for number, text in enumerate(TEXTS)]
    write(tmp_path / name, rows)
    found, done = predict_file(trained, tmp_path / name, tmp_path / f"out{ending}")
    assert [{"id": row["id"], "text": row["text"]} for row in found] == rows
    assert all(close(row["predictions"], answer) for row, answer in zip(found, answers, strict=True))
    assert "5 rows in" in done.err
    assert done.out == ""


def test_pairs_and_tokens_are_read_row_by_row(trained: Path, tmp_path: Path) -> None:
    rows = [
        {"text": "the film", "text_pair": "a story"},
        {"tokens": ["fly", "to", "new", "york"]},
        {"text": "the film", "tokens": ["not", "read"]},
    ]
    write_jsonl(tmp_path / "in.jsonl", rows)
    found, _ = predict_file(trained, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert [list(row) for row in found] == [[*row, "predictions"] for row in rows]
    assert len(found[1]["predictions"]["slots"]["tags"]) == 4
    assert "tags" not in found[2]["predictions"]["slots"]


def test_columns_can_be_named(trained: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": "x", "body": "the film was great", "words": ["fly", "to", "rome"]}])
    by_text, _ = predict_file(trained, tmp_path / "in.jsonl", tmp_path / "a.jsonl", "--text-column", "body")
    by_tokens, _ = predict_file(trained, tmp_path / "in.jsonl", tmp_path / "b.jsonl", "--tokens-column", "words")
    direct = json.loads(call("predict", trained, "--text", "the film was great", "--precision", "fp32").out)
    assert close(by_text[0]["predictions"], direct)
    assert len(by_tokens[0]["predictions"]["slots"]["tags"]) == 3


def test_a_row_that_cannot_be_answered_says_so_and_the_rest_go_on(trained: Path, tmp_path: Path) -> None:
    lines = [
        '{"text": "good", "id": 1}',
        '{"id": 2}',
        '{"text": 5, "id": 3}',
        '{"text": "good", "id": 4',
        "[1, 2]",
        '{"tokens": "good", "id": 6}',
        '{"tokens": ["a", 7], "id": 7}',
        '{"text": "good", "text_pair": 8, "id": 8}',
        '{"text": null, "id": 9}',
        "",
        '"a text alone"',
        '{"text": "bad", "id": 10}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    found, done = predict_file(trained, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    errors = [row.get("error") for row in found]
    assert [error is None for error in errors] == [True, *[False] * 8, True, True]
    assert [row.get("id") for row in found] == [1, 2, 3, None, None, 6, 7, 8, 9, None, 10]
    assert ["predictions" in row for row in found] == [error is None for error in errors]
    for error, fragment in zip(
        errors[1:9],
        ("neither 'text' nor 'tokens'", "text is 5", "line 4: not JSON", "line 5: [1, 2]", "tokens is 'good'",
         "token 7", "text_pair is 8", "neither"),
        strict=True,
    ):  # fmt: skip
        assert error is not None
        assert fragment in error
    assert "11 rows, 8 with an error (the row has neither" in done.err


def test_lines_of_tables_that_cannot_be_read_are_rows_with_errors(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('text,id\ngood,1\ntoo,many,2\nfew\n"ba"d,3\n"two\nlines",4\n', encoding="utf-8")
    found, _ = predict_file(trained, tmp_path / "in.csv", tmp_path / "out.jsonl")
    assert ["error" in row for row in found] == [False, True, True, True, False]
    assert found[1]["error"].startswith("line 3: the row has 3 cells, the header has 2")
    assert found[3]["error"].startswith("line 5: the row is not well-formed CSV")
    assert found[4]["text"] == "two\nlines"
    (tmp_path / "in.tsv").write_bytes(b"text\tid\ngood\t1\nb\xffd\t2\nbad\t3\n")
    found, _ = predict_file(trained, tmp_path / "in.tsv", tmp_path / "out.jsonl")
    assert ["error" in row for row in found] == [False, True, False]
    assert "byte 2 of the line, 0xff, is not UTF-8" in found[1]["error"]


def test_where_no_row_can_be_answered_the_command_fails_and_writes_why(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"txt": "good"}\n{"txt": "bad"}\n')
    done = call("predict", trained, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", fails=True)
    assert "2 rows, 2 with an error (the row has neither" in done.err
    assert all("error" in json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_a_column_that_stands_twice_is_refused(trained: Path, tmp_path: Path, ending: str) -> None:
    path, output = tmp_path / f"rows.{ending}", tmp_path / "out.jsonl"
    if ending == "parquet":
        pq.write_table(pa.table([["good"], ["1"], ["fly"]], names=["text", "label", "text"]), path)
    else:
        separator = {"csv": ",", "tsv": "\t"}[ending]
        path.write_text(
            "".join(separator.join(row) + "\n" for row in (["text", "label", "text"], ["good", "1", "fly"]))
        )
    done = call("predict", trained, "--input", path, "--output", output, fails=True)
    assert "the column 'text' stands twice in the header; rename one" in done.err
    assert not output.exists()


def test_predicting_its_own_output_again_replaces_the_answers(trained: Path, tmp_path: Path) -> None:
    rows = [{"text": "good"}, {"id": 2}]
    write_jsonl(tmp_path / "in.jsonl", rows)
    first, _ = predict_file(trained, tmp_path / "in.jsonl", tmp_path / "a.jsonl")
    again, _ = predict_file(trained, tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert again == first
    write_jsonl(
        tmp_path / "c.jsonl", [{"predictions": {"sentiment": "stale"}, "id": 2}, {"text": "good", "error": "x"}]
    )
    found, _ = predict_file(trained, tmp_path / "c.jsonl", tmp_path / "d.jsonl")
    assert "predictions" not in found[0]
    assert "error" not in found[1]


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.tsv", "in.jsonl.gz"])
@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_an_empty_file_gives_an_empty_file(trained: Path, tmp_path: Path, name: str, ending: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    found, done = predict_file(trained, tmp_path / name, tmp_path / f"out{ending}")
    assert found == []
    assert "0 rows" in done.err


def test_the_report_counts_rows_and_time(trained: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": "good"}, {"id": 1}])
    predict_file(trained, tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--report", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["rows"], report["errors"]) == (2, 1)
    assert report["rows_per_second"] == pytest.approx(report["rows"] / report["seconds"])


def test_tasks_precision_and_batch_size_are_options(trained: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS])
    options = ("--task", "moods", "--task", "intent", "--dtype", "bf16", "--device", "cpu", "--batch-size", "2")
    options = (*options, "--max-tokens", "9")
    found, _ = predict_file(trained, tmp_path / "in.jsonl", tmp_path / "out.jsonl", *options)
    assert [list(row["predictions"]) for row in found] == [["intent", "moods"]] * len(TEXTS)


def test_lines_of_standard_input_are_texts_or_json(trained: Path, answers: list[dict[str, Any]]) -> None:
    lines = ["the film was great", '{"text": "fly to new york", "id": 7}', '"the film was great"', "", "[sic] 5 stars"]
    lines += ['"the film" said nobody', "{broken", "7"]
    done = call("predict", trained, "--precision", "fp32", stdin="\n".join(lines).encode())
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [row.get("text") for row in found] == [
        "the film was great", "fly to new york", "the film was great", "[sic] 5 stars",
        '"the film" said nobody', None, "7",
    ]  # fmt: skip
    assert close(found[0]["predictions"], answers[0])
    assert close(found[2]["predictions"], answers[0])
    assert found[1]["id"] == 7
    assert found[5]["error"].startswith("line 7: not JSON")


def test_bytes_that_are_no_text_do_not_end_the_stream(trained: Path) -> None:
    done = call("predict", trained, "--task", "intent", stdin=b"\xef\xbb\xbfgood\n\xff\xfe\nbad\r\n\x00\x1b[31m\n")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [row.get("text") for row in found] == ["good", None, "bad", "\x00\x1b[31m"]
    assert found[1]["error"].startswith("line 2: byte 1 of the line, 0xff, is not UTF-8")


def test_a_real_process_reads_standard_input_and_writes_json_lines_only(trained: Path) -> None:
    done = call_process("predict", trained, "--task", "sentiment", stdin="好电影\nthe film was great\n".encode())
    assert (done.code, done.err) == (0, "")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["text"] for row in rows] == ["好电影", "the film was great"]
    assert set(rows[0]["predictions"]) == {"sentiment"}


def test_the_default_precision_is_said_and_answers_nearly_as_fp32(trained: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS])
    exact, _ = predict_file(trained, tmp_path / "in.jsonl", tmp_path / "exact.jsonl")
    found, done = predict_file(trained, tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--precision", "auto")
    assert f"tokens/s, {best_precision('cpu')})" in done.err
    for row, wanted in zip(found, exact, strict=True):
        for task in ("sentiment", "intent", "moods"):
            assert row["predictions"][task]["scores"] == pytest.approx(wanted["predictions"][task]["scores"], abs=0.1)


def test_a_run_that_was_cut_off_is_gone_on_with(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "CHUNK_ROWS", 2)
    write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS])
    wanted, _ = predict_file(trained, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    # As if it had been killed after its first part.
    model, tokenizer = load_model(trained)

    def stop(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bulk.predict_file(
            model, tokenizer, tmp_path / "in.jsonl", tmp_path / "again.jsonl", precision="fp32", on_rows=stop
        )
    found, done = predict_file(trained, tmp_path / "in.jsonl", tmp_path / "again.jsonl")
    assert found == wanted
    assert "going on after the 2 rows of an earlier run" in done.err
    assert "5 rows, 2 of them by an earlier run, in" in done.err


def test_the_column_of_heads_can_be_named(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    task = TaskSpec(name="stars", type="regression", token_graph=True)
    model, tokenizer = MultiTaskModel.from_encoder(str(encoder), [task]), AutoTokenizer.from_pretrained(encoder)
    for parameter in model.token_graphs.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    row = {"tokens": ["fly", "zebra", "to", "oslo"], "head": [0, 4, 4, 1]}
    write_jsonl(tmp_path / "rows.jsonl", [row, {**row, "head": None}, {**row, "head": [0, 9, 1, 1]}])
    found: dict[str, Rows] = {}
    for column in ("head", "heads"):
        options = ("--heads-column", column, "--precision", "fp32")
        found[column] = predict_file(tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "out.jsonl", *options)[0]
        (tmp_path / "out.jsonl").unlink()
    tree, chain = (found["head"][place]["predictions"]["stars"]["value"] for place in (0, 1))
    assert abs(tree - chain) > 1e-3
    assert "the head of word 2, 'zebra', is 9" in found["head"][2]["error"]
    values = [row["predictions"]["stars"]["value"] for row in found["heads"]]
    assert values == pytest.approx([chain] * 3, abs=1e-5)
