"""Meta-learning: against closed forms, autograd and finite differences; few rows; whole runs, resumed to the bit."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fixed_batches import SPECS, model_of, rows_of
from small import small_recipe
from tiny import build
from torch import Tensor
from transformers import BertConfig

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.data.collator import MultiTaskCollator
from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import DataError, HfMtlError, OutputError, SpecError
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training import meta_learning_run
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.meta_learning import (
    OUTER_RATES,
    Batch,
    MetaOptions,
    OuterLoop,
    inner_steps,
    meta_gradient,
    task_loss,
    task_weights,
)
from hf_mtl.training.meta_learning_adaptation import FewRows, adapt
from hf_mtl.training.meta_learning_episodes import Episodes, RowsByLabel
from hf_mtl.training.meta_learning_run import meta_train

every_algorithm = pytest.mark.parametrize("algorithm", OUTER_RATES)
BOWL = torch.diag(torch.tensor([1.0, 3.0, 0.5]))


def bowl(weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """`1/2 (w - c)' A (w - c)`, with the centre `c` for data."""
    apart = weights["w"] - batch["centre"]
    return 0.5 * apart @ BOWL @ apart


def start() -> dict[str, Tensor]:
    return {"w": torch.tensor([1.0, -2.0, 0.5], requires_grad=True)}


CENTRE, OTHER = torch.tensor([0.5, 1.0, -1.0]), torch.tensor([0.0, 0.5, 2.0])


@pytest.mark.parametrize("steps", [1, 4])
def test_each_algorithm_on_a_quadratic_has_its_closed_form(steps: int) -> None:
    """`w_K = c + (I - rate A)^K (w - c)`, so that MAML's gradient is `(I - rate A)^K A (w_K - c')`."""
    weights, power = start(), torch.matrix_power(torch.eye(3) - 0.1 * BOWL, steps)
    support, query = [{"centre": CENTRE}] * steps, {"centre": OTHER}
    w = weights["w"].detach()
    adapted = CENTRE + power @ (w - CENTRE)
    wanted = {"reptile": w - adapted, "fomaml": BOWL @ (adapted - OTHER), "maml": power @ BOWL @ (adapted - OTHER)}
    for algorithm, gradient in wanted.items():
        found, value = meta_gradient(algorithm, bowl, weights, support, query, rate=0.1)
        torch.testing.assert_close(found["w"].detach(), gradient)
        torch.testing.assert_close(value, 0.5 * (adapted - OTHER) @ BOWL @ (adapted - OTHER))
    assert weights["w"].grad is None
    torch.testing.assert_close(weights["w"].detach(), start()["w"].detach())


def test_one_step_of_reptile_is_plain_descent_and_many_reach_the_bottom() -> None:
    found, _ = meta_gradient("reptile", bowl, start(), [{"centre": CENTRE}], {"centre": CENTRE}, rate=0.1)
    torch.testing.assert_close(found["w"], 0.1 * BOWL @ (start()["w"] - CENTRE))
    far = inner_steps(bowl, start(), [{"centre": CENTRE}] * 400, rate=0.3)
    torch.testing.assert_close(far["w"], CENTRE, rtol=0, atol=1e-5)


@pytest.mark.parametrize("max_norm", [0.3, 1e3])
def test_long_gradients_are_made_as_long_as_torch_makes_them(max_norm: float) -> None:
    weight = torch.nn.Parameter(start()["w"].detach().clone())
    for _ in range(3):
        weight.grad = None
        bowl({"w": weight}, {"centre": CENTRE}).backward()
        torch.nn.utils.clip_grad_norm_([weight], max_norm)
        with torch.no_grad():
            weight -= 0.1 * weight.grad
    found = inner_steps(bowl, start(), [{"centre": CENTRE}] * 3, rate=0.1, max_norm=max_norm)
    torch.testing.assert_close(found["w"], weight.detach())
    plain = inner_steps(bowl, start(), [{"centre": CENTRE}] * 3, rate=0.1)
    assert torch.allclose(plain["w"], found["w"]) == (max_norm == 1e3)


# ---------------------------------------------------------------------- on a model


def few_batches(model: MultiTaskModel, task: str) -> tuple[list[Batch], Batch]:
    collate = MultiTaskCollator(tuple(spec for spec in model.specs if spec.name == task))
    rows = rows_of(12, missing=0.0)
    return [collate(rows[:4]), collate(rows[4:8])], collate(rows[8:])


@pytest.mark.parametrize("task", [spec.name for spec in SPECS])
def test_first_order_maml_is_the_gradient_after_plain_training(task: str) -> None:
    model = model_of().train()
    support, query = few_batches(model, task)
    found, value = meta_gradient("fomaml", task_loss(model, task), task_weights(model, task), support, query, rate=0.05)
    trained = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.05)
    for batch in support:
        optimizer.zero_grad()
        trained(**batch).losses[task].backward()
        optimizer.step()
    moved, _ = meta_gradient("reptile", task_loss(model, task), task_weights(model, task), support, query, rate=0.05)
    named = dict(trained.named_parameters())
    for name, weight in model.named_parameters():
        if name in moved:
            torch.testing.assert_close(moved[name], weight.detach() - named[name].detach(), rtol=1e-4, atol=1e-6)
    optimizer.zero_grad()
    loss = trained(**query).losses[task]
    loss.backward()
    torch.testing.assert_close(value, loss.detach())
    wanted = {name: weight.grad for name, weight in named.items() if weight.grad is not None}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_maml_is_the_gradient_through_the_inner_steps_by_finite_differences(max_norm: float) -> None:
    model = model_of().double().train()
    (support, query), loss = few_batches(model, "topic"), task_loss(model, "topic")
    weights = task_weights(model, "topic")
    found, _ = meta_gradient("maml", loss, weights, support, query, rate=0.3, max_norm=max_norm)
    first, _ = meta_gradient("fomaml", loss, weights, support, query, rate=0.3, max_norm=max_norm)

    def along(gradient: Mapping[str, Tensor], way: Mapping[str, Tensor]) -> float:
        return float(sum((gradient[name] * way[name]).sum() for name in gradient))

    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        way = {name: torch.randn(w.shape, generator=generator, dtype=w.dtype) for name, w in weights.items()}

        def after(step: float, way: Mapping[str, Tensor] = way) -> float:
            moved = {name: (w + step * way[name]).detach() for name, w in weights.items()}
            return float(loss(inner_steps(loss, moved, support, rate=0.3, max_norm=max_norm), query).detach())

        slope = (after(1e-3) - after(-1e-3)) / 2e-3  # losses are float32: smaller steps drown in their rounding
        assert slope == pytest.approx(along(found, way), rel=2e-3)
        if not max_norm:  # short steps bend less
            assert slope != pytest.approx(along(first, way), rel=2e-2)


def test_a_task_moves_the_encoder_and_its_own_head_alone() -> None:
    model = model_of()
    names = task_weights(model, "stars").keys()
    assert {name for name in names if "heads" in name} == {"heads.stars.output.weight", "heads.stars.output.bias"}
    assert {name for name in names if "poolings" in name} == {"attention_poolings.stars.query"}
    assert {name for name, _ in model.encoder.named_parameters(prefix="encoder")} <= names


def test_an_outer_step_of_reptile_goes_to_the_mean_of_the_adapted_weights() -> None:
    """All the way at rate 1: the encoder to the mean of its tasks', each head to its own."""
    model = model_of().train()
    outer = OuterLoop(model, MetaOptions(outer_rate=1.0, inner_rate=0.05, max_grad_norm=0.0))
    adapted, gradients = {}, []
    for task in ("topic", "tags"):
        support, query = few_batches(model, task)
        adapted[task] = inner_steps(task_loss(model, task), task_weights(model, task), support, rate=0.05)
        gradients.append(outer.task(task, support, query)[0])
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    outer.take(gradients)
    for name, weight in model.named_parameters():
        own = [weights[name].detach() for weights in adapted.values() if name in weights]
        torch.testing.assert_close(weight.detach(), torch.stack(own or [before[name]]).mean(dim=0))
    assert outer.step == 1


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    model = model_of().train()
    outer = OuterLoop(model, MetaOptions(inner_rate=1e30, max_grad_norm=0.0))
    with pytest.raises(SpecError, match=r"the loss of task 'stars' is (nan|inf) in outer step 1; give an inner_rate"):
        outer.task("stars", *few_batches(model, "stars"))


def test_the_outer_rate_falls_to_zero() -> None:
    outer, rates = OuterLoop(model_of(), MetaOptions(steps=4, outer_rate=0.8)), []
    for _ in range(4):
        outer.take([{}])
        rates.append(outer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algorithm": "anil"}, "algorithm is 'anil'; use one of 'reptile', 'fomaml', 'maml'"),
        ({"shots": 0}, "shots is 0; give a whole number above 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0; give a number of at least 0"),
        ({"inner_rate": 0.0}, "inner_rate is 0.0; give a number above 0"),
        ({"outer_rate": float("nan")}, "outer_rate is nan; give a number above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        MetaOptions(**values)
    assert str(error.value) == message


# ---------------------------------------------------------------------- few rows


def test_few_rows_hold_each_label_so_often() -> None:
    spec = TaskSpec(name="topic", type="sequence_classification", labels=("a", "b", "c"))
    values = [*"aaaaaaaabbbbbbbbbbbbcc", None, None]
    rows = RowsByLabel(spec, values)
    draw = random.Random(0)
    chosen = rows.few(3, draw)
    assert sorted(values[row] for row in chosen) == [*"aaabbbcc"]
    others = rows.few(3, draw, without=chosen)
    assert not {*chosen} & {*others}
    assert sorted(values[row] for row in others) == [*"aaabbb"]
    assert rows.few(3, random.Random(0)) == chosen
    assert len({tuple(rows.few(3, random.Random(seed))) for seed in range(9)}) > 5


def test_few_rows_of_tags_and_numbers() -> None:
    tags = TaskSpec(name="slots", type="token_classification", labels=("O", "B-x", "B-y"))
    values = [["O", "B-x"], ["O"], ["O", "B-y"], ["B-x", "B-y"], ["O", "O"], ["B-y"], ["O", "B-x"]]
    for seed in range(9):
        chosen = RowsByLabel(tags, values).few(2, random.Random(seed))
        assert all(sum(label in values[row] for row in chosen) >= 2 for label in tags.labels or ())
        assert len(chosen) <= 5
    numbers = TaskSpec(name="stars", type="regression")
    assert len(RowsByLabel(numbers, [1.0, None, 2.5, 3.0, 0.0]).few(3, random.Random(0))) == 3


def test_episodes_are_of_one_task_and_their_query_is_of_other_rows(tiny_data: RecipeData) -> None:
    model, options = build(tiny_data), MetaOptions(shots=2, inner_steps=3, batch_size=4)
    episodes = Episodes(model, tiny_data.tokenizer, tiny_data.split("train"), options)
    assert set(episodes.sources) == {spec.name for spec in model.specs}
    for task in episodes.sources:
        support, query = episodes(task, 5)
        assert len(support) == 3
        assert all(set(batch["labels"]) == {task} for batch in (*support, query))
        assert all(len(batch["rows"][task]) == len(batch["input_ids"]) <= 4 for batch in (*support, query))
        first, second = (episodes._draw(task, step) for step in (5, 6))
        assert not {*first[0]} & {*first[1]}
        assert first == episodes._draw(task, 5)
        assert first != second
    drawn = {name for step in range(30) for name in episodes.tasks(step)}
    assert drawn == set(episodes.sources)
    assert all(len({*episodes.tasks(step)}) == 4 for step in range(5))


def test_a_task_without_rows_for_a_query_is_refused(tiny_data: RecipeData) -> None:
    with pytest.raises(DataError, match=r"task '.*': its .* training rows leave none for a query"):
        Episodes(build(tiny_data), tiny_data.tokenizer, tiny_data.split("train"), MetaOptions(shots=500))


# ---------------------------------------------------------------------- whole runs

QUICK: dict[str, Any] = {"steps": 3, "inner_steps": 2, "shots": 2, "batch_size": 4, "inner_rate": 0.1}


@every_algorithm
def test_a_run_leaves_a_model_that_others_load(algorithm: str, tmp_path: Path) -> None:
    recipe, seen = small_recipe(tmp_path), []
    options = MetaOptions(algorithm=algorithm, **QUICK)
    run = meta_train(recipe, tmp_path / "run", options, on_step=lambda *told: seen.append(told))
    assert [told[:2] for told in seen] == [(1, 3), (2, 3), (3, 3)]
    saved, begun = MultiTaskModel.from_pretrained(tmp_path / "run"), MultiTaskModel.from_encoder(
        recipe.encoder_path, run_specs(tmp_path / "run"), seed=42
    )  # fmt: skip
    before = dict(begun.named_parameters())
    moved = {name for name, weight in saved.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == set(before)
    assert set(run.results) == {"train", "validation", "test"}
    assert run.results["train"]["algorithm"] == algorithm
    assert not (tmp_path / "run" / meta_learning_run.STATE_NAME).exists()
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert f"meta_algorithm | {algorithm}" in card.replace("`", "")
    with pytest.raises(OutputError, match=r"the folder holds config.json; give --resume, --overwrite"):
        meta_train(recipe, tmp_path / "run", options)
    assert meta_train(recipe, tmp_path / "run", options, resume=True).was_finished


