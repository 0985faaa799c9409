"""A run of prediction that is cut off goes on where it was, and no row is lost or doubled."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from hf_mtl.errors import OutputError
from hf_mtl.inference import bulk
from hf_mtl.inference.bulk import Columns, Throughput, predict_file
from hf_mtl.inference.files import part_format
from hf_mtl.inference.parts import Parts
from hf_mtl.model.modeling import MultiTaskModel

TARGETS = ["out.jsonl", "out.parquet"]
ROWS = 23

Predict = Callable[..., Throughput]


class CutOffError(Exception):
    """Ends a run half-way."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    chance = random.Random(3)
    rows: list[dict[str, Any]] = [
        {"id": number, "text": " ".join(chance.choices(["good", "film", "rome", "the"], k=chance.randint(0, 20)))}
        for number in range(ROWS)
    ]
    rows[5] = {"id": 5}
    rows[17] = {"id": 17, "text": 17}
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def predict(
    model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase, source: Path, monkeypatch: pytest.MonkeyPatch
) -> Predict:
    """`predict_file` in parts of four rows, cut off after some of them where `after` says so."""
    monkeypatch.setattr(bulk, "CHUNK_ROWS", 4)

    def run(target: Path, *, after: int | None = None, **options: Any) -> Throughput:
        def cut_off(rows: int) -> None:
            if after is not None and rows >= after:
                raise CutOffError

        used = options.pop("model", model), options.pop("tokenizer", tokenizer)
        return predict_file(*used, options.pop("source", source), target, on_rows=cut_off, **options)

    return run


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("hf_mtl.inference")]


def folder_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.parts")


@pytest.mark.parametrize("name", TARGETS)
def test_wherever_it_is_cut_off_the_output_is_the_same_to_the_byte(
    predict: Predict, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tmp_path / f"whole-{name}"
    uncut = predict(whole)
    assert (uncut.rows, uncut.errors, uncut.continued) == (ROWS, 2, 0)
    for after in range(4, ROWS + 1, 4):
        target = tmp_path / f"{after}-{name}"
        with pytest.raises(CutOffError):
            predict(target, after=after)
        assert not target.exists()
        done = predict(target)
        assert (done.rows, done.errors, done.continued) == (ROWS, 2, after)
        assert done.first_error == uncut.first_error
        assert target.read_bytes() == whole.read_bytes()
        assert not folder_of(target).exists()
        assert f"going on after the {after} rows" in notes(caplog)[-1]


def test_it_may_be_cut_off_again_and_again(predict: Predict, tmp_path: Path) -> None:
    predict(tmp_path / "whole.jsonl")
    target = tmp_path / "out.jsonl"
    for after in (4, 12, 16, 20):
        with pytest.raises(CutOffError):
            predict(target, after=after)
    assert predict(target).continued == 20
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_seconds_and_speed_are_those_of_this_run(predict: Predict, tmp_path: Path) -> None:
    with pytest.raises(CutOffError):
        predict(tmp_path / "out.jsonl", after=20)
    done = predict(tmp_path / "out.jsonl")
    assert done.rows_per_second == pytest.approx(3 / done.seconds)
    assert done.tokens < 3 * 25


# ---------------------------------------------------------------------- another run


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tasks": ["intent"]}, "tasks"),
        ({"columns": Columns(text_pair="id")}, "columns"),
        ({"precision": "fp16"}, "precision"),
        ({"max_tokens": 77}, "batches"),
        ({"model": "other"}, "model"),
        ({"tokenizer": "other"}, "model"),
        ({"source": "other"}, "input"),
        ({"source": "changed"}, "input"),
    ],
)
def test_a_run_of_something_else_starts_anew_and_says_so(
    predict: Predict,
    model: MultiTaskModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, Any],
    named: str,
) -> None:
    target, change = tmp_path / "out.jsonl", dict(change)
    with pytest.raises(CutOffError):
        predict(target, after=8)
    if "model" in change:
        change["model"] = copy.deepcopy(model)
        with torch.no_grad():
            next(change["model"].encoder.parameters())[3, 2] += 1e-3  # one number
    if "tokenizer" in change:
        change["tokenizer"] = copy.deepcopy(tokenizer)
        change["tokenizer"].model_max_length = 40
    if change.get("source") == "other":
        change["source"] = tmp_path / "other.jsonl"
        change["source"].write_bytes(source.read_bytes())
    if change.get("source") == "changed":
        change["source"] = source
        source.write_text(source.read_text().replace("good", "film"))
    done = predict(target, **change)
    assert done.continued == 0
    assert f"differs in its {named}" in notes(caplog)[-1]
    predict(tmp_path / "fresh.jsonl", **change)
    assert target.read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()


def test_parts_of_another_size_are_not_mixed(predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CutOffError):
        predict(tmp_path / "out.jsonl", after=8)
    monkeypatch.setattr(bulk, "CHUNK_ROWS", 7)
    assert predict(tmp_path / "out.jsonl").continued == 0


