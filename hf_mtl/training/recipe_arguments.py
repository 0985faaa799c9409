"""Training arguments as a recipe or the command line gives them: names checked, values typed, the rest completed."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

from hf_mtl.data.recipe import near
from hf_mtl.errors import MissingExtraError, RecipeError, SpecError, one_of
from hf_mtl.training.arguments import CHOICES, MultiTaskTrainingArguments, plain

MOST_NAMED = 20
GONE = {
    "warmup_ratio": "use warmup_steps, which below 1 is a share of all steps",
    "evaluation_strategy": "use eval_strategy",
    "no_cuda": "use use_cpu",
    "group_by_length": "leave it out, rows of like length always come together",
    "logging_dir": "leave it out, or set the environment variable TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "leave it out",
    "save_safetensors": "leave it out, weights are always saved so",
    "per_gpu_train_batch_size": "use per_device_train_batch_size",
    "output_dir": "give the folder where the run is started",
}
"""Arguments that many still know, and what took their place."""

NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def training_arguments(output_dir: str | Path, values: Mapping[str, Any]) -> MultiTaskTrainingArguments:
    """Make training arguments from a recipe's `training` and the command line.

    What is not given follows from what is: without evaluation no best model is looked for, and checkpoints are saved
    when it is evaluated.

    Args:
        output_dir: folder of checkpoints and the trained model.
        values: arguments by name, as YAML gives them.

    Raises:
        RecipeError: a name is unknown, or a value is not allowed; names argument, value and the values allowed.

    Example:
        >>> training_arguments("unused", {"eval_strategy": "no", "learning_rate": 1}).load_best_model_at_end
        False
        >>> training_arguments("unused", {"learning_rate": "fast"})
        Traceback (most recent call last):
            ...
        hf_mtl.errors.RecipeError: training: learning_rate is 'fast'; give a number
    """
    accepted = accepted_arguments(values)
    try:
        return MultiTaskTrainingArguments(output_dir=str(output_dir), **_completed(accepted))
    except (SpecError, MissingExtraError) as error:
        raise RecipeError(error.problem, where="training", mend=error.mend) from None
    except (ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(reason, where="training", mend="correct the argument") from error


def accepted_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check names and types of training arguments, not yet whether their values go together.

    Args:
        values: arguments by name, as YAML gives them.

    Returns:
        The same, with whole numbers as floats where the argument is one, and the other way round.

    Raises:
        RecipeError: a name is unknown, or a value is of the wrong type.

    Example:
        >>> accepted_arguments({"learning_rate": 1, "seed": 3.0})
        {'learning_rate': 1.0, 'seed': 3}
    """
    hints = typing.get_type_hints(MultiTaskTrainingArguments)
    known = {f.name: hints[f.name] for f in fields(MultiTaskTrainingArguments) if f.init and f.name != "output_dir"}
    for name in values:
        if name not in known:
            mend = GONE.get(name) or near(name, list(known), most=MOST_NAMED)
            raise RecipeError(f"unknown argument {name!r}", where="training", mend=mend)
    return {name: _accept(name, value, known[name]) for name, value in values.items()}


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """Add what follows from the arguments given."""
    values = dict(values)
    if any(values.get(name) is False for name in ("bf16", "fp16")):
        values.setdefault("precision", "auto" if values.get("bf16") or values.get("fp16") else "fp32")
    evaluates, saves = plain(values.get("eval_strategy")), plain(values.get("save_strategy"))
    if "no" in (evaluates, saves):
        values.setdefault("load_best_model_at_end", False)
    elif evaluates is not None and saves is None:
        values["save_strategy"] = evaluates
        if evaluates == "steps":
            values.setdefault("save_steps", values.get("eval_steps") or values.get("logging_steps", 50))
    elif saves in ("steps", "epoch") and evaluates is None:
        values["eval_strategy"] = saves
        if saves == "steps":
            values.setdefault("eval_steps", values.get("save_steps", 500))
    return values


def _accept(name: str, value: Any, hint: Any) -> Any:
    """Check a value against an argument's type; whole numbers are taken for floats, and numbers in text refused."""
    kinds = _kinds(hint)
    if type(value) is int and int not in kinds and float in kinds:
        return float(value)
    if type(value) is float and float not in kinds and int in kinds and value.is_integer():
        return int(value)
    if type(value) not in kinds and not isinstance(value, Enum):
        wanted = " or ".join(NAMES.get(kind, "null") for kind in kinds)
        if name in CHOICES:
            wanted = f"one of {one_of(CHOICES[name])}"
        raise RecipeError(f"{name} is {value!r}", where="training", mend=f"give {wanted}")
    return value


def _kinds(hint: Any) -> list[type]:
    """Return the types that YAML can give for a type hint."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds: list[type] = []
    for option in typing.get_args(hint) if union else (hint,):
        origin = typing.get_origin(option) or option
        if origin is typing.Literal:
            kinds += [type(value) for value in typing.get_args(option)]
        elif origin in NAMES or origin is type(None):
            kinds.append(origin)
        elif isinstance(origin, type) and issubclass(origin, str):  # an enumeration
            kinds.append(str)
    return list(dict.fromkeys(kinds))
