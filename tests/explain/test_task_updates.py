"""What training changed: parts that are put back, changes where they were made, heads that are where they should be."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import chromium, needs_chromium
from families import FAMILIES, batch, new_model
from torch import Tensor

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import DataError, ModelError, SpecError
from hf_mtl.evaluation.scoring import score
from hf_mtl.explain.alone_training import train_alone
from hf_mtl.explain.attention_heads import head_counts, head_mask
from hf_mtl.explain.encoder_pieces import encoder_state, head_pieces, layer_pieces, put_back
from hf_mtl.explain.task_updates import ALL, TOGETHER, TaskUpdates, task_updates
from hf_mtl.model.encoders.base import load_encoder
from hf_mtl.model.lora import add_lora
from hf_mtl.model.modeling import MultiTaskModel

WITH_HEADS = [name for name in FAMILIES if name != "fnet"]
SHARED_KEYS = ("qwen2", "llama")
"""Families here in which the heads share keys and values, so that each has queries and columns of the output alone."""


@pytest.fixture(scope="module")
def start(tiny_data: RecipeData) -> Any:
    return load_encoder(tiny_data.recipe.encoder_path)


@pytest.fixture(scope="module")
def updates(learnt: MultiTaskModel, tiny_data: RecipeData, start: Any) -> TaskUpdates:
    alone = train_alone(tiny_data, tiny_data.recipe.encoder_path, steps=6, tasks=["sentiment", "slots", "moods"])
    return task_updates(
        learnt, tiny_data.tokenizer, tiny_data.validation, start, alone=alone, head_drops=True, how="6 steps each"
    )


def noisy(model: MultiTaskModel, names: set[str]) -> MultiTaskModel:
    """Return a model in which some parameters of the encoder are others."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if name in names:
                parameter += 0.1
    return model


# ---------------------------------------------------------------------- pieces


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_in_one_part(family: str) -> None:
    model = new_model(family)
    regions = [region for piece in layer_pieces(model) for region in piece.regions]
    assert sorted(region.parameter for region in regions) == sorted(dict(model.encoder.named_parameters()))
    assert all(region.start is None for region in regions)


@pytest.mark.parametrize("family", WITH_HEADS)
def test_a_head_that_is_switched_off_does_not_miss_its_piece(family: str) -> None:
    model = new_model(family)
    inputs = batch()
    layers, heads = head_counts(model)
    pieces = head_pieces(model)
    assert all(len(layer) == heads for layer in pieces)
    mask = torch.ones(layers, heads)
    mask[:, -1] = 0.0  # the last of each layer, as layers may share their weights

    def states() -> Tensor:
        with torch.no_grad(), head_mask(model, mask):
            return next(iter((model(**inputs).logits or {}).values()))

    before = states()
    own = dict(model.encoder.named_parameters())
    with torch.no_grad():
        for layer in pieces:
            for view in layer[-1].of(own):
                view += torch.randn(view.shape)
    torch.testing.assert_close(states(), before)
    mask[:, -1] = 1.0
    assert not torch.allclose(states(), before)
    projections = 2 if family in SHARED_KEYS else 4
    hidden = model.config.get_text_config().hidden_size
    weights = [view.numel() for view in pieces[0][0].of(own) if view.ndim == 2]
    assert sum(weights) == projections * hidden * hidden // heads


def test_heads_do_not_share_a_number(learnt: MultiTaskModel) -> None:
    counts = {name: torch.zeros_like(own) for name, own in learnt.encoder.named_parameters()}
    for layer in head_pieces(learnt):
        for head in layer:
            for view in head.of(counts):
                view += 1
    total = sum(float(own.sum()) for own in counts.values())
    assert max(float(own.max()) for own in counts.values()) == 1.0
    # Four projections of 32 by 32 and three biases of 32 in two layers; the output's bias is of no head.
    assert total == 2 * (4 * 32 * 32 + 3 * 32)


def test_what_is_put_back_comes_again(learnt: MultiTaskModel, start: Any) -> None:
    before = encoder_state(learnt.encoder)
    pieces = layer_pieces(learnt)
    with put_back(learnt, pieces[:1], encoder_state(start)):
        inside = encoder_state(learnt.encoder)
        first = {region.parameter for region in pieces[0].regions}
        for name, own in inside.items():
            assert torch.equal(own, encoder_state(start)[name] if name in first else before[name])
    assert all(torch.equal(own, before[name]) for name, own in encoder_state(learnt.encoder).items())


# ---------------------------------------------------------------------- changes and overlaps


