"""Ordered labels: probabilities that respect the order, the loss of the paper, and answers that are medians."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import DataError
from hf_mtl.model.cross_entropy import softmax
from hf_mtl.model.heads.ordinal_regression import OrdinalRegressionHead, median_ranks

SPEC = TaskSpec(name="grade", type="ordinal_regression", labels=("poor", "fair", "good", "best"))


def head_of(seed: int = 0) -> OrdinalRegressionHead:
    torch.manual_seed(seed)
    return OrdinalRegressionHead(SPEC, 6, dropout=0.0)


def corn_loss(steps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over thresholds of the binary cross-entropy over the rows that reach them, as section 3.4 writes it."""
    total = steps.new_zeros(())
    for threshold in range(steps.shape[1]):
        reach = labels >= threshold
        passed = (labels > threshold).to(steps.dtype)
        total += F.binary_cross_entropy_with_logits(steps[reach, threshold], passed[reach], reduction="sum")
    return total


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_is_that_of_the_paper(seed: int) -> None:
    head, features = head_of(seed), torch.randn(50, 6)
    labels = torch.randint(0, 4, (50,))
    found = torch.autograd.grad(head.loss_sum(head(features), labels), list(head.parameters()))
    wanted = torch.autograd.grad(corn_loss(head.output(features), labels), list(head.parameters()))
    torch.testing.assert_close(head.loss_sum(head(features), labels), corn_loss(head.output(features), labels))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_higher_ranks_are_never_likelier_to_be_reached() -> None:
    head = head_of()
    with torch.no_grad():
        head.output.weight.normal_(std=30.0)
        logits = head(torch.randn(200, 6))
    assert logits.isfinite().all()
    probabilities = softmax(logits.numpy())
    torch.testing.assert_close(logits.exp().sum(dim=-1), torch.ones(200))  # they are normalised as they come
    reached = probabilities[:, ::-1].cumsum(axis=1)[:, ::-1]
    assert (np.diff(reached, axis=1) <= 1e-12).all()


def test_probabilities_are_products_of_the_thresholds_passed() -> None:
    head, features = head_of(), torch.randn(20, 6)
    passed = head.output(features).sigmoid().cumprod(dim=-1)  # P(y > k)
    above = torch.cat([torch.ones(20, 1), passed], dim=1)
    wanted = above - torch.cat([passed, torch.zeros(20, 1)], dim=1)
    torch.testing.assert_close(head(features).exp(), wanted)


def test_the_answer_is_the_median_and_not_the_likeliest_label() -> None:
    logits = np.log(np.array([0.4, 0.15, 0.25, 0.2], dtype=np.float32))
    answer = OrdinalRegressionHead.decode(SPEC, logits, None)
    assert answer["label"] == "fair"
    assert answer["score"] == pytest.approx(0.15)
    assert OrdinalRegressionHead.prediction(SPEC, answer) == OrdinalRegressionHead.reference(SPEC, "fair") == 1


@pytest.mark.parametrize("seed", range(5))
def test_no_rank_has_a_smaller_expected_error_than_the_median(seed: int) -> None:
    probabilities = softmax(np.random.default_rng(seed).normal(size=(40, 5)) * 2)
    errors = np.abs(np.arange(5)[:, None] - np.arange(5)) @ probabilities.T  # (answer, row)
    assert errors[median_ranks(probabilities), np.arange(40)] == pytest.approx(errors.min(axis=0))


def test_names_have_no_order_of_their_own() -> None:
    assert OrdinalRegressionHead.infer_labels([10, None, "9", 2.0]) == ("2", "9", "10")
    with pytest.raises(DataError, match="nobody knows their order; name them in the task's 'labels'"):
        OrdinalRegressionHead.infer_labels(["good", "bad"])
