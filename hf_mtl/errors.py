"""The errors that hf_mtl raises: a small tree, each saying where it happened, what was found and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class HfMtlError(Exception):
    """Base of every error that hf_mtl raises on purpose.

    Args:
        problem: what is wrong, in one sentence without a final full stop, with the value found.
        where: file, line, row, task or argument the problem was found at.
        mend: what the user can do about it.

    Example:
        >>> str(HfMtlError("label 'meh' is not in the label set", where="a.jsonl, line 3", mend="correct the label"))
        "a.jsonl, line 3: label 'meh' is not in the label set; correct the label"
    """

    def __init__(self, problem: str, *, where: str | None = None, mend: str | None = None) -> None:
        self.problem = problem
        self.where = where
        self.mend = mend
        super().__init__(f"{where}: {problem}" if where else problem)

    def __str__(self) -> str:
        text = f"{self.where}: {self.problem}" if self.where else self.problem
        return f"{text}; {self.mend}" if self.mend else text

    def __reduce__(self) -> tuple[Any, ...]:
        # Without this an error with keyword-only arguments cannot come back from a worker process.
        return _rebuild, (type(self), self.args, self.__dict__)

    def at(self, where: str) -> HfMtlError:
        """Put a place in front of the one known so far: `error.at("task 'topic'")`; returns the same error."""
        self.where = f"{where}, {self.where}" if self.where else where
        return self


class SpecError(HfMtlError, ValueError):
    """A task, a configuration or an argument that cannot work."""


class RecipeError(SpecError):
    """A recipe file that cannot be understood."""


class DataError(HfMtlError, ValueError):
    """A data file, a row or a label that cannot be used."""


class ModelError(HfMtlError, ValueError):
    """A model or encoder that cannot be found, loaded or used as asked."""


class OutputError(HfMtlError, OSError):
    """An output that exists already, or cannot be written."""


class MissingExtraError(HfMtlError, ImportError):
    """An optional dependency that is not installed.

    Args:
        package: the package that could not be imported.
        extra: the extra of hf-mtl that brings it.

    Example:
        >>> print(MissingExtraError("hassil", extra="demo"))
        the package 'hassil' is not installed; pip install "hf-mtl[demo]"
    """

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f"the package {package!r} is not installed", mend=f'pip install "hf-mtl[{extra}]"')


def _rebuild(kind: type[HfMtlError], args: tuple[Any, ...], state: dict[str, Any]) -> HfMtlError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def one_of(values: Iterable[object]) -> str:
    """List the allowed values for an error message.

    Example:
        >>> one_of(["cls", "mean"])
        "'cls', 'mean'"
    """
    return ", ".join(repr(value) for value in values) or "(none)"
