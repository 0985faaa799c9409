"""States of a frozen encoder, and a task's head fitted on them: what a layer knows, and what a head would be without
some rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_mtl.configuration import TaskSpec
from hf_mtl.evaluation.prediction import evaluation_mode
from hf_mtl.explain.labelled import LabelledRows
from hf_mtl.model.heads.base import TaskHead
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.pooling import POOLINGS
from hf_mtl.registry import HEADS

STEPS = 200
"""Steps of the optimizer at most, each over all rows."""


@dataclass(frozen=True, eq=False)
class States:
    """What each layer of a frozen encoder makes of some rows, as items that a head labels: rows, or tokens.

    Args:
        layers: states of the embeddings and of each layer, float32 `(num_layers + 1, num_items, hidden_size)`, of
            tokens `(num_layers + 1, num_items, 1, hidden_size)`.
        labels: the items' labels, of tokens `(num_items, 1)`.
        starts: the first item of each row, and after them the number of items, `(num_rows + 1,)`.
    """

    layers: Tensor
    labels: Tensor
    starts: np.ndarray


def standardise(states: Tensor, like: Tensor) -> Tensor:
    """Return states in units of the deviation of others from their mean, dimension by dimension, in float64.

    Args:
        states: `(..., hidden_size)`.
        like: the others, `(num_items, ..., hidden_size)`.
    """
    deviation, mean = torch.std_mean(like.double(), dim=0, correction=0)
    return (states.double() - mean) / deviation.clamp(min=1e-6)


def pooling_of(model: MultiTaskModel, task: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return how the states of a task's rows are pooled; the mean for attention pooling, which has weights to learn."""
    return POOLINGS.get(model.poolings[task], POOLINGS["mean"])


def layer_states(
    model: MultiTaskModel, tokenizer: Any, rows: LabelledRows, *, only_labelled: bool = False, batch_size: int = 64
) -> States:
    """Run the frozen encoder over rows and keep the states of every layer.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        rows: the rows.
        only_labelled: whether tokens without a label are left out.
        batch_size: rows of a batch.

    Returns:
        States pooled as the task pools (the mean, for a task with attention pooling), or those of each token for a
        token-level task.
    """
    head = HEADS.get(rows.spec.type)
    pool = pooling_of(model, rows.spec.name) if head.pooled else None
    layers: list[Tensor] = []
    labels: list[Tensor] = []
    sizes: list[int] = []
    for batch in rows.batches(model, tokenizer, batch_size):
        mask = batch.inputs["attention_mask"]
        with evaluation_mode(model), torch.no_grad():
            output = model(**batch.inputs, tasks=[], output_hidden_states=True)
            states = torch.stack([state if pool is None else pool(state, mask) for state in output.hidden_states or ()])
        if pool is None:
            kept = mask.bool()
            if only_labelled:
                each = batch.labels.reshape(-1, 1)  # every token as a row of its own
                kept = kept & head.labelled_rows(each).view_as(kept)
            layers.append(states[:, kept].unsqueeze(2).float().cpu())
            labels.append(batch.labels[kept].unsqueeze(1).cpu())
            sizes += kept.sum(dim=1).tolist()
        else:
            layers.append(states.float().cpu())
            labels.append(batch.labels.cpu())
            sizes += [1] * len(batch.rows)
    return States(torch.cat(layers, dim=1), torch.cat(labels), np.cumsum([0, *sizes]))


def fit_head(spec: TaskSpec, features: Tensor, labels: Tensor, *, penalty: float = 0.01) -> TaskHead:
    """Fit a task's head on features that do not change: a linear probe for every type of task.

    Minimises `loss + penalty / 2 * |W|^2` from zero, for the head's own mean loss, which is convex, by L-BFGS. For
    classification over `n` rows that is logistic regression with `C = 1 / (n * penalty)`.

    Args:
        spec: the task.
        features: `(items, hidden_size)`, or `(rows, seq_len, hidden_size)` for a token-level head.
        labels: as the head reads them.
        penalty: weight of the penalty.

    Returns:
        The head, in float64 and in evaluation mode.
    """
    # The weights it begins with are not used: nothing is drawn from anybody's generator.
    with torch.random.fork_rng(devices=[]):
        head = HEADS.get(spec.type)(spec, features.shape[-1], dropout=0.0).double().eval()
    parameters = list(head.parameters())
    features = features.double()
    for parameter in parameters:
        torch.nn.init.zeros_(parameter)
    items = float(head.num_items(spec, labels))
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=STEPS, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        matrices = [parameter for parameter in parameters if parameter.dim() > 1]
        loss = head.loss(head(features), labels, items).double()
        loss = loss + penalty / 2 * torch.stack([(matrix**2).sum() for matrix in matrices]).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head.requires_grad_(False)
