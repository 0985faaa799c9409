"""Tasks added, removed, renamed, given labels and merged: what was not named stays as it was, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build, load, tiny_folder, tiny_recipe  # noqa: F401 (fixtures)
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.model.lora import add_lora
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.surgery import add_labels, merge
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.trainer import MultiTaskTrainer

NEW = {
    "sequence_classification": TaskSpec(name="new", type="sequence_classification", labels=("x", "y"), pooling="cls"),
    "multi_label_classification": TaskSpec(name="new", type="multi_label_classification", labels=("x", "y", "z")),
    "token_classification": TaskSpec(name="new", type="token_classification", labels=("O", "B-x", "I-x")),
    "regression": TaskSpec(name="new", type="regression", pooling="attention"),
}
MORE_LABELS = {"topic": ["music", "law"], "slots": ["B-day", "I-day"], "mood": ["tired"]}


@pytest.fixture
def model(tiny_model: MultiTaskModel) -> MultiTaskModel:
    """Tasks `topic`, `slots`, `mood` and `stars`, all of whose weights differ from where they began."""
    generator = torch.Generator().manual_seed(1)
    for parameter in tiny_model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return tiny_model


def logits_of(model: MultiTaskModel) -> dict[str, Tensor]:
    ids = torch.randint(4, 40, (5, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < torch.tensor([9, 3, 7, 1, 5])[:, None]).long()
    with torch.no_grad():
        logits = model(input_ids=ids * mask, attention_mask=mask).logits
    assert logits is not None
    return logits


def state_of(model: MultiTaskModel) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    return [name for name, value in before.items() if not torch.equal(after[name], value)]


def without(values: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
    """Leave out a task, or the weights that belong to it."""
    return {name: value for name, value in values.items() if task not in name.split(".")}


def assert_in_step(model: MultiTaskModel, folder: Path) -> None:
    """Check that every part tells of the same tasks, and that they are still told after saving and loading."""
    model.save_pretrained(folder)
    loaded, info = MultiTaskModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for each in (model, loaded):
        names = [spec.name for spec in each.specs]
        assert each.config.task_specs == each.specs == model.specs
        assert list(each.heads) == list(logits_of(each)) == names
        assert [each.head(name).spec for name in names] == list(each.specs)
        assert [each.head(name).output.out_features for name in names] == [spec.num_labels for spec in each.specs]
        kinds = {spec.name: spec.pooling or "mean" for spec in each.specs if each.head(spec.name).pooled}
        assert each.poolings == kinds
        assert list(each.attention_poolings) == [name for name, kind in kinds.items() if kind == "attention"]
    assert changed(model.state_dict(), loaded.state_dict()) == []
    assert changed(logits_of(model), logits_of(loaded)) == []


# ---------------------------------------------------------------------- one task more, one less


@pytest.mark.parametrize("task_type", sorted(NEW))
def test_a_new_task_leaves_the_others_as_they_are(task_type: str, model: MultiTaskModel, tmp_path: Path) -> None:
    weights, logits, specs = state_of(model), logits_of(model), model.specs
    model.add_task(NEW[task_type])
    assert model.specs == (*specs, NEW[task_type])
    assert changed(weights, model.state_dict()) == []
    assert changed(logits, logits_of(model)) == []
    assert_in_step(model, tmp_path)


def test_a_gate_changes_how_the_encoder_attends_only_while_it_is_there(model: MultiTaskModel) -> None:
    logits, before = logits_of(model), model.encoder.config._attn_implementation
    assert before == "sdpa"
    model.add_task(TaskSpec(name="gated", type="regression", pooling="attention", attention_gate=True))
    assert model.encoder.config._attn_implementation == "eager"
    model = copy.deepcopy(model)
    model.remove_task("gated")
    assert model.encoder.config._attn_implementation == before
    assert changed(logits, logits_of(model)) == []


@pytest.mark.parametrize("task_type", sorted(NEW))
def test_a_new_head_is_the_one_that_the_seed_gives_a_new_model(
    task_type: str, model: MultiTaskModel, tiny_encoder_config: BertConfig, tmp_path: Path
) -> None:
    BertModel(tiny_encoder_config).save_pretrained(tmp_path)
    for seed in (0, 5):
        grown = copy.deepcopy(model)
        state = torch.random.get_rng_state()
        grown.add_task(NEW[task_type].to_dict(), seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        made = MultiTaskModel.from_encoder(tmp_path, [NEW[task_type]], seed=seed)
        expected = {name: value for name, value in made.state_dict().items() if not name.startswith("encoder.")}
        assert changed(expected, grown.state_dict()) == []
    other = MultiTaskModel.from_encoder(tmp_path, [NEW[task_type]], seed=6)
    assert not torch.equal(other.head("new").output.weight, grown.head("new").output.weight)


def test_a_new_head_takes_the_place_and_precision_of_the_model(model: MultiTaskModel) -> None:
    for mode in (True, False):
        grown = copy.deepcopy(model).to(torch.bfloat16).train(mode)
        grown.add_task(NEW["regression"])
        grown.add_labels("topic", ["music"])
        for part in (grown.head("new"), grown.attention_poolings["new"], grown.head("topic")):
            assert {weight.dtype for weight in part.parameters()} == {torch.bfloat16}
            assert part.training is mode


def test_an_encoder_with_a_vocabulary_of_another_size_is_not_drawn_anew(model: MultiTaskModel) -> None:
    model.resize_token_embeddings(48, mean_resizing=False)
    weights = state_of(model)
    model.add_task(NEW["regression"])
    assert changed(weights, model.state_dict()) == []


def test_adapters_on_the_encoder_stay_as_they_are(model: MultiTaskModel, tmp_path: Path) -> None:
    add_lora(model, {"r": 2, "init_lora_weights": False})
    weights, logits = state_of(model), logits_of(model)
    model.add_task(NEW["regression"])
    model.rename_task("topic", "other")
    model.remove_task("other")
    assert changed(without(weights, "topic"), model.state_dict()) == []
    assert changed(without(logits, "topic"), logits_of(model)) == []
    assert_in_step(model, tmp_path)


@pytest.mark.parametrize("task", ["topic", "slots", "mood", "stars"])
def test_a_removed_task_leaves_the_others_as_they_are(task: str, model: MultiTaskModel, tmp_path: Path) -> None:
    weights, logits, specs = state_of(model), logits_of(model), model.specs
    model.remove_task(task)
    assert model.specs == tuple(spec for spec in specs if spec.name != task)
    assert model.state_dict().keys() == without(weights, task).keys()
    assert changed(without(weights, task), model.state_dict()) == []
    assert changed(without(logits, task), logits_of(model)) == []
    assert_in_step(model, tmp_path)


@pytest.mark.parametrize("task", ["topic", "slots", "mood", "stars"])
def test_a_renamed_task_keeps_its_head_and_its_place(task: str, model: MultiTaskModel, tmp_path: Path) -> None:
    def rename(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            ".".join("other" if part == task else part for part in name.split(".")): v for name, v in values.items()
        }

    weights, logits, specs = state_of(model), logits_of(model), model.specs
    model.rename_task(task, "other")
    assert model.specs == tuple(replace(spec, name="other") if spec.name == task else spec for spec in specs)
    assert list(model.state_dict()) == list(rename(weights))
    assert changed(rename(weights), model.state_dict()) == []
    assert changed(rename(logits), logits_of(model)) == []
    assert_in_step(model, tmp_path)


def test_changes_after_each_other_come_to_the_model_one_began_with(model: MultiTaskModel) -> None:
    weights, specs = state_of(model), model.specs
    model.rename_task("topic", "topic")
    model.add_task(NEW["regression"])
    model.rename_task("new", "newer")
    model.remove_task("newer")
    assert model.specs == specs
    assert list(model.state_dict()) == list(weights)
    assert changed(weights, model.state_dict()) == []


# ---------------------------------------------------------------------- labels


@pytest.mark.parametrize("task", sorted(MORE_LABELS))
def test_new_labels_leave_the_old_ones_as_they_are(task: str, model: MultiTaskModel, tmp_path: Path) -> None:
    weights, logits, specs = state_of(model), logits_of(model), {spec.name: spec for spec in model.specs}
    old = specs[task].num_labels
    model.add_labels(task, MORE_LABELS[task], seed=3)
    grown = {spec.name: spec for spec in model.specs}
    assert list(grown) == list(specs)
    assert grown.pop(task) == replace(specs.pop(task), labels=(*_labels(task), *MORE_LABELS[task]))
    assert grown == specs
    after = model.state_dict()
    assert changed(without(weights, task), after) == []
    for part in ("weight", "bias"):
        name = f"heads.{task}.output.{part}"
        assert torch.equal(after[name][:old], weights[name])
    assert changed(without(logits, task), logits_of(model)) == []
    # A product with more columns may be summed in another order.
    torch.testing.assert_close(logits_of(model)[task][..., :old], logits[task], rtol=1e-6, atol=1e-6)
    assert_in_step(model, tmp_path)


def _labels(task: str) -> tuple[str, ...]:
    return {
        "topic": ("world", "sport", "art"),
        "slots": ("O", "B-city", "I-city"),
        "mood": ("glad", "sad", "cross", "calm"),
    }[task]


def test_new_labels_are_drawn_by_the_seed_as_other_weights_are(model: MultiTaskModel) -> None:
    def rows(seed: int, count: int = 200) -> Tensor:
        grown = copy.deepcopy(model)
        grown.add_labels("topic", [f"label {index}" for index in range(count)], seed=seed)
        assert not grown.head("topic").output.bias[3:].any()
        return grown.head("topic").output.weight[3:].detach()

    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1), rows(2))
    assert rows(1).std().item() == pytest.approx(0.02, rel=0.1)  # the encoder's initializer_range


def test_a_learned_pooling_stays_when_labels_are_added(model: MultiTaskModel) -> None:
    model.add_task(TaskSpec(name="new", type="sequence_classification", labels=("x", "y"), pooling="attention"))
    query = torch.nn.init.normal_(model.attention_poolings["new"].query.data)
    model.add_labels("new", ["z"])
    assert torch.equal(model.attention_poolings["new"].query, query)


def test_class_weights_grow_with_the_labels(model: MultiTaskModel) -> None:
    weighted = TaskSpec(
        name="new", type="sequence_classification", labels=("x", "y"), class_weights=(1.0, 2.0), label_smoothing=0.1
    )
    model.add_task(weighted)
    model.add_labels("new", ["z"], class_weights=[3.0])
    grown = replace(weighted, labels=("x", "y", "z"), class_weights=(1.0, 2.0, 3.0))
    assert model.specs[-1] == grown
    fresh = copy.deepcopy(model)
    fresh.remove_task("new")
    fresh.add_task(grown)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, -100, 0])
    assert torch.equal(model.head("new").loss(logits, labels), fresh.head("new").loss(logits, labels))


def test_a_head_that_was_frozen_stays_frozen_when_labels_are_added(model: MultiTaskModel) -> None:
    model.head("topic").requires_grad_(False)
    model.add_labels("topic", ["music"])
    model.add_labels("mood", ["tired"])
    assert not any(weight.requires_grad for weight in model.head("topic").parameters())
    assert all(weight.requires_grad for weight in model.head("mood").parameters())


# ---------------------------------------------------------------------- errors

WRONG: dict[str, tuple[Callable[[MultiTaskModel], Any], str]] = {
    "add a task that is there": (
        lambda model: model.add_task(replace(NEW["regression"], name="topic")),
        "the model has a task 'topic' already; choose another name, or remove that task first",
    ),
    "add a task without labels": (
        lambda model: model.add_task(TaskSpec(name="new", type="sequence_classification")),
        "task 'new': there is no label, sequence_classification needs at least 2",
    ),
    "add a task of an unknown kind": (
        lambda model: model.add_task({"name": "new", "type": "telling"}),
        "'telling' is not a task type",
    ),
    "remove an unknown task": (
        lambda model: model.remove_task("new"),
        "the model has no task 'new'; choose from 'topic', 'slots', 'mood', 'stars'",
    ),
    "rename an unknown task": (lambda model: model.rename_task("new", "other"), "the model has no task 'new'"),
    "rename to a task that is there": (
        lambda model: model.rename_task("topic", "mood"),
        "the model has a task 'mood' already",
    ),
    "rename to a name that is not allowed": (
        lambda model: model.rename_task("topic", "to pic"),
        "name is 'to pic'; use letters, digits",
    ),
    "add labels to an unknown task": (lambda model: model.add_labels("new", ["x"]), "the model has no task 'new'"),
    "add a label that is there": (
        lambda model: model.add_labels("topic", ["music", "art"]),
        "task 'topic': the label 'art' is there already; give new labels only",
    ),
    "add a label twice": (
        lambda model: model.add_labels("topic", ["music", "music"]),
        "label 'music' stands twice in labels",
    ),
    "add no label": (lambda model: model.add_labels("topic", []), "labels is []; give a list of new labels"),
    "add letters": (lambda model: model.add_labels("topic", "music"), "labels is 'music'; give a list of new labels"),
    "add labels to a number": (
        lambda model: model.add_labels("stars", ["x"]),
        "task 'stars': regression has no labels; add a task of another type",
    ),
    "add a plain tag to span tags": (
        lambda model: model.add_labels("slots", ["NOUN"]),
        "task 'slots': with ['NOUN'] the task would be scored as tags, not as spans",
    ),
    "add class weights where there are none": (
        lambda model: model.add_labels("topic", ["music"], class_weights=[1.0]),
        "task 'topic': the task has no class_weights; leave class_weights out",
    ),
    "add too few labels for the class weights": (
        lambda model: (
            model.add_task(TaskSpec(name="w", type="sequence_classification", labels=("x", "y"), class_weights=(1, 2))),
            add_labels(model, "w", ["z", "a"], class_weights=[1.0]),
        ),
        "3 class_weights for 4 labels",
    ),
    "merge one": (lambda model: merge([model]), "models holds 1; give at least two"),
    "merge tasks of one name": (
        lambda model: merge([model, model]),
        "model 2 has a task 'topic', and so has one before it; call rename_task first",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_says_what_is_wrong_and_changes_nothing(case: str, model: MultiTaskModel) -> None:
    act, message = WRONG[case]
    weights, specs = state_of(model), model.specs
    with pytest.raises(SpecError) as error:
        act(model)
    assert message in str(error.value)
    assert error.value.mend
    assert model.specs[: len(specs)] == specs
    assert changed(weights, model.state_dict()) == []
    assert [model.head(spec.name).spec for spec in model.specs] == list(model.specs)


def test_class_weights_that_are_missing_are_an_error(model: MultiTaskModel) -> None:
    model.add_task(TaskSpec(name="w", type="sequence_classification", labels=("x", "y"), class_weights=(1.0, 2.0)))
    with pytest.raises(SpecError, match="the task has class_weights; give class_weights for the new labels"):
        model.add_labels("w", ["z"])


def test_the_last_task_cannot_be_removed(model: MultiTaskModel) -> None:
    for task in ("topic", "slots", "mood"):
        model.remove_task(task)
    with pytest.raises(SpecError, match="'stars' is the model's only task; add another one first"):
        model.remove_task("stars")
    assert [spec.name for spec in model.specs] == ["stars"]


# ---------------------------------------------------------------------- merge


def two_models(model: MultiTaskModel) -> list[MultiTaskModel]:
    """Make two models of other tasks and head weights, and of one encoder."""
    second = copy.deepcopy(model)
    for task in ("topic", "slots", "stars", "mood"):
        second.rename_task(task, f"{task}2")
    for modules in (second.heads, second.attention_poolings):
        for parameter in modules.parameters():
            parameter.data *= 2
    second.add_labels("topic2", ["music"])
    return [model, second]


def test_merged_heads_answer_as_in_their_own_models(model: MultiTaskModel, tmp_path: Path) -> None:
    models = two_models(model)
    states = [state_of(each) for each in models]
    merged = merge(models)
    expected = {task: values for each in models for task, values in logits_of(each).items()}
    assert list(logits_of(merged)) == list(expected)
    assert changed(expected, logits_of(merged)) == []
    assert merged.specs == (*models[0].specs, *models[1].specs)
    assert_in_step(merged, tmp_path)
    for parameter in merged.parameters():
        parameter.data.zero_()
    for each, state in zip(models, states, strict=True):
        assert changed(state, each.state_dict()) == []


def test_models_merged_from_folders_answer_as_in_their_own(model: MultiTaskModel, tmp_path: Path) -> None:
    models = two_models(model)
    models.append(copy.deepcopy(model))
    for task in ("topic", "slots", "mood"):
        models[2].remove_task(task)
    models[2].rename_task("stars", "price")
    for place, each in enumerate(models):
        each.save_pretrained(tmp_path / str(place))
    loaded = [MultiTaskModel.from_pretrained(tmp_path / str(place)) for place in range(3)]
    expected = {task: values for each in models for task, values in logits_of(each).items()}
    assert len(expected) == 9
    assert changed(expected, logits_of(merge(loaded))) == []


def other_encoder(model: MultiTaskModel, **changes: Any) -> MultiTaskModel:
    config = copy.deepcopy(model.config.get_text_config())
    for name, value in changes.items():
        setattr(config, name, value)
    return MultiTaskModel(MultiTaskConfig(encoder_config=config, tasks=[NEW["regression"]]))


def one_bit(model: MultiTaskModel) -> MultiTaskModel:
    other = two_models(model)[1]
    other.encoder.get_parameter("encoder.layer.1.output.dense.bias").data[0] += 1e-6
    return other


DIFFERENT: dict[str, tuple[Callable[[MultiTaskModel], MultiTaskModel], str]] = {
    "one bit": (
        one_bit,
        "model 2: 1 weights of its encoder are not the first model's, 'encoder.layer.1.output.dense.bias' among them",
    ),
    "precision": (lambda model: two_models(model)[1].to(torch.bfloat16), "weights of its encoder are not"),
    "other weights": (lambda model: other_encoder(model), "weights of its encoder are not the first model's"),
    "activation": (
        lambda model: other_encoder(model, hidden_act="relu"),
        "model 2: its encoder's hidden_act is 'relu', the first model's 'gelu'",
    ),
    "depth": (lambda model: other_encoder(model, num_hidden_layers=1), "its encoder's num_hidden_layers is 1"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_models_of_different_encoders_are_not_merged(case: str, model: MultiTaskModel) -> None:
    make, message = DIFFERENT[case]
    with pytest.raises(ModelError) as error:
        merge([model, make(model)])
    assert message in str(error.value)
    assert "trained on the same encoder, frozen" in str(error.value)


# ---------------------------------------------------------------------- training on


def trained_on(folder: Path, model: MultiTaskModel, data: RecipeData) -> MultiTaskModel:
    """Train a model with its encoder frozen, save it with its tokenizer, and load it."""
    arguments = MultiTaskTrainingArguments(
        output_dir=str(folder), max_steps=4, learning_rate=1e-2, weight_decay=0.1, disable_tqdm=True, precision="fp32",
        per_device_train_batch_size=8, freeze_encoder=True, eval_strategy="steps", eval_steps=2, save_strategy="no",
        load_best_model_at_end=False,
    )  # fmt: skip
    trainer = MultiTaskTrainer(
        model, arguments, train_dataset=data.train, eval_dataset=data.validation, processing_class=data.tokenizer
    )
    trainer.train()
    trainer.save_model()
    return MultiTaskModel.from_pretrained(folder)


def test_a_new_head_is_trained_on_a_frozen_encoder_and_nothing_else_moves(
    tiny_folder: Path,  # noqa: F811
    tiny_recipe: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    def recipe_of(*tasks: str) -> dict[str, Any]:
        return {**tiny_recipe, "tasks": [task for task in tiny_recipe["tasks"] if task["name"] in tasks]}

    data = load(tiny_folder, recipe_of("sentiment", "intent", "slots"))
    first = trained_on(tmp_path / "first", build(data), data)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")

    runs: list[MultiTaskModel] = []
    for task in ("moods", "similarity"):
        grown, more = copy.deepcopy(first), load(tiny_folder, recipe_of(task), tokenizer=tokenizer)
        grown.add_task(more.tasks[0])
        before = state_of(grown)
        after = trained_on(tmp_path / task, grown, more)
        assert changed(before, after.state_dict()) == [f"heads.{task}.output.weight", f"heads.{task}.output.bias"]
        runs.append(after.eval())

    # Each run answers the first tasks to the bit as before, and the heads of both come to one model.
    expected = logits_of(runs[0]) | logits_of(runs[1])
    for task in ("sentiment", "intent", "slots"):
        assert torch.equal(expected[task], logits_of(first)[task])
        runs[1].remove_task(task)
    merged = merge(runs)
    assert list(logits_of(merged)) == ["sentiment", "intent", "slots", "moods", "similarity"]
    assert changed(expected, logits_of(merged)) == []
