"""What can be explained of an answer: requests as users write them, and the targets that heads make of them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import SpecError
from hf_mtl.model.choices import Choices
from hf_mtl.model.heads.base import Words
from hf_mtl.model.targets import RUNNER_UP, Target, Wanted, contrast
from hf_mtl.registry import HEADS

SPECS = {
    "sequence_classification": TaskSpec(name="t", type="sequence_classification", labels=("sport", "world", "tech")),
    "multi_label_classification": TaskSpec(name="t", type="multi_label_classification", labels=("a", "b", "c")),
    "ordinal_regression": TaskSpec(name="t", type="ordinal_regression", labels=("1", "2", "3", "4")),
    "regression": TaskSpec(name="t", type="regression"),
    "span_extraction": TaskSpec(name="t", type="span_extraction"),
    "multiple_choice": TaskSpec(name="t", type="multiple_choice"),
    "token_classification": TaskSpec(
        name="t", type="token_classification", labels=("O", "B-city", "I-city", "B-day", "I-day")
    ),
}
SPECS["crf_token_classification"] = replace(SPECS["token_classification"], type="crf_token_classification")
TEXT = "fly to new york"
CHOICES = Choices(("by train", "by sea", "on foot"), np.array([[0, 2], [3, 4], [5, 7]]))
WORDS = Words(TEXT, np.array([[0, 3], [4, 6], [7, 10], [11, 15]]), np.array([1, 2, 3, 5]), choices=CHOICES)


def logits_of(task_type: str, seed: int = 0) -> np.ndarray:
    spec = SPECS[task_type]
    count = HEADS.get(task_type).num_logits(spec)
    shape = (count,) if HEADS.get(task_type).pooled else (7, count)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def target_of(task_type: str, wanted: Any = None, seed: int = 0) -> Target:
    return HEADS.get(task_type).target(SPECS[task_type], logits_of(task_type, seed), WORDS, Wanted.read(wanted))


def at_target(task_type: str, target: Target, seed: int = 0) -> np.ndarray:
    logits = logits_of(task_type, seed)
    if target.spans is not None:
        return np.array([logits[start:end].mean() for start, end in target.spans], dtype=np.float32)[None, None]
    if target.words is None:
        return logits[None, None]
    return logits[WORDS.first_tokens[list(target.words)]][None]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Wanted()),
        ("world", Wanted(label="world")),
        ("runner-up", Wanted(over=RUNNER_UP)),
        (("world", "sport"), Wanted(label="world", over="sport")),
        (["world", "sport"], Wanted(label="world", over="sport")),
        (3, Wanted(span=(3, 4))),
        (np.int64(3), Wanted(span=(3, 4))),
        ((2, 4), Wanted(span=(2, 4))),
        ({"word": 1, "label": "B-city"}, Wanted(label="B-city", span=(1, 2))),
        ({"span": [2, 4], "over": "O"}, Wanted(over="O", span=(2, 4))),
    ],
)
def test_a_request_is_read(value: Any, expected: Wanted) -> None:
    assert Wanted.read(value) == expected


@pytest.mark.parametrize(
    "value",
    [-1, True, 1.5, (2, 2), (3, 1), (1, 2, 3), ("a",), ("a", 1), {"words": 1}, {"word": 1, "span": (1, 2)}, object()],
)
def test_what_is_no_request_is_refused(value: Any) -> None:
    with pytest.raises(SpecError, match="target is"):
        Wanted.read(value)


EXPLAINED = [name for name in HEADS.files if not HEADS.get(name).masks_tokens]


def test_what_stands_in_place_of_a_mask_is_not_explained() -> None:
    assert set(EXPLAINED) == set(SPECS) == set(HEADS.files) - {"masked_language_modeling"}
    spec = TaskSpec(name="t", type="masked_language_modeling")
    with pytest.raises(SpecError, match="task 't': masked_language_modeling is not explained; name another task"):
        HEADS.get(spec.type).target(spec, np.zeros((2, 9), dtype=np.float32), None, Wanted())


@pytest.mark.parametrize("task_type", EXPLAINED)
@pytest.mark.parametrize("seed", range(5))
def test_every_head_explains_what_it_answers(task_type: str, seed: int) -> None:
    head, spec = HEADS.get(task_type), SPECS[task_type]
    target = target_of(task_type, seed=seed)
    logits = at_target(task_type, target, seed)
    assert target.name
    assert target.weights.shape == logits.shape[1:]
    assert len(target.labels) == logits.shape[1]
    probabilities = head.probabilities(spec, logits)
    assert probabilities.shape == (*logits.shape[:-1], spec.num_labels if spec.labels else logits.shape[-1])
    (probability,) = target.probability(probabilities)
    (holds,) = head.holds(spec, target, logits)
    if head.measure == "probability":
        assert 0 < probability < 1
    # The score is the linear function that its docstring promises.
    by_hand = np.mean([weights @ row for weights, row in zip(target.weights, logits[0], strict=True)])
    (score,) = target.score(torch.from_numpy(logits)).tolist()
    assert score == pytest.approx(by_hand, abs=1e-5)
    if task_type != "multi_label_classification":  # whose surest label may still be absent
        assert holds


@pytest.mark.parametrize("task_type", [name for name in EXPLAINED if SPECS[name].labels or name == "multiple_choice"])
def test_a_higher_logit_of_the_label_raises_score_and_probability(task_type: str) -> None:
    head, spec, target = HEADS.get(task_type), SPECS[task_type], target_of(task_type)
    logits = at_target(task_type, target)
    higher = logits.copy()
    higher[:, np.arange(len(target.labels)), target.labels] += 1.0
    for measure in (
        lambda values: target.score(torch.from_numpy(values)).item(),
        lambda values: target.probability(head.probabilities(spec, values)).item(),
    ):
        assert measure(higher) > measure(logits)


@pytest.mark.parametrize("task_type", ["sequence_classification", "token_classification", "multiple_choice"])
def test_logits_that_rise_alike_change_nothing(task_type: str) -> None:
    for wanted in (None, RUNNER_UP):
        target = target_of(task_type, wanted)
        logits = torch.from_numpy(at_target(task_type, target)).double()
        torch.testing.assert_close(target.score(logits + 5.0), target.score(logits))


def test_contrast_sums_to_zero() -> None:
    for over in (None, 1):
        assert contrast(4, 2, over).sum() == pytest.approx(0)
    assert contrast(1, 0).tolist() == [1.0]


def test_why_one_rather_than_the_other_is_a_difference_of_logits() -> None:
    logits = logits_of("sequence_classification")
    target = target_of("sequence_classification", ("tech", "sport"))
    assert target.name == "tech rather than sport"
    (score,) = target.score(torch.from_numpy(logits)[None, None]).tolist()
    assert score == pytest.approx(logits[2] - logits[0])


def test_a_choice_is_named_by_its_text_or_its_number() -> None:
    target = target_of("multiple_choice", ("on foot", "0"))
    assert (target.name, target.labels) == ("on foot rather than by train", (2,))
    assert target.weights.tolist() == [[-1.0, 0.0, 1.0]]
    assert target.spans == ((0, 2), (3, 4), (5, 7))


def test_runner_up_is_the_second_choice() -> None:
    logits = at_target("multiple_choice", target_of("multiple_choice"))[0, 0]
    names = np.array(CHOICES.texts)[np.argsort(-logits)]
    assert target_of("multiple_choice", RUNNER_UP).name == f"{names[0]} rather than {names[1]}"


def test_a_row_without_choices_has_none_to_explain() -> None:
    for words in (
        replace(WORDS, choices=None),
        replace(WORDS, choices=replace(CHOICES, tokens=CHOICES.tokens * 0 - 1)),
    ):
        with pytest.raises(SpecError, match="no choices to explain"):
            HEADS.get("multiple_choice").target(SPECS["multiple_choice"], logits_of("multiple_choice"), words, Wanted())


def test_runner_up_is_the_second_label() -> None:
    names = np.array(SPECS["sequence_classification"].labels)[np.argsort(-logits_of("sequence_classification"))]
    assert target_of("sequence_classification", RUNNER_UP).name == f"{names[0]} rather than {names[1]}"


def test_tagging_explains_the_surest_span_where_none_is_named() -> None:
    logits = np.zeros((7, 5), dtype=np.float32)
    logits[[1, 2], 0] = 9.0
    logits[3, 1], logits[5, 2] = 5.0, 4.0  # new: B-city, york: I-city
    spec = SPECS["token_classification"]
    target = HEADS.get(spec.type).target(spec, logits, WORDS, Wanted())
    assert target.name == "city: 'new york'"
    assert (target.words, target.labels) == ((2, 3), (1, 2))
    assert HEADS.get(spec.type).holds(spec, target, logits[None, [3, 5]]).all()
    assert not HEADS.get(spec.type).holds(spec, target, logits[None, [1, 5]]).any()


def test_tagging_without_a_span_explains_the_least_sure_word() -> None:
    logits = np.zeros((7, 5), dtype=np.float32)
    logits[:, 0] = [0, 9, 9, 1, 0, 9, 0]
    spec = SPECS["token_classification"]
    target = HEADS.get(spec.type).target(spec, logits, WORDS, Wanted())
    assert (target.name, target.words) == ("O: 'new'", (2,))


def test_a_span_is_named_by_its_type_or_by_its_tags() -> None:
    target = target_of("token_classification", {"span": (2, 4), "label": "day"})
    assert target.labels == (3, 4)
    assert target.name == "day: 'new york'"
    assert target_of("token_classification", {"word": 0, "label": "I-city"}).labels == (2,)
    assert target_of("token_classification", {"word": 0, "label": "city", "over": "day"}).weights[0].tolist() == [
        0.0, 1.0, 0.0, -1.0, 0.0,
    ]  # fmt: skip


def test_multi_label_explains_each_label_by_itself() -> None:
    target = target_of("multi_label_classification", "b")
    assert target.weights.tolist() == [[0.0, 1.0, 0.0]]
    spec = SPECS["multi_label_classification"]
    logits = np.array([[[0.0, 0.1, 9.0]], [[0.0, -0.1, 9.0]]], dtype=np.float32)
    assert HEADS.get(spec.type).holds(spec, target, logits).tolist() == [True, False]


@pytest.mark.parametrize(
    ("task_type", "wanted", "message"),
    [
        ("sequence_classification", "wrld", "task 't': target: label 'wrld' is not in the label set; use one of"),
        ("sequence_classification", ("world", "world"), "target compares 'world' with itself"),
        ("sequence_classification", 2, "target names word 2, but the task answers for the whole text"),
        ("multi_label_classification", {"span": (0, 2)}, "target names word 0, but the task answers"),
        ("multiple_choice", 2, "target names word 2, but the task answers for the whole text"),
        ("multiple_choice", "by air", "task 't': target: 'by air' is none of the choices"),
        ("multiple_choice", ("by sea", "1"), "target compares '1' with itself"),
        ("regression", "high", "target is given, but the task answers a number"),
        ("token_classification", 4, "target names word 4, the text has 4 words"),
        ("token_classification", (2, 9), "target names word 8, the text has 4 words"),
        ("token_classification", {"word": 1, "label": "town"}, "label 'town' is not in the label set"),
    ],
)
def test_what_is_not_there_cannot_be_explained(task_type: str, wanted: Any, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        target_of(task_type, wanted)


def test_a_text_without_words_has_no_tags_to_explain() -> None:
    spec = SPECS["token_classification"]
    empty = Words("", np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.int64))
    with pytest.raises(SpecError, match="no words to explain"):
        HEADS.get(spec.type).target(spec, np.zeros((2, 5), dtype=np.float32), empty, Wanted())
