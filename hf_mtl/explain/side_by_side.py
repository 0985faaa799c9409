"""The tasks side by side on one text: what each reads in its words, and where they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_mtl.data.masking import NOT_EXPLAINED, select_unmasked
from hf_mtl.errors import DataError, ModelError
from hf_mtl.explain.attention_weights import attention_weights
from hf_mtl.explain.contradictions import Contradiction, contradictions, sentences
from hf_mtl.explain.explanation import Explanation
from hf_mtl.explain.languages.base import number, percent
from hf_mtl.explain.rendering import AGAINST, FOR, STYLE, colour, table, terminal_style, visible
from hf_mtl.explain.subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from hf_mtl.explain.explainer import Explainer
    from hf_mtl.explain.text import ExplainedText

SHARED = (
    "The tasks share one encoder, so its attention cannot differ between them: raw attention is a property of the "
    "text. Shown is what each word receives in the last layer, on average over heads and tokens; the rest goes to "
    "special tokens."
)
SCALE = "Each column has its own scale of colours: blue is for its answer, orange against it."
POOLED = "Attention pooling is a task's own: its weights over the words of the last layer."


@dataclass(frozen=True, eq=False, kw_only=True)
class SideBySide:
    """One text as several tasks read it.

    Args:
        explanations: task name -> explanation, all of the same units.
        agreement: Spearman's rank correlation of each two tasks' scores, over the units, `(num_tasks, num_tasks)`; NaN
            where it is not defined. Where a task's scores have no sign, their sizes are compared.
        p_values: two-sided p-values of these.
        attention: attention that each unit receives in the last layer of the shared encoder; `None` where the
            architecture has none.
        attention_note: what is to be known of it.
        task_attention: weights of attention pooling per unit, for the tasks that have it.
        contradictions: words that two tasks take in opposite ways, measured.
        sentences: what is to be said: contradictions of answers, of words and of rankings.
    """

    explanations: Mapping[str, Explanation]
    agreement: np.ndarray
    p_values: np.ndarray
    attention: tuple[float, ...] | None
    attention_note: str
    task_attention: Mapping[str, tuple[float, ...]]
    contradictions: tuple[Contradiction, ...]
    sentences: tuple[str, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.explanations)

    @property
    def words(self) -> tuple[str, ...]:
        """The units as text."""
        return next(iter(self.explanations.values())).words

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; correlations that are not defined are `None`."""
        return {
            "explanations": {task: explanation.to_dict() for task, explanation in self.explanations.items()},
            "agreement": [[None if np.isnan(cell) else float(cell) for cell in row] for row in self.agreement],
            "attention": None if self.attention is None else list(self.attention),
            "attention_note": self.attention_note,
            "task_attention": {task: list(weights) for task, weights in self.task_attention.items()},
            "contradictions": [one.to_dict() for one in self.contradictions],
            "sentences": list(self.sentences),
        }

    def columns(self) -> list[tuple[str, tuple[float, ...], float, bool]]:
        """Return the columns of the heat map: name, values, the size of the largest, and whether they have signs."""
        found = [(task, one.scores, one.signed) for task, one in self.explanations.items()]
        found += [(f"{task}: pooling", weights, False) for task, weights in self.task_attention.items()]
        found += [("attention (shared)", self.attention, False)] if self.attention is not None else []
        return [(name, values, max(map(abs, values), default=0.0) or 1.0, signed) for name, values, signed in found]

    def table(self) -> Table:
        """Return the heat map for a terminal: words by tasks, coloured by score, with the numbers."""
        from rich.table import Table
        from rich.text import Text

        shown = Table()
        shown.add_column("word", overflow="fold")
        columns = self.columns()
        for name, *_ in columns:
            shown.add_column(Text(visible(name)), justify="right")
        shown.add_row(
            Text("(answer)"), *(Text(visible(cell)) for cell in self._answers(len(columns))), end_section=True
        )
        for place, word in enumerate(self.words):
            cells = [
                Text(_cell(values[place], signed), style=terminal_style(values[place] / largest))
                for _, values, largest, signed in columns
            ]
            shown.add_row(Text(visible(word)), *cells)
        return shown

    def figure(self) -> Figure:
        """Draw the heat map with matplotlib.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from hf_mtl.explain.figures import new_figure

        columns = self.columns()
        shares = np.array([np.array(values) / largest for _, values, largest, _ in columns]).T
        figure = new_figure(2.0 + 1.2 * len(columns), 1.2 + 0.3 * max(1, len(self.words)))
        from matplotlib.colors import LinearSegmentedColormap

        ends = [tuple(tone / 255 for tone in shade) for shade in (AGAINST, (255, 255, 255), FOR)]
        axes = figure.subplots()
        shades = LinearSegmentedColormap.from_list("for and against", ends)
        axes.imshow(shares.reshape(len(self.words), len(columns)), cmap=shades, vmin=-1.6, vmax=1.6, aspect="auto")
        axes.set_xticks(range(len(columns)), [_literal(name) for name, *_ in columns], rotation=30, ha="right")
        axes.set_yticks(range(len(self.words)), [_literal(word) for word in self.words])
        for column, (_, values, _, signed) in enumerate(columns):
            for row, value in enumerate(values):
                axes.text(column, row, _cell(value, signed), ha="center", va="center", fontsize=8)
        return figure

    def _answers(self, columns: int) -> list[str]:
        cells: list[str] = []
        for one in self.explanations.values():
            shown = number(one.probability) if one.measure == "value" else f"{one.target} {percent(one.probability)}"
            cells.append(shown)
        return cells + [""] * (columns - len(cells))

    def _repr_html_(self) -> str:
        columns = self.columns()
        head = "".join(f"<th>{escape(name)}</th>" for name, *_ in columns)
        answers = "".join(f"<td>{escape(cell)}</td>" for cell in self._answers(len(columns)))
        rows = "".join(
            f'<tr><td dir="auto">{escape(word)}</td>'
            + "".join(
                f'<td style="background:{colour(values[place] / largest)}" title="{values[place]:.3g}">'
                f"{_cell(values[place], signed)}</td>"
                for _, values, largest, signed in columns
            )
            + "</tr>"
            for place, word in enumerate(self.words)
        )
        heat = f"<table><tr><th>word</th>{head}</tr><tr><td>(answer)</td>{answers}</tr>{rows}</table>"
        agreement = table(
            ("rank correlation", *self.tasks),
            [(task, *(_correlation(cell) for cell in self.agreement[row])) for row, task in enumerate(self.tasks)],
        )
        said = "".join(f"<li>{escape(one)}</li>" for one in self.sentences)
        notes = [SCALE, self.attention_note, *([POOLED] if self.task_attention else [])]
        small = "".join(f'<p class="small">{escape(note)}</p>' for note in notes)
        return f'{STYLE}\n<div class="hf-mtl scroll">{heat}<ul>{said}</ul>{agreement}{small}</div>'


def side_by_side(explainer: Explainer, text: Any, tasks: Sequence[str] | None = None, **options: Any) -> SideBySide:
    """Explain one text for several tasks, and compare what they read in it.

    Args:
        explainer: the model.
        text: a text, or a mapping with `text` (and perhaps `text_pair`, `choices`) or `tokens`.
        tasks: the tasks; all where not given.
        options: passed to `Explainer.explain`: `method`, `target`, `units` and options of the method.

    Raises:
        SpecError: there is no such task, method or target.
        DataError: the text is longer than the model reads, or several texts.
        ModelError: the method does not cover the model's architecture.
    """
    if isinstance(text, list | tuple):
        raise DataError("there are several texts", mend="give one, and call it for each")
    explanations: dict[str, Explanation] = explainer.explain(text, tasks, **options)
    agreement, p_values = _agreement(list(explanations.values()))
    read = next(iter(explanations.values())).require_origin().text
    attention, note, pooling = _attention(explainer.subject, read)
    found = tuple(contradictions(explanations))
    return SideBySide(
        explanations=explanations,
        agreement=agreement,
        p_values=p_values,
        attention=attention,
        attention_note=note,
        task_attention={task: weights for task, weights in pooling.items() if task in explanations},
        contradictions=found,
        sentences=tuple(sentences(explanations, agreement, p_values, found)),
    )


def _agreement(explanations: Sequence[Explanation]) -> tuple[np.ndarray, np.ndarray]:
    """Return Spearman's rank correlations of all pairs and their p-values, NaN where not defined."""
    from scipy.stats import spearmanr

    count = len(explanations)
    found = np.full((2, count, count), np.nan)
    for first, second in combinations(range(count), 2):
        one, other = (np.array(explanations[place].scores) for place in (first, second))
        if not (explanations[first].signed and explanations[second].signed):
            one, other = np.abs(one), np.abs(other)
        if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
            continue
        result: Any = spearmanr(one, other)
        found[:, first, second] = found[:, second, first] = result.statistic, result.pvalue
    for place, explanation in enumerate(explanations):
        if len(explanation.scores) and np.ptp(explanation.scores) > 0:
            found[:, place, place] = 1.0, 0.0
    return found[0], found[1]


