"""Batches of a number of tokens: no row lost, within the budget, the same plan everywhere, and exact gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from recorded_steps import RECORDED, Gradients
from tiny import build, load, write_recipe
from torch.utils.data import DataLoader

from hf_mtl.data.preparation import RecipeData
from hf_mtl.data.streamed import StreamedSplit
from hf_mtl.errors import DataError, SpecError
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.plan import TrainingPlan, make_batches
from hf_mtl.training.samplers.annealed import AnnealedSampler
from hf_mtl.training.samplers.base import Sampler
from hf_mtl.training.samplers.proportional import ProportionalSampler
from hf_mtl.training.samplers.temperature import TemperatureSampler
from hf_mtl.training.sources import ShuffledRows
from hf_mtl.training.streams import TrainingRows
from hf_mtl.training.token_batches import TokenBatchSampler
from hf_mtl.training.trainer import MultiTaskTrainer

KINDS = [False, True]
EPOCHS = 3


def plan(
    lengths: Sequence[np.ndarray],
    *,
    max_tokens: int = 96,
    sampler: type[Sampler] = ProportionalSampler,
    seed: int = 0,
    num_epochs: float = EPOCHS,
    **options: Any,
) -> TokenBatchSampler:
    starts = np.cumsum([0, *map(len, lengths)])
    sources = [
        ShuffledRows(np.arange(len(own)) + start, own, seed=(seed, place))
        for place, (own, start) in enumerate(zip(lengths, starts, strict=False))
    ]
    sizes = {str(place): len(own) for place, own in enumerate(lengths)}
    drawn = sampler(sizes, seed=seed, num_epochs=num_epochs)
    return TokenBatchSampler(drawn, sources, max_tokens=max_tokens, **options)


def worlds(*, of_each: bool) -> Iterator[tuple[list[np.ndarray], int, dict[str, Any]]]:
    """Yield lengths per dataset, processes and options; every process can get a row of the first or each dataset."""
    generator = np.random.default_rng(0)
    for _ in range(40):
        world = int(generator.integers(1, 5))
        sizes = generator.integers(1, 150, generator.integers(1, 4))
        sizes[: None if of_each else 1] += world
        lengths = [generator.integers(1, 40, size) for size in sizes]
        options = {"max_tokens": int(generator.integers(20, 300)), "pool_batches": int(generator.integers(1, 6))}
        yield lengths, world, options


def epoch_of(batches: TokenBatchSampler, epoch: int) -> list[list[int]]:
    batches.set_epoch(epoch)
    return list(batches)


@pytest.mark.parametrize("homogeneous", KINDS)
def test_every_row_comes_once_an_epoch_within_the_budget_on_every_process(*, homogeneous: bool) -> None:
    for lengths, world, options in worlds(of_each=homogeneous):
        length = np.concatenate(lengths)
        ranks = [plan(lengths, process=(rank, world), homogeneous=homogeneous, **options) for rank in range(world)]
        for epoch in range(EPOCHS):
            parts = [epoch_of(own, epoch) for own in ranks]
            assert {len(own) for own in parts} == {len(ranks[0])}
            assert sorted(row for own in parts for batch in own for row in batch) == list(range(len(length)))
            for whole in zip(*parts, strict=True):
                sizes = [len(batch) for batch in whole]
                assert min(sizes) >= 1
                assert max(sizes) - min(sizes) <= 1
                for batch in whole:
                    padded = len(batch) * length[batch].max()
                    two = world > 1 and len(batch) == 2 and min(sizes) == 1  # left over where all take one row
                    assert padded <= options["max_tokens"] or len(batch) == 1 or two
                    assert len(batch) <= ranks[0].batch_size
                if homogeneous:
                    places = np.searchsorted(np.cumsum([len(own) for own in lengths]), np.concatenate(whole), "right")
                    assert len(set(places.tolist())) == 1


@pytest.mark.parametrize("homogeneous", KINDS)
@pytest.mark.parametrize("sampler", [TemperatureSampler, AnnealedSampler])
def test_all_epochs_have_as_many_batches_and_rows_go_on_where_they_ended(
    sampler: type[Sampler], *, homogeneous: bool
) -> None:
    generator = np.random.default_rng(1)
    lengths = [generator.integers(3, 30, 300), generator.integers(20, 60, 40)]
    batches = plan(lengths, sampler=sampler, homogeneous=homogeneous, num_epochs=4)
    seen: Counter[int] = Counter()
    for epoch in range(4):
        found = epoch_of(batches, epoch)
        assert len(found) == len(batches)
        assert batches.drawn.sum(axis=0).tolist() == batches.counts(epoch).tolist()
        if homogeneous:
            assert (batches.drawn > 0).sum(axis=0).tolist() == batches.batch_counts(epoch).tolist()
        seen.update(row for batch in found for row in batch)
        for own in (range(300), range(300, 340)):
            times = [seen[row] for row in own]
            assert max(times) - min(times) <= 1


def test_an_epoch_that_was_not_planned_for_and_does_not_fit_is_refused() -> None:
    lengths = [np.full(100, 5), np.full(20, 40)]
    batches = plan(lengths, sampler=AnnealedSampler, num_epochs=1)
    batches.sampler.num_epochs = 4.0  # whose later epochs draw more of the long rows
    with pytest.raises(SpecError, match="epoch 4 needs more batches than the 1 that were planned; give num_train"):
        epoch_of(batches, 3)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("homogeneous", KINDS)
def test_skipping_the_first_batches_leaves_those_after_them(rank: int, epoch: int, *, homogeneous: bool) -> None:
    generator = np.random.default_rng(4)
    lengths = [generator.integers(3, 40, 90), generator.integers(3, 40, 60)]
    options: dict[str, Any] = {"process": (rank, 2), "pool_batches": 3, "homogeneous": homogeneous}
    whole = epoch_of(plan(lengths, **options), epoch)
    loader = DataLoader(torch.arange(150), batch_sampler=plan(lengths, **options))
    prepared = prepare_data_loader(
        loader, torch.device("cpu"), num_processes=1, process_index=0, put_on_device=True, rng_types=[]
    )
    resumed: Any = skip_first_batches(prepared, 4)
    resumed.set_epoch(epoch)
    resumed.batch_sampler.batch_sampler.set_epoch(epoch)
    assert [batch.tolist() for batch in resumed] == whole[4:]


def test_epochs_differ_and_the_same_epoch_is_the_same() -> None:
    lengths = [np.random.default_rng(2).integers(3, 40, 200)]
    assert epoch_of(plan(lengths), 0) == epoch_of(plan(lengths), 0) != epoch_of(plan(lengths), 1)
    assert epoch_of(plan(lengths), 0) != epoch_of(plan(lengths, seed=1), 0)


def test_batches_are_nearly_full() -> None:
    generator = np.random.default_rng(3)
    lengths = [np.clip(np.exp(generator.normal(np.log(16), 0.6, 6000)), 5, 60).astype(np.int64)]
    batches = plan(lengths, max_tokens=1024)
    for epoch in range(EPOCHS):
        found = epoch_of(batches, epoch)
        padded = np.array([len(batch) * lengths[0][batch].max() for batch in found])
        real = np.array([lengths[0][batch].sum() for batch in found])
        assert 1 - real.sum() / padded.sum() < 0.03
        assert np.median(padded) > 0.95 * 1024
        assert len(found) <= 1.05 * np.ceil(lengths[0].sum() / 1024)
        assert max(map(len, found)) > 3 * min(map(len, found))  # of short rows and of long ones


# ---------------------------------------------------------------------- in training


def test_a_step_of_many_batches_has_the_gradients_of_one(
    tiny_folder: Path, tmp_path: Path, trainer_for: Callable[..., MultiTaskTrainer]
) -> None:
    data = load(tmp_path, write_recipe(tmp_path, tiny_folder / "plain", rows={"train": 8}))
    recorded: list[Gradients] = []
    for number, options in enumerate(({"per_device_train_batch_size": 32}, {"max_tokens_per_batch": 80})):
        values = {**RECORDED, "gradient_accumulation_steps": 100, **options}
        trainer = trainer_for(data=data, model=build(data), folder=tmp_path / str(number), **values)
        recorded.append(Gradients(trainer))
        trainer.train()
    assert len(trainer.get_train_dataloader()) > 4
    (wanted,), (found,) = (own.steps for own in recorded)
    for name, gradient in wanted.items():
        other = found[name]
        assert gradient is not None
        assert other is not None
        assert gradient.any()
        torch.testing.assert_close(other, gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batching", ["mixed", "homogeneous"])
def test_the_plan_is_what_is_drawn(batching: str, trainer_for: Callable[..., MultiTaskTrainer]) -> None:
    values = {**RECORDED, "num_train_epochs": 2, "batching": batching, "max_tokens_per_batch": 100}
    trainer = trainer_for(**values)
    batches: Any = trainer.get_train_dataloader().batch_sampler
    told = TrainingPlan.of(batches)
    trainer.train()
    assert trainer.state.global_step == 2 * told.batches == 2 * len(batches)
    logged = [log for log in trainer.state.log_history if "sampled_films" in log][-1]
    assert [logged[f"sampled_{own.name}"] for own in told.datasets] == [2 * own.epoch_rows for own in told.datasets]
    assert [own.epoch_rows for own in told.datasets] == [own.rows for own in told.datasets]


def test_a_resumed_run_goes_on_with_the_same_batches(
    trainer_for: Callable[..., MultiTaskTrainer], tmp_path: Path
) -> None:
    values = {
        "num_train_epochs": 2, "max_tokens_per_batch": 200, "eval_strategy": "no", "save_strategy": "steps",
        "save_steps": 4, "load_best_model_at_end": False, "save_total_limit": None,
    }  # fmt: skip
    whole = trainer_for(folder=tmp_path / "whole", **values)
    whole.train()
    saved = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(saved) > 3
    for checkpoint in (saved[0], saved[-2]):  # within each epoch
        resumed = trainer_for(folder=tmp_path / "resumed", **values)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        weights = resumed.multi_task_model.state_dict()
        for name, wanted in whole.multi_task_model.state_dict().items():
            assert torch.equal(weights[name], wanted), name


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"every_task_in_batch": True}, "max_tokens_per_batch is 64, and every_task_in_batch is set: rows that join"),
        (
            {"batching": "homogeneous", "dataset_batch_size": {"films": 3}},
            "max_tokens_per_batch is 64, and dataset_batch_size is given: .*; leave one of them out",
        ),
        ({"sampling": "adaptive"}, "max_tokens_per_batch is 64, and sampling is 'adaptive': the batches of later"),
        ({"max_tokens_per_batch": 0}, "max_tokens_per_batch is 0; give a number at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], problem: str) -> None:
    options: dict[str, Any] = {"max_tokens_per_batch": 64, **values}
    with pytest.raises(SpecError, match=problem):
        MultiTaskTrainingArguments(output_dir="unused", **options)


def test_streams_are_refused(tiny_data: RecipeData) -> None:
    args = MultiTaskTrainingArguments(output_dir="unused", max_tokens_per_batch=64)
    stream = StreamedSplit.__new__(StreamedSplit)  # nothing of it is read
    with pytest.raises(
        SpecError, match="dataset 'films': max_tokens_per_batch is 64, but the lengths of streamed rows"
    ):
        make_batches(args, TrainingRows(tiny_data.train), {"films": stream}, batch_size=8)


def test_fewer_rows_than_processes_are_refused() -> None:
    with pytest.raises(DataError, match="2 rows for 3 processes"):
        plan([np.array([4, 5])], process=(0, 3))
    lengths = [np.full(4, 5)]
    assert len(plan(lengths, process=(0, 4), max_tokens=1)) == 1
