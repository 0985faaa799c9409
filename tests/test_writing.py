"""Files are whole or as they were, and JSON is what every reader takes."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from hf_mtl.errors import DataError, OutputError
from hf_mtl.writing import check_target, replacing, to_json, to_json_line, write_text


def test_a_file_is_replaced_when_all_went_well(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("before")
    with replacing(target) as temporary:
        temporary.write_text("after")
        assert target.read_text() == "before"
    assert target.read_text() == "after"
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), DataError("x")])
def test_a_file_is_as_it_was_when_something_went_wrong(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "out.txt"
    target.write_text("before")

    def fail_half_way() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail_half_way()
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_errors_of_the_package_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^mine$"), replacing(tmp_path / "out.txt"):
        raise OutputError("mine")


@pytest.mark.parametrize("name", ["missing/out.txt", "file/out.txt", "folder", "x" * 300])
def test_what_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError) as caught:
        write_text("text", tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_link_stays_a_link_to_the_file_that_is_written(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "elsewhere" / "real.txt")
    write_text("text", tmp_path / "link.txt")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "elsewhere" / "real.txt").read_text() == "text"


def test_text_of_every_script_is_written_in_utf8(tmp_path: Path) -> None:
    write_text("上海 🎬\n", tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_bytes() == "上海 🎬\n".encode()


@pytest.mark.parametrize(("name", "problem"), [("folder", "it is a folder"), ("missing/out", "no such folder")])
def test_a_target_is_checked_without_touching_it(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=problem):
        check_target(tmp_path / name)
    check_target(tmp_path / "fine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_json_keeps_text_and_has_no_nan() -> None:
    value = {"上": ["a", float("nan"), (float("inf"), -float("inf"), 1.5)], "none": None, "true": True}
    assert to_json(value) == '{"上": ["a", null, [null, null, 1.5]], "none": null, "true": true}'


def test_what_json_has_no_type_for_is_text() -> None:
    assert json.loads(to_json([datetime.date(2024, 5, 6), Path("a")])) == ["2024-05-06", "a"]


def test_lone_surrogates_are_escaped_so_that_utf8_can_hold_them() -> None:
    text = to_json({"a": "上 \ud800", "b": float("nan")})
    text.encode("utf-8")
    assert json.loads(text) == {"a": "上 \ud800", "b": None}


@pytest.mark.parametrize(
    "value",
    [
        {"score": float("nan"), "limits": [float("inf"), -0.0, 1e-9, 0.1]},
        {"lone": "上\ud800海", "breaks": "\u2028\n"},
        {"number": 2**70, "least": -(2**63)},
        {1: "a", None: 2, False: 3},
        {"day": datetime.date(2026, 1, 2), "time": datetime.datetime(2026, 1, 2, 3), "pair": (1, "two")},
    ],
)
def test_a_line_of_json_holds_what_to_json_holds(value: dict[Any, Any]) -> None:
    line = to_json_line(value)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == json.loads(to_json(value))
