"""TaskSpec and MultiTaskConfig: data that survives JSON, refuses what cannot work, and leaks nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from transformers import BertConfig, BertModel, DistilBertConfig

from hf_mtl.configuration import (
    FORMAT_VERSION,
    POOLING_KINDS,
    SCHEMES,
    MultiTaskConfig,
    TaskSpec,
    select_tasks,
)
from hf_mtl.errors import HfMtlError, SpecError
from hf_mtl.registry import HEADS

LETTERS = "abcxyzABC_-019"
LABEL_LETTERS = [*"abcXYZ 0129-_./\"'\\", "é", "中", "🙂", "\n"]


def random_spec(rng: random.Random, name: str | None = None) -> TaskSpec:
    """Make a spec of any type with any options; what the options mean together is the head's to check."""
    if name is None:
        name = rng.choice("abcxyzABC") + "".join(rng.choices(LETTERS, k=rng.randrange(8))) + "0"
    wanted = ["".join(rng.choices(LABEL_LETTERS, k=rng.randrange(1, 6))) for _ in range(rng.randrange(1, 7))]
    labels = rng.choice([None, list(dict.fromkeys(wanted))])
    return TaskSpec(
        name=name,
        type=rng.choice(HEADS.names()),
        labels=labels,
        pooling=rng.choice([None, *POOLING_KINDS]),
        loss_weight=rng.choice([1.0, rng.uniform(1e-3, 10), 2]),
        class_weights=rng.choice([None, [rng.uniform(0, 3) for _ in labels]]) if labels else None,
        label_smoothing=rng.choice([0.0, rng.random()]),
        dropout=rng.choice([None, 0.0, rng.random()]),
        scheme=rng.choice([None, *SCHEMES]),
        max_length=rng.choice([None, 8, rng.randrange(9, 5000)]),
        stride=rng.choice([None, 0, rng.randrange(4)]),
    )


def classification(name: str = "topic", labels: tuple[str, ...] = ("world", "sport"), **options: Any) -> TaskSpec:
    return TaskSpec(name=name, type="sequence_classification", labels=labels, **options)


# ---------------------------------------------------------------------- TaskSpec


@pytest.mark.parametrize("seed", range(200))
def test_spec_is_the_same_after_json(seed: int) -> None:
    spec = random_spec(random.Random(seed))
    values = spec.to_dict()
    again = TaskSpec.from_dict(json.loads(json.dumps(values, sort_keys=True)))
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.labels == spec.labels  # in the same order, too
    assert again.to_dict() == values
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert copy.deepcopy(spec) == spec


def test_dict_of_a_spec_holds_what_differs_from_the_defaults() -> None:
    assert classification().to_dict() == {
        "name": "topic",
        "type": "sequence_classification",
        "labels": ["world", "sport"],
    }


def test_spec_is_frozen() -> None:
    spec = classification()
    for field in dataclasses.fields(TaskSpec):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(spec, field.name, getattr(spec, field.name))
    labels = ["a", "b"]
    spec = classification(labels=labels)  # pyright: ignore[reportArgumentType]
    labels.append("c")
    assert spec.labels == ("a", "b")


@pytest.mark.parametrize(("max_length", "most"), [(8, 3), (9, 4), (64, 31)])
def test_windows_move_on_by_more_than_half_of_their_length(max_length: int, most: int) -> None:
    assert classification(max_length=max_length, stride=most).stride == most
    assert classification(stride=10**4).stride == 10**4  # what it is a part of is not known yet
    with pytest.raises(SpecError) as caught:
        classification(max_length=max_length, stride=most + 1)
    problem = f"stride is {most + 1}, and the windows have {max_length} tokens"
    assert str(caught.value) == f"task 'topic': {problem}; use 0 to {most}"


def test_positions_and_number_of_labels() -> None:
    spec = classification(labels=("b", "a", "c"))
    assert spec.num_labels == 3
    assert spec.label2id == {"b": 0, "a": 1, "c": 2}
    number = TaskSpec(name="score", type="regression")
    assert number.num_labels == 1
    assert number.label2id == {}


def bad(key: str, mend: str, *values: Any) -> list[tuple[str, Any, str, str]]:
    """Make a case for each value: the argument, its value, what the message shows of it, what it says is allowed."""
    return [(key, value, repr(value), mend) for value in values]


