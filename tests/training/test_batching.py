"""Every row once, the same plan everywhere, little padding, and batches that can be resumed."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader

from hf_mtl.data.collator import LABEL_PREFIX
from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import DataError
from hf_mtl.training.batching import POOL_BATCHES, MixedBatchSampler
from hf_mtl.training.samplers.proportional import ProportionalSampler
from hf_mtl.training.sources import JointRows, ShuffledRows


def plan(
    lengths: Sequence[np.ndarray],
    *,
    batch_size: int = 8,
    process: tuple[int, int] = (0, 1),
    seed: int = 0,
    **options: Any,
) -> MixedBatchSampler:
    """Make a plan over datasets of rows with the given lengths, numbered one after the other."""
    sizes = [len(own) for own in lengths]
    starts = np.cumsum([0, *sizes])
    sources = [
        ShuffledRows(np.arange(size) + start, own, seed=(seed, place))
        for place, (size, start, own) in enumerate(zip(sizes, starts, lengths, strict=False))
    ]
    sampler = ProportionalSampler({str(place): size for place, size in enumerate(sizes)}, seed=seed)
    return MixedBatchSampler(sampler, sources, batch_size=batch_size, process=process, **options)


def sentences(generator: np.random.Generator, rows: int, *, median: float = 16.0) -> np.ndarray:
    return np.clip(np.exp(generator.normal(np.log(median), 0.6, rows)), 5, 60).astype(np.int64)


def random_worlds() -> Iterator[tuple[list[np.ndarray], int, int, int]]:
    """Yield lengths per dataset, rows per batch, processes and batches per pool."""
    generator = np.random.default_rng(0)
    for _ in range(60):
        world = int(generator.integers(1, 6))
        sizes = generator.integers(1, 120, generator.integers(1, 5))
        sizes[0] += world
        lengths = [generator.integers(1, 40, size) for size in sizes]
        yield lengths, int(generator.integers(1, 17)), world, int(generator.integers(1, 6))


def test_every_row_comes_exactly_once_over_all_processes() -> None:
    for lengths, batch_size, world, pool in random_worlds():
        for epoch in (0, 1):
            rows: list[int] = []
            for rank in range(world):
                batches = plan(lengths, batch_size=batch_size, process=(rank, world), pool_batches=pool)
                batches.set_epoch(epoch)
                rows += [row for batch in batches for row in batch]
            assert sorted(rows) == list(range(sum(map(len, lengths))))


def test_every_process_has_as_many_batches_as_the_plan_says_and_none_is_empty() -> None:
    for lengths, batch_size, world, pool in random_worlds():
        for rank in range(world):
            batches = plan(lengths, batch_size=batch_size, process=(rank, world), pool_batches=pool)
            sizes = [len(batch) for batch in batches]
            assert (
                len(sizes)
                == len(batches)
                == len(plan(lengths, batch_size=batch_size, process=(0, world), pool_batches=pool))
            )
            assert min(sizes) >= 1
            # Only where every process takes one row at a time can rows be left over.
            assert max(sizes) <= (batch_size if batch_size > 1 or world == 1 else 2)


def test_as_few_batches_as_the_batch_size_allows() -> None:
    for lengths, batch_size, world, _ in random_worlds():
        if batch_size > 1:
            rows = sum(map(len, lengths))
            batches = len(plan(lengths, batch_size=batch_size, process=(0, world), pool_batches=10**6))
            assert batches == -(-rows // (batch_size * world))


def test_batches_of_a_pool_differ_by_one_row_at_most() -> None:
    for lengths, batch_size, world, _ in random_worlds():
        for rank in range(world):
            sizes = [len(b) for b in plan(lengths, batch_size=batch_size, process=(rank, world), pool_batches=10**6)]
            assert max(sizes) - min(sizes) <= 1


def test_processes_take_their_rows_from_the_same_batch() -> None:
    """The rows of a step are of like length on all processes: none waits for another."""
    lengths = [sentences(np.random.default_rng(1), 2000)]
    ranks = [list(plan(lengths, batch_size=16, process=(rank, 2))) for rank in range(2)]
    for first, second in zip(*ranks, strict=True):
        spans = (
            [lengths[0][batch].min() for batch in (first, second)],
            [lengths[0][batch].max() for batch in (first, second)],
        )
        assert abs(int(spans[1][0]) - int(spans[1][1])) <= 16
        assert abs(int(spans[0][0]) - int(spans[0][1])) <= 16


def test_another_epoch_has_other_batches_and_the_same_epoch_the_same() -> None:
    lengths = [np.full(40, 7), np.arange(1, 31)]
    batches = plan(lengths)
    first = list(batches)
    batches.set_epoch(1)
    second = list(batches)
    batches.set_epoch(0)
    assert first == list(batches) == list(plan(lengths))
    assert second != first
    assert list(plan(lengths, seed=1)) != first


def test_padding_is_below_a_tenth_while_batches_stay_shuffled() -> None:
    generator = np.random.default_rng(2)
    lengths = [
        sentences(generator, 4000),
        sentences(generator, 2000, median=9.0),
        sentences(generator, 1000, median=30.0),
    ]
    every = np.concatenate(lengths)
    batches = list(plan(lengths, batch_size=32))
    real = sum(int(every[batch].sum()) for batch in batches)
    padded = sum(len(batch) * int(every[batch].max()) for batch in batches)
    assert (padded - real) / padded < 0.10
    means = np.array([every[batch].mean() for batch in batches])
    assert abs(np.corrcoef(np.arange(len(batches)), means)[0, 1]) < 0.1
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2  # a long batch says nothing about the next


def test_batches_mix_datasets_whose_lengths_overlap() -> None:
    generator = np.random.default_rng(3)
    lengths = [sentences(generator, 1500), sentences(generator, 1500)]
    for batch in plan(lengths, batch_size=32):
        assert 0 < sum(row < 1500 for row in batch) < len(batch)


def test_rows_are_not_in_the_order_of_the_files_where_lengths_are_alike() -> None:
    batches = plan([np.full(64 * POOL_BATCHES, 7)], batch_size=32)
    rows = np.array([row for batch in batches for row in batch])
    assert abs(np.corrcoef(np.arange(len(rows)), rows)[0, 1]) < 0.1


def test_fewer_rows_than_processes_are_refused() -> None:
    with pytest.raises(DataError, match="2 rows for 3 processes"):
        plan([np.array([3, 4])], process=(0, 3))


# ---------------------------------------------------------------------- sources


def test_every_round_of_a_source_has_each_row_once() -> None:
    source = ShuffledRows(np.arange(10, 17), np.arange(7) + 1, seed=(0, 0))
    rows, lengths = source.take(24, epoch=0)
    assert rows.shape == lengths.shape == (24,)
    assert np.array_equal(lengths, rows - 9)
    rounds = [rows[start : start + 7].tolist() for start in range(0, 21, 7)]
    assert all(sorted(own) == list(range(10, 17)) for own in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert len(set(rows[21:].tolist())) == 3


def test_what_a_source_gives_begins_alike_however_much_is_taken() -> None:
    source = ShuffledRows(np.arange(7), np.ones(7, dtype=np.int64), seed=(0, 0))
    assert source.take(5, epoch=1)[0].tolist() == source.take(20, epoch=1)[0][:5].tolist()
    assert source.take(0, epoch=0)[0].tolist() == []


def test_sources_sampler_and_batches_draw_from_streams_of_their_own() -> None:
    """numpy takes (0, 1) and (0, 1, 0) for the same seed: without care a source would follow the sampler's draws."""
    orders: list[list[int]] = []
    for seed in range(4):
        sampler = ProportionalSampler({"a": 50}, seed=seed)
        orders += [sampler.generator(epoch).permutation(50).tolist() for epoch in range(4)]
        for place in range(4):
            source = ShuffledRows(np.arange(50), np.ones(50, dtype=np.int64), seed=(seed, place))
            orders += [source.take(50, epoch=epoch)[0].tolist() for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == len(orders) == 4 * (4 + 16)


# ---------------------------------------------------------------------- rows of all datasets


@pytest.fixture
def rows(tiny_data: RecipeData) -> JointRows:
    return JointRows(tiny_data.train)


def test_rows_fetched_together_are_those_of_their_dataset(rows: JointRows, tiny_data: RecipeData) -> None:
    numbers = np.random.default_rng(0).permutation(len(rows)).tolist()
    assert len(rows) == sum(map(len, tiny_data.train.values()))
    fetched = dict(zip(numbers, rows.__getitems__(numbers), strict=True))
    for split, start in zip(tiny_data.train.values(), rows.starts, strict=False):
        for row in range(len(split)):
            expected = split.features[row]
            found = fetched[int(start) + row]
            assert found == rows[int(start) + row]
            assert found == {key: expected[key] for key in found}
            labels = {LABEL_PREFIX + task.spec.name for task in split.tasks}
            assert set(found) == {"input_ids", "token_type_ids"} | labels


def test_sources_hold_the_rows_with_a_label_of_any_task(rows: JointRows, tiny_data: RecipeData) -> None:
    for split, start, source in zip(
        tiny_data.train.values(), rows.starts, rows.sources(tiny_data.train, seed=0), strict=False
    ):
        labelled = sorted({int(row) for task in split.tasks for row in split.labelled(task.spec.name)})
        assert (source.rows - start).tolist() == labelled
        assert source.lengths.tolist() == [split.features[row]["length"] for row in labelled]


def test_rows_survive_the_trip_to_a_worker(rows: JointRows) -> None:
    assert pickle.loads(pickle.dumps(rows))[3] == rows[3]


# ---------------------------------------------------------------------- as the Trainer reads them


def loader_of(batches: MixedBatchSampler, *, workers: int = 0) -> Any:
    rows = torch.arange(sum(len(source) for source in batches.sources))
    loader = DataLoader(rows, batch_sampler=batches, num_workers=workers)
    return prepare_data_loader(
        loader, torch.device("cpu"), num_processes=1, process_index=0, put_on_device=True, rng_types=[]
    )


def read(loader: Any, epoch: int) -> list[list[int]]:
    """Set the epoch as `Trainer._run_epoch` does, and read it to the end."""
    loader.set_epoch(epoch)
    sampler = getattr(loader.batch_sampler, "batch_sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("epoch", [0, 1])
def test_skipping_the_first_batches_leaves_those_after_them(rank: int, epoch: int) -> None:
    lengths = [sentences(np.random.default_rng(4), 150)]
    plan_of_rank = plan(lengths, process=(rank, 2), pool_batches=3)
    plan_of_rank.set_epoch(epoch)
    whole = list(plan_of_rank)
    resumed = skip_first_batches(loader_of(plan(lengths, process=(rank, 2), pool_batches=3)), 4)
    assert read(resumed, epoch) == whole[4:]


def test_epochs_read_through_the_loader_are_those_of_the_plan() -> None:
    lengths = [sentences(np.random.default_rng(4), 100)]
    loader = loader_of(plan(lengths))
    for epoch in (0, 1, 2):
        expected = plan(lengths)
        expected.set_epoch(epoch)
        assert read(loader, epoch) == list(expected)
    assert len(loader) == len(plan(lengths))
    assert loader.total_batch_size == 8
