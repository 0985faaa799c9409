"""The report on a whole model: effects are measured ones, cues are planted and found, and the page stands alone."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score
from tiny import build

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import DataError, SpecError
from hf_mtl.explain.answered_rows import AnsweredRows
from hf_mtl.explain.explainer import Explainer
from hf_mtl.explain.global_report import PARTS, GlobalReport, global_report
from hf_mtl.explain.labelled import draw_rows
from hf_mtl.explain.marked_rows import MarkedRows, draw_marked_rows
from hf_mtl.explain.word_effects import LabelShares, WordEffect, clear, cue_candidates, word_effects
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import HEADS
from hf_mtl.writing import to_json


@pytest.fixture(scope="module")
def explainer(learnt: MultiTaskModel, tiny_data: RecipeData) -> Explainer:
    return Explainer(learnt, tiny_data.tokenizer)


@pytest.fixture(scope="module")
def report(learnt: MultiTaskModel, tiny_data: RecipeData) -> GlobalReport:
    return global_report(
        learnt, tiny_data.tokenizer, tiny_data.validation, ["sentiment", "slots", "similarity"],
        parts=PARTS, texts=24, least_texts=3, num_mistakes=2, method="occlusion", train=tiny_data.train,
    )  # fmt: skip


def marked(rows: list[Any], rationales: list[np.ndarray | None] | None = None) -> MarkedRows:
    return MarkedRows(rows=rows, rationales=rationales, labels=[None] * len(rows), left_out=0)


# ---------------------------------------------------------------------- words


def test_effects_are_means_of_what_occlusion_measures(explainer: Explainer, tiny_data: RecipeData) -> None:
    rows = draw_marked_rows(explainer, tiny_data.validation, ["sentiment"], limit=24, seed=0)["sentiment"]
    found = {(own.label, own.word): own for own in word_effects(explainer.subject, rows, "sentiment", least_texts=2)}
    expected: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows.rows:
        why = explainer.explain(row, "sentiment", method="occlusion")["sentiment"]
        for word in set(why.words):
            scores = [score for own, score in zip(why.words, why.scores, strict=True) if own == word]
            expected[why.target, word].append(float(np.mean(scores)))
    known = {key: values for key, values in expected.items() if len(values) >= 2}
    assert set(found) == set(known)
    for key, values in known.items():
        assert found[key].texts == len(values)
        assert found[key].effect == pytest.approx(np.mean(values), abs=1e-5)
        assert found[key].standard_error == pytest.approx(np.std(values, ddof=1) / len(values) ** 0.5, abs=1e-5)


def test_a_word_is_left_out_no_more_often_than_needed(explainer: Explainer, tiny_data: RecipeData) -> None:
    rows = draw_marked_rows(explainer, tiny_data.validation, ["moods"], limit=24, seed=0)["moods"]
    found = word_effects(explainer.subject, rows, "moods", least_texts=3, most_texts=4)
    assert {own.texts for own in found} <= {3, 4}


def test_the_words_of_a_tagging_target_are_not_its_context(explainer: Explainer) -> None:
    rows = marked([{"tokens": ["fly", "to", "rome", *["old"] * number]} for number in (1, 2, 3)])
    words = {own.word for own in word_effects(explainer.subject, rows, "slots", least_texts=3)}
    assert words == {"fly", "to", "old"}


def effect(word: str, **values: Any) -> WordEffect:
    given = {"label": "a", "texts": 9, "effect": 1.0, "standard_error": 0.1, "probability": 0.1, "same_sign": 1.0}
    return WordEffect(**{"word": word, **given, "marked": None, "association": 0.0, **values})


def test_a_cue_is_large_consistent_and_not_what_people_see() -> None:
    small = [effect(f"small{number}", effect=0.01) for number in range(20)]
    assert cue_candidates([*small, effect("cue")]) == [effect("cue")]
    for reason in (
        {"association": 0.4},
        {"association": None},
        {"marked": 0.5},
        {"same_sign": 0.6},
        {"standard_error": 0.5},
        {"effect": -1.0},
    ):
        assert cue_candidates([*small, effect("word", **reason)]) == [], reason
    assert cue_candidates([*small, effect("cue", marked=0.0, association=0.9)])  # marks go before labels
    others = [effect("y", standard_error=0.6), effect("z", effect=-1.0), effect("w", effect=0.05, standard_error=0.0)]
    assert clear([effect("x"), *others]) == [effect("x")]


def test_a_planted_cue_is_found(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    """People mark `good` and the like, never `music`, whose embedding is made that of `awful`."""
    import copy

    import torch

    model = copy.deepcopy(learnt)
    ids = tiny_data.tokenizer.convert_tokens_to_ids(["music", "awful"])
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[ids[0]] = weight[ids[1]]
    subject = Explainer(model, tiny_data.tokenizer).subject
    rows = draw_marked_rows(Explainer(model, tiny_data.tokenizer), tiny_data.train, ["sentiment"], limit=40, seed=0)
    texts = [row["text"].split() for row in rows["sentiment"].rows]
    marks = [np.array([word in ("good", "great", "lovely", "bad", "awful", "dull") for word in text]) for text in texts]
    given = marked([{"tokens": text} for text in texts], list(marks))
    found = cue_candidates(word_effects(subject, given, "sentiment", least_texts=3))
    assert "music" in {own.word for own in found if own.label == "neg"}
    assert not {own.word for own in found} & {"good", "great", "lovely", "bad", "awful", "dull"}


def test_association_is_how_much_more_frequent_a_label_is_with_a_word(tiny_data: RecipeData) -> None:
    shares = LabelShares.of(tiny_data.validation, "sentiment")
    raw = tiny_data.validation["films"].raw.dataset
    rows = [(row["text"].split(), row["label"]) for row in raw]
    with_word = [label for words, label in rows if "music" in words]
    expected = with_word.count("pos") / len(with_word) - [label for _, label in rows].count("pos") / len(rows)
    assert shares.association("music", "pos") == pytest.approx(expected)
    assert shares.association("unheard", "pos") is None
    assert LabelShares.of(tiny_data.validation, "similarity").association("music", "value") is None


# ---------------------------------------------------------------------- answers


def test_judgements_are_of_every_part_of_an_answer(explainer: Explainer, tiny_data: RecipeData) -> None:
    drawn = draw_rows(explainer.subject.model, tiny_data.validation, limit=100, seed=0)
    answered = {task: AnsweredRows.of(explainer, rows) for task, rows in drawn.items()}
    assert answered["similarity"].calibration(10) is None
    calibration = answered["sentiment"].calibration(10)
    assert calibration is not None
    assert calibration.items == len(drawn["sentiment"])
    gold = drawn["sentiment"].split.gold(drawn["sentiment"].task)
    right = accuracy_score(
        [gold[row] for row in drawn["sentiment"].rows], [own["label"] for own in answered["sentiment"].answers]
    )
    assert sum(own.count * own.accuracy for own in calibration.bins if own.count) == pytest.approx(
        right * calibration.items
    )
    moods = answered["moods"].calibration(10)
    assert moods is not None
    assert moods.items == 3 * len(drawn["moods"])


def test_judgements_of_spans_and_of_labels_that_are_not_known() -> None:
    spec = TaskSpec(name="slots", type="token_classification", labels=("O", "B-city", "I-city"))
    head = HEADS.get(spec.type)
    spans = [{"label": "city", "score": 0.9}, {"label": "city", "score": 0.6}]
    answer = {"tags": ["B-city", "I-city", "O", "B-city"], "spans": spans}
    assert head.judgements(spec, answer, ["B-city", "I-city", "O", "O"]) == [(0.9, True), (0.6, False)]
    assert head.judgements(spec, answer, ["B-city", "O", "O", None]) == [(0.9, False)]
    spec = TaskSpec(name="moods", type="multi_label_classification", labels=("glad", "sad"))
    answer = {"labels": ["glad"], "scores": {"glad": 0.75, "sad": 0.25}}
    judged = HEADS.get(spec.type).judgements(spec, answer, {"glad": True, "sad": None})
    assert judged == [(0.75, True)]
    spec = TaskSpec(name="n", type="regression")
    assert HEADS.get(spec.type).judgements(spec, {"value": 1.0}, 1.0) == []


def test_mistakes_are_wrong_sure_and_explained(report: GlobalReport, tiny_data: RecipeData) -> None:
    own = report.tasks[0]
    assert own.mistakes
    raw = tiny_data.validation["films"].raw.dataset
    for mistake in own.mistakes:
        assert mistake.text == raw[mistake.row]["text"]
        assert mistake.reference == raw[mistake.row]["label"] != mistake.prediction
        assert mistake.explanation is not None
        assert mistake.explanation.target == mistake.prediction
        assert mistake.explanation.probability == pytest.approx(mistake.confidence, abs=1e-4)
        assert mistake.words == ()
    sure = [mistake.confidence for mistake in own.mistakes]
    assert sure == sorted(sure, reverse=True)


def test_mistakes_of_tagging_name_the_words(tiny_data: RecipeData) -> None:
    explainer = Explainer(build(tiny_data).eval(), tiny_data.tokenizer)
    rows = draw_rows(explainer.subject.model, tiny_data.validation, ["slots"], limit=9, seed=0)["slots"]
    found = AnsweredRows.of(explainer, rows).mistakes(explainer, 3, method="occlusion")
    assert len(found) == 3
    for mistake in found:
        wrong = zip(mistake.text.split(), mistake.prediction, mistake.reference, strict=True)
        assert list(mistake.words) == [(word, tag, right) for word, tag, right in wrong if right and tag != right]
        assert mistake.words


# ---------------------------------------------------------------------- report and page


def test_the_report_holds_what_was_asked_for(
    report: GlobalReport, learnt: MultiTaskModel, tiny_data: RecipeData
) -> None:
    assert [own.task for own in report.tasks] == ["sentiment", "slots", "similarity"]
    assert report.relations is not None
    assert report.heads is not None
    assert report.layers is not None
    assert report.tasks[2].calibration is None
    assert report.tasks[2].cues is None
    only = global_report(learnt, tiny_data.tokenizer, tiny_data.validation, ["moods"], parts=["calibration"])
    assert only.relations is None
    (own,) = only.tasks
    assert (own.words, own.cues, own.mistakes) == (None, None, None)
    assert own.calibration is not None


def test_the_report_is_plain_json(report: GlobalReport) -> None:
    values = json.loads(json.dumps(report.to_dict()))
    assert set(values) == {"split", "seed", "tasks", "relations", "heads", "layers"}
    assert values["tasks"][0]["mistakes"][0]["why"]
    assert all(table.rows for table in report.tables())


class _Page(HTMLParser):
    """Collects what a page loads, and whether its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_stands_alone(report: GlobalReport) -> None:
    text = report.to_html("A <b> report")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert report.relations is not None
    known = any(cell.known for cell in report.relations.cells)
    assert len(page.loaded) == 4 + known  # two calibrations, heads, layers, relations
    assert all(source.startswith("data:image/png;base64,") for source in page.loaded)
    assert "A <b> report" in page.texts
    assert not re.search(r"https?://", text)
    for heading in ("Task sentiment", "Words to doubt", "Mistakes it is sure of", "Calibration", "Attention heads"):
        assert heading in page.texts


