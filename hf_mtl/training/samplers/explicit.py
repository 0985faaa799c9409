"""Datasets by weights that the user gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_mtl.errors import SpecError, one_of
from hf_mtl.registry import SAMPLERS
from hf_mtl.training.samplers.base import Sampler, check_number


@SAMPLERS.register("explicit")
class ExplicitSampler(Sampler):
    """`p_i = w_i / sum_j w_j` for weights `w`.

    The mixing ratios of Luong et al. 2016, "Multi-task Sequence to Sequence Learning", section 3.4,
    https://arxiv.org/abs/1511.06114.

    Args:
        sizes: number of labelled rows per dataset.
        weights: a number for each dataset, not negative, not all 0; a dataset of weight 0 is never drawn.
        basics: see `Sampler`.

    Raises:
        SpecError: a dataset has no weight, a weight has no dataset, or its value is not allowed.

    Example:
        >>> ExplicitSampler({"films": 50, "news": 10}, weights={"news": 1, "films": 3}).probabilities(epoch=0)
        array([0.75, 0.25])
    """

    def __init__(self, sizes: Mapping[str, int], *, weights: Mapping[str, float] | None = None, **basics: Any) -> None:
        super().__init__(sizes, **basics)
        given = _mapping(weights)
        wrong = [name for name in (*self.names, *given) if (name in given) != (name in self.names)]
        if wrong:
            problem = f"weights has no {wrong[0]!r}" if wrong[0] in self.names else f"weights has {wrong[0]!r}"
            raise SpecError(problem, mend=f"give a weight for each of {one_of(self.names)}")
        self.weights = np.array([check_number(f"weights[{name!r}]", given[name]) for name in self.names])
        if not 0 < self.weights.sum() < np.inf:
            raise SpecError(f"weights is {dict(given)!r}", mend="give at least one above 0, and none that is infinite")

    def probabilities(self, epoch: int) -> np.ndarray:
        return self.weights / self.weights.sum()


def _mapping(weights: Any) -> Mapping[str, float]:
    if weights is None or isinstance(weights, Mapping):
        return weights or {}
    raise SpecError(f"weights is {weights!r}", mend="give a mapping from datasets to numbers")
