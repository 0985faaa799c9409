"""Verification: what is said to happen without words is what happens, and the smallest sets are smallest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from learnt import learnt
from tiny import build, tiny_data, tiny_folder, tiny_recipe

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import SpecError
from hf_mtl.explain import verification
from hf_mtl.explain.effects import Effect, Intervention
from hf_mtl.explain.explainer import Explainer
from hf_mtl.explain.explanation import Explanation
from hf_mtl.explain.verification import verify

__all__ = ["tiny_data", "tiny_folder", "tiny_recipe"]

TEXTS = ["the film was dull and awful", "a lovely story with music", "not good, not bad", "unbelievably great songs"]
WAYS = ("delete", "mask")


@pytest.fixture(scope="session")
def explainer() -> Explainer:
    return learnt()


def explained(explainer: Explainer, text: Any, task: str, **options: Any) -> Explanation:
    return explainer.explain(text, task, method="occlusion", **options)[task]


def by_hand(explanation: Explanation, units: Sequence[int], how: str) -> np.ndarray:
    """Return the probabilities of a text without some words, `(num_labels,)`, from ids that are cut by hand."""
    origin = explanation.require_origin()
    text, model, tokenizer = origin.text, origin.subject.model, origin.subject.tokenizer
    ids, types = [], []
    for token, unit in enumerate(text.unit_of_token.tolist()):
        if unit in units and how == "delete":
            continue
        ids.append(tokenizer.unk_token_id if unit in units else int(text.input_ids[token]))
        types.append(0 if text.token_type_ids is None else int(text.token_type_ids[token]))
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]))
    return output.logits[explanation.task][0].softmax(dim=-1).double().numpy()


def all_effects(found: verification.Verification) -> list[Effect]:
    return [*found.alone, *found.together, *(flip.effect for flip in found.flips)]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("units", ["word", "token"])
def test_effects_are_those_of_ids_cut_by_hand(explainer: Explainer, text: str, units: str) -> None:
    explanation = explained(explainer, text, "sentiment", units=units)
    found = verify(explanation)
    label = explainer.subject.spec("sentiment").label2id[explanation.target]
    assert found.before == pytest.approx(explanation.probability, abs=1e-6)
    for effect in all_effects(found):
        probabilities = by_hand(explanation, effect.units, effect.how)
        assert effect.after == pytest.approx(probabilities[label], abs=1e-5)
        assert effect.flips == (probabilities.argmax() != label)
        assert effect.words == tuple(explanation.words[unit] for unit in effect.units)
        if effect.flips:
            assert effect.answer_after == pytest.approx(probabilities.max(), abs=1e-5)


def test_the_top_words_are_taken_alone_and_together_each_way(explainer: Explainer) -> None:
    explanation = explained(explainer, TEXTS[0], "sentiment")
    best = [unit for unit in explanation.ranked() if explanation.scores[unit] > 0][:2]
    found = verify(explanation, top=2)
    assert [(effect.units, effect.how) for effect in found.alone] == [((u,), how) for how in WAYS for u in best]
    starts = [(best[0],), tuple(sorted(best))]
    assert [(effect.units, effect.how) for effect in found.together] == [(s, how) for how in WAYS for s in starts]
    assert verify(explanation, "mask", top=2).perturb == ("mask",)


@pytest.mark.parametrize("task", ["sentiment", "intent", "moods"])
@pytest.mark.parametrize("text", [*TEXTS, "fly to rome with music"])
def test_the_smallest_set_is_smallest_of_all_subsets(explainer: Explainer, text: str, task: str) -> None:
    explanation = explained(explainer, text, task)
    found = verify(explanation)
    origin = explanation.require_origin()
    count = len(explanation.units)
    masks = (np.arange(2**count)[:, None] >> np.arange(count)) % 2 == 1
    for how in WAYS:
        holds = origin.subject.measure(origin.text, masks, {task: origin.target}, how=how)[task].holds
        sizes = masks.sum(axis=1)[~holds]
        flip = next((one for one in found.flips if one.effect.how == how), None)
        if not len(sizes):
            assert flip is None
            assert found.tried[how] == count
        else:
            assert flip is not None
            assert flip.exact
            assert len(flip.effect.units) == sizes.min()
            assert not holds[(1 << np.array(flip.effect.units)).sum()]


def test_a_set_found_along_the_ranking_can_spare_no_word(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "SEARCH_TOKENS", 0)
    long = "the film was dull and awful with bad music and the story was awful and dull and bad and old"
    found = 0
    for method in ("occlusion", "gradient_x_input"):
        explanation = explainer.explain(long, "sentiment", method=method)["sentiment"]
        intervention = Intervention(explanation)
        for flip in verify(explanation).flips:
            found += 1
            units = flip.effect.units
            assert flip.effect.flips
            assert flip.exact == (len(units) == 1)
            smaller = intervention.effects(list(combinations(units, len(units) - 1)), flip.effect.how)
            assert not any(effect.flips for effect in smaller)
    assert found > 1


def test_a_number_has_no_flip_and_its_effects_are_in_its_unit(explainer: Explainer) -> None:
    explanation = explained(explainer, {"text": "the film was old", "text_pair": "the film was old"}, "similarity")
    found = verify(explanation)
    assert (found.measure, found.flips, found.tried) == ("value", (), {"delete": 0, "mask": 0})
    assert found.before == pytest.approx(explanation.probability, abs=1e-5)
    # Occlusion is what verification measures.
    for effect in found.alone[: len(found.alone) // 2]:
        assert -effect.change == pytest.approx(explanation.scores[effect.units[0]], abs=1e-4)


def test_what_is_not_the_answer_cannot_flip(explainer: Explainer) -> None:
    answer = explained(explainer, TEXTS[0], "sentiment").target
    other = "pos" if answer == "neg" else "neg"
    found = verify(explained(explainer, TEXTS[0], "sentiment", target=other))
    assert not found.answered
    assert found.flips == ()
    assert not any(effect.flips for effect in all_effects(found))


def test_words_of_a_tagging_target_are_masked_either_way(explainer: Explainer) -> None:
    explanation = explained(explainer, "fly to new york", "slots", target=(2, 4))
    intervention = Intervention(explanation)
    deleted, masked = (intervention.effects([explanation.own], how)[0] for how in WAYS)
    assert deleted.after == pytest.approx(masked.after, abs=1e-6)
    assert deleted.flips
    assert deleted.answer is not None


def test_a_label_rather_than_another_is_measured_as_its_share_of_the_two(explainer: Explainer) -> None:
    target = {"word": 2, "label": "city", "over": "name"}
    explanation = explained(explainer, "fly to rome", "slots", target=target)
    found = verify(explanation)
    spec = explainer.subject.spec("slots")
    assert found.measure == "share"
    for effect in found.alone:
        if effect.how == "delete" and 2 not in effect.units:
            place = explanation.require_origin().text.unit_of_token.tolist().index(2) - len(effect.units)
            both = by_hand(explanation, effect.units, "delete")[place][
                [spec.label2id["B-city"], spec.label2id["B-name"]]
            ]
            assert effect.after == pytest.approx(both[0] / both.sum(), abs=1e-5)
    for flip in found.flips:
        assert flip.effect.after < 0.5
        assert flip.effect.answer == "B-name"


class Deaf:
    """A tokenizer that reads no text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        assert name in ("mask_token_id", "unk_token_id", "pad_token_id")
        return getattr(self.tokenizer, name)


