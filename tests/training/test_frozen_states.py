"""A frozen encoder's states, kept: training is the same, only that the encoder does not run."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import build, load
from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import OutputError, SpecError
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training import frozen_states
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.frozen_states import FOLDER, CachedRows, RemoveStates, StatesCollator, encode
from hf_mtl.training.recipe_arguments import training_arguments
from hf_mtl.training.trainer import MultiTaskTrainer

Make = Callable[..., MultiTaskTrainer]
POOLED = ("sentiment", "similarity", "moods")
FROZEN: dict[str, Any] = {
    "freeze_encoder": True,
    "num_train_epochs": 2,
    "optim": "sgd",
    "learning_rate": 0.05,
    "logging_steps": 1,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
}


def part_of(recipe: dict[str, Any], tasks: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """Return the recipe of some of its tasks."""
    kept = [{**task, **more.get(task["name"], {})} for task in recipe["tasks"] if task["name"] in tasks]
    names = {task["dataset"] for task in kept}
    return {**recipe, "tasks": kept, "datasets": {key: own for key, own in recipe["datasets"].items() if key in names}}


@pytest.fixture(scope="module")
def data_of(tiny_folder: Path, tiny_recipe: dict[str, Any], tiny_data: RecipeData) -> dict[str, RecipeData]:
    """Data whose tasks need pooled outputs of one kind, of two kinds, attention pooling, all token states."""
    two = {"sentiment": {"pooling": "cls"}}
    learned = {"sentiment": {"pooling": "attention"}}
    return {
        "pooled": load(tiny_folder, part_of(tiny_recipe, POOLED)),
        "two kinds": load(tiny_folder, part_of(tiny_recipe, POOLED, **two)),
        "attention": load(tiny_folder, part_of(tiny_recipe, POOLED, **learned)),
        "tokens": tiny_data,
    }


class CountPasses:
    """Counts the encoder's passes while training, not those before."""

    def __init__(self, model: MultiTaskModel) -> None:
        self.number = 0
        model.encoder.register_forward_hook(self)

    def __call__(self, *args: Any) -> None:
        self.number += 1


class Remember(TrainerCallback):
    """Remembers the files of states when training begins, and perhaps ends training at a step as a kill would."""

    def __init__(self, passes: CountPasses, stop_at: int | None = None) -> None:
        self.passes, self.stop_at = passes, stop_at
        self.before = -1
        self.files: dict[str, int] = {}

    def on_train_begin(self, args: Any, *_: Any, **kwargs: Any) -> None:
        self.before = self.passes.number
        self.files = {path.name: path.stat().st_mtime_ns for path in Path(args.output_dir, FOLDER).glob("*")}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.stop_at:
            raise KeyboardInterrupt


def train(make: Make, data: RecipeData, folder: Path, **values: Any) -> SimpleNamespace:
    resume, stop_at = values.pop("resume", None), values.pop("stop_at", None)
    model = build(data)
    passes = CountPasses(model)
    remember = Remember(passes, stop_at)
    trainer = make(model=model, data=data, folder=folder, callbacks=[remember], **{**FROZEN, **values})
    try:
        trainer.train(resume_from_checkpoint=resume)
    except KeyboardInterrupt:
        assert stop_at is not None
    return SimpleNamespace(
        weights=model.state_dict(),
        losses=[log["loss"] for log in trainer.state.log_history if "loss" in log],
        files=remember.files,
        passes_before=remember.before,
        passes=passes.number - remember.before,
        trainer=trainer,
    )


def assert_alike(found: SimpleNamespace, wanted: SimpleNamespace, *, atol: float) -> None:
    assert found.losses == pytest.approx(wanted.losses, abs=atol, rel=0)
    for name, weight in wanted.weights.items():
        torch.testing.assert_close(found.weights[name], weight, rtol=0, atol=atol, msg=name)


