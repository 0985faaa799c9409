"""A model as one graph: traced from torch, written as ONNX, and compared with the model it was made from."""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import logging
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.encoding import Inputs, encode
from hf_mtl.data.formats import shorten
from hf_mtl.data.windows import reading_of
from hf_mtl.errors import MissingExtraError, ModelError, SpecError
from hf_mtl.evaluation.prediction import collator_for, evaluation_mode, length_batches
from hf_mtl.inference.exporters.base import Graph
from hf_mtl.model.encoders.base import max_positions
from hf_mtl.model.lora import merge_and_unload
from hf_mtl.model.modeling import MultiTaskModel

TOLERANCE = 1e-4
"""What logits of a graph may differ in from those of the model, in float32."""
SHAPES = ((1, 1), (1, 9), (5, 2), (4, 33), (2, 128))
"""Rows and tokens of the test inputs."""
ITSELF = "answer with the model itself"
OPSET = 20


def required(package: str, *, extra: str) -> Any:
    """Import an optional package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages about their own dependencies
            return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(package, extra=extra) from error


class _Logits(nn.Module):
    """A model of tensors alone: `(input_ids, attention_mask[, token_type_ids])` to one tensor of logits per task."""

    def __init__(self, model: MultiTaskModel, tasks: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.tasks = list(tasks)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        output = self.model(input_ids, attention_mask, token_type_ids, tasks=self.tasks)
        return tuple(output.logits[task] for task in self.tasks)


def write_onnx(model: MultiTaskModel, specs: Sequence[TaskSpec], path: Path, *, extra: str) -> None:
    """Write a model as an ONNX graph in float32, an output per task named after it; rows and tokens are dynamic.

    Args:
        model: the model, which stays as it is.
        specs: the tasks whose logits the graph gives.
        path: the file to write.
        extra: the extra of hf-mtl that brings what is needed.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        ModelError: the architecture cannot be traced.
        SpecError: a task has the name of an input.
    """
    refuse_token_graphs(specs)
    if not model.adapter.fits_graphs:
        kind = model.config.get_text_config().model_type
        raise ModelError(f"the architecture {kind!r} cannot be written as a graph of any length", mend=ITSELF)
    for package in ("onnx", "onnxscript"):
        required(package, extra=extra)
    from torch.onnx import OnnxExporterError

    names = [spec.name for spec in specs]
    inputs = probe(model, 3, min(7, max_positions(model.config.get_text_config()) or 7))
    for taken in inputs.keys() & set(names):
        mend = "give it another name with MultiTaskModel.rename_task"
        raise SpecError(f"the task {taken!r} has the name of an input of the graph", mend=mend)
    own = _traceable(model)
    axes = {0: "batch_size", 1: "seq_len"}
    try:
        with quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            program = torch.onnx.export(
                _Logits(own, names).eval(),
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                dynamic_shapes=tuple(axes for _ in inputs),
                verbose=False,
            )
            graph = cast(Any, program).model.graph
            _name_outputs(graph, names)
            _forget_sources(graph)
            cast(Any, program).save(path)
    except OnnxExporterError as error:
        raise _untraceable(model, error) from error


def refuse_token_graphs(specs: Sequence[TaskSpec]) -> None:
    """Check that no task reads a graph of tokens, which no other software is given.

    Raises:
        ModelError: one does.
    """
    for spec in specs:
        if spec.token_graph:
            problem = "it passes messages along the dependency graph of a text (token_graph)"
            raise ModelError(problem, where=f"task {spec.name!r}", mend=ITSELF)


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Name the outputs of a graph after their tasks; whatever else has such a name gets another."""
    inner = [*graph.initializers.values(), *(value for node in graph.all_nodes() for value in node.outputs)]
    for value in inner:
        if value.name in names:
            value.name = f"{value.name}.inner"  # no task has a dot in its name
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _forget_sources(graph: Any) -> None:
    """Leave out where in which file of this machine each node was traced, which is half of what a small graph holds."""
    for part in (graph, *graph.all_nodes(), *(value for node in graph.all_nodes() for value in node.outputs)):
        part.metadata_props.clear()


def _untraceable(model: MultiTaskModel, error: Exception) -> ModelError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    kind = model.config.get_text_config().model_type
    problem = f"the architecture {kind!r} cannot be written as a graph ({shorten(reason.rstrip('.'), 160)})"
    return ModelError(problem, mend=ITSELF)


