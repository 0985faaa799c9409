"""From raw rows to token ids and encoded labels, kept in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_mtl.data.arrow_cache import cache_folder
from hf_mtl.data.collator import LABEL_PREFIX
from hf_mtl.data.encoding import Inputs, encode, words_of
from hf_mtl.data.loading import RawSplit
from hf_mtl.data.recipe import DatasetSource, TaskSource
from hf_mtl.errors import DataError
from hf_mtl.model.heads.base import Words
from hf_mtl.registry import HEADS

logger = logging.getLogger(__name__)

ENCODING_VERSION = 2
"""Part of every cache key: raise it when `Encoded` rows change."""


@dataclass(frozen=True)
class EncodedSplit:
    """One split of one dataset, raw and tokenized, row by row in the same order.

    Args:
        name: name of the dataset.
        split: `"train"`, `"validation"` or `"test"`.
        raw: the rows as the files have them.
        features: columns `input_ids`, `token_type_ids`, `first_tokens`, `length` (tokens), `truncated`, and
            `labels/<task>` for each task, null where the row has no label that a loss could use.
        tasks: the tasks whose labels stand in this dataset, with their specs complete.
        source: the columns of the dataset.
    """

    name: str
    split: str
    raw: RawSplit
    features: datasets.Dataset
    tasks: tuple[TaskSource, ...]
    source: DatasetSource

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens per row, `(num_rows,)`."""
        return np.asarray(self.features.data.column("length").to_numpy())

    def labelled(self, task: str) -> np.ndarray:
        """Return the indices of the rows that have a label for a task, `(num_labelled,)`."""
        return np.flatnonzero(self.features.data.column(LABEL_PREFIX + task).is_valid().to_numpy())

    def truncated(self, task: str) -> int:
        """Return how many rows labelled for a task were cut to the maximum length."""
        cut = np.asarray(self.features.data.column("truncated").to_numpy())
        return int(cut[self.labelled(task)].sum())

    def gold(self, task: TaskSource) -> list[Any]:
        """Return the label of each row as the file has it, classes by name, `None` where there is none."""
        column: Any = self.raw.dataset[task.label]
        return column[:]

    def inputs(self) -> Iterator[Inputs]:
        """Yield what the encoder reads, row by row, with words where the encoded rows have them."""
        columns = self.source.input_columns
        for row in cast(Iterator[dict[str, Any]], self.raw.dataset.select_columns(list(columns.values()))):
            yield Inputs.of(**{role: row[column] for role, column in columns.items()})

    def words(self) -> list[Words | None]:
        """Return the words of each row and the tokens that stand for them."""
        first = self.features["first_tokens"][:]
        return [words_of(row, tokens) for row, tokens in zip(self.inputs(), first, strict=True)]


def encode_split(
    dataset: str,
    split: str,
    raw: RawSplit,
    source: DatasetSource,
    tasks: Sequence[TaskSource],
    tokenizer: PreTrainedTokenizerBase,
) -> EncodedSplit:
    """Tokenize a split and encode its labels, from the cache where it was done before.

    Raises:
        DataError: a text or label cannot be used (names file and line), or no row is labelled for a task.
    """
    columns = source.input_columns
    features: dict[str, Any] = {
        "input_ids": datasets.List(datasets.Value("int32")),
        "token_type_ids": datasets.List(datasets.Value("int8")),
        "first_tokens": datasets.List(datasets.Value("int32")),
        "length": datasets.Value("int32"),
        "truncated": datasets.Value("bool"),
    }
    for task in tasks:
        kind = HEADS.get(task.spec.type).stored_as
        value = datasets.Value(kind if isinstance(kind, str) else kind[0])
        features[LABEL_PREFIX + task.spec.name] = value if isinstance(kind, str) else datasets.List(value)
    fingerprint = _fingerprint(raw, columns, tasks, tokenizer)
    cache = cache_folder()
    # Named here, because map() itself would write into the folder the dataset was loaded from.
    cache_file = None if cache is None else str(cache / f"encoded-{fingerprint}.arrow")
    encoded = raw.dataset.map(
        _row_encoder(raw, columns, tasks, tokenizer),
        with_indices=True,
        batched=True,
        remove_columns=raw.dataset.column_names,
        features=datasets.Features(features),
        new_fingerprint=fingerprint,
        cache_file_name=cache_file,
        keep_in_memory=cache_file is None,
        desc=f"Tokenizing {dataset} {split}",
    )
    result = EncodedSplit(dataset, split, raw, encoded, tuple(tasks), source)
    for task in tasks:
        _check_labelled(result, task)
    return result


