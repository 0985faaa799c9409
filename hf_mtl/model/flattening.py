"""From the modules of a package to one file: the definitions that some names need, in their own words."""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from hf_mtl.errors import SpecError
from hf_mtl.model.module_source import Definition, Import, Module, bound_names, top_package

FREE = frozenset({"torch", "transformers", *sys.stdlib_module_names})
"""Packages that the file may import outright: whoever loads a model has them."""
BROUGHT = frozenset({"numpy", "huggingface_hub", "safetensors", "tokenizers"})
"""Packages that transformers itself depends on."""
_BUILTINS = frozenset(dir(builtins)) | {"__class__", "__file__", "__name__"}
_WIDTH = 120


class Place(NamedTuple):
    """A name at the top of a module."""

    module: str
    name: str


@dataclass
class Flattening:
    """Collects what some names need, and writes it as one module.

    Args:
        package: the package whose modules are taken apart.
        read: returns the text of a module, by its name.

    Example:
        >>> sizes = "SIZE = 2\\nOTHER = 3"
        >>> functions = "from p.a import SIZE\\n\\ndef double(x):\\n    return SIZE * x"
        >>> flat = Flattening("p", read={"p.a": sizes, "p.b": functions}.__getitem__)
        >>> flat.add("p.b", "double")
        >>> print(flat.text())
        # ---------------------------------------------------------------------- p.a
        SIZE = 2
        # ---------------------------------------------------------------------- p.b
        def double(x):
            return SIZE * x
    """

    package: str
    read: Callable[[str], str]
    externals: dict[str, Import] = field(default_factory=dict[str, Import])
    _modules: dict[str, Module] = field(default_factory=dict[str, Module])
    _chosen: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    _needs: dict[str, dict[str, None]] = field(default_factory=dict[str, dict[str, None]])

    def add(self, module: str, name: str) -> None:
        """Add a definition and all that it needs.

        Raises:
            SpecError: something it needs is not at the top of a module of the package or of its own module, or comes
                from a package that those who load a model may not have.
        """
        chosen = self._chosen.setdefault(module, set())
        self._needs.setdefault(module, {})
        if name in chosen:
            return
        written = self.module(module)
        if name not in written.names:  # one that others may import from here, too
            self._add_imported(module, name)
            return
        chosen.add(name)
        definition = written.definition(name)
        for used in sorted(definition.uses):
            if used in written.names:
                self.add(module, used)
            elif used in written.imports:
                if not written.imports[used].lazy:  # the others are named in annotations, which are not evaluated
                    self._add_imported(module, used)
            elif used not in definition.binds and used not in _BUILTINS:
                raise SpecError(
                    f"{name!r} uses {used!r}, which its file does not define", where=module, mend="define it there"
                )
        for each in definition.imports:
            if self._is_own(top_package(each)):
                raise SpecError(
                    f"{name!r} imports from {self.package} when it is called",
                    where=module,
                    mend="import it at the top",
                )

    def _add_imported(self, module: str, name: str) -> None:
        source = self.module(module).imports.get(name)
        if source is None:
            raise SpecError(f"there is no {name!r} in {module}", mend="define it at the top of the file")
        if self._is_own(source.module):
            if source.name is None:
                raise SpecError(
                    f"{name!r} is a module of {self.package}",
                    where=module,
                    mend=f"import what you need of it: from {source.module} import ...",
                )
            self._needs[module][source.module] = None
            self.add(source.module, source.name)
            return
        top = source.module.partition(".")[0]
        if top not in FREE | BROUGHT:
            raise SpecError(
                f"{name!r} comes from {source.module!r}",
                where=module,
                mend="use only torch, transformers, numpy, the standard library and what the file itself defines",
            )
        if self.externals.setdefault(name, source)[:2] != source[:2]:
            raise SpecError(f"{name!r} means two things", where=module, mend="import it under another name")

    def module(self, name: str) -> Module:
        """Return a module, read once."""
        if name not in self._modules:
            self._modules[name] = Module(name, self.read(name), self.package)
        return self._modules[name]

    def _is_own(self, module: str) -> bool:
        return module.partition(".")[0] == self.package

    # ------------------------------------------------------------------ writing

    def text(self) -> str:
        """Return the definitions without imports, module by module in the order they need each other."""
        parts: list[str] = []
        names = self.final_names()
        for module in self._in_order():
            written = self.module(module)
            places = {written.names[name]: name for name in self._chosen[module]}
            if not places:
                continue
            pieces = [f"# {'-' * 70} {module}"]
            pieces += [self._render(written, written.definition(places[place]), names) for place in sorted(places)]
            parts.append(_spaced(pieces))
        return "\n\n\n".join(parts)

    def _in_order(self) -> list[str]:
        order: dict[str, None] = {}

        def visit(module: str, above: frozenset[str] = frozenset()) -> None:
            for needed in self._needs.get(module, {}):
                if needed not in order and needed not in above:
                    visit(needed, above | {module})
            order[module] = None

        for module in self._chosen:
            visit(module)
        return list(order)

    def final_names(self) -> dict[Place, str]:
        """Return the name of each definition in the one module: the first of two of the same name keeps it.

        Raises:
            SpecError: a name cannot be told from another.
        """
        names: dict[Place, str] = {}
        taken = set(self.externals)
        for module in self._in_order():
            for name in sorted(self._chosen.get(module, ())):
                own = name
                if own in taken:
                    last = module.rpartition(".")[2].strip("_")
                    own = f"_{last}_{name.strip('_')}" if name.startswith("_") else f"{last}_{name}"
                if own in taken:
                    raise SpecError(f"{name!r} stands in two files", where=module, mend="rename one of them")
                taken.add(own)
                names[Place(module, name)] = own
        return names

    def _final_place(self, module: str, name: str) -> Place:
        while name not in self.module(module).names:
            source = self.module(module).imports[name]
            module, name = source.module, str(source.name)
        return Place(module, name)

    def _render(self, module: Module, definition: Definition, names: Mapping[Place, str]) -> str:
        changed: dict[str, str] = {}
        for name in (*bound_names(definition.node), *definition.uses):
            source = module.imports.get(name)
            if name in module.names or (source is not None and self._is_own(source.module)):
                final = names.get(self._final_place(module.name, name), name)
                if final != name:
                    changed[name] = final
        ambiguous = sorted(changed.keys() & definition.binds)
        if ambiguous:
            raise SpecError(
                f"{ambiguous[0]!r} stands in two files, and is a local name too", where=module.name, mend="rename it"
            )
        lines = _renamed(module.lines, definition.node, changed) if changed else list(module.lines)
        _guard(lines, definition.imports)
        return "\n".join(lines[line] for line in definition.lines)


