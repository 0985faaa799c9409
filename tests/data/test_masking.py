"""Which tokens are masked: how many, by what, and that nothing but seed, epoch and the row has a say in it."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoTokenizer

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.collator import MultiTaskCollator
from hf_mtl.data.masking import EPOCH, Masking, check_apart, check_masking, select_unmasked
from hf_mtl.data.recipe import TaskSource
from hf_mtl.errors import ModelError, SpecError

PAD, UNKNOWN, CLS, SEP, MASK = range(5)
SPECIAL = (PAD, UNKNOWN, CLS, SEP, MASK)
SIZE = 60
MASKING = Masking(mask_token_id=MASK, special_ids=SPECIAL, vocab_size=SIZE, seed=7)
MLM = TaskSpec(name="mlm", type="masked_language_modeling")
TOPIC = TaskSpec(name="topic", type="sequence_classification", labels=("a", "b"))


def rows_of(count: int, *, tokens: int = 40, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[CLS, *(draw.randrange(5, SIZE) for _ in range(tokens)), SEP] for _ in range(count)]


def features(count: int = 24, *, epoch: int | None = 0) -> list[dict[str, Any]]:
    """Every third row is labelled for `topic`, which reads it as it is, the others for `mlm`."""
    draw, made = random.Random(1), []
    for number in range(count):
        (ids,) = rows_of(1, tokens=draw.randint(1, 30), seed=number)
        label = {"labels/topic": number % 2} if number % 3 == 0 else {"labels/mlm": [1]}
        made.append({"input_ids": ids, **label, **({} if epoch is None else {EPOCH: epoch})})
    return made


def test_chosen_tokens_are_masked_replaced_and_kept_as_bert_has_it() -> None:
    counts, random_ids, places = np.zeros(3), [], np.zeros(40)
    for ids in rows_of(2000):
        tokens, chosen = MASKING(ids, 0.15, epoch=0)
        assert len(chosen) == 6  # 15% of 40
        assert (np.delete(tokens, chosen) == np.delete(ids, chosen)).all()
        for place in chosen:
            kind = 0 if tokens[place] == MASK else 2 if tokens[place] == ids[place] else 1
            counts[kind] += 1
            random_ids += [int(tokens[place])] if kind == 1 else []
            places[place - 1] += 1
    # A random token is the same as before once in 55 times.
    same = 0.1 / (SIZE - len(SPECIAL))
    expected = np.array([0.8, 0.1 - same, 0.1 + same]) * counts.sum()
    assert chisquare(counts, expected).pvalue > 1e-3
    assert chisquare(places).pvalue > 1e-3
    assert chisquare(np.bincount(random_ids, minlength=SIZE)[len(SPECIAL) :]).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.15, 0.5, 0.99])
def test_special_tokens_are_neither_masked_nor_put_anywhere(probability: float) -> None:
    draw = random.Random(0)
    for _ in range(200):
        ids = [draw.choice((*SPECIAL, *range(5, SIZE))) for _ in range(draw.randint(1, 30))]
        tokens, chosen = MASKING(ids, probability, epoch=draw.randrange(9))
        free = [place for place, token in enumerate(ids) if token not in SPECIAL]
        assert set(chosen.tolist()) <= set(free)
        assert len(chosen) == (max(1, round(probability * len(free))) if free else 0)
        assert all(tokens[place] == MASK or tokens[place] not in SPECIAL for place in chosen)
        assert (np.diff(chosen) > 0).all()


def test_a_row_is_masked_anew_in_each_epoch_and_alike_within_one() -> None:
    (ids,) = rows_of(1)
    seen = [MASKING(ids, 0.15, epoch=epoch) for epoch in range(50)]
    again = [copy.deepcopy(MASKING)(ids, 0.15, epoch=epoch) for epoch in range(50)]
    for one, other in zip(seen, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert len({tuple(tokens.tolist()) for tokens, _ in seen}) == 50
    # In the long run every token is.
    assert {place for _, chosen in seen for place in chosen.tolist()} == set(range(1, 41))


def test_seeds_mask_differently_in_training_and_alike_in_evaluation() -> None:
    (ids,) = rows_of(1)
    other = Masking(mask_token_id=MASK, special_ids=SPECIAL, vocab_size=SIZE, seed=8)
    assert not np.array_equal(MASKING(ids, 0.3, epoch=1)[0], other(ids, 0.3, epoch=1)[0])
    assert np.array_equal(MASKING(ids, 0.3)[0], other(ids, 0.3)[0])


def test_rows_are_masked_alike_in_any_batch() -> None:
    collate, rows = MultiTaskCollator((TOPIC, MLM), masking=MASKING), features()
    alone = [collate([row]) for row in rows]
    for order in (range(24), random.Random(0).sample(range(24), 24)):
        batch = collate([rows[place] for place in order])
        for place, number in enumerate(order):
            length = len(rows[number]["input_ids"])
            assert torch.equal(batch["input_ids"][place, :length], alone[number]["input_ids"][0])
            masks = alone[number]["positions"]["mlm"].shape[1]
            assert torch.equal(batch["positions"]["mlm"][place, :masks], alone[number]["positions"]["mlm"][0])
            assert (batch["positions"]["mlm"][place, masks:] == -1).all()


def test_rows_of_other_tasks_are_left_alone() -> None:
    rows = features()
    batch, plain = (MultiTaskCollator(specs, masking=MASKING)(rows) for specs in ((TOPIC, MLM), (TOPIC,)))
    own = torch.tensor([number for number in range(24) if number % 3])
    others = batch["rows"]["topic"]
    assert batch["rows"]["mlm"].tolist() == own.tolist()
    assert torch.equal(batch["input_ids"][others], plain["input_ids"][others])
    assert (batch["input_ids"][own] != plain["input_ids"][own]).any(dim=1).sum() > 10
    assert torch.equal(batch["labels"]["topic"], plain["labels"]["topic"])
    assert "positions" not in plain


def test_labels_are_the_tokens_that_stood_there() -> None:
    rows = features()
    batch = MultiTaskCollator((TOPIC, MLM), masking=MASKING)(rows)
    labels, positions = batch["labels"]["mlm"], batch["positions"]["mlm"]
    assert labels.shape == positions.shape
    assert ((labels == -100) == (positions == -1)).all()
    for number, row in enumerate(rows):
        for label, place in zip(labels[number].tolist(), positions[number].tolist(), strict=True):
            assert place == -1 or row["input_ids"][place] == label
    assert batch["items"]["mlm"] == float((positions >= 0).sum())
    assert [row["input_ids"] for row in rows] == [row["input_ids"] for row in features()]  # and the rows stay


def test_a_row_without_a_label_has_its_own_masks_for_places() -> None:
    collate = MultiTaskCollator((MLM,), masking=MASKING)
    batch = collate([{"input_ids": [CLS, 9, MASK, 8, MASK, SEP]}, {"input_ids": [CLS, 9, SEP]}])
    assert batch["positions"]["mlm"].tolist() == [[2, 4], [-1, -1]]
    assert "labels" not in batch
    assert collate([{"input_ids": [CLS, SEP]}])["positions"]["mlm"].shape == (1, 0)


def test_what_no_rows_can_be_masked_with_is_refused() -> None:
    class Maskless:
        mask_token_id = None

    with pytest.raises(ModelError, match=r"Maskless has no mask token, .*; use an encoder"):
        Masking.of(Maskless())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ModelError, match="task 'mlm': Maskless has no mask token"):
        check_masking([TOPIC, MLM], Maskless())  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match=r"task 'mlm': its rows are masked, .*; give processing_class"):
        check_masking([MLM], None)
    check_masking([TOPIC], None)


def test_rows_that_another_task_reads_are_not_masked() -> None:
    tasks = [TaskSource(spec=TOPIC, dataset="news", label="topic"), TaskSource(spec=MLM, dataset="news", label="text")]
    with pytest.raises(SpecError, match="task 'mlm': it masks the rows of dataset 'news', which task 'topic' reads"):
        check_apart(tasks)
    check_apart(tasks[:1])


def test_what_cannot_be_done_with_masks_is_done_with_the_others() -> None:
    assert select_unmasked([TOPIC, MLM], None, "is not done") == (TOPIC,)
    for specs, names in (([TOPIC, MLM], ["mlm"]), ([TOPIC, MLM], ["topic", "mlm"]), ([MLM], None)):
        with pytest.raises(SpecError, match="task 'mlm': masked_language_modeling is not done; name other tasks"):
            select_unmasked(specs, names, "is not done")


def test_a_real_tokenizer_says_what_is_special(minilm: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(minilm))
    masking = Masking.of(tokenizer)
    ids = tokenizer("a film [SEP] of old songs")["input_ids"]
    tokens, chosen = masking(ids, 0.99)
    assert len(chosen) == 5
    assert {tokens[0], tokens[-1], tokens[3]} == {tokenizer.cls_token_id, tokenizer.sep_token_id}
