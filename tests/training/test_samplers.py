"""What every sampling strategy promises; a new one is held to it by being registered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from hf_mtl.errors import SpecError
from hf_mtl.registry import SAMPLERS
from hf_mtl.training.samplers.adaptive import AdaptiveSampler
from hf_mtl.training.samplers.annealed import AnnealedSampler
from hf_mtl.training.samplers.base import Sampler, apportion
from hf_mtl.training.samplers.explicit import ExplicitSampler
from hf_mtl.training.samplers.proportional import ProportionalSampler
from hf_mtl.training.samplers.round_robin import RoundRobinSampler
from hf_mtl.training.samplers.temperature import TemperatureSampler
from hf_mtl.training.samplers.uniform import UniformSampler

SIZES = {"films": 4000, "orders": 900, "pairs": 100}
WEIGHTS = {"films": 1.0, "orders": 5.0, "pairs": 2.0}
SCORES = {"films": 0.9, "orders": 0.5, "pairs": 0.3}
NEEDED: dict[str, dict[str, Any]] = {"explicit": {"weights": WEIGHTS}}
"""Options without which a strategy cannot be made."""

FORMULAS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "proportional": lambda n, e: n,
    "uniform": lambda n, e: n**0,
    "temperature": lambda n, e: np.sqrt(n),
    "annealed": lambda n, e: n ** (1 - 0.8 * e / 3),
    "round_robin": lambda n, e: n**0,
    "explicit": lambda n, e: np.array([1.0, 5.0, 2.0]),
    "adaptive": lambda n, e: n**0.5 if e == 0 else n**0.5 * (1 - np.array(list(SCORES.values()))),
}
"""What each strategy's probabilities are in proportion to, for sizes and the epoch of four, from 0."""

Make = Callable[..., Sampler]


