"""Task attention with heads and gate, and layer mixes: against loops, with padding, saved, trained and exported."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from families import BERT_SIZES, FAMILIES, batch, labels, logits_of
from torch import Tensor
from transformers import BertConfig, BertModel, FNetModel

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.model.layer_mix import LayerMix
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.pooling import AttentionPooling
from hf_mtl.model.surgery import merge
from hf_mtl.model.task_attention import TaskAttention, attention_paid

SIZE = 6
OPTIONS: dict[str, dict[str, Any]] = {
    "heads": {"pooling": "attention", "attention_heads": 4},
    "gate": {"pooling": "attention", "attention_gate": True},
    "both": {"pooling": "attention", "attention_heads": 2, "attention_gate": True},
    "mix": {"layer_mix": True},
    "all": {"pooling": "attention", "attention_heads": 2, "attention_gate": True, "layer_mix": True},
}
every_option = pytest.mark.parametrize("option", OPTIONS)


def states_and_mask(*, left: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, 5, SIZE, generator=generator)
    mask = (torch.arange(5) < torch.tensor([5, 3, 1, 0])[:, None]).long()
    mask = mask.flip(1) if left else mask
    states[mask == 0] = 1e6
    return states, mask


def paid_by_loops(layer: Tensor, mask: Tensor) -> Tensor:
    """Average attention `(rows, heads, seq_len, seq_len)` over heads and real queries, one number at a time."""
    paid = torch.zeros(mask.shape)
    for row in range(len(mask)):
        real = [place for place in range(mask.shape[1]) if mask[row, place]]
        for key in real:
            for query in real:
                paid[row, key] += sum(layer[row, :, query, key].tolist()) / layer.shape[1] / len(real)
        if real:
            paid[row] /= paid[row].sum()
    return paid


def new_model(*options: str, model_type: str = "bert", seed: int = 0) -> MultiTaskModel:
    """Make a model with a regression task per option and a plain one, whose weights all differ from their start."""
    torch.manual_seed(seed)
    tasks = [TaskSpec(name=f"task_{name}", type="regression", **OPTIONS[name]) for name in options]
    tasks.append(TaskSpec(name="plain", type="regression"))
    model = MultiTaskModel(MultiTaskConfig(encoder_config=FAMILIES[model_type].config(model_type), tasks=tasks)).eval()
    for module in (model.attention_poolings, model.layer_mixes):
        for parameter in module.parameters():
            parameter.data.normal_()
    return model


# ---------------------------------------------------------------------- several heads, and a gate


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("num_heads", [1, 2, 3])
@torch.no_grad()
def test_pooling_equals_loops_over_heads_and_real_tokens(num_heads: int, gated: bool, left: bool) -> None:
    states, mask = states_and_mask(left=left)
    pooling = TaskAttention(SIZE, num_heads=num_heads, gated=gated)
    for parameter in pooling.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    own = torch.rand(mask.shape, generator=torch.Generator().manual_seed(2)) * mask
    own = own / own.sum(dim=1, keepdim=True).clamp(min=1e-9)
    pooled, weights = pooling(states, mask, own)
    part = SIZE // num_heads
    for row in range(len(states)):
        real = [place for place in range(mask.shape[1]) if mask[row, place]]
        for head in range(num_heads):
            query = pooling.query[head]
            scores = [math.exp(float(states[row, place] @ query) / math.sqrt(SIZE)) for place in real]
            share = torch.sigmoid(pooling.gate[head]).item() if pooling.gate is not None else 1.0
            expected = torch.zeros(mask.shape[1])
            for place, score in zip(real, scores, strict=True):
                expected[place] = share * score / sum(scores) + (1 - share) * float(own[row, place])
            torch.testing.assert_close(weights[row, head], expected, rtol=0, atol=1e-6)
            found = sum((expected[place] * states[row, place] for place in real), torch.zeros(SIZE))
            columns = slice(head * part, (head + 1) * part)
            torch.testing.assert_close(pooled[row, columns], found[columns], rtol=0, atol=1e-5)
    assert (weights.sum(dim=2)[mask.any(dim=1)] - 1).abs().max() < 1e-6
    assert (weights.transpose(1, 2)[mask == 0] == 0).all()
    assert (pooled[3] == 0).all()  # a row of padding alone


def test_one_head_without_a_gate_is_what_attention_pooling_has_always_been(tmp_path: Path) -> None:
    spec = TaskSpec(name="stars", type="regression", pooling="attention", attention_heads=1, attention_gate=False)
    assert spec.to_dict() == {"name": "stars", "type": "regression", "pooling": "attention"}
    model = MultiTaskModel(MultiTaskConfig(encoder_config=BertConfig(**BERT_SIZES), tasks=[spec]))
    assert type(model.attention_poolings["stars"]) is AttentionPooling
    names = [name for name in model.state_dict() if not name.startswith("encoder.")]
    assert names == ["heads.stars.output.weight", "heads.stars.output.bias", "attention_poolings.stars.query"]
    states, mask = states_and_mask(left=False)
    old, new = AttentionPooling(SIZE), TaskAttention(SIZE)
    old.query.data.normal_()
    new.query.data = old.query.data.unsqueeze(0)
    torch.testing.assert_close(new(states, mask)[0], old(states, mask)[0])


def test_new_heads_are_the_mean_over_the_tokens_and_learn_to_differ() -> None:
    states, mask = states_and_mask(left=False)
    states, mask = states[:3], mask[:3]
    pooling = TaskAttention(SIZE, num_heads=3)
    mean = torch.stack([row[real == 1].mean(dim=0) for row, real in zip(states, mask, strict=True)])
    pooled, _ = pooling(states, mask)
    torch.testing.assert_close(pooled, mean)
    pooled.square().sum().backward()
    gradient = pooling.query.grad
    assert gradient is not None
    assert len(torch.unique(gradient, dim=0)) == 3


@pytest.mark.parametrize("left", [False, True])
def test_attention_paid_equals_loops_also_where_dropout_took_some_away(left: bool) -> None:
    _, mask = states_and_mask(left=left)
    layer = torch.rand(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    paid = attention_paid([torch.zeros_like(layer), layer], mask)
    torch.testing.assert_close(paid, paid_by_loops(layer, mask))
    assert (paid[mask == 0] == 0).all()
    torch.testing.assert_close(paid.sum(dim=1), mask.any(dim=1).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_states_keep_their_dtype(dtype: torch.dtype) -> None:
    states, mask = states_and_mask(left=False)
    pooled, weights = TaskAttention(SIZE, num_heads=2)(states.clamp(max=9.0).to(dtype), mask)
    assert (pooled.dtype, weights.dtype) == (dtype, torch.float32)


# ---------------------------------------------------------------------- layers


def test_a_mix_equals_the_weighted_sum() -> None:
    layers = torch.randn(4, 2, 3, SIZE, generator=torch.Generator().manual_seed(0))
    mix = LayerMix(4)
    mix.scores.data, mix.scale.data = torch.tensor([0.0, 1.0, -2.0, 0.5]), torch.tensor([1.5])
    shares = torch.tensor([0.0, 1.0, -2.0, 0.5]).exp()
    expected = 1.5 * (layers * (shares / shares.sum()).view(-1, 1, 1, 1)).sum(dim=0)
    torch.testing.assert_close(mix([*layers]), expected)
    torch.testing.assert_close(mix.weights().sum(), torch.tensor(1.0))


def test_a_mix_that_leans_on_one_layer_is_that_layer() -> None:
    layers = torch.randn(3, 2, 3, SIZE, generator=torch.Generator().manual_seed(0))
    mix = LayerMix(3)
    mix.scores.data = torch.tensor([0.0, 1e4, 0.0])
    torch.testing.assert_close(mix([*layers]), layers[1], rtol=0, atol=0)


# ---------------------------------------------------------------------- in a model


@every_option
@pytest.mark.parametrize("left", [False, True])
def test_weights_come_back_and_padding_changes_nothing(option: str, left: bool) -> None:
    model = new_model(option, model_type="roberta")
    inputs = batch(left=left)
    with torch.no_grad():
        output = model(**inputs)
    mask = inputs["attention_mask"]
    spec = model.specs[0]
    if spec.pooling == "attention":
        weights = output.task_attentions[spec.name]
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(mask)))
        assert (weights[mask == 0] == 0).all()
        if spec.attention_heads > 1:
            heads = output.task_attention_heads[spec.name]
            assert heads.shape == (len(mask), spec.attention_heads, mask.shape[1])
            torch.testing.assert_close(heads.mean(dim=1), weights)
            torch.testing.assert_close(heads.sum(dim=2), torch.ones(heads.shape[:2]))
    if spec.layer_mix:
        torch.testing.assert_close(output.layer_weights[spec.name].sum(), torch.tensor(1.0))
        assert output.layer_weights[spec.name].shape == (3,)
    assert output.hidden_states is None
    assert output.attentions is None
    alone = [{name: value[[row]][:, mask[row] == 1] for name, value in inputs.items()} for row in range(len(mask))]
    for name, logits in (output.logits or {}).items():
        expected = torch.cat([logits_of(model, row)[name] for row in alone])
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_a_gate_joins_the_attention_of_the_last_layer() -> None:
    model = new_model("gate")
    pooling: Any = model.attention_poolings["task_gate"]
    pooling.gate.data.fill_(-1e4)  # the encoder's own attention alone
    inputs = batch()
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    expected = paid_by_loops(output.attentions[-1], inputs["attention_mask"])
    torch.testing.assert_close(output.task_attentions["task_gate"], expected)


def test_a_mix_reads_every_layer() -> None:
    model = new_model("mix")
    inputs = batch()
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    mix: Any = model.layer_mixes["task_mix"]
    mask = inputs["attention_mask"].unsqueeze(2)
    pooled = (mix(output.hidden_states) * mask).sum(dim=1) / mask.sum(dim=1)
    torch.testing.assert_close(model.head("task_mix").output(pooled), output.logits["task_mix"])


def test_a_tagging_task_can_mix_layers_too() -> None:
    torch.manual_seed(0)
    tags = TaskSpec(name="tags", type="token_classification", labels=("x", "y"), layer_mix=True)
    model = MultiTaskModel(MultiTaskConfig(encoder_config=BertConfig(**BERT_SIZES), tasks=[tags])).eval()
    mix: Any = model.layer_mixes["tags"]
    mix.scores.data = torch.tensor([0.0, 0.0, 1e4])
    model.layer_mixes, own = torch.nn.ModuleDict(), model.layer_mixes
    plain = logits_of(model, batch())["tags"]
    model.layer_mixes = own
    torch.testing.assert_close(logits_of(model, batch())["tags"], plain, rtol=0, atol=0)


@every_option
def test_other_tasks_and_new_heads_are_as_without_them(option: str) -> None:
    def made(**options: Any) -> MultiTaskModel:
        torch.manual_seed(0)
        tasks = [TaskSpec(name="a", type="regression", **options), TaskSpec(name="b", type="regression")]
        config = BertConfig(**BERT_SIZES, attn_implementation="eager")
        return MultiTaskModel(MultiTaskConfig(encoder_config=config, tasks=tasks)).eval()

    with_it, without = made(**OPTIONS[option]), made()
    known = without.state_dict()
    assert all(torch.equal(value, known[name]) for name, value in with_it.state_dict().items() if name in known)
    # A gate has attention computed eagerly, in other kernels on some CPUs.
    expected = logits_of(without, batch())["b"]
    torch.testing.assert_close(logits_of(with_it, batch())["b"], expected, rtol=0, atol=1e-6)


@every_option
def test_saving_and_loading_is_exact_to_the_bit(option: str, tmp_path: Path) -> None:
    model = new_model(option)
    model.save_pretrained(tmp_path, remote_code=False)
    loaded, info = MultiTaskModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected, found = logits_of(model, batch()), logits_of(loaded.eval(), batch())
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@every_option
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_every_parameter_of_its_own_learns(option: str, checkpointing: bool, dtype: torch.dtype | None) -> None:
    model = new_model(option).train()
    task = model.specs[0].name
    if checkpointing:
        model.activation_checkpointing_enable()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        output = model(**batch(), labels={task: labels()["mean"]})
    assert list(output.logits) == [task]
    output.loss.backward()
    for module in model.own_modules(task):
        for parameter in module.parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
            assert (parameter.grad != 0).any()
    assert all(layer.attention.output.dense.weight.grad is not None for layer in model.encoder.encoder.layer)


@every_option
def test_only_labelled_rows_are_read_in_training(option: str) -> None:
    model = new_model(option)
    task = model.specs[0].name
    expected = logits_of(model, batch())[task][[1, 3]]
    values = torch.tensor([math.nan, 1.0, math.nan, 2.0])
    found = model.train()(**batch(), labels={task: values}).logits[task]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@every_option
def test_tasks_are_added_renamed_merged_and_removed(option: str) -> None:
    model = new_model(option)
    task, spec = model.specs[0].name, model.specs[0]
    expected = logits_of(model, batch())
    grown = new_model()
    grown.add_task(TaskSpec(**{**spec.to_dict(), "name": "new"}))
    assert "new" in logits_of(grown, batch())
    model.rename_task(task, "other")
    assert torch.equal(logits_of(model, batch())["other"], expected[task])
    twin = new_model(option)
    twin.remove_task("plain")
    both = merge([model, twin])
    assert torch.equal(logits_of(both, batch())[task], expected[task])
    assert torch.equal(logits_of(both, batch())["other"], expected[task])
    model.remove_task("other")
    assert not any("other" in name.split(".") for name in model.state_dict())


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name != "bert"])
def test_every_architecture_works_or_is_refused_clearly(model_type: str) -> None:
    for option, refused in (("gate", ("fnet", "longformer")), ("mix", ())):
        model = new_model(option, model_type=model_type)
        if model_type in refused:
            with pytest.raises(ModelError, match="attention of every token to every token"):
                model(**batch())
            continue
        output = model(**batch())
        if option == "gate":
            weights = output.task_attentions["task_gate"]
            torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)))
            assert (weights[batch()["attention_mask"] == 0] == 0).all()


# ---------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_heads": 0, "pooling": "attention"}, "attention_heads is 0; give a whole number, at least 1"),
        ({"attention_heads": True, "pooling": "attention"}, "attention_heads is True"),
        ({"attention_heads": 2.0, "pooling": "attention"}, "attention_heads is 2.0"),
        ({"attention_heads": 2}, "attention_heads is 2, and pooling is None; set pooling to 'attention'"),
        ({"attention_gate": True, "pooling": "cls"}, "attention_gate is True, and pooling is 'cls'"),
        ({"attention_gate": 1, "pooling": "attention"}, "attention_gate is 1; give true or false"),
        ({"layer_mix": "yes"}, "layer_mix is 'yes'; give true or false"),
    ],
)
def test_impossible_specs_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        TaskSpec(name="a", type="regression", **options)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TaskSpec(name="a", type="regression", pooling="attention", attention_heads=3), "a number that divides 16"),
        (
            TaskSpec(name="a", type="token_classification", labels=("x", "y"), pooling="attention", attention_heads=2),
            "task 'a': attention_heads is 2, and token_classification reads every token; leave attention_heads out",
        ),
    ],
)
def test_what_the_type_or_the_encoder_cannot_do_is_refused(spec: TaskSpec, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        MultiTaskModel(MultiTaskConfig(encoder_config=BertConfig(**BERT_SIZES), tasks=[spec]))


def test_the_last_states_alone_are_not_enough() -> None:
    states = torch.zeros(2, 3, 16)
    with pytest.raises(SpecError, match=r"task 'task_mix': .*only the last hidden states are given; give input_ids"):
        new_model("mix")(hidden_states=states)
    with pytest.raises(ModelError, match="attention_gate needs"):
        new_model("gate")(hidden_states=states)
    model = new_model("gate")
    model.set_attn_implementation("sdpa")
    with pytest.raises(ModelError, match=r'call model.set_attn_implementation\("eager"\)'):
        model(**batch())


def test_a_pretrained_encoder_is_tried_at_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    BertModel(BertConfig(**BERT_SIZES)).save_pretrained(tmp_path)
    gated = TaskSpec(name="a", type="regression", **OPTIONS["all"])
    model = MultiTaskModel.from_encoder(tmp_path, [gated])
    assert model.encoder.config._attn_implementation == "eager"
    assert "a" in logits_of(model.eval(), batch())
    FNetModel(FAMILIES["fnet"].config("fnet")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="leave attention_gate out"):
        MultiTaskModel.from_encoder(tmp_path, [TaskSpec(name="a", type="regression", **OPTIONS["gate"])])
