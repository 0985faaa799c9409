"""The model card of a run: its numbers are those of the run, and the code it shows works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tiny import write_encoder, write_recipe

import hf_mtl.auto  # noqa: F401  (registers the pipeline)
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.errors import RecipeError
from hf_mtl.training.card import draw_curve
from hf_mtl.training.run import run_training


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("card")
    recipe = write_recipe(base, write_encoder(base / "encoder"), rows={"train": 32, "validation": 16, "test": 16})
    recipe["card"] = {"name": "tiny-model", "license": "apache-2.0", "language": ["en", "zh"]}
    recipe["training"] = {"num_train_epochs": 1, "logging_steps": 1, "precision": "fp32"}
    run_training(parse_recipe(recipe, base=base), base / "run")
    return base / "run"


def test_the_card_gives_the_results_of_the_run(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    results = json.loads((folder / "train_results.json").read_text(encoding="utf-8"))
    wanted = {
        (split, task, metric): value
        for split in ("validation", "test")
        for task, metrics in results[split].items()
        if isinstance(metrics, dict)
        for metric, value in metrics.items()
    }
    found = {(r.dataset_split, r.task_name, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert found.keys() == wanted.keys()
    assert all(
        found[key] == pytest.approx(wanted[key], abs=0, nan_ok=True) for key in wanted if wanted[key] is not None
    )
    assert (card.data.license, card.data.language, card.data.model_name) == ("apache-2.0", ["en", "zh"], "tiny-model")


def test_the_card_tells_how_the_model_was_trained(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    arguments = json.loads((folder / "training_args.json").read_text(encoding="utf-8"))
    assert f"| `learning_rate` | `{arguments['learning_rate']}` |" in text
    assert "torch 2." in text
    shares = [float(share) for share in re.findall(r"\| ([\d.]+)% \|", text)]
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))
    assert (folder / "training_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_code_it_shows_works(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    answers: list[Any] = []
    exec(code.group(1).replace('model="tiny-model"', f"model={str(folder)!r}"), {"print": answers.append})
    tasks = {task["name"] for task in json.loads((folder / "config.json").read_text(encoding="utf-8"))["tasks"]}
    assert answers[0].keys() == tasks


@pytest.mark.parametrize("card", [{"licence": "mit"}, {"license": 3}, {"language": []}, ["en"]])
def test_a_wrong_card_is_refused(tmp_path: Path, card: object) -> None:
    recipe = {"encoder": "e", "datasets": {"d": {"train": "d.jsonl", "text": "text"}}, "card": card,
              "tasks": [{"name": "t", "type": "regression", "dataset": "d", "label": "y"}]}  # fmt: skip
    with pytest.raises(RecipeError, match=r"card|licence"):
        parse_recipe(recipe, base=tmp_path)


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    assert not draw_curve([{"step": 1, "epoch": 1.0}], tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())
