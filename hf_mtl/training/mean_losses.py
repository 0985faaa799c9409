"""The mean training loss of each task, for the logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hf_mtl.model.transfer import on_device


class MeanLosses:
    """Adds up losses over batches; nothing waits for the device until the means are asked for.

    Args:
        tasks: names of the tasks.
        device: where the losses are.

    Example:
        >>> losses = MeanLosses(["topic", "stars"], device=torch.device("cpu"))
        >>> losses.add({"topic": torch.tensor(3.0)}, {"topic": 1.0})
        >>> losses.add({"topic": torch.tensor(1.0)}, {"topic": 3.0})
        >>> losses.take()
        {'topic': 1.5}
    """

    def __init__(self, tasks: Sequence[str], *, device: torch.device) -> None:
        self.places = {task: place for place, task in enumerate(tasks)}
        self._sums = torch.zeros(len(self.places), 2, device=device)  # per task the losses of its items, and the items

    def add(self, losses: Mapping[str, Tensor], items: Mapping[str, float]) -> None:
        """Add a batch.

        Args:
            losses: per task its mean loss.
            items: per task the items that this is the mean of.
        """
        if losses:
            device = self._sums.device
            counts = on_device([items[task] for task in losses], dtype=self._sums.dtype, device=device)
            means = torch.stack([*losses.values()]).detach()
            places = on_device([self.places[task] for task in losses], dtype=torch.long, device=device)
            self._sums.index_add_(0, places, torch.stack([means * counts, counts], dim=1))

    def take(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Return the mean over the items since the last call, of the tasks that have any.

        Args:
            reduce: sums a tensor over all processes; not given where there is one.
        """
        sums = self._sums if reduce is None else reduce(self._sums)
        self._sums = torch.zeros_like(self._sums)
        pairs = zip(self.places, sums.tolist(), strict=True)
        return {task: total / items for task, (total, items) in pairs if items}
