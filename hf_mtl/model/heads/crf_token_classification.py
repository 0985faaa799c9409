"""One label for each word, all of a text chosen together: a conditional random field over the words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import SpecError
from hf_mtl.model.crf import Chains, TagRules
from hf_mtl.model.cross_entropy import IGNORE_INDEX, softmax
from hf_mtl.model.heads._tagging import OUTSIDE, TaggingHead, are_span_tags
from hf_mtl.model.heads.base import Words, refuse
from hf_mtl.model.targets import Target, Wanted
from hf_mtl.registry import HEADS

MOST_LABELS = 100
"""Each token's logits hold the transitions, which are as many as the labels' square."""


@HEADS.register("crf_token_classification")
class CrfTokenClassificationHead(TaggingHead):
    """Negative log-likelihood of a text's tags as one sequence, over the first tokens of its words.

        -log P(y | x) = log sum_y' exp score(y') - score(y),    divided by the labelled words

    with `score` of `hf_mtl.model.crf.Chains`. Words without a label are left out of the sequence. Answers are the best
    sequence of those that keep the rules of span tags, so that none that breaks them can come out; the score of a word
    is its probability among them. Labels `(batch_size, seq_len)` long, -100 where no labelled word begins.

    Logits are all that an answer is made of: each token's emissions, one per label, and after them what is the same for
    every token, the transitions from each label to each, row by row, and the scores to begin and to end with.

    Source: Lafferty, McCallum and Pereira, Conditional random fields, 2001; Huang, Xu and Yu, Bidirectional LSTM-CRF
    models for sequence tagging, 2015, https://arxiv.org/abs/1508.01991.

    Args:
        spec: the task, with at most 100 labels.
        hidden_size: size of the features the head reads.
        dropout: dropout of the features, used where the spec names none.
    """

    def __init__(self, spec: TaskSpec, hidden_size: int, *, dropout: float) -> None:
        super().__init__(spec, hidden_size, dropout=dropout)
        count = spec.num_labels
        self.transitions = nn.Parameter(torch.zeros(count, count))  # from a label (row) to the next
        self.starts = nn.Parameter(torch.zeros(count))
        self.ends = nn.Parameter(torch.zeros(count))

    @classmethod
    def validate_spec(cls, spec: TaskSpec) -> None:
        super().validate_spec(spec)
        refuse(spec, "class_weights", "label_smoothing")
        labels, where = spec.labels or (), f"task {spec.name!r}"
        if len(labels) > MOST_LABELS:
            raise SpecError(
                f"there are {len(labels)} labels, and {spec.type} takes at most {MOST_LABELS}",
                where=where,
                mend="use token_classification",
            )
        rules = tag_rules(labels)
        if not ((rules.starts == 0) & (rules.ends == 0)).any():
            raise SpecError(
                "no label may stand alone, so a text of one word has no valid tags", where=where,
                mend=f"add {OUTSIDE!r} to labels",
            )  # fmt: skip

    @classmethod
    def num_logits(cls, spec: TaskSpec) -> int:
        return spec.num_labels * (spec.num_labels + 3)

    def forward(self, features: Tensor) -> Tensor:
        emissions = self.output(features).float()  # (rows, seq_len, num_labels)
        shared = torch.cat([self.transitions.flatten(), self.starts, self.ends]).float()
        return torch.cat([emissions, shared.expand(*emissions.shape[:-1], -1)], dim=-1)

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        present = labels != IGNORE_INDEX
        lengths = present.sum(dim=1)
        # On a GPU nothing waits for a number to come back: what is left of a row is no part of its chain.
        longest = int(lengths.max()) if len(lengths) and logits.device.type == "cpu" else labels.shape[1]
        places = (~present).long().argsort(dim=1, stable=True)[:, :longest]  # the labelled words first, in their order
        chains = _chains(self.spec, logits.float(), places, lengths)
        return (chains.log_partition() - chains.score(labels.gather(1, places).clamp(min=0))).sum()

    def divergence_sum(self, logits: Tensor, others: Tensor, labels: Tensor) -> Tensor:
        count = self.spec.num_labels
        return super().divergence_sum(logits[..., :count], others[..., :count], labels)

    @classmethod
    def num_items(cls, spec: TaskSpec, labels: Tensor) -> Tensor:
        return (labels != IGNORE_INDEX).sum().float()

    @classmethod
    def best_tags(
        cls, spec: TaskSpec, logits: Sequence[np.ndarray], words: Sequence[Words | None]
    ) -> tuple[np.ndarray, np.ndarray]:
        firsts = [np.zeros(0, dtype=np.int64) if row is None else row.first_tokens for row in words]
        paths, marginals = _answers(spec, [row[own[own >= 0]] for row, own in zip(logits, firsts, strict=True)])
        seen = np.concatenate(firsts) >= 0
        best, scores = np.full(len(seen), -1, dtype=np.int64), np.zeros(len(seen))
        best[seen] = np.concatenate(paths)
        chances = np.concatenate(marginals)
        scores[seen] = np.minimum(chances[np.arange(len(chances)), best[seen]], 1.0)
        return best, scores

    @classmethod
    def target(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None, wanted: Wanted) -> Target:
        """Choose what is explained: the emissions of the words of a span, by the tags that are best for them alone."""
        assert words is not None
        count, own = spec.num_labels, logits[:, : spec.num_labels].copy()
        seen = words.first_tokens[words.first_tokens >= 0]
        if len(seen) and wanted.span is None:
            # The span is chosen by what the whole sequence makes of each word.
            (chances,) = _answers(spec, [logits[seen]])[1]
            likely = own.copy()
            likely[seen] = np.log(np.maximum(chances, 1e-300))
            wanted = replace(wanted, span=_ends_of(super().target(spec, likely, words, wanted)))
        if wanted.span is not None and wanted.span[1] <= len(words.spans):
            places = words.first_tokens[slice(*wanted.span)]
            (path,) = _answers(spec, [logits[places]])[0]
            own[places, path] = own[places].max(axis=1) + 1.0  # the order of the other labels stays
        found = super().target(spec, own, words, wanted)
        padding = np.zeros((len(found.weights), cls.num_logits(spec) - count))
        return replace(found, weights=np.concatenate([found.weights, padding], axis=1))

    @classmethod
    def probabilities(cls, spec: TaskSpec, logits: np.ndarray) -> np.ndarray:
        """Return what a word's emissions alone make of each label, `(..., num_labels)`."""
        return softmax(logits[..., : spec.num_labels])

    @classmethod
    def choice_probabilities(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None) -> np.ndarray:
        """Return the probability of each label for each word among the sequences that keep the rules."""
        chances = cls.probabilities(spec, logits)
        seen = np.zeros(0, dtype=np.int64) if words is None else words.first_tokens[words.first_tokens >= 0]
        if len(seen):
            # Where two words begin in one token the first of them keeps it, as its label does.
            chances[seen[::-1]] = _answers(spec, [logits[seen]])[1][0][::-1]
        return chances

    @classmethod
    def holds(cls, spec: TaskSpec, target: Target, logits: np.ndarray) -> np.ndarray:
        return (np.stack(_answers(spec, list(logits))[0]) == np.array(target.labels)).all(axis=-1)


