"""Bad input: one line that names the place and the mend, no traceback, and nothing that stood there is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from calling import OPTIONS, Called, call, call_process, contents

from hf_mtl.data.yaml import write_yaml

Recipe = dict[str, Any]
Change = Callable[[Path, Recipe], None]

REVIEWS = '{"text": "good film", "label": "pos"}\n{"text": "bad film", "label": "neg"}\n' * 4
VOICE = ("fly O\nto O\nrome B-city\n\n" * 4) + "play O\nann B-name\n"
PAIRS = "one,two,score\n" + "a film,a story,1.5\nthe music,old songs,2.5\n" * 4


@pytest.fixture
def place(workspace: Path, tmp_path: Path) -> Path:
    """A folder with data files, `recipe.yaml`, and an output folder with a file in it."""
    for name, content in (("reviews.jsonl", REVIEWS), ("voice.conll", VOICE), ("pairs.csv", PAIRS)):
        (tmp_path / name).write_text(content, encoding="utf-8")
    write_recipe(tmp_path, a_recipe(workspace / "encoder"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    return tmp_path


def a_recipe(encoder: Path) -> Recipe:
    return {
        "encoder": str(encoder),
        "datasets": {
            "reviews": {"train": "reviews.jsonl", "text": "text"},
            "voice": {"train": "voice.conll", "tokens": "tokens"},
            "pairs": {"train": "pairs.csv", "text": "one", "text_pair": "two"},
        },
        "tasks": [
            {"name": "mood", "type": "sequence_classification", "dataset": "reviews", "label": "label"},
            {"name": "slots", "type": "token_classification", "dataset": "voice", "label": "tags"},
            {"name": "likeness", "type": "regression", "dataset": "pairs", "label": "score"},
        ],
        "training": {"max_steps": 1},
    }


def write_recipe(folder: Path, recipe: Recipe) -> None:
    (folder / "recipe.yaml").write_text(write_yaml(recipe), encoding="utf-8")


def is_one_clear_line(done: Called, fragments: Sequence[str]) -> None:
    """Check an error's form, and that it says what it must."""
    assert done.code == 1
    assert done.out == ""
    assert "Traceback" not in done.err
    lines = done.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for fragment in fragments:
        assert fragment in lines[0]


def key(*path: str | int, value: Any) -> Change:
    """Change one value of the recipe."""

    def change(folder: Path, recipe: Recipe) -> None:
        inner: Any = recipe
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value

    return change


def data(name: str, content: str | bytes) -> Change:
    """Change a data file."""

    def change(folder: Path, recipe: Recipe) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def both(*changes: Change) -> Change:
    def change(folder: Path, recipe: Recipe) -> None:
        for one in changes:
            one(folder, recipe)

    return change


