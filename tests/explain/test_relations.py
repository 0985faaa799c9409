"""Relations of tasks: gradients against autograd on flattened weights, reliability against all halvings."""

from __future__ import annotations

import json
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from tiny import build

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import DataError, ModelError, SpecError
from hf_mtl.explain.labelled import draw_rows
from hf_mtl.explain.relations import Relations, task_relations, transfer, transfer_of
from hf_mtl.explain.reliability import pattern_reliability, split_half
from hf_mtl.model.modeling import MultiTaskModel

TASKS = ["sentiment", "slots", "similarity"]


@pytest.fixture(scope="module")
def model(tiny_data: RecipeData) -> MultiTaskModel:
    return build(tiny_data).eval()


@pytest.fixture(scope="module")
def relations(model: MultiTaskModel, tiny_data: RecipeData) -> Relations:
    return task_relations(model, tiny_data.tokenizer, tiny_data.train, TASKS, batch_size=4, groups=2)


def flat_gradient(model: MultiTaskModel, data: RecipeData, task: str, batches: slice) -> np.ndarray:
    """Return the mean gradient of a task's loss over some of its batches, on all weights of the encoder."""
    rows = draw_rows(model, data.train, [task], limit=256, seed=0)[task]
    total: list[np.ndarray] = []
    for batch in list(rows.batches(model, data.tokenizer, 4))[batches]:
        model.zero_grad()
        output = model(**batch.inputs, labels={task: batch.labels}, tasks=[task])
        output.losses[task].backward()
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.encoder.parameters()]
        total.append(torch.cat([part.flatten() for part in parts]).double().numpy())
    model.zero_grad(set_to_none=True)
    return np.mean(total, axis=0)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_cosines_equal_those_of_flattened_gradients(
    relations: Relations, model: MultiTaskModel, tiny_data: RecipeData
) -> None:
    halves = {task: [flat_gradient(model, tiny_data, task, slice(half, None, 2)) for half in (0, 1)] for task in TASKS}
    for a, b in combinations(TASKS, 2):
        cell, mirrored = relations.cell(a, b), relations.cell(b, a)
        assert cell is not None
        assert mirrored is not None
        assert (cell.value, cell.reliability) == (mirrored.value, mirrored.reliability)
        assert cell.value == pytest.approx(cosine(sum(halves[a]), sum(halves[b])), abs=1e-5)
        # With two groups reliability is that of the one way to halve, and both leave one group out.
        own = [max(0.0, 4 * first @ second / ((first + second) @ (first + second))) for first, second in
               (halves[a], halves[b])]  # fmt: skip
        assert cell.reliability == pytest.approx(math.sqrt(min(1, own[0]) * min(1, own[1])), abs=1e-4)
        alone = [cosine(halves[a][half], halves[b][half]) for half in (0, 1)]
        assert cell.standard_error == pytest.approx(abs(alone[0] - alone[1]) / 2, abs=1e-5)


def test_every_pair_has_a_cosine_in_both_orders(relations: Relations) -> None:
    assert all(abs(cell.value) <= 1.0 for cell in relations.cells)
    pairs = {(cell.task, cell.other) for cell in relations.cells}
    assert pairs == {(a, b) for a in TASKS for b in TASKS if a != b}


def test_too_low_a_reliability_is_shown_as_unknown(model: MultiTaskModel, tiny_data: RecipeData) -> None:
    strict = task_relations(
        model, tiny_data.tokenizer, tiny_data.train, TASKS, batch_size=4, groups=2, least_reliability=1.0
    )
    assert not any(cell.known for cell in strict.cells)
    rows = strict.table().rows
    assert {cell for row in rows for cell in row[1:]} == {"", "?"}
    lax = task_relations(
        model, tiny_data.tokenizer, tiny_data.train, TASKS, batch_size=4, groups=2, least_reliability=0.0
    )
    assert "?" not in {cell for row in lax.table().rows for cell in row}


def test_the_model_is_left_as_it_was(model: MultiTaskModel, tiny_data: RecipeData) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    task_relations(model, tiny_data.tokenizer, tiny_data.train, TASKS, batch_size=8, groups=2)
    assert model.training
    model.eval()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_measured_is_refused(tiny_data: RecipeData) -> None:
    model, given = build(tiny_data), (tiny_data.tokenizer, tiny_data.train)
    with pytest.raises(SpecError, match="one task"):
        task_relations(model, *given, ["slots"])
    with pytest.raises(SpecError, match="groups is 1"):
        task_relations(model, *given, groups=1)
    with pytest.raises(DataError, match="3 rows for 4 groups"):
        task_relations(model, *given, TASKS, rows=3)
    with pytest.raises(SpecError, match="least_reliability"):
        task_relations(model, *given, TASKS, least_reliability=2.0)
    model.encoder.requires_grad_(False)
    with pytest.raises(ModelError, match="no shared weight"):
        task_relations(model, *given, TASKS, batch_size=4)