@pytest.fixture(params=SAMPLERS.names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(name: str) -> Make:
    """Makes a sampler of every strategy in turn; the scores of an evaluation are told to those that listen."""

    def sampler(sizes: Mapping[str, int] = SIZES, *, epoch: int = 0, **basics: Any) -> Sampler:
        made = SAMPLERS.get(name)(sizes, **{"num_epochs": 4, **NEEDED.get(name, {}), **basics})
        for past in range(epoch):
            made.begin(past)
            made.observe({dataset: SCORES[dataset] for dataset in sizes})
        return made

    return sampler


def counted(sampler: Sampler, epoch: int) -> np.ndarray:
    return np.bincount(sampler.draws(epoch), minlength=len(sampler.names))


# ---------------------------------------------------------------------- the contract of all strategies


@pytest.mark.parametrize("epoch", [0, 1, 3])
@pytest.mark.parametrize("size", [None, 1000, "upsampled", "downsampled"])
def test_frequencies_are_those_of_the_formula(name: str, make: Make, epoch: int, size: int | str | None) -> None:
    sampler = make(seed=7, epoch=epoch, epoch_size=size)
    wanted = FORMULAS[name](np.array(list(SIZES.values()), dtype=float), epoch)
    shares = wanted / wanted.sum()
    counts = counted(sampler, epoch)
    assert sampler.probabilities(epoch) == pytest.approx(shares, rel=1e-9)
    assert chisquare(counts, shares * counts.sum()).pvalue > 0.05
    assert np.abs(counts - shares * counts.sum()).max() < 2  # no chance at all: rounded to whole rows


def test_counts_are_those_of_the_draws(make: Make) -> None:
    for size in (None, 3, 7, 1000, "upsampled", "downsampled"):
        for epoch in range(4):
            sampler = make(epoch=epoch, epoch_size=size)
            assert counted(sampler, epoch).tolist() == sampler.counts(epoch).tolist()
            assert len(sampler.draws(epoch)) == sampler.counts(epoch).sum() == sampler.epoch_size() > 0


def test_the_same_seed_and_epoch_draw_the_same(make: Make) -> None:
    for epoch in (0, 3):
        first, second = make(seed=5), make(seed=5)
        first.draws(epoch + 1)  # what was drawn before does not matter
        assert np.array_equal(first.draws(epoch), second.draws(epoch))


def test_other_epochs_and_seeds_draw_otherwise(make: Make) -> None:
    """Of those in turn the first dataset may be the same, so that a few are compared."""
    of_epochs = {make(seed=5).draws(epoch).tobytes() for epoch in range(3)}
    of_seeds = {make(seed=seed).draws(0).tobytes() for seed in range(8)}
    assert len(of_epochs) == 3
    assert len(of_seeds) > 1


def test_draws_are_positions_of_datasets_in_one_byte_each(make: Make) -> None:
    sampler = make(seed=1)
    assert sampler.names == tuple(SIZES)
    assert sampler.draws(0).dtype == np.uint8
    assert set(sampler.draws(0).tolist()) == {0, 1, 2}


def test_more_datasets_than_a_byte_can_tell_apart() -> None:
    sampler = UniformSampler({str(number): 1 for number in range(300)})
    assert set(sampler.draws(0).tolist()) == set(range(300))


def test_probabilities_are_a_distribution(make: Make) -> None:
    for epoch in (0, 3, 50):
        probabilities = make(epoch=min(epoch, 3)).probabilities(epoch)
        assert probabilities.shape == (len(SIZES),)
        assert (probabilities > 0).all()
        assert probabilities.sum() == pytest.approx(1.0)


def test_draws_are_mixed(make: Make) -> None:
    """The first and the second half of an epoch hold the datasets in like shares."""
    draws = make(seed=7).draws(0)
    halves = [np.bincount(half, minlength=len(SIZES)) / len(half) for half in np.array_split(draws, 2)]
    assert np.abs(halves[0] - halves[1]).max() < 0.05


def test_every_dataset_is_drawn_where_the_epoch_has_room(make: Make) -> None:
    sizes = {"films": 10**6, "orders": 10**3, "pairs": 1}
    for size in (3, 4, 50):
        assert make(sizes, epoch_size=size).counts(0).min() >= 1
    assert make(sizes, epoch_size=2).counts(0).sum() == 2


def test_an_upsampled_epoch_is_the_least_that_draws_every_row(make: Make) -> None:
    sampler = make(epoch_size="upsampled")
    sizes, shares = np.array(list(SIZES.values())), np.array([sampler.probabilities(epoch) for epoch in range(4)])
    assert (shares * sampler.epoch_size() >= sizes - 1e-6).all()
    assert (shares * (sampler.epoch_size() - 1) < sizes - 1e-6).any()


def test_a_downsampled_epoch_is_the_most_that_draws_no_row_twice(make: Make) -> None:
    sampler = make(epoch_size="downsampled")
    sizes, shares = np.array(list(SIZES.values())), np.array([sampler.probabilities(epoch) for epoch in range(4)])
    assert (shares * sampler.epoch_size() <= sizes + 1e-6).all()
    assert (shares * (sampler.epoch_size() + 1) > sizes + 1e-6).any()
    assert (sampler.counts(0) <= sizes).all()


def test_the_epoch_keeps_its_size_when_shares_move(make: Make) -> None:
    sampler = make(epoch_size="upsampled")
    size = sampler.epoch_size()
    sampler.observe(SCORES)
    assert {len(sampler.draws(epoch)) for epoch in range(4)} == {size}


def test_one_dataset_is_drawn_always(name: str) -> None:
    options = {"weights": {"films": 2}} if name == "explicit" else {}
    assert set(SAMPLERS.get(name)({"films": 12}, **options).draws(0).tolist()) == {0}


def test_an_empty_dataset_is_refused(make: Make) -> None:
    with pytest.raises(SpecError, match="dataset 'pairs' has no rows"):
        make({"films": 3, "pairs": 0})
    with pytest.raises(SpecError, match="there is no dataset"):
        make({})


def test_an_unknown_option_is_refused_and_those_there_are_named(name: str, make: Make) -> None:
    with pytest.raises(SpecError, match=r"Sampler has no option 'temprature'; use ") as error:
        make(temprature=2)
    assert all(repr(option) in str(error.value) for option in SAMPLERS.get(name).options())
    with pytest.raises(SpecError, match="has no option 'seed'"):
        SAMPLERS.get(name).check_options({"seed": 1})


def test_every_option_is_documented_and_checked(name: str) -> None:
    kind = SAMPLERS.get(name)
    for option in kind.options():
        assert f"{option}: " in (kind.__doc__ or "")
        for wrong in (-1, float("nan"), "much", True):
            with pytest.raises(SpecError, match=f"{option} is "):
                kind(SIZES, **{**NEEDED.get(name, {}), option: wrong})


def test_every_strategy_names_formula_and_source(name: str) -> None:
    document = SAMPLERS.get(name).__doc__ or ""
    assert "`p_i" in document
    assert "https://" in document


def test_state_goes_through_json(make: Make) -> None:
    sampler, other = make(epoch=2), make()
    other.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    for epoch in range(4):
        assert np.array_equal(other.draws(epoch), sampler.draws(epoch))


@pytest.mark.parametrize("size", [0, -5, True, 2.5, "all"])
def test_a_wrong_epoch_size_is_refused(size: Any) -> None:
    with pytest.raises(SpecError, match=r"epoch_size is .*; give a whole number of at least 1, or 'upsampled'"):
        ProportionalSampler(SIZES, epoch_size=size)


def test_every_strategy_has_a_formula_here() -> None:
    """So that none is registered without being compared with one."""
    files = {kind for kind in SAMPLERS.names() if SAMPLERS.get(kind).__module__.startswith("hf_mtl.")}
    assert set(FORMULAS) == files


# ---------------------------------------------------------------------- one by one


def test_proportional_draws_every_row_once() -> None:
    for sizes in (SIZES, {"a": 5_000_001, "b": 3, "c": 77_777}, {str(n): n + 1 for n in range(50)}):
        sampler = ProportionalSampler(sizes, seed=3)
        assert sampler.counts(4).tolist() == list(sizes.values())
        for size in ("upsampled", "downsampled"):
            assert ProportionalSampler(sizes, epoch_size=size).epoch_size() == sum(sizes.values())


def test_temperature_one_is_proportional_and_infinity_is_uniform() -> None:
    proportional, uniform = ProportionalSampler(SIZES, seed=2), UniformSampler(SIZES, seed=2)
    one = TemperatureSampler(SIZES, seed=2, temperature=1)
    assert np.array_equal(one.draws(1), proportional.draws(1))
    for much in (1e9, float("inf")):
        assert np.array_equal(TemperatureSampler(SIZES, seed=2, temperature=much).draws(1), uniform.draws(1))


def test_a_low_temperature_draws_the_largest_dataset_alone() -> None:
    assert TemperatureSampler(SIZES, temperature=1e-3).probabilities(0).tolist() == [1.0, 0.0, 0.0]


def test_annealing_goes_from_proportional_to_nearly_uniform() -> None:
    sampler = AnnealedSampler(SIZES, num_epochs=2.5)  # begins three epochs
    assert sampler.probabilities(0) == pytest.approx(ProportionalSampler(SIZES).probabilities(0))
    assert sampler.probabilities(2) == pytest.approx(TemperatureSampler(SIZES, temperature=5).probabilities(0))
    assert sampler.probabilities(2) == pytest.approx(sampler.probabilities(9))
    alone = AnnealedSampler(SIZES, num_epochs=1)
    assert alone.probabilities(0) == pytest.approx(sampler.probabilities(0))
    other = AnnealedSampler(SIZES, num_epochs=2, first_exponent=0, last_exponent=1)
    assert other.probabilities(0) == pytest.approx([1 / 3] * 3)
    assert other.probabilities(1) == pytest.approx(sampler.probabilities(0))


def test_round_robin_takes_turns_over_all_epochs() -> None:
    for seed in range(3):
        sampler = RoundRobinSampler(SIZES, seed=seed, epoch_size=10)
        draws = np.concatenate([sampler.draws(epoch) for epoch in range(4)]).astype(int)
        assert np.all(np.diff(draws) % 3 == 1)


def test_explicit_weights_may_leave_a_dataset_out() -> None:
    sampler = ExplicitSampler(SIZES, weights={**WEIGHTS, "orders": 0}, epoch_size="upsampled")
    assert sampler.counts(0)[1] == 0
    assert sampler.epoch_size() == 12_000  # 4000 rows at a share of 1/3


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        (None, "weights has no 'films'"),
        ({"films": 1, "orders": 1}, "weights has no 'pairs'; give a weight for each of 'films', 'orders', 'pairs'"),
        ({**WEIGHTS, "news": 1}, "weights has 'news'; give a weight for each of"),
        ({**WEIGHTS, "pairs": -1}, r"weights\['pairs'\] is -1; give a number of at least 0"),
        ({**WEIGHTS, "pairs": "many"}, r"weights\['pairs'\] is 'many'"),
        (dict.fromkeys(SIZES, 0), "give at least one above 0"),
        ({**WEIGHTS, "pairs": float("inf")}, "none that is infinite"),
        ([1, 2, 3], r"weights is \[1, 2, 3\]; give a mapping"),
    ],
)
def test_wrong_weights_are_refused(weights: Any, problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        ExplicitSampler(SIZES, weights=weights)


def adaptive(**options: Any) -> AdaptiveSampler:
    sizes, tasks = {"films": 300, "orders": 100}, {"films": ["sentiment"], "orders": ["intent", "slots"]}
    return AdaptiveSampler(sizes, tasks=tasks, **options)


def test_adaptive_follows_the_gap_from_the_next_epoch_on() -> None:
    sampler = adaptive(temperature=1)
    sampler.begin(0)
    sampler.observe({"sentiment": 0.9, "intent": 0.8, "slots": 0.2})
    assert sampler.probabilities(0) == pytest.approx([0.75, 0.25])
    assert sampler.probabilities(1) == pytest.approx([300 * 0.1 / 80, 100 * 0.5 / 80])
    sampler.observe({"sentiment": 0.5, "intent": 0.5, "slots": 0.5})  # a second one in the same epoch takes its place
    assert sampler.probabilities(1) == pytest.approx([0.75, 0.25])
    sampler.begin(1)
    sampler.observe({"sentiment": 1.0, "intent": 0.5, "slots": 0.5})
    assert sampler.probabilities(1) == pytest.approx([0.75, 0.25])
    assert sampler.probabilities(2) == pytest.approx([300 * 0.02 / 56, 100 * 0.5 / 56])  # the floor


def test_adaptive_measures_the_gap_to_the_single_task_score() -> None:
    sampler = adaptive(references={"sentiment": 0.9, "intent": 0.8}, temperature=float("inf"), floor=0.01)
    sampler.observe({"sentiment": 0.8, "intent": 0.9, "slots": 0.59})
    assert sampler.probabilities(0) == pytest.approx([0.1 / 0.31, 0.21 / 0.31])  # intent is above: the floor


def test_adaptive_stands_scores_of_any_range() -> None:
    sampler = adaptive(temperature=float("inf"))
    sampler.observe({"sentiment": -0.4, "intent": 25.0, "slots": 1.0})
    assert sampler.probabilities(0) == pytest.approx([1.0 / 1.02, 0.02 / 1.02])


def test_a_task_that_is_not_evaluated_has_the_mean_gap() -> None:
    sampler = adaptive(temperature=float("inf"))
    sampler.observe({"intent": 0.8, "slots": 0.6})
    assert sampler.probabilities(0) == pytest.approx([0.5, 0.5])


def test_whole_numbers_are_divided_without_remainder() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        shares = generator.random(generator.integers(1, 9)) ** 6 * (generator.random() < 0.9)
        shares[0] += 1e-3
        total = int(generator.integers(1, 5000))
        counts = apportion(shares, total)
        assert counts.sum() == total
        assert (counts[shares > 0] >= 1).all() or total < (shares > 0).sum()
        quotas = shares / shares.sum() * total
        if quotas.min() >= 1:
            assert np.abs(counts - quotas).max() < 1
        order = np.argsort(shares, kind="stable")
        assert (np.diff(counts[order]) >= -1).all()  # more of a larger share, but for the rounding
