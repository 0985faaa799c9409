"""`scripts/predict_ray.py` on a cluster of this machine: two workers, one of which is killed half-way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from hf_mtl.inference.bulk import predict_file
from hf_mtl.model.modeling import MultiTaskModel

SCRIPT = Path(__file__).parents[2] / "scripts" / "predict_ray.py"
FILES, ROWS = 4, 15_000


def start(*arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children(recursive=True)
    return [one for one in found if "FilePredictor" in one.name() or any("FilePredictor" in p for p in one.cmdline())]


@pytest.mark.slow
def test_a_worker_killed_half_way_loses_no_row_and_doubles_none(
    saved: Path, model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    chance, sources, answers = random.Random(2), tmp_path / "rows", tmp_path / "answers"
    sources.mkdir()
    for number in range(FILES):
        with (sources / f"part-{number}.jsonl").open("w") as file:
            for row in range(ROWS):
                words = " ".join(chance.choices(["good", "film", "rome", "the"], k=chance.randint(0, 25)))
                file.write(json.dumps({"id": [number, row], "text": words if row % 999 else row}) + "\n")

    process = start(saved, sources, "--output", answers, "--workers", 2)
    try:
        # When a worker has finished some parts of a file, and not all of them.
        while not (begun := [path for path in answers.glob(".*.parts") if len(list(path.glob("*.jsonl"))) >= 2]):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        running = workers(process)
        assert len(running) == 2
        for lock in begun:  # the one that writes this file
            owners = [one for one in running if any(file.path.startswith(str(lock)) for file in one.open_files())]
            if owners:
                os.kill(owners[0].pid, signal.SIGKILL)
                break
        else:
            os.kill(running[0].pid, signal.SIGKILL)
        said, problems = process.communicate(timeout=400)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, problems
    assert f"{FILES} files, {FILES * ROWS} rows, {FILES * 16} with an error" in said
    assert " 0 from before" not in said  # the file was gone on with

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each worker has
    for number in range(FILES):
        predict_file(model, tokenizer, sources / f"part-{number}.jsonl", tmp_path / "alone.jsonl")
        assert (answers / f"part-{number}.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    torch.set_num_threads(threads)
    assert not list(answers.glob(".*"))


@pytest.mark.slow
def test_files_with_answers_are_left_and_one_that_cannot_be_read_is_named(saved: Path, tmp_path: Path) -> None:
    for name, text in (("a.jsonl", '{"text": "good"}\n'), ("b.csv", 'text\n"open\n'), ("c.jsonl", '"bad"\n')):
        (tmp_path / name).write_text(text)
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "c.jsonl").write_text("answered\n")
    process = start(saved, tmp_path, "--output", tmp_path / "answers", "--task", "intent")
    said, problems = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "1 files have their answers already" in said
    assert "1 files, 1 rows" in said
    assert "b.csv" in problems
    assert "close every quoted field" in problems
    assert "1 of 2 files could not be answered" in problems
    assert list(json.loads((tmp_path / "answers" / "a.jsonl").read_text())["predictions"]) == ["intent"]
    assert (tmp_path / "answers" / "c.jsonl").read_text() == "answered\n"
    assert not (tmp_path / "answers" / "b.jsonl").exists()


def test_answers_of_two_files_are_never_mixed(tmp_path: Path) -> None:
    process = start("model", tmp_path / "a.jsonl", tmp_path / "a.csv", "--output", tmp_path / "answers")
    _, problems = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "would be mixed with others" in problems