def _traceable(model: MultiTaskModel) -> MultiTaskModel:
    """Return a copy on the CPU in float32 and without adapters, whose attention is made of plain products.

    Those are what the software that runs graphs knows to fuse; torch's own attention is traced with checks for rows
    without any token, which cost time and hide it.
    """
    own = merge_and_unload(copy.deepcopy(model).cpu().float())
    with quiet():
        own.set_attn_implementation("eager")  # where an architecture knows no other it says so
    return own


def probe(model: MultiTaskModel, rows: int, length: int) -> dict[str, Tensor]:
    """Return random token ids `(rows, length)`, the first row full and the others of different lengths.

    Returns:
        The inputs that a graph of the model has.
    """
    config = model.config.get_text_config()
    generator = torch.Generator().manual_seed(rows * length)
    pad = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
    size = int(config.vocab_size)
    ids = torch.randint(0, size, (rows, length), generator=generator)
    ids = torch.where(ids == pad, (pad + 1) % size, ids)
    mask = (torch.arange(length) < torch.linspace(length, 1, rows).long()[:, None]).long()
    inputs = {"input_ids": torch.where(mask == 1, ids, pad), "attention_mask": mask}
    if model.adapter.reads_segments and "token_type_ids" in inspect.signature(model.encoder.forward).parameters:
        # The second text of a pair, where the encoder tells the two apart.
        second = int(getattr(config, "type_vocab_size", 0) > 1)
        inputs["token_type_ids"] = mask * (torch.arange(length) >= length // 2) * second
    return inputs


def difference(graph: Graph, model: MultiTaskModel, specs: Sequence[TaskSpec]) -> float:
    """Return the largest difference between the logits of a graph and those of the model in float32.

    Compared are the logits of rows of several lengths, padded; of token-level tasks those of real tokens.
    """
    names = [spec.name for spec in specs]
    own = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    longest = max_positions(model.config.get_text_config())
    differences = [0.0]
    for rows, length in SHAPES:
        inputs = probe(model, rows, min(length, longest or length))
        with evaluation_mode(own), torch.inference_mode():
            output = own(**{name: values.to(own.device) for name, values in inputs.items()}, tasks=names)
        found = graph.run({name: inputs[name].numpy() for name in graph.inputs}, names)
        mask = inputs["attention_mask"].numpy().astype(bool)
        for name in names:
            wanted = output.logits[name].cpu().numpy()
            real = slice(None) if own.head(name).pooled else mask
            differences.append(float(np.abs(found[name][real] - wanted[real]).max()))
    return float(np.max(differences))  # NaN where one is


def check_difference(found: float) -> None:
    """Check that a graph gives the model's logits.

    Raises:
        ModelError: they differ by more than 1e-4.
    """
    if not found <= TOLERANCE:
        raise ModelError(f"the graph's logits differ by {found:.1e} from the model's", mend=ITSELF)


def save_beside(model: MultiTaskModel, tokenizer: Any, specs: Sequence[TaskSpec], folder: Path, **facts: Any) -> None:
    """Save the configuration and the tokenizer beside a graph.

    Args:
        model: the model that was exported.
        tokenizer: its tokenizer.
        specs: the tasks of the graph.
        folder: the folder of the graph.
        facts: what is needed to load the graph, under `exported` in the configuration.
    """
    config = copy.deepcopy(model.config)
    config.task_specs = specs
    config.peft = None
    config.architectures = None
    config.exported = facts
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def calibration_batches(
    model: MultiTaskModel, tokenizer: Any, specs: Sequence[TaskSpec], rows: Sequence[Inputs], batch_size: int = 8
) -> list[dict[str, np.ndarray]]:
    """Return rows as the inputs of the model's graph, in batches of like length, with hardly any padding."""
    encoded = encode(tokenizer, rows, reading_of(specs, tokenizer))
    features = list(encoded.features())
    lengths = np.array([len(feature["input_ids"]) for feature in features])
    collator = collator_for(model, tokenizer, [spec.name for spec in specs])
    names = list(probe(model, 1, 1))
    batches: list[dict[str, np.ndarray]] = []
    for chosen in length_batches(lengths, batch_size=batch_size, max_tokens=4096):
        batch = collator([features[row] for row in chosen.tolist()])
        segments = {"token_type_ids": torch.zeros_like(batch["input_ids"])}
        batches.append({name: (segments | batch)[name].numpy() for name in names})
    return batches


@contextmanager
def quiet() -> Generator[None]:
    """Keep back what the libraries say and print while they trace and convert: what went wrong is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx", "transformers", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
