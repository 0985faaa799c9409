"""Importance of heads: finite differences in a head's factor, and heads that are where they should be."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from families import FAMILIES, batch, new_model
from torch import Tensor

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.explain.attention_heads import head_counts, head_mask
from hf_mtl.explain.importance import HeadImportance, gradient_sizes, head_importance
from hf_mtl.explain.labelled import draw_rows
from hf_mtl.model.modeling import MultiTaskModel

WITH_HEADS = [name for name in FAMILIES if name != "fnet"]
STEP = 1e-4


def logits(model: MultiTaskModel, task: str, inputs: dict[str, Tensor], mask: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        if mask is None:
            return (model(**inputs, tasks=[task]).logits or {})[task]
        with head_mask(model, mask):
            return (model(**inputs, tasks=[task]).logits or {})[task]


@pytest.fixture(scope="module")
def importance(learnt: MultiTaskModel, tiny_data: RecipeData) -> HeadImportance:
    return head_importance(learnt, tiny_data.tokenizer, tiny_data.train, share=0.25, draws=6)


@pytest.mark.parametrize("task", ["sentiment", "slots", "similarity", "moods"])
def test_importance_is_the_size_of_the_loss_difference_in_each_head(
    learnt: MultiTaskModel, tiny_data: RecipeData, task: str
) -> None:
    model = copy.deepcopy(learnt).double()
    rows = draw_rows(model, tiny_data.train, [task], limit=4, seed=0)[task]
    found = np.concatenate(list(gradient_sizes(model, tiny_data.tokenizer, rows, 4)))
    (own,) = rows.batches(model, tiny_data.tokenizer, 4)
    layers, heads = head_counts(model)

    def losses(layer: int, head: int, step: float) -> np.ndarray:
        mask = torch.ones(layers, heads, dtype=torch.float64)
        mask[layer, head] += step
        values = logits(model, task, own.inputs, mask)
        each = [model.head(task).loss(values[row : row + 1], own.labels[row : row + 1]) for row in range(4)]
        return torch.stack(each).numpy()

    for layer in range(layers):
        for head in range(heads):
            slope = (losses(layer, head, 0.05) - losses(layer, head, -0.05)) / 0.1
            # Losses are in float32, whatever the model's precision.
            assert found[:, layer, head] == pytest.approx(np.abs(slope), rel=2e-2, abs=2e-5)


@pytest.mark.parametrize("model_type", WITH_HEADS)
def test_factors_of_one_change_nothing_and_of_zero_remove_a_head(model_type: str) -> None:
    model, inputs = new_model(model_type), batch()
    layers, heads = head_counts(model)
    before = logits(model, "topic", inputs)
    assert torch.equal(logits(model, "topic", inputs, torch.ones(layers, heads)), before)
    for layer in range(layers):
        mask = torch.ones(layers, heads)
        mask[layer] = 0.0
        assert not torch.allclose(logits(model, "topic", inputs, mask), before, atol=1e-7)
    assert torch.equal(logits(model, "topic", inputs), before)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "t5", "distilbert"])
def test_a_removed_head_is_one_whose_columns_of_the_output_projection_are_zero(model_type: str) -> None:
    model, inputs = new_model(model_type), batch()
    layers, heads = head_counts(model)
    mask = torch.ones(layers, heads)
    mask[1, 0] = 0.0
    masked = logits(model, "topic", inputs, mask)
    names = {"bert": "layer.1.attention.output.dense", "gpt2": "h.1.attn.c_proj", "llama": "layers.1.self_attn.o_proj"}
    names |= {"t5": "block.1.layer.0.SelfAttention.o", "distilbert": "layer.1.attention.out_lin"}
    (weight,) = (
        value for name, value in model.encoder.named_parameters() if name.endswith(names[model_type] + ".weight")
    )
    size = (weight.shape[0] if model_type == "gpt2" else weight.shape[1]) // heads
    with torch.no_grad():
        if model_type == "gpt2":  # its projection is stored the other way round
            weight[:size] = 0.0
        else:
            weight[:, :size] = 0.0
    assert torch.allclose(logits(model, "topic", inputs), masked, atol=1e-6)


def test_a_head_without_values_needs_no_removal() -> None:
    model, inputs = new_model("bert"), batch()
    with torch.no_grad():
        for name, value in model.encoder.named_parameters():
            if "layer.0.attention.self.value" in name:
                value[:8] = 0.0  # the first of two heads
    mask = torch.ones(2, 2)
    mask[0, 0] = 0.0
    assert torch.allclose(logits(model, "topic", inputs, mask), logits(model, "topic", inputs), atol=1e-6)


def test_rows_can_have_factors_of_their_own() -> None:
    model, inputs = new_model("albert"), batch()  # its layers share one projection
    layers, heads = head_counts(model)
    mask = torch.rand(layers, len(inputs["input_ids"]), heads, generator=torch.Generator().manual_seed(0))
    together = logits(model, "topic", inputs, mask)
    for row in range(len(together)):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        assert torch.allclose(logits(model, "topic", one, mask[:, row])[0], together[row], atol=1e-5)


def test_an_encoder_without_attention_is_refused() -> None:
    with pytest.raises(ModelError, match="'fnet' has no attention heads"):
        head_counts(new_model("fnet"))


def test_every_task_has_a_reliability_and_an_ablation(importance: HeadImportance) -> None:
    for own in importance.tasks:
        assert 0.0 <= own.reliability <= 1.0
        assert own.ablation is not None
        assert own.ablation.removed == importance.num_top == 1
        assert len(own.ablation.random_losses) == 6


def test_removing_the_only_head_that_is_used_hurts_more_than_removing_others(
    learnt: MultiTaskModel, tiny_data: RecipeData
) -> None:
    model = copy.deepcopy(learnt)
    with torch.no_grad():
        for name, value in model.encoder.named_parameters():
            if name.endswith("attention.output.dense.weight"):
                value[:, :16] *= 0.01  # of two heads in each layer, only the second of the second layer is left
                if "layer.0" in name:
                    value *= 0.01
                else:
                    value[:, 16:] *= 20.0
    found = head_importance(model, tiny_data.tokenizer, tiny_data.train, ["sentiment"], share=0.25, draws=20)
    (own,) = found.tasks
    assert own.top(1) == [(1, 1)]
    assert own.ablation is not None
    mean, error = own.ablation.random_loss
    assert abs(own.ablation.top_loss - own.ablation.loss) > abs(mean - own.ablation.loss) + 2 * error


def test_importance_is_deterministic_and_depends_on_the_seed(
    importance: HeadImportance, learnt: MultiTaskModel, tiny_data: RecipeData
) -> None:
    given = (learnt, tiny_data.tokenizer, tiny_data.train, ["moods"])
    assert head_importance(*given, share=0.25, draws=2).tasks[0].importance == importance.tasks[-1].importance
    one, other = (head_importance(*given, share=0.25, draws=2, seed=seed) for seed in (1, 1))
    assert one == other
    assert one.tasks[0].importance != importance.tasks[-1].importance


def test_heads_are_shared_or_of_one_task(importance: HeadImportance) -> None:
    for head, users in importance.users.items():
        assert users
        assert (head in importance.shared) == (len(users) == sum(own.known for own in importance.tasks) > 1)
        for own in importance.tasks:
            assert (head in importance.specific(own.task)) == (users == (own.task,))


def test_unreliable_heads_are_not_ranked(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    given = (learnt, tiny_data.tokenizer, tiny_data.train, ["slots"])
    found = head_importance(*given, draws=0, rows=6, least_reliability=1.0)
    assert not found.tasks[0].known
    assert found.tasks[0].ablation is None
    assert found.table().rows[0][3] == "?"
    assert found.users == {}


def test_the_result_is_plain_json_and_a_picture(importance: HeadImportance) -> None:
    values = json.loads(json.dumps(importance.to_dict()))
    assert np.array(values["tasks"][0]["importance"]).shape == (2, 2)
    titles = [axes.get_title() for axes in importance.figure().axes]
    assert any("sentiment" in title for title in titles)
    assert len(importance.table().rows) == len(importance.ablation_table().rows) == 6


def test_options_out_of_range_are_refused(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    given = (learnt, tiny_data.tokenizer, tiny_data.train)
    for options, message in (({"share": 0.0}, "share"), ({"draws": -1}, "draws"), ({"rows": 0}, "rows")):
        with pytest.raises(SpecError, match=message):
            head_importance(*given, **options)  # type: ignore[arg-type]
