"""How faithful an order of words is to the model: what its answer loses without the first, or with the first only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_mtl.explain.subject import Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target

STEPS = 10
"""Words are taken away in tenths of a text: the first 10%, the first 20%, ..., all."""

Effect = Callable[[np.ndarray], np.ndarray]
"""From what is taken away, bool `(variants, num_units)`, to how far the answer moves, `(variants,)`."""


class Variants:
    """The answer to one text with words taken away; each variant is read once.

    Args:
        subject: the model.
        text: the text.
        task: the task.
        target: the answer.
        how: how words are taken away, `"delete"` or `"mask"`.
    """

    def __init__(self, subject: Subject, text: ExplainedText, task: str, target: Target, how: str) -> None:
        self.subject = subject
        self.text = text
        self.task = task
        self.target = target
        self.how = how
        self._known: dict[bytes, tuple[float, bool]] = {}

    def read(self, removed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability of the answer, or the value, in each variant, and whether it still is the answer.

        Args:
            removed: bool `(variants, num_units)`.

        Returns:
            Float64 and bool, both `(variants,)`.
        """
        keys = [row.tobytes() for row in removed]
        new = {key: row for key, row in zip(keys, removed, strict=True) if key not in self._known}
        if new:
            rows, targets = np.stack([*new.values()]), {self.task: self.target}
            measured = self.subject.measure(self.text, rows, targets, how=self.how)[self.task]
            answers = zip(measured.probabilities.tolist(), measured.holds.tolist(), strict=True)
            self._known |= dict(zip(new, answers, strict=True))
        found = [self._known[key] for key in keys]
        return np.array([p for p, _ in found]), np.array([holds for _, holds in found], dtype=bool)

    def effect(self, removed: np.ndarray) -> np.ndarray:
        """Return `p(text) - p(variant)`; of a value that is predicted the absolute change, `|v(text) - v(variant)|`.

        Args:
            removed: bool `(variants, num_units)`.
        """
        nothing = np.zeros((1, removed.shape[1]), dtype=bool)
        changes = self.read(nothing)[0] - self.read(removed)[0]
        return np.abs(changes) if self.subject.head(self.task).measure == "value" else changes


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """What the answer to a text loses along one order of its words.

    DeYoung et al. 2020, "ERASER", https://arxiv.org/abs/1911.03429; both are areas over the perturbation curve, over
    10%, 20%, ..., 100% of the words.

    Args:
        removed: what it loses without the first words, `(STEPS,)`.
        kept: what it loses where only the first words are left, `(STEPS,)`; the last, of the whole text, is 0.
        flips: 1 where it is another answer without the first few words, 0 where it is the same; in between for the mean
            over several orders, NaN for numbers, which do not flip.
    """

    removed: np.ndarray
    kept: np.ndarray
    flips: float

    @property
    def comprehensiveness(self) -> float:
        """Mean of `p(text) - p(text without the first words)`: the higher, the more the answer needs these words."""
        return float(self.removed.mean())

    @property
    def sufficiency(self) -> float:
        """Mean of `p(text) - p(the first words only)`: the lower, the better these words give the answer alone.

        Below 0 where they make it surer than the whole text does.
        """
        return float(self.kept.mean())


def faithfulness(variants: Variants, orders: Sequence[Sequence[int]], *, top: int = 3) -> list[Faithfulness]:
    """Measure orders of a text's words, all together.

    Args:
        variants: the text.
        orders: each all indices of the words, what is said to matter most first.
        top: number of words that are taken away to see whether the answer flips.
    """
    num_units = len(variants.text.units)
    masks = [masks_along(order, num_units, top=top) for order in orders]
    variants.read(np.unique(np.concatenate(masks), axis=0))  # in few batches; what follows is remembered
    numeric = variants.subject.head(variants.task).measure == "value"
    found: list[Faithfulness] = []
    for mask in masks:
        effects, holds = variants.effect(mask), variants.read(mask)[1]
        flips = float("nan") if numeric else float(not holds[-1])
        found.append(Faithfulness(effects[:STEPS], effects[STEPS : 2 * STEPS], flips))
    return found


def sizes_of_steps(num_units: int) -> np.ndarray:
    """Return how many words 10%, 20%, ..., 100% of a text are, rounded up, `(STEPS,)`.

    Example:
        >>> sizes_of_steps(12).tolist()
        [2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    """
    return -(-np.arange(1, STEPS + 1) * num_units // STEPS)


def masks_along(order: Sequence[int], num_units: int, *, top: int) -> np.ndarray:
    """Return what is taken away at each step: the first words, all but the first words, and the first `top`.

    Returns:
        Bool `(2 * STEPS + 1, num_units)`.
    """
    rank = np.empty(num_units, dtype=np.int64)
    rank[list(order)] = np.arange(num_units)
    first = rank < sizes_of_steps(num_units)[:, None]
    return np.concatenate([first, ~first, rank[None] < top])


def greedy_removal(effect: Effect, num_units: int) -> list[int]:
    """Find an order by search: at every step the word without which the answer moves furthest.

    Returns:
        All indices, the first taken away first.
    """
    return _greedy(effect, num_units, removing=True)


def greedy_choice(effect: Effect, num_units: int) -> list[int]:
    """Find an order by search: at every step the word that, with those chosen before, gives the answer best alone.

    Returns:
        All indices, the first chosen first.
    """
    return _greedy(effect, num_units, removing=False)


def _greedy(effect: Effect, num_units: int, *, removing: bool) -> list[int]:
    order: list[int] = []
    left = list(range(num_units))
    while left:
        tried = np.zeros((len(left), num_units), dtype=bool)
        tried[:, order] = True
        tried[np.arange(len(left)), left] = True
        effects = effect(tried) if removing else -effect(~tried)
        order.append(left.pop(int(effects.argmax())))
    return order
