"""The head of masked tokens, held to transformers' own: the same loss and answers from the same weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from random_rows import model_of, rows_of, spec_of
from safetensors.torch import load_file
from tiny import write_encoder
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    pipeline,
)

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.data.collator import MultiTaskCollator
from hf_mtl.data.masking import Masking
from hf_mtl.errors import SpecError
from hf_mtl.inference.pipeline import MultiTaskPipeline
from hf_mtl.model.lora import add_lora, merge_and_unload
from hf_mtl.model.modeling import MultiTaskModel

MLM = TaskSpec(name="mlm", type="masked_language_modeling")
TOPIC = TaskSpec(name="topic", type="sequence_classification", labels=("a", "b", "c"))
MASKING = Masking(mask_token_id=39, special_ids=(0, 39), vocab_size=40)

STOCK: dict[str, Any] = {
    # Class, configuration, and where dense, norm and bias of its head are.
    "bert": (BertForMaskedLM, BertConfig, ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm",
                                           "cls.predictions.bias")),
    "albert": (AlbertForMaskedLM, AlbertConfig, ("predictions.dense", "predictions.LayerNorm", "predictions.bias")),
    "electra": (ElectraForMaskedLM, ElectraConfig, ("generator_predictions.dense", "generator_predictions.LayerNorm",
                                                    "generator_lm_head.bias")),
}  # fmt: skip


def stock(kind: str, **more: Any) -> tuple[Any, MultiTaskModel]:
    """Return a masked language model of transformers with random weights, and ours with the same."""
    stock_class, config_class, (dense, norm, bias) = STOCK[kind]
    sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                             "intermediate_size": 32, "max_position_embeddings": 64, **more}  # fmt: skip
    if kind != "bert":
        sizes["embedding_size"] = 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = stock_class(config_class(**sizes)).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.normal_(std=0.3)
        model = MultiTaskModel(MultiTaskConfig(encoder_config=theirs.config, tasks=[TOPIC, MLM])).eval()
    model.encoder.load_state_dict(theirs.base_model.state_dict(), strict=False)
    head: Any = model.head("mlm")
    head.dense.load_state_dict(theirs.get_submodule(dense).state_dict())
    head.norm.load_state_dict(theirs.get_submodule(norm).state_dict())
    head.bias.data.copy_(theirs.get_parameter(bias).data)
    return theirs, model


def masked_batch(count: int = 9, **more: Any) -> dict[str, Any]:
    rows = [{**row, "labels/mlm": [0]} for row in rows_of([], count)]
    return MultiTaskCollator((TOPIC, MLM), masking=MASKING)(rows) | more


def whole_labels(batch: dict[str, Any]) -> Tensor:
    """Return labels as transformers has them, `(rows, seq_len)`."""
    labels = torch.full_like(batch["input_ids"], -100)
    for row, (places, tokens) in enumerate(zip(batch["positions"]["mlm"], batch["labels"]["mlm"], strict=True)):
        for place, token in zip(places.tolist(), tokens.tolist(), strict=True):
            if place >= 0:
                labels[row, place] = token
    return labels


@pytest.mark.parametrize("kind", STOCK)
def test_loss_and_gradients_are_those_of_transformers(kind: str) -> None:
    theirs, model = stock(kind, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = masked_batch()
    wanted = theirs(batch["input_ids"], batch["attention_mask"], labels=whole_labels(batch)).loss
    found = model.train()(**batch).losses["mlm"]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    wanted.backward()
    found.backward()
    gradient = model.get_input_embeddings().weight.grad
    torch.testing.assert_close(gradient, theirs.get_input_embeddings().weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", STOCK)
def test_without_positions_every_token_has_the_logits_of_transformers(kind: str) -> None:
    theirs, model = stock(kind)
    inputs = {key: masked_batch()[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits["mlm"], theirs(**inputs).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", ["the film was [MASK] .", "[MASK] [MASK] of old [MASK]", "play [MASK] xyz"])
def test_answers_are_those_of_the_fill_mask_pipeline(text: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_encoder(tmp_path, mask=True))
    theirs, model = stock("bert", vocab_size=len(tokenizer))
    wanted = pipeline("fill-mask", model=theirs, tokenizer=tokenizer)(text)
    answers = MultiTaskPipeline(model=model, tokenizer=tokenizer)([text, "no mask in this text"])
    found = answers[0]["mlm"]["masks"]
    assert answers[1]["mlm"] == {"masks": []}
    for ours, stocks in zip(found, wanted if isinstance(wanted[0], list) else [wanted], strict=True):
        assert [one["token"] for one in ours] == [one["token"] for one in stocks]
        assert [one["token_str"] for one in ours] == [one["token_str"] for one in stocks]
        assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in stocks], rel=1e-4)


def test_logits_are_computed_at_masks_alone(tiny_encoder_config: BertConfig) -> None:
    model, batch, shapes = model_of(tiny_encoder_config, TOPIC, MLM), masked_batch(), []
    model.head("mlm").register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    rows, masks = batch["positions"]["mlm"].shape
    model(**batch)
    assert masks < batch["input_ids"].shape[1] / 3
    texts = [{"input_ids": [token % 39 for token in row["input_ids"]]} for row in rows_of([], 5)]
    unlabelled = MultiTaskCollator((TOPIC, MLM), masking=MASKING)(texts)
    model.eval()(input_ids=unlabelled["input_ids"], positions=unlabelled["positions"])
    # Rows labelled for other tasks alone do not reach it at all.
    topic = MultiTaskCollator((TOPIC, MLM), masking=MASKING)([{**row, "labels/topic": 1} for row in rows_of([], 5)])
    model.train()(**topic)
    assert shapes == [(rows, masks, 40), (5, 0, 40)]


def test_other_rows_of_a_batch_are_to_the_bit_as_without_the_task(tiny_encoder_config: BertConfig) -> None:
    rows = rows_of([TOPIC], 24, missing=0.0)
    for number in range(0, 24, 2):
        rows[number] = {**rows[number], "labels/topic": None, "labels/mlm": [0]}
    model = model_of(tiny_encoder_config, TOPIC, MLM)
    batch, plain = (MultiTaskCollator(specs, masking=MASKING)(rows) for specs in ((TOPIC, MLM), (TOPIC,)))
    others = plain["rows"]["topic"]
    assert len(others) == 12
    assert torch.equal(batch["input_ids"][others], plain["input_ids"][others])
    assert not torch.equal(batch["input_ids"], plain["input_ids"])
    found, wanted = model(**batch), model(**plain)
    assert torch.equal(found.losses["topic"], wanted.losses["topic"])
    assert torch.equal(found.logits["topic"], wanted.logits["topic"])
    own = [parameter for name, parameter in model.named_parameters() if "mlm" not in name]
    first, second = (torch.autograd.grad(out.losses["topic"], own, allow_unused=True) for out in (found, wanted))
    for one, other in zip(first, second, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


# ---------------------------------------------------------------------- embeddings that are borrowed


def test_a_checkpoint_holds_the_embeddings_once(tiny_encoder_config: BertConfig, tmp_path: Path) -> None:
    model = model_of(tiny_encoder_config, TOPIC, MLM).eval()
    model.save_pretrained(tmp_path)
    shapes = {name: tuple(value.shape) for name, value in load_file(tmp_path / "model.safetensors").items()}
    assert [name for name, shape in shapes.items() if 40 in shape] == [
        "encoder.embeddings.word_embeddings.weight", "heads.mlm.bias"
    ]  # fmt: skip
    again, batch = MultiTaskModel.from_pretrained(tmp_path), masked_batch()
    assert torch.equal(again(**batch).losses["mlm"], model(**batch).losses["mlm"])
    with torch.no_grad():  # and they are still the encoder's
        again.get_input_embeddings().weight.normal_()
    assert not torch.equal(again(**batch).losses["mlm"], model(**batch).losses["mlm"])


@pytest.mark.parametrize("size", [47, 40, 33])
def test_the_head_follows_a_resized_vocabulary(size: int, tiny_encoder_config: BertConfig, tmp_path: Path) -> None:
    model = model_of(copy.deepcopy(tiny_encoder_config), TOPIC, MLM).eval()
    model.head("mlm").bias.data.normal_()
    ids, kept = torch.arange(20)[None], min(size, 40)
    before = model(input_ids=ids).logits["mlm"]
    model.resize_token_embeddings(size)
    after = model(input_ids=ids).logits["mlm"]
    assert after.shape == (1, 20, size)
    torch.testing.assert_close(after[..., :kept], before[..., :kept])
    model.save_pretrained(tmp_path)
    assert torch.equal(MultiTaskModel.from_pretrained(tmp_path)(input_ids=ids).logits["mlm"], after)


def test_a_frozen_encoder_leaves_the_rest_of_the_head_to_train(tiny_encoder_config: BertConfig) -> None:
    model = model_of(tiny_encoder_config, TOPIC, MLM)
    model.encoder.requires_grad_(False)
    model.train()(**masked_batch()).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {
        f"heads.mlm.{name}" for name in ("bias", "dense.bias", "dense.weight", "norm.bias", "norm.weight")
    }


def test_a_task_can_be_added_and_removed(tiny_encoder_config: BertConfig) -> None:
    model, batch = model_of(tiny_encoder_config, TOPIC), masked_batch()
    model.add_task(MLM)
    model(**batch).loss.backward()
    assert model.get_input_embeddings().weight.grad.any()
    model.remove_task("mlm")
    assert list(model(input_ids=batch["input_ids"]).logits) == ["topic"]


def test_adapters_leave_embeddings_for_the_head(tiny_encoder_config: BertConfig) -> None:
    pytest.importorskip("peft")
    model, batch = model_of(tiny_encoder_config, TOPIC, MLM), masked_batch()
    add_lora(model, {"r": 4, "init_lora_weights": False})
    model(**batch).loss.backward()
    assert model.head("mlm").dense.weight.grad.any()
    adapted = model.eval()(**batch).losses["mlm"]
    torch.testing.assert_close(merge_and_unload(model)(**batch).losses["mlm"], adapted, rtol=1e-5, atol=1e-6)
    with pytest.raises(SpecError, match="task 'mlm': peft adapts the token embeddings, which masked_language_modeling"):
        add_lora(model_of(tiny_encoder_config, MLM), {"r": 4, "target_modules": ["word_embeddings"]})


@pytest.mark.parametrize("architecture", [{"sharing": "soft"}, {}])
def test_it_works_with_what_a_model_shares(architecture: dict[str, Any], tiny_encoder_config: BertConfig) -> None:
    specs = [TOPIC, spec_of("masked_language_modeling", "mlm", layer_mix=True)]
    model = MultiTaskModel(MultiTaskConfig(encoder_config=tiny_encoder_config, tasks=specs, **architecture)).train()
    model(**masked_batch()).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.head("mlm").parameters())