def test_text_of_rows_is_shown_as_text(learnt: MultiTaskModel, tiny_data: RecipeData, report: GlobalReport) -> None:
    from dataclasses import replace

    mistakes = report.tasks[0].mistakes
    assert mistakes is not None
    evil = replace(mistakes[0], text="<script>alert(1)</script>", prediction="<i>", explanation=None)
    changed = replace(report, tasks=(replace(report.tasks[0], task="<u>", mistakes=(evil,)),))
    text = changed.to_html()
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "<u>" not in text
    assert "<i>" not in text


def test_the_report_is_the_same_again(report: GlobalReport, learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    given: dict[str, Any] = {"texts": 24, "least_texts": 3, "num_mistakes": 2, "method": "occlusion"}
    again = global_report(learnt, tiny_data.tokenizer, tiny_data.validation, ["sentiment"], **given)
    assert to_json(again.tasks[0].to_dict()) == to_json(report.tasks[0].to_dict())


def test_what_cannot_be_reported_is_refused(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    given = (learnt, tiny_data.tokenizer, tiny_data.validation)
    for options, message in (
        ({"parts": ["weather"]}, "weather"),
        ({"parts": ["layers"]}, "training rows"),
        ({"least_texts": 1}, "least_texts"),
        ({"most_texts": 2}, "most_texts"),
        ({"top": 0}, "top"),
        ({"num_mistakes": 0}, "num_mistakes"),
        ({"tasks": ["weather"]}, "weather"),
    ):
        with pytest.raises(SpecError, match=message):
            global_report(*given, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="column 'marks'"):
        global_report(*given, rationale_column="marks")
