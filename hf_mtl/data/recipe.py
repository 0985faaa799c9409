"""A recipe: one YAML file that names the encoder, the datasets, the tasks and the training arguments."""

from __future__ import annotations

import difflib
import glob
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from hf_mtl.configuration import ARCHITECTURE, TaskSpec, check_architecture
from hf_mtl.data.choice_labels import check_choices
from hf_mtl.data.dataset_source import SPLITS, DatasetSource
from hf_mtl.data.masking import check_apart
from hf_mtl.data.own_encoder import OwnEncoder
from hf_mtl.data.refinement_keys import DATASET_REFINEMENT, REFINEMENT, check_refinement, moved_files
from hf_mtl.data.yaml import read_yaml, write_yaml
from hf_mtl.errors import HfMtlError, RecipeError, one_of
from hf_mtl.registry import HEADS

KEYS = ("encoder", "datasets", "tasks", "training", "max_length", "search", "card", *ARCHITECTURE, *REFINEMENT)
"""The keys of a recipe."""
CARD_KEYS = ("name", "license", "language")
NOT_TEXT = {"streaming": bool, "rows": int, "shuffle_buffer": int}
"""The keys of a dataset whose values are not text."""


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """A task of a recipe: its spec (labels may still be unknown), its dataset, and the column of its labels.

    The labels of a task that masks tokens are these tokens: its column is that of the texts.
    """

    spec: TaskSpec
    dataset: str
    label: str

    def to_dict(self) -> dict[str, Any]:
        """Return the task as a recipe has it."""
        label = {} if HEADS.get(self.spec.type).masks_tokens else {"label": self.label}
        return {**self.spec.to_dict(), "dataset": self.dataset, **label}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train: encoder, datasets, tasks and training arguments.

    Args:
        encoder: Hub id or folder of the encoder, or the description of one with random weights.
        datasets: the datasets by name.
        tasks: the tasks, in the order of the heads.
        training: training arguments by name.
        architecture: how tasks share and hear each other: the keys in `ARCHITECTURE`, as `MultiTaskConfig` takes them.
        refinement: what is done to the rows of all datasets: the keys in `REFINEMENT`.
        max_length: tokens a row may have; `None` takes what encoder and tokenizer allow, at most 512.
        search: training arguments that `hf-mtl tune` searches, and among which values; see `hf_mtl.training.space`.
        card: what the model card says that training cannot know: `name`, `license` and `language` (a code or several).
        base: folder that relative paths start from.
    """

    encoder: str | OwnEncoder
    datasets: dict[str, DatasetSource]
    tasks: tuple[TaskSource, ...]
    training: dict[str, Any] = field(default_factory=dict)
    architecture: dict[str, Any] = field(default_factory=dict)
    refinement: dict[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    search: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    base: Path = Path()

    @property
    def encoder_path(self) -> str:
        """The encoder as `from_pretrained` takes it: a folder beside the recipe goes before the Hub.

        Raises:
            RecipeError: the recipe describes an encoder; `RecipeData.encoder` is it.
        """
        if isinstance(self.encoder, OwnEncoder):
            raise RecipeError("encoder is an encoder with random weights", mend="name a pretrained encoder")
        return self.place_of(self.encoder)

    def place_of(self, name: str) -> str:
        """Return what `from_pretrained` takes for the name of a folder beside the recipe, or on the Hub."""
        folder = self.base / Path(name).expanduser()
        return str(folder) if folder.is_dir() or name.startswith((".", "~")) else name

    @property
    def encoder_name(self) -> str:
        """The encoder as people name it, without the way to a folder."""
        if isinstance(self.encoder, OwnEncoder):
            return f"{self.encoder.type} with random weights"
        return Path(self.encoder).name if Path(self.encoder_path).is_dir() else self.encoder

    def architecture_of(self, tasks: Sequence[TaskSpec]) -> dict[str, Any]:
        """Return the architecture for some of the tasks: a graph of tasks without the others."""
        graph, names = self.architecture.get("interaction_graph"), {spec.name for spec in tasks}
        if graph is None:
            return self.architecture
        kept = {task: [other for other in heard if other in names] for task, heard in graph.items() if task in names}
        return {**self.architecture, "interaction_graph": kept}

    def tasks_of(self, dataset: str) -> list[TaskSource]:
        """Return the tasks whose labels stand in a dataset."""
        return [task for task in self.tasks if task.dataset == dataset]

    def to_dict(self, *, relative_to: Path | None = None) -> dict[str, Any]:
        """Return the recipe as plain values, without what is at its default.

        Args:
            relative_to: folder that file paths are rewritten for; as written where not given.
        """

        def moved(path: str) -> str:
            if relative_to is None or Path(path).expanduser().is_absolute():
                return path
            way = os.path.relpath(self.base, relative_to)
            if not (self.base / path).exists():
                way = glob.escape(way)  # the path is a pattern, the way to it is not
            return os.path.normpath(Path(way, path))

        def is_folder(path: str) -> bool:
            return path.startswith((".", "~")) or (self.base / Path(path).expanduser()).is_dir()

        datasets: dict[str, Any] = {}
        for name, source in self.datasets.items():
            values = {f.name: getattr(source, f.name) for f in fields(source) if getattr(source, f.name) != f.default}
            if source.path is not None:
                values["path"] = moved(source.path) if is_folder(source.path) else source.path
            for split in SPLITS if source.path is None else ():
                if split in values:
                    files = values[split]
                    values[split] = moved(files) if isinstance(files, str) else [moved(file) for file in files]
            if source.augmentation is not None:
                values["augmentation"] = moved_files(source.augmentation, moved)
            datasets[name] = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        encoder: Any = self.encoder
        if isinstance(encoder, OwnEncoder):
            place = encoder.tokenizer
            encoder = encoder.to_dict()
            if place is not None:
                encoder["tokenizer"] = moved(place) if is_folder(place) else place
        elif is_folder(encoder):
            encoder = moved(encoder)
        recipe: dict[str, Any] = {
            "encoder": encoder,
            "datasets": datasets,
            "tasks": [task.to_dict() for task in self.tasks],
        }
        recipe |= self.architecture | self.refinement
        if self.max_length is not None:
            recipe["max_length"] = self.max_length
        if self.training:
            recipe["training"] = dict(self.training)
        if self.search:
            recipe["search"] = dict(self.search)
        if self.card:
            recipe["card"] = dict(self.card)
        return recipe

    def to_yaml(self, *, relative_to: Path | None = None) -> str:
        """Write the recipe as YAML; the argument is that of `to_dict`."""
        return write_yaml(self.to_dict(relative_to=relative_to))


def read_recipe(path: str | Path, *, training: Mapping[str, Any] | None = None) -> Recipe:
    """Read and check a recipe; no data is opened.

    Args:
        path: the YAML file.
        training: training arguments that override the recipe's.

    Raises:
        RecipeError: the file cannot be read, a key is unknown or missing, or a value cannot be.
        SpecError: a task is not valid.
    """
    path = Path(path)
    values = read_yaml(path)
    try:
        return parse_recipe(values, base=path.parent, training=training)
    except HfMtlError as error:
        raise error.at(str(path)) from error.__cause__


def parse_recipe(values: Any, *, base: Path, training: Mapping[str, Any] | None = None) -> Recipe:
    """Make a recipe from plain values; arguments and errors as in `read_recipe`."""
    values = _mapping(values, "the recipe", known=KEYS)
    for key in ("encoder", "datasets", "tasks"):
        if not values.get(key):
            raise RecipeError(f"the key {key!r} is missing or empty", mend="a recipe has encoder, datasets and tasks")
    encoder = values["encoder"]
    if isinstance(encoder, dict):
        encoder = OwnEncoder.read(cast(dict[str, Any], encoder))
    elif not isinstance(encoder, str):
        raise RecipeError(f"encoder is {encoder!r}", mend="give a Hub id or a folder, or {type: lstm}")
    max_length = values.get("max_length")
    if max_length is not None and (not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 8):
        raise RecipeError(f"max_length is {max_length!r}", mend="give a whole number of tokens, at least 8")
    datasets = {
        _dataset_name(name): _dataset(name, source) for name, source in _mapping(values["datasets"], "datasets").items()
    }
    if not isinstance(values["tasks"], list):
        raise RecipeError(
            f"tasks is {_shown(values['tasks'])}, not a list",
            mend="write each task as '- {name: ..., type: ..., dataset: ..., label: ...}'",
        )
    tasks = tuple(_task(task, number, datasets) for number, task in enumerate(values["tasks"], start=1))
    for task in tasks:
        check_windows(task, datasets[task.dataset])
    check_choices(datasets, tasks)
    _refuse_twins(tasks)
    check_apart(tasks)
    architecture = {key: values[key] for key in ARCHITECTURE if values.get(key) is not None}
    check_architecture(architecture, [task.spec for task in tasks])
    refinement = {key: values[key] for key in REFINEMENT if values.get(key) is not None}
    check_refinement(refinement, streaming=any(source.streaming for source in datasets.values()))
    return Recipe(
        encoder=encoder,
        datasets={name: source for name, source in datasets.items() if any(t.dataset == name for t in tasks)},
        tasks=tasks,
        training={**_arguments(values, "training"), **(training or {})},
        architecture=architecture,
        refinement=refinement,
        max_length=max_length,
        search=_arguments(values, "search"),
        card=_card(values.get("card")),
        base=base,
    )


def check_windows(task: TaskSource, source: DatasetSource) -> None:
    """Check that the rows of a task that has a stride can be read in windows.

    Raises:
        RecipeError: they are pairs of texts, have choices, or are streamed.
    """
    problems = {
        "are streamed": source.streaming,
        "have choices": source.choices,
        "are pairs of texts": source.text_pair,
    }
    problem = next((problem for problem, found in problems.items() if found), None)
    if task.spec.stride is not None and problem is not None:
        raise RecipeError(
            f"stride is {task.spec.stride}, but the rows of dataset {task.dataset!r} {problem}, which are not read in "
            "windows",
            where=f"task {task.spec.name!r}",
            mend="leave stride out" + (", or streaming" if source.streaming else ""),
        )


def near(name: object, known: Sequence[str], *, most: int | None = None) -> str:
    """Return the mend for a wrong name: the nearest one, or all of them where they are not more than `most`.

    Example:
        >>> near("lable", ["label", "dataset"])
        "did you mean 'label'?"
    """
    matches = difflib.get_close_matches(str(name), known, n=1)
    if matches:
        return f"did you mean {matches[0]!r}?"
    return f"use {one_of(known)}" if most is None or len(known) <= most else "leave it out, or look its name up"


def _arguments(recipe: Mapping[str, Any], key: str) -> dict[str, Any]:
    arguments = {} if recipe.get(key) is None else _mapping(recipe[key], key)
    for name in arguments:
        if not isinstance(cast(object, name), str):
            raise RecipeError(f"the key {name!r} is not text", where=key, mend="name a training argument")
    return arguments


def _card(values: Any) -> dict[str, Any]:
    card = {} if values is None else _mapping(values, "card", known=CARD_KEYS)
    for key, value in card.items():
        several = key == "language" and isinstance(value, list)
        texts: list[Any] = value if several else [value]
        if not (texts and all(isinstance(text, str) and text for text in texts)):
            raise RecipeError(f"{key} is {_shown(value)}", where="card", mend="give text")
    return card


def _dataset_name(name: Any) -> str:
    if not isinstance(name, str):
        raise RecipeError(f"the dataset name {name!r} is not text", where="datasets", mend="put it in quotes")
    return name


def _dataset(name: str, values: Any) -> DatasetSource:
    known = [f.name for f in fields(DatasetSource)]
    try:
        values = _mapping(values, "the dataset", known=known)
        for key, value in values.items():
            if key in DATASET_REFINEMENT:
                continue
            if key in NOT_TEXT:
                _check_value(key, value)
                continue
            many = key in (*SPLITS, "columns")
            texts = value if isinstance(value, list) and many else [value]
            if value is not None and not (texts and all(isinstance(text, str) and text for text in texts)):
                raise RecipeError(
                    f"{key} is {_shown(value)}", mend="give text" + (" or a list of texts" if many else "")
                )
        frozen: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        if isinstance(frozen.get("columns"), str):
            frozen["columns"] = (frozen["columns"],)
        return DatasetSource(**frozen)
    except HfMtlError as error:
        raise error.at(f"dataset {name!r}") from None


def _check_value(key: str, value: Any) -> None:
    """Check a value of a dataset that is not text."""
    if NOT_TEXT[key] is bool:
        if not isinstance(value, bool):
            raise RecipeError(f"{key} is {_shown(value)}", mend="give true or false")
    elif value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise RecipeError(f"{key} is {_shown(value)}", mend="give a whole number, at least 1")


def _task(values: Any, number: int, datasets: Mapping[str, DatasetSource]) -> TaskSource:
    known = [*(f.name for f in fields(TaskSpec)), "dataset", "label"]
    name = values.get("name") if isinstance(values, dict) else None
    place = f"task {name!r}" if isinstance(name, str) else f"task {number}"
    try:
        values = _mapping(values, "the task", known=known)
        masks = values.get("type") in HEADS.names() and HEADS.get(values["type"]).masks_tokens
        for key in ("name", "type", "dataset", "label"):
            if values.get(key) is None and not (masks and key == "label"):
                raise RecipeError(f"the key {key!r} is missing", mend="every task has name, type, dataset and label")
        if not isinstance(values["dataset"], str) or values["dataset"] not in datasets:
            raise RecipeError(
                f"there is no dataset {_shown(values['dataset'])}", mend=near(values["dataset"], list(datasets))
            )
        if masks and values.get("label") is not None:
            problem = f"label is {_shown(values['label'])}, but the labels of {values['type']} are tokens of its texts"
            raise RecipeError(problem, mend="leave label out")
        own = datasets[values["dataset"]]
        label: Any = (own.text or own.tokens) if masks else values["label"]
        if not isinstance(label, str) or not label:
            raise RecipeError(f"label is {_shown(label)}", mend="name the column of the labels")
    except HfMtlError as error:
        raise error.at(place) from None
    spec = TaskSpec.from_dict({key: value for key, value in values.items() if key not in ("dataset", "label")})
    return TaskSource(spec=spec, dataset=values["dataset"], label=label)


def _refuse_twins(tasks: Sequence[TaskSource]) -> None:
    names = [task.spec.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"two tasks are named {name!r}", mend="give every task its own name")


def _shown(value: Any) -> str:
    text = reprlib.repr(value)  # which stops early in nested values, however long
    return text if len(text) <= 100 else f"{text[:97]}..."


def _mapping(values: Any, what: str, *, known: Sequence[str] | None = None) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise RecipeError(f"{what} is {_shown(values)}, not a mapping", mend="write 'key: value' pairs")
    for key in cast(dict[Any, Any], values):
        if known is not None and key not in known:
            raise RecipeError(f"unknown key {key!r}", mend=near(key, known))
    return cast(dict[str, Any], values)