def _attention(
    subject: Subject, text: ExplainedText
) -> tuple[tuple[float, ...] | None, str, dict[str, tuple[float, ...]]]:
    """Return the attention that units receive in the last layer, a note, and the weights of attention pooling."""
    received: tuple[float, ...] | None = None
    try:
        weights = attention_weights(subject, text, {})
    except ModelError as error:
        note = f"No attention is shown: {error.problem}."
        pooling: Mapping[str, Any] = {
            task: values[0, : len(text.input_ids)].float().cpu().numpy()
            for task, values in (subject.forward(text, _names(subject)).output.task_attentions or {}).items()
        }
    else:
        note, pooling = SHARED, weights.pooling
        received = _per_unit(text, weights.attention[-1].mean(axis=(0, 1)))
    return received, note, {task: _per_unit(text, values) for task, values in pooling.items()}


def _names(subject: Subject) -> list[str]:
    return [spec.name for spec in select_unmasked(subject.model.specs, None, NOT_EXPLAINED)]


def _per_unit(text: ExplainedText, weights: np.ndarray) -> tuple[float, ...]:
    return tuple(text.sum_over_units(weights).tolist())


def _cell(value: float, signed: bool) -> str:
    return f"{value:+.2f}" if signed else f"{value:.2f}"


def _correlation(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}"


def _literal(text: str) -> str:
    """Write text for matplotlib, which reads what stands between dollar signs as mathematics."""
    return text.replace("$", r"\$")
