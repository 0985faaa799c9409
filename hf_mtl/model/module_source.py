"""A module as it is written: its definitions, what each of them uses, and what it imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

_NAMED = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler


class Import(NamedTuple):
    """Where an imported name comes from; `name` is `None` for a module as a whole, `lazy` for type checkers only."""

    module: str
    name: str | None
    lazy: bool


@dataclass(frozen=True)
class Definition:
    """A statement at the top of a module that binds a name.

    Args:
        node: the statement; of a class, methods that import from the package when they are called are left out.
        lines: its lines in the module, counted from 0, with the comments above it.
        uses: names of the module that it refers to.
        binds: names that it binds inside, such as arguments and local variables.
        imports: imports inside of it that no `try` guards.
    """

    node: ast.stmt
    lines: Sequence[int]
    uses: frozenset[str]
    binds: frozenset[str]
    imports: Sequence[ast.Import | ast.ImportFrom] = ()


@dataclass(frozen=True)
class Module:
    """A module as it is written.

    Args:
        name: what others import it as.
        source: its text.
        package: imports from this package are resolved; all others are left as imports.
    """

    name: str
    source: str
    package: str
    _definitions: dict[int, Definition] = field(default_factory=dict[int, Definition])

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the text, without their ends."""
        return self.source.splitlines()

    @cached_property
    def tree(self) -> ast.Module:
        """The text, parsed."""
        return ast.parse(self.source)

    @cached_property
    def imports(self) -> dict[str, Import]:
        """What each imported name stands for."""
        found: dict[str, Import] = {}
        for node in self.tree.body:
            checking = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            for inner in node.body if isinstance(node, ast.If) and checking else [node]:
                found |= {name: Import(*source, checking) for name, source in _imported(inner)}
        return found

    @cached_property
    def names(self) -> dict[str, int]:
        """The functions, classes and constants at the top of the module, and the number of the statement of each."""
        return {name: place for place, node in enumerate(self.tree.body) for name in bound_names(node)}

    def definition(self, name: str) -> Definition:
        """Return the statement that binds a name."""
        place = self.names[name]
        if place not in self._definitions:
            after = self.tree.body[place + 1] if place + 1 < len(self.tree.body) else None
            self._definitions[place] = self._definition(self.tree.body[place], after)
        return self._definitions[place]

    def _definition(self, node: ast.stmt, after: ast.stmt | None) -> Definition:
        lines = list(range(self._start(node), _end(node)))
        imports = self._imports_inside(node)
        if isinstance(node, ast.ClassDef) and any(top_package(each) == self.package for each in imports):
            for method in [each for each in node.body if self._calls_package(each)]:
                node.body.remove(method)
                # The empty line above goes too, or two of them would meet.
                gone = range(self._start(method) - 1, _end(method))
                lines = [line for line in lines if line not in gone]
        elif _is_text(after) and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert after is not None  # the docstring of a constant
            lines += range(_end(node), _end(after))
        used = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
        uses, binds = frozenset(used.difference(bound_names(node))), frozenset(_bound_inside(node))
        return Definition(node, lines, uses, binds, self._imports_inside(node))

    def _imports_inside(self, node: ast.stmt) -> list[ast.Import | ast.ImportFrom]:
        # Most statements hold none, and walking through them all takes longer than anything else.
        lines = self.lines[node.lineno - 1 : _end(node)]
        return list(_inner_imports(node)) if any("import " in line for line in lines) else []

    def _calls_package(self, node: ast.stmt) -> bool:
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        return is_function and any(top_package(each) == self.package for each in self._imports_inside(node))

    def _start(self, node: ast.stmt) -> int:
        """Return the first line of a statement, its decorators and the comments right above it; counted from 0."""
        decorators: list[ast.expr] = getattr(node, "decorator_list", [])
        start = min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1
        while start and self.lines[start - 1].lstrip().startswith("#"):
            start -= 1
        return start


def _inner_imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports inside a definition that no `try` guards."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not isinstance(child, ast.Try):
            yield from _inner_imports(child)


def top_package(node: ast.Import | ast.ImportFrom) -> str:
    """Return the name of the package that an import is from; a point where it is relative."""
    name = node.names[0].name if isinstance(node, ast.Import) else node.module if not node.level else "."
    return (name or ".").partition(".")[0]


def _imported(node: ast.stmt) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """Yield the names that an import binds, with module and name they stand for."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            whole = alias.name if alias.asname else alias.name.partition(".")[0]
            yield alias.asname or whole, (whole, None)
    elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
        for alias in node.names:
            yield alias.asname or alias.name, ("." * node.level + (node.module or ""), alias.name)


def bound_names(node: ast.stmt) -> list[str]:
    """Return the names that a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]


def _bound_inside(node: ast.stmt) -> Iterator[str]:
    own = set(bound_names(node))
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store) and each.id not in own:
            yield each.id
        elif isinstance(each, ast.arg):
            yield each.arg
        elif isinstance(each, _NAMED) and each.name and each is not node:
            yield each.name
        elif isinstance(each, ast.Import | ast.ImportFrom):
            yield from (name for name, _ in _imported(each))


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _is_text(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
