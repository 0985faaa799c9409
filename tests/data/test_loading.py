"""Reading files: every row as the file has it, every row's place, and errors that name file, line and value."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_mtl.data import formats
from hf_mtl.data.loading import RawSplit, Source, read_files, read_hub, split_validation
from hf_mtl.errors import DataError, SpecError

ROWS = [
    {"text": "plain", "label": "1"},
    {"text": "他们说：“好”。", "label": "NA"},
    {"text": "🎉 party 👩‍👩‍👧", "label": "null"},
    {"text": "مرحبا بالعالم", "label": "None"},
    {"text": 'a "quoted", text', "label": "true"},
    {"text": "no-break\u00a0space, line\u2028separator, next\u0085line", "label": "0012"},
]
SENTENCES = [
    {"tokens": ["New", "York", "#1"], "tags": ["B-LOC", "I-LOC", "O"]},
    {"tokens": ["北京", "مرحبا", "🎉"], "tags": ["B-LOC", "O", "O"]},
    {"tokens": ["#photography"], "tags": ["O"]},
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def write(path: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def csv_text(rows: list[dict[str, str]]) -> str:
    lines = [",".join('"' + value.replace('"', '""') + '"' for value in row.values()) for row in rows]
    return "\n".join([",".join(rows[0]), *lines]) + "\n"


def arrow_bytes(rows: list[dict[str, Any]], *, file: bool) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) if file else pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def conllu_text() -> str:
    word = "{}\t{}\t{}\tX\tY\t_\t{}\tdep\t_\t_\n"
    return "".join(
        f"# sent_id = {i}\n# text = {' '.join(s['tokens'])}\n"
        + "".join(word.format(j, t, t.lower(), j - 1) for j, t in enumerate(s["tokens"], start=1))
        + "\n"
        for i, s in enumerate(SENTENCES)
    )


def conll_text(separator: str = "\t") -> str:
    return "\n".join(
        "".join(f"{token}{separator}{tag}\n" for token, tag in zip(s["tokens"], s["tags"], strict=True))
        for s in SENTENCES
    )


FORMATS: dict[str, tuple[str | bytes, list[dict[str, Any]], str]] = {
    # ending: content, rows, place of the second row
    "csv": (csv_text(ROWS), ROWS, "line 3"),
    "tsv": ("\n".join("\t".join(r) for r in [list(ROWS[0]), *(r.values() for r in ROWS)]), ROWS, "line 3"),
    "json": (json.dumps(ROWS), ROWS, "row 2"),
    "jsonl": ("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), ROWS, "line 2"),
    "ndjson": ("\r\n".join(json.dumps(row) for row in ROWS) + "\r\n", ROWS, "line 2"),
    "parquet": (parquet_bytes(pa.Table.from_pylist(ROWS)), ROWS, "row 2"),
    "stream.arrow": (arrow_bytes(ROWS, file=False), ROWS, "row 2"),
    "file.arrow": (arrow_bytes(ROWS, file=True), ROWS, "row 2"),
    "conll": (conll_text(), SENTENCES, "line 5"),
    "txt": (conll_text(" "), SENTENCES, "line 5"),
    "iob": (conll_text("   "), SENTENCES, "line 5"),
    "bio": (conll_text().replace("\n", "\r\n"), SENTENCES, "line 5"),
    "conllu": (
        conllu_text(),
        [
            {
                "tokens": s["tokens"],
                "lemmas": [token.lower() for token in s["tokens"]],
                "upos": ["X"] * len(s["tokens"]),
                "xpos": ["Y"] * len(s["tokens"]),
                "feats": ["_"] * len(s["tokens"]),
                "heads": list(range(len(s["tokens"]))),
                "deprels": ["dep"] * len(s["tokens"]),
                "text": " ".join(s["tokens"]),
                "sent_id": str(i),
            }
            for i, s in enumerate(SENTENCES)
        ],
        "line 9",
    ),
}


# ---------------------------------------------------------------------- round trips


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("ending", FORMATS)
def test_rows_come_back_as_written(tmp_path: Path, ending: str, suffix: str) -> None:
    content, rows, second = FORMATS[ending]
    name = f"train.{ending}{suffix}"
    write(tmp_path / name, content)
    split = read_files(name, base=tmp_path)
    assert split.dataset.to_list() == rows
    assert split.where(1) == f"{name}, {second}"
    assert split.dataset.column_names == list(rows[0])


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "conll", "conllu"])
def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path, ending: str) -> None:
    content, rows, _ = FORMATS[ending]
    assert isinstance(content, str)
    write(tmp_path / f"a.{ending}", b"\xef\xbb\xbf" + content.encode())
    assert read_files(f"a.{ending}", base=tmp_path).dataset.to_list() == rows


def test_json_rows_may_stand_under_data(tmp_path: Path) -> None:
    write(tmp_path / "a.json", json.dumps({"version": 2, "data": ROWS}))
    assert read_files("a.json", base=tmp_path).dataset.to_list() == ROWS


# ---------------------------------------------------------------------- lines


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_lines_are_physical_lines(tmp_path: Path, newline: str) -> None:
    rng = random.Random(0)
    content, expected = f"text,label{newline}", []
    for row in range(500):
        expected.append(content.count("\n") + 1)
        text = "".join(rng.choice(["a", " ", ",", '""', newline]) for _ in range(rng.randrange(12)))
        content += f'"{text}x{row}",{row}{newline}'
        content += newline * rng.randrange(2)
    write(tmp_path / "a.csv", content)
    split = read_files("a.csv", base=tmp_path)
    assert len(split.dataset) == 500
    lines = content.split("\n")
    for row, line in enumerate(expected):
        start = next(n for n in range(line, len(lines) + 1) if lines[n - 1].strip("\r"))
        assert split.where(row) == f"a.csv, line {start}", row


def test_jsonl_lines_count_blank_lines_and_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BATCH_ROWS", 7)
    rng = random.Random(1)
    lines = [json.dumps({"text": f"t{n}"}) if rng.random() < 0.7 else "  " for n in range(1, 101)]
    write(tmp_path / "a.jsonl", "\n".join(lines))
    split = read_files("a.jsonl", base=tmp_path)
    for row, text in enumerate(split.dataset["text"]):
        assert split.where(row) == f"a.jsonl, line {text[1:]}"


def test_conll_lines_are_those_of_the_first_token(tmp_path: Path) -> None:
    rng = random.Random(2)
    lines: list[str] = []
    for _ in range(200):
        lines += ["-DOCSTART- -X- O", ""] * rng.randrange(2) + ["# a comment"] * rng.randrange(3)
        lines += [f"w{len(lines) + n + 1}\tO" for n in range(rng.randrange(1, 5))] + [rng.choice(["", " ", "\t"])]
    write(tmp_path / "a.conll", "\n".join(lines))
    split = read_files("a.conll", base=tmp_path)
    assert len(split.dataset) == 200
    for row, tokens in enumerate(split.dataset["tokens"]):
        assert split.where(row) == f"a.conll, line {tokens[0][1:]}"
        assert [int(token[1:]) for token in tokens] == list(range(int(tokens[0][1:]), int(tokens[0][1:]) + len(tokens)))


def test_the_shorter_path_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "project" / "data" / "a.jsonl", '{"text": "x"}')
    (tmp_path / "project" / "recipes").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    assert read_files(str(path), base=Path("elsewhere")).where(0) == "data/a.jsonl, line 1"
    assert read_files("../data/a.jsonl", base=tmp_path / "project" / "recipes").where(0) == "data/a.jsonl, line 1"
    assert read_files("a.jsonl", base=Path("data")).where(0) == "a.jsonl, line 1"
    monkeypatch.chdir(tmp_path / "cache")
    assert read_files("data/a.jsonl", base=tmp_path / "project").where(0) == "data/a.jsonl, line 1"


def test_selected_rows_keep_their_lines(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "\n".join(json.dumps({"n": n}) for n in range(1, 31)))
    split = read_files("a.jsonl", base=tmp_path).select([20, 3, 9]).select(np.array([2, 0]))
    assert split.dataset["n"][:] == [10, 21]
    assert [split.where(row) for row in range(2)] == ["a.jsonl, line 10", "a.jsonl, line 21"]


# ---------------------------------------------------------------------- several files


def test_glob_reads_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a/9.jsonl", "a/1.jsonl", "top.jsonl", "a/deep/er/0.jsonl", "a/skip.csv"):
        write(tmp_path / name, json.dumps({"text": name}))
    split = read_files("**/*.jsonl", base=tmp_path)
    names = ["a/1.jsonl", "a/9.jsonl", "a/deep/er/0.jsonl", "b/2.jsonl", "top.jsonl"]
    assert split.dataset["text"][:] == names
    assert [split.where(row) for row in range(5)] == [f"{name}, line 1" for name in names]
    both = read_files(["top.jsonl", "a/*.jsonl", "**/9.jsonl"], base=tmp_path)
    assert both.dataset["text"][:] == ["top.jsonl", "a/1.jsonl", "a/9.jsonl"]
    assert read_files(str(tmp_path / "a" / "[0-9].jsonl"), base=Path("x")).dataset["text"][:] == names[:2]


def test_a_name_with_brackets_is_a_file_first(tmp_path: Path) -> None:
    write(tmp_path / "data[1].jsonl", '{"text": "brackets"}')
    write(tmp_path / "data1.jsonl", '{"text": "plain"}')
    assert read_files("data[1].jsonl", base=tmp_path).dataset["text"][:] == ["brackets"]


def test_formats_mix_where_columns_agree(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "label,text\nx,one\n")
    write(tmp_path / "b.jsonl.gz", '\n{"text": "two"}\n')
    write(
        tmp_path / "c.parquet",
        parquet_bytes(pa.table({"text": ["three"], "label": pa.array(["z"], pa.large_string())})),
    )
    split = read_files(["a.csv", "b.jsonl.gz", "c.parquet"], base=tmp_path)
    assert split.dataset["text"][:] == ["one", "two", "three"]
    assert split.dataset["label"][:] == ["x", None, "z"]
    assert [split.where(row) for row in range(3)] == ["a.csv, line 2", "b.jsonl.gz, line 2", "c.parquet, row 1"]


def test_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,label\nx,1\n")
    write(tmp_path / "b.csv", "text,labels\nx,1\n")
    with pytest.raises(DataError, match=r"b\.csv: the file lacks the column 'label', unlike a\.csv"):
        read_files("*.csv", base=tmp_path)


def test_files_with_other_types_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,label\nx,1\n")
    write(tmp_path / "b.jsonl", '{"text": "y", "label": 1}')
    with pytest.raises(DataError, match=r"b\.jsonl, line 1: column 'label' holds 1, but the rows before hold text"):
        read_files(["a.csv", "b.jsonl"], base=tmp_path)
    write(tmp_path / "c.parquet", parquet_bytes(pa.table({"text": ["x"], "label": [1]})))
    with pytest.raises(DataError, match=r"c\.parquet: the types .* label"):
        read_files(["a.csv", "c.parquet"], base=tmp_path)


def class_label_parquet(path: Path, names: list[str]) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    datasets.Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features=features).to_parquet(str(path))


def test_class_label_names_survive_and_must_agree(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    class_label_parquet(tmp_path / "a.parquet", ["no", "yes"])
    class_label_parquet(tmp_path / "b.parquet", ["no", "yes"])
    class_label_parquet(tmp_path / "c.parquet", ["yes", "no"])
    datasets.enable_progress_bars()
    split = read_files(["a.parquet", "b.parquet"], base=tmp_path)
    assert split.classes == {"label": ("no", "yes")}
    assert split.dataset["label"][:] == ["no", "yes", "no", "yes"]
    assert split.where(3) == "b.parquet, row 2"
    with pytest.raises(DataError, match=r"c\.parquet: the column 'label' .* other label names"):
        read_files("*.parquet", base=tmp_path)


def test_arrow_types_that_datasets_lacks_become_plain(tmp_path: Path) -> None:
    table = pa.table(
        {"text": pa.array(["x", "y"], pa.string_view()), "label": pa.array(["b", "a"]).dictionary_encode()}
    )
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert read_files("a.arrow", base=tmp_path).dataset.to_list() == table.to_pylist()


def test_table_columns_must_differ(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    write(tmp_path / "a.parquet", parquet_bytes(twice))
    with pytest.raises(DataError, match=r"a\.parquet: the column 'text' stands twice"):
        read_files("a.parquet", base=tmp_path)


# ---------------------------------------------------------------------- CSV and TSV


def test_csv_empty_cells_are_none_and_nothing_else_is(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", 'id,text,label\n1,NA,\n2,,null\n3,"", \n')
    rows = read_files("a.csv", base=tmp_path).dataset.to_list()
    assert [list(row.values()) for row in rows] == [["1", "NA", None], ["2", None, "null"], ["3", None, " "]]


def test_csv_header_without_a_name_gets_one(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", ", text\n0,x\n")
    assert read_files("a.csv", base=tmp_path).dataset[0] == {"column_1": "0", "text": "x"}


def test_csv_holds_long_texts_and_nul_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", f"text,label\n{'x' * 300_000},1\na\0b,2\n")
    assert read_files("a.csv", base=tmp_path).dataset["text"][:] == ["x" * 300_000, "a\0b"]


def test_tsv_quotes_are_text_unless_a_spreadsheet_wrote_them(tmp_path: Path) -> None:
    write(tmp_path / "a.tsv", 'text\tlabel\n"open\t1\nclosed"\t2\n"he said ""hi"", ok"\t3\n"a" and "b"\t4\n"\t5\n')
    texts = read_files("a.tsv", base=tmp_path).dataset["text"][:]
    assert texts == ['"open', 'closed"', 'he said "hi", ok', '"a" and "b"', '"']


# ---------------------------------------------------------------------- JSON


def read_jsonl(folder: Path, *rows: Any) -> RawSplit:
    write(folder / "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    return read_files("a.jsonl", base=folder)


def test_json_keys_may_lack(tmp_path: Path) -> None:
    rows = read_jsonl(
        tmp_path, {"text": "x"}, {"label": 1}, {"text": "y", "label": None, "extra": [1]}
    ).dataset.to_list()
    assert rows[0] == {"text": "x", "label": None, "extra": None}
    assert rows[1] == {"text": None, "label": 1, "extra": None}


def test_a_batch_of_empty_objects_is_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BATCH_ROWS", 2)
    split = read_jsonl(tmp_path, {}, {}, {"text": "x"}, {"text": "y"}, {}, {})
    assert split.dataset["text"][:] == [None, None, "x", "y", None, None]
    assert split.where(5) == "a.jsonl, line 6"


def test_json_values_keep_their_kinds(tmp_path: Path) -> None:
    rows = [
        {"id": 2**62, "flag": True, "labels": ["a"], "scores": {"joy": 0.5}, "score": 1},
        {"id": -1, "flag": False, "labels": [], "scores": {"anger": 1, "joy": None}, "score": 0.25},
    ]
    found = read_jsonl(tmp_path, *rows).dataset.to_list()
    assert found[0] == {**rows[0], "scores": {"joy": 0.5, "anger": None}}
    assert found[1] == rows[1]


def test_types_widen_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BATCH_ROWS", 1)
    rows = [
        {"a": None, "b": [], "c": {"y": 1, "x": []}, "d": 1},
        {"a": "x", "b": [1], "c": {"x": [2], "y": 2.5}, "d": 2},
        {"a": None, "b": [1.5], "c": {"z": "new"}, "d": 2.5, "e": True},
        {"a": "y", "b": None, "c": None, "d": None, "e": None},
    ]
    split = read_jsonl(tmp_path, *rows)
    assert split.dataset["a"][:] == [None, "x", None, "y"]
    assert split.dataset["b"][:] == [[], [1.0], [1.5], None]
    assert split.dataset["c"][:3] == [
        {"y": 1.0, "x": [], "z": None}, {"y": 2.5, "x": [2], "z": None}, {"y": None, "x": None, "z": "new"},
    ]  # fmt: skip
    assert split.dataset["d"][:] == [1.0, 2.0, 2.5, None]
    assert split.dataset["e"][:] == [None, None, True, None]
    assert [split.where(row) for row in range(4)] == [f"a.jsonl, line {row + 1}" for row in range(4)]


def test_lists_of_mappings_widen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BATCH_ROWS", 1)
    unknown = [{"start": 0, "label": None}, {"start": None, "label": None}]
    assert read_jsonl(tmp_path, {"spans": unknown}, {"spans": unknown}).dataset["spans"][:] == [unknown] * 2
    named = [{"label": "PER", "start": 1.5}]
    split = read_jsonl(tmp_path, {"spans": unknown}, {"spans": named}, {"spans": None})
    assert split.dataset["spans"][:] == [unknown, named, None]


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [1, None, "a"],
            r"a\.jsonl, line 3: column 'label' holds 'a', but (line 1 holds 1|.* hold whole numbers); write",
        ),
        (["a", "b", 1], r"a\.jsonl, line 3: column 'label' holds 1, but (line 2 holds 'b'|.* hold text)"),
        ([[], [1], ["x"]], r"line 3: column 'label' holds \['x'\], but (line 2 holds \[1\]|.* lists of whole numbers)"),
        ([True, 1], r"line 2: column 'label' holds 1, but (line 1 holds True|.* true or false)"),
        ([1, True], r"line 2: column 'label' holds True, but (line 1 holds 1|.* whole numbers)"),
        (["x", ["x"]], r"line 2: column 'label' holds \['x'\]"),
        ([{"a": 1}, {"a": "x"}], r"line 2: column 'label' holds \{'a': 'x'\}"),
        ([1, 2, 2**70], r"line 3: column 'label' holds 1180591620717411303424, which cannot be stored"),
        (["x", "\ud83d"], r"line 2: column 'label' holds '\\ud83d', which cannot be stored"),
    ],
)
def test_mixed_types_name_line_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[Any], message: str, batch_rows: int
) -> None:
    monkeypatch.setattr(formats, "BATCH_ROWS", batch_rows)
    with pytest.raises(DataError, match=message):
        read_jsonl(tmp_path, *({"label": value} for value in values))


# ---------------------------------------------------------------------- CoNLL


def test_conll_columns_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.conll", "EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n")
    row = read_files("a.conll", base=tmp_path).dataset[0]
    assert list(row) == ["tokens", "column_2", "column_3", "tags"]
    row = read_files("a.conll", base=tmp_path, columns=["words", "_", "_", "ner"]).dataset[0]
    assert row == {"words": ["EU", "rejects"], "ner": ["B-ORG", "O"]}
    with pytest.raises(DataError, match=r"a\.conll: columns gives 2 names \(words, ner\), the file has 4"):
        read_files("a.conll", base=tmp_path, columns=["words", "ner"])


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("#photography\tO\n#\tO\n\n#\tO\n", [["#photography", "#"], ["#"]]),
        ("# a comment\n# two\nx\tO\n\n# id 3\ny\tO\n", [["x"], ["y"]]),
        ("# O\nx O\n\ny O\n# O\n\n# O\n", [["#", "x"], ["y", "#"], ["#"]]),
        # MultiCoNER: comments with as many columns as a token.
        ("# id 1-2\tdomain=en\nx _ _ O\n\n# id 3-4\tdomain=en\ny _ _ B-X\n", [["x"], ["y"]]),
        ("New York\tB-LOC\nis\tO\n", [["New York", "is"]]),
        ("a\u00a0b O\nc\u3000d O\n", [["a\u00a0b", "c\u3000d"]]),
        ("-DOCSTART- -X- -X- O\n\nx a b O\n-DOCSTART- -X- -X- O\ny a b O", [["x"], ["y"]]),
    ],
)
def test_conll_comments_and_tokens_are_told_apart(tmp_path: Path, text: str, tokens: list[list[str]]) -> None:
    write(tmp_path / "a.conll", text)
    assert read_files("a.conll", base=tmp_path).dataset["tokens"][:] == tokens


def test_conllu_tokens_are_syntactic_words(tmp_path: Path) -> None:
    rest = "\t_\t_\t_\tA=1|B=2\t{}\troot\t_\t_\n"
    text = "# text = I don't\n1\tI" + rest.format(2) + "2-3\tdon't" + rest.format("_") + "2\tdo" + rest.format(0)
    text += "3\tn't" + rest.format("_") + "3.1\tgo" + rest.format("_") + "\n\n# sent_id = b\n\n1\tNo" + rest.format(0)
    write(tmp_path / "a.conllu", text)
    first, second = read_files("a.conllu", base=tmp_path).dataset
    assert first["tokens"] == ["I", "do", "n't"]
    assert first["heads"] == [2, 0, None]
    assert first["feats"] == ["A=1|B=2"] * 3
    assert (first["text"], first["sent_id"], second["text"], second["sent_id"]) == ("I don't", None, None, None)


# ---------------------------------------------------------------------- errors

GOOD_WORD = "1\tx\tx\tX\t_\t_\t0\troot\t_\t_\n"
BAD_FILES: list[tuple[str, str | bytes, str]] = [
    ("a.jsonl", '{"text": "x"}\n{"text": y}\n', r"a\.jsonl, line 2: '\{\"text\": y\}' is not JSON .*; write one JSON"),
    ("a.jsonl", '{"text": "x"}\n["x"]\n', r"a\.jsonl, line 2: \['x'\] is not an object"),
    ("a.jsonl", "[" * 100_000, r"a\.jsonl, line 1: .* is not JSON"),
    (
        "a.jsonl",
        b'{"text": "x"}\n{"text": "caf\xe9"}\n',
        r"a\.jsonl, line 2: byte 14 of the line, 0xe9, .*save .* UTF-8",
    ),
    ("a.csv", b"text,label\nx,1\n\ncaf\xe9,2\n", r"a\.csv, line 4: byte 4 of the line, 0xe9, is not UTF-8"),
    ("a.conll", b"caf\xe9\tO\n", r"a\.conll, line 1: byte 4 of the line, 0xe9, is not UTF-8"),
    ("a.json", b'[\n{"text": "x"},\n{"text": "caf\xe9"}]', r"a\.json, line 3: byte 14 of the line, 0xe9, is not UTF-8"),
    ("a.csv", "text,label\nx,1\n".encode("utf-16"), r"a\.csv, line 1: byte 1 of the line, 0xff, is not UTF-8"),
    (
        "a.csv",
        "text,label\nx,1\n".encode("utf-16-le"),
        r"a\.csv, line 1: the line has NUL bytes; save the file as UTF-8",
    ),
    ("a.json", '[{"text": "x"},\n{"text": y}]', r"a\.json, line 2: the file is not JSON .* ends in \.jsonl"),
    ("a.json", '{"text": ["x"]}', r"a\.json: the file holds \{'text': \['x'\]\}; write a list of objects"),
    ("a.json", '[{"text": "x"}, 7]', r"a\.json, row 2: 7 is not an object"),
    ("a.json", "", r"a\.json: the file has no rows"),
    ("a.json", "[]", r"a\.json: the file has no rows"),
    ("a.csv", "", r"a\.csv: the file has no rows"),
    ("a.jsonl", "{}\n{}\n", r"a\.jsonl: the rows are empty"),
    ("a.jsonl", '{"_hf_mtl_line": 3}', r"a\.jsonl: the name '_hf_mtl_line' is reserved"),
    ("a.csv", "text,label\n", r"a\.csv: the file has no rows"),
    ("a.conll", "\n\n-DOCSTART- O\n\n", r"a\.conll: the file has no rows"),
    ("a.conllu", "# text = x\n\n", r"a\.conllu: the file has no rows"),
    ("a.parquet", parquet_bytes(pa.table({"text": pa.array([], pa.string())})), r"a\.parquet: the file has no rows"),
    (
        "a.csv",
        "text,label\nx,1\none, two,1\n",
        r"a\.csv, line 3: the row has 3 cells, the header has 2: .*'one', ' two'",
    ),
    ("a.csv", 'text,label\n"a\nb",1\nx\n', r"a\.csv, line 4: the row has 1 cell, the header has 2: \['x'\]"),
    ("a.csv", 'text,label\nx,1\n"open,1\ny,2\n', r"a\.csv, line 3: the row is not well-formed CSV: unexpected end"),
    ("a.csv", 'text,label\n"a \\"b\\" c",1\n', r"a\.csv, line 2: the row is not well-formed CSV"),
    ("a.csv", "text,label\rx,1\r", r"a\.csv, line 1: the row is not well-formed CSV"),
    ("a.csv", "text,text\nx,1\n", r"a\.csv, line 1: the column 'text' stands twice"),
    ("a.tsv", "text\tlabel\nx\ty\t1\n", r"a\.tsv, line 2: the row has 3 cells, the header has 2: .*; take tabs"),
    ("a.conll", "x\tO\ny\n", r"a\.conll, line 2: 'y' has 1 column, the first token line has 2"),
    ("a.conll", "x O\ny z O\n", r"a\.conll, line 2: 'y z O' has 3 columns, the first token line has 2"),
    ("a.conll", "x\tO\n# no comment here\n", r"a\.conll, line 2: '# no comment here' has 1 column"),
    ("a.txt", "Just prose\nin one column\n", r"a\.txt, line 2: 'in one column' has 3 columns, the first .* has 2"),
    ("a.txt", "prose\n", r"a\.txt, line 1: 'prose' is a single column, CoNLL needs"),
    ("a.conll", "x\tO\n\tO\n", r"a\.conll, line 2: the token of '\\tO\\n' is empty"),
    ("a.conllu", GOOD_WORD + "2\ty\n", r"a\.conllu, line 2: '2\\ty' has 2 columns, CoNLL-U has 10"),
    ("a.conllu", GOOD_WORD + GOOD_WORD, r"a\.conllu, line 2: the word's number is '1' where 2 comes next"),
    ("a.conllu", GOOD_WORD.replace("0", "-1"), r"a\.conllu, line 1: the head '-1' is not a word's number"),
    ("a.parquet", b"PAR1 this is not parquet", r"a\.parquet: the file cannot be read .* complete \.parquet file"),
    ("a.arrow", b"nonsense", r"a\.arrow: the file cannot be read"),
    ("a.arrow", arrow_bytes(ROWS, file=False)[:200], r"a\.arrow: the file cannot be read"),
    ("a.xlsx", b"PK", r"a\.xlsx: the ending '\.xlsx' is not known; use one of '\.csv', .*, or any with \.gz"),
    ("noending", b"x", r"noending: the ending '' is not known"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_files_name_place_and_value(
    tmp_path: Path, cache: Path, name: str, content: str | bytes, message: str
) -> None:
    write(tmp_path / name, content)
    with pytest.raises(DataError, match=rf"^{message}"):
        read_files(name, base=tmp_path)
    assert not list(cache.rglob("*.arrow")), "nothing half read stays in the cache"
    assert not list(cache.rglob("tmp-*"))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "json", "conll", "parquet", "stream.arrow"])
def test_damaged_gz_files_are_named(tmp_path: Path, ending: str) -> None:
    content = FORMATS[ending][0]
    packed = gzip.compress(content.encode() if isinstance(content, str) else content)
    for name, raw in (("cut", packed[:-20]), ("plain", b"not gz"), ("flipped", packed[:30] + b"\0" * 8 + packed[38:])):
        (tmp_path / f"{name}.{ending}.gz").write_bytes(raw)
        with pytest.raises(DataError, match=rf"^{name}\.{ending}\.gz: the file cannot be read"):
            read_files(f"{name}.{ending}.gz", base=tmp_path)


def test_missing_files_show_what_is_near(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.jsonl", "{}")
    with pytest.raises(
        DataError, match=r"data/trian\.jsonl: there is no such file; did you mean 'data/train\.jsonl'\?"
    ):
        read_files("data/trian.jsonl", base=tmp_path)
    with pytest.raises(DataError, match=r"data/zzz: there is no such file; the folder .*data has 'train\.jsonl'"):
        read_files("data/zzz", base=tmp_path)
    with pytest.raises(DataError, match=r"daata/train\.jsonl: there is no such file; there is no folder .*daata"):
        read_files("daata/train.jsonl", base=tmp_path)
    with pytest.raises(DataError, match=r"data/\*\.csv: no file matches this pattern; looked from"):
        read_files("data/*.csv", base=tmp_path)
    with pytest.raises(DataError, match=r"data: this is a folder; name the files in it, such as 'data/train\.jsonl'"):
        read_files("data", base=tmp_path)
    with pytest.raises(DataError, match="no file is named"):
        read_files([], base=tmp_path)


def test_columns_are_only_for_conll(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text\nx\n")
    with pytest.raises(DataError, match=r"a\.csv: columns is given for a \.csv file"):
        read_files("a.csv", base=tmp_path, columns=["text"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text\nx\n").chmod(0)
    with pytest.raises(DataError, match=r"a\.csv: the file cannot be read"):
        read_files("a.csv", base=tmp_path)


# ---------------------------------------------------------------------- the cache

CACHE_SCRIPT = """
import sys
from pathlib import Path
from hf_mtl.data import arrow_cache, loading

