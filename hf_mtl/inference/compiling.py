"""`torch.compile` with few graphs: rows are padded to one of a few lengths, and a graph serves any number of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_mtl.data.collator import MultiTaskCollator
from hf_mtl.errors import SpecError

STEP = 16
"""Tokens between the shortest lengths."""
MAX_GRAPHS = 64
"""Twice those of 65,536 tokens: rows with and without a second text, and a row alone, have graphs of their own."""


def bucket(length: int, max_length: int) -> int:
    """Return the length to pad to: a multiple of 16 up to 64, then of a half of the power of two below it.

    There are 4 lengths up to 64, and 2 for each power of two above it: 10 for 512 tokens.

    Args:
        length: tokens of the longest row.
        max_length: the most that the encoder reads.

    Example:
        >>> sorted({bucket(length, 512) for length in range(1, 513)})
        [16, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    """
    step = max(STEP, 1 << max(0, (length - 1).bit_length() - 2))
    return max(length, min(-(-length // step) * step, max_length))


def padded_collator(
    collator: MultiTaskCollator, features: Sequence[Mapping[str, Any]], rows: np.ndarray, max_length: int
) -> MultiTaskCollator:
    """Return a collator that pads these rows to the length of their bucket."""
    longest = max(len(features[row]["input_ids"]) for row in rows.tolist())
    return replace(collator, pad_to_multiple_of=bucket(longest, max_length))


def compiled(model: Any) -> Any:
    """Return a model's forward pass, compiled for each length that it meets and any number of rows.

    Raises:
        SpecError: it is an exported graph.
    """
    if not isinstance(model, torch.nn.Module):
        raise SpecError("compile is True, and the model is a graph already", mend="leave compile out")
    return _Compiled(model)


class _Compiled:
    """Calls the compiled model with inputs whose number of rows is marked as free."""

    def __init__(self, model: Any) -> None:
        self.device = model.device
        self._forward = torch.compile(model, dynamic=False)

    def __call__(self, *, tasks: Sequence[str] | None = None, **inputs: Tensor) -> Any:
        for value in inputs.values():
            # One row is a graph of its own for the compiler.
            if len(value) > 1:
                torch._dynamo.mark_dynamic(value, 0)  # pyright: ignore[reportPrivateUsage]
        # torch gives up compiling after 8 graphs if nobody tells it that there will be more, and no end of them.
        with torch._dynamo.config.patch(recompile_limit=MAX_GRAPHS):  # pyright: ignore[reportPrivateUsage]
            return self._forward(**inputs, tasks=tasks)
