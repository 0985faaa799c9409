"""What is drawn of attention: the encoder's weights, each task's part in them, queries and keys, attention pooling."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_mtl.errors import ModelError
from hf_mtl.explain.eager import eager_attention
from hf_mtl.explain.subject import Forward, Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target, Wanted

PROJECTIONS = (("query", "key"), ("q_lin", "k_lin"), ("q_proj", "k_proj"), ("q", "k"))
"""Names of the modules that make queries and keys, in the architectures of transformers."""

SAME, SAME_IN_HALF = 1e-3, 2e-2
"""By how much attention that is made again from queries and keys may differ from the model's own; in half precision."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionWeights:
    """Attention of one pass over one text.

    Args:
        attention: the encoder's weights, `(num_layers, num_heads, num_tokens, num_tokens)`.
        by_task: per task attention times gradient, in that shape, the largest of them in size 1.
        targets: per task what the gradient is of.
        pooling: per task with attention pooling its weights, `(num_tokens,)`.
        queries: `(num_layers, num_heads, num_tokens, head_size)`, where asked for.
        keys: in the same shape.
        bidirectional: whether a token attends to those after it.
    """

    attention: np.ndarray
    by_task: Mapping[str, np.ndarray]
    targets: Mapping[str, Target]
    pooling: Mapping[str, np.ndarray]
    queries: np.ndarray | None = None
    keys: np.ndarray | None = None
    bidirectional: bool = True


def attention_weights(
    subject: Subject, text: ExplainedText, wanted: Mapping[str, Wanted], *, neurons: bool = False
) -> AttentionWeights:
    """Run the model on a text with eager attention, and take in the weights.

    Args:
        subject: the model.
        text: the text.
        wanted: the tasks whose part is measured, and what of them is explained.
        neurons: whether queries and keys are wanted.

    Raises:
        ModelError: the model returns no attention, or the answer of a task does not go through what it returns, or
            attention is not made of queries and keys alone.
        SpecError: a target names a label or words that there are not.
    """
    tasks = [spec.name for spec in subject.model.specs if not subject.head(spec.name).masks_tokens]
    with eager_attention(subject.model), _projections(subject.model.encoder) as projected:
        forward = subject.forward(text, tasks, gradients=bool(wanted), output_attentions=True)
        layers = _layers(subject, forward)
        targets = {task: subject.target(text, forward, task, asked) for task, asked in wanted.items()}
        by_task = {
            task: _by_gradient(subject, task, layers, subject.score(text, target, task, forward).sum())
            for task, target in targets.items()
        }
    tokens = len(text.input_ids)
    attention = _stack(layers)
    queries, keys, bidirectional = None, None, True
    if neurons:
        queries, keys, bidirectional = _queries_and_keys(subject, projected, attention)
    pooling = forward.output.task_attentions or {}
    return AttentionWeights(
        attention=attention[..., :tokens, :tokens],
        by_task={task: values[..., :tokens, :tokens] for task, values in by_task.items()},
        targets=targets,
        pooling={task: _numpy(weights[0, :tokens]) for task, weights in pooling.items()},
        queries=None if queries is None else queries[..., :tokens, :],
        keys=None if keys is None else keys[..., :tokens, :],
        bidirectional=bidirectional,
    )


def _layers(subject: Subject, forward: Forward) -> list[Tensor]:
    """Return the attention of each layer, `(1, num_heads, num_tokens or more, num_tokens or more)`."""
    layers: list[Any] = list(forward.output.attentions or ())
    # Longformer's are of a token to its neighbours; architectures without attention give nothing, or `None`.
    shapes = {tuple(layer.shape) if isinstance(layer, Tensor) else () for layer in layers}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 4 or shape[2] != shape[3]:
        raise ModelError(
            f"encoders of type {_type(subject)!r} return no attention of every token to every token",
            mend="use an encoder with full attention, or explain the text with Explainer.explain",
        )
    return layers


def _by_gradient(subject: Subject, task: str, layers: Sequence[Tensor], score: Tensor) -> np.ndarray:
    gradients: Any = torch.autograd.grad(score, layers, retain_graph=True, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise ModelError(
            f"the answer does not go through the attention that encoders of type {_type(subject)!r} return",
            where=f"task {task!r}",
            mend="leave tasks out",
        )
    products = [
        torch.zeros_like(layer) if gradient is None else layer * gradient
        for layer, gradient in zip(layers, gradients, strict=True)
    ]
    values = _stack(products)
    largest = float(np.abs(values).max(initial=0.0))
    return values / largest if largest > 0 else values


@contextmanager
def _projections(encoder: nn.Module) -> Generator[list[tuple[str, Tensor]]]:
    """Catch what the modules that make queries and keys return, in the order of the layers."""
    names = {name for pair in PROJECTIONS for name in pair}
    caught: list[tuple[str, Tensor]] = []

    def hook(name: str) -> Any:
        def catch(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                caught.append((name, output.detach()))

        return catch

    handles = [
        module.register_forward_hook(hook(path.rpartition(".")[2]))
        for path, module in encoder.named_modules()
        if path.rpartition(".")[2] in names
    ]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _queries_and_keys(
    subject: Subject, caught: Sequence[tuple[str, Tensor]], attention: np.ndarray
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return queries, keys and whether attention is bidirectional, if `softmax(q k^T / sqrt(head_size))` is attention.

    What is named alike may be something else, and positions or scales may come in later; so it is made again.
    """
    num_layers, num_heads, length, _ = attention.shape
    same = SAME if subject.model.dtype in (torch.float32, torch.float64) else SAME_IN_HALF
    for name_of_queries, name_of_keys in PROJECTIONS:
        queries = [values for name, values in caught if name == name_of_queries]
        keys = [values for name, values in caught if name == name_of_keys]
        if not len(queries) == len(keys) == num_layers:
            continue
        if {values.shape[:2] for values in (*queries, *keys)} != {(1, length)}:
            continue
        if len({values.shape[2] for values in (*queries, *keys)}) > 1 or queries[0].shape[2] % num_heads:
            continue
        q, k = (_by_head(values, num_heads) for values in (queries, keys))
        for bidirectional in (True, False):
            if np.abs(_softmax_of_products(q, k, bidirectional) - attention).max() < same:
                return q, k, bidirectional
    raise ModelError(
        f"the attention of encoders of type {_type(subject)!r} is not the softmax of queries times keys alone",
        mend="use the head or the model view; the neuron view can show BERT, RoBERTa, ELECTRA and DistilBERT",
    )


def _by_head(layers: Sequence[Tensor], num_heads: int) -> np.ndarray:
    stacked = np.concatenate([_numpy(layer) for layer in layers])  # (num_layers, num_tokens, num_heads * head_size)
    return stacked.reshape(*stacked.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)


def _softmax_of_products(queries: np.ndarray, keys: np.ndarray, bidirectional: bool) -> np.ndarray:
    products = queries @ keys.swapaxes(-1, -2) / np.sqrt(queries.shape[-1])
    if not bidirectional:
        products = np.where(np.tri(products.shape[-1], dtype=bool), products, -np.inf)
    exponentials = np.exp(products - products.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _stack(layers: Sequence[Tensor]) -> np.ndarray:
    return np.concatenate([_numpy(layer) for layer in layers])


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()


def _type(subject: Subject) -> str:
    return str(subject.model.encoder.config.model_type)