@pytest.mark.mostly_slow(fast=1)
@pytest.mark.parametrize("kind", ["pooled", "two kinds", "attention", "tokens"])
def test_training_is_the_same_but_the_encoder_does_not_run(
    kind: str, data_of: dict[str, RecipeData], trainer_for: Make, tmp_path: Path
) -> None:
    data = data_of[kind]
    wanted = train(trainer_for, data, tmp_path / "without", cache_hidden_states=False)
    found = train(trainer_for, data, tmp_path / "with")
    assert wanted.passes == len(wanted.losses) == len(found.losses) > 20
    assert found.passes == 0 < found.passes_before
    assert not wanted.files
    assert len(found.files) == 1
    assert_alike(found, wanted, atol=1e-6)
    start = build(data).state_dict()
    moved = {name for name, weight in found.weights.items() if not torch.equal(weight, start[name])}
    assert moved == {name for name in start if not name.startswith("encoder.")}  # dropout and all, only heads
    assert not (tmp_path / "with" / FOLDER).exists()  # nothing is left behind


def test_one_pooled_output_a_row_is_kept_where_all_tasks_pool_alike(
    data_of: dict[str, RecipeData], trainer_for: Make, tmp_path: Path
) -> None:
    for kind, pooled in (("pooled", True), ("two kinds", False), ("tokens", False)):
        trainer = trainer_for(data=data_of[kind], model=build(data_of[kind]), folder=tmp_path / kind, **FROZEN)
        rows: Any = trainer.get_train_dataloader().dataset
        assert isinstance(rows, CachedRows)
        lengths = np.concatenate([split.lengths for split in data_of[kind].train.values()])
        assert rows.states.lengths.tolist() == ([1] * len(lengths) if pooled else lengths.tolist())
        assert rows.states.values.shape == (rows.states.lengths.sum(), 32)
        assert isinstance(rows.states.values, np.memmap)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_are_the_encoders_to_the_bit_in_batches_of_one(
    dtype: torch.dtype, data_of: dict[str, RecipeData], trainer_for: Make, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(frozen_states, "TOKENS_PER_BATCH", 1)  # a row's last bits depend on those beside it
    data = data_of["tokens"]
    model = build(data).to(dtype).eval()
    trainer = trainer_for(data=data, model=model, folder=tmp_path, **FROZEN)
    loader = trainer.get_train_dataloader()
    rows, collate = loader.dataset, loader.collate_fn
    assert isinstance(rows, CachedRows)
    assert isinstance(collate, StatesCollator)
    for row in range(0, len(rows), 7):
        batch = collate(rows.__getitems__([row]))
        wanted, _ = encode(model, batch)
        assert batch["hidden_states"].dtype == dtype
        assert torch.equal(batch["hidden_states"], wanted)


def test_a_killed_run_goes_on_with_the_states_it_had(
    data_of: dict[str, RecipeData], trainer_for: Make, tmp_path: Path
) -> None:
    data = data_of["pooled"]
    values = {"save_strategy": "steps", "save_steps": 6, "optim": "adamw_torch"}
    whole = train(trainer_for, data, tmp_path / "whole", **values)
    killed = train(trainer_for, data, tmp_path / "killed", stop_at=20, **values)
    checkpoint = str(tmp_path / "killed" / "checkpoint-18")
    resumed = train(trainer_for, data, tmp_path / "killed", resume=checkpoint, **values)
    assert resumed.files == killed.files  # not written anew
    assert resumed.passes == 0
    assert resumed.passes_before == 1  # which looks at what the encoder computes in
    assert_alike(resumed, whole, atol=0.0)


def test_other_weights_rows_or_poolings_have_other_states(
    data_of: dict[str, RecipeData], tiny_folder: Path, tiny_recipe: dict[str, Any], trainer_for: Make, tmp_path: Path
) -> None:
    fewer = load(tiny_folder, part_of(tiny_recipe, POOLED[:2]))
    names: list[str] = []
    for data, change in (
        (data_of["pooled"], 0.0),
        (data_of["pooled"], 1e-3),
        (data_of["two kinds"], 0.0),
        (fewer, 0.0),
    ):
        model = build(data)
        next(iter(model.encoder.parameters())).data[0, 0] += change
        dataset: Any = trainer_for(data=data, model=model, folder=tmp_path, **FROZEN).get_train_dataloader().dataset
        names.append(dataset.states.path.name)
    assert len(set(names)) == 4


def test_states_survive_the_trip_to_a_worker_without_being_copied(
    data_of: dict[str, RecipeData], trainer_for: Make, tmp_path: Path
) -> None:
    trainer = trainer_for(data=data_of["tokens"], model=build(data_of["tokens"]), folder=tmp_path, **FROZEN)
    states = trainer.get_train_dataloader().dataset.states  # type: ignore[attr-defined]
    wanted = states[3]
    travelled = pickle.dumps(states)
    assert len(travelled) < 0.1 * states.num_bytes + 5000
    assert np.array_equal(pickle.loads(travelled)[3], wanted)


# ---------------------------------------------------------------------- when


@pytest.mark.parametrize(
    ("values", "cached"),
    [
        ({}, True),
        ({"num_train_epochs": 1}, False),  # every row is read once
        ({"num_train_epochs": 1, "cache_hidden_states": True}, True),
        ({"epoch_size": 30}, False),
        ({"cache_hidden_states": False}, False),
        ({"cache_hidden_states": "false"}, False),
        ({"cache_hidden_states": "True", "epoch_size": 30}, True),
        ({"freeze_encoder": False}, False),
        ({"freeze_encoder": False, "freeze_layers": 2}, True),  # which are all it has
        ({"max_tokens_per_batch": 100}, True),
        ({"every_task_in_batch": True}, True),
        ({"batching": "homogeneous"}, True),
    ],
)
def test_states_are_kept_where_that_saves_passes(
    values: dict[str, Any], cached: bool, data_of: dict[str, RecipeData], trainer_for: Make, tmp_path: Path
) -> None:
    data = data_of["pooled"]
    trainer = trainer_for(data=data, model=build(data), folder=tmp_path, **{**FROZEN, **values})
    assert isinstance(trainer.get_train_dataloader().dataset, CachedRows) == cached


def test_states_that_cannot_be_kept_are_refused_where_they_are_asked_for(
    data_of: dict[str, RecipeData], trainer_for: Make
) -> None:
    values = {**FROZEN, "freeze_encoder": False, "cache_hidden_states": True}
    trainer = trainer_for(data=data_of["pooled"], model=build(data_of["pooled"]), **values)
    with pytest.raises(SpecError, match="cache_hidden_states is true, but the encoder is trained; leave it out"):
        trainer.get_train_dataloader()
    with pytest.raises(SpecError, match="cache_hidden_states is 'sometimes'; use 'auto', true or false"):
        MultiTaskTrainingArguments(output_dir="unused", cache_hidden_states="sometimes")
    assert training_arguments("unused", {"cache_hidden_states": True}).cache_hidden_states is True
    assert training_arguments("unused", {}).cache_hidden_states == "auto"


def test_large_states_are_kept_only_where_they_are_asked_for_and_fit(
    data_of: dict[str, RecipeData],
    trainer_for: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = data_of["tokens"]

    def dataset(**values: Any) -> Any:
        trainer = trainer_for(data=data, model=build(data), folder=tmp_path, **{**FROZEN, **values})
        return trainer.get_train_dataloader().dataset

    tokens = sum(int(split.lengths.sum()) for split in data.train.values())
    monkeypatch.setattr(frozen_states, "MAX_BYTES", 4 * 32 * tokens - 1)
    with caplog.at_level(logging.WARNING, logger=frozen_states.__name__):
        assert not isinstance(dataset(), CachedRows)
    assert "runs in every epoch: its states would take 0." in caplog.text
    assert isinstance(dataset(cache_hidden_states=True), CachedRows)
    assert isinstance(dataset(), CachedRows)  # they are there
    (tmp_path / FOLDER).rename(tmp_path / "aside")
    monkeypatch.setattr(frozen_states.shutil, "disk_usage", lambda _: SimpleNamespace(free=4 * 32 * tokens - 1))
    with pytest.raises(OutputError, match=r"the states of the frozen encoder take .* MiB, and .* MiB are free; set"):
        dataset(cache_hidden_states=True)
    monkeypatch.setattr(frozen_states, "MAX_BYTES", 2**40)
    assert not isinstance(dataset(), CachedRows)  # a disk is not filled by more than half


@pytest.mark.parametrize("writes", [True, False])
def test_only_the_process_that_wrote_the_states_removes_them(writes: bool, tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    arguments, state = MultiTaskTrainingArguments(output_dir=str(tmp_path)), TrainerState()
    state.is_local_process_zero = writes
    RemoveStates().on_train_end(arguments, state, TrainerControl())
    assert (tmp_path / FOLDER).exists() != writes
