"""From encoded rows of any mix of tasks to one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.masking import Masking, mask_batch, masked_tasks
from hf_mtl.data.token_governors import GOVERNORS
from hf_mtl.registry import HEADS

LABEL_PREFIX = "labels/"
MODEL_COLUMNS = ("input_ids", "token_type_ids", GOVERNORS)
"""Columns of encoded rows, beside their labels, that batches are made of, as far as rows have them."""


@dataclass(frozen=True)
class MultiTaskCollator:
    """Pad rows to the longest and put the labels of all tasks beside them.

    Args:
        specs: the tasks, with their labels.
        pad_token_id: token id of padding, which stands on the right.
        pad_to_multiple_of: makes the padded length a multiple of this number.
        masking: masks the rows of tasks whose labels are their own tokens.
    """

    specs: tuple[TaskSpec, ...]
    pad_token_id: int = 0
    pad_to_multiple_of: int = 1
    masking: Masking | None = None

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            features: rows with `input_ids`, perhaps `token_type_ids` and `governors`, and `labels/<task>` for tasks
                they are labelled for; a label may be `None`.

        Returns:
            `input_ids` and `attention_mask` `(batch_size, seq_len)`, `token_type_ids` and `governors` where a row has
            them, and for tasks with a label in the batch `labels[task]` over all rows, `rows[task]`, the indices of the
            rows that are labelled, and `items[task]`, the number that the mean over its labelled items divides by. For
            tasks whose labels are tokens of their own rows also `positions[task]`, the places of the masks, see
            `mask_batch`. In a row that has no governors each token is governed by the one before it, and padding by
            itself.
        """
        masked = {LABEL_PREFIX + spec.name: spec for spec in masked_tasks(self.specs)}
        ids, positions, tokens = mask_batch(masked, features, self.masking)
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        multiple = self.pad_to_multiple_of
        seq_len = -(-int(lengths.max()) // multiple) * multiple
        mask = np.arange(seq_len) < lengths[:, None]
        batch: dict[str, Any] = {
            "input_ids": _padded(ids, mask, self.pad_token_id),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }
        types = [feature.get("token_type_ids") for feature in features]
        if any(row is not None for row in types):
            filled = [[0] * len(row) if kind is None else kind for kind, row in zip(types, ids, strict=True)]
            batch["token_type_ids"] = _padded(filled, mask, 0)
        governors = [feature.get(GOVERNORS) for feature in features]
        if any(row is not None for row in governors):
            before = [0, *range(seq_len - 1)]
            filled = [before[: len(row)] if own is None else own for own, row in zip(governors, ids, strict=True)]
            batch[GOVERNORS] = _padded(filled, mask, np.arange(seq_len))
        if positions:
            batch["positions"] = positions
        return batch | self._labels(features, seq_len, tokens)

    def _labels(
        self, features: Sequence[Mapping[str, Any]], seq_len: int, tokens: Mapping[str, list[Any]]
    ) -> dict[str, Any]:
        labels: dict[str, Tensor] = {}
        rows: dict[str, Tensor] = {}
        items: dict[str, float] = {}
        for spec in self.specs:
            column = LABEL_PREFIX + spec.name
            values = tokens[spec.name] if spec.name in tokens else [feature.get(column) for feature in features]
            if all(value is None for value in values):
                continue
            head = HEADS.get(spec.type)
            tensor = head.collate(spec, values, seq_len)
            labelled = head.labelled_rows(tensor).nonzero().squeeze(-1)
            if len(labelled):
                labels[spec.name], rows[spec.name] = tensor, labelled
                items[spec.name] = float(head.num_items(spec, tensor))
        return {"labels": labels, "rows": rows, "items": items} if labels else {}


def _padded(rows: Sequence[Sequence[int]], mask: np.ndarray, padding: int | np.ndarray) -> Tensor:
    values = np.full(mask.shape, padding, dtype=np.int64)
    # Arrays come from a mapped file, lists from a tokenizer; each has its own fast way.
    if all(isinstance(row, np.ndarray) for row in rows):
        values[mask] = np.concatenate(rows)
    else:
        values[mask] = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(mask.sum()))
    return torch.from_numpy(values)
