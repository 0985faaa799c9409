"""Reports: every sentence about words is measured again here, by other means; what cannot be measured is not said."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from learnt import learnt
from tiny import build, tiny_data, tiny_folder, tiny_recipe

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.explain.claims import Claim, claims
from hf_mtl.explain.effects import LEAST_CHANGE, Intervention
from hf_mtl.explain.explainer import CONTEXT_NOTE, Explainer
from hf_mtl.explain.explanation import Explanation
from hf_mtl.explain.languages.base import language_of, number, percent
from hf_mtl.explain.report import LOW_PROBABILITY, SMALL_MARGIN, report, sentence
from hf_mtl.registry import EXPLAINERS, HEADS

__all__ = ["tiny_data", "tiny_folder", "tiny_recipe"]

TEXTS = [
    "the film was dull and awful with music",
    "a lovely story",
    "fly to new york with old songs",
    "play bob for me",
    "unbelievably bad bad film, not good!",
    {"text": "the film was old songs", "text_pair": "a film was old songs"},
]
WAYS = ("delete", "mask")
FAITHFUL = "occlusion"


@pytest.fixture(scope="session")
def explainer() -> Explainer:
    return learnt()


@pytest.fixture(scope="session")
def explanations(explainer: Explainer) -> list[Explanation]:
    """All tasks of all texts, by a method that is faithful, and of the first by one that is not."""
    made = [explainer.explain(text, method=FAITHFUL) for text in TEXTS]
    made.append(explainer.explain(TEXTS[0], method="gradient_x_input"))
    return [explanation for one in made for explanation in one.values()]


@pytest.fixture(scope="session")
def claimed(explanations: list[Explanation]) -> list[tuple[Explanation, tuple[Claim, ...]]]:
    return [(explanation, claims(explanation)) for explanation in explanations]


def explained(explainer: Explainer, text: Any, task: str, method: str = FAITHFUL, **options: Any) -> Explanation:
    return explainer.explain(text, task, method=method, **options)[task]


def measured_again(explanation: Explanation, units: Sequence[int], how: str) -> tuple[float, bool]:
    """Return the target's probability (or value) without some words and whether it is the answer, one row at a time."""
    origin = explanation.require_origin()
    text, target, subject = origin.text, origin.target, origin.subject
    protected = text.tokens_of_words(target.words or ()).tolist()
    ids: list[int] = []
    types: list[int] = []
    places: dict[int, int] = {}
    for token, unit in enumerate(text.unit_of_token.tolist()):
        gone = unit in units
        if gone and how == "delete" and not protected[token]:
            continue
        places[token] = len(ids)
        ids.append(subject.mask_token_id if gone else int(text.input_ids[token]))
        types.append(0 if text.token_type_ids is None else int(text.token_type_ids[token]))
    with torch.no_grad():
        output = subject.model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]))
    logits = output.logits[explanation.task][0].double().numpy()
    if target.words is not None:
        logits = logits[[places[int(token)] for token in text.words.first_tokens[list(target.words)]]]
    rows = np.atleast_2d(logits)
    spec = subject.spec(explanation.task)
    head = HEADS.get(spec.type)
    probabilities = head.probabilities(spec, rows)[np.arange(len(rows)), list(target.labels)]
    return float(probabilities.mean()), bool(head.holds(spec, target, rows[None])[0])


def said(text: str) -> list[str]:
    """The sentences of a report in text."""
    return text.split("\n\n")[1].splitlines()


def stands(claim: Claim, explanation: Explanation) -> bool:
    """Tell whether a claim is true, from measurements made again."""
    before, _ = measured_again(explanation, (), "mask")
    again = [measured_again(explanation, claim.units, how) for how in WAYS]
    everything = range(len(explanation.units))
    size = max(abs(before), abs(before - measured_again(explanation, everything, "delete")[0]))
    least = LEAST_CHANGE * (1.0 if explanation.measure == "probability" else size) - 1e-5
    changes = np.array([after for after, _ in again]) - before
    numbers = [claim.before, *claim.after]
    if not np.allclose(numbers, [before, *(after for after, _ in again)], atol=1e-5):
        return False
    if claim.kind.endswith("barely"):
        return bool((np.abs(changes) < least + 2e-5).all())
    if claim.kind == "opposes":
        return bool((changes >= least).all())
    return bool((changes <= -least).all()) and (claim.kind != "flips" or not any(holds for _, holds in again))


