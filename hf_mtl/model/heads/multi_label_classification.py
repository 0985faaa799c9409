"""Any number of labels out of a set for each text or text pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import DataError
from hf_mtl.model.cross_entropy import class_weights
from hf_mtl.model.focal import focal_binary_factor
from hf_mtl.model.heads.base import TaskHead, Words, as_list, refuse, require_labels
from hf_mtl.model.labels import label_id, label_name, sorted_labels, wanted_labels
from hf_mtl.model.targets import Target, Wanted, contrast_name
from hf_mtl.registry import HEADS


@HEADS.register("multi_label_classification")
class MultiLabelClassificationHead(TaskHead):
    """Binary cross-entropy per label; labels `(batch_size, num_labels)` float, NaN where a label is not known.

    A row's label is the list of its labels (all others are known to be absent), or a mapping from label to
    true, false or null (null and labels left out are unknown).
    """

    stored_as: ClassVar[str | list[str]] = ["float32"]
    stock_class = "AutoModelForSequenceClassification"
    problem_type = "multi_label_classification"
    exclusive = False
    options = ("focal_gamma", "thresholds", "tune_thresholds")

    @classmethod
    def validate_spec(cls, spec: TaskSpec) -> None:
        require_labels(spec, at_least=1)
        refuse(spec, "scheme")

    @classmethod
    def infer_labels(cls, values: Iterable[Any]) -> tuple[str, ...]:
        rows = (
            value if isinstance(value, Mapping) else as_list(value, "labels") for value in values if value is not None
        )
        return sorted_labels(label_name(label) for row in rows for label in row)

    @classmethod
    def encode(cls, spec: TaskSpec, value: Any, words: Words | None, num_tokens: int) -> list[float | None]:
        if isinstance(value, Mapping):
            known = {label_id(spec, label): _truth(label, flag) for label, flag in value.items()}
            return [known.get(index) for index in range(spec.num_labels)]
        labels = as_list(value, "labels")
        present = {label_id(spec, label) for label in labels}
        if len(present) < len(labels) and not any(isinstance(label, str) for label in labels):
            raise DataError(
                f"{value!r} names a label twice",
                mend="give the labels that apply, by name or number, not a 0 or 1 for each label",
            )
        return [float(index in present) for index in range(spec.num_labels)]

    @classmethod
    def collate(cls, spec: TaskSpec, values: Sequence[Any], seq_len: int) -> Tensor:
        unknown = [None] * spec.num_labels
        rows = np.array([unknown if value is None else value for value in values], dtype=np.float32)
        return torch.from_numpy(rows.reshape(len(values), spec.num_labels))

    @classmethod
    def labelled_rows(cls, labels: Tensor) -> Tensor:
        return (~labels.isnan()).any(dim=-1)

    @classmethod
    def describe(cls, spec: TaskSpec, value: Any) -> list[str]:
        flags = cls.encode(spec, value, None, 0)
        return [label for label, flag in zip(spec.labels or (), flags, strict=True) if flag]

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        known = ~labels.isnan()
        smoothing = self.spec.label_smoothing
        targets = torch.where(known, labels, 0.0).float() * (1.0 - smoothing) + smoothing / 2
        losses = F.binary_cross_entropy_with_logits(
            logits.float(), targets, reduction="none", pos_weight=class_weights(self.spec, logits)
        )
        if self.spec.focal_gamma:
            losses = losses * focal_binary_factor(logits.float(), labels, self.spec.focal_gamma)
        return torch.where(known, losses, 0.0).sum()

    def divergence_sum(self, logits: Tensor, others: Tensor, labels: Tensor) -> Tensor:
        # KL(p || q) + KL(q || p) of two coins is (p - q)(logit p - logit q).
        a, b = logits.float(), others.float()
        return torch.where(labels.isnan(), 0.0, (a.sigmoid() - b.sigmoid()) * (a - b)).sum()

    @classmethod
    def num_items(cls, spec: TaskSpec, labels: Tensor) -> Tensor:
        return (~labels.isnan()).sum().float()

    @classmethod
    def decode(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None) -> dict[str, Any]:
        return cls.decode_rows(spec, [logits], [words])[0]

    @classmethod
    def decode_rows(
        cls, spec: TaskSpec, logits: Sequence[np.ndarray], words: Sequence[Words | None]
    ) -> list[dict[str, Any]]:
        labels = spec.labels or ()
        rows = cls.probabilities(spec, np.stack(logits)).tolist()
        scores = [dict(zip(labels, row, strict=True)) for row in rows]
        least = spec.thresholds or (0.5,) * len(labels)
        return [
            {"labels": [label for (label, p), own in zip(row.items(), least, strict=True) if p >= own], "scores": row}
            for row in scores
        ]

    @classmethod
    def summary(cls, spec: TaskSpec, answer: dict[str, Any]) -> list[tuple[str, float | None]]:
        return [(label, answer["scores"][label]) for label in answer["labels"]] or [("(none)", None)]

    @classmethod
    def prediction(cls, spec: TaskSpec, answer: dict[str, Any]) -> list[int]:
        chosen = set(answer["labels"])
        return [int(label in chosen) for label in spec.labels or ()]

    @classmethod
    def as_label(cls, spec: TaskSpec, answer: dict[str, Any]) -> list[str]:
        return answer["labels"]

    @classmethod
    def reference(cls, spec: TaskSpec, value: Any) -> list[int]:
        return [-1 if flag is None else int(flag) for flag in cls.encode(spec, value, None, 0)]

    @classmethod
    def confidence(cls, spec: TaskSpec, answer: dict[str, Any]) -> float:
        # The chance that every label is as answered, if labels were independent.
        chosen = set(answer["labels"])
        return float(np.prod([p if label in chosen else 1.0 - p for label, p in answer["scores"].items()]))

    @classmethod
    def judgements(cls, spec: TaskSpec, answer: dict[str, Any], value: Any) -> list[tuple[float, bool]]:
        # Label by label, those whose truth is known.
        scores = [answer["scores"][label] for label in spec.labels or ()]
        known = zip(scores, cls.prediction(spec, answer), cls.reference(spec, value), strict=True)
        return [(p if chosen else 1.0 - p, chosen == flag) for p, chosen, flag in known if flag >= 0]

    @classmethod
    def metric_name(cls, spec: TaskSpec) -> str:
        return "multi_label"

    @classmethod
    def target(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None, wanted: Wanted) -> Target:
        label, over = wanted_labels(spec, logits, wanted.without_span(spec.name))
        names = spec.labels or ()
        weights = np.zeros((1, spec.num_labels))  # labels do not compete: each has its logit to itself
        weights[0, label] = 1.0
        if over is not None:
            weights[0, over] = -1.0
        return Target(contrast_name(names[label], None if over is None else names[over]), (label,), weights)

    @classmethod
    def probabilities(cls, spec: TaskSpec, logits: np.ndarray) -> np.ndarray:
        # The logistic function, in a form that cannot overflow.
        return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))

    @classmethod
    def holds(cls, spec: TaskSpec, target: Target, logits: np.ndarray) -> np.ndarray:
        least = 0.5 if spec.thresholds is None else spec.thresholds[target.labels[0]]
        return target.probability(cls.probabilities(spec, logits)) >= least


def _truth(label: object, flag: Any) -> float | None:
    if flag is None:
        return None
    if isinstance(flag, bool | np.bool_ | int | float | np.number) and flag in (0, 1):
        return float(flag)
    raise DataError(f"label {label!r} is {flag!r}", mend="give true, false or null")
