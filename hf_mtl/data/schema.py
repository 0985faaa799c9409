"""The JSON schema of recipes, generated from the dataclasses that hold them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hf_mtl.configuration import POOLINGS, SCHEMES, TaskSpec
from hf_mtl.data.recipe import DatasetSource
from hf_mtl.registry import HEADS

_TEXT = {"type": "string", "minLength": 1}


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of recipes, generated from the dataclasses, for editors that complete and check YAML."""
    task_keys = {f.name: _schema_type(str(f.type)) for f in fields(TaskSpec)}
    task_keys |= {
        "type": {"enum": list(HEADS.names())},
        "pooling": {"enum": [*POOLINGS, None]},
        "scheme": {"enum": [*SCHEMES, None]},
        "dataset": _TEXT,
        "label": _TEXT,
    }
    dataset_keys = {f.name: _schema_type(str(f.type)) for f in fields(DatasetSource)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hf_mtl recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["encoder", "datasets", "tasks"],
        "properties": {
            "encoder": {**_TEXT, "description": "Hub id or folder of the encoder"},
            "max_length": {"type": "integer", "minimum": 8, "description": "tokens a row may have"},
            "training": {"type": "object", "description": "any training argument"},
            "datasets": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": _described(dataset_keys, DatasetSource),
                },
            },
            "tasks": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name", "type", "dataset", "label"],
                    "properties": _described(task_keys, TaskSpec),
                },
            },
        },
    }


def _schema_type(annotation: str) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "number"} if "float" in annotation else _TEXT
    options: list[dict[str, Any]] = [] if annotation.startswith("tuple") else [item]
    if "tuple" in annotation:
        options.append({"type": "array", "items": item})
    if annotation.endswith("| None"):
        options.append({"type": "null"})
    return options[0] if len(options) == 1 else {"anyOf": options}


def _described(keys: dict[str, dict[str, Any]], documented: type) -> dict[str, dict[str, Any]]:
    """Put each argument's line of the docstring beside its type."""
    lines = [line.strip() for line in (documented.__doc__ or "").splitlines()]
    described: dict[str, dict[str, Any]] = {}
    for key, schema in keys.items():
        found = [line.removeprefix(f"{key}: ") for line in lines if line.startswith(f"{key}: ")]
        described[key] = {**schema, "description": found[0]} if found else schema
    return described
