"""Datasets in proportion to their size: every row once an epoch."""

from __future__ import annotations

import numpy as np

from hf_mtl.registry import SAMPLERS
from hf_mtl.training.samplers.base import Sampler


@SAMPLERS.register("proportional")
class ProportionalSampler(Sampler):
    """`p_i = n_i / sum_j n_j`; an epoch of all rows holds each of them exactly once.

    Examples-proportional mixing without a limit, Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a
    Unified Text-to-Text Transformer", section 3.5.2, https://arxiv.org/abs/1910.10683.

    Example:
        >>> sampler = ProportionalSampler({"films": 3, "news": 1}, seed=0)
        >>> sorted(sampler.names[i] for i in sampler.draws(epoch=0))
        ['films', 'films', 'films', 'news']
    """

    def probabilities(self, epoch: int) -> np.ndarray:
        return self.sizes / self.sizes.sum()
