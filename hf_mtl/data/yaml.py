"""YAML as version 1.2 reads it: `yes`, `no`, `on` and `off` are text, `1e-4` is a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from hf_mtl.errors import RecipeError


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1; this loader has the scalars of YAML 1.2's core schema, and refuses a key given twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is not text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        base = {"0x": 16, "0o": 8}.get(text[:2], 10)  # a leading zero means nothing in YAML 1.2
        return int(text, base)


class _Yaml12Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or YAML 1.2 would take for another type, so that both read it alike."""


_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _Yaml12Loader.construct_yaml_int)
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
):
    for _class in (_Yaml12Loader, _Yaml12Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def parse_yaml(text: str, *, where: str) -> Any:
    """Read YAML 1.2.

    Args:
        text: the YAML.
        where: what to call it in errors, such as the file's name.

    Raises:
        RecipeError: it is not well formed; names the line.

    Example:
        >>> parse_yaml("{rate: 1e-4, labels: [no, yes], on: true}", where="example")
        {'rate': 0.0001, 'labels': ['no', 'yes'], 'on': True}
    """
    try:
        return yaml.load(text, _Yaml12Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(
            f"not valid YAML: {error.problem}", where=f"{where}{line}", mend="correct the line"
        ) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"not valid YAML: {error}", where=where, mend="save the file as UTF-8 text") from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        RecipeError: the file cannot be read, is not UTF-8, or is not well formed.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8-sig"), where=str(path))
    except UnicodeDecodeError as error:
        raise RecipeError("the file is not UTF-8", where=str(path), mend="save the file as UTF-8") from error
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise RecipeError(reason, where=str(path), mend="correct the path") from error


def parse_scalar(text: str) -> Any:
    """Read one value as YAML 1.2 would, for options on the command line.

    Example:
        >>> parse_scalar("1e-4"), parse_scalar("yes"), parse_scalar("true")
        (0.0001, 'yes', True)
    """
    try:
        return yaml.load(text, _Yaml12Loader)
    except yaml.YAMLError:
        return text


def write_yaml(value: Any) -> str:
    """Write YAML that both versions of it read alike.

    Example:
        >>> write_yaml({"label": "1e-4", "other": "no"})
        "label: '1e-4'\\nother: 'no'\\n"
    """
    return yaml.dump(value, Dumper=_Yaml12Dumper, sort_keys=False, allow_unicode=True, width=120)
