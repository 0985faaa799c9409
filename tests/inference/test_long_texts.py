"""Texts longer than a window: each word and each text is answered as direct passes over the windows say."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from long_rows import CUT, LENGTH, STRIDE, WINDOWS, random_words, write_long_recipe, write_rows
from sklearn import metrics as sk
from tiny import build, load, write_encoder
from transformers import pipeline

import hf_mtl.auto  # noqa: F401 (registers the pipeline)
from hf_mtl.configuration import TaskSpec
from hf_mtl.data.encoding import Inputs, encode
from hf_mtl.data.preparation import RecipeData
from hf_mtl.data.windows import Reading, reading_of
from hf_mtl.errors import SpecError
from hf_mtl.evaluation.prediction import Answers, RowLogits, answer, collator_for, predict_batches, row_batches
from hf_mtl.evaluation.scoring import Scores, score
from hf_mtl.inference.bulk import predict_file
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import HEADS
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.trainer import MultiTaskTrainer

ROOM = LENGTH - 2  # tokens of the text in a window
EVERY_TYPE = [
    TaskSpec(name="topic", type="sequence_classification", labels=("world", "sport", "art"), **WINDOWS),
    TaskSpec(name="mood", type="multi_label_classification", labels=("glad", "sad"), pooling="cls", **WINDOWS),
    TaskSpec(name="stars", type="regression", pooling="attention", **WINDOWS),
    TaskSpec(name="words", type="token_classification", labels=("N", "V", "X"), **WINDOWS),
    TaskSpec(name="title", type="sequence_classification", labels=("yes", "no"), **CUT),
    TaskSpec(name="opening", type="token_classification", labels=("N", "V"), **CUT),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RecipeData:
    folder = tmp_path_factory.mktemp("long")
    encoder = write_encoder(folder / "encoder", dropout=0.0)
    return load(folder, write_long_recipe(folder, encoder, tone=WINDOWS, tags=WINDOWS, first=CUT))


@pytest.fixture(scope="module")
def every(data: RecipeData) -> MultiTaskModel:
    """A model of every task type, with and without windows, whose answers differ from word to word."""
    model = MultiTaskModel.from_encoder(data.recipe.encoder_path, EVERY_TYPE).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in (model.heads, model.attention_poolings):
            for parameter in module.parameters():
                parameter.normal_()
    return model


def without_windows(model: MultiTaskModel) -> MultiTaskModel:
    model = copy.deepcopy(model)
    model.config.task_specs = [replace(spec, stride=None) for spec in model.specs]
    model.specs = model.config.task_specs
    return model


def rows_of(*lengths: int) -> list[Inputs]:
    return [Inputs.of(tokens=random_words(length, seed=length)) for length in lengths]


def logits_of(model: MultiTaskModel, tokenizer: Any, rows: Sequence[Inputs], **options: Any) -> list[dict[str, Any]]:
    """The logits that the rows' answers are made from."""
    encoded = encode(tokenizer, rows, reading_of(model.specs, tokenizer))
    features, layout = list(encoded.features()), encoded.layout(rows)
    lengths = np.array([len(feature["input_ids"]) for feature in features])
    batches = row_batches(layout, lengths, **{"batch_size": 1, "max_tokens": 10**6, **options})
    merged, found = RowLogits(model, layout), [{} for _ in rows]
    for predicted in predict_batches(model, collator_for(model, tokenizer), features, batches):
        for row, logits in merged.take(predicted):
            assert not found[row]
            found[row] = logits
    return found


def passes(model: MultiTaskModel, tokenizer: Any, row: Inputs) -> tuple[list[int], list[dict[str, np.ndarray]]]:
    """Cut a row into windows by hand, and run the model on one after the other."""
    text = tokenizer(row.text, add_special_tokens=False)["input_ids"]
    starts = [0]
    while starts[-1] + ROOM < len(text):
        starts.append(min(starts[-1] + ROOM - STRIDE, len(text) - ROOM))
    found: list[dict[str, np.ndarray]] = []
    for start in starts:
        ids = torch.tensor([[2, *text[start : start + ROOM], 3]])
        with torch.inference_mode():
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        found.append({task: logits[0].numpy() for task, logits in output.logits.items()})
    return starts, found


