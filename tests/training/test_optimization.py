"""What the optimizer trains and how fast: learning rates by depth, frozen parts, adapters in a whole training."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import every_family, new_model
from tiny import build, load, write_questions, write_quiz
from torch import Tensor
from transformers import TrainerCallback

from hf_mtl.data.preparation import RecipeData, load_recipe
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.errors import ModelError, RecipeError, SpecError
from hf_mtl.evaluation.prediction import collator_for
from hf_mtl.evaluation.scoring import score
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import HEADS
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.optimization import head_parameters, prepare_model, set_learning_rates
from hf_mtl.training.recipe_arguments import training_arguments
from hf_mtl.training.run import run_training
from hf_mtl.training.trainer import MultiTaskTrainer

Make = Callable[..., MultiTaskTrainer]

ONLY_TRAIN: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
EVERY_STEP: dict[str, Any] = {
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 3,
    "save_total_limit": None,
    "load_best_model_at_end": False,
}


def arguments(folder: Path, **values: Any) -> MultiTaskTrainingArguments:
    return MultiTaskTrainingArguments(str(folder), precision="fp32", **{"learning_rate": 1e-3, **values})


def weights(model: MultiTaskModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: MultiTaskModel, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.fixture(scope="module")
def pooled_data(tiny_folder: Path, tiny_recipe: dict[str, Any]) -> RecipeData:
    """The tiny data, where one task pools by attention and so has more parameters of its own."""
    tasks = [{**task, "pooling": "attention"} if task["name"] == "moods" else task for task in tiny_recipe["tasks"]]
    grades = {"dataset": "films", "label": "label", "labels": ["neg", "pos"]}
    tasks.append({"name": "grade", "type": "ordinal_regression", **grades})
    tasks.append({"name": "chain", "type": "crf_token_classification", "dataset": "orders", "label": "slots"})
    tasks.append({"name": "answer", "type": "span_extraction", "dataset": "questions", "label": "answers"})
    tasks.append({"name": "mlm", "type": "masked_language_modeling", "dataset": "texts"})
    tasks.append({"name": "quiz", "type": "multiple_choice", "dataset": "quiz", "label": "right"})
    datasets = {**tiny_recipe["datasets"], "questions": write_questions(tiny_folder), "quiz": write_quiz(tiny_folder)}
    datasets["texts"] = tiny_recipe["datasets"]["films"]
    encoder = str(tiny_folder / "masked")
    return load(tiny_folder, {**tiny_recipe, "encoder": encoder, "tasks": tasks, "datasets": datasets})


# ---------------------------------------------------------------------- learning rates


def rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    return {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}


@pytest.mark.parametrize("decay", [1.0, 0.5])
@every_family
def test_lower_layers_learn_slower(model_type: str, decay: float, tmp_path: Path) -> None:
    model = new_model(model_type)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    set_learning_rates(optimizer, model, arguments(tmp_path, layer_decay=decay, head_learning_rate=3e-3))
    found, parts = rates(optimizer), model.adapter.parts(model.encoder)
    layers = len(parts.layers)
    wanted = {id(parameter): 3e-3 for spec in model.specs for parameter in head_parameters(model, spec.name)}
    wanted |= {id(parameter): 1e-3 for parameter in parts.rest}
    wanted |= {id(parameter): 1e-3 * decay**layers for parameter in parts.embeddings}
    for depth, parameters in enumerate(parts.layers, start=1):
        wanted |= {id(parameter): 1e-3 * decay ** (layers - depth) for parameter in parameters}
    assert found == pytest.approx(wanted, rel=1e-12)
    assert len(wanted) == len(list(model.parameters()))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(wanted)


def test_groups_are_transformers_own_with_heads_apart(trainer_for: Make) -> None:
    """And layer decay divides them further, biases and norms still without weight decay."""
    named = dict(trainer_for().multi_task_model.named_parameters())
    bare = {name for name in named if re.search(r"bias|LayerNorm", name)}
    heads = {name for name in named if not name.startswith("encoder.")}
    assert heads & bare
    assert heads - bare

    def groups(**values: Any) -> list[tuple[float, float, set[str]]]:
        trainer = trainer_for(learning_rate=1e-3, weight_decay=0.1, **values)
        optimizer = trainer.create_optimizer()
        assert optimizer.defaults["fused"]
        names = {id(parameter): name for name, parameter in trainer.multi_task_model.named_parameters()}
        return [(g["lr"], g["weight_decay"], {names[id(p)] for p in g["params"]}) for g in optimizer.param_groups]

    encoder = set(named) - heads
    assert groups() == [
        (1e-3, 0.1, encoder - bare),
        (1e-3, 0.0, encoder & bare),
        (1e-2, 0.1, heads - bare),
        (1e-2, 0.0, heads & bare),
    ]
    below = {name for name in named if "embeddings" in name}
    first = {name for name in named if "layer.0." in name}
    top = encoder - below - first
    assert groups(layer_decay=0.5) == [
        (1e-3, 0.1, top - bare),
        (1e-3, 0.0, top & bare),
        (1e-3 / 4, 0.1, below - bare),
        (1e-3 / 4, 0.0, below & bare),
        (1e-3 / 2, 0.1, first - bare),
        (1e-3 / 2, 0.0, first & bare),
        (1e-2, 0.1, heads - bare),
        (1e-2, 0.0, heads & bare),
    ]


def test_the_logged_learning_rate_is_the_one_given(trainer_for: Make) -> None:
    options = {"lr_scheduler_type": "constant", "warmup_steps": 0, "logging_steps": 1, "max_steps": 1, **ONLY_TRAIN}
    trainer = trainer_for(layer_decay=0.5, learning_rate=1e-3, **options)
    trainer.train()
    assert trainer.state.log_history[-2]["learning_rate"] == 1e-3


# ---------------------------------------------------------------------- what is trained


def test_every_trainable_parameter_changes_in_an_epoch(pooled_data: RecipeData, trainer_for: Make) -> None:
    trainer = trainer_for(data=pooled_data, num_train_epochs=1, weight_decay=0.0, **ONLY_TRAIN)
    model = trainer.multi_task_model
    assert {spec.type for spec in model.specs} == set(HEADS.names())
    before = weights(model)
    trainer.train()
    assert changed(model, before) == {name for name, _ in model.named_parameters()} == set(before)


@pytest.mark.mostly_slow(fast=4)
@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({"freeze_embeddings": True}, r"encoder\.embeddings\."),
        ({"freeze_layers": 1}, r"encoder\.embeddings\.|encoder\.encoder\.layer\.0\."),
        ({"freeze_layers": 2}, r"encoder\."),
        ({"freeze_encoder": True}, r"encoder\."),
        ({"freeze_heads": ["slots", "moods"]}, r"(heads|attention_poolings)\.(slots|moods)\."),
        ({"freeze_heads": ["slots"], "freeze_layers": 1, "layer_decay": 0.5}, r"heads\.slots|.*embed|.*layer\.0\."),
        (
            {"freeze_heads": ["intent"], "activation_checkpointing": True, "freeze_layers": 1},
            r"heads\.int|.*embed|.*\.0\.",
        ),
        ({"peft": {"r": 2}}, r"encoder\.((?!lora_).)*$"),
        ({"peft": {"r": 2}, "layer_decay": 0.5, "activation_checkpointing": True}, r"encoder\.((?!lora_).)*$"),
    ],
    ids=str,
)
def test_what_is_frozen_stays_and_all_else_is_trained(
    options: dict[str, Any], frozen: str, pooled_data: RecipeData, trainer_for: Make
) -> None:
    trainer = trainer_for(data=pooled_data, num_train_epochs=1, **ONLY_TRAIN, **options)
    model = trainer.multi_task_model
    before = weights(model)
    stays = {name for name in before if re.match(frozen, name)}
    assert stays
    trainer.train()
    assert changed(model, before) == set(before) - stays
    assert not any(parameter.grad is not None for name, parameter in model.named_parameters() if name in stays)


def test_losses_of_frozen_heads_train_the_encoder(pooled_data: RecipeData, trainer_for: Make) -> None:
    tasks = [spec.name for spec in pooled_data.tasks]
    trainer = trainer_for(data=pooled_data, max_steps=2, freeze_heads=tasks, **ONLY_TRAIN)
    before = weights(trainer.multi_task_model)
    trainer.train()
    assert changed(trainer.multi_task_model, before) == {name for name in before if name.startswith("encoder.")}


class Watch(TrainerCallback):
    """Notes the encoder's mode and whether a graph goes through it, while training."""

    def __init__(self) -> None:
        self.seen: set[tuple[bool, bool]] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].encoder.register_forward_hook(
            lambda module, _, output: self.seen.add((module.training, output.last_hidden_state.requires_grad))
        )


