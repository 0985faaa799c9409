"""No row lost, the same plan everywhere, little padding, and batches that can be resumed."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from random_rows import plain
from torch.utils.data import DataLoader

from hf_mtl.data.collator import LABEL_PREFIX
from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import DataError, SpecError
from hf_mtl.training.batching import (
    POOL_BATCHES,
    EpochBatchSampler,
    HomogeneousBatchSampler,
    MixedBatchSampler,
    spread,
)
from hf_mtl.training.samplers.adaptive import AdaptiveSampler
from hf_mtl.training.samplers.annealed import AnnealedSampler
from hf_mtl.training.samplers.base import Sampler
from hf_mtl.training.samplers.explicit import ExplicitSampler
from hf_mtl.training.samplers.proportional import ProportionalSampler
from hf_mtl.training.samplers.temperature import TemperatureSampler
from hf_mtl.training.samplers.uniform import UniformSampler
from hf_mtl.training.sources import BalancedRows, JointRows, ShuffledRows, TaskRows


def plan(
    lengths: Sequence[np.ndarray],
    *,
    batching: str = "mixed",
    batch_size: int | list[int] = 8,
    process: tuple[int, int] = (0, 1),
    seed: int = 0,
    sampler: type[Sampler] = ProportionalSampler,
    sampling: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> EpochBatchSampler:
    """Make a plan over datasets of rows with the given lengths, numbered one after the other."""
    sizes = [len(own) for own in lengths]
    starts = np.cumsum([0, *sizes])
    sources = [
        ShuffledRows(np.arange(size) + start, own, seed=(seed, place))
        for place, (size, start, own) in enumerate(zip(sizes, starts, lengths, strict=False))
    ]
    named = {str(place): size for place, size in enumerate(sizes)}
    drawn = sampler(named, seed=seed, **sampling)
    if batching == "homogeneous":
        batch_sizes = batch_size if isinstance(batch_size, list) else [batch_size] * len(sizes)
        return HomogeneousBatchSampler(drawn, sources, batch_sizes=batch_sizes, process=process, **options)
    assert isinstance(batch_size, int)
    return MixedBatchSampler(drawn, sources, batch_size=batch_size, process=process, **options)


def sentences(generator: np.random.Generator, rows: int, *, median: float = 16.0) -> np.ndarray:
    return np.clip(np.exp(generator.normal(np.log(median), 0.6, rows)), 5, 60).astype(np.int64)


def random_worlds(*, per_dataset: bool = False) -> Iterator[tuple[list[np.ndarray], int, int, int]]:
    """Yield lengths per dataset, rows per batch, processes and batches per pool.

    Each process gets a row of the first dataset, or of every dataset.
    """
    generator = np.random.default_rng(0)
    for _ in range(60):
        world = int(generator.integers(1, 6))
        sizes = generator.integers(1, 120, generator.integers(1, 5))
        sizes[: None if per_dataset else 1] += world
        lengths = [generator.integers(1, 40, size) for size in sizes]
        yield lengths, int(generator.integers(1, 17)), world, int(generator.integers(1, 6))


def epoch_of(batches: EpochBatchSampler, epoch: int = 0) -> list[list[int]]:
    batches.set_epoch(epoch)
    return list(batches)


def over_processes(world: int, epoch: int, lengths: Sequence[np.ndarray], **options: Any) -> list[list[list[int]]]:
    """Return the batches of an epoch for each process."""
    return [epoch_of(plan(lengths, process=(rank, world), **options), epoch) for rank in range(world)]


@pytest.fixture(params=["mixed", "homogeneous"])
def batching(request: pytest.FixtureRequest) -> str:
    return request.param


# ---------------------------------------------------------------------- both kinds of batches


def test_every_row_comes_exactly_once_over_all_processes(batching: str) -> None:
    for lengths, batch_size, world, pool in random_worlds(per_dataset=batching == "homogeneous"):
        for epoch in (0, 1):
            options = {"batching": batching, "batch_size": batch_size, "pool_batches": pool}
            ranks = over_processes(world, epoch, lengths, **options)
            rows = [row for batches in ranks for batch in batches for row in batch]
            assert sorted(rows) == list(range(sum(map(len, lengths))))


def test_every_process_has_as_many_batches_as_the_plan_says_and_none_is_empty(batching: str) -> None:
    for lengths, batch_size, world, pool in random_worlds(per_dataset=batching == "homogeneous"):
        options = {"batching": batching, "batch_size": batch_size, "pool_batches": pool}
        number = len(plan(lengths, process=(0, world), **options))
        for batches in over_processes(world, 0, lengths, **options):
            sizes = [len(batch) for batch in batches]
            assert len(sizes) == number
            assert min(sizes) >= 1
            # Only where every process takes one row at a time can rows be left over.
            assert max(sizes) <= (batch_size if batch_size > 1 or world == 1 else 2)


@pytest.mark.parametrize("sampler", [UniformSampler, TemperatureSampler, AnnealedSampler])
def test_rows_go_on_where_the_last_epoch_ended(batching: str, sampler: type[Sampler]) -> None:
    """However many rows an epoch draws, none comes a second time before each has come once."""
    lengths = [np.arange(1, 200), np.arange(1, 31)]
    sampling = {"epoch_size": "downsampled", "num_epochs": 5}
    batches = plan(lengths, batching=batching, batch_size=4, sampler=sampler, sampling=sampling)
    seen: Counter[int] = Counter()
    for epoch in range(5):
        rows = [row for batch in epoch_of(batches, epoch) for row in batch]
        drawn = [sum(row < 199 for row in rows), sum(row >= 199 for row in rows)]
        assert drawn == batches.counts(epoch).tolist() == batches.drawn.sum(axis=0).tolist()
        seen.update(rows)
        for own in (range(199), range(199, 229)):
            times = [seen[row] for row in own]
            assert max(times) - min(times) <= 1
    assert max(seen.values()) > 1


def test_all_epochs_have_as_many_batches(batching: str) -> None:
    for sizes in ([3, 3], [2, 7], [16, 1]):
        lengths = [np.arange(1, 200), np.arange(1, 31)]
        batch_size = sizes if batching == "homogeneous" else 5
        for sampler in (AnnealedSampler, AdaptiveSampler):
            for world in (1, 3):
                options = {"batching": batching, "sampler": sampler, "sampling": {"num_epochs": 4}}
                batches = plan(lengths, batch_size=batch_size, process=(1 % world, world), **options)
                for epoch in range(4):
                    found = epoch_of(batches, epoch)
                    batches.sampler.observe({"0": 0.1 * epoch, "1": 0.9 - 0.2 * epoch})
                    assert len(found) == len(batches)
                    assert min(map(len, found)) >= 1
                    assert max(map(len, found)) <= (max(sizes) if batching == "homogeneous" else 5)
                    assert batches.drawn.sum(axis=0).tolist() == batches.counts(epoch).tolist()
                    wanted = batches.sampler.probabilities(epoch)
                    shares = batches.counts(epoch) / batches.counts(epoch).sum()
                    assert np.abs(shares - wanted).max() < 0.08  # in whole batches


def test_a_dataset_without_a_share_gives_no_row(batching: str) -> None:
    lengths = [np.arange(1, 41), np.arange(1, 31)]
    sampling = {"weights": {"0": 0, "1": 1}, "epoch_size": 45}
    batches = plan(lengths, batching=batching, sampler=ExplicitSampler, sampling=sampling)
    for epoch in range(3):
        rows = [row for batch in epoch_of(batches, epoch) for row in batch]
        assert min(rows) >= 40
        assert len(rows) == 45


# ---------------------------------------------------------------------- mixed batches


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


def test_padding_is_below_a_tenth_while_batches_stay_shuffled(batching: str) -> None:
    generator = np.random.default_rng(2)
    lengths = [
        sentences(generator, 4000),
        sentences(generator, 2000, median=9.0),
        sentences(generator, 1000, median=30.0),
    ]
    every = np.concatenate(lengths)
    batches = list(plan(lengths, batching=batching, batch_size=32))
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


# ---------------------------------------------------------------------- every task in every batch


def joint(generator: np.random.Generator, sizes: Sequence[int]) -> tuple[list[np.ndarray], TaskRows]:
    """Make datasets of two tasks each, of which most rows have a label for one, some for both, and one row for none."""
    starts = np.cumsum([0, *sizes])
    flags = np.zeros((sum(sizes), 2 * len(sizes)), dtype=bool)
    for place, (start, size) in enumerate(zip(starts, sizes, strict=False)):
        flags[start : start + size, 2 * place] = generator.random(size) < 0.8
        flags[start : start + size, 2 * place + 1] = generator.random(size) < 0.1
        flags[start, 2 * place : 2 * place + 2] = True
    lengths = [generator.integers(1, 40, size) for size in sizes]
    every = np.concatenate(lengths)
    rows = [np.flatnonzero(flags[:, task]) for task in range(2 * len(sizes))]
    sources = tuple(ShuffledRows(own, every[own], seed=(0, task), stream=5) for task, own in enumerate(rows))
    tasks = tuple(str(task) for task in range(2 * len(sizes)))
    return lengths, TaskRows(tasks, tuple(task // 2 for task in range(2 * len(sizes))), sources, lambda own: flags[own])


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("sizes", [[300, 40], [90, 5, 3], [500]])
def test_every_batch_holds_every_task(sizes: list[int], world: int) -> None:
    generator = np.random.default_rng(sum(sizes))
    lengths, task_rows = joint(generator, sizes)
    options: dict[str, Any] = {"batch_size": 8, "task_rows": task_rows, "pool_batches": 4}
    for epoch in (0, 1):
        ranks = over_processes(world, epoch, lengths, **options)
        both = [[row for own in parts for row in own] for parts in zip(*ranks, strict=True)]
        seen: Counter[int] = Counter()
        for batch in both:
            assert task_rows.labelled(np.array(batch)).any(axis=0).all()
            assert len(batch) <= 8 * world + len(task_rows.tasks)
            seen.update(batch)
        assert min(seen[row] for row in range(sum(sizes))) == 1  # none is lost
        drawn = plan(lengths, process=(0, world), **options)
        assert len(epoch_of(drawn, epoch)) == len(both) == len(drawn)
        of_datasets = np.searchsorted(np.cumsum(sizes), [row for batch in both for row in batch], side="right")
        assert drawn.drawn.sum(axis=0).tolist() == np.bincount(of_datasets, minlength=len(sizes)).tolist()


def test_rows_that_join_for_a_task_come_in_turn() -> None:
    """Those of a small dataset, which most batches would lack, come equally often within an epoch."""
    lengths, task_rows = joint(np.random.default_rng(1), [800, 6])
    batches = plan(lengths, batch_size=8, task_rows=task_rows)
    for epoch in (0, 1):
        seen = Counter(row for batch in epoch_of(batches, epoch) for row in batch if row >= 800)
        assert sum(seen.values()) >= len(batches)
        assert set(seen) == set(range(800, 806))
        labelled = [seen[row] for row in task_rows.sources[2].rows.tolist() if row in seen]  # type: ignore[attr-defined]
        assert max(labelled) - min(labelled) <= 1 + max(seen[row] for row in task_rows.sources[3].rows.tolist())  # type: ignore[attr-defined]


def test_where_no_task_is_missing_nothing_is_added() -> None:
    generator = np.random.default_rng(0)
    lengths = [generator.integers(1, 40, 400), generator.integers(1, 40, 400)]
    sources = tuple(ShuffledRows(np.arange(400) + 400 * place, own, seed=(place,)) for place, own in enumerate(lengths))
    task_rows = TaskRows(("a", "b"), (0, 1), sources, lambda rows: np.stack([rows < 400, rows >= 400], axis=1))
    rows = [row for batch in plan(lengths, task_rows=task_rows) for row in batch]
    assert sorted(rows) == list(range(800))


def test_more_tasks_than_places_are_refused() -> None:
    lengths, task_rows = joint(np.random.default_rng(0), [30, 30])
    assert len(plan(lengths, batch_size=2, process=(0, 2), task_rows=task_rows)) > 0
    with pytest.raises(SpecError, match="every_task_in_batch is set for 4 tasks, but a batch has 3 rows; set a larger"):
        plan(lengths, batch_size=3, task_rows=task_rows)


def test_shares_are_spread_over_batches_by_length() -> None:
    generator = np.random.default_rng(4)
    for _ in range(50):
        datasets = np.repeat(np.arange(4), generator.integers(0, 50, 4))
        lengths, batches = generator.integers(1, 30, len(datasets)), int(generator.integers(1, 9))
        cut = spread(datasets, lengths, batches)
        assert sorted(np.concatenate([np.zeros(0, dtype=int), *cut]).tolist()) == list(range(len(datasets)))
        sizes = [len(own) for own in cut]
        assert max(sizes) - min(sizes) <= 1
        for place in range(4):
            own = [sorted(lengths[part[datasets[part] == place]].tolist()) for part in cut]
            assert max(map(len, own)) - min(map(len, own)) <= 1
            assert [length for part in own for length in part] == sorted(lengths[datasets == place].tolist())


# ---------------------------------------------------------------------- homogeneous batches


def test_every_batch_is_of_one_dataset_and_of_its_size() -> None:
    lengths = [np.arange(1, 101), np.arange(1, 46), np.arange(1, 8)]
    for world in (1, 2):
        ranks = over_processes(world, 0, lengths, batching="homogeneous", batch_size=[8, 3, 2])
        for batches in ranks:
            sizes = {0: 0, 1: 0, 2: 0}
            for batch in batches:
                (dataset,) = set(np.searchsorted([100, 145, 152], batch, side="right").tolist())
                sizes[dataset] = max(sizes[dataset], len(batch))
            assert all(wanted - 1 <= sizes[dataset] <= wanted for dataset, wanted in enumerate((8, 3, 2)))
    batches = plan(lengths, batching="homogeneous", batch_size=[8, 3, 2])
    assert batches.batch_counts(0).tolist() == [13, 15, 4]
    assert len(batches) == 32


def test_as_many_batches_of_each_dataset_come_in_turn() -> None:
    batches = plan([np.full(40, 7)] * 3, batching="homogeneous", batch_size=4)
    orders = []
    for epoch in range(4):
        order = np.array([batch[0] // 40 for batch in epoch_of(batches, epoch)])
        assert len(set(order[:3].tolist())) == 3
        assert np.array_equal(order, np.resize(order[:3], 30))
        orders.append(order[:3].tolist())
    assert len({tuple(order) for order in orders}) > 1


def test_batches_of_a_dataset_are_spread_evenly_over_the_epoch() -> None:
    batches = plan([np.full(400, 7), np.full(37, 7)], batching="homogeneous", batch_size=4)
    rare = [number for number, batch in enumerate(batches) if batch[0] >= 400]
    gaps = np.diff([-1, *rare, len(batches)])
    assert len(rare) == 10
    assert gaps[1:-1].min() >= 10
    assert gaps.max() <= 13


def test_a_dataset_drawn_less_often_than_there_are_processes_gives_one_row_to_each() -> None:
    lengths = [np.full(50, 7), np.full(2, 7)]
    ranks = over_processes(4, 0, lengths, batching="homogeneous")
    for parts in zip(*ranks, strict=True):
        assert min(map(len, parts)) >= 1
    rare = [row for batches in ranks for batch in batches for row in batch if row >= 50]
    assert sorted(rare) == [50, 50, 51, 51]


# ---------------------------------------------------------------------- sources


def test_every_round_of_a_source_has_each_row_once() -> None:
    source = ShuffledRows(np.arange(10, 17), np.arange(7) + 1, seed=(0, 0))
    rows, lengths = source.take(0, 24)
    assert rows.shape == lengths.shape == (24,)
    assert np.array_equal(lengths, rows - 9)
    rounds = [rows[start : start + 7].tolist() for start in range(0, 21, 7)]
    assert all(sorted(own) == list(range(10, 17)) for own in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert len(set(rows[21:].tolist())) == 3


CLASSES = np.array([0] * 60 + [1] * 25 + [2] * 5 + [-1] * 10)
SOURCES = {
    "shuffled": lambda: ShuffledRows(np.arange(100), np.arange(100) + 1, seed=(0, 0)),
    "balanced": lambda: BalancedRows(np.arange(100), np.arange(100) + 1, CLASSES, seed=(0, 0)),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_gives_the_same_rows_at_a_position_however_they_are_asked_for(kind: str) -> None:
    whole, lengths = SOURCES[kind]().take(0, 350)
    assert np.array_equal(lengths, whole + 1)
    source = SOURCES[kind]()
    for start, count in ((0, 0), (0, 10), (10, 200), (120, 3), (333, 17), (0, 5)):
        assert source.take(start, count)[0].tolist() == whole[start : start + count].tolist()
    assert len(source) == 100


def test_classes_come_equally_often_and_rows_of_a_class_in_turn() -> None:
    source = SOURCES["balanced"]()
    seen: Counter[int] = Counter()
    for number in range(7):
        rows = source.take(100 * number, 100)[0]
        assert np.bincount(CLASSES[rows] + 1).tolist() == [10, 30, 30, 30]
        assert sorted(rows[CLASSES[rows] == -1].tolist()) == list(range(90, 100))  # other tasks need them
        assert abs(np.corrcoef(np.arange(100), CLASSES[rows])[0, 1]) < 0.3  # shuffled
        seen.update(rows.tolist())
        for own in (range(60), range(60, 85), range(85, 90)):
            times = [seen[row] for row in own]
            assert max(times) - min(times) <= 1


def test_what_is_left_over_goes_to_one_class_after_the_other() -> None:
    classes = np.array([0] * 5 + [1, 2])
    source = BalancedRows(np.arange(7), np.ones(7, dtype=np.int64), classes, seed=(0, 0))
    rounds = [np.bincount(classes[source.take(7 * number, 7)[0]], minlength=3).tolist() for number in range(3)]
    assert rounds == [[3, 2, 2], [2, 3, 2], [2, 2, 3]]


def test_sources_sampler_and_batches_draw_from_streams_of_their_own() -> None:
    """numpy takes (0, 1) and (0, 1, 0) for the same seed: without care a source would follow the sampler's draws."""
    orders: list[list[int]] = []
    ones = np.ones(50, dtype=np.int64)
    for seed in range(4):
        sampler = ProportionalSampler({"a": 50}, seed=seed)
        orders += [sampler.generator(epoch).permutation(50).tolist() for epoch in range(4)]
        for place in range(4):
            source = ShuffledRows(np.arange(50), ones, seed=(seed, place))
            orders += [source.take(50 * number, 50)[0].tolist() for number in range(4)]
            balanced = BalancedRows(np.arange(50), ones, np.zeros(50, dtype=np.int64), seed=(seed, place + 4))
            orders.append(balanced.take(0, 50)[0].tolist())
        batches = plan([ones], seed=seed)
        for epoch in range(4):
            batches.set_epoch(epoch)
            orders += [batches.generator(*parts).permutation(50).tolist() for parts in ((), (1,), (2,))]
    assert len({tuple(order) for order in orders}) == len(orders) == 4 * (4 + 16 + 4 + 12)


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
            found = plain(fetched[int(start) + row])
            assert found == plain(rows[int(start) + row])
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


