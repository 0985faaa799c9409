"""`Predictor`: rows in, answers out, as fast as the device allows: sorted by length, several batches at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from hf_mtl.configuration import select_tasks
from hf_mtl.data.encoding import Inputs, encode
from hf_mtl.data.masking import masked_tasks
from hf_mtl.errors import DataError, SpecError, one_of
from hf_mtl.evaluation.prediction import (
    Answers,
    RowLogits,
    RowReader,
    collator_for,
    evaluation_mode,
    predict_batch,
    row_batches,
)
from hf_mtl.inference.compiling import compiled, padded_collator
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.precision import PRECISIONS, best_precision

MAX_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens of a batch by device. On a CPU more do not fit its caches; on a GPU it is memory that sets the limit."""

OTHER_MAX_TOKENS = 16384
MAX_WORKERS = 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Columns:
    """Which fields of a row are read: `text` (with `text_pair`) where the row has one, else `tokens`.

    Models of tasks with a token graph read `tokens` with `heads` where the row has heads.

    Args:
        text: field of the text; `None` reads tokens alone.
        text_pair: field of the second text.
        tokens: field of the tokens.
        heads: field of the tokens' heads, see `hf_mtl.data.token_governors.read_heads`.
        choices: field of the choices, read where the model has a task that chooses among them.
    """

    text: str | None = "text"
    text_pair: str = "text_pair"
    tokens: str = "tokens"
    heads: str = "heads"
    choices: str = "choices"


