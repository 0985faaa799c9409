"""Attention as pages of their own: bertviz's drawings with everything inlined, and heat maps."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from hf_mtl.errors import ModelError
from hf_mtl.explain.rendering import STYLE, colour, page
from hf_mtl.writing import write_text

SCALE = 10_000
"""Weights are written in units of a ten-thousandth: rounded to 4 decimals, at half the size."""

LIBRARIES = ("d3-5.7.0.min.js", "jquery-3.7.1.slim.min.js")
LONGEST_LABEL = 14
"""Characters of a token that bertviz has room for."""

LAYOUT = """<style>
h1{font-size:1.2em}
#attention-view{background:#fff;color:#000;color-scheme:light;padding:.5em;overflow-x:auto}
#attention-view label{margin-right:1em}
#attention-view svg text{font-family:"Noto Sans","Noto Sans CJK SC","Noto Color Emoji",sans-serif}
#attention-view.by-task #attention{filter:url(#stronger)}
#readout{min-height:1.6em}
.hf-mtl .heat{font-size:.85em;line-height:1.2}
.hf-mtl .heat td{border:0}
.hf-mtl.attention{max-width:none}
</style>"""
# bertviz draws a head's lines at their share of the mean over heads, too faint where most weights are small.
STRONGER = (
    '<svg width="0" height="0" style="position:absolute"><filter id="stronger"><feComponentTransfer>'
    '<feFuncA type="linear" slope="{heads}"/></feComponentTransfer></filter></svg>'
)
EMPTY = "Point at a word."
LAYER = '<label>Layer: <select id="layer"></select></label>'
SELECTS = {"head": LAYER, "model": "", "neuron": LAYER + '<label>Head: <select id="att_head"></select></label>'}


@dataclass(frozen=True)
class Measure:
    """One choice of what is drawn.

    Args:
        name: what it is called.
        weights: which of the drawing's weights it shows.
        sign: 1 for those above zero, -1 for those below.
    """

    name: str
    weights: int = 0
    sign: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawing:
    """What bertviz draws.

    Args:
        kind: `"head"`, `"model"` or `"neuron"`.
        tokens: labels of the tokens.
        second: place of the first token of a pair's second text.
        layers: the layers drawn.
        heads: the heads drawn.
        weights: each `(num_layers, num_heads, num_tokens, num_tokens)`, in [-1, 1].
        measures: what can be chosen to be seen.
        queries: of the neuron view, `(num_layers, num_heads, num_tokens, head_size)`.
        keys: of the neuron view, in the same shape.
        bidirectional: whether tokens attend to those after them.
    """

    kind: str
    tokens: Sequence[str]
    second: int | None
    layers: Sequence[int]
    heads: Sequence[int]
    weights: Sequence[np.ndarray]
    measures: Sequence[Measure]
    queries: np.ndarray | None = None
    keys: np.ndarray | None = None
    bidirectional: bool = True


@dataclass(frozen=True, repr=False)
class AttentionView:
    """A page of attention: shown in a notebook, or saved.

    Args:
        html: the page, which asks for nothing from elsewhere.
        kind: which of the views it is.
        notices: what was left out.
    """

    html: str
    kind: str
    notices: tuple[str, ...] = ()

    def save(self, path: str | Path) -> Path:
        """Write the page to a file and return its path.

        Raises:
            OutputError: the file cannot be written.
        """
        write_text(self.html, Path(path))
        return Path(path)

    def _repr_html_(self) -> str:
        # A frame of its own: its scripts and names then meet neither the notebook's nor another view's.
        return (
            f'<iframe srcdoc="{escape(self.html)}" title="attention, {self.kind} view" '
            'style="width:100%;height:600px;border:0"></iframe>'
        )

    def __repr__(self) -> str:
        return f"AttentionView(kind={self.kind!r}, {len(self.html)} characters of HTML)"


def attention_page(title: str, above: Sequence[str], drawing: Drawing, below: Sequence[str] = ()) -> str:
    """Return a page with a drawing.

    Args:
        title: the page's title.
        above: what stands above the drawing, as HTML.
        drawing: the drawing.
        below: what stands below it.

    Raises:
        ModelError: the bertviz that is installed is not as this version of hf_mtl knows it.
    """
    body = "\n".join([*above, _drawing(drawing), *below])
    return page(title, [STYLE, LAYOUT, f'<div class="hf-mtl attention">{body}</div>'])


def heat_map(columns: Sequence[str], rows: Sequence[str], values: np.ndarray) -> str:
    """Return a table whose cells are the darker the larger their number.

    Args:
        columns: names of the columns.
        rows: names of the rows.
        values: `(num_rows, num_columns)`, of either sign; each column has its own scale.

    Example:
        >>> "0.250" in heat_map(["topic"], ["goal"], np.array([[0.25]]))
        True
    """
    largest = np.abs(values).max(axis=0, initial=0.0)
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *columns))
    body: list[str] = []
    for name, row in zip(rows, values, strict=True):
        shares = np.divide(row, largest, out=np.zeros_like(row), where=largest > 0)
        cells = "".join(
            f'<td style="background:{colour(float(share))}">{value:.3f}</td>'
            for value, share in zip(row, shares, strict=True)
        )
        body.append(f'<tr><td dir="auto">{escape(name)}</td>{cells}</tr>')
    return f'<div class="scroll"><table class="heat"><tr>{head}</tr>{"".join(body)}</table></div>'


def label(token: str) -> str:
    """Shorten a token to what bertviz has room for.

    Example:
        >>> label("antidisestablishmentarianism"), label("film")
        ('antidisestabl…', 'film')
    """
    return token if len(token) <= LONGEST_LABEL else token[: LONGEST_LABEL - 1] + "…"


def _drawing(drawing: Drawing) -> str:
    selects = (
        '<label>Weights: <select id="measure"></select></label>'
        '<label>Words: <select id="pair"></select></label>'
        f"{SELECTS[drawing.kind]}"
        '<select id="filter" hidden></select>'
    )
    scripts = [*map(_asset, LIBRARIES), _asset("attention_view.js"), bertviz_script(drawing.kind), "afterDrawing();"]
    return "\n".join(
        [
            f'<p id="readout" class="small" dir="auto" data-empty="{EMPTY}">{EMPTY}</p>',
            STRONGER.format(heads=len(drawing.heads)),
            f'<div id="attention-view">{selects}<div id="vis"></div></div>',
            f'<script type="application/json" id="attention-data">{_data(drawing)}</script>',
            *(f"<script>{script}</script>" for script in scripts),
        ]
    )


def _data(drawing: Drawing) -> str:
    values: dict[str, Any] = {
        "kind": drawing.kind,
        "scale": SCALE,
        "tokens": [label(token) for token in drawing.tokens],
        "second": drawing.second,
        "layers": list(drawing.layers),
        "heads": list(drawing.heads),
        "measures": [vars(measure) for measure in drawing.measures],
        "weights": [_units(weights) for weights in drawing.weights],
        "queries": None if drawing.queries is None else _units(drawing.queries),
        "keys": None if drawing.keys is None else _units(drawing.keys),
        "bidirectional": drawing.bidirectional,
    }
    # No `<` may stand in a script but its end; in JSON it can be written otherwise.
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")


def _units(values: np.ndarray) -> list[Any]:
    return np.rint(np.asarray(values, dtype=np.float64) * SCALE).astype(np.int64).tolist()


@cache
def _asset(name: str) -> str:
    text = (files("hf_mtl.explain") / "assets" / name).read_text(encoding="utf-8")
    return _for_script(text)


@cache
def bertviz_script(kind: str) -> str:
    """Return the code that draws a view, which reads its parameters from `window.bertviz_params`.

    Args:
        kind: `"head"`, `"model"` or `"neuron"`.

    Raises:
        ModelError: the bertviz that is installed is not as this version of hf_mtl knows it.
    """
    package = find_spec("bertviz")  # not imported, which would import IPython and its old models
    places = (package.submodule_search_locations if package else None) or []
    found = [Path(place) / f"{kind}_view.js" for place in places]
    text = found[0].read_text(encoding="utf-8") if found and found[0].is_file() else ""
    # Where the libraries are on the network, which we do not need to know.
    text, addresses = re.subn(r"require\.config\(\{.*?\}\s*\);", "", text, count=1, flags=re.DOTALL)
    if kind == "neuron":
        parameters = text.count("window.bertviz_params")
    else:
        text, parameters = re.subn(r"PYTHON_PARAMS;", "window.bertviz_params;", text)
    if (addresses, parameters) != (1, 1) or "requirejs(['jquery', 'd3']" not in text:
        raise ModelError(f"bertviz has no {kind} view as of version 1.4", mend='pip install "bertviz>=1.4.1,<2"')
    return _for_script(text)


def _for_script(text: str) -> str:
    return re.sub(r"</(?=script)", r"<\\/", text, flags=re.IGNORECASE)
