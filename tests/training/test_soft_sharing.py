"""The tie of soft sharing in training: once in every step, whatever its micro-batches, and with what it cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixed_batches import FixedTrainer
from random_rows import rows_of, spec_of
from torch import Tensor
from transformers import BertConfig

from hf_mtl.configuration import MultiTaskConfig
from hf_mtl.data.collator import LABEL_PREFIX
from hf_mtl.errors import SpecError
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.gradients import own_parameters, shared_parameters
from hf_mtl.training.step_checks import check_architecture

SPECS = [spec_of("regression", "one"), spec_of("sequence_classification", "two", loss_weight=0.3)]


def model_of(encoder: BertConfig, strength: float) -> MultiTaskModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        options: Any = {"sharing": "soft", "sharing_size": 3, "sharing_strength": strength}
        model = MultiTaskModel(MultiTaskConfig(encoder_config=encoder, tasks=SPECS, **options))
        for parameter in model.task_adapters.parameters():
            parameter.data.normal_(std=0.2)
    return model.train()


def gradients_of(
    encoder: BertConfig, folder: Path, *, strength: float = 0.5, size: int = 16, labelled: int = 16, **options: Any
) -> dict[str, Tensor]:
    rows = rows_of(SPECS, 16)
    for row in rows[labelled:]:
        row.update({name: None for name in row if name.startswith(LABEL_PREFIX)})
    trainer = FixedTrainer(
        rows,
        folder=folder / f"{size}-{strength}",
        batch_size=size,
        model=model_of(encoder, strength),
        gradient_accumulation_steps=16 // size,
        max_steps=1,
        **options,
    )
    trainer.train()
    return trainer.gradients[0]


@pytest.mark.mostly_slow(fast=1)
@pytest.mark.parametrize(
    "options",
    [{}, {"aggregation": "upgrad"}, {"balancing": "uw", "every_task_in_batch": True}],
    ids=["sum", "upgrad", "uw"],
)
def test_a_step_has_the_tie_once_however_it_is_cut(
    options: dict[str, Any], tiny_encoder_config: BertConfig, tmp_path: Path
) -> None:
    with_tie = [gradients_of(tiny_encoder_config, tmp_path, size=size, **options) for size in (16, 4)]
    without = gradients_of(tiny_encoder_config, tmp_path, strength=0.0, **options)
    model = model_of(tiny_encoder_config, 0.5)
    pull = torch.autograd.grad(model.tie(), list(model.task_adapters.parameters()))
    names = [f"task_adapters.{name}" for name, _ in model.task_adapters.named_parameters()]
    expected = dict(without) | {name: without[name] + own for name, own in zip(names, pull, strict=True)}
    assert all(own.abs().max() > 1e-2 for own in pull)
    for found in with_tie:
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=2e-5, msg=name)


def test_a_step_has_the_tie_where_its_last_rows_have_no_label(tiny_encoder_config: BertConfig, tmp_path: Path) -> None:
    whole, cut = (gradients_of(tiny_encoder_config, tmp_path, size=size, labelled=12) for size in (16, 4))
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=0, atol=2e-5, msg=name)


def test_adapters_belong_to_their_tasks(tiny_encoder_config: BertConfig) -> None:
    model = model_of(tiny_encoder_config, 0.1)
    own = {id(p) for p in own_parameters(model, "one")}
    assert {id(p) for p in model.task_adapters["one"].parameters()} <= own
    shared = {id(parameter) for parameter in shared_parameters(model)}
    assert shared == {id(parameter) for parameter in model.encoder.parameters()}


@pytest.mark.parametrize("wrapper", ["fsdp", "deepspeed"])
def test_sharded_parameters_are_refused(wrapper: str, tiny_encoder_config: BertConfig) -> None:
    config = model_of(tiny_encoder_config, 0.1).config
    check_architecture(config, fsdp=False, deepspeed=False)
    with pytest.raises(SpecError, match=r"sharing is 'soft', which does not work with .* shards; train without"):
        check_architecture(config, **{"fsdp": False, "deepspeed": False, wrapper: True})
