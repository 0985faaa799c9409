"""The conditional random field against sums over all label sequences, and the rules of tags against seqeval."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from seqeval.scheme import IOB2, IOBES, Entities

from hf_mtl.model.crf import Chains, TagRules

LABELS, LENGTH = 3, 5


def chains_of(seed: int, *, scale: float = 2.0, dtype: torch.dtype = torch.float32) -> Chains:
    """Chains of 0 to 5 items, each with transitions of its own."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: scale * torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    lengths = torch.tensor([5, 1, 3, 0, 2])
    count = len(lengths)
    return Chains(draw(count, LENGTH, LABELS), lengths, draw(count, LABELS, LABELS), draw(count, LABELS),
                  draw(count, LABELS))  # fmt: skip


def all_scores(chains: Chains, row: int) -> dict[tuple[int, ...], float]:
    emissions, transitions = chains.emissions[row].double().numpy(), chains.transitions[row].double().numpy()
    starts, ends = chains.starts[row].double().numpy(), chains.ends[row].double().numpy()
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(emissions.shape[1]), repeat=int(chains.lengths[row])):
        score = starts[path[0]] + ends[path[-1]] if path else 0.0
        score += sum(emissions[place, label] for place, label in enumerate(path))
        score += sum(transitions[pair] for pair in itertools.pairwise(path))
        found[path] = float(score)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_partition_scores_paths_and_marginals_are_those_of_all_sequences(seed: int) -> None:
    chains = chains_of(seed)
    partition, paths, marginals = chains.log_partition(), chains.best_paths(), chains.marginals()
    assert partition.dtype == torch.float32
    for row, length in enumerate(chains.lengths.tolist()):
        scores = all_scores(chains, row)
        total = np.logaddexp.reduce(list(scores.values()))
        assert partition[row].item() == pytest.approx(total, abs=1e-4)
        best = max(scores, key=lambda path: scores[path])
        assert paths[row].tolist() == [*best, *[-1] * (LENGTH - length)]
        labels = torch.zeros(len(paths), LENGTH, dtype=torch.long)
        for path, score in random.Random(seed).sample(sorted(scores.items()), min(20, len(scores))):
            labels[row, :length] = torch.tensor(path)
            assert chains.score(labels)[row].item() == pytest.approx(score, abs=1e-4)
        for place, label in itertools.product(range(LENGTH), range(LABELS)):
            own = [np.exp(score - total) for path, score in scores.items() if place < length and path[place] == label]
            assert marginals[row, place, label].item() == pytest.approx(sum(own), abs=1e-5)


def test_gradients_agree_with_finite_differences() -> None:
    chains = chains_of(0, dtype=torch.float64)
    parts = [part.requires_grad_() for part in (chains.emissions, chains.transitions, chains.starts, chains.ends)]
    labels = torch.randint(0, LABELS, (len(chains.lengths), LENGTH), generator=torch.Generator().manual_seed(1))

    def loss(emissions: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        own = Chains(emissions, chains.lengths, *rest)
        return (own.log_partition() - own.score(labels)).sum()

    assert torch.autograd.gradcheck(loss, tuple(parts))


def test_padding_has_no_part_in_anything() -> None:
    chains = chains_of(1)
    other = Chains(
        torch.where(chains.real[:, :, None], chains.emissions, 1e4), chains.lengths, chains.transitions, chains.starts,
        chains.ends,
    )  # fmt: skip
    assert torch.equal(other.log_partition(), chains.log_partition())
    assert torch.equal(other.best_paths(), chains.best_paths())
    assert torch.equal(other.marginals(), chains.marginals())


def test_no_sequence_is_likelier_than_certain() -> None:
    chains = chains_of(2, scale=30.0)
    paths = chains.best_paths()
    assert (chains.score(paths.clamp(min=0)) <= chains.log_partition() + 1e-3).all()


def test_without_transitions_items_stand_for_themselves() -> None:
    emissions = torch.randn(4, 6, LABELS)
    nothing = torch.zeros(4, LABELS)
    chains = Chains(emissions, torch.full((4,), 6), torch.zeros(4, LABELS, LABELS), nothing, nothing)
    torch.testing.assert_close(chains.log_partition(), emissions.logsumexp(dim=-1).sum(dim=1))
    torch.testing.assert_close(chains.marginals(), emissions.softmax(dim=-1))
    assert torch.equal(chains.best_paths(), emissions.argmax(dim=-1))


def test_marginals_are_found_where_gradients_are_switched_off() -> None:
    wanted = chains_of(3).marginals()
    with torch.inference_mode():
        assert torch.equal(chains_of(3).marginals(), wanted)


@pytest.mark.parametrize(("prefixes", "scheme"), [("BI", IOB2), ("BIES", IOBES)])
def test_rules_allow_just_what_the_scheme_does(prefixes: str, scheme: type) -> None:
    """A sequence keeps the rules if every tag but `O` is part of a span that the scheme's strict reading finds."""
    labels = ["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("x", "y"))]
    rules = TagRules.of(labels, span_tags=True)
    allowed_some = 0
    for path in itertools.product(range(len(labels)), repeat=3):
        tags = [labels[label] for label in path]
        entities = Entities([tags], scheme=scheme).entities[0]
        covered = {place for entity in entities for place in range(entity.start, entity.end)}
        valid = covered == {place for place, tag in enumerate(tags) if tag != "O"}
        allowed = rules.starts[path[0]] == rules.ends[path[-1]] == 0 and all(
            rules.transitions[pair] == 0 for pair in itertools.pairwise(path)
        )
        assert allowed == valid, tags
        allowed_some += allowed
    assert allowed_some > 10


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_the_best_path_under_rules_is_the_best_of_those_that_keep_them(prefixes: str) -> None:
    labels = ["O", *(f"{prefix}-x" for prefix in prefixes)]
    rules = TagRules.of(labels, span_tags=True)
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: 4 * torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    count = len(labels)
    free = Chains(draw(30, 4, count), torch.full((30,), 4), draw(30, count, count), draw(30, count), draw(30, count))
    ruled = rules.applied(free)
    paths, marginals = ruled.best_paths(), ruled.marginals()
    broken = 0
    for row in range(30):
        kept = {path: score for path, score in all_scores(ruled, row).items() if score > -1e8}
        assert tuple(paths[row].tolist()) == max(kept, key=lambda path: kept[path])
        total = np.logaddexp.reduce(list(kept.values()))
        share = sum(np.exp(score - total) for path, score in kept.items() if path[1] == 1)
        assert marginals[row, 1, 1].item() == pytest.approx(share, abs=1e-9)
        broken += tuple(free.best_paths()[row].tolist()) not in kept
    assert broken > 5


def test_plain_tags_have_no_rules() -> None:
    rules = TagRules.of(["NOUN", "I-x", "VERB"], span_tags=False)
    assert not rules.transitions.any()
    assert not rules.starts.any()
    assert not rules.ends.any()
