"""Influence: dot products of gradients that autograd gives row by row, and what leaving rows out really does."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import DataError, ModelError, SpecError
from hf_mtl.explain.influence import Checkpoint, Influence, influence, read_checkpoints
from hf_mtl.explain.labelled import draw_rows
from hf_mtl.explain.subject import Subject
from hf_mtl.explain.tracin import Pull, influences
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.targets import Wanted

TEXT = "the film was good and great"


def explicit(model: MultiTaskModel, data: RecipeData, task: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the dot products and cosines of minus each row's gradient and that of the text's score, on the whole
    embedding matrix and head."""
    subject = Subject(model, data.tokenizer)
    weights = [model.get_input_embeddings().weight, *model.head(task).parameters()]

    def flat(value: torch.Tensor) -> np.ndarray:
        return torch.cat([part.flatten() for part in torch.autograd.grad(value, weights)]).double().numpy()

    read = subject.read(text)
    target = subject.target(read, subject.forward(read, [task]), task, Wanted())
    inputs = {"input_ids": torch.from_numpy(read.input_ids)[None]}
    logits = model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"])).logits[task]
    own = flat(target.score(subject.at_target(read, target, logits)).sum())
    rows = draw_rows(model, data.train, [task], limit=100, seed=0)[task]
    gradients = np.stack([
        -flat(model(**batch.inputs, labels={task: batch.labels}, tasks=[task]).losses[task])
        for batch in rows.batches(model, data.tokenizer, 1)
    ])  # fmt: skip
    products = gradients @ own
    return products, products / (np.linalg.norm(gradients, axis=1) * np.linalg.norm(own))


@pytest.mark.parametrize("task", ["sentiment", "slots", "similarity", "moods"])
def test_influence_is_the_product_of_gradients_row_by_row(
    learnt: MultiTaskModel, tiny_data: RecipeData, task: str
) -> None:
    products, cosines = explicit(learnt, tiny_data, task, TEXT)
    subject = Subject(learnt, tiny_data.tokenizer)
    read = subject.read(TEXT)
    target = subject.target(read, subject.forward(read, [task]), task, Wanted())
    pull = Pull.of(subject, read, target, task)
    rows = draw_rows(learnt, tiny_data.train, [task], limit=100, seed=0)[task]
    for similarity, expected in (("dot", products), ("cosine", cosines)):
        found = influences(learnt, tiny_data.tokenizer, rows, pull, similarity=similarity, batch_size=7)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5 * np.abs(expected).max())


