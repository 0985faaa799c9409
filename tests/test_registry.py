"""Registries: members are found by the name of their file, listed without importing them, and open to a user's own."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hf_mtl import registry
from hf_mtl.errors import SpecError
from hf_mtl.registry import HEADS, Registry

REGISTRIES = {name: value for name, value in vars(registry).items() if isinstance(value, Registry)}


def files(family: Registry[Any]) -> list[str]:
    """Name the members that have a file, not those that other tests may have registered."""
    spec = find_spec(family.package)
    folders = (spec.submodule_search_locations if spec else None) or []
    names = {path.stem for folder in folders for path in Path(folder).glob("*.py")}
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


# Some families may not be built yet.
MEMBERS = [
    pytest.param(family, name, id=f"{variable}-{name}")
    for variable, family in REGISTRIES.items()
    for name in files(family)
]


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    """A family of two members, of which importing one has an effect that can be seen."""
    folder = tmp_path / "fruit_family"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from hf_mtl.registry import Registry\nFRUIT = Registry('fruit', package=__name__)"
    )
    member = "from fruit_family import FRUIT\n@FRUIT.register('{0}')\nclass {1}: pass\n"
    (folder / "apple.py").write_text(member.format("apple", "Apple"))
    (folder / "pear.py").write_text(member.format("pear", "Pear"))
    (folder / "base.py").write_text("raise RuntimeError('not a member')")
    (folder / "_shared.py").write_text("raise RuntimeError('not a member')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "fruit_family"]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module("fruit_family").FRUIT


def test_names_are_the_files_that_are_members(family: Registry[Any]) -> None:
    assert family.names() == ("apple", "pear")


def test_listing_and_checking_import_no_member(family: Registry[Any]) -> None:
    assert family.check("pear") == "pear"
    assert not {"fruit_family.apple", "fruit_family.pear"} & set(sys.modules)


def test_looking_up_imports_that_member_alone(family: Registry[Any]) -> None:
    pear = family.get("pear")
    assert pear.__name__ == "Pear"
    assert family.get("pear") is pear
    assert "fruit_family.apple" not in sys.modules


def test_own_member_is_found(family: Registry[Any]) -> None:
    @family.register("plum")
    class Plum:
        pass

    assert family.get("plum") is Plum
    assert family.names() == ("apple", "pear", "plum")


@pytest.mark.parametrize("name", ["cherry", "base", "_shared", "__init__", "", "Apple", None, 3])
def test_unknown_name_lists_the_valid_ones(family: Registry[Any], name: Any) -> None:
    for ask in (family.check, family.get):
        with pytest.raises(SpecError) as caught:
            ask(name)
        message = str(caught.value)
        assert message == f"{name!r} is not a fruit; use one of 'apple', 'pear'"


def test_taken_name_is_refused(family: Registry[Any]) -> None:
    family.get("apple")
    with pytest.raises(SpecError, match=r"fruit 'apple' is taken by fruit_family\.apple\.Apple"):
        family.register("apple")(type("Apple", (), {}))
    with pytest.raises(SpecError, match="taken"):
        family.register("apple")(type("Other", (), {"__module__": "fruit_family.apple"}))


def test_class_made_again_takes_the_place_of_the_first(family: Registry[Any]) -> None:
    # What happens when the cell of a notebook runs twice.
    first, second = (type("Plum", (), {"__module__": "__main__"}) for _ in range(2))
    family.register("plum")(first)
    family.register("plum")(second)
    assert family.get("plum") is second


def test_family_without_files_holds_registered_members_only() -> None:
    family: Registry[Any] = Registry("nut", package="hf_mtl.no_such_family")
    assert family.names() == ()
    nut = family.register("walnut")(type("Walnut", (), {}))
    assert family.names() == ("walnut",)
    assert family.get("walnut") is nut


@pytest.mark.parametrize("family", REGISTRIES.values(), ids=REGISTRIES)
def test_package_of_the_family_exists(family: Registry[Any]) -> None:
    assert find_spec(family.package) is not None


@pytest.mark.parametrize(("family", "name"), MEMBERS)
def test_file_of_a_member_registers_its_own_name(family: Registry[Any], name: str) -> None:
    member = family.get(name)
    assert isinstance(member, type)
    assert member.__module__ == f"{family.package}.{name}"
    assert member.__doc__


@pytest.mark.parametrize("variable", REGISTRIES)
def test_listing_names_imports_nothing_heavy(variable: str) -> None:
    code = (
        f"import sys; from hf_mtl.registry import {variable}; names = {variable}.names(); "
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules], *names)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["[]", *files(REGISTRIES[variable])]


def test_shipped_task_types_are_listed() -> None:
    types = {"sequence_classification", "multi_label_classification", "regression", "token_classification"}
    assert types <= set(HEADS.names())
