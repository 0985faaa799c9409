"""What one optimizer step minimises, exactly, over all its micro-batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_mtl.model.modeling import MultiTaskModel


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
        model: the model, for its heads.
        batches: the step's micro-batches on this process.
        device: where the counts are summed over processes.
        processes: number of processes.
        reduce: sums a tensor over all processes.
    """
    names = [spec.name for spec in model.specs]
    counts = torch.zeros(len(names) + 1, 2, device=device)  # per task its items and rows, then all rows
    for batch in batches:
        counts[-1, 1] += batch["input_ids"].shape[0]
        for task, rows in batch.get("rows", {}).items():
            counts[names.index(task), 0] += model.head(task).num_items(batch["labels"][task][rows])
            counts[names.index(task), 1] += len(rows)
    if reduce is not None:
        counts = reduce(counts)
    shares = counts[:-1, 1] / counts[-1, 1].clamp(min=1.0)
    return StepTotals(dict(zip(names, counts[:-1, 0], strict=True)), dict(zip(names, shares, strict=True)), processes)


def step_loss(
    model: MultiTaskModel, losses: Mapping[str, Tensor], batch: Mapping[str, Any], totals: StepTotals
) -> Tensor:
    """Return this micro-batch's part of the step's loss: the parts of all micro-batches and processes sum to it.

    The step's loss is `sum_t loss_weight_t * share_t * L_t`, where `L_t` is the mean over all items of the task in the
    step. A micro-batch knows the mean over its own items, so each is weighted with its part of them.

    Args:
        model: the model.
        losses: mean loss per task over the micro-batch's labelled items.
        batch: the micro-batch, with `labels` and `rows`.
        totals: from `step_totals`.
    """
    tiny = torch.finfo(torch.float32).tiny
    parts: dict[str, Tensor] = {}
    for task, loss in losses.items():
        items = model.head(task).num_items(batch["labels"][task][batch["rows"][task]])
        parts[task] = loss * items / totals.items[task].clamp(min=tiny)
    # DDP averages gradients over the processes, where a sum is wanted.
    return model.total_loss(parts, totals.shares) * totals.processes
