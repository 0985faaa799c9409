"""Messages between tokens: against GATv2 computed edge by edge, and what they leave untouched."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import BERT_SIZES, FAMILIES, TASKS, batch, logits_of
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.data.collator import MultiTaskCollator
from hf_mtl.errors import MissingExtraError, SpecError
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.surgery import add_labels, merge
from hf_mtl.model.token_graph import TokenGraphAttention, neighbours, token_edges

WITH = ("topic", "query", "tags")
GOVERNORS = [
    # Special tokens at both ends; words 3 and 5 have two tokens each.
    [0, 3, 3, 6, 3, 6, 6, 6, 8, 9],
    [0, 1, 1, 2, 3, 4, 5, 7, 8, 9],
    [2, 0, 0, 2, 2, 5, 6, 7, 8, 9],
    [0, 2, 1, 3, 4, 5, 6, 7, 8, 9],  # two that govern each other
]


def new_model(model_type: str = "bert", *, with_graph: bool = True, stirred: bool = True, **options: Any) -> Any:
    torch.manual_seed(0)
    graph = {"token_graph": with_graph, **options} if with_graph else {}
    tasks = [replace(spec, **graph) if spec.name in WITH else spec for spec in TASKS]
    model = MultiTaskModel(MultiTaskConfig(encoder_config=FAMILIES[model_type].config(model_type), tasks=tasks)).eval()
    generator = torch.Generator().manual_seed(1)
    model.attention_poolings["query"].query.data.normal_(generator=generator)
    for parameter in model.token_graphs.parameters() if stirred else ():
        parameter.data.normal_(std=0.5, generator=generator)
    return model


def inputs() -> dict[str, Tensor]:
    """Make the batch of the families with a graph; on padding each token governs itself."""
    made = batch()
    governors, own = torch.tensor(GOVERNORS), torch.arange(len(GOVERNORS[0]))
    lengths = made["attention_mask"].sum(dim=1, keepdim=True)
    made["governors"] = torch.where((own < lengths) & (governors < lengths), governors, own)
    return made


def layer(*, heads: int = 2, layers: int = 1, size: int = 8) -> Any:
    module = TokenGraphAttention(size, num_heads=heads, num_layers=layers)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.7, generator=generator)
    return module


def states_of(rows: int, tokens: int, size: int = 8) -> Tensor:
    return torch.randn(rows, tokens, size, generator=torch.Generator().manual_seed(2))


def by_hand(module: Any, states: Tensor, governors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states and the weights of each layer, from the formula: one token, one head, one edge at a time."""
    rows, tokens, _ = states.shape
    kept = torch.zeros(rows, len(module.layers), tokens, tokens)
    for number, (gat, scale) in enumerate(zip(module.layers, module.scales, strict=True)):
        heads, size = gat.att.shape[1:]
        heard = torch.zeros_like(states)
        for row in range(rows):
            above = governors[row].tolist()
            sent = F.linear(states[row], gat.lin_l.weight, gat.lin_l.bias).view(-1, heads, size)
            asked = F.linear(states[row], gat.lin_r.weight, gat.lin_r.bias).view(-1, heads, size)
            for token in range(tokens):
                others = sorted({token, above[token], *(other for other in range(tokens) if above[other] == token)})
                for head in range(heads):
                    scores = [
                        math.exp((gat.att[0, head] * F.leaky_relu(sent[o, head] + asked[token, head], 0.2)).sum())
                        for o in others
                    ]
                    for other, score in zip(others, scores, strict=True):
                        share = score / sum(scores)
                        kept[row, number, token, other] += share / heads
                        heard[row, token, head * size : (head + 1) * size] += share * sent[other, head]
        states = states + scale * (heard + gat.bias)
    return states, kept


# ---------------------------------------------------------------------- the layer


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("heads", [1, 4])
@torch.no_grad()
def test_states_and_weights_equal_those_computed_by_hand(heads: int, layers: int) -> None:
    module, governors = layer(heads=heads, layers=layers), torch.tensor(GOVERNORS)
    states = states_of(*governors.shape)
    found, weights = module(states, governors, with_weights=True)
    expected, shares = by_hand(module, states, governors)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(weights, shares, rtol=0, atol=1e-6)
    torch.testing.assert_close(weights.sum(dim=3), torch.ones(weights.shape[:3]))
    assert module(states, governors)[1] is None


