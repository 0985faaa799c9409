"""Few rows of a task: so many for each label, drawn at random; and the batches of support and query made of them."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.data.recipe import TaskSource
from hf_mtl.errors import DataError
from hf_mtl.evaluation.prediction import collator_for
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import HEADS
from hf_mtl.training.meta_learning import Batch, MetaOptions

WITHOUT_NAME = ""
"""Stands for the label of rows that name none, such as those labelled with a number."""


class RowsByLabel:
    """The labelled rows of a task, by the labels that they hold.

    Args:
        spec: the task, with its labels.
        values: the label of each row as the data has it, `None` where there is none.

    Example:
        >>> topic = TaskSpec(name="topic", type="sequence_classification", labels=("art", "sport"))
        >>> rows = RowsByLabel(topic, ["art", None, "sport", "art", "art"])
        >>> sorted(rows.few(1, random.Random(3)))
        [2, 4]
    """

    def __init__(self, spec: TaskSpec, values: Sequence[Any]) -> None:
        head = HEADS.get(spec.type)
        self.held: dict[int, tuple[str, ...]] = {
            row: tuple(dict.fromkeys(head.describe(spec, value))) or (WITHOUT_NAME,)
            for row, value in enumerate(values)
            if value is not None
        }
        by_label: dict[str, list[int]] = {}
        for row, labels in self.held.items():
            for label in labels:
                by_label.setdefault(label, []).append(row)
        # The rarest first: what they hold besides, such as `O` in tagging, need not be drawn again.
        self.by_label = dict(sorted(by_label.items(), key=lambda item: (len(item[1]), item[0])))

    def few(self, shots: int, draw: random.Random, *, without: Collection[int] = ()) -> list[int]:
        """Draw rows so that each label is held by `shots` of them, or by all there are; in random order.

        Args:
            shots: rows per label.
            draw: draws them.
            without: rows that must not be drawn.
        """
        counts = dict.fromkeys(self.by_label, 0)
        chosen: dict[int, None] = {}
        for label, rows in self.by_label.items():
            for row in draw.sample(rows, min(len(rows), shots + len(chosen) + len(without))):
                if counts[label] >= shots:
                    break
                if row not in chosen and row not in without:
                    chosen[row] = None
                    for own in self.held[row]:
                        counts[own] += 1
        return draw.sample(list(chosen), len(chosen))


class Episodes:
    """Draws support and query batches of tasks, the same for the same seed, step and task.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        splits: the training rows by dataset.
        options: how many rows.

    Raises:
        DataError: a task has too few rows to set any aside as a query.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        tokenizer: PreTrainedTokenizerBase,
        splits: Mapping[str, EncodedSplit],
        options: MetaOptions,
    ) -> None:
        self.options = options
        self.device = model.device
        self.sources: dict[str, tuple[EncodedSplit, RowsByLabel, np.ndarray]] = {}
        self.collators: dict[str, Any] = {}
        for split in splits.values():
            for task in split.tasks:
                name = task.spec.name
                self.sources[name] = split, _rows(split, task), split.labelled_encoded(name)
                self.collators[name] = collator_for(model, tokenizer, [name])
                if not self._draw(name, 0)[1]:
                    raise DataError(
                        f"its {len(self.sources[name][1].held)} training rows leave none for a query",
                        where=f"task {name!r}",
                        mend="give more rows, or ask for fewer shots",
                    )

    def tasks(self, step: int) -> list[str]:
        """Return the tasks of an outer step."""
        names = list(self.sources)
        draw = random.Random(f"{self.options.seed}/tasks/{step}")
        return draw.sample(names, min(len(names), self.options.tasks_per_step))

    def __call__(self, task: str, step: int) -> tuple[list[Batch], Batch]:
        """Return a batch for each inner step, and one of query rows, on the device of the model.

        Args:
            task: the task.
            step: number of the outer step.
        """
        support, query = self._draw(task, step)
        size = self.options.batch_size
        wanted = size * self.options.inner_steps
        rounds = support * -(-wanted // len(support))
        batches = [rounds[start : start + size] for start in range(0, wanted, size)]
        # A support smaller than a batch is seen once a step, not twice.
        batches = [list(dict.fromkeys(batch)) for batch in batches]
        return [self._batch(task, batch) for batch in batches], self._batch(task, query[:size])

    def _draw(self, task: str, step: int) -> tuple[list[int], list[int]]:
        """Return the encoded rows of support and query."""
        rows = self.sources[task][1]
        draw = random.Random(f"{self.options.seed}/{task}/{step}")
        support = rows.few(self.options.shots, draw)
        query = rows.few(self.options.shots, draw, without=frozenset(support))
        return self._encoded(task, support), self._encoded(task, query)

    def _encoded(self, task: str, rows: Sequence[int]) -> list[int]:
        """Return the encoded rows of some rows that have a label, in their order."""
        split, _, labelled = self.sources[task]
        own = split.rows[labelled]  # ascending
        ends = zip(np.searchsorted(own, rows), np.searchsorted(own, rows, side="right"), strict=True)
        return [int(encoded) for start, end in ends for encoded in labelled[start:end]]

    def _batch(self, task: str, rows: Sequence[int]) -> Batch:
        batch = self.collators[task](self.sources[task][0].features.select(rows).to_list())
        return _moved(batch, self.device)


def _rows(split: EncodedSplit, task: TaskSource) -> RowsByLabel:
    """Return the rows of a split that have a label that a loss can use."""
    usable = set(split.labelled(task.spec.name).tolist())
    return RowsByLabel(task.spec, [value if row in usable else None for row, value in enumerate(split.gold(task))])


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return {key: _moved(own, device) for key, own in value.items()} if isinstance(value, dict) else value
