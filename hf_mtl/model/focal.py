"""Focal loss: what is easy counts less, so that many easy items do not drown the few hard ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100


def focal_cross_entropy_sum(
    logits: Tensor, labels: Tensor, weight: Tensor | None, label_smoothing: float, gamma: float
) -> Tensor:
    """Return the sum of focal losses over labels that are not -100, a float32 scalar.

        FL(p) = -(1 - p)^gamma w log p

    where p is the probability of the right label and w the weight of its class; with label smoothing the factor stands
    before the smoothed cross-entropy. The gradient runs through the factor, too.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, https://arxiv.org/abs/1708.02002.

    Args:
        logits: `(items, num_labels)`.
        labels: `(items,)`.
        weight: `(num_labels,)` or `None`.
        label_smoothing: in [0, 1).
        gamma: at least 0; 0 is the sum of the cross-entropies.
    """
    # What is ignored is given a label, and left out of the sum: half a row of NaN would make the gradient NaN.
    known = labels != IGNORED
    logits, labels = logits.float(), labels.clamp(min=0)
    losses = F.cross_entropy(logits, labels, weight, reduction="none", label_smoothing=label_smoothing)
    right = logits.log_softmax(dim=-1).gather(-1, labels[:, None]).squeeze(-1)
    return torch.where(known, focal_factor(right, gamma) * losses, 0.0).sum()


def focal_binary_factor(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Return the factor `(1 - p)^gamma` of yes-or-no items, p the probability of the right one of the two.

    Args:
        logits: any shape.
        targets: 1 or 0, in the shape of the logits.
        gamma: above 0.
    """
    return focal_factor(F.logsigmoid(torch.where(targets > 0.5, logits, -logits)), gamma)


def focal_factor(log_p: Tensor, gamma: float) -> Tensor:
    """Return `(1 - p)^gamma`; its gradient is finite for any gamma above 0, for a p that rounds to 1, too.

    Example:
        >>> focal_factor(torch.tensor([0.5]).log(), 2.0)
        tensor([0.2500])
    """
    # 1 - p without the cancellation near p = 1; the least float keeps the power's gradient finite for gamma below 1.
    return (-torch.expm1(log_p)).clamp(min=torch.finfo(torch.float32).tiny).pow(gamma)