def test_a_table_is_plain_json_and_a_picture(relations: Relations) -> None:
    values = json.loads(json.dumps(relations.to_dict()))
    assert values["measure"] == "gradient cosine"
    assert len(values["cells"]) == 6
    axes = relations.figure().axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == TASKS


# ---------------------------------------------------------------------- reliability


def halvings(count: int) -> list[tuple[list[int], list[int]]]:
    everything = set(range(count))
    firsts = [first for first in combinations(range(count), count // 2) if 0 in first]
    return [(list(first), sorted(everything - set(first))) for first in firsts]


@pytest.mark.parametrize("count", [2, 4, 6])
def test_reliability_is_the_mean_of_all_halvings_after_spearman_brown(count: int) -> None:
    generator = np.random.default_rng(count)
    vectors = generator.normal(size=(count, 5)) + 2 * generator.normal(size=5)
    corrected = []
    for first, second in halvings(count):
        a, b = vectors[first].mean(axis=0), vectors[second].mean(axis=0)
        agreement = 2 * a @ b / (a @ a + b @ b)
        corrected.append(2 * agreement / (1 + agreement))
    assert split_half(vectors @ vectors.T) == pytest.approx(np.mean(corrected), abs=1e-9)


def test_pattern_reliability_is_cronbachs_alpha() -> None:
    generator = np.random.default_rng(0)
    measurements = generator.normal(size=(30, 12)) + generator.normal(size=12)
    items = measurements.T  # heads are persons, rows are items
    count = items.shape[1]
    alpha = count / (count - 1) * (1 - items.var(axis=0, ddof=1).sum() / items.sum(axis=1).var(ddof=1))
    assert pattern_reliability(measurements) == pytest.approx(alpha, abs=1e-9)


def test_noise_has_no_reliability_and_repetition_has_all() -> None:
    noise = np.random.default_rng(0).normal(size=(40, 1000))
    assert pattern_reliability(noise) < 0.3
    assert pattern_reliability(np.tile(noise[:1], (8, 1))) == pytest.approx(1.0)
    assert split_half(np.array([[1.0]])) == 0.0
    assert split_half(np.zeros((3, 3))) == 0.0


# ---------------------------------------------------------------------- transfer


def test_transfer_is_the_mean_gain_and_is_known_only_if_seeds_agree() -> None:
    without = {"topic": {"tags": [0.80, 0.81, 0.79], "stars": [0.80, 0.81, 0.79], "moods": [0.80]}}
    together = {"topic": {"tags": [0.84, 0.86, 0.83], "stars": [0.84, 0.78, 0.79], "moods": [0.95]}}
    found = transfer(without, together)
    tags, stars, moods = (found.cell("topic", other) for other in ("tags", "stars", "moods"))
    assert tags is not None
    assert stars is not None
    assert moods is not None
    gains = np.array([0.04, 0.05, 0.04])
    assert tags.value == pytest.approx(gains.mean())
    assert tags.standard_error == pytest.approx(gains.std(ddof=1) / math.sqrt(3))
    assert (tags.known, stars.known, moods.known) == (True, False, False)
    assert found.table().rows[0] == ("topic", "+0.0433 ± 0.0033", "?", "?")


def test_transfer_is_read_from_comparisons() -> None:
    def of(alone: list[float], together: list[float]) -> dict[str, list[float]]:
        return {"alone_by_seed": alone, "together_by_seed": together}

    two = {"tasks": {"a": of([1.0, 1.1], [1.2, 1.3]), "b": of([2.0, 2.0], [1.0, 1.0])}}
    three = {"tasks": {name: of([1.0, 1.0], [1.5, 1.5]) for name in ("a", "b", "c")}}
    found = transfer_of([two, three])
    assert found.cell("a", "b").value == pytest.approx(0.2)  # type: ignore[union-attr]
    assert found.cell("b", "a").value == pytest.approx(-1.0)  # type: ignore[union-attr]
    assert found.cell("a", "b + c").value == pytest.approx(0.5)  # type: ignore[union-attr]
    assert found.others[:2] == ("a", "b")
    with pytest.raises(DataError, match="compared twice"):
        transfer_of([two, two])
    with pytest.raises(DataError, match="no scores by seed"):
        transfer_of([{"tasks": {"a": {}}}])
    with pytest.raises(DataError, match="give as many on both sides"):
        transfer({"a": {"b": [1.0]}}, {"a": {"b": [1.0, 2.0]}})