def test_a_model_that_was_not_trained_has_not_moved(tiny_data: RecipeData, start: Any) -> None:
    model = MultiTaskModel.from_encoder(tiny_data.recipe.encoder_path, tiny_data.tasks).eval()
    found = task_updates(model, tiny_data.tokenizer, tiny_data.validation, start, head_drops=True)
    (own,) = found.changes
    assert own.total == 0.0
    assert set(own.parts) == {0.0}
    assert not np.array(own.heads).any()
    assert {(drop.drop, drop.low, drop.high) for drop in found.drops} == {(0.0, 0.0, 0.0)}
    assert found.critical == {}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_change_is_told_where_it_was_made(learnt: MultiTaskModel, tiny_data: RecipeData, number: int) -> None:
    piece = layer_pieces(learnt)[number]
    model = noisy(learnt, {region.parameter for region in piece.regions})
    found = task_updates(model, tiny_data.tokenizer, tiny_data.validation, learnt.encoder, tasks=["intent"])
    assert [value > 0.0 for value in found.changes[0].parts] == [name == piece.name for name in found.parts]
    assert [bool(np.any(layer)) for layer in found.changes[0].heads or ()] == [number == 1, number == 2]
    size = math.sqrt(sum(float(own.square().sum()) for own in piece.of(encoder_state(learnt.encoder))))
    moved = 0.1 * math.sqrt(sum(own.numel() for own in piece.of(encoder_state(learnt.encoder))))
    assert found.changes[0].parts[number] == pytest.approx(moved / size, rel=1e-5)


def test_a_change_of_one_head_is_told_of_that_head(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    model = copy.deepcopy(learnt)
    with torch.no_grad():
        for view in head_pieces(model)[1][0].of(dict(model.encoder.named_parameters())):
            view *= 2.0
    found = task_updates(model, tiny_data.tokenizer, tiny_data.validation, learnt.encoder, tasks=["intent"])
    assert found.changes[0].heads is not None
    np.testing.assert_allclose(found.changes[0].heads, [[0.0, 0.0], [1.0, 0.0]], atol=1e-6)


def test_the_overlap_of_a_task_with_itself_is_1(updates: TaskUpdates) -> None:
    for task in updates.tasks:
        own = updates.overlap(task, task)
        assert own.cosine == pytest.approx(1.0)
        assert own.jaccard == 1.0
        assert own.parts == pytest.approx([1.0] * len(updates.parts))
    assert updates.tasks == ("sentiment", "slots", "moods")
    assert updates.overlap("slots", "moods") == updates.overlap("moods", "slots")
    assert updates.overlap("slots", "moods").cosine < 0.99


def test_overlaps_are_those_of_the_whole_vectors(learnt: MultiTaskModel, tiny_data: RecipeData, start: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    old = encoder_state(start)
    one = {name: own + 0.1 * torch.randn(own.shape, generator=generator) for name, own in old.items()}
    noise = {name: 0.03 * torch.randn(own.shape, generator=generator) for name, own in old.items()}
    two = {name: 0.5 * own + 0.5 * one[name] + noise[name] for name, own in old.items()}
    opposite = {name: 2 * own - one[name] for name, own in old.items()}
    found = task_updates(
        learnt, tiny_data.tokenizer, tiny_data.validation, start, alone={"a": one, "b": two, "c": opposite},
        tasks=["intent"], share=0.05, heads=False,
    )  # fmt: skip
    a, b = (torch.cat([(own[name] - old[name]).flatten() for name in old]).double() for own in (one, two))
    assert found.overlap("a", "b").cosine == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), abs=1e-6)
    count = round(0.05 * len(a))
    most = [set(own.abs().argsort(descending=True)[:count].tolist()) for own in (a, b)]
    assert found.overlap("a", "b").jaccard == pytest.approx(len(most[0] & most[1]) / len(most[0] | most[1]))
    assert found.overlap("a", "c").cosine == pytest.approx(-1.0)
    assert found.overlap("a", "c").jaccard > 0.99
    assert found.changes[0].heads is None


def test_tasks_move_the_encoder_they_are_trained_on(updates: TaskUpdates) -> None:
    assert [own.task for own in updates.changes] == [TOGETHER, "sentiment", "slots", "moods"]
    assert all(0.0 < own.total < updates.changes[0].total for own in updates.changes[1:])


# ---------------------------------------------------------------------- what is needed


def test_putting_all_back_gives_the_score_of_the_encoder_before_training(
    learnt: MultiTaskModel, tiny_data: RecipeData, start: Any, updates: TaskUpdates
) -> None:
    model = copy.deepcopy(learnt)
    model.encoder.load_state_dict(start.state_dict())
    for task, own in score(model, tiny_data.tokenizer, tiny_data.validation).tasks.items():
        drop = updates.drop(task, ALL)
        assert drop.reset == pytest.approx(own.metrics[own.metric.primary], abs=1e-6)
        assert drop.drop == pytest.approx(updates.scores[task][1] - drop.reset)


def test_the_trained_model_is_scored_and_left_as_it_is(
    learnt: MultiTaskModel, tiny_data: RecipeData, updates: TaskUpdates
) -> None:
    for task, own in score(learnt, tiny_data.tokenizer, tiny_data.validation).tasks.items():
        assert updates.scores[task] == (own.metric.primary, pytest.approx(own.metrics[own.metric.primary], abs=1e-6))
    assert learnt.training is False