def _row_encoder(
    raw: RawSplit,
    columns: Mapping[str, str],
    tasks: Sequence[TaskSource],
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[Mapping[str, list[Any]], list[int]], dict[str, list[Any]]]:
    heads = [(task, HEADS.get(task.spec.type)) for task in tasks]

    def encode_rows(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows: list[Inputs] = []
        for place, index in enumerate(indices):
            try:
                rows.append(Inputs.of(**{role: batch[column][place] for role, column in columns.items()}))
            except DataError as error:
                raise error.at(raw.where(index)) from None
        encoded = encode(tokenizer, rows)
        result: dict[str, list[Any]] = {
            "input_ids": encoded.input_ids,
            "token_type_ids": encoded.token_type_ids,
            "first_tokens": encoded.first_tokens,
            "length": [len(ids) for ids in encoded.input_ids],
            "truncated": encoded.truncated,
        }
        words = [words_of(row, first) for row, first in zip(rows, encoded.first_tokens, strict=True)]
        for task, head in heads:
            labels: list[Any] = []
            for place, value in enumerate(batch[task.label]):
                try:
                    number = len(encoded.input_ids[place])
                    labels.append(None if value is None else head.encode(task.spec, value, words[place], number))
                except DataError as error:
                    raise error.at(f"task {task.spec.name!r}").at(raw.where(indices[place])) from None
            # A row of tags that are all open, or all cut off, has no label either.
            labelled = head.labelled_rows(head.collate(task.spec, labels, max(result["length"]))).tolist()
            result[LABEL_PREFIX + task.spec.name] = [
                label if known else None for label, known in zip(labels, labelled, strict=True)
            ]
        return result

    return encode_rows


def _fingerprint(
    raw: RawSplit, columns: Mapping[str, str], tasks: Sequence[TaskSource], tokenizer: PreTrainedTokenizerBase
) -> str:
    """Name the result by all it depends on: hashing the function would see the tokenizer's changing inner state."""
    backend: Any = tokenizer.get_vocab()
    if tokenizer.is_fast:
        backend = json.loads(cast(Any, tokenizer.backend_tokenizer).to_str())
        backend = {key: value for key, value in backend.items() if key not in ("truncation", "padding")}
    # What acts on the loss or on the network only.
    apart = {"pooling", "loss_weight", "class_weights", "label_smoothing", "dropout"}
    specs = [{key: value for key, value in task.spec.to_dict().items() if key not in apart} for task in tasks]
    parts = [
        ENCODING_VERSION,
        raw.fingerprint,
        dict(columns),
        list(zip([task.label for task in tasks], specs, strict=True)),
        [type(tokenizer).__name__, tokenizer.model_max_length, tokenizer.truncation_side, tokenizer.model_input_names],
        backend,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _check_labelled(encoded: EncodedSplit, task: TaskSource) -> None:
    if not len(encoded.labelled(task.spec.name)):
        problem = f"none of the {len(encoded)} rows of {encoded.split} has a label"
        where = f"dataset {encoded.name!r}, task {task.spec.name!r}, column {task.label!r}"
        if encoded.split == "validation" and encoded.source.validation is None:
            logger.warning("%s: %s, so the task is not evaluated; give the dataset validation rows", where, problem)
            return
        raise DataError(problem, where=where, mend="give labels, or leave the task or the split out")
    cut = encoded.truncated(task.spec.name)
    if cut:
        logger.warning(
            "%s %s: %d of %d rows labelled for task %r were cut to the maximum length",
            encoded.name, encoded.split, cut, len(encoded.labelled(task.spec.name)), task.spec.name,
        )  # fmt: skip
