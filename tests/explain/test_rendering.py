"""Coloured words: the text stays what it is, numbers are those of the explanation, nothing is run or fetched."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import Page as Tab
from browser import chromium, needs_chromium
from rich.console import Console
from tiny import build, tiny_data, tiny_folder, tiny_recipe

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import SpecError
from hf_mtl.explain.explainer import Explainer
from hf_mtl.explain.explanation import Explanation
from hf_mtl.explain.rendering import (
    AGAINST,
    FOR,
    ON_AGAINST,
    ON_FOR,
    STRONGEST,
    colour,
    explanation_html,
    explanation_text,
    page,
    segments,
    table,
    terminal_style,
)
from hf_mtl.explain.text import Unit

__all__ = ["tiny_data", "tiny_folder", "tiny_recipe"]

TEXTS = [
    "the film was good",
    "  two  spaces,\n\ta line and a tab  ",
    "这部电影很无聊。",
    "فيلم سيئ جدا، good",
    "a family 👨‍👩‍👧 and a flag 🇳🇴 !",
    '<script>alert("1")</script> & <b>&amp;</b>',
    "e\u0301te\u0301 don't",
    "",
]
PAIR = {"text": "<i>first</i> film", "text_pair": "second  上海 مرحبا"}


@pytest.fixture(scope="module")
def explainer(tiny_data: RecipeData) -> Explainer:
    return Explainer(build(tiny_data).eval(), tiny_data.tokenizer)


class Reader(HTMLParser):
    """Reads what a browser would show of the words, and the titles of their spans."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.spans: list[tuple[str, str]] = []
        self.inside = False
        self.title = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if tag == "p":
            self.inside = values.get("class") == "words"
            self.words += [""] * self.inside
        self.title = (values.get("title") or "") if tag == "span" else ""

    def handle_endtag(self, tag: str) -> None:
        self.title = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.words[-1] += data
            if self.title:
                self.spans.append((data, self.title))


def explained(explainer: Explainer, text: object, task: str = "sentiment", units: str = "word") -> Explanation:
    return explainer.explain(text, task, method="gradient_x_input", units=units)[task]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("units", ["word", "token"])
def test_the_text_stands_in_it_as_it_is_with_a_number_for_each_word(
    explainer: Explainer, text: str, units: str
) -> None:
    explanation = explained(explainer, text, units=units)
    read = Reader(explanation_html(explanation))
    assert read.words == [text]
    assert "".join(segment.text for segment in segments(explanation)) == text
    numbers = [float(number) for _, title in read.spans for number in title.split(", ")]
    assert numbers == pytest.approx(explanation.scores, rel=5e-3, abs=1e-12)
    assert [word for word, _ in read.spans] == [explanation.text[unit.start : unit.end] for unit in explanation.units]


@pytest.mark.parametrize("text", TEXTS)
def test_a_terminal_shows_the_text_and_without_colours_nothing_else(explainer: Explainer, text: str) -> None:
    assert explanation_text(explained(explainer, text)).plain == text


def test_no_tag_of_a_text_becomes_one_of_the_page(explainer: Explainer) -> None:
    for text in (*TEXTS, PAIR):
        html = explanation_html(explained(explainer, text))
        assert set(Reader(html).tags) <= {"style", "div", "p", "b", "span"}
    label = replace(
        explained(explainer, "good"), predicted="<b onclick=x>", target='"><script>', task="<u>", notes=("<hr>",)
    )
    assert set(Reader(explanation_html(label)).tags) <= {"style", "div", "p", "b", "span"}


def test_texts_of_a_pair_stand_apart(explainer: Explainer) -> None:
    explanation = explained(explainer, PAIR)
    assert Reader(explanation_html(explanation)).words == [PAIR["text"], PAIR["text_pair"]]
    assert explanation_text(explanation).plain == f"{PAIR['text']}\n{PAIR['text_pair']}"
    html = explanation_html(explanation)
    places = [html.index(part) for part in ("First text", ">first<", "Second text", ">上<")]
    assert places == sorted(places)


def test_answer_probability_method_and_notes_are_said(explainer: Explainer) -> None:
    explanation = explained(explainer, "the film was good")
    html = explanation_html(explanation)
    for part in (explanation.predicted, f"{explanation.probability:.0%}", "gradient_x_input", explanation.notes[0]):
        assert part in html
    chinese = explanation_html(explanation, language="zh")
    assert "支持" in chinese
    assert "offered for comparison" not in chinese
    with pytest.raises(SpecError, match="'en', 'zh'"):
        explanation_html(explanation, language="de")


def made(scores: tuple[float, ...], **values: object) -> Explanation:
    words = ("dull", "but", "fine")
    units = tuple(Unit(word, 5 * place, 5 * place + len(word)) for place, word in enumerate(words))
    text = "dull but  fine"
    given = {"signed": True, **values}
    return Explanation(task="t", method="m", text=text, units=units, scores=scores, predicted="a", target="a",
                       probability=0.5, **given)  # fmt: skip


def test_colours_tell_sign_and_size() -> None:
    html = explanation_html(made((1.0, 0.0, -0.5)))
    backgrounds = re.findall(r"background:([^\"]+)\" title=", html)
    assert backgrounds == [colour(1.0), "transparent", colour(-0.5)]
    assert html.count('class="for"') == 2  # the word and the legend
    assert html.count('class="against"') == 2
    styles = [str(span.style) for span in explanation_text(made((1.0, 0.0, -0.5))).spans]
    assert styles == [terminal_style(1.0), terminal_style(-0.5)]