def test_rows_of_a_task_are_those_labelled_for_it(rows: JointRows, tiny_data: RecipeData) -> None:
    task_rows = rows.task_rows(tiny_data.train, seed=0)
    assert task_rows.tasks == ("sentiment", "intent", "slots", "grammar", "similarity", "moods")
    assert task_rows.places == (0, 1, 1, 1, 2, 3)
    flags = task_rows.labelled(np.arange(len(rows)))
    for number, task in enumerate(task_rows.tasks):
        column = LABEL_PREFIX + task
        labelled = [row for row in range(len(rows)) if rows[row].get(column) is not None]
        assert np.flatnonzero(flags[:, number]).tolist() == labelled
        taken, lengths = task_rows.sources[number].take(0, len(labelled))
        assert sorted(taken.tolist()) == labelled
        assert lengths.tolist() == [len(rows[row]["input_ids"]) for row in taken.tolist()]


def test_classes_are_balanced_for_the_tasks_that_are_named(rows: JointRows, tiny_data: RecipeData) -> None:
    sources = list(rows.sources(tiny_data.train, seed=0, class_balanced=["intent"]))
    assert [isinstance(source, BalancedRows) for source in sources] == [False, True, False, False]
    taken = sources[1].take(0, len(sources[1]))[0].tolist()
    labels = Counter(rows[row][LABEL_PREFIX + "intent"] for row in taken)
    without = sum(rows[row][LABEL_PREFIX + "intent"] is None for row in set(map(int, sources[1].rows)))  # type: ignore[attr-defined]
    assert labels[None] == without > 0
    assert abs(labels[0] - labels[1]) <= 1