def run_specs(folder: Path) -> Any:
    return MultiTaskModel.from_pretrained(folder).specs


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of Adam's moments and the dropout, too."""
    monkeypatch.setattr(meta_learning_run, "SAVE_EVERY", 2)
    recipe, options = small_recipe(tmp_path), MetaOptions(algorithm="fomaml", **{**QUICK, "steps": 5})
    meta_train(recipe, tmp_path / "whole", options)

    def stop(step: int, total: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        meta_train(recipe, tmp_path / "broken", options, on_step=stop)
    other = MetaOptions(algorithm="fomaml", **{**QUICK, "steps": 6})
    with pytest.raises(OutputError, match="of another recipe or other options"):
        meta_train(recipe, tmp_path / "broken", other, resume=True)
    seen: list[int] = []
    torch.manual_seed(9)
    meta_train(recipe, tmp_path / "broken", options, resume=True, on_step=lambda step, *_: seen.append(step))
    assert seen == [3, 4, 5]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert weights[0] == weights[1]


def test_reptile_lowers_the_loss_after_a_few_steps(tmp_path: Path) -> None:
    recipe, losses = small_recipe(tmp_path, tasks=("sentiment",)), []
    options = MetaOptions(**{**QUICK, "steps": 30, "inner_rate": 0.3, "inner_steps": 3})
    meta_train(recipe, tmp_path / "run", options, on_step=lambda *told: losses.append(told[2]))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"peft": {"r": 2}}, "peft is {'r': 2}, which meta-training does not know"),
        ({"perturbation": "fgm"}, "perturbation is 'fgm', which meta-training does not know"),
        ({"balancing": "uw", "every_task_in_batch": True}, "balancing is 'uw', which meta-training does not know"),
        ({"aggregation": "upgrad"}, "aggregation is 'upgrad', which meta-training does not know"),
        ({"packing": True}, "packing is True, which meta-training does not know"),
    ],
)
def test_what_meta_training_does_not_know_is_refused(training: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(HfMtlError) as error:
        meta_train(small_recipe(tmp_path, **training), tmp_path / "run", MetaOptions(**QUICK))
    assert message in str(error.value)


def test_the_tie_of_soft_sharing_pulls_on_the_inner_steps(tiny_encoder_config: BertConfig) -> None:
    found = {}
    for strength in (0.0, 0.5):
        options: Any = {"sharing": "soft", "sharing_size": 3, "sharing_strength": strength}
        torch.manual_seed(0)
        model = MultiTaskModel(MultiTaskConfig(encoder_config=tiny_encoder_config, tasks=SPECS, **options)).train()
        for parameter in model.task_adapters.parameters():
            parameter.data.normal_(std=0.2)
        task = SPECS[0].name
        weights = task_weights(model, task)
        loss = task_loss(model, task)(weights, MultiTaskCollator(SPECS)(rows_of(8)))
        names = [name for name in weights if name.startswith(f"task_adapters.{task}.")]
        found[strength] = torch.autograd.grad(loss, [weights[name] for name in names])
        own = [model.get_parameter(name) for name in names]
        pull = torch.autograd.grad(model.tie(), own)
    assert all(one.abs().max() > 1e-3 for one in pull)
    for without, tied, expected in zip(found[0.0], found[0.5], pull, strict=True):
        torch.testing.assert_close(tied, without + expected)


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MultiTaskTrainingArguments, "world_size", property(lambda self: 2))
    with pytest.raises(SpecError, match="2 processes were started; meta-train with one process"):
        meta_train(small_recipe(tmp_path), tmp_path / "run", MetaOptions(**QUICK))


