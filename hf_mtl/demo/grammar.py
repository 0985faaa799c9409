"""Home commands with intents and slots, drawn at random from the sentence grammar of `home_assistant_intents`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from random import Random
from typing import TYPE_CHECKING

from ..errors import DataError, MissingExtraError, SpecError, one_of
from .vocabulary import VOCABULARIES, Vocabulary

if TYPE_CHECKING:
    from hassil import Expression, Intents, ListReference, RangeSlotList, Sentence, SlotList
    from hassil.intents import IntentData
    from unicode_rbnf import RbnfEngine

logger = logging.getLogger(__name__)

LANGUAGES = ("en", "zh-CN")
"""The languages that have both a grammar and a vocabulary."""

SPELLED_OUT = 0.3
"""Share of numbers written as words (`twenty - one`) instead of digits (`21`)."""

_TOKEN = {
    # Words with inner apostrophes and decimal points whole (what's, 21.5); every other sign alone (5 - hour).
    "en": re.compile(r"\w+(?:['’.]\w+)*|\S"),
    # Characters one by one; runs of digits or Latin letters whole.
    "zh-CN": re.compile(r"\d+(?:\.\d+)?|[A-Za-z]+|\S"),
}

Piece = tuple[str, str | None]
"""A stretch of text and the slot it fills, if any."""


@dataclass(frozen=True)
class Command:
    """One home command.

    Args:
        tokens: the words, or for Chinese the characters.
        slots: one BIO tag a token: `O`, `B-<slot>` or `I-<slot>`.
        intent: what the command asks for.
        template: the sentence template it was drawn from.
    """

    tokens: tuple[str, ...]
    slots: tuple[str, ...]
    intent: str
    template: str

    @property
    def text(self) -> str:
        """The sentence as it is compared with others: tokens joined by spaces, in lower case."""
        return " ".join(self.tokens).lower()


@dataclass(frozen=True)
class TemplateWalk:
    """A random walk over one parsed sentence template that remembers which words fill a slot.

    Args:
        rules: expansion rules by name, local ones in front of the package's.
        lists: slot lists by name, local ones in front of the package's.
        vocabulary: values for the lists that the package leaves open.
        domains: the device domains that the template is about; empty means any.
        numbers: spells numbers out.
    """

    rules: Mapping[str, Sentence]
    lists: Mapping[str, SlotList]
    vocabulary: Vocabulary
    domains: tuple[str, ...]
    numbers: RbnfEngine

    def pieces(self, expression: Expression, random: Random) -> Iterator[Piece]:
        """Walk once from the root of an expression to its words.

        Args:
            expression: the parsed template, or a part of it.
            random: where every choice comes from.

        Yields:
            Stretches of text in order, each with the slot it fills.

        Raises:
            KeyError: a rule or a list has no values.
        """
        from hassil import Alternative, Group, ListReference, Permutation, RuleReference, TextChunk

        if isinstance(expression, TextChunk):
            yield expression.original_text, None
        elif isinstance(expression, Alternative):
            yield from self.pieces(random.choice(expression.items), random)
        elif isinstance(expression, Group):
            items = list(expression.items)
            if isinstance(expression, Permutation):
                random.shuffle(items)
            for item in items:
                yield from self.pieces(item, random)
        elif isinstance(expression, RuleReference):
            yield from self.pieces(self.rules[expression.rule_name].expression, random)
        elif isinstance(expression, ListReference):
            yield self.value(expression, random), expression.slot_name

    def value(self, reference: ListReference, random: Random) -> str:
        """Draw the words that fill a slot.

        Args:
            reference: the list to draw from.
            random: where the choice comes from.

        Returns:
            The words.

        Raises:
            KeyError: the list has no values in the package, nor in the vocabulary.
        """
        from hassil import RangeSlotList, TextSlotList

        values = self.lists.get(reference.list_name)
        if isinstance(values, TextSlotList) and values.values:
            return "".join(text for text, _ in self.pieces(random.choice(values.values).text_in, random))
        if isinstance(values, RangeSlotList):
            return self.number(values, random)
        words = self.vocabulary.values(reference.list_name, domains=self.domains)
        if not words:
            raise KeyError(reference.list_name)
        return random.choice(words)

    def number(self, numbers: RangeSlotList, random: Random) -> str:
        """Draw a number of a range, in digits or in words.

        Args:
            numbers: the range.
            random: where the choice comes from.

        Returns:
            The number as text.
        """
        number = random.choice(list(numbers.get_numbers()))
        spelled = numbers.words and (not numbers.digits or random.random() < SPELLED_OUT)
        return self.numbers.format_number(number).text if spelled else str(number)


def draw_commands(language: str = "en", *, seed: int = 0, draws: int = 20) -> list[Command]:
    """Draw home commands from every template of the grammar.

    Intents with fewer than two templates are left out, and so are sentences that were drawn for two intents.

    Args:
        language: one of `LANGUAGES`.
        seed: the same seed draws the same commands.
        draws: how often each template is walked; repeated sentences of a template count once.

    Returns:
        The commands, in the order of the package's intents and templates.

    Raises:
        SpecError: the language is not one of `LANGUAGES`.
        MissingExtraError: a package of the demo is not installed.
    """
    check_language(language)
    commands = list(_draw_all(language, seed=seed, draws=draws))
    templates = _collect((command.intent, command.template) for command in commands)
    commands = [command for command in commands if len(templates[command.intent]) > 1]
    intents = _collect((command.text, command.intent) for command in commands)
    return [command for command in commands if len(intents[command.text]) == 1]


def check_language(language: str) -> None:
    """Raise a SpecError that lists the languages of the demo, unless the language is one of them."""
    if language not in LANGUAGES:
        raise SpecError(
            f"the demo does not speak {language!r}", where="language", mend=f"choose one of {one_of(LANGUAGES)}"
        )


def tag_tokens(pieces: Iterable[Piece], language: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split pieces of text into tokens and tag each with its slot.

    Args:
        pieces: stretches of text in order, each with the slot it fills.
        language: one of `LANGUAGES`.

    Returns:
        The tokens, and as many BIO tags; every slot piece starts its own `B-`.

    Example:
        >>> tag_tokens([("5", "minutes"), ("-minute", None), ("s what's ", None), ("tea time", "name")], "en")
        (('5', '-', 'minutes', "what's", 'tea', 'time'), ('B-minutes', 'O', 'O', 'O', 'B-name', 'I-name'))
    """
    tokens: list[str] = []
    tags: list[str] = []
    for text, slot in _merge(pieces):
        words = _TOKEN[language].findall(text)
        tokens += words
        tags += ["O"] * len(words) if slot is None else [f"{'I' if i else 'B'}-{slot}" for i in range(len(words))]
    return tuple(tokens), tuple(tags)