RECIPES: Mapping[str, tuple[Change, Sequence[str]]] = {
    "unknown key": (key("encodr", value=1), ["recipe.yaml", "unknown key 'encodr'", "did you mean 'encoder'?"]),
    "unknown key of a dataset": (
        key("datasets", "reviews", "txt", value="t"),
        ["recipe.yaml", "dataset 'reviews'", "unknown key 'txt'", "did you mean 'text'?"],
    ),
    "unknown key of a task": (
        key("tasks", 0, "lable", value="t"),
        ["recipe.yaml", "task 'mood'", "unknown key 'lable'", "did you mean 'label'?"],
    ),
    "unknown task type": (
        key("tasks", 0, "type", value="sequence_clasification"),
        ["recipe.yaml", "task 'mood'", "'sequence_clasification'", "sequence_classification"],
    ),
    "duplicate task name": (
        key("tasks", 1, "name", value="mood"),
        ["recipe.yaml", "two tasks are named 'mood'", "give every task its own name"],
    ),
    "a name that cannot be a head": (
        key("tasks", 0, "name", value="forward"),
        ["recipe.yaml", "task 'forward'", "choose another name"],
    ),
    "a name with a dot": (
        key("tasks", 0, "name", value="a.b"),
        ["recipe.yaml", "task 'a.b'", "use letters, digits"],
    ),
    "unknown dataset": (
        key("tasks", 0, "dataset", value="review"),
        ["recipe.yaml", "task 'mood'", "no dataset 'review'", "did you mean 'reviews'?"],
    ),
    "no tasks": (key("tasks", value=[]), ["recipe.yaml", "'tasks' is missing or empty"]),
    "tasks that are no list": (key("tasks", value={"mood": 1}), ["recipe.yaml", "tasks is {'mood': 1}, not a list"]),
    "unknown training argument": (
        key("training", "learning_rat", value=1),
        ["recipe.yaml, training", "unknown argument 'learning_rat'", "did you mean 'learning_rate'?"],
    ),
    "wrong type of a training argument": (
        key("training", "num_train_epochs", value="three"),
        ["recipe.yaml, training", "num_train_epochs is 'three'", "give a number"],
    ),
    "a training argument that is gone": (
        key("training", "warmup_ratio", value=0.1),
        ["unknown argument 'warmup_ratio'", "use warmup_steps"],
    ),
    "missing file": (
        key("datasets", "reviews", "train", value="review.jsonl"),
        ["dataset 'reviews'", "review.jsonl", "there is no such file", "did you mean 'reviews.jsonl'"],
    ),
    "missing column": (
        key("datasets", "reviews", "text", value="txt"),
        ["dataset 'reviews'", "reviews.jsonl", "no column 'txt'", "did you mean 'text'?"],
    ),
    "missing column of labels": (
        key("tasks", 0, "label", value="lable"),
        ["reviews.jsonl", "no column 'lable'", "task 'mood'", "did you mean 'label'?"],
    ),
    "empty dataset": (data("reviews.jsonl", ""), ["dataset 'reviews'", "reviews.jsonl", "no rows"]),
    "a CSV file with a header alone": (
        data("pairs.csv", "one,two,score\n"),
        ["dataset 'pairs'", "pairs.csv", "no rows"],
    ),
    "label not in the label set": (
        key("tasks", 0, "labels", value=["pos", "meh"]),
        ["reviews.jsonl, line 2", "task 'mood'", "'neg'", "pos"],
    ),
    "tags and tokens of different length": (
        both(
            data("voice.jsonl", '{"tokens": ["a", "b"], "tags": ["O", "B-x"]}\n{"tokens": ["a", "b"], "tags": ["O"]}'),
            key("datasets", "voice", "train", value="voice.jsonl"),
        ),
        ["voice.jsonl, line 2", "task 'slots'", "1 tags for 2 tokens", "give one tag per token"],
    ),
    "non-UTF-8 file": (
        data("reviews.jsonl", REVIEWS.encode() + '{"text": "schön", "label": "pos"}\n'.encode("latin-1")),
        ["reviews.jsonl, line 9", "not UTF-8", "save the file as UTF-8"],
    ),
    "malformed JSON line": (
        data("reviews.jsonl", REVIEWS + '{"text": "x", "label": \n'),
        ["reviews.jsonl, line 9", "not JSON", "write one JSON object on each line"],
    ),
    "ragged CoNLL line": (
        data("voice.conll", "fly O\nto O O\n"),
        ["voice.conll, line 2", "'to O O' has 3 columns, the first token line has 2"],
    ),
    "number expected": (
        data("pairs.csv", PAIRS + "x,y,much\n"),
        ["pairs.csv, line 10", "task 'likeness'", "'much'", "number"],
    ),
    "all rows unlabelled": (
        data("reviews.jsonl", '{"text": "good", "label": null}\n' * 4),
        ["dataset 'reviews'", "column 'label'", "task 'mood'", "there is no label"],
    ),
    "a text that is no text": (
        data("reviews.jsonl", '{"text": 1, "label": "pos"}\n{"text": 2, "label": "neg"}\n' * 4),
        ["reviews.jsonl, line 1", "text is 1"],
    ),
    "a file that is no gzip": (
        both(data("reviews.jsonl.gz", "plain"), key("datasets", "reviews", "train", value="reviews.jsonl.gz")),
        ["reviews.jsonl.gz", "cannot be read"],
    ),
    "a file that is no parquet": (
        both(data("reviews.parquet", "plain"), key("datasets", "reviews", "train", value="reviews.parquet")),
        ["reviews.parquet", "cannot be read"],
    ),
    "encoder folder missing": (
        key("encoder", value="./no-such-encoder"),
        ["no-such-encoder", "looked on disk", "no such folder", "correct the path"],
    ),
    "encoder missing on the Hub": (
        key("encoder", value="nobody/no-such-encoder"),
        ["'nobody/no-such-encoder'", "no such folder on disk", "the Hub", "correct the name"],
    ),
    "max_length beyond the encoder": (key("max_length", value=4096), ["max_length is 4096", "use 8 to 48"]),
    "no training rows": (
        both(
            lambda folder, recipe: recipe["tasks"].__delitem__(slice(1, None)),
            key("datasets", "reviews", value={"test": "reviews.jsonl", "text": "text"}),
        ),
        ["no training rows", "name training files"],
    ),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_bad_recipe_or_bad_data_is_one_clear_error(place: Path, workspace: Path, case: str) -> None:
    change, fragments = RECIPES[case]
    recipe = a_recipe(workspace / "encoder")
    change(place, recipe)
    write_recipe(place, recipe)
    (place / "out" / "model.safetensors").write_text("a model")  # which --overwrite would replace, if all were well
    before = contents(place)
    done = call("train", place / "recipe.yaml", "--output-dir", place / "out", "--overwrite", fails=True)
    is_one_clear_line(done, fragments)
    assert contents(place) == before


def test_without_a_change_it_trains(place: Path) -> None:
    call("train", place / "recipe.yaml", "--output-dir", place / "out", "--save-strategy", "no")
    assert (place / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ["recipe.yaml", "not a mapping"]),
        (b"- a\n- b\n", ["recipe.yaml", "not a mapping"]),
        (b"encoder: [", ["recipe.yaml", "not valid YAML"]),
        (b"encoder: a\nencoder: b\n", ["recipe.yaml, line 2", "'encoder' stands twice"]),
        (b"encoder: \xff\n", ["recipe.yaml", "UTF-8"]),
        (b"encoder: \x00\n", ["recipe.yaml, line 1", "YAML"]),
        (b"a:\n\tb: 1\n", ["recipe.yaml, line 2", "not valid YAML"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "check"])
def test_a_file_that_is_no_recipe_is_one_clear_error(
    tmp_path: Path, content: bytes, fragments: Sequence[str], command: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    options = ("--output-dir", tmp_path / "out") if command == "train" else ()
    is_one_clear_line(call(command, path, *options, fails=True), fragments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "fragments"), [("", ["directory"]), ("missing.yaml", ["missing.yaml", "no such file", "correct the path"])]
)
def test_a_recipe_that_is_no_file_is_one_clear_error(tmp_path: Path, path: str, fragments: Sequence[str]) -> None:
    done = call("train", tmp_path / path, "--output-dir", tmp_path / "out", fails=True)
    is_one_clear_line(done, [str(tmp_path), *fragments])


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--learning-rat", "1"], ["unknown argument 'learning_rat'", "did you mean 'learning_rate'?"]),
        (["--num-train-epochs", "three"], ["num_train_epochs is 'three'", "give a number"]),
        (["--bf16", "maybe"], ["bf16 is 'maybe'", "true or false"]),
        (["--optim", "adamm"], ["optim is 'adamm'"]),
        (["--eval-strategy", "no", "--load-best-model-at-end"], ["best model would not be saved"]),
        (["--metric-for-best-model", "mood_accurac"], ["'mood_accurac'", "did you mean 'mood_accuracy'?"]),
        (["stray"], ["'stray' is not an option", "--name value"]),
        (["--resume", "--overwrite"], ["--resume and --overwrite are both given", "give one of them"]),
    ],
)
def test_a_wrong_training_option_is_one_clear_error(place: Path, options: list[str], fragments: Sequence[str]) -> None:
    before = contents(place)
    is_one_clear_line(
        call("train", place / "recipe.yaml", "--output-dir", place / "out", *options, fails=True), fragments
    )
    assert contents(place) == before


