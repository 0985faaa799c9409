"""Tags chosen together: no sequence that breaks the rules, sure words by their marginals, padding and gaps ignored."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from random_rows import model_of
from seqeval.scheme import IOB2, IOBES, Entities
from transformers import BertConfig

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import SpecError
from hf_mtl.model.heads.base import Words
from hf_mtl.model.heads.crf_token_classification import CrfTokenClassificationHead as Head
from hf_mtl.model.surgery import add_labels
from hf_mtl.registry import HEADS

BIO = ("O", "B-city", "I-city", "B-day", "I-day")
IOBES_TAGS = ("O", *(f"{prefix}-{kind}" for kind in ("city", "day") for prefix in "BIES"))


def spec_of(labels: tuple[str, ...] = BIO, **options: Any) -> TaskSpec:
    return TaskSpec(name="slots", type="crf_token_classification", labels=labels, **options)


def words_of(*first_tokens: int) -> Words:
    spans = np.array([[2 * place, 2 * place + 1] for place in range(len(first_tokens))]).reshape(-1, 2)
    return Words(" ".join("w" * len(first_tokens)), spans, np.array(first_tokens, dtype=np.int64), given=True)


def head_of(spec: TaskSpec, *, seed: int = 0, scale: float = 3.0) -> Head:
    torch.manual_seed(seed)
    head = Head(spec, 6, dropout=0.0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=scale)
    return head.eval()


@pytest.mark.parametrize(("labels", "scheme"), [(BIO, IOB2), (IOBES_TAGS, IOBES)])
@pytest.mark.parametrize("unseen", [(), (1,), (1, 2), (3,)])
def test_no_tags_come_out_that_break_the_rules(labels: tuple[str, ...], scheme: type, unseen: tuple[int, ...]) -> None:
    """Words without a token may be cut off, or stand in the middle, as invisible characters do."""
    spec = spec_of(labels)
    first_tokens = [1, 2, 4, 5, -1]
    for place in unseen:
        first_tokens[place] = -1
    head, words = head_of(spec), words_of(*first_tokens)
    seen = [place for place in range(4) if place not in unseen]
    with torch.no_grad():
        logits = list(head(torch.randn(200, 7, 6)).numpy())
    changed = 0
    for row, answer in zip(logits, head.decode_rows(spec, logits, [words] * 200), strict=True):
        tags = answer["tags"]
        entities = Entities([tags], scheme=scheme).entities[0]
        covered = {place for entity in entities for place in range(entity.start, entity.end)}
        assert covered == {place for place, tag in enumerate(tags) if tag != "O"}
        assert tags[4] == "O"
        assert len(answer["spans"]) == len(entities)
        own = row[[first_tokens[place] for place in seen], : len(labels)].argmax(axis=1)
        changed += [tags[place] for place in seen] != [labels[label] for label in own]
    assert changed > 25


def test_a_span_goes_on_over_words_without_a_token() -> None:
    for kind, width in (("crf_token_classification", 18), ("token_classification", 3)):
        head, spec = HEADS.get(kind), TaskSpec(name="names", type=kind, labels=("O", "B-x", "I-x"))
        logits = np.zeros((6, width), dtype=np.float32)
        logits[[1, 2, 3, 4], [1, 2, 2, 1]] = 5.0  # B-x I-x I-x B-x
        answer = head.decode(spec, logits, words_of(1, -1, 2, -1, -1, 3, -1, 4, -1))
        assert answer["tags"] == ["B-x", *["I-x"] * 5, "O", "B-x", "O"]
        assert [(span["start"], span["end"]) for span in answer["spans"]] == [(0, 11), (14, 15)]
        assert all(span["score"] > 0.8 for span in answer["spans"])  # the mean of the words that were seen


def test_the_score_of_a_word_is_its_probability_among_valid_sequences() -> None:
    spec = spec_of(("O", "B-x", "I-x"))
    logits = np.random.default_rng(0).normal(size=(5, 18)).astype(np.float32)
    logits[:, 3:] = logits[0, 3:]
    transitions, starts, ends = logits[0, 3:12].reshape(3, 3), logits[0, 12:15], logits[0, 15:]
    scores: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(3), repeat=2):
        if path[0] != 2 and path != (0, 2):
            emitted = logits[1, path[0]] + logits[3, path[1]]
            scores[path] = float(emitted + transitions[path] + starts[path[0]] + ends[path[1]])
    total = np.logaddexp.reduce(list(scores.values()))
    best = max(scores, key=lambda path: scores[path])
    tags, chances = Head.best_tags(spec, [logits], [words_of(1, 3)])
    assert tuple(tags.tolist()) == best
    for place in range(2):
        share = sum(np.exp(score - total) for path, score in scores.items() if path[place] == best[place])
        assert chances[place] == pytest.approx(share, abs=1e-6)


def test_the_chain_runs_over_labelled_words_alone() -> None:
    """Tokens between them, padding and words without a label change nothing."""
    spec = spec_of()
    head = head_of(spec, scale=1.0)
    features = torch.randn(2, 4, 6)
    labels = torch.tensor([[0, 1, 2, 3], [1, 2, 0, 0]])
    spread = torch.randn(2, 9, 6)
    spread[:, [1, 3, 4, 7]] = features
    spread_labels = torch.full((2, 9), -100)
    spread_labels[:, [1, 3, 4, 7]] = labels
    torch.testing.assert_close(head.loss(head(spread), spread_labels), head.loss(head(features), labels))


def test_transitions_are_learnt_where_the_words_tell_nothing() -> None:
    """Every text is `B I B I`; with the same features for all words only a chain can know where it is."""
    spec = spec_of(("O", "B-x", "I-x"))
    head = head_of(spec, scale=0.1).train()
    features, labels = torch.ones(4, 6, 6), torch.tensor([1, 2] * 3).expand(4, -1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = head.loss(head(features), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    answer = head.decode(spec, head(features)[0].detach().numpy(), words_of(0, 1, 2, 3, 4, 5))
    assert answer["tags"] == ["B-x", "I-x"] * 3


def test_one_word_and_no_words() -> None:
    spec = spec_of()
    logits = np.random.default_rng(1).normal(size=(3, Head.num_logits(spec))).astype(np.float32)
    answers = Head.decode_rows(spec, [logits] * 3, [words_of(1), words_of(-1, -1), words_of()])
    assert [len(answer["tags"]) for answer in answers] == [1, 2, 0]
    assert answers[1] == {"spans": [], "tags": ["O", "O"]}


def test_labels_are_not_added_to_a_chain(tiny_encoder_config: BertConfig) -> None:
    model = model_of(tiny_encoder_config, spec_of())
    with pytest.raises(SpecError, match="the rows of its 'transitions' are not its labels; add a task instead"):
        add_labels(model, "slots", ["B-name"])
