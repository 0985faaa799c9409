"""Answers taken from a text: the best valid span, no answer, labels that point into the text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.words import word_spans
from hf_mtl.errors import DataError, SpecError
from hf_mtl.model.heads.base import Words
from hf_mtl.model.heads.span_extraction import SpanExtractionHead as Head
from hf_mtl.model.heads.span_extraction import best_span
from hf_mtl.model.targets import Wanted

SPEC = TaskSpec(name="answers", type="span_extraction")
TEXT = "We fly to New York, and then on."


def words_of(text: str = TEXT, *, lost: int = 0) -> Words:
    """One token per word after one special token; the last words are cut off."""
    spans = word_spans(text)
    first = np.arange(1, len(spans) + 1)
    first[len(spans) - lost :] = -1
    return Words(text, spans, first)


def logits_of(seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(12, 2), scale=2.0).astype(np.float32) + np.float32(shift)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shift", [-3.0, -1.0, 0.0, 2.0])
def test_the_answer_is_the_best_of_all_spans_and_none(seed: int, shift: float) -> None:
    words, logits = words_of(lost=2), logits_of(seed, shift)
    seen = np.flatnonzero(words.first_tokens >= 0)
    own = logits[words.first_tokens[seen]].astype(np.float64)
    chances = np.exp(own) / (1.0 + np.exp(own).sum(axis=0))
    nothing = float((1.0 / (1.0 + np.exp(own).sum(axis=0))).prod())
    spans = {(i, j): chances[i, 0] * chances[j, 1] for i in range(len(own)) for j in range(i, len(own))}
    best = max(spans, key=lambda span: spans[span])
    assert best_span(own) == best
    answer = Head.decode(SPEC, logits, words)
    assert answer["score"] == pytest.approx(max(spans[best], nothing))
    if spans[best] > nothing:
        start, end = int(words.spans[best[0]][0]), int(words.spans[best[1]][1])
        assert answer == {"answer": TEXT[start:end], "start": start, "end": end, "score": answer["score"]}
    else:
        assert answer == {"answer": "", "start": 0, "end": 0, "score": answer["score"]}


def test_with_no_answer_as_a_position_the_loss_is_that_of_transformers() -> None:
    """A column of zeros stands for the position that the stock classes give to no answer."""
    logits, words = torch.randn(3, 12, 2), words_of()
    values = [{"text": ["New York"], "answer_start": [10]}, {"text": [], "answer_start": []}, None]
    encoded = [None if value is None else Head.encode(SPEC, value, words, 12) for value in values]
    labels = Head.collate(SPEC, encoded, 12)
    first = torch.as_tensor(words.first_tokens)
    starts, ends = (torch.cat([torch.zeros(2, 1), logits[:2, first, place]], dim=1) for place in (0, 1))
    losses = F.cross_entropy(starts, torch.tensor([1 + 3, 0])), F.cross_entropy(ends, torch.tensor([1 + 4, 0]))
    torch.manual_seed(0)
    torch.testing.assert_close(Head(SPEC, 4, dropout=0.0).loss(logits, labels), sum(losses) / 2)
    assert Head.num_items(SPEC, labels).item() == 2


def test_labels_mark_the_words_that_an_answer_touches() -> None:
    words = words_of()
    encode = lambda value: Head.encode(SPEC, value, words, 12)  # noqa: E731
    wanted = [-100, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, -100]
    assert encode({"text": ["New York"], "answer_start": [10]}) == wanted
    assert encode({"text": ["New York", "York"], "answer_start": [10, 14]}) == wanted
    assert encode({"text": "ew Yo", "start": 11, "end": 16}) == wanted  # whole words are answered
    assert encode({"text": np.array(["fly"]), "answer_start": np.array([3])})[2] == 3
    assert max(encode({"text": [], "answer_start": []})) == 0
    assert max(encode({"text": None, "start": None, "end": None})) == 0


def test_an_answer_that_was_cut_off_is_no_label() -> None:
    words = words_of(lost=6)
    for value, known in (("New York,", False), ("New York", False), ("fly", True)):
        label = Head.encode(SPEC, {"text": [value], "answer_start": [TEXT.index(value)]}, words, 12)
        assert Head.labelled_rows(torch.tensor([label])).tolist() == [known]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"text": ["York"], "answer_start": [13]}, "the answer 'York' does not stand at 13, where there is ' Yor'"),
        ({"text": [" "], "answer_start": [2]}, "there is no word at 2 to 3"),
        ({"text": "York"}, "is no answer; write answers as"),
        ("York", "is no answer; write answers as"),
    ],
)
def test_wrong_answers_are_refused(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Head.encode(SPEC, value, words_of(), 12)
    with pytest.raises(DataError, match="the row has an answer but no text"):
        Head.encode(SPEC, {"text": [], "answer_start": []}, None, 12)


def test_an_answer_is_explained_by_its_ends() -> None:
    words, logits = words_of(), np.full((12, 2), -5.0, dtype=np.float32)
    logits[4, 0] = logits[5, 1] = 4.0
    target = Head.target(SPEC, logits, words, Wanted())
    assert target.name == "'New York'"
    assert target.words == (3, 4)
    at_target = torch.tensor(logits[None, [4, 5]])
    assert target.score(at_target).item() == 4.0
    assert Head.holds(SPEC, target, at_target.numpy()).tolist() == [True]
    assert Head.target(SPEC, logits, words, Wanted(span=(0, 2))).name == "'We fly'"
    with pytest.raises(SpecError, match="target names a label, but answers are spans"):
        Head.target(SPEC, logits, words, Wanted(label="York"))
