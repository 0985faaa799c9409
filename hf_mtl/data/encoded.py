"""From raw rows to token ids and encoded labels, kept in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.arrow_cache import cache_folder
from hf_mtl.data.choices import separator
from hf_mtl.data.collator import LABEL_PREFIX
from hf_mtl.data.dataset_source import DatasetSource
from hf_mtl.data.encoding import Encoded, Inputs, encode, words_of
from hf_mtl.data.loading import RawSplit
from hf_mtl.data.masking import Masking, probability_of
from hf_mtl.data.recipe import TaskSource
from hf_mtl.data.token_governors import GOVERNORS
from hf_mtl.data.windows import Layout, Reading, reading_of, split_label
from hf_mtl.errors import DataError, SpecError
from hf_mtl.model.heads.base import TaskHead, Words
from hf_mtl.registry import HEADS

logger = logging.getLogger(__name__)

ENCODING_VERSION = 2
"""Part of every cache key: raise it when `Encoded` rows change."""

ROW, JOINED = "row", "joined_tokens"
"""Columns that encoded rows have where a task reads windows."""

CHOICES = "choices"
"""The role of the column of choices among what the encoder reads, and the column of their tokens in encoded rows."""


@dataclass(frozen=True)
class EncodedSplit:
    """One split of one dataset, raw and tokenized, in the same order.

    An encoded row is a row, or one of the windows of a long row where a task of the dataset has a `stride`.

    Args:
        name: name of the dataset.
        split: `"train"`, `"validation"` or `"test"`.
        raw: the rows as the files have them.
        features: columns `input_ids`, `token_type_ids`, `first_tokens`, `length` (tokens), `truncated`, and
            `labels/<task>` for each task, null where the row has no label that a loss could use. Where a task has a
            stride also `row`, the number of the row that an encoded row is of, and in a row's first window
            `joined_tokens`, the `first_tokens` of all its windows end to end; a word has its label in its own window.
            Where a task has a token graph also `governors`, see `hf_mtl.data.token_governors`.
            Where a task masks tokens its label is the places of those that are masked in an evaluation.
            Where rows have choices also `choices`, start and end of the tokens of each, one after the other.
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
        """Return the number of rows, however many windows they are read in."""
        return int(self.rows[-1]) + 1 if len(self.rows) else 0

    @cached_property
    def rows(self) -> np.ndarray:
        """The row that each encoded row is of, ascending, `(num_encoded,)`."""
        if ROW not in self.features.column_names:
            return np.arange(len(self.features))
        return np.asarray(self.features.data.column(ROW).to_numpy())

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens per encoded row, `(num_encoded,)`."""
        return np.asarray(self.features.data.column("length").to_numpy())

    def labelled(self, task: str) -> np.ndarray:
        """Return the indices of the rows that have a label for a task, `(num_labelled,)`."""
        return np.unique(self.rows[self.labelled_encoded(task)])

    def labelled_encoded(self, task: str) -> np.ndarray:
        """Return the indices of the encoded rows that have a label for a task, which training draws from."""
        return np.flatnonzero(self.features.data.column(LABEL_PREFIX + task).is_valid().to_numpy())

    def truncated(self, task: str) -> int:
        """Return how many rows labelled for a task were cut to the maximum length, for this task at least."""
        cut = np.asarray(self.features.data.column("truncated").to_numpy())
        if any(own.spec.name == task and own.spec.stride is not None for own in self.tasks):
            cut = cut & (np.bincount(self.rows)[self.rows] == 1)  # the others are read to the end
        return int(cut[self.labelled_encoded(task)].sum())

    def gold(self, task: TaskSource) -> list[Any]:
        """Return the label of each row as the file has it, classes by name, `None` where there is none.

        Of a task that masks tokens these are the ids of the tokens that are masked in an evaluation.
        """
        if HEADS.get(task.spec.type).masks_tokens:
            rows: Any = (self.features[name] for name in ("input_ids", LABEL_PREFIX + task.spec.name))
            pairs = zip(*(column[:] for column in rows), strict=True)
            return [None if places is None else [ids[place] for place in places] for ids, places in pairs]
        column: Any = self.raw.dataset[task.label]
        return column[:]

    def inputs(self) -> Iterator[Inputs]:
        """Yield what the encoder reads, row by row, with words where the encoded rows have them."""
        columns, split_words = self.source.input_columns, splits_words(self.tasks)
        for row in cast(Iterator[dict[str, Any]], self.raw.dataset.select_columns(list(columns.values()))):
            yield Inputs.of(**{role: row[column] for role, column in columns.items()}, split_words=split_words)

    def words(self) -> list[Words | None]:
        """Return the words of each row and the tokens that stand for them, in its first window."""
        return list(self.layout().words)

    def layout(self) -> Layout:
        """Return which encoded rows belong to which row, and its words."""
        first = self.features["first_tokens"][:]
        starts = np.searchsorted(self.rows, np.arange(len(self))).tolist()
        choices = self.features[CHOICES][:] if CHOICES in self.features.column_names else [None] * len(first)
        rows = zip(self.inputs(), starts, strict=True)
        words = [words_of(row, first[start], choices[start]) for row, start in rows]
        joined: dict[int, Words] = {}
        if JOINED in self.features.column_names:
            positions = self.features[JOINED][:]
            for row, own in enumerate(words):
                if own is not None and positions[starts[row]] is not None:
                    joined[row] = replace(own, first_tokens=np.asarray(positions[starts[row]], dtype=np.int64))
        return Layout(self.rows, words, joined)


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
        SpecError: a stride leaves no room for new tokens.
    """
    columns = source.input_columns
    try:
        reading = reading_of([task.spec for task in tasks], tokenizer)
    except SpecError as error:
        raise error.at(f"dataset {dataset!r}") from None
    features: dict[str, Any] = {
        "input_ids": datasets.List(datasets.Value("int32")),
        "token_type_ids": datasets.List(datasets.Value("int8")),
        "first_tokens": datasets.List(datasets.Value("int32")),
        "length": datasets.Value("int32"),
        "truncated": datasets.Value("bool"),
    }
    if reading.stride is not None:
        features |= {ROW: datasets.Value("int32"), JOINED: datasets.List(datasets.Value("int32"))}
    if reading.governors:
        features[GOVERNORS] = datasets.List(datasets.Value("int32"))
    if CHOICES in columns:
        features[CHOICES] = datasets.List(datasets.Value("int32"))
    for task in tasks:
        kind = HEADS.get(task.spec.type).stored_as
        value = datasets.Value(kind if isinstance(kind, str) else kind[0])
        features[LABEL_PREFIX + task.spec.name] = value if isinstance(kind, str) else datasets.List(value)
    fingerprint = _fingerprint(raw, columns, tasks, tokenizer)
    cache = cache_folder()
    # Named here, because map() itself would write into the folder the dataset was loaded from.
    cache_file = None if cache is None else str(cache / f"encoded-{fingerprint}.arrow")
    encoded = raw.dataset.map(
        row_encoder(raw.where, columns, tasks, tokenizer, reading=reading),
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


def row_encoder(
    where: Callable[[int], str],
    columns: Mapping[str, str],
    tasks: Sequence[TaskSource],
    tokenizer: PreTrainedTokenizerBase,
    *,
    reading: Reading,
) -> Callable[[Mapping[str, list[Any]], list[int]], dict[str, list[Any]]]:
    """Return a function that tokenizes rows and encodes their labels.

    Args:
        where: names the place of a row, given its index.
        columns: the columns of what the encoder reads, by role.
        tasks: the tasks whose labels stand beside it.
        tokenizer: the tokenizer.
        reading: how much of a row is read.

    Returns:
        A function of columns of raw values and the rows' indices, which returns the columns of `EncodedSplit.features`
        and raises DataError at a text or label that cannot be used.
    """
    heads = [(task, HEADS.get(task.spec.type)) for task in tasks]
    split_words = splits_words(tasks)
    masking = Masking.of(tokenizer) if any(head.masks_tokens for _, head in heads) else None

    def encode_rows(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows: list[Inputs] = []
        for place, index in enumerate(indices):
            try:
                values = {role: batch[column][place] for role, column in columns.items()}
                rows.append(Inputs.of(**values, split_words=split_words))
            except DataError as error:
                raise error.at(where(index)) from None
        encoded = encode(tokenizer, rows, reading)
        layout = encoded.layout(rows)
        result = _columns(encoded, layout)
        if reading.stride is not None:
            result[ROW] = [indices[row] for row in layout.rows.tolist()]
            result[JOINED] = _in_first(layout, {row: own.first_tokens for row, own in encoded.windows.items()})
        if CHOICES in columns:
            result[CHOICES] = _in_first(layout, {row: own.ravel() for row, own in encoded.choice_tokens.items()})
        for task, head in heads:
            if masking is not None and head.masks_tokens:
                places = (masking(ids, probability_of(task.spec))[1].tolist() for ids in result["input_ids"])
                result[LABEL_PREFIX + task.spec.name] = [own or None for own in places]
                continue
            labels: list[Any] = []
            for place, value in enumerate(batch[task.label]):
                try:
                    labels += _labels(head, task.spec, value, layout, place, len(encoded.input_ids[place]))
                except DataError as error:
                    raise error.at(f"task {task.spec.name!r}").at(where(indices[place])) from None
            # A row of tags that are all open, or all cut off, has no label either.
            labelled = head.labelled_rows(head.collate(task.spec, labels, max(result["length"]))).tolist()
            result[LABEL_PREFIX + task.spec.name] = [
                label if known else None for label, known in zip(labels, labelled, strict=True)
            ]
        return result

    return encode_rows


def splits_words(tasks: Sequence[TaskSource]) -> bool:
    """Tell whether the labels or the edges of one of the tasks point into the text, which is then split into words."""
    return any(HEADS.get(task.spec.type).points_into_text or task.spec.token_graph for task in tasks)


def _columns(encoded: Encoded, layout: Layout) -> dict[str, list[Any]]:
    """Return the columns of encoded rows but for their labels."""
    if not encoded.windows:
        ids, types = encoded.input_ids, encoded.token_type_ids
        first, truncated = encoded.first_tokens, encoded.truncated
    else:
        features = list(encoded.features())
        ids, types = [[row[name] for row in features] for name in ("input_ids", "token_type_ids")]
        first = _in_first(layout, dict(enumerate(encoded.first_tokens)))
        truncated = [bool(own) for own in _in_first(layout, dict(enumerate(encoded.truncated)))]
    governors = [feature[GOVERNORS] for feature in encoded.features()] if encoded.governors else None
    return {
        "input_ids": ids,
        "token_type_ids": types,
        "first_tokens": first,
        "length": [len(own) for own in ids],
        "truncated": truncated,
        **({} if governors is None else {GOVERNORS: governors}),
    }


def _in_first(layout: Layout, values: Mapping[int, Any]) -> list[Any]:
    """Put what belongs to a row into its first window, and `None` into the others."""
    column: list[Any] = [None] * len(layout.rows)
    for row, value in values.items():
        column[layout.starts[row]] = value
    return column


def _labels(head: type[TaskHead], spec: TaskSpec, value: Any, layout: Layout, row: int, num_tokens: int) -> list[Any]:
    """Encode the label of a row for each of its windows; `None` where they have none."""
    count = int(layout.windows[row])
    if value is None:
        return [None] * count
    if count > 1 and spec.stride is not None:
        label = head.encode(spec, value, layout.words_for(spec, row), count * num_tokens)
        return split_label(head, label, count)
    return [head.encode(spec, value, layout.words[row], num_tokens), *[None] * (count - 1)]


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
    apart |= {"focal_gamma", "thresholds", "tune_thresholds"}
    apart |= {"attention_heads", "attention_gate", "layer_mix", "token_graph_heads", "token_graph_layers"}
    specs = [{key: value for key, value in task.spec.to_dict().items() if key not in apart} for task in tasks]
    parts = [
        ENCODING_VERSION,
        raw.fingerprint,
        dict(columns),
        list(zip([task.label for task in tasks], specs, strict=True)),
        [type(tokenizer).__name__, tokenizer.model_max_length, tokenizer.truncation_side, tokenizer.model_input_names],
        backend,
        *([separator(tokenizer)] if CHOICES in columns else []),
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
