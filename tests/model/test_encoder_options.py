"""Every family of architectures with the options that people set: attention, precision, compiling, vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import EVERY, FAMILIES, TASKS, batch, every_encoder, every_family, labels, logits_of, new_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_mtl.model.modeling import MultiTaskModel

LANGUAGE_MODELS: dict[str, Any] = {
    **dict.fromkeys(FAMILIES, AutoModelForMaskedLM),
    **dict.fromkeys(("gpt2", "qwen2", "llama"), AutoModelForCausalLM),
    **dict.fromkeys(("t5", "mt5"), AutoModelForSeq2SeqLM),
}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert set(found) == set(expected)
    for task, logits in expected.items():
        torch.testing.assert_close(found[task].float(), logits.float(), rtol=0, atol=tolerance, msg=task)


@every_encoder
def test_sdpa_and_eager_attention_agree(model_type: str) -> None:
    model = new_model(model_type)
    expected = logits_of(model, batch())
    assert model.encoder.config._attn_implementation == ("sdpa" if model.encoder._supports_sdpa else "eager")
    eager = new_model(model_type)
    if model.encoder._supports_sdpa:  # the others have eager attention alone
        eager.set_attn_implementation("eager")
    assert eager.encoder.config._attn_implementation == "eager"
    assert_close(logits_of(eager, batch()), expected, 1e-5)


@every_encoder
def test_bfloat16_weights_and_autocast_answer_alike(model_type: str) -> None:
    model = new_model(model_type)
    expected = logits_of(model, batch())
    if model_type == "fnet":  # torch has no Fourier transform in bfloat16
        with pytest.raises(RuntimeError, match="BFloat16"):
            logits_of(model.to(torch.bfloat16), batch())
        return
    scale = max(1.0, max(float(logits.abs().max()) for logits in expected.values()))
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(logits_of(model, batch()), expected, 0.1 * scale)
        loss = model.train()(**batch(), labels=labels()).loss
    loss.backward()
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in model.parameters()
    )
    assert_close(logits_of(model.eval().to(torch.bfloat16), batch()), expected, 0.1 * scale)


@every_encoder
def test_a_device_map_changes_nothing(model_type: str, tmp_path: Path) -> None:
    model = new_model(model_type)
    model.save_pretrained(tmp_path)
    loaded = MultiTaskModel.from_pretrained(tmp_path, device_map="cpu")
    assert {str(parameter.device) for parameter in loaded.parameters()} == {"cpu"}
    assert_close(logits_of(loaded, batch()), logits_of(model, batch()), 0.0)


@pytest.mark.parametrize(
    "model_type",
    [
        "bert",
        *(
            pytest.param(name, marks=[*family.marks, pytest.mark.slow])
            for name, family in EVERY.items()
            if name != "bert"
        ),
    ],
)
def test_compiled_answers_are_the_same(model_type: str) -> None:
    model = new_model(model_type)
    expected = logits_of(model, batch())
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend="aot_eager")  # traces as the default does, without its C++ compiler
    assert_close(logits_of(compiled, batch()), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, when it compiles
@pytest.mark.parametrize("model_type", ["bert", "modernbert", "qwen2"])
def test_compiled_by_inductor_answers_are_the_same(model_type: str) -> None:
    model = new_model(model_type)
    expected = logits_of(model, batch())
    torch.compiler.reset()
    compiled: Any = torch.compile(model)
    assert_close(logits_of(compiled, batch()), expected, 1e-5)


@every_encoder
def test_a_resized_vocabulary_is_saved_and_old_tokens_answer_as_before(model_type: str, tmp_path: Path) -> None:
    model = new_model(model_type)
    expected = logits_of(model, batch())
    model.resize_token_embeddings(47, mean_resizing=False)
    assert_close(logits_of(model, batch()), expected, 0.0)
    model.save_pretrained(tmp_path)
    loaded = MultiTaskModel.from_pretrained(tmp_path)
    assert loaded.get_input_embeddings().weight.shape[0] == 47
    inputs = {**batch(), "input_ids": torch.where(batch()["attention_mask"] == 1, 46, batch()["input_ids"])}
    assert_close(logits_of(loaded, inputs), logits_of(model, inputs), 0.0)


def assert_weights_arrive(folder: Path, saved: Any) -> None:
    """Check that an encoder loaded from a checkpoint of another kind has that checkpoint's weights, every one."""
    saved.eval().save_pretrained(folder)
    state = saved.state_dict()
    model = MultiTaskModel.from_encoder(folder, TASKS)
    own = model.encoder.state_dict()
    assert own
    for name, value in own.items():
        found = [other for other in state if other == name or other.endswith(f".{name}")]
        assert any(torch.equal(state[other], value) for other in found), name


@every_family
def test_weights_arrive_from_a_language_model(model_type: str, tmp_path: Path) -> None:
    assert_weights_arrive(tmp_path, LANGUAGE_MODELS[model_type].from_config(FAMILIES[model_type].config(model_type)))


@pytest.mark.parametrize("kind", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
@every_family
def test_weights_arrive_from_a_single_task_model(model_type: str, kind: Any, tmp_path: Path) -> None:
    assert_weights_arrive(tmp_path, kind.from_config(FAMILIES[model_type].config(model_type)))