def import_lines(externals: Mapping[str, Import]) -> tuple[list[str], list[str]]:
    """Write the imports of names.

    Args:
        externals: what each name stands for.

    Returns:
        Imports of the standard library, torch and transformers, and those of other packages; formatted.
    """
    groups: tuple[list[str], ...] = ([], [], [])
    whole = sorted((source.module, alias) for alias, source in externals.items() if source.name is None)
    for module, alias in whole:
        groups[_group(module)].append(f"import {module}" + (f" as {alias}" if alias != module else ""))
    modules: dict[str, list[str]] = {}
    for alias, source in sorted(externals.items()):
        if source.name is not None:
            written = source.name if alias == source.name else f"{source.name} as {alias}"
            modules.setdefault(source.module, []).append(written)
    for module, names in sorted(modules.items()):
        line = f"from {module} import {', '.join(names)}"
        if len(line) > _WIDTH - 4 * (_group(module) == 2):
            line = f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"
        groups[_group(module)].append(line)
    standard, free, brought = groups
    return [*standard, "", *free], brought


def _group(module: str) -> int:
    top = module.partition(".")[0]
    return 0 if top in sys.stdlib_module_names else 1 if top in FREE else 2


def _spaced(pieces: Sequence[str]) -> str:
    """Join statements with the empty lines that formatters ask for: two around functions and classes, else one."""
    text = pieces[0]
    for before, after in pairwise(pieces):
        large = any(re.search(r"^(async def|def|class|@)", piece, re.MULTILINE) for piece in (before, after))
        text += ("\n\n\n" if large else "\n") + after
    return text


def _renamed(lines: Sequence[str], node: ast.stmt, changed: Mapping[str, str]) -> list[str]:
    """Write other names in a definition; lines keep their numbers."""
    result = [line.encode() for line in lines]
    places = [(each.lineno - 1, each.col_offset, each.id) for each in ast.walk(node) if isinstance(each, ast.Name)]
    for line, column, name in sorted(places, reverse=True):
        if name in changed:
            text = result[line]
            result[line] = text[:column] + changed[name].encode() + text[column + len(name.encode()) :]
    done = [line.decode() for line in result]
    name: str = getattr(node, "name", "")
    if name in changed:
        done[node.lineno - 1] = re.sub(rf"\b{name}\b", changed[name], done[node.lineno - 1], count=1)
    return done


def _guard(lines: list[str], imports: Sequence[ast.Import | ast.ImportFrom]) -> None:
    """Put imports of packages that not everybody has, made when a function is called, inside `try`, in place.

    Transformers reads the whole file for imports and refuses to load it where one of them is not installed, be it
    needed or not; inside `try` it reads none.
    """
    for each in imports:
        top = top_package(each)
        if top in FREE | BROUGHT:
            continue
        first, last = each.lineno - 1, (each.end_lineno or each.lineno) - 1
        indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
        lines[first : last + 1] = [f"    {line}" for line in lines[first : last + 1]]
        lines[first] = f"{indent}try:\n{lines[first]}"
        lines[last] += (
            f"\n{indent}except ImportError as error:\n"
            f'{indent}    raise ImportError("this model needs the package {top}: pip install {top}") from error'
        )
