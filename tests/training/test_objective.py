"""The loss of an optimizer step is that of its rows together, however they are cut into micro-batches and processes."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from random_rows import model_of, rows_of, spec_of
from tiny import load
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig

from hf_mtl.data.collator import MultiTaskCollator
from hf_mtl.errors import DataError
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import HEADS
from hf_mtl.training.mean_losses import MeanLosses
from hf_mtl.training.objective import StepTotals, loss_parts, shared_terms, step_loss, step_totals
from hf_mtl.training.trainer import MultiTaskTrainer

CPU = torch.device("cpu")


def gradients(model: MultiTaskModel) -> dict[str, Tensor | None]:
    found = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def formula(model: MultiTaskModel, batch: Mapping[str, Any]) -> Tensor:
    """`sum_t loss_weight_t * (labelled rows_t / rows) * L_t`, with `L_t` the mean over the task's labelled items."""
    hidden = {key: batch[key] for key in ("input_ids", "attention_mask", "positions") if key in batch}
    logits = model.eval()(**hidden).logits  # without dropout evaluation and training are the same
    total = torch.zeros(())
    for spec in model.specs:
        if spec.name in batch["rows"]:
            rows = batch["rows"][spec.name]
            loss = model.head(spec.name).loss(logits[spec.name][rows], batch["labels"][spec.name][rows])
            total = total + spec.loss_weight * len(rows) / len(batch["input_ids"]) * loss
    model.train()
    return total


def part_of_loss(
    model: MultiTaskModel, losses: Mapping[str, Tensor], batch: Mapping[str, Any], totals: StepTotals
) -> Tensor:
    terms = shared_terms(model, loss_parts(losses, batch, totals), totals)
    return step_loss(terms, {}, totals.processes)


def accumulate(model: MultiTaskModel, micro: Sequence[Mapping[str, Any]], **options: Any) -> float:
    totals = step_totals(model, micro, device=CPU, **options)
    total = 0.0
    for batch in micro:
        loss = part_of_loss(model, model(**batch).losses, batch, totals)
        loss.backward()
        total += float(loss.detach())
    return total