if sys.argv[2] == "second":
    def refuse(*arguments): raise AssertionError("the file was parsed again")
    arrow_cache._write_arrow = refuse

split = loading.read_files("a.jsonl", base=Path(sys.argv[1]))
mapped = split.dataset.map(lambda batch: {"loud": [t.upper() for t in batch["text"]]}, batched=True)
kept, held = loading.split_validation(split, stratify="label")
mapped_part = kept.dataset.map(lambda batch: {"n": [len(t) for t in batch["text"]]}, batched=True)
sys.stdout.write(" ".join(part._fingerprint for part in (split.dataset, mapped, kept.dataset, mapped_part)))
"""


def test_a_second_process_reads_and_maps_from_the_cache(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": f"t{n}", "label": n % 3}) for n in range(300)))
    script = write(tmp_path / "script.py", CACHE_SCRIPT)
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "hf"), "PYTHONPATH": str(Path.cwd())}

    def run(name: str) -> str:
        command = [sys.executable, str(script), str(tmp_path), name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def state() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in (tmp_path / "hf").rglob("*.arrow")}

    first, files = run("first"), state()
    assert sum(Path(path).name.startswith("cache-") for path in files) == 2
    assert run("second") == first
    assert state() == files


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x"}')
    first = read_files("a.jsonl", base=tmp_path).dataset
    stat = path.stat()
    write(path, '{"text": "y"}')
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = read_files("a.jsonl", base=tmp_path).dataset
    assert (first[0], second[0]) == ({"text": "x"}, {"text": "y"})
    assert first._fingerprint != second._fingerprint


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", '{"text": "x"}\n{"text": "y"}')
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", write(tmp_path / "occupied", "a file"))
    split = read_files("a.jsonl", base=tmp_path)
    assert split.dataset["text"][:] == ["x", "y"]
    assert split.where(1) == "a.jsonl, line 2"
    assert split.dataset.cache_files == []


def test_readers_at_the_same_time_agree(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "\n".join(json.dumps({"n": n}) for n in range(3000)))
    found: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: found.append(read_files("a.jsonl", base=tmp_path).dataset["n"][:]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(range(3000))] * 4


# ---------------------------------------------------------------------- dataset folders


def test_a_local_dataset_folder_is_read_without_progress_bars(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "set" / "train.csv", csv_text(ROWS))
    write(tmp_path / "set" / "test.csv", csv_text(ROWS[:2]))
    split = read_hub("set", split="train[:3]", base=tmp_path)
    assert len(split.dataset) == 3
    assert split.where(2) == "set (train[:3]), row 3"
    assert capfd.readouterr().err == ""
    assert not datasets.are_progress_bars_disabled()
    with pytest.raises(DataError, match=r"set \(nope\): looked in the folder .*set: .*nope.*train"):
        read_hub("set", split="nope", base=tmp_path)
    with pytest.raises(DataError, match=r"looked in the folder .*set: .*'other' not found"):
        read_hub("set", name="other", split="train", base=tmp_path)


def test_folders_of_save_to_disk_are_read(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "many"))
    datasets.enable_progress_bars()
    assert read_hub("one", split="train", base=tmp_path).dataset.to_list() == ROWS
    assert read_hub("many", split="train", base=tmp_path).dataset.to_list() == ROWS
    with pytest.raises(DataError, match=r"many \(test\): looked in the folder .*there is no split 'test'.*'train'"):
        read_hub("many", split="test", base=tmp_path)


def test_hub_errors_say_where_was_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: Any, **options: Any) -> Any:
        assert "trust_remote_code" not in options
        raise ConnectionError("Couldn't reach 'owner/set' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"text": []}))
    with pytest.raises(DataError, match=r"owner/set \(test\): the split has no rows"):
        read_hub("owner/set", split="test")
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"owner/set \(train\): looked on the Hub: Couldn't reach 'owner/set'"):
        read_hub("owner/set", split="train", base=tmp_path)
    with pytest.raises(DataError, match=r"\./set: there is no such folder; looked on disk at"):
        read_hub("./set", split="train", base=tmp_path)


# ---------------------------------------------------------------------- validation splits


def made(labels: list[Any]) -> RawSplit:
    dataset = datasets.Dataset.from_dict({"n": list(range(len(labels))), "label": labels})
    return RawSplit(dataset, (Source("made"),))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.37, 0.5, 0.95])
def test_split_is_a_partition_in_proportion(fraction: float, seed: int) -> None:
    rng = random.Random(seed)
    labels = [*rng.choices(["a", "b", "c", None], weights=[100, 10, 3, 1], k=397), "rare"]
    split = made(labels)
    train, validation = split_validation(split, fraction=fraction, seed=seed, stratify="label")
    kept, held = train.dataset["n"][:], validation.dataset["n"][:]
    assert kept == sorted(kept)
    assert held == sorted(held)
    assert sorted(kept + held) == list(range(398))
    spare = sum(labels.count(value) - 1 for value in set(labels))
    assert len(held) == max(1, min(round(398 * fraction), spare))
    for value in set(labels):
        count = labels.count(value)
        in_validation = sum(labels[n] == value for n in held)
        assert count - in_validation >= 1
        if fraction < 0.9:
            assert abs(in_validation - count * fraction) <= 1.5
    assert [validation.where(row) for row in range(len(held))] == [f"made, row {n + 1}" for n in held]


def test_split_is_the_same_for_the_same_seed() -> None:
    split = made(["a", "b"] * 50)
    first, again, other = (
        split_validation(split, seed=seed, stratify="label")[1].dataset["n"][:] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("labels", [[0.5, 0.5, 1.0, 2.5], [["a"], ["b"], [], ["a"]], list("abcd"), [1, 2, 3, 4]])
def test_split_works_without_classes(labels: list[Any]) -> None:
    train, validation = split_validation(made(labels), fraction=0.5, stratify="label")
    assert (len(train.dataset), len(validation.dataset)) == (2, 2)


def test_lines_of_a_split_are_those_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "n,label\n" + "".join(f"{n},{n % 2}\n" for n in range(2, 60)))
    for part in split_validation(read_files("a.csv", base=tmp_path), fraction=0.3, stratify="label"):
        for row, line in enumerate(part.dataset["n"]):
            assert part.where(row) == f"a.csv, line {line}"


def test_split_refuses_what_cannot_work() -> None:
    with pytest.raises(DataError, match="made, row 1: a single row cannot be split"):
        split_validation(made(["a"]))
    with pytest.raises(DataError, match="made: there is no column 'topic' to stratify by; use one of 'n', 'label'"):
        split_validation(made(["a", "b"]), stratify="topic")
    for fraction in (0, 1, -0.1, float("nan")):
        with pytest.raises(SpecError, match="fraction is"):
            split_validation(made(["a", "b"]), fraction=fraction)