@lru_cache(maxsize=64)
def tag_rules(labels: tuple[str, ...]) -> TagRules:
    """Return which of some tags may follow each other."""
    return TagRules.of(labels, span_tags=are_span_tags(labels))


def _chains(spec: TaskSpec, logits: Tensor, places: Tensor, lengths: Tensor) -> Chains:
    """Read chains out of logits.

    Args:
        spec: the task.
        logits: `(rows, seq_len, num_logits)`.
        places: the tokens that are the items of each row's chain, `(rows, longest)`.
        lengths: number of items of each row, `(rows,)`.
    """
    count, (rows, length) = spec.num_labels, logits.shape[:2]
    emissions, shared = logits[..., :count], logits[..., count:]
    emissions = emissions.gather(1, places[:, :, None].expand(-1, -1, count))
    # The same for every token: those of the first are read.
    own = shared[:, 0] if length else shared.new_zeros(rows, shared.shape[2])
    transitions, starts, ends = own.split([count**2, count, count], dim=1)
    return Chains(emissions, lengths, transitions.reshape(rows, count, count), starts, ends)


def _answers(spec: TaskSpec, words: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the best tags of rows among those that keep the rules, `(words,)`, and the marginals of all tags.

    Args:
        spec: the task.
        words: the logits of each row's words, `(words, num_logits)`.
    """
    lengths = [len(row) for row in words]
    filled = torch.zeros(len(words), max(lengths, default=0), CrfTokenClassificationHead.num_logits(spec))
    for place, row in enumerate(words):
        filled[place, : len(row)] = torch.from_numpy(np.asarray(row, dtype=np.float32))
    places = torch.arange(filled.shape[1]).expand(len(words), -1)
    chains = tag_rules(spec.labels or ()).applied(_chains(spec, filled.double(), places, torch.tensor(lengths)))
    paths, marginals = chains.best_paths().numpy(), chains.marginals().numpy()
    cut = [[row[:own] for row, own in zip(part, lengths, strict=True)] for part in (paths, marginals)]
    return cut[0], cut[1]


def _ends_of(target: Target) -> tuple[int, int]:
    """Return the words `[first, end)` of a target."""
    words: Any = target.words
    return words[0], words[-1] + 1