def test_options_before_the_recipe_are_one_clear_error(place: Path) -> None:
    done = call("train", "--bf16", "true", place / "recipe.yaml", "--output-dir", place / "out", fails=True)
    is_one_clear_line(done, ["'--bf16' stands before the recipe", "write the recipe first"])


# ---------------------------------------------------------------------- output folders


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "train_results.json", "checkpoint-5/model.safetensors"]
)
def test_a_folder_that_holds_a_run_is_kept(place: Path, name: str) -> None:
    (place / "out" / name).parent.mkdir(exist_ok=True)
    (place / "out" / name).write_text("{}")
    before = contents(place)
    done = call("train", place / "recipe.yaml", "--output-dir", place / "out", fails=True)
    is_one_clear_line(done, [str(place / "out"), f"holds {name.split('/')[0]}", "--resume", "--overwrite"])
    assert contents(place) == before


@pytest.mark.parametrize("options", [(*OPTIONS, "--seed", "4"), ()])
def test_resuming_with_another_recipe_is_refused(trained: Path, recipe: Path, options: Sequence[str]) -> None:
    before = contents(trained)
    done = call("train", recipe, "--output-dir", trained, "--resume", *options, fails=True)
    is_one_clear_line(done, [str(trained), "another recipe", "resume with the same recipe and arguments"])
    assert contents(trained) == before


