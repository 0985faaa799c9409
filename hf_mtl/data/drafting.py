"""A first recipe, written from a look at a data file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, cast

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.choices import read_choices
from hf_mtl.data.loading import read_files
from hf_mtl.data.yaml import write_yaml
from hf_mtl.errors import DataError, SpecError
from hf_mtl.model.choices import choice_index
from hf_mtl.model.heads.span_extraction import read_answers
from hf_mtl.registry import HEADS

LOOKED_AT = 2000
"""Rows that are looked at."""
CHOICES = ("choices", "options", "endings", "candidates")
"""What columns of choices are called."""
_TEMPLATE = """\
# A recipe: one model, one head per task. Train it with
#     hf-mtl train {recipe} --output-dir runs/first
# Check the data first with
#     hf-mtl check {recipe}

# Hub id or folder of the encoder.
encoder: sentence-transformers/all-MiniLM-L6-v2

# Files are relative to this recipe. Patterns (data/*.jsonl) and lists work too; without a validation split a tenth of
# train is set aside. A dataset from the Hub: {{path: nyu-mll/glue, name: stsb, text: sentence1, text_pair: sentence2}}
{datasets}
# Task types: {types}.
# More keys: labels, pooling (cls, mean, last, attention), loss_weight, class_weights, label_smoothing, dropout,
# max_length, stride.
{tasks}
# Any training argument of transformers.
training:
  num_train_epochs: 3
  learning_rate: 1.0e-4
  seed: 0

