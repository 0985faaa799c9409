"""The one path from rows to answers, which evaluation, prediction and the pipeline share."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_mtl.configuration import select_tasks
from hf_mtl.data.collator import MultiTaskCollator
from hf_mtl.data.encoding import Inputs, encode, words_of
from hf_mtl.model.heads.base import Words
from hf_mtl.model.modeling import MultiTaskModel, MultiTaskOutput
from hf_mtl.registry import HEADS

Answers = dict[str, dict[str, Any]]
"""Task name -> answer, as plain JSON values."""


@dataclass(frozen=True)
class PredictedBatch:
    """One batch after the model: `rows` are the rows' places in what was handed in, `logits` are float32 on the CPU."""

    rows: np.ndarray
    batch: Mapping[str, Any]
    output: MultiTaskOutput
    logits: dict[str, np.ndarray]


def collator_for(model: MultiTaskModel, tokenizer: Any, tasks: Sequence[str] | None = None) -> MultiTaskCollator:
    """Return the collator of a model's tasks, padding with the tokenizer's padding token."""
    pad = tokenizer.pad_token_id if tokenizer is not None else None
    return MultiTaskCollator(select_tasks(model.specs, tasks), pad_token_id=pad if isinstance(pad, int) else 0)


def length_batches(lengths: np.ndarray, *, batch_size: int, max_tokens: int) -> list[np.ndarray]:
    """Cut rows into batches of like length, longest first, so that memory runs out at once or never.

    Args:
        lengths: tokens per row, `(num_rows,)`.
        batch_size: rows a batch may have.
        max_tokens: tokens a batch may have, padding included; a longer row stands alone.

    Returns:
        The rows' indices, batch by batch; every row once.

    Example:
        >>> [batch.tolist() for batch in length_batches(np.array([3, 9, 4, 3]), batch_size=2, max_tokens=16)]
        [[1], [2, 0], [3]]
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[np.ndarray] = []
    start = 0
    while start < len(order):
        size = max(1, min(batch_size, max_tokens // max(1, int(lengths[order[start]]))))
        batches.append(order[start : start + size])
        start += size
    return batches


def predict_batches(
    model: MultiTaskModel,
    collator: MultiTaskCollator,
    features: Any,
    batches: Sequence[np.ndarray],
    *,
    tasks: Sequence[str] | None = None,
) -> Iterator[PredictedBatch]:
    """Run the model over batches of encoded rows, in evaluation mode and without gradients.

    Args:
        model: the model, on its device and in its precision; its mode is put back at the end.
        collator: makes the batches.
        features: encoded rows, a `datasets.Dataset` or a list of mappings with `input_ids`.
        batches: indices of the rows of each batch.
        tasks: the tasks whose heads run; all where not given.
    """
    for rows in batches:
        batch = collator(_rows(features, rows))
        inputs = {name: value.to(model.device) for name, value in batch.items() if isinstance(value, Tensor)}
        with evaluation_mode(model), torch.inference_mode():
            output = model(**inputs, tasks=tasks)
        logits = {task: values.float().cpu().numpy() for task, values in (output.logits or {}).items()}
        yield PredictedBatch(rows, batch, output, logits)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Generator[None]:
    """Switch dropout off inside the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def decode_batch(
    model: MultiTaskModel, predicted: PredictedBatch, words: Sequence[Words | None]
) -> Iterator[tuple[int, Answers]]:
    """Turn a batch's logits into answers.

    Args:
        model: the model that made the logits.
        predicted: the batch.
        words: the words of all rows that were handed in, `None` for rows without.

    Yields:
        The row's place in what was handed in, and its answer for each task.
    """
    lengths = predicted.batch["attention_mask"].sum(dim=1).tolist()
    specs = [spec for spec in model.specs if spec.name in predicted.logits]
    heads = [(spec, HEADS.get(spec.type), predicted.logits[spec.name]) for spec in specs]
    for place, row in enumerate(predicted.rows.tolist()):
        answers: Answers = {}
        for spec, head, logits in heads:
            own = logits[place] if head.pooled else logits[place, : lengths[place]]
            answers[spec.name] = head.decode(spec, own, words[row])
        yield row, answers


def answer(
    model: MultiTaskModel,
    tokenizer: Any,
    rows: Sequence[Inputs],
    *,
    tasks: Sequence[str] | None = None,
    batch_size: int = 64,
    max_tokens: int = 16384,
) -> list[Answers]:
    """Answer every task for every row, from one encoder pass a row.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        rows: the rows, with words where a task answers word by word (see `needs_words`).
        tasks: the tasks to answer; all where not given.
        batch_size: rows a batch may have.
        max_tokens: tokens a batch may have, padding included.

    Returns:
        Per row, in the order given, task name -> answer.
    """
    encoded = encode(tokenizer, rows)
    features = [
        {"input_ids": ids, "token_type_ids": types}
        for ids, types in zip(encoded.input_ids, encoded.token_type_ids, strict=True)
    ]
    words = [words_of(row, first) for row, first in zip(rows, encoded.first_tokens, strict=True)]
    lengths = np.array([len(ids) for ids in encoded.input_ids], dtype=np.int64)
    batches = length_batches(lengths, batch_size=batch_size, max_tokens=max_tokens)
    answers: list[Answers] = [{} for _ in rows]
    for predicted in predict_batches(model, collator_for(model, tokenizer, tasks), features, batches, tasks=tasks):
        for row, found in decode_batch(model, predicted, words):
            answers[row] = found
    return answers


def needs_words(model: MultiTaskModel, tasks: Sequence[str] | None = None) -> bool:
    """Tell whether one of the tasks answers word by word, so that texts must be split into words."""
    return any(not HEADS.get(spec.type).pooled for spec in select_tasks(model.specs, tasks))


def _rows(features: Any, rows: np.ndarray) -> list[Mapping[str, Any]]:
    if hasattr(features, "__getitems__"):
        return features.__getitems__(rows.tolist())
    return [features[row] for row in rows.tolist()]
