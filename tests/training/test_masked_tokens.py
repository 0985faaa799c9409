"""Masked language modeling from a recipe to answers: trained beside other tasks, resumed, scored, and refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import build, load

from hf_mtl.data.masking import EPOCH
from hf_mtl.data.preparation import RecipeData
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.errors import ModelError, RecipeError, SpecError
from hf_mtl.evaluation import scoring
from hf_mtl.evaluation.prediction import predict_batches
from hf_mtl.evaluation.scoring import score
from hf_mtl.explain.explainer import Explainer
from hf_mtl.inference.export import export_model, exported_tasks
from hf_mtl.inference.labelling import label_file
from hf_mtl.inference.loading import load_model
from hf_mtl.inference.pipeline import MultiTaskPipeline
from hf_mtl.inference.predictor import Predictor
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.meta_learning import MetaOptions
from hf_mtl.training.meta_learning_run import meta_train
from hf_mtl.training.step_checks import check_architecture
from hf_mtl.training.streams import TrainingRows
from hf_mtl.training.trainer import MultiTaskTrainer

Make = Callable[..., MultiTaskTrainer]
MLM = {"name": "mlm", "type": "masked_language_modeling", "dataset": "texts"}
PLAIN: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


@pytest.fixture(scope="module")
def masked_recipe(tiny_folder: Path, tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    """Sentiment of films, intents and slots of orders, and masked tokens of the same films."""
    datasets = {name: tiny_recipe["datasets"][name] for name in ("films", "orders")}
    datasets["texts"] = datasets["films"]
    tasks = [*(task for task in tiny_recipe["tasks"] if task["dataset"] in datasets), MLM]
    return {"encoder": str(tiny_folder / "masked"), "datasets": datasets, "tasks": tasks}


@pytest.fixture(scope="module")
def data(tiny_folder: Path, masked_recipe: dict[str, Any]) -> RecipeData:
    return load(tiny_folder, masked_recipe)


@pytest.fixture(scope="module")
def model(data: RecipeData) -> MultiTaskModel:
    return build(data).eval()


def batches(trainer: MultiTaskTrainer, epochs: int = 1) -> list[dict[str, Any]]:
    loader: Any = trainer.get_train_dataloader()
    found = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        found += list(loader)
    return found


def masked_rows(made: list[dict[str, Any]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Return the masked rows of batches as they were -> as they are read."""
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    for batch in made:
        for row in batch["rows"].get("mlm", torch.zeros(0, dtype=torch.long)).tolist():
            ids = batch["input_ids"][row][batch["attention_mask"][row] > 0]
            real = ids.clone()
            for place, token in zip(batch["positions"]["mlm"][row], batch["labels"]["mlm"][row], strict=True):
                if place >= 0:
                    real[place] = token
            found[tuple(real.tolist())] = tuple(ids.tolist())
    return found


# ---------------------------------------------------------------------- data


def test_labels_are_the_tokens_of_the_row(data: RecipeData) -> None:
    split = data.train["texts"]
    (task,) = split.tasks
    places, ids = split.features["labels/mlm"][:], split.features["input_ids"][:]
    assert split.gold(task) == [[row[place] for place in own] for row, own in zip(ids, places, strict=True)]
    assert len(split.labelled("mlm")) == len(split) == 40
    assert task.label == "text"
    assert parse_recipe(data.recipe.to_dict(), base=data.recipe.base).tasks == data.recipe.tasks
    assert "label" not in data.recipe.to_dict()["tasks"][-1]


