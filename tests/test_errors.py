"""Errors: one tree, readable, also catchable as a built-in, and whole after a trip between processes."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from hf_mtl import errors
from hf_mtl.errors import (
    DataError,
    HfMtlError,
    MissingExtraError,
    ModelError,
    OutputError,
    RecipeError,
    SpecError,
    one_of,
)

CLASSES = [
    member
    for _, member in inspect.getmembers(errors, inspect.isclass)
    if issubclass(member, Exception) and member is not MissingExtraError
]
EXAMPLES = [*(kind("label is 'meh'", where="line 3", mend="correct it") for kind in CLASSES)]
EXAMPLES.append(MissingExtraError("hassil", extra="demo"))


def named(error: HfMtlError) -> str:
    return type(error).__name__


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_one_of_ours(kind: type[Exception]) -> None:
    assert issubclass(kind, HfMtlError)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (SpecError, ValueError),
        (RecipeError, SpecError),
        (DataError, ValueError),
        (ModelError, ValueError),
        (OutputError, OSError),
        (MissingExtraError, ImportError),
    ],
)
def test_error_is_also_a_builtin(kind: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)


@pytest.mark.parametrize("kind", CLASSES)
def test_message_says_where_what_and_how_to_mend(kind: type[HfMtlError]) -> None:
    assert str(kind("x is 1")) == "x is 1"
    assert str(kind("x is 1", where="line 3")) == "line 3: x is 1"
    assert str(kind("x is 1", mend="make it 2")) == "x is 1; make it 2"
    assert str(kind("x is 1", where="line 3", mend="make it 2")) == "line 3: x is 1; make it 2"


@pytest.mark.parametrize("kind", CLASSES)
def test_at_puts_places_in_front_and_keeps_the_error(kind: type[HfMtlError]) -> None:
    error = kind("x is 1")
    assert error.at("line 3") is error
    assert error.at("a.jsonl") is error
    assert str(error) == "a.jsonl, line 3: x is 1"


@pytest.mark.parametrize("error", EXAMPLES, ids=named)
def test_error_is_whole_after_pickling_and_copying(error: HfMtlError) -> None:
    error = copy.copy(error).at("a.jsonl")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert (again.problem, again.where, again.mend) == (error.problem, error.where, error.mend)
        assert again.args == error.args


def test_missing_extra_gives_the_exact_command() -> None:
    assert 'pip install "hf-mtl[demo]"' in str(MissingExtraError("hassil", extra="demo"))


def test_one_of_quotes_every_value() -> None:
    assert one_of(name for name in ("a", None, 3)) == "'a', None, 3"
    assert one_of([]) == "(none)"
