"""From rows to counts and from counts to scores: the arithmetic that metrics share, over all resamples at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from hf_mtl.errors import DataError, one_of
from hf_mtl.model.heads.token_classification import OUTSIDE, UNKNOWN_TAG

Disagreement = tuple[Hashable, Hashable]
"""What a label should have been and what was predicted; `None` stands for the absence of one."""


# ---------------------------------------------------------------------- rows to counts


def check_lengths(predictions: Sequence[Any] | None, references: Sequence[Any] | None) -> int:
    """Return the number of rows.

    Raises:
        DataError: one side is missing, or the numbers of rows differ.
    """
    if predictions is None or references is None:
        missing = "predictions" if predictions is None else "references"
        raise DataError(f"{missing} are missing", mend="give predictions and references together")
    if len(predictions) != len(references):
        raise DataError(
            f"{len(predictions)} predictions for {len(references)} references", mend="give one prediction per reference"
        )
    return len(references)


def labelled_words(
    prediction: Sequence[str], reference: Sequence[str | None], *, where: str | None = None
) -> tuple[list[str], list[str]]:
    """Return one row's predicted and reference tags without the words whose reference is `None`.

    Raises:
        DataError: a side is not a list of tags, or has more of them than the other.

    Example:
        >>> labelled_words(["O", "B-city"], [None, "B-city"])
        (['B-city'], ['B-city'])
    """
    if isinstance(prediction, str) or isinstance(reference, str):
        raise DataError("a text instead of a list of tags", where=where, mend="give one tag per word")
    if len(prediction) != len(reference):
        raise DataError(
            f"{len(prediction)} predicted tags for {len(reference)} reference tags",
            where=where,
            mend="give one tag per word",
        )
    kept = [(predicted, true) for predicted, true in zip(prediction, reference, strict=True) if true is not None]
    return [predicted for predicted, _ in kept], [true for _, true in kept]


def word_disagreements(prediction: Sequence[str], reference: Sequence[str | None]) -> list[Disagreement]:
    """List the (reference, predicted) tags of the labelled words whose tags differ.

    Example:
        >>> word_disagreements(["NOUN", "VERB"], ["VERB", None])
        [('VERB', 'NOUN')]
    """
    predicted_tags, true_tags = labelled_words(prediction, reference)
    return [(true, predicted) for predicted, true in zip(predicted_tags, true_tags, strict=True) if predicted != true]


def span_reader(scheme: str | None) -> Callable[[list[str], str | None], set[Any]]:
    """Return a function that reads the spans of a row of tags as seqeval does, given the tags and where they stand.

    Args:
        scheme: `"IOB2"` or `"IOBES"` to read strictly; `None` reads leniently, as conlleval does.

    Returns:
        The function; it returns a set of spans and raises `DataError` at a tag outside the scheme.

    Example:
        >>> span_reader(None)(["B-city", "I-city", "O"], None)
        {('city', 0, 1)}
    """
    from seqeval import scheme as seqeval_schemes
    from seqeval.metrics.sequence_labeling import get_entities

    strict = getattr(seqeval_schemes, scheme) if scheme else None
    prefixes = ("B-", "I-") if scheme == "IOB2" else ("B-", "I-", "E-", "S-")

    def read(tags: list[str], where: str | None) -> set[Any]:
        tags = [OUTSIDE if tag == UNKNOWN_TAG else tag for tag in tags]
        for tag in tags:
            if tag != OUTSIDE and not tag.startswith(prefixes):
                raise DataError(
                    f"{tag!r} is not {f'a tag of {scheme}' if strict else 'a span tag'}",
                    where=where,
                    mend=f"use {OUTSIDE!r} and tags that begin with {one_of(prefixes)}",
                )
        if strict is None:
            return set(get_entities(tags))
        return {entity.to_tuple() for entity in seqeval_schemes.Tokens(tags, strict).entities}

    return read


def label_counts(predictions: Sequence[Sequence[Any]], references: Sequence[Sequence[Any]]) -> np.ndarray:
    """Count per row how often each label is right, predicted and true.

    Args:
        predictions: label names per row, ragged.
        references: label names per row, as many as predicted.

    Returns:
        `(rows, 3 * labels)` in float64: right, predicted and true for each label in alphabetical order.

    Raises:
        DataError: a label is not text.

    Example:
        >>> label_counts([["a", "b"]], [["a", "a"]])
        array([[1., 0., 1., 1., 2., 0.]])
    """
    rows = len(references)
    for name in chain.from_iterable(chain(predictions, references)):
        if not isinstance(name, str):
            raise DataError(f"{name!r} is not a label name", mend="give labels as text")
    names = sorted(set(chain.from_iterable(chain(predictions, references))))
    codes = {name: code for code, name in enumerate(names)}
    predicted = np.array([codes[name] for row in predictions for name in row], dtype=np.int64)
    true = np.array([codes[name] for row in references for name in row], dtype=np.int64)
    # Cells of the flattened result: three runs of labels a row.
    start = np.repeat(np.arange(rows), [len(row) for row in references]) * 3 * len(names)
    cells = np.concatenate((start + true, start + len(names) + predicted, start + 2 * len(names) + true))
    counted = np.concatenate((predicted == true, np.ones(2 * len(true))))
    return np.bincount(cells, counted, minlength=rows * 3 * len(names)).reshape(rows, 3 * len(names))


def label_flags(rows: Sequence[Any], side: str, allowed: tuple[int, ...]) -> np.ndarray:
    """Return rows of numbers as one array `(rows, labels)`.

    Raises:
        DataError: the rows differ in length, or hold a number that is not allowed; names the side and the row.

    Example:
        >>> label_flags([[0, 1], [1, -1]], "references", (0, 1, -1)).shape
        (2, 2)
    """
    try:
        flags = np.array(rows)
    except ValueError:
        flags = np.array(None)
    if flags.ndim != 2:
        raise DataError("the rows are not lists of equal length", where=side, mend="give one number per label")
    wrong = ~np.isin(flags, allowed)
    if wrong.any():
        index = int(np.argwhere(wrong)[0, 0])
        raise DataError(f"{flags[wrong][0]} in a row", where=f"{side}[{index}]", mend=f"use {one_of(allowed)}")
    return flags


# ---------------------------------------------------------------------- counts to scores


def per_label(sums: np.ndarray, count: int) -> np.ndarray:
    """Part sums `(resamples, count * labels)` into `(count, resamples, labels)`."""
    return np.moveaxis(sums.reshape(len(sums), count, sums.shape[1] // count), 1, 0)


def ratio(numerator: np.ndarray, denominator: np.ndarray, *, empty: float = 0.0) -> np.ndarray:
    """Divide, with `empty` wherever the denominator is 0.

    Example:
        >>> ratio(np.array([1.0, 1.0]), np.array([2.0, 0.0]))
        array([0.5, 0. ])
    """
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), empty)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)


def mean_f1(right: np.ndarray, predicted: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted mean of the labels' F1, NaN where all weights are 0; every argument is `(resamples, labels)`.

    Example:
        >>> mean_f1(np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]]), np.array([[1.0, 1.0]]), np.ones((1, 2)))
        array([0.5])
    """
    f1 = ratio(2 * right, predicted + true)
    return ratio((f1 * weights).sum(axis=1), weights.sum(axis=1), empty=math.nan)


