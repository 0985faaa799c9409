"""What the commands share: consoles, quiet libraries, progress bars, tables of scores."""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

PIPED_WIDTH = 160
"""Columns of a table where no terminal says how wide it is."""

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from rich.console import Console
    from rich.table import Table

    from hf_mtl.configuration import TaskSpec
    from hf_mtl.evaluation.scoring import Scores
    from hf_mtl.writing import TextTable


def out() -> Console:
    """Return the console of results, standard output."""
    return _console(sys.stdout)


def err() -> Console:
    """Return the console of progress and warnings, standard error."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    """Return a console that shows text as it is, with room for tables where it is piped to a file."""
    from rich.console import Console

    piped = not stream.isatty()
    return Console(
        file=stream, highlight=False, markup=False, emoji=False, soft_wrap=piped, width=PIPED_WIDTH if piped else None
    )


def quiet_libraries() -> None:
    """Keep the libraries' own bars and reports off the terminal, and show our warnings in one line each."""
    import datasets
    import huggingface_hub.utils
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    logger = logging.getLogger("hf_mtl")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logging.addLevelName(logging.WARNING, "warning")
        logger.addHandler(handler)
        logger.propagate = False


@contextmanager
def progress(description: str, unit: str) -> Generator[Callable[[int, int | None], None]]:
    """Show a bar on a terminal, nothing when piped.

    Args:
        description: what is being done.
        unit: what is counted.

    Yields:
        A function that takes what is done and, where it is known, the total.
    """
    if not sys.stderr.isatty():
        yield lambda done, total=None: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeElapsedColumn(), console=err(), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total=None: bar.update(task, completed=done, total=total)


def answer_table(specs: Sequence[TaskSpec], answers: Mapping[str, dict[str, Any]]) -> Table:
    """Lay out the answers of one text, a line or more per task."""
    from rich.table import Table
    from rich.text import Text

    from hf_mtl.registry import HEADS

    table = Table()
    table.add_column("task")
    table.add_column("answer", style="bold", overflow="fold")
    table.add_column("score", justify="right")
    for spec in specs:
        lines = HEADS.get(spec.type).summary(spec, answers[spec.name]) if spec.name in answers else []
        for place, (text, score) in enumerate(lines):
            shown = "" if score is None else f"{score:.3f}"
            table.add_row(spec.name if place == 0 else "", Text(text), shown)
    return table


def text_table(table: TextTable) -> Table:
    """Lay out a table of text, columns but the first flush right and the average in bold."""
    from rich.table import Table
    from rich.text import Text

    laid_out = Table(title=table.title, title_justify="left")
    for place, name in enumerate(table.header):
        laid_out.add_column(name, justify="left" if place == 0 else "right")
    for row in table.rows:
        laid_out.add_row(*map(Text, row), style="bold" if row[0] == "average" else None)
    return laid_out


def score_table(scores: Scores, *, title: str, intervals: bool = True) -> Table:
    """Lay out every task's metrics, its primary metric first, with bootstrap 95% intervals."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name, justify in (("task", "left"), ("rows", "right"), ("metric", "left"), ("value", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    if intervals:
        table.add_column("95% interval", justify="right")
    for name, task in scores.tasks.items():
        bounds = task.intervals() if intervals else {}
        metrics = task.metrics
        keys = sorted(metrics, key=lambda key: key != task.metric.primary)
        for place, key in enumerate(keys):
            style = "bold" if place == 0 else "dim"
            cells = [name if place == 0 else "", str(len(task.rows)) if place == 0 else "", key, f"{metrics[key]:.4f}"]
            if intervals:
                low, high = bounds[key]
                cells.append(f"{low:.4f} to {high:.4f}")
            table.add_row(*cells, style=style, end_section=place == len(keys) - 1)
    table.add_row("average", "", "of primaries", f"{scores.average():.4f}", *([""] if intervals else []), style="bold")
    return table