@pytest.mark.parametrize("where", ["recipe.yaml", "recipe.yaml/out", "/proc/none/out"])
def test_an_output_folder_that_cannot_be_made_is_one_clear_error(place: Path, where: str) -> None:
    before = contents(place)
    done = call("train", place / "recipe.yaml", "--output-dir", place / where, fails=True)
    is_one_clear_line(done, [where])
    assert contents(place) == before


# ---------------------------------------------------------------------- models


def broken(trained: Path, folder: Path, change: Callable[[Path], object]) -> Path:
    folder.mkdir()
    for path in trained.iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)
    change(folder)
    return folder


def edit_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def cut(name: str, length: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


MODELS: Mapping[str, tuple[Callable[[Path], object], Sequence[str]]] = {
    "an empty folder": (
        lambda folder: [path.unlink() for path in folder.iterdir()],
        ["has no config.json", "name a folder that holds a model"],
    ),
    "another model": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
        ["'bert'", "hf-mtl train"],
    ),
    "an unknown model type": (edit_config(lambda config: config.update(model_type="martian")), ["martian"]),
    "no model type": (edit_config(lambda config: config.pop("model_type")), ["model_type"]),
    "config cut off": (cut("config.json", 50), ["config.json"]),
    "config that is no mapping": (lambda folder: (folder / "config.json").write_text("[]"), ["config.json"]),
    "config without tasks": (edit_config(lambda config: config.pop("tasks")), ["tasks is empty"]),
    "config with a task without a name": (
        edit_config(lambda config: config["tasks"][0].pop("name")),
        ["'name' is missing"],
    ),
    "config with a wrong type": (edit_config(lambda config: config.update(tasks="none")), ["tasks"]),
    "config of the encoder missing": (
        edit_config(lambda config: config.pop("encoder_config")),
        ["weights have another shape", "encoder."],
    ),
    "config of the encoder wrong": (
        edit_config(lambda config: config["encoder_config"].update(hidden_size="big")),
        ["'hidden_size'", "expected int"],
    ),
    "a newer format": (
        edit_config(lambda config: config.update(format_version=99)),
        ["format_version is 99", "pip install --upgrade"],
    ),
    "a task more than the weights have": (
        edit_config(lambda config: config["tasks"].append({"name": "extra", "type": "regression"})),
        ["weights are missing", "heads.extra"],
    ),
    "a label more than the weights have": (
        edit_config(lambda config: config["tasks"][0]["labels"].append("x")),
        ["2 weights have another shape", "heads.sentiment"],
    ),
    "weights cut off": (cut("model.safetensors", 5000), ["weights cannot be loaded"]),
    "weights empty": (cut("model.safetensors", 0), ["weights cannot be loaded"]),
    "weights missing": (lambda folder: (folder / "model.safetensors").unlink(), ["model.safetensors"]),
    "tokenizer missing": (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], ["tokenizer"]),
    "tokenizer cut off": (cut("tokenizer.json", 100), ["tokenizer"]),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_broken_model_is_one_clear_error(trained: Path, tmp_path: Path, case: str) -> None:
    change, fragments = MODELS[case]
    folder = broken(trained, tmp_path / "broken", change)
    done = call("predict", folder, "--text", "good", fails=True)
    is_one_clear_line(done, [str(folder), *fragments])


