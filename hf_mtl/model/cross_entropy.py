"""Cross-entropy over labels that may be missing, weighted and smoothed; and what its mean divides by."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_mtl.configuration import TaskSpec
from hf_mtl.model.focal import focal_cross_entropy_sum
from hf_mtl.model.transfer import on_device

IGNORE_INDEX = -100
"""What stands in place of a label that is missing."""


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def cross_entropy_sum(
    logits: Tensor, labels: Tensor, weight: Tensor | None, label_smoothing: float, gamma: float = 0.0
) -> Tensor:
    """Return the sum of (class-weighted, label-smoothed) cross-entropies over labels that are not -100.

    Args:
        logits: `(items, num_labels)`.
        labels: `(items,)`.
        weight: `(num_labels,)` or `None`.
        label_smoothing: in [0, 1).
        gamma: power of the focal loss, see `hf_mtl.model.focal`; 0 is the plain loss.
    """
    if gamma:
        return focal_cross_entropy_sum(logits, labels, weight, label_smoothing, gamma)
    return F.cross_entropy(
        logits.float(),
        labels,
        weight,
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=label_smoothing,
    )


def class_weights(spec: TaskSpec, like: Tensor) -> Tensor | None:
    """Return a spec's class weights, `(num_labels,)`, on the device of another tensor; `None` where it has none."""
    if spec.class_weights is None:
        return None
    # Never a buffer: they are rebuilt from the spec and no part of the model's weights.
    return on_device(spec.class_weights, dtype=torch.float32, device=like.device)


def weighted_count(labels: Tensor, weight: Tensor | None) -> Tensor:
    """Return the number of labels that are not -100, or the sum of their class weights; the divisor of a mean."""
    present = labels != IGNORE_INDEX
    if weight is None:
        return present.sum().float()
    return (weight[labels.clamp(min=0)] * present).sum()
