"""Training on streams: each row once a round, in an order that a resumed run and every process finds again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calling import call
from random_rows import plain
from safetensors.torch import load_file
from tiny import TASKS, load
from torch import Tensor
from torch.utils.data import DataLoader

from hf_mtl.data import file_stream
from hf_mtl.data.collator import LABEL_PREFIX
from hf_mtl.data.dataset_source import DatasetSource
from hf_mtl.data.file_stream import FileStream
from hf_mtl.data.loading import find_files
from hf_mtl.data.preparation import RecipeData
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.data.streamed import StreamedSplit
from hf_mtl.data.streaming import StreamedRow
from hf_mtl.data.yaml import write_yaml
from hf_mtl.errors import DataError, SpecError
from hf_mtl.registry import SAMPLERS
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.batching import EpochBatchSampler
from hf_mtl.training.plan import make_batches
from hf_mtl.training.run import run_training
from hf_mtl.training.streams import DrawnRow, LabelledStream, ShuffledStream, TrainingRows
from hf_mtl.training.trainer import MultiTaskTrainer

Make = Callable[..., MultiTaskTrainer]


@pytest.fixture(scope="module", autouse=True)
def small_parts() -> Iterator[None]:
    """Parts of five rows, so that small files have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_stream, "PART_ROWS", 5)
        yield