@pytest.mark.parametrize(
    ("options", "seen"), [({"freeze_encoder": True}, (False, False)), ({"freeze_layers": 1}, (True, True))]
)
def test_a_frozen_encoder_gives_features_without_dropout_or_graph(
    options: dict[str, Any], seen: tuple[bool, bool], trainer_for: Make
) -> None:
    watch = Watch()
    trainer = trainer_for(max_steps=2, callbacks=[watch], **options, **ONLY_TRAIN)
    trainer.train()
    assert watch.seen == {seen}
    model = trainer.multi_task_model
    assert all(head.training for head in model.heads.values())
    model.eval()
    assert not any(module.training for module in model.modules())


@pytest.mark.mostly_slow(fast=1)
@pytest.mark.parametrize(
    "options",
    [
        {"layer_decay": 0.5, "freeze_embeddings": True, "freeze_heads": ["slots"]},
        {"freeze_encoder": True},
        {"peft": {"r": 2, "lora_dropout": 0.1}},
    ],
    ids=str,
)
def test_resumed_training_gives_the_same_weights_to_the_bit(options: dict[str, Any], trainer_for: Make) -> None:
    options = {"max_steps": 6, **EVERY_STEP, **options}
    whole = trainer_for(**options)
    whole.train()
    resumed = trainer_for(model=build_with(whole, seed=1), **options)
    resumed.train(resume_from_checkpoint=str(Path(str(whole.args.output_dir)) / "checkpoint-3"))
    assert changed(resumed.multi_task_model, weights(whole.multi_task_model)) == set()


