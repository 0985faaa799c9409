"""Shapley values of words: what each adds to the words before it, on average over orders of reading them in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from hf_mtl.explain.methods._removal import RemovalMethod, check_whole
from hf_mtl.explain.methods.base import Attribution
from hf_mtl.explain.subject import Forward, Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target
from hf_mtl.registry import EXPLAINERS


@EXPLAINERS.register("shapley")
@dataclass(frozen=True)
class Shapley(RemovalMethod):
    """`a_i = mean over orders of S(i and the words before it) - S(the words before it)`, for the target's score `S`.

    The orders come in pairs, each drawn one with its reverse: what a word adds early and what it adds late then balance
    (antithetic sampling; Mitchell et al. 2022, "Sampling Permutations for Shapley Value Estimation",
    https://arxiv.org/abs/2104.12199). Values of every order add up to `S(text) - S(no words)`, so those returned do.
    Where a text has so few words that all their subsets are no more than an estimate would read, the values are exact.
    Shapley 1953; for models Štrumbelj and Kononenko 2010, https://jmlr.org/papers/v11/strumbelj10a.html.

    captum's `ShapleyValueSampling` has the same limit. It reads one position of an order at a time, without pairs, can
    leave no tokens out, and would read all variants again for each task; here they are read together, shortest with
    shortest, each once.

    Args:
        pairs: number of pairs of orders. A text is read at most `2 * pairs * (num_units - 1) + 2` times.
        seed: seed of the orders.
        perturb: how words are taken away: `"delete"` or `"mask"`.

    Raises:
        SpecError: an option is not allowed.
    """

    pairs: int = 5
    seed: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("pairs", self.pairs, least=1)
        check_whole("seed", self.seed, least=0)

    def attribute(
        self, subject: Subject, text: ExplainedText, forward: Forward, targets: Mapping[str, Target]
    ) -> dict[str, Attribution]:
        num_units = len(text.units)
        kept, values_of = self._plan(num_units)
        scores = self.scores(subject, text, kept, targets)
        whole, empty = int(kept.sum(axis=1).argmax()), int(kept.sum(axis=1).argmin())
        found: dict[str, Attribution] = {}
        for task, own in scores.items():
            values, difference = values_of(own), float(own[whole] - own[empty])
            missed = abs(float(values.sum()) - difference)
            found[task] = Attribution(
                scores=values,
                baseline=f"{self.baseline}, word after word",
                convergence=missed / abs(difference) if difference else missed,
            )
        return found

    def _plan(self, num_units: int) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """Return the variants to read, bool `(variants, num_units)`, and what makes values of their scores."""
        budget = 2 * self.pairs * (num_units - 1) + 2
        if num_units < 2 or 2**num_units <= budget:
            return subsets(num_units), lambda scores: exact_values(scores, num_units)
        orders = antithetic_orders(num_units, self.pairs, np.random.default_rng(self.seed))
        return prefixes(orders), lambda scores: values_of_orders(scores, orders)


def antithetic_orders(num_units: int, pairs: int, generator: np.random.Generator) -> np.ndarray:
    """Draw orders, each followed by its reverse.

    Returns:
        `(2 * pairs, num_units)`; each row holds every index once.
    """
    drawn = [generator.permutation(num_units) for _ in range(pairs)]
    return np.stack([order for one in drawn for order in (one, one[::-1])])


def prefixes(orders: np.ndarray) -> np.ndarray:
    """Return what is there after each step of each order, nothing first.

    Args:
        orders: `(orders, num_units)`.

    Returns:
        Bool `(orders * (num_units + 1), num_units)`.

    Example:
        >>> prefixes(np.array([[1, 0]])).astype(int).tolist()
        [[0, 0], [0, 1], [1, 1]]
    """
    num_units = orders.shape[1]
    step = np.argsort(orders, axis=1)  # at which step each unit comes in
    there = step[:, None, :] < np.arange(num_units + 1)[None, :, None]  # (orders, num_units + 1, num_units)
    return there.reshape(-1, num_units)


def values_of_orders(scores: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Return what each unit adds, on average over the orders.

    Args:
        scores: scores of `prefixes(orders)`, `(orders * (num_units + 1),)`.
        orders: `(orders, num_units)`.

    Returns:
        `(num_units,)`.

    Example:
        >>> values_of_orders(np.array([0.0, 5.0, 6.0]), np.array([[1, 0]])).tolist()
        [1.0, 5.0]
    """
    added = np.diff(scores.reshape(len(orders), -1), axis=1)
    by_unit = np.take_along_axis(added, np.argsort(orders, axis=1), axis=1)
    return by_unit.mean(axis=0)


def subsets(num_units: int) -> np.ndarray:
    """Return all subsets, that of the bits of 0, 1, 2, ... in this order, bool `(2 ** num_units, num_units)`."""
    return (np.arange(2**num_units)[:, None] >> np.arange(num_units)) % 2 == 1


def exact_values(scores: np.ndarray, num_units: int) -> np.ndarray:
    """Return `a_i = sum over S without i of |S|! (n - |S| - 1)! / n! * (v(S and i) - v(S))`.

    Args:
        scores: `v`, the scores of `subsets(num_units)`.
        num_units: `n`.

    Example:
        >>> exact_values(np.array([0.0, 1.0, 2.0, 7.0]), 2).tolist()
        [3.0, 4.0]
    """
    numbers = np.arange(len(scores))
    sizes = subsets(num_units).sum(axis=1)
    values = np.zeros(num_units)
    for unit in range(num_units):
        without = numbers[(numbers >> unit) % 2 == 0]
        weights = np.array([1 / (num_units * math.comb(num_units - 1, size)) for size in sizes[without]])
        values[unit] = weights @ (scores[without | (1 << unit)] - scores[without])
    return values
