"""Launchers: every config loads, every way to start is the same program, and FSDP2 trains what one process trains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from tiny import build, write_encoder, write_recipe

from hf_mtl.data.preparation import RecipeData
from hf_mtl.data.yaml import write_yaml
from hf_mtl.errors import SpecError
from hf_mtl.training.sharding import check_asked_for, check_fsdp, choose_units
from hf_mtl.training.trainer import MultiTaskTrainer

TESTS = Path(__file__).parents[1]
SCRIPT = TESTS.parent / "scripts" / "train.py"
CONFIGS = TESTS.parent / "scripts" / "accelerate"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six tasks in batches so small that most heads have no rows in some step of a process; without dropout."""
    folder = tmp_path_factory.mktemp("launching")
    values = write_recipe(folder, write_encoder(folder / "encoder", dropout=0.0), rows={"train": 24, "validation": 8})
    # Adam divides rounding errors of vanishing gradients by their size; plain descent shows the gradients.
    values["training"] = {"num_train_epochs": 2, "learning_rate": 0.005, "optim": "sgd", "precision": "fp32", "seed": 3}
    (folder / "recipe.yaml").write_text(write_yaml(values), encoding="utf-8")
    return folder / "recipe.yaml"


def start(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = f"{TESTS}{os.pathsep}{TESTS.parent}"
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def accelerate_launch(config: Path, *command: object) -> subprocess.CompletedProcess[str]:
    return start("-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file", config, *command)


def train(*command: object, recipe: Path, folder: Path, batch_size: int = 8, **values: object) -> Path:
    options = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in values.items()]
    done = start(*command, recipe, "--output-dir", folder, f"--per-device-train-batch-size={batch_size}", *options)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("path", sorted(CONFIGS.iterdir()), ids=lambda path: path.stem)
def test_every_config_is_one_that_accelerate_launches(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    _, defaults, _ = _validate_launch_command(arguments)
    assert defaults is not None
    chosen = {"MULTI_GPU": arguments.multi_gpu, "FSDP": arguments.use_fsdp, "DEEPSPEED": arguments.use_deepspeed}
    assert [name for name, used in chosen.items() if used] == [config.distributed_type.value]
    assert arguments.num_processes == config.num_processes > 1
    known = vars(arguments).keys()
    for group in ("fsdp_config", "deepspeed_config"):
        assert set(getattr(config, group) or {}) <= known, "accelerate does not know an option"


def test_every_config_says_how_it_is_started() -> None:
    for path in CONFIGS.iterdir():
        assert f"--config_file scripts/accelerate/{path.name} " in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_way_to_start_trains_the_same_weights(recipe: Path, tmp_path: Path) -> None:
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1")
    launch = (*launch, "--mixed_precision", "no", "--dynamo_backend", "no")
    ways: dict[str, tuple[object, ...]] = {
        "hf-mtl": ("-m", "hf_mtl", "train"),
        "script": (*launch, SCRIPT),
        "module": (*launch, "-m", "hf_mtl", "train"),
    }
    for name, way in ways.items():
        train(*way, recipe=recipe, folder=tmp_path / name)
    first, *others = [(tmp_path / name / "model.safetensors").read_bytes() for name in ways]
    assert all(other == first for other in others)


@pytest.mark.slow
def test_the_config_for_the_cpu_starts_two_processes(recipe: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    (recipe.parent / "recipe.json").write_text(json.dumps({k: v for k, v in values.items() if k != "training"}))
    training = {"num_train_epochs": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    job = {"output": str(tmp_path / "run"), "files": str(recipe.parent), "training": training}
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    done = accelerate_launch(
        CONFIGS / "cpu_two_processes.yaml", Path(__file__).with_name("train_job.py"), tmp_path / "job.json"
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))["world_size"] == 2


# ------------------------------------------------------------------ FSDP2


@pytest.fixture(scope="module")
def fsdp_on_cpu(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """What starts `hf-mtl train` with the FSDP2 config as it is, but on two processes of the CPU."""
    config: dict[str, Any] = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text(encoding="utf-8"))
    path = tmp_path_factory.mktemp("config") / "fsdp2.yaml"
    path.write_text(yaml.safe_dump({**config, "use_cpu": True, "num_processes": 2}), encoding="utf-8")
    launcher = ("-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file", path)
    return (*launcher, Path(__file__).with_name("fsdp_on_cpu.py"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2, "layer_decay": 0.5, "max_grad_norm": 0.1},
        {"sampling": "temperature", "balancing": "constant"},
        {"freeze_layers": 1, "freeze_heads": "[moods]"},
    ],
    ids=["plain", "accumulation", "balancing", "freezing"],
)
def test_fsdp2_trains_the_weights_of_one_process(
    recipe: Path, tmp_path: Path, fsdp_on_cpu: tuple[object, ...], options: dict[str, object]
) -> None:
    options = {"num_train_epochs": 1, **options}
    one = train("-m", "hf_mtl", "train", recipe=recipe, folder=tmp_path / "one", batch_size=8, **options)
    two = train(*fsdp_on_cpu, recipe=recipe, folder=tmp_path / "two", batch_size=4, **options)
    ours, theirs = load_file(two / "model.safetensors"), load_file(one / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    scores = [json.loads((run / "train_results.json").read_text(encoding="utf-8"))["validation"] for run in (one, two)]
    assert scores[1]["average"] == pytest.approx(scores[0]["average"], abs=1e-4)


@pytest.mark.slow
def test_fsdp2_resumes_to_the_bit(recipe: Path, tmp_path: Path, fsdp_on_cpu: tuple[object, ...]) -> None:
    options: dict[str, object] = {"optim": "adamw_torch", "batch_size": 4, "load_best_model_at_end": "false"}
    whole = train(*fsdp_on_cpu, recipe=recipe, folder=recipe.parent / "whole", **options)
    broken = recipe.parent / "broken"
    shutil.copytree(whole, broken)
    for name in ("train_results.json", "model.safetensors", "config.json"):
        (broken / name).unlink()
    last = max(broken.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.rmtree(last)
    assert list(broken.glob("checkpoint-*")), "nothing is left to resume from"
    train(*fsdp_on_cpu, recipe=recipe, folder=broken, **options, resume=True)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation": "mgda"}, "aggregation 'mgda' needs whole parameters, and FSDP shards them"),
        ({"head_patience": 1}, "head_patience is 1, which needs whole parameters"),
        ({"peft": '{"r": 4}'}, "peft needs whole parameters"),
    ],
)
def test_what_fsdp2_cannot_do_is_refused_before_training(
    recipe: Path, tmp_path: Path, fsdp_on_cpu: tuple[object, ...], options: dict[str, object], message: str
) -> None:
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    done = start(*fsdp_on_cpu, recipe, "--output-dir", tmp_path / "run", *arguments)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_what_accelerate_would_leave_out_without_a_word_is_refused(
    trainer_for: Callable[..., MultiTaskTrainer], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    trainer = trainer_for()
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(SpecError, match=f"was told to use {name}, which it leaves out on CPUs"):
        check_asked_for(fsdp=trainer.is_fsdp_enabled, deepspeed=trainer.is_deepspeed_enabled)


def test_sharding_that_would_leave_no_model_behind_is_refused() -> None:
    with pytest.raises(SpecError, match="SHARDED_STATE_DICT, and no whole model would be saved"):
        check_fsdp(FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT"))
    check_fsdp(FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT"))


def test_the_encoder_is_sharded_by_layer(tiny_data: RecipeData) -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    choose_units(plugin, build(tiny_data))
    assert plugin.transformer_cls_names_to_wrap == ["BertLayer"]
