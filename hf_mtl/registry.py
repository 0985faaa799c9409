"""Open families: one package per family, one file per member, found by name.

A member's name is the name of its file, so names can be listed and checked without importing anything heavy; the file
is imported when its member is looked up. A user's own member is registered under any other name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Generic, TypeVar

from hf_mtl.errors import SpecError, one_of

if TYPE_CHECKING:  # names for editors and pyright; nothing here is imported when the program runs
    from hf_mtl.data.augmentation.base import Augmentation
    from hf_mtl.explain.methods.base import AttributionMethod
    from hf_mtl.inference.exporters.base import Exporter
    from hf_mtl.model.encoders.base import EncoderAdapter
    from hf_mtl.model.heads.base import TaskHead
    from hf_mtl.training.perturbations.base import Perturbation
    from hf_mtl.training.samplers.base import Sampler

Member = TypeVar("Member", bound=type)


class Registry(Generic[Member]):
    """The members of one open family.

    Args:
        kind: what a member is called in error messages, such as `"task type"`.
        package: the package whose modules are the members, but for `base` and names with a leading underscore; without
            one there are only those that are registered.

    Example:
        >>> heads = Registry("task type", package="hf_mtl.model.heads")
        >>> "regression" in heads.names()
        True
    """

    def __init__(self, kind: str, *, package: str | None = None) -> None:
        self.kind = kind
        self.package = package
        self._members: dict[str, Member] = {}

    def register(self, name: str) -> Callable[[Member], Member]:
        """Return a class decorator that adds the class under `name`.

        Raises:
            SpecError: another class is registered under that name.
        """

        def add(member: Member) -> Member:
            known = self._members.get(name)
            # A notebook cell that runs again makes its class anew, under the same module and name.
            if known is not None and _address(known) != _address(member):
                raise SpecError(f"{self.kind} {name!r} is taken by {_address(known)}", mend="choose another name")
            self._members[name] = member
            return member

        return add

    def names(self) -> tuple[str, ...]:
        """Return every valid name, sorted; imports no member."""
        return tuple(sorted({*self.files, *self._members}))

    @cached_property
    def files(self) -> tuple[str, ...]:
        """The members that the package brings, sorted: the names of its files."""
        package = find_spec(self.package) if self.package else None
        # An empty list finds nothing; `None` would find every module there is.
        paths = (package.submodule_search_locations if package else None) or []
        names = (module.name for module in pkgutil.iter_modules(paths))
        return tuple(sorted(name for name in names if name != "base" and name[0] != "_"))

    def check(self, name: str) -> str:
        """Return `name` if a member has it.

        Raises:
            SpecError: no member has that name; lists the valid ones.
        """
        if name not in self.names():
            article = "an" if self.kind[0] in "aeiou" else "a"
            raise SpecError(f"{name!r} is not {article} {self.kind}", mend=f"use one of {one_of(self.names())}")
        return name

    def get(self, name: str) -> Member:
        """Return the member of that name, importing its file if that has not happened yet.

        Raises:
            SpecError: no member has that name; lists the valid ones.
        """
        if name not in self._members:
            importlib.import_module(f"{self.package}.{self.check(name)}")
        return self._members[name]


def _address(member: type) -> str:
    return f"{member.__module__}.{member.__qualname__}"


HEADS: Registry[type[TaskHead]] = Registry("task type", package="hf_mtl.model.heads")
ENCODERS: Registry[type[EncoderAdapter]] = Registry("encoder adapter", package="hf_mtl.model.encoders")
AUGMENTATIONS: Registry[type[Augmentation]] = Registry("augmentation", package="hf_mtl.data.augmentation")
SAMPLERS: Registry[type[Sampler]] = Registry("sampling strategy", package="hf_mtl.training.samplers")
PERTURBATIONS: Registry[type[Perturbation]] = Registry("perturbation", package="hf_mtl.training.perturbations")
EXPORTERS: Registry[type[Exporter]] = Registry("format of export", package="hf_mtl.inference.exporters")
EXPLAINERS: Registry[type[AttributionMethod]] = Registry("attribution method", package="hf_mtl.explain.methods")