def test_more_is_masked_where_more_is_asked_for(tiny_folder: Path, masked_recipe: dict[str, Any]) -> None:
    tasks = [*masked_recipe["tasks"][:-1], {**MLM, "mask_probability": 0.5}]
    half = load(tiny_folder, {**masked_recipe, "tasks": tasks}).train["texts"]
    lengths = np.array([len(row) for row in half.features["labels/mlm"]])
    assert lengths.tolist() == [round(0.5 * (length - 2)) for length in half.lengths]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({**MLM, "dataset": "films"}, "task 'mlm': it masks the rows of dataset 'films', which task 'sentiment' reads"),
        ({**MLM, "label": "text"}, "label is 'text', but the labels of masked_language_modeling are tokens"),
        ({**MLM, "labels": ["a"]}, "labels is .*, but masked_language_modeling has no labels"),
        ({**MLM, "mask_probability": 1.5}, "mask_probability is 1.5; give a number above 0 and below 1"),
        ({**MLM, "max_length": 16, "stride": 4}, "stride is 4, but masked_language_modeling reads no windows"),
        ({"name": "x", "type": "regression", "dataset": "texts"}, "the key 'label' is missing"),
        ({"name": "x", "type": "regression", "dataset": "texts", "label": "label", "mask_probability": 0.2},
         "mask_probability is 0.2, but regression has no mask_probability"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    task: dict[str, Any], message: str, tiny_folder: Path, masked_recipe: dict[str, Any]
) -> None:
    with pytest.raises(SpecError, match=message):
        load(tiny_folder, {**masked_recipe, "tasks": [*masked_recipe["tasks"][:-1], task]})


def test_the_mend_for_a_shared_dataset_is_a_second_one(masked_recipe: dict[str, Any]) -> None:
    values = {**masked_recipe, "tasks": [*masked_recipe["tasks"][:-1], {**MLM, "dataset": "orders"}]}
    with pytest.raises(SpecError) as caught:
        parse_recipe(values, base=Path())
    assert not isinstance(caught.value, RecipeError)
    assert caught.value.mend == "list the files of 'orders' as a second dataset, and name that"


def test_an_encoder_without_a_mask_token_is_refused(tiny_folder: Path, masked_recipe: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"has no mask token, which masked_language_modeling needs; use an encoder"):
        load(tiny_folder, {**masked_recipe, "encoder": str(tiny_folder / "plain")})


# ---------------------------------------------------------------------- training


def test_masks_are_the_same_for_any_workers_and_processes_and_new_in_each_epoch(
    data: RecipeData, trainer_for: Make, tmp_path: Path
) -> None:
    first = masked_rows(batches(trainer_for(data=data, folder=tmp_path / "0", seed=3)))
    assert 35 <= len(first) <= 40
    assert sum(real != read for real, read in first.items()) > 30
    workers = trainer_for(data=data, folder=tmp_path / "1", seed=3, dataloader_num_workers=1,
                          dataloader_persistent_workers=True, per_device_train_batch_size=5)  # fmt: skip
    both = batches(workers, epochs=2)
    half = len(both) // 2
    assert masked_rows(both[:half]) == first
    second = masked_rows(both[half:])
    assert second.keys() == first.keys()
    assert sum(second[row] != first[row] for row in first) > 30
    other = masked_rows(batches(trainer_for(data=data, folder=tmp_path / "2", seed=4)))
    assert sum(other[row] != first[row] for row in first) > 30


def test_every_process_masks_its_rows_as_one_would(data: RecipeData, trainer_for: Make) -> None:
    trainer = trainer_for(data=data)
    whole = masked_rows(batches(trainer))
    parts: dict[tuple[int, ...], tuple[int, ...]] = {}
    for rank in range(2):
        sampler: Any = batch_sampler(trainer, rank)
        rows = TrainingRows(data.train)
        parts |= masked_rows([trainer.data_collator(rows.__getitems__(own)) for own in sampler])
    assert parts == whole


def batch_sampler(trainer: MultiTaskTrainer, rank: int) -> Any:
    from hf_mtl.training.plan import make_batches

    rows: Any = trainer.train_dataset
    return make_batches(trainer.args, rows, trainer.train_splits, batch_size=4, process=(rank, 2))


def test_a_streamed_row_is_masked_as_one_in_memory(
    data: RecipeData, tiny_folder: Path, masked_recipe: dict[str, Any], trainer_for: Make, tmp_path: Path
) -> None:
    datasets = {**masked_recipe["datasets"], "texts": {**masked_recipe["datasets"]["texts"], "streaming": True}}
    streamed = load(tiny_folder, {**masked_recipe, "datasets": datasets})
    found = masked_rows(batches(trainer_for(data=streamed, folder=tmp_path / "stream")))
    wanted = masked_rows(batches(trainer_for(data=data, folder=tmp_path / "memory")))
    assert len(found) > 30
    assert {row: wanted[row] for row in found} == found


