"""What every sampling strategy promises; a new one is held to it by being registered."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from hf_mtl.errors import SpecError
from hf_mtl.registry import SAMPLERS
from hf_mtl.training.samplers.base import Sampler
from hf_mtl.training.samplers.proportional import ProportionalSampler

SIZES = {"films": 4000, "orders": 900, "pairs": 100}


@pytest.fixture(params=SAMPLERS.names())
def kind(request: pytest.FixtureRequest) -> type[Sampler]:
    return SAMPLERS.get(request.param)


def test_the_same_seed_and_epoch_draw_the_same(kind: type[Sampler]) -> None:
    for epoch in (0, 3):
        first, second = kind(SIZES, seed=5), kind(SIZES, seed=5)
        first.draws(epoch + 1)  # what was drawn before does not matter
        assert np.array_equal(first.draws(epoch), second.draws(epoch))


def test_another_epoch_or_seed_draws_otherwise(kind: type[Sampler]) -> None:
    draws = kind(SIZES, seed=5).draws(0)
    assert not np.array_equal(draws, kind(SIZES, seed=5).draws(1))
    assert not np.array_equal(draws, kind(SIZES, seed=6).draws(0))


def test_draws_are_positions_of_datasets(kind: type[Sampler]) -> None:
    sampler = kind(SIZES, seed=1)
    draws = sampler.draws(0)
    assert sampler.names == tuple(SIZES)
    assert draws.ndim == 1
    assert np.issubdtype(draws.dtype, np.integer)
    assert draws.min() >= 0
    assert draws.max() < len(SIZES)


def test_an_epoch_has_as_many_draws_as_it_says(kind: type[Sampler]) -> None:
    sampler = kind(SIZES, seed=1)
    for epoch in (0, 1, 2):
        assert len(sampler.draws(epoch)) == sampler.epoch_size(epoch) > 0


def test_probabilities_are_a_distribution(kind: type[Sampler]) -> None:
    for epoch in (0, 5):
        probabilities = kind(SIZES).probabilities(epoch)
        assert probabilities.shape == (len(SIZES),)
        assert (probabilities > 0).all()
        assert probabilities.sum() == pytest.approx(1.0)


def test_frequencies_are_those_of_the_probabilities(kind: type[Sampler]) -> None:
    for epoch in (0, 1):
        sampler = kind(SIZES, seed=7)
        counts = np.bincount(sampler.draws(epoch), minlength=len(SIZES))
        assert chisquare(counts, sampler.probabilities(epoch) * counts.sum()).pvalue > 0.001


def test_draws_are_shuffled(kind: type[Sampler]) -> None:
    """The first and the second half of an epoch hold the datasets in like shares."""
    draws = kind(SIZES, seed=7).draws(0)
    halves = [np.bincount(half, minlength=len(SIZES)) / len(half) for half in np.array_split(draws, 2)]
    assert np.abs(halves[0] - halves[1]).max() < 0.05


def test_one_dataset_is_drawn_always(kind: type[Sampler]) -> None:
    assert set(kind({"films": 12}).draws(0).tolist()) == {0}


def test_an_empty_dataset_is_refused(kind: type[Sampler]) -> None:
    with pytest.raises(SpecError, match="dataset 'pairs' has no rows"):
        kind({"films": 3, "pairs": 0})
    with pytest.raises(SpecError, match="there is no dataset"):
        kind({})


def test_proportional_draws_every_row_once() -> None:
    sampler = ProportionalSampler(SIZES, seed=3)
    assert np.bincount(sampler.draws(4)).tolist() == list(SIZES.values())
    assert sampler.probabilities(0).tolist() == pytest.approx([0.8, 0.18, 0.02])
