"""The JSON schema of recipes, generated from the dataclasses that hold them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hf_mtl.configuration import (
    INTERACTIONS,
    MIN_LENGTH,
    POOLING_KINDS,
    SCHEMES,
    SHARINGS,
    MultiTaskConfig,
    TaskSpec,
)
from hf_mtl.data.dataset_source import DatasetSource
from hf_mtl.data.own_encoder import OwnEncoder
from hf_mtl.data.refinement_keys import DATASET_REFINEMENT, REFINEMENT, refinement_schema
from hf_mtl.registry import HEADS

_TEXT = {"type": "string", "minLength": 1}
_VALUES: dict[str, Any] = {"type": "array", "minItems": 1}
_RANGE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "low": {"type": "number"},
        "high": {"type": "number"},
        "log": {"enum": [True, False], "description": "whether the logarithm is drawn evenly"},
        "step": {"type": "number"},
        "values": _VALUES,
        "when": {"type": "object", "description": "values of other arguments, without which this one is left out"},
    },
}
_ARCHITECTURE: dict[str, dict[str, Any]] = {
    "sharing": {"enum": [*SHARINGS, None]},
    "sharing_strength": {"type": "number", "minimum": 0},
    "sharing_size": {"type": "integer", "minimum": 1},
    "interaction": {"enum": [*INTERACTIONS, None]},
    "interaction_heads": {"type": "integer", "minimum": 1},
    "interaction_graph": {"type": "object", "additionalProperties": {"type": "array", "items": _TEXT}},
}


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of recipes, generated from the dataclasses, for editors that complete and check YAML."""
    task_keys = {f.name: _schema_type(str(f.type)) for f in fields(TaskSpec)}
    task_keys |= {
        "type": {"enum": list(HEADS.names())},
        "pooling": {"enum": [*POOLING_KINDS, None]},
        "scheme": {"enum": [*SCHEMES, None]},
        "max_length": {"anyOf": [{"type": "integer", "minimum": MIN_LENGTH}, {"type": "null"}]},
        "stride": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]},
        "class_weights": {
            "anyOf": [{"type": "array", "items": {"type": "number"}}, {"enum": ["balanced"]}, {"type": "null"}]
        },
        "dataset": _TEXT,
        "label": _TEXT,
    }
    encoder_keys = {f.name: _schema_type(str(f.type)) for f in fields(OwnEncoder)} | {"type": {"enum": ["lstm"]}}
    refinement = refinement_schema()
    dataset_keys = {f.name: _schema_type(str(f.type)) for f in fields(DatasetSource)}
    dataset_keys |= {key: refinement[key] for key in DATASET_REFINEMENT}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hf_mtl recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["encoder", "datasets", "tasks"],
        "properties": {
            "encoder": {
                "description": "Hub id or folder of the encoder, or the description of one with random weights",
                "anyOf": [
                    _TEXT,
                    {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["type"],
                        "properties": _described(encoder_keys, OwnEncoder),
                    },
                ],
            },
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
                    "required": ["name", "type", "dataset"],
                    "properties": _described(task_keys, TaskSpec),
                    "anyOf": [{"required": ["label"]}, {"properties": {"type": {"enum": _without_labels()}}}],
                },
            },
            "card": {
                "type": "object",
                "description": "what the model card says that training cannot know",
                "additionalProperties": False,
                "properties": {
                    "name": _TEXT,
                    "license": _TEXT,
                    "language": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]},
                },
            },
            "search": {
                "type": "object",
                "description": "training arguments that hf-mtl tune searches: a list of values, or low and high",
                "additionalProperties": {"anyOf": [_VALUES, _RANGE]},
            },
            **_described(_ARCHITECTURE, MultiTaskConfig),
            **{key: refinement[key] for key in REFINEMENT},
        },
    }


def _without_labels() -> list[str]:
    return [name for name in HEADS.names() if HEADS.get(name).masks_tokens]


def _schema_type(annotation: str) -> dict[str, Any]:
    numbers = {"float": {"type": "number"}, "bool": {"type": "boolean"}, "int": {"type": "integer", "minimum": 1}}
    item: dict[str, Any] = next((schema for name, schema in numbers.items() if name in annotation), _TEXT)
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