def chosen(starts: Sequence[int], token: int) -> tuple[int, int]:
    """The window with the most context on the nearer side of a token, and the token's place in it."""
    inside = [number for number, start in enumerate(starts) if start <= token < start + ROOM]
    best = max(inside, key=lambda number: min(token - starts[number], starts[number] + ROOM - 1 - token))
    return best, 1 + token - starts[best]


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("length", [14, 20, 33, 90])
def test_logits_are_those_of_direct_passes_over_the_windows(
    length: int, every: MultiTaskModel, data: RecipeData
) -> None:
    (row,) = rows_of(length)
    (found,) = logits_of(every, data.tokenizer, [row])
    starts, windows = passes(every, data.tokenizer, row)
    assert len(starts) > 1
    for task in ("topic", "mood", "stars"):
        mean = np.mean([own[task] for own in windows], axis=0, dtype=np.float64).astype(np.float32)
        assert np.array_equal(found[task], mean)
    whole = encode(data.tokenizer, [row], Reading(10**4)).first_tokens[0]
    words = encode(data.tokenizer, [row], Reading(LENGTH, STRIDE)).layout([row]).words_for(EVERY_TYPE[3], 0)
    assert whole is not None and words is not None  # noqa: PT018
    for token, place in zip(whole.tolist(), words.first_tokens.tolist(), strict=True):
        number, inside = chosen(starts, token - 1)
        assert np.array_equal(found["words"][place], windows[number]["words"][inside])
    for task in ("title", "opening"):
        assert np.array_equal(found[task], windows[0][task])


def test_answers_are_decoded_from_these_logits(every: MultiTaskModel, data: RecipeData) -> None:
    rows = rows_of(3, 50)
    answers = answer(every, data.tokenizer, rows, batch_size=1)
    long = logits_of(every, data.tokenizer, rows)[1]
    for spec in every.specs[:3]:
        assert answers[1][spec.name] == HEADS.get(spec.type).decode(spec, long[spec.name], None)
    assert "_" not in answers[1]["words"]["tags"]
    assert len(answers[1]["words"]["tags"]) == 50
    assert answers[1]["opening"]["tags"][-1] == "_"  # cut off


def test_a_text_that_fits_is_answered_as_without_a_stride(every: MultiTaskModel, data: RecipeData) -> None:
    rows = [*rows_of(0, 1, 4, 5), Inputs.of("the film", "a story " * 20, np.zeros((0, 2), dtype=np.int64))]
    plain = without_windows(every)
    assert answer(every, data.tokenizer, rows) == answer(plain, data.tokenizer, rows)


def test_tasks_without_a_stride_are_answered_as_if_no_task_had_one(every: MultiTaskModel, data: RecipeData) -> None:
    rows = rows_of(5, 40, 12, 90)
    found = answer(every, data.tokenizer, rows, batch_size=1)
    wanted = answer(without_windows(every), data.tokenizer, rows, batch_size=1)
    for task in ("title", "opening"):
        assert [own[task] for own in found] == [own[task] for own in wanted]
    assert found[3]["topic"] != wanted[3]["topic"]
    alone = answer(every, data.tokenizer, rows, tasks=["title", "opening"], batch_size=1)
    assert alone == [{task: own[task] for task in ("title", "opening")} for own in wanted]


@pytest.mark.parametrize(("batch_size", "max_tokens"), [(2, 10**6), (3, 10**6), (64, 40), (64, 10**6)])
def test_logits_do_not_depend_on_batches_that_part_a_rows_windows(
    batch_size: int, max_tokens: int, every: MultiTaskModel, data: RecipeData
) -> None:
    rows = rows_of(30, 3, 90, 12, 60, 61)
    wanted = logits_of(every, data.tokenizer, rows)
    found = logits_of(every, data.tokenizer, rows, batch_size=batch_size, max_tokens=max_tokens)
    for own, other in zip(found, wanted, strict=True):
        assert own.keys() == other.keys()
        for task, logits in own.items():
            np.testing.assert_allclose(logits, other[task], atol=1e-5)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_row_goes_to_one_process(world: int, every: MultiTaskModel, data: RecipeData) -> None:
    rows = rows_of(*range(1, 60, 3))
    encoded = encode(data.tokenizer, rows, reading_of(every.specs, data.tokenizer))
    layout, features = encoded.layout(rows), list(encoded.features())
    lengths = np.array([len(feature["input_ids"]) for feature in features])
    owners = np.full(len(features), -1)
    for rank in range(world):
        for batch in row_batches(layout, lengths, batch_size=4, max_tokens=10**6, process=(rank, world)):
            assert (owners[batch] == -1).all()
            owners[batch] = rank
            assert len(set((layout.windows[layout.rows[batch]] > 1).tolist())) == 1
    assert (owners >= 0).all()
    assert all(len(set(owners[layout.rows == row].tolist())) == 1 for row in range(len(rows)))


