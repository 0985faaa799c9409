"""Models on the Hub: pushed whole or not at all, and loaded as users of transformers load them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from server import TOKEN, Hub, serving
from tiny import write_encoder
from transformers import AutoTokenizer

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import SpecError
from hf_mtl.inference.pipeline import MultiTaskPipeline
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.remote_code import FILE_NAMES, PIPELINE_TASK
from hf_mtl.training.arguments import MultiTaskTrainingArguments

pytestmark = pytest.mark.slow

CLIENT = Path(__file__).with_name("client.py")
WITHOUT_PACKAGE = Path(__file__).parents[1] / "model" / "without_package.py"
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json"}
MODEL_FILES = {"config.json", "model.safetensors", *FILE_NAMES}
ROWS = {"text": ["good", "bad"], "label": [1, 0]}


def folder_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharing")


@pytest.fixture(scope="module")
def hub(root: Path) -> Iterator[Hub]:
    """A Hub that holds an encoder, one in a pickle, and a dataset."""
    with serving() as hub:
        files = folder_files(write_encoder(root / "encoder"))
        hub.add("models/acme/encoder", files)
        pickled = {name: data for name, data in files.items() if name != "model.safetensors"}
        hub.add("models/acme/pickled", {**pickled, "pytorch_model.bin": b"not read"})
        buffer = io.BytesIO()
        datasets.Dataset.from_dict(ROWS).to_parquet(buffer)
        hub.add("datasets/acme/films", {"data/train-00000-of-00001.parquet": buffer.getvalue()})
        yield hub


@pytest.fixture(scope="module")
def model(root: Path, hub: Hub) -> Path:
    """Folder of a model and its tokenizer."""
    tasks = [
        TaskSpec(name="topic", type="sequence_classification", labels=("world", "sport", "art")),
        TaskSpec(name="slots", type="token_classification", labels=("O", "B-city", "I-city")),
    ]
    folder = root / "model"
    MultiTaskModel.from_encoder(root / "encoder", tasks).save_pretrained(folder)
    AutoTokenizer.from_pretrained(root / "encoder").save_pretrained(folder)
    config = {"config.json": (folder / "config.json").read_bytes(), "pytorch_model.bin": b"not read"}
    hub.add("models/acme/pickled-model", config)
    return folder


def run(arguments: list[str], hub: Hub, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program that has a cache of its own and knows no Hub but this one."""
    home.mkdir(exist_ok=True)
    names = ("HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=500, check=False,
        env={**environment, **more},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def results(hub: Hub, root: Path, model: Path) -> dict[str, Any]:
    """What every step of the client came to, in a process with a fresh cache."""
    job = {"model": str(model), "encoder": str(root / "encoder"), "tests": str(CLIENT.parents[1])}
    job["result"] = str(root / "client" / "result.json")
    (root / "client").mkdir()
    (root / "client" / "job.json").write_text(json.dumps(job))
    run([str(CLIENT), str(root / "client" / "job.json")], hub, root / "home")
    return json.loads((root / "client" / "result.json").read_text())


def of(results: dict[str, Any], step: str) -> Any:
    result = results[step]
    assert not (isinstance(result, dict) and "failed" in result), result.get("trace")
    return result


def files_at(hub: Hub, name: str, revision: str = "main") -> dict[str, bytes]:
    commit = hub.repositories[f"models/{name}"].at(revision)
    assert commit is not None
    return commit.files


# ---------------------------------------------------------------------- pushing


def test_a_model_and_its_tokenizer_push_themselves(results: dict[str, Any], hub: Hub) -> None:
    first, second = of(results, "push_model_and_tokenizer")
    assert set(files_at(hub, "acme/parts", first)) == {*MODEL_FILES, "README.md"}
    assert set(files_at(hub, "acme/parts", second)) == {*MODEL_FILES, *TOKENIZER_FILES, "README.md"}
    assert "auto_map" in json.loads(files_at(hub, "acme/parts")["config.json"])


def test_what_is_pushed_while_saving_has_the_code_each_time(results: dict[str, Any], hub: Hub) -> None:
    of(results, "push_while_saving")
    for name in ("acme/saving", "acme/saving-again"):
        assert set(files_at(hub, name)) == {*MODEL_FILES, "README.md"}


def test_a_pipeline_is_pushed_whole(results: dict[str, Any], hub: Hub) -> None:
    of(results, "push_a_pipeline")
    assert {*MODEL_FILES, *TOKENIZER_FILES} <= set(files_at(hub, "acme/pipeline"))
    assert len(hub.repositories["models/acme/pipeline"].commits) == 2  # the first is that of the empty repository


def test_a_folder_is_pushed_in_one_commit_without_pickles(results: dict[str, Any], hub: Hub) -> None:
    addresses = of(results, "push_folders")
    repository = hub.repositories["models/acme/voices"]
    assert [commit.message for commit in repository.commits[:4]] == [
        "initial commit", "version 1.0", "version 2.0", "a branch",
    ]  # fmt: skip
    assert addresses == [f"{hub.endpoint}/acme/voices/commit/{commit.sha}" for commit in repository.commits[1:3]]
    wanted = {*MODEL_FILES, *TOKENIZER_FILES, "README.md", "training_args.json"}
    assert set(files_at(hub, "acme/voices")) - {".gitattributes"} == wanted
    assert files_at(hub, "acme/voices")["README.md"].startswith(b"---\nlicense: mit")


def test_the_command_line_pushes(results: dict[str, Any], hub: Hub, model: Path) -> None:
    assert of(results, "push_from_the_command_line") == 0
    repository = hub.repositories["models/acme/secret"]
    assert repository.private
    assert repository.commits[-1].message == "from a terminal"
    assert files_at(hub, "acme/secret")["model.safetensors"] == (model / "model.safetensors").read_bytes()


def test_the_trainer_pushes_what_loads_and_no_pickle(results: dict[str, Any], hub: Hub) -> None:
    assert of(results, "push_from_the_trainer") in ("neg", "pos")
    files = set(files_at(hub, "acme/trained"))
    assert {*MODEL_FILES, *TOKENIZER_FILES, "README.md", "training_args.json"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]


def test_a_card_that_stands_there_is_pushed(results: dict[str, Any], hub: Hub) -> None:
    of(results, "push_from_the_trainer")
    assert b"# Written by hand" in files_at(hub, "acme/trained")["README.md"]


def test_a_whole_run_is_pushed_once_with_its_card_and_scores(results: dict[str, Any], hub: Hub) -> None:
    of(results, "push_when_a_recipe_says_so")
    repository = hub.repositories["models/acme/recipe"]
    assert repository.private
    assert len(repository.commits) == 2  # the first is that of the empty repository
    files = files_at(hub, "acme/recipe")
    assert {*MODEL_FILES, *TOKENIZER_FILES, "README.md", "training_args.json", "train_results.json"} <= set(files)
    assert b"model-index" in files["README.md"]
    assert not [name for name in files if "/" in name or name.startswith(".model")]


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_pushes_of_checkpoints_are_refused(strategy: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"hub_strategy is '{strategy}', which would push pickles"):
        MultiTaskTrainingArguments(output_dir=str(tmp_path), push_to_hub=True, hub_strategy=strategy)


def test_nothing_pickled_is_ever_pushed(results: dict[str, Any], hub: Hub) -> None:
    pushed = [name for name in hub.repositories if name.startswith("models/") and "pickled" not in name]
    assert len(pushed) > 6
    for name in pushed:
        for commit in hub.repositories[name].commits:
            assert not [path for path in commit.files if path.endswith((".bin", ".pt", ".pth", ".pkl"))]
            assert not any(data.startswith((b"\x80\x04", b"PK\x03\x04")) for data in commit.files.values())


def test_every_write_carries_the_token(results: dict[str, Any], hub: Hub) -> None:
    of(results, "push_folders")
    for part in ("/api/repos/create", "/api/models/acme/voices/commit/", "/api/models/acme/voices/preupload/"):
        assert hub.tokens(part) <= {TOKEN, "hf_wrong"}
        assert TOKEN in hub.tokens(part)


# ---------------------------------------------------------------------- loading


def test_every_revision_loads_with_the_options_of_transformers(results: dict[str, Any]) -> None:
    found = of(results, "load_revisions")
    assert found == {"main": 2.0, "old": 1.0, "branch": 2.0, "auto": 1.0, "cache": 2.0, "pipeline": 1.0, "cached": True}


def test_a_private_model_needs_the_token(results: dict[str, Any], hub: Hub) -> None:
    found = of(results, "load_with_a_token")
    assert isinstance(found["with"], float)
    assert found["without"].startswith("ModelError: model 'acme/secret': there is no such folder on disk, and the Hub")
    assert None in hub.tokens("/acme/secret/")


def test_what_is_not_there_is_named(results: dict[str, Any]) -> None:
    found = of(results, "load_with_a_token")
    assert found["nowhere"].startswith("ModelError: model 'acme/nowhere': there is no such folder on disk, and the Hub")
    assert found["no such revision"].startswith("ModelError: model 'acme/voices': ")
    assert "v9" in found["no such revision"]


def test_a_model_in_the_cache_needs_no_hub(results: dict[str, Any]) -> None:
    assert of(results, "load_from_the_cache") == 2.0


def test_a_second_load_offline_asks_nobody(results: dict[str, Any], hub: Hub, root: Path) -> None:
    of(results, "load_revisions")
    before = len(hub.requests)
    arguments = ["-m", "hf_mtl", "predict", "acme/voices", "--text", "fly to new york"]
    done = run(arguments, hub, root / "home", HF_HUB_OFFLINE="1")
    assert set(json.loads(done.stdout)) == {"topic", "slots"}
    assert len(hub.requests) == before


def test_without_the_package_the_hub_gives_the_same_model(
    results: dict[str, Any], hub: Hub, root: Path, model: Path
) -> None:
    of(results, "push_from_the_command_line")
    asked = ["fly to new york", {"tokens": ["play", "jazz"]}]
    torch.save({"input_ids": torch.tensor([[2, 5, 6, 3]])}, root / "inputs.pt")
    job = {"logits": ["acme/secret"], "answers": ["acme/secret"], "handled": {}, "asked": asked}
    job |= {"inputs": str(root / "inputs.pt"), "scratch": str(root / "elsewhere"), "result": str(root / "result.pt")}
    (root / "job.json").write_text(json.dumps(job))
    run([str(WITHOUT_PACKAGE), str(root / "job.json")], hub, root / "another home")
    found = torch.load(root / "result.pt")["acme/secret"]
    here = MultiTaskModel.from_pretrained(model)
    logits = here(**torch.load(root / "inputs.pt")).logits
    assert logits is not None
    assert all(torch.equal(found["logits"][task], logits[task]) for task in logits)
    pipe = MultiTaskPipeline(model=here, tokenizer=AutoTokenizer.from_pretrained(model), task=PIPELINE_TASK)
    assert found["answers"] == found["saved again"] == pipe(asked)


def test_encoders_tokenizers_and_datasets_come_from_the_hub(results: dict[str, Any]) -> None:
    found = of(results, "load_encoder_and_data")
    assert found["same weights"]
    assert found["tokens"]
    assert found["rows"] == ROWS


def test_pickles_on_the_hub_are_refused(results: dict[str, Any], hub: Hub) -> None:
    found = of(results, "load_encoder_and_data")
    assert found["pickled"].startswith(
        "ModelError: encoder 'acme/pickled': its weights are pickled (pytorch_model.bin)"
    )
    assert found["pickled model"].startswith("ModelError: model 'acme/pickled-model': its weights are pickled")
    downloads = [path for method, path, _ in hub.requests if method == "GET" and path.endswith("pytorch_model.bin")]
    assert downloads == []


# ---------------------------------------------------------------------- pushes that do not succeed


def test_a_push_that_is_cut_off_leaves_the_old_revision(results: dict[str, Any], hub: Hub) -> None:
    found = of(results, "break_pushes_off")
    for word in ("create", "preupload", "commit"):
        assert found[word].startswith("OutputError: repository 'acme/voices': the push did not succeed, and the reposi")
        assert "then push again" in found[word]
        assert "Error: " in found[f"{word} of the model"]  # the client's own
    assert found["loaded"] == 2.0
    assert found["pushed again"]


def test_what_cannot_be_loaded_is_not_pushed(results: dict[str, Any], hub: Hub) -> None:
    found = of(results, "refuse_bad_pushes")
    wanted = {
        "nothing here": "there is no such folder",
        "bert": "its model_type is 'bert'",
        "no tokenizer": "it has no tokenizer",
        "no weights": "it has no weights in safetensors",
    }
    for name, problem in wanted.items():
        assert found[name].startswith("ModelError: folder ")
        assert problem in found[name]
    for name in ("a bad name", "a wrong token"):
        assert found[name].startswith("OutputError: repository ")
    assert "models/acme/bad" not in hub.repositories