def test_edges_are_a_set_of_one_size_for_every_batch_of_a_shape() -> None:
    governors = torch.tensor(GOVERNORS)
    rows, tokens = governors.shape
    edges = token_edges(governors)
    assert edges.shape == token_edges(torch.zeros_like(governors)).shape == (2, 3 * rows * tokens)
    real = [(a, b) for a, b in edges.T.tolist() if a != rows * tokens]
    assert not any(b == rows * tokens for _, b in real)
    assert len({*real}) == len(real)
    pairs = [(row * tokens, own, above) for row, graph in enumerate(GOVERNORS) for own, above in enumerate(graph)]
    assert {*real} == {
        (row + a, row + b) for row, own, above in pairs for a, b in [(own, own), (own, above), (above, own)]
    }


@pytest.mark.parametrize(
    ("layers", "reached"), [(1, {2, 3, 4, 6}), (2, {1, 2, 3, 4, 5, 6, 7}), (3, {1, 2, 3, 4, 5, 6, 7})]
)
@torch.no_grad()
def test_a_token_reaches_as_many_edges_far_as_there_are_layers(layers: int, reached: set[int]) -> None:
    module, governors = layer(layers=layers), torch.tensor([[0, 2, 3, 6, 3, 6, 6, 6, 8]])
    states = states_of(1, 9)
    changed = states.clone()
    changed[0, 3] += 1.0
    before, after = module(states, governors)[0], module(changed, governors)[0]
    moved = {token for token in range(9) if not torch.equal(before[0, token], after[0, token])}
    assert moved == reached


@torch.no_grad()
def test_a_layer_that_weighs_nothing_changes_nothing() -> None:
    module, governors = layer(layers=2), torch.tensor(GOVERNORS)
    module.scales.zero_()
    states = states_of(*governors.shape)
    assert torch.equal(module(states, governors)[0], states)


@torch.no_grad()
def test_rows_do_not_meet() -> None:
    module, governors = layer(layers=2), torch.tensor(GOVERNORS)
    states = states_of(*governors.shape)
    together, order = module(states, governors)[0], torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(module(states[order], governors[order])[0], together[order], rtol=0, atol=1e-6)
    for row in range(len(governors)):
        alone = module(states[[row]], governors[[row]])[0]
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- the model


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
def test_a_model_begins_as_one_without_to_the_bit(model_type: str) -> None:
    model, plain = new_model(model_type, stirred=False), new_model(model_type, with_graph=False)
    known = plain.state_dict()
    assert all(torch.equal(value, known[name]) for name, value in model.state_dict().items() if name in known)
    expected, found = logits_of(plain, batch()), logits_of(model, inputs())
    assert all(torch.equal(found[name], logits) for name, logits in expected.items())


def test_other_tasks_are_untouched_to_the_bit() -> None:
    expected, found = logits_of(new_model(with_graph=False), batch()), logits_of(new_model(), inputs())
    assert {name for name, logits in expected.items() if not torch.equal(found[name], logits)} == {*WITH}