@pytest.mark.slow
def test_frozen_layers_stay(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, freeze_layers=1)
    meta_train(recipe, tmp_path / "run", MetaOptions(**QUICK))
    saved = MultiTaskModel.from_pretrained(tmp_path / "run")
    begun = MultiTaskModel.from_encoder(recipe.encoder_path, saved.specs).encoder.state_dict()
    same = {name for name, weight in saved.encoder.state_dict().items() if torch.equal(weight, begun[name])}
    assert any("layer.0" in name for name in same)
    assert not any("layer.1" in name for name in same)


# ---------------------------------------------------------------------- adapting


@pytest.mark.parametrize("freeze", [False, True])
def test_an_adapted_model_answers_the_new_task(
    freeze: bool, tiny_data: RecipeData, tiny_folder: Path, tmp_path: Path
) -> None:
    model = build(tiny_data)
    old = {name: weight.clone() for name, weight in model.state_dict().items()}
    rows = FewRows(task="taste", type="sequence_classification", train=tiny_folder / "films-train.jsonl",
                   test=tiny_folder / "films-validation.jsonl", shots=4)  # fmt: skip
    run = adapt(model, tiny_data.tokenizer, rows, tmp_path / "run", steps=20, freeze_encoder=freeze,
                training={"learning_rate": 3e-3, "precision": "fp32", "disable_tqdm": True}, name="begun")  # fmt: skip
    assert run.results["train"]["rows"] == 8
    assert run.test is not None
    saved = MultiTaskModel.from_pretrained(tmp_path / "run")
    names = [spec.name for spec in saved.specs]
    assert names == ([*(spec.name for spec in tiny_data.tasks), "taste"] if freeze else ["taste"])
    kept = {name: torch.equal(weight, old[name]) for name, weight in saved.state_dict().items() if name in old}
    assert all(kept.values()) == freeze
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "taste" in card
    assert "begun" in card
    with pytest.raises(OutputError, match="a model stands there; give --overwrite"):
        adapt(build(tiny_data), tiny_data.tokenizer, rows, tmp_path / "run")


def test_a_new_task_of_a_taken_name_is_refused(tiny_data: RecipeData, tiny_folder: Path, tmp_path: Path) -> None:
    rows = FewRows(task="sentiment", type="sequence_classification", train=tiny_folder / "films-train.jsonl")
    with pytest.raises(SpecError, match="the model has a task 'sentiment' already"):
        adapt(build(tiny_data), tiny_data.tokenizer, rows, tmp_path / "run")
    assert not (tmp_path / "run").exists()
