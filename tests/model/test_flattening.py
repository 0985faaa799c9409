"""From modules to one file: what is taken along, under which names, and what is refused."""

from __future__ import annotations

import ast
import sys
from types import ModuleType
from typing import Any

import pytest

from hf_mtl.errors import SpecError
from hf_mtl.model.flattening import Flattening, import_lines

MODULES = {
    "p": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.shapes import Square\n",
    "p.numbers": '''
"""Numbers."""
import math

# Two comment lines
# above it.
SIZE = 4  # beside it
"""What it is."""
UNUSED = 5

def half(x: float) -> float:
    """Halve."""
    return x / 2 + math.floor(0.5)

def _value():
    return SIZE
''',
    "p.shapes": '''
from __future__ import annotations
import dataclasses
from typing import TYPE_CHECKING, Any
import numpy as np
from p.numbers import SIZE as EDGE, half
if TYPE_CHECKING:
    from p.users import User

def _value(user: User | None = None) -> Any:
    EDGE_OF = half(EDGE)
    return np.float64(EDGE_OF)

def decorated(function):
    return function

@decorated
# a comment between
@dataclasses.dataclass
class Square:
    """A shape."""

    edge: int = EDGE

    def area(self):
        return self.edge * _value() * 2

    # With a comment of its own.
    @property
    def user(self):
        from p.users import User

        return User()

    def last(self):
        import torch
        import rare_package
        from rare_package.parts import (
            one,
            two,
        )
        try:
            import rarer_package
        except ImportError:
            rarer_package = None
        return rare_package.of(self, torch, rarer_package)
''',
    "p.users": "from p.shapes import Square\nfrom p.numbers import _value\n\nclass User(Square):\n    v = _value()\n",
}


def flattened(*names: str, **modules: str) -> Flattening:
    flat = Flattening("p", read={**MODULES, **modules}.__getitem__)
    for name in names:
        flat.add(*name.rsplit(".", 1))
    return flat


def executed(flat: Flattening) -> dict[str, Any]:
    """Run the file as a module, the package being absent."""
    outright, brought = import_lines(flat.externals)
    source = "\n".join(["from __future__ import annotations", *outright, *brought, flat.text()])
    module = sys.modules["flat"] = ModuleType("flat")  # dataclasses look their module up
    try:
        exec(compile(source, "flat.py", "exec"), vars(module))
    finally:
        del sys.modules["flat"]
    return vars(module)


def test_what_is_needed_is_taken_along_and_works() -> None:
    flat = flattened("p.shapes.Square")
    space = executed(flat)
    assert space["Square"]().area() == 4 * 2.0 * 2
    assert "UNUSED" not in space
    assert "User" not in space  # named for type checkers only


def test_text_is_kept_with_its_comments() -> None:
    text = flattened("p.shapes.Square").text()
    assert '# Two comment lines\n# above it.\nSIZE = 4  # beside it\n"""What it is."""\n' in text
    assert "@decorated\n# a comment between\n@dataclasses.dataclass\nclass Square:" in text


def test_methods_that_import_from_the_package_when_called_are_left_out() -> None:
    text = flattened("p.shapes.Square").text()
    assert "User()" not in text
    assert "With a comment of its own" not in text
    assert "        return self.edge * _value() * 2\n\n    def last(self):" in text


def test_a_name_that_was_imported_as_another_is_that_of_its_definition() -> None:
    text = flattened("p.shapes.Square").text()
    assert "    edge: int = SIZE\n" in text
    assert "    EDGE_OF = half(SIZE)\n" in text


def test_of_two_definitions_of_one_name_the_second_gets_another() -> None:
    flat = flattened("p.users.User", "p.shapes.Square")
    text = flat.text()
    assert "def _value():\n    return SIZE" in text
    assert "def _shapes_value(user" in text
    assert "return self.edge * _shapes_value() * 2" in text
    space = executed(flat)
    assert space["User"].v == 4
    assert space["User"]().area() == 4 * 2.0 * 2


def test_modules_come_in_the_order_they_need_each_other() -> None:
    text = flattened("p.users.User").text()
    places = [text.index(f"-- {name}\n") for name in ("p.numbers", "p.shapes", "p.users")]
    assert places == sorted(places)


def test_the_order_of_what_is_asked_for_does_not_matter_to_what_is_taken() -> None:
    names = ("p.users.User", "p.shapes.Square", "p.numbers.half")
    first, second = flattened(*names).text(), flattened(*reversed(names)).text()
    assert sorted(ast.unparse(node) for node in ast.parse(first).body) == sorted(
        ast.unparse(node) for node in ast.parse(second).body
    )


def test_a_name_that_the_package_offers_on_top_is_found() -> None:
    own = "from p import Square\n\nclass Mine(Square):\n    pass\n"
    assert executed(flattened("own.Mine", own=own))["Mine"].__mro__[1].__name__ == "Square"


def test_imports_of_rare_packages_stand_inside_try() -> None:
    text = flattened("p.shapes.Square").text()
    assert (
        "        try:\n            import rare_package\n        except ImportError as error:\n"
        '            raise ImportError("this model needs the package rare_package: pip install rare_package")'
    ) in text
    assert "        import torch\n        try:" in text
    assert "        try:\n            from rare_package.parts import (\n                one,\n" in text
    assert "                two,\n            )\n        except ImportError as error:\n" in text
    assert text.count("import rarer_package") == 1


def test_imports_are_written_in_groups() -> None:
    outright, brought = import_lines(flattened("p.users.User").externals)
    assert outright == ["import dataclasses", "import math", "from typing import Any", ""]
    assert brought == ["import numpy as np"]


REFUSED = {
    "a rare package": ("import rare\ndef f():\n    return rare.x\n", "'rare' comes from 'rare'"),
    "a file beside it": ("from .beside import x\ndef f():\n    return x\n", "'x' comes from '.beside'"),
    "a module of the package": ("from p import numbers\ndef f():\n    return numbers.SIZE\n", "there is no 'numbers'"),
    "the package": ("import p.numbers\ndef f():\n    return p.numbers.SIZE\n", "'p' is a module of p"),
    "an unknown name": ("def f(x, *, y=1):\n    z = [q for q in x]\n    return z, missing\n", "'f' uses 'missing'"),
    "an import when called": ("def f():\n    from p.numbers import SIZE\n    return SIZE\n", "imports from p when"),
    "one alias for two things": (
        "from p.shapes import Square\nimport torch as np\ndef f():\n    return np, Square\n",
        "'np' means two things",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_along_is_refused(case: str) -> None:
    source, problem = REFUSED[case]
    with pytest.raises(SpecError, match=problem):
        flattened("own.f", own=source)


def test_a_local_name_that_would_have_to_change_is_refused() -> None:
    own = (
        "def _value():\n    return 1\n\ndef f(x):\n    _value = x\n    return _value\n\ndef g():\n    return _value()\n"
    )
    flat = flattened("p.numbers._value", "own.g", own=own)
    assert "def _own_value" in flat.text()
    with pytest.raises(SpecError, match="'_value' stands in two files, and is a local name too"):
        flattened("p.numbers._value", "own.f", "own.g", own=own).text()
