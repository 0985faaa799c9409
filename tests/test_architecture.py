"""The architecture, held by reading the source: who may import whom, and what may not be written where."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from hf_mtl.registry import HEADS

PACKAGE = Path(__file__).parents[1] / "hf_mtl"

# Each tier may use itself and the tiers before it, never one after it. Some of these rooms may not be built yet.
TIERS = (
    ("errors", "registry", "checks", "configuration", "writing"),
    ("model",),
    ("data",),
    ("evaluation",),
    ("hub",),
    ("training",),
    ("inference",),
    ("explain",),
    ("auto",),  # imported for what it registers, by `__init__` and what stands after it
    ("demo",),
    ("cli",),
    ("__main__",),
)
RANK = {room: rank for rank, tier in enumerate(TIERS) for room in tier}
# It offers the names of all rooms, and imports one only when a name of it is asked for.
TOP = "__init__"
FAMILIES = (
    ("model", "heads"),
    ("model", "encoders"),
    ("data", "augmentation"),
    ("training", "samplers"),
    ("training", "perturbations"),
    ("inference", "exporters"),
    ("explain", "methods"),
    ("explain", "languages"),
    ("cli",),
)
MAY_PRINT = ("cli", "demo", "scripts")
MAX_LINES = 450


parse = cache(ast.parse)  # every rule reads every file


def sources(root: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(root.rglob("*.py")):
        yield path, parse(path.read_text(encoding="utf-8"), str(path))


def module_parts(path: Path, root: Path) -> tuple[str, ...]:
    """Name a file as an import would: `model/heads/base.py` is `("model", "heads", "base")`."""
    return path.relative_to(root).with_suffix("").parts


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes(node: ast.AST, *, lazy: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node that runs, and whether it runs only when a function is called."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                yield other, lazy
                yield from nodes(other, lazy=lazy)
            continue
        yield child, lazy
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from nodes(child, lazy=lazy or inside)


def imports(path: Path, tree: ast.Module, root: Path) -> Iterator[tuple[int, tuple[str, ...], bool]]:
    """Yield line, module inside the package and laziness of every import of the package itself.

    The last part may be a name inside a module: `("model", "heads", "base", "TaskHead")`.
    """
    package = module_parts(path, root)[:-1]
    for node, lazy in nodes(tree):
        if isinstance(node, ast.Import):
            found = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                module = (root.name, *package[: len(package) - node.level + 1], *module)
            found = [(*module, alias.name) for alias in node.names]
        else:
            continue
        yield from ((node.lineno, parts[1:], lazy) for parts in found if parts[0] == root.name)


def wrong_directions(root: Path) -> list[str]:
    problems: list[str] = []
    for path, tree in sources(root):
        parts = module_parts(path, root)
        room = parts[0]
        if room not in RANK and room != TOP:
            problems.append(f"{path}: {room!r} has no place in the order of rooms")
            continue
        for line, target, lazy in imports(path, tree, root):
            place = f"{path}:{line}"
            there = target[0] if target else TOP
            if there.startswith("__") and there != TOP:
                continue  # `from hf_mtl import __version__`
            if there not in RANK:
                problems.append(f"{place}: imports {there!r} from the top; import it from the room that holds it")
            elif room == TOP:
                if not lazy and RANK[there] > 0:
                    problems.append(f"{place}: imports {there!r} when hf_mtl is imported; do it inside a function")
            elif RANK[there] > RANK[room]:
                problems.append(f"{place}: {room!r} imports {there!r}, which stands after it")
    return problems


def is_member(name: str) -> bool:
    return name != "base" and not name.startswith("_")


def imports_between_members(root: Path) -> list[str]:
    problems: list[str] = []
    for path, tree in sources(root):
        parts = module_parts(path, root)
        family = parts[:-1]
        if family not in FAMILIES or not is_member(parts[-1]):
            continue
        siblings = {file.stem for file in path.parent.glob("*.py") if is_member(file.stem)} - {parts[-1]}
        for line, target, _ in imports(path, tree, root):
            if len(target) > len(family) and target[: len(family)] == family and target[len(family)] in siblings:
                problems.append(f"{path}:{line}: member {parts[-1]!r} imports member {target[len(family)]!r}")
    return problems


def prints(root: Path) -> list[str]:
    return [
        f"{path}:{node.lineno}: print; use logging"
        for path, tree in sources(root)
        if module_parts(path, root)[0] not in MAY_PRINT
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def names_task_type(node: ast.expr) -> bool:
    """Tell whether an operand is a task's type, or a constant (or a collection of them) that names one."""
    if isinstance(node, ast.Attribute) and node.attr in ("type", "task_type"):
        owner = ast.unparse(node.value).split(".")[-1].lower()
        return node.attr == "task_type" or "spec" in owner or "task" in owner
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(names_task_type(item) for item in node.elts)
    if isinstance(node, ast.Name):
        return node.id == "task_type"
    return isinstance(node, ast.Constant) and node.value in HEADS.names()


def type_comparisons(root: Path) -> list[str]:
    problems: list[str] = []
    for path, tree in sources(root):
        if module_parts(path, root)[:2] == ("model", "heads"):
            continue
        for node in ast.walk(tree):
            operands = (
                [node.left, *node.comparators]
                if isinstance(node, ast.Compare)
                else [node.subject]
                if isinstance(node, ast.Match)
                else []
            )
            # Whether two tasks are of one type is a fair question; which type that is, is not.
            alike = len(operands) > 1 and all(isinstance(item, ast.Attribute) for item in operands)
            if not alike and any(names_task_type(operand) for operand in operands):
                assert isinstance(node, ast.Compare | ast.Match)
                problems.append(f"{path}:{node.lineno}: compares a task type; give TaskHead a method instead")
    return problems