@pytest.mark.parametrize("command", ["predict", "info", "evaluate"])
@pytest.mark.parametrize(
    ("model", "fragments"),
    [("./no/such/model", ["looked on disk", "correct the path"]), ("nobody/nothing", ["the Hub", "correct the name"])],
)
def test_a_missing_model_is_one_clear_error(recipe: Path, command: str, model: str, fragments: Sequence[str]) -> None:
    options = {"predict": ["--text", "x"], "info": [], "evaluate": [recipe]}[command]
    is_one_clear_line(call(command, model, *options, fails=True), [model, *fragments])


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--task", "moood"], ["no task 'moood'", "'moods'"]),
        (["--device", "gpu"], ["device is 'gpu'", "'cuda'"]),
        (["--device", "cuda:77"], ["device is 'cuda:77'"]),
        (["--dtype", "fp8"], ["dtype is 'fp8'", "'bf16'"]),
    ],
)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_wrong_option_is_one_clear_error(
    trained: Path, recipe: Path, command: str, options: list[str], fragments: Sequence[str]
) -> None:
    first = [recipe] if command == "evaluate" else ["--text", "good"]
    is_one_clear_line(call(command, trained, *first, *options, fails=True), fragments)


def test_an_unknown_split_is_one_clear_error(trained: Path, recipe: Path) -> None:
    done = call("evaluate", trained, recipe, "--split", "tests", fails=True)
    is_one_clear_line(done, ["split is 'tests'", "did you mean 'test'?"])


def test_a_split_that_no_dataset_has_is_one_clear_error(trained: Path, place: Path, workspace: Path) -> None:
    values = a_recipe(workspace / "encoder")
    values["tasks"] = [{**values["tasks"][0], "name": "sentiment"}]
    write_recipe(place, values)
    done = call("evaluate", trained, place / "recipe.yaml", fails=True)
    is_one_clear_line(done, [str(place / "recipe.yaml"), "no dataset has a test split", "name files in test"])


def test_a_recipe_of_other_tasks_is_one_clear_error(trained: Path, place: Path) -> None:
    done = call("evaluate", trained, place / "recipe.yaml", "--task", "moods", fails=True)
    is_one_clear_line(done, ["none of the model's tasks (moods)"])


# ---------------------------------------------------------------------- files of prediction


