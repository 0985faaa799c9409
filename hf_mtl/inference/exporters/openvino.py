"""All tasks as one graph of OpenVINO, run by it."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.inference.exporters._graph import (
    calibration_batches,
    check_difference,
    difference,
    quiet,
    required,
    save_beside,
    write_onnx,
)
from hf_mtl.inference.exporters.base import Exported, Graph, GraphExporter, Quantization
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.precision import best_precision
from hf_mtl.registry import EXPORTERS

EXTRA = "openvino"
PRECISIONS = {"fp32": "f32", "float32": "f32", "bf16": "bf16", "bfloat16": "bf16"}
"""Names of dtypes here, and what OpenVINO calls them."""
GROUP_SIZE = 64
"""Numbers that share a scale where inputs are rounded as they come."""


@EXPORTERS.register("openvino")
class OpenVinoExporter(GraphExporter):
    """One graph with an output per task, for [OpenVINO](https://docs.openvino.ai), in bf16 where the CPU is fast in it.

    int8 has two forms, both of NNCF (https://github.com/openvinotoolkit/nncf):

    - with rows of training data: weights and their inputs in 8 bits, the ranges of inputs measured on the rows, after
      large channels of inputs were scaled into the weights (Xiao et al. 2023, "SmoothQuant",
      https://arxiv.org/abs/2211.10438). The fastest.
    - without: weights in 8 bits, and their inputs rounded as they come.
    """

    files = ("openvino_model.xml", "openvino_model.bin")
    quantizations = ("int8",)
    calibrates = True

    @classmethod
    def export(
        cls,
        model: MultiTaskModel,
        tokenizer: Any,
        specs: Sequence[TaskSpec],
        folder: Path,
        *,
        quantization: Quantization | None = None,
    ) -> Exported:
        runtime = _openvino()
        if quantization is not None:
            _nncf()
        path, source = folder / cls.files[0], folder / "model.onnx"
        write_onnx(model, specs, source, extra=EXTRA)
        with quiet():
            graph = runtime.convert_model(source)
        runtime.save_model(graph, path, compress_to_fp16=False)
        found = difference(cls.open(path, dtype="fp32"), model, specs)
        check_difference(found)
        quantized = None
        if quantization is not None:
            batches = calibration_batches(model, tokenizer, specs, quantization.rows)
            runtime.save_model(_quantize(graph, batches), path, compress_to_fp16=False)
            quantized = difference(cls.open(path), model, specs)
        source.unlink()
        kind = None if quantization is None else quantization.kind
        save_beside(model, tokenizer, specs, folder, format="openvino", quantize=kind)
        return Exported("OpenVINO graph" + (f" in {kind}" if kind else ""), found, quantized)

    @classmethod
    def open(cls, path: Path, *, dtype: str | None = None) -> Graph:
        dtype = dtype or best_precision("cpu")
        if dtype not in PRECISIONS:
            raise SpecError(f"dtype is {dtype!r}, which OpenVINO does not compute in here", mend="use 'fp32' or 'bf16'")
        runtime = _openvino()
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, with all threads
            "ENABLE_CPU_PINNING": False,  # two processes would share one core, and leave others idle
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP_SIZE,
        }
        try:
            compiled = runtime.compile_model(path, "CPU", options)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"OpenVINO cannot load it ({reason})", where=path.name) from error
        request = compiled.create_infer_request()

        def run(inputs: Mapping[str, np.ndarray], tasks: Sequence[str]) -> dict[str, np.ndarray]:
            found = request.infer(dict(inputs), share_inputs=True)
            return {task: found[task] for task in tasks}

        return Graph(tuple(given.any_name for given in compiled.inputs), run)


def _quantize(graph: Any, batches: Sequence[Mapping[str, np.ndarray]]) -> Any:
    """Return a graph whose products have 8 bits."""
    nncf = _nncf()
    with quiet():
        if not batches:
            return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
        return nncf.quantize(
            graph,
            nncf.Dataset(list(batches)),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,  # inputs are seldom symmetric around zero, weights are
            subset_size=len(batches),
        )


def _openvino() -> Any:
    with _unreported():
        return required("openvino", extra=EXTRA)


def _nncf() -> Any:
    logger_class = logging.getLoggerClass()
    try:
        with _unreported():
            nncf = required("nncf", extra=EXTRA)
    finally:
        logging.setLoggerClass(logger_class)  # on import NNCF makes every logger of the process one of its own
    # Not `nncf.set_log_level`, which sets the level of whatever handlers other software has put on the logger.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


@contextmanager
def _unreported() -> Generator[None]:
    """Keep OpenVINO from reporting its use over the network, which it does on import unless it takes itself for CI."""
    before = {name: os.environ.get(name) for name in ("CI", "NNCF_CI")}
    os.environ |= dict.fromkeys(before, "true")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
