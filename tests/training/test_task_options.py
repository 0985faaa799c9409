"""Training of tasks that read the encoder in ways of their own, share softly or hear each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TASKS, build

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import SpecError
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.trainer import MultiTaskTrainer

Make = Callable[..., MultiTaskTrainer]
POOLED = ("sentiment", "similarity", "moods")
SHARING: dict[str, dict[str, Any]] = {
    "soft": {"sharing": "soft", "sharing_size": 8},
    "gat": {"interaction": "gat"},
    "both": {"sharing": "soft", "interaction": "gat", "interaction_graph": {"sentiment": ["moods"]}},
}
READING: dict[str, Any] = {"pooling": "attention", "attention_heads": 2, "attention_gate": True, "layer_mix": True}
QUIET = {"eval_strategy": "no", "logging_steps": 1, "load_best_model_at_end": False}


def model_of(data: RecipeData, *tasks: str, sharing: str | None = None, **options: Any) -> MultiTaskModel:
    """Make a model of some tasks; messages are heard from the first step on."""
    specs = tuple(
        replace(spec, **options) if options and spec.name not in ("slots", "grammar") else spec for spec in data.tasks
    )
    model = build(
        replace(data, tasks=tuple(spec for spec in specs if spec.name in (tasks or TASKS))),
        architecture=SHARING.get(sharing or ""),
    )
    if model.interaction is not None:
        model.interaction.scale.data.fill_(0.5)
    return model


def part_of(data: RecipeData, tasks: tuple[str, ...]) -> RecipeData:
    """Return the datasets that have labels of these tasks alone."""
    kept = {name: split for name, split in data.train.items() if {t.spec.name for t in split.tasks} <= {*tasks}}
    return replace(data, train=kept, validation={})


@pytest.mark.mostly_slow(fast=2)
@pytest.mark.parametrize("tasks", [POOLED, TASKS], ids=["pooled", "tokens"])
@pytest.mark.parametrize("sharing", SHARING)
def test_states_of_a_frozen_encoder_are_kept(
    sharing: str, tasks: tuple[str, ...], tiny_data: RecipeData, trainer_for: Make, tmp_path: Path
) -> None:
    data, weights = part_of(tiny_data, tasks), []
    for kept in (False, True):
        model = model_of(tiny_data, *tasks, sharing=sharing)
        options = {"freeze_encoder": True, "max_steps": 3, "optim": "sgd", "learning_rate": 0.05, **QUIET}
        folder = tmp_path / str(kept)
        trainer_for(
            model=model, data=data, folder=folder, cache_hidden_states=kept, save_strategy="no", **options
        ).train()
        weights.append(model.state_dict())
    start = model_of(tiny_data, *tasks, sharing=sharing).state_dict()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=1e-6, msg=name)
    moved = {name.split(".")[0] for name, weight in weights[0].items() if not torch.equal(weight, start[name])}
    assert moved == {"heads", *(["task_adapters"] * (sharing != "gat")), *(["interaction"] * (sharing != "soft"))}


@pytest.mark.parametrize("options", [{"layer_mix": True}, {"pooling": "attention", "attention_gate": True}])
def test_states_are_not_kept_where_tasks_read_more(
    options: dict[str, Any], tiny_data: RecipeData, trainer_for: Make
) -> None:
    data = part_of(tiny_data, POOLED)
    trainer = trainer_for(
        model=model_of(tiny_data, *POOLED, **options),
        data=data,
        freeze_encoder=True,
        cache_hidden_states=True,
        save_strategy="no",
        **QUIET,
    )
    with pytest.raises(SpecError, match="task 'sentiment' reads more of the encoder than its last states"):
        trainer.train()


@pytest.mark.parametrize("options", [{"sharing": "both"}, READING], ids=["sharing", "reading"])
def test_a_resumed_training_is_the_same_to_the_bit(
    options: dict[str, Any], tiny_data: RecipeData, trainer_for: Make, tmp_path: Path
) -> None:
    weights: list[dict[str, Any]] = []
    for name, resume in (("whole", None), ("resumed", tmp_path / "whole" / "checkpoint-2")):
        model = model_of(tiny_data, **options)
        values: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 4}
        trainer = trainer_for(model=model, folder=tmp_path / name, **QUIET, **values)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        assert trainer.state.global_step == 4
        weights.append(model.state_dict())
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())


def test_bf16_and_accumulation_train_every_part(tiny_data: RecipeData, trainer_for: Make) -> None:
    model = model_of(tiny_data, sharing="both", **READING)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    options: dict[str, Any] = {"max_steps": 3, "gradient_accumulation_steps": 2, "save_strategy": "no", "bf16": True}
    trainer = trainer_for(model=model, learning_rate=1e-2, every_task_in_batch=True, **QUIET, **options)
    trainer.train()
    assert all(weight.isfinite().all() for weight in model.state_dict().values())
    still = {name for name, weight in model.state_dict().items() if torch.equal(weight, before[name])}
    assert not {name for name in still if not name.startswith("encoder.")}