def test_no_text_is_tokenized_again(explainer: Explainer) -> None:
    explanation = explained(explainer, TEXTS[0], "sentiment")
    expected = verify(explanation).to_dict()
    origin = explanation.require_origin()
    origin.subject.tokenizer = Deaf(tokenizer := origin.subject.tokenizer)
    try:
        assert verify(explanation).to_dict() == expected
    finally:
        origin.subject.tokenizer = tokenizer


def test_all_is_plain_json_and_a_table(explainer: Explainer) -> None:
    found = verify(explained(explainer, "<b> was dull", "sentiment"))
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    html = found._repr_html_()
    assert html.count("<tr>") == 1 + len(all_effects(found))
    assert "<b>" not in html


def test_untrained_models_and_empty_texts_are_verified_too(tiny_data: RecipeData) -> None:
    explainer = Explainer(build(tiny_data).eval(), tiny_data.tokenizer)
    for text in ("", "good"):
        for task, explanation in explainer.explain(
            text, ["sentiment", "moods", "similarity"], method="occlusion"
        ).items():
            assert verify(explanation).task == task


def test_bad_arguments_are_named(explainer: Explainer) -> None:
    explanation = explained(explainer, TEXTS[0], "sentiment")
    with pytest.raises(SpecError, match="perturb is 'shuffle'; use one or several of 'delete', 'mask'"):
        verify(explanation, "shuffle")
    with pytest.raises(SpecError, match="perturb is"):
        verify(explanation, ())
    with pytest.raises(SpecError, match="top is 0"):
        explanation.verify(top=0)
    with pytest.raises(SpecError, match="read from JSON"):
        verify(replace(explanation, origin=None))
