"""Influence of training rows by their gradients, on the weights where these are cheap: head and word embeddings."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_mtl.evaluation.prediction import evaluation_mode
from hf_mtl.explain.labelled import LabelledRows, TaskBatch, items_by_row
from hf_mtl.explain.subject import Subject, embeddings_of
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.heads.base import TaskHead
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.targets import Target


@dataclass(frozen=True, eq=False)
class Pull:
    """The gradient of a target's score on the weights that are looked at.

    Args:
        head: on each of the head's parameters.
        tokens: on the embedding of each token of the vocabulary that the text has: row of `embeddings`, else the last.
        embeddings: `(distinct tokens + 1, embedding_size)`, the last row being zero.
    """

    head: list[Tensor]
    tokens: Tensor
    embeddings: Tensor

    @classmethod
    def of(cls, subject: Subject, text: ExplainedText, target: Target, task: str) -> Pull:
        """Take the gradient of a target's score for one text."""
        head = subject.model.head(task)
        with trainable(head):
            forward = subject.forward(text, [task], gradients=True)
            score = subject.score(text, target, task, forward).sum()
            parameters = list(head.parameters())
            assert forward.embeddings is not None
            gradients = torch.autograd.grad(score, [*parameters, forward.embeddings], materialize_grads=True)
        ids, place = torch.unique(torch.from_numpy(text.input_ids).to(gradients[-1].device), return_inverse=True)
        embeddings = gradients[-1].new_zeros(len(ids) + 1, gradients[-1].shape[-1])
        embeddings.index_add_(0, place, gradients[-1][0, : len(text.input_ids)])
        tokens = torch.full((int(_vocabulary(subject.model)),), len(ids), device=ids.device)
        tokens[ids] = torch.arange(len(ids), device=ids.device)
        return cls(list(gradients[:-1]), tokens, embeddings)

    @property
    def size(self) -> float:
        """The length of the gradient."""
        squares = [float((part.double() ** 2).sum()) for part in (*self.head, self.embeddings)]
        return math.sqrt(sum(squares))


def influences(
    model: MultiTaskModel,
    tokenizer: Any,
    rows: LabelledRows,
    pull: Pull,
    *,
    similarity: str = "dot",
    batch_size: int = 32,
) -> np.ndarray:
    """Return the influence of each row, `(num_rows,)`: see `influence`."""
    task = rows.spec.name
    head = model.head(task)
    found = np.zeros(len(rows))
    for batch in rows.batches(model, tokenizer, batch_size):
        features, gradient, items = _row_gradients(model, task, batch)
        products = torch.zeros(len(batch.rows), dtype=torch.float64)
        squares = torch.zeros_like(products)
        for row in range(len(batch.rows)):
            own = _head_gradient(head, features[row : row + 1], batch.labels[row : row + 1], items[row])
            products[row] = sum(float((a.double() * b.double()).sum()) for a, b in zip(own, pull.head, strict=True))
            squares[row] = sum(float((a.double() ** 2).sum()) for a in own)
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].unsqueeze(-1)
        gradient = gradient * mask
        products += (gradient * pull.embeddings[pull.tokens[ids]]).double().sum(dim=(1, 2)).cpu()
        if similarity == "cosine":
            squares += _token_squares(ids, gradient)
            products /= (squares.sqrt() * pull.size).clamp(min=1e-30)
        found[batch.rows] = -products.numpy()
    return found


def _row_gradients(model: MultiTaskModel, task: str, batch: TaskBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the head reads of each row, the gradient of each row's mean loss on its token embeddings, and what
    that mean is divided by."""
    seen: list[Tensor] = []
    head = model.head(task)
    handle = head.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    items = items_by_row(model, task, batch.labels)
    try:
        with evaluation_mode(model), torch.enable_grad(), embeddings_of(model) as embeddings:
            logits = (model(**batch.inputs, tasks=[task]).logits or {})[task]
            losses = [
                head.loss_sum(logits[row : row + 1], batch.labels[row : row + 1]) / items[row]
                for row in range(len(logits))
            ]
            # Rows do not meet: the gradient of the sum on a row's own embeddings is that of its own loss.
            (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), embeddings[0])
    finally:
        handle.remove()
    return seen[0], gradient, items


def _head_gradient(head: TaskHead, features: Tensor, labels: Tensor, items: Tensor) -> list[Tensor]:
    parameters = list(head.parameters())
    with trainable(head), torch.enable_grad():
        return list(
            torch.autograd.grad(head.loss_sum(head(features), labels) / items, parameters, materialize_grads=True)
        )


def _token_squares(ids: Tensor, gradient: Tensor) -> Tensor:
    """Return the squared length of each row's gradient on the embedding matrix, tokens that come twice added up."""
    found: list[float] = []
    for own, values in zip(ids, gradient, strict=True):
        distinct, place = torch.unique(own, return_inverse=True)
        summed = values.new_zeros(len(distinct), values.shape[-1]).index_add_(0, place, values)
        found.append(float((summed.double() ** 2).sum()))
    return torch.tensor(found, dtype=torch.float64)


@contextmanager
def trainable(head: TaskHead) -> Generator[None]:
    """Let a head's parameters have gradients inside the block, even where it is frozen."""
    frozen = [parameter for parameter in head.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _vocabulary(model: MultiTaskModel) -> int:
    weight: Any = model.get_input_embeddings().weight
    return int(weight.shape[0])
