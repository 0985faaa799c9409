"""The training plan: what the sampling arguments come to for the data at hand, before a step is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from hf_mtl.data.preparation import TrainingSplit
from hf_mtl.data.recipe import near
from hf_mtl.data.streamed import StreamedSplit
from hf_mtl.errors import SpecError
from hf_mtl.registry import SAMPLERS
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.batching import EpochBatchSampler, HomogeneousBatchSampler, MixedBatchSampler
from hf_mtl.training.streams import TrainingRows
from hf_mtl.training.token_batches import TokenBatchSampler


@dataclass(frozen=True)
class DatasetPlan:
    """What a training draws from one dataset.

    Args:
        name: the dataset.
        tasks: its tasks.
        rows: rows with a label of any of them, `n_i`.
        share: its share of the first epoch's rows, `p_i`.
        last_share: its share of the last epoch's rows, as far as it is known beforehand.
        epoch_rows: rows drawn in the first epoch.
        batches: batches of the first epoch, over all processes, that draw from it: all of them if batches are mixed.
        rounds: how many times each row is drawn in the whole training on average, as far as it is known beforehand.
    """

    name: str
    tasks: tuple[str, ...]
    rows: int
    share: float
    last_share: float
    epoch_rows: int
    batches: int
    rounds: float

    @property
    def rows_per_batch(self) -> float:
        """Mean number of its rows in those batches, over all processes."""
        return self.epoch_rows / self.batches if self.batches else 0.0


@dataclass(frozen=True)
class TrainingPlan:
    """What a training draws from each dataset.

    Args:
        datasets: the datasets.
        batches: batches of an epoch, each over all processes.
        epochs: length of the training in epochs.
    """

    datasets: tuple[DatasetPlan, ...]
    batches: int
    epochs: float

    @classmethod
    def of(cls, batches: EpochBatchSampler) -> TrainingPlan:
        """Work out the plan from the batches of a training that has not begun."""
        sampler, last = batches.sampler, max(0, math.ceil(batches.sampler.num_epochs) - 1)
        rows, first, final = batches.counts(0), sampler.probabilities(0), sampler.probabilities(last)
        if np.allclose(first, final):
            drawn = rows * sampler.num_epochs
        else:
            whole = np.array([batches.counts(epoch) for epoch in range(last + 1)])
            drawn = whole[:-1].sum(axis=0) + whole[-1] * (sampler.num_epochs - last)
        columns = (first, final, rows, batches.batch_counts(0), drawn / sampler.sizes)
        numbers = zip(sampler.names, sampler.sizes.tolist(), *(column.tolist() for column in columns), strict=True)
        datasets = (DatasetPlan(name, sampler.tasks[name], *values) for name, *values in numbers)
        return cls(tuple(datasets), len(batches), sampler.num_epochs)

    def logs(self) -> dict[str, float]:
        """Return the plan as numbers to log: `plan/<dataset>_rows`, `_share`, `_epoch_rows`, `_batches`, `_rounds`."""
        keys = ("rows", "share", "epoch_rows", "batches", "rounds")
        return {f"plan/{own.name}_{key}": getattr(own, key) for own in self.datasets for key in keys}


class SampledRows:
    """Counts the rows of each dataset that were trained on, over all processes.

    Args:
        batches: the batches of the training.
        batches_per_step: batches of an optimizer step, the last one of an epoch perhaps less.
    """

    def __init__(self, batches: EpochBatchSampler, *, batches_per_step: int) -> None:
        self._batches = batches
        self._batches_per_step = batches_per_step
        self._rows = np.zeros(len(batches.sampler.names), dtype=np.int64)

    def add(self, step: int, number: int) -> None:
        """Count the batches of an optimizer step.

        Args:
            step: number of the step, from 0.
            number: its batches.
        """
        first = step % -(-len(self._batches) // self._batches_per_step) * self._batches_per_step
        self._rows += self._batches.drawn[first : first + number].sum(axis=0, dtype=np.int64)

    def logs(self) -> dict[str, float]:
        """Return `sampled_<dataset>`: its rows since training began."""
        return {f"sampled_{name}": rows for name, rows in self.state_dict().items()}

    def state_dict(self) -> dict[str, int]:
        """Return the rows by dataset."""
        return dict(zip(self._batches.sampler.names, self._rows.tolist(), strict=True))

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take over what `state_dict` returned."""
        self._rows = np.array([state.get(name, 0) for name in self._batches.sampler.names], dtype=np.int64)


