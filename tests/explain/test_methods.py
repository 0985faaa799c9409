"""The contract of attribution methods, over every one there is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TASKS

from hf_mtl.errors import SpecError
from hf_mtl.explain.explainer import Explainer, make_method
from hf_mtl.explain.explanation import Explanation
from hf_mtl.explain.methods._removal import RemovalMethod
from hf_mtl.explain.methods.base import AttributionMethod
from hf_mtl.registry import EXPLAINERS

METHODS = EXPLAINERS.files
LONG = "the old zebra was good and a story"
PAIR = {"text": "good old songs", "text_pair": "bad zebra music"}
WHOLE = ("sentiment", "intent", "similarity", "moods")
every_method = pytest.mark.parametrize("method", METHODS)
State = Callable[[Any], dict[str, Any]]


def scores(explanation: Explanation) -> np.ndarray:
    return np.array(explanation.scores)


@every_method
def test_method_is_registered_under_the_name_of_its_file(method: str) -> None:
    kind = EXPLAINERS.get(method)
    assert issubclass(kind, AttributionMethod)
    assert kind.__doc__
    assert "http" in kind.__doc__  # a formula without its source cannot be checked


@every_method
@pytest.mark.parametrize("text", [LONG, PAIR, {"tokens": ["fly", "to", "new", "york"]}], ids=["text", "pair", "tokens"])
def test_every_unit_has_a_finite_score(method: str, text: Any, tiny_explainer: Explainer) -> None:
    for task, explanation in tiny_explainer.explain(text, method=method).items():
        assert explanation.task == task
        assert explanation.method == method
        assert len(explanation.scores) == len(explanation.units) > 0
        assert np.isfinite(scores(explanation)).all()
        assert np.abs(scores(explanation)).max() > 0
        assert explanation.signed or (scores(explanation) >= 0).all()
        assert explanation.convergence is None or explanation.convergence >= 0
        assert {unit.part for unit in explanation.units} == ({0, 1} if explanation.text_pair else {0})


@every_method
@pytest.mark.parametrize("text", ["", " ", "!", "a", "\U0001f600"], ids=["empty", "blank", "mark", "letter", "emoji"])
def test_texts_with_hardly_a_word(method: str, text: str, tiny_explainer: Explainer) -> None:
    for explanation in tiny_explainer.explain(text, tasks=WHOLE, method=method).values():
        assert len(explanation.scores) == len(explanation.units) == (1 if text.strip() else 0)
        assert np.isfinite(scores(explanation)).all()


@every_method
def test_same_seed_same_bits(method: str, tiny_explainer: Explainer) -> None:
    again = Explainer(copy.deepcopy(tiny_explainer.subject.model), tiny_explainer.subject.tokenizer)
    first, second = tiny_explainer.explain(LONG, method=method), tiny_explainer.explain(LONG, method=method)
    assert first == second == again.explain(LONG, method=method)


@every_method
def test_model_is_left_as_it_was(method: str, tiny_explainer: Explainer, state_of: State) -> None:
    model = copy.deepcopy(tiny_explainer.subject.model).train()
    model.encoder.embeddings.requires_grad_(False)
    model.encoder.encoder.layer[0].eval()
    ids = torch.tensor([[2, 5, 6, 3]])
    model(input_ids=ids, output_hidden_states=True)  # when it is first asked, transformers hooks a model for good
    model(input_ids=ids, labels={"sentiment": torch.tensor([0])}).loss.backward()
    explainer = Explainer(model, tiny_explainer.subject.tokenizer)
    for text in (LONG, PAIR):
        before = state_of(explainer.subject)
        explainer.explain(text, method=method)
        after = state_of(explainer.subject)
        assert [name for name in before if before[name] != after[name]] == []
        assert before.keys() == after.keys()


@every_method
def test_frozen_model_in_training_mode_is_explained_like_any(method: str, tiny_explainer: Explainer) -> None:
    model = copy.deepcopy(tiny_explainer.subject.model).requires_grad_(False).train()
    frozen = Explainer(model, tiny_explainer.subject.tokenizer).explain(LONG, method=method)
    with torch.no_grad():
        without = tiny_explainer.explain(LONG, method=method)
    for task, explanation in tiny_explainer.explain(LONG, method=method).items():
        np.testing.assert_allclose(scores(frozen[task]), scores(explanation), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scores(without[task]), scores(explanation), rtol=1e-5, atol=1e-6)


@every_method
def test_tasks_together_are_explained_as_apart(method: str, tiny_explainer: Explainer) -> None:
    together = tiny_explainer.explain(LONG, method=method)
    assert [*together] == [*TASKS]
    for task, explanation in together.items():
        apart = tiny_explainer.explain(LONG, tasks=task, method=method)[task]
        np.testing.assert_allclose(scores(explanation), scores(apart), rtol=1e-4, atol=1e-5)


@every_method
def test_texts_together_are_explained_as_apart(method: str, tiny_explainer: Explainer) -> None:
    both = tiny_explainer.explain([LONG, PAIR], tasks=WHOLE, method=method)
    assert both == [tiny_explainer.explain(text, tasks=WHOLE, method=method) for text in (LONG, PAIR)]


@every_method
def test_tokens_add_up_to_words(method: str, tiny_explainer: Explainer) -> None:
    if issubclass(EXPLAINERS.get(method), RemovalMethod):
        return  # to take a word away is not to take its tokens away one by one
    for text in (LONG, PAIR):
        words = tiny_explainer.explain(text, method=method)
        tokens = tiny_explainer.explain(text, method=method, units="token")
        for task, explanation in words.items():
            summed = np.zeros(len(explanation.units))
            for unit, score in zip(tokens[task].units, tokens[task].scores, strict=True):
                owner = [word.part == unit.part and word.start <= unit.start < word.end for word in explanation.units]
                summed[owner.index(True)] += score
            assert len(tokens[task].units) > len(explanation.units)
            np.testing.assert_allclose(summed, scores(explanation), rtol=1e-6, atol=1e-9)


@every_method
def test_json_round_trip(method: str, tiny_explainer: Explainer) -> None:
    for explanation in tiny_explainer.explain(PAIR, method=method).values():
        assert Explanation.from_json(explanation.to_json()) == explanation


@every_method
def test_why_one_label_rather_than_another_turns_the_signs(method: str, tiny_explainer: Explainer) -> None:
    first = tiny_explainer.explain(LONG, tasks="sentiment", method=method, target=("pos", "neg"))["sentiment"]
    second = tiny_explainer.explain(LONG, tasks="sentiment", method=method, target=("neg", "pos"))["sentiment"]
    expected = -scores(first) if first.signed else scores(first)
    np.testing.assert_allclose(scores(second), expected, rtol=1e-4, atol=1e-6)


@every_method
def test_labels_of_several_are_explained_apart(method: str, tiny_explainer: Explainer) -> None:
    first = tiny_explainer.explain(LONG, tasks="moods", method=method, target="glad")["moods"]
    second = tiny_explainer.explain(LONG, tasks="moods", method=method, target="sad")["moods"]
    assert (first.target, second.target) == ("glad", "sad")
    # What only follows the routing of attention cannot tell two labels apart.
    assert (first.scores != second.scores) == (method not in ("attention", "rollout"))


@every_method
def test_tagging_explains_a_word_or_a_span(method: str, tiny_explainer: Explainer) -> None:
    for target, own in ((2, (2,)), ((4, 6), (4, 5)), ({"span": (1, 3), "label": "city", "over": "runner-up"}, (1, 2))):
        explanation = tiny_explainer.explain(LONG, tasks="slots", method=method, target=target)["slots"]
        assert explanation.own == own
        assert np.isfinite(scores(explanation)).all()


@every_method
def test_option_that_does_not_exist_is_refused(method: str) -> None:
    with pytest.raises(SpecError, match="has no such option"):
        make_method(method, {"no_such_option": 1})