def test_every_claim_is_true(claimed: list[tuple[Explanation, tuple[Claim, ...]]]) -> None:
    kinds: set[str] = set()
    for explanation, found in claimed:
        assert all(claim.perturb == WAYS for claim in found)
        assert [claim for claim in found if not stands(claim, explanation)] == []
        kinds |= {claim.kind for claim in found}
    assert kinds >= {"flips", "supports", "alone", "opposes", "own", "own_barely", "context"}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_printed_sentence_is_a_claim(claimed: list[tuple[Explanation, tuple[Claim, ...]]], language: str) -> None:
    for explanation, found in claimed:
        intervention = Intervention(explanation)
        sentences = [sentence(claim, intervention, language_of(language)) for claim in found]
        printed = [line for line in said(report(explanation, language=language)) if not _unsure(line)]
        assert printed == (sentences or [language_of(language).nothing(WAYS)])
        for claim, line in zip(found, printed, strict=False):
            agreed = claim.kind == "flips" and len({effect.answer for effect in claim.effects}) == 1
            for effect in claim.effects:
                write = number if explanation.measure == "value" else percent
                shown = effect.answer_after if agreed and effect.answer else effect.after
                assert write(shown or 0.0) in line
            if not claim.kind.startswith(("own", "context")):
                assert all(word in line for word in claim.words)


def _unsure(line: str) -> bool:
    return line.startswith(("The model is not sure", "模型并不确定"))


def test_the_words_that_were_learnt_are_named(explainer: Explainer) -> None:
    explanation = explained(explainer, "the film was dull and awful with music", "sentiment")
    assert explanation.predicted == "neg"
    (flip,) = [claim for claim in claims(explanation) if claim.kind == "flips"]
    assert set(flip.words) <= {"dull", "awful"}
    first = flip.effects[0]
    line = f"without {'them' if len(flip.words) > 1 else 'it'} pos rises from {percent(first.answer_before or 0)} to"
    assert line in report(explanation)
    assert "carr" in report(explanation)


def test_scores_choose_words_and_prove_nothing(explainer: Explainer) -> None:
    explanation = explained(explainer, "the film was lovely and the story was lovely with great music", "moods",
                            target="glad")  # fmt: skip
    true = [claim for claim in claims(explanation) if "lovely" in claim.words or "great" in claim.words]
    assert true
    filler = [float(word == "story") for word in explanation.words]
    wrong = replace(explanation, scores=tuple(filler), origin=explanation.origin)
    assert all(stands(claim, wrong) for claim in claims(wrong))
    intervention = Intervention(wrong)
    place = explanation.words.index("story")
    if all(abs(intervention.effects([[place]], how)[0].change) < LEAST_CHANGE for how in WAYS):
        assert "'story'" not in report(wrong)
    backwards = replace(explanation, scores=tuple(-score for score in explanation.scores), origin=explanation.origin)
    assert not [claim for claim in claims(backwards) if claim.kind == "alone" and set(claim.words) & {"lovely"}]


def test_where_nothing_stands_the_report_says_so(tiny_data: RecipeData) -> None:
    explainer = Explainer(build(tiny_data).eval(), tiny_data.tokenizer)  # random heads: words hardly matter
    explanation = explained(explainer, "the film was a story", "intent")
    assert claims(explanation) == ()
    assert "Nothing can be said about single words" in report(explanation)
    assert "对单个词语无话可说" in report(explanation, language="zh")
    for text in ("", " "):
        assert "Nothing can be said" in report(explained(explainer, text, "sentiment"))


