"""A linear-chain conditional random field: its partition function, best path, marginals, and the rules of span tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FORBIDDEN = -1e9
"""Added to a score that must not be: finite, so that gradients stay numbers, and out of reach of any other score."""


@dataclass(frozen=True)
class Chains:
    """Scores of all label sequences of some chains:

        score(y) = starts[y_1] + sum_i emissions[i, y_i] + sum_i transitions[y_i, y_(i+1)] + ends[y_n]

    Source: Lafferty, McCallum and Pereira, Conditional random fields: probabilistic models for segmenting and labeling
    sequence data, 2001; Rabiner, A tutorial on hidden Markov models, 1989, for the recursions.

    Args:
        emissions: `(chains, length, num_labels)`.
        lengths: items of each chain, which stand on the left, `(chains,)`; chains of none score 0.
        transitions: of each chain, from a label (second axis) to the next, `(chains, num_labels, num_labels)`.
        starts: `(chains, num_labels)`.
        ends: `(chains, num_labels)`.

    Example:
        >>> nothing = torch.zeros(1, 2)
        >>> chains = Chains(torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]), torch.tensor([2]), torch.zeros(1, 2, 2),
        ...                 nothing, nothing)
        >>> chains.best_paths().tolist(), chains.score(torch.tensor([[0, 1]])).tolist()
        ([[0, 1]], [4.0])
    """

    emissions: Tensor
    lengths: Tensor
    transitions: Tensor
    starts: Tensor
    ends: Tensor

    @property
    def real(self) -> Tensor:
        """Which items are no padding, bool `(chains, length)`."""
        return torch.arange(self.emissions.shape[1], device=self.lengths.device) < self.lengths[:, None]

    def log_partition(self) -> Tensor:
        """Return `log sum_y exp score(y)`, `(chains,)`, by the forward recursion."""
        if self.emissions.shape[1] == 0:
            return self.emissions.sum(dim=(1, 2))
        real = self.real
        alpha = self.starts + self.emissions[:, 0]  # (chains, num_labels)
        for place in range(1, self.emissions.shape[1]):
            following = (alpha[:, :, None] + self.transitions).logsumexp(dim=1) + self.emissions[:, place]
            alpha = torch.where(real[:, place, None], following, alpha)
        return torch.where(self.lengths > 0, (alpha + self.ends).logsumexp(dim=-1), 0.0)

    def score(self, labels: Tensor) -> Tensor:
        """Return the score of one label sequence per chain.

        Args:
            labels: `(chains, length)`; what stands at padding is not read, but must be a label.

        Returns:
            `(chains,)`.
        """
        if self.emissions.shape[1] == 0:
            return self.emissions.sum(dim=(1, 2))
        real = self.real
        emitted = self.emissions.gather(2, labels[:, :, None]).squeeze(2) * real
        chain = torch.arange(len(labels), device=labels.device)[:, None]
        passed = self.transitions[chain, labels[:, :-1], labels[:, 1:]] * real[:, 1:]
        last = labels.gather(1, (self.lengths[:, None] - 1).clamp(min=0))
        around = self.starts.gather(1, labels[:, :1]) + self.ends.gather(1, last)
        return emitted.sum(dim=1) + passed.sum(dim=1) + around.squeeze(1) * (self.lengths > 0)

    def best_paths(self) -> Tensor:
        """Return the label sequence of the highest score, `(chains, length)`, -1 at padding (Viterbi)."""
        real, length = self.real, self.emissions.shape[1]
        paths = torch.full(real.shape, -1, dtype=torch.long, device=real.device)
        if length == 0:
            return paths
        best, back = self.starts + self.emissions[:, 0], []
        for place in range(1, length):
            reached, origins = (best[:, :, None] + self.transitions).max(dim=1)
            best = torch.where(real[:, place, None], reached + self.emissions[:, place], best)
            back.append(origins)
        label = (best + self.ends).argmax(dim=-1)
        for place in range(length - 1, -1, -1):
            paths[:, place] = torch.where(real[:, place], label, -1)
            if place:
                origin = back[place - 1].gather(1, label[:, None]).squeeze(1)
                label = torch.where(real[:, place], origin, label)
        return paths

    def marginals(self) -> Tensor:
        """Return P(y_i = label), `(chains, length, num_labels)`, 0 at padding; the gradient of the log-partition."""
        with torch.inference_mode(False), torch.enable_grad():
            emissions = self.emissions.detach().clone().requires_grad_()
            rest = [part.detach().clone() for part in (self.transitions, self.starts, self.ends)]
            total = Chains(emissions, self.lengths.clone(), *rest).log_partition().sum()
            (found,) = torch.autograd.grad(total, emissions)
        return found


@dataclass(frozen=True)
class TagRules:
    """Which tags may follow each other, as what is added to scores: 0, or `FORBIDDEN`.

    Args:
        transitions: `(num_labels, num_labels)`, from a label to the next.
        starts: `(num_labels,)`.
        ends: `(num_labels,)`.
    """

    transitions: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, labels: Sequence[str], *, span_tags: bool) -> TagRules:
        """Return the rules of a label set.

        Of IOB2 an `I-` follows a `B-` or `I-` of its type. Where labels have `E-` or `S-` (IOBES), an `I-` or `E-` does
        so, and after a `B-` or `I-` nothing else may come, nor may a text end there.

        Args:
            labels: the tags.
            span_tags: whether they are span tags; plain tags may follow each other as they like.

        Example:
            >>> rules = TagRules.of(["O", "B-a", "I-a"], span_tags=True)
            >>> (rules.transitions == 0).astype(int).tolist(), (rules.starts == 0).astype(int).tolist()
            ([[1, 1, 0], [1, 1, 1], [1, 1, 1]], [1, 1, 0])
        """
        count = len(labels)
        allowed, starts, ends = np.ones((count, count), bool), np.ones(count, bool), np.ones(count, bool)
        if span_tags:
            closed = any(label[:2] in ("E-", "S-") for label in labels)
            opens = [label[:2] in ("B-", "I-") for label in labels]
            continues = [label[:2] in ("I-", "E-") for label in labels]
            for first, one in enumerate(labels):
                for second, other in enumerate(labels):
                    joined = opens[first] and continues[second] and one[2:] == other[2:]
                    broken = closed and opens[first]
                    allowed[first, second] = joined or not (continues[second] or broken)
            starts, ends = ~np.array(continues), ~np.array(opens) | (not closed)
        return cls(*(np.where(part, 0.0, FORBIDDEN) for part in (allowed, starts, ends)))

    def applied(self, chains: Chains) -> Chains:
        """Return chains that score sequences against the rules out of reach."""
        like = chains.emissions
        transitions, starts, ends = (
            torch.as_tensor(part, dtype=like.dtype, device=like.device)
            for part in (self.transitions, self.starts, self.ends)
        )
        return Chains(
            like, chains.lengths, chains.transitions + transitions, chains.starts + starts, chains.ends + ends
        )
