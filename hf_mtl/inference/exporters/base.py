"""`Exporter`: how a trained model is written for other software, and `GraphExporter`: how that is read back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.encoding import Inputs
from hf_mtl.model.modeling import MultiTaskModel


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        kind: what it is, such as the name of a class.
        difference: the largest difference between its logits and the model's, over test inputs, in float32.
        quantized_difference: the same after its weights were made smaller; `None` where they were not.
    """

    kind: str
    difference: float
    quantized_difference: float | None = None


@dataclass(frozen=True)
class Quantization:
    """How weights and their inputs are made smaller.

    Args:
        kind: `"int8"`.
        rows: rows of training data that the ranges of numbers are measured on; none where they are found as they come.
    """

    kind: str
    rows: Sequence[Inputs] = ()


class Exporter(ABC):
    """Writes a model in one format; stateless, one subclass per format."""

    quantizations: ClassVar[tuple[str, ...]] = ()
    """The kinds of quantization that the format knows."""

    calibrates: ClassVar[bool] = False
    """Whether quantization makes use of rows of training data."""

    @classmethod
    @abstractmethod
    def export(
        cls,
        model: MultiTaskModel,
        tokenizer: Any,
        specs: Sequence[TaskSpec],
        folder: Path,
        *,
        quantization: Quantization | None = None,
    ) -> Exported:
        """Write a model, and compare the logits of what is written with those of the model.

        Args:
            model: the model, which stays as it is.
            tokenizer: its tokenizer.
            specs: the tasks to export.
            folder: a folder that is there and empty.
            quantization: how weights are made smaller, of a kind that the format knows; not at all where not given.

        Raises:
            HfMtlError: the format cannot express the model.
        """


@dataclass(frozen=True)
class Graph:
    """A graph in the hands of the software that runs it.

    Args:
        inputs: names of its inputs, int64 `(batch_size, seq_len)` each.
        run: takes the inputs by name and the names of tasks, and returns their logits by name, float32.
    """

    inputs: tuple[str, ...]
    run: Callable[[Mapping[str, np.ndarray], Sequence[str]], dict[str, np.ndarray]]


class GraphExporter(Exporter):
    """Writes a graph that this package can answer with, too."""

    files: ClassVar[tuple[str, ...]]
    """Names of the files it writes, beside `config.json` and the tokenizer's; the graph's first."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path, *, dtype: str | None = None) -> Graph:
        """Load a graph, to run on the CPU with as many threads as torch has.

        Args:
            path: the graph; its other files stand beside it.
            dtype: what to compute in, `"fp32"` or `"bf16"`; what is best on this machine where not given.

        Raises:
            MissingExtraError: the software is not installed.
            ModelError: the file does not hold such a graph.
            SpecError: the software does not compute in this dtype.
        """
