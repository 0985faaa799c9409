"""The contract of task heads, held for every registered head, and what is particular to each of those shipped."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.special import expit, log_softmax, logsumexp
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import log_loss, mean_squared_error
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import DataError, SpecError
from hf_mtl.model.choices import Choices
from hf_mtl.model.cross_entropy import softmax
from hf_mtl.model.heads.base import TaskHead, Words
from hf_mtl.model.heads.token_classification import are_span_tags, tag_spans
from hf_mtl.model.labels import label_id, label_name, sorted_labels
from hf_mtl.registry import HEADS

# Heads that other tests may have registered are theirs to test.
NAMES = [name for name in HEADS.names() if find_spec(f"{HEADS.package}.{name}")]
HIDDEN_SIZE = 6
VOCABULARY = 11
"""Tokens, for heads whose labels are tokens."""
MASKS = 4
CONFIG = BertConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN_SIZE)
SEQ_LEN = 32
SURE = 30.0


# ---------------------------------------------------------------------- an example for every task type


@dataclass(frozen=True, kw_only=True)
class Example:
    """What the contract needs to know of a task type.

    Args:
        spec: a task of this type.
        variants: changes of the spec that the loss must heed.
        refused: changes of the spec that have no meaning for the type.
        value: draws the label of a row as data has it, with every item labelled unless `gaps`.
        bad_values: label values that are none.
        reference: sum of the losses and divisor, from float64 logits and labels, written without the head.
        sure_logits: logits of one row that are sure of the labels of that row.
        keys: keys of an answer, for a row given as tokens and for a row given as text.
        items: counts what the mean is over in an encoded label that is a list; the labelled entries where not given.
        weights: what the head's weights are called.
    """

    spec: TaskSpec
    variants: tuple[dict[str, Any], ...]
    refused: tuple[dict[str, Any], ...]
    value: Callable[[random.Random, TaskSpec, Words, bool], Any]
    bad_values: tuple[Any, ...]
    reference: Callable[[TaskSpec, np.ndarray, np.ndarray], tuple[float, float]]
    sure_logits: Callable[[TaskSpec, np.ndarray], np.ndarray]
    keys: tuple[set[str], set[str]]
    items: Callable[[list[Any]], int] | None = None
    weights: frozenset[str] = frozenset({"output.weight", "output.bias"})


def cross_entropy(spec: TaskSpec, logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    weights = np.array(spec.class_weights or [1.0] * spec.num_labels)
    log_p = log_softmax(logits, axis=-1)
    total = divisor = 0.0
    for index in np.ndindex(labels.shape):
        label = int(labels[index])
        if label == -100:
            continue
        smooth = -(weights * log_p[index]).sum() / spec.num_labels
        total += (1 - spec.label_smoothing) * -weights[label] * log_p[index][label] + spec.label_smoothing * smooth
        divisor += weights[label]
    return total, divisor


def binary_cross_entropy(spec: TaskSpec, logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    weights = spec.class_weights or [1.0] * spec.num_labels
    total = count = 0.0
    for (row, label), truth in np.ndenumerate(labels):
        if math.isnan(truth):
            continue
        target = truth * (1 - spec.label_smoothing) + spec.label_smoothing / 2
        p = expit(logits[row, label])
        total -= weights[label] * target * math.log(p) + (1 - target) * math.log(1 - p)
        count += 1
    return total, count


def squared_error(spec: TaskSpec, logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    known = [(logit[0] - label) ** 2 for logit, label in zip(logits, labels, strict=True) if not math.isnan(label)]
    return sum(known), len(known)


def token_loss(spec: TaskSpec, logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    masks = [index for index in np.ndindex(labels.shape) if labels[index] != -100]
    return sum(-log_softmax(logits[index])[int(labels[index])] for index in masks), len(masks)


def one_hot(spec: TaskSpec, labels: np.ndarray) -> np.ndarray:
    return SURE * (labels[..., None] == np.arange(spec.num_labels))


def choose_some(rng: random.Random, spec: TaskSpec, words: Words, gaps: bool) -> Any:
    labels = spec.labels or ()
    if gaps and rng.random() < 0.5:
        return {label: rng.choice([True, False, None, 0, 1]) for label in labels if rng.random() < 0.7}
    return rng.sample(labels, rng.randrange(len(labels) + 1))


def chain_loss(spec: TaskSpec, logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    count = spec.num_labels
    total = items = 0.0
    for row, truth in zip(logits, labels.astype(int), strict=True):
        places = np.flatnonzero(truth >= 0)
        if not len(places):
            continue
        transitions, starts, ends = np.split(row[0, count:], [count**2, count**2 + count])
        transitions = transitions.reshape(count, count)
        emitted, path = row[places, :count], truth[places]
        alpha = starts + emitted[0]
        for scores in emitted[1:]:
            alpha = logsumexp(alpha[:, None] + transitions, axis=0) + scores
        score = starts[path[0]] + ends[path[-1]] + emitted[np.arange(len(path)), path].sum()
        total += logsumexp(alpha + ends) - score - transitions[path[:-1], path[1:]].sum()
        items += len(places)
    return total, items


def valid_tags(rng: random.Random, spec: TaskSpec, words: Words, gaps: bool) -> list[str | None]:
    """Draw tags of which no `I-` stands where none may."""
    tags: list[str] = []
    for _ in words.spans:
        allowed = [tag for tag in spec.labels or () if tag[:2] != "I-" or (tags and tags[-1][2:] == tag[2:])]
        tags.append(rng.choice(allowed))
    return [None if gaps and rng.random() < 0.3 else tag for tag in tags]


def sure_emissions(spec: TaskSpec, labels: np.ndarray) -> np.ndarray:
    return np.pad(one_hot(spec, labels), ((0, 0), (0, spec.num_labels * (spec.num_labels + 2))))


def choose_answer(rng: random.Random, spec: TaskSpec, words: Words, gaps: bool) -> dict[str, Any]:
    if rng.random() < 0.2:
        return {"text": [], "answer_start": []}
    first = rng.randrange(len(words.spans))
    last = rng.randrange(first, len(words.spans))
    start, end = int(words.spans[first][0]), int(words.spans[last][1])
    if gaps and rng.random() < 0.5:
        return {"text": words.text[start:end], "start": start, "end": end}
    return {"text": [words.text[start:end]], "answer_start": [start]}


def answer_loss(spec: TaskSpec, logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    total = rows = 0.0
    for row, truth in zip(logits, labels.astype(int), strict=True):
        words = np.flatnonzero(truth >= 0)
        if not len(words):
            continue
        for place, flag in enumerate((1, 2)):
            scores = np.concatenate([[0.0], row[words, place]])
            hit = np.flatnonzero(truth[words] & flag)
            total += (logsumexp(scores) - (scores[1 + hit[0]] if len(hit) else 0.0)) / 2
        rows += 1
    return total, rows


def choose_one(rng: random.Random, spec: TaskSpec, words: Words, gaps: bool) -> Any:
    assert words.choices is not None
    right = rng.randrange(len(words.choices.texts))
    return float(right) if gaps and rng.random() < 0.5 else right


def choice_loss(spec: TaskSpec, logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    total = rows = 0.0
    for row, truth in zip(logits, labels.astype(int), strict=True):
        numbers = sorted({int(label) // 2 for label in truth if label >= 0})
        if not numbers:
            continue
        means = [row[(truth >= 0) & (truth // 2 == number), 0].mean() for number in numbers]
        right = [number for number in numbers if 2 * number + 1 in truth]
        log_p = log_softmax(np.array(means))
        smooth = spec.label_smoothing
        total -= (1 - smooth) * log_p[numbers.index(right[0])] + smooth * log_p.mean()
        rows += 1
    return total, rows


EXAMPLES = {
    "sequence_classification": Example(
        spec=TaskSpec(name="topic", type="sequence_classification", labels=("b", "a", "c")),
        variants=(
            {},
            {"class_weights": (0.5, 2.0, 1.3)},
            {"label_smoothing": 0.3},
            {"class_weights": (0.0, 2.0, 1.3), "label_smoothing": 0.1},
        ),
        refused=({"scheme": "IOB2"}, {"labels": None}, {"labels": ["a"]}),
        value=lambda rng, spec, words, gaps: rng.choice(spec.labels or ()),
        bad_values=("d", "", 3, -1, 1.5, math.nan, ["a"], {"a": 1}, True, np.True_),
        reference=cross_entropy,
        sure_logits=one_hot,
        keys=({"label", "score", "scores"},) * 2,
    ),
    "ordinal_regression": Example(
        spec=TaskSpec(name="grade", type="ordinal_regression", labels=("1", "2", "3", "10")),
        variants=(
            {},
            {"class_weights": (0.5, 2.0, 1.3, 1.0)},
            {"label_smoothing": 0.3},
            {"class_weights": (0.0, 2.0, 1.3, 1.0), "label_smoothing": 0.1},
        ),
        refused=({"scheme": "IOB2"}, {"labels": None}, {"labels": ["a"]}),
        value=lambda rng, spec, words, gaps: rng.choice([int, str])(rng.choice(spec.labels or ())),
        bad_values=("4", "", 4, -1, 1.5, math.nan, ["1"], {"1": 1}, True, np.True_),
        reference=cross_entropy,
        sure_logits=one_hot,
        keys=({"label", "score", "scores"},) * 2,
    ),
    "crf_token_classification": Example(
        spec=TaskSpec(name="slots", type="crf_token_classification", labels=("O", "B-day", "I-day", "B-city")),
        variants=({},),
        refused=(
            {"labels": None},
            {"labels": ["O"]},
            {"labels": ["NOUN", "VERB"], "scheme": "IOB2"},
            {"labels": ["B-day", "E-day"]},
            {"labels": [str(number) for number in range(101)]},
            {"class_weights": (0.5, 2.0, 1.3, 1.0)},
            {"label_smoothing": 0.1},
        ),
        value=valid_tags,
        bad_values=("O", 1, ["O"] * 7, [], ["X"] * 8, [9] * 8, [1.5] * 8, [True] * 8),
        reference=chain_loss,
        sure_logits=sure_emissions,
        keys=({"spans", "tags"}, {"spans"}),
        weights=frozenset({"output.weight", "output.bias", "transitions", "starts", "ends"}),
    ),
    "span_extraction": Example(
        spec=TaskSpec(name="answers", type="span_extraction"),
        variants=({},),
        refused=({"labels": ["1", "2"]}, {"class_weights": [1.0]}, {"label_smoothing": 0.1}, {"scheme": "IOB2"}),
        value=choose_answer,
        bad_values=(
            "x",
            1,
            ["x"],
            {},
            {"text": ["x"]},
            {"answer_start": [0]},
            {"start": 0, "end": 1},
            {"text": ["y"], "answer_start": [0]},
            {"text": ["x"], "answer_start": [-1]},
            {"text": ["x"], "answer_start": [900]},
            {"text": ["x"], "answer_start": []},
            {"text": ["x"], "answer_start": [True]},
            {"text": [""], "answer_start": [0]},
            {"text": "x", "start": 3, "end": 2},
            {"text": [1], "answer_start": [0]},
        ),
        reference=answer_loss,
        sure_logits=lambda spec, labels: (
            SURE * (2.0 * ((labels[:, None] & np.array([1, 2])) > 0) - 1.0) * (labels[:, None] >= 0)
        ),
        keys=({"answer", "score", "start", "end"},) * 2,
        items=lambda row: int((row != -100).any()),
    ),
    "masked_language_modeling": Example(
        spec=TaskSpec(name="mlm", type="masked_language_modeling"),
        variants=({},),
        refused=(
            {"labels": ["1", "2"]},
            {"class_weights": [1.0]},
            {"label_smoothing": 0.1},
            {"scheme": "IOB2"},
            {"stride": 0, "max_length": 16},
            *({"mask_probability": share} for share in (0.0, 1, -0.1, True, "0.1", math.nan)),
        ),
        value=lambda rng, spec, words, gaps: [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, MASKS))],
        bad_values=("x", 1, {}, [-1], [1.5], [True], ["a"], [[1]]),
        reference=token_loss,
        sure_logits=lambda spec, labels: SURE * (labels[..., None] == np.arange(VOCABULARY)),
        keys=({"masks"},) * 2,
        weights=frozenset({"dense.weight", "dense.bias", "norm.weight", "norm.bias", "bias"}),
    ),
    "multiple_choice": Example(
        spec=TaskSpec(name="quiz", type="multiple_choice"),
        variants=({}, {"label_smoothing": 0.2}),
        refused=({"labels": ["1", "2"]}, {"class_weights": [1.0]}, {"scheme": "IOB2"}, {"stride": 0}),
        value=choose_one,
        bad_values=("none of them", "", -1, 9, "9", 0.5, True, np.True_, math.nan, [0], {"a": 1}),
        reference=choice_loss,
        sure_logits=lambda spec, labels: SURE * (labels[:, None] % 2) * (labels[:, None] >= 0),
        keys=({"choice", "index", "score", "scores"},) * 2,
        items=lambda row: int((row != -100).any()),
        weights=frozenset({"output.weight"}),
    ),
    "multi_label_classification": Example(
        spec=TaskSpec(name="emotions", type="multi_label_classification", labels=("joy", "anger", "fear")),
        variants=(
            {},
            {"class_weights": (0.5, 2.0, 1.3)},
            {"label_smoothing": 0.3},
            {"class_weights": (0.0, 2.0, 1.3), "label_smoothing": 0.1},
        ),
        refused=({"scheme": "IOB2"}, {"labels": None}),
        value=choose_some,
        bad_values=("joy", 1, ["sad"], {"sad": True}, {"joy": 0.5}, {"joy": "yes"}, [None], [0, 1, 0], [0.0, 0.0, 1.0]),
        reference=binary_cross_entropy,
        sure_logits=lambda spec, labels: SURE * (2 * labels - 1),
        keys=({"labels", "scores"},) * 2,
    ),
    "regression": Example(
        spec=TaskSpec(name="stars", type="regression"),
        variants=({},),
        refused=(
            {"labels": ["1", "2"]},
            {"class_weights": [1.0]},
            {"label_smoothing": 0.1},
            {"scheme": "IOB2"},
        ),
        value=lambda rng, spec, words, gaps: rng.choice([rng.gauss(0, 3), rng.randrange(5)]),
        bad_values=("good", "", [1.0], True, np.True_, math.nan, math.inf, 1e39, 10**400, {}),
        reference=squared_error,
        sure_logits=lambda spec, labels: labels[None],
        keys=({"value"},) * 2,
    ),
    "token_classification": Example(
        spec=TaskSpec(name="slots", type="token_classification", labels=("O", "B-day", "I-day", "B-city")),
        variants=(
            {},
            {"class_weights": (0.1, 2.0, 1.3, 1.0)},
            {"label_smoothing": 0.3},
            {"class_weights": (0.0, 2.0, 1.3, 1.0), "label_smoothing": 0.1},
        ),
        refused=({"labels": None}, {"labels": ["O"]}, {"labels": ["NOUN", "VERB"], "scheme": "IOB2"}),
        value=lambda rng, spec, words, gaps: [
            None if gaps and rng.random() < 0.3 else rng.choice(spec.labels or ()) for _ in words.spans
        ],
        bad_values=("O", 1, ["O"] * 7, [], ["X"] * 8, [9] * 8, [1.5] * 8, [True] * 8),
        reference=cross_entropy,
        sure_logits=one_hot,
        keys=({"spans", "tags"}, {"spans"}),
    ),
}


def draw_words(rng: random.Random, *, count: int = 8, lost: int = 0, given: bool = True) -> Words:
    """Make words of one to three letters and as many tokens, after one special token; the last are truncated.

    They have choices, too: two to four, of one token or two with one between, at the end.
    """
    sizes = [rng.randrange(1, 4) for _ in range(count)]
    starts = np.cumsum([0] + [size + 1 for size in sizes[:-1]])
    first_tokens = np.cumsum([1, *sizes[:-1]])
    first_tokens[count - lost :] = -1
    own = random.Random(str(sizes))  # what else is drawn stays as it was
    lengths = [own.randrange(1, 3) for _ in range(own.randrange(2, 5))]
    ends = SEQ_LEN - 2 - np.cumsum([0, *(length + 1 for length in lengths[:0:-1])])[::-1]
    tokens = np.stack([ends - lengths, ends], axis=1)
    return Words(
        text=" ".join("x" * size for size in sizes),
        spans=np.stack([starts, starts + sizes], axis=1),
        first_tokens=first_tokens,
        given=given,
        choices=Choices(tuple(f"choice {place}" for place in range(len(lengths))), tokens),
    )


@dataclass(frozen=True)
class Task:
    """A head, its example, and batches of random labels and logits."""

    head: TaskHead
    example: Example

    @property
    def spec(self) -> TaskSpec:
        return self.head.spec

    def encode(self, value: Any, words: Words) -> Any:
        return self.head.encode(self.spec, value, words, SEQ_LEN - 2)

    def encoded(self, seed: int, rows: int, *, missing: float = 0.3) -> list[Any]:
        rng = random.Random(seed)
        result: list[Any] = []
        for _ in range(rows):
            words = draw_words(rng, lost=rng.randrange(3))
            value = self.example.value(rng, self.spec, words, True)
            result.append(None if rng.random() < missing else self.encode(value, words))
        return result

    @property
    def places(self) -> tuple[int, ...]:
        """How many places of a row have logits of their own."""
        return () if self.head.pooled else (MASKS,) if self.head.masks_tokens else (SEQ_LEN,)

    def run(self, features: Tensor) -> Tensor:
        embeddings = torch.randn(VOCABULARY, HIDDEN_SIZE, generator=torch.Generator().manual_seed(3))
        return self.head(features, *((embeddings,) if self.head.masks_tokens else ()))

    def collated(self, values: Sequence[Any]) -> Tensor:
        labels = self.head.collate(self.spec, values, SEQ_LEN)
        # No more masks are wide than the batch needs.
        return F.pad(labels, (0, MASKS - labels.shape[1]), value=-100) if self.head.masks_tokens else labels

    def labels(self, seed: int, rows: int, *, missing: float = 0.3) -> Tensor:
        return self.collated(self.encoded(seed, rows, missing=missing))

    def unlabelled(self, rows: int) -> Tensor:
        return self.collated([None] * rows)

    def logits(self, seed: int, rows: int, scale: float = 3.0) -> Tensor:
        count = VOCABULARY if self.head.masks_tokens else self.head.num_logits(self.spec)
        shape = (rows, *self.places, count)
        generator = torch.Generator().manual_seed(seed)
        return (scale * torch.randn(shape, generator=generator)).requires_grad_()

    def reference_loss(self, logits: np.ndarray, labels: Tensor) -> float:
        total, divisor = self.example.reference(self.spec, logits, labels.double().numpy())
        return total / divisor


def make_task(name: str, **changes: Any) -> Task:
    if name not in EXAMPLES:
        pytest.fail(f"the head {name!r} is new: add an Example of it to EXAMPLES in {__file__}")
    example = EXAMPLES[name]
    torch.manual_seed(0)
    head = HEADS.get(name).build(replace(example.spec, **changes), CONFIG, dropout=0.1)
    return Task(head.eval(), example)


@pytest.fixture(params=NAMES)
def task(request: pytest.FixtureRequest) -> Task:
    """A task of each type."""
    return make_task(request.param)


VARIANTS = [
    pytest.param((name, changes), id=f"{name}-{'-'.join(changes) or 'plain'}")
    for name in NAMES
    for changes in (EXAMPLES[name].variants if name in EXAMPLES else ({},))
]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Task:
    """A task of each type with each combination of loss options."""
    name, changes = request.param
    return make_task(name, **changes)


def test_every_head_has_an_example() -> None:
    assert set(NAMES) == set(EXAMPLES)


# ---------------------------------------------------------------------- loss


@pytest.mark.parametrize("seed", range(5))
def test_loss_is_the_mean_over_labelled_items(variant: Task, seed: int) -> None:
    logits, labels = variant.logits(seed, 7), variant.labels(seed, 7)
    expected = variant.reference_loss(logits.detach().double().numpy(), labels)
    assert variant.head.loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_loss_agrees_with_scikit_learn() -> None:
    task = make_task("sequence_classification", class_weights=(0.5, 2.0, 1.3))
    logits, labels = task.logits(0, 40), task.labels(0, 40, missing=0.0)
    weights = np.array(task.spec.class_weights)[labels]
    expected = log_loss(labels, softmax(logits.detach().numpy()), labels=[0, 1, 2], sample_weight=weights)
    assert task.head.loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)

    task = make_task("multi_label_classification")
    logits, labels = task.logits(0, 40), task.labels(0, 40)
    known = ~labels.isnan()
    expected = log_loss(labels[known], expit(logits.detach().double()[known].numpy()))
    assert task.head.loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)

    task = make_task("regression")
    logits, labels = task.logits(0, 40), task.labels(0, 40)
    known = ~labels.isnan()
    expected = mean_squared_error(labels[known], logits.detach()[known, 0])
    assert task.head.loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_loss_agrees_with_the_mean_of_torch() -> None:
    options = {"class_weights": (0.5, 2.0, 1.3), "label_smoothing": 0.2}
    task = make_task("sequence_classification", **options)
    logits, labels = task.logits(0, 40), task.labels(0, 40)
    expected = F.cross_entropy(logits, labels, torch.tensor(task.spec.class_weights), label_smoothing=0.2)
    torch.testing.assert_close(task.head.loss(logits, labels), expected)


def gradient(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(task.head.loss(logits, labels), logits)
    return result


def test_gradient_agrees_with_finite_differences(variant: Task) -> None:
    # Of the reference in float64: the head's own loss is computed in float32, too coarse for differences.
    logits, labels = variant.logits(0, 3, scale=1.0), variant.labels(1, 3, missing=0.0)
    found = gradient(variant, logits, labels).double().numpy()
    point = logits.detach().double().numpy()
    step = 1e-5
    entries = list(np.ndindex(point.shape))
    for index in random.Random(0).sample(entries, min(60, len(entries))):
        ahead, behind = point.copy(), point.copy()
        ahead[index] += step
        behind[index] -= step
        slope = (variant.reference_loss(ahead, labels) - variant.reference_loss(behind, labels)) / (2 * step)
        assert found[index] == pytest.approx(slope, abs=1e-6, rel=1e-5)


def test_unlabelled_rows_change_neither_loss_nor_gradient(variant: Task) -> None:
    logits, labels = variant.logits(0, 9), variant.labels(0, 5)
    more = torch.cat([labels, variant.unlabelled(4)])
    torch.testing.assert_close(variant.head.loss(logits[:5], labels), variant.head.loss(logits, more))
    found = gradient(variant, logits, more)
    torch.testing.assert_close(found[:5], gradient(variant, logits, torch.cat([labels, variant.unlabelled(4)]))[:5])
    assert not found[5:].any()


def test_order_of_rows_does_not_matter(variant: Task) -> None:
    logits, labels = variant.logits(0, 9), variant.labels(0, 9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(variant.head.loss(logits, labels), variant.head.loss(logits[order], labels[order]))


@pytest.mark.parametrize("sizes", [(4, 4), (1, 7), (3, 0, 5), (1,) * 8])
def test_micro_batches_add_up_to_one_batch(variant: Task, sizes: tuple[int, ...]) -> None:
    head = variant.head
    features = variant.logits(1, 8).new_empty((*variant.logits(1, 8).shape[:-1], HIDDEN_SIZE)).normal_()
    labels = variant.labels(2, 8)
    whole = copy.deepcopy(head)
    whole.loss(replace(variant, head=whole).run(features), labels).backward()

    total = head.num_items(head.spec, labels)
    parts = list(zip(features.split(list(sizes)), labels.split(list(sizes)), strict=True))
    sums = [head.loss_sum(variant.run(part), truth) for part, truth in parts]
    torch.testing.assert_close(sum(head.num_items(head.spec, truth) for _, truth in parts), total)
    torch.testing.assert_close(sum(sums), head.loss_sum(variant.run(features), labels))
    for part in sums:
        (part / total).backward()
    for mine, other in zip(head.parameters(), whole.parameters(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_loss_without_labels_is_zero_and_gradient_finite(variant: Task, rows: int) -> None:
    logits, labels = variant.logits(0, rows), variant.unlabelled(rows)
    assert variant.head.loss(logits, labels).item() == 0.0
    assert variant.head.num_items(variant.spec, labels).item() == 0.0
    assert not gradient(variant, logits, labels).any()


@pytest.mark.parametrize("name", ["sequence_classification", "token_classification"])
def test_items_of_weight_zero_have_no_loss(name: str) -> None:
    # Smoothing gives even such an item a loss, which must not be divided by nothing.
    weights = (0.0, *(1.0 for _ in (EXAMPLES[name].spec.labels or ())[1:]))
    task = make_task(name, class_weights=weights, label_smoothing=0.2)
    logits = task.logits(0, 3)
    labels = task.unlabelled(3)
    labels[0] = 0
    assert task.head.loss(logits, labels).item() == 0.0
    assert not gradient(task, logits, labels).any()


def test_number_of_items_counts_labelled_items(task: Task) -> None:
    for seed in range(5):
        rows = [np.atleast_1d(np.array(row, float)) for row in task.encoded(seed, 9) if row is not None]
        known = [int((~np.isnan(row) & (row != -100)).sum()) for row in rows]
        count = sum(known) if task.example.items is None else sum(map(task.example.items, rows))
        assert task.head.num_items(task.spec, task.labels(seed, 9)).item() == count


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_loss_is_computed_in_float32(variant: Task, dtype: torch.dtype) -> None:
    logits, labels = variant.logits(0, 4).to(dtype), variant.labels(0, 4, missing=0.0)
    for result in (variant.head.loss(logits, labels), variant.head.num_items(variant.spec, labels)):
        assert result.dtype == torch.float32
        assert result.shape == ()
    expected = variant.reference_loss(logits.detach().double().numpy(), labels)
    assert variant.head.loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_extreme_logits_have_finite_loss_and_answer(task: Task) -> None:
    logits, labels = task.logits(0, 6, scale=1e4), task.labels(0, 6)
    assert task.head.loss(logits, labels).isfinite()
    assert gradient(task, logits, labels).isfinite().all()
    for row in logits.detach().numpy():
        answer = task.head.decode(task.spec, row, draw_words(random.Random(0)))
        json.dumps(answer, allow_nan=False)


def test_labelled_rows_are_those_with_any_label(task: Task) -> None:
    for seed in range(5):
        encoded = task.encoded(seed, 12)
        expected = [
            row is not None
            and any(item is not None and item != -100 for item in (row if isinstance(row, list) else [row]))
            for row in encoded
        ]
        found = task.head.labelled_rows(task.head.collate(task.spec, encoded, SEQ_LEN))
        assert found.dtype == torch.bool
        assert found.tolist() == expected
    assert not task.head.labelled_rows(task.unlabelled(3)).any()
    assert task.head.labelled_rows(task.unlabelled(0)).shape == (0,)


# ---------------------------------------------------------------------- the module


def test_forward_gives_logits_of_the_promised_shape(task: Task) -> None:
    shape = (5, *task.places)
    logits = task.run(torch.randn(*shape, HIDDEN_SIZE))
    assert task.head.masks_tokens or logits.shape == (*shape, task.head.num_logits(task.spec))
    assert logits.shape == task.logits(0, 5).shape


def test_weights_hold_what_the_head_learns_only(variant: Task) -> None:
    assert set(variant.head.state_dict()) == variant.example.weights


def test_every_parameter_gets_a_gradient(variant: Task) -> None:
    shape = (8, *variant.places)
    features = torch.randn(*shape, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
    variant.head.loss(variant.run(features), variant.labels(0, 8, missing=0.0)).backward()
    for parameter in variant.head.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(dim=-1).all()


def test_dropout_of_the_spec_goes_before_the_encoders(task: Task) -> None:
    head = HEADS.get(task.spec.type)
    # BERT drops nothing before it looks for masked tokens.
    assert head(task.spec, HIDDEN_SIZE, dropout=0.1).dropout == (0.0 if head.masks_tokens else 0.1)
    assert head(replace(task.spec, dropout=0.4), HIDDEN_SIZE, dropout=0.1).dropout == 0.4
    assert head(replace(task.spec, dropout=0.0), HIDDEN_SIZE, dropout=0.1).dropout == 0.0


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param(name, changes, id=f"{name}-{index}")
        for name, example in EXAMPLES.items()
        for index, changes in enumerate(example.refused)
    ],
)
def test_option_without_meaning_is_refused(name: str, changes: dict[str, Any]) -> None:
    spec = replace(EXAMPLES[name].spec, **changes)
    for refuse in (HEADS.get(name).validate_spec, lambda spec: HEADS.get(name)(spec, HIDDEN_SIZE, dropout=0.0)):
        with pytest.raises(SpecError) as caught:
            refuse(spec)
        message = str(caught.value)
        assert message.startswith(f"task {spec.name!r}: ")
        assert any(key in message for key in changes) or "label" in message


# ---------------------------------------------------------------------- labels and answers


def plain(value: Any) -> bool:
    """Tell whether a value holds types of JSON only, no numpy number among them."""
    if type(value) is dict:
        return all(type(key) is str and plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(plain, value))
    return type(value) in (str, int, float, bool, type(None))


@pytest.mark.parametrize("given", [True, False])
def test_answer_is_plain_json_with_the_documented_keys(task: Task, given: bool) -> None:
    rng = random.Random(0)
    for seed in range(20):
        words = draw_words(rng, lost=seed % 3, given=given)
        answer = task.head.decode(task.spec, task.logits(seed, 1)[0].detach().numpy(), words)
        assert set(answer) == task.example.keys[0 if given else 1]
        assert plain(answer)
        assert json.loads(json.dumps(answer, allow_nan=False)) == answer
        confidence = task.head.confidence(task.spec, answer)
        assert isinstance(confidence, float)
        assert 0.0 <= confidence <= 1.0


@pytest.mark.parametrize("given", [True, False])
def test_many_rows_are_answered_as_each_alone(task: Task, given: bool) -> None:
    rng = random.Random(1)
    words = [draw_words(rng, lost=count % 4, given=given) for count in range(12)]
    logits = [task.logits(seed, 1)[0].detach().numpy() for seed in range(12)]
    found = task.head.decode_rows(task.spec, logits, words)
    assert found == [task.head.decode(task.spec, own, row) for own, row in zip(logits, words, strict=True)]


def test_a_head_that_answers_in_its_own_way_does_so_for_many_rows(task: Task) -> None:
    class Own(HEADS.get(task.spec.type)):  # type: ignore[misc]
        @classmethod
        def decode(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None) -> dict[str, Any]:
            return {"own": float(logits.sum())}

    class Derived(Own):
        pass

    logits = [task.logits(seed, 1)[0].detach().numpy() for seed in range(3)]
    wanted = [{"own": float(row.sum())} for row in logits]
    assert Own.decode_rows(task.spec, logits, [None] * 3) == wanted
    assert Derived.decode_rows(task.spec, logits, [None] * 3) == wanted


@pytest.mark.parametrize("seed", range(30))
def test_sure_logits_give_the_label_back(task: Task, seed: int) -> None:
    rng = random.Random(seed)
    words = draw_words(rng)
    value = task.example.value(rng, task.spec, words, False)
    labels = task.head.collate(task.spec, [task.encode(value, words)], SEQ_LEN)
    answer = task.head.decode(task.spec, task.example.sure_logits(task.spec, labels[0].numpy()), words)
    reference = task.head.reference(task.spec, value)
    assert task.head.prediction(task.spec, answer) == pytest.approx(reference)
    assert task.head.loss(torch.tensor(task.example.sure_logits(task.spec, labels.numpy()[0])[None]), labels) < 1e-6


def test_reference_is_plain(task: Task) -> None:
    rng = random.Random(0)
    for gaps in (False, True):
        value = task.example.value(rng, task.spec, draw_words(rng), gaps)
        assert plain(task.head.reference(task.spec, value))


def test_encoded_label_is_the_same_after_arrow(task: Task) -> None:
    stored = task.head.stored_as
    kind = pa.list_(pa.type_for_alias(stored[0])) if isinstance(stored, list) else pa.type_for_alias(stored)
    encoded = task.encoded(0, 30)
    assert pa.array(encoded, type=kind).to_pylist() == encoded


def test_bad_label_is_refused(task: Task) -> None:
    for value in task.example.bad_values:
        with pytest.raises(DataError) as caught:
            task.encode(value, draw_words(random.Random(0)))
        assert caught.value.mend


def test_described_labels_are_of_the_label_set(task: Task) -> None:
    rng = random.Random(0)
    found: set[str] = set()
    for _ in range(50):
        found.update(task.head.describe(task.spec, task.example.value(rng, task.spec, draw_words(rng), True)))
    assert found == set(task.spec.labels or ())


def test_inferred_labels_are_those_of_the_data(task: Task) -> None:
    rng = random.Random(0)
    values = [task.example.value(rng, task.spec, draw_words(rng), gaps) for gaps in (False, True) for _ in range(30)]
    values = rng.sample([None, *values], len(values) + 1)
    labels = task.head.infer_labels(iter(values))
    if task.spec.labels is None:
        assert labels is None
    else:
        assert labels is not None
        assert sorted(labels) == sorted(task.spec.labels)
        assert task.head.infer_labels(reversed(values)) == labels
        task.head.validate_spec(replace(task.spec, labels=labels))


def test_metric_is_named(task: Task) -> None:
    assert task.head.metric_name(task.spec).isidentifier()


@pytest.mark.parametrize("logits", [[3.0, 1.0, -2.0], [1e3, -1e3, 0.0], [0.0, 0.0, 0.0]])
def test_classification_answer(logits: list[float]) -> None:
    task = make_task("sequence_classification")
    answer = task.head.decode(task.spec, np.array(logits, np.float32), None)
    assert list(answer["scores"]) == ["b", "a", "c"]
    assert sum(answer["scores"].values()) == pytest.approx(1.0)
    assert answer["score"] == max(answer["scores"].values()) == answer["scores"][answer["label"]]
    assert answer["label"] == "b"


def test_multi_label_answer() -> None:
    task = make_task("multi_label_classification")
    answer = task.head.decode(task.spec, np.array([2.0, -1e4, 0.0], np.float32), None)
    assert answer["labels"] == ["joy", "fear"]
    assert answer["scores"] == pytest.approx({"joy": expit(2.0), "anger": 0.0, "fear": 0.5})


def test_regression_answer_is_in_the_unit_of_the_label() -> None:
    task = make_task("regression")
    assert task.head.decode(task.spec, np.array([-7.25], np.float32), None) == {"value": -7.25}
    assert task.encode("3.5", draw_words(random.Random(0))) == 3.5


def test_multi_label_values_say_what_is_unknown() -> None:
    task = make_task("multi_label_classification")
    encode = lambda value: task.head.encode(task.spec, value, None, 0)  # noqa: E731
    assert encode([]) == [0.0, 0.0, 0.0]
    assert encode(["fear"]) == encode([2]) == encode(np.array([2])) == encode(("fear", "fear")) == [0.0, 0.0, 1.0]
    assert encode({"fear": True, "anger": None}) == [None, None, 1.0]
    assert encode({"fear": np.True_, "anger": np.int64(0), "joy": 0.0}) == [0.0, 0.0, 1.0]
    assert encode({}) == [None, None, None]
    assert task.head.reference(task.spec, {"fear": True, "anger": None}) == [-1, -1, 1]


# ---------------------------------------------------------------------- names of labels


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("no", "no"),
        ("", ""),
        (np.str_("no"), "no"),
        (True, "true"),
        (np.False_, "false"),
        (0, "0"),
        (-3, "-3"),
        (2.0, "2"),
        (np.int64(7), "7"),
        (np.uint8(7), "7"),
        (np.float32(7), "7"),
        (np.float64(-1.0), "-1"),
    ],
)
def test_label_name(value: Any, name: str) -> None:
    assert label_name(value) == name
    assert type(label_name(value)) is str


@pytest.mark.parametrize("value", [None, 1.5, math.nan, math.inf, np.float32(0.5), np.nan, ["a"], {"a"}, b"a", 1j])
def test_label_without_a_name_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="is not a label"):
        label_name(value)


@pytest.mark.parametrize(
    ("labels", "value", "position"),
    [
        (("no", "yes"), "yes", 1),
        (("no", "yes"), 1, 1),
        (("no", "yes"), np.int64(1), 1),
        (("no", "yes"), 1.0, 1),
        (("true", "false"), False, 1),
        (("true", "false"), np.True_, 0),
        (("1", "2", "3"), 2, 1),
        (("1", "2", "3"), "3", 2),
        (("1", "0"), 0, 1),
        (("2", "10"), 10.0, 1),
    ],
)
def test_label_is_found_by_name_then_by_position(labels: tuple[str, ...], value: Any, position: int) -> None:
    spec = TaskSpec(name="x", type="sequence_classification", labels=labels)
    assert label_id(spec, value) == position
    assert type(label_id(spec, value)) is int


@pytest.mark.parametrize(
    ("labels", "value"),
    [
        (("no", "yes"), "maybe"),
        (("no", "yes"), "1"),
        (("no", "yes"), 2),
        (("no", "yes"), -1),
        (("no", "yes"), True),
        (("no", "yes"), np.True_),
        (("1", "2", "3"), 0),  # not the first of the stars
        (("1", "2", "3", "none"), 0),
        (("-1", "1"), 0),
    ],
)
def test_label_outside_the_set_is_refused_and_the_set_listed(labels: tuple[str, ...], value: Any) -> None:
    spec = TaskSpec(name="x", type="sequence_classification", labels=labels)
    with pytest.raises(DataError, match="is not in the label set") as caught:
        label_id(spec, value)
    message = str(caught.value)
    assert repr(value) in message
    assert all(repr(label) in message for label in labels)


def test_long_label_set_is_cut_in_the_message() -> None:
    spec = TaskSpec(name="x", type="sequence_classification", labels=tuple(f"label{i}" for i in range(150)))
    with pytest.raises(DataError, match="'label11' and 138 more"):
        label_id(spec, "other")


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "9", "10", "-1"], ("-1", "9", "10")),
        (["b", "a", "B", "10", "9"], ("10", "9", "B", "a", "b")),
        (["01", "1", "0", "00"], ("0", "00", "01", "1")),
        (["--1", "2"], ("--1", "2")),
        (["-", "2"], ("-", "2")),
        (["²", "1"], ("1", "²")),
        ([], ()),
    ],
)
def test_labels_are_sorted_as_numbers_or_as_letters(names: list[str], order: tuple[str, ...]) -> None:
    for seed in range(10):
        assert sorted_labels(random.Random(seed).sample(names, len(names))) == order


@pytest.mark.parametrize(
    ("name", "values", "labels"),
    [
        ("sequence_classification", [10, None, 9, 2.0, np.int64(9)], ("2", "9", "10")),
        ("sequence_classification", ["b", "a", None], ("a", "b")),
        ("sequence_classification", [True, False], ("false", "true")),
        ("sequence_classification", [], ()),
        ("multi_label_classification", [["b"], [], None, {"a": None}], ("a", "b")),
        ("multi_label_classification", [[10], np.array([9])], ("9", "10")),
        ("token_classification", [["O", "I-b", None], None, ["B-b", "B-a"]], ("O", "B-a", "B-b", "I-b")),
        ("token_classification", [["S-a", "I-a", "E-a", "B-a"]], ("B-a", "E-a", "I-a", "S-a")),
        ("token_classification", [["VERB", "NOUN", "O"]], ("NOUN", "O", "VERB")),
        ("token_classification", [[2, 0], np.array([10])], ("0", "2", "10")),
        ("regression", [1.0, None], None),
    ],
)
def test_inferred_labels_are_in_readable_order(name: str, values: list[Any], labels: tuple[str, ...] | None) -> None:
    assert HEADS.get(name).infer_labels(values) == labels


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence_classification", 0.5),
        ("sequence_classification", ["a"]),
        ("multi_label_classification", "a, b"),
        ("multi_label_classification", 3),
        ("token_classification", "B-a O"),
        ("token_classification", {"a": 1}),
    ],
)
def test_labels_are_not_inferred_from_other_kinds(name: str, value: Any) -> None:
    with pytest.raises(DataError):
        HEADS.get(name).infer_labels([value])


# ---------------------------------------------------------------------- tags and spans


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
@pytest.mark.parametrize("types", [("x",), ("x", "y"), ("x", "x-y", "y")])
def test_spans_agree_with_seqeval(prefixes: str, types: tuple[str, ...]) -> None:
    rng = random.Random(0)
    tags = ["O", *(f"{prefix}-{label}" for prefix in prefixes for label in types)]
    assert are_span_tags(tags)
    for _ in range(3000):
        row = rng.choices(tags, k=rng.randrange(12))
        assert tag_spans(row, span_tags=True) == get_entities(row)


def test_plain_tags_give_a_span_per_word() -> None:
    assert tag_spans(["DET", "NOUN", "_"], span_tags=False) == [("DET", 0, 0), ("NOUN", 1, 1)]


@pytest.mark.parametrize(
    ("labels", "answer"),
    [
        (("O", "B-a", "I-a"), True),
        (("B-a", "I-a"), True),
        (("B-a", "E-a", "S-a", "I-a", "O"), True),
        (("O", "I-a"), False),
        (("O",), False),
        ((), False),
        (("O", "B-a", "NOUN"), False),
        (("NOUN", "VERB"), False),
    ],
)
def test_span_tags_are_told_from_plain_tags(labels: tuple[str, ...], answer: bool) -> None:
    assert are_span_tags(labels) is answer


def token_task(*labels: str) -> Task:
    return make_task("token_classification", labels=labels)


def answer_tags(task: Task, words: Words, tags: list[str | None]) -> dict[str, Any]:
    encoded = task.head.encode(task.spec, tags, words, SEQ_LEN)
    return task.head.decode(task.spec, one_hot(task.spec, np.array(encoded)), words)


def test_spans_carry_text_offsets_and_mean_score() -> None:
    task = token_task("O", "B-city", "I-city")
    words = Words("to New York", np.array([[0, 2], [3, 6], [7, 11]]), np.array([1, 2, 4]), given=True)
    logits = np.zeros((6, 3), np.float32)
    logits[1, 0] = 9
    logits[2, 1] = 1
    logits[4, 2] = 2
    answer = task.head.decode(task.spec, logits, words)
    score = (softmax(logits[2]).max() + softmax(logits[4]).max()) / 2
    assert answer["tags"] == ["O", "B-city", "I-city"]
    assert answer["spans"] == [
        {"label": "city", "text": "New York", "start": 3, "end": 11, "score": pytest.approx(score)}
    ]


def test_span_text_is_what_the_offsets_cut_out() -> None:
    task = token_task("O", "B-a", "I-a", "B-b", "I-b")
    for seed in range(50):
        rng = random.Random(seed)
        words = draw_words(rng, lost=rng.randrange(3))
        for span in task.head.decode(task.spec, task.logits(seed, 1)[0].detach().numpy(), words)["spans"]:
            assert span["text"] == words.text[span["start"] : span["end"]]
            assert span["text"].strip("x ") == ""
            assert 0.0 < span["score"] <= 1.0


@pytest.mark.parametrize(
    ("labels", "missing"),
    [(("O", "B-a"), "O"), (("B-a", "I-a"), "O"), (("NOUN", "VERB"), "_"), (("O", "NOUN"), "O")],
)
def test_words_cut_off_get_no_span(labels: tuple[str, ...], missing: str) -> None:
    task = token_task(*labels)
    words = draw_words(random.Random(0), lost=2)
    answer = answer_tags(task, words, [labels[1]] * 8)
    assert answer["tags"] == [labels[1]] * 6 + [missing] * 2
    spans = {span["label"] for span in answer["spans"]}
    assert spans == {labels[1].removeprefix("B-").removeprefix("I-")}
    nothing = answer_tags(task, draw_words(random.Random(0), lost=8), [labels[1]] * 8)
    assert nothing["tags"] == [missing] * 8
    assert nothing["spans"] == []


def test_only_the_first_token_of_a_word_is_labelled() -> None:
    task = token_task("O", "B-a")
    words = Words("ab c d", np.array([[0, 2], [3, 4], [5, 6]]), np.array([1, 4, -1]), given=True)
    assert task.head.encode(task.spec, ["B-a", None, "O"], words, 6) == [-100, 1, -100, -100, -100, -100]
    assert task.head.encode(task.spec, ["B-a", "O", "O"], words, 6) == [-100, 1, -100, -100, 0, -100]


def test_first_of_two_words_in_one_token_keeps_it() -> None:
    task = token_task("O", "B-a")
    words = Words("ab", np.array([[0, 1], [1, 2]]), np.array([1, 1]), given=True)
    assert task.head.encode(task.spec, ["B-a", "O"], words, 3) == [-100, 1, -100]


@pytest.mark.parametrize("words", [None, draw_words(random.Random(0), given=False)])
def test_tags_need_tokens(words: Words | None) -> None:
    task = token_task("O", "B-a")
    with pytest.raises(DataError, match="no tokens"):
        task.head.encode(task.spec, ["O"] * 8, words, SEQ_LEN)


@pytest.mark.parametrize("count", [0, 7, 9])
def test_tags_must_be_as_many_as_tokens(count: int) -> None:
    task = token_task("O", "B-a")
    with pytest.raises(DataError, match=f"{count} tags for 8 tokens; give one tag per token"):
        task.encode(["O"] * count, draw_words(random.Random(0)))
