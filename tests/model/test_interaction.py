"""Tasks that hear each other: against a small dense GATv2, over a complete graph and a given one."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import BERT_SIZES, FAMILIES, TASKS, batch, labels, logits_of
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.errors import MissingExtraError, SpecError
from hf_mtl.model.interaction import GraphAttention, task_edges
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.surgery import add_labels, merge

GRAPH = {"topic": ["tags", "mean"], "tags": ["topic"], "first": []}
NAMES = [spec.name for spec in TASKS]
GRAPHS = pytest.mark.parametrize("graph", [None, GRAPH, {}], ids=["complete", "given", "apart"])


def new_model(model_type: str = "bert", *, stirred: bool = True, **options: Any) -> MultiTaskModel:
    torch.manual_seed(0)
    options = {"interaction": "gat", **options}
    config = MultiTaskConfig(encoder_config=FAMILIES[model_type].config(model_type), tasks=TASKS, **options)
    model = MultiTaskModel(config).eval()
    model.attention_poolings["query"].query.data.normal_(generator=torch.Generator().manual_seed(1))
    for parameter in model.interaction.parameters() if stirred and model.interaction is not None else ():
        parameter.data.normal_(std=0.5)
    return model


def dense(module: GraphAttention, pooled: Tensor, graph: Any) -> tuple[Tensor, Tensor]:
    """Return messages and weights, from the formula, one row, one pair of tasks and one head at a time."""
    gat: Any = module.attention
    heads, size = gat.att.shape[1:]
    weights = torch.zeros(len(pooled), len(NAMES), len(NAMES))
    messages = torch.zeros_like(pooled)
    for row, nodes in enumerate(pooled + module.embeddings):
        sent = F.linear(nodes, gat.lin_l.weight, gat.lin_l.bias).view(-1, heads, size)
        heard = F.linear(nodes, gat.lin_r.weight, gat.lin_r.bias).view(-1, heads, size)
        for task, name in enumerate(NAMES):
            senders = [
                other
                for other, sender in enumerate(NAMES)
                if other == task or graph is None or sender in graph.get(name, [])
            ]
            for head in range(heads):
                scores = [
                    math.exp((gat.att[0, head] * F.leaky_relu(sent[other, head] + heard[task, head], 0.2)).sum().item())
                    for other in senders
                ]
                for other, score in zip(senders, scores, strict=True):
                    share = score / sum(scores)
                    weights[row, task, other] += share / heads
                    messages[row, task, head * size : (head + 1) * size] += share * sent[other, head]
        messages[row] = module.scale * (messages[row] + gat.bias)
    return messages, weights


@GRAPHS
@torch.no_grad()
def test_messages_equal_a_dense_reference(graph: Any) -> None:
    module: Any = new_model(interaction_graph=graph, interaction_heads=2).interaction
    pooled = torch.randn(3, len(NAMES), 16, generator=torch.Generator().manual_seed(0))
    messages, weights = module(pooled)
    expected, shares = dense(module, pooled, graph)
    torch.testing.assert_close(messages, expected)
    torch.testing.assert_close(weights, shares)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(3, len(NAMES)))


@GRAPHS
def test_who_hears_whom(graph: Any) -> None:
    pairs = {*zip(*task_edges(NAMES, graph), strict=True)}
    for receiver, hearing in enumerate(NAMES):
        heard = {NAMES[sender] for sender, there in pairs if there == receiver}
        assert heard == ({*NAMES} if graph is None else {hearing, *graph.get(hearing, [])})


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
def test_at_the_start_tasks_are_apart_to_the_bit(model_type: str) -> None:
    model, apart = new_model(model_type, stirred=False), new_model(model_type, interaction=None)
    known = apart.state_dict()
    assert all(torch.equal(value, known[name]) for name, value in model.state_dict().items() if name in known)
    expected = logits_of(apart, batch())
    assert all(torch.equal(logits, expected[name]) for name, logits in logits_of(model, batch()).items())


@GRAPHS
@torch.no_grad()
def test_logits_are_those_of_states_and_messages(graph: Any) -> None:
    model, inputs = new_model(interaction_graph=graph), batch()
    output = model(**inputs)
    states, mask = model.encoder(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(2)
    mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
    query, _ = model.attention_poolings["query"](states, inputs["attention_mask"])
    pooled = torch.stack([mean, query, mean, states[:, 0], mean], dim=1)
    messages, weights = dense(model.interaction, pooled, graph)
    torch.testing.assert_close(output.task_interactions, weights)
    for place, name in enumerate(NAMES):
        message = messages[:, place].unsqueeze(1) if name == "tags" else messages[:, place]
        features = (states if name == "tags" else pooled[:, place]) + message
        torch.testing.assert_close(output.logits[name], model.head(name).output(features), rtol=0, atol=1e-5)


def test_an_answer_does_not_depend_on_what_else_is_asked_or_on_padding() -> None:
    model, inputs = new_model("roberta"), batch()
    expected = logits_of(model, inputs)
    with torch.no_grad():
        for name in NAMES:
            torch.testing.assert_close(model(**inputs, tasks=[name]).logits[name], expected[name], rtol=0, atol=0)
        mask = inputs["attention_mask"]
        for row in range(len(mask)):
            alone = model(**{key: value[[row]][:, mask[row] == 1] for key, value in inputs.items()})
            for name in NAMES:
                cut = expected[name][[row]]
                cut = cut[:, mask[row] == 1] if cut.dim() == 3 else cut
                torch.testing.assert_close(alone.logits[name], cut, rtol=0, atol=1e-5)


def test_a_task_that_hears_nobody_is_moved_by_nobody() -> None:
    model = new_model(interaction_graph={"topic": ["tags"]})
    model.interaction.requires_grad_(False)
    with torch.no_grad():
        before = logits_of(model, batch())
        model.interaction.embeddings[NAMES.index("tags")] += 1.0
    after = logits_of(model, batch())
    assert {name for name in NAMES if not torch.equal(before[name], after[name])} == {"topic", "tags"}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("sharing", ["hard", "soft"])
def test_every_parameter_learns_from_one_task(sharing: str, dtype: torch.dtype | None) -> None:
    model = new_model(sharing=sharing).train()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        output = model(**batch(), labels={"topic": labels()["topic"]})
    output.loss.backward()
    for name, parameter in model.interaction.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any(), name
    assert model.attention_poolings["query"].query.grad.any()
    assert model.head("mean").output.weight.grad is None


def test_in_half_precision_dtypes_stay(tmp_path: Path) -> None:
    model = new_model().to(torch.bfloat16)
    output = model(**batch())
    assert {logits.dtype for logits in output.logits.values()} == {torch.bfloat16}
    assert output.task_interactions.dtype == torch.float32


@GRAPHS
def test_saving_and_loading_is_exact_to_the_bit(graph: Any, tmp_path: Path) -> None:
    model = new_model(interaction_graph=graph)
    model.save_pretrained(tmp_path, remote_code=False)
    loaded, info = MultiTaskModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected, found = logits_of(model, batch()), logits_of(loaded.eval(), batch())
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_tasks_that_hear_each_other_are_not_taken_apart() -> None:
    model = new_model()
    for change in (
        lambda: model.add_task(TaskSpec(name="new", type="regression")),
        lambda: model.remove_task("topic"),
        lambda: model.rename_task("topic", "subject"),
        lambda: merge([model, new_model(interaction=None)]),
    ):
        before = model.state_dict().keys()
        with pytest.raises(SpecError, match=r"train a model of the tasks that are wanted|call rename_task first"):
            change()
        assert model.state_dict().keys() == before
    add_labels(model, "topic", ["d"])
    assert logits_of(model, batch())["topic"].shape[1] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interaction": "gcn"}, "interaction is 'gcn'; use one of 'gat', None"),
        ({"interaction": None, "interaction_heads": 2}, "interaction_heads is 2, and interaction is None"),
        ({"interaction_heads": 3}, "interaction_heads is 3, and pooled outputs have 16 numbers; use a number that"),
        ({"interaction_heads": 0}, "interaction_heads is 0; give a whole number, at least 1"),
        ({"interaction_graph": {"topic": ["tag"]}}, "interaction_graph names a task 'tag'; use 'topic', 'query'"),
        ({"interaction_graph": {"topics": []}}, "interaction_graph names a task 'topics'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        new_model(**options)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    config = MultiTaskConfig(encoder_config=BertConfig(**BERT_SIZES), tasks=TASKS, interaction="gat")
    with pytest.raises(MissingExtraError, match=r'pip install "hf-mtl\[graph\]"'):
        MultiTaskModel(config)