NAME = "use letters, digits, '_' and '-', beginning with a letter"
SHARE = "give a number at least 0 and below 1"
BAD_VALUES = [
    *bad("name", NAME, "", "a.b", ".", "1a", "_a", "a b", "a/b", "é", "a\n", None, 3, ["a"], b"a"),
    *bad("name", "choose another name", "average", "keys", "forward", "training"),
    *bad("type", "'sequence_classification'", "", "classification", None, 3, [], "base", "__init__"),
    *bad("labels", "as a list", "ab", b"ab", {"a", "b"}, {"a": 0}, 3),
    *(("labels", ["a", value], repr(value), "as a string") for value in (1, None, True, ["b"])),
    ("labels", ["a", "b", "a"], "'a'", "name each label once"),
    *bad("pooling", "use one of 'cls', 'mean', 'last', 'attention', None", "max", "", "CLS", 1, True, ["cls"]),
    *bad("scheme", "use one of 'IOB2', 'IOBES', None", "BIO", "iob2", "", 1, False),
    *bad("loss_weight", "give a number above 0", 0, 0.0, -1, math.nan, math.inf, -math.inf, "1e-4", None, True, [1.0]),
    *bad("loss_weight", "give a number above 0", 10**400),
    *bad("label_smoothing", SHARE, -0.1, 1, 1.0, 2, math.nan, math.inf, "0.1", None, False),
    *bad("dropout", SHARE, -0.1, 1.0, 2, math.nan, "0.1", True, []),
    *bad("max_length", "give a whole number of tokens, at least 8", 7, 0, -1, 8.0, "8", True, [8]),
    *bad("stride", "give a whole number of tokens, at least 0", -1, 1.0, "1", False, [1]),
    *bad("class_weights", "as a list", "12", 1.0, {0: 1.0}),
    *(
        ("class_weights", [1.0, value], repr(value), "give a number at least 0")
        for value in (-1.0, math.nan, math.inf, "1", None, True)
    ),
    *(("class_weights", [1.0] * count, f"{count} class_weights for 2 labels", "one per label") for count in (1, 3)),
]


@pytest.mark.parametrize(
    ("key", "value", "shown", "mend"), BAD_VALUES, ids=[f"{case[0]}-{index}" for index, case in enumerate(BAD_VALUES)]
)
def test_bad_value_is_refused_with_argument_value_and_mend(key: str, value: Any, shown: str, mend: str) -> None:
    values = {"name": "topic", "type": "sequence_classification", "labels": ["a", "b"], key: value}
    for make in (TaskSpec, lambda **given: TaskSpec.from_dict(given)):
        with pytest.raises(SpecError) as caught:
            make(**values)
        message = str(caught.value)
        assert message.startswith(f"task {values['name']!r}: ")
        assert {"type": "task type", "labels": "label"}.get(key, key) in message
        assert shown in message
        assert mend in message


@pytest.mark.parametrize("name", sorted({*dir(nn.ModuleDict()), *dir(nn.Module), "", "average", "a.b", "."}))
def test_name_that_cannot_name_a_head_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="name"):
        TaskSpec(name=name, type="regression")


@pytest.mark.parametrize("seed", range(20))
def test_name_that_is_accepted_can_name_a_head(seed: int) -> None:
    spec = random_spec(random.Random(seed))
    heads = nn.ModuleDict({spec.name: nn.Linear(1, 1)})
    assert f"{spec.name}.weight" in heads.state_dict()


@pytest.mark.parametrize("key", ["lables", "", "Name", "num_labels", "label2id", 3])
def test_unknown_key_is_refused(key: Any) -> None:
    with pytest.raises(SpecError) as caught:
        TaskSpec.from_dict({"name": "topic", "type": "regression", key: 1, "~": 2})
    message = str(caught.value)
    assert message.startswith("task 'topic': unknown key ")
    assert all(repr(field.name) in message for field in dataclasses.fields(TaskSpec))


@pytest.mark.parametrize("key", ["name", "type"])
def test_missing_key_is_refused(key: str) -> None:
    values = {"name": "topic", "type": "regression"}
    del values[key]
    with pytest.raises(SpecError, match=f"the key {key!r} is missing"):
        TaskSpec.from_dict(values)


@pytest.mark.parametrize("value", ["topic", None, 3, ["name", "type"], [("name", "topic")]])
def test_spec_from_something_else_than_a_mapping_is_refused(value: Any) -> None:
    with pytest.raises(SpecError, match="as a mapping"):
        TaskSpec.from_dict(value)


def test_select_tasks_keeps_the_order_of_the_specs() -> None:
    specs = [classification(name) for name in ("topic", "top", "c")]
    assert [spec.name for spec in select_tasks(specs, ["c", "topic"])] == ["topic", "c"]
    assert select_tasks(specs, None) == tuple(specs)
    assert select_tasks(specs, []) == ()
    # The name of one task may be part of another's.
    assert [spec.name for spec in select_tasks(specs, "topic")] == ["topic"]
    with pytest.raises(SpecError, match="no task 'to'; choose from 'topic', 'top', 'c'"):
        select_tasks(specs, "to")


