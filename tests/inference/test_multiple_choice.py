"""Multiple choice from a recipe to its answers: beside other tasks, in files, on the command line, explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import build, load, write_quiz

from hf_mtl.cli import main
from hf_mtl.cli.check import describe
from hf_mtl.data.drafting import draft_recipe
from hf_mtl.data.preparation import RecipeData
from hf_mtl.data.recipe import read_recipe
from hf_mtl.errors import DataError, ModelError, SpecError
from hf_mtl.evaluation.prediction import answer, collator_for
from hf_mtl.evaluation.scoring import score
from hf_mtl.explain.explainer import Explainer
from hf_mtl.explain.probing import layer_probe
from hf_mtl.inference.bulk import predict_file
from hf_mtl.inference.export import export_model
from hf_mtl.inference.labelling import label_file
from hf_mtl.inference.loading import load_model
from hf_mtl.inference.pipeline import MultiTaskPipeline
from hf_mtl.inference.predictor import Columns
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.meta_learning_adaptation import FewRows

QUESTION = {"text": "the old film was", "choices": ["bad songs", "a good story", "awful"]}

QUIZ = {"name": "quiz", "type": "multiple_choice", "dataset": "quiz", "label": "right"}


@pytest.fixture(scope="module")
def data(tiny_recipe: dict[str, Any], tiny_folder: Path) -> RecipeData:
    """Rows with choices, and films, which have none."""
    datasets = {"films": tiny_recipe["datasets"]["films"], "quiz": write_quiz(tiny_folder, rows=64)}
    tasks = [
        QUIZ,
        {"name": "sentiment", "type": "sequence_classification", "dataset": "films", "label": "label"},
        {"name": "right_place", "type": "sequence_classification", "dataset": "quiz", "label": "right"},
    ]
    return load(tiny_folder, {**tiny_recipe, "datasets": datasets, "tasks": tasks})


@pytest.fixture(scope="module")
def model(data: RecipeData) -> MultiTaskModel:
    """A model that learnt to choose what is good, from batches that hold rows of both datasets; not to be changed."""
    model = build(data).train()
    collator = collator_for(model, data.tokenizer)
    features = [split.features[row] for split in data.train.values() for row in range(len(split))]
    batches = [collator(features[start::4]) for start in range(4)]
    assert all({"quiz", "sentiment"} <= batch["labels"].keys() for batch in batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(30):
            for batch in batches:
                optimizer.zero_grad()
                model(**batch).loss.backward()
                optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def pipe(model: MultiTaskModel, data: RecipeData) -> MultiTaskPipeline:
    return MultiTaskPipeline(model=model, tokenizer=data.tokenizer)


def rows_of(data: RecipeData) -> list[dict[str, Any]]:
    return [{"text": row["text"], "choices": row["options"]} for row in data.validation["quiz"].raw.dataset]


def test_what_makes_a_choice_right_is_learnt(model: MultiTaskModel, data: RecipeData, pipe: MultiTaskPipeline) -> None:
    scores = score(model, data.tokenizer, data.validation)
    assert scores.tasks["quiz"].metrics["accuracy"] > 0.9
    assert scores.tasks["sentiment"].metrics["accuracy"] > 0.7
    gold = data.validation["quiz"].gold(data.recipe.tasks[0])
    found = [own["quiz"]["index"] for own in pipe(rows_of(data))]
    right = np.mean([own == true for own, true in zip(found, gold, strict=True) if true is not None])
    assert right == pytest.approx(scores.tasks["quiz"].metrics["accuracy"])
    # The loss is that of the probabilities that are answered.
    chances = [own["quiz"]["scores"] for own in pipe(rows_of(data))]
    losses = [-np.log(own[true]) for own, true in zip(chances, gold, strict=True) if true is not None]
    assert scores.tasks["quiz"].loss == pytest.approx(np.mean(losses), rel=1e-4)


def test_an_answer_names_the_choice_and_has_the_chances_of_all(pipe: MultiTaskPipeline) -> None:
    found = pipe(QUESTION)["quiz"]
    assert (found["choice"], found["index"]) == ("a good story", 1)
    assert found["score"] == max(found["scores"]) == found["scores"][1]
    assert sum(found["scores"]) == pytest.approx(1.0)
    assert len(found["scores"]) == 3
    pair = pipe({**QUESTION, "text_pair": "which?", "choices": ("great", "dull")})["quiz"]
    assert pair["choice"] == "great"
    tokens = pipe({"tokens": ["the", "old", "film", "was"], "choices": QUESTION["choices"]})["quiz"]
    assert tokens["scores"] == pytest.approx(found["scores"], abs=1e-6)


def test_rows_of_a_batch_are_answered_as_each_alone(pipe: MultiTaskPipeline, data: RecipeData) -> None:
    """Whatever the number of choices; and a row without choices has no answer to this task, but to the others."""
    given = [*rows_of(data), "a lovely film", {"text": "a dull film", "choices": None}, QUESTION]
    together = pipe(given, batch_size=len(given))
    for row, own in zip(given, together, strict=True):
        alone = pipe(row)
        assert own["quiz"]["scores"] == pytest.approx(alone["quiz"]["scores"], abs=1e-5)
        assert own["quiz"]["index"] == alone["quiz"]["index"]
        assert own["sentiment"]["scores"] == pytest.approx(alone["sentiment"]["scores"], abs=1e-5)
    for own in together[-3:-1]:
        assert own["quiz"] == {"choice": None, "index": None, "score": None, "scores": []}
        assert own["sentiment"]["label"] in ("pos", "neg")


def test_only_a_model_that_chooses_reads_choices(data: RecipeData) -> None:
    other = build(data).eval()
    other.remove_task("quiz")
    pipe = MultiTaskPipeline(model=other, tokenizer=data.tokenizer)
    assert pipe({"text": "good", "choices": "no list"}) == pipe("good")


def test_choices_too_long_to_be_read_are_an_error(pipe: MultiTaskPipeline, data: RecipeData) -> None:
    long = {"text": "which", "choices": ["good " * 50, "bad"]}
    with pytest.raises(DataError, match="row 2: its 2 choices alone are longer than the 48 tokens that are read"):
        pipe([QUESTION, long])
    cut = {**QUESTION, "text": "songs " * 100}
    assert pipe(cut)["quiz"]["choice"] == "a good story"
    assert pipe({**cut, "choices": [*QUESTION["choices"], "dull"]})["quiz"]["index"] == 1
    read = pipe.preprocess(QUESTION)["rows"]
    unchecked = [read[0].of("which", choices=long["choices"])]
    assert answer(pipe.model, data.tokenizer, unchecked)[0]["quiz"]["choice"] is None  # rather than a part of them


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_files_of_rows_are_answered_row_by_row(
    model: MultiTaskModel, data: RecipeData, pipe: MultiTaskPipeline, tmp_path: Path, ending: str
) -> None:
    rows = [*rows_of(data)[:5], {"text": "no choices"}, {"text": "x", "choices": ["one"]}]
    rows.append({"text": "which", "choices": ["good " * 50, "bad"]})
    named = [{"text": row["text"], "options": row.get("choices")} for row in rows]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    target = tmp_path / f"out.{ending}"
    done = predict_file(
        model, data.tokenizer, tmp_path / "in.jsonl", target, columns=Columns(choices="options"), precision="fp32"
    )
    assert (done.rows, done.errors) == (8, 2)
    if ending == "parquet":
        import pyarrow.parquet as pq

        found = pq.read_table(target).to_pylist()
    else:
        found = [json.loads(line) for line in target.read_text().splitlines()]
    wanted = pipe(rows[:6])
    for own, true in zip(found, wanted, strict=False):
        assert own["predictions"]["quiz"]["choice"] == true["quiz"]["choice"]
        assert own["predictions"]["quiz"]["scores"] == pytest.approx(true["quiz"]["scores"], abs=1e-5)
    assert "give choices as a list of two texts or more" in found[6]["error"]
    assert "its 2 choices alone are longer" in found[7]["error"]


def test_the_command_line_answers_and_explains(
    model: MultiTaskModel, data: RecipeData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "model")
    data.tokenizer.save_pretrained(tmp_path / "model")
    choices = [part for text in QUESTION["choices"] for part in ("--choice", text)]
    asked = [str(tmp_path / "model"), "--text", QUESTION["text"], *choices, "--precision", "fp32"]
    call("predict", *asked)
    found = json.loads(capsys.readouterr().out)
    assert found["quiz"]["choice"] == "a good story"
    (tmp_path / "in.jsonl").write_text(json.dumps(QUESTION) + "\n")
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    call("predict", asked[0], *files, "--precision", "fp32")
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row["choices"] == QUESTION["choices"]
    assert row["predictions"]["quiz"]["scores"] == pytest.approx(found["quiz"]["scores"], abs=1e-5)
    out = tmp_path / "why.json"
    call("explain", *asked[:-2], "--task", "quiz", "--over", "runner-up", "--output", str(out))
    assert "a good story rather than" in out.read_text()
    loaded, tokenizer = load_model(tmp_path / "model", dtype="fp32")
    again = MultiTaskPipeline(model=loaded, tokenizer=tokenizer)(QUESTION)
    assert again["quiz"] == MultiTaskPipeline(model=model, tokenizer=data.tokenizer)(QUESTION)["quiz"]
    call("predict", *asked[:3], "--choice", "one", fails=True)
    assert "give choices as a list of two texts or more" in capsys.readouterr().err


def call(*arguments: str, fails: bool = False) -> None:
    code: Any = 0
    try:
        main(list(arguments))
    except SystemExit as stop:
        code = stop.code
    assert bool(code) == fails


# ---------------------------------------------------------------------- why


@pytest.mark.parametrize("method", ["auto", "accurate", "attn_lrp", "integrated_gradients", "occlusion", "rollout"])
def test_every_method_explains_a_choice(model: MultiTaskModel, data: RecipeData, method: str) -> None:
    why = Explainer(model, data.tokenizer).explain(QUESTION, "quiz", method=method)["quiz"]
    assert (why.target, why.predicted, why.measure) == ("a good story", "a good story", "probability")
    assert set(why.words) == {"the", "old", "film", "was", "bad", "songs", "a", "good", "story", "awful"}
    assert why.probability == pytest.approx(pipe_score(model, data), abs=1e-5)
    assert why.text_pair is not None
    for unit in why.units:
        text = why.text if unit.part == 0 else why.text_pair
        assert text[unit.start : unit.end] == unit.text
    if method == "auto":
        assert why.method == "attn_lrp"
        assert why.words[int(np.argmax(why.scores))] in ("good", "bad", "awful")
        assert why.report()
        assert why.verify().alone
        assert "good" in why._repr_html_()


def pipe_score(model: MultiTaskModel, data: RecipeData) -> float:
    return MultiTaskPipeline(model=model, tokenizer=data.tokenizer)(QUESTION)["quiz"]["score"]


@pytest.mark.parametrize(("target", "over"), [("awful", None), ("bad songs", "a good story"), (None, "runner-up")])
def test_what_is_explained_is_a_difference_of_logits(
    model: MultiTaskModel, data: RecipeData, target: str | None, over: str | None
) -> None:
    explainer = Explainer(model, data.tokenizer)
    wanted = {key: value for key, value in (("label", target), ("over", over)) if value}
    why = explainer.explain(QUESTION, "quiz", target=wanted)["quiz"]
    chances = np.log(MultiTaskPipeline(model=model, tokenizer=data.tokenizer)(QUESTION)["quiz"]["scores"])
    order = np.argsort(-chances)
    texts = QUESTION["choices"]
    label = int(order[0]) if target is None else texts.index(target)
    others = [int(order[1])] if over == "runner-up" else [place for place in range(3) if place != label]
    others = [texts.index(over)] if over in texts else others
    origin = why.require_origin()
    subject, text = origin.subject, origin.text
    found = subject.score(text, origin.target, "quiz", subject.forward(text, ["quiz"]))
    assert found.item() == pytest.approx(chances[label] - chances[others].mean(), abs=1e-4)
    # The same from the pass that takes words away; choices are masked, so that there is still something to choose.
    removed = np.zeros((3, len(text.units)), dtype=bool)
    removed[1, [unit.part == 1 for unit in text.units]] = True
    removed[2] = True
    for how in ("delete", "mask"):
        measured = subject.measure(text, removed, {"quiz": origin.target}, how=how)["quiz"]
        assert measured.scores[0] == pytest.approx(found.item(), abs=1e-4)
        assert np.isfinite(measured.scores).all()
        masked = pipe_masked(model, data, text, removed[1])
        assert measured.probabilities[1] == pytest.approx(masked[label], abs=1e-4)


def pipe_masked(model: MultiTaskModel, data: RecipeData, text: Any, units: np.ndarray) -> np.ndarray:
    ids = torch.from_numpy(text.input_ids)[None].clone()
    ids[0, torch.from_numpy(text.tokens_of(units))] = data.tokenizer.unk_token_id
    with torch.no_grad():
        logits = (model(input_ids=ids).logits or {})["quiz"][0, :, 0]
    means = torch.stack([logits[start:end].mean() for start, end in text.words.choices.tokens.tolist()])
    return means.softmax(dim=0).numpy()


def test_attention_views_and_parts_of_the_model_know_choices(model: MultiTaskModel, data: RecipeData) -> None:
    explainer = Explainer(model, data.tokenizer)
    assert "story" in explainer.attention_view(QUESTION, tasks=["quiz"]).html
    with pytest.raises(SpecError, match="no choices to explain; give its choices"):
        explainer.explain("a film", "quiz")
    with pytest.raises(DataError, match="more than the 48 tokens"):
        explainer.explain({**QUESTION, "text": "film " * 60}, "quiz")
    with pytest.raises(SpecError, match="task 'quiz': it compares the choices of a row"):
        layer_probe(model, data.tokenizer, data.train, data.validation, tasks=["quiz"])  # type: ignore[arg-type]


def test_the_stock_export_says_why_there_is_none(model: MultiTaskModel, data: RecipeData, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="AutoModelForMultipleChoice reads one sequence per choice, this task one"):
        export_model(model, data.tokenizer, tmp_path / "stock", tasks=["quiz"])


# ---------------------------------------------------------------------- what is said about the data


def test_check_counts_choices_and_places(data: RecipeData) -> None:
    entry = next(own for own in describe(data)["tasks"] if own["task"] == "quiz" and own["split"] == "train")
    split: Any = data.train["quiz"]
    rows = [row for row in split.raw.dataset if row["right"] is not None]
    assert entry["labelled"] == len(rows) == sum(entry["choices"].values()) == sum(entry["right"].values())
    assert entry["choices"] == {str(n): sum(len(row["options"]) == n for row in rows) for n in (2, 3)}
    assert entry["right"] == {str(n): sum(row["right"] == n for row in rows) for n in range(3)}


@pytest.mark.parametrize("by_text", [False, True])
def test_check_counts_the_choices_of_a_stream_alike(
    data: RecipeData, tiny_folder: Path, tmp_path: Path, by_text: bool
) -> None:
    rows = [json.loads(line) for line in (tiny_folder / "quiz-train.jsonl").read_text().splitlines()]
    for row in rows:
        if by_text and row["right"] is not None:
            row["right"] = row["options"][row["right"]]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quiz = {**data.recipe.to_dict()["datasets"]["quiz"], "train": str(tmp_path / "train.jsonl"), "streaming": True}
    streamed = load(tiny_folder, {**data.recipe.to_dict(), "datasets": {"quiz": quiz}, "tasks": [QUIZ]})
    found, wanted = (
        next(own for own in describe(each)["tasks"] if own["task"] == "quiz" and own["split"] == "train")
        for each in (streamed, data)
    )
    assert found == wanted


@pytest.mark.parametrize("by_text", [False, True])
def test_a_recipe_with_choices_is_drafted(tmp_path: Path, by_text: bool) -> None:
    known = write_quiz(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / known["train"]).read_text().splitlines()]
    for row in rows:
        if by_text and row["right"] is not None:
            row["right"] = row["options"][row["right"]]
        row["kind"] = "film"
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(draft_recipe([tmp_path / "data.jsonl"], recipe=path))
    recipe = read_recipe(path)
    assert recipe.datasets["data"].input_columns == {"text": "text", "choices": "options"}
    assert [(task.label, task.spec.type) for task in recipe.tasks] == [("right", "multiple_choice")]


@pytest.mark.parametrize("by_text", [False, True])
def test_missing_labels_are_filled_as_the_rows_have_them(
    model: MultiTaskModel, data: RecipeData, tiny_folder: Path, tmp_path: Path, by_text: bool
) -> None:
    rows = [json.loads(line) for line in (tiny_folder / "quiz-train.jsonl").read_text().splitlines()]
    true = [row["options"][row["right"]] if row["right"] is not None else None for row in rows]
    for number, row in enumerate(rows):
        row["right"] = None if number % 3 == 0 else true[number] if by_text else row["right"]
    (tmp_path / "open.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = tmp_path / "filled.jsonl"
    done = label_file(
        model, data.tokenizer, data.recipe, target, source=tmp_path / "open.jsonl", tasks=["quiz"], threshold=0.5
    )
    assert done.tasks[0].filled > 0.8 * done.tasks[0].missing
    filled = [json.loads(line) for line in target.read_text().splitlines()]
    for row, own, right in zip(rows, filled, true, strict=True):
        if row["right"] is None and own["right"] is not None and right is not None:
            assert (own["right"] if by_text else own["options"][own["right"]]) == right
    quiz = {**data.recipe.to_dict()["datasets"]["quiz"], "train": str(target)}
    again = load(tiny_folder, {**data.recipe.to_dict(), "datasets": {"quiz": quiz}, "tasks": [QUIZ]})
    assert len(again.train["quiz"].labelled("quiz")) > len(rows) * 0.8  # type: ignore[union-attr]


def test_few_rows_may_have_choices(tmp_path: Path, data: RecipeData) -> None:
    known = write_quiz(tmp_path)
    few = FewRows(
        task="new", type="multiple_choice", train=tmp_path / known["train"], choices="options", label="right", shots=4
    )
    assert len(few.load(data.tokenizer).train["few"]) == 4