def test_scores_without_signs_have_one_colour_and_numbers_without_plus() -> None:
    html = explanation_html(made((1.0, 0.25, 0.5), signed=False))
    assert "against" not in html.split("</style>")[1]
    assert 'title="0.25"' in html


def test_words_of_a_tagging_target_are_framed(explainer: Explainer) -> None:
    explanation = explainer.explain("fly to new york", "slots", method="gradient_x_input", target=(2, 4))["slots"]
    html = explanation_html(explanation)
    assert len(re.findall(r'class="own[^"]*"[^>]*title=', html)) == 2
    assert "city for" in html or "name for" in html or "O for" in html


def test_units_that_share_characters_are_shown_once_with_both_numbers() -> None:
    units = (Unit("😀", 0, 1), Unit("😀", 0, 1), Unit("a", 1, 2))
    explanation = replace(made((0, 0, 0)), text="😀a", units=units, scores=(1.0, 2.0, 0.5))
    assert Reader(explanation_html(explanation)).spans == [("😀", "+1, +2"), ("a", "+0.5")]


def test_controls_of_a_terminal_are_written_out(explainer: Explainer) -> None:
    shown = explanation_text(explained(explainer, "good \x1b[31m \u202eliab")).plain
    assert shown == "good \\x1b[31m \\u202eliab"
    with Console(force_terminal=True, color_system="truecolor").capture() as _:
        assert "\x1b[31m" not in shown


def luminance(tone: np.ndarray) -> float:
    """Relative luminance of WCAG 2, https://www.w3.org/TR/WCAG21/#dfn-relative-luminance."""
    share = np.asarray(tone) / 255
    linear = np.where(share <= 0.03928, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(first: np.ndarray, second: np.ndarray) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


WHITE, BLACK, NIGHT = np.full(3, 255.0), np.zeros(3), np.full(3, 18.0)


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("tone", [FOR, AGAINST])
def test_letters_can_be_read_on_light_and_on_dark_ground(tone: tuple[int, ...], strength: float) -> None:
    for ground, letters in ((WHITE, BLACK), (NIGHT, WHITE)):
        mixed = ground + (np.array(tone) - ground) * STRONGEST * strength
        assert contrast(mixed, letters) > 4.5  # the least that WCAG asks for


@pytest.mark.parametrize("tone", [ON_FOR, ON_AGAINST])
def test_black_letters_can_be_read_in_a_terminal(tone: tuple[int, ...]) -> None:
    assert contrast(np.array(tone), BLACK) > 4.5


# Viénot, Brettel and Mollon 1999, https://doi.org/10.1002/(SICI)1520-6378(199908)24:4<243::AID-COL5>3.0.CO;2-3:
# linear light as people without red or green cones see it.
BLINDNESS = {
    "protanopia": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    "deuteranopia": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_blue_and_orange_differ_for_people_who_cannot_tell_red_from_green(kind: str) -> None:
    matrix = np.array(BLINDNESS[kind])
    seen = [(matrix @ (np.array(tone) / 255) ** 2.2).clip(0, 1) ** (1 / 2.2) for tone in (FOR, AGAINST)]
    red, green = (
        (matrix @ np.array(tone) ** 2.2).clip(0, 1) ** (1 / 2.2) for tone in ((0.8, 0.2, 0.2), (0.3, 0.55, 0.2))
    )
    assert np.abs(seen[0] - seen[1]).max() > 0.5
    assert np.abs(red - green).max() < 0.35  # what such a pair looks like to them


def test_a_page_is_whole_and_asks_for_nothing(explainer: Explainer) -> None:
    html = page("a <b> & c", [explanation_html(explained(explainer, text)) for text in TEXTS], language="zh")
    assert html.startswith("<!doctype html>")
    assert '<html lang="zh">' in html
    assert '<meta charset="utf-8">' in html
    assert "<title>a &lt;b&gt; &amp; c</title>" in html
    assert "default-src &#x27;none&#x27;" in html
    assert not re.search(r"https?:|src=|href=|@import|url\(", html)


def test_tables_hold_text() -> None:
    assert "<td>&lt;td&gt;</td>" in table(["a"], [["<td>"]])


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Generator[Tab]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser.new_page()


@needs_chromium
def test_a_browser_shows_every_text_and_does_nothing_else(explainer: Explainer, tab: Tab, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    fragments = [explanation_html(explained(explainer, text)) for text in TEXTS]
    file.write_text(page(TEXTS[5], fragments), encoding="utf-8")
    tab.open(file)
    assert tab.problems == []
    assert tab.requests == [file.as_uri()]
    assert tab.run("[...document.querySelectorAll('.words')].map(x => x.textContent)") == TEXTS
    assert tab.text("h1") == TEXTS[5]
    assert tab.run("document.scripts.length") == 0
    directions = tab.run("[...document.querySelectorAll('.words')].map(x => getComputedStyle(x).direction)")
    assert directions == ["rtl" if text.startswith("فيلم") else "ltr" for text in TEXTS]


@needs_chromium
def test_a_browser_lets_a_page_fetch_nothing(tab: Tab, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page("t", ["<img src='http://192.0.2.1/a.png'>"]), encoding="utf-8")
    tab.open(file)
    assert any("Content Security Policy" in problem for problem in tab.problems)