def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_stopped(data: RecipeData, trainer_for: Make) -> None:
    options = {**PLAIN, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 20, "seed": 5}
    whole = trainer_for(data=data, **options)
    whole.train()
    again = trainer_for(data=data, **options)
    again.train(resume_from_checkpoint=str(Path(whole.args.output_dir, "checkpoint-20")))
    assert again.state.global_step == whole.state.global_step > 20
    for name, value in whole.multi_task_model.state_dict().items():
        assert torch.equal(again.multi_task_model.state_dict()[name], value), name


def test_it_learns_and_stays_out_of_the_average(data: RecipeData, trainer_for: Make) -> None:
    trainer = trainer_for(data=data, num_train_epochs=5, learning_rate=3e-3, **PLAIN)
    before = trainer.evaluate()
    assert trainer.evaluate()["eval_mlm_loss"] == before["eval_mlm_loss"]  # masked alike each time
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_mlm_loss"] < 0.8 * before["eval_mlm_loss"]
    others = ("sentiment_accuracy", "intent_accuracy", "slots_f1", "grammar_accuracy")
    assert after["eval_average"] == pytest.approx(np.mean([after[f"eval_{key}"] for key in others]))


def test_a_task_alone_is_its_own_average(tiny_folder: Path, masked_recipe: dict[str, Any], trainer_for: Make) -> None:
    alone = load(tiny_folder, {**masked_recipe, "tasks": [MLM]})
    found = trainer_for(data=alone).evaluate()
    assert found["eval_average"] == found["eval_mlm_accuracy"]


def test_scores_are_those_of_all_batches_and_processes(
    data: RecipeData, model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {"texts": data.validation["texts"]}
    wanted = score(model, data.tokenizer, splits).tasks["mlm"]
    for least in (1, 2000):  # of logits: a row at a time, a few rows
        monkeypatch.setattr(scoring, "MOST_LOGITS", least)
        sizes: list[int] = []
        monkeypatch.setattr(scoring, "predict_batches", counted(sizes))
        found = score(model, data.tokenizer, splits, batch_size=7).tasks["mlm"]
        assert len(sizes) > 3
        assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
        assert [row.prediction for row in found.rows] == [row.prediction for row in wanted.rows]
    (task,) = splits["texts"].tasks
    assert [row.reference for row in wanted.rows] == splits["texts"].gold(task)
    assert all(len(row.prediction) == len(row.reference) for row in wanted.rows)


def counted(sizes: list[int]) -> Any:
    def run(*args: Any, **options: Any) -> Any:
        for predicted in predict_batches(*args, **options):
            sizes.append(len(predicted.rows))
            yield predicted

    return run


@pytest.mark.parametrize("wanted", ["auto", True])
def test_states_of_a_frozen_encoder_are_not_kept(wanted: Any, data: RecipeData, trainer_for: Make) -> None:
    trainer = trainer_for(data=data, freeze_encoder=True, cache_hidden_states=wanted, num_train_epochs=2, **PLAIN)
    before = {name: value.clone() for name, value in trainer.multi_task_model.state_dict().items()}
    if wanted is True:
        with pytest.raises(SpecError, match="cache_hidden_states is true, but task 'mlm' masks its rows anew in each"):
            trainer.train()
        return
    trainer.train()
    after = trainer.multi_task_model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name for name in changed if "mlm" in name} == {name for name in before if "mlm" in name}
    assert not any(name.startswith("encoder.") for name in changed)


@pytest.mark.parametrize("options", [{"perturbation": "r_drop"}, {"perturbation": "fgm"}, {"peft": {"r": 2}}])
def test_it_trains_with_other_methods(options: dict[str, Any], data: RecipeData, trainer_for: Make) -> None:
    pytest.importorskip("peft")
    trainer = trainer_for(data=data, max_steps=4, logging_steps=4, **options, **PLAIN)
    trainer.train()
    assert all(np.isfinite(log["loss_mlm"]) for log in trainer.state.log_history if "loss_mlm" in log)


