"""One number for each text or text pair."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import DataError, SpecError
from hf_mtl.model.heads.base import TaskHead, Words, refuse
from hf_mtl.model.targets import Target, Wanted
from hf_mtl.registry import HEADS

FLOAT32_MAX = float(np.finfo(np.float32).max)


@HEADS.register("regression")
class RegressionHead(TaskHead):
    """Mean squared error; labels `(batch_size,)` float, NaN where missing; logits `(rows, 1)` in the label's unit."""

    stored_as = "float64"
    stock_class = "AutoModelForSequenceClassification"
    problem_type = "regression"
    measure = "value"
    exclusive = False

    @classmethod
    def validate_spec(cls, spec: TaskSpec) -> None:
        refuse(spec, "labels", "class_weights", "label_smoothing", "scheme")

    @classmethod
    def infer_labels(cls, values: Iterable[Any]) -> None:
        return None

    @classmethod
    def encode(cls, spec: TaskSpec, value: Any, words: Words | None, num_tokens: int) -> float:
        try:
            number = math.nan if isinstance(value, bool | np.bool_) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not abs(number) <= FLOAT32_MAX:  # false for NaN
            raise DataError(f"a number was expected, found {value!r}", mend="give a number, or null where unlabelled")
        return number

    @classmethod
    def collate(cls, spec: TaskSpec, values: Sequence[Any], seq_len: int) -> Tensor:
        return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)

    @classmethod
    def labelled_rows(cls, labels: Tensor) -> Tensor:
        return ~labels.isnan()

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        known = ~labels.isnan()
        targets = torch.where(known, labels, 0.0).float()
        losses = F.mse_loss(logits.squeeze(-1).float(), targets, reduction="none")
        return torch.where(known, losses, 0.0).sum()

    def divergence_sum(self, logits: Tensor, others: Tensor, labels: Tensor) -> Tensor:
        apart = (logits.float() - others.float()).squeeze(-1).square()
        return torch.where(labels.isnan(), 0.0, apart).sum()

    @classmethod
    def num_items(cls, spec: TaskSpec, labels: Tensor) -> Tensor:
        return (~labels.isnan()).sum().float()

    @classmethod
    def decode(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None) -> dict[str, Any]:
        return {"value": float(logits[0])}

    @classmethod
    def summary(cls, spec: TaskSpec, answer: dict[str, Any]) -> list[tuple[str, float | None]]:
        return [(f"{answer['value']:.3f}", None)]

    @classmethod
    def prediction(cls, spec: TaskSpec, answer: dict[str, Any]) -> float:
        return answer["value"]

    @classmethod
    def reference(cls, spec: TaskSpec, value: Any) -> float:
        return cls.encode(spec, value, None, 0)

    @classmethod
    def judgements(cls, spec: TaskSpec, answer: dict[str, Any], value: Any) -> list[tuple[float, bool]]:
        return []

    @classmethod
    def metric_name(cls, spec: TaskSpec) -> str:
        return "regression"

    @classmethod
    def target(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None, wanted: Wanted) -> Target:
        if wanted != Wanted():
            raise SpecError(
                "target is given, but the task answers a number", where=f"task {spec.name!r}", mend="leave target out"
            )
        return Target("value", (0,), np.ones((1, 1)))  # contributions are in the label's unit

    @classmethod
    def probabilities(cls, spec: TaskSpec, logits: np.ndarray) -> np.ndarray:
        return logits.astype(np.float64)

    @classmethod
    def holds(cls, spec: TaskSpec, target: Target, logits: np.ndarray) -> np.ndarray:
        return np.ones(len(logits), dtype=bool)
