"""Files written whole or not at all: under a temporary name first, then renamed."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from hf_mtl.errors import HfMtlError, OutputError


@contextmanager
def replacing(target: Path) -> Generator[Path]:
    """Give a temporary name beside a file, and rename it to the file when all went well.

    Args:
        target: the file to write.

    Raises:
        OutputError: the file cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        if isinstance(error, HfMtlError):
            raise
        raise OutputError(str(error.strerror or error), where=str(target), mend="choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(text: str, target: Path) -> None:
    """Write a text file in UTF-8.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
