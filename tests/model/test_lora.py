"""Low-rank adapters: what is trained, that they can be merged, and that all of it is saved, on every architecture."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, TASKS, batch, every_family, labels, logits_of, new_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_mtl.configuration import MultiTaskConfig
from hf_mtl.errors import MissingExtraError, SpecError
from hf_mtl.model.lora import add_lora, lora_config, merge_and_unload, save_merged
from hf_mtl.model.modeling import MultiTaskModel


def adapted(model_type: str = "bert", **options: object) -> MultiTaskModel:
    """Return a model whose adapters are not those that do nothing, with which training begins."""
    model = new_model(model_type)
    add_lora(model, {"r": 2, **options})
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    return model


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for task, logits in wanted.items():
        torch.testing.assert_close(found[task], logits, rtol=0, atol=1e-5, msg=lambda m, task=task: f"{task}: {m}")


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@every_family
def test_adapters_begin_by_doing_nothing(model_type: str) -> None:
    model = new_model(model_type)
    before = logits_of(model, batch())
    add_lora(model, {"r": 2})
    assert_close(logits_of(model, batch()), before)


@every_family
def test_adapters_and_heads_are_trained_and_nothing_else(model_type: str) -> None:
    plain, model = new_model(model_type), adapted(model_type)
    heads = {name for name, _ in plain.named_parameters() if not name.startswith("encoder.")}
    linear = [module for module in plain.encoder.modules() if isinstance(module, nn.Linear | Conv1D)]
    weights = {name for name in trainable(model) if name.startswith("encoder.")}
    assert trainable(model) == heads | weights
    assert all("lora_" in name for name in weights)
    # A matrix of (out, in) is adapted by B (out, r) and A (r, in).
    sizes = sum(2 * sum(module.weight.shape) for module in linear)
    assert sum(model.get_parameter(name).numel() for name in weights) == sizes

    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()(**batch(), labels=labels()).loss.backward()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    unused = {name for name in weights if any(part in name for part in FAMILIES[model_type].unused)}
    assert changed == trainable(model) - unused


@pytest.mark.parametrize(
    ("model_type", "options"),
    [(model_type, {}) for model_type in FAMILIES]
    + [("bert", {"use_rslora": True, "lora_alpha": 3}), ("bert", {"use_dora": True}), ("gpt2", {"use_dora": True})],
    ids=str,
)
def test_a_merged_model_answers_as_the_adapted_one(model_type: str, options: dict[str, object]) -> None:
    model = adapted(model_type, **options)
    plain = new_model(model_type)
    expected, before = logits_of(model, batch()), logits_of(plain, batch())
    assert any(not torch.allclose(expected[task], before[task], atol=1e-4) for task in before)
    merged = merge_and_unload(model)
    assert merged is model
    assert_close(logits_of(merged, batch()), expected)
    assert [name for name, _ in merged.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert trainable(merged) == trainable(plain)
    assert merged.config.peft is None
    assert merge_and_unload(merged) is merged


@every_family
def test_a_model_saved_with_its_adapters_is_loaded_with_them(model_type: str, tmp_path: Path) -> None:
    model = adapted(model_type)
    model.save_pretrained(tmp_path)
    loaded, info = MultiTaskModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected = logits_of(model, batch())
    for task, logits in logits_of(loaded, batch()).items():
        assert torch.equal(logits, expected[task]), task
    assert trainable(loaded) == trainable(model)
    add_lora(loaded, {"r": 2})  # it has them already
    assert trainable(loaded) == trainable(model)


@every_family
def test_a_model_saved_merged_needs_no_peft(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(model_type)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = logits_of(model, batch())
    save_merged(model, tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert trainable(model) == trainable(adapted(model_type))
    monkeypatch.setitem(sys.modules, "peft", None)
    loaded = MultiTaskModel.from_pretrained(tmp_path)
    assert_close(logits_of(loaded, batch()), expected)
    assert loaded.config.peft is None


# peft 0.21's own PeftModel asks for what transformers 5.23 calls `is_activation_checkpointing`; drop this when it does.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5", "albert"])
def test_peft_reads_the_adapters_that_stand_beside_the_model(model_type: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = adapted(model_type)
    save_merged(model, tmp_path)
    encoder = copy.deepcopy(new_model(model_type).encoder)
    theirs = PeftModel.from_pretrained(encoder, str(tmp_path / "adapter")).eval()
    inputs = batch()
    with torch.no_grad():
        found = theirs(**inputs).last_hidden_state
        ours = model(**inputs, output_hidden_states=True).hidden_states[-1]
    real = inputs["attention_mask"] == 1
    torch.testing.assert_close(found[real], ours[real], rtol=0, atol=1e-6)
    assert str(tmp_path) not in (tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8")


def test_the_seed_makes_the_adapters_and_no_other_random_number() -> None:
    states: list[dict[str, Tensor]] = []
    for seed in (0, 0, 1):
        model = new_model("bert")
        torch.manual_seed(5)
        add_lora(model, {"r": 2}, seed=seed)
        states.append(model.state_dict())
        after = torch.rand(1)
        torch.manual_seed(5)
        assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(value, states[0][name]) for name, value in states[1].items())
    assert any(not torch.equal(value, states[0][name]) for name, value in states[2].items())


def test_a_model_of_an_adapted_configuration_has_adapters() -> None:
    config = MultiTaskConfig(encoder_config=FAMILIES["bert"].config("bert"), tasks=TASKS, peft={"r": 3})
    model = MultiTaskModel(config).eval()
    merged = merge_and_unload(copy.deepcopy(model))
    for task, logits in logits_of(model, batch()).items():  # the adapters of a new model do nothing
        torch.testing.assert_close(logits_of(merged, batch())[task], logits)
    assert {tuple(p.shape) for name, p in model.named_parameters() if "lora_A" in name} == {(3, 16), (3, 32)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4}, "peft has the option 'rank'; use one of 'r', 'lora_alpha'"),
        ({"task_type": "SEQ_CLS"}, "peft has the option 'task_type'; use one of"),
        ({"init_lora_weights": "pissa"}, "peft has init_lora_weights 'pissa'; use one of True, False, 'gaussian'"),
        ({"r": 0}, "peft: "),
        ({"target_modules": ["no_such_layer"]}, "peft: .*no_such_layer.*; correct target_modules"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        add_lora(new_model("bert"), options)


def test_other_adapters_are_refused() -> None:
    with pytest.raises(SpecError, match=r"the model has adapters of \{'r': 2\}; give the same options, or call merge"):
        add_lora(adapted(), {"r": 4})


def test_a_missing_peft_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r'pip install "hf-mtl\[peft\]"'):
        lora_config({"r": 4})
