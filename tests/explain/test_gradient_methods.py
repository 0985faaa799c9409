"""Methods by gradients and attention: captum and brute force give the same; what has to change them changes them."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of captum's own imports
    from captum.attr import InputXGradient, LayerIntegratedGradients, Saliency

from families import FAMILIES

from hf_mtl.errors import MissingExtraError, ModelError, SpecError
from hf_mtl.explain.eager import eager_attention
from hf_mtl.explain.explainer import Explainer, make_method
from hf_mtl.explain.methods._attentions import read_at
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.attention_implementation import attention_implementation
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.targets import Target

TEXTS = ("the old zebra was good and a story", "good old songs with bad zebra music", "rome was not great for ann")
PAIR = {"text": "good old songs", "text_pair": "bad zebra music"}
TASKS = ("sentiment", "intent", "slots", "similarity", "moods")
BY_GRADIENT = ("attn_lrp", "integrated_gradients", "gradient_norm", "gradient_x_input", "attention_x_gradient")
BY_ATTENTION = ("attention", "rollout", "attention_x_gradient")
NO_ATTENTION = {"fnet": "gives no attention weights", "longformer": "tokens do not attend to all others"}
MakeFamily = Callable[..., Explainer]


def close(found: Any, expected: Any, rtol: float = 1e-4) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


class Reference:
    """A model as captum sees it: from token ids, or from embeddings that are handed in, to the target's score."""

    def __init__(self, explainer: Explainer, text: Any, task: str) -> None:
        explanation = explainer.explain(text, tasks=task, method="gradient_norm", units="token")[task]
        assert explanation.origin is not None
        self.model = explainer.subject.model
        self.text: ExplainedText = explanation.origin.text
        self.target: Target = explanation.origin.target
        self.task = task
        self.ids = torch.from_numpy(self.text.input_ids)[None]
        self.types = None if self.text.token_type_ids is None else torch.from_numpy(self.text.token_type_ids)[None]

    def score(self, **inputs: Tensor) -> Tensor:
        rows = len(next(iter(inputs.values())))
        types = None if self.types is None else self.types.expand(rows, -1)
        logits = self.model(**inputs, token_type_ids=types).logits[self.task]
        if self.target.words is not None:
            logits = logits[:, self.text.words.first_tokens[list(self.target.words)]]
        else:
            logits = logits[:, None]
        return (logits * torch.from_numpy(self.target.weights).float()).sum(dim=-1).mean(dim=-1)

    @property
    def embeddings(self) -> Tensor:
        return self.model.get_input_embeddings()(self.ids).detach().requires_grad_()

    def of_embeddings(self, embeddings: Tensor) -> Tensor:
        return self.score(inputs_embeds=embeddings)

    def of_ids(self, ids: Tensor) -> Tensor:
        return self.score(input_ids=ids)

    @torch.no_grad()
    def difference(self, blank: Tensor) -> float:
        """Return by how much the score is above that of other token ids, `(1, num_tokens)`."""
        return float(self.of_ids(self.ids) - self.of_ids(blank))

    def per_unit(self, token_scores: Tensor) -> np.ndarray:
        return self.text.sum_over_units(token_scores.detach().numpy())


# ---------------------------------------------------------------------- gradients


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("text", [TEXTS[0], PAIR], ids=["text", "pair"])
def test_gradients_are_captums(text: Any, task: str, tiny_explainer: Explainer) -> None:
    reference = Reference(tiny_explainer, text, task)
    norms = Saliency(reference.of_embeddings).attribute(reference.embeddings, abs=False).norm(dim=-1)[0]
    products = InputXGradient(reference.of_embeddings).attribute(reference.embeddings).sum(dim=-1)[0]
    for method, expected in (("gradient_norm", norms), ("gradient_x_input", products)):
        found = tiny_explainer.explain(text, tasks=task, method=method, units="token")[task]
        close(found.scores, reference.per_unit(expected))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("text", [TEXTS[0], PAIR], ids=["text", "pair"])
