"""All tasks as one ONNX graph, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.inference.exporters._graph import check_difference, difference, quiet, required, save_beside, write_onnx
from hf_mtl.inference.exporters.base import Exported, Graph, GraphExporter, Quantization
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import EXPORTERS

EXTRA = "onnx"


@EXPORTERS.register("onnx")
class OnnxExporter(GraphExporter):
    """One graph with an output per task, for [ONNX Runtime](https://onnxruntime.ai) and whatever else reads ONNX.

    int8 is dynamic quantization: weights are stored in 8 bits with a scale per column, `w = s_w q_w`, and the inputs of
    each product are rounded to 8 bits as they come, over their own range, so that no data is needed.
    """

    files = ("model.onnx",)
    quantizations = ("int8",)

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
        required("onnxruntime", extra=EXTRA)
        path = folder / cls.files[0]
        write_onnx(model, specs, path, extra=EXTRA)
        found = difference(cls.open(path), model, specs)
        check_difference(found)
        kind = None if quantization is None else quantization.kind
        if kind is not None:
            _quantize(path)
        save_beside(model, tokenizer, specs, folder, format="onnx", quantize=kind)
        quantized = None if kind is None else difference(cls.open(path), model, specs)
        return Exported("ONNX graph" + (f" in {kind}" if kind else ""), found, quantized)

    @classmethod
    def open(cls, path: Path, *, dtype: str | None = None) -> Graph:
        if dtype not in (None, "fp32", "float32"):
            raise SpecError(f"dtype is {dtype!r}, and ONNX Runtime computes in fp32", mend="leave dtype out")
        runtime = required("onnxruntime", extra=EXTRA)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors alone
        try:
            session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no base of their own
            raise ModelError(f"ONNX Runtime cannot load it ({_first_line(error)})", where=path.name) from error

        def run(inputs: Mapping[str, np.ndarray], tasks: Sequence[str]) -> dict[str, np.ndarray]:
            return dict(zip(tasks, session.run(list(tasks), dict(inputs)), strict=True))

        return Graph(tuple(given.name for given in session.get_inputs()), run)


def _quantize(path: Path) -> None:
    """Replace a graph by one whose products have 8 bits."""
    required("onnxruntime.quantization", extra=EXTRA)
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, quantized = (path.with_name(f"{name}.onnx") for name in ("prepared", "quantized"))
    with quiet():
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        # A scale per column, as columns differ in range. 7 bits for weights (`reduce_range`) are of use to processors
        # without VNNI alone, where sums of products can overflow.
        quantize_dynamic(
            prepared,
            quantized,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    quantized.replace(path)
    prepared.unlink()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
