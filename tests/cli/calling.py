"""The command line called in this process, which saves the seconds of importing torch, or as a process of its own."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.utils
from transformers.utils import logging as transformers_logging

from hf_mtl.cli import main

OPTIONS = (
    *("--num-train-epochs", "8", "--learning-rate=5e-3", "--bf16", "false"),
    *("--per-device-train-batch-size", "16"),
)
"""What the trained model was given on the command line, over the recipe's arguments."""


@dataclass(frozen=True)
class Called:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def call(*arguments: object, stdin: bytes = b"", fails: bool = False, terminal: bool = False) -> Called:
    """Run `hf-mtl` with the arguments, and check that it succeeds or, where it should, fails."""
    kind = _Terminal if terminal else io.TextIOWrapper
    streams = [kind(io.BytesIO(given), encoding="utf-8", newline="\n") for given in (stdin, b"", b"")]
    with _libraries_as_before(), _streams(streams):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
    out, err = (_written(stream) for stream in streams[1:])
    assert (code != 0) == fails, f"exit {code}\n{out}\n{err}"
    return Called(code, out, err)


def call_process(*arguments: object, stdin: bytes = b"", cwd: Path | None = None) -> Called:
    """Run `hf-mtl` in a process of its own."""
    command = [sys.executable, "-m", "hf_mtl", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, cwd=cwd, timeout=300)
    return Called(done.returncode, done.stdout.decode(), done.stderr.decode())


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return the bytes and the time of change of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer: Any = stream.buffer
    return buffer.getvalue().decode("utf-8")


@contextmanager
def _streams(streams: Sequence[io.TextIOWrapper]) -> Generator[None]:
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


@contextmanager
def _libraries_as_before() -> Generator[None]:
    """Undo what a command does to logging and progress bars, which a process of its own would take with it."""
    logger = logging.getLogger("hf_mtl")
    handlers, propagate = list(logger.handlers), logger.propagate
    verbosities = transformers_logging.get_verbosity(), datasets.logging.get_verbosity()
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logging.addLevelName(logging.WARNING, "WARNING")
        transformers_logging.set_verbosity(verbosities[0])
        datasets.logging.set_verbosity(verbosities[1])
        transformers_logging.enable_progress_bar()
        huggingface_hub.utils.enable_progress_bars()
        datasets.enable_progress_bars()