def test_integrated_gradients_are_captums(text: Any, task: str, tiny_explainer: Explainer) -> None:
    reference = Reference(tiny_explainer, text, task)
    layer = LayerIntegratedGradients(reference.of_ids, reference.model.get_input_embeddings())
    words = torch.from_numpy(reference.text.unit_of_token >= 0)
    blank = torch.where(words, tiny_explainer.subject.tokenizer.pad_token_id, reference.ids)
    expected, delta = layer.attribute(reference.ids, blank, n_steps=30, return_convergence_delta=True)
    options: dict[str, Any] = {"steps": 30, "most_steps": 30, "units": "token"}
    found = tiny_explainer.explain(text, tasks=task, method="integrated_gradients", **options)[task]
    close(found.scores, reference.per_unit(expected.sum(dim=-1)[0]))
    missed = abs(float(delta.detach()) / reference.difference(blank))
    assert found.convergence == pytest.approx(missed, rel=0.02, abs=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_integrated_gradients_add_up_to_what_the_words_change(task: str, tiny_explainer: Explainer) -> None:
    for text in (*TEXTS, PAIR):
        reference = Reference(tiny_explainer, text, task)
        words = torch.from_numpy(reference.text.unit_of_token >= 0)
        blank = torch.where(words, tiny_explainer.subject.tokenizer.pad_token_id, reference.ids)
        difference = reference.difference(blank)
        found = tiny_explainer.explain(text, tasks=task, method="integrated_gradients", most_steps=5120)[task]
        assert found.convergence is not None
        assert found.convergence <= 0.01
        assert found.notes == ()
        assert sum(found.scores) == pytest.approx(difference, rel=0.011)
        missed = abs(sum(found.scores) - difference) / abs(difference)
        assert found.convergence == pytest.approx(missed, abs=1e-4)


def test_steps_are_doubled_until_the_limit_which_is_noted(tiny_explainer: Explainer) -> None:
    steps: list[int] = []
    handle = tiny_explainer.subject.model.encoder.register_forward_hook(
        lambda module, args, output: steps.append(len(output.last_hidden_state)) if torch.is_grad_enabled() else None
    )
    options: dict[str, Any] = {"tasks": "intent", "method": "integrated_gradients", "tolerance": 1e-12}
    try:
        found = tiny_explainer.explain(TEXTS[0], steps=3, most_steps=13, **options)["intent"]
    finally:
        handle.remove()
    assert steps == [3, 6, 12]
    assert found.notes == (f"after 12 steps the scores still miss the sum they promise by {found.convergence:.1%}",)


def test_batches_of_steps_change_nothing(tiny_explainer: Explainer) -> None:
    together = tiny_explainer.explain(TEXTS[0], tasks="moods", method="integrated_gradients")["moods"]
    apart = Explainer(tiny_explainer.subject.model, tiny_explainer.subject.tokenizer)
    for size, tokens in ((7, 8192), (64, 40), (64, 1)):
        apart.subject.batch_size, apart.subject.max_tokens = size, tokens
        close(apart.explain(TEXTS[0], tasks="moods", method="integrated_gradients")["moods"].scores, together.scores)


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 2.5}, {"steps": 9, "most_steps": 8}, {"tolerance": 0}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=f"{[*options][-1]} is"):
        make_method("integrated_gradients", options)


def test_missing_captum_names_its_extra(tiny_explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingExtraError, match=r"'captum' is not installed; pip install \"hf-mtl\[explain\]\""):
        tiny_explainer.explain(TEXTS[0], tasks="moods", method="integrated_gradients")


# ---------------------------------------------------------------------- what changes an explanation, and what does not


def rank_correlation(one: Explainer, other: Explainer, method: str) -> float:
    """Return the mean rank correlation of what two models' explanations say about the same targets."""
    found: list[float] = []
    for text in TEXTS:
        for task, target in (("sentiment", "pos"), ("similarity", None), ("moods", "glad")):
            pair = [
                model.explain(text, tasks=task, method=method, target=target, units="token")[task].scores
                for model in (one, other)
            ]
            found.append(float(spearmanr(*pair).statistic))
    return float(np.mean(found))


