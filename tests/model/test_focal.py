"""Focal loss: the paper's formula, the plain loss at gamma 0, and finite gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hf_mtl.configuration import TaskSpec
from hf_mtl.registry import HEADS

LABELS = ("a", "b", "c")


def example(name: str, **options: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    spec = TaskSpec(name="t", type=name, labels=LABELS, **options)
    head = HEADS.get(name)(spec, 4, dropout=0.0)
    if name == "multi_label_classification":
        labels = torch.randint(0, 2, (6, 3)).float()
        labels[0, 1] = torch.nan
        return head, torch.randn(6, 3), labels
    shape = (6,) if name == "sequence_classification" else (3, 4)
    labels = torch.randint(0, 3, shape)
    labels.view(-1)[1] = -100
    return head, torch.randn(*shape, 3), labels


NAMES = [name for name in HEADS.files if "focal_gamma" in HEADS.get(name).options]


@pytest.mark.parametrize("name", NAMES)
def test_gamma_0_is_the_plain_loss_bitwise_and_a_tiny_gamma_is_near_it(name: str) -> None:
    plain, logits, labels = example(name, class_weights=(1.0, 2.0, 0.5), label_smoothing=0.1)
    for gamma in (0.0, 1e-9):
        head, _, _ = example(name, class_weights=(1.0, 2.0, 0.5), label_smoothing=0.1, focal_gamma=gamma)
        wanted, found = plain.loss_sum(logits, labels), head.loss_sum(logits, labels)
        assert torch.equal(wanted, found) if gamma == 0 else torch.allclose(wanted, found, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_the_paper(name: str, gamma: float) -> None:
    head, logits, labels = example(name, class_weights=(1.0, 2.0, 0.5), focal_gamma=gamma)
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    total = 0.0
    if name == "multi_label_classification":
        for row in range(6):
            for label in range(3):
                truth = float(labels[row, label])
                if truth == truth:
                    p = torch.sigmoid(logits[row, label].double())
                    right, own = (p, weight[label]) if truth else (1 - p, 1.0)
                    total += float(-((1 - right) ** gamma) * own * right.log())
    else:
        for own_logits, label in zip(logits.reshape(-1, 3), labels.reshape(-1).tolist(), strict=True):
            if label >= 0:
                p = own_logits.double().softmax(-1)[label]
                total += float(-((1 - p) ** gamma) * weight[label] * p.log())
    assert float(head.loss_sum(logits, labels)) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_with_differences_and_are_finite_for_sure_answers(name: str) -> None:
    head, logits, labels = example(name, focal_gamma=2.0)
    own = logits.clone().requires_grad_()
    head.loss_sum(own, labels).backward()
    direction = torch.randn_like(logits)
    step = 1e-2
    difference = (
        head.loss_sum(logits + step * direction, labels) - head.loss_sum(logits - step * direction, labels)
    ) / (2 * step)
    assert float((own.grad * direction).sum()) == pytest.approx(float(difference), rel=2e-3, abs=2e-3)
    head, _, _ = example(name, focal_gamma=0.5)
    sure = (logits * 1e4).requires_grad_()
    head.loss_sum(sure, labels).backward()
    assert torch.isfinite(sure.grad).all()


def test_bf16_logits_give_a_float32_loss() -> None:
    head, logits, labels = example("sequence_classification", focal_gamma=2.0)
    assert head.loss_sum(logits.bfloat16(), labels).dtype == torch.float32
    assert F.cross_entropy(logits, labels).isfinite()
