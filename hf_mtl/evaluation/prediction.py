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
from hf_mtl.data.choices import check_fit
from hf_mtl.data.collator import MultiTaskCollator
from hf_mtl.data.encoding import Inputs, encode, read_inputs
from hf_mtl.data.masking import Masking, masked_tasks
from hf_mtl.data.windows import Layout, merge_windows, reading_of
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


def collator_for(
    model: MultiTaskModel, tokenizer: Any, tasks: Sequence[str] | None = None, *, seed: int = 0
) -> MultiTaskCollator:
    """Return the collator of a model's tasks, padding with the tokenizer's padding token.

    Args:
        model: the model.
        tokenizer: its tokenizer; without it no row is masked.
        tasks: the tasks; all where not given.
        seed: seed of the masks that training draws.

    Raises:
        ModelError: a task masks tokens, and the tokenizer has no mask token.
    """
    pad, specs = tokenizer.pad_token_id if tokenizer is not None else None, select_tasks(model.specs, tasks)
    masking = Masking.of(tokenizer, seed=seed) if tokenizer is not None and masked_tasks(specs) else None
    return MultiTaskCollator(specs, pad_token_id=pad if isinstance(pad, int) else 0, masking=masking)


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


def row_batches(
    layout: Layout, lengths: np.ndarray, *, batch_size: int, max_tokens: int, process: tuple[int, int] = (0, 1)
) -> list[np.ndarray]:
    """Cut encoded rows into batches as `length_batches` does; those of rows of several windows stand apart, and first.

    Args:
        layout: which encoded rows belong together.
        lengths: tokens per encoded row, `(num_encoded,)`.
        batch_size: encoded rows a batch may have.
        max_tokens: tokens a batch may have, padding included.
        process: this process's number and the number of processes, which share the batches; the windows of a row all
            go to one of them.
    """
    rank, world = process
    several = layout.windows[layout.rows] > 1
    own = np.flatnonzero(several & (layout.rows % world == rank))
    alone = np.flatnonzero(~several)
    windows = length_batches(lengths[own], batch_size=batch_size, max_tokens=max_tokens)
    single = length_batches(lengths[alone], batch_size=batch_size, max_tokens=max_tokens)[rank::world]
    return [own[batch] for batch in windows] + [alone[batch] for batch in single]


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
        with evaluation_mode(model):
            predicted = predict_batch(model, collator, features, rows, tasks=tasks)
        yield predicted