@torch.no_grad()
def test_heads_read_what_the_graph_makes_of_the_states() -> None:
    model, given = new_model(token_graph_layers=2, token_graph_heads=2), inputs()
    output, governors = model(**given, output_attentions=True), given.pop("governors")
    states, mask = model.encoder(**given).last_hidden_state, given["attention_mask"]
    assert output.token_graphs.keys() == {*WITH}
    for name in WITH:
        passed, weights = by_hand(model.token_graphs[name], states, governors)
        torch.testing.assert_close(output.token_graphs[name], weights, rtol=0, atol=1e-6)
        features = passed
        if name == "topic":
            features = (passed * mask.unsqueeze(2)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        elif name == "query":
            features = model.attention_poolings["query"](passed, mask)[0]
        torch.testing.assert_close(output.logits[name], model.head(name).output(features), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", ["roberta", "qwen2"])
@torch.no_grad()
def test_neither_padding_nor_other_rows_nor_other_tasks_change_an_answer(model_type: str) -> None:
    model, given = new_model(model_type), inputs()
    expected, mask = logits_of(model, given), given["attention_mask"]
    for name in WITH:
        assert torch.equal(model(**given, tasks=[name]).logits[name], expected[name])
    for row in range(len(mask)):
        count = int(mask[row].sum())
        alone = model(**{key: value[[row], :count] for key, value in given.items()}).logits
        for name, logits in expected.items():
            cut = logits[[row], :count] if logits.dim() == 3 else logits[[row]]
            torch.testing.assert_close(alone[name], cut, rtol=0, atol=1e-6)


@torch.no_grad()
def test_without_governors_neighbours_are_joined() -> None:
    model, given = new_model(), batch()
    chain = torch.arange(10).sub(1).clamp(min=0).expand(4, -1)
    chain = torch.where(given["attention_mask"] == 1, chain, torch.arange(10))
    assert torch.equal(neighbours(given["attention_mask"]), chain)
    expected, found = logits_of(model, given | {"governors": chain}), logits_of(model, given)
    assert all(torch.equal(found[name], logits) for name, logits in expected.items())
    rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [5, 6, 7, 8], "governors": [0, 2, 2, 0]}]
    mixed = MultiTaskCollator(model.specs)(rows)
    assert mixed["governors"].tolist() == [[0, 0, 1, 3], [0, 2, 2, 0]]
    assert "governors" not in MultiTaskCollator(model.specs)(rows[:1])
    alone = model(input_ids=torch.tensor([[5, 6, 7]])).logits["tags"]
    torch.testing.assert_close(model(**mixed).logits["tags"][:1, :3], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_every_parameter_learns(dtype: torch.dtype | None) -> None:
    model, rows = new_model(token_graph_layers=2).train(), torch.tensor([0, 1, 2, -100])
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        output = model(**inputs(), labels={"topic": rows})
    output.loss.backward()
    for name, parameter in model.token_graphs["topic"].named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any(), name
    assert all(parameter.grad is None for parameter in model.token_graphs["tags"].parameters())


def test_in_half_precision_dtypes_stay() -> None:
    output = new_model().to(torch.bfloat16)(**inputs(), output_attentions=True)
    assert {logits.dtype for logits in output.logits.values()} == {torch.bfloat16}
    assert {weights.dtype for weights in output.token_graphs.values()} == {torch.float32}


def test_saving_and_loading_is_exact_to_the_bit(tmp_path: Path) -> None:
    model = new_model(token_graph_layers=2, token_graph_heads=2)
    model.save_pretrained(tmp_path, remote_code=False)
    loaded, info = MultiTaskModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected, found = logits_of(model, inputs()), logits_of(loaded.eval(), inputs())
    assert all(torch.equal(found[name], logits) for name, logits in expected.items())


def test_tasks_come_and_go_with_their_graphs() -> None:
    model = new_model()
    expected = logits_of(model, inputs())
    model.add_task(TaskSpec(name="new", type="regression", token_graph=True))
    model.rename_task("topic", "subject")
    model.remove_task("query")
    add_labels(model, "subject", ["d"])
    assert [*model.token_graphs] == ["subject", "tags", "new"]
    found = logits_of(model, inputs())
    assert torch.equal(found["tags"], expected["tags"])
    torch.testing.assert_close(found["subject"][:, :3], expected["topic"], rtol=0, atol=1e-6)
    other = new_model()
    for name in [spec.name for spec in other.specs]:
        other.rename_task(name, f"second-{name}")
    joined = logits_of(merge([model, other]), inputs())
    assert torch.equal(joined["second-tags"], expected["tags"])
    assert set(model.own_modules("new")) == {model.head("new"), model.token_graphs["new"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_graph": "yes"}, "token_graph is 'yes'; give true or false"),
        ({"token_graph_heads": 2}, "token_graph_heads is 2, and token_graph is false; set token_graph to true"),
        ({"token_graph_layers": 2}, "token_graph_layers is 2, and token_graph is false"),
        ({"token_graph": True, "token_graph_heads": None}, "token_graph_heads is None; give a whole number, at least"),
        ({"token_graph": True, "token_graph_layers": 0}, "token_graph_layers is 0; give a whole number, at least 1"),
        ({"token_graph": True, "pooling": "cls"}, "pooling is 'cls', which reads a token that no edge reaches"),
        ({"token_graph": True, "token_graph_heads": 3}, "token_graph_heads is 3, and states have 16 numbers; use a"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    task = {"name": "one", "type": "regression", **options}
    with pytest.raises(SpecError, match=message) as caught:
        MultiTaskModel(MultiTaskConfig(encoder_config=BertConfig(**BERT_SIZES), tasks=[task]))
    assert "task 'one'" in str(caught.value)


def test_tasks_that_hear_each_other_read_no_token_graph() -> None:
    task = TaskSpec(name="one", type="regression", token_graph=True)
    with pytest.raises(SpecError, match="interaction is 'gat', and token_graph is true; leave one of them out"):
        MultiTaskConfig(encoder_config=BertConfig(**BERT_SIZES), tasks=[task], interaction="gat")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    task = TaskSpec(name="one", type="regression", token_graph=True)
    with pytest.raises(MissingExtraError, match=r'pip install "hf-mtl\[graph\]"'):
        MultiTaskModel(MultiTaskConfig(encoder_config=BertConfig(**BERT_SIZES), tasks=[task]))
