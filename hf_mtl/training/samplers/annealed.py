"""Datasets in proportion to their size at first, ever more alike as training goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_mtl.registry import SAMPLERS
from hf_mtl.training.samplers.base import Sampler, check_number, power_shares


@SAMPLERS.register("annealed")
class AnnealedSampler(Sampler):
    """`p_i ~ n_i^alpha`, where `alpha = 1 - 0.8 (e - 1) / (E - 1)` in epoch `e` of `E`, counted from 1.

    `alpha` is one over the temperature, and goes in a line from `first_exponent` to `last_exponent`. A training of one
    epoch has the first only.

    Stickland & Murray 2019, "BERT and PALs: Projected Attention Layers for Efficient Adaptation in Multi-Task
    Learning", section 4.1, https://arxiv.org/abs/1902.02671.

    Args:
        sizes: number of labelled rows per dataset.
        first_exponent: `alpha` of the first epoch, at least 0.
        last_exponent: `alpha` of the last epoch, at least 0.
        basics: see `Sampler`.

    Example:
        >>> sampler = AnnealedSampler({"films": 900, "news": 100}, num_epochs=3)
        >>> [sampler.probabilities(epoch).round(2).tolist() for epoch in range(3)]
        [[0.9, 0.1], [0.79, 0.21], [0.61, 0.39]]
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        first_exponent: float = 1.0,
        last_exponent: float = 0.2,
        **basics: Any,
    ) -> None:
        super().__init__(sizes, **basics)
        self.first_exponent = check_number("first_exponent", first_exponent)
        self.last_exponent = check_number("last_exponent", last_exponent)

    def probabilities(self, epoch: int) -> np.ndarray:
        last = math.ceil(self.num_epochs) - 1
        progress = min(1.0, epoch / last) if last > 0 else 0.0
        return power_shares(self.sizes, self.first_exponent + (self.last_exponent - self.first_exponent) * progress)
