"""`hf-mtl export`: one task as a folder that others load without this package, or all tasks as a graph."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from calling import call, contents
from transformers import AutoTokenizer, pipeline

from hf_mtl.configuration import TaskSpec
from hf_mtl.model.modeling import MultiTaskModel

TEXT = "fly to new york and play bob"


def test_spans_of_the_stock_pipeline_are_those_of_predict(trained: Path, tmp_path: Path) -> None:
    before = contents(trained)
    done = call("export", trained, "--task", "slots", "--output-dir", tmp_path / "slots")
    assert done.out == ""
    assert done.err.startswith(f"{tmp_path / 'slots'}: BertForTokenClassification, logits differ by ")
    assert contents(trained) == before
    stock = pipeline("token-classification", model=str(tmp_path / "slots"), aggregation_strategy="first")
    spans = json.loads(call("predict", trained, "--text", TEXT, "--task", "slots").out)["slots"]["spans"]
    found = [(item["entity_group"], item["start"], item["end"]) for item in stock(TEXT)]
    assert found == [(span["label"], span["start"], span["end"]) for span in spans]
    assert found


def test_a_classification_of_the_stock_pipeline_is_that_of_predict(trained: Path, tmp_path: Path) -> None:
    model = MultiTaskModel.from_pretrained(trained)
    model.add_task(TaskSpec(name="opinion", type="sequence_classification", labels=("good", "bad"), pooling="cls"))
    for part in (model, AutoTokenizer.from_pretrained(trained)):
        part.save_pretrained(tmp_path / "grown")
    call("export", tmp_path / "grown", "--format", "transformers", "--task=opinion", "--output-dir", tmp_path / "stock")
    found = pipeline("text-classification", model=str(tmp_path / "stock"))(TEXT, top_k=None)
    answer = json.loads(
        call("predict", tmp_path / "grown", "--text", TEXT, "--task", "opinion", "--precision", "fp32").out
    )["opinion"]
    scores = {item["label"]: item["score"] for item in found}
    assert scores == pytest.approx(answer["scores"], abs=1e-6)


@pytest.mark.slow
def test_a_graph_is_compared_in_logits_and_scores_and_answers_like_the_model(
    trained: Path, recipe: Path, tmp_path: Path
) -> None:
    graph = tmp_path / "graph"
    done = call("export", trained, "--format=onnx", "--quantize=int8", "--recipe", recipe, "--output-dir", graph)
    said = re.fullmatch(
        r"(.*): ONNX graph in int8, logits differ by (\S+) in float32 and (\S+) quantized at most\n", done.err
    )
    assert said is not None
    assert said[1] == str(graph)
    assert float(said[2]) < 1e-5 < float(said[3])
    table = {
        cells[0]: cells[1:] for line in done.out.splitlines() if len(cells := re.split(r"\s*[│┃]\s*", line)[1:-1]) == 5
    }
    assert table["task"] == ["metric", "model", "graph", "difference"]

    for folder, column in ((trained, 1), (graph, 2)):
        found = json.loads(call("evaluate", folder, recipe, "--split", "validation", "--json").out)
        average = found.pop("average")
        assert float(table["average"][column]) == pytest.approx(average, abs=5e-5)
        for task, metrics in found.items():
            assert float(table[task][column]) == pytest.approx(metrics[table[task][0]], abs=5e-5)
    assert float(table["average"][3]) == pytest.approx(0.0, abs=0.05)

    answer, wanted = (json.loads(call("predict", folder, "--text", TEXT).out) for folder in (graph, trained))
    assert list(answer) == list(wanted)
    assert [span["text"] for span in answer["slots"]["spans"]] == [span["text"] for span in wanted["slots"]["spans"]]

    # A graph tells what it answers, and is no model to take apart.
    facts, known = (json.loads(call("info", folder, "--json").out) for folder in (graph, trained))
    assert [task["name"] for task in facts["tasks"]] == [task["name"] for task in known["tasks"]]
    assert [task["labels"] for task in facts["tasks"]] == [task["labels"] for task in known["tasks"]]
    assert facts["parameters"] is None
    assert "shared encoder" not in call("info", graph).out
    again = call("export", graph, "--format=onnx", "--output-dir", tmp_path / "again", fails=True)
    assert "it is an exported graph; export the model that it was made from" in again.err
    updates = call("task-updates", graph, recipe, "--output", tmp_path / "updates.html", fails=True)
    assert "an exported graph has no weights; name the model itself" in updates.err


def test_a_pooling_that_the_stock_class_does_not_know_is_an_error(trained: Path, tmp_path: Path) -> None:
    done = call("export", trained, "--task", "sentiment", "--output-dir", tmp_path / "stock", fails=True)
    assert done.code == 1
    assert done.err == (
        "error: task 'sentiment': its pooling is 'mean', and BertForSequenceClassification knows 'cls'; "
        "train it with pooling 'cls', or share the model itself\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a stock model answers one task, not 6; name one of 'sentiment', 'intent'"),
        (["--task", "slots", "--task", "grammar"], "a stock model answers one task, not 2; name one of 'slots', 'gr"),
        (["--task", "topic"], "the model has no task 'topic'; choose from 'sentiment'"),
        (["--task", "slots", "--format", "onyx"], "'onyx' is not a format of export; use one of"),
        (["--task", "slots", "--quantize", "int8"], "quantize is 'int8', which the format 'transformers' does not kn"),
        (["--format", "onnx", "--quantize", "int4"], "quantize is 'int4', which the format 'onnx' does not know; use"),
        (["--format", "onnx", "--split", "dev"], "split is 'dev'"),
        (["--task", "slots", "--recipe", "recipe.yaml"], "--recipe does not go with --format transformers; leave it"),
    ],
)
def test_wrong_arguments_are_one_readable_line(
    arguments: list[str], message: str, trained: Path, tmp_path: Path
) -> None:
    done = call("export", trained, *arguments, "--output-dir", tmp_path / "stock", fails=True)
    assert done.code == 1
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = call("export", "no/such/model", "--task", "slots", "--output-dir", tmp_path, fails=True)
    assert done.err == f"error: {tmp_path}: the folder holds mine.txt; name another folder\n"


def test_a_folder_to_write_must_be_named(trained: Path) -> None:
    done = call("export", trained, "--task", "slots", fails=True)
    assert done.code == 2
    assert "--output-dir" in done.err
