"""The files that travel with a saved model, so that it loads and answers where hf_mtl is not installed.

`modeling_hf_mtl.py` holds configuration, model and pipeline in one flat file, which is all that transformers can load
from a model's folder. It is made from this package's own source each time, so that there is no second copy to keep.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hf_mtl import __version__
from hf_mtl.errors import OutputError, SpecError
from hf_mtl.model.encoders.base import adapter_for
from hf_mtl.model.flattening import Flattening, Place, import_lines
from hf_mtl.registry import ENCODERS, HEADS, Registry
from hf_mtl.writing import write_text

if TYPE_CHECKING:
    from hf_mtl.model.modeling import MultiTaskModel

PIPELINE_TASK = "multi-task"

CODE_NAME = "modeling_hf_mtl.py"
HANDLER_NAME = "handler.py"
REQUIREMENTS_NAME = "requirements.txt"
FILE_NAMES = (CODE_NAME, HANDLER_NAME, REQUIREMENTS_NAME)

MARK = "# Written by hf_mtl"
"""How each of the files begins: only such a file is ever replaced or removed."""

REQUIREMENTS = "torch>=2.8\ntransformers>=5.20,<6\n"
"""What the files need, for those who serve the model."""

_PACKAGE = "hf_mtl"
_ROOTS = (
    ("hf_mtl.configuration", "MultiTaskConfig"),
    ("hf_mtl.model.modeling", "MultiTaskModel"),
    ("hf_mtl.inference.pipeline", "MultiTaskPipeline"),
)
_FAMILIES: dict[str, Registry[Any]] = {"HEADS": HEADS, "ENCODERS": ENCODERS}
_HANDLER = "hf_mtl.model.endpoint_handler"

_HEADER = f'''{MARK} {__version__}, from its own source; it is written anew whenever the model is saved.
# SPDX-License-Identifier: Apache-2.0
"""A multi-task model: one shared encoder and one head per task, without need of the package it was made with.

    AutoModel.from_pretrained(name_or_path, trust_remote_code=True)
    pipeline("{PIPELINE_TASK}", name_or_path, trust_remote_code=True)

