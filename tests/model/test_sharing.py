"""Soft sharing: adapters that begin as hard sharing, and the tie between them."""

from __future__ import annotations

import copy
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from families import BERT_SIZES, FAMILIES, TASKS, batch, labels, logits_of
from torch import nn
from transformers import BertConfig

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.sharing import TaskAdapter, tie
from hf_mtl.model.surgery import merge

SOFT: dict[str, Any] = {"sharing": "soft", "sharing_size": 4, "sharing_strength": 0.3}


def new_model(model_type: str = "bert", *, apart: bool = False, tasks: Any = TASKS, **options: Any) -> MultiTaskModel:
    torch.manual_seed(0)
    config = MultiTaskConfig(encoder_config=FAMILIES[model_type].config(model_type), tasks=list(tasks), **options)
    model = MultiTaskModel(config).eval()
    for parameter in model.task_adapters.parameters() if apart else ():
        parameter.data.normal_()
    return model


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
def test_at_the_start_logits_are_those_of_hard_sharing_to_the_bit(model_type: str) -> None:
    hard, soft = new_model(model_type, sharing="hard"), new_model(model_type, **SOFT)
    known = hard.state_dict()
    own = {name: value for name, value in soft.state_dict().items() if name not in known}
    assert {name.split(".")[1] for name in own} == {spec.name for spec in TASKS}
    assert all(torch.equal(value, known[name]) for name, value in soft.state_dict().items() if name in known)
    for left in (False, True):
        expected = logits_of(hard, batch(left=left))
        assert all(torch.equal(logits, expected[name]) for name, logits in logits_of(soft, batch(left=left)).items())
    assert soft.tie().item() < 1e-12
    assert hard.tie() is None


def test_an_adapter_changes_the_states_of_its_own_task_alone() -> None:
    model = new_model(**SOFT)
    before = logits_of(model, batch())
    adapter: Any = model.task_adapters["tags"]
    adapter.up.data.normal_()
    after = logits_of(model, batch())
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["tags"]
    with torch.no_grad():
        states = model.encoder(**batch()).last_hidden_state
        inner = nn.functional.gelu(states @ adapter.down.T + adapter.down_bias)
        expected = model.head("tags").output(states + inner @ adapter.up.T + adapter.up_bias)
    torch.testing.assert_close(after["tags"], expected)


def test_the_tie_is_the_sum_of_squared_distances_of_pairs() -> None:
    model = new_model(apart=True, **SOFT)
    vectors = [torch.cat([p.flatten() for p in adapter.parameters()]) for adapter in model.task_adapters.values()]
    pairs = sum((one - other).square().sum() for one, other in combinations(vectors, 2))
    torch.testing.assert_close(model.tie(), 0.3 * pairs / len(vectors))
    assert new_model(apart=True, sharing="soft", sharing_strength=0.0).tie().item() == 0.0
    assert new_model(apart=True, sharing="soft", sharing_strength=1).tie().item() > 0.0
    assert tie([], 1.0) is None


def test_the_loss_has_the_tie_in_training_alone() -> None:
    model = new_model(apart=True, **SOFT)
    given = {"topic": labels()["topic"]}
    evaluated = model(**batch(), labels=given)
    assert evaluated.tie is None
    trained = model.train()(**batch(), labels=given)
    torch.testing.assert_close(trained.loss, model.total_loss(trained.losses, {"topic": 1.0}) + model.tie())
    trained.loss.backward()
    gradients = [p.grad for p in model.task_adapters.parameters()]
    assert all(gradient is not None and gradient.any() for gradient in gradients)  # also of tasks without labels


@pytest.mark.parametrize("strength", [0.0, 1e-2, 1e4])
def test_a_strong_tie_makes_adapters_coincide(strength: float) -> None:
    """Two tasks with opposite targets, only their adapters trained: least squares with a tie, by full-batch L-BFGS."""
    tasks = [TaskSpec(name=name, type="regression", pooling="mean", dropout=0.0) for name in ("up", "down")]
    model = new_model(tasks=tasks, **{**SOFT, "sharing_strength": strength}).train()
    model.requires_grad_(False)
    model.heads["down"].load_state_dict(model.heads["up"].state_dict())
    model.task_adapters.requires_grad_(True)
    values = torch.tensor([1.0, -1.0, 2.0, 0.5])
    optimizer = torch.optim.LBFGS(
        model.task_adapters.parameters(), max_iter=60, line_search_fn="strong_wolfe", tolerance_grad=1e-9
    )

    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(**batch(), labels={"up": values, "down": -values}).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    distance = model.tie().item() / strength if strength else tie(model.task_adapters.values(), 1.0).item()
    output = model.eval()(**batch(), labels={"up": values, "down": -values})
    if strength == 1e4:
        assert distance < 1e-7
        torch.testing.assert_close(output.logits["up"], output.logits["down"], atol=1e-2, rtol=0)
    else:
        assert distance > 1e-2
        assert all(loss < 0.3 for loss in output.losses.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_bfloat16_the_tie_is_counted_in_float32(dtype: torch.dtype) -> None:
    model = new_model(apart=True, **SOFT)
    exact = model.tie()
    found = copy.deepcopy(model).to(dtype).tie()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=0)


def test_saving_and_loading_is_exact_to_the_bit(tmp_path: Path) -> None:
    model = new_model(apart=True, **SOFT)
    model.save_pretrained(tmp_path, remote_code=False)
    loaded, info = MultiTaskModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (loaded.config.sharing, loaded.config.sharing_size, loaded.config.sharing_strength) == ("soft", 4, 0.3)
    expected, found = logits_of(model, batch()), logits_of(loaded.eval(), batch())
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert torch.equal(loaded.tie(), model.tie())


def test_tasks_are_added_renamed_merged_and_removed() -> None:
    model = new_model(apart=True, **SOFT)
    expected = logits_of(model, batch())
    model.add_task(TaskSpec(name="new", type="regression"))
    assert list(model.task_adapters) == [spec.name for spec in model.specs]
    assert not model.task_adapters["new"].up.any()
    model.remove_task("new")
    model.rename_task("topic", "subject")
    found = logits_of(model, batch())
    assert torch.equal(found["subject"], expected["topic"])
    twin = new_model(apart=True, tasks=[TaskSpec(name="other", type="regression")], **SOFT)
    twin.encoder.load_state_dict(model.encoder.state_dict())
    alone = logits_of(twin, batch())["other"]
    both = merge([model, twin])
    assert torch.equal(logits_of(both, batch())["other"], alone)
    twin.config.sharing_strength = 0.1
    with pytest.raises(ModelError, match=r"model 2: its encoder's sharing_strength is 0.1, the first model's 0.3"):
        merge([model, twin])


def test_adapters_of_all_tasks_begin_alike_whatever_the_seed() -> None:
    first, second = (TaskAdapter(8, 3) for _ in range(2))
    assert torch.equal(first.down, second.down)
    assert len(torch.unique(first.down)) == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharing": "none"}, "sharing is 'none'; use one of 'hard', 'soft', None"),
        ({"sharing_strength": 0.1}, "sharing_strength is 0.1, and sharing is None; set sharing to 'soft'"),
        ({"sharing": "hard", "sharing_size": 8}, "sharing_size is 8, and sharing is 'hard'"),
        ({"sharing": "soft", "sharing_strength": -1.0}, "sharing_strength is -1.0; give a number at least 0"),
        ({"sharing": "soft", "sharing_size": 0}, "sharing_size is 0; give a whole number, at least 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        MultiTaskConfig(encoder_config=BertConfig(**BERT_SIZES), tasks=TASKS, **options)
