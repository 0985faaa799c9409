"""AttnLRP: the rules, against relevance that is shared out step by step; what is covered and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, batch, logits_of, new_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, BertConfig
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP, LlamaRMSNorm

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.errors import ModelError
from hf_mtl.explain.explainer import FALLBACK_METHOD, Explainer, make_method
from hf_mtl.explain.methods._relevance import is_activation, is_gated, relevance_rules
from hf_mtl.explain.subject import Subject, embeddings_of
from hf_mtl.model.modeling import MultiTaskModel

COVERED = (
    "bert", "roberta", "xlm-roberta", "camembert", "electra", "albert", "distilbert", "modernbert", "t5", "mt5",
    "gpt2", "qwen2", "llama",
)  # fmt: skip
GATED = ("modernbert", "mt5", "qwen2", "llama")
REFUSED = ("mpnet", "deberta-v2", "fnet", "big_bird", "longformer")
TEXT = "the old film was good"
MakeFamily = Callable[..., Explainer]


# ---------------------------------------------------------------------- what is covered


def test_every_family_is_covered_or_refused() -> None:
    assert sorted((*COVERED, *REFUSED)) == sorted(FAMILIES)


@pytest.mark.parametrize("model_type", COVERED)
def test_covered_architecture_keeps_its_outputs_to_the_bit(model_type: str) -> None:
    model = new_model(model_type)
    before = logits_of(model, batch())
    with relevance_rules(model) as rules:
        during = logits_of(model, batch())
    after = logits_of(model, batch())
    assert rules.attention_calls == model.encoder.config.num_hidden_layers
    for task, logits in before.items():
        assert torch.equal(logits, during[task])
        assert torch.equal(logits, after[task])


@pytest.mark.parametrize("model_type", COVERED)
def test_covered_architecture_is_explained(model_type: str, family_explainer: MakeFamily) -> None:
    explainer = family_explainer(model_type)
    plain = explainer.explain(TEXT, method="gradient_x_input")
    for task, explanation in explainer.explain(TEXT).items():
        if task != "slots":
            assert explanation.method == "attn_lrp"
            assert explanation.notes == ()
            assert explanation.baseline == "the embedding of [PAD]"
            assert np.isfinite(explanation.scores).all()
            assert not np.allclose(explanation.scores, plain[task].scores, rtol=1e-3)


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused_architecture_falls_back_and_says_so(model_type: str, family_explainer: MakeFamily) -> None:
    explainer = family_explainer(model_type)
    with pytest.raises(ModelError, match=f"attn_lrp: the architecture '{model_type}' computes attention in a way"):
        explainer.explain(TEXT, method="attn_lrp")
    explanation = explainer.explain(TEXT, tasks="sentiment")["sentiment"]
    assert explanation.method == FALLBACK_METHOD
    assert f"{FALLBACK_METHOD} took its place" in explanation.notes[0]


def refusal(model: MultiTaskModel, tokenizer: Any = None) -> str:
    with pytest.raises(ModelError) as error:
        make_method("attn_lrp").check(Subject(model, tokenizer))
    return str(error.value)


def test_function_that_no_rule_knows_is_found() -> None:
    model = new_model("bert")
    intermediate: Any = model.encoder.encoder.layer[1].intermediate
    del intermediate.intermediate_act_fn
    intermediate.intermediate_act_fn = F.gelu  # a function, which cannot be hooked
    assert "has parts that none of its rules covers" in refusal(model)


def test_head_that_no_rule_knows_is_found() -> None:
    class Squares(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features**2

    model = new_model("bert")
    model.head("topic").output = nn.Sequential(nn.Linear(16, 3), Squares())
    assert "has parts that none of its rules covers" in refusal(model)


def test_layer_without_exchangeable_attention_is_found() -> None:
    model = new_model("bert")
    model.encoder.encoder.layer = model.encoder.encoder.layer[:1]
    assert "of 2 layers 1 compute attention in a way that can be exchanged" in refusal(model)


def test_count_is_checked_in_every_pass(tiny_explainer: Explainer) -> None:
    model = copy.deepcopy(tiny_explainer.subject.model)
    explainer = Explainer(model, tiny_explainer.subject.tokenizer)
    explainer.explain(TEXT, tasks="sentiment")
    model.encoder.encoder.layer = model.encoder.encoder.layer[:1]
    with pytest.raises(ModelError, match="of 2 layers 1 compute"):
        explainer.explain(TEXT, tasks="sentiment", method="attn_lrp")


def test_model_is_left_as_it_was_after_an_error(
    tiny_explainer: Explainer, state_of: Callable[[Subject], dict[str, Any]]
) -> None:
    subject = tiny_explainer.subject
    before = state_of(subject)

    def fail() -> None:
        with relevance_rules(subject.model):
            assert state_of(subject) != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert state_of(subject) == before


# ---------------------------------------------------------------------- the rules, one by one


def ruled(module: nn.Module) -> MultiTaskModel:
    """Put a module into a model, where the rules find it."""
    model = new_model("bert")
    model.part = module
    return model.double()


def gradient_of(module: nn.Module, states: Tensor, weights: Tensor) -> Tensor:
    """Differentiate `sum weights * module(states)` with the rules in force."""
    states = states.clone().requires_grad_()
    with relevance_rules(ruled(module)):
        total = (module(states) * weights).sum()
    return torch.autograd.grad(total, states)[0]


def by_differences(function: Callable[[Tensor], Tensor], states: Tensor, weights: Tensor) -> Tensor:
    """Differentiate `sum weights * function(states)` by central differences."""
    found = torch.zeros_like(states)
    for index in np.ndindex(*states.shape):
        step = torch.zeros_like(states)
        step[index] = 1e-6
        found[index] = ((function(states + step) - function(states - step)) * weights).sum() / 2e-6
    return found


@pytest.fixture
def states() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 3, 8, generator=generator, dtype=torch.float64) for _ in range(2))  # pyright: ignore


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_divides_by_a_constant(affine: bool, states: tuple[Tensor, Tensor]) -> None:
    norm = nn.LayerNorm(8, elementwise_affine=affine)
    if affine:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    found = gradient_of(norm, *states)
    spread = (states[0].var(dim=-1, correction=0, keepdim=True) + norm.eps).sqrt()

    def frozen(values: Tensor) -> Tensor:
        normed = (values - values.mean(dim=-1, keepdim=True)) / spread
        return normed * norm.weight + norm.bias if affine else normed

    torch.testing.assert_close(frozen(states[0]), norm(states[0]))
    torch.testing.assert_close(found, by_differences(frozen, *states), rtol=1e-6, atol=1e-6)


def test_rms_norm_divides_by_a_constant(states: tuple[Tensor, Tensor]) -> None:
    norm = LlamaRMSNorm(8, eps=1e-3)
    nn.init.normal_(norm.weight)
    found = gradient_of(norm, *states)
    size = (states[0].pow(2).mean(dim=-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(found, by_differences(lambda x: x / size * norm.weight, *states), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_fast", "quick_gelu", "silu", "relu", "tanh", "mish"])
def test_activation_multiplies_with_a_constant(name: str, states: tuple[Tensor, Tensor]) -> None:
    from transformers.activations import ACT2FN

    activation = ACT2FN[name]
    assert is_activation(activation)
    values, weights = states
    values[0, 0, 0] = 0.0  # where the constant would be 0 / 0
    slope = activation(values) / values
    slope[0, 0, 0] = 0.0
    torch.testing.assert_close(gradient_of(activation, values, weights), slope * weights)


@pytest.mark.parametrize(
    "module", [nn.Sigmoid(), nn.Softmax(dim=-1), nn.LogSoftmax(dim=-1), nn.Softplus(), nn.MultiheadAttention(8, 2)]
)
def test_what_does_not_keep_zero_is_no_activation(module: nn.Module) -> None:
    assert not is_activation(module)


def test_gated_layer_halves_both_factors(states: tuple[Tensor, Tensor]) -> None:
    mlp: Any = LlamaMLP(LlamaConfig(hidden_size=8, num_attention_heads=2, intermediate_size=12))
    found = gradient_of(mlp, *states)
    at, up, gate = states[0], mlp.up_proj(states[0]), mlp.gate_proj(states[0])
    slope = mlp.act_fn(gate) / gate
    first = by_differences(lambda x: mlp.down_proj(mlp.gate_proj(x) * slope * up), at, states[1])
    second = by_differences(lambda x: mlp.down_proj(gate * slope * mlp.up_proj(x)), at, states[1])
    torch.testing.assert_close(found, (first + second) / 2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("model_type", "gated"), [(name, name in GATED) for name in COVERED])
def test_gated_layers_are_told_from_others(model_type: str, gated: bool) -> None:
    found = sum(map(is_gated, new_model(model_type).modules()))
    assert found == (2 if gated else 0)


def test_gated_t5_is_told_from_the_other() -> None:
    config = AutoConfig.for_model("t5", **FAMILIES["t5"].settings, feed_forward_proj="gated-gelu")
    tasks = [TaskSpec(name="a", type="regression")]
    assert sum(map(is_gated, MultiTaskModel(MultiTaskConfig(encoder_config=config, tasks=tasks)).modules())) == 2


# ---------------------------------------------------------------------- all rules together


def one_layer(*, biases: bool) -> MultiTaskModel:
    """A BERT of one layer with a regression head, in float64."""
    config = BertConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    tasks = [TaskSpec(name="mean", type="regression"), TaskSpec(name="read", type="regression", pooling="attention")]
    generator = torch.Generator().manual_seed(3)
    model = MultiTaskModel(MultiTaskConfig(encoder_config=config, tasks=tasks)).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.7, generator=generator)
            if not biases and (name.endswith("bias") or "position" in name or "token_type" in name):
                parameter.zero_()
    return model


IDS = torch.tensor([[2, 7, 5, 9]])


def relevance(model: MultiTaskModel, task: str, **rules: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return score, gradient and embeddings, `(tokens, hidden_size)`, with the rules in force."""
    with relevance_rules(model, **rules), embeddings_of(model) as seen:
        score = model(input_ids=IDS).logits[task].sum()
    return score.detach(), torch.autograd.grad(score, seen[0])[0][0], seen[0].detach()[0]


