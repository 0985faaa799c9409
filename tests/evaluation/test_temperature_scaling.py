"""Temperature scaling: the likeliest temperature, answers that stay, errors judged on what was not fitted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import DataError, SpecError
from hf_mtl.evaluation.calibration import expected_calibration_error
from hf_mtl.evaluation.decisions import Decisions, decide
from hf_mtl.evaluation.temperature_scaling import (
    COLDEST,
    HOTTEST,
    calibrate,
    confidences,
    fit_temperature,
    negative_log_likelihood,
    temper,
)
from hf_mtl.model.choices import Choices
from hf_mtl.model.cross_entropy import softmax
from hf_mtl.model.heads.base import Words
from hf_mtl.registry import HEADS


def overconfident(seed: int, rows: int = 400, labels: int = 4, factor: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits and gold labels from their softmax, then multiply the logits: the right temperature is the factor."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, labels)) * 1.5
    gold = np.array([rng.choice(labels, p=row) for row in softmax(logits)])
    return logits * factor, gold


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_fitted_temperature_is_the_likeliest(seed: int, factor: float) -> None:
    logits, gold = overconfident(seed, factor=factor)
    probabilities = softmax(logits)
    found = fit_temperature(probabilities, gold)

    def loss(temperature: float) -> float:
        scaled = softmax(logits / temperature)
        return float(-np.log(scaled[np.arange(len(gold)), gold]).mean())

    reference = minimize_scalar(loss, bounds=(COLDEST, HOTTEST), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(reference.x, rel=1e-5)
    assert negative_log_likelihood(probabilities, gold, found) == pytest.approx(loss(found), abs=1e-12)
    assert all(loss(found) <= loss(other) + 1e-12 for other in np.geomspace(COLDEST, HOTTEST, 300))
    assert found == pytest.approx(factor, rel=0.3)


def test_tempered_probabilities_are_the_softmax_of_tempered_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 5)) * 8
    for temperature in (0.3, 1.0, 7.0):
        assert temper(softmax(logits), temperature) == pytest.approx(softmax(logits / temperature), abs=1e-12)
    binary = np.stack([-logits[:, 0] / 2, logits[:, 0] / 2], axis=1)
    sigmoid = 1 / (1 + np.exp(-logits[:, 0] / 7.0))
    assert temper(softmax(binary), 7.0)[:, 1] == pytest.approx(sigmoid, abs=1e-12)


@pytest.mark.parametrize("temperature", [COLDEST, 0.5, 1.0, 2.5, HOTTEST])
def test_the_answer_stays(temperature: float) -> None:
    probabilities = softmax(np.random.default_rng(1).normal(size=(500, 6)) * 30)
    assert (temper(probabilities, temperature).argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert np.isfinite(temper(np.array([[1.0, 0.0, 0.0]]), temperature)).all()


def test_an_end_of_the_range_where_nothing_less_is_likelier() -> None:
    right = softmax(np.eye(3) * 2)
    assert fit_temperature(right, np.arange(3)) == COLDEST
    assert fit_temperature(right, np.array([1, 2, 0])) == HOTTEST
    with pytest.raises(DataError, match="no decisions"):
        fit_temperature(right[:0], np.arange(0))
    with pytest.raises(SpecError, match="temperature is 0"):
        temper(right, 0.0)


def test_the_error_afterwards_is_that_of_the_other_halfs_temperature() -> None:
    logits, gold = overconfident(5, rows=600)
    probabilities = softmax(logits)
    decisions = Decisions(probabilities, probabilities.argmax(axis=1), gold)
    rows = np.arange(600) // 3
    found = calibrate(decisions, rows, seed=3)
    assert found.error_before == pytest.approx(
        expected_calibration_error(probabilities.max(axis=1), decisions.chosen == gold)
    )
    assert found.error_after < found.error_before / 2
    assert found.temperature == fit_temperature(probabilities, gold)
    in_first = np.isin(rows, np.random.default_rng(3).permutation(200)[:100])
    halves = np.zeros(600)
    for own in (in_first, ~in_first):
        temperature = fit_temperature(probabilities[~own], gold[~own])
        halves[own] = softmax(logits[own] / temperature).max(axis=1)
    assert found.error_after == pytest.approx(expected_calibration_error(halves, decisions.chosen == gold))


def test_one_row_is_calibrated_on_itself() -> None:
    one = Decisions(np.array([[0.7, 0.3]]), np.array([0]), np.array([0]))
    found = calibrate(one, np.array([0]))
    assert (found.decisions, found.temperature) == (1, COLDEST)
    assert found.error_before == found.error_after == pytest.approx(0.3)
    with pytest.raises(DataError, match="no decisions"):
        calibrate(Decisions(one.probabilities, one.chosen), np.array([0]))


# ---------------------------------------------------------------------- what an answer is made of

WORDS = Words("to new york", np.array([[0, 2], [3, 6], [7, 11]]), np.array([1, 2, 3]), given=True)
LABELS = {
    "sequence_classification": ("a", "b", "c"),
    "multi_label_classification": ("a", "b", "c"),
    "ordinal_regression": ("1", "2", "3"),
    "token_classification": ("O", "B-city", "I-city"),
    "crf_token_classification": ("O", "B-city", "I-city"),
}


def case(kind: str, seed: int = 0) -> tuple[TaskSpec, np.ndarray]:
    """Return a task and the logits of a row of five tokens, from a head with random weights."""
    spec = TaskSpec(name="task", type=kind, labels=LABELS[kind])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        head = HEADS.get(kind)(spec, 8, dropout=0.0)
        for parameter in head.parameters():
            parameter.normal_()
        return spec, head(torch.randn(1, 8) if head.pooled else torch.randn(1, 5, 8))[0].numpy()


def test_every_type_that_has_probabilities_is_looked_at() -> None:
    """But for tokens in place of masks, which nobody fills into data, and choices, which are right or wrong as one."""
    heads = {name: HEADS.get(name) for name in HEADS.names()}
    own = {name for name, head in heads.items() if head.measure == "probability"}
    assert {name for name in own if not (heads[name].masks_tokens or heads[name].reads_choices)} <= set(LABELS)


@pytest.mark.parametrize("kind", LABELS)
def test_an_answer_can_be_a_label(kind: str) -> None:
    spec, logits = case(kind)
    head = HEADS.get(kind)
    answer = head.decode(spec, logits, WORDS)
    label = head.as_label(spec, answer)
    assert head.reference(spec, label) == head.prediction(spec, answer)
    found = decide(head, spec, logits, WORDS, label)
    assert found is not None
    assert found.decisions.gold is not None
    assert found.label == label
    assert found.decisions.chosen.tolist() == found.decisions.gold.tolist()
    assert found.decisions.probabilities.sum(axis=1) == pytest.approx(1.0)
    assert (confidences(found.decisions, 3.0) <= 1.0).all()


def test_the_words_of_a_field_are_as_sure_as_its_answer_says() -> None:
    place, compared = {int(start): number for number, (start, _) in enumerate(WORDS.spans)}, 0
    for seed in range(5):
        spec, logits = case("crf_token_classification", seed)
        head = HEADS.get(spec.type)
        found = decide(head, spec, logits, WORDS)
        assert found is not None
        for span in head.decode(spec, logits, WORDS)["spans"]:
            if " " not in span["text"]:
                assert confidences(found.decisions)[place[span["start"]]] == pytest.approx(span["score"])
                compared += 1
    assert compared > 1


def test_a_text_is_one_choice() -> None:
    spec, logits = case("sequence_classification")
    found = decide(HEADS.get(spec.type), spec, logits, None, "b")
    assert found is not None
    assert found.decisions.probabilities == pytest.approx(softmax(logits)[None])
    assert found.label == (spec.labels or ())[found.decisions.chosen[0]]
    assert found.decisions.gold is not None
    assert found.decisions.gold.tolist() == [1]


def test_each_label_of_several_is_a_choice_and_the_unknown_are_none() -> None:
    spec, logits = case("multi_label_classification")
    head = HEADS.get(spec.type)
    found, judged = decide(head, spec, logits, None), decide(head, spec, logits, None, {"a": True, "c": False})
    assert found is not None
    assert judged is not None
    present = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert found.decisions.probabilities == pytest.approx(np.stack([1 - present, present], axis=1))
    assert confidences(found.decisions) == pytest.approx(np.maximum(present, 1 - present))
    assert judged.decisions.gold is not None
    assert judged.decisions.gold.tolist() == [1, 0]
    assert judged.decisions.probabilities == pytest.approx(found.decisions.probabilities[[0, 2]])


def test_each_word_is_a_choice_and_those_without_a_tag_are_none() -> None:
    spec, logits = case("token_classification")
    head = HEADS.get(spec.type)
    found, judged = decide(head, spec, logits, WORDS), decide(head, spec, logits, WORDS, ["O", None, "I-city"])
    assert found is not None
    assert judged is not None
    assert found.decisions.probabilities == pytest.approx(softmax(logits)[1:4])
    assert found.label == [(spec.labels or ())[index] for index in logits[1:4].argmax(axis=1)]
    assert judged.decisions.gold is not None
    assert judged.decisions.gold.tolist() == [0, 2]
    assert judged.decisions.chosen.tolist() == logits[[1, 3]].argmax(axis=1).tolist()


def test_words_that_were_cut_off_make_an_answer_less_than_whole() -> None:
    spec, logits = case("token_classification")
    head = HEADS.get(spec.type)
    cut = Words(WORDS.text, WORDS.spans, np.array([1, 2, -1]), given=True)
    found = decide(head, spec, logits, cut)
    assert found is not None
    assert not found.whole
    judged = decide(head, spec, logits, cut, ["O", "B-city", "I-city"])
    assert judged is not None
    assert len(judged.decisions) == 2
    assert decide(head, spec, logits, Words(WORDS.text, WORDS.spans, WORDS.first_tokens)) is None


def test_an_answer_that_is_no_choice_of_labels_is_right_or_wrong_as_a_whole() -> None:
    head, spec = HEADS.get("span_extraction"), TaskSpec(name="task", type="span_extraction")
    logits = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32) + 1.0
    answer = head.decode(spec, logits, WORDS)
    found = decide(head, spec, logits, WORDS)
    assert found is not None
    assert head.reference(spec, found.label) == head.prediction(spec, answer)
    assert confidences(found.decisions).tolist() == pytest.approx([answer["score"]])
    for gold, right in ((found.label, 1), ({"text": ["yo"], "answer_start": [7]}, 0)):
        judged = decide(head, spec, logits, WORDS, gold)
        assert judged is not None
        assert judged.decisions.gold is not None
        assert (judged.decisions.chosen.tolist(), judged.decisions.gold.tolist()) == ([1], [right])


def test_a_choice_is_right_or_wrong_as_a_whole_for_rows_have_different_numbers_of_them() -> None:
    head, spec = HEADS.get("multiple_choice"), TaskSpec(name="task", type="multiple_choice")
    words = replace(WORDS, choices=Choices(("by train", "by sea"), np.array([[1, 3], [4, 5]])))
    logits = np.random.default_rng(0).normal(size=(5, 1)).astype(np.float32)
    answer = head.decode(spec, logits, words)
    for gold, right in ((answer["index"], 1), (1 - answer["index"], 0)):
        judged = decide(head, spec, logits, words, gold)
        assert judged is not None
        assert judged.decisions.gold is not None
        assert (judged.label, judged.whole, judged.decisions.gold.tolist()) == (answer["index"], True, [right])
        assert confidences(judged.decisions).tolist() == pytest.approx([answer["score"]])
    none = decide(head, spec, logits, WORDS)
    assert none is not None
    assert not none.whole


def test_numbers_are_refused() -> None:
    with pytest.raises(SpecError, match="numbers"):
        decide(HEADS.get("regression"), TaskSpec(name="stars", type="regression"), np.zeros(1, np.float32), None)


def test_a_decision_is_what_the_head_answers_even_where_that_is_not_the_most_probable() -> None:
    class Careful(HEADS.get("sequence_classification")):
        @classmethod
        def decode(cls, spec, logits, words):
            return {"label": (spec.labels or ())[-1], "score": 0.0, "scores": {}}

    spec, _ = case("sequence_classification")
    found = decide(Careful, spec, np.array([3.0, 0.0, 1.0], np.float32), None)
    assert found is not None
    assert found.label == "c"
    assert confidences(found.decisions)[0] == pytest.approx(softmax(np.array([3.0, 0.0, 1.0]))[2])
