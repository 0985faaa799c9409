"""Attention to look at: where the shared encoder routes information, and what of that each task's answer uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

import numpy as np

from hf_mtl.data.encoding import Inputs
from hf_mtl.errors import SpecError, one_of
from hf_mtl.explain.attention_html import AttentionView, Drawing, Measure, attention_page, heat_map
from hf_mtl.explain.attention_weights import AttentionWeights, attention_weights
from hf_mtl.explain.subject import Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Wanted

MAX_TOKENS = {"head": 100, "model": 50, "neuron": 100}
"""Tokens that a view draws unless told otherwise. Lines grow with their square, and the model view draws all heads."""

SHARED = "attention (shared by all tasks)"
SHARED_NOTE = "Attention shows where the shared encoder routes information, not why an answer was given."
TASK_NOTE = (
    "The weights of a task are attention times the gradient of its target's score: what is routed and speaks for the "
    "target, or against it. The largest of all layers and heads is 1, and a line is as strong as its root."
)
POOLING_NOTE = "Attention pooling: each task's own weights over the tokens of the last layer. They sum to 1."


def attention_view(
    subject: Subject,
    text: Any,
    kind: str = "head",
    wanted: Mapping[str, Wanted] | None = None,
    *,
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    max_tokens: int | None = None,
) -> AttentionView:
    """Draw the attention of one pass over a text, with bertviz.

    A task's own weights are `A * dS/dA`, for the attention `A` of each layer and head and the score `S` of the task's
    target, after Chefer et al. 2021, "Generic Attention-model Explainability", https://arxiv.org/abs/2103.15679, who
    keep what is positive. What is negative can be chosen beside it. Where tasks have attention pooling, their weights
    are a heat map below.

    Args:
        subject: the model; its attention is eager during the pass, and as it was afterwards.
        text: a text, or a mapping with `text` (and perhaps `text_pair`, `choices`) or `tokens`.
        kind: `"head"`, one layer at a time; `"model"`, all layers and heads at a glance; `"neuron"`, how queries and
            keys make the weights.
        wanted: the tasks whose own weights can be chosen, and what of them is explained; not in the neuron view.
        layers: the layers to draw, counted from 0; all where not given.
        heads: the heads to draw, counted from 0; all where not given.
        max_tokens: tokens to draw at most, `MAX_TOKENS` where not given; the model reads those that are not drawn, too.

    Raises:
        SpecError: there is no such view, layer, head, label or word.
        ModelError: the model returns no attention, or a task's answer does not go through it, or it is not made of
            queries and keys alone, which the neuron view needs.
    """
    wanted = wanted or {}
    limit = _check(kind, wanted, max_tokens)
    read, notices = _read(subject, text)
    weights = attention_weights(subject, read, wanted, neurons=kind == "neuron")
    shown = shown_tokens(read.parts, limit)
    if len(shown) < len(read.parts):
        notices.append(f"{len(shown)} of {len(read.parts)} tokens are drawn; the model has read all of these.")
    drawing = _drawing(subject, read, kind, weights, shown, layers, heads)
    above = [_paragraph(part, "words") for part in (read.row.text, read.second) if part is not None]
    above += [_paragraph(note, "small") for note in (*notices, SHARED_NOTE, *([TASK_NOTE] if wanted else []))]
    below = []
    if weights.pooling:
        pooled = np.stack(list(weights.pooling.values()), axis=1)[shown]
        below = [_paragraph(POOLING_NOTE, "small"), heat_map(list(weights.pooling), drawing.tokens, pooled)]
    return AttentionView(attention_page(f"Attention, {kind} view", above, drawing, below), kind, tuple(notices))


def shown_tokens(parts: np.ndarray, limit: int) -> list[int]:
    """Choose the tokens to draw: special tokens and the first of each text, of a pair's longer text the fewer.

    Args:
        parts: 0 or 1 for tokens of the text and of its pair, -1 for special tokens, `(num_tokens,)`.
        limit: how many at most; special tokens that are more than that are left out, too.

    Returns:
        Their places, ascending.

    Example:
        >>> shown_tokens(np.array([-1, 0, 0, 0, -1, 1, -1]), 6)
        [0, 1, 2, 4, 5, 6]
    """
    texts = [np.flatnonzero(parts == part) for part in (0, 1)]
    special = np.flatnonzero(parts < 0)[:limit]
    room = limit - len(special)
    second = min(len(texts[1]), max(room // 2, room - len(texts[0])))
    kept = [special, texts[0][: room - second], texts[1][:second]]
    return np.sort(np.concatenate(kept)).tolist()


def token_names(subject: Subject, text: ExplainedText) -> list[str]:
    """Name tokens by what stands in the text, so that any script can be read; WordPiece's `##` stays in front."""
    names: list[str] = []
    for token, (start, end), part in zip(
        subject.tokenizer.convert_ids_to_tokens(text.input_ids.tolist()), text.offsets, text.parts, strict=True
    ):
        row = text.row.text if part == 0 else text.second or ""
        written = row[start:end].strip() if part >= 0 else ""
        names.append(f"##{written}" if written and token.startswith("##") else written or token)
    return names


