"""Datasets between proportional and alike, by a temperature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_mtl.registry import SAMPLERS
from hf_mtl.training.samplers.base import Sampler, check_number, power_shares


@SAMPLERS.register("temperature")
class TemperatureSampler(Sampler):
    """`p_i = n_i^(1/T) / sum_j n_j^(1/T)`: proportional at `T = 1`, uniform as `T` goes to infinity.

    Arivazhagan et al. 2019, "Massively Multilingual Neural Machine Translation in the Wild", section 4.2,
    https://arxiv.org/abs/1907.05019; temperature-scaled mixing in Raffel et al. 2020,
    https://arxiv.org/abs/1910.10683. The default, square-root sampling, is that of Stickland & Murray 2019,
    https://arxiv.org/abs/1902.02671.

    Args:
        sizes: number of labelled rows per dataset.
        temperature: `T`, above 0; may be infinite.
        basics: see `Sampler`.

    Example:
        >>> TemperatureSampler({"films": 900, "news": 100}, temperature=2).probabilities(epoch=0)
        array([0.75, 0.25])
    """

    def __init__(self, sizes: Mapping[str, int], *, temperature: float = 2.0, **basics: Any) -> None:
        super().__init__(sizes, **basics)
        self.temperature = check_number("temperature", temperature, above=0.0)

    def probabilities(self, epoch: int) -> np.ndarray:
        return power_shares(self.sizes, 1.0 / self.temperature)
