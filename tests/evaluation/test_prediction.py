"""Answers do not depend on how rows are batched, nor in which order they come."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from hf_mtl.data.encoding import Inputs
from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import SpecError
from hf_mtl.evaluation.prediction import (
    answer,
    collator_for,
    evaluation_mode,
    length_batches,
    needs_words,
    predict_batches,
)
from hf_mtl.model.modeling import MultiTaskModel

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def rows(tiny_data: RecipeData) -> list[Inputs]:
    """Rows given as tokens, of many lengths."""
    draw = random.Random(0)
    texts = [row.text.split() for split in tiny_data.validation.values() for row in split.inputs()]
    return [Inputs.of(tokens=[*words, *words[: draw.randint(0, 8)]]) for words in texts]


def check_alike(found: Any, wanted: Any, where: str = "") -> None:
    """Numbers may differ by the tolerance, all else must be equal."""
    if isinstance(wanted, Mapping):
        assert found.keys() == wanted.keys(), where
        for key, value in wanted.items():
            check_alike(found[key], value, f"{where}/{key}")
    elif isinstance(wanted, Sequence) and not isinstance(wanted, str):
        assert len(found) == len(wanted), where
        for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
            check_alike(one, other, f"{where}/{place}")
    elif isinstance(wanted, float):
        assert abs(found - wanted) <= TOLERANCE, where
    else:
        assert found == wanted, where


# ---------------------------------------------------------------------- batches


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("max_tokens", [1, 40, 10**6])
def test_batches_hold_every_row_once_within_their_limits(batch_size: int, max_tokens: int) -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 50):
        lengths = generator.integers(1, 60, count)
        batches = length_batches(lengths, batch_size=batch_size, max_tokens=max_tokens)
        assert sorted(np.concatenate(batches).tolist()) == list(range(count))
        for batch in batches:
            assert 1 <= len(batch) <= batch_size
            assert len(batch) == 1 or len(batch) * lengths[batch].max() <= max_tokens
        longest = [int(lengths[batch].max()) for batch in batches]
        assert longest == sorted(longest, reverse=True)


def test_batches_of_like_length_pad_little() -> None:
    lengths = np.random.default_rng(1).integers(5, 60, 2000)
    batches = length_batches(lengths, batch_size=32, max_tokens=10**6)
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    assert padded < 1.02 * lengths.sum()


def test_no_rows_make_no_batches() -> None:
    assert length_batches(np.zeros(0, dtype=np.int64), batch_size=4, max_tokens=100) == []


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize(("batch_size", "max_tokens"), [(1, 10**6), (7, 10**6), (64, 100)])
def test_answers_do_not_depend_on_the_batches(
    batch_size: int, max_tokens: int, learnt: MultiTaskModel, tiny_data: RecipeData, rows: list[Inputs]
) -> None:
    wanted = answer(learnt, tiny_data.tokenizer, rows)
    found = answer(learnt, tiny_data.tokenizer, rows, batch_size=batch_size, max_tokens=max_tokens)
    check_alike(found, wanted)


def test_answers_do_not_depend_on_the_order(learnt: MultiTaskModel, tiny_data: RecipeData, rows: list[Inputs]) -> None:
    wanted = answer(learnt, tiny_data.tokenizer, rows)
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    found = answer(learnt, tiny_data.tokenizer, [rows[place] for place in order])
    check_alike(found, [wanted[place] for place in order])


def test_answers_differ_from_row_to_row(learnt: MultiTaskModel, tiny_data: RecipeData, rows: list[Inputs]) -> None:
    """Else the tests above would show nothing."""
    answers = answer(learnt, tiny_data.tokenizer, rows)
    assert {found["sentiment"]["label"] for found in answers} == {"pos", "neg"}
    assert len({tuple(found["slots"]["tags"]) for found in answers}) > 10


def test_every_task_is_answered_in_the_order_of_the_specs(
    learnt: MultiTaskModel, tiny_data: RecipeData, rows: list[Inputs]
) -> None:
    names = [spec.name for spec in learnt.specs]
    assert [list(found) for found in answer(learnt, tiny_data.tokenizer, rows[:3])] == [names] * 3


def test_tasks_answered_alone_are_answered_alike(
    learnt: MultiTaskModel, tiny_data: RecipeData, rows: list[Inputs]
) -> None:
    every = answer(learnt, tiny_data.tokenizer, rows)
    some = answer(learnt, tiny_data.tokenizer, rows, tasks=["slots", "sentiment"])
    check_alike(some, [{task: found[task] for task in ("sentiment", "slots")} for found in every])
    with pytest.raises(SpecError, match="the model has no task 'topic'"):
        answer(learnt, tiny_data.tokenizer, rows, tasks=["topic"])


def test_words_beyond_the_maximum_length_are_outside(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    words = ["fly", "to", "new", "york", *["music"] * 60]
    (found,) = answer(learnt, tiny_data.tokenizer, [Inputs.of(tokens=words)], tasks=["slots", "grammar"])
    limit = tiny_data.tokenizer.model_max_length - 2
    assert limit < len(words)
    assert len(found["slots"]["tags"]) == len(found["grammar"]["tags"]) == len(words)
    assert set(found["slots"]["tags"][limit:]) == {"O"}
    assert set(found["grammar"]["tags"][limit:]) == {"_"}  # a tag set without `O`
    assert "_" not in found["grammar"]["tags"][:limit]


def test_no_rows_have_no_answers(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    assert answer(learnt, tiny_data.tokenizer, []) == []


# ---------------------------------------------------------------------- the model


def test_prediction_runs_without_dropout_or_gradients_and_puts_the_mode_back(
    learnt: MultiTaskModel, tiny_data: RecipeData
) -> None:
    split = tiny_data.validation["films"]
    batches = [np.arange(5), np.arange(5, 12)]
    collator = collator_for(learnt, tiny_data.tokenizer)
    wanted = list(predict_batches(learnt, collator, split.features, batches))
    learnt.train()
    try:
        found = list(predict_batches(learnt, collator, split.features, batches))
        assert learnt.training
        assert learnt.encoder.training
    finally:
        learnt.eval()
    for one, other in zip(found, wanted, strict=True):
        assert one.rows.tolist() == other.rows.tolist()
        for task, logits in other.logits.items():
            assert logits.dtype == np.float32
            assert len(logits) == len(one.rows)
            assert np.array_equal(one.logits[task], logits)
            assert not one.output.logits[task].requires_grad


def test_rows_are_fetched_alike_from_a_dataset_and_a_list(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    features, collator = tiny_data.validation["films"].features, collator_for(learnt, tiny_data.tokenizer)
    (one,) = predict_batches(learnt, collator, features, [np.array([4, 2])])
    (other,) = predict_batches(learnt, collator, [features[row] for row in range(6)], [np.array([4, 2])])
    assert all(np.array_equal(one.logits[task], logits) for task, logits in other.logits.items())


def test_the_mode_is_put_back_after_an_error() -> None:
    model = torch.nn.Dropout().train()

    def fail() -> None:
        with evaluation_mode(model):
            assert not model.training
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert model.training


def test_the_collator_pads_with_the_tokenizers_token(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    assert collator_for(learnt, tiny_data.tokenizer).pad_token_id == tiny_data.tokenizer.pad_token_id
    assert collator_for(learnt, None).pad_token_id == 0
    assert [spec.name for spec in collator_for(learnt, None, ["moods"]).specs] == ["moods"]


def test_tasks_that_answer_word_by_word_need_words(learnt: MultiTaskModel) -> None:
    assert needs_words(learnt)
    assert needs_words(learnt, ["slots"])
    assert not needs_words(learnt, ["sentiment", "similarity"])