def test_one_way_alone_is_not_enough(claimed: list[tuple[Explanation, tuple[Claim, ...]]]) -> None:
    one_sided = 0
    for explanation, found in claimed[:12]:
        intervention = Intervention(explanation)
        deleted, masked = (
            intervention.effects([[unit] for unit in range(len(explanation.units))], how) for how in WAYS
        )
        told = {claim.units for claim in found if claim.kind in ("alone", "opposes")}
        for pair in zip(deleted, masked, strict=True):
            large = [abs(effect.change) >= intervention.least for effect in pair]
            if not all(large) or pair[0].change * pair[1].change < 0:
                one_sided += any(large)
                assert pair[0].units not in told
    assert one_sided > 0


def test_a_model_that_is_not_sure_is_said_to_be(explanations: list[Explanation]) -> None:
    seen = {True: 0, False: 0}
    for explanation in explanations[::2]:
        unsure = any(map(_unsure, said(report(explanation))))
        if explanation.measure == "value":
            assert not unsure
            continue
        origin = explanation.require_origin()
        spec = origin.subject.spec(explanation.task)
        nothing = np.zeros((1, len(explanation.units)), dtype=bool)
        logits = origin.subject.measure(origin.text, nothing, {explanation.task: origin.target})[
            explanation.task
        ].logits
        ranked = -np.sort(-HEADS.get(spec.type).probabilities(spec, logits[0]), axis=-1).mean(axis=0)
        if HEADS.get(spec.type).exclusive:
            expected = ranked[0] < LOW_PROBABILITY or ranked[0] - ranked[1] < SMALL_MARGIN
        else:
            expected = abs(explanation.probability - 0.5) < SMALL_MARGIN / 2
        assert unsure == expected
        seen[unsure] += 1
    assert min(seen.values()) > 0


def test_a_value_rises_and_falls_in_its_own_unit(explainer: Explainer) -> None:
    explanation = explained(explainer, TEXTS[5], "similarity")
    lines = said(report(explanation))
    assert lines
    for claim, line in zip(claims(explanation), lines, strict=True):
        assert re.search(
            rf"the value (rises|falls) from {re.escape(number(claim.before))} to {number(claim.after[0])}", line
        )
        assert "%" not in line
        assert "text)" in line  # which of the two texts a word stands in


def test_tagging_tells_the_target_from_its_context(explainer: Explainer) -> None:
    explanation = explained(explainer, "fly to new york", "slots", target=(2, 4))
    text = report(explanation)
    assert re.search(r"'new york' itself matters: masked, \S+ falls from \S+ to", text)
    own = next(claim for claim in claims(explanation) if claim.kind == "own")
    assert own.words == ("new", "york")
    for claim in claims(explanation):
        if claim.kind not in ("own", "own_barely"):
            assert not set(claim.units) <= set(explanation.own)
        if claim.kind.startswith("context"):
            assert set(claim.units) == set(range(len(explanation.units))) - set(explanation.own)


@pytest.mark.slow
def test_that_context_barely_matters_is_said_where_measured_not_where_scores_say_so(explainer: Explainer) -> None:
    for text in TEXTS[:5]:
        for task in ("slots", "grammar"):
            explanation = explained(explainer, text, task)
            noted = replace(explanation, notes=(f"{CONTEXT_NOTE}: 1% of the attribution",), origin=explanation.origin)
            barely = any(claim.kind == "context_barely" for claim in claims(noted))
            assert ("The context barely matters" in report(noted)) == barely
            assert "1% of the attribution" not in report(noted)


def test_a_label_rather_than_another(explainer: Explainer) -> None:
    explanation = explained(explainer, "fly to rome", "slots", target={"word": 2, "label": "city", "over": "name"})
    assert "city rather than name for 'rome'" in report(explanation)
    for claim in claims(explanation):
        assert 0.0 <= claim.before <= 1.0
    pair = explained(explainer, "the film was dull", "sentiment", target=("neg", "pos"))
    assert "explained: neg rather than pos" in report(pair)
    assert "neg而非pos" in report(pair, language="zh")


