"""LIME: a linear model of what the network answers around a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hf_mtl.errors import SpecError
from hf_mtl.explain.methods._removal import RemovalMethod, check_whole
from hf_mtl.explain.methods.base import Attribution
from hf_mtl.explain.subject import Forward, Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target
from hf_mtl.registry import EXPLAINERS

KERNEL_WIDTH = 1.0


@EXPLAINERS.register("lime")
@dataclass(frozen=True)
class Lime(RemovalMethod):
    """Weights `a` of the ridge regression `min_a,b sum_z w(z) (S(z) - b - a z)^2 + penalty |a|^2`.

    `z` is 1 for the words that a variant keeps, `S` the target's score and `w(z) = exp(-d(z)^2 / 2)` with the cosine
    distance `d` between `z` and the whole text. Each variant but the first, which is the whole text, keeps each word
    with the probability 1/2. Ribeiro et al. 2016, "Why Should I Trust You?", https://arxiv.org/abs/1602.04938.

    Variants and weights are those of captum's `Lime`, which cannot leave tokens out and explains one score at a time:
    it would draw and read the variants again for each task. The regression is scikit-learn's. The authors' program
    draws the number of words that are lost evenly, and weighs variants by a kernel of width 0.25, which all but forgets
    those that lose most; what it finds here is less comprehensive.

    Args:
        samples: number of variants.
        penalty: weight of the ridge.
        seed: seed of the variants.
        perturb: how words are taken away: `"delete"` or `"mask"`.

    Raises:
        SpecError: an option is not allowed.
    """

    samples: int = 300
    penalty: float = 1.0
    seed: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("samples", self.samples, least=2)
        check_whole("seed", self.seed, least=0)
        if not 0 < self.penalty < np.inf:
            raise SpecError(f"penalty is {self.penalty!r}", mend="give a number above 0")

    def attribute(
        self, subject: Subject, text: ExplainedText, forward: Forward, targets: Mapping[str, Target]
    ) -> dict[str, Attribution]:
        from sklearn.linear_model import Ridge  # not where methods are listed: its import takes a second

        num_units = len(text.units)
        if not num_units:
            return {task: Attribution(scores=np.zeros(0), baseline=self.baseline) for task in targets}
        kept = draw_variants(num_units, self.samples, np.random.default_rng(self.seed))
        weights = np.exp(-(cosine_distances(kept) ** 2) / (2 * KERNEL_WIDTH**2))
        found: dict[str, Attribution] = {}
        for task, own in self.scores(subject, text, kept, targets).items():
            model = Ridge(alpha=self.penalty).fit(kept.astype(np.float64), own, sample_weight=weights)
            found[task] = Attribution(scores=np.asarray(model.coef_, dtype=np.float64), baseline=self.baseline)
        return found


def draw_variants(num_units: int, samples: int, generator: np.random.Generator) -> np.ndarray:
    """Draw what variants keep of a text, the whole text first.

    Returns:
        Bool `(samples, num_units)`.
    """
    kept = generator.random((samples, num_units)) < 0.5
    kept[0] = True
    return kept


def cosine_distances(kept: np.ndarray) -> np.ndarray:
    """Return the cosine distances between variants and the whole, `1 - sqrt(share of units kept)`, `(variants,)`.

    Example:
        >>> cosine_distances(np.array([[True, True, True, True], [True, False, False, False]])).tolist()
        [0.0, 0.5]
    """
    return 1.0 - np.sqrt(kept.mean(axis=1))