def test_a_model_that_was_used_meanwhile_is_the_same_model(
    predict: Predict, model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(CutOffError):
        predict(tmp_path / "out.jsonl", after=8)
    tokenizer(["good", "the film"], padding=True, truncation=True, max_length=5)  # kept in the tokenizer
    assert predict(tmp_path / "out.jsonl").continued == 8


def test_two_runs_cannot_write_one_output(predict: Predict, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with Parts(target, {"of": "another"}, part_format(target)), pytest.raises(OutputError, match="another run"):
        predict(target)
    assert predict(target).rows == ROWS


# ---------------------------------------------------------------------- what a killed process leaves


def test_what_was_half_written_is_written_again(predict: Predict, tmp_path: Path) -> None:
    predict(tmp_path / "whole.jsonl")
    target = tmp_path / "out.jsonl"
    with pytest.raises(CutOffError):
        predict(target, after=12)
    parts = folder_of(target)
    (parts / "000003.jsonl.tmp").write_text('{"id": 12, "te')
    (parts / "000003.json").write_text('{"rows": 4, "errors": 3, "first_error": "stale"}')  # counts come first
    assert predict(target).errors == 2
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff"])
def test_parts_of_nobody_knows_what_are_not_used(predict: Predict, tmp_path: Path, damage: bytes) -> None:
    target = tmp_path / "out.jsonl"
    with pytest.raises(CutOffError):
        predict(target, after=12)
    (folder_of(target) / "job.json").write_bytes(damage)
    assert predict(target).continued == 0


def test_parts_that_were_joined_but_not_removed_are_joined_again(predict: Predict, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with pytest.raises(CutOffError):
        predict(target, after=ROWS)  # all parts are there
    done = predict(target)
    assert (done.rows, done.continued) == (ROWS, ROWS)
    assert [json.loads(line)["id"] for line in target.read_text().splitlines()] == list(range(ROWS))


WRITER = """
import sys, time
from pathlib import Path
from hf_mtl.inference.files import part_format
from hf_mtl.inference.parts import Parts
target = Path(sys.argv[1])
with Parts(target, {"of": "numbers"}, part_format(target)) as parts:
    for start in range(parts.rows, 240, 3):
        time.sleep(0.002)
        kinds = {"predictions": {}} if start % 7 else {"error": "x"}
        parts.add([{"id": start + place, **kinds} for place in range(3)])
    parts.merge()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_processes_killed_at_random_lose_no_row_and_double_none(tmp_path: Path, name: str) -> None:
    target, chance, kills = tmp_path / name, random.Random(11), 0
    whole = tmp_path / f"whole-{name}"
    command = [sys.executable, "-c", WRITER]
    subprocess.run([*command, str(whole)], check=True)
    while not target.exists():
        process = subprocess.Popen([*command, str(target)], stderr=subprocess.DEVNULL)
        try:
            wait_for_parts(process, folder_of(target), chance.randint(1, 20))
            time.sleep(chance.random() * 0.02)
        finally:
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
    subprocess.run([*command, str(target)], check=True)  # it may have been killed while it removed its parts
    assert kills >= 3
    assert target.read_bytes() == whole.read_bytes()
    assert not folder_of(target).exists()


def wait_for_parts(process: subprocess.Popen[Any], folder: Path, more: int) -> None:
    """Wait until a process has finished some parts more than there are now, or has ended."""

    def parts() -> int:
        return sum(path.suffix in (".jsonl", ".arrow") for path in folder.glob("*")) if folder.is_dir() else 0

    wanted = parts() + more
    while process.poll() is None and parts() < wanted:
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", TARGETS)
def test_a_killed_command_goes_on_and_its_output_is_that_of_one_run(saved: Path, tmp_path: Path, name: str) -> None:
    source, chance = tmp_path / "in.jsonl", random.Random(5)
    with source.open("w", encoding="utf-8") as file:
        for number in range(24_000):
            words = " ".join(chance.choices(["good", "film", "rome", "the", "music"], k=chance.randint(0, 25)))
            file.write(json.dumps({"id": number, "text": words if number % 1000 else number}) + "\n")
    environment = os.environ | {"OMP_NUM_THREADS": "2"}

    def start(target: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "hf_mtl", "predict", str(saved), "--input", str(source)]
        with (tmp_path / "said").open("wb") as said:
            return subprocess.Popen([*command, "--output", str(target)], stderr=said, env=environment)

    assert start(tmp_path / f"whole-{name}").wait(timeout=600) == 0
    target = tmp_path / name
    for _ in range(3):
        process = start(target)
        try:
            wait_for_parts(process, folder_of(target), 1)
            time.sleep(chance.random() * 0.2)
        finally:
            process.kill()
            assert process.wait() == -signal.SIGKILL
        assert not target.exists()
    assert start(target).wait(timeout=600) == 0
    said = (tmp_path / "said").read_text()
    assert "going on after" in said
    assert "24000 rows, 24 with an error" in said
    assert target.read_bytes() == (tmp_path / f"whole-{name}").read_bytes()
    assert not folder_of(target).exists()
