"""What measuring explanations came to: means over texts with their standard errors, and differences between methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import numpy as np

from hf_mtl.errors import SpecError, one_of
from hf_mtl.explain.faithfulness import Faithfulness
from hf_mtl.explain.plausibility import MEASURES as AGREEMENTS

RANDOM, GREEDY = "random", "greedy"
REFERENCES = (RANDOM, GREEDY)
CHANGES = ("comprehensiveness", "sufficiency", "flips")
"""What is measured by taking words away."""
NORMALISED = CHANGES[:2]


@dataclass(frozen=True)
class Estimate:
    """A mean over texts.

    Args:
        mean: the mean; NaN without texts.
        error: its standard error; NaN with fewer than two texts.
        count: number of texts.
    """

    mean: float
    error: float
    count: int

    def __str__(self) -> str:
        if not self.count:
            return ""
        return f"{self.mean:.3f} ± {self.error:.3f}" if self.count > 1 else f"{self.mean:.3f}"

    @classmethod
    def of(cls, values: np.ndarray) -> Estimate:
        """Return the mean and its standard error, `s / sqrt(n)` with `s^2 = sum (x - mean)^2 / (n - 1)`.

        Args:
            values: one per text, NaN where a text has none.

        Example:
            >>> Estimate.of(np.array([1.0, 3.0, np.nan]))
            Estimate(mean=2.0, error=1.0, count=2)
        """
        known = values[~np.isnan(values)]
        count = len(known)
        error = float(known.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
        return cls(float(known.mean()) if count else float("nan"), error, count)

    @classmethod
    def of_ratio(cls, upper: np.ndarray, lower: np.ndarray) -> Estimate:
        """Return `r = mean(upper) / mean(lower)`; its standard error is that of `(upper - r lower) / mean(lower)`.

        A mean of ratios would be ruled by the texts whose `lower` is about 0. Cochran 1977, Sampling Techniques, 6.4.

        Args:
            upper: one per text.
            lower: one per text.

        Example:
            >>> Estimate.of_ratio(np.array([1.0, 2.0]), np.array([2.0, 4.0]))
            Estimate(mean=0.5, error=0.0, count=2)
        """
        divisor = float(lower.mean())
        if not divisor or np.isnan(divisor):
            return cls(float("nan"), float("nan"), len(upper))
        ratio = float(upper.mean()) / divisor
        return cls(ratio + 0.0, cls.of((upper - ratio * lower) / divisor).error, len(upper))  # no -0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"mean": self.mean, "standard_error": self.error, "texts": self.count}


@dataclass(frozen=True, eq=False)
class Measurements:
    """What one method came to, text by text.

    Args:
        faithfulness: way of taking words away -> one per text.
        agreement: agreement with the words that people marked, one per text, empty where they marked none.
        milliseconds: time that one explanation took, one per text; none for references.
    """

    faithfulness: dict[str, list[Faithfulness]] = field(default_factory=dict[str, list[Faithfulness]])
    agreement: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    milliseconds: list[float] = field(default_factory=list[float])

    def add(self, how: str, one: Faithfulness) -> None:
        """Add what was measured on a text."""
        self.faithfulness.setdefault(how, []).append(one)

    def values(self, measure: str, how: str) -> np.ndarray:
        """Return a measure of each text, NaN where it has none, `(texts,)`."""
        if measure in AGREEMENTS:
            return np.array([one.get(measure, np.nan) for one in self.agreement])
        return np.array([getattr(one, measure) for one in self.faithfulness[how]])

    def curve(self, how: str, part: str = "removed") -> np.ndarray:
        """Return what answers lose on average at each step, without the first words or with them only, `(STEPS,)`."""
        return np.mean([getattr(one, part) for one in self.faithfulness[how]], axis=0)


@dataclass(frozen=True, eq=False)
class Quality:
    """How good attribution methods are for one task.

    Args:
        task: name of the task.
        measure: what the answers are measured in, `"probability"`, or `"value"` where a number is predicted.
        texts: number of texts.
        top: number of words that were taken away to see whether the answer flips.
        random_orders: number of random orders of each text.
        seed: their seed.
        found: what was measured by method, with the references `random` and `greedy` at the end.
    """

    task: str
    measure: str
    texts: int
    top: int
    random_orders: int
    seed: int
    found: dict[str, Measurements]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, without the references."""
        return tuple(name for name in self.found if name not in REFERENCES)

    @property
    def removals(self) -> tuple[str, ...]:
        """The ways in which words were taken away; the first is the one that is meant where none is named."""
        return tuple(self.found[RANDOM].faithfulness)

    @property
    def has_rationales(self) -> bool:
        """Whether people marked words in any text."""
        return self.estimate(RANDOM, AGREEMENTS[0]).count > 0

    def values(self, method: str, measure: str, how: str | None = None) -> np.ndarray:
        """Return a measure of each text, NaN where it has none, `(texts,)`.

        Args:
            method: the method, or `"random"` or `"greedy"`.
            measure: `"comprehensiveness"`, `"sufficiency"`, `"flips"`, `"auprc"`, `"token_f1"` or `"iou"`.
            how: how words were taken away, one of `removals`; means nothing for the last three measures.

        Raises:
            SpecError: there is no such method, measure or way.
        """
        for name, value, known in (
            ("method", method, self.found),
            ("measure", measure, (*CHANGES, *AGREEMENTS)),
            ("how", how or self.removals[0], self.removals),
        ):
            if value not in known:
                raise SpecError(f"{name} is {value!r}", mend=f"use one of {one_of(known)}")
        return self.found[method].values(measure, how or self.removals[0])

    def estimate(self, method: str, measure: str, how: str | None = None) -> Estimate:
        """Return a measure's mean over the texts; arguments and errors as in `values`."""
        return Estimate.of(self.values(method, measure, how))

    def normalised(self, method: str, measure: str = "comprehensiveness", how: str | None = None) -> Estimate:
        """Return `(mean - random) / (greedy - random)`, which is 0 for random orders and 1 for the greedy search.

        Args:
            method: the method.
            measure: `"comprehensiveness"` or `"sufficiency"`; of both the higher is the better then.
            how: how words were taken away.

        Raises:
            SpecError: there is no such method, measure or way.
        """
        if measure not in NORMALISED:
            raise SpecError(f"measure is {measure!r}", mend=f"use one of {one_of(NORMALISED)}")
        low, high, own = (self.values(name, measure, how) for name in (RANDOM, GREEDY, method))
        return Estimate.of_ratio(own - low, high - low)

    def difference(
        self, first: str, second: str, measure: str = "comprehensiveness", how: str | None = None
    ) -> Estimate:
        """Return the mean over the texts of what the first method has more than the second, paired text by text.

        Args:
            first: a method.
            second: another.
            measure: the measure.
            how: how words were taken away.

        Raises:
            SpecError: there is no such method, measure or way.
        """
        return Estimate.of(self.values(first, measure, how) - self.values(second, measure, how))

    def milliseconds(self, method: str) -> float:
        """Return the median time of one explanation in ms; NaN for the references."""
        times = self.found[method].milliseconds
        return float(np.median(times)) if times else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: settings, measures and curves of each method, differences between every two."""
        measured = [measure for measure in CHANGES if self.estimate(RANDOM, measure).count]
        agreed = AGREEMENTS if self.has_rationales else ()
        methods = {name: self._method_dict(name, measured, agreed) for name in self.found}
        compared = [*product(measured, self.removals), *product(agreed, self.removals[:1])]
        differences = [
            {"first": a, "second": b, "measure": m, "perturb": how, **self.difference(a, b, m, how).to_dict()}
            for a, b in combinations(self.methods, 2)
            for m, how in compared
        ]
        settings = {name: getattr(self, name) for name in ("task", "measure", "texts", "top", "random_orders", "seed")}
        return {**settings, "methods": methods, "differences": differences}

    def _method_dict(self, name: str, measured: list[str], agreed: tuple[str, ...]) -> dict[str, Any]:
        by_removal = {
            how: {
                **{measure: self.estimate(name, measure, how).to_dict() for measure in measured},
                **{f"normalised_{m}": self.normalised(name, m, how).to_dict() for m in NORMALISED},
                **{f"{part}_curve": self.found[name].curve(how, part).tolist() for part in ("removed", "kept")},
            }
            for how in self.removals
        }
        plausible = {measure: self.estimate(name, measure).to_dict() for measure in agreed}
        return {**by_removal, **({"plausibility": plausible} if plausible else {}),
                "milliseconds": None if name in REFERENCES else self.milliseconds(name)}  # fmt: skip
