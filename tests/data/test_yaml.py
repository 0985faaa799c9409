"""YAML 1.2: the scalars of its core schema, text that both versions read alike, and errors that name the line."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_mtl.data.yaml import parse_scalar, parse_yaml, read_yaml, write_yaml
from hf_mtl.errors import RecipeError

SCALARS: list[tuple[str, Any]] = [
    # YAML 1.2.2, chapter 10.3 (core schema); the comment says what YAML 1.1 made of it
    ("true", True), ("True", True), ("TRUE", True), ("false", False), ("False", False), ("FALSE", False),
    ("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"), ("NO", "NO"), ("y", "y"), ("n", "n"),  # booleans
    ("tRue", "tRue"),
    ("null", None), ("Null", None), ("NULL", None), ("~", None), ("", None), ("none", "none"), ("nUll", "nUll"),
    ("0", 0), ("7", 7), ("-19", -19), ("+12", 12), ("0o14", 12), ("0x1F", 31),
    ("012", 12),  # octal
    ("08", 8),  # text
    ("1_000", "1_000"),  # 1000
    ("0b11", "0b11"),  # 3
    ("12:30:45", "12:30:45"),  # sexagesimal
    ("-0x1F", "-0x1F"),  # -31
    ("0o8", "0o8"), ("0x", "0x"), ("+", "+"), ("--1", "--1"),
    ("0.5", 0.5), (".5", 0.5), ("1.", 1.0), ("-2.5e3", -2500.0), ("+1.0", 1.0), ("1.5E-2", 0.015),
    ("1e-4", 0.0001),  # text
    ("2e5", 200_000.0),  # text
    ("1e", "1e"), (".", "."), ("e5", "e5"), ("1.2.3", "1.2.3"),
    (".inf", math.inf), ("-.Inf", -math.inf), ("+.INF", math.inf), ("inf", "inf"), ("nan", "nan"), (".NaN", math.nan),
    ("2024-01-01", "2024-01-01"),  # a date
    ("2024-01-01 12:00:00", "2024-01-01 12:00:00"),  # a time
    ("=", "="), ("<<", "<<"),  # types of their own
    ("text", "text"), ("'yes'", "yes"), ('"1"', "1"), ("!!str 1", "1"), ("!!int '3'", 3), ("!!float 2", 2.0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS, ids=[text or "empty" for text, _ in SCALARS])
def test_scalars_are_those_of_yaml_12(text: str, value: Any) -> None:
    found = parse_yaml(f"key: {text}", where="here")["key"]
    for read in (found, parse_scalar(text)):
        assert (type(read), repr(read)) == (type(value), repr(value))


WORDS = [
    *(text for text, _ in SCALARS), "# no comment", "a: b", "- x", "{", "[", "&a", "*a", "!t", "%", "@x", "`", "|", ">",
    "'", '"', "\\", "a #b", " lead", "trail ", "\ttab", "two\nlines", "\nfirst", "end\n", "\n\n", " \n ", "...", "---",
    "? x", "é", "上海", "مرحبا", "हिन्दी", "🎉", "\u200d", "\u2028", "\u2029", "\u0085", "\u00a0", "\ufeff", "\x07",
    "\x00", "\x7f", "\ufffe", "\r", "\r\n", "x" * 200, "word " * 60, "1e400", "0.1e1", "190:20:30", "1__0", "0o777",
    "9" * 30, "-.inf", "!!int 3",
]  # fmt: skip


def draw(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(9 if depth else 6)
    if kind < 2:
        return rng.choice(WORDS)
    if kind == 2:
        return "".join(rng.choice(WORDS) for _ in range(rng.randrange(4)))
    if kind == 3:
        return rng.choice([True, False, None])
    if kind == 4:
        return rng.choice([0, 1, -1, rng.randrange(-(10**6), 10**6), 10**30])
    if kind == 5:
        powers = [0.0, -0.0, 1e-4, 5e-324, 1.7e308, math.inf, -math.inf, rng.random(), 10.0 ** rng.randrange(-30, 30)]
        return rng.choice(powers)
    if kind < 8:
        return [draw(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {draw(rng, 0) if rng.random() < 0.3 else rng.choice(WORDS): draw(rng, depth - 1) for _ in range(4)}


@pytest.mark.parametrize("seed", range(300))
def test_both_versions_of_yaml_read_back_what_was_written(seed: int) -> None:
    value = draw(random.Random(seed), 4)
    text = write_yaml(value)
    # repr tells 1 from 1.0 and True, and 0.0 from -0.0
    assert repr(parse_yaml(text, where="here")) == repr(value)
    assert repr(yaml.safe_load(text)) == repr(value)


def test_written_yaml_is_readable() -> None:
    shared = ["no", "上海"]
    assert write_yaml({"b": shared, "a": shared}) == "b:\n- 'no'\n- 上海\na:\n- 'no'\n- 上海\n"
    assert write_yaml({"rate": 1e-4, "pair": (1, 2)}) == "rate: 0.0001\npair:\n- 1\n- 2\n"


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "the key 'a' stands twice"),
        ("a:\n  - {x: 1, y: 2, x: 1}\n", 2, "the key 'x' stands twice"),
        ("1: x\n1.0: y\n", 2, "the key 1.0 stands twice"),
        ("[a]: x\n", 1, "is not text"),
        ("a: 1\n  b: 2\n", 2, "mapping values are not allowed here"),
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "expected ',' or ']'"),
        ("a: 'open\n\n", 3, "found unexpected end of stream"),
        ("a: 1\n\tb: 2\n", 2, "cannot start any token"),
        ("a: *nowhere\n", 1, "undefined alias"),
        ("a: 1\n--- \nb: 2\n", 2, "but found another document"),
        ("a: 1\nb: !!int x\n", 2, "'x' is not of the type 'int'"),
        ("a: 1\nb: !!bool maybe\n", 2, "'maybe' is not of the type 'bool'"),
        ("b: !!timestamp x\n", 1, "'x' is not of the type 'timestamp'"),
        ("b: !!timestamp 2024-99-99\n", 1, "is not of the type 'timestamp'"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "could not determine a constructor"),
        ("a: " + "9" * 5000, 1, "is not of the type 'int'"),
        ("a: 1\nb: x\0y\n", 2, "the character '\\x00' cannot stand in YAML"),
    ],
)
def test_bad_yaml_names_the_line(text: str, line: int, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, where="recipe.yaml")
    assert str(caught.value).startswith(f"recipe.yaml, line {line}: ")
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 300
    assert parse_scalar(text) == text


@pytest.mark.slow
def test_nesting_without_end_is_an_error() -> None:
    with pytest.raises(RecipeError, match="nested too deeply"):
        parse_yaml("[" * 5000, where="here")


def test_files_are_read_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: \xc3\xa9\r\nb: 2\r\n")
    assert read_yaml(path) == {"a": "é", "b": 2}
    path.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml, line 2: the byte 0xe9 is not UTF-8; save the file as UTF-8"):
        read_yaml(path)
    path.write_bytes("a: 1\n".encode("utf-16"))
    with pytest.raises(RecipeError, match=r"recipe\.yaml, line 1: the byte 0xff is not UTF-8"):
        read_yaml(path)
    with pytest.raises(RecipeError, match=r"missing\.yaml: there is no such file; correct the path"):
        read_yaml(tmp_path / "missing.yaml")
    with pytest.raises(RecipeError, match="Is a directory"):
        read_yaml(tmp_path)
