"""Each cleaning step does what it says, and words keep their number."""

from __future__ import annotations

import random
import re
import sys
from typing import Any

import pytest

from hf_mtl.data import cleaning
from hf_mtl.data.cleaning import CLEANING_STEPS, clean_row, clean_text, cleaning_steps
from hf_mtl.errors import MissingExtraError, RecipeError

CASES = [
    ("unicode", "donâ€™t mix cafe\u0301 &amp;", "don’t mix café &amp;"),
    ("html", "a<br/>b <b>bo</b>ld &amp; &lt;i&gt; 1 < 2 <3<!-- x <p> -->!", "a b bold & <i> 1 < 2 <3 !"),
    ("html", "<script>var a = 1;</script>x", " x"),
    ("mask_urls", "see https://a.b/c?d=e, (www.x.org/y).", "see http, (http)."),
    ("mask_users", "@ann and me@mail.org, hi @bob!", "@user and me@mail.org, hi @user!"),
    ("whitespace", "  a\t b\n\u00a0c ", "a b c"),
]


@pytest.mark.parametrize(("name", "text", "wanted"), CASES)
def test_a_step_changes_what_it_names(name: str, text: str, wanted: str) -> None:
    assert clean_text(cleaning_steps([name]), text) == wanted


@pytest.mark.parametrize("name", [name for name in CLEANING_STEPS if name != "language"])
def test_a_step_leaves_clean_text_alone_and_words_in_their_number(name: str) -> None:
    steps = cleaning_steps([name])
    assert clean_text(steps, "A plain, clean sentence.") == "A plain, clean sentence."
    words = ["<br>", "&amp;", "a b", " ", "donâ€™t", "www.x.org", "@me", "&nbsp;", "x"]
    row, _, dropped = clean_row(steps, {"tokens": words})
    assert len(row["tokens"]) == len(words)
    assert dropped is None
    assert all(new == old or (new and not any(map(str.isspace, new))) for new, old in zip(row["tokens"], words))  # noqa: B905


def test_html_is_what_one_expression_finds_however_tags_are_nested_or_left_open() -> None:
    blocks = re.compile(r"<!--.*?-->|<(script|style)\b[^<>]*>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
    parts = ["<!--", "-->", "<script>", "</script >", "<STYLE a=b>", "</style>", "<scripted>", "<!-->", "x", " \n"]
    draw = random.Random(0)
    steps = cleaning_steps(["html"])
    for _ in range(2000):
        text = "".join(draw.choices(parts, k=draw.randrange(12)))
        assert clean_text(steps, text) == clean_text(steps, blocks.sub(" ", text)), text


def test_html_of_many_open_comments_is_read_once() -> None:
    text = "<!-- <script> " * 40_000  # in a time that grows with the square this would take minutes
    assert clean_text(cleaning_steps(["html"]), text).count("<!--") == 40_000


def test_steps_act_in_their_order_and_are_counted() -> None:
    steps = cleaning_steps(["mask_users", "html", "whitespace"])
    assert clean_row(steps, {"text": "@ann<br>  x", "text_pair": None}) == (
        {"text": "@user x", "text_pair": None}, [0, 1, 2], None,
    )  # fmt: skip
    assert clean_row(steps, {"text": 3, "tokens": ["a", 1]}) == ({"text": 3, "tokens": ["a", 1]}, [], None)


def test_rows_in_other_languages_are_dropped_and_short_ones_stay() -> None:
    steps = cleaning_steps([{"language": "en"}])
    rows = ["The weather was good and we went for a long walk.", "Das Wetter war gut und wir gingen lange spazieren.",
            "Il faisait beau et nous avons fait une longue promenade.", "Guten Tag"]  # fmt: skip
    assert [clean_row(steps, {"text": row})[2] for row in rows] == [None, 0, 0, None]
    assert clean_row(steps, {"tokens": rows[1].split()})[2] == 0
    assert clean_row(cleaning_steps({"language": ["en", "de"]}), {"text": rows[1]})[2] is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["unicod"], "use 'unicode'"), (["html", "html"], "twice"), ([{"html": 3}], "no options"), ([3], "is no step"),
        ([{"mask_urls": "a b"}], "one word"), (["language"], "give a code"), ([{"language": []}], "give a code"),
    ],
)  # fmt: skip
def test_impossible_steps_are_refused(values: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        cleaning_steps(values)


def test_an_unknown_language_lists_those_that_are_known() -> None:
    with pytest.raises(RecipeError, match="'en'"):
        clean_row(cleaning_steps([{"language": "english"}]), {"text": "The weather was good and we went for a walk."})


@pytest.mark.parametrize(("package", "step"), [("ftfy", "unicode"), ("py3langid", {"language": "en"})])
def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, package: str, step: Any) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.langid", None)
    for cached in (cleaning._ftfy, cleaning._identifier):
        cached.cache_clear()
    with pytest.raises(MissingExtraError, match=r"hf-mtl\[cleaning\]"):
        clean_row(cleaning_steps([step]), {"text": "The weather was good and we went for a walk."})