def make_batches(
    args: MultiTaskTrainingArguments,
    rows: TrainingRows,
    splits: Mapping[str, TrainingSplit],
    *,
    batch_size: int,
    process: tuple[int, int] = (0, 1),
) -> EpochBatchSampler:
    """Make the batches that the sampling arguments ask for.

    Args:
        args: the training arguments.
        rows: the rows of the training sets.
        splits: the training sets by name.
        batch_size: rows of a batch per process.
        process: this process's number and the number of processes.

    Raises:
        SpecError: an argument names a dataset or task that is not there, or cannot work with the data.
        DataError: there are fewer rows than processes.
    """
    sizes = _batch_sizes(args, splits, batch_size)
    seed = args.seed if args.data_seed is None else args.data_seed
    sources = list(rows.sources(seed=seed, class_balanced=args.class_balanced or ()))

    def batches(num_epochs: float) -> EpochBatchSampler:
        sampler = SAMPLERS.get(args.sampling)(
            {name: len(source) for name, source in zip(splits, sources, strict=True)},
            seed=seed,
            num_epochs=num_epochs,
            epoch_size=args.epoch_size,
            tasks={name: [task.spec.name for task in split.tasks] for name, split in splits.items()},
            references=cast(dict[str, float] | None, args.single_task_scores),
            **cast(dict[str, Any], args.sampling_kwargs or {}),
        )
        homogeneous = args.batching == "homogeneous" and len(splits) > 1
        if args.max_tokens_per_batch is not None:
            return TokenBatchSampler(
                sampler, sources, max_tokens=args.max_tokens_per_batch, homogeneous=homogeneous, process=process
            )
        if homogeneous:
            return HomogeneousBatchSampler(sampler, sources, batch_sizes=sizes, process=process)
        task_rows = rows.task_rows(seed=seed) if args.every_task_in_batch else None
        return MixedBatchSampler(sampler, sources, batch_size=sizes[0], task_rows=task_rows, process=process)

    if args.max_steps < 0:
        return batches(args.num_train_epochs)
    steps = math.ceil(len(batches(1.0)) / args.gradient_accumulation_steps)
    return batches(args.max_steps / steps)


def _batch_sizes(
    args: MultiTaskTrainingArguments, splits: Mapping[str, TrainingSplit], batch_size: int
) -> Sequence[int]:
    """Return the rows of a batch per process, for each dataset."""
    given = cast(dict[str, int], args.dataset_batch_size or {})
    for name in given:
        if name not in splits:
            raise SpecError(f"dataset_batch_size names {name!r}, which is no dataset", mend=near(name, list(splits)))
    for name, split in splits.items():
        if args.max_tokens_per_batch is not None and isinstance(split, StreamedSplit):
            raise SpecError(
                f"max_tokens_per_batch is {args.max_tokens_per_batch}, but the lengths of streamed rows are not known"
                " beforehand",
                where=f"dataset {name!r}",
                mend="take streaming out, or set per_device_train_batch_size",
            )
    if args.every_task_in_batch and args.batching == "homogeneous" and len(splits) > 1:
        raise SpecError(
            "every_task_in_batch is set, but batching is 'homogeneous': each batch is of one dataset",
            mend="set batching to mixed",
        )
    return [given.get(name, batch_size) for name in splits]