def build_with(trainer: MultiTaskTrainer, *, seed: int) -> MultiTaskModel:
    """Return a model of the same tasks with other heads, which a checkpoint must replace."""
    model = MultiTaskModel(trainer.multi_task_model.config)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_()
    return model


# ---------------------------------------------------------------------- adapters in a whole run


def test_a_run_with_adapters_leaves_an_ordinary_model_and_the_adapters_beside_it(
    tiny_folder: Path, tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"peft": {"r": 2}, "num_train_epochs": 2, "precision": "fp32", "disable_tqdm": True}
    recipe = parse_recipe({**tiny_recipe, "training": training}, base=tiny_folder)
    output = tmp_path / "run"
    run = run_training(recipe, output)
    best = MultiTaskModel.from_pretrained(best_checkpoint(output))
    assert best.config.peft == {"r": 2}
    base = MultiTaskModel.from_encoder(recipe.encoder_path, best.specs, seed=0).encoder.state_dict()
    for name, weight in best.encoder.state_dict().items():
        if "lora_" not in name:  # a checkpoint keeps the encoder as it was
            assert torch.equal(weight, base[name.replace(".base_layer", "")]), name
    assert {path.name for path in (output / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert not (output / ".model.tmp").exists()

    monkeypatch.setitem(sys.modules, "peft", None)
    model = MultiTaskModel.from_pretrained(output)
    assert model.specs == best.specs
    assert "lora_A" not in " ".join(model.state_dict())
    data = load_recipe(recipe)
    inputs = collator_for(model, data.tokenizer)([data.validation["films"].features[row] for row in range(4)])
    inputs.pop("labels"), inputs.pop("rows")
    with torch.no_grad():
        found, wanted = model.eval()(**inputs).logits, best.eval()(**inputs).logits
    for task, logits in wanted.items():
        torch.testing.assert_close(found[task], logits, rtol=0, atol=1e-5)
    average = score(model, data.tokenizer, data.validation).average()
    assert run.results["validation"]["average"] == pytest.approx(average, abs=1e-12)

    monkeypatch.undo()
    assert run_training(recipe, output, resume=True).was_finished
    plain = parse_recipe({**tiny_recipe, "training": {**training, "peft": None, "max_steps": 1}}, base=tiny_folder)
    run_training(plain, output, overwrite=True)
    assert not (output / "adapter").exists()


def best_checkpoint(folder: Path) -> Path:
    states = [json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("checkpoint-*/trainer_state.json")]
    return Path(max(states, key=lambda state: state["global_step"])["best_model_checkpoint"])


def test_a_trainer_saves_an_ordinary_model_and_goes_on(trainer_for: Make, tmp_path: Path) -> None:
    trainer = trainer_for(max_steps=4, peft={"r": 2}, **ONLY_TRAIN)
    trainer.train()
    before = weights(trainer.multi_task_model)
    metrics = trainer.evaluate()
    trainer.save_model(str(tmp_path / "model"))
    trainer.save_model(str(tmp_path / "model"))  # once more over itself
    assert changed(trainer.multi_task_model, before) == set()
    saved = MultiTaskModel.from_pretrained(tmp_path / "model")
    assert saved.config.peft is None
    splits: Any = trainer.eval_dataset
    assert trainer.score(splits, model=saved).average() == pytest.approx(metrics["eval_average"], abs=1e-12)
    trainer.train()
    assert "encoder.embeddings.word_embeddings.weight" not in changed(trainer.multi_task_model, before)


# ---------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"freeze_layers": 3},
            "freeze_layers is 3, and the encoder has 2 layers with weights of their own; give fewer",
        ),
        ({"freeze_heads": ["slot"]}, "freeze_heads has 'slot'; did you mean 'slots'"),
        (
            {"freeze_encoder": True, "freeze_heads": ["slots"]},
            "freeze_heads has 'slots', whose training rows would train nothing: the encoder is frozen, too; leave its",
        ),
    ],
)
def test_what_cannot_be_frozen_is_refused_before_training(
    options: dict[str, Any], message: str, trainer_for: Make
) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        trainer_for(**options)


