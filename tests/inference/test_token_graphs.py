"""Answers of tasks that read a dependency graph: rows with one, without one, in windows; no exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_encoder
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import DataError, ModelError
from hf_mtl.inference.export import export_model
from hf_mtl.inference.pipeline import MultiTaskPipeline
from hf_mtl.inference.predictor import Predictor
from hf_mtl.model.modeling import MultiTaskModel

WORDS = ["fly", "zebra", "to", "new", "oslo"]
HEADS = [0, 5, 5, 5, 1]
TAGS = ("NOUN", "VERB", "ADP", "ADJ")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("graphs") / "encoder")


@pytest.fixture(scope="module")
def tokenizer(encoder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(encoder)


def model_of(encoder: Path, *, token_graph: bool = True, **options: Any) -> MultiTaskModel:
    """Make a model whose edges say much."""
    graph = {"token_graph": token_graph}
    tasks = [
        TaskSpec(name="tags", type="token_classification", labels=TAGS, **graph, **options),
        TaskSpec(name="stars", type="regression", **graph, **options),
        TaskSpec(name="plain", type="regression", pooling="cls", **options),
    ]
    model = MultiTaskModel.from_encoder(str(encoder), tasks).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if not name.startswith("encoder."):
            parameter.data.normal_(generator=generator)
    return model


@pytest.fixture(scope="module")
def model(encoder: Path) -> MultiTaskModel:
    return model_of(encoder)


def pipe_of(model: MultiTaskModel, tokenizer: Any) -> MultiTaskPipeline:
    return MultiTaskPipeline(model=model, tokenizer=tokenizer)


def numbers(answers: dict[str, Any]) -> dict[str, float]:
    return {name: answers[name]["value"] for name in ("stars", "plain")}


def test_a_graph_changes_the_answers_of_the_tasks_that_read_it(model: MultiTaskModel, tokenizer: Any) -> None:
    pipe = pipe_of(model, tokenizer)
    chain, tree = pipe([{"tokens": WORDS}, {"tokens": WORDS, "heads": HEADS}])
    assert abs(tree["stars"]["value"] - chain["stars"]["value"]) > 1e-3
    assert tree["plain"]["value"] == pytest.approx(chain["plain"]["value"], abs=1e-5)
    alone = pipe({"tokens": WORDS, "heads": HEADS}, tasks=["stars"])["stars"]["value"]
    assert alone == pytest.approx(tree["stars"]["value"], abs=1e-5)
    (predicted,) = Predictor(model, tokenizer, precision="fp32").answer([{"tokens": WORDS, "heads": HEADS}])
    assert numbers(predicted["predictions"]) == pytest.approx(numbers(tree), abs=1e-5)


def test_plain_texts_fall_back_to_neighbours(model: MultiTaskModel, tokenizer: Any) -> None:
    pipe = pipe_of(model, tokenizer)
    rows: list[Any] = [" ".join(WORDS), {"tokens": WORDS}, {"tokens": WORDS, "heads": [0, 1, 2, 3, 4]}]
    text, tokens, chain = map(numbers, pipe(rows))
    assert text == pytest.approx(tokens, abs=1e-5)
    assert chain == pytest.approx(tokens, abs=1e-5)
    # Whether or not another task is asked that answers word by word.
    assert pipe(rows[0], tasks=["stars"])["stars"]["value"] == pytest.approx(text["stars"], abs=1e-5)


def test_a_row_with_tokens_and_heads_is_read_as_tokens(model: MultiTaskModel, tokenizer: Any) -> None:
    row: Any = {"text": "something else", "tokens": WORDS, "heads": HEADS}
    pipe = pipe_of(model, tokenizer)
    assert numbers(pipe(row)) == pytest.approx(numbers(pipe({"tokens": WORDS, "heads": HEADS})), abs=1e-5)


def test_batch_mates_change_nothing(model: MultiTaskModel, tokenizer: Any) -> None:
    rows: list[Any] = [
        {"tokens": WORDS, "heads": HEADS},
        "a film",
        {"tokens": ["zebra"]},
        {"text": "a", "text_pair": "b c"},
    ]
    pipe = pipe_of(model, tokenizer)
    for row, together in zip(rows, pipe(rows), strict=True):
        assert numbers(pipe(row)) == pytest.approx(numbers(together), abs=1e-5)


def test_bad_graphs_name_their_row(model: MultiTaskModel, tokenizer: Any) -> None:
    rows: list[Any] = [{"tokens": WORDS}, {"tokens": WORDS, "heads": [0, 1]}]
    with pytest.raises(DataError, match="row 2: there are 2 heads for 5 words"):
        pipe_of(model, tokenizer)(rows)
    good, bad = Predictor(model, tokenizer).answer(rows)
    assert "predictions" in good
    assert "there are 2 heads for 5 words" in bad["error"]


def test_models_without_a_graph_do_not_read_heads(encoder: Path, tokenizer: Any) -> None:
    row: Any = {"tokens": WORDS, "heads": "not theirs"}
    assert "tags" in pipe_of(model_of(encoder, token_graph=False), tokenizer)(row)


def test_long_texts_are_read_in_windows(encoder: Path, tokenizer: Any) -> None:
    words = WORDS * 6
    heads = [head and head + 5 * place for place in range(6) for head in HEADS]
    model = model_of(encoder, max_length=16, stride=4)
    answers = pipe_of(model, tokenizer)({"tokens": words, "heads": heads})
    assert len(answers["tags"]["tags"]) == len(words)
    assert None not in answers["tags"]["tags"]


@pytest.mark.parametrize("format", ["onnx", "openvino", "transformers"])
def test_what_reads_a_graph_is_not_exported(format: str, model: MultiTaskModel, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"passes messages along the dependency graph of a text \(token_graph\)"):
        export_model(model, tokenizer, tmp_path / "out", format=format, tasks=["tags"])
    assert not (tmp_path / "out").exists()
