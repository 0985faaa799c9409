"""Pooling, against loops over rows and tokens, with padding on either side."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hf_mtl.configuration import POOLING_KINDS
from hf_mtl.model.pooling import POOLINGS, AttentionPooling

ROWS, LENGTH, SIZE = 5, 7, 6
PADDINGS = ("left", "right", "none")


def batch(padding: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Make states `(ROWS, LENGTH, SIZE)` and a mask; states on padding are large, so that any use of them shows."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(ROWS, LENGTH, SIZE, generator=generator)
    mask = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    for row in range(ROWS):
        length = LENGTH if padding == "none" else 1 + row
        mask[row, LENGTH - length if padding == "left" else 0 :][:length] = 1
    states[mask == 0] = 1e6
    return states, mask


def real_tokens(states: Tensor, mask: Tensor, row: int) -> list[list[float]]:
    return [states[row, place].tolist() for place in range(LENGTH) if mask[row, place]]


def pooled_by_loops(kind: str, tokens: list[list[float]], query: list[float]) -> list[float]:
    if kind == "cls":
        return tokens[0]
    if kind == "last":
        return tokens[-1]
    weights = [1.0 / len(tokens)] * len(tokens)
    if kind == "attention":
        scores = [math.exp(sum(h * q for h, q in zip(t, query, strict=True)) / math.sqrt(SIZE)) for t in tokens]
        weights = [score / sum(scores) for score in scores]
    return [sum(w * token[i] for w, token in zip(weights, tokens, strict=True)) for i in range(SIZE)]


def attention_pooling(seed: int = 1) -> AttentionPooling:
    pooling = AttentionPooling(SIZE)
    pooling.query.data = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))
    return pooling


def pool(kind: str, states: Tensor, mask: Tensor) -> Tensor:
    return attention_pooling()(states, mask)[0] if kind == "attention" else POOLINGS[kind](states, mask)


def test_every_pooling_of_a_spec_is_made_here() -> None:
    assert {*POOLINGS, "attention"} == set(POOLING_KINDS)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kind", POOLING_KINDS)
def test_pooling_equals_loops_over_real_tokens(kind: str, padding: str) -> None:
    states, mask = batch(padding)
    query = attention_pooling().query.tolist()
    expected = [pooled_by_loops(kind, real_tokens(states, mask, row), query) for row in range(ROWS)]
    torch.testing.assert_close(pool(kind, states, mask), torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int32, torch.long, torch.float32])
@pytest.mark.parametrize("kind", POOLING_KINDS)
def test_the_mask_may_have_any_dtype(kind: str, mask_dtype: torch.dtype) -> None:
    states, mask = batch("left")
    assert torch.equal(pool(kind, states, mask.to(mask_dtype)), pool(kind, states, mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", POOLING_KINDS)
def test_dtype_and_shape_are_those_of_the_states(kind: str, dtype: torch.dtype) -> None:
    states, mask = batch("none")
    pooled = pool(kind, states.to(dtype), mask)
    assert pooled.dtype == dtype
    assert pooled.shape == (ROWS, SIZE)


def test_the_mean_of_long_half_precision_rows_is_summed_in_float32() -> None:
    states = torch.full((1, 4096, 2), 0.1, dtype=torch.bfloat16)
    pooled = POOLINGS["mean"](states, torch.ones(1, 4096, dtype=torch.long))
    assert torch.equal(pooled, states[:, 0])  # a sum in bfloat16 would stop growing at 32


@pytest.mark.parametrize("kind", POOLING_KINDS)
def test_a_row_of_padding_alone_is_finite_and_leaves_others_as_they_are(kind: str) -> None:
    states, mask = batch("right")
    states = states.clamp(max=10.0).requires_grad_()
    before = pool(kind, states, mask)
    mask[2] = 0
    after = pool(kind, states, mask)
    after.sum().backward()
    others = [0, 1, 3, 4]
    assert after.isfinite().all()
    assert states.grad is not None
    assert states.grad.isfinite().all()
    assert torch.equal(after[others], before[others])


@pytest.mark.parametrize("kind", POOLING_KINDS)
def test_no_rows_give_no_rows(kind: str) -> None:
    states, mask = batch("none")
    assert pool(kind, states[:0], mask[:0]).shape == (0, SIZE)


@pytest.mark.parametrize("padding", PADDINGS)
def test_attention_weights_sum_to_one_over_real_tokens_and_are_zero_on_padding(padding: str) -> None:
    states, mask = batch(padding)
    _, weights = attention_pooling()(states, mask)
    assert weights.dtype == torch.float32
    torch.testing.assert_close((weights * mask).sum(dim=1), torch.ones(ROWS))
    assert (weights[mask == 0] == 0).all()
    assert (weights[mask == 1] > 0).all()


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_zero_query_is_the_mean(padding: str) -> None:
    states, mask = batch(padding)
    pooled, _ = AttentionPooling(SIZE)(states, mask)
    torch.testing.assert_close(pooled, POOLINGS["mean"](states, mask))


def test_a_new_query_is_zero_and_learns() -> None:
    states, mask = batch("right")
    pooling = AttentionPooling(SIZE)
    assert (pooling.query == 0).all()
    pooling(states, mask)[0].square().sum().backward()
    assert pooling.query.grad is not None
    assert (pooling.query.grad != 0).all()


def test_attention_reads_no_gradient_from_padding() -> None:
    states, mask = batch("left")
    states.requires_grad_()
    attention_pooling()(states, mask)[0].sum().backward()
    assert states.grad is not None
    assert (states.grad[mask == 0] == 0).all()
    assert (states.grad[mask == 1] != 0).any()


def test_a_row_of_padding_alone_has_no_attention() -> None:
    states, mask = batch("right")
    mask[2] = 0
    pooled, weights = attention_pooling()(states, mask)
    assert (weights[2] == 0).all()
    assert (pooled[2] == 0).all()


def test_large_scores_do_not_overflow() -> None:
    states, mask = batch("right")
    pooling = attention_pooling()
    pooling.query.data *= 1e6
    pooled, weights = pooling(states, mask)
    assert pooled.isfinite().all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(ROWS))