def test_freezing_everything_is_refused(tiny_data: RecipeData, tmp_path: Path) -> None:
    tasks = [spec.name for spec in tiny_data.tasks]
    with pytest.raises(SpecError, match="every parameter is frozen; freeze less"):
        prepare_model(build(tiny_data), arguments(tmp_path, freeze_encoder=True, freeze_heads=tasks))


def test_a_head_may_be_frozen_with_the_encoder_where_it_has_no_training_rows(
    tiny_data: RecipeData, trainer_for: Make
) -> None:
    data = RecipeData(**{**vars(tiny_data), "train": {"films": tiny_data.train["films"]}})
    trainer = trainer_for(data=data, max_steps=2, freeze_encoder=True, freeze_heads=["slots"], **ONLY_TRAIN)
    before = weights(trainer.multi_task_model)
    trainer.train()
    assert changed(trainer.multi_task_model, before) == {"heads.sentiment.output.weight", "heads.sentiment.output.bias"}


def test_shared_layers_are_counted_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="freeze_layers is 2, and the encoder has 1 layers with weights of their own"):
        prepare_model(new_model("albert"), arguments(tmp_path, freeze_layers=2))


def test_layers_that_cannot_be_told_apart_are_refused_before_training(tmp_path: Path) -> None:
    model = new_model("bert")
    model.encoder.encoder.layer = torch.nn.Sequential(*model.encoder.encoder.layer)
    with pytest.raises(ModelError, match="the layers of the architecture 'bert' cannot be told apart"):
        prepare_model(model, arguments(tmp_path, layer_decay=0.9))


def test_adapters_of_another_kind_are_refused(trainer_for: Make) -> None:
    model = trainer_for(peft={"r": 2}).multi_task_model
    assert trainer_for(model=model, peft={"r": 2}).multi_task_model is model
    with pytest.raises(SpecError, match="the model has adapters of"):
        trainer_for(model=model, peft={"r": 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 1.5}, "layer_decay is 1.5; give a number above 0 and at most 1"),
        ({"layer_decay": 0.5, "freeze_encoder": True}, "layer_decay is 0.5, which would have no effect"),
        ({"freeze_heads": "slots"}, "freeze_heads is 'slots'; give a list of tasks"),
        ({"freeze_layers": -1}, "freeze_layers is -1; give a number at least 0"),
        (
            {"peft": {"r": 2}, "freeze_encoder": True},
            "peft is given, and freeze_encoder is true; leave one of them out",
        ),
        ({"peft": {"rank": 2}}, "peft has the option 'rank'; use one of 'r'"),
        ({"peft": "r"}, "peft is 'r'; give a mapping"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        arguments(tmp_path, **options)


def test_a_missing_peft_names_the_extra_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        RecipeError, match=r'training: the package .peft. is not installed; pip install "hf-mtl\[peft\]"$'
    ):
        training_arguments(tmp_path, {"peft": {"r": 2}})
