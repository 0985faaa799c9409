"""What heads have in common that answer with one label out of a set for each text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_mtl.configuration import TaskSpec
from hf_mtl.model.cross_entropy import IGNORE_INDEX, class_weights, cross_entropy_sum, softmax, weighted_count
from hf_mtl.model.heads.base import TaskHead, Words, refuse, require_labels
from hf_mtl.model.labels import label_id, label_name, sorted_labels


class OneLabelHead(TaskHead):
    """Cross-entropy over the labels; labels `(batch_size,)` long, -100 where missing."""

    stored_as = "int64"

    @classmethod
    def validate_spec(cls, spec: TaskSpec) -> None:
        require_labels(spec, at_least=2)
        refuse(spec, "scheme")

    @classmethod
    def infer_labels(cls, values: Iterable[Any]) -> tuple[str, ...]:
        return sorted_labels(label_name(value) for value in values if value is not None)

    @classmethod
    def encode(cls, spec: TaskSpec, value: Any, words: Words | None, num_tokens: int) -> int:
        return label_id(spec, value)

    @classmethod
    def collate(cls, spec: TaskSpec, values: Sequence[Any], seq_len: int) -> Tensor:
        return torch.tensor([IGNORE_INDEX if value is None else value for value in values], dtype=torch.long)

    @classmethod
    def labelled_rows(cls, labels: Tensor) -> Tensor:
        return labels != IGNORE_INDEX

    @classmethod
    def describe(cls, spec: TaskSpec, value: Any) -> list[str]:
        return [(spec.labels or ())[label_id(spec, value)]]

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        weight, spec = class_weights(self.spec, logits), self.spec
        return cross_entropy_sum(logits, labels, weight, spec.label_smoothing, spec.focal_gamma)

    @classmethod
    def num_items(cls, spec: TaskSpec, labels: Tensor) -> Tensor:
        return weighted_count(labels, class_weights(spec, labels))

    @classmethod
    def decode(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None) -> dict[str, Any]:
        return cls.decode_rows(spec, [logits], [words])[0]

    @classmethod
    def decode_rows(
        cls, spec: TaskSpec, logits: Sequence[np.ndarray], words: Sequence[Words | None]
    ) -> list[dict[str, Any]]:
        labels = spec.labels or ()
        probabilities = softmax(np.stack(logits))
        return [
            {"label": labels[best], "score": row[best], "scores": dict(zip(labels, row, strict=True))}
            for best, row in zip(cls.choose(probabilities).tolist(), probabilities.tolist(), strict=True)
        ]

    @classmethod
    def choose(cls, probabilities: np.ndarray) -> np.ndarray:
        """Return the place of the label that is answered, given the probabilities of all, `(..., num_labels)`."""
        return probabilities.argmax(axis=-1)

    @classmethod
    def summary(cls, spec: TaskSpec, answer: dict[str, Any]) -> list[tuple[str, float | None]]:
        return [(answer["label"], answer["score"])]

    @classmethod
    def prediction(cls, spec: TaskSpec, answer: dict[str, Any]) -> Any:
        return answer["label"]

    @classmethod
    def reference(cls, spec: TaskSpec, value: Any) -> Any:
        return (spec.labels or ())[label_id(spec, value)]

    @classmethod
    def as_label(cls, spec: TaskSpec, answer: dict[str, Any]) -> str:
        return answer["label"]

    @classmethod
    def confidence(cls, spec: TaskSpec, answer: dict[str, Any]) -> float:
        return answer["score"]

    @classmethod
    def metric_name(cls, spec: TaskSpec) -> str:
        return "classification"
