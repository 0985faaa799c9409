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

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # a tag on a value it does not fit
            problem = f"{str(node.value)[:80]!r} is not of the type {node.tag.rsplit(':')[-1]!r}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error

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

    def ignore_aliases(self, data: Any) -> bool:
        return True  # a list that stands in two places is written twice

    def represent_text(self, data: str) -> yaml.ScalarNode:
        # PyYAML leaves these line breaks as they are in other styles, and reads them back as spaces.
        style = '"' if any(sign in data for sign in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Yaml12Dumper.add_representer(str, _Yaml12Dumper.represent_text)
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
    except RecursionError as error:
        raise RecipeError("not valid YAML: it is nested too deeply", where=where, mend="nest it less") from error
    except yaml.reader.ReaderError as error:
        place = f"{where}, line {_line_of(text, error.position)}"
        problem = f"the character {chr(error.character)!r} cannot stand in YAML"
        raise RecipeError(problem, where=place, mend="take it out, or save the file as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(
            f"not valid YAML: {error.problem}", where=f"{where}{line}", mend="correct the line"
        ) from error


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        RecipeError: the file cannot be read, is not UTF-8, or is not well formed.
    """
    try:
        raw = path.read_bytes()
        return parse_yaml(raw.decode("utf-8-sig"), where=str(path))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = f"the byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise RecipeError(problem, where=f"{path}, line {line}", mend="save the file as UTF-8") from error
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
        return parse_yaml(text, where="the value")
    except RecipeError:
        return text


def write_yaml(value: Any) -> str:
    """Write YAML that both versions of it read alike.

    Example:
        >>> write_yaml({"label": "1e-4", "other": "no"})
        "label: '1e-4'\\nother: 'no'\\n"
    """
    return yaml.dump(value, Dumper=_Yaml12Dumper, sort_keys=False, allow_unicode=True, width=120)