# ---------------------------------------------------------------------- MultiTaskConfig


def tiny_encoder(**options: Any) -> BertConfig:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertConfig(vocab_size=20, **sizes, **options)


def config_of(*names: str, **options: Any) -> MultiTaskConfig:
    rng = random.Random(0)
    return MultiTaskConfig(encoder_config=tiny_encoder(), tasks=[random_spec(rng, name) for name in names], **options)


def reload(config: MultiTaskConfig, folder: Path) -> MultiTaskConfig:
    config.save_pretrained(folder)
    return MultiTaskConfig.from_pretrained(folder)


@pytest.mark.parametrize("seed", range(20))
def test_config_is_the_same_after_saving(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    names = [f"{letter}_task" for letter in rng.sample("abcdefgh", 5)]
    config = MultiTaskConfig(encoder_config=tiny_encoder(), tasks=[random_spec(rng, name) for name in names])
    again = reload(config, tmp_path)
    assert [spec.name for spec in again.task_specs] == names
    assert again.task_specs == config.task_specs
    assert again.to_dict() == config.to_dict()
    assert isinstance(again.encoder_config, BertConfig)
    assert again.encoder_config.hidden_size == 8
    assert again.format_version == FORMAT_VERSION


def test_order_of_tasks_and_labels_is_kept(tmp_path: Path) -> None:
    first = classification("zebra", ("9", "10", "b", "a"))
    second = TaskSpec(name="Middle", type="regression")
    third = TaskSpec(name="ant", type="token_classification", labels=("O", "I-x", "B-x"), scheme="IOB2")
    again = reload(MultiTaskConfig(encoder_config=tiny_encoder(), tasks=[first, second, third]), tmp_path)
    assert again.task_specs == (first, second, third)


def test_specs_and_their_dictionaries_give_the_same_config() -> None:
    specs = config_of("b", "a").task_specs
    dictionaries = [spec.to_dict() for spec in specs]
    one, other = (MultiTaskConfig(encoder_config=tiny_encoder(), tasks=tasks) for tasks in (list(specs), dictionaries))
    assert one.to_dict() == other.to_dict()
    assert isinstance(one.tasks, list)
    assert one.tasks == dictionaries


@pytest.mark.parametrize("as_dict", [False, True])
def test_config_shares_nothing_with_what_it_was_given(as_dict: bool) -> None:
    encoder = tiny_encoder()
    given: Any = encoder.to_dict() if as_dict else encoder
    tasks = [classification().to_dict()]
    before = copy.deepcopy(given if as_dict else given.to_dict())
    config = MultiTaskConfig(encoder_config=given, tasks=tasks, attn_implementation="eager")
    assert isinstance(config.encoder_config, BertConfig)
    config.encoder_config.vocab_size = 99
    config.tasks.append({"name": "new", "type": "regression"})
    config.tasks[0]["labels"].append("new")
    assert (given if as_dict else given.to_dict()) == before
    assert encoder._attn_implementation is None
    assert tasks == [classification().to_dict()]


@pytest.mark.parametrize("as_dict", [False, True])
def test_path_of_the_encoder_is_not_saved(as_dict: bool, tmp_path: Path) -> None:
    place = tmp_path / "private" / "encoder"
    tiny_encoder().save_pretrained(place)
    encoder: Any = BertConfig.from_pretrained(place)
    encoder.name_or_path = str(place)  # as a model's from_pretrained does
    config = MultiTaskConfig(encoder_config=encoder.to_dict() if as_dict else encoder)
    assert encoder.name_or_path == str(place)
    config.save_pretrained(tmp_path / "model")
    assert "private" not in (tmp_path / "model" / "config.json").read_text(encoding="utf-8")
    assert "private" not in config.to_json_string(use_diff=False)


def test_saved_config_has_no_foreign_labels(tmp_path: Path) -> None:
    config_of("b").save_pretrained(tmp_path)
    assert "LABEL_0" not in (tmp_path / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 99])
def test_newer_format_is_refused(version: int, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=f"format_version is {version}.*upgrade"):
        # Nothing else of a newer format is looked at.
        MultiTaskConfig(format_version=version, tasks=[{"shape": "new"}])
    config_of("a").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": version}))
    with pytest.raises(SpecError, match="upgrade"):
        MultiTaskConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("version", ["1", 1.0, None, True, 0, -1])
def test_format_version_that_is_none_is_refused(version: Any) -> None:
    with pytest.raises(SpecError, match=f"format_version is {version!r}"):
        MultiTaskConfig(format_version=version)