@pytest.mark.parametrize(
    ("source", "target", "fragments"),
    [
        ("missing.jsonl", "out.jsonl", ["missing.jsonl", "no such file"]),
        ("in.txt", "out.jsonl", ["in.txt", "'.txt' cannot be read", "'.jsonl'"]),
        (".", "out.jsonl", ["it is a folder"]),
        ("in.jsonl", "out.csv", ["out.csv", "'.csv' cannot be written", "'.parquet'"]),
        ("in.jsonl", "in.jsonl", ["in.jsonl", "it is the input itself"]),
        ("in.jsonl", "nowhere/out.jsonl", ["nowhere", "no such folder", "make it first"]),
        ("in.jsonl", "in.jsonl/out.jsonl", ["in.jsonl", "no such folder"]),
        ("in.jsonl", "folder.jsonl", ["folder.jsonl", "it is a folder"]),
        ("bad.parquet", "out.jsonl", ["bad.parquet", "cannot be read"]),
        ("bad.jsonl.gz", "out.jsonl", ["bad.jsonl.gz", "cannot be read"]),
        ("cut.jsonl.gz", "out.jsonl", ["cut.jsonl.gz", "cannot be read"]),
        ("latin.csv", "out.jsonl", ["latin.csv, line 2", "not UTF-8", "save the file as UTF-8"]),
        ("open.csv", "out.jsonl", ["open.csv, line 3", "not well-formed CSV", "close every quoted field"]),
    ],
)
def test_files_that_cannot_be_read_or_written_are_one_clear_error(
    trained: Path, tmp_path: Path, source: str, target: str, fragments: Sequence[str]
) -> None:
    import gzip

    for name, content in {
        "in.jsonl": b'{"text": "good"}\n',
        "in.txt": b"good\n",
        "bad.parquet": b"PAR1",
        "bad.jsonl.gz": b"plain",
        "cut.jsonl.gz": gzip.compress(b'{"text": "good"}\n' * 100)[:-20],
        "latin.csv": "text\nschön\n".encode("latin-1"),
        "open.csv": b'text\ngood\n"never closed\nbad\n',
        "out.jsonl": b"before",
        "out.csv": b"before",
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.jsonl").mkdir()
    before = contents(tmp_path)
    done = call("predict", trained, "--input", tmp_path / source, "--output", tmp_path / target, fails=True)
    is_one_clear_line(done, fragments)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--input", "a.jsonl"], ["--input goes with --output"]),
        (["--input", "a.jsonl", "--output", "b.jsonl", "--text", "x"], ["without --text"]),
        (["--output", "b.jsonl"], ["--output goes with --input"]),
        (["--text-pair", "x"], ["--text-pair goes with --text"]),
        (["--text", "x", "--report", "nowhere/report.json"], ["nowhere", "no such folder"]),
    ],
)
def test_options_that_do_not_go_together_are_one_clear_error(
    trained: Path, options: list[str], fragments: Sequence[str]
) -> None:
    is_one_clear_line(call("predict", trained, *options, fails=True), fragments)


def test_a_place_for_mistakes_that_cannot_be_written_is_found_before_the_work(recipe: Path) -> None:
    done = call("evaluate", "no-model-is-loaded", recipe, "--errors", "nowhere/errors.json", fails=True)
    is_one_clear_line(done, ["nowhere", "no such folder", "make it first"])


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ("id,n\n1,1\n2,2\n", ["a.csv", "no column of text among id, n"]),
        ("text\na b\nc d\n", ["a.csv", "no column that looks like labels"]),
        ("", ["a.csv", "no rows"]),
    ],
)
def test_a_file_that_gives_no_recipe_is_one_clear_error(tmp_path: Path, content: str, fragments: Sequence[str]) -> None:
    (tmp_path / "a.csv").write_text(content)
    is_one_clear_line(call("init", tmp_path / "a.csv", "--output", tmp_path / "recipe.yaml", fails=True), fragments)
    assert not (tmp_path / "recipe.yaml").exists()


# ---------------------------------------------------------------------- real processes


@pytest.mark.slow
def test_a_real_process_says_the_same_about_data(place: Path) -> None:
    (place / "reviews.jsonl").write_text(REVIEWS + "{broken\n")
    before = contents(place)
    done = call_process("train", "recipe.yaml", "--output-dir", "out", cwd=place)
    is_one_clear_line(done, ["reviews.jsonl, line 9", "not JSON"])
    assert contents(place) == before


@pytest.mark.slow
def test_a_real_process_says_the_same_about_a_model(trained: Path, tmp_path: Path) -> None:
    folder = broken(trained, tmp_path / "broken", cut("model.safetensors", 5000))
    is_one_clear_line(call_process("predict", folder, "--text", "good"), [str(folder), "weights cannot be loaded"])