def test_a_label_that_is_not_the_answer_is_spoken_for_not_carried(explainer: Explainer) -> None:
    explanation = explained(explainer, "good film but dull and awful", "sentiment", target="pos")
    if explanation.predicted == "neg":
        text = report(explanation)
        assert "carr" not in text
        assert "becomes the answer" not in text


def test_a_word_that_occurs_twice_can_be_told(explainer: Explainer) -> None:
    explanation = explained(explainer, "bad bad film", "sentiment")
    bad = [claim for claim in claims(explanation) if "bad" in claim.words]
    assert bad
    assert re.search(r"'bad' \(the (1st|2nd) one\)", report(explanation))
    assert re.search(r"“bad”（第[12]处）", report(explanation, language="zh"))


def all_methods() -> list[str]:
    return list(EXPLAINERS.names())


@pytest.mark.mostly_slow(fast=4)
@pytest.mark.parametrize("method", all_methods())
def test_chinese_reports_hold_no_english_but_labels_words_and_names(explainer: Explainer, method: str) -> None:
    for text in (TEXTS[0], TEXTS[5]):
        for task in ("sentiment", "slots"):
            try:
                explanation = explained(explainer, text, task, method=method)
            except ModelError:
                continue  # the method does not cover this model
            shown = report(explanation, language="zh")
            labels = [part for label in explainer.subject.spec(task).labels or () for part in (label, label[2:])]
            texts = explanation.text, explanation.text_pair or "", *explanation.words
            for known in sorted(filter(None, [*texts, *labels, task, method, "PAD"]), key=len, reverse=True):
                shown = shown.replace(known, "")
            assert re.findall(r"[A-Za-z]{2,}", shown) == []


def test_notes_are_part_of_it(explainer: Explainer) -> None:
    explanation = explained(explainer, TEXTS[1], "sentiment", method="gradient_x_input")
    told = replace(explanation, convergence=0.0123, seed=7, notes=("attn_lrp does not cover this model (why): "
                   "integrated_gradients took its place", *explanation.notes), origin=explanation.origin)  # fmt: skip
    for part in ("1.2%", "seed 7", "does not cover this model", "offered for comparison"):
        assert part in report(told)
    for part in ("1.2%", "随机种子：7", "不适用于此模型", "仅供对照"):
        assert part in report(told, language="zh")


def test_html_and_markdown_show_labels_and_words_as_they_are(explainer: Explainer) -> None:
    explanation = explained(explainer, "<b>awful</b> *dull* film & bad", "sentiment")
    odd = replace(explanation, task="<task>", origin=None)
    with pytest.raises(SpecError, match="read from JSON"):
        report(odd)
    html = report(explanation, "html")
    assert "<b>awful" not in html
    assert html.count("<li>") == len(said(report(explanation)))
    markdown = report(explanation, "markdown")
    assert markdown.startswith("### sentiment: neg\n")
    assert not re.search(r"(?<!\\)<b", markdown)
    assert len(re.findall(r"^- ", markdown, re.MULTILINE)) == len(said(report(explanation)))


def test_words_from_right_to_left_do_not_turn_their_neighbours(explainer: Explainer) -> None:
    explanation = explained(explainer, "سيئ dull سيئ awful", "sentiment")
    shown = report(replace(explanation, scores=(1.0, 0.5, 0.4, 0.3), origin=explanation.origin))
    for word in re.findall("\u2068(.*?)\u2069", shown):
        assert word == "سيئ"
    assert shown.count("\u2068") == shown.count("\u2069")


def test_claims_are_plain_json(explanations: list[Explanation]) -> None:
    for explanation in explanations[:6]:
        values = [claim.to_dict() for claim in claims(explanation)]
        assert json.loads(json.dumps(values)) == values


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "pdf"}, "format is 'pdf'; use one of 'text', 'markdown', 'html'"),
        ({"language": "fr"}, "language is 'fr'; use one of 'en', 'zh'"),
    ],
)
def test_unknown_formats_and_languages_list_those_allowed(
    explanations: list[Explanation], options: dict[str, str], message: str
) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        explanations[0].report(**options)
