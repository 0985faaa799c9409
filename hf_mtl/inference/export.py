"""A trained model written for other software."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from hf_mtl.configuration import TaskSpec, select_tasks
from hf_mtl.data.encoded import EncodedSplit
from hf_mtl.data.encoding import Inputs
from hf_mtl.data.masking import select_unmasked
from hf_mtl.errors import HfMtlError, ModelError, OutputError, SpecError, one_of
from hf_mtl.inference.exported import ExportedModel
from hf_mtl.inference.exporters.base import Exported, Quantization
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import EXPORTERS

logger = logging.getLogger(__name__)


def export_model(
    model: MultiTaskModel,
    tokenizer: Any,
    folder: str | Path,
    *,
    format: str = "transformers",
    tasks: Sequence[str] | None = None,
    quantize: str | None = None,
    calibration: Sequence[Inputs] = (),
) -> Exported:
    """Write a model in another format, whole or not at all.

    Args:
        model: the model, which stays as it is.
        tokenizer: its tokenizer.
        folder: where to write; a folder that is not there yet, or empty.
        format: `"transformers"`: one task as a stock model of transformers with its tokenizer, which needs nothing of
            this package. `"onnx"` and `"openvino"`: all tasks as one graph, which `load_model` reads back.
        tasks: the tasks to export; all that can be where not given, see `exported_tasks`.
        quantize: `"int8"`: graphs whose products have 8 bits, faster and a little less exact.
        calibration: some hundred rows of training data, over which OpenVINO's int8 measures the range of numbers; it is
            slower without. ONNX needs none.

    Returns:
        What was written, and how near its logits are to the model's.

    Raises:
        MissingExtraError: software that the format needs is not installed.
        SpecError: there is no such format or task, or the format takes another number of tasks or no such `quantize`.
        ModelError: the format cannot express a task or the architecture.
        OutputError: the folder holds something, or cannot be written.
    """
    check_quantize(format, quantize)
    if isinstance(cast(object, model), ExportedModel):
        raise ModelError("it is an exported graph", mend="export the model that it was made from")
    exporter = EXPORTERS.get(format)
    quantization = Quantization(quantize, calibration) if quantize is not None else None
    specs = exported_tasks(model, tasks)
    place = Path(folder)
    check_empty(place)
    with _filling(place) as temporary:
        return exporter.export(model, tokenizer, specs, temporary, quantization=quantization)


def exported_tasks(model: MultiTaskModel, tasks: Sequence[str] | None = None) -> tuple[TaskSpec, ...]:
    """Return the tasks to export: those that mask tokens stay behind, as their logits belong to masks, not to rows.

    Args:
        model: the model.
        tasks: the tasks that are wanted; all others where not given.

    Raises:
        SpecError: there is no such task; or one that is named, or every one, masks tokens.
    """
    specs = select_unmasked(model.specs, tasks, "cannot be exported")
    for spec in select_tasks(model.specs, tasks):
        if spec not in specs:
            logger.warning("task %r is left out: %s cannot be exported", spec.name, spec.type)
    return specs


def check_quantize(format: str, quantize: str | None) -> None:
    """Check that there is a format, and that it knows a kind of quantization; `None` is none.

    Raises:
        SpecError: there is no such format, or it does not know the kind.
    """
    known = EXPORTERS.get(format).quantizations
    if quantize is not None and quantize not in known:
        mend = f"use one of {one_of(known)}" if known else "leave quantize out, or choose another format"
        raise SpecError(f"quantize is {quantize!r}, which the format {format!r} does not know", mend=mend)


def choose_rows(splits: Mapping[str, EncodedSplit], *, count: int = 300, seed: int = 0) -> list[Inputs]:
    """Choose rows of training data to measure the range of numbers on, as many from each dataset.

    Args:
        splits: the training data by dataset.
        count: rows in all, at most.
        seed: seed of the choice.
    """
    rng = np.random.default_rng(seed)
    chosen: list[Inputs] = []
    for split in splits.values():
        size = min(len(split), max(1, count // len(splits)))
        places = set(rng.choice(len(split), size, replace=False).tolist())
        chosen += [inputs for place, inputs in enumerate(split.inputs()) if place in places]
    return chosen


def check_empty(folder: Path) -> None:
    """Check that a folder is not there yet, or is empty.

    Raises:
        OutputError: it is a file, or holds something.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError("it is a file", where=str(folder), mend="name a folder")
    found = next(folder.iterdir(), None) if folder.is_dir() else None
    if found is not None:
        raise OutputError(f"the folder holds {found.name}", where=str(folder), mend="name another folder")


@contextmanager
def _filling(folder: Path) -> Generator[Path]:
    """Give a temporary folder beside a folder, and rename it to the folder when all went well."""
    place = Path(os.path.realpath(folder))
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if place.is_dir():
            place.rmdir()
        temporary.rename(place)
    except OSError as error:
        if isinstance(error, HfMtlError):
            raise
        raise OutputError(str(error.strerror or error), where=str(folder), mend="choose another place") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
