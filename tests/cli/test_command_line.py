"""The command line as a whole: help, quick and light, and what happens when something is wrong."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from calling import call, call_process

import hf_mtl.cli as command_line
from hf_mtl.errors import DataError

HEAVY = ("torch", "transformers", "datasets", "numpy", "accelerate", "pyarrow", "sklearn", "huggingface_hub")
COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "label",
    "explain",
    "explain-model",
    "explain-quality",
    "task-updates",
    "compare",
    "tune",
    "cross-validate",
    "meta-train",
    "adapt",
    "export",
    "push",
    "info",
    "check",
    "init",
    "demo",
)


def test_python_m_hf_mtl_is_the_command_line() -> None:
    done = call_process("--help")
    assert done.code == 0
    assert all(command in done.out for command in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, json\nfrom hf_mtl.cli import main\n"
        f"for command in ([], *([name] for name in {COMMANDS})):\n"
        "    try:\n        main([*command, '--help'])\n    except SystemExit as stop:\n        assert not stop.code\n"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself(command: str, option: str) -> None:
    assert "Usage: hf-mtl" in call(command, option).out


def test_wrong_usage_exits_with_2() -> None:
    done = call("evaluate", "only-a-model", fails=True)
    assert done.code == 2
    assert "Missing argument" in done.err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            DataError("two\nlines,\ta tab, \x1b[31mred\x00", where="a.csv"),
            "error: a.csv: two lines, a tab, \\x1b[31mred\\x00\n",
        ),
        (PermissionError(13, "Permission denied", "/some/file"), "error: /some/file: Permission denied\n"),
        (OSError("no reason"), "error: no reason\n"),
        (DataError("lone \ud800"), "error: lone \\ud800\n"),
    ],
)
def test_an_error_is_one_readable_line(monkeypatch: pytest.MonkeyPatch, error: Exception, line: str) -> None:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(command_line, "app", app)
    done = call(fails=True)
    assert (done.code, done.err) == (1, line)


def test_a_reader_that_has_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise BrokenPipeError

    monkeypatch.setattr(command_line, "app", app)
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with pytest.raises(SystemExit):
        command_line.main([])
    assert stderr.closed


# ---------------------------------------------------------------------- on a terminal


def test_answers_are_a_table_on_a_terminal(trained: Path) -> None:
    table = call("predict", trained, "--text", "fly to [bold]new york :smile:", terminal=True).out
    for word in ("task", "answer", "sentiment", "similarity", "moods"):
        assert word in table


def test_text_is_shown_as_it_is(trained: Path) -> None:
    from hf_mtl.cli._terminal import answer_table, out
    from hf_mtl.configuration import TaskSpec

    spec = TaskSpec(name="topic", type="sequence_classification", labels=("[bold]a[/]", ":smile:"))
    answer = {"label": ":smile:", "score": 1.0, "scores": {"[bold]a[/]": 0.0, ":smile:": 1.0}}
    console = out()
    with console.capture() as captured:
        console.print(answer_table([spec], {"topic": answer}))
        console.print("[red]plain[/]")
    assert ":smile:" in captured.get()
    assert "[red]plain[/]" in captured.get()


def test_long_work_shows_bars_on_a_terminal_alone(trained: Path, recipe: Path, workspace: Path, tmp_path: Path) -> None:
    source, target = workspace / "films-test.jsonl", tmp_path / "out.jsonl"
    commands = {
        "Evaluating": ("evaluate", trained, recipe),
        "Answering": ("predict", trained, "--input", source, "--output", target),
        "Training": ("train", recipe, "--output-dir", tmp_path / "run", "--max-steps", 2, "--overwrite"),
    }
    for word, command in commands.items():
        assert word in call(*command, terminal=True).err
        piped = call(*command)
        assert word not in piped.err
        assert "\x1b" not in piped.out + piped.err


def test_nothing_to_answer_on_a_terminal_is_an_error_and_not_a_wait(trained: Path) -> None:
    done = call("predict", trained, terminal=True, fails=True)
    assert done.err.startswith("error: there is nothing to answer; give --text")
