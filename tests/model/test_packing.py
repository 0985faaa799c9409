"""Packing: the states, gradients and trained weights of unpacked tokens, for every family that does not refuse it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import batch, every_encoder, labels, logits_of, new_model
from fixed_batches import FixedTrainer, assert_close, model_of, rows_of, weights
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.modeling_utils import AttentionInterface

from hf_mtl.errors import ModelError, SpecError
from hf_mtl.model import packing
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.packing import PACKED, check_packing, packed
from hf_mtl.training.arguments import MultiTaskTrainingArguments

PACKS = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "albert", "distilbert")
"""The families whose attention is scaled dot products of their tokens, and nothing more."""
packing_families = pytest.mark.parametrize("model_type", PACKS)
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
both_kernels = pytest.mark.parametrize("kernel", ["attend_padded", "attend_jagged"])


def gradients(model: MultiTaskModel, inputs: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(**inputs, labels=labels()).loss
    assert loss is not None
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_logits(found: dict[str, Tensor], expected: dict[str, Tensor], inputs: dict[str, Tensor]) -> None:
    """Compare logits of whole rows and of real tokens."""
    for task, logits in expected.items():
        keep = inputs["attention_mask"].bool() if logits.ndim == 3 else slice(None)
        torch.testing.assert_close(found[task][keep], logits[keep], rtol=0, atol=1e-6)


@every_encoder
def test_every_encoder_gives_the_same_logits_or_is_refused(model_type: str) -> None:
    model = new_model(model_type).eval()
    inputs = batch()
    expected = logits_of(model, inputs)
    if model_type not in PACKS:
        with pytest.raises(ModelError, match="leave packing out"), packed(model):
            pass
        assert model.encoder.config._attn_implementation != PACKED
        return
    with packed(model):
        found = logits_of(model, inputs)
    check_logits(found, expected, inputs)


@packing_families
def test_padding_may_stand_on_either_side(model_type: str) -> None:
    model = new_model(model_type).eval()
    right = batch()
    gaps = (right["attention_mask"] == 0).sum(dim=1).tolist()
    left = {
        name: torch.stack([row.roll(gap) for row, gap in zip(value, gaps, strict=True)])
        for name, value in right.items()
    }
    expected = logits_of(model, right)
    with packed(model):
        found = logits_of(model, left)
    for task in ("mean", "query"):
        torch.testing.assert_close(found[task], expected[task], rtol=0, atol=1e-6)


@packing_families
@both_kernels
def test_gradients_are_the_same_with_either_kernel(
    model_type: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "attend_padded", getattr(packing, kernel))
    model = new_model(model_type).train()
    expected = gradients(model, batch())
    with packed(model):
        found = gradients(model, batch())
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=2e-6)


def test_the_encoder_sees_no_padding() -> None:
    model = new_model("bert").eval()
    inputs = batch()
    real = int(inputs["attention_mask"].sum())
    assert real < inputs["attention_mask"].numel()
    seen: list[tuple[int, ...]] = []

    def look(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(tuple(given[0].shape))

    for module in model.encoder.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(look)
    with packed(model):
        model(**inputs)
    assert {shape[:2] for shape in seen[-12:]} == {(1, real)}  # the calls before are those of the check


def test_rows_do_not_hear_of_each_other() -> None:
    model = new_model("bert").eval()
    inputs = batch()
    other = {name: value.clone() for name, value in inputs.items()}
    other["input_ids"][1:] = other["input_ids"][1:].flip(0)
    with packed(model):
        first, second = model(**inputs), model(**other)
    for task, logits in first.logits.items():
        torch.testing.assert_close(second.logits[task][0], logits[0], rtol=0, atol=1e-6)


def test_hidden_states_come_back_in_rows_and_are_zero_on_padding() -> None:
    model = new_model("bert").eval()
    inputs = batch()
    real = inputs["attention_mask"].bool()
    expected = model(**inputs, output_hidden_states=True).hidden_states
    with packed(model):
        found = model(**inputs, output_hidden_states=True).hidden_states
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine[real], theirs[real], rtol=0, atol=1e-6)
        assert not mine[~real].any()


def test_embeddings_and_positions_that_are_given_are_used() -> None:
    model = new_model("bert").eval()
    inputs = batch()
    ids = inputs.pop("input_ids")
    positions = torch.arange(ids.shape[1]).flip(0).expand_as(ids)
    given = {**inputs, "inputs_embeds": model.get_input_embeddings()(ids), "position_ids": positions}
    expected = model(**given).logits
    with packed(model):
        found = model(**given).logits
    check_logits(found, expected, inputs)


def test_a_batch_without_a_mask_is_all_real() -> None:
    model = new_model("bert").eval()
    ids = {"input_ids": batch()["input_ids"]}
    expected = model(**ids).logits
    with packed(model):
        found = model(**ids).logits
    check_logits(found, expected, {"attention_mask": torch.ones_like(ids["input_ids"])})


def test_gradient_checkpointing_goes_together_with_packing() -> None:
    model = new_model("bert").train()
    expected = gradients(model, batch())
    model.activation_checkpointing_enable()
    with packed(model):
        found = gradients(model, batch())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=2e-6)


def test_attention_dropout_drops_what_it_should() -> None:
    """With values of 1 what comes out is the share of attention that is kept, scaled: its mean is 1."""
    rows = packing.PackedRows.of(torch.tensor([[1] * 64, [1] * 48 + [0] * 16]))
    ones = torch.ones(112, 4, 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for attend in (packing.attend_padded, packing.attend_jagged):
            kept = attend(rows, torch.zeros_like(ones), torch.zeros_like(ones), ones, dropout_p=0.5, scale=1.0)
            assert kept.mean() == pytest.approx(1.0, abs=0.02)
            assert kept.std() > 0.05
            whole = attend(rows, torch.zeros_like(ones), torch.zeros_like(ones), ones, dropout_p=0.0, scale=1.0)
            torch.testing.assert_close(whole, ones)


def test_attention_weights_cannot_be_asked_for() -> None:
    model = new_model("bert").eval()
    with packed(model), pytest.raises(ModelError, match="has no weights to return"):
        model(**batch(), output_attentions=True)
    assert "attentions" not in model(**batch())


def test_wrong_states_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture that counts positions in another way would get other states, and is refused."""
    model = new_model("bert").eval()
    monkeypatch.setattr(packing, "first_position", lambda config: 3)
    with pytest.raises(ModelError, match="architecture 'bert': packed tokens get other states"):
        check_packing(model)
    assert not model.training
    assert model.encoder.config._attn_implementation == "sdpa"


