"""What training changed as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from hf_mtl.explain.figures import figure_html
from hf_mtl.explain.global_page import PAGE_STYLE
from hf_mtl.explain.rendering import STYLE, page, table
from hf_mtl.explain.task_updates import TaskUpdates
from hf_mtl.writing import TextTable


def update_page(updates: TaskUpdates, title: str) -> str:
    """Return the page.

    Args:
        updates: what training changed.
        title: title of the page.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return page(title, _fragments(updates))


def _fragments(updates: TaskUpdates) -> Iterator[str]:
    figures, tables = updates.figures(), updates.tables()
    yield f'{STYLE}\n{PAGE_STYLE}\n<div class="hf-mtl">'
    yield "<h2>What moved</h2>"
    yield _paragraph(
        "The change of each part of the encoder over its size before training. The first line is the model, which was"
        " trained on all tasks together; the others are encoders that began at the same place and were trained on one"
        " task alone."
    )
    if updates.how:
        yield f'<p class="small">{escape(updates.how)}</p>'
    yield figure_html(
        figures["changes"], "relative change of each part, in the colours of its share of the row's largest"
    )
    yield _table(tables[0])
    if "heads" in figures:
        yield "<h3>Attention heads</h3>"
        yield _paragraph("The same for each head: its queries, keys, values, and columns of the output projection.")
        yield figure_html(figures["heads"], "relative change of each attention head")
    if updates.overlaps:
        yield "<h2>Where tasks meet</h2>"
        chance = updates.share / (2.0 - updates.share)
        yield _paragraph(
            "The cosine of two tasks' updates: above 0 they move the encoder the same way, below 0 against each other."
            f" Beside it the numbers that are among the {updates.share:.1%} most changed of both, over those of either;"
            f" by chance this is {chance:.3f}."
        )
        if "overlaps" in figures:
            yield figure_html(figures["overlaps"], "overlap of the updates of each pair of tasks")
        yield _table(tables[1])
    if updates.drops:
        yield "<h2>What each task needs</h2>"
        yield _paragraph(
            "What the score of each task loses when a part of the trained encoder is put back to where it began, the"
            f" rest staying as trained. A star marks a part that is critical for the task: it loses"
            f" {updates.least_drop:.2f} or more, and the 95% interval over up to {updates.rows} rows is above 0."
        )
        yield figure_html(figures["drops"], "score lost by each task when a part is put back")
        yield _table(tables[-1])
        several = [(part, ", ".join(tasks)) for part, tasks in updates.critical.items() if len(tasks) > 1]
        yield "<h3>Critical for several tasks</h3>"
        yield table(("part", "tasks"), several) if several else _paragraph("No part is.")
    yield "</div>"


def _table(own: TextTable) -> str:
    return f'<h4>{escape(own.title)}</h4><div class="scroll">{table(own.header, own.rows)}</div>'


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"
