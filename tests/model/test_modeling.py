"""MultiTaskModel: losses, logits, saving and loading, new heads on pretrained encoders."""

from __future__ import annotations

import copy
import io
import json
import logging
import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from random_rows import KINDS, model_of, spec_of
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

import hf_mtl.auto  # noqa: F401  (AutoModel must know the model)
from hf_mtl.configuration import POOLING_KINDS, MultiTaskConfig, TaskSpec
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.model import features
from hf_mtl.model.encoders.base import load_encoder, load_encoder_config
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.remote_code import FILE_NAMES
from hf_mtl.registry import HEADS

ROWS, LENGTH = 6, 9
TASKS = ("topic", "slots", "mood", "stars")

Batch = dict[str, Any]


def classification(name: str = "topic", labels: Sequence[str] = ("a", "b", "c"), **options: Any) -> TaskSpec:
    return TaskSpec(name=name, type="sequence_classification", labels=tuple(labels), **options)


def new_model(encoder_config: BertConfig, tasks: Sequence[TaskSpec], seed: int = 0) -> MultiTaskModel:
    torch.manual_seed(seed)
    return MultiTaskModel(MultiTaskConfig(encoder_config=encoder_config, tasks=list(tasks))).eval()


def texts(rows: int = ROWS, seed: int = 0) -> dict[str, Tensor]:
    """Make token ids, a right-padded mask and segments."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(rows, LENGTH, dtype=torch.long)
    for row in range(rows):
        mask[row, : 3 + row % (LENGTH - 2)] = 1
    ids = torch.randint(1, 40, (rows, LENGTH), generator=generator) * mask
    segments = torch.randint(0, 2, (rows, LENGTH), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


def labelled(labelled_rows: Mapping[str, Sequence[int]], seed: int = 0, rows: int = ROWS) -> Batch:
    """Make a batch for the tasks of `tiny_model`; each has labels in the rows given, the ignore value in the others."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 3, (rows,), generator=generator)
    tags = torch.randint(0, 3, (rows, LENGTH), generator=generator)
    flags = torch.randint(0, 2, (rows, 4), generator=generator).float()
    flags[:, 1] = math.nan  # one label of the four is not known
    numbers = torch.randn(rows, generator=generator)
    inputs = texts(rows, seed)
    labels: dict[str, Tensor] = {}
    for task, chosen in labelled_rows.items():
        without = torch.tensor([row not in chosen for row in range(rows)])
        labels[task] = {
            "topic": ids.masked_fill(without, -100),
            "slots": tags.masked_fill(without[:, None] | (inputs["attention_mask"] == 0), -100),
            "mood": flags.masked_fill(without[:, None], math.nan),
            "stars": numbers.masked_fill(without, math.nan),
        }[task]
    return {**inputs, "labels": labels}


SOME_ROWS = {"topic": (0, 2, 3), "slots": (1, 2), "mood": (0, 1, 2, 3, 4, 5), "stars": (5,)}


def rows_of(labelled_rows: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    return {task: torch.tensor(chosen) for task, chosen in labelled_rows.items()}


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[Tensor | None]]:
    """Collect the first positional argument of each call of a module."""
    calls: list[Tensor | None] = []
    handle = module.register_forward_pre_hook(lambda _, args: calls.append(args[0] if args else None))
    try:
        yield calls
    finally:
        handle.remove()


