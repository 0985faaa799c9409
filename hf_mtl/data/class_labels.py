"""Columns of class labels: `datasets` stores positions in a list of names, everything after reading sees names."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets.table import InMemoryTable

from hf_mtl.errors import DataError

CLASS_LABELS_VERSION = 1
"""Part of the fingerprint of named columns: raise it when the same column gets other values."""

pc: Any = pyarrow.compute  # its functions are made at import, so type checkers do not know them


def name_class_labels(dataset: datasets.Dataset, *, where: str) -> tuple[datasets.Dataset, dict[str, tuple[str, ...]]]:
    """Write class labels by name; -1, as hidden test labels are written, becomes `None`.

    Args:
        dataset: rows with columns of `ClassLabel`, or of lists of it, as tags are; other columns stay.
        where: what to call the dataset in errors.

    Returns:
        The rows, and for each of those columns its class names in their order. Classes named by their own numbers
        (0, 1, 2) stay numbers, so that a task may still name them by position.

    Raises:
        DataError: a class number has no name.

    Example:
        >>> features = datasets.Features({"label": datasets.ClassLabel(names=["neutral", "good"])})
        >>> rows = datasets.Dataset.from_dict({"label": [1, 0, -1]}, features=features)
        >>> rows, classes = name_class_labels(rows, where="example")
        >>> rows["label"][:], classes
        (['good', 'neutral', None], {'label': ('neutral', 'good')})
    """
    found = {name: label for name, kind in dataset.features.items() if (label := _class_label(kind)) is not None}
    if not found:
        return dataset, {}
    if dataset._indices is not None:  # pyright: ignore[reportPrivateUsage]
        dataset = dataset.flatten_indices(keep_in_memory=True)
    # `Dataset.data` is a wrapper; the plain table below keeps the other columns memory-mapped.
    table: pa.Table = dataset.data.table
    features = dataset.features.copy()
    for name, label in found.items():
        names = tuple(label.names)
        try:
            chunks = [_named(chunk, names) for chunk in table.column(name).chunks]
        except pa.ArrowIndexError as error:
            raise DataError(
                f"column {name!r} holds a class that has no name; it names {len(names)}",
                where=where,
                mend="correct the data, or save it with all class names",
            ) from error
        features[name] = _named_feature(features[name], numbers=_are_numbers(names))
        table = table.set_column(table.column_names.index(name), name, pa.chunked_array(chunks))
    table = table.cast(features.arrow_schema)
    fingerprint = f"{dataset._fingerprint} {CLASS_LABELS_VERSION}"  # pyright: ignore[reportPrivateUsage]
    named = datasets.Dataset(
        InMemoryTable(table), split=dataset.split, fingerprint=hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
    )
    return named, {name: tuple(label.names) for name, label in found.items()}


def _class_label(feature: Any) -> datasets.ClassLabel | None:
    """Return the class label that a column holds, perhaps in lists."""
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature = cast(Any, feature).feature
    return feature if isinstance(feature, datasets.ClassLabel) and feature.names else None


def _named_feature(feature: Any, *, numbers: bool) -> Any:
    if isinstance(feature, datasets.List | datasets.LargeList):
        return datasets.List(_named_feature(cast(Any, feature).feature, numbers=numbers))
    return datasets.Value("int64" if numbers else "string")


def _named(column: Any, names: tuple[str, ...]) -> Any:
    """Return an array of class numbers, or of lists of them, as names."""
    if pa.types.is_integer(column.type):
        values = pa.array(range(len(names)) if _are_numbers(names) else names)
        return values.take(pc.if_else(pc.less(column, 0), None, column))
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0)).astype(np.int32)
    offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
    return pa.ListArray.from_arrays(pa.array(offsets), _named(column.flatten(), names), mask=column.is_null())


def _are_numbers(names: tuple[str, ...]) -> bool:
    return names == tuple(map(str, range(len(names))))
