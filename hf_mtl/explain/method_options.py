"""Attribution methods as users write them on the command line: a name, perhaps with options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_mtl.data.yaml import parse_scalar
from hf_mtl.errors import SpecError
from hf_mtl.explain.explainer import ACCURATE, AUTO, make_method
from hf_mtl.registry import EXPLAINERS


@dataclass(frozen=True)
class Run:
    """A method with its options, as users write it: `"shapley:pairs=10"`.

    Args:
        method: name of the method.
        options: its options.
    """

    method: str
    options: dict[str, Any]

    @classmethod
    def read(cls, text: str) -> Run:
        """Read a method as users write it.

        Raises:
            SpecError: an option has no value.

        Example:
            >>> Run.read("shapley:pairs=10,perturb=mask")
            Run(method='shapley', options={'pairs': 10, 'perturb': 'mask'})
        """
        method, _, rest = text.partition(":")
        options: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            key, sign, value = part.partition("=")
            if not sign:
                raise SpecError(f"the option {part!r} of {method!r} has no value", mend="write it as name=value")
            options[key.strip()] = parse_scalar(value.strip())
        return cls(method.strip(), options)


def read_methods(methods: Sequence[str] | None) -> dict[str, Run]:
    """Read methods as users write them; all there are where none is given.

    Returns:
        The methods by what users wrote.

    Raises:
        SpecError: there is no such method or option.
    """
    runs = {name: Run.read(name) for name in (EXPLAINERS.names() if methods is None else methods)}
    for run in runs.values():
        if run.method not in (AUTO, ACCURATE):
            make_method(run.method, run.options)
    return runs