# Tokens a row may have; left out, what the encoder allows, at most 512.
# max_length: 128
"""


def draft_recipe(files: Sequence[Path], *, recipe: Path) -> str:
    """Write a commented recipe for data files.

    Args:
        files: one file, or the training, validation and test files of one dataset.
        recipe: where the recipe will stand; paths are written relative to it.

    Returns:
        The recipe as YAML, with a task for each column that looks like labels.

    Raises:
        DataError: a file cannot be read, or has no column of text or no column of labels.
    """
    import os

    rows = read_files(str(files[0].resolve()), base=Path()).dataset
    table = cast(dict[str, list[Any]], rows.select(range(min(LOOKED_AT, len(rows)))).to_dict())
    columns = {name: [value for value in values if value is not None] for name, values in table.items()}
    inputs = _inputs(columns)
    choices = next((name for name in CHOICES if name in columns and _are_choices(columns[name])), None)
    # The heads that CoNLL-U gives are of a dependency graph, not tags.
    used = {*inputs.values(), choices, *({"heads"} if "tokens" in inputs else ())}
    kinds = {
        name: _task_type(values, tokens="tokens" in inputs) for name, values in columns.items() if name not in used
    }
    naming = [name for name in kinds if choices is not None and _name_choices(table[name], table[choices])]
    kinds |= dict.fromkeys(naming, "multiple_choice")
    labels = {name: kind for name, kind in kinds.items() if kind}
    if set(inputs) == {"text", "text_pair"} and any(HEADS.get(kind).points_into_text for kind in labels.values()):
        # The text that is searched is the longer of the two.
        lengths = {column: sum(map(len, columns[column])) for column in inputs.values()}
        inputs = dict(zip(inputs, sorted(lengths, key=lambda column: -lengths[column]), strict=True))
    if choices is not None and naming:
        inputs["choices"] = choices
    tasks = [
        {"name": task, "type": kind, "dataset": "data", "label": name}
        for task, (name, kind) in zip(_task_names(list(labels)), labels.items(), strict=True)
    ]
    if not inputs or not tasks:
        found = "no column of text" if not inputs else "no column that looks like labels"
        raise DataError(f"{found} among {', '.join(columns)}", where=str(files[0]), mend="write the recipe by hand")
    paths = [os.path.relpath(file, recipe.parent) for file in files]
    splits = dict(zip(("train", "test") if len(paths) == 2 else ("train", "validation", "test"), paths, strict=False))
    return _TEMPLATE.format(
        recipe=recipe.name,
        types=", ".join(HEADS.names()),
        datasets=write_yaml({"datasets": {"data": {**splits, **inputs}}}),
        tasks=write_yaml({"tasks": tasks}),
    )


def _inputs(columns: dict[str, list[Any]]) -> dict[str, str]:
    """Choose the columns of text: tokens before anything else, then by name, then the longest text."""
    tokens = [name for name, values in columns.items() if values and _are_tokens(values)]
    named = [name for name in tokens if name in ("tokens", "words", "token")]
    texts = {name: values for name, values in columns.items() if values and all(isinstance(v, str) for v in values)}
    for first, second in (
        ("text", "text_pair"),
        ("sentence1", "sentence2"),
        ("premise", "hypothesis"),
        ("question", "context"),
    ):
        if first in texts and second in texts:
            return {"text": first, "text_pair": second}
    for name in ("text", "sentence", "review", "content", "utterance", "question", "title"):
        if name in texts and not named:
            return {"text": name}
    if named:
        return {"tokens": named[0]}
    spaced = {
        name: sum(map(len, values)) / len(values) for name, values in texts.items() if any(" " in v for v in values)
    }
    if spaced:
        return {"text": max(spaced, key=lambda name: spaced[name])}
    return {"tokens": tokens[0]} if tokens else {}


def _are_tokens(values: list[Any]) -> bool:
    lists = [value for value in values if isinstance(value, list)]
    return len(lists) == len(values) and all(isinstance(item, str) for value in lists[:50] for item in value)


def _are_choices(values: list[Any]) -> bool:
    try:
        return all(read_choices(value) is not None for value in values) and bool(values)
    except DataError:
        return False


def _name_choices(labels: list[Any], choices: list[Any]) -> bool:
    """Tell whether each label names one of the choices of its row."""
    pairs = [(label, texts) for label, texts in zip(labels, choices, strict=True) if label is not None]
    try:
        return bool(pairs) and all(texts is not None and choice_index(label, texts) >= 0 for label, texts in pairs)
    except DataError:
        return False


def _task_type(values: list[Any], *, tokens: bool) -> str | None:
    """Guess a task type from the values of a column; `None` where they do not look like labels."""
    if not values:
        return None
    if all(isinstance(value, list) for value in values):
        scalars = all(isinstance(item, str | int) for value in values for item in value)
        distinct = {item for value in values for item in value} if scalars else set()
        total = sum(map(len, values))
        if not 2 <= len(distinct) <= min(500, max(20, total // 10)) or len(distinct) >= total:
            return None
        return "token_classification" if tokens else "multi_label_classification"
    if all(map(_is_answer, values)):
        return "span_extraction"
    if any(isinstance(value, list | dict) for value in values):
        return None
    if all(isinstance(value, float) for value in values) and any(value % 1 for value in values):
        return "regression"
    distinct = {str(value) for value in values}
    if all(_is_fraction(value) for value in distinct) and len(distinct) > 2 and any("." in value for value in distinct):
        return "regression"
    repeated = len(distinct) <= max(20, len(values) // 10) and len(distinct) < len(values)
    return "sequence_classification" if repeated and len(distinct) >= 2 else None


def _is_answer(value: Any) -> bool:
    try:
        read_answers(value)
    except DataError:
        return False
    return True


def _is_fraction(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _task_names(columns: Sequence[str]) -> list[str]:
    """Name a task after each column, with names that a head may have, each once."""
    names: list[str] = []
    for column in columns:
        name = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in column)
        if not _is_task_name(name):
            name = f"task_{name}".rstrip("_")
        others = (f"{name}_{number}" for number in count(2))
        names.append(name if name not in names else next(other for other in others if other not in names))
    return names


def _is_task_name(name: str) -> bool:
    try:
        TaskSpec(name=name, type="regression")
    except SpecError:
        return False
    return True