def long_files(root: Path) -> list[str]:
    return [
        f"{path}: {lines} lines, more than {MAX_LINES}"
        for path in sorted(root.rglob("*.py"))
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    ]


RULES: tuple[Callable[[Path], list[str]], ...] = (
    wrong_directions,
    imports_between_members,
    prints,
    type_comparisons,
    long_files,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert len(list(sources(PACKAGE))) > 10
    assert rule(PACKAGE) == []


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small package of the same name, which keeps every rule."""
    root = tmp_path / "hf_mtl"
    write(root, "__init__.py", "def __getattr__(name):\n    from hf_mtl.cli import train\n    return train\n")
    write(root, "errors.py", "")
    write(root, "registry.py", "from hf_mtl.errors import HfMtlError\n")
    write(root, "model/heads/__init__.py", "")
    write(root, "model/heads/base.py", "import torch\nfrom hf_mtl.registry import HEADS\n")
    write(root, "model/heads/regression.py", "from hf_mtl.model.heads.base import TaskHead\nfrom . import _rows\n")
    write(root, "model/heads/ranking.py", "import hf_mtl.model.heads.base\ngood = spec.type == 'ranking'\n")
    write(root, "training/trainer.py", "from hf_mtl.model.modeling import MultiTaskModel\nfrom ..data import x\n")
    write(root, "training/check.py", "wrong = task.spec.type != spec.type\n")
    write(root, "auto.py", "from hf_mtl.inference.pipeline import MultiTaskPipeline\n")
    write(root, "cli/__init__.py", "from . import train\n")
    write(
        root,
        "cli/train.py",
        "from hf_mtl import __version__\nimport hf_mtl.training.trainer\nimport hf_mtl.auto\nprint(1)\n",
    )
    write(root, "demo.py", "print('hello')\nif device.type == 'cuda': pass\n")
    return root


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_accepts_a_good_package(rule: Callable[[Path], list[str]], root: Path) -> None:
    assert rule(root) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model/bad.py", "from hf_mtl.training.trainer import Trainer\n"),
        ("model/bad.py", "import hf_mtl.data\n"),
        ("model/bad.py", "import json, hf_mtl.cli.train as train\n"),
        ("model/bad.py", "from hf_mtl import evaluation\n"),
        ("model/bad.py", "from ..data import collator\n"),
        ("model/heads/bad.py", "from ...inference.pipeline import P\n"),
        ("model/__init__.py", "from .. import hub\n"),
        ("model/bad.py", "def late():\n    from hf_mtl.explain import base\n"),
        ("model/bad.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import hf_mtl.cli\n"),
        ("data/bad.py", "from hf_mtl import MultiTaskTrainer\n"),
        ("errors.py", "import hf_mtl.model\n"),
        ("demo.py", "import hf_mtl.cli\n"),
        ("auto.py", "import hf_mtl.demo\n"),
        ("inference/bad.py", "import hf_mtl.auto\n"),
        ("__init__.py", "import hf_mtl.auto\n"),
        ("__init__.py", "from .training.trainer import Trainer\n"),
        ("utils.py", "\n"),
    ],
)
def test_wrong_direction_is_found(name: str, text: str, root: Path) -> None:
    path = write(root, name, text)
    problems = wrong_directions(root)
    assert len(problems) == 1
    assert problems[0].startswith(str(path))


def test_names_for_type_checkers_may_come_from_anywhere(root: Path) -> None:
    write(root, "model/good.py", "if TYPE_CHECKING:\n    from hf_mtl.cli import train\n")
    assert wrong_directions(root) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model/heads/bad.py", "from hf_mtl.model.heads.regression import RegressionHead\n"),
        ("model/heads/bad.py", "from hf_mtl.model.heads import base, regression\n"),
        ("model/heads/bad.py", "def late():\n    from .regression import RegressionHead\n"),
        ("model/heads/bad.py", "from . import ranking\n"),
        ("cli/bad.py", "import hf_mtl.cli.train\n"),
    ],
)
def test_import_between_members_is_found(name: str, text: str, root: Path) -> None:
    write(root, name, text)
    assert len(imports_between_members(root)) == 1


def test_print_is_found(root: Path) -> None:
    write(root, "model/bad.py", "def show(x):\n    print(x)\n")
    assert len(prints(root)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "if spec.type == 'mine': pass",
        "if self.spec.type != other: pass",
        "good = task.type in ('a', 'b')",
        "good = task_type == 'a'",
        "good = kind == 'regression'",
        "good = kind in {'regression', 'mine'}",
        "match spec.type:\n    case 'a': pass",
    ],
)
def test_comparison_of_task_types_is_found(text: str, root: Path) -> None:
    write(root, "training/bad.py", text + "\n")
    assert len(type_comparisons(root)) == 1


def test_long_file_is_found(root: Path) -> None:
    path = write(root, "model/long.py", "x = 1\n" * MAX_LINES)
    assert long_files(root) == []
    path.write_text("x = 1\n" * (MAX_LINES + 1), encoding="utf-8")
    assert len(long_files(root)) == 1
