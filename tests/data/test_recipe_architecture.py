"""How a recipe's tasks share and hear each other: read, checked, written again, and what becomes of it in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import TASKS, tiny_folder, tiny_recipe  # noqa: F401 (fixtures)

from hf_mtl.configuration import ARCHITECTURE
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.data.schema import recipe_schema
from hf_mtl.errors import HfMtlError
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.run import run_training

GOOD: dict[str, Any] = {
    "sharing": "soft",
    "sharing_strength": 1,
    "sharing_size": 8,
    "interaction": "gat",
    "interaction_heads": 2,
    "interaction_graph": {"sentiment": ["moods", "intent"], "moods": []},
}


def test_a_recipe_says_it_all_again(tiny_recipe: dict[str, Any]) -> None:  # noqa: F811
    assert GOOD.keys() == {*ARCHITECTURE}
    recipe = parse_recipe({**tiny_recipe, **GOOD}, base=Path())
    assert recipe.architecture == GOOD
    assert {key: recipe.to_dict()[key] for key in GOOD} == GOOD
    assert not {*ARCHITECTURE} & parse_recipe(tiny_recipe, base=Path()).to_dict().keys()


def test_the_graph_of_some_tasks_leaves_the_others_out(tiny_recipe: dict[str, Any]) -> None:  # noqa: F811
    recipe = parse_recipe({**tiny_recipe, **GOOD}, base=Path())
    some = [task.spec for task in recipe.tasks if task.spec.name in ("sentiment", "intent")]
    assert recipe.architecture_of(some) == {**GOOD, "interaction_graph": {"sentiment": ["intent"]}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sharing": "softly"}, "sharing is 'softly'; use one of 'hard', 'soft', None"),
        ({"sharing": ["soft"]}, "sharing is ['soft']"),
        ({"sharing_strength": 0.5}, "sharing_strength is 0.5, and sharing is None; set sharing to 'soft'"),
        ({"sharing": "soft", "sharing_strength": "0.5"}, "sharing_strength is '0.5'; give a number at least 0"),
        ({"sharing": "soft", "sharing_size": 1.5}, "sharing_size is 1.5; give a whole number"),
        ({"interaction": True}, "interaction is True; use one of 'gat', None"),
        ({"interaction_graph": {"moods": []}}, "interaction_graph is {'moods': []}, and interaction is None"),
        ({"interaction": "gat", "interaction_graph": ["moods"]}, "interaction_graph is ['moods']; give each task a"),
        ({"interaction": "gat", "interaction_graph": {"moods": "intent"}}, "interaction_graph is {'moods': 'intent'}"),
        ({"interaction": "gat", "interaction_graph": {"moods": ["mood"]}}, "interaction_graph names a task 'mood'"),
        ({"interactoin": "gat"}, "unknown key 'interactoin'; did you mean 'interaction'?"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str, tiny_recipe: dict[str, Any]) -> None:  # noqa: F811
    with pytest.raises(HfMtlError) as caught:
        parse_recipe({**tiny_recipe, **values}, base=Path())
    assert message in str(caught.value)


def test_the_schema_has_every_key() -> None:
    schema = recipe_schema()["properties"]
    assert {*ARCHITECTURE} <= schema.keys()
    assert all("description" in schema[key] for key in ARCHITECTURE)
    task = schema["tasks"]["items"]["properties"]
    assert task["layer_mix"]["type"] == task["attention_gate"]["type"] == "boolean"
    assert task["attention_heads"]["minimum"] == 1


def test_a_run_trains_and_saves_it(
    tiny_folder: Path,  # noqa: F811
    tiny_recipe: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    training = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    options: dict[str, Any] = {"pooling": "attention", "attention_heads": 4, "attention_gate": True, "layer_mix": True}
    tasks = [{**task, **options} if task["name"] == "moods" else task for task in tiny_recipe["tasks"]]
    recipe = parse_recipe({**tiny_recipe, **GOOD, "tasks": tasks, "training": training}, base=tiny_folder)
    run_training(recipe, tmp_path)
    model = MultiTaskModel.from_pretrained(tmp_path)
    assert model.config.architecture == GOOD
    assert list(model.task_adapters) == list(TASKS)
    assert {**model.specs[-1].to_dict(), **options} == model.specs[-1].to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["interaction_graph"] == GOOD["interaction_graph"]
    assert any(adapter.up.any() for adapter in model.task_adapters.values())
