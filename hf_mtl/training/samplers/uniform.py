"""Datasets alike, whatever their size."""

from __future__ import annotations

import numpy as np

from hf_mtl.registry import SAMPLERS
from hf_mtl.training.samplers.base import Sampler


@SAMPLERS.register("uniform")
class UniformSampler(Sampler):
    """`p_i = 1 / k` for `k` datasets.

    Equal mixing, Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer", section 3.5.2, https://arxiv.org/abs/1910.10683.

    Example:
        >>> UniformSampler({"films": 3, "news": 1}).counts(epoch=0)
        array([2, 2])
    """

    def probabilities(self, epoch: int) -> np.ndarray:
        return np.full(len(self.names), 1.0 / len(self.names))
