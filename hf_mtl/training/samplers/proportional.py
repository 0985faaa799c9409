"""Datasets in proportion to their size: every row once an epoch."""

from __future__ import annotations

import numpy as np

from hf_mtl.registry import SAMPLERS
from hf_mtl.training.samplers.base import Sampler


@SAMPLERS.register("proportional")
class ProportionalSampler(Sampler):
    """`p_i = n_i / sum_j n_j`, drawn without replacement, so that an epoch holds each row exactly once.

    Example:
        >>> sampler = ProportionalSampler({"films": 3, "news": 1}, seed=0)
        >>> sorted(sampler.names[i] for i in sampler.draws(epoch=0))
        ['films', 'films', 'films', 'news']
    """

    def probabilities(self, epoch: int) -> np.ndarray:
        return self.sizes / self.sizes.sum()

    def draws(self, epoch: int) -> np.ndarray:
        return self.generator(epoch).permutation(np.repeat(np.arange(len(self.names)), self.sizes))
