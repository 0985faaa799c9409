"""Texts as explanations see them, the model with words taken away, and the explainer around both."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import build, tiny_data, tiny_folder, tiny_recipe  # noqa: F401 (fixtures)

from hf_mtl.data.encoding import read_inputs
from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import DataError, HfMtlError, ModelError, SpecError
from hf_mtl.evaluation.prediction import answer
from hf_mtl.explain.explainer import Explainer, make_method
from hf_mtl.explain.explanation import Explanation
from hf_mtl.explain.methods.base import AttributionMethod
from hf_mtl.explain.subject import Subject
from hf_mtl.explain.text import read_text
from hf_mtl.model.targets import Wanted
from hf_mtl.registry import EXPLAINERS, HEADS

TEXT = "The film was unbelievably good, and old songs!"
PAIR = {"text": "ann played old songs", "text_pair": "songs were played by bob"}


@pytest.fixture(scope="module")
def subject(tiny_data: RecipeData) -> Subject:  # noqa: F811
    return Subject(build(tiny_data).eval(), tiny_data.tokenizer)


@pytest.fixture(scope="module")
def explainer(subject: Subject) -> Explainer:
    return Explainer(subject.model, subject.tokenizer)


# ---------------------------------------------------------------------- texts


@pytest.mark.parametrize("row", [TEXT, PAIR, {"tokens": ["fly", "to", "new york", "!"]}, "", "上海 good"])
@pytest.mark.parametrize("units", ["word", "token"])
def test_tokens_are_those_the_model_reads_and_each_belongs_to_one_unit(subject: Subject, row: Any, units: str) -> None:
    text = subject.read(row, units=units)
    inputs = read_inputs(row, split_words=True)
    expected = subject.tokenizer(inputs.text, inputs.text_pair)["input_ids"]
    assert text.input_ids.tolist() == expected
    special = np.isin(text.input_ids, subject.tokenizer.all_special_ids) & (text.parts < 0)
    assert ((text.unit_of_token < 0) == special).all()
    for place, unit in enumerate(text.units):
        whole = (inputs.text, inputs.text_pair)[unit.part]
        assert whole is not None
        assert whole[unit.start : unit.end] == unit.text
        for token in np.flatnonzero(text.unit_of_token == place):
            start, end = text.offsets[token]
            assert unit.start < end
            assert start < unit.end
            assert text.parts[token] == unit.part


def test_units_are_words_of_both_texts_of_a_pair(subject: Subject) -> None:
    text = subject.read(PAIR)
    assert [(unit.text, unit.part) for unit in text.units] == [
        *((word, 0) for word in PAIR["text"].split()),
        *((word, 1) for word in PAIR["text_pair"].split()),
    ]


def test_scores_of_tokens_add_up_to_those_of_words(subject: Subject) -> None:
    text = subject.read(TEXT)
    token_scores = np.random.default_rng(0).normal(size=len(text.input_ids))
    by_hand = [token_scores[text.unit_of_token == place].sum() for place in range(len(text.units))]
    np.testing.assert_allclose(text.sum_over_units(token_scores), by_hand)
    assert text.sum_over_units(token_scores).sum() == pytest.approx(token_scores[1:-1].sum())


def test_a_text_longer_than_the_model_reads_is_refused(subject: Subject) -> None:
    with pytest.raises(DataError, match=r"more than the 48 tokens that the model reads; explain a part of it"):
        subject.read("film " * 60)


def test_unknown_units_are_refused(subject: Subject) -> None:
    with pytest.raises(SpecError, match=r"units is 'letter'; use one of 'word', 'token'"):
        subject.read(TEXT, units="letter")


def test_a_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    from transformers import CanineTokenizer

    with pytest.raises(ModelError, match="gives no character offsets"):
        read_text(CanineTokenizer(), read_inputs(TEXT, split_words=True))


# ---------------------------------------------------------------------- forward passes


def test_one_pass_gives_the_logits_of_the_model(subject: Subject) -> None:
    text = subject.read(PAIR)
    inputs = subject.tokenizer(PAIR["text"], PAIR["text_pair"], return_tensors="pt")
    tasks = [spec.name for spec in subject.model.specs]
    with torch.no_grad():
        expected = subject.model(**inputs).logits
    for gradients in (False, True):
        forward = subject.forward(text, tasks, gradients=gradients)
        for task in tasks:
            assert torch.equal(forward.logits(task).detach(), expected[task])
            assert forward.logits(task).requires_grad == gradients


def test_embeddings_put_in_place_of_the_texts_own_are_used(subject: Subject) -> None:
    text, other = subject.read("the film was good"), subject.read("a story with music")
    forward = subject.forward(other, ["sentiment"])
    assert forward.embeddings is not None
    replaced = subject.forward(text, ["sentiment"], embeddings=forward.embeddings)
    assert torch.equal(replaced.logits("sentiment"), forward.logits("sentiment"))


def test_gradients_reach_the_embeddings_and_leave_no_trace(subject: Subject) -> None:
    text = subject.read(TEXT)
    forward = subject.forward(text, ["sentiment"], gradients=True)
    target = subject.target(text, forward, "sentiment", Wanted())
    assert forward.embeddings is not None
    (gradient,) = torch.autograd.grad(subject.score(text, target, "sentiment", forward).sum(), forward.embeddings)
    step = 1e-2 * torch.nn.functional.normalize(gradient.flatten(), dim=0).view_as(gradient)
    ends = torch.cat([forward.embeddings.detach() + sign * step for sign in (1, -1)])
    scores = subject.score(text, target, "sentiment", subject.forward(text, ["sentiment"], embeddings=ends))
    slope = (scores[0] - scores[1]) / 2
    assert slope.item() == pytest.approx((gradient * step).sum().item(), rel=1e-2)
    assert all(parameter.grad is None for parameter in subject.model.parameters())
    assert not subject.model.get_input_embeddings()._forward_hooks


# ---------------------------------------------------------------------- words taken away


@pytest.mark.parametrize("how", ["delete", "mask"])
def test_what_is_measured_is_what_the_model_says_of_the_rest(subject: Subject, how: str) -> None:
    text = subject.read(TEXT)
    tasks = [spec.name for spec in subject.model.specs]
    forward = subject.forward(text, tasks)
    targets = {task: subject.target(text, forward, task, Wanted()) for task in tasks}
    removed = np.random.default_rng(0).random((12, len(text.units))) < 0.5
    removed[0], removed[1] = False, True
    measured = subject.measure(text, removed, targets, how=how)
    for task, target in targets.items():
        own = text.tokens_of_words(target.words or ())
        for row, gone in enumerate(text.tokens_of(removed)):
            masked = gone if how == "mask" else gone & own
            kept = np.flatnonzero(~gone | masked)
            ids = np.where(masked, subject.tokenizer.unk_token_id, text.input_ids)[kept]
            with torch.no_grad():
                logits = subject.model(input_ids=torch.from_numpy(ids)[None]).logits[task][0]
            if target.words is not None:
                first = [int(np.flatnonzero(kept == text.words.first_tokens[word])[0]) for word in target.words]
                logits = logits[first]
            else:
                logits = logits[None]
            head, spec = HEADS.get(subject.spec(task).type), subject.spec(task)
            assert measured[task].scores[row] == pytest.approx(target.score(logits[None]).item(), abs=1e-5)
            probability = target.probability(head.probabilities(spec, logits[None].numpy()))
            assert measured[task].probabilities[row] == pytest.approx(probability[0], abs=1e-6)
            assert measured[task].holds[row] == head.holds(spec, target, logits[None].numpy())[0]


def test_tasks_measured_together_are_measured_as_alone(subject: Subject) -> None:
    text = subject.read(TEXT)
    tasks = ["sentiment", "slots"]
    forward = subject.forward(text, tasks)
    targets = {task: subject.target(text, forward, task, Wanted()) for task in tasks}
    removed = np.eye(len(text.units), dtype=bool)
    together = subject.measure(text, removed, targets)
    for task in tasks:
        alone = subject.measure(text, removed, {task: targets[task]})[task]
        np.testing.assert_allclose(together[task].scores, alone.scores, atol=1e-6)


def test_another_way_of_taking_words_away_is_refused(subject: Subject) -> None:
    text = subject.read(TEXT)
    with pytest.raises(SpecError, match=r"perturb is 'shuffle'; use one of 'delete', 'mask'"):
        subject.measure(text, np.zeros((1, len(text.units)), dtype=bool), {}, how="shuffle")


# ---------------------------------------------------------------------- explanations


def test_an_explanation_tells_what_the_model_answers(explainer: Explainer) -> None:
    explanations = explainer.explain(TEXT, method="gradient_x_input")
    assert list(explanations) == [spec.name for spec in explainer.subject.model.specs]
    row = read_inputs(TEXT, split_words=True)
    (expected,) = answer(explainer.subject.model, explainer.subject.tokenizer, [row])
    assert explanations["sentiment"].predicted == expected["sentiment"]["label"]
    assert explanations["sentiment"].target == expected["sentiment"]["label"]
    assert explanations["sentiment"].probability == pytest.approx(expected["sentiment"]["score"], abs=1e-6)
    assert explanations["similarity"].probability == pytest.approx(expected["similarity"]["value"], abs=1e-6)
    assert explanations["similarity"].measure == "value"


def test_json_gives_an_equal_explanation_back(explainer: Explainer) -> None:
    for explanation in explainer.explain(PAIR, method="gradient_x_input").values():
        text = explanation.to_json(indent=1)
        loaded = Explanation.from_json(text)
        assert loaded == explanation
        assert loaded.to_json(indent=1) == text
        with pytest.raises(SpecError, match="read from JSON, without its model"):
            loaded.require_origin()


@pytest.mark.parametrize("text", ["[]", "{", '{"task": "sentiment"}'])
def test_json_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="explanation: "):
        Explanation.from_json(text)


def test_unknown_keys_are_refused(explainer: Explainer) -> None:
    values = explainer.explain(TEXT, "sentiment", "gradient_x_input")["sentiment"].to_dict()
    with pytest.raises(DataError, match="'colour' is missing or unknown"):
        Explanation.from_dict({**json.loads(json.dumps(values)), "colour": "red"})


def test_a_list_of_texts_gives_a_list(explainer: Explainer) -> None:
    several = explainer.explain([TEXT, PAIR], "sentiment", "gradient_x_input")
    assert several == [explainer.explain(row, "sentiment", "gradient_x_input") for row in (TEXT, PAIR)]


def test_own_words_and_context_are_told_apart(explainer: Explainer) -> None:
    explanation = explainer.explain(TEXT, "slots", "gradient_x_input", target=(3, 5))["slots"]
    assert [explanation.words[place] for place in explanation.own] == ["unbelievably", "good"]
    assert explanation.own_score == pytest.approx(explanation.scores[3] + explanation.scores[4])
    assert explanation.own_score + explanation.context_score == pytest.approx(sum(explanation.scores))
    sizes = np.abs(explanation.scores)
    assert explanation.context_share == pytest.approx(1 - sizes[3:5].sum() / sizes.sum())
    noted = any("context barely matters" in note for note in explanation.notes)
    assert noted == (explanation.context_share < 0.1)


def test_targets_of_several_tasks_are_given_by_task(explainer: Explainer) -> None:
    wanted = {"slots": 1, "sentiment": "neg"}
    found = explainer.explain(TEXT, ["sentiment", "slots", "moods"], "gradient_x_input", target=wanted)
    assert found["sentiment"].target == "neg"
    assert found["slots"].own == (1,)
    with pytest.raises(SpecError, match=r"target is 'neg', and there are 2 tasks.*mapping from tasks"):
        explainer.explain(TEXT, ["sentiment", "slots"], "gradient_x_input", target="neg")


class Fussy(AttributionMethod):
    """Covers no model."""

    def check(self, subject: Subject) -> None:
        raise ModelError("it covers none")

    def attribute(self, *args: Any) -> dict[str, Any]:
        raise AssertionError("never asked")


def test_where_the_usual_method_cannot_work_another_takes_its_place_and_says_so(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXPLAINERS._members, "attn_lrp", Fussy)
    explanation = explainer.explain(TEXT, "sentiment")["sentiment"]
    assert explanation.method == "integrated_gradients"
    assert "attn_lrp does not cover this model (it covers none)" in explanation.notes[0]
    with pytest.raises(ModelError, match="covers none"):
        explainer.explain(TEXT, "sentiment", "attn_lrp")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "'magic' is not an attribution method; use one of"),
        ({"method": "gradient_x_input", "colour": "red"}, "the method 'gradient_x_input' has no such option"),
        ({"tasks": "mood"}, "mood"),
        ({"tasks": "sentiment", "target": "meh"}, "label 'meh' is not in the label set"),
        ({"tasks": "slots", "target": 99}, "target names word 99, the text has 10 words"),
    ],
)
def test_bad_requests_get_one_clear_error(explainer: Explainer, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(HfMtlError, match=re.escape(message)):
        explainer.explain(TEXT, **{"method": "gradient_x_input", **arguments})


def test_a_method_is_made_with_its_options() -> None:
    assert replace(make_method("gradient_x_input")) == make_method("gradient_x_input", {})
