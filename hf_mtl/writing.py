"""Files written whole or not at all: under a temporary name first, then renamed; and JSON that every reader takes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from hf_mtl.errors import HfMtlError, OutputError


@contextmanager
def replacing(target: Path) -> Generator[Path]:
    """Give a temporary name beside a file, and rename it to the file when all went well.

    Args:
        target: the file to write; where it is a link, the file it points to.

    Raises:
        OutputError: the file cannot be written.
    """
    place = Path(os.path.realpath(target))
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(place)
    except OSError as error:
        if isinstance(error, HfMtlError):
            raise
        raise OutputError(str(error.strerror or error), where=str(target), mend="choose another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(text: str, target: Path) -> None:
    """Write a text file in UTF-8.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_target(target: Path) -> None:
    """Check that a file can be written, before the work is done whose result it will hold.

    Raises:
        OutputError: it is a folder, or there is no folder to write it to.
    """
    if target.is_dir():
        raise OutputError("it is a folder", where=str(target), mend="name a file")
    if not target.parent.is_dir():
        raise OutputError("there is no such folder", where=str(target.parent), mend="make it first")
    if not os.access(target.parent, os.W_OK):
        raise OutputError("the folder cannot be written", where=str(target.parent), mend="choose another place")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Write JSON that every reader takes, text of every script as it is.

    What is not a number becomes null, and what JSON has no type for (a date) becomes text.

    Example:
        >>> to_json({"text": "上海", "score": float("nan")})
        '{"text": "上海", "score": null}'
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        value = _finite(value)
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=str)
    # A lone surrogate can stand in JSON as an escape, but not in UTF-8.
    return text if _is_encodable(text) else json.dumps(value, indent=indent, default=str)


def to_json_line(value: Any) -> bytes:
    """Write JSON as `to_json` does, without blanks and in UTF-8, with a line end: several times faster, for many rows.

    Example:
        >>> print(to_json_line({"text": "上海", "score": float("nan")}).decode(), end="")
        {"text":"上海","score":null}
    """
    try:
        return orjson.dumps(value, default=str, option=_AS_JSON_DOES)
    except orjson.JSONEncodeError:  # lone surrogates, and whole numbers of more than 64 bits
        return to_json(value).encode() + b"\n"


_AS_JSON_DOES = (
    orjson.OPT_APPEND_NEWLINE
    | orjson.OPT_NON_STR_KEYS
    | orjson.OPT_SERIALIZE_NUMPY
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_DATACLASS
)


def read_json(source: Path) -> Any:
    """Read a JSON file; `None` where there is none, or it was cut off.

    Example:
        >>> read_json(Path("no-such-file.json")) is None
        True
    """
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class TextTable:
    """A table of text, for the terminal and for files.

    Args:
        title: what it shows.
        header: the names of the columns.
        rows: the cells, one for each column.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return it as Markdown, columns but the first flush right.

        Example:
            >>> print(TextTable("Scores", ("task", "f1"), [("slots", "0.9")]).markdown())
            **Scores**
            <BLANKLINE>
            | task | f1 |
            | --- | ---: |
            | slots | 0.9 |
            <BLANKLINE>
        """
        lines = [self.header, ("---", *["---:"] * (len(self.header) - 1)), *self.rows]
        cells = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
        return "\n".join([f"**{self.title}**", "", *(f"| {line} |" for line in cells), ""])


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in cast(list[Any], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