def test_what_training_cannot_do_is_refused(data: RecipeData, trainer_for: Make, tmp_path: Path) -> None:
    without = replace(data, tokenizer=None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match=r"task 'mlm': its rows are masked, .*; give processing_class"):
        trainer_for(data=without)
    config: Any = SimpleNamespace(sharing=None, interaction=None, task_specs=data.tasks)
    check_architecture(config, fsdp=False, deepspeed=False)
    with pytest.raises(SpecError, match="task 'mlm' reads the encoder's embeddings, which FSDP shards"):
        check_architecture(config, fsdp=True, deepspeed=False)
    with pytest.raises(SpecError, match="task 'mlm': masked_language_modeling has no labels to draw shots of"):
        meta_train(data.recipe, tmp_path / "meta", MetaOptions())


def test_the_epoch_stays_out_of_batches(data: RecipeData, trainer_for: Make) -> None:
    made = batches(trainer_for(data=data))
    assert all(EPOCH not in batch for batch in made)
    plain = replace(data, train={name: split for name, split in data.train.items() if name != "texts"})
    assert all("positions" not in batch or batch["positions"]["mlm"].shape[1] == 0
               for batch in batches(trainer_for(data=plain, model=build(data))))  # fmt: skip


# ---------------------------------------------------------------------- answers


def test_a_saved_model_answers_alike_in_pipeline_and_bulk(
    data: RecipeData, model: MultiTaskModel, tmp_path: Path
) -> None:
    texts = ["the [MASK] was great", "no mask", "[MASK] to [MASK] york", ""]
    pipe = MultiTaskPipeline(model=model, tokenizer=data.tokenizer)
    wanted = pipe(texts)
    assert [len(answer["mlm"]["masks"]) for answer in wanted] == [1, 0, 2, 0]
    json.dumps(wanted)
    pipe.save_pretrained(tmp_path)
    loaded, tokenizer = load_model(tmp_path, dtype="fp32")
    assert MultiTaskPipeline(model=loaded, tokenizer=tokenizer)(texts) == wanted
    rows = Predictor(loaded, tokenizer, precision="fp32").answer([{"text": text} for text in texts])
    for row, answer in zip(rows, wanted, strict=True):
        found = row["predictions"]["mlm"]["masks"]
        assert [[own["token"] for own in mask] for mask in found] == [
            [own["token"] for own in mask] for mask in answer["mlm"]["masks"]
        ]
    with pytest.raises(SpecError, match="compile is True, and task 'mlm' answers for masks alone"):
        Predictor(loaded, tokenizer, compile=True)


def test_exports_leave_it_behind(data: RecipeData, model: MultiTaskModel, tmp_path: Path, caplog: Any) -> None:
    with pytest.raises(SpecError, match="task 'mlm': masked_language_modeling cannot be exported; name other tasks"):
        export_model(model, data.tokenizer, tmp_path / "named", format="onnx", tasks=["mlm"])
    with caplog.at_level(logging.WARNING):
        assert [spec.name for spec in exported_tasks(model)] == ["sentiment", "intent", "slots", "grammar"]
    assert "task 'mlm' is left out: masked_language_modeling cannot be exported" in caplog.text
    assert not list(tmp_path.iterdir())


def test_explanations_and_labels_leave_it_out(data: RecipeData, model: MultiTaskModel, tmp_path: Path) -> None:
    explainer = Explainer(model, data.tokenizer)
    assert set(explainer.explain("a great film")) == {"sentiment", "intent", "slots", "grammar"}
    with pytest.raises(SpecError, match="task 'mlm': masked_language_modeling is not explained; name other tasks"):
        explainer.explain("a great film", tasks=["mlm"])
    with pytest.raises(SpecError, match="masked_language_modeling has no labels to fill; name other tasks"):
        label_file(model, data.tokenizer, data.recipe, tmp_path / "out.jsonl", tasks=["mlm"], threshold=0.5)