def step_by_step(model: Any, *, through_softmax: bool) -> Tensor:
    """Share out the score of the task `mean`, as the paper writes its rules: relevance, not gradients.

    Returns:
        Relevance of the token embeddings, `(tokens, hidden_size)`.
    """
    encoder, head = model.encoder, model.head("mean").output
    layer = encoder.encoder.layer[0]
    heads, size = 2, 4

    def linear(inputs: Tensor, weight: Tensor, outputs: Tensor, given: Tensor) -> Tensor:
        """Give each input its part of `outputs_j = sum_i inputs_i weight_ji + bias_j`."""
        shares = inputs[:, :, None] * weight.T[None]  # (tokens, inputs, outputs)
        return (shares * (given / outputs)[:, None, :]).sum(dim=-1)

    def norm(module: Any, inputs: Tensor, outputs: Tensor, given: Tensor) -> Tensor:
        width = inputs.shape[-1]
        scale = module.weight / (inputs.var(dim=-1, correction=0, keepdim=True) + module.eps).sqrt()
        matrix = torch.eye(width) - 1.0 / width
        shares = inputs[:, :, None] * matrix[None] * scale[:, None, :]
        return (shares * (given / outputs)[:, None, :]).sum(dim=-1)

    # forward, every step kept
    words = encoder.embeddings.word_embeddings(IDS)[0]
    positions = encoder.embeddings.position_embeddings.weight[: IDS.shape[1]]
    summed = words + positions + encoder.embeddings.token_type_embeddings.weight[0]
    normed = encoder.embeddings.LayerNorm(summed)
    attention = layer.attention.self
    split = [part(normed).view(-1, heads, size) for part in (attention.query, attention.key, attention.value)]
    query, key, value = split
    products = torch.einsum("qhd,khd->hqk", query, key) / size**0.5
    weights = products.softmax(dim=-1)
    mixed = torch.einsum("hqk,khd->qhd", weights, value)
    dense = layer.attention.output.dense(mixed.reshape(-1, heads * size))
    first = dense + normed
    middle = layer.attention.output.LayerNorm(first)
    wide = layer.intermediate.dense(middle)
    active = F.gelu(wide)
    narrow = layer.output.dense(active)
    second = narrow + middle
    states = layer.output.LayerNorm(second)
    pooled = states.mean(dim=0, keepdim=True)
    score = head(pooled)

    # backward, relevance of each step from that of the next
    given = linear(pooled, head.weight, score, score)
    given = states / len(states) * (given / pooled)
    given = norm(layer.output.LayerNorm, second, states, given)
    to_narrow, to_middle = narrow / second * given, middle / second * given
    to_active = linear(active, layer.output.dense.weight, narrow, to_narrow)
    to_middle = to_middle + linear(middle, layer.intermediate.dense.weight, wide, to_active)  # activation: identity
    given = norm(layer.attention.output.LayerNorm, first, middle, to_middle)
    to_dense, to_normed = dense / first * given, normed / first * given
    to_mixed = linear(mixed.reshape(-1, 8), layer.attention.output.dense.weight, dense, to_dense).view_as(mixed)
    shares = torch.einsum("hqk,khd,qhd->hqkd", weights, value, to_mixed / mixed) / 2  # a half for each factor
    to_weights, to_value = shares.sum(dim=-1), shares.sum(dim=1).transpose(0, 1)
    to_products = products * (to_weights - weights * to_weights.sum(dim=-1, keepdim=True))  # softmax, by Taylor
    shares = torch.einsum("qhd,khd,hqk->hqkd", query, key, to_products / products) / size**0.5 / 2
    shares = shares * through_softmax
    to_query, to_key = shares.sum(dim=2).transpose(0, 1), shares.sum(dim=1).transpose(0, 1)
    for part, outputs, share in zip(
        (attention.query, attention.key, attention.value), split, (to_query, to_key, to_value), strict=True
    ):
        to_normed = to_normed + linear(normed, part.weight, outputs.reshape(-1, 8), share.reshape(-1, 8))
    return words / summed * norm(encoder.embeddings.LayerNorm, summed, normed, to_normed)


