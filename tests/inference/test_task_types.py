"""Task types from a recipe to their answers: scored, explained, saved and exported as any other task is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build, load, write_questions, write_quiz

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import ModelError
from hf_mtl.evaluation.prediction import collator_for
from hf_mtl.evaluation.scoring import score
from hf_mtl.explain.explainer import Explainer
from hf_mtl.inference.export import export_model
from hf_mtl.inference.loading import load_model
from hf_mtl.inference.pipeline import MultiTaskPipeline
from hf_mtl.model.modeling import MultiTaskModel

TASKS: dict[str, dict[str, Any]] = {
    "ordinal_regression": {"dataset": "films", "label": "label", "labels": ["neg", "pos"]},
    "crf_token_classification": {"dataset": "orders", "label": "slots"},
    "span_extraction": {"dataset": "questions", "label": "answers"},
    "multiple_choice": {"dataset": "quiz", "label": "right"},
}
every_type = pytest.mark.parametrize("made", TASKS, indirect=True)


@dataclass(frozen=True)
class Made:
    data: RecipeData
    model: MultiTaskModel

    def pipe(self, model: Any = None) -> MultiTaskPipeline:
        return MultiTaskPipeline(model=model or self.model, tokenizer=self.data.tokenizer)

    @property
    def rows(self) -> list[Any]:
        (split,) = self.data.validation.values()
        columns = split.source.input_columns
        return [{role: row[column] for role, column in columns.items()} for row in split.raw.dataset]


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, tiny_recipe: dict[str, Any], tiny_folder: Path) -> Made:
    """A model of one task that has learnt a little."""
    task = {"name": "task", "type": request.param, **TASKS[request.param]}
    known = {**tiny_recipe["datasets"], "questions": write_questions(tiny_folder), "quiz": write_quiz(tiny_folder)}
    datasets = {task["dataset"]: known[task["dataset"]]}
    data = load(tiny_folder, {**tiny_recipe, "datasets": datasets, "tasks": [task]})
    model = build(data).train()
    collator = collator_for(model, data.tokenizer)
    (split,) = data.train.values()
    batch = collator([split.features[row] for row in range(len(split.features))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(40):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
    return Made(data, model.eval())


@every_type
def test_a_little_training_beats_none(made: Made) -> None:
    trained = score(made.model, made.data.tokenizer, made.data.train)
    fresh = score(build(made.data).eval(), made.data.tokenizer, made.data.train)
    assert trained.tasks["task"].loss < fresh.tasks["task"].loss
    assert trained.average() > max(fresh.average(), 0.4)


@every_type
def test_long_rows_are_scored_in_windows(made: Made, tiny_folder: Path) -> None:
    recipe = made.data.recipe
    (task,) = recipe.tasks
    if "choices" in recipe.datasets[task.dataset].input_columns:
        pytest.skip("rows with choices are not read in windows: see test_windows_of_choices_are_refused")
    values = {"name": "task", "type": task.spec.type, **TASKS[task.spec.type], "max_length": 9, "stride": 2}
    columns = {name: dict(own.input_columns) for name, own in recipe.datasets.items()}
    for own in columns.values():
        own.pop("text_pair", None)  # pairs are always cut
    datasets = {
        name: {"train": f"{name}-train.jsonl", "validation": f"{name}-validation.jsonl", **own}
        for name, own in columns.items()
    }
    data = load(tiny_folder, {"encoder": recipe.encoder_path, "datasets": datasets, "tasks": [values]})
    (split,) = data.validation.values()
    assert len(split.features) > len(split)
    scores = score(build(data), data.tokenizer, data.validation)
    assert len(scores.tasks["task"].rows) == len(split.labelled("task"))
    assert scores.tasks["task"].loss > 0


@every_type
@pytest.mark.slow
def test_a_saved_model_and_its_graph_answer_alike(made: Made, tmp_path: Path) -> None:
    wanted = made.pipe()(made.rows)
    made.pipe().save_pretrained(tmp_path / "saved")
    assert made.pipe(load_model(tmp_path / "saved", dtype="fp32")[0])(made.rows) == wanted
    export_model(made.model, made.data.tokenizer, tmp_path / "graph", format="onnx")
    found = made.pipe(load_model(tmp_path / "graph", dtype="fp32")[0])(made.rows)
    assert [answer["task"].keys() for answer in found] == [answer["task"].keys() for answer in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert rounded(one) == rounded(other)


@every_type
def test_there_is_no_stock_model_of_it(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"transformers has no stock class for \w+(: .+)?; share the model itself"):
        export_model(made.model, made.data.tokenizer, tmp_path / "stock")


@every_type
def test_its_answers_are_explained(made: Made) -> None:
    explainer = Explainer(made.model, made.data.tokenizer)
    for row in made.rows[:2]:
        found = explainer.explain(row)["task"]
        assert found.report()


@every_type
def test_lower_precision_trains(made: Made) -> None:
    model = build(made.data).to(torch.bfloat16).train()
    (split,) = made.data.train.values()
    batch = collator_for(model, made.data.tokenizer)([split.features[row] for row in range(8)])
    loss = model(**batch).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.heads.parameters())


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value
