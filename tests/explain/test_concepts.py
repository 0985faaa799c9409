"""Concepts: the derivative along one against finite differences, a planted one found, a random one refused."""

from __future__ import annotations

import copy
import json
import random

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from tiny import BAD, FILLER, GOOD

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import DataError, SpecError
from hf_mtl.explain.concepts import ConceptEffect, chance_of, concept_effect, concept_gradient, normal
from hf_mtl.explain.subject import Subject
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.targets import Wanted


def sentences(count: int, words: tuple[str, ...], seed: int) -> list[str]:
    """Make different sentences of filler words with one of the words in each, if there are any."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        text = draw.choices(FILLER, k=draw.randint(3, 9))
        if words:
            text[draw.randrange(len(text))] = draw.choice(words)
        found[" ".join(text)] = None
    return list(found)


PLAIN = sentences(60, (), 0)
TEXTS = sentences(20, BAD, 2)


@pytest.fixture(scope="module")
def praise(learnt: MultiTaskModel, tiny_data: RecipeData) -> ConceptEffect:
    return concept_effect(
        learnt, tiny_data.tokenizer, sentences(25, GOOD, 1), PLAIN, TEXTS,
        task="sentiment", target="pos", layer=1, name="praise",
    )  # fmt: skip


def test_a_planted_concept_is_found_and_moves_the_answer(praise: ConceptEffect) -> None:
    assert praise.accuracy > 0.8
    assert praise.accuracy_p < 0.001
    assert praise.significant
    assert praise.score > 0.9
    assert len(praise.scores) == len(praise.random_scores) == 10
    assert praise.table().rows[0][0] == "praise"


def test_what_is_no_concept_is_refused_with_its_accuracy(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    drawn = sentences(100, (), 5)
    with pytest.raises(DataError, match=r"'nothing' cannot be told from random texts: accuracy 0\.\d\d over 50 texts"):
        concept_effect(
            learnt, tiny_data.tokenizer, drawn[:25], drawn[25:], TEXTS, task="sentiment", target="pos", name="nothing"
        )


@pytest.mark.parametrize(
    ("task", "target", "layer"), [("sentiment", "pos", 1), ("slots", 0, 0), ("similarity", None, 1)]
)
def test_the_derivative_is_the_difference_when_all_states_move(
    learnt: MultiTaskModel, tiny_data: RecipeData, task: str, target: object, layer: int
) -> None:
    subject = Subject(copy.deepcopy(learnt).double(), tiny_data.tokenizer)
    wanted = Wanted.read(target)
    gradient, _ = concept_gradient(subject, TEXTS[0], task, wanted, layer)
    direction = np.random.default_rng(0).normal(size=len(gradient))
    text = subject.read(TEXTS[0])
    chosen = subject.target(text, subject.forward(text, [task]), task, wanted)
    bert = subject.model.encoder
    module = bert.embeddings if layer == 0 else bert.encoder.layer[layer - 1]

    def score(step: float) -> float:
        moved = step * torch.from_numpy(direction)
        handle = module.register_forward_hook(
            lambda module, args, output: (
                (output[0] + moved, *output[1:]) if isinstance(output, tuple) else output + moved
            )
        )
        try:
            return float(subject.score(text, chosen, task, subject.forward(text, [task])))
        finally:
            handle.remove()

    slope = (score(1e-2) - score(-1e-2)) / 2e-2  # pooling sums in float32, too coarse for small steps
    assert float(gradient @ direction) == pytest.approx(slope, rel=2e-3, abs=1e-6)


def test_the_normal_points_towards_the_concept() -> None:
    generator = np.random.default_rng(0)
    random, concept = generator.normal(size=(40, 6)), generator.normal(size=(40, 6))
    concept[:, 2] += 3.0
    found = normal(concept, random)
    assert np.linalg.norm(found) == pytest.approx(1.0)
    assert found[2] > 0.9


@pytest.mark.parametrize(("accuracy", "count"), [(0.5, 50), (0.64, 50), (0.9, 20), (1.0, 20)])
def test_chance_is_that_of_the_binomial_test_of_scipy(accuracy: float, count: int) -> None:
    expected = binomtest(round(accuracy * count), count, 0.5, alternative="greater").pvalue
    assert chance_of(accuracy, count) == pytest.approx(expected)


def test_the_result_is_plain_json_and_the_same_again(
    praise: ConceptEffect, learnt: MultiTaskModel, tiny_data: RecipeData
) -> None:
    assert json.loads(json.dumps(praise.to_dict()))["significant"] is True
    again = concept_effect(
        learnt, tiny_data.tokenizer, sentences(25, GOOD, 1), PLAIN, TEXTS,
        task="sentiment", target="pos", layer=1, name="praise",
    )  # fmt: skip
    assert again == praise


def test_what_cannot_be_tested_is_refused(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    given = (learnt, tiny_data.tokenizer)
    concept = sentences(25, GOOD, 1)
    options = {"task": "sentiment", "target": "pos"}
    for changed, message in (
        ({"controls": 9}, "controls is 9"),
        ({"layer": 3}, "layer is 3"),
        ({"task": "weather"}, "task is 'weather'"),
        ({"significance": 0.0}, "significance"),
        ({"target": "meh"}, "'meh'"),
    ):
        with pytest.raises(SpecError, match=message):
            concept_effect(*given, concept, PLAIN, TEXTS, **{**options, **changed})  # type: ignore[arg-type]
    for texts, message in (
        ((concept[:5], PLAIN, TEXTS), "5 texts"),
        ((concept, PLAIN[:30], TEXTS), "30 texts"),
        ((concept, PLAIN, []), "no texts"),
        ((concept, [*PLAIN, concept[0]], TEXTS), "one of the concept"),
    ):
        with pytest.raises(DataError, match=message):
            concept_effect(*given, *texts, **options)  # type: ignore[arg-type]
