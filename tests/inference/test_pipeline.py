"""`pipeline("multi-task")`: every kind of input, answers in plain JSON, offsets that point at what they say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch
from transformers import PreTrainedTokenizerBase, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import hf_mtl.auto  # noqa: F401 (registers the pipeline)
from hf_mtl.errors import DataError, SpecError
from hf_mtl.inference.pipeline import MultiTaskPipeline
from hf_mtl.model.modeling import MultiTaskModel

TASKS = ["sentiment", "intent", "slots", "grammar", "similarity", "moods"]
TEXTS = ["the film was great", "fly to new york", "a", "good " * 12, "play music for ann and bob"]


@pytest.fixture
def pipe(model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase) -> MultiTaskPipeline:
    return MultiTaskPipeline(model=model, tokenizer=tokenizer)


def close(found: Any, wanted: Any, *, tolerance: float = 1e-5) -> bool:
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(close(found[k], wanted[k], tolerance=tolerance) for k in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(
            close(a, b, tolerance=tolerance) for a, b in zip(found, wanted, strict=True)
        )
    return found == pytest.approx(wanted, abs=tolerance)


def test_a_folder_is_all_that_pipeline_needs(saved: Path, pipe: MultiTaskPipeline) -> None:
    loaded = pipeline("multi-task", model=str(saved))
    assert isinstance(loaded, MultiTaskPipeline)
    assert loaded(TEXTS) == pipe(TEXTS)


def test_a_text_gives_every_task_in_order_with_its_keys(pipe: MultiTaskPipeline) -> None:
    answer = pipe("the film was great")
    assert list(answer) == TASKS
    assert set(answer["sentiment"]) == {"label", "score", "scores"}
    assert answer["sentiment"]["score"] == answer["sentiment"]["scores"][answer["sentiment"]["label"]]
    assert sum(answer["sentiment"]["scores"].values()) == pytest.approx(1.0)
    assert set(answer["moods"]) == {"labels", "scores"}
    assert set(answer["similarity"]) == {"value"}
    assert set(answer["slots"]) == {"spans"}
    assert set(answer["grammar"]["spans"][0]) == {"label", "text", "start", "end", "score"}


def test_tokens_give_one_tag_each(pipe: MultiTaskPipeline) -> None:
    answer = pipe({"tokens": ["fly", "to", "new", "york"]})
    assert len(answer["slots"]["tags"]) == len(answer["grammar"]["tags"]) == 4
    assert all("fly to new york"[s["start"] : s["end"]] == s["text"] for s in answer["grammar"]["spans"])


def test_every_kind_of_input_gives_the_same_answers(pipe: MultiTaskPipeline) -> None:
    wanted = [pipe(text) for text in TEXTS]
    dataset = datasets.Dataset.from_dict({"text": TEXTS, "id": list(range(len(TEXTS)))})
    inputs = {
        "list": TEXTS,
        "tuple": tuple(TEXTS),
        "mappings": [{"text": text, "id": 1} for text in TEXTS],
        "generator": (text for text in TEXTS),
        "dataset": dataset,
        "column": dataset["text"],
        "key": KeyDataset(dataset, "text"),
    }
    for kind, given in inputs.items():
        assert close(list(pipe(given)), wanted), kind


def test_a_pair_is_read_as_a_pair(pipe: MultiTaskPipeline) -> None:
    pair = pipe({"text": "the film", "text_pair": "a story"}, tasks="similarity")
    assert not close(pair, pipe("the film", tasks="similarity"))
    assert close(pair, pipe([{"text": "the film", "text_pair": "a story"}, "the film"], tasks="similarity")[0])


def test_a_list_gives_a_list_and_an_iterable_an_iterator(pipe: MultiTaskPipeline) -> None:
    assert pipe([]) == []
    assert isinstance(pipe(["a"]), list)
    assert isinstance(pipe(text for text in ["a"]), Iterator)


def test_a_generator_is_read_as_answers_are_taken(pipe: MultiTaskPipeline) -> None:
    taken: list[int] = []

    def texts() -> Iterator[str]:
        for number in range(100):
            taken.append(number)
            yield f"text {number}"

    answers = pipe(texts(), batch_size=4, tasks="intent")
    assert taken == []
    next(answers)
    assert len(taken) == 4


def test_answers_are_plain_json(pipe: MultiTaskPipeline) -> None:
    answers = pipe([*TEXTS, {"tokens": ["fly", "to"]}])
    assert json.loads(json.dumps(answers, allow_nan=False)) == answers


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batched_equals_single(pipe: MultiTaskPipeline, batch_size: int) -> None:
    assert close(pipe(TEXTS, batch_size=batch_size), [pipe(text) for text in TEXTS])


def test_tasks_limit_the_answer_in_the_order_of_the_model(pipe: MultiTaskPipeline, saved: Path) -> None:
    whole = pipe("fly to oslo")
    assert close(pipe("fly to oslo", tasks=["moods", "intent"]), {name: whole[name] for name in ("intent", "moods")})
    assert list(pipe("fly to oslo", tasks="slots")) == ["slots"]
    assert list(pipeline("multi-task", model=str(saved), tasks=["moods"])("fly")) == ["moods"]
    assert list(pipeline("multi-task", model=str(saved), tasks=["moods"])("fly", tasks=["intent"])) == ["intent"]


def test_an_unknown_task_is_an_error_that_lists_the_tasks(pipe: MultiTaskPipeline, saved: Path) -> None:
    for ask in (lambda: pipe("a", tasks=["mood"]), lambda: pipeline("multi-task", model=str(saved), tasks="mood")):
        with pytest.raises(SpecError, match=r"no task 'mood'; choose from 'sentiment'.*'moods'"):
            ask()


def test_an_unknown_argument_is_an_error(pipe: MultiTaskPipeline) -> None:
    with pytest.raises(TypeError, match="unknown argument 'top_k'"):
        pipe("a", top_k=3)


@pytest.mark.parametrize(
    "text",
    [
        "我想去上海看电影。",
        "fly 🎬🎬 to 👩‍👩‍👧 rome🍕",
        "أريد الذهاب إلى باريس غداً",
        "cafe\u0301 nai\u0308ve Å A\u030a e\u0301",
        "मुझे दिल्ली जाना है",
        "ฉันไปกรุงเทพ",
        "東京タワーへ行く",
        "𝒻𝓁𝓎 𝓉𝑜 Ⓡⓞⓜⓔ ﬁlm İstanbul",
        "  spaces\u00a0and\u3000\ttabs  ",
        "a\u200bb\u00adc\ufeffd",
    ],
)
def test_offsets_point_at_the_text_in_any_script(pipe: MultiTaskPipeline, text: str) -> None:
    answer = pipe(text)
    spans = answer["grammar"]["spans"] + answer["slots"]["spans"]
    assert answer["grammar"]["spans"]
    for span in spans:
        assert text[span["start"] : span["end"]] == span["text"] != ""
        assert span["text"] == span["text"].strip()
    starts = [span["start"] for span in answer["grammar"]["spans"]]
    assert starts == sorted(set(starts))


def test_no_word_is_left_out_in_scripts_without_spaces(pipe: MultiTaskPipeline) -> None:
    spans = pipe("好电影 good")["grammar"]["spans"]
    assert [span["text"] for span in spans] == ["好", "电", "影", "good"]


@pytest.mark.parametrize(
    "text",
    [
        "x" * 100_000,
        "word " * 20_000,
        "好" * 100_000,
        "",
        "   \n\t ",
        "\x00",
        "a\x00b\x07\x1b[31m\x7f",
        "\ud800 lone",
        "\u200d\u0301",
    ],
    ids=["one word", "words", "chinese", "empty", "whitespace", "NUL", "control", "surrogate", "joiners"],
)
def test_odd_texts_get_an_answer(pipe: MultiTaskPipeline, text: str) -> None:
    for given in (text, {"text": text, "text_pair": text}, {"tokens": [text]}, {"tokens": [text, "good"]}):
        answer = pipe(given)
        assert list(answer) == TASKS
        json.dumps(answer, allow_nan=False)


def test_no_tokens_get_an_answer(pipe: MultiTaskPipeline) -> None:
    assert pipe({"tokens": []})["slots"] == {"spans": [], "tags": []}


def test_words_beyond_the_maximum_length_have_no_span(pipe: MultiTaskPipeline) -> None:
    text = "good " * 500
    ends = [span["end"] for span in pipe(text)["grammar"]["spans"]]
    assert 0 < max(ends) <= 5 * 48


@pytest.mark.parametrize("given", [None, 5, 2.5, b"bytes", object(), np.array("good")])
def test_what_is_no_input_is_refused_at_once(pipe: MultiTaskPipeline, given: Any) -> None:
    with pytest.raises(DataError, match="is no text"):
        pipe(given)


def test_a_table_is_not_taken_for_the_names_of_its_columns(pipe: MultiTaskPipeline) -> None:
    table = pandas.DataFrame({"text": ["good", "bad"]})
    with pytest.raises(DataError, match="a table is given; give table"):
        pipe(table)
    assert pipe(table.to_dict("records")) == pipe(["good", "bad"]) == pipe(table["text"].tolist())


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_batch_size_that_cannot_be_is_refused(pipe: MultiTaskPipeline, size: Any) -> None:
    with pytest.raises(SpecError, match=f"batch_size is {size}; give a whole number above 0"):
        pipe(["good"], batch_size=size)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "neither 'text' nor 'tokens'"),
        ({"txt": "a"}, "neither 'text' nor 'tokens'"),
        ({"text": None}, "neither 'text' nor 'tokens'"),
        ({"text": 5}, "text is 5"),
        ({"text": ["a"]}, r"text is \['a'\]"),
        ({"text": "a", "text_pair": 5}, "text_pair is 5"),
        ({"tokens": "fly to"}, "tokens is 'fly to'"),
        ({"tokens": ["fly", 5]}, "token 5 is not a string"),
    ],
)
def test_a_wrong_kind_of_value_is_named(pipe: MultiTaskPipeline, given: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        pipe(given)
    with pytest.raises(DataError, match=f"row 2: .*{problem}"):
        pipe(["good", given])


@pytest.mark.parametrize("row", [None, 5, ["a"], b"a"])
def test_a_row_of_a_wrong_kind_is_named(pipe: MultiTaskPipeline, row: Any) -> None:
    with pytest.raises(DataError, match=r"row 2: .*is no row"):
        pipe(["a", row])
    with pytest.raises(DataError, match=r"row 2: .*is no row"):
        list(pipe(each for each in ["a", row]))


def test_a_saved_pipeline_is_the_model_and_loads_again(pipe: MultiTaskPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "again")
    # The code of the model, and none that transformers copies beside it.
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == {"modeling_hf_mtl.py", "handler.py"}
    loaded = pipeline("multi-task", model=str(tmp_path / "again"))
    assert loaded(TEXTS) == pipe(TEXTS)


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"device": -1}, {"device": torch.device("cpu")}])
def test_a_device_can_be_named(saved: Path, pipe: MultiTaskPipeline, options: dict[str, Any]) -> None:
    loaded = pipeline("multi-task", model=str(saved), **options)
    assert loaded.device == torch.device("cpu")
    assert loaded("good") == pipe("good")


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_half_precision_answers_nearly_the_same(saved: Path, pipe: MultiTaskPipeline, dtype: Any) -> None:
    loaded = pipeline("multi-task", model=str(saved), dtype=dtype)
    assert loaded.model.dtype == torch.bfloat16
    ours, theirs = loaded(TEXTS, tasks=["moods"]), pipe(TEXTS, tasks=["moods"])
    scores = [[answer["moods"]["scores"] for answer in answers] for answers in (ours, theirs)]
    assert close(*scores, tolerance=0.1)
    json.dumps(ours)


def test_the_model_keeps_its_mode(model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase) -> None:
    pipe = MultiTaskPipeline(model=model, tokenizer=tokenizer)
    assert pipe("good film") == pipe("good film")
    assert not model.training