@pytest.mark.parametrize("tasks", ["abc", None, 3, {"topic": {"type": "regression"}}, ["topic"], [None]])
def test_tasks_that_are_no_list_of_tasks_are_refused(tasks: Any) -> None:
    with pytest.raises(SpecError, match="give"):
        MultiTaskConfig(tasks=tasks)


def test_duplicate_names_are_refused() -> None:
    twice = [classification("topic"), classification("b"), TaskSpec(name="topic", type="regression")]
    with pytest.raises(SpecError, match="two tasks are named 'topic'"):
        MultiTaskConfig(tasks=twice)
    config = config_of("a")
    with pytest.raises(SpecError, match="two tasks are named 'topic'"):
        config.task_specs = twice
    config.tasks = [spec.to_dict() for spec in twice]
    with pytest.raises(SpecError, match="two tasks are named 'topic'"):
        _ = config.task_specs


def test_error_in_a_task_names_the_task() -> None:
    with pytest.raises(SpecError, match="task 'topic': pooling is 'max'"):
        MultiTaskConfig(tasks=[{"name": "topic", "type": "regression", "pooling": "max"}])


def test_assigned_tasks_replace_the_old() -> None:
    config = config_of("b", "a")
    config.task_specs = [classification("z"), {"name": "y", "type": "regression"}]
    assert [spec.name for spec in config.task_specs] == ["z", "y"]
    assert json.loads(config.to_json_string())["tasks"] == [spec.to_dict() for spec in config.task_specs]


@pytest.mark.parametrize("encoder", [{"model_type": "no_such_model"}, {"model_type": 3}, {"model_type": None}])
def test_unknown_encoder_is_refused(encoder: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        MultiTaskConfig(encoder_config=encoder)
    assert repr(encoder["model_type"]) in str(caught.value)
    config_of("a").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "encoder_config": encoder}))
    with pytest.raises(HfMtlError):
        MultiTaskConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("encoder", ["bert-base-uncased", 3, ["bert"], BertConfig])
def test_encoder_that_is_no_configuration_is_refused(encoder: Any) -> None:
    with pytest.raises(SpecError, match="encoder_config is "):
        MultiTaskConfig(encoder_config=encoder)


@pytest.mark.parametrize("encoder", [DistilBertConfig(dim=8, n_heads=2), {"model_type": "distilbert", "dim": 8}])
def test_encoder_keeps_its_type_and_values(encoder: Any, tmp_path: Path) -> None:
    again = reload(MultiTaskConfig(encoder_config=encoder), tmp_path)
    assert isinstance(again.encoder_config, DistilBertConfig)
    assert again.encoder_config.dim == 8


def test_text_config_is_the_encoders(tmp_path: Path) -> None:
    config = config_of("a")
    assert config.get_text_config() is config.encoder_config
    assert config.get_text_config(decoder=True) is config.encoder_config
    # What resize_token_embeddings does: the new size must be there after a reload.
    model = BertModel(tiny_encoder())
    model.config = config  # pyright: ignore[reportAttributeAccessIssue]
    model.resize_token_embeddings(31, mean_resizing=False)
    again = reload(config, tmp_path).encoder_config
    assert isinstance(again, BertConfig)
    assert again.vocab_size == 31


def test_config_without_arguments_works() -> None:
    # transformers makes one to find out which values differ from the defaults.
    config = MultiTaskConfig()
    assert config.task_specs == ()
    assert isinstance(config.encoder_config, BertConfig)
    assert MultiTaskConfig().tasks is not config.tasks
    assert MultiTaskConfig().encoder_config is not config.encoder_config


def test_diff_of_a_config_rebuilds_it() -> None:
    config = config_of("b", "a")
    diff = config.to_diff_dict()
    assert [task["name"] for task in diff["tasks"]] == ["b", "a"]
    assert diff["model_type"] == "hf_mtl"
    assert MultiTaskConfig.from_dict(diff).to_dict() == config.to_dict()
    assert "b" in repr(config)


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda config: pickle.loads(pickle.dumps(config))])
def test_copy_of_a_config_is_the_same(again: Any) -> None:
    config = config_of("b", "a")
    assert again(config).to_dict() == config.to_dict()
    assert again(config).task_specs == config.task_specs


def test_attention_implementation_reaches_the_encoder() -> None:
    config = config_of("a", attn_implementation="eager")
    assert isinstance(config.encoder_config, BertConfig)
    assert config.encoder_config._attn_implementation == "eager"


def test_numpy_numbers_are_written_as_json() -> None:
    spec = classification(loss_weight=np.float64(0.5), class_weights=np.array([1.0, 2.0]).tolist())
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
