"""The report on a whole model as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from hf_mtl.explain.answered_rows import Calibration, Mistake
from hf_mtl.explain.figures import figure_html
from hf_mtl.explain.global_report import GlobalReport, TaskReport
from hf_mtl.explain.rendering import STYLE, page, table
from hf_mtl.writing import TextTable

WORDS_SHOWN = 6
"""Wrong words that are named of one row."""

PAGE_STYLE = """<style>
.hf-mtl h2{margin:1.6em 0 .4em;border-bottom:1px solid rgba(128,128,128,.5)}
.hf-mtl h3{margin:1.2em 0 .3em}
.hf-mtl h4{margin:.6em 0 .2em;font-weight:600}
.hf-mtl .columns{display:flex;flex-wrap:wrap;gap:1em 2.5em;align-items:flex-start}
.hf-mtl .case{border-left:3px solid rgba(128,128,128,.4);padding-left:.9em;margin:1em 0}
.hf-mtl .case .hf-mtl{margin:.2em 0}
.hf-mtl .scroll th,.hf-mtl .scroll td{white-space:nowrap}
.hf-mtl img{max-width:100%;height:auto;background:#fff}
</style>"""


def report_page(report: GlobalReport, title: str) -> str:
    """Return the page.

    Args:
        report: the report.
        title: title of the page.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return page(title, fragments(report))


def fragments(report: GlobalReport) -> Iterator[str]:
    """Yield the parts of the page as HTML."""
    yield f'{STYLE}\n{PAGE_STYLE}\n<div class="hf-mtl">'
    yield _small(f"Rows: {report.split}. Seed of every draw: {report.seed}.")
    for own in report.tasks:
        yield from _task(own)
    yield from _relations(report)
    if report.heads is not None:
        yield "<h2>Attention heads</h2>"
        yield _paragraph(
            "How much each head matters to each task: the mean size of the gradient of the loss on a factor that the"
            " head's output is multiplied by. Heads are named layer.head. They are ranked on one half of the rows; on"
            " the other half the top ones are removed, and as many random ones, ± the standard error over draws."
        )
        yield figure_html(report.heads.figure(), "importance of each attention head for each task")
        yield _table(report.heads.table())
        yield f"<h3>{escape(report.heads.ablation_table().title)}</h3>{_table(report.heads.ablation_table())}"
        shared = ", ".join(f"{layer + 1}.{head + 1}" for layer, head in report.heads.shared) or "none"
        yield _paragraph(f"Among the top {report.heads.num_top} heads of every task: {shared}.")
    if report.layers is not None:
        yield "<h2>Layers</h2>"
        yield _paragraph(
            "How well a linear probe on the frozen states of each layer solves each task, beside the same probe fitted"
            " on labels in random order, the answer that needs no text, and the model itself."
        )
        yield figure_html(report.layers.figure(), "score of a linear probe on each layer")
        yield _table(report.layers.table())
    yield "</div>"


def _task(own: TaskReport) -> Iterator[str]:
    yield f"<h2>Task {escape(own.task)}</h2>"
    if own.words is not None:
        yield "<h3>Words that carry each answer</h3>"
        yield _paragraph(
            f"Words of {own.texts} texts were left out, one at a time. The effect is by how much the score of the label"
            " that was answered then falls, the mean over texts with the word ± its standard error; beside it the same"
            f" for the {own.measure}. Words in fewer than {own.least_texts} texts are not counted, and words whose"
            " effect is less than two standard errors, or than a tenth of the largest, are not shown."
        )
        if own.left_out:
            yield _small(f"{own.left_out} texts were left out: too long for the model, or without words.")
        labels = [label for label, words in own.words.items() if words]
        shown = [f"<div><h4>{escape(label)}</h4>{_table(own.word_table(label))}</div>" for label in labels]
        yield f'<div class="columns">{"".join(shown)}</div>' if shown else _paragraph("No word has a clear effect.")
    if own.cue_rule and own.cues is not None:
        yield "<h3>Words to doubt</h3>"
        yield _paragraph(f"Candidates for spurious cues, to be looked at: {own.cue_rule}.")
        yield _table(own.cue_table()) if own.cues else _paragraph("There are none.")
    if own.calibration is not None:
        yield from _calibration(own.calibration)
    if own.mistakes is not None:
        yield "<h3>Mistakes it is sure of</h3>"
        yield _paragraph(
            f"Of {own.answered} labelled texts; every sentence was checked by taking the words away."
            if own.mistakes
            else f"None in {own.answered} labelled texts."
        )
        yield from map(_mistake, own.mistakes)


def _mistake(own: Mistake) -> str:
    head = f"answered {_value(own.prediction)}, right is {_value(own.reference)}"
    if own.words:
        head = "; ".join(f"'{word}' answered {tag}, right is {right}" for word, tag, right in own.words[:WORDS_SHOWN])
        head += f" and {len(own.words) - WORDS_SHOWN} more" if len(own.words) > WORDS_SHOWN else ""
    head = f"row {own.row}: {head}"
    why = _paragraph(own.text) if own.explanation is None else own.explanation.report(format="html").removeprefix(STYLE)
    return f'<div class="case"><p><b>{escape(head)}</b></p>{why}</div>'


def _calibration(own: Calibration) -> Iterator[str]:
    yield "<h3>Calibration</h3>"
    yield _paragraph(
        f"Expected calibration error {own.error:.3f} over {own.items} answers. On the line, answers given with a"
        " confidence of 80% are right in 80% of the cases; below it the model is too sure."
    )
    rows = [
        (f"{one.low:.1f} to {one.high:.1f}", str(one.count), f"{one.confidence:.3f}", f"{one.accuracy:.3f}")
        for one in own.bins
        if one.count
    ]
    shown = table(("confidence", "answers", "mean confidence", "share right"), rows)
    picture = figure_html(own.figure(), "share of right answers over their confidence")
    yield f'<div class="columns"><div>{picture}</div><div>{shown}</div></div>'


def _relations(report: GlobalReport) -> Iterator[str]:
    if report.relations is None and report.transfer is None:
        return
    yield "<h2>What the tasks are to each other</h2>"
    for own, text in (
        (
            report.relations,
            "Cosine of the tasks' mean gradients on the shared encoder, ± a jackknife standard error: above 0 a step"
            " for one helps the other, below 0 it hurts.",
        ),
        (report.transfer, "What the score of a task (row) gains when it is trained together with another (column)."),
    ):
        if own is None:
            continue
        yield f"<h3>{escape(own.measure.capitalize())}</h3>"
        yield _paragraph(f"{text} Where the reliability is under {own.least_reliability:.2f}, a ? stands.")
        yield _small(own.measurements)
        tables = f"<div>{_table(own.table())}<h4>Reliability</h4>{_table(own.reliabilities())}</div>"
        known = any(cell.known for cell in own.cells)
        picture = f"<div>{figure_html(own.figure(), own.measure)}</div>" if known else ""
        yield f'<div class="columns">{picture}{tables}</div>'


def _table(own: TextTable) -> str:
    return f'<div class="scroll">{table(own.header, own.rows)}</div>'


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _small(text: str) -> str:
    return f'<p class="small">{escape(text)}</p>'


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value)) or "(none)"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