See each class for what it takes and returns. `trust_remote_code` runs this file: read it first, or pin a revision.
"""

from __future__ import annotations
'''


@contextmanager
def travelling(model: MultiTaskModel, folder: Path, *, remote_code: bool) -> Generator[None]:
    """Write the code into the folder that a model is saved to, and name it in its configuration inside the block.

    Args:
        model: the model.
        folder: where it is saved.
        remote_code: `False` leaves the code out, and removes what an earlier save wrote.

    Raises:
        SpecError: the code of a head cannot travel.
        OutputError: the files cannot be written.
    """
    files = remote_files(model) if remote_code else {}  # nothing is written where this fails
    if folder.exists() and not folder.is_dir():
        raise OutputError("it is a file", where=str(folder), mend="name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILE_NAMES:
        path = folder / name
        written_here = not path.exists() or path.read_text(encoding="utf-8", errors="replace").startswith(MARK)
        if written_here and name in files:
            write_text(files[name], path)
        elif written_here:
            path.unlink(missing_ok=True)
    config: Any = model.config
    if remote_code:
        config.auto_map, config.custom_pipelines = auto_map(), custom_pipelines()
    try:
        yield
    finally:
        for name in ("auto_map", "custom_pipelines"):
            vars(config).pop(name, None)


def auto_map() -> dict[str, str]:
    """Return what `config.json` tells the Auto classes: which class of the file they load."""
    module = CODE_NAME.removesuffix(".py")
    return {"AutoConfig": f"{module}.MultiTaskConfig", "AutoModel": f"{module}.MultiTaskModel"}


def custom_pipelines() -> dict[str, Any]:
    """Return what `config.json` tells `pipeline`."""
    implementation = f"{CODE_NAME.removesuffix('.py')}.MultiTaskPipeline"
    return {PIPELINE_TASK: {"impl": implementation, "pt": ["AutoModel"], "type": "text"}}


def remote_files(model: MultiTaskModel) -> dict[str, str]:
    """Return the files that travel with a model, by name.

    Raises:
        SpecError: a head or encoder adapter that a user registered cannot travel, or the model is of a class of its
            own.
    """
    # Sharded training puts a class of its own in front of the model's.
    if type(model).__name__.removeprefix("FSDP") != "MultiTaskModel":
        raise SpecError(
            f"the code of {type(model).__name__} does not travel with the model",
            mend="save with remote_code=False, or give the difference to a head",
        )
    return {
        CODE_NAME: flat_source(tuple(dict.fromkeys(_foreign_members(model)))),
        HANDLER_NAME: f"{MARK} {__version__}; see {CODE_NAME}.\n{_read(_HANDLER)}",
        REQUIREMENTS_NAME: f"{MARK} {__version__}, for those who serve the model.\n{REQUIREMENTS}",
    }


def _foreign_members(model: MultiTaskModel) -> Iterator[tuple[str, str, type]]:
    """Yield family, name and class of the heads and the adapter of a model that are not of this package."""
    members: list[tuple[str, str, type]] = [("HEADS", spec.type, type(model.head(spec.name))) for spec in model.specs]
    names = {ENCODERS.get(name): name for name in ENCODERS.names()}
    adapter = adapter_for(model.config.get_text_config())  # the model's own may be one that packs while it is trained
    members.append(("ENCODERS", names[adapter], adapter))
    for family, name, member in members:
        if member.__module__.partition(".")[0] != _PACKAGE:
            yield family, name, member


@cache
def flat_source(foreign: tuple[tuple[str, str, type], ...] = ()) -> str:
    """Write configuration, model and pipeline, with every head and adapter of the package, as one module.

    Args:
        foreign: family, name and class of members that users registered.

    Returns:
        The text of the module; the same each time.

    Raises:
        SpecError: the source of a foreign member is not to be had, or needs more than its own file.

    Example:
        >>> compile(flat_source(), "modeling_hf_mtl.py", "exec").co_name
        '<module>'
    """
    sources: dict[str, str] = {}
    flat = Flattening(_PACKAGE, read=lambda name: sources[name] if name in sources else _read(name))
    for module, name in _ROOTS:
        flat.add(module, name)
    for family in _FAMILIES.values():
        for file in family.files:
            module = f"{family.package}.{file}"
            for name in _registered(flat, module):
                flat.add(module, name)
    added: list[tuple[str, str, Place]] = []
    for family, name, member in foreign:
        place = Place(member.__module__, member.__name__)
        try:
            sources[place.module] = _source_of(member)
            flat.add(*place)
        except SpecError as error:
            raise SpecError(
                f"its code cannot travel with the model ({error})",
                where=f"{_FAMILIES[family].kind} {name!r}",
                mend="save with remote_code=False",
            ) from error
        if place.name not in _registered(flat, place.module):
            added.append((family, name, place))
    registrations = [f'{family}.register("{name}")({flat.final_names()[place]})' for family, name, place in added]
    text = flat.text()
    outright, brought = import_lines(flat.externals)
    guarded = "\n".join(f"    {line}" for line in "\n".join(brought).split("\n"))
    parts = [
        _HEADER,
        "\n".join(outright),
        "\ntry:  # what transformers itself depends on",
        guarded,
        "except ImportError as error:",
        '    raise ImportError("install transformers with all that it depends on") from error\n\n',
        text,
    ]
    if registrations:
        parts += ["\n", *registrations]
    # In one file there are no others to look for members in.
    registries = re.compile(rf'^(\w+: Registry\[.+\] = Registry\("[^"]+"), package="{_PACKAGE}[\w.]*"\)$', re.MULTILINE)
    return registries.sub(r"\1)", "\n".join(parts)) + "\n"


def _registered(flat: Flattening, module: str) -> list[str]:
    """Return the classes of a module that are members of a family."""
    written = flat.module(module)
    return [
        name
        for name, place in written.names.items()
        if any(".register(" in ast.unparse(each) for each in getattr(written.tree.body[place], "decorator_list", []))
    ]


@cache
def _read(module: str) -> str:
    spec = find_spec(module)
    source = cast(Any, spec.loader).get_source(module) if spec is not None else None
    if source is None:
        raise SpecError(f"the source of {module} is not installed", mend="save with remote_code=False")
    return source


def _source_of(member: type) -> str:
    """Return the text of the file, or the notebook cell, that defines a class."""
    if "." in member.__qualname__:
        raise SpecError(f"{member.__name__} is defined inside of something else", mend="define it at the top of a file")
    try:
        # Of a class in a notebook only its functions know the cell.
        inside = next((each for each in vars(member).values() if inspect.isfunction(each)), None)
        file = inspect.getsourcefile(inside or member)
        lines = linecache.getlines(file) if file is not None else []
    except (OSError, TypeError):
        lines = []
    if not lines:
        raise SpecError(f"the source of {member.__name__} is not to be had", mend="define it in a file")
    return "".join(lines)
