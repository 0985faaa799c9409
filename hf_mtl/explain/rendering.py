"""Explanations to look at: coloured words as HTML and for the terminal, and pages that need no network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING
from unicodedata import category

from hf_mtl.explain.languages.base import Language, language_of

if TYPE_CHECKING:
    from rich.text import Text

    from hf_mtl.explain.explanation import Explanation

FOR, AGAINST = (0, 114, 178), (230, 120, 0)
"""Blue and orange, which people who cannot tell red from green can tell apart (after Okabe and Ito 2008)."""

ON_FOR, ON_AGAINST = (70, 170, 220), (240, 150, 50)
"""The same for a terminal, bright enough for black letters."""

STRONGEST = 0.62
"""Opacity of the largest score: text in black or white stays readable on it."""

FAINT = 0.04
"""Share of the largest score below which a word is left uncoloured."""

STYLE = """<style>
.hf-mtl{line-height:1.6;margin:.5em 0 1em;max-width:60em}
.hf-mtl+style+.hf-mtl{border-top:1px solid rgba(128,128,128,.35);padding-top:1em}
.hf-mtl p{margin:.25em 0}
.hf-mtl .words{white-space:pre-wrap;overflow-wrap:anywhere;font-size:1.1em;line-height:1.9}
.hf-mtl .words span{border-radius:.2em;padding:.15em 0}
.hf-mtl .for{border-bottom:2px solid rgb(0,114,178)}
.hf-mtl .against{border-bottom:2px dashed rgb(230,120,0)}
.hf-mtl .own{outline:1px dotted currentColor;outline-offset:1px}
.hf-mtl .small{font-size:.85em;opacity:.8}
.hf-mtl table{border-collapse:collapse}
.hf-mtl th,.hf-mtl td{padding:.15em .6em;text-align:right;border-bottom:1px solid rgba(128,128,128,.35)}
.hf-mtl th:first-child,.hf-mtl td:first-child{text-align:start}
.hf-mtl .scroll{overflow-x:auto}
</style>"""

PAGE = """<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root{{color-scheme:light dark}}
body{{font-family:system-ui,"Noto Sans","Noto Sans CJK SC",sans-serif;margin:1.5em auto;padding:0 1em;max-width:70em}}
h1{{font-size:1.4em;overflow-wrap:anywhere}}
</style>
</head>
<body>
<h1 dir="auto">{title}</h1>
{body}
</body>
</html>
"""
# What a page may load: nothing but what stands in it. A browser holds to it even where a fragment would not.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; font-src data:"


def page(title: str, fragments: Iterable[str], *, language: str = "en") -> str:
    """Return one HTML page that asks for nothing from elsewhere.

    Args:
        title: the page's title, as plain text.
        fragments: its parts, as HTML, such as `explanation_html` returns.
        language: the language of its text, such as `"en"` or `"zh"`.

    Example:
        >>> "<title>a &lt; b</title>" in page("a < b", ["<p>text</p>"])
        True
    """
    values = {"language": escape(language), "policy": escape(POLICY), "title": escape(title)}
    return PAGE.format(**values, body="\n".join(fragments))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table of plain text, columns but the first flush right.

    Example:
        >>> table(["word", "score"], [["<b>", "+1.0"]])
        '<table><tr><th>word</th><th>score</th></tr><tr><td>&lt;b&gt;</td><td>+1.0</td></tr></table>'
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


@dataclass(frozen=True)
class Segment:
    """A stretch of a text and the units that it shows; none between units."""

    text: str
    units: tuple[int, ...] = ()


def segments(explanation: Explanation, part: int = 0) -> Iterator[Segment]:
    """Cut a text into its units and what stands between them; joined again they are the text.

    Units that share characters, such as the bytes of one emoji, are shown together.

    Args:
        explanation: the explanation.
        part: 0 for the text, 1 for the second text of a pair.
    """
    text = (explanation.text if part == 0 else explanation.text_pair) or ""
    spans = [(unit.start, unit.end, index) for index, unit in enumerate(explanation.units) if unit.part == part]
    joined: list[tuple[int, int, tuple[int, ...]]] = []
    for start, end, index in sorted(spans):
        if joined and start < joined[-1][1]:
            before = joined.pop()
            joined.append((before[0], max(before[1], end), (*before[2], index)))
        else:
            joined.append((start, end, (index,)))
    position = 0
    for start, end, units in joined:
        if start > position:
            yield Segment(text[position:start])
        yield Segment(text[start:end], units)
        position = end
    if position < len(text):
        yield Segment(text[position:])


def colour(share: float) -> str:
    """Return the background of a score as CSS: blue for, orange against, the stronger the larger.

    Args:
        share: the score divided by the largest one's size, in [-1, 1].

    Example:
        >>> colour(0.5), colour(0.0)
        ('rgba(0,114,178,0.31)', 'transparent')
    """
    if abs(share) < FAINT:
        return "transparent"
    red, green, blue = FOR if share > 0 else AGAINST
    return f"rgba({red},{green},{blue},{round(STRONGEST * min(1.0, abs(share)), 3)})"


def explanation_html(explanation: Explanation, *, language: str = "en") -> str:
    """Return an explanation as HTML: its answer, the words coloured by their scores, a legend and the notes.

    Nothing in it comes from elsewhere, and all text is escaped. It takes the text colour of where it stands, so it can
    be read on light and on dark ground; what is coloured for and against differs in its underline, too.

    Args:
        explanation: the explanation.
        language: language of the legend, `"en"` or `"zh"`.

    Raises:
        SpecError: there is no such language.
    """
    words = language_of(language)
    header = f"<p><b>{escape(words.heading(explanation))}</b> · {escape(words.explained(explanation))}</p>"
    notes = "".join(f'<p class="small">{escape(words.note(note))}</p>' for note in explanation.notes)
    method = f'<p class="small">{escape(words.method_line(explanation))}</p>'
    return f'{STYLE}\n<div class="hf-mtl">{header}{coloured_html(explanation, words)}{method}{notes}</div>'


def coloured_html(explanation: Explanation, language: Language) -> str:
    """Return the coloured words and their legend as HTML; see `explanation_html`."""
    largest = largest_score(explanation)
    parts = [0] if explanation.text_pair is None else [0, 1]
    lines: list[str] = []
    for part in parts:
        if len(parts) > 1:
            lines.append(f'<p class="small">{escape(language.text_name(part))}</p>')
        body = "".join(_segment_html(explanation, segment, largest) for segment in segments(explanation, part))
        lines.append(f'<p class="words" dir="auto">{body}</p>')
    return "".join(lines) + _legend_html(explanation, language, largest)


def largest_score(explanation: Explanation) -> float:
    """Return the size of the largest score of what is shown together, 1 where all are 0."""
    parts = [segment for part in (0, 1) for segment in segments(explanation, part)]
    return max((abs(_score(explanation, segment)) for segment in parts), default=0.0) or 1.0


def _score(explanation: Explanation, segment: Segment) -> float:
    return float(sum(explanation.scores[unit] for unit in segment.units))


def _segment_html(explanation: Explanation, segment: Segment, largest: float) -> str:
    if not segment.units:
        return escape(segment.text)
    score = _score(explanation, segment)
    share = score / largest
    kinds = ["own"] if set(segment.units) & set(explanation.own) else []
    if abs(share) >= FAINT:
        kinds.append("for" if share > 0 else "against")
    title = ", ".join(_number(explanation, explanation.scores[unit]) for unit in segment.units)
    attributes = f' class="{" ".join(kinds)}"' if kinds else ""
    return f'<span{attributes} style="background:{colour(share)}" title="{title}">{escape(segment.text)}</span>'


def _number(explanation: Explanation, score: float) -> str:
    return f"{score:+.3g}" if explanation.signed else f"{score:.3g}"


def _legend_html(explanation: Explanation, language: Language, largest: float) -> str:
    most = _number(explanation, largest)
    samples = [("for", colour(1.0), f"{language.supports} ({most})")]
    if explanation.signed:
        samples.append(("against", colour(-1.0), f"{language.opposes} ({_number(explanation, -largest)})"))
    else:
        samples = [("for", colour(1.0), f"{language.matters} ({most})")]
    if explanation.own:
        samples.append(("own", "transparent", language.target_itself))
    shown = " · ".join(
        f'<span class="{kind}" style="background:{shade}">&nbsp;{escape(text)}&nbsp;</span>'
        for kind, shade, text in samples
    )
    return f'<p class="small">{shown}</p>'


def explanation_text(explanation: Explanation) -> Text:
    """Return the words for a terminal, coloured by their scores: black on blue for, on orange against.

    Without colours, such as in a pipe, it is the text itself. The texts of a pair stand on lines of their own.
    """
    from rich.text import Text

    largest = largest_score(explanation)
    shown = Text()
    for part in (0, 1):
        for segment in segments(explanation, part):
            share = _score(explanation, segment) / largest
            own = bool(set(segment.units) & set(explanation.own))
            shown.append(visible(segment.text), style=terminal_style(share, underline=own))
        if part == 0 and explanation.text_pair is not None:
            shown.append("\n")
    return shown


def terminal_style(share: float, *, underline: bool = False) -> str:
    """Return the style of a score for `rich`; both colours are set, so that it can be read on any ground.

    Example:
        >>> terminal_style(1.0), terminal_style(0.01)
        ('black on #46aadc', '')
    """
    marks = ["underline"] if underline else []
    if abs(share) >= FAINT:
        # Italics, because a terminal of few colours shows weak ones as grey.
        marks += ["italic"] if share < 0 else []
        mixed = [round(255 + (tone - 255) * min(1.0, abs(share))) for tone in (ON_FOR if share > 0 else ON_AGAINST)]
        marks.append(f"black on #{''.join(f'{tone:02x}' for tone in mixed)}")
    return " ".join(marks)


def visible(text: str) -> str:
    """Write control characters out, which would move the cursor or turn the direction of a terminal.

    Example:
        >>> visible("a\\x1b[31mb")
        'a\\\\x1b[31mb'
    """
    return "".join(c if c in "\n\t" or not _controls(c) else repr(c)[1:-1] for c in text)


def _controls(character: str) -> bool:
    turns = "\u202a" <= character <= "\u202e" or character in "\u2066\u2067"
    return turns or category(character) == "Cc"