def check_same(found: Mapping[str, Tensor | None], wanted: Mapping[str, Tensor | None]) -> None:
    for name, gradient in wanted.items():
        other = found[name]
        if gradient is None or other is None:
            assert gradient is None or not gradient.any(), name
            assert other is None or not other.any(), name
        else:
            torch.testing.assert_close(
                other, gradient, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("missing", [0.0, 0.45])
@pytest.mark.parametrize("kind", HEADS.names())
def test_micro_batches_give_the_gradients_of_their_rows_together(
    kind: str, missing: float, tiny_encoder_config: BertConfig
) -> None:
    spec = spec_of(kind, loss_weight=0.7)
    model = model_of(tiny_encoder_config, spec)
    rows, collate = rows_of([spec], 32, missing=missing), MultiTaskCollator((spec,))
    whole = collate(rows)
    loss = formula(model, whole)
    loss.backward()
    wanted = gradients(model)
    assert any(gradient is not None and gradient.any() for gradient in wanted.values())
    micro = [collate(rows[start : start + 8]) for start in range(0, 32, 8)]
    assert accumulate(model, micro) == pytest.approx(float(loss.detach()), rel=1e-5)
    check_same(gradients(model), wanted)


@pytest.mark.parametrize("sizes", [[32], [8, 8, 8, 8], [1, 30, 1], [5, 13, 14]])
def test_all_tasks_at_once_with_weights_and_smoothing(sizes: list[int], tiny_encoder_config: BertConfig) -> None:
    specs = [
        spec_of(
            "sequence_classification", "topic", loss_weight=2.0, class_weights=(0.5, 1.0, 3.0), label_smoothing=0.1
        ),
        spec_of("token_classification", "tags", class_weights=(0.1, 1.0, 2.0), loss_weight=0.3),
        spec_of("multi_label_classification", "moods", class_weights=(1.0, 4.0, 0.5)),
        spec_of("regression", "stars", loss_weight=0.1),
    ]
    model, rows, collate = model_of(tiny_encoder_config, *specs), rows_of(specs, 32), MultiTaskCollator(tuple(specs))
    loss = formula(model, collate(rows))
    loss.backward()
    wanted = gradients(model)
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    micro = [collate(rows[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
    assert len({len(batch["rows"].get("topic", ())) for batch in micro}) > 1 or len(sizes) == 1
    assert accumulate(model, micro) == pytest.approx(float(loss.detach()), rel=1e-5)
    check_same(gradients(model), wanted)


def test_processes_average_to_the_gradients_of_their_rows_together(tiny_encoder_config: BertConfig) -> None:
    specs = [spec_of(kind, f"task{place}") for place, kind in enumerate(HEADS.names())]
    model, rows, collate = model_of(tiny_encoder_config, *specs), rows_of(specs, 32), MultiTaskCollator(tuple(specs))
    formula(model, collate(rows)).backward()
    wanted = gradients(model)
    ranks = [[collate(rows[0:6]), collate(rows[6:12])], [collate(rows[12:20]), collate(rows[20:32])]]
    seen: list[Tensor] = []
    for micro in ranks:
        step_totals(model, micro, device=CPU, reduce=lambda counts: (seen.append(counts), counts)[1])
    found: dict[str, Tensor] = {}
    for micro in ranks:
        accumulate(model, micro, processes=2, reduce=lambda counts: seen[0] + seen[1])
        for name, gradient in gradients(model).items():
            if gradient is not None:  # as DistributedDataParallel does: the mean over the processes
                found[name] = found.get(name, torch.zeros(())) + gradient / 2
    check_same({name: found.get(name) for name in wanted}, wanted)


def test_a_task_without_labels_contributes_nothing(tiny_encoder_config: BertConfig) -> None:
    specs = [spec_of("sequence_classification", "topic"), spec_of("regression", "stars")]
    model, collate = model_of(tiny_encoder_config, *specs), MultiTaskCollator(tuple(specs))
    batch = collate([{**row, "labels/stars": None} for row in rows_of(specs, 8, missing=0.0)])
    totals = step_totals(model, [batch], device=CPU)
    assert totals.items["stars"] == totals.shares["stars"] == 0
    accumulate(model, [batch])
    found = gradients(model)
    assert found["heads.stars.output.weight"] is None
    alone = model(**batch).losses["topic"]
    assert part_of_loss(model, {"topic": alone}, batch, totals).item() == pytest.approx(alone.item())


def test_items_whose_class_weighs_nothing_contribute_nothing(tiny_encoder_config: BertConfig) -> None:
    spec = spec_of("sequence_classification", class_weights=(0.0, 1.0, 1.0))
    model, collate = model_of(tiny_encoder_config, spec), MultiTaskCollator((spec,))
    weightless = [{**row, "labels/task": 0} for row in rows_of([spec], 4)]
    others = [{**row, "labels/task": 1} for row in rows_of([spec], 4, seed=1)]
    micro = [collate(weightless), collate(others)]
    formula(model, collate([*weightless, *others])).backward()
    wanted = gradients(model)
    accumulate(model, micro)
    check_same(gradients(model), wanted)
    assert accumulate(model, micro[:1]) == 0.0


def test_one_batch_gives_the_loss_that_the_model_returns(tiny_encoder_config: BertConfig) -> None:
    specs = [spec_of(kind, f"task{place}", loss_weight=1.0 + place) for place, kind in enumerate(HEADS.names())]
    model, collate = model_of(tiny_encoder_config, *specs), MultiTaskCollator(tuple(specs))
    batch = collate(rows_of(specs, 16))
    output = model(**batch)
    totals = step_totals(model, [batch], device=CPU)
    assert part_of_loss(model, output.losses, batch, totals).item() == pytest.approx(output.loss.item(), rel=1e-6)


# ---------------------------------------------------------------------- through the Trainer


def test_rows_whose_labels_were_cut_off_train_without_error(
    tiny_folder: Path, tiny_recipe: dict[str, Any], trainer_for: Callable[..., MultiTaskTrainer]
) -> None:
    data = load(tiny_folder, tiny_recipe)
    trainer = trainer_for(data=data)
    model = trainer.multi_task_model.train()
    batch = trainer.data_collator([{"input_ids": [2, 5, 3]}])
    assert "labels" not in batch
    totals = step_totals(model, [batch], device=CPU)
    loss = trainer.compute_loss(model, batch, num_items_in_batch=totals)
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_training_without_rows_says_so(trainer_for: Callable[..., MultiTaskTrainer]) -> None:
    trainer = trainer_for()
    trainer.train_splits = {}
    with pytest.raises(DataError, match="there are no training rows"):
        trainer.train()


WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
"""What a GPU must be waited for: its result, or the size of its result, is known to the host."""


class Waits(TorchDispatchMode):
    """Notes where our own code asks for a number that a device computes."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING:
            frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
            own = frames[-2]  # the last is this one
            if "/hf_mtl/" in own.filename:
                self.places.append(f"{own.filename}:{own.lineno}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in HEADS.names()),
        *(
            (kind, {"class_weights": (1.0, 2.0, 0.5)})
            for kind in ("sequence_classification", "token_classification", "multi_label_classification")
        ),
    ],
)
def test_a_step_asks_a_device_for_no_number(
    kind: str, options: dict[str, Any], tiny_encoder_config: BertConfig
) -> None:
    specs = [spec_of(kind, **options), spec_of("regression", "other", pooling="attention")]
    model = model_of(tiny_encoder_config, *specs)
    batch = MultiTaskCollator(tuple(specs))(rows_of(specs, 8, missing=0.3))
    with Waits() as waits:
        totals = step_totals(model, [batch], device=CPU)
        outputs = model(**batch)
        parts = loss_parts(outputs.losses, batch, totals)
        step_loss(shared_terms(model, parts, totals), outputs.logits, 1).backward()
        MeanLosses([spec.name for spec in specs], device=CPU).add(outputs.losses, batch["items"])
    # On a CPU the chains of a CRF are cut to the longest, which costs nothing there; on a GPU they are not.
    allowed = 1 if kind == "crf_token_classification" else 0
    assert len(waits.places) == allowed, waits.places


def test_the_spy_sees_what_waits() -> None:
    with Waits() as waits:
        MultiTaskCollator((spec_of("regression"),))([{"input_ids": [1], "labels/task": 1.0}])
    assert waits.places  # the collator looks for labelled rows, on the host