def logits_of(model: MultiTaskModel, **inputs: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        logits = model(**(inputs or texts())).logits
    assert logits is not None
    return logits


def assert_same_logits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert list(first) == list(second)
    for task in first:
        assert torch.equal(first[task], second[task]), task


# ---------------------------------------------------------------------- losses


def reference_losses(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, float]:
    """Compute the mean loss of each task of `tiny_model` over its labelled items, from the logits of all rows."""

    def cross_entropy(scores: list[float], label: int) -> float:
        return math.log(sum(math.exp(score) for score in scores)) - scores[label]

    losses: dict[str, list[float]] = {task: [] for task in labels}
    for row in range(ROWS):
        if "topic" in labels and (label := int(labels["topic"][row])) != -100:
            losses["topic"].append(cross_entropy(logits["topic"][row].tolist(), label))
        if "slots" in labels:
            for place, label in enumerate(labels["slots"][row].tolist()):
                if label != -100:
                    losses["slots"].append(cross_entropy(logits["slots"][row, place].tolist(), label))
        if "mood" in labels:
            for score, label in zip(logits["mood"][row].tolist(), labels["mood"][row].tolist(), strict=True):
                if not math.isnan(label):
                    losses["mood"].append(math.log1p(math.exp(-score if label else score)))
        if "stars" in labels and not math.isnan(float(labels["stars"][row])):
            losses["stars"].append((logits["stars"][row].item() - labels["stars"][row].item()) ** 2)
    return {task: sum(values) / len(values) for task, values in losses.items()}


@pytest.mark.parametrize("training", [False, True])
def test_total_loss_is_the_weighted_sum_of_mean_losses_by_labelled_rows(
    tiny_encoder_config: BertConfig, tiny_model: MultiTaskModel, training: bool
) -> None:
    weights = {"topic": 2.0, "slots": 0.5, "mood": 1.0, "stars": 0.25}
    specs = [TaskSpec(**{**spec.to_dict(), "loss_weight": weights[spec.name]}) for spec in tiny_model.specs]
    model = new_model(tiny_encoder_config, specs).train(training)
    batch = labelled(SOME_ROWS)
    output = model(**batch)
    expected = reference_losses(logits_of(model.eval()), batch["labels"])
    total = sum(weights[task] * len(SOME_ROWS[task]) / ROWS * expected[task] for task in TASKS)
    assert {task: loss.item() for task, loss in output.losses.items()} == pytest.approx(expected, rel=1e-5)
    assert output.loss.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_losses_are_those_of_the_tasks_present(tiny_model: MultiTaskModel, training: bool) -> None:
    tiny_model.train(training)
    for present in (["slots"], ["stars", "topic"], list(TASKS)):
        output = tiny_model(**labelled({task: SOME_ROWS[task] for task in present}))
        assert list(output.losses) == [task for task in TASKS if task in present]
        assert output.loss.dtype == torch.float32
        assert output.loss.shape == ()


@pytest.mark.parametrize("training", [False, True])
def test_without_labels_there_is_no_loss_and_every_head_answers(tiny_model: MultiTaskModel, training: bool) -> None:
    output = tiny_model.train(training)(**texts())
    assert output.loss is None
    assert output.losses is None
    assert {task: tuple(logits.shape) for task, logits in output.logits.items()} == {
        "topic": (ROWS, 3),
        "slots": (ROWS, LENGTH, 3),
        "mood": (ROWS, 4),
        "stars": (ROWS, 1),
    }


@pytest.mark.parametrize("task", TASKS)
def test_a_loss_does_not_change_when_rows_of_other_tasks_join(tiny_model: MultiTaskModel, task: str) -> None:
    joined = labelled({**SOME_ROWS, task: (0, 1, 2)})
    alone = {name: value[:3] for name, value in joined.items() if name != "labels"}
    alone["labels"] = {task: joined["labels"][task][:3]}
    tiny_model.train()
    first, second = tiny_model(**alone), tiny_model(**joined)
    torch.testing.assert_close(first.losses[task], second.losses[task], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.loss, first.losses[task])  # every row of the batch is labelled


@pytest.mark.parametrize("training", [False, True])
def test_rows_found_in_the_labels_equal_rows_given(tiny_model: MultiTaskModel, training: bool) -> None:
    tiny_model.train(training)
    batch = labelled(SOME_ROWS)
    found, given = tiny_model(**batch), tiny_model(**batch, rows=rows_of(SOME_ROWS))
    assert torch.equal(found.loss, given.loss)
    assert_same_logits(found.logits, given.logits)


@pytest.mark.parametrize("training", [False, True])
def test_items_counted_equal_items_given(tiny_model: MultiTaskModel, training: bool) -> None:
    tiny_model.train(training)
    batch = labelled(SOME_ROWS)
    heads = {task: tiny_model.head(task) for task in TASKS}
    items = {task: head.num_items(head.spec, batch["labels"][task]).item() for task, head in heads.items()}
    found, given = tiny_model(**batch), tiny_model(**batch, items=items)
    assert torch.equal(found.loss, given.loss)
    assert all(torch.equal(found.losses[task], given.losses[task]) for task in TASKS)
    assert tiny_model(**batch, items={**items, "topic": 0.0}).losses["topic"] == 0.0  # all of them weigh nothing


@pytest.mark.parametrize("training", [False, True])
def test_a_task_without_any_label_in_the_batch_costs_nothing(tiny_model: MultiTaskModel, training: bool) -> None:
    tiny_model.train(training)
    nothing = labelled({"topic": (0, 1), "slots": (), "mood": (), "stars": ()})
    output = tiny_model(**nothing)
    output.loss.backward()
    assert [output.losses[task].item() for task in ("slots", "mood", "stars")] == [0.0, 0.0, 0.0]
    torch.testing.assert_close(output.loss, output.losses["topic"] / 3)
    grads = [parameter.grad for parameter in tiny_model.parameters() if parameter.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)


# ---------------------------------------------------------------------- what runs, and how often


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("training", [False, True])
def test_heads_see_labelled_rows_while_training_and_all_rows_else(
    tiny_model: MultiTaskModel, training: bool, task: str
) -> None:
    tiny_model.train(training)
    with calls_of(tiny_model.head(task)) as calls:
        output = tiny_model(**labelled(SOME_ROWS))
    rows = len(SOME_ROWS[task]) if training else ROWS
    assert [len(call) for call in calls if call is not None] == [rows]
    assert len(output.logits[task]) == rows


def test_training_logits_are_those_of_the_labelled_rows_in_order(tiny_model: MultiTaskModel) -> None:
    everything = logits_of(tiny_model)
    output = tiny_model.train()(**labelled(SOME_ROWS))
    for task, rows in rows_of(SOME_ROWS).items():
        torch.testing.assert_close(output.logits[task], everything[task][rows], rtol=1e-5, atol=1e-6)
    weights = tiny_model.eval()(**texts()).task_attentions["stars"]
    torch.testing.assert_close(output.task_attentions["stars"], weights[list(SOME_ROWS["stars"])])


def test_heads_without_labels_do_not_run_while_training(tiny_model: MultiTaskModel) -> None:
    with calls_of(tiny_model.head("slots")) as calls:
        output = tiny_model.train()(**labelled({"topic": (0, 1)}))
        assert not calls
        assert list(output.logits) == ["topic"]
        tiny_model.eval()(**labelled({"topic": (0, 1)}))
    assert len(calls) == 1


def test_tasks_name_the_heads_that_run(tiny_model: MultiTaskModel) -> None:
    everything = logits_of(tiny_model)
    with calls_of(tiny_model.head("topic")) as calls:
        output = tiny_model(**texts(), tasks=["stars", "slots"])
    assert not calls
    assert_same_logits(output.logits, {"slots": everything["slots"], "stars": everything["stars"]})
    assert list(tiny_model(**labelled(SOME_ROWS), tasks=["mood"]).losses) == ["mood"]


def test_an_unknown_task_is_named_with_those_there_are(tiny_model: MultiTaskModel) -> None:
    with pytest.raises(SpecError, match=r"no task 'topics'; choose from 'topic', 'slots', 'mood', 'stars'"):
        tiny_model(**texts(), tasks=["topics"])


@pytest.mark.parametrize("training", [False, True])
def test_many_tasks_take_one_encoder_pass(tiny_encoder_config: BertConfig, training: bool) -> None:
    specs = [classification(f"task_{i}", pooling=POOLING_KINDS[i % 4]) for i in range(12)]
    model = new_model(tiny_encoder_config, specs).train(training)
    with calls_of(model.encoder) as calls:
        model(**texts(), labels={spec.name: torch.zeros(ROWS, dtype=torch.long) for spec in specs})
    assert len(calls) == 1


@pytest.mark.parametrize("training", [False, True])
def test_each_kind_of_pooling_is_computed_once(
    tiny_encoder_config: BertConfig, monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    counts: Counter[str] = Counter()

    def counted(kind: str, pooling: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def pool(states: Tensor, mask: Tensor) -> Tensor:
            counts[kind] += 1
            return pooling(states, mask)

        return pool

    monkeypatch.setattr(features, "POOLINGS", {kind: counted(kind, pool) for kind, pool in features.POOLINGS.items()})
    specs = [classification(f"task_{i}", pooling=("cls", "mean")[i % 2]) for i in range(10)]
    model = new_model(tiny_encoder_config, specs).train(training)
    model(**texts(), labels={spec.name: torch.zeros(ROWS, dtype=torch.long) for spec in specs})
    assert counts == {"cls": 1, "mean": 1}


def test_padding_may_be_given_as_a_shorter_batch(tiny_model: MultiTaskModel) -> None:
    padded = texts()
    alone = {name: value[:1, :3] for name, value in padded.items()}
    together = logits_of(tiny_model, **padded)
    for task, logits in logits_of(tiny_model, **alone).items():
        expected = together[task][:1, :3] if task == "slots" else together[task][:1]
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


def test_without_a_mask_all_tokens_are_real(tiny_model: MultiTaskModel) -> None:
    ids = texts()["input_ids"].clamp(min=1)
    assert_same_logits(
        logits_of(tiny_model, input_ids=ids),
        logits_of(tiny_model, input_ids=ids, attention_mask=torch.ones_like(ids)),
    )


def test_embeddings_may_stand_for_token_ids(tiny_model: MultiTaskModel) -> None:
    inputs = texts()
    embedded = {**inputs, "inputs_embeds": tiny_model.get_input_embeddings()(inputs["input_ids"])}
    del embedded["input_ids"]
    assert_same_logits(logits_of(tiny_model, **embedded), logits_of(tiny_model, **inputs))


# ---------------------------------------------------------------------- parity with stock transformers


def test_sequence_classification_on_cls_equals_bert_and_a_linear_layer(tiny_encoder_config: BertConfig) -> None:
    model = new_model(tiny_encoder_config, [classification(pooling="cls")])
    bert = BertModel(copy.deepcopy(tiny_encoder_config), add_pooling_layer=False).eval()
    bert.load_state_dict(model.encoder.state_dict())
    linear = nn.Linear(16, 3)
    linear.load_state_dict(model.head("topic").output.state_dict())
    expected = linear(bert(**texts()).last_hidden_state[:, 0])
    torch.testing.assert_close(logits_of(model)["topic"], expected, rtol=0, atol=1e-6)


def test_sequence_classification_trains_as_the_stock_class_does(tiny_encoder_config: BertConfig) -> None:
    # The stock class has a pooler, `tanh(W h + b)`; with W = c * 1, b = 0 and small c it is c * h to first order.
    config = copy.deepcopy(tiny_encoder_config)
    config.num_labels = 3
    stock = BertForSequenceClassification(config).double().eval()
    stock.bert.pooler.dense.weight.data = torch.eye(16).double() * 1e-5
    stock.bert.pooler.dense.bias.data.zero_()
    model = new_model(tiny_encoder_config, [classification(pooling="cls")]).double()
    model.encoder.load_state_dict({k: v for k, v in stock.bert.state_dict().items() if "pooler" not in k})
    output = model.head("topic").output
    output.load_state_dict({"weight": stock.classifier.weight * 1e-5, "bias": stock.classifier.bias})
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    theirs, ours = stock(**texts(), labels=labels), model(**texts(), labels={"topic": labels})
    torch.testing.assert_close(ours.logits["topic"], theirs.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.loss.double(), theirs.loss, rtol=0, atol=1e-6)


def test_token_classification_equals_the_stock_class(tiny_encoder_config: BertConfig) -> None:
    config = copy.deepcopy(tiny_encoder_config)
    config.num_labels = 3
    stock = BertForTokenClassification(config).eval()
    model = new_model(
        tiny_encoder_config, [TaskSpec(name="slots", type="token_classification", labels=("O", "B-x", "I-x"))]
    )
    model.encoder.load_state_dict(stock.bert.state_dict())
    model.head("slots").output.load_state_dict(stock.classifier.state_dict())
    batch = labelled({"slots": range(ROWS)})
    theirs = stock(**texts(), labels=batch["labels"]["slots"])
    for training in (False, True):
        ours = model.train(training)(**batch)
        torch.testing.assert_close(ours.logits["slots"], theirs.logits, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.loss, theirs.loss, rtol=0, atol=1e-6)


def test_gradients_equal_those_of_the_stock_class(tiny_encoder_config: BertConfig) -> None:
    config = copy.deepcopy(tiny_encoder_config)
    config.num_labels = 3
    stock = BertForTokenClassification(config)
    model = new_model(
        tiny_encoder_config, [TaskSpec(name="slots", type="token_classification", labels=("O", "B-x", "I-x"))]
    ).train()
    model.encoder.load_state_dict(stock.bert.state_dict())
    model.head("slots").output.load_state_dict(stock.classifier.state_dict())
    batch = labelled({"slots": range(ROWS)})
    stock(**texts(), labels=batch["labels"]["slots"]).loss.backward()
    model(**batch).loss.backward()
    theirs = {name.replace("bert.", "encoder."): p.grad for name, p in stock.bert.named_parameters(prefix="encoder")}
    for name, grad in theirs.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- saving and loading


LOADERS: dict[str, Callable[[Path], MultiTaskModel]] = {
    "class": MultiTaskModel.from_pretrained,
    "auto": AutoModel.from_pretrained,
    "device map": lambda folder: MultiTaskModel.from_pretrained(folder, device_map="cpu"),
    "with its configuration": lambda folder: MultiTaskModel.from_pretrained(
        folder, config=AutoConfig.from_pretrained(folder)
    ),
    "loading info": lambda folder: MultiTaskModel.from_pretrained(folder, output_loading_info=True)[0],
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_saved_model_gives_the_same_logits_to_the_bit(
    tiny_model: MultiTaskModel, tmp_path: Path, loader: str
) -> None:
    tiny_model.attention_poolings["stars"].query.data.normal_()
    tiny_model.save_pretrained(tmp_path)
    loaded = LOADERS[loader](tmp_path)
    assert type(loaded) is MultiTaskModel
    assert not loaded.training
    assert loaded.specs == tiny_model.specs
    assert {name: p.dtype for name, p in loaded.named_parameters()} == dict.fromkeys(
        dict(tiny_model.named_parameters()), torch.float32
    )
    assert_same_logits(logits_of(loaded), logits_of(tiny_model))


def test_a_large_head_and_encoder_give_the_same_logits_to_the_bit(minilm: Path, tmp_path: Path) -> None:
    specs = [classification("odd", [str(i) for i in range(7)]), TaskSpec(name="stars", type="regression")]
    model = MultiTaskModel.from_encoder(minilm, specs).eval()
    model.save_pretrained(tmp_path)
    inputs = {"input_ids": torch.randint(1000, 2000, (3, 12), generator=torch.Generator().manual_seed(0))}
    assert_same_logits(logits_of(AutoModel.from_pretrained(tmp_path), **inputs), logits_of(model, **inputs))


@pytest.mark.parametrize("way", ["from_pretrained", "from_encoder"])
def test_loaded_weights_begin_where_torch_would_have_put_them(minilm: Path, tmp_path: Path, way: str) -> None:
    # In a safetensors file they begin anywhere, and some products then round differently: no bitwise equality.
    model = MultiTaskModel.from_encoder(minilm, [classification("odd")])
    if way == "from_pretrained":
        model.save_pretrained(tmp_path)
        model = AutoModel.from_pretrained(tmp_path)
    assert {parameter.data_ptr() % 64 for parameter in model.parameters()} == {0}


def test_every_task_type_has_random_rows_to_be_tested_with(tiny_model: MultiTaskModel) -> None:
    assert {spec.type for spec in tiny_model.specs} <= set(HEADS.files) <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_every_task_type_answers_as_before_after_saving(
    kind: str, tiny_encoder_config: BertConfig, tmp_path: Path
) -> None:
    model = model_of(tiny_encoder_config, spec_of(kind)).eval()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    batch = {"input_ids": torch.randint(1, 40, (3, 7), generator=torch.Generator().manual_seed(0))}
    assert torch.equal(again(**batch).logits["task"], model(**batch).logits["task"])


def test_a_folder_holds_safetensors_and_json_without_local_paths(minilm: Path, tmp_path: Path) -> None:
    MultiTaskModel.from_encoder(minilm, [classification()]).save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "model.safetensors", *FILE_NAMES}
    text = (tmp_path / "config.json").read_text()
    assert str(minilm) not in text
    assert "site-packages" not in text
    assert "_name_or_path" not in text


def test_tasks_keep_their_order_and_labels(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert [task["name"] for task in written["tasks"]] == list(TASKS)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, MultiTaskConfig)
    assert config.task_specs == tiny_model.specs
    loaded = AutoModel.from_pretrained(tmp_path)
    assert list(dict(loaded.heads.named_children())) == list(TASKS)
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in tiny_model.named_parameters()]


def test_a_saved_model_saves_to_the_same_files(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "first")
    AutoModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_model_loads_in_another_dtype(tiny_model: MultiTaskModel, tmp_path: Path, dtype: torch.dtype) -> None:
    tiny_model.save_pretrained(tmp_path)
    loaded = MultiTaskModel.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    for task, logits in logits_of(loaded).items():
        assert logits.dtype == dtype
        torch.testing.assert_close(logits.float(), logits_of(tiny_model)[task], rtol=0, atol=0.05)
    loss = loaded.train()(**labelled(SOME_ROWS)).loss
    assert loss.dtype == torch.float32
    loss.backward()


def test_a_model_saved_in_bfloat16_loads_so_and_builds_in_float32(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    tiny_model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert MultiTaskModel.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert MultiTaskModel.from_pretrained(tmp_path, dtype=torch.float32).encoder.dtype == torch.float32
    config = MultiTaskConfig.from_pretrained(tmp_path)
    config.encoder_config.dtype = torch.bfloat16
    built = MultiTaskModel(config)
    assert {parameter.dtype for parameter in built.parameters()} == {torch.float32}


def test_loading_info_names_heads_added_and_removed(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    _, info = MultiTaskModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    config = MultiTaskConfig.from_pretrained(tmp_path)
    config.task_specs = [spec for spec in config.task_specs if spec.name != "mood"] + [classification("new")]
    model, info = MultiTaskModel.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert info["missing_keys"] == {"heads.new.output.weight", "heads.new.output.bias"}
    assert info["unexpected_keys"] == {"heads.mood.output.weight", "heads.mood.output.bias"}
    assert model.head("new").output.bias.abs().max() == 0
    assert 0 < model.head("new").output.weight.abs().max() < 0.2
    assert torch.equal(logits_of(model)["topic"], logits_of(tiny_model)["topic"])


def test_an_attention_query_absent_from_the_weights_begins_as_the_mean(
    tiny_model: MultiTaskModel, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path)
    config = MultiTaskConfig.from_pretrained(tmp_path)
    config.task_specs = [
        TaskSpec(**{**spec.to_dict(), "pooling": "attention"}) if spec.name == "topic" else spec
        for spec in config.task_specs
    ]
    model = MultiTaskModel.from_pretrained(tmp_path, config=config)
    assert (model.attention_poolings["topic"].query == 0).all()


def test_encoder_and_model_share_one_configuration(tiny_model: MultiTaskModel, minilm: Path, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    for model in (
        tiny_model,
        MultiTaskModel.from_pretrained(tmp_path),
        MultiTaskModel.from_encoder(minilm, [classification()]),
        copy.deepcopy(tiny_model),
    ):
        assert model.config.encoder_config is model.encoder.config


@pytest.mark.parametrize("make", ["built", "from an encoder"])
def test_a_resized_vocabulary_survives_saving(
    tiny_model: MultiTaskModel, minilm: Path, tmp_path: Path, make: str
) -> None:
    model = tiny_model if make == "built" else MultiTaskModel.from_encoder(minilm, [classification()]).eval()
    size = model.get_input_embeddings().weight.shape[0] + 3
    model.resize_token_embeddings(size)
    assert model.config.encoder_config.vocab_size == size
    inputs = {"input_ids": torch.tensor([[1, size - 1, size - 2]])}
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.get_input_embeddings().weight.shape[0] == size
    assert_same_logits(logits_of(loaded, **inputs), logits_of(model, **inputs))


def test_input_embeddings_are_the_encoders(tiny_model: MultiTaskModel) -> None:
    assert tiny_model.get_input_embeddings() is tiny_model.encoder.embeddings.word_embeddings
    new = nn.Embedding(40, 16)
    tiny_model.set_input_embeddings(new)
    assert tiny_model.encoder.embeddings.word_embeddings is new


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_is_equal_and_independent(tiny_model: MultiTaskModel, way: str) -> None:
    if way == "deepcopy":
        other = copy.deepcopy(tiny_model)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(tiny_model))
    else:
        file = io.BytesIO()
        torch.save(tiny_model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    before = logits_of(tiny_model)
    assert_same_logits(logits_of(other), before)
    assert other.specs == tiny_model.specs
    for parameter in other.parameters():
        parameter.data.add_(1.0)
    assert_same_logits(logits_of(tiny_model), before)


# ---------------------------------------------------------------------- training


def gradients(model: MultiTaskModel) -> dict[str, Tensor]:
    model.zero_grad()
    model.train()(**labelled(SOME_ROWS)).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_every_trainable_parameter_gets_a_gradient_when_all_tasks_are_present(tiny_model: MultiTaskModel) -> None:
    grads = gradients(tiny_model)
    assert set(grads) == {name for name, _ in tiny_model.named_parameters()}
    assert {name for name, grad in grads.items() if not grad.any()} == set()


def test_a_step_changes_every_parameter_and_lowers_the_loss(tiny_model: MultiTaskModel) -> None:
    before = {name: parameter.clone() for name, parameter in tiny_model.named_parameters()}
    batch = labelled(SOME_ROWS)
    optimizer = torch.optim.AdamW(tiny_model.train().parameters(), lr=1e-3)
    first = tiny_model(**batch).loss
    first.backward()
    optimizer.step()
    assert tiny_model(**batch).loss < first
    assert [name for name, p in tiny_model.named_parameters() if torch.equal(p, before[name])] == []


def test_gradient_checkpointing_gives_the_same_gradients(tiny_model: MultiTaskModel) -> None:
    plain = gradients(tiny_model)
    tiny_model.activation_checkpointing_enable()
    assert tiny_model.is_activation_checkpointing
    with calls_of(tiny_model.encoder.encoder.layer[0].attention) as calls:
        checkpointed = gradients(tiny_model)
    assert len(calls) == 2  # once forward, once again in the backward pass
    assert set(plain) == set(checkpointed)
    for name, grad in plain.items():
        torch.testing.assert_close(checkpointed[name], grad, rtol=0, atol=1e-6)


def test_trainer_must_not_think_that_the_loss_is_normalised(tiny_model: MultiTaskModel) -> None:
    assert tiny_model.accepts_loss_kwargs is False


def test_dropout_comes_from_the_task_or_the_encoder(tiny_encoder_config: BertConfig) -> None:
    config = copy.deepcopy(tiny_encoder_config)
    config.hidden_dropout_prob = 0.25
    model = new_model(config, [classification("own", dropout=0.5), classification("inherited")])
    assert model.head("own").dropout == 0.5
    assert model.head("inherited").dropout == 0.25


def features_of(model: MultiTaskModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what each head reads."""
    with ExitStack() as stack:
        calls = {name: stack.enter_context(calls_of(head)) for name, head in model.heads.items()}
        model(**inputs)
    return {name: cast(Tensor, own[0]) for name, own in calls.items()}


def test_features_are_dropped_in_training_alike_for_tasks_alike(tiny_encoder_config: BertConfig) -> None:
    chances = {"first": 0.5, "second": 0.5, "never": 0.0, "cls": 0.5}
    poolings = {"cls": "cls"}
    specs = [classification(name, dropout=p, pooling=poolings.get(name)) for name, p in chances.items()]
    model, inputs = new_model(tiny_encoder_config, specs), texts(rows=64)
    whole, one, another = features_of(model, inputs), features_of(model.train(), inputs), features_of(model, inputs)
    assert torch.equal(one["never"], whole["never"])
    for name in ("first", "second", "cls"):
        kept = one[name] != 0
        assert 0.4 < kept.float().mean() < 0.6
        torch.testing.assert_close(one[name][kept], 2 * whole[name][kept])
        assert not torch.equal(one[name], another[name])
    assert torch.equal(one["first"], one["second"])
    assert not torch.equal(one["first"] == 0, one["cls"] == 0)
    model.head("second").eval()
    assert torch.equal(features_of(model, inputs)["second"], whole["second"])


# ---------------------------------------------------------------------- attentions


@pytest.mark.parametrize("way", ["set", "from_pretrained", "from_encoder"])
def test_eager_attention_reaches_the_encoder_and_comes_back(
    tiny_model: MultiTaskModel, minilm: Path, tmp_path: Path, way: str
) -> None:
    model = tiny_model
    if way == "set":
        model.set_attn_implementation("eager")
    elif way == "from_pretrained":
        model.save_pretrained(tmp_path)
        model = MultiTaskModel.from_pretrained(tmp_path, attn_implementation="eager")
    else:
        model = MultiTaskModel.from_encoder(minilm, [classification()], attn_implementation="eager").eval()
    assert model.encoder.config._attn_implementation == "eager"
    inputs = texts()
    output = model(**inputs, output_attentions=True, output_hidden_states=True)
    layers, heads = model.encoder.config.num_hidden_layers, model.encoder.config.num_attention_heads
    assert [tuple(a.shape) for a in output.attentions] == [(ROWS, heads, LENGTH, LENGTH)] * layers
    assert len(output.hidden_states) == layers + 1
    for attention in output.attentions:
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(ROWS, heads, LENGTH))
        assert not attention.masked_select((inputs["attention_mask"] == 0)[:, None, None, :]).any()


def test_eager_and_sdpa_give_the_same_logits(tiny_model: MultiTaskModel) -> None:
    assert tiny_model.encoder.config._attn_implementation == "sdpa"
    sdpa = logits_of(tiny_model)
    tiny_model.set_attn_implementation("eager")
    eager = logits_of(tiny_model)
    for task in TASKS:
        torch.testing.assert_close(eager[task], sdpa[task], rtol=0, atol=1e-5)


def test_attentions_and_states_are_only_there_when_asked_for(tiny_model: MultiTaskModel) -> None:
    output = tiny_model(**texts())
    assert output.attentions is None
    assert output.hidden_states is None
    assert list(output.task_attentions) == ["stars"]
    weights = output.task_attentions["stars"]
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(ROWS))


# ---------------------------------------------------------------------- construction


def test_a_model_without_tasks_is_refused(tiny_encoder_config: BertConfig) -> None:
    with pytest.raises(SpecError, match="tasks is empty"):
        MultiTaskModel(MultiTaskConfig(encoder_config=tiny_encoder_config, tasks=[]))


def test_a_task_without_labels_is_refused(tiny_encoder_config: BertConfig) -> None:
    with pytest.raises(SpecError, match="task 'topic'"):
        new_model(tiny_encoder_config, [TaskSpec(name="topic", type="sequence_classification")])


def test_default_pooling_is_the_encoders(tiny_encoder_config: BertConfig, tiny_model: MultiTaskModel) -> None:
    assert tiny_model.poolings == {"topic": "cls", "mood": "mean", "stars": "attention"}
    assert list(tiny_model.attention_poolings) == ["stars"]


def test_an_encoder_that_is_given_is_used_as_it_is(tiny_encoder_config: BertConfig) -> None:
    encoder = BertModel(copy.deepcopy(tiny_encoder_config), add_pooling_layer=False)
    for parameter in encoder.parameters():
        parameter.data.fill_(0.125)
    config = MultiTaskConfig(encoder_config=encoder.config, tasks=[classification()])
    model = MultiTaskModel(config, encoder=encoder)
    assert model.encoder is encoder
    assert all((parameter == 0.125).all() for parameter in encoder.parameters())


# ---------------------------------------------------------------------- new heads on a pretrained encoder


def assert_same_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    assert set(own) <= set(weights)
    for name, value in own.items():
        assert torch.equal(value, weights[name]), name


def test_encoder_weights_are_those_of_auto_model(minilm: Path) -> None:
    model = MultiTaskModel.from_encoder(minilm, [classification()])
    assert_same_weights(model.encoder, AutoModel.from_pretrained(minilm).state_dict())
    assert not any("pooler" in name for name, _ in model.named_parameters())


def test_the_seed_decides_the_heads(minilm: Path) -> None:
    specs = [classification(), TaskSpec(name="stars", type="regression")]
    first, second, third = (MultiTaskModel.from_encoder(minilm, specs, seed=seed).heads for seed in (1, 1, 2))
    assert_same_weights(first, second.state_dict())
    for name in ("topic.output.weight", "stars.output.weight"):
        assert not torch.equal(first.state_dict()[name], third.state_dict()[name])


def test_the_global_random_state_is_left_alone(minilm: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    first = MultiTaskModel.from_encoder(minilm, [classification()]).heads
    assert torch.equal(torch.rand(4), expected)
    second = MultiTaskModel.from_encoder(minilm, [classification()]).heads
    assert_same_weights(first, second.state_dict())


def test_tasks_may_be_given_as_mappings(minilm: Path) -> None:
    task = {"name": "topic", "type": "sequence_classification", "labels": ["a", "b"]}
    assert MultiTaskModel.from_encoder(str(minilm), [task]).specs == (TaskSpec.from_dict(task),)


def test_loading_an_encoder_reports_no_unused_weights(minilm: Path, caplog: pytest.LogCaptureFixture) -> None:
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.addHandler(caplog.handler)
    caplog.set_level(logging.WARNING, logger="transformers")  # a command that ran in this process may have raised it
    try:
        load_encoder(minilm)
        assert "LOAD REPORT" not in caplog.text
        BertModel.from_pretrained(minilm, add_pooling_layer=False)
    finally:
        transformers_logger.removeHandler(caplog.handler)
    assert "LOAD REPORT" in caplog.text  # others still hear of it


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_checkpoint_is_loaded_to_be_trained(
    tiny_encoder_config: BertConfig, tmp_path: Path, dtype: torch.dtype
) -> None:
    saved = BertModel(copy.deepcopy(tiny_encoder_config)).to(dtype)
    saved.save_pretrained(tmp_path)
    model = MultiTaskModel.from_encoder(tmp_path, [classification(pooling="attention")])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_same_weights(model.encoder, saved.float().state_dict())
    half = MultiTaskModel.from_encoder(tmp_path, [classification(pooling="attention")], dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}


def test_heads_follow_the_encoder_to_its_device(minilm: Path) -> None:
    model = MultiTaskModel.from_encoder(minilm, [classification(pooling="attention")], device_map="cpu")
    assert {parameter.device for parameter in model.parameters()} == {torch.device("cpu")}
    logits_of(model)


@pytest.mark.parametrize("saved_class", [BertForMaskedLM, BertForTokenClassification, BertModel])
def test_a_checkpoint_with_a_head_gives_its_encoder(
    tiny_encoder_config: BertConfig, tmp_path: Path, saved_class: Any
) -> None:
    saved = saved_class(copy.deepcopy(tiny_encoder_config))
    saved.save_pretrained(tmp_path)
    model = MultiTaskModel.from_encoder(tmp_path, [classification()])
    assert_same_weights(model.encoder, saved.base_model.state_dict())


def test_a_checkpoint_without_encoder_weights_is_refused(tiny_encoder_config: BertConfig, tmp_path: Path) -> None:
    bert = BertModel(copy.deepcopy(tiny_encoder_config))
    weights = {name: value for name, value in bert.state_dict().items() if "layer.1." not in name}
    bert.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ModelError, match=r"lacks 16 weights of the encoder, 'encoder\.layer\.1\..*never used"):
        MultiTaskModel.from_encoder(tmp_path, [classification()])


def test_a_checkpoint_of_another_shape_is_refused(tiny_encoder_config: BertConfig, tmp_path: Path) -> None:
    bert = BertModel(copy.deepcopy(tiny_encoder_config))
    bert.save_pretrained(tmp_path)
    bert.config.vocab_size = 41
    bert.config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"1 weights of another shape, 'embeddings\.word_embeddings\.weight'"):
        MultiTaskModel.from_encoder(tmp_path, [classification()])


def test_a_multi_task_model_is_no_encoder(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"a multi-task model.*MultiTaskModel\.from_pretrained"):
        MultiTaskModel.from_encoder(tmp_path, [classification()])


def cut_short(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


BROKEN: dict[str, Callable[[Path], None]] = {
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()] and None,
    "without weights": lambda folder: (folder / "model.safetensors").unlink(),
    "without config": lambda folder: (folder / "config.json").unlink(),
    "cut weights": cut_short,
    "empty weights": lambda folder: (folder / "model.safetensors").write_bytes(b"") and None,
    "broken config": lambda folder: (folder / "config.json").write_text("{") and None,
    "unknown model type": lambda folder: (folder / "config.json").write_text('{"model_type": "unheard"}') and None,
    "no model type": lambda folder: (folder / "config.json").write_text("{}") and None,
}


@pytest.mark.parametrize("breaking", BROKEN)
def test_a_folder_without_a_usable_encoder_is_named_in_one_line(
    tiny_encoder_config: BertConfig, tmp_path: Path, breaking: str
) -> None:
    BertModel(copy.deepcopy(tiny_encoder_config)).save_pretrained(tmp_path)
    BROKEN[breaking](tmp_path)
    with pytest.raises(ModelError) as caught:
        MultiTaskModel.from_encoder(tmp_path, [classification()])
    message = str(caught.value)
    assert message.startswith(f"encoder '{tmp_path}': the folder on disk holds no usable encoder (")
    assert "\n" not in message
    assert "Traceback" not in message


@pytest.mark.parametrize("load", [load_encoder, load_encoder_config])
@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("./no/such/folder", ["looked on disk", "no such folder"]),
        ("/no/such/folder", ["looked on disk", "no such folder"]),
        ("no/such/folder", ["looked on disk", "no such folder"]),
        ("nobody/no-such-model", ["no such folder on disk", "the Hub did not give it"]),
        ("no-such-model", ["no such folder on disk", "the Hub did not give it"]),
    ],
)
def test_an_encoder_that_is_nowhere_says_where_it_was_looked_for(
    load: Callable[[str], Any], name: str, places: Sequence[str]
) -> None:
    with pytest.raises(ModelError) as caught:
        load(name)
    message = str(caught.value)
    assert message.startswith(f"encoder {name!r}: ")
    assert all(place in message for place in places)
    assert "\n" not in message
    assert "Traceback" not in message


def test_a_wrong_task_is_refused_by_its_name(minilm: Path) -> None:
    with pytest.raises(SpecError, match="task 'topic'"):
        MultiTaskModel.from_encoder(minilm, [TaskSpec(name="topic", type="sequence_classification", labels=("a",))])


def test_class_weights_and_smoothing_of_the_spec_reach_the_loss(tiny_encoder_config: BertConfig) -> None:
    spec = classification(class_weights=(1.0, 2.0, 0.5), label_smoothing=0.1)
    model = new_model(tiny_encoder_config, [spec])
    labels = torch.tensor([0, 1, -100, 2, -100, 1])
    output = model(**texts(), labels={"topic": labels})
    expected = F.cross_entropy(
        output.logits["topic"], labels, torch.tensor(spec.class_weights), ignore_index=-100, label_smoothing=0.1
    )
    torch.testing.assert_close(output.losses["topic"], expected)
    torch.testing.assert_close(output.loss, expected * 4 / ROWS)