def test_a_part_is_critical_where_a_task_loses_by_more_than_chance(updates: TaskUpdates) -> None:
    assert all(own.low <= own.drop <= own.high for own in updates.drops)
    assert {"slots", "grammar"} <= set(updates.critical[ALL])
    for part, tasks in updates.critical.items():
        for task in tasks:
            assert updates.drop(task, part).drop >= 0.01
            assert updates.drop(task, part).low > 0.0
    heads = {"1.1", "1.2", "2.1", "2.2"}
    assert {own.part for own in updates.drops} == {*updates.parts, ALL, *heads}


def test_adapters_count_as_merged(learnt: MultiTaskModel, tiny_data: RecipeData, start: Any) -> None:
    pytest.importorskip("peft")
    model = copy.deepcopy(learnt)
    add_lora(model, {"r": 2, "target_modules": ["query"]})
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if "lora_" in name and ".layer.1." in name:
                parameter.normal_(std=0.3)
    found = task_updates(model, tiny_data.tokenizer, tiny_data.validation, learnt.encoder, tasks=["intent"])
    assert [value > 0.0 for value in found.changes[0].parts] == [name == "layer 2" for name in found.parts]
    assert model.config.peft is not None


# ---------------------------------------------------------------------- errors, tables, page


def test_what_cannot_be_is_refused(
    learnt: MultiTaskModel, tiny_data: RecipeData, start: Any, family_explainer: Callable[..., Any]
) -> None:
    def compare(model: MultiTaskModel = learnt, **options: Any) -> TaskUpdates:
        return task_updates(model, tiny_data.tokenizer, tiny_data.validation, options.pop("encoder", start), **options)

    for options, message in (({"share": 0.0}, "share is 0"), ({"least_drop": -1.0}, "least_drop is -1"),
                             ({"rows": 0}, "rows is 0"), ({"tasks": ["songs"]}, "songs")):  # fmt: skip
        with pytest.raises(SpecError, match=message):
            compare(**options)
    other = family_explainer("distilbert").subject.model.encoder
    with pytest.raises(ModelError, match="the model and the encoder it should have begun from differ in the parameter"):
        compare(encoder=other)
    with pytest.raises(ModelError, match="task 'intent' and the encoder"):
        compare(alone={"intent": other})
    with pytest.raises(SpecError, match="steps is 0"):
        train_alone(tiny_data, tiny_data.recipe.encoder_path, steps=0)
    with pytest.raises(DataError, match="no training rows"):
        train_alone(
            RecipeData(tiny_data.recipe, tiny_data.tokenizer, tiny_data.tasks, {}, {}, {}),
            "none",
            steps=1,
            tasks=["intent"],
        )
    without = family_explainer("fnet").subject.model
    assert task_updates(without, tiny_data.tokenizer, tiny_data.validation, without.encoder).changes[0].heads is None
    with pytest.raises(ModelError, match="no attention heads"):
        task_updates(without, tiny_data.tokenizer, tiny_data.validation, without.encoder, head_drops=True)


def test_an_encoder_that_it_hardly_began_from_is_warned_of(
    learnt: MultiTaskModel, tiny_data: RecipeData, start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    far = copy.deepcopy(start)
    with torch.no_grad():
        for parameter in far.parameters():
            parameter *= -0.3
    with caplog.at_level(logging.WARNING):
        task_updates(learnt, tiny_data.tokenizer, tiny_data.validation, far, tasks=["intent"])
    assert "hardly began from it" in caplog.text


def test_tables_and_json_say_the_same(updates: TaskUpdates) -> None:
    values = json.loads(json.dumps(updates.to_dict()))
    assert values["parts"] == list(updates.parts) == ["embeddings", "layer 1", "layer 2"]
    assert len(values["changes"]) == 4
    assert {tuple(row["task"] for row in values["changes"])} == {(TOGETHER, "sentiment", "slots", "moods")}
    moved, overlaps, drops = updates.tables()
    assert [row[0] for row in moved.rows] == [TOGETHER, "sentiment", "slots", "moods"]
    assert overlaps.rows[0][1] == "+1.00 (1.00)"
    assert len(drops.rows) == 6
    assert any("*" in cell for row in drops.rows for cell in row)


@needs_chromium
def test_the_page_needs_no_network_and_shows_its_pictures(updates: TaskUpdates, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "page.html"
    file.write_text(updates.to_html("What <training> changed"), encoding="utf-8")
    with chromium(tmp_path / "profile") as browser:
        page = browser.new_page().open(file)
        assert page.problems == []
        assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
        assert page.text("h1") == "What <training> changed"
        assert page.count("img") == 4
        assert page.run("[...document.images].every(image => image.complete && image.naturalWidth > 100)")
        assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
        page.picture(tmp_path / "page.png")
