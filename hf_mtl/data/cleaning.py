"""Cleaning: the steps that a recipe's `cleaning` names, each a function of one text.

    cleaning: [unicode, html, mask_urls, mask_users, whitespace, {language: [en, de]}]

- `unicode` repairs mojibake and brings Unicode into its composed form (ftfy; extra `cleaning`).
- `html` takes tags and comments out and turns entities into characters.
- `mask_urls` and `mask_users` write `http` and `@user`, or the text that is given, for addresses and names of users.
- `whitespace` makes every run of spaces, tabs and line breaks one space.
- `language` drops rows in other languages (py3langid; extra `cleaning`); texts of under 20 letters stay, for nobody can
  tell theirs.

Words that are given as tokens are cleaned one by one, and a word that would vanish or fall apart stays as it is: there
are as many words as before, each with its own tag.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from hf_mtl.errors import MissingExtraError, RecipeError, one_of

CLEANING_VERSION = 1
"""Part of every cache key: raise it when a step gives another result."""

LEAST_LETTERS = 20
"""Letters that a text must have for its language to be told."""

_BLOCK = re.compile(r"<(?:(!--)|(?:(script)|(style))\b[^<>]*>)", re.IGNORECASE)
_BLOCK_ENDS = tuple(re.compile(end, re.IGNORECASE) for end in ("-->", r"</script\s*>", r"</style\s*>"))
_INLINE = re.compile(
    r"</?(?:a|abbr|b|code|em|font|i|mark|q|s|small|span|strong|sub|sup|u)(?:\s[^<>]*)?>", re.IGNORECASE
)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
# Not the full stop or bracket that closes the sentence around it.
_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"']*[^\s<>\"'.,;:!?()\[\]{}]", re.IGNORECASE)
_USER = re.compile(r"(?<![\w@.])@\w+")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class CleaningStep:
    """One step: it changes a text, or tells whether its row stays.

    Args:
        name: name of the step.
        change: returns the text as it should be; `None` for steps that drop rows.
        keep: tells whether the row of a text stays; `None` for steps that change texts.
    """

    name: str
    change: Callable[[str], str] | None = None
    keep: Callable[[str], bool] | None = None

    def on_words(self, words: Sequence[str]) -> list[str]:
        """Change words one by one; one that would be no single word afterwards stays as it is."""
        assert self.change is not None
        changed = [self.change(word).strip() for word in words]
        return [new if new and not any(map(str.isspace, new)) else old for old, new in zip(words, changed, strict=True)]

    def on_texts(self, texts: Sequence[str]) -> list[str]:
        """Return texts as the step leaves them; one of which nothing would be left stays as it was."""
        assert self.change is not None
        changed = [self.change(text) for text in texts]
        return [new if new.strip() else old for old, new in zip(texts, changed, strict=True)]


def cleaning_steps(values: Any) -> tuple[CleaningStep, ...]:
    """Make the steps that a recipe names, in their order.

    Args:
        values: a list of names, or of mappings from a name to its option; or one mapping. `None` is no step.

    Raises:
        RecipeError: there is no such step, it stands twice, or its option cannot be.

    Example:
        >>> steps = cleaning_steps(["html", "whitespace", {"mask_urls": "URL"}])
        >>> clean_text(steps, "see <b>www.example.org</b> &amp;  tell")
        'see URL & tell'
    """
    steps: list[CleaningStep] = []
    for name, option in _pairs(values):
        if name not in _STEPS:
            raise RecipeError(f"there is no step {name!r}", where="cleaning", mend=f"use {one_of(_STEPS)}")
        if any(step.name == name for step in steps):
            raise RecipeError(f"the step {name!r} stands twice", where="cleaning", mend="name each step once")
        steps.append(_STEPS[name](option))
    return tuple(steps)


def clean_text(steps: Sequence[CleaningStep], text: str) -> str:
    """Return a text as the steps leave it; those that drop rows leave it as it is."""
    for step in steps:
        text = step.change(text) if step.change is not None else text
    return text


def clean_row(
    steps: Sequence[CleaningStep], row: Mapping[str, Any], *, texts_in: Collection[str | None] = ()
) -> tuple[dict[str, Any], list[int], int | None]:
    """Clean the texts and words of a row.

    Args:
        steps: the steps, in their order.
        row: column -> text, words, or anything else, which stays as it is.
        texts_in: columns whose lists hold texts, such as choices, and not words; none of them becomes empty.

    Returns:
        The cleaned columns, the numbers of the steps that changed one, and the number of the step that drops the row.
    """
    cleaned, changed = dict(row), list[int]()
    for number, step in enumerate(steps):
        if step.change is not None:
            for column, value in cleaned.items():
                if isinstance(value, str):
                    new: Any = step.change(value)
                elif _are_words(value) and column in texts_in:
                    new = step.on_texts(value)
                elif _are_words(value):
                    new = step.on_words(value)
                else:
                    continue
                if new != value:
                    cleaned[column] = new
                    changed.append(number)
        elif step.keep is not None:
            texts = [" ".join(value) if _are_words(value) else value for value in cleaned.values()]
            if not step.keep(" ".join(text for text in texts if isinstance(text, str))):
                return cleaned, changed, number
    return cleaned, sorted(set(changed)), None


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in cast(list[Any], value))


def _pairs(values: Any) -> list[tuple[str, Any]]:
    if isinstance(values, Mapping):
        values = [{name: option} for name, option in cast(Mapping[Any, Any], values).items() if option is not False]
    found: list[tuple[str, Any]] = []
    for value in values if isinstance(values, list | tuple) else [] if values is None else [values]:
        if isinstance(value, str):
            found.append((value, True))
        elif isinstance(value, Mapping) and len(cast(Mapping[Any, Any], value)) == 1:
            found.append(next(iter(cast(Mapping[Any, Any], value).items())))
        else:
            raise RecipeError(f"{value!r} is no step", where="cleaning", mend=f"name a step: {one_of(_STEPS)}")
    return found


# ---------------------------------------------------------------------- the steps


def _unicode(option: Any) -> CleaningStep:
    _refuse_option("unicode", option)

    def repair(text: str) -> str:
        return _ftfy().fix_text(text, unescape_html=False, uncurl_quotes=False)

    return CleaningStep("unicode", repair)


def _without_blocks(text: str) -> str:
    """Take comments, scripts and style sheets out; what is never closed stays, and is looked for only once."""
    kept: list[str] = []
    start, position, unclosed = 0, 0, set[int]()
    while (opening := _BLOCK.search(text, position)) is not None:
        kind = cast(int, opening.lastindex) - 1
        end = None if kind in unclosed else _BLOCK_ENDS[kind].search(text, opening.end())
        position = opening.end() if end is None else end.end()
        if end is None:
            unclosed.add(kind)
        else:
            kept += (text[start : opening.start()], " ")
            start = position
    return "".join([*kept, text[start:]])


def _html(option: Any) -> CleaningStep:
    _refuse_option("html", option)

    def strip(text: str) -> str:
        if "<" in text:
            text = _TAG.sub(" ", _INLINE.sub("", _without_blocks(text)))
        return html.unescape(text) if "&" in text else text

    return CleaningStep("html", strip)


def _whitespace(option: Any) -> CleaningStep:
    _refuse_option("whitespace", option)
    return CleaningStep("whitespace", lambda text: " ".join(text.split()))


def _mask(name: str, pattern: re.Pattern[str], default: str) -> Callable[[Any], CleaningStep]:
    def make(option: Any) -> CleaningStep:
        mask = default if option is True else option
        if not isinstance(mask, str) or not mask or any(map(str.isspace, mask)):
            raise RecipeError(f"{name} is {option!r}", where="cleaning", mend="give one word to write instead")
        return CleaningStep(name, lambda text: pattern.sub(lambda _: mask, text))

    return make


def _language(option: Any) -> CleaningStep:
    codes = [option] if isinstance(option, str) else option
    if not isinstance(codes, list) or not codes or not all(isinstance(code, str) for code in cast(list[Any], codes)):
        raise RecipeError(f"language is {option!r}", where="cleaning", mend="give a code such as 'en', or several")
    wanted = frozenset(cast(list[str], codes))

    def keep(text: str) -> bool:
        if len(_LETTER.findall(text)) < LEAST_LETTERS:
            return True
        return _identifier(wanted).classify(text)[0] in wanted

    return CleaningStep("language", keep=keep)


def _refuse_option(name: str, option: Any) -> None:
    if option is not True:
        raise RecipeError(f"{name} is {option!r}, and has no options", where="cleaning", mend=f"write {name} alone")


@cache
def _ftfy() -> Any:
    try:
        import ftfy
    except ImportError as error:
        raise MissingExtraError("ftfy", extra="cleaning") from error
    return ftfy


@cache
def _identifier(wanted: frozenset[str]) -> Any:
    """Load the language model that comes inside py3langid, and check the codes that are asked for."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise MissingExtraError("py3langid", extra="cleaning") from error
    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE)
    known = sorted(identifier.labels)
    for code in sorted(wanted):
        if code not in known:
            raise RecipeError(f"the language {code!r} is not known", where="cleaning", mend=f"use {one_of(known)}")
    return identifier


_STEPS: dict[str, Callable[[Any], CleaningStep]] = {
    "unicode": _unicode,
    "html": _html,
    "mask_urls": _mask("mask_urls", _URL, "http"),
    "mask_users": _mask("mask_users", _USER, "@user"),
    "whitespace": _whitespace,
    "language": _language,
}
CLEANING_STEPS = tuple(_STEPS)
"""The names of the steps."""
