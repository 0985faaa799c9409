"""Recipes: what they say is what is read, and whatever is wrong is an error that names file, entry and key."""

from __future__ import annotations

import copy
import json
import os
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from hf_mtl.configuration import ARCHITECTURE, TaskSpec
from hf_mtl.data.dataset_source import DatasetSource
from hf_mtl.data.loading import read_files, read_hub
from hf_mtl.data.recipe import Recipe, near, parse_recipe, read_recipe
from hf_mtl.data.refinement_keys import REFINEMENT
from hf_mtl.data.schema import recipe_schema
from hf_mtl.data.yaml import write_yaml
from hf_mtl.errors import HfMtlError, RecipeError
from hf_mtl.registry import HEADS

GOOD: dict[str, Any] = {
    "encoder": "owner/encoder",
    "max_length": 128,
    "training": {"learning_rate": 1e-4, "num_train_epochs": 2, "bf16": False, "layers": ["a"]},
    "search": {"optim": ["adamw_torch", "sgd"], "weight_decay": {"low": 0, "high": 0.1}},
    "datasets": {
        "home": {"train": "home/*.jsonl", "validation": ["a.jsonl", "b.jsonl"], "tokens": "tokens"},
        "pairs": {"train": "pairs.csv", "test": "test.csv", "text": "first", "text_pair": "second"},
        "news": {"path": "owner/news", "name": "small", "revision": "main", "train": "train[:90%]", "text": "text"},
        "tree": {"train": "tree.conll", "tokens": "form", "columns": ["form", "_", "upos"]},
    },
    "tasks": [
        {"name": "intent", "type": "sequence_classification", "dataset": "home", "label": "intent", "pooling": "cls"},
        {"name": "slots", "type": "token_classification", "dataset": "home", "label": "slots", "scheme": "IOB2",
         "labels": ["O", "B-x", "I-x"], "class_weights": [0.5, 1, 2.0]},
        {"name": "close", "type": "regression", "dataset": "pairs", "label": "score", "loss_weight": 2},
        {"name": "topics", "type": "multi_label_classification", "dataset": "news", "label": "topics", "dropout": 0.2,
         "label_smoothing": 0.1, "max_length": 64, "stride": 0},
        {"name": "upos", "type": "token_classification", "dataset": "tree", "label": "upos"},
    ],
}  # fmt: skip


def test_a_recipe_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(write_yaml(GOOD), encoding="utf-8")
    recipe = read_recipe(path, training={"learning_rate": 1e-5, "seed": 3})
    assert (recipe.encoder, recipe.max_length, recipe.base) == ("owner/encoder", 128, tmp_path)
    assert recipe.training == {**GOOD["training"], "learning_rate": 1e-5, "seed": 3}
    assert recipe.datasets["home"] == DatasetSource(
        train="home/*.jsonl", validation=("a.jsonl", "b.jsonl"), tokens="tokens"
    )
    assert recipe.datasets["pairs"].input_columns == {"text": "first", "text_pair": "second"}
    assert [task.spec.name for task in recipe.tasks] == ["intent", "slots", "close", "topics", "upos"]
    assert recipe.tasks[1].spec.class_weights == (0.5, 1, 2.0)
    assert [task.spec.name for task in recipe.tasks_of("home")] == ["intent", "slots"]
    assert json.dumps(recipe.to_dict(), sort_keys=True) == json.dumps(
        {**GOOD, "training": recipe.training}, sort_keys=True
    )


def test_datasets_that_no_task_uses_are_left_out() -> None:
    values = copy.deepcopy(GOOD)
    values["tasks"] = values["tasks"][:2]
    assert list(parse_recipe(values, base=Path()).datasets) == ["home"]


# ---------------------------------------------------------------------- errors


def broken(*way: Any, value: Any = None, drop: bool = False) -> Any:
    """The good recipe with one place changed."""
    values = copy.deepcopy(GOOD)
    place = values
    for step in way[:-1]:
        place = place[step]
    if drop:
        del place[way[-1]]
    else:
        place[way[-1]] = value
    return values


