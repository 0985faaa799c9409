"""Occlusion, Shapley and LIME: brute force, captum and games whose answer is known give the same."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of captum's own imports
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import FeatureAblation, ShapleyValues, ShapleyValueSampling
    from captum.attr import Lime as CaptumLime

from tiny import TASKS, build, tiny_data, tiny_folder, tiny_recipe

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import SpecError
from hf_mtl.explain.explainer import Explainer, make_method
from hf_mtl.explain.methods.lime import draw_variants
from hf_mtl.explain.methods.shapley import antithetic_orders, exact_values, prefixes, subsets, values_of_orders
from hf_mtl.explain.subject import Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target, Wanted

__all__ = ["tiny_data", "tiny_folder", "tiny_recipe"]

SHORT = "the dull film was zebra"
LONG = "the old film was good and a story with lovely music for me"
PAIR = {"text": "good old songs", "text_pair": "bad music"}
METHODS = ("occlusion", "shapley", "lime")
Game = Callable[[np.ndarray], np.ndarray]
"""From what is kept, `(variants, num_units)`, to scores."""


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
def additive(tiny_data: RecipeData) -> Explainer:
    """A model in which no token sees another: where words are masked, each adds the same whatever the others do."""
    model = copy.deepcopy(build(tiny_data))
    for layer in model.encoder.encoder.layer:
        torch.nn.init.zeros_(layer.attention.output.dense.weight)
    for parameter in model.head("sentiment").parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    return Explainer(model, tiny_data.tokenizer)


def target_of(subject: Subject, text: ExplainedText, task: str) -> Target:
    return subject.target(text, subject.forward(text, [task]), task, Wanted())


def game_of(subject: Subject, text: ExplainedText, task: str, how: str) -> Game:
    target = target_of(subject, text, task)

    def game(kept: np.ndarray) -> np.ndarray:
        return subject.measure(text, ~kept, {task: target}, how=how)[task].scores

    return game


def brute_force_shapley(game: Game, num_units: int) -> np.ndarray:
    """Walk every order, one variant at a time."""
    values = np.zeros(num_units)
    known: dict[tuple[bool, ...], float] = {}

    def score(kept: np.ndarray) -> float:
        key = tuple(kept.tolist())
        if key not in known:
            known[key] = float(game(kept[None])[0])
        return known[key]

    orders = list(itertools.permutations(range(num_units)))
    for order in orders:
        kept = np.zeros(num_units, dtype=bool)
        for unit in order:
            before = score(kept)
            kept[unit] = True
            values[unit] += score(kept) - before
    return values / len(orders)


def table_game(num_units: int, seed: int = 0) -> tuple[Game, np.ndarray]:
    """Return a game with an own random score for each subset, and these scores in the order of `subsets`."""
    table = np.random.default_rng(seed).normal(size=2**num_units)

    def game(kept: np.ndarray) -> np.ndarray:
        return table[kept @ (1 << np.arange(num_units))]

    return game, table


def captum_game(game: Game) -> Callable[[Tensor], Tensor]:
    return lambda kept: torch.from_numpy(game(kept.numpy() > 0.5))


# ---------------------------------------------------------------------- occlusion


@pytest.mark.parametrize("how", ["delete", "mask"])
@pytest.mark.parametrize("task", TASKS)
def test_occlusion_is_the_score_lost_with_each_word(explainer: Explainer, task: str, how: str) -> None:
    explanation = explainer.explain(LONG, task, "occlusion", perturb=how)[task]
    subject = explainer.subject
    text = subject.read(LONG)
    game = game_of(subject, text, task, how)
    whole = np.ones(len(text.units), dtype=bool)
    for unit, found in enumerate(explanation.scores):
        without = whole.copy()
        without[unit] = False
        assert found == pytest.approx(float(game(whole[None])[0] - game(without[None])[0]), abs=1e-5)


@pytest.mark.parametrize("row", [LONG, PAIR, "zebra quagga"])
def test_occlusion_by_mask_equals_captum_on_token_ids(explainer: Explainer, row: Any) -> None:
    subject = explainer.subject
    text = subject.read(row)
    for task in ("sentiment", "moods", "similarity"):
        target = target_of(subject, text, task)
        types = None if text.token_type_ids is None else torch.from_numpy(text.token_type_ids)

        def score(ids: Tensor, task: str = task, target: Target = target, types: Tensor | None = types) -> Tensor:
            with torch.no_grad():
                extra = {} if types is None else {"token_type_ids": types.expand(len(ids), -1)}
                logits = subject.model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits[task]
            return target.score(logits[:, None].double())

        ids = torch.from_numpy(text.input_ids)[None]
        special = len(text.units) + np.arange(len(text.input_ids))
        owner = np.where(text.unit_of_token >= 0, text.unit_of_token, special)
        baseline = torch.where(torch.from_numpy(text.unit_of_token >= 0), subject.mask_token_id, ids[0])[None]
        expected = FeatureAblation(score).attribute(ids, baselines=baseline, feature_mask=torch.from_numpy(owner)[None])
        found = np.array(explainer.explain(row, task, "occlusion", perturb="mask")[task].scores)
        np.testing.assert_allclose(found[text.unit_of_token[text.unit_of_token >= 0]],
                                   expected[0].numpy()[text.unit_of_token >= 0], atol=1e-4)  # fmt: skip
        assert np.abs(found).max() > 1e-3


# ---------------------------------------------------------------------- Shapley


@pytest.mark.parametrize("num_units", [1, 2, 4, 6])
def test_all_orders_and_all_subsets_give_the_shapley_values(num_units: int) -> None:
    game, table = table_game(num_units)
    expected = brute_force_shapley(game, num_units)
    orders = np.array(list(itertools.permutations(range(num_units))))
    np.testing.assert_allclose(values_of_orders(game(prefixes(orders)), orders), expected, atol=1e-12)
    np.testing.assert_allclose(exact_values(table, num_units), expected, atol=1e-12)
    np.testing.assert_array_equal(game(subsets(num_units)), table)


@pytest.mark.parametrize("how", ["delete", "mask"])
@pytest.mark.parametrize("task", ["sentiment", "slots", "similarity"])
def test_short_texts_have_exact_values(explainer: Explainer, task: str, how: str) -> None:
    subject = explainer.subject
    text = subject.read(SHORT)
    expected = brute_force_shapley(game_of(subject, text, task, how), len(text.units))
    explanation = explainer.explain(SHORT, task, "shapley", perturb=how, seed=5)[task]
    np.testing.assert_allclose(explanation.scores, expected, atol=1e-5)
    assert np.abs(expected).max() > 1e-3


def test_values_equal_captum(explainer: Explainer) -> None:
    subject = explainer.subject
    text = subject.read(SHORT)
    game = captum_game(game_of(subject, text, "sentiment", "mask"))
    whole = torch.ones(1, len(text.units))
    found = np.array(explainer.explain(SHORT, "sentiment", "shapley", perturb="mask")["sentiment"].scores)
    exact = ShapleyValues(game).attribute(whole, perturbations_per_eval=8)[0].numpy()
    np.testing.assert_allclose(found, exact, atol=1e-4)
    torch.manual_seed(0)
    sampled = ShapleyValueSampling(game).attribute(whole, n_samples=300, perturbations_per_eval=5)[0].numpy()
    np.testing.assert_allclose(found, sampled, atol=0.1 * np.abs(found).max())


@pytest.mark.parametrize("row", [LONG, PAIR, "zebra quagga fox", "good", "", [LONG, SHORT]])
@pytest.mark.parametrize("how", ["delete", "mask"])
def test_values_add_up_to_what_all_words_do(explainer: Explainer, row: Any, how: str) -> None:
    tasks = ["sentiment", "similarity", "moods"]
    rows = row if isinstance(row, list) else [row]
    for one, explained in zip(rows, explainer.explain(rows, tasks, "shapley", perturb=how, pairs=2), strict=True):
        text = explainer.subject.read(one)
        ends = np.stack([np.zeros(len(text.units), dtype=bool), np.ones(len(text.units), dtype=bool)])
        for task in tasks:
            empty, whole = game_of(explainer.subject, text, task, how)(ends)
            assert sum(explained[task].scores) == pytest.approx(whole - empty, abs=1e-5)
            assert explained[task].convergence == pytest.approx(0.0, abs=1e-9)


def test_more_pairs_come_closer(explainer: Explainer) -> None:
    text = "the dull film was good and old"
    exact = np.array(explainer.explain(text, "sentiment", "shapley", pairs=500)["sentiment"].scores)

    def error(pairs: int) -> float:
        found = [
            explainer.explain(text, "sentiment", "shapley", pairs=pairs, seed=seed)["sentiment"].scores
            for seed in range(20)
        ]
        np.testing.assert_allclose(np.mean(found, axis=0), exact, atol=0.5 * np.abs(exact).max())  # no bias
        return float(np.square(np.array(found) - exact).mean())

    errors = [error(pairs) for pairs in (1, 4, 8)]
    assert errors[0] > 2 * errors[1] > 0
    assert errors[1] > errors[2]


def test_pairs_of_orders_balance_what_two_words_share() -> None:
    """In a game of effects of pairs of words each word adds on average the same in an order and its reverse."""
    num_units = 9
    generator = np.random.default_rng(0)
    effects = np.triu(generator.normal(size=(num_units, num_units)))
    orders = antithetic_orders(num_units, 1, generator)
    kept = prefixes(orders).astype(float)
    scores = np.einsum("vi,ij,vj->v", kept, effects, kept)
    off = effects - np.diag(np.diag(effects))
    expected = np.diag(effects) + (off.sum(axis=0) + off.sum(axis=1)) / 2
    np.testing.assert_allclose(values_of_orders(scores, orders), expected, atol=1e-12)


def test_equal_variants_are_read_once(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    measure = Subject.measure

    def counted(self: Subject, text: ExplainedText, removed: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        seen.append(removed)
        return measure(self, text, removed, *args, **kwargs)

    monkeypatch.setattr(Subject, "measure", counted)
    explainer.explain(LONG, ["sentiment", "intent", "moods"], "shapley", pairs=5)
    num_units = len(LONG.split())
    assert len(seen) == 1
    assert len(seen[0]) == len(np.unique(seen[0], axis=0)) <= 10 * (num_units - 1) + 2


# ---------------------------------------------------------------------- LIME


def test_every_method_recovers_an_additive_game(additive: Explainer) -> None:
    options: dict[str, dict[str, Any]] = {"occlusion": {}, "shapley": {"pairs": 1}, "lime": {"penalty": 1e-9}}
    found = {
        name: np.array(additive.explain(LONG, "sentiment", name, perturb="mask", **options[name])["sentiment"].scores)
        for name in METHODS
    }
    assert np.abs(found["occlusion"]).max() > 1e-2
    for name in METHODS[1:]:
        np.testing.assert_allclose(found[name], found["occlusion"], atol=1e-4, err_msg=name)


def test_lime_solves_the_weighted_ridge_regression(explainer: Explainer) -> None:
    subject = explainer.subject
    text = subject.read(LONG)
    num_units, penalty = len(text.units), 0.7
    kept = draw_variants(num_units, 80, np.random.default_rng(4))
    scores = game_of(subject, text, "sentiment", "delete")(kept)
    distance = np.array([1 - row.sum() / (np.sqrt(row.sum()) * np.sqrt(num_units)) if row.any() else 1 for row in kept])
    weights = np.diag(np.exp(-(distance**2) / 2))
    design = np.column_stack([kept.astype(float), np.ones(len(kept))])
    ridge = np.diag([penalty] * num_units + [0.0])
    expected = np.linalg.solve(design.T @ weights @ design + ridge, design.T @ weights @ scores)
    found = explainer.explain(LONG, "sentiment", "lime", samples=80, seed=4, penalty=penalty)["sentiment"]
    np.testing.assert_allclose(found.scores, expected[:-1], atol=1e-5)


def test_lime_equals_captum_in_the_limit(explainer: Explainer) -> None:
    subject = explainer.subject
    text = subject.read(SHORT)
    game = captum_game(game_of(subject, text, "sentiment", "mask"))
    reference = CaptumLime(game, interpretable_model=SkLearnRidge(alpha=1e-6))
    torch.manual_seed(0)
    whole = torch.ones(1, len(text.units))
    expected = reference.attribute(whole, n_samples=2000, perturbations_per_eval=100)[0].numpy()
    options = {"samples": 2000, "penalty": 1e-6, "perturb": "mask"}
    found = np.array(explainer.explain(SHORT, "sentiment", "lime", **options)["sentiment"].scores)
    np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(found).max())


def test_variants_begin_whole_and_keep_each_word_half_of_the_time() -> None:
    kept = draw_variants(6, 3000, np.random.default_rng(0))
    assert kept[0].all()
    np.testing.assert_allclose(kept[1:].mean(axis=0), 0.5, atol=0.04)
    assert len(np.unique(kept, axis=0)) == 2**6


# ---------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", METHODS)
def test_tasks_explained_together_or_alone_come_to_the_same(explainer: Explainer, name: str) -> None:
    together = explainer.explain(LONG, list(TASKS), name)
    for task in TASKS:
        alone = explainer.explain(LONG, task, name)[task]
        np.testing.assert_allclose(together[task].scores, alone.scores, atol=1e-5)
        assert together[task].target == alone.target


@pytest.mark.parametrize("name", ["shapley", "lime"])
def test_the_seed_decides(explainer: Explainer, name: str) -> None:
    first, again, other = (explainer.explain(LONG, "sentiment", name, seed=seed)["sentiment"] for seed in (1, 1, 2))
    assert first.scores == again.scores
    assert first.scores != other.scores
    assert (first.seed, other.seed) == (1, 2)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("row", ["", "   ", "good"])
def test_texts_of_no_word_or_one(explainer: Explainer, name: str, row: str) -> None:
    explanation = explainer.explain(row, "sentiment", name)["sentiment"]
    assert len(explanation.scores) == len(row.split())
    assert np.isfinite(explanation.scores).all()


@pytest.mark.parametrize("name", METHODS)
def test_ways_of_taking_words_away_differ_and_are_named(explainer: Explainer, name: str) -> None:
    found = {how: explainer.explain(LONG, "sentiment", name, perturb=how)["sentiment"] for how in ("delete", "mask")}
    assert found["delete"].baseline != found["mask"].baseline
    assert found["delete"].scores != found["mask"].scores


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        *((name, {"perturb": "blur"}, "perturb is 'blur'; use one of 'delete', 'mask'") for name in METHODS),
        ("shapley", {"pairs": 0}, "pairs is 0; give a whole number of at least 1"),
        ("shapley", {"seed": None}, "seed is None; give a whole number of at least 0"),
        ("lime", {"samples": 1.5}, "samples is 1.5; give a whole number of at least 2"),
        ("lime", {"penalty": 0}, "penalty is 0; give a number above 0"),
    ],
)
def test_options_that_cannot_work_are_named(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as error:
        make_method(name, options)
    assert str(error.value) == says