def randomised(explainer: Explainer, part: str) -> Explainer:
    """Draw the weights of a part of the model anew, in the size they have."""
    model = copy.deepcopy(explainer.subject.model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name and parameter.ndim > 1:
                parameter.normal_(std=float(parameter.std()), generator=generator)
    return Explainer(model, explainer.subject.tokenizer)


@pytest.mark.mostly_slow(fast=4)
@pytest.mark.parametrize("method", BY_GRADIENT)
@pytest.mark.parametrize("part", ["heads.", "encoder.layer"])
def test_randomised_model_is_explained_otherwise(method: str, part: str, tiny_explainer: Explainer) -> None:
    assert rank_correlation(tiny_explainer, tiny_explainer, method) == pytest.approx(1.0)
    assert rank_correlation(tiny_explainer, randomised(tiny_explainer, part), method) < 0.9


@pytest.mark.parametrize("method", ["attention", "rollout"])
def test_attention_cannot_see_the_head(method: str, tiny_explainer: Explainer) -> None:
    assert rank_correlation(tiny_explainer, randomised(tiny_explainer, "heads."), method) == pytest.approx(1.0)
    assert rank_correlation(tiny_explainer, randomised(tiny_explainer, "encoder.layer"), method) < 0.9


def scaled(explainer: Explainer) -> Explainer:
    """Scale weights of linear layers and take it back in the next: another network, the same function."""
    model: Any = copy.deepcopy(explainer.subject.model)
    with torch.no_grad():
        for layer in model.encoder.encoder.layer:
            attention = layer.attention
            for first, second in (
                (attention.self.value, attention.output.dense),
                (attention.self.query, attention.self.key),
            ):
                first.weight *= 3.0
                first.bias *= 3.0
                second.weight /= 3.0
            attention.self.key.bias /= 3.0
    return Explainer(model, explainer.subject.tokenizer)


def with_eager(explainer: Explainer) -> Explainer:
    model: Any = copy.deepcopy(explainer.subject.model)
    model.set_attn_implementation("eager")
    return Explainer(model, explainer.subject.tokenizer)


@pytest.mark.parametrize("method", sorted({*BY_GRADIENT, *BY_ATTENTION}))
@pytest.mark.parametrize("change", [with_eager, scaled], ids=["eager", "scaled"])
def test_networks_that_do_the_same_are_explained_alike(
    method: str, change: Callable[[Explainer], Explainer], tiny_explainer: Explainer
) -> None:
    other = change(tiny_explainer)
    for text in (TEXTS[0], PAIR):
        first, second = tiny_explainer.explain(text, method=method), other.explain(text, method=method)
        for task, explanation in first.items():
            assert explanation.probability == pytest.approx(second[task].probability, abs=1e-5)
            close(second[task].scores, explanation.scores, rtol=1e-5 if method != "integrated_gradients" else 1e-4)


# ---------------------------------------------------------------------- attention


def attentions(explainer: Explainer, text: Any) -> list[np.ndarray]:
    """Return the mean over heads of each layer's attention, `(tokens, tokens)`."""
    subject = explainer.subject
    with eager_attention(subject.model):
        output = subject.forward(subject.read(text), [], output_attentions=True).output
    assert output.attentions is not None
    return [layer[0].mean(dim=0).numpy().astype(np.float64) for layer in output.attentions]


def shares(explainer: Explainer, text: Any, task: str) -> np.ndarray:
    """Return which tokens each of the tasks reads, written out by hand."""
    subject = explainer.subject
    read = subject.read(text)
    tokens = len(read.input_ids)
    if task == "sentiment":  # a learned query
        forward = subject.forward(read, [task], output_hidden_states=True)
        assert forward.output.hidden_states is not None
        states = forward.output.hidden_states[-1][0]
        query: Any = subject.model.attention_poolings[task].query
        return (states @ query.detach() / len(query) ** 0.5).softmax(dim=0).numpy()
    if task == "slots":  # the second word, which is the first token after `[CLS]` and the first word
        return np.eye(tokens)[2]
    return {"intent": np.eye(tokens)[0], "similarity": np.eye(tokens)[-1], "moods": np.full(tokens, 1 / tokens)}[task]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("text", [TEXTS[0], PAIR], ids=["text", "pair"])
def test_attention_is_read_where_the_task_reads(text: Any, task: str, tiny_explainer: Explainer) -> None:
    target = 1 if task == "slots" else None
    share, layers = shares(tiny_explainer, text, task), attentions(tiny_explainer, text)
    rollout = share
    for layer in layers[::-1]:
        rollout = rollout @ (0.5 * np.eye(len(layer)) + 0.5 * layer)
    words = tiny_explainer.subject.read(text)
    for method, expected in (("attention", share @ layers[-1]), ("rollout", rollout)):
        found = tiny_explainer.explain(text, tasks=task, method=method, target=target)[task]
        close(found.scores, words.sum_over_units(expected), rtol=1e-5)
        assert 0 < sum(found.scores) < 1
        assert not found.signed
        assert found.notes[0].startswith("attention is routing, not attribution")


def test_what_is_read_sums_to_one(tiny_explainer: Explainer) -> None:
    for task in TASKS:
        explanation = tiny_explainer.explain(PAIR, tasks=task, method="attention")[task]
        assert explanation.origin is not None
        text, target = explanation.origin.text, explanation.origin.target
        forward = tiny_explainer.subject.forward(text, [task])
        assert float(read_at(tiny_explainer.subject, text, forward, task, target).sum()) == pytest.approx(1.0)


def test_rollout_without_residual_is_the_product_of_attention(tiny_explainer: Explainer) -> None:
    first, second = attentions(tiny_explainer, TEXTS[0])
    found = tiny_explainer.explain(TEXTS[0], tasks="intent", method="rollout", residual=0.0)["intent"]
    close(found.scores, tiny_explainer.subject.read(TEXTS[0]).sum_over_units((second @ first)[0]), rtol=1e-5)
    with pytest.raises(SpecError, match="residual is 1"):
        make_method("rollout", {"residual": 1.0})


@pytest.fixture
def stressed() -> Iterator[Tensor]:
    """An attention named `stressed` that multiplies each weight by a factor per key, which the test sets."""
    factors = torch.ones(0, dtype=torch.float64)

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        weights = (query @ key.transpose(2, 3) * options["scaling"]).softmax(dim=-1) * factors
        return (weights @ value).transpose(1, 2).contiguous(), weights

    AttentionInterface.register("stressed", attend)
    AttentionMaskInterface.register("stressed", sdpa_mask)
    yield factors
    for interface in (AttentionInterface, AttentionMaskInterface):
        del interface._global_mapping["stressed"]


@pytest.mark.parametrize("task", ["sentiment", "similarity", "moods"])
def test_attention_x_gradient_is_what_more_attention_to_a_token_changes(
    task: str, tiny_explainer: Explainer, stressed: Tensor
) -> None:
    explainer = Explainer(copy.deepcopy(tiny_explainer.subject.model).double(), tiny_explainer.subject.tokenizer)
    subject = explainer.subject
    found = explainer.explain(TEXTS[0], tasks=task, method="attention_x_gradient", units="token")[task]
    assert found.origin is not None
    text = found.origin.text
    stressed.resize_(len(text.input_ids))

    def score(token: int, step: float) -> float:
        stressed.fill_(1.0)[token] += step
        with attention_implementation(subject.model, "stressed"):
            return float(subject.score(text, found.origin.target, task, subject.forward(text, [task])))  # pyright: ignore

    # A step that the float32 of the pooling does not drown.
    changes = [(score(token, 1e-2) - score(token, -1e-2)) / 2e-2 for token in range(len(text.input_ids))]
    close(found.scores, text.sum_over_units(np.array(changes)), rtol=5e-3)


# ---------------------------------------------------------------------- architectures


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_architecture_is_explained_by_gradients(model_type: str, family_explainer: MakeFamily) -> None:
    explainer = family_explainer(model_type)
    for method in ("integrated_gradients", "gradient_norm", "gradient_x_input"):
        for explanation in explainer.explain(PAIR, method=method).values():
            assert np.isfinite(explanation.scores).all()
            assert np.abs(explanation.scores).max() > 0
            assert (explanation.convergence or 0.0) < 0.1


@pytest.mark.parametrize("method", BY_ATTENTION)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_architecture_is_explained_by_attention_or_refused(
    model_type: str, method: str, family_explainer: MakeFamily
) -> None:
    explainer = family_explainer(model_type)
    if model_type in NO_ATTENTION:
        with pytest.raises(ModelError, match=NO_ATTENTION[model_type]):
            explainer.explain(TEXTS[0], method=method)
        return
    for explanation in explainer.explain(TEXTS[0], method=method).values():
        assert np.isfinite(explanation.scores).all()
        assert np.abs(explanation.scores).max() > 0


# ---------------------------------------------------------------------- another attention for one pass


def test_eager_attention_puts_back_what_was_set_in_each_part(tiny_explainer: Explainer) -> None:
    model: Any = copy.deepcopy(tiny_explainer.subject.model)
    model.config.encoder_config = copy.deepcopy(model.config.encoder_config)  # apart from the encoder's own
    model.config._attn_implementation_internal = "flex_attention"
    model.encoder.config._attn_implementation_internal = "sdpa"

    def fail() -> None:
        with eager_attention(model):
            assert model.config._attn_implementation == model.encoder.config._attn_implementation == "eager"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.config._attn_implementation == "flex_attention"
    assert model.encoder.config._attn_implementation == "sdpa"
    assert model.config.encoder_config._attn_implementation == "sdpa"


def test_encoder_that_cannot_change_its_attention_is_refused(family_explainer: MakeFamily) -> None:
    model: MultiTaskModel = family_explainer("mpnet").subject.model
    with eager_attention(model):
        assert model.encoder.config._attn_implementation == "eager"
    model.encoder.config._attn_implementation_internal = "sdpa"
    with (
        pytest.raises(ModelError, match="MPNetModel has sdpa attention and cannot change it to eager"),
        eager_attention(model),
    ):
        pass
    assert model.config._attn_implementation == "sdpa"