def test_a_model_cannot_be_made_that_reads_more_than_its_encoder(every: MultiTaskModel) -> None:
    with pytest.raises(SpecError, match=r"task 'long': max_length is 50; use 8 to 48"):
        copy.deepcopy(every).add_task(TaskSpec(name="long", type="regression", max_length=50))


# ---------------------------------------------------------------------- training and scores


@pytest.fixture(scope="module")
def trained(data: RecipeData, tmp_path_factory: pytest.TempPathFactory) -> tuple[MultiTaskTrainer, Path, Any]:
    """A trainer after some epochs, the folder of its model, and the model before."""
    folder = tmp_path_factory.mktemp("trained")
    model = build(data)
    before = copy.deepcopy(model)
    arguments = MultiTaskTrainingArguments(
        output_dir=str(folder), num_train_epochs=3, per_device_train_batch_size=8, learning_rate=3e-3,
        precision="fp32", disable_tqdm=True, save_strategy="no", per_device_eval_batch_size=5, logging_steps=5,
        eval_strategy="no", load_best_model_at_end=False,
    )  # fmt: skip
    trainer = MultiTaskTrainer(
        model, arguments, train_dataset=data.train, eval_dataset=data.validation, processing_class=data.tokenizer
    )
    trainer.train()
    trainer.save_model()
    return trainer, folder, before


def test_windows_train_every_parameter(trained: tuple[MultiTaskTrainer, Path, Any]) -> None:
    trainer, _, before = trained
    old = dict(before.named_parameters())
    for name, parameter in trainer.multi_task_model.named_parameters():
        assert not torch.equal(parameter, old[name]) or "position" in name, name
    losses = [entry["loss_tags"] for entry in trainer.state.log_history if "loss_tags" in entry]
    assert losses[-1] < losses[0]


def test_an_epoch_draws_every_labelled_window_once(
    trained: tuple[MultiTaskTrainer, Path, Any], data: RecipeData
) -> None:
    trainer = trained[0]
    split = data.train["long"]
    tags = tones = rows = 0
    for batch in trainer.get_train_dataloader():
        rows += len(batch["input_ids"])
        tags += int((batch["labels"]["tags"] != -100).sum())
        tones += len(batch["rows"]["tone"])
    assert rows == len(split.features)
    assert tags == sum(tag is not None for row in split.raw.dataset["tags"] for tag in row)
    assert tones == sum(row["tone"] is not None for row in (split.raw.dataset[int(n)] for n in split.rows))


