"""`hf-mtl meta-train` and `hf-mtl adapt`, end to end, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from calling import call

QUICK = ("--steps", 2, "--inner-steps", 1, "--shots", 2, "--batch-size", 4, "--tasks-per-step", 2)


@pytest.fixture(scope="module")
def meta_trained(recipe: Path, workspace: Path) -> Path:
    """Folder of a model that was meta-trained; not to be changed."""
    folder = workspace / "meta"
    done = call("meta-train", recipe, "--output-dir", folder, *QUICK)
    assert "step 2 of 2: loss " in done.err
    assert "test split" in done.out
    assert f"model: {folder}" in done.err
    return folder


def adapted(model: Path, data: Path, output: Path, *options: object, fails: bool = False, **columns: str) -> str:
    named = [word for name, value in columns.items() for word in (f"--{name.replace('_', '-')}", value)]
    done = call("adapt", model, "--task", "new", "--data", data, "--output", output, *named, *options, fails=fails)
    assert "Traceback" not in done.err
    return done.err if fails else done.out + done.err


def test_a_meta_trained_model_is_adapted_and_answers(meta_trained: Path, workspace: Path, tmp_path: Path) -> None:
    text = adapted(meta_trained, workspace / "films-train.jsonl", tmp_path / "new", "--steps", 20, "--shots", 4,
                   "--learning-rate", 3e-3, test=str(workspace / "films-test.jsonl"))  # fmt: skip
    assert "test rows" in text
    assert "8 rows; model: " in text
    done = call("predict", tmp_path / "new", "--text", "a lovely film")
    assert "new" in done.out
    assert "pos" in done.out or "neg" in done.out
    assert (tmp_path / "new" / "README.md").is_file()
    assert "the run in" in call("meta-train", workspace / "recipe.yaml", "--output-dir", meta_trained, "--resume").err


def test_any_trained_model_is_adapted_and_keeps_its_tasks_if_frozen(
    trained: Path, workspace: Path, tmp_path: Path
) -> None:
    columns = {"tokens": "tokens", "label": "slots", "type": "token_classification"}
    adapted(trained, workspace / "orders-train.jsonl", tmp_path / "new", "--steps", 2, "--freeze-encoder", **columns)
    info = json.loads(call("info", tmp_path / "new", "--json").out)
    assert [task["name"] for task in info["tasks"]][-2:] == ["moods", "new"]
    before = call("predict", trained, "--text", "a lovely film", "--task", "sentiment").out
    assert call("predict", tmp_path / "new", "--text", "a lovely film", "--task", "sentiment").out == before


BAD_ADAPT: dict[str, tuple[Sequence[object], Sequence[str]]] = {
    "no such file": (("--data", "none.jsonl"), ["none.jsonl", "there is no such file"]),
    "no such column": (("--label", "lable"), ["films-train.jsonl", "no column 'lable'", "did you mean 'label'?"]),
    "no such type": (("--type", "classification"), ["'classification'", "sequence_classification"]),
    "labels of another kind": (("--type", "regression"), ["films-train.jsonl", "a number was expected"]),
    "a taken name": (("--task", "sentiment"), ["the model has a task 'sentiment' already"]),
    "a name that cannot be": (("--task", "a.b"), ["task 'a.b'"]),
    "text and tokens": (("--text", "text", "--tokens", "tokens"), ["both text and tokens are given"]),
    "an output that is a file": (("--output", "{data}"), ["it is a file"]),
    "an output that is a model": (("--output", "{model}"), ["a model stands there", "give --overwrite"]),
    "a rate that cannot be": (("--learning-rate", "-1"), ["learning_rate is -1.0", "at least 0"]),
}


@pytest.mark.parametrize("case", BAD_ADAPT)
def test_bad_input_of_adapt_is_one_line(case: str, trained: Path, workspace: Path, tmp_path: Path) -> None:
    options, fragments = BAD_ADAPT[case]
    data = workspace / "films-train.jsonl"
    given = [str(word).format(data=data, model=trained) for word in options]
    error = adapted(trained, data, tmp_path / "new", *given, fails=True)
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    for fragment in fragments:
        assert fragment in error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("model", ["none", "encoder"])
def test_what_is_no_model_cannot_be_adapted(model: str, workspace: Path, tmp_path: Path) -> None:
    error = adapted(workspace / model, workspace / "films-train.jsonl", tmp_path / "new", fails=True)
    assert error.startswith(f"error: model '{workspace / model}': ")
    assert len(error.splitlines()) == 1


BAD_META: dict[str, tuple[Sequence[object], str]] = {
    "algorithm": (("--algorithm", "anil"), "algorithm is 'anil'; use one of 'reptile', 'fomaml', 'maml'"),
    "rate": (("--inner-rate", "0"), "inner_rate is 0.0; give a number above 0"),
    "both": (("--resume", "--overwrite"), "--resume and --overwrite are both given"),
    "shots": (("--shots", "500"), "leave none for a query"),
}


@pytest.mark.parametrize("case", BAD_META)
def test_bad_input_of_meta_train_is_one_line(case: str, recipe: Path, tmp_path: Path) -> None:
    options, message = BAD_META[case]
    done = call("meta-train", recipe, "--output-dir", tmp_path / "run", *options, fails=True)
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1
    assert message in done.err
    assert not (tmp_path / "run" / "recipe.yaml").exists()