BAD: list[tuple[Any, str]] = [
    # unknown keys at each level, with the near one
    (broken("encodr", value="x"), "unknown key 'encodr'; did you mean 'encoder'?"),
    (broken("datasets", "home", "txt", value="x"), "dataset 'home': unknown key 'txt'; did you mean 'text'?"),
    (broken("tasks", 0, "lable", value="x"), "task 'intent': unknown key 'lable'; did you mean 'label'?"),
    (broken("tasks", 0, "zzz", value="x"), "task 'intent': unknown key 'zzz'; use 'name', 'type'"),
    (broken(3, value="x"), "unknown key 3; use 'encoder'"),
    # missing keys
    *((broken(key, drop=True), f"the key '{key}' is missing") for key in ("encoder", "datasets", "tasks")),
    *((broken(key, value=empty), f"the key '{key}' is missing") for key in ("encoder", "datasets", "tasks")
      for empty in (None, "", [], {}, 0)),
    *((broken("tasks", 2, key, drop=True), f"task 'close': the key '{key}' is missing")
      for key in ("type", "dataset", "label")),
    (broken("tasks", 2, "name", drop=True), "task 3: the key 'name' is missing"),
    # the whole file
    ([GOOD], "the recipe is [{"), ("text", "the recipe is 'text', not a mapping"), (None, "the recipe is None"),
    (7, "the recipe is 7"),
    # the recipe's keys
    *((broken("encoder", value=wrong), "encoder is ") for wrong in (3, ["a"], True)),
    (broken("encoder", value={"a": 1}), "encoder: unknown key 'a'; use 'type', 'hidden_size'"),
    *((broken("max_length", value=wrong), "max_length is ") for wrong in ("128", 1.5, True, [8], 7, -1, 0)),
    *((broken("training", value=wrong), "training is ") for wrong in ([], "x", 0, False, [1])),
    (broken("training", 1, value=2), "training: the key 1 is not text"),
    *((broken("search", value=wrong), "search is ") for wrong in ([], "x", 0, False, [1])),
    (broken("search", 1, value=[2]), "search: the key 1 is not text"),
    *((broken("tasks", value=wrong), "tasks is ") for wrong in ("x", {"a": 1}, 3, True)),
    *((broken("datasets", value=wrong), "datasets is ") for wrong in ("x", ["a"], 3, True)),
    # datasets
    *((broken("datasets", "home", value=wrong), "dataset 'home': the dataset is ") for wrong in ("x", [1], 3, None)),
    (broken("datasets", 5, value={"train": "x", "text": "t"}), "datasets: the dataset name 5 is not text"),
    (broken("datasets", None, value={"train": "x", "text": "t"}), "datasets: the dataset name None is not text"),
    *((broken("datasets", "pairs", f.name, value=wrong), f"dataset 'pairs': {f.name} is ")
      for f in fields(DatasetSource) for wrong in (3, True, {"a": "b"}, [], [1], [None], ["a", 2], "", [""])
      # `cleaning` and `augmentation` are no text; what they may be is told by their own tests.
      if (f.name, wrong) != ("streaming", True) and f.name not in ("cleaning", "augmentation")),
    *((broken("datasets", "pairs", key, value=wrong), f"{key} is {wrong}; give a whole number, at least 1")
      for key in ("rows", "shuffle_buffer") for wrong in (0, -1, 1.5, True)),
    (broken("datasets", "pairs", "streaming", value="yes"), "streaming is 'yes'; give true or false"),
    *((broken("datasets", name, key, value=5), f"dataset {name!r}: {key} is given without streaming")
      for name in ("pairs", "news") for key in ("rows", "shuffle_buffer")),
    (broken("datasets", "pairs", value={"train": "x", "text": "t", "streaming": True, "rows": 5}),
     "dataset 'pairs': rows is given for files"),
    (broken("datasets", "pairs", value={"test": "x", "text": "t", "streaming": True}),
     "dataset 'pairs': streaming is set without training files"),
    (broken("datasets", "pairs", value={"train": "x", "text": "t", "streaming": True, "columns": ["a", "b"]}),
     "dataset 'pairs': streaming is set for CoNLL files"),
    *((broken("datasets", "pairs", key, value=["a", "b"]), f"dataset 'pairs': {key} is ")
      for key in ("path", "name", "revision", "text", "text_pair", "tokens")),
    (broken("datasets", "pairs", "text", drop=True), "dataset 'pairs': neither text nor tokens is given"),
    (broken("datasets", "pairs", "tokens", value="t"), "dataset 'pairs': both text and tokens are given"),
    (broken("datasets", "home", "text_pair", value="t"), "dataset 'home': text_pair is given with tokens"),
    (broken("datasets", "tree", "train", drop=True), "dataset 'tree': there are no files"),
    (broken("datasets", "pairs", "name", value="x"), "dataset 'pairs': name is given for files"),
    (broken("datasets", "pairs", "revision", value="x"), "dataset 'pairs': revision is given for files"),
    (broken("datasets", "news", "columns", value=["a", "b"]), "dataset 'news': columns is given for a Hub dataset"),
    (broken("datasets", "news", "train", value=["a", "b"]), "dataset 'news': train is ['a', 'b']; give the name"),
    # tasks
    *((broken("tasks", 1, value=wrong), "task 2: the task is ") for wrong in ("x", [1], 3, None)),
    (broken("tasks", 0, "type", value="clasification"), "'clasification' is not a task type; use one of"),
    *((broken("tasks", 0, "type", value=wrong), "is not a task type") for wrong in (3, True, ["regression"], {"a": 1})),
    *((broken("tasks", 0, "name", value=wrong), "name is ") for wrong in (3, True, ["a"], {"a": 1}, "", "1a", "a b")),
    *((broken("tasks", 0, "name", value=wrong), "is reserved") for wrong in ("average", "forward", "training", "keys")),
    (broken("tasks", 2, "name", value="slots"), "two tasks are named 'slots'"),
    (broken("tasks", 0, "dataset", value="hom"), "task 'intent': there is no dataset 'hom'; did you mean 'home'?"),
    *((broken("tasks", 0, "dataset", value=wrong), "task 'intent': there is no dataset ")
      for wrong in (3, True, ["home"], {"home": 1}, "")),
    *((broken("tasks", 0, "label", value=wrong), "task 'intent': label is ") for wrong in (3, True, ["a"], {}, "")),
    *((broken("tasks", 1, "labels", value=wrong), "labels is ") for wrong in (3, True, "a", {"O": 1})),
    (broken("tasks", 1, "labels", value=["O", 3, "x"]), "label 3 is not text"),
    (broken("tasks", 1, "labels", value=["O", "x", "x"]), "label 'x' stands twice"),
    (broken("tasks", 1, "class_weights", value=[1.0]), "1 class_weights for 3 labels"),
    *((broken("tasks", 1, "class_weights", value=wrong), "class_weights is ") for wrong in (3, "a", [1, -1, 1], ["a"])),
    *((broken("tasks", 1, "scheme", value=wrong), "scheme is ") for wrong in ("iob2", 3, ["IOB2"])),
    *((broken("tasks", 1, "pooling", value=wrong), "pooling is ") for wrong in ("max", 3, ["cls"], {"cls": 1})),
    *((broken("tasks", 1, "loss_weight", value=wrong), "loss_weight is ") for wrong in (0, -1, "2", [1], None, True)),
    *((broken("tasks", 1, "label_smoothing", value=wrong), "label_smoothing is ") for wrong in (1, -0.1, "0", [])),
    *((broken("tasks", 1, "max_length", value=wrong), "max_length is ") for wrong in (7, 8.5, "128", True, [8])),
    *((broken("tasks", 1, "stride", value=wrong), "stride is ") for wrong in (-1, 1.5, "8", True, [8])),
    (broken("tasks", 2, "stride", value=8), "but the rows of dataset 'pairs' are pairs of texts, which are not"),
    *((broken("tasks", 1, "dropout", value=wrong), "dropout is ") for wrong in (1, -0.1, "0", [], 10**20)),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_a_bad_recipe_names_file_and_key(tmp_path: Path, values: Any, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(write_yaml(values), encoding="utf-8")
    with pytest.raises(HfMtlError) as caught:
        read_recipe(path)
    text = str(caught.value)
    assert text.startswith((f"{path}: ", f"{path}, "))
    assert message in text
    assert "; " in text, "it says how to mend it"
    assert len(text) < len(str(path)) + 400


def ways(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested values."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(place for key, item in inside for place in ways(item, (*way, key)))]


def random_value(rng: random.Random, depth: int = 2) -> Any:
    words = ["", "x", "home", "intent", "regression", "cls", "O", "é", "\0", "a" * 1000, "average", "~", "/", "*", "."]
    scalars = [None, True, False, 0, 1, -1, 8, 10**400, 0.5, float("nan"), float("inf"), *words]
    kind = rng.randrange(4 if depth else 2)
    if kind < 2:
        return rng.choice(scalars)
    if kind == 2:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(3))]
    keys = [None, True, 0, 1.5, "name", "type", "train", "text", "zzz", ("a", 1)]
    return {rng.choice(keys): random_value(rng, depth - 1) for _ in range(rng.randrange(3))}


@pytest.mark.parametrize("seed", range(500))
def test_any_recipe_is_read_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    values = copy.deepcopy(GOOD)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        way = rng.choice(ways(values))
        if not way:
            values = random_value(rng) if rng.random() < 0.2 else values
            if not isinstance(values, dict):
                break
            continue
        place = values
        for step in way[:-1]:
            place = place[step]
        action = rng.randrange(3)
        if action == 0:
            place[way[-1]] = random_value(rng)
        elif action == 1:
            del place[way[-1]]
        elif isinstance(place, dict):
            place[rng.choice([None, 1, "x", "lable", "name", "labels"])] = random_value(rng)
        else:
            place.insert(0, random_value(rng))
    try:
        recipe = parse_recipe(values, base=Path())
    except HfMtlError:
        return
    again = parse_recipe(recipe.to_dict(), base=Path())
    assert repr(again) == repr(recipe)  # repr, since NaN is not equal to itself


# ---------------------------------------------------------------------- writing


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with data, below a folder whose name looks like a pattern."""
    root = tmp_path / "run[1]"
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("project/data/a.jsonl", "project/data/b.jsonl", "shared/c.jsonl", "../user/d.jsonl"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name, "label": "x"}) + "\n", encoding="utf-8")
    (root / "project/data[2].jsonl").write_text('{"text": "brackets", "label": "x"}\n', encoding="utf-8")
    (root / "project/encoder").mkdir()
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": ["saved"], "label": ["x"]}).save_to_disk(str(root / "project/saved"))
    datasets.enable_progress_bars()
    return root


def recipe_of(root: Path, base: Path) -> Recipe:
    tasks = [{"name": f"t_{n}", "type": "sequence_classification", "dataset": n, "label": "label"} for n in "abcdef"]
    values = {
        "encoder": "encoder",
        "datasets": {
            "a": {"train": "data/*.jsonl", "test": ["data/b.jsonl", "../shared/?.jsonl"], "text": "text"},
            "b": {"train": str(root / "shared/c.jsonl"), "text": "text"},
            "c": {"train": "~/d.jsonl", "text": "text"},
            "d": {"path": "saved", "text": "text"},
            "e": {"path": "owner/hub", "text": "text"},
            "f": {"train": "data[2].jsonl", "text": "text"},
        },
        "tasks": tasks,
        "training": {"output_dir": "out"},
        "max_length": 64,
    }
    return parse_recipe(values, base=base)


def texts(recipe: Recipe) -> list[list[str]]:
    read = [
        read_files(getattr(source, split), base=recipe.base)
        for source in recipe.datasets.values()
        for split in ("train", "test")
        if source.path is None and getattr(source, split) is not None
    ]
    path = recipe.datasets["d"].path
    assert path is not None
    read.append(read_hub(path, split="train", base=recipe.base))
    return [split.dataset["text"][:] for split in read]


@pytest.mark.parametrize("inside", [True, False], ids=["from inside", "from elsewhere"])
@pytest.mark.parametrize("target", ["runs/1", "project", ".", "../elsewhere"])
def test_a_recipe_written_for_another_folder_reads_the_same_files(
    place: Path, monkeypatch: pytest.MonkeyPatch, target: str, inside: bool
) -> None:
    if inside:
        monkeypatch.chdir(place / "project")
    base = Path() if inside else place / "project"
    recipe = recipe_of(place, base)
    folder = place / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe.to_yaml(relative_to=folder), encoding="utf-8")
    monkeypatch.chdir(place)
    again = read_recipe(folder / "recipe.yaml")
    assert texts(again) == texts(replace(recipe, base=place / "project"))
    assert Path(again.encoder_path).samefile(place / "project/encoder")
    assert again.datasets["e"] == recipe.datasets["e"]
    assert (again.tasks, again.training, again.max_length) == (recipe.tasks, recipe.training, recipe.max_length)
    assert again.search == recipe.search
    assert again.datasets["b"].train == str(place / "shared/c.jsonl")


def test_a_recipe_written_as_it_is_reads_back_equal(place: Path) -> None:
    recipe = recipe_of(place, place / "project")
    (place / "project/again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_recipe(place / "project/again.yaml") == recipe


def test_the_encoder_is_a_folder_first(place: Path) -> None:
    recipe = recipe_of(place, place / "project")
    assert recipe.encoder_path == str(place / "project/encoder")
    assert replace(recipe, encoder="owner/name").encoder_path == "owner/name"
    assert replace(recipe, encoder="./missing").encoder_path == str(place / "project/missing")
    assert replace(recipe, encoder="~/missing").encoder_path == os.path.expanduser("~/missing")  # noqa: PTH111
    assert "encoder: owner/name" in replace(recipe, encoder="owner/name").to_yaml(relative_to=place)


# ---------------------------------------------------------------------- the schema


def complaints(value: Any, schema: dict[str, Any]) -> list[str]:
    """Check a value against the part of JSON schema that recipe_schema() uses."""
    known = {"$schema", "title", "description", "type", "enum", "anyOf", "properties", "additionalProperties",
             "required", "items", "minLength", "minItems", "minProperties", "minimum"}  # fmt: skip
    assert schema.keys() <= known
    types: dict[str, tuple[type, ...]] = {
        "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "number": (int, float),
        "null": (type(None),),
    }  # fmt: skip
    found: list[str] = []
    if "anyOf" in schema and all(complaints(value, option) for option in schema["anyOf"]):
        found.append(f"{value!r} is none of {schema['anyOf']}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{value!r} is not in {schema['enum']}")
    if "type" in schema and (not isinstance(value, types[schema["type"]]) or isinstance(value, bool)):
        return [f"{value!r} is no {schema['type']}"]
    if isinstance(value, dict):
        found += [f"{key} is missing" for key in schema.get("required", ()) if key not in value]
        other = schema.get("additionalProperties", True)
        for key, item in value.items():
            part = schema.get("properties", {}).get(key, other)
            found += complaints(item, part) if isinstance(part, dict) else [] if part else [f"{key} is unknown"]
    if isinstance(value, list) and "items" in schema:
        found += [problem for item in value for problem in complaints(item, schema["items"])]
    least = {dict: "minProperties", list: "minItems", str: "minLength"}.get(type(value))
    if least is not None and len(value) < schema.get(least, 0):
        found.append("there are too few")
    if isinstance(value, int) and value < schema.get("minimum", value):
        found.append(f"{value!r} is too small")
    return found


def test_the_schema_has_the_keys_that_recipes_have() -> None:
    schema = recipe_schema()
    json.dumps(schema)
    parts = schema["properties"]
    assert list(parts) == [
        "encoder",
        "max_length",
        "training",
        "datasets",
        "tasks",
        "card",
        "search",
        *ARCHITECTURE,
        *REFINEMENT,
    ]
    dataset, task = parts["datasets"]["additionalProperties"], parts["tasks"]["items"]
    assert list(dataset["properties"]) == [f.name for f in fields(DatasetSource)]
    assert list(task["properties"]) == [*(f.name for f in fields(TaskSpec)), "dataset", "label"]
    assert task["properties"]["type"]["enum"] == list(HEADS.names())
    for keys in (dataset["properties"], task["properties"]):
        described = [key for key, part in keys.items() if "description" in part]
        assert described == [key for key in keys if key not in ("dataset", "label")]


def test_the_schema_accepts_good_recipes_and_refuses_bad_ones(place: Path) -> None:
    schema = recipe_schema()
    assert complaints(GOOD, schema) == []
    assert complaints(recipe_of(place, place).to_dict(), schema) == []
    assert complaints({**GOOD, "datasets": {**GOOD["datasets"], "x": {"train": "a", "test": None}}}, schema) == []
    # Not those a schema cannot see: how keys belong together, names of other entries, bounds of numbers.
    marks = ("unknown key", "is missing", "not a task type", "not a mapping", "not a list", "encoder is", "text is",
             "max_length is", "stride is ", "labels is", "pooling is", "scheme is", "label is",
             "path is")  # fmt: skip
    visible = [(values, message) for values, message in BAD if any(mark in message for mark in marks)]
    assert len(visible) > 70
    assert [message for values, message in visible if not complaints(values, schema)] == []
    try:
        import jsonschema  # pyright: ignore
    except ImportError:
        return
    jsonschema.validate(GOOD, schema)


def test_near_names() -> None:
    assert near("topc", ["intent", "topic"]) == "did you mean 'topic'?"
    assert near(None, ["intent", "topic"]) == "use 'intent', 'topic'"
    with pytest.raises(RecipeError):
        parse_recipe({}, base=Path())
