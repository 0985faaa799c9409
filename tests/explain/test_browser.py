"""Attention views in a real browser without a network: what is drawn, what the mouse does, what text is shown."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, chromium, needs_chromium
from tiny import build, tiny_data, tiny_folder, tiny_recipe

from hf_mtl.data.preparation import RecipeData
from hf_mtl.explain.attention_html import AttentionView
from hf_mtl.explain.explainer import Explainer

__all__ = ["tiny_data", "tiny_folder", "tiny_recipe"]

pytestmark = needs_chromium

TEXT = "the film was good"
TOKENS = ["[CLS]", "the", "film", "was", "good", "[SEP]"]
PAIR = {"text": TEXT, "text_pair": "old songs"}
ODD = "上海 مرحبا 😀 <script>alert(1)</script> <b>&amp;"
LAYERS, HEADS = 2, 2


@pytest.fixture(scope="session")
def explainer(tiny_data: RecipeData) -> Explainer:
    return Explainer(build(tiny_data).eval(), tiny_data.tokenizer)


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Generator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser.new_page()


def weights_of(view: AttentionView, index: int = 0) -> np.ndarray:
    data: Any = json.loads(view.html.split('id="attention-data">')[1].split("</script>")[0])
    return np.array(data["weights"][index]) / data["scale"]


def show(page: Page, html: str, folder: Path) -> Page:
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    page.open(file)
    assert_quiet(page, file)
    return page


def assert_quiet(page: Page, file: Path) -> None:
    """Nothing went wrong, and nothing was asked for but the page itself."""
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith("about:srcdoc")] == [file.as_uri()]


def opacities(page: Page, lines: str) -> np.ndarray:
    return np.array(page.run(f"[...document.querySelectorAll({lines!r})].map(x => +x.getAttribute('stroke-opacity'))"))


def texts(page: Page, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll({selector!r})].map(x => x.textContent)")


def word(side: str, place: int) -> str:
    """A word of the head view."""
    return f"document.querySelectorAll('#{side} > g:last-child > g')[{place}].querySelector('text')"


def test_a_request_and_an_error_would_be_seen(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("<img src='http://192.0.2.1/a.png'><script>oops()</script>")
    page.open(file)
    assert "http://192.0.2.1/a.png" in page.requests
    assert any("oops is not defined" in problem for problem in page.problems)


def test_head_view_draws_a_line_for_each_weight_of_a_layer(page: Page, explainer: Explainer, tmp_path: Path) -> None:
    view = explainer.attention_view(TEXT)
    show(page, view.html, tmp_path)
    assert texts(page, "#left text") == texts(page, "#right text") == TOKENS
    for layer in (0, 1):
        page.choose("#layer", layer)
        assert page.count("#attention line") == HEADS * 6 * 6
        drawn = opacities(page, "#attention line").reshape(HEADS, 6, 6)
        np.testing.assert_allclose(drawn * HEADS, weights_of(view)[layer], atol=1e-9)
    assert page.problems == []


def test_head_view_follows_the_mouse(page: Page, explainer: Explainer, tmp_path: Path) -> None:
    view = explainer.attention_view(TEXT)
    show(page, view.html, tmp_path)
    weights = weights_of(view)[0].mean(axis=0)
    assert page.text("#readout") == "Point at a word."
    page.point(word("left", 2))
    assert page.count("line[visibility=visible]") == HEADS * 6
    strongest = int(weights[2].argmax())
    assert page.text("#readout").startswith(f"“film” attends to: {TOKENS[strongest]} {weights[2].max():.3f}, ")
    page.point(word("right", 4))
    assert "“good” is attended to by: " in page.text("#readout")
    assert f"{weights[:, 4].max():.3f}" in page.text("#readout")
    square = "document.querySelectorAll('svg > g:last-child > rect')[1]"
    page.point(square, click=True)
    assert page.text("#readout") == "head 1: click to hide or show, double click to show alone"
    drawn = opacities(page, "#attention line").reshape(HEADS, 6, 6)
    np.testing.assert_allclose(drawn[0], weights_of(view)[0, 0], atol=1e-9)
    assert drawn[1].max() == 0
    assert page.problems == []


def test_weights_of_a_task_can_be_chosen(page: Page, explainer: Explainer, tmp_path: Path) -> None:
    view = explainer.attention_view(TEXT, tasks=["sentiment", "slots"])
    show(page, view.html, tmp_path)
    assert len(texts(page, "#measure option")) == 5
    for choice, index, sign in ((1, 1, 1), (2, 1, -1), (3, 2, 1), (0, 0, 1)):
        page.choose("#measure", choice)
        drawn = opacities(page, "#attention line").reshape(HEADS, 6, 6)
        weights = np.maximum(sign * weights_of(view, index)[0], 0)
        np.testing.assert_allclose(drawn * HEADS, np.sqrt(weights) if index else weights, atol=1e-9)
    page.choose("#measure", 1)
    page.point(word("left", 2))
    most = np.maximum(weights_of(view, 1)[0, :, 2], 0).mean(axis=0)
    said = f"“film” attends to: {TOKENS[most.argmax()]} {most.max():.3f}, "
    assert page.text("#readout").startswith(said)
    assert page.text("#readout").endswith(f"({texts(page, '#measure option')[1]})")
    assert page.problems == []


def test_pair_is_drawn_between_its_texts(page: Page, explainer: Explainer, tmp_path: Path) -> None:
    view = explainer.attention_view(PAIR)
    show(page, view.html, tmp_path)
    assert texts(page, "#pair option") == ["A and B", "A to A", "A to B", "B to A", "B to B"]
    weights = weights_of(view)[0]
    first, second = slice(0, 6), slice(6, 9)
    for choice, left, right in ((1, first, first), (2, first, second), (3, second, first), (4, second, second)):
        page.choose("#pair", choice)
        expected = weights[:, left, right]
        assert page.count("#attention line") == expected.size
        drawn = opacities(page, "#attention line").reshape(expected.shape)
        np.testing.assert_allclose(drawn * HEADS, expected, atol=1e-9)
    assert texts(page, "#left text") == texts(page, "#right text") == ["old", "songs", "[SEP]"]
    assert page.problems == []


def test_model_view_draws_every_head_and_looks_closer(page: Page, explainer: Explainer, tmp_path: Path) -> None:
    view = explainer.attention_view(TEXT, "model")
    show(page, view.html, tmp_path)
    assert page.count("svg line") == LAYERS * HEADS * 6 * 6
    drawn = opacities(page, "svg line").reshape(LAYERS, HEADS, 6, 6)
    np.testing.assert_allclose(drawn, weights_of(view), atol=1e-9)
    page.point("document.getElementById('attn_background_1_0')", click=True)
    assert page.text("#readout") == "head 0 of layer 1: click to look closer"
    assert page.count(".detail line") == 6 * 6
    assert "Layer 1, Head 0" in texts(page, "text.detail")
    page.point("document.querySelectorAll('g.detail')[0].querySelectorAll('text')[3]")
    seen = page.run("[...document.querySelectorAll('.attn-line-group')].map(x => +x.style.opacity)")
    assert seen == [0, 0, 0, 1, 0, 0]
    strongest = weights_of(view)[1, 0, 3].max()
    assert page.text("#readout").startswith("“was” attends to: ")
    assert f"{strongest:.3f}" in page.text("#readout")
    assert page.problems == []


def test_chosen_layers_and_heads_keep_their_numbers(page: Page, explainer: Explainer, tmp_path: Path) -> None:
    show(page, explainer.attention_view(TEXT, "model", layers=[1], heads=[1]).html, tmp_path)
    assert page.count("svg line") == 6 * 6
    assert {"Heads", "1", "Layers"} == set(texts(page, "svg text"))
    page.point("document.getElementById('attn_background_0_0')")
    assert page.text("#readout") == "head 1 of layer 1: click to look closer"
    show(page, explainer.attention_view(TEXT, "head", layers=[1]).html, tmp_path)
    assert texts(page, "#layer option") == ["1"]
    show(page, explainer.attention_view(TEXT, "neuron", layers=[1], heads=[1]).html, tmp_path)
    assert [texts(page, f"#{name} option") for name in ("layer", "att_head")] == [["1"], ["1"]]


def test_neuron_view_shows_queries_and_keys(page: Page, explainer: Explainer, tmp_path: Path) -> None:
    view = explainer.attention_view(TEXT, "neuron")
    show(page, view.html, tmp_path)
    size = explainer.subject.model.encoder.config.hidden_size // HEADS
    assert page.count("#collapsed .attn-line-group line") == 6 * 6
    assert page.count("#queries .element") == page.count("#keys .element") == 6 * size
    drawn = opacities(page, "#collapsed .attn-line-group line").reshape(6, 6)
    np.testing.assert_allclose(drawn, weights_of(view)[0, 0], atol=1e-9)
    token = "document.querySelectorAll('#collapsed #leftText > g')[2]"
    page.point(f"{token}.querySelector('text')")
    assert page.text("#readout").startswith("“film” attends to: ")
    page.point(f"{token}.querySelector('rect:last-child')", click=True)
    assert page.run("document.querySelector('#expanded').getAttribute('visibility')") == "visible"
    page.point("document.querySelectorAll('#expanded #leftText > g')[2].querySelector('text')")
    products = page.run("[...document.querySelectorAll('.dotproduct')].map(x => +x.getAttribute('data-value'))")
    exponentials = np.exp(np.array(products))
    np.testing.assert_allclose(exponentials / exponentials.sum(), weights_of(view)[0, 0, 2], atol=1e-3)
    page.choose("#att_head", 1)
    drawn = opacities(page, "#collapsed .attn-line-group line").reshape(6, 6)
    np.testing.assert_allclose(drawn, weights_of(view)[0, 1], atol=1e-9)
    assert page.problems == []


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [("head", "#left text"), ("model", "g.detail text.token"), ("neuron", "#collapsed #leftText text")],
)
def test_text_of_any_script_is_shown_as_text(
    page: Page, explainer: Explainer, tmp_path: Path, kind: str, tokens: str
) -> None:
    view = explainer.attention_view(ODD, kind)
    show(page, view.html, tmp_path)
    scripts = page.count("script")
    assert page.text("p.words") == ODD
    assert page.count("p.words *") == 0
    if kind == "model":
        page.point("document.getElementById('attn_background_0_0')", click=True)
    shown = texts(page, tokens)
    assert shown[:3] == ["[CLS]", "上", "海"]
    assert {"😀", "<", ">", "&"} <= set(shown)
    assert "".join(shown).replace("##", "").count("<script>alert(1)</script>") >= 1
    assert "".join(ch for ch in "".join(shown) if "\u0600" <= ch <= "\u06ff").startswith("مرحبا")
    assert page.count("script") == scripts
    assert page.problems == []


def test_views_of_a_notebook_draw_side_by_side(page: Page, explainer: Explainer, tmp_path: Path) -> None:
    views = [explainer.attention_view(TEXT, kind) for kind in ("head", "model", "neuron")]
    outputs = "".join(f"<div class='output'>{view._repr_html_()}</div>" for view in views)
    # The notebook's own names do not reach the views, nor theirs it.
    html = f"<!doctype html><script>var require = 1, define = 2, d3 = 3, $ = 4;</script>{outputs}"
    show(page, html, tmp_path)
    counts = page.run(
        "[...document.querySelectorAll('iframe')].map(x => x.contentDocument.querySelectorAll('line').length)"
    )
    assert counts[:2] == [HEADS * 36, LAYERS * HEADS * 36]
    assert counts[2] > 36
    assert page.run("[require, define, d3, $]") == [1, 2, 3, 4]
    inside, outside = "x.contentDocument.documentElement.offsetHeight", "x.clientHeight"
    heights = page.run(f"[...document.querySelectorAll('iframe')].map(x => [{inside}, {outside}])")
    assert all(content <= frame <= 900 for content, frame in heights)
    assert page.problems == []
