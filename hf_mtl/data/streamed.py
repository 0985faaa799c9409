"""A training set that is streamed: opened here, tokenized a batch at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_mtl.data.collator import LABEL_PREFIX
from hf_mtl.data.dataset_source import DatasetSource
from hf_mtl.data.encoded import row_encoder
from hf_mtl.data.file_stream import FileStream
from hf_mtl.data.hub_stream import HubStream
from hf_mtl.data.loading import find_files
from hf_mtl.data.recipe import TaskSource
from hf_mtl.data.streaming import RowStream, StreamedRow
from hf_mtl.data.token_counter import TokenCounter
from hf_mtl.data.windows import Reading, reading_of

logger = logging.getLogger(__name__)

SAMPLE_ROWS = 1_000
"""Rows that are looked at before anything is trained."""


@dataclass(frozen=True, kw_only=True)
class StreamedSplit:
    """The training rows of one dataset, read and tokenized as they are asked for; see `EncodedSplit` for the others.

    Args:
        name: name of the dataset.
        stream: the rows as the data has them.
        tasks: the tasks whose labels stand in this dataset, with their specs complete.
        source: the columns of the dataset.
        tokenizer: cuts rows to the length that the tasks read, its `model_max_length` where they name none.
        labelled_shares: the share of rows that have a label for a task, by its name; a guess too, above 0.
    """

    name: str
    stream: RowStream
    tasks: tuple[TaskSource, ...]
    source: DatasetSource
    tokenizer: PreTrainedTokenizerBase
    labelled_shares: Mapping[str, float] = field(default_factory=dict[str, float])

    split: ClassVar[str] = "train"

    def __len__(self) -> int:
        return len(self.stream)

    def encode(self, rows: Sequence[StreamedRow]) -> list[dict[str, Any]]:
        """Tokenize rows and encode their labels.

        Returns:
            For each row the columns of `EncodedSplit.features`.

        Raises:
            DataError: a text or label cannot be used; names file and line.
        """
        columns = {column: [row.values[column] for row in rows] for column in self.stream.columns}
        encode = row_encoder(
            lambda index: self.stream.where(rows[index]),
            self.source.input_columns,
            self.tasks,
            self.tokenizer,
            reading=self._reading,
        )
        encoded = encode(columns, list(range(len(rows))))
        return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]

    def lengths(self, rows: Sequence[StreamedRow]) -> np.ndarray:
        """Return the number of tokens of rows, counted word by word, `(num_rows,)`; see `TokenCounter`."""
        columns = self.source.text_columns.values()
        texts = [_plain_text(row.values[column]) for row in rows for column in columns]
        tokens = self._counter(texts).reshape(len(rows), len(columns)).sum(axis=1)
        choices = self.source.choices
        paired = self.source.text_pair is not None or choices is not None
        special = self.tokenizer.num_special_tokens_to_add(pair=paired)
        if choices is not None:  # a token between each two of them, and one behind the row's second text
            tokens += [max(len(row.values[choices] or ()) - 1, 0) for row in rows]
            tokens += self.source.text_pair is not None
        return np.minimum(tokens + special, self.max_length)

    @property
    def max_length(self) -> int:
        """The most tokens that a row may have."""
        return self._reading.max_length

    @property
    def _reading(self) -> Reading:
        return reading_of([task.spec for task in self.tasks], self.tokenizer)

    @cached_property
    def _counter(self) -> TokenCounter:
        return TokenCounter(self.tokenizer)

    def labelled(self, rows: Sequence[StreamedRow]) -> np.ndarray:
        """Tell whether rows have a label for each task, bool `(num_rows, num_tasks)`.

        What is cut off at the maximum length counts here, since nothing is tokenized.
        """
        columns = [task.label for task in self.tasks]
        return np.array([[_is_label(row.values[column]) for column in columns] for row in rows], dtype=bool)


def open_stream(source: DatasetSource, *, base: Path, wanted: Mapping[str, str]) -> RowStream:
    """Open the training rows of a dataset to be read as they are asked for.

    Args:
        source: the dataset, with `streaming` set.
        base: the folder that relative paths start from.
        wanted: the columns to read, by what they are for.

    Raises:
        DataError: a file or column is missing, a file cannot be streamed, or the number of rows is not known.
    """
    if source.path is None:
        return FileStream.open(find_files(source.train or (), base=base), wanted)
    return HubStream.open(source, base=base, wanted=wanted)


def stream_split(
    dataset: str,
    stream: RowStream,
    source: DatasetSource,
    tasks: Sequence[TaskSource],
    tokenizer: PreTrainedTokenizerBase,
) -> StreamedSplit:
    """Prepare a stream for training, and look at some of its rows for what is wrong with all of them.

    Args:
        dataset: name of the dataset.
        stream: its rows.
        source: its columns.
        tasks: the tasks whose labels stand in it, with their specs complete.
        tokenizer: the tokenizer.

    Raises:
        DataError: a text or label of the rows looked at cannot be used; names file and line.
    """
    plain = StreamedSplit(name=dataset, stream=stream, tasks=tuple(tasks), source=source, tokenizer=tokenizer)
    rows = stream.sample(SAMPLE_ROWS)
    encoded = plain.encode(rows)
    for task in tasks:
        if all(row[LABEL_PREFIX + task.spec.name] is None for row in encoded):
            logger.warning(
                "dataset %r, task %r, column %r: none of the %d training rows looked at has a label",
                dataset, task.spec.name, task.label, len(rows),
            )  # fmt: skip
    cut = sum(row["truncated"] for row in encoded)
    if cut:
        logger.warning(
            "%s train: %d of the %d rows looked at were cut to the maximum length",
            dataset, cut, len(rows),
        )  # fmt: skip
    shares = np.maximum(plain.labelled(rows).mean(axis=0), 1 / len(rows))
    names = [task.spec.name for task in tasks]
    return replace(plain, labelled_shares=dict(zip(names, shares.tolist(), strict=True)))


def _is_label(value: Any) -> bool:
    """Tell whether a value is a label, or a list with some in it; an empty list says that no label applies."""
    if isinstance(value, list):
        items = cast(list[Any], value)
        return not items or any(item is not None for item in items)
    return value is not None


def _plain_text(value: Any) -> str:
    """Return a text, or tokens as one; what is neither is told when the row is tokenized."""
    if isinstance(value, list):
        return " ".join(token for token in cast(list[Any], value) if isinstance(token, str))
    return value if isinstance(value, str) else ""
