"""What one optimizer step minimises, exactly, over all its micro-batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.transfer import on_device


@dataclass(frozen=True)
class StepTotals:
    """What an optimizer step's losses are divided by.

    Args:
        items: per task the labelled items (or their class weights), a scalar each.
        shares: per task its labelled rows divided by all rows, a scalar each.
        processes: number of processes, over which gradients are averaged.
    """

    items: dict[str, Tensor]
    shares: dict[str, Tensor]
    processes: int = 1


def step_totals(
    model: MultiTaskModel,
    batches: Sequence[Mapping[str, Any]],
    *,
    device: torch.device,
    processes: int = 1,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> StepTotals:
    """Count an optimizer step's labelled items and rows; nothing waits for the device.

    Args:
        model: the model, for its tasks.
        batches: the step's micro-batches on this process, as the collator makes them.
        device: where the counts are summed over processes.
        processes: number of processes.
        reduce: sums a tensor over all processes.
    """
    names = [spec.name for spec in model.specs]
    places = {name: place for place, name in enumerate(names)}
    found = np.zeros((len(names) + 1, 2), dtype=np.float32)  # per task its items and rows, then all rows
    for batch in batches:
        found[-1, 1] += batch["input_ids"].shape[0]
        for task, rows in batch.get("rows", {}).items():
            found[places[task]] += (batch["items"][task], len(rows))
    counts = on_device(found, dtype=torch.float32, device=device)
    if reduce is not None:
        counts = reduce(counts)
    items, shares = counts[:-1, 0].unbind(), (counts[:-1, 1] / counts[-1, 1].clamp(min=1.0)).unbind()
    return StepTotals(dict(zip(names, items, strict=True)), dict(zip(names, shares, strict=True)), processes)


def loss_parts(losses: Mapping[str, Tensor], batch: Mapping[str, Any], totals: StepTotals) -> dict[str, Tensor]:
    """Return this micro-batch's part of each task's loss: the parts of all micro-batches and processes sum to it.

    A task's loss in a step, `L_t`, is the mean over all its items in the step. A micro-batch knows the mean over its
    own items, so it is weighted with its part of them.

    Args:
        losses: mean loss per task over the micro-batch's labelled items.
        batch: the micro-batch, with its `items`.
        totals: from `step_totals`.
    """
    if not losses:
        return {}
    all_items = torch.stack([totals.items[task] for task in losses]).clamp(min=torch.finfo(torch.float32).tiny)
    items = [batch["items"][task] for task in losses]
    own_items = on_device(items, dtype=all_items.dtype, device=all_items.device)
    return _scaled(losses, own_items / all_items)


def shared_terms(model: MultiTaskModel, parts: Mapping[str, Tensor], totals: StepTotals) -> dict[str, Tensor]:
    """Return the parts of the terms of the step's loss where nothing balances them, `loss_weight_t * share_t * L_t`.

    Args:
        model: the model, for the loss weights.
        parts: from `loss_parts`.
        totals: from `step_totals`.
    """
    if not parts:
        return {}
    weights = {spec.name: spec.loss_weight for spec in model.specs}
    shares = torch.stack([totals.shares[task] for task in parts])
    own = on_device([weights[task] for task in parts], dtype=shares.dtype, device=shares.device)
    return _scaled(parts, shares * own)


def _scaled(losses: Mapping[str, Tensor], factors: Tensor) -> dict[str, Tensor]:
    """Multiply each loss with its factor; one operation a task, and no node that joins the graphs of the tasks."""
    return {task: loss * factor for (task, loss), factor in zip(losses.items(), factors.unbind(), strict=True)}


def step_loss(terms: Mapping[str, Tensor], logits: Mapping[str, Tensor], processes: int) -> Tensor:
    """Return this micro-batch's part of the step's loss, for `backward`.

    Args:
        terms: its part of each term of the step's loss.
        logits: the model's logits, for a graph where no row has a label left, since truncation cut them off.
        processes: number of processes; wrappers average gradients over them, where a sum is wanted.
    """
    return torch.stack([*terms.values()] or [values.sum() * 0.0 for values in logits.values()]).sum() * processes