@pytest.mark.parametrize("through_softmax", [False, True])
def test_gradients_are_relevance_shared_out_step_by_step(through_softmax: bool) -> None:
    model = one_layer(biases=True)
    _, gradient, embeddings = relevance(model, "mean", through_softmax=through_softmax)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            expected = step_by_step(model, through_softmax=through_softmax)
    finally:
        torch.set_default_dtype(default)
    torch.testing.assert_close(gradient * embeddings, expected, rtol=1e-6, atol=1e-8)  # pooling is in float32


@pytest.mark.parametrize("task", ["mean", "read"])
def test_nothing_is_lost_where_one_factor_is_constant_and_no_bias_takes_part(task: str) -> None:
    score, gradient, embeddings = relevance(one_layer(biases=False), task, linear=True)
    torch.testing.assert_close((gradient * embeddings).sum(), score, rtol=1e-6, atol=0.0)  # pooling is in float32


@pytest.mark.parametrize("through_softmax", [False, True])
def test_attention_pooling_has_constant_weights_or_halves_both_factors(through_softmax: bool) -> None:
    model: Any = one_layer(biases=True)
    pooling = model.attention_poolings["read"]
    states, weights = torch.randn(2, 1, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 4, dtype=torch.long)

    def gradient(leaf: Tensor) -> tuple[Tensor, Tensor]:
        leaf.requires_grad_()
        pooled, shares = pooling(leaf, mask)
        return torch.autograd.grad((pooled * weights[:, 0]).sum(), leaf)[0], shares.detach()

    with relevance_rules(model, through_softmax=through_softmax):
        found, shares = gradient(states.clone())
    expected = gradient(states.clone())[0] / 2 if through_softmax else shares[..., None].double() * weights[:, :1]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_score_is_gradient_times_difference_from_padding(tiny_explainer: Explainer) -> None:
    subject = tiny_explainer.subject
    method = make_method("attn_lrp")
    text = subject.read(TEXT, units="token")
    explanation = tiny_explainer.explain(TEXT, tasks="similarity", method="attn_lrp", units="token")["similarity"]
    forward = method.forward(subject, text, ["similarity"])
    embeddings = forward.embeddings
    assert embeddings is not None
    (gradient,) = torch.autograd.grad(forward.logits("similarity").sum(), embeddings)
    padding = subject.model.get_input_embeddings().weight[subject.tokenizer.pad_token_id]
    expected = (gradient * (embeddings - padding)).sum(dim=-1)[0, 1:-1].detach()
    np.testing.assert_allclose(explanation.scores, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "baseline"),
    [
        ({"pad_token": None}, "the embedding of [UNK]"),
        ({"pad_token": None, "mask_token": "film"}, "the embedding of film"),
    ],
)
def test_tokenizer_without_padding(tokens: dict[str, Any], baseline: str, tiny_explainer: Explainer) -> None:
    tokenizer = copy.deepcopy(tiny_explainer.subject.tokenizer)
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    explanation = Explainer(tiny_explainer.subject.model, tokenizer).explain(TEXT, tasks="moods")["moods"]
    assert explanation.baseline == baseline