def _check(kind: str, wanted: Mapping[str, Wanted], max_tokens: int | None) -> int:
    """Check the arguments and return how many tokens are drawn at most."""
    if kind not in MAX_TOKENS:
        raise SpecError(f"kind is {kind!r}", mend=f"use one of {one_of(MAX_TOKENS)}")
    if kind == "neuron" and wanted:
        raise SpecError(
            f"tasks names {next(iter(wanted))!r}, but queries and keys are those of all tasks",
            mend="leave tasks out, or use the head or the model view",
        )
    limit = MAX_TOKENS[kind] if max_tokens is None else max_tokens
    if limit < 1:
        raise SpecError(f"max_tokens is {limit}", mend="give a number above 0")
    return limit


def _read(subject: Subject, text: Any) -> tuple[ExplainedText, list[str]]:
    """Read as much of a text as the model does, and say what was cut off."""
    row = subject.inputs(text)
    if row.choices is not None:  # what is asked about choices needs all of them
        return subject.read(row), []
    limit: int = subject.tokenizer.model_max_length
    length = _length(subject, row)
    if length <= limit:
        return subject.read(row), []
    while _length(subject, row) > limit:
        row = _shortened(row, limit / _length(subject, row))
    return subject.read(row), [
        f"The text has {length} tokens, more than the {limit} that the model reads: it was cut off."
    ]


def _length(subject: Subject, row: Inputs) -> int:
    return len(subject.tokenizer(row.text, row.text_pair, verbose=False)["input_ids"])


def _shortened(row: Inputs, share: float) -> Inputs:
    """Leave words off at the end of the longer text, half of it at most, so that about a share of both stays."""
    pair = row.text_pair or ""
    spans = row.word_spans
    assert spans is not None  # `_read` asks for words
    shorter, longer = sorted((len(row.text), len(pair)))
    end = max(longer // 2, min(longer - 1, int(share * (shorter + longer)) - shorter))
    if len(pair) == longer:
        return replace(row, text_pair=pair[:end])
    kept = spans[spans[:, 1] <= end]
    if not len(kept):  # the first word is longer than the model reads
        kept = np.minimum(spans[:1], end)
    return replace(row, text=row.text[: kept[-1:, 1].sum()], word_spans=kept, heads=_kept_heads(row, len(kept)))


def _kept_heads(row: Inputs, count: int) -> np.ndarray | None:
    """Return the heads of the first words of a row, 0 where they are among those that are left off."""
    return None if row.heads is None else np.where(row.heads[:count] > count, 0, row.heads[:count])


def _drawing(
    subject: Subject,
    text: ExplainedText,
    kind: str,
    weights: AttentionWeights,
    shown: Sequence[int],
    layers: Sequence[int] | int | None,
    heads: Sequence[int] | int | None,
) -> Drawing:
    num_layers, num_heads = weights.attention.shape[:2]
    chosen = [_choose("layers", layers, num_layers), _choose("heads", heads, num_heads)]

    def part(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[np.ix_(*chosen, shown)]

    def square(values: np.ndarray) -> np.ndarray:
        return values[np.ix_(*chosen, shown, shown)]

    measures = [Measure(SHARED)]
    for place, (task, target) in enumerate(weights.targets.items(), start=1):
        measures += [Measure(f"{task}: for {target.name}", place), Measure(f"{task}: against {target.name}", place, -1)]
    tokens = token_names(subject, text)
    return Drawing(
        kind=kind,
        tokens=[tokens[place] for place in shown],
        second=next((place for place, token in enumerate(shown) if text.parts[token] == 1), None),
        layers=chosen[0],
        heads=chosen[1],
        weights=[square(values) for values in (weights.attention, *weights.by_task.values())],
        measures=measures,
        queries=part(weights.queries),
        keys=part(weights.keys),
        bidirectional=weights.bidirectional,
    )


def _choose(argument: str, wanted: Sequence[int] | int | None, number: int) -> list[int]:
    """Return the layers or heads that are drawn, in their order."""
    if wanted is None:
        return list(range(number))
    given = [wanted] if isinstance(wanted, int) else list(wanted)
    wrong = [place for place in given if isinstance(place, bool) or place not in range(number)]
    if wrong or not given:
        raise SpecError(
            f"{argument} is {wanted!r}",
            mend=f"use numbers from 0 to {number - 1}" + (", at least one" if not given else ""),
        )
    return sorted(set(given))


def _paragraph(text: str, style: str) -> str:
    return f'<p class="{style}" dir="auto">{escape(text)}</p>'
