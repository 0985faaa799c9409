"""How explanations are measured: brute force, scikit-learn, scipy and searches whose answer is known give the same."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import sem
from sklearn.metrics import average_precision_score, f1_score, jaccard_score
from tiny import build, tiny_data, tiny_folder, tiny_recipe

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import DataError, HfMtlError, ModelError, SpecError
from hf_mtl.explain.explainer import Explainer
from hf_mtl.explain.faithfulness import STEPS, Variants, faithfulness, greedy_choice, greedy_removal, sizes_of_steps
from hf_mtl.explain.measurements import GREEDY, RANDOM, Estimate, Quality
from hf_mtl.explain.methods.base import Attribution, AttributionMethod
from hf_mtl.explain.plausibility import average_share, plausibility, read_rationales
from hf_mtl.explain.quality import quality
from hf_mtl.explain.quality_report import difference_table, draw_quality, quality_table, ranked_methods
from hf_mtl.explain.subject import REMOVALS, Subject
from hf_mtl.model.targets import Wanted
from hf_mtl.registry import EXPLAINERS

__all__ = ["tiny_data", "tiny_folder", "tiny_recipe"]

TEXT = "the old film was good and a story with lovely music for me"
ROWS = (
    TEXT,
    {"tokens": ["the", "dull", "film", "was", "zebra"]},
    {"text": "good old songs", "text_pair": "bad music"},
    "a great story and not a dull film with old songs",
)
METHODS = ("occlusion", "shapley:pairs=1")


@pytest.fixture(scope="module")
def explainer(tiny_data: RecipeData) -> Explainer:
    """A model with random weights, so large that words act on one another."""
    model = build(tiny_data).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter *= 4.0 if "embeddings" not in name else 20.0
    return Explainer(model, tiny_data.tokenizer)


@pytest.fixture(scope="module")
def found(explainer: Explainer) -> Quality:
    """Two methods measured on four texts, three of which have a rationale."""
    rationales = [np.arange(13) % 5 == 0, [0, 1, 0, 0, 1], None, np.arange(11) == 2]
    return quality(explainer, ROWS, "sentiment", methods=METHODS, rationales=rationales)


def variants_of(explainer: Explainer, row: Any, task: str, how: str) -> Variants:
    subject = explainer.subject
    text = subject.read(row)
    return Variants(subject, text, task, subject.target(text, subject.forward(text, [task]), task, Wanted()), how)


def brute_force(explainer: Explainer, words: list[str], order: list[int], how: str) -> dict[str, Any]:
    """Walk one order of words that are tokens each, one variant at a time, on token ids."""
    tokenizer, model = explainer.subject.tokenizer, explainer.subject.model
    whole = tokenizer.convert_tokens_to_ids(["[CLS]", *words, "[SEP]"])

    def answer(removed: list[int]) -> torch.Tensor:
        gone = [place + 1 for place in removed]
        if how == "delete":
            ids = [token for place, token in enumerate(whole) if place not in gone]
        else:
            ids = [tokenizer.unk_token_id if place in gone else token for place, token in enumerate(whole)]
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids])).logits["sentiment"][0].double().softmax(dim=0)

    label = int(answer([]).argmax())
    lost: dict[str, list[float]] = {"removed": [], "kept": []}
    for tenth in range(1, 11):
        size = math.ceil(tenth * len(words) / 10)
        for part, removed in (("removed", order[:size]), ("kept", order[size:])):
            lost[part].append(float(answer([])[label] - answer(removed)[label]))
    flips = float(int(answer(order[:3]).argmax()) != label)
    return {"comprehensiveness": np.mean(lost["removed"]), "sufficiency": np.mean(lost["kept"]), "flips": flips, **lost}


# ---------------------------------------------------------------------- faithfulness


@pytest.mark.parametrize("how", REMOVALS)
def test_areas_equal_brute_force(explainer: Explainer, how: str) -> None:
    generator = np.random.default_rng(0)
    words = TEXT.split()
    orders = [generator.permutation(len(words)).tolist() for _ in range(4)]
    measured = faithfulness(variants_of(explainer, TEXT, "sentiment", how), orders)
    for order, one in zip(orders, measured, strict=True):
        for name, value in brute_force(explainer, words, order, how).items():
            np.testing.assert_allclose(getattr(one, name), value, atol=1e-5, err_msg=name)
    assert len({round(one.comprehensiveness, 4) for one in measured}) == len(orders)


def test_a_text_shorter_than_ten_words_loses_at_least_one_each_step() -> None:
    for num_units in range(1, 40):
        sizes = sizes_of_steps(num_units)
        assert sizes.tolist() == [math.ceil(tenth * num_units / 10 - 1e-9) for tenth in range(1, 11)]
        assert sizes[0] >= 1
        assert sizes[-1] == num_units


@pytest.mark.parametrize("task", ["sentiment", "slots", "similarity", "moods"])
def test_both_areas_end_where_they_must(explainer: Explainer, task: str) -> None:
    variants = variants_of(explainer, TEXT, task, "delete")
    num_units = len(variants.text.units)
    nothing = variants.effect(np.ones((1, num_units), dtype=bool))[0]
    for one in faithfulness(variants, [list(range(num_units)), list(range(num_units))[::-1]]):
        assert one.kept[-1] == pytest.approx(0.0, abs=1e-12)
        assert one.removed[-1] == pytest.approx(nothing, abs=1e-12)


def test_greedy_orders_are_the_best_at_each_step() -> None:
    generator = np.random.default_rng(1)
    table = generator.normal(size=2**6)

    def effect(removed: np.ndarray) -> np.ndarray:
        return table[removed @ (1 << np.arange(6))]

    for search, sign in ((greedy_removal, 1.0), (greedy_choice, -1.0)):
        order = search(effect, 6)
        assert sorted(order) == list(range(6))
        for step in range(6):
            values: dict[int, float] = {}
            for unit in order[step:]:
                chosen = np.isin(np.arange(6), [*order[:step], unit])
                values[unit] = sign * float(effect((chosen if sign > 0 else ~chosen)[None])[0])
            assert order[step] == max(values, key=values.__getitem__)


def test_every_variant_is_read_once(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    measure = Subject.measure

    def counted(self: Subject, text: Any, removed: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        read.extend(row.tobytes() for row in removed)
        return measure(self, text, removed, *args, **kwargs)

    monkeypatch.setattr(Subject, "measure", counted)
    variants = variants_of(explainer, TEXT, "sentiment", "delete")
    order = greedy_removal(variants.effect, 13)
    faithfulness(variants, [order, order, order[::-1]])
    assert len(read) == len(set(read)) <= 13 * 14 / 2 + 1 + 2 * STEPS + 3


def test_numbers_change_by_their_size_in_either_direction(explainer: Explainer) -> None:
    variants = variants_of(explainer, TEXT, "similarity", "delete")
    removed = ~np.eye(13, dtype=bool)
    values = variants.read(np.concatenate([np.zeros((1, 13), dtype=bool), removed]))[0]
    np.testing.assert_allclose(variants.effect(removed), np.abs(values[0] - values[1:]))
    found = quality(explainer, [TEXT], "similarity", methods=["occlusion"])
    scores = np.array(explainer.explain(TEXT, "similarity", "occlusion")["similarity"].scores)
    assert min(scores) < 0 < max(scores)
    order = np.argsort(-np.abs(scores)).tolist()
    expected = faithfulness(variants, [order])[0]
    assert found.estimate("occlusion", "comprehensiveness").mean == pytest.approx(expected.comprehensiveness)
    assert found.measure == "value"
    assert found.estimate("occlusion", "flips").count == 0
    assert "flips" not in " ".join(quality_table(found).header)
    assert "flips" not in found.to_dict()["methods"]["occlusion"]["delete"]


# ---------------------------------------------------------------------- plausibility


def test_agreement_equals_scikit_learn() -> None:
    generator = np.random.default_rng(2)
    for _ in range(50):
        num_words = int(generator.integers(3, 30))
        scores, rationale = generator.normal(size=num_words), generator.random(num_words) < 0.3
        rationale[:2] = [True, False]
        share = float(generator.uniform(0.1, 0.6))
        found = plausibility(scores, rationale, share=share)
        marked = np.zeros(num_words, dtype=bool)
        marked[np.argsort(-scores)[: max(1, round(share * num_words))]] = True
        assert found["auprc"] == pytest.approx(average_precision_score(rationale, scores))
        assert found["token_f1"] == pytest.approx(f1_score(rationale, marked))
        assert found["iou"] == pytest.approx(jaccard_score(rationale, marked))


def test_words_that_people_marked_on_top_agree_fully() -> None:
    rationale = np.array([True, False, False, True, False])
    assert set(plausibility(rationale * 1.0, rationale, share=0.4).values()) == {1.0}
    for all_alike in (np.zeros(5, dtype=bool), np.ones(5, dtype=bool)):
        assert all(math.isnan(value) for value in plausibility(np.arange(5.0), all_alike, share=0.4).values())


def test_rationales_without_negative_values_mark_what_is_above_0() -> None:
    found = read_rationales([[0, 1, 2.5], None, [True, False], [None, 1]], ["x", "x", None, "y"])
    assert [None if one is None else one.tolist() for one in found] == [
        [False, True, True], None, [True, False], [False, True]
    ]  # fmt: skip


def test_values_with_a_sign_mark_what_has_the_sign_of_the_label() -> None:
    values = [[2, 0, -1], [-2, 1, -1], [1, 1, -1], [-1, 0, 0]]
    found = read_rationales(values, ["good", "bad", "good", None])
    assert [None if one is None else one.tolist() for one in found] == [
        [True, False, False], [True, False, True], [True, True, False], None
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "labels", "says"),
    [
        ([[1, "x"]], ["a"], "row 1: the rationale is [1, 'x']"),
        ([[1], 3], ["a", "a"], "row 2: the rationale is 3"),
        ([[1, math.inf]], ["a"], "row 1: the rationale is"),
        ([[1, -1]], ["a"], "add up to 0"),
        ([[1, -2]], [["a", "b"]], "has no sign"),
    ],
)
def test_rationales_that_say_nothing_are_refused(values: list[Any], labels: list[Any], says: str) -> None:
    with pytest.raises(DataError) as error:
        read_rationales(values, labels)
    assert says in str(error.value)


def test_agreement_is_of_the_texts_that_have_a_rationale(explainer: Explainer, found: Quality) -> None:
    rationale = np.arange(13) % 5 == 0
    share = average_share([rationale, np.array([0, 1, 0, 0, 1], dtype=bool), np.arange(11) == 2])
    scores = np.array(explainer.explain(TEXT, "sentiment", "occlusion")["sentiment"].scores)
    for measure, value in plausibility(scores, rationale, share=share).items():
        assert found.estimate("occlusion", measure).count == 3
        assert found.values("occlusion", measure)[0] == pytest.approx(value)
        assert math.isnan(found.values("occlusion", measure)[2])


@pytest.mark.parametrize("task", ["sentiment", "slots", "moods", "similarity"])
def test_rows_that_the_model_answers_otherwise_are_not_compared(explainer: Explainer, task: str) -> None:
    subject = explainer.subject
    spec, head = subject.spec(task), subject.head(task)
    text = subject.read({"tokens": TEXT.split()})
    answer = head.decode(spec, subject.forward(text, [task]).logits(task)[0].numpy(), text.words)
    right = answer.get("label", answer.get("tags", answer.get("labels", 1.0)))
    wrong = {"sentiment": next(name for name in spec.labels or "x" if name != right), "similarity": 2.0}.get(
        task, ["O"] * 12 + ["B-city"] if task == "slots" else [name for name in spec.labels or () if name not in right]
    )
    rows, rationale = [{"tokens": TEXT.split()}] * 3, np.arange(13) == 3
    found = quality(
        explainer, rows, task, methods=["occlusion"], rationales=[rationale] * 3, labels=[right, wrong, None]
    )
    known = ~np.isnan(found.values("occlusion", "auprc"))
    assert known.tolist() == ([True] * 3 if task == "similarity" else [True, False, False])


# ---------------------------------------------------------------------- estimates


def test_standard_errors_equal_scipy() -> None:
    values = np.random.default_rng(0).normal(size=40)
    one = Estimate.of(values)
    assert (one.mean, one.error, one.count) == (pytest.approx(values.mean()), pytest.approx(sem(values)), 40)
    with_gaps = np.concatenate([values, [np.nan, np.nan]])
    assert Estimate.of(with_gaps) == one
    assert math.isnan(Estimate.of(np.array([1.0])).error)
    assert math.isnan(Estimate.of(np.array([np.nan])).mean)


def test_the_error_of_a_ratio_is_that_of_the_bootstrap() -> None:
    generator = np.random.default_rng(0)
    lower = generator.normal(1.0, 0.4, size=200)
    upper = 0.8 * lower + generator.normal(0.0, 0.2, size=200)
    one = Estimate.of_ratio(upper, lower)
    draws = generator.integers(0, 200, size=(4000, 200))
    ratios = upper[draws].mean(axis=1) / lower[draws].mean(axis=1)
    assert one.mean == pytest.approx(upper.mean() / lower.mean())
    assert one.error == pytest.approx(ratios.std(), rel=0.06)


@pytest.mark.parametrize("how", REMOVALS)
@pytest.mark.parametrize("measure", ["comprehensiveness", "sufficiency"])
def test_random_is_0_and_greedy_is_1(found: Quality, measure: str, how: str) -> None:
    for name, value in ((RANDOM, 0.0), (GREEDY, 1.0)):
        one = found.normalised(name, measure, how)
        assert (one.mean, one.error) == (pytest.approx(value, abs=1e-12), pytest.approx(0.0, abs=1e-12))
    low, high, own = (found.estimate(name, measure, how).mean for name in (RANDOM, GREEDY, "occlusion"))
    assert found.normalised("occlusion", measure, how).mean == pytest.approx((own - low) / (high - low))


def test_greedy_beats_all_others(found: Quality) -> None:
    for how in REMOVALS:
        for name in (*found.methods, RANDOM):
            assert found.normalised(name, "comprehensiveness", how).mean <= 1.0
            assert found.normalised(name, "sufficiency", how).mean <= 1.0
        assert ranked_methods(found, how=how)[0] == GREEDY


def test_differences_are_paired_text_by_text(found: Quality) -> None:
    first, second = (found.values(name, "comprehensiveness", "mask") for name in METHODS)
    one = found.difference(*METHODS, measure="comprehensiveness", how="mask")
    assert (one.mean, one.error) == (pytest.approx((first - second).mean()), pytest.approx(sem(first - second)))
    assert found.difference(*METHODS[::-1], how="mask").mean == pytest.approx(-one.mean)


@pytest.mark.parametrize("how", REMOVALS)
def test_values_are_those_of_the_ranked_scores(explainer: Explainer, found: Quality, how: str) -> None:
    for name, method, options in ((METHODS[0], "occlusion", {}), (METHODS[1], "shapley", {"pairs": 1})):
        for place, row in enumerate(ROWS):
            explanation = explainer.explain(row, "sentiment", method, **options)["sentiment"]
            (one,) = faithfulness(variants_of(explainer, row, "sentiment", how), [explanation.ranked()])
            for measure in ("comprehensiveness", "sufficiency", "flips"):
                value = getattr(one, measure)
                assert found.values(name, measure, how)[place] == pytest.approx(value, abs=1e-6)


def test_random_orders_do_not_hang_on_the_methods_and_follow_the_seed(explainer: Explainer, found: Quality) -> None:
    alone = quality(explainer, ROWS, "sentiment", methods=["occlusion"])
    other = quality(explainer, ROWS, "sentiment", methods=["occlusion"], seed=1)
    np.testing.assert_allclose(alone.values(RANDOM, "sufficiency"), found.values(RANDOM, "sufficiency"), atol=1e-6)
    assert not np.allclose(alone.values(RANDOM, "sufficiency"), other.values(RANDOM, "sufficiency"))
    np.testing.assert_allclose(alone.values(GREEDY, "sufficiency"), other.values(GREEDY, "sufficiency"), atol=1e-6)


@pytest.mark.parametrize("task", ["intent", "slots", "grammar", "similarity", "moods"])
def test_every_task_can_be_measured(explainer: Explainer, task: str) -> None:
    seen: list[tuple[int, int]] = []
    found = quality(explainer, ROWS[:2], task, methods=METHODS, on_text=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert found.estimate("occlusion", "comprehensiveness").count == 2
    assert not found.has_rationales
    assert not any(math.isnan(found.milliseconds(name)) for name in METHODS)


def test_one_way_of_taking_words_away_may_do(explainer: Explainer, found: Quality) -> None:
    masked = quality(explainer, ROWS, "sentiment", methods=["occlusion"], perturb=["mask"])
    assert (masked.removals, found.removals) == (("mask",), REMOVALS)
    expected = found.values("occlusion", "sufficiency", "mask")
    np.testing.assert_allclose(masked.values("occlusion", "sufficiency"), expected, atol=1e-6)
    assert "words masked" in quality_table(masked).title
    with pytest.raises(SpecError, match="how is 'delete'; use one of 'mask'"):
        masked.values("occlusion", "sufficiency", "delete")


# ---------------------------------------------------------------------- what is shown


def test_tables_show_what_was_measured(found: Quality) -> None:
    table = quality_table(found)
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert list(rows) == ranked_methods(found)
    for name, row in rows.items():
        assert row["comp."] == str(found.estimate(name, "comprehensiveness"))
        assert row["norm. suff."] == str(found.normalised(name, "sufficiency"))
        assert row["AUPRC"] == str(found.estimate(name, "auprc"))
        assert (row["ms"] == "") == (name in (RANDOM, GREEDY))
    assert "4 texts, words masked" in quality_table(found, how="mask").title
    best, other = (name for name in ranked_methods(found) if name in METHODS)
    table = difference_table(found)
    assert best in table.title
    assert [*table.rows[0]] == [
        other,
        *(str(found.difference(other, best, m)) for m in ("comprehensiveness", "sufficiency")),
    ]


def test_what_was_measured_is_plain_json(found: Quality) -> None:
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(values["methods"]) == [*METHODS, RANDOM, GREEDY]
    own = values["methods"]["occlusion"]
    assert own["delete"]["comprehensiveness"] == found.estimate("occlusion", "comprehensiveness").to_dict()
    assert np.mean(own["mask"]["kept_curve"]) == pytest.approx(own["mask"]["sufficiency"]["mean"])
    assert own["plausibility"]["auprc"]["texts"] == 3
    compared = {(one["measure"], one["perturb"]) for one in values["differences"]}
    assert len(values["differences"]) == len(compared) == 3 * 2 + 3


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
@pytest.mark.slow
def test_pictures_are_drawn_alike_again(explainer: Explainer, found: Quality, ending: str, tmp_path: Path) -> None:
    numbers = quality(explainer, ROWS[:1], "similarity", methods=["occlusion"])
    for name in ("first", "second"):
        draw_quality([found, numbers], tmp_path / f"{name}.{ending}")
    first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("first", "second"))
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending]
    assert first.startswith(start)
    assert len(first) > 5000
    assert first == second or ending == "svg"  # whose ids are drawn anew


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([], {}, "there are no rows"),
        (["good", "  "], {}, "row 2: the text has no words"),
        (["good " * 60], {}, "row 1: the text has more than the 48 tokens"),
        (["good"], {"top": 0}, "top is 0"),
        (["good"], {"random_orders": 0}, "random_orders is 0"),
        (
            ["good"],
            {"perturb": ["delete", "blur"]},
            "perturb is ['delete', 'blur']; give one or more of 'delete', 'mask'",
        ),
        (["good"], {"perturb": []}, "perturb is []"),
        (["good"], {"methods": ["guess"]}, "'guess' is not an attribution method"),
        (["good"], {"methods": ["shapley:size=2"]}, "has no such option"),
        (["good"], {"methods": ["shapley:pairs"]}, "the option 'pairs' of 'shapley' has no value"),
        (["good"], {"methods": []}, "there are no methods"),
        (["good"], {"rationales": []}, "0 rationales for 1 rows"),
        (["good"], {"rationales": [[1]], "labels": []}, "0 labels for 1 rows"),
        (["good", "old film"], {"rationales": [[1], [1]]}, "row 2: the rationale has 1 values, the text 2 words"),
    ],
)
def test_what_cannot_be_measured_is_said(explainer: Explainer, rows: list[str], options: Any, says: str) -> None:
    with pytest.raises(HfMtlError) as error:
        quality(explainer, rows, "sentiment", **{"methods": ["occlusion"], **options})
    assert says in str(error.value)


@pytest.mark.parametrize("given", [("guess", "flips", "delete"), ("random", "luck", "delete"), ("random", "iou", "x")])
def test_unknown_measures_are_named(found: Quality, given: tuple[str, str, str]) -> None:
    with pytest.raises(SpecError, match="use one of"):
        found.values(*given)
    with pytest.raises(SpecError, match="use one of 'comprehensiveness', 'sufficiency'"):
        found.normalised("random", "flips")


@pytest.fixture
def picky() -> Iterator[str]:
    """Name of a method that covers no model."""

    @dataclass(frozen=True)
    class Picky(AttributionMethod):
        def check(self, subject: Subject) -> None:
            raise ModelError("there is nothing to see")

        def attribute(self, *args: Any) -> dict[str, Attribution]:
            raise AssertionError

    members: dict[str, Any] = EXPLAINERS._members
    members["picky"] = Picky
    yield "picky"
    del members["picky"]


def test_a_method_that_does_not_cover_the_model_is_left_out_unless_it_is_named(
    explainer: Explainer, picky: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(type(EXPLAINERS), "names", lambda self: ("occlusion", picky))
    monkeypatch.setattr(logging.getLogger("hf_mtl"), "propagate", True)
    found = quality(explainer, ["good old film"], "sentiment")
    assert found.methods == ("occlusion",)
    assert "picky is left out: there is nothing to see" in caplog.text
    with pytest.raises(ModelError, match="nothing to see"):
        quality(explainer, ["good old film"], "sentiment", methods=[picky])