def test_a_training_row_that_is_the_text_itself_is_near_the_top(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    rows = draw_rows(learnt, tiny_data.train, ["sentiment"], limit=100, seed=0)["sentiment"]
    raw = rows.split.raw.dataset
    places: list[int] = []
    for number in rows.rows.tolist()[:12]:
        text, label = raw[number]["text"], raw[number]["label"]
        found = influence(
            learnt,
            tiny_data.tokenizer,
            text,
            tiny_data.train,
            task="sentiment",
            target=label,
            top=40,
            similarity="cosine",
        )
        order = [own.row for own in found.for_it]
        same = [other for other in order if raw[other]["text"] == text]
        assert same, "training on a row raises its own label"
        places.append(order.index(same[0]))
    assert np.median(places) <= 2


def test_a_step_on_a_row_changes_the_score_as_foretold(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    found = influence(learnt, tiny_data.tokenizer, TEXT, tiny_data.train, task="sentiment", top=3, similarity="dot")
    rows = draw_rows(learnt, tiny_data.train, ["sentiment"], limit=100, seed=0)["sentiment"]
    for own in (*found.for_it, *found.against_it):
        model = copy.deepcopy(learnt).double()
        subject = Subject(model, tiny_data.tokenizer)
        read = subject.read(TEXT)
        target = subject.target(read, subject.forward(read, ["sentiment"]), "sentiment", Wanted())

        def score(subject: Subject = subject, read: object = read, target: object = target) -> float:
            return float(subject.score(read, target, "sentiment", subject.forward(read, ["sentiment"])))  # type: ignore[arg-type]

        before = score()
        place = rows.rows.tolist().index(own.row)
        (batch,) = rows.part(place, place + 1).batches(model, tiny_data.tokenizer, 1)
        loss = model(**batch.inputs, labels={"sentiment": batch.labels}, tasks=["sentiment"]).losses["sentiment"]
        weights = [model.get_input_embeddings().weight, *model.head("sentiment").parameters()]
        rate = 1e-4 / max(1.0, abs(own.influence))
        with torch.no_grad():
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight -= rate * gradient
        assert (score() - before) / rate == pytest.approx(own.influence, rel=2e-2, abs=1e-4)


@pytest.fixture(scope="module")
def checked(learnt: MultiTaskModel, tiny_data: RecipeData) -> Influence:
    given = (learnt, tiny_data.tokenizer, "the film was bad", tiny_data.train)
    return influence(*given, task="sentiment", target="neg", leave_out=8, draws=5)


def test_without_the_rows_behind_it_the_score_falls_more_than_without_others(checked: Influence) -> None:
    own = checked.leave_out
    assert own is not None
    assert own.removed == 8
    assert own.top_score < own.score
    assert own.top_score < np.mean(own.random_scores)
    assert own.fell_as_much == 0.0
    table = checked.check_table()
    assert table is not None
    assert [row[0] for row in table.rows] == ["all rows", "without the 8 most influential", "without 8 random rows"]


def test_rows_stand_with_their_text_and_label(checked: Influence, tiny_data: RecipeData) -> None:
    raw = tiny_data.train["films"].raw.dataset
    for own in (*checked.for_it, *checked.against_it):
        assert own.text == raw[own.row]["text"]
        assert own.label == raw[own.row]["label"]
    assert all(own.influence > 0 for own in checked.for_it)
    assert all(own.influence < 0 for own in checked.against_it)
    assert json.loads(json.dumps(checked.to_dict()))["target"] == "neg"
    assert len(checked.table().rows) == len(checked.for_it) + len(checked.against_it)


def test_checkpoints_add_up_with_their_learning_rates(
    learnt: MultiTaskModel, tiny_data: RecipeData, tmp_path: Path
) -> None:
    for step, rate in ((2, 0.5), (1, 0.25)):
        folder = tmp_path / f"checkpoint-{step}"
        learnt.save_pretrained(folder, remote_code=False)
        tiny_data.tokenizer.save_pretrained(folder)
        state = {"global_step": step, "log_history": [{"learning_rate": 9.0}, {"learning_rate": rate}, {"loss": 1.0}]}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    checkpoints = read_checkpoints(tmp_path)
    assert [own.learning_rate for own in checkpoints] == [0.25, 0.5]
    given = (learnt, tiny_data.tokenizer, TEXT, tiny_data.train)
    one = influence(*given, task="sentiment")
    both = influence(*given, task="sentiment", checkpoints=checkpoints)
    assert [own.row for own in both.for_it] == [own.row for own in one.for_it]
    assert [own.influence for own in both.for_it] == pytest.approx(
        [0.75 * own.influence for own in one.for_it], rel=1e-4
    )
    assert both.checkpoints == 2
    with pytest.raises(ModelError, match="no checkpoints"):
        read_checkpoints(tmp_path / "elsewhere")
    with pytest.raises(ModelError):
        influence(*given, task="sentiment", checkpoints=[Checkpoint(tmp_path / "elsewhere", 1.0)])


def test_a_frozen_head_is_looked_at_all_the_same_and_stays_frozen(
    learnt: MultiTaskModel, tiny_data: RecipeData
) -> None:
    model = copy.deepcopy(learnt).requires_grad_(False)
    given = (tiny_data.tokenizer, TEXT, tiny_data.train)
    assert influence(model, *given, task="moods") == influence(learnt, *given, task="moods")
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_cannot_be_looked_at_is_refused(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    given = (learnt, tiny_data.tokenizer, TEXT, tiny_data.train)
    for options, message in (
        ({"top": 0}, "top is 0"),
        ({"leave_out": -1}, "leave_out is -1"),
        ({"leave_out": 40}, "leave_out is 40"),
        ({"leave_out": 1, "penalty": 0.0}, "penalty is 0.0"),
        ({"similarity": "euclid"}, "similarity is 'euclid'"),
        ({"target": "meh"}, "'meh'"),
        ({"task": "weather"}, "weather"),
    ):
        with pytest.raises(SpecError, match=message):
            influence(*given, **{"task": "sentiment", **options})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="'sentiment'"):
        influence(learnt, tiny_data.tokenizer, TEXT, {"posts": tiny_data.train["posts"]}, task="sentiment")
