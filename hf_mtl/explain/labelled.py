"""Labelled rows of one task, drawn at random, and batches of them: what looks into the whole model reads these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.encoded import JOINED, ROW, EncodedSplit
from hf_mtl.data.masking import NOT_EXPLAINED, select_unmasked
from hf_mtl.data.recipe import TaskSource
from hf_mtl.errors import DataError, SpecError
from hf_mtl.evaluation.prediction import collator_for
from hf_mtl.model.modeling import MultiTaskModel


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """Rows labelled for one task, on the model's device.

    Args:
        rows: their places among the rows of `LabelledRows`, `(batch_size,)`.
        inputs: `input_ids`, `attention_mask` and perhaps `token_type_ids`, `(batch_size, seq_len)`.
        labels: the task's labels of these rows.
    """

    rows: np.ndarray
    inputs: dict[str, Tensor]
    labels: Tensor


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Some rows of a split that are labelled for a task; of a row that is read in windows, the first.

    Args:
        split: the split.
        task: the task.
        encoded: indices of the encoded rows, `(num_rows,)`.
    """

    split: EncodedSplit
    task: TaskSource
    encoded: np.ndarray

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def spec(self) -> TaskSpec:
        """The task's spec."""
        return self.task.spec

    @property
    def rows(self) -> np.ndarray:
        """The rows' numbers in the split, `(num_rows,)`."""
        return self.split.rows[self.encoded]

    def batches(self, model: MultiTaskModel, tokenizer: Any, batch_size: int) -> Iterator[TaskBatch]:
        """Yield the rows batch by batch, in their order.

        Args:
            model: the model that reads them.
            tokenizer: its tokenizer.
            batch_size: rows of a batch; the last may have fewer.
        """
        name = self.spec.name
        collator = collator_for(model, tokenizer, [name])
        for start in range(0, len(self), batch_size):
            chosen = np.arange(start, min(start + batch_size, len(self)))
            batch = collator(self.split.features.__getitems__(self.encoded[chosen].tolist()))
            inputs = {key: value.to(model.device) for key, value in batch.items() if isinstance(value, Tensor)}
            yield TaskBatch(chosen, inputs, batch["labels"][name].to(model.device))

    def part(self, start: int, end: int | None = None) -> LabelledRows:
        """Return the rows from one place to another."""
        return replace(self, encoded=self.encoded[start:end])

    def as_split(self) -> EncodedSplit:
        """Return these rows as a split of their own with this task alone, to be scored."""
        known = self.split.features
        kept = {name: kind for name, kind in known.features.items() if name not in (ROW, JOINED)}
        # Not `select`, which leaves the table as it is and reads it through indices.
        columns: Any = known.select_columns(list(kept))[self.encoded.tolist()]
        features = datasets.Dataset.from_dict(columns, features=datasets.Features(kept))
        return replace(self.split, raw=self.split.raw.select(self.rows), features=features, tasks=(self.task,))


def draw_rows(
    model: MultiTaskModel,
    splits: Mapping[str, EncodedSplit],
    tasks: Sequence[str] | None = None,
    *,
    limit: int,
    seed: int,
) -> dict[str, LabelledRows]:
    """Draw labelled rows of each task at random, without putting back.

    Args:
        model: the model.
        splits: the splits by dataset.
        tasks: the tasks; all that have labels where not given, but those that mask tokens.
        limit: rows a task may have.
        seed: seed of the draw; each task has a draw of its own.

    Returns:
        Task name -> rows, in the order of the model's tasks.

    Raises:
        SpecError: the model has no such task, or the limit is less than 1.
        DataError: no row is labelled for a task that is named, or for any task.
    """
    if limit < 1:
        raise SpecError(f"rows is {limit}", mend="use 1 or more")
    found: dict[str, LabelledRows] = {}
    chosen = select_unmasked(model.specs, tasks, NOT_EXPLAINED)
    for number, spec in enumerate(model.specs):
        if spec not in chosen:
            continue
        for split in splits.values():
            for task in split.tasks:
                if task.spec.name == spec.name:
                    order = np.random.default_rng((seed, number)).permutation(_first_windows(split, spec.name))
                    found[spec.name] = LabelledRows(split, task, order[:limit])
        if tasks is not None and not len(found.get(spec.name, ())):
            raise DataError("no row is labelled for it", where=f"task {spec.name!r}", mend="use another split")
    found = {name: rows for name, rows in found.items() if len(rows)}
    if not found:
        raise DataError("no row is labelled for any task of the model", where="splits", mend="use another split")
    return found


def _first_windows(split: EncodedSplit, task: str) -> np.ndarray:
    labelled = split.labelled_encoded(task)
    return labelled[labelled == np.searchsorted(split.rows, split.rows[labelled])]


def items_by_row(model: MultiTaskModel, task: str, labels: Tensor) -> Tensor:
    """Return what the mean loss of each row is divided by, `(batch_size,)`; at least a tiny number."""
    head = model.head(task)
    items = torch.stack([head.num_items(head.spec, labels[row : row + 1]) for row in range(len(labels))])
    return items.clamp(min=torch.finfo(torch.float32).tiny)
