"""Datasets strictly in turn."""

from __future__ import annotations

import numpy as np

from hf_mtl.registry import SAMPLERS
from hf_mtl.training.samplers.base import Sampler


@SAMPLERS.register("round_robin")
class RoundRobinSampler(Sampler):
    """`p_i = 1 / k` for `k` datasets, drawn one after the other in a fixed order: 0, 1, ..., k-1, 0, 1, ...

    The seed says which comes first; an epoch goes on where the last one ended.

    As described in Stickland & Murray 2019, "BERT and PALs: Projected Attention Layers for Efficient Adaptation in
    Multi-Task Learning", section 4.1, https://arxiv.org/abs/1902.02671.

    Example:
        >>> sampler = RoundRobinSampler({"films": 4, "news": 1, "notes": 2}, seed=0)
        >>> sampler.draws(epoch=0).tolist(), sampler.draws(epoch=1).tolist()
        ([1, 2, 0, 1, 2, 0, 1], [2, 0, 1, 2, 0, 1, 2])
    """

    def probabilities(self, epoch: int) -> np.ndarray:
        return np.full(len(self.names), 1.0 / len(self.names))

    def counts(self, epoch: int) -> np.ndarray:
        rounds, left = divmod(self.epoch_size(), len(self.names))
        turn = (np.arange(len(self.names)) - self._first(epoch)) % len(self.names)
        return rounds + (turn < left)

    def draws(self, epoch: int) -> np.ndarray:
        order = np.roll(np.arange(len(self.names), dtype=np.min_scalar_type(len(self.names))), -self._first(epoch))
        return np.resize(order, self.epoch_size())

    def _first(self, epoch: int) -> int:
        """Return the dataset that an epoch begins with."""
        return (int(self.generator(0).integers(len(self.names))) + epoch * self.epoch_size()) % len(self.names)
