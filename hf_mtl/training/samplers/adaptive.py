"""Datasets by how much their tasks can still gain on validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hf_mtl.registry import SAMPLERS
from hf_mtl.training.samplers.base import Sampler, check_number, power_shares


@SAMPLERS.register("adaptive")
class AdaptiveSampler(Sampler):
    """`p_i ~ n_i^(1/T) * gap_i`, where `gap_i` is the mean over the dataset's tasks `t` of `max(r_t - s_t, floor)`.

    `s_t` is the primary metric of the task in the last evaluation, and `r_t` its score when trained alone where that
    is known, else 1. What an evaluation finds takes effect from the next epoch; before the first one
    `p_i ~ n_i^(1/T)`. A task that is not evaluated has the mean gap of those that are.

    Size counts by its square root where `temperature` is not given, so that small datasets have their part before the
    first evaluation, too.

    After the dynamic sampling of Gottumukkala et al. 2020, "Dynamic Sampling Strategies for Multi-Task Reading
    Comprehension", https://aclanthology.org/2020.acl-main.86, who sample by the gap alone.

    Args:
        sizes: number of labelled rows per dataset.
        temperature: `T`, above 0; may be infinite, and size then does not matter.
        floor: least gap of a task, above 0, so that none is forgotten.
        basics: see `Sampler`.

    Example:
        >>> sampler = AdaptiveSampler({"films": 300, "names": 100}, temperature=1)
        >>> sampler.begin(0)
        >>> sampler.observe({"films": 0.9, "names": 0.4})
        >>> sampler.probabilities(0).tolist(), sampler.probabilities(1).round(3).tolist()
        ([0.75, 0.25], [0.333, 0.667])
    """

    follows_scores: ClassVar[bool] = True

    def __init__(
        self, sizes: Mapping[str, int], *, temperature: float = 2.0, floor: float = 0.02, **basics: Any
    ) -> None:
        super().__init__(sizes, **basics)
        self.temperature = check_number("temperature", temperature, above=0.0)
        self.floor = check_number("floor", floor, above=0.0)
        self._epoch = -1
        # The gaps from some epoch on: where rows of an epoch begin depends on the shares of all epochs before it.
        self._gaps: list[tuple[int, list[float]]] = []

    def probabilities(self, epoch: int) -> np.ndarray:
        shares = power_shares(self.sizes, 1.0 / self.temperature)
        gaps = next((gaps for first, gaps in reversed(self._gaps) if first <= epoch), None)
        if gaps is None:
            return shares
        return shares * gaps / (shares * gaps).sum()

    def begin(self, epoch: int) -> None:
        self._epoch = epoch

    def observe(self, scores: Mapping[str, float]) -> None:
        gaps = {
            task: max(self.references.get(task, 1.0) - min(1.0, max(0.0, score)), self.floor)
            for task, score in scores.items()
        }
        mean = sum(gaps.values()) / len(gaps)
        by_dataset = [float(np.mean([gaps.get(task, mean) for task in self.tasks[name]])) for name in self.names]
        self._gaps = [pair for pair in self._gaps if pair[0] <= self._epoch]
        self._gaps.append((self._epoch + 1, by_dataset))

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "gaps": [[first, gaps] for first, gaps in self._gaps]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._epoch = int(state["epoch"])
        self._gaps = [(int(first), [float(gap) for gap in gaps]) for first, gaps in state["gaps"]]
