"""The keys of a recipe that say what is done to its rows, checked before any data is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from hf_mtl.data.cleaning import CLEANING_STEPS, cleaning_steps
from hf_mtl.data.deduplication import DUPLICATES
from hf_mtl.errors import HfMtlError, RecipeError, one_of
from hf_mtl.registry import AUGMENTATIONS

REFINEMENT = ("cleaning", "deduplicate", "leakage")
"""Keys of a recipe; all datasets have them, unless one gives its own."""
DATASET_REFINEMENT = ("cleaning", "deduplicate", "augmentation")
"""Keys of a dataset."""
LEAKAGE = ("report", "drop", "drop_near")


@dataclass(frozen=True)
class Operation:
    """One entry of a dataset's `augmentation`.

    Args:
        name: name of the operation.
        copies: rows that are added for each training row.
        probability: how likely a word or mention is changed; `None` takes the operation's own.
        options: the operation's options.
    """

    name: str
    copies: int
    probability: float | None
    options: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain values."""
        return {"operation": self.name, "copies": self.copies, "probability": self.probability, **self.options}


def check_refinement(values: Mapping[str, Any], *, streaming: bool = False) -> None:
    """Check what a recipe or one of its datasets says.

    Args:
        values: the keys that are given, of those in `REFINEMENT` and `DATASET_REFINEMENT`.
        streaming: whether the training rows are streamed, of which nothing can be changed.

    Raises:
        RecipeError: a value cannot be.
    """
    for key, value in values.items():
        if value is not None and streaming and value != "report":
            raise RecipeError(
                f"{key} is given for training rows that are streamed", mend=f"leave {key} out, or streaming"
            )
    cleaning_steps(values.get("cleaning"))
    for key, allowed in (("deduplicate", DUPLICATES), ("leakage", LEAKAGE)):
        value = values.get(key)
        if value is not None and value not in allowed:
            raise RecipeError(f"{key} is {value!r}", mend=f"use one of {one_of(allowed)}")
    augmentation_of(values.get("augmentation") or ())


def augmentation_of(values: Any) -> tuple[Operation, ...]:
    """Read a dataset's `augmentation`.

    Raises:
        RecipeError: it is not a list of mappings, an operation is not known, or a value of it cannot be.

    Example:
        >>> augmentation_of([{"operation": "word_deletion"}])[0].copies
        1
    """
    if not isinstance(values, list | tuple):
        raise RecipeError(f"augmentation is {values!r}", mend="write '- {operation: ..., copies: ...}' entries")
    operations: list[Operation] = []
    for entry in cast(Sequence[Any], values):
        if not isinstance(entry, Mapping) or "operation" not in entry:
            raise RecipeError(f"the entry {entry!r} names no operation", mend="write '- {operation: ...}'")
        own = dict(cast(Mapping[str, Any], entry))
        name, copies, probability = own.pop("operation"), own.pop("copies", 1), own.pop("probability", None)
        try:
            kind = AUGMENTATIONS.get(AUGMENTATIONS.check(name))
            for key in own:
                if key not in kind.options:
                    known = ("operation", "copies", "probability", *kind.options)
                    raise RecipeError(f"unknown key {key!r}", mend=f"use {one_of(known)}")
            if isinstance(copies, bool) or not isinstance(copies, int) or copies < 1:
                raise RecipeError(f"copies is {copies!r}", mend="give a whole number, at least 1")
            kind.check(probability, own)
        except HfMtlError as error:
            raise error.at(f"augmentation {name!r}") from None
        operations.append(Operation(name, copies, probability, own))
    return tuple(operations)


def moved_files(values: Sequence[Mapping[str, Any]], moved: Callable[[str], str]) -> list[dict[str, Any]]:
    """Return a dataset's `augmentation` with the paths in it rewritten."""
    return [
        {key: moved(value) if key in AUGMENTATIONS.get(entry["operation"]).paths else value
         for key, value in entry.items()}
        for entry in values
    ]  # fmt: skip


def refinement_schema() -> dict[str, dict[str, Any]]:
    """Return the JSON schema of these keys."""
    step: dict[str, Any] = {"anyOf": [{"enum": list(CLEANING_STEPS)}, {"type": "object"}]}
    operation = {"type": "object", "required": ["operation"],
                 "properties": {"operation": {"enum": list(AUGMENTATIONS.names())}}}  # fmt: skip
    return {
        "cleaning": {"anyOf": [step, {"type": "array", "items": step}, {"type": "null"}]},
        "deduplicate": {"enum": [*DUPLICATES, None]},
        "leakage": {"enum": [*LEAKAGE, None], "description": "what is done about training rows that stand in held-out "
                    "ones of any dataset"},
        "augmentation": {"anyOf": [{"type": "array", "items": operation}, {"type": "null"}]},
    }  # fmt: skip