@pytest.fixture(scope="module")
def recipe(tiny_data: RecipeData, tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    """The tiny recipe with films and orders streamed, shuffled in blocks of 12 rows."""
    labels = {spec.name: list(spec.labels) if spec.labels else None for spec in tiny_data.tasks}
    datasets = dict(tiny_recipe["datasets"])
    for name in ("films", "orders"):
        datasets[name] = {**datasets[name], "streaming": True, "shuffle_buffer": 12}
    tasks = [{**task, "labels": labels[task["name"]]} for task in tiny_recipe["tasks"]]
    return {**tiny_recipe, "datasets": datasets, "tasks": tasks}


@pytest.fixture(scope="module")
def streamed(tiny_folder: Path, recipe: dict[str, Any]) -> RecipeData:
    return load(tiny_folder, recipe)


def split_of(folder: Path, count: int, **columns: Callable[[int], Any]) -> StreamedSplit:
    """A stream of one column of numbers, with no tokenizer."""
    made: dict[str, Callable[[int], Any]] = {"text": str, **columns}
    lines = (json.dumps({name: make(n) for name, make in made.items()}) + "\n" for n in range(count))
    (folder / "rows.jsonl").write_text("".join(lines))
    stream = FileStream.open(find_files("rows.jsonl", base=folder), {name: name for name in made})
    source = DatasetSource(train="rows.jsonl", text="text", streaming=True)
    split = StreamedSplit(name="rows", stream=stream, tasks=(), source=source, tokenizer=None)  # type: ignore[arg-type]
    object.__setattr__(split, "lengths", lambda rows: np.zeros(len(rows), dtype=np.int64))
    return split


def shuffled(split: StreamedSplit, *, seed: int = 0, buffer: int = 30) -> ShuffledStream:
    return ShuffledStream("rows", split, seed=(seed,), buffer=buffer)


def numbers(source: ShuffledStream, start: int, count: int) -> list[int]:
    return [int(row.values["text"]) for row in source.read(start, count)]


def weights(trainer: MultiTaskTrainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.multi_task_model.state_dict().items()}


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


# ---------------------------------------------------------------------- the order of rows


@pytest.mark.parametrize(("count", "buffer"), [(1, 1), (7, 30), (100, 30), (103, 1), (60, 30), (103, 1000)])
def test_each_round_holds_each_row_once_in_another_order(tmp_path: Path, count: int, buffer: int) -> None:
    source = shuffled(split_of(tmp_path, count), buffer=buffer)
    rounds = [numbers(source, number * count, count) for number in range(3)]
    assert all(sorted(rows) == list(range(count)) for rows in rounds)
    if count > 10:
        assert rounds[0] != rounds[1] != rounds[2] != rounds[0]
        assert rounds[0] != sorted(rounds[0])


def test_the_order_is_one_whatever_is_taken_at_once_and_wherever_it_begins(tmp_path: Path) -> None:
    split = split_of(tmp_path, 103)
    whole = numbers(shuffled(split), 0, 320)
    generator = np.random.default_rng(0)
    for _ in range(10):
        source, start = shuffled(split), int(generator.integers(0, 300))
        found: list[int] = []
        while len(found) < 320 - start:
            count = min(int(generator.integers(0, 50)), 320 - start - len(found))
            found += numbers(source, start + len(found), count)
        assert found == whole[start:]


def test_the_order_depends_on_the_seed_alone(tmp_path: Path) -> None:
    split = split_of(tmp_path, 103)
    assert numbers(shuffled(split), 0, 103) == numbers(shuffled(split), 0, 103)
    assert numbers(shuffled(split), 0, 103) != numbers(shuffled(split, seed=1), 0, 103)


def test_rows_of_a_sorted_file_come_mixed(tmp_path: Path) -> None:
    """A block of 100 rows is drawn from parts of the whole file: no part of it is far from its share of a block."""
    source = shuffled(split_of(tmp_path, 2000), buffer=100)
    quarters = np.array([[n // 500 for n in numbers(source, block * 100, 100)] for block in range(20)])
    shares = np.array([np.bincount(own, minlength=4) / 100 for own in quarters])
    assert shares.min() > 0
    assert abs(shares - 0.25).mean() < 0.1
    within = np.abs(np.diff(quarters, axis=1)).astype(bool).mean()
    assert within > 0.6, "neighbours are of different quarters three times in four"


def test_no_more_rows_are_in_memory_than_the_buffer_and_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CountedRow(StreamedRow):
        alive = most = 0

        def __init__(self, *values: Any) -> None:
            super().__init__(*values)
            CountedRow.alive += 1
            CountedRow.most = max(CountedRow.most, CountedRow.alive)

        def __del__(self) -> None:
            CountedRow.alive -= 1

    monkeypatch.setattr(file_stream, "StreamedRow", CountedRow)
    source = shuffled(split_of(tmp_path, 3000), buffer=50)
    for start in range(0, 6000, 40):
        rows, _ = source.take(start, 40)
        assert len(rows) == 40
        del rows
    assert 50 <= CountedRow.most <= 50 + 40


# ---------------------------------------------------------------------- rows labelled for a task


def labelled(folder: Path, count: int, make: Callable[[int], Any]) -> tuple[LabelledStream, list[int]]:
    split = split_of(folder, count, label=make)
    have = np.array([make(n) is not None for n in range(count)])
    object.__setattr__(split, "labelled_shares", {"topic": max(have.mean(), 1 / count)})
    object.__setattr__(split, "labelled", lambda rows: have[[int(row.values["text"]) for row in rows]][:, None])
    object.__setattr__(split, "tasks", parse_recipe(ONE_TASK, base=folder).tasks)
    return LabelledStream("rows", split, 0, seed=(0,)), np.flatnonzero(have).tolist()


ONE_TASK = {
    "encoder": "encoder",
    "datasets": {"rows": {"train": "rows.jsonl", "text": "text", "streaming": True}},
    "tasks": [{"name": "topic", "type": "regression", "dataset": "rows", "label": "label"}],
}


@pytest.mark.parametrize("every", [1, 2, 10])
def test_rows_that_join_a_batch_are_labelled_and_come_from_all_over(tmp_path: Path, every: int) -> None:
    source, have = labelled(tmp_path, 400, lambda n: 1.0 if n % every == 0 else None)
    found = numbers(source, 0, len(have))
    assert set(found) <= set(have)
    assert len(set(found)) >= len(have) * 0.5
    for place in range(0, len(have), 7):
        source, _ = labelled(tmp_path, 400, lambda n: 1.0 if n % every == 0 else None)
        assert numbers(source, place, 1) == found[place : place + 1]


def test_a_stream_without_a_label_for_a_task_is_refused(tmp_path: Path) -> None:
    source, _ = labelled(tmp_path, 30, lambda n: None)
    with pytest.raises(DataError, match=r"dataset 'rows', task 'topic': none of the 30 training rows has a label"):
        numbers(source, 0, 1)


# ---------------------------------------------------------------------- batches


def batches_of(data: RecipeData, *, rank: int = 0, world: int = 1, **values: Any) -> EpochBatchSampler:
    arguments = MultiTaskTrainingArguments(output_dir="unused", **values)
    return make_batches(arguments, TrainingRows(data.train), data.train, batch_size=4, process=(rank, world))


def name_of(row: Any) -> Any:
    return (row.dataset, row.row.source, row.row.number) if isinstance(row, DrawnRow) else row


@pytest.mark.parametrize("batching", ["mixed", "homogeneous"])
@pytest.mark.parametrize("world", [1, 3])
def test_proportional_epochs_hold_each_row_once_over_all_processes(
    streamed: RecipeData, batching: str, world: int
) -> None:
    for epoch in (0, 1):
        drawn: Counter[Any] = Counter()
        lengths: set[int] = set()
        for rank in range(world):
            batches = batches_of(streamed, rank=rank, world=world, batching=batching)
            batches.set_epoch(epoch)
            rows = list(batches)
            lengths.add(len(rows))
            drawn.update(name_of(row) for batch in rows for row in batch)
        assert len(lengths) == 1
        assert set(drawn.values()) == {1}
        assert len(drawn) == 160


@pytest.mark.parametrize("sampling", SAMPLERS.names())
def test_every_sampler_draws_from_streams_what_it_says(streamed: RecipeData, sampling: str) -> None:
    options = {"weights": {"films": 1, "orders": 2, "pairs": 3, "posts": 4}} if sampling == "explicit" else {}
    ranks = [batches_of(streamed, rank=rank, world=2, sampling=sampling, sampling_kwargs=options) for rank in (0, 1)]
    for batches in ranks:
        batches.set_epoch(1)
    drawn = [row for batches in ranks for batch in batches for row in batch]
    found = Counter(row.dataset for row in drawn if isinstance(row, DrawnRow))
    counts = dict(zip(ranks[0].sampler.names, ranks[0].counts(1).tolist(), strict=True))
    assert found == {name: counts[name] for name in ("films", "orders")}


def test_an_epoch_of_streams_has_the_rows_of_one_without(tiny_data: RecipeData, streamed: RecipeData) -> None:
    def contents(data: RecipeData) -> list[str]:
        rows = TrainingRows(data.train)
        made = [row for batch in batches_of(data) for row in rows.__getitems__(batch)]
        known = [{key: value for key, value in plain(row).items() if value is not None} for row in made]
        return sorted(json.dumps(row, sort_keys=True) for row in known)

    assert contents(streamed) == contents(tiny_data)


def test_every_batch_can_hold_every_task(streamed: RecipeData) -> None:
    batches = (
        batches_of(streamed, every_task_in_batch=True, world=2, rank=0),
        batches_of(streamed, every_task_in_batch=True, world=2, rank=1),
    )
    rows = TrainingRows(streamed.train)
    for epoch in (0, 1):
        for own in batches:
            own.set_epoch(epoch)
        for parts in zip(*batches, strict=True):
            made = [row for part in parts for row in rows.__getitems__(part)]
            for task in TASKS:
                assert any(row.get(LABEL_PREFIX + task) is not None for row in made), task


def test_classes_of_a_stream_are_not_balanced(streamed: RecipeData) -> None:
    with pytest.raises(SpecError, match=r"class_balanced names 'sentiment', whose rows are streamed; leave it out"):
        batches_of(streamed, class_balanced=["sentiment"])


def test_the_rows_are_those_of_all_sets(streamed: RecipeData) -> None:
    rows = TrainingRows(streamed.train)
    assert len(rows) == 160
    drawn = next(iter(batches_of(streamed)))
    assert [plain(rows[row]) for row in drawn] == [plain(row) for row in rows.__getitems__(drawn)]
    streams = TrainingRows({name: streamed.train[name] for name in ("films", "orders")})
    assert len(streams) == 80


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_is_told_with_its_place_from_wherever_it_is_met(
    tiny_folder: Path, recipe: dict[str, Any], workers: int
) -> None:
    good = '{"text": "a good film", "label": "pos"}\n'
    (tiny_folder / "late.jsonl").write_text(good * 1500)
    films = {**recipe["datasets"]["films"], "train": "late.jsonl"}
    task = next(task for task in recipe["tasks"] if task["dataset"] == "films")
    data = load(tiny_folder, {**recipe, "datasets": {"films": films}, "tasks": [task]})
    split = data.train["films"]
    assert isinstance(split, StreamedSplit)
    sample = {row.number for row in split.stream.sample(1000)}
    late = min(set(range(1, 1501)) - sample)
    lines = [good] * 1500
    lines[late - 1] = '{"text": "a good film", "label": "posi"}\n'
    (tiny_folder / "late.jsonl").write_text("".join(lines))
    data = load(tiny_folder, {**recipe, "datasets": {"films": films}, "tasks": [task]})
    rows = TrainingRows(data.train)
    loader = DataLoader(rows, batch_sampler=batches_of(data), collate_fn=list, num_workers=workers)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(caught.value) == (f"{caught.value.where}: label 'posi' is not in the label set; use one of 'neg', 'pos'")
    assert str(caught.value.where).endswith(f"late.jsonl, line {late}, task 'sentiment'")


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("batching", ["mixed", pytest.param("homogeneous", marks=pytest.mark.slow)])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_resumed_training_ends_with_the_same_weights(
    trainer_for: Make, streamed: RecipeData, tmp_path: Path, batching: str, workers: int
) -> None:
    options: dict[str, Any] = {"data": streamed, "batching": batching, "num_train_epochs": 2, "logging_steps": 5}
    options |= {"save_strategy": "steps", "save_steps": 9, "save_total_limit": 9, "eval_strategy": "no"}
    options |= {"load_best_model_at_end": False, "sampling": "temperature", "sampling_kwargs": {"temperature": 2.0}}
    whole = trainer_for(folder=tmp_path / "whole", **options)
    whole.train()
    checkpoints = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(checkpoints) >= 4
    for checkpoint in checkpoints[0], checkpoints[2]:  # in the first epoch, and in the second
        resumed = trainer_for(folder=tmp_path / checkpoint.name, dataloader_num_workers=workers, **options)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert resumed.state.global_step == whole.state.global_step > int(checkpoint.name.split("-")[1])
        assert_equal(weights(resumed), weights(whole))


def test_streamed_tasks_are_learnt(trainer_for: Make, streamed: RecipeData) -> None:
    trainer = trainer_for(data=streamed, num_train_epochs=8, learning_rate=5e-3, logging_steps=1000)
    before = weights(trainer)
    trainer.train()
    scores = trainer.evaluate()
    assert scores["eval_sentiment_accuracy"] > 0.7
    assert scores["eval_intent_accuracy"] > 0.9
    assert not [name for name, value in weights(trainer).items() if torch.equal(value, before[name])]


def test_without_validation_rows_there_is_nothing_to_evaluate_on(
    tiny_folder: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    films = {**recipe["datasets"]["films"], "train": "films-train.jsonl"}
    films.pop("validation")
    values = {**recipe, "datasets": {"films": films}, "tasks": recipe["tasks"][:1]}
    with pytest.raises(DataError, match=r"there are no validation rows; name some in the recipe, or set eval_strategy"):
        run_training(parse_recipe(values, base=tiny_folder), tmp_path / "run")
    training = {"eval_strategy": "no", "max_steps": 2, "precision": "fp32"}
    read = parse_recipe({**values, "training": training}, base=tiny_folder)
    assert "validation" not in run_training(read, tmp_path / "run").results


# ---------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def recipe_file(tiny_folder: Path, recipe: dict[str, Any]) -> Path:
    training = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "precision": "fp32", "learning_rate": 3e-3}
    path = tiny_folder / "streamed.yaml"
    path.write_text(write_yaml({**recipe, "training": training}), encoding="utf-8")
    return path


def test_the_command_line_trains_checks_and_evaluates_a_streamed_recipe(recipe_file: Path, tmp_path: Path) -> None:
    call("train", recipe_file, "--output-dir", tmp_path / "run", "--num-train-epochs", 1)
    scores = json.loads(call("evaluate", tmp_path / "run", recipe_file, "--split", "validation", "--json").out)
    assert set(scores) == {*TASKS, "average"}
    refused = call("evaluate", tmp_path / "run", recipe_file, "--split", "train", fails=True)
    assert "dataset 'films': its train rows are streamed" in refused.err
    again = call("train", tmp_path / "run" / "recipe.yaml", "--output-dir", tmp_path / "again", "--max-steps", 1)
    assert not again.code


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    recipe_file: Path, tmp_path: Path, workers: int
) -> None:
    options = ["--dataloader-num-workers", str(workers), "--save-strategy", "steps", "--save-steps", "4"]
    options += ["--eval-strategy", "no"]

    def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "hf_mtl", "train", str(recipe_file), "--output-dir", str(folder)]
        return subprocess.Popen([*command, *options, *more], env={**os.environ, "OMP_NUM_THREADS": "1"})

    whole = start(tmp_path / "whole")
    killed = start(tmp_path / "killed")
    wanted = int(np.random.default_rng(time.time_ns()).integers(1, 8))
    try:
        while sum(1 for _ in (tmp_path / "killed").glob("checkpoint-*/trainer_state.json")) < min(wanted, 2):
            assert killed.poll() is None
            time.sleep(0.01)
        time.sleep(wanted / 20)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert whole.wait() == 0
        assert not (tmp_path / "killed" / "train_results.json").exists()
        assert start(tmp_path / "killed", "--resume").wait() == 0
        weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "killed")]
        assert weights[0] == weights[1]
    finally:
        for process in (whole, killed):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_two_processes_train_on_streams_as_one_does(tiny_folder: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    """Without dropout, whose masks differ; `train_job.py` descends plainly, so that weights show the gradients."""
    (tiny_folder / "recipe.json").write_text(json.dumps({**recipe, "encoder": str(tiny_folder / "plain")}))
    script, tests = Path(__file__).with_name("train_job.py"), Path(__file__).parents[1]
    paths = os.pathsep.join(map(str, (tests, tests.parent)))
    found: list[dict[str, Tensor]] = []
    for processes in (1, 2):
        output, job = tmp_path / f"run-{processes}", tmp_path / f"job-{processes}.json"
        training = {"per_device_train_batch_size": 8 // processes, "eval_strategy": "no", "save_strategy": "no"}
        job.write_text(json.dumps({"files": str(tiny_folder), "output": str(output), "training": training}))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        done = subprocess.run([*command, str(script), str(job)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        assert json.loads((output / "report.json").read_text())["world_size"] == processes
        found.append(load_file(output / "model" / "model.safetensors"))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=0, msg=name)


@pytest.mark.slow
def test_a_process_that_ends_in_the_middle_of_a_stream_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n' * 1000)
    script = f"""
from pathlib import Path
from hf_mtl.data.file_stream import FileStream
from hf_mtl.data.loading import find_files
from hf_mtl.data.streamed import StreamedSplit
from hf_mtl.training.streams import ShuffledStream
stream = FileStream.open(find_files("rows.jsonl", base=Path({str(tmp_path)!r})), {{"text": "text"}})
split = StreamedSplit(name="rows", stream=stream, tasks=(), source=None, tokenizer=None)
source = ShuffledStream("rows", split, seed=(0,), buffer=150)
assert len(source.read(0, 10)) == 10
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
