"""`TaskMetric`: what all metrics have, as a subclass of `evaluate.Metric` that needs neither network nor files.

Every metric reduces its rows to statistics, and computes its scores from statistics under row weights. All weights 1
gives `compute`; the weights of a resample give one draw of a bootstrap (`hf_mtl.evaluation.intervals`): both come from
the same formulas. Where there is nothing to score (no rows, or no row with a known label) every value is NaN.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import evaluate
import numpy as np
from datasets import Features

from hf_mtl.errors import DataError, SpecError, one_of
from hf_mtl.evaluation.counting import Disagreement, check_lengths


class TaskMetric(evaluate.Metric, ABC):
    """A metric with several values, one of them the primary: `compute`, `add`, `add_batch` and `evaluate.combine` work.

    Rows that are added are kept in memory; `compute(predictions=..., references=...)` reads its lists as they are.

    Args:
        scheme: `"IOB2"` or `"IOBES"` for strict spans; only metrics that list it in `schemes` take one.
        options: arguments of `evaluate.Metric`.

    Raises:
        SpecError: this metric has no such scheme.
    """

    name: ClassVar[str]  # pyright: ignore[reportIncompatibleMethodOverride]
    keys: ClassVar[tuple[str, ...]]
    primary: ClassVar[str]
    row_features: ClassVar[tuple[Any, Any]]
    """The types of one row's prediction and reference."""
    schemes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, scheme: str | None = None, **options: Any) -> None:
        if scheme is not None and scheme not in self.schemes:
            raise SpecError(
                f"the metric {self.name!r} has no scheme {scheme!r}", mend=f"use one of {one_of((*self.schemes, None))}"
            )
        self.scheme = scheme
        options.setdefault("keep_in_memory", options.get("num_process", 1) == 1)
        super().__init__(**options)

    # ------------------------------------------------------------------ what each kind of task says

    @abstractmethod
    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        """Reduce every row to the numbers that scores are made of.

        Args:
            predictions: one per row, at least one.
            references: one per row.

        Returns:
            `(rows, k)` in float64.

        Raises:
            DataError: a row is not of the kind this metric reads.
        """

    def scores(self, statistics: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Compute every value under row weights.

        Args:
            statistics: `(rows, k)`, from `statistics`.
            weights: how often each row counts, whole numbers in float64, `(resamples, rows)`.

        Returns:
            Per key an array `(resamples,)`.
        """
        return self.from_sums(weights @ statistics)

    def from_sums(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Compute every value from statistics summed over rows, `(resamples, k)`; for metrics that are made of sums."""
        raise NotImplementedError

    @abstractmethod
    def disagreements(self, prediction: Any, reference: Any, labels: Sequence[str] | None = None) -> list[Disagreement]:
        """List what one row got wrong as pairs of reference label and predicted label; empty for numbers.

        Args:
            prediction: the row's prediction.
            reference: the row's reference.
            labels: the task's label names, for metrics whose rows hold positions rather than names.
        """

    def error(self, prediction: Any, reference: Any) -> float:
        """Return how wrong one row is: 0 where it is right, else the number of wrong items or the absolute error."""
        return float(len(self.disagreements(prediction, reference)))

    def readable(self, value: Any, labels: Sequence[str] | None = None) -> Any:
        """Return a row's prediction or reference as people read it, with label names instead of positions."""
        return value

    # ------------------------------------------------------------------ evaluate.Metric

    def compute(
        self, *, predictions: Sequence[Any] | None = None, references: Sequence[Any] | None = None, **kwargs: Any
    ) -> dict[str, float] | None:
        """Score the rows given here and added before.

        Args:
            predictions: one per row.
            references: one per row.
            kwargs: nothing more is taken.

        Returns:
            A float per key, NaN where there is nothing to score; `None` on processes other than the first.

        Raises:
            DataError: there were no rows to read, or they cannot be scored.
        """
        if kwargs:
            raise SpecError(f"the metric {self.name!r} has no option {next(iter(kwargs))!r}", mend="leave it out")
        if predictions is None and references is None:
            if self.writer is None:
                raise DataError(
                    f"the metric {self.name!r} was handed no rows",
                    mend="give predictions and references, or call add or add_batch first",
                )
            return super().compute()
        check_lengths(predictions, references)
        if self.writer is None and self.num_process == 1:
            return self._compute(predictions=predictions, references=references)
        return super().compute(predictions=predictions, references=references)

    def add_batch(
        self, *, predictions: Sequence[Any] | None = None, references: Sequence[Any] | None = None, **kwargs: Any
    ) -> None:
        """Keep a batch of rows for `compute`.

        Args:
            predictions: one per row.
            references: one per row.
            kwargs: nothing more is taken.

        Raises:
            DataError: the numbers of rows differ.
            ValueError: a row is of the wrong type.
        """
        check_lengths(predictions, references)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _info(self) -> evaluate.EvaluationModuleInfo:
        prediction, reference = self.row_features
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="",
            features=Features({"predictions": prediction, "references": reference}),
        )

    def _compute(
        self, *, predictions: Sequence[Any] | None = None, references: Sequence[Any] | None = None, **kwargs: Any
    ) -> dict[str, float]:
        rows = check_lengths(predictions, references)
        if rows == 0:
            return dict.fromkeys(self.keys, math.nan)
        scores = self.scores(self.statistics(predictions or (), references or ()), np.ones((1, rows)))
        return {key: float(scores[key][0]) for key in self.keys}

    def _build_data_dir(self) -> str:
        # evaluate makes a folder in the user's cache even where no file is ever written to it.
        return "" if self.keep_in_memory else super()._build_data_dir()

    def _enforce_nested_string_type(self, schema: Any, obj: Any) -> None:
        # evaluate 0.4.6 takes None among a row's strings, but no first row of None alone (no upstream issue is known).
        if obj is not None:
            super()._enforce_nested_string_type(schema, obj)