@pytest.mark.parametrize(
    ("tasks", "problem"),
    [
        (["mood"], "class_balanced names 'mood', which is no task; name some of 'sentiment', 'intent'"),
        (["slots"], "class_balanced names 'slots', whose rows do not have one class each"),
        (["moods"], "whose rows do not have one class each; name tasks with one class per row"),
        (["similarity"], "whose rows do not have one class each"),
        (["intent", "slots"], "'intent' and 'slots', both of dataset 'orders'; name one of them"),
    ],
)
def test_what_cannot_be_balanced_is_refused(
    tasks: list[str], problem: str, rows: JointRows, tiny_data: RecipeData
) -> None:
    with pytest.raises(SpecError, match=problem):
        list(rows.sources(tiny_data.train, seed=0, class_balanced=tasks))


def test_rows_survive_the_trip_to_a_worker(rows: JointRows) -> None:
    assert plain(pickle.loads(pickle.dumps(rows))[3]) == plain(rows[3])


# ---------------------------------------------------------------------- as the Trainer reads them


def loader_of(batches: EpochBatchSampler, *, workers: int = 0) -> Any:
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
def test_skipping_the_first_batches_leaves_those_after_them(rank: int, epoch: int, batching: str) -> None:
    generator = np.random.default_rng(4)
    lengths = [sentences(generator, 90), sentences(generator, 60)]
    options: dict[str, Any] = {"process": (rank, 2), "pool_batches": 3, "batching": batching}
    options |= {"sampler": UniformSampler, "sampling": {"epoch_size": 107}}
    whole = epoch_of(plan(lengths, **options), epoch)
    resumed = skip_first_batches(loader_of(plan(lengths, **options)), 4)
    assert read(resumed, epoch) == whole[4:]


def test_epochs_read_through_the_loader_are_those_of_the_plan() -> None:
    lengths = [sentences(np.random.default_rng(4), 100)]
    loader = loader_of(plan(lengths))
    for epoch in (0, 1, 2):
        assert read(loader, epoch) == epoch_of(plan(lengths), epoch)
    assert len(loader) == len(plan(lengths))
    assert loader.total_batch_size == 8
    assert loader_of(plan(lengths, batching="homogeneous", batch_size=[6])).total_batch_size == 6