class Predictor:
    """Answers chunks of rows; each chunk is sorted by length, cut into batches, and put back in order.

    Batches run in threads of their own while the next chunk is read and tokenized. On a CPU with several cores each
    thread runs whole batches on its share of the cores, which keeps all of them busier than sharing each product does;
    what a batch answers depends on the number of cores per thread only, not on the number of threads.

    Args:
        model: the model, on its device.
        tokenizer: its tokenizer.
        tasks: the tasks to answer; all where not given.
        columns: the fields of a row to read.
        precision: what products are computed in: `"auto"` is bfloat16 where the device multiplies it faster than
            float32, and what the weights are stored in where that is not float32; `"fp32"`, `"bf16"`, `"fp16"`.
        batch_size: rows a batch may have; as many as `max_tokens` allow where not given.
        max_tokens: tokens a batch may have, padding included; chosen by the device where not given.
        compile: whether to compile the model with `torch.compile`, one graph for each of a few lengths.
        workers: batches that run at a time; chosen by the device where not given.

    Raises:
        SpecError: the model has no such task, or an argument cannot be.

    Example:
        >>> Predictor(None, None, precision="int8")
        Traceback (most recent call last):
        hf_mtl.errors.SpecError: precision is 'int8'; use one of 'auto', 'fp32', 'bf16', 'fp16'
    """

    def __init__(
        self,
        model: MultiTaskModel,
        tokenizer: Any,
        *,
        tasks: Sequence[str] | None = None,
        columns: Columns | None = None,
        precision: str = "auto",
        batch_size: int | None = None,
        max_tokens: int | None = None,
        compile: bool = False,
        workers: int | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens), ("workers", workers)):
            if value is not None and value < 1:
                raise SpecError(f"{name} is {value}", mend="use 1 or more")
        self.precision = settle_precision(model, precision)
        self.tasks = [spec.name for spec in select_tasks(model.specs, tasks)]
        masked = masked_tasks(select_tasks(model.specs, tasks)) if compile else []
        if masked:
            raise SpecError(
                f"compile is True, and task {masked[0].name!r} answers for masks alone, of which texts have any number",
                mend="leave compile out, or name other tasks",
            )
        self.columns = columns or Columns()
        kind = model.device.type
        self.max_tokens = max_tokens or MAX_TOKENS.get(kind, OTHER_MAX_TOKENS)
        self.batch_size = batch_size or self.max_tokens
        self.tokens = 0
        self.compile = compile
        self.model, self.tokenizer = model, tokenizer
        self._run = compiled(model) if compile else model
        self._workers, self._threads = _threads(model, workers, compile=compile)
        self._collator = collator_for(model, tokenizer, self.tasks)
        self._reader = RowReader(model, tokenizer, self.tasks)

    def answer(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answer rows; see `chunks`."""
        return next(self.chunks([rows]))

    def chunks(
        self, chunks: Iterable[Sequence[Mapping[str, Any]]], *, ahead: int = 0
    ) -> Iterator[list[dict[str, Any]]]:
        """Answer chunks of rows as they come.

        Args:
            chunks: the chunks; each is sorted by length in itself.
            ahead: chunks that are taken in before the answers to the first of them are given.

        Yields:
            The rows of a chunk in their order, with `predictions` or `error`, which take the place of fields of these
            names.
        """
        waiting: deque[_Chunk] = deque()
        with self._running() as pool:
            for rows in chunks:
                waiting.append(self._begin(rows, pool))
                if len(waiting) > ahead:
                    yield waiting.popleft().finish()
            while waiting:
                yield waiting.popleft().finish()

    def _begin(self, rows: Sequence[Mapping[str, Any]], pool: ThreadPoolExecutor) -> _Chunk:
        chunk = _Chunk([dict(row) for row in rows], [], [])
        inputs: list[Inputs] = []
        for place, row in enumerate(chunk.rows):
            if row.keys() == {"error"}:  # the line itself could not be read
                continue
            for name in ("predictions", "error"):  # of an earlier run
                row.pop(name, None)
            try:
                inputs.append(self._inputs(row))
            except DataError as error:
                row["error"] = str(error)
            else:
                chunk.places.append(place)
        encoded = encode(self.tokenizer, inputs, self._reader.reading)
        features, merged = list(encoded.features()), RowLogits(self.model, encoded.layout(inputs), self.tokenizer)
        lengths = np.array([len(feature["input_ids"]) for feature in features], dtype=np.int64)
        self.tokens += int(lengths.sum())
        lock = threading.Lock()  # windows of one row may be answered in different threads
        batches = row_batches(merged.layout, lengths, batch_size=self.batch_size, max_tokens=self.max_tokens)
        chunk.batches.extend(pool.submit(self._answer, features, batch, merged, lock) for batch in batches)
        return chunk

    def _inputs(self, row: Mapping[str, Any]) -> Inputs:
        columns = self.columns
        if columns.text is None:
            if row.get(columns.tokens) is None:
                raise DataError(f"the row has no {columns.tokens!r}", mend="name the column of tokens")
            row = {key: row[key] for key in (columns.tokens, columns.heads, columns.choices) if key in row}
        return self._reader.read(
            row,
            text=columns.text or "text",
            text_pair=columns.text_pair,
            tokens=columns.tokens,
            heads=columns.heads,
            choices=columns.choices,
        )

    def _answer(
        self, features: list[Any], batch: np.ndarray, merged: RowLogits, lock: threading.Lock
    ) -> list[tuple[int, Answers]]:
        collator = self._collator
        if self.compile:
            collator = padded_collator(collator, features, batch, self._reader.reading.max_length)
        predicted = predict_batch(self._run, collator, features, batch, tasks=self.tasks)
        with lock:
            return merged.answers(list(merged.take(predicted)))

    @contextmanager
    def _running(self) -> Generator[ThreadPoolExecutor]:
        """Give a pool of threads that compute in this precision, each with its share of the cores."""
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(self._workers, "predict", initializer=self._enter)
        with evaluation_mode(self.model):
            try:
                yield pool
            finally:
                pool.shutdown(cancel_futures=True)
                torch.clear_autocast_cache()
                if self._threads is not None:
                    torch.set_num_threads(threads)  # what a thread sets is what threads to come begin with

    def _enter(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        if self.model.dtype is torch.float32 and self.precision in ("bf16", "fp16"):
            # Entered for the thread's whole life, so that the weights are cast once and not for each batch.
            torch.autocast(self.model.device.type, dtype=DTYPES[self.precision]).__enter__()


@dataclass
class _Chunk:
    """Rows whose answers are being made: `places` are those of the rows that can be answered."""

    rows: list[dict[str, Any]]
    places: list[int]
    batches: list[Future[list[tuple[int, Answers]]]]

    def finish(self) -> list[dict[str, Any]]:
        for batch in self.batches:
            for row, answers in batch.result():
                self.rows[self.places[row]]["predictions"] = answers
        return self.rows


def settle_precision(model: Any, wanted: str) -> str:
    """Return the precision that products are computed in: `"fp32"`, `"bf16"` or `"fp16"`.

    Args:
        model: the model, on its device; an exported graph has been loaded in its precision, and gives its format.
        wanted: `"auto"` or one of them.

    Raises:
        SpecError: there is no such precision, or the weights are stored in another.
    """
    if wanted not in PRECISIONS:
        raise SpecError(f"precision is {wanted!r}", mend=f"use one of {one_of(PRECISIONS)}")
    if not isinstance(model, torch.nn.Module):
        if wanted != "auto":
            raise SpecError(f"precision is {wanted!r}, and the model is a graph", mend="choose it by dtype on loading")
        return str(model.config.exported["format"])
    network = cast(MultiTaskModel, model)
    stored = {dtype: name for name, dtype in DTYPES.items()}.get(network.dtype, "fp32")
    if stored == "fp32":
        return best_precision(network.device.type) if wanted == "auto" else wanted
    if wanted not in ("auto", stored):
        raise SpecError(f"precision is {wanted!r}, and the weights are {stored}", mend="load the model as fp32")
    return stored


def _threads(model: Any, workers: int | None, *, compile: bool) -> tuple[int, int | None]:
    """Return how many batches run at a time, and the cores that each may use where that is not all of them."""
    if not isinstance(model, torch.nn.Module) or compile:
        # A graph of other software has threads of its own, a compiled one is made for the threads it is made with.
        return 1, None
    if cast(MultiTaskModel, model).device.type != "cpu":
        return workers or 2, None  # one batch runs while the other is decoded
    cores = torch.get_num_threads()
    workers = workers or min(cores, MAX_WORKERS)
    return workers, max(1, cores // workers) if workers > 1 else None
