"""Which tokens of a row are masked, and what stands in their place: for tasks whose labels are these tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_mtl.configuration import TaskSpec, select_tasks
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.registry import HEADS

if TYPE_CHECKING:
    from hf_mtl.data.recipe import TaskSource

EPOCH = "epoch"
"""Key of the epoch in a row that training draws; rows of an evaluation have none."""
MASK_PROBABILITY = 0.15
NOT_EXPLAINED = "is not explained"
NOWHERE = -1
"""Fills up the places of rows with fewer masks than another."""


@dataclass(frozen=True)
class Masking:
    """Masks rows of tokens: the same row anew in each epoch, and always the same where no epoch is given.

    Of the tokens that are not special `max(1, round(probability * count))` are chosen. Of these 80% become the mask
    token, 10% a random token, and 10% stay (Devlin et al. 2019, BERT, https://arxiv.org/abs/1810.04805, appendix A.1).
    All is drawn from the seed, the epoch and the row's own tokens (Liu et al. 2019, RoBERTa,
    https://arxiv.org/abs/1907.11692, mask anew each time), so it depends neither on the batch nor on processes, workers
    or the point that a run was resumed from. Rows of the same tokens are masked alike in an epoch.

    Args:
        mask_token_id: id of the mask token.
        special_ids: ids of tokens that are never masked, the mask token among them.
        vocab_size: number of tokens that random ones are drawn from, special tokens left out.
        seed: seed of what training draws; an evaluation is the same for all seeds.

    Example:
        >>> masking = Masking(mask_token_id=4, special_ids=(0, 1, 4), vocab_size=20)
        >>> ids, places = masking([0, 7, 8, 9, 10, 11, 1], 0.4, epoch=3)
        >>> len(places), [int(ids[place]) for place in (0, 6)]
        (2, [0, 1])
    """

    mask_token_id: int
    special_ids: tuple[int, ...]
    vocab_size: int
    seed: int = 0

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> Masking:
        """Return what masks the rows of a tokenizer.

        Raises:
            ModelError: it has no mask token.
        """
        mask: Any = tokenizer.mask_token_id
        if not isinstance(mask, int):
            raise ModelError(
                f"{type(tokenizer).__name__} has no mask token, which masked_language_modeling needs",
                mend="use an encoder that was pretrained with masks, such as BERT, or leave the task out",
            )
        return cls(mask, tuple(tokenizer.all_special_ids), len(tokenizer), seed)

    @cached_property
    def _special(self) -> np.ndarray:
        return np.array(sorted(self.special_ids), dtype=np.int64)

    @cached_property
    def _replacements(self) -> np.ndarray:
        return np.setdiff1d(np.arange(self.vocab_size), self._special)

    def __call__(
        self, ids: Sequence[int], probability: float, *, epoch: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mask a row.

        Args:
            ids: its tokens, special tokens included.
            probability: share of its tokens that is chosen.
            epoch: the epoch of a training, from 0; not given where the row is always to be masked alike.

        Returns:
            The tokens with some replaced, `(num_tokens,)`, and the places of those that were chosen, ascending,
            `(num_masks,)`; none where all tokens are special.
        """
        tokens = np.array(ids, dtype=np.int64)
        free = np.flatnonzero(~np.isin(tokens, self._special))
        if not len(free):
            return tokens, free
        draw = self._generator(tokens, epoch)
        chosen = np.sort(draw.permutation(free)[: max(1, round(probability * len(free)))])
        kind, random = draw.random(len(chosen)), draw.integers(len(self._replacements), size=len(chosen))
        replaced = np.where(kind < 0.8, self.mask_token_id, self._replacements[random])
        tokens[chosen] = np.where(kind < 0.9, replaced, tokens[chosen])
        return tokens, chosen

    def _generator(self, tokens: np.ndarray, epoch: int | None) -> np.random.Generator:
        drawn = "evaluation" if epoch is None else f"{self.seed}/{epoch}"
        key = blake2b(tokens.astype("<i8").tobytes(), digest_size=16, key=blake2b(drawn.encode()).digest())
        return np.random.Generator(np.random.Philox(key=np.frombuffer(key.digest(), dtype="<u8")))

    def masks_in(self, ids: Sequence[int]) -> np.ndarray:
        """Return the places of the mask tokens that a row holds itself."""
        return np.flatnonzero(np.asarray(ids) == self.mask_token_id)


def masked_tasks(specs: Sequence[TaskSpec]) -> list[TaskSpec]:
    """Return the tasks whose labels are tokens of their own rows."""
    return [spec for spec in specs if HEADS.get(spec.type).masks_tokens]


def select_unmasked(specs: Sequence[TaskSpec], names: Sequence[str] | None, problem: str) -> tuple[TaskSpec, ...]:
    """Select tasks as `select_tasks` does, for what cannot be done with tasks that mask tokens.

    Args:
        specs: the tasks.
        names: those that are wanted; where not given all others.
        problem: what cannot be done: `"cannot be exported"`.

    Raises:
        SpecError: there is no such task, or one that is named, or every one, masks tokens.
    """
    chosen = select_tasks(specs, names)
    masked = masked_tasks(chosen)
    if masked and (names is not None or len(masked) == len(chosen)):
        where = f"task {masked[0].name!r}"
        raise SpecError(f"{masked[0].type} {problem}", where=where, mend="name other tasks")
    return tuple(spec for spec in chosen if spec not in masked)


def probability_of(spec: TaskSpec) -> float:
    """Return the share of a row's tokens that a task masks."""
    return MASK_PROBABILITY if spec.mask_probability is None else spec.mask_probability


def mask_batch(
    tasks: Mapping[str, TaskSpec], features: Sequence[Mapping[str, Any]], masking: Masking | None
) -> tuple[list[Any], dict[str, Tensor], dict[str, list[Any]]]:
    """Mask the rows of a batch that are labelled for tasks of masked tokens; others stay as they are.

    Args:
        tasks: these tasks, by the key that says of a row whether it is labelled: its places in an evaluation.
        features: the rows, as `MultiTaskCollator` takes them.
        masking: what masks rows; without it nothing is replaced, and the places are those of an evaluation.

    Returns:
        The token ids of each row; per task the places of its masks `(batch_size, masks)`, filled up with -1: those
        drawn in labelled rows, and the mask tokens that others hold; and per task the masked tokens of each row, `None`
        where it has no label.
    """
    ids: list[Any] = [feature["input_ids"] for feature in features]
    positions: dict[str, Tensor] = {}
    labels: dict[str, list[Any]] = {}
    for key, spec in tasks.items():
        places: list[np.ndarray] = []
        labels[spec.name] = [None] * len(features)
        for row, feature in enumerate(features):
            own, stored = feature["input_ids"], feature.get(key)
            if stored is None:
                places.append(np.zeros(0, dtype=np.int64) if masking is None else masking.masks_in(own))
                continue
            if masking is None:
                places.append(np.asarray(stored, dtype=np.int64))
            else:
                ids[row], chosen = masking(own, probability_of(spec), epoch=feature.get(EPOCH))
                places.append(chosen)
            labels[spec.name][row] = np.asarray(own, dtype=np.int64)[places[-1]].tolist()
        positions[spec.name] = _filled(places)
    return ids, positions, labels


def _filled(rows: Sequence[np.ndarray]) -> Tensor:
    values = np.full((len(rows), max(map(len, rows), default=0)), NOWHERE, dtype=np.int64)
    for row, own in enumerate(rows):
        values[row, : len(own)] = own
    return torch.from_numpy(values)


def check_apart(tasks: Sequence[TaskSource]) -> None:
    """Check that no other task reads the rows of one that masks tokens: it would see them masked.

    Raises:
        SpecError: another task has the same dataset.
    """
    for task in tasks:
        others = [other.spec.name for other in tasks if other.dataset == task.dataset and other is not task]
        if others and HEADS.get(task.spec.type).masks_tokens:
            raise SpecError(
                f"it masks the rows of dataset {task.dataset!r}, which task {others[0]!r} reads as they are",
                where=f"task {task.spec.name!r}",
                mend=f"list the files of {task.dataset!r} as a second dataset, and name that",
            )


def check_masking(specs: Sequence[TaskSpec], tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Check that there is what masks rows, before any is read.

    Args:
        specs: the tasks that are trained.
        tokenizer: the tokenizer of the training.

    Raises:
        SpecError: a task masks tokens, and no tokenizer is given.
        ModelError: the tokenizer has no mask token.
    """
    for spec in masked_tasks(specs):
        if tokenizer is None:
            raise SpecError(
                "its rows are masked, which needs the tokenizer",
                where=f"task {spec.name!r}",
                mend="give processing_class",
            )
        try:
            Masking.of(tokenizer)
        except ModelError as error:
            raise error.at(f"task {spec.name!r}") from None