def _merge(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Join neighbouring pieces outside slots: `light` and `[s]` are one word."""
    for outside, run in groupby(pieces, key=lambda piece: piece[1] is None):
        if outside:
            yield "".join(text for text, _ in run), None
        else:
            yield from run


def _draw_all(language: str, *, seed: int, draws: int) -> Iterator[Command]:
    grammar = _load_grammar(language)
    for intent in grammar.intents.values():
        for block in intent.data:
            walk = _walk_of(block, grammar, language)
            for sentence in block.sentences:
                yield from _draw(sentence, walk, intent.name, language=language, seed=seed, draws=draws)


def _draw(
    sentence: Sentence, walk: TemplateWalk, intent: str, *, language: str, seed: int, draws: int
) -> list[Command]:
    """Walk one template `draws` times; one that needs a list without values is left out."""
    template = sentence.text or ""
    # A generator of its own for each template: a template that comes or goes leaves the others' sentences alone.
    random = Random(f"{seed} {intent} {template} {' '.join(walk.domains)}")
    drawn: dict[str, Command] = {}
    for _ in range(draws):
        try:
            tokens, slots = tag_tokens(walk.pieces(sentence.expression, random), language)
        except KeyError as missing:
            logger.warning("template %r of intent %s is left out: no values for %s", template, intent, missing)
            return []
        command = Command(tokens=tokens, slots=slots, intent=intent, template=template)
        if tokens:
            drawn.setdefault(command.text, command)
    return list(drawn.values())


def _walk_of(block: IntentData, grammar: Intents, language: str) -> TemplateWalk:
    from unicode_rbnf import RbnfEngine

    domains: str | Sequence[str] = block.requires_context.get("domain", ())
    return TemplateWalk(
        rules={**grammar.expansion_rules, **block.expansion_rules},
        lists={**grammar.slot_lists, **block.slot_lists},
        vocabulary=VOCABULARIES[language],
        domains=(domains,) if isinstance(domains, str) else tuple(domains),
        numbers=RbnfEngine.for_language(language.partition("-")[0]),
    )


def _load_grammar(language: str) -> Intents:
    try:
        from hassil import Intents
    except ModuleNotFoundError as error:
        raise MissingExtraError("hassil", extra="demo") from error
    try:
        from home_assistant_intents import get_intents
    except ModuleNotFoundError as error:
        raise MissingExtraError("home-assistant-intents", extra="demo") from error
    intents = get_intents(language)
    if intents is None:
        raise DataError(f"no grammar for {language!r}", where="home-assistant-intents", mend="install another version")
    return Intents.from_dict(intents)


def _collect(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Gather the different second members that stand with each first member."""
    found: dict[str, set[str]] = {}
    for key, value in pairs:
        found.setdefault(key, set()).add(value)
    return found
