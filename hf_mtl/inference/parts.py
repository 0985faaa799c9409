"""Finished parts of an output beside it, so that a run that was killed goes on where it was.

While `out.jsonl` is made there is a folder `.out.jsonl.parts`: `job.json` says what the parts are of, and each finished
chunk of rows is a part, `000000.jsonl` with its counts in `000000.json`. Every file is written under another name, and
renamed when it is whole: a part is there wholly or not at all, and rows are never written twice or left out. When the
last row is answered the parts are joined to a file that takes the output's place, and the folder is removed.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from hf_mtl.errors import HfMtlError, OutputError
from hf_mtl.writing import read_json, replacing, to_json

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class PartFormat:
    """How parts are written and joined.

    Args:
        ending: ending of a part's name.
        write: writes rows to a part.
        join: joins parts to a file.
    """

    ending: str
    write: Callable[[Rows, Path], None]
    join: Callable[[Sequence[Path], Path], None]


class Parts:
    """The parts of one output; a context, in which no other run can write them.

    On entering, parts of the same job are kept, and those of another are removed.

    Args:
        target: the output.
        job: what the output depends on, as plain JSON values by name.
        format: how parts are written and joined.

    Raises:
        OutputError: the folder cannot be written, or another run is writing to it.
    """

    def __init__(self, target: Path, job: Mapping[str, Any], format: PartFormat) -> None:
        place = Path(os.path.realpath(target))
        self.target = target
        self.folder = place.with_name(f".{place.name}.parts")
        self.rows = 0
        self.errors = 0
        self.first_error: str | None = None
        self._job = dict(job)
        self._format = format
        self._paths: list[Path] = []
        self._lock: int | None = None

    def __enter__(self) -> Parts:
        with self._errors():
            self.folder.mkdir(exist_ok=True)
            self._lock = _locked(self.folder / "lock", self.target)
            known = read_json(self.folder / "job.json")
            if known != self._job:
                self._clear(known)
                with _whole(self.folder / "job.json") as path:
                    path.write_text(to_json(self._job, indent=2), encoding="utf-8")
            self._take_up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._lock is not None:
            os.close(self._lock)
        with suppress(OSError):
            if not self._paths:  # nothing to go on with
                shutil.rmtree(self.folder)

    def add(self, rows: Rows) -> None:
        """Keep rows that are answered, `predictions` or `error` in each.

        Raises:
            OutputError: the part cannot be written.
        """
        failed = [row["error"] for row in rows if "predictions" not in row]
        counts = {"rows": len(rows), "errors": len(failed), "first_error": failed[0] if failed else None}
        path = self._path(len(self._paths))
        with self._errors():
            # First the counts: where there is a part, they are there, too.
            with _whole(path.with_suffix(".json")) as temporary:
                temporary.write_text(to_json(counts), encoding="utf-8")
            with _whole(path) as temporary:
                self._format.write(rows, temporary)
        self._count(path, counts)

    def merge(self) -> None:
        """Join the parts to the output, and remove them.

        Raises:
            OutputError: the output cannot be written.
        """
        with replacing(self.target) as temporary:
            self._format.join(self._paths, temporary)
            _sync(temporary)
        # Without it the parts are of no job, should the removal be cut short.
        (self.folder / "job.json").unlink()
        shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}{self._format.ending}"

    def _count(self, path: Path, counts: Mapping[str, Any]) -> None:
        self._paths.append(path)
        self.rows += counts["rows"]
        self.errors += counts["errors"]
        self.first_error = self.first_error or counts["first_error"]

    def _take_up(self) -> None:
        while (path := self._path(len(self._paths))).exists() and (counts := read_json(path.with_suffix(".json"))):
            self._count(path, counts)
        for path in self.folder.glob("*.tmp"):
            path.unlink()
        if self._paths:
            logger.warning("going on after the %d rows of an earlier run: %s", self.rows, self.target)

    def _clear(self, known: Any) -> None:
        """Remove parts of another job, and say what it differs in."""
        if isinstance(known, dict) and self._path(0).exists():
            differing = [name for name in self._job if known.get(name) != self._job[name]]
            logger.warning(
                "starting anew: what an earlier run left of %s differs in its %s", self.target, ", ".join(differing)
            )
        (self.folder / "job.json").unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, HfMtlError):
                raise
            raise OutputError(
                str(error.strerror or error), where=str(self.folder), mend="choose another place"
            ) from error


@contextmanager
def _whole(path: Path) -> Generator[Path]:
    """Give a temporary name, and rename it when what was written is on the disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    yield temporary
    _sync(temporary)
    temporary.replace(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _locked(path: Path, target: Path) -> int | None:
    """Hold a lock for as long as this process lives, where the system has such locks.

    Raises:
        OutputError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise OutputError("another run is writing it", where=str(target), mend="wait, or name another file") from error
    return lock