def average_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rank numbers of which each occurs as often as its weight says; ties share the mean of their ranks.

    Args:
        values: `(rows,)`.
        weights: whole numbers, `(resamples, rows)`.

    Returns:
        The rank of every row in every resample, `(resamples, rows)`; without meaning where a weight is 0.

    Example:
        >>> average_ranks(np.array([5.0, 1.0, 5.0]), np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 0.0]]))
        array([[2.5, 1. , 2.5], [2.5, 1. , 2.5]])
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(values))))
    sizes = np.add.reduceat(weights[:, order], first, axis=1)  # (resamples, distinct values)
    ranks = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
    return ranks[:, group]


def correlation(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted Pearson correlation per resample, NaN where one side does not vary.

    Args:
        first: `(rows,)` or `(resamples, rows)`.
        second: like `first`.
        weights: `(resamples, rows)`.

    Returns:
        `(resamples,)`, within [-1, 1].

    Example:
        >>> correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]), np.ones((1, 3)))
        array([1.])
    """
    count = weights.sum(axis=1, keepdims=True)
    first = first - (weights * first).sum(axis=1, keepdims=True) / count
    second = second - (weights * second).sum(axis=1, keepdims=True) / count
    weighted = weights * first
    spread = np.sqrt((weighted * first).sum(axis=1)) * np.sqrt((weights * second**2).sum(axis=1))
    return np.clip(ratio((weighted * second).sum(axis=1), spread, empty=math.nan), -1.0, 1.0)
