"""Training of tasks that read a dependency graph: exact, with every other part of a step, and through a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixed_batches import FixedTrainer
from random_rows import model_of, rows_of, spec_of
from tiny import build
from torch import Tensor
from transformers import AutoTokenizer, BertConfig

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.data.preparation import RecipeData
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.errors import SpecError
from hf_mtl.inference.predictor import Columns, Predictor
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import HEADS, PERTURBATIONS
from hf_mtl.training.run import run_training
from hf_mtl.training.step_checks import check_architecture
from hf_mtl.training.trainer import MultiTaskTrainer

GRAPH: dict[str, Any] = {"token_graph": True, "token_graph_layers": 2, "token_graph_heads": 2}


def stirred(model: MultiTaskModel) -> MultiTaskModel:
    """Let messages be heard from the first step on."""
    for passed in model.token_graphs.values():
        passed.scales.data.fill_(0.5)  # type: ignore[union-attr]
    return model


def graph_rows(specs: list[TaskSpec], count: int) -> list[dict[str, Any]]:
    """Make rows of which every third has no governors."""
    generator = torch.Generator().manual_seed(0)
    rows = rows_of(specs, count)
    for place, row in enumerate(rows):
        tokens = len(row["input_ids"])
        if place % 3:
            row["governors"] = torch.randint(tokens, (tokens,), generator=generator).tolist()
    return rows


@pytest.mark.mostly_slow(fast=2)
@pytest.mark.parametrize("kind", HEADS.names())
def test_four_micro_batches_have_the_gradients_of_one_batch(
    kind: str, tiny_encoder_config: BertConfig, tmp_path: Path
) -> None:
    specs = [spec_of(kind, loss_weight=0.7, **GRAPH), spec_of("regression", "other", loss_weight=0.1)]
    rows, steps = graph_rows(specs, 32), list[dict[str, Tensor]]()
    for size, micro_batches in ((32, 1), (8, 4)):
        model = stirred(model_of(tiny_encoder_config, *specs))
        options = {"gradient_accumulation_steps": micro_batches, "max_steps": 1, "batch_size": size}
        trainer = FixedTrainer(rows, folder=tmp_path / str(size), model=model, **options)
        trainer.train()
        steps += trainer.gradients
    assert any(name.startswith("token_graphs.") and gradient.any() for name, gradient in steps[0].items())
    for name, gradient in steps[0].items():
        torch.testing.assert_close(steps[1][name], gradient, rtol=0, atol=1e-6, msg=name)


@pytest.mark.mostly_slow(fast=2)
@pytest.mark.parametrize("name", PERTURBATIONS.names())
def test_perturbations_reach_through_the_graph(name: str, tiny_encoder_config: BertConfig, tmp_path: Path) -> None:
    specs = [spec_of("token_classification", **GRAPH), spec_of("sequence_classification", "other", **GRAPH)]
    model = stirred(model_of(tiny_encoder_config, *specs))
    rows = graph_rows(specs, 16)
    trainer = FixedTrainer(rows, folder=tmp_path, batch_size=8, model=model, perturbation=name, max_steps=2)
    trainer.train()
    for step in trainer.gradients:
        assert all(gradient.isfinite().all() for gradient in step.values())
        assert any(gradient.any() for own, gradient in step.items() if own.startswith("token_graphs."))


@pytest.mark.parametrize("options", [{"peft": {"r": 4}}, {"bf16": True, "freeze_encoder": True}], ids=["lora", "bf16"])
def test_the_graph_learns_beside_other_options(
    options: dict[str, Any], tiny_data: RecipeData, trainer_for: Callable[..., MultiTaskTrainer]
) -> None:
    tasks = tuple(replace(spec, **GRAPH) for spec in tiny_data.tasks)
    model = build(replace(tiny_data, tasks=tasks))
    before = {name: weight.clone() for name, weight in model.token_graphs.state_dict().items()}
    quiet = {"eval_strategy": "no", "load_best_model_at_end": False, "save_strategy": "no"}
    trainer = trainer_for(model=model, max_steps=4, every_task_in_batch=True, learning_rate=1e-2, **quiet, **options)
    trainer.train()
    after = trainer.multi_task_model.token_graphs.state_dict()
    assert all(weight.isfinite().all() for weight in after.values())
    assert not [name for name, weight in after.items() if torch.equal(weight, before[name])]


def test_states_of_a_frozen_encoder_are_kept_token_by_token(
    tiny_data: RecipeData, trainer_for: Callable[..., MultiTaskTrainer], tmp_path: Path
) -> None:
    """Where no task has a graph one pooled state is kept of a row: messages between tokens need them all."""
    names, weights = ("sentiment", "moods"), list[dict[str, Tensor]]()
    kept = {name: tiny_data.train[name] for name in ("films", "posts")}
    data = replace(tiny_data, train=kept, validation={})
    tasks = tuple(replace(spec, pooling="mean", **GRAPH) for spec in tiny_data.tasks if spec.name in names)
    for cached in (False, True):
        model = stirred(build(replace(tiny_data, tasks=tasks)))
        options = {"freeze_encoder": True, "max_steps": 3, "optim": "sgd", "learning_rate": 0.05, "logging_steps": 1}
        options |= {"eval_strategy": "no", "load_best_model_at_end": False, "save_strategy": "no"}
        folder = tmp_path / str(cached)
        trainer_for(model=model, data=data, folder=folder, cache_hidden_states=cached, **options).train()
        weights.append(model.state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("wrapper", ["fsdp", "deepspeed"])
def test_sharded_parameters_are_refused(wrapper: str, tiny_encoder_config: BertConfig) -> None:
    config = MultiTaskConfig(encoder_config=tiny_encoder_config, tasks=[spec_of("regression", **GRAPH)])
    check_architecture(config, fsdp=False, deepspeed=False)
    with pytest.raises(SpecError, match=r"task 'task': token_graph is true, .* shards; train without"):
        check_architecture(config, **{"fsdp": False, "deepspeed": False, wrapper: True})


def test_a_recipe_trains_and_scores_what_is_then_predicted(
    tiny_folder: Path, tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    for split in ("train", "validation"):
        lines = [json.loads(line) for line in (tiny_folder / f"orders-{split}.jsonl").read_text().splitlines()]
        for place, row in enumerate(lines):  # the last word governs all others, but every third row has no graph
            count = len(row["tokens"])
            row["head"] = [*([count] * (count - 1)), 0] if place % 3 else None
        (tmp_path / f"orders-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    dataset = {**tiny_recipe["datasets"]["orders"], "heads": "head"}
    tasks = [{**task, **GRAPH} for task in tiny_recipe["tasks"] if task["name"] == "grammar"]
    training = {"max_steps": 5, "learning_rate": 1e-2, "save_strategy": "no", "load_best_model_at_end": False}
    recipe = {
        **tiny_recipe,
        "datasets": {"orders": dataset},
        "tasks": tasks,
        "training": training | {"precision": "fp32"},
    }
    run = run_training(parse_recipe(recipe, base=tmp_path), tmp_path / "run")
    model = MultiTaskModel.from_pretrained(tmp_path / "run").eval()
    passed: Any = model.token_graphs["grammar"]
    assert passed.scales.any()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "orders-validation.jsonl").read_text().splitlines()]
    answered = Predictor(model, tokenizer, precision="fp32", columns=Columns(heads="head")).answer(rows)
    pairs = [
        (tag, gold)
        for row in answered
        for tag, gold in zip(row["predictions"]["grammar"]["tags"], row["grammar"] or (), strict=False)
        if gold is not None
    ]
    accuracy = sum(tag == gold for tag, gold in pairs) / len(pairs)
    assert run.results["validation"]["grammar"]["accuracy"] == pytest.approx(accuracy)