def predict_batch(
    model: Any, collator: MultiTaskCollator, features: Any, rows: np.ndarray, *, tasks: Sequence[str] | None = None
) -> PredictedBatch:
    """Run a model over one batch, in the mode it is in and without gradients; arguments as in `predict_batches`."""
    batch = collator(_rows(features, rows))
    inputs: dict[str, Any] = {
        name: value.to(model.device) for name, value in batch.items() if isinstance(value, Tensor)
    }
    if "positions" in batch:
        inputs["positions"] = {task: places.to(model.device) for task, places in batch["positions"].items()}
    with torch.inference_mode():
        output = model(**inputs, tasks=tasks)
    logits = {task: values.float().cpu().numpy() for task, values in (output.logits or {}).items()}
    return PredictedBatch(rows, batch, output, logits)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Generator[None]:
    """Switch dropout off inside the block; afterwards each module has the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class RowLogits:
    """The logits of rows, from those of the windows they are read in, and the answers made from them.

    A task that has a stride takes what `merge_windows` makes of a row's windows, another the first window.

    Args:
        model: the model that makes the logits.
        layout: which encoded rows are the windows of which row.
        tokenizer: its tokenizer, for answers that are tokens; where not given they have no more than their ids.
    """

    def __init__(self, model: MultiTaskModel, layout: Layout, tokenizer: Any = None) -> None:
        self.layout, self.tokenizer = layout, tokenizer
        self._heads = [(spec, HEADS.get(spec.type)) for spec in model.specs]
        self._waiting: dict[int, dict[int, dict[str, np.ndarray]]] = {}  # row -> number of the window -> logits

    def take(self, predicted: PredictedBatch) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Take in a batch.

        Yields:
            Each row that is now complete, and its logits by task: `(num_labels,)`, or `(tokens, num_labels)` for
            token-level tasks, padding cut off; tokens are those of all windows where the task reads them, and masks
            alone where it answers for those.
        """
        lengths = predicted.batch["attention_mask"].sum(dim=1).tolist()
        masks = {
            task: (places >= 0).sum(dim=1).tolist() for task, places in predicted.batch.get("positions", {}).items()
        }
        for place, encoded in enumerate(predicted.rows.tolist()):
            row = int(self.layout.rows[encoded])
            own = {
                spec.name: values[place] if head.pooled else values[place, : masks.get(spec.name, lengths)[place]]
                for spec, head in self._heads
                if (values := predicted.logits.get(spec.name)) is not None
            }
            count = int(self.layout.windows[row])
            if count > 1:
                windows = self._waiting.setdefault(row, {})
                windows[encoded - int(self.layout.starts[row])] = own
                if len(windows) < count:
                    continue
                own = self._merged([self._waiting[row][number] for number in range(count)])
                del self._waiting[row]
            yield row, own

    def _merged(self, windows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {
            spec.name: windows[0][spec.name]
            if spec.stride is None
            else merge_windows(head, [own[spec.name] for own in windows])
            for spec, head in self._heads
            if spec.name in windows[0]
        }

    def answers(self, complete: Sequence[tuple[int, Mapping[str, np.ndarray]]]) -> list[tuple[int, Answers]]:
        """Turn the logits of complete rows, as `take` gives them, into each row's answer for each task."""
        answers: list[Answers] = [{} for _ in complete]
        for spec, head in self._heads:
            if complete and spec.name in complete[0][1]:
                words = [self.layout.words_for(spec, row) for row, _ in complete]
                found = head.decode_rows(spec, [logits[spec.name] for _, logits in complete], words)
                found = found if self.tokenizer is None else head.spelled(found, self.tokenizer)
                for own, value in zip(answers, found, strict=True):
                    own[spec.name] = value
        return [(row, own) for (row, _), own in zip(complete, answers, strict=True)]


def answer(
    model: MultiTaskModel,
    tokenizer: Any,
    rows: Sequence[Inputs],
    *,
    tasks: Sequence[str] | None = None,
    batch_size: int = 64,
    max_tokens: int = 16384,
) -> list[Answers]:
    """Answer every task for every row, from one encoder pass a row, or a window of a long row (see `TaskSpec.stride`).

    Args:
        model: the model.
        tokenizer: its tokenizer.
        rows: the rows, with words where a task answers word by word (see `needs_words`).
        tasks: the tasks to answer; all where not given.
        batch_size: rows, or windows of rows, that a batch may have.
        max_tokens: tokens a batch may have, padding included.

    Returns:
        Per row, in the order given, task name -> answer.
    """
    encoded = encode(tokenizer, rows, reading_of(select_tasks(model.specs, tasks), tokenizer))
    features, layout = list(encoded.features()), encoded.layout(rows)
    lengths = np.array([len(feature["input_ids"]) for feature in features], dtype=np.int64)
    batches = row_batches(layout, lengths, batch_size=batch_size, max_tokens=max_tokens)
    answers: list[Answers] = [{} for _ in rows]
    merged = RowLogits(model, layout, tokenizer)
    for predicted in predict_batches(model, collator_for(model, tokenizer, tasks), features, batches, tasks=tasks):
        for row, found in merged.answers(list(merged.take(predicted))):
            answers[row] = found
    return answers


def needs_words(model: MultiTaskModel, tasks: Sequence[str] | None = None) -> bool:
    """Tell whether one of the tasks answers word by word or joins words by edges: texts must be split into words."""
    specs = select_tasks(model.specs, tasks)
    heads = [HEADS.get(spec.type) for spec in specs]
    return any(not (head.pooled or head.masks_tokens) for head in heads) or any(spec.token_graph for spec in specs)


def reads_heads(model: MultiTaskModel) -> bool:
    """Tell whether a model has a task with a token graph, and reads the heads of tokens for all tasks."""
    return any(spec.token_graph for spec in model.specs)


def reads_choices(model: MultiTaskModel) -> bool:
    """Tell whether a model has a task that chooses among the choices of a row, which it then reads for all tasks."""
    return any(HEADS.get(spec.type).reads_choices for spec in model.specs)


class RowReader:
    """Takes in rows as users hand them to a model, with what its tasks need of them.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        tasks: the tasks to answer; all where not given.
    """

    def __init__(self, model: MultiTaskModel, tokenizer: Any, tasks: Sequence[str] | None = None) -> None:
        self.tokenizer = tokenizer
        self.reading = reading_of(select_tasks(model.specs, tasks), tokenizer)
        self.split_words = needs_words(model, tasks)
        self.reads_choices, self.reads_heads = reads_choices(model), reads_heads(model)

    def read(self, row: Any, *, heads: str = "heads", choices: str = "choices", **keys: str) -> Inputs:
        """Take in a row; keys and errors as in `hf_mtl.data.encoding.read_inputs`.

        Raises:
            DataError: its choices alone are longer than what is read of a row, too.
        """
        optional = {
            "heads": heads if self.reads_heads else None,
            "choices": choices if self.reads_choices else None,
        }
        return self.checked(read_inputs(row, **optional, **keys, split_words=self.split_words))

    def checked(self, row: Inputs) -> Inputs:
        """Return a row whose choices are read to their ends; errors as in `read`."""
        if row.choices is not None:
            check_fit(self.tokenizer, row.choices, row.text_pair, self.reading.max_length)
        return row


def _rows(features: Any, rows: np.ndarray) -> list[Mapping[str, Any]]:
    if hasattr(features, "__getitems__"):
        return features.__getitems__(rows.tolist())
    return [features[row] for row in rows.tolist()]
