"""Checks of single values, with errors that name the argument, what was found and what is allowed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import cast

from hf_mtl.errors import SpecError, one_of


def check_count(argument: str, value: object, *, optional: bool = False) -> None:
    """Check that a value is a whole number of at least 1, or where it is optional `None`.

    Raises:
        SpecError: it is not; names the argument.
    """
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SpecError(f"{argument} is {value!r}", mend="give a whole number, at least 1")


def check_choice(argument: str, value: object, allowed: Sequence[object]) -> None:
    """Check that a value is one of those allowed.

    Raises:
        SpecError: it is not; names the argument.
    """
    if value not in allowed:
        raise SpecError(f"{argument} is {value!r}", mend=f"use one of {one_of(allowed)}")


def check_number(
    argument: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
) -> None:
    """Check that a value is a finite number within bounds.

    Raises:
        SpecError: it is not; names the argument.
    """
    bounds = {"above": above, "at least": at_least, "below": below}
    wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if good:
        number = float(cast(float, value))
        good = (above is None or number > above) and (at_least is None or number >= at_least)
        good = good and (below is None or number < below)
    if not good:
        raise SpecError(f"{argument} is {value!r}", mend=f"give a number {wanted}")