def check_alike(found: Any, wanted: Any) -> None:
    """Numbers may differ by what the kernels do, all else must be equal."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            check_alike(found[key], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            check_alike(one, other)
    else:
        assert found == (pytest.approx(wanted, abs=1e-5) if isinstance(wanted, float) else wanted)


def raw_rows(data: RecipeData) -> list[dict[str, Any]]:
    return list(data.validation["long"].raw.dataset)


def check_scores(found: dict[str, Any], answers: Sequence[Answers], raw: Sequence[dict[str, Any]]) -> None:
    """Compare scores with what scikit-learn makes of the answers and the labels in the file."""
    pairs = [(own["tone"]["label"], row["tone"]) for own, row in zip(answers, raw, strict=True) if row["tone"]]
    assert len(pairs) == 10
    predicted, true = zip(*pairs, strict=True)
    assert found["tone"]["accuracy"] == pytest.approx(sk.accuracy_score(true, predicted))
    for task in ("tags", "first"):
        words = [
            (own, tag)
            for answered, row in zip(answers, raw, strict=True)
            for own, tag in zip(answered[task]["tags"], row["tags"], strict=True)
            if tag is not None
        ]
        predicted, true = zip(*words, strict=True)
        assert ("_" in predicted) == (task == "first")
        assert found[task]["accuracy"] == pytest.approx(sk.accuracy_score(true, predicted))


def test_trainer_evaluate_predict_and_pipeline_agree(
    trained: tuple[MultiTaskTrainer, Path, Any], data: RecipeData, tmp_path: Path
) -> None:
    trainer, folder, _ = trained
    raw = raw_rows(data)
    evaluated = trainer.evaluate()
    model = MultiTaskModel.from_pretrained(folder)
    again = load(data.recipe.base, data.recipe.to_dict(), tokenizer=data.tokenizer, tasks=model.specs)
    scores = score(model, data.tokenizer, again.validation)
    for task, values in scores.metrics.items():
        assert {key: evaluated[f"eval_{task}_{key}"] for key in values} == pytest.approx(values)
        assert evaluated[f"eval_{task}_loss"] == pytest.approx(scores.tasks[task].loss, rel=1e-5)
    assert [(spec.max_length, spec.stride) for spec in model.specs] == [(16, 5), (16, 5), (16, None)]

    write_rows(tmp_path / "asked.jsonl", [{"tokens": row["tokens"]} for row in raw])
    predict_file(model, data.tokenizer, tmp_path / "asked.jsonl", tmp_path / "answered.jsonl", precision="fp32")
    written = [json.loads(line)["predictions"] for line in (tmp_path / "answered.jsonl").read_text().splitlines()]
    check_scores(scores.metrics, written, raw)
    answers = pipeline("multi-task", model=str(folder))([{"tokens": row["tokens"]} for row in raw])
    check_alike(json.loads(json.dumps(answers)), written)


def test_each_example_counts_once(trained: tuple[MultiTaskTrainer, Path, Any], data: RecipeData) -> None:
    trainer = trained[0]
    raw, scores = raw_rows(data), trainer.score(data.validation)
    assert [own.row for own in scores.tasks["tone"].rows] == [n for n, row in enumerate(raw) if row["tone"]]
    assert [own.row for own in scores.tasks["tags"].rows] == list(range(12))
    model = trainer.multi_task_model.eval()
    logits = logits_of(model, data.tokenizer, [Inputs.of(tokens=row["tokens"]) for row in raw])
    loss = [
        torch.nn.functional.cross_entropy(torch.tensor(own["tone"]), torch.tensor("ab".index(row["tone"])))
        for own, row in zip(logits, raw, strict=True)
        if row["tone"] is not None
    ]
    assert scores.tasks["tone"].loss == pytest.approx(torch.stack(loss).mean().item(), rel=1e-5)


def test_processes_find_together_what_one_finds(trained: tuple[MultiTaskTrainer, Path, Any], data: RecipeData) -> None:
    """Two threads stand for processes, and join their lists as `gather_object` does."""
    model = trained[0].multi_task_model
    barrier, shared = threading.Barrier(2, timeout=60), [[], []]

    def score_as(rank: int) -> Scores:
        def gather(own: list[Any]) -> list[Any]:
            shared[rank] = own
            barrier.wait()
            joined = [*shared[0], *shared[1]]
            barrier.wait()
            return joined

        return score(model, data.tokenizer, data.validation, batch_size=3, process=(rank, 2), gather=gather)

    alone = score(model, data.tokenizer, data.validation, batch_size=3)
    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(score_as, range(2)):
            assert found.metrics == alone.metrics
            for task, wanted in alone.tasks.items():
                assert [own.row for own in found.tasks[task].rows] == [own.row for own in wanted.rows]
                assert found.tasks[task].loss == pytest.approx(wanted.loss, rel=1e-6)


def test_a_split_read_otherwise_than_the_model_reads_is_refused(data: RecipeData, every: MultiTaskModel) -> None:
    model = without_windows(build(data))
    with pytest.raises(SpecError, match=r"task 'tone': the model's task has another max_length or stride"):
        MultiTaskTrainer(model, train_dataset=data.train)