def test_the_attention_says_what_it_cannot_do() -> None:
    attend: Any = AttentionInterface()[PACKED]
    query = torch.zeros(1, 2, 3, 4)
    rows = packing.PackedRows.of(torch.ones(1, 3))
    for more in ({"sliding_window": 4}, {"position_bias": query}, {"is_causal": True}, {"softcap": 1.0}):
        with pytest.raises(ModelError, match=f"its attention has {next(iter(more))}"):
            attend(nn.Linear(1, 1), query, query, query, None, packed_rows=rows, **more)
    with pytest.raises(ModelError, match="its attention has attention_mask"):
        attend(nn.Linear(1, 1), query, query, query, query, packed_rows=rows)
    with pytest.raises(ModelError, match="keeps arguments from its attention"):
        attend(nn.Linear(1, 1), query, query, query, None)


@both_kernels
def test_query_heads_may_share_keys(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "attend_padded", getattr(packing, kernel))
    attend: Any = AttentionInterface()[PACKED]
    query = torch.randn(1, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    key, value = torch.randn(2, 1, 2, 5, 8, generator=torch.Generator().manual_seed(1))
    rows = packing.PackedRows.of(torch.tensor([[1, 1, 1], [1, 1, 0]]))
    found, _ = attend(nn.Linear(1, 1), query, key, value, None, scaling=0.5, packed_rows=rows)
    for begin, end in ((0, 3), (3, 5)):
        for head in range(4):
            scores = 0.5 * query[0, head, begin:end] @ key[0, head // 2, begin:end].T
            wanted = scores.softmax(dim=-1) @ value[0, head // 2, begin:end]
            torch.testing.assert_close(found[0, begin:end, head], wanted, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- training


def test_training_gives_the_same_weights_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    rows = rows_of(24)
    plain = FixedTrainer(rows, folder=tmp_path / "plain", batch_size=4, num_train_epochs=2)
    plain.train()
    model = model_of()
    trainer = FixedTrainer(
        rows, folder=tmp_path / "packed", batch_size=4, num_train_epochs=2, model=model, packing=True,
        save_strategy="epoch",
    )  # fmt: skip
    trainer.train()
    assert_close(weights(trainer), weights(plain), atol=1e-5)
    assert model.encoder.config._attn_implementation == "sdpa"
    (checkpoint, *_) = (tmp_path / "packed").glob("checkpoint-*")
    assert PACKED not in (checkpoint / "config.json").read_text()
    assert MultiTaskModel.from_pretrained(checkpoint).encoder.config._attn_implementation == "sdpa"


def test_an_encoder_that_does_not_pack_is_refused_before_training(tmp_path: Path) -> None:
    model = new_model("modernbert")
    with pytest.raises(ModelError, match="sliding_window"):
        FixedTrainer(rows_of(4), folder=tmp_path, batch_size=4, model=model, packing=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"torch_compile": True}, "packing is true, and torch_compile"),
        ({"perturbation": "fgm"}, "packing is true, and perturbation 'fgm' disturbs embeddings"),
        ({"perturbation": "smart"}, "leave packing out, or choose r_drop or mixup"),
    ],
)
def test_what_does_not_go_with_packing_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        MultiTaskTrainingArguments(str(tmp_path), packing=True, precision="fp32", **given)


@pytest.mark.parametrize("perturbation", ["r_drop", "mixup"])
def test_perturbations_that_leave_embeddings_alone_train_packed(perturbation: str, tmp_path: Path) -> None:
    found: list[dict[str, Tensor]] = []
    for packs in (False, True):
        model = model_of()
        trainer = FixedTrainer(
            rows_of(8), folder=tmp_path / str(packs), batch_size=4, model=model, packing=packs,
            perturbation=perturbation,
        )  # fmt: skip
        trainer.train()
        found.append(weights(trainer))
    assert_close(found[1], found[0], atol=1e-5)


def test_the_real_encoder_packs(minilm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    tasks = [{"name": "topic", "type": "sequence_classification", "labels": ["a", "b"]}]
    model = MultiTaskModel.from_encoder(minilm, tasks).eval()
    texts = ["A short one.", "A text with a good many more words in it than the first one has.", "Yes"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    expected = model(**inputs).logits["topic"]
    with packed(model):
        found = model(**inputs).logits["topic"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
