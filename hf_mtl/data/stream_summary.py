"""What a stream holds, found by reading it once: nothing of it is kept but counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import cast

import numpy as np

from hf_mtl.data.choices import read_choices
from hf_mtl.data.collator import LABEL_PREFIX
from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.data.encoding import Inputs
from hf_mtl.data.formats import BATCH_ROWS
from hf_mtl.data.leakage import Leak, first_rows, text_key
from hf_mtl.data.streamed import StreamedSplit
from hf_mtl.data.streaming import StreamedRow
from hf_mtl.data.token_governors import count_graphs
from hf_mtl.model.choices import choice_index
from hf_mtl.registry import HEADS


@dataclass
class StreamSummary:
    """Counts over the rows of a stream.

    Args:
        lengths: how many rows have each number of tokens, `(max_length + 1,)`.
        labelled: rows with a label, by task.
        truncated: rows labelled for a task that were cut to the maximum length, by task.
        labels: how often each label stands in the rows, by task.
        choices: rows labelled for a task by how many choices they have, by task that reads them.
        right: rows labelled for a task by the place of the right choice, by task that reads them.
        leaks: texts that stand in held-out rows too.
        graphs: rows with a dependency graph.
    """

    lengths: np.ndarray
    labelled: Counter[str] = field(default_factory=Counter[str])
    truncated: Counter[str] = field(default_factory=Counter[str])
    labels: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    choices: dict[str, Counter[int]] = field(default_factory=dict[str, Counter[int]])
    right: dict[str, Counter[int]] = field(default_factory=dict[str, Counter[int]])
    leaks: list[Leak] = field(default_factory=list[Leak])
    graphs: int = 0

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.lengths.sum())

    @property
    def mean_length(self) -> float:
        """Mean number of tokens."""
        return float(self.lengths @ np.arange(len(self.lengths)) / self.rows)

    def quantile(self, share: float) -> float:
        """Return the number of tokens that a share of the rows does not pass, as `np.quantile` interpolates it.

        Example:
            >>> StreamSummary(np.array([0, 2, 1, 1])).quantile(0.5), np.quantile([1, 1, 2, 3], 0.5).item()
            (1.5, 1.5)
        """
        place = (self.rows - 1) * share
        below, above = np.searchsorted(np.cumsum(self.lengths), [np.floor(place), np.ceil(place)], side="right")
        return float(below + (above - below) * (place % 1))


def summarize(
    split: StreamedSplit,
    held_out: Mapping[str, Mapping[str, EncodedSplit]],
    *,
    on_rows: Callable[[int, int | None], None] | None = None,
) -> StreamSummary:
    """Read a stream once and count what it holds.

    Args:
        split: the training rows.
        held_out: validation and test rows by split and dataset, to find texts of theirs among the training rows.
        on_rows: called with the number of rows read so far, and of all rows.

    Raises:
        DataError: a text or label cannot be used; names file and line.
    """
    summary = StreamSummary(np.zeros(split.max_length + 1, dtype=np.int64))
    summary.labels = {task.spec.name: Counter() for task in split.tasks}
    choosing = [task.spec.name for task in split.tasks if HEADS.get(task.spec.type).reads_choices]
    summary.choices, summary.right = ({name: Counter() for name in choosing} for _ in range(2))
    known = {(kind, name): first_rows(rows) for kind, own in held_out.items() for name, rows in own.items()}
    shared = {place: _Shared() for place in known}
    stream = split.stream.read(np.arange(split.stream.num_parts))
    while batch := list(islice(stream, BATCH_ROWS)):
        _count(summary, split, batch)
        for row, inputs in zip(batch, _inputs(split, batch), strict=True):
            key = text_key(inputs.text, inputs.beside)
            for place, first in known.items():
                if key in first:
                    shared[place].add(row, inputs.text, first[key])
        if on_rows is not None:
            on_rows(summary.rows, len(split))
    for (kind, name), own in shared.items():
        if own.row is not None:
            summary.leaks.append(
                Leak(
                    dataset=split.name,
                    split="train",
                    held_out=name,
                    held_out_split=kind,
                    rows=own.rows,
                    example=own.text,
                    place=split.stream.where(own.row),
                    held_out_place=held_out[kind][name].raw.where(own.held_out_row),
                )
            )
    return summary


@dataclass
class _Shared:
    """Rows whose texts stand in a held-out set: how many, and the first of them."""

    rows: int = 0
    row: StreamedRow | None = None
    text: str = ""
    held_out_row: int = 0

    def add(self, row: StreamedRow, text: str, held_out_row: int) -> None:
        self.rows += 1
        if self.row is None:
            self.row, self.text, self.held_out_row = row, text, held_out_row


def _count(summary: StreamSummary, split: StreamedSplit, rows: list[StreamedRow]) -> None:
    encoded = split.encode(rows)
    lengths = [min(row["length"], len(summary.lengths) - 1) for row in encoded]
    summary.lengths += np.bincount(lengths, minlength=len(summary.lengths))
    if split.source.heads is not None:
        summary.graphs += count_graphs([row.values[split.source.heads] for row in rows])
    for task in split.tasks:
        name, head = task.spec.name, HEADS.get(task.spec.type)
        labelled = [row for row in encoded if row[LABEL_PREFIX + name] is not None]
        summary.labelled[name] += len(labelled)
        summary.truncated[name] += sum(row["truncated"] for row in labelled)
        for row in rows:
            value = row.values[task.label]
            if value is not None:
                summary.labels[name].update(head.describe(task.spec, value))
                if name in summary.choices:
                    choices = read_choices(row.values[cast(str, split.source.choices)]) or ()
                    summary.choices[name][len(choices)] += 1
                    summary.right[name][choice_index(value, choices)] += 1


def _inputs(split: StreamedSplit, rows: list[StreamedRow]) -> Iterator[Inputs]:
    columns = split.source.input_columns
    for row in rows:
        yield Inputs.of(**{role: row.values[column] for role, column in columns.items()})
