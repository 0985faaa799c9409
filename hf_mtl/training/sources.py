"""Sources: where the rows of one dataset come from, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_mtl.data.collator import LABEL_PREFIX
from hf_mtl.data.preparation import EncodedSplit
from hf_mtl.training.samplers.base import ROW_STREAM


class ShuffledRows:
    """The labelled rows of one dataset, in a new order each time round.

    The order depends on the seed, the dataset's place and the number of rounds alone, so nothing needs to be saved
    to resume it.

    Args:
        rows: indices of the rows that have a label, `(num_rows,)`.
        lengths: tokens of each of them, `(num_rows,)`.
        seed: seed of the order.
    """

    def __init__(self, rows: np.ndarray, lengths: np.ndarray, *, seed: Sequence[int]) -> None:
        self.rows = rows
        self.lengths = lengths
        self.seed = tuple(seed)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, count: int, *, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that an epoch draws, beginning a new round whenever all have been drawn.

        Args:
            count: number of rows.
            epoch: number of the epoch.

        Returns:
            Row indices and their lengths in tokens, each `(count,)`.
        """
        rounds = range(-(-count // len(self)))
        order = [
            np.random.default_rng((ROW_STREAM, *self.seed, epoch, number)).permutation(len(self)) for number in rounds
        ]
        places = np.concatenate(order)[:count] if order else np.zeros(0, dtype=np.int64)
        return self.rows[places], self.lengths[places]


class JointRows(torch.utils.data.Dataset[Any]):
    """The rows of all training sets under one numbering, fetched a batch at a time.

    Args:
        splits: the training sets by name.
    """

    def __init__(self, splits: Mapping[str, EncodedSplit]) -> None:
        self.names = tuple(splits)
        self.features: list[Dataset] = [_model_columns(split.features) for split in splits.values()]
        self.starts = np.cumsum([0, *(len(split) for split in splits.values())])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Mapping[str, Any]]:
        numbers = np.asarray(rows, dtype=np.int64)
        datasets = np.searchsorted(self.starts, numbers, side="right") - 1
        result: list[Any] = [None] * len(numbers)
        for dataset in np.unique(datasets).tolist():
            places = np.flatnonzero(datasets == dataset)
            own = self.features[dataset].__getitems__((numbers[places] - self.starts[dataset]).tolist())
            for place, row in zip(places.tolist(), own, strict=True):
                result[place] = row
        return result

    def sources(self, splits: Mapping[str, EncodedSplit], *, seed: int) -> Iterator[ShuffledRows]:
        """Yield the source of each dataset: its labelled rows under the joint numbering."""
        for place, split in enumerate(splits.values()):
            labelled = np.unique(np.concatenate([split.labelled(task.spec.name) for task in split.tasks]))
            yield ShuffledRows(labelled + self.starts[place], split.lengths[labelled], seed=(seed, place))


def _model_columns(features: Dataset) -> Dataset:
    wanted = ("input_ids", "token_type_ids")
    return features.select_columns([c for c in features.column_names if c in wanted or c.startswith(LABEL_PREFIX)])
