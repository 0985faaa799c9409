"""A program that shares and loads models through the Hub it is pointed at, step by step, and writes what came of it.

Usage: python client.py JOB; HF_ENDPOINT, HF_HOME and HF_TOKEN say where and who.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # pytest imports every file in search of doctests
    warnings.simplefilter("error")

import torch
from huggingface_hub import HfApi
from transformers import AutoModel, AutoTokenizer, pipeline

import hf_mtl.auto  # noqa: F401
from hf_mtl.cli import main as command_line
from hf_mtl.data.loading import read_hub
from hf_mtl.data.preparation import load_tokenizer
from hf_mtl.hub.push import push_folder
from hf_mtl.inference.loading import load_model
from hf_mtl.model.modeling import MultiTaskModel

STEPS: dict[str, Callable[[dict[str, Any]], Any]] = {}
TEXT = "fly to new york"


def step(function: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    STEPS[function.__name__] = function
    return function


@contextmanager
def breaking(word: str) -> Iterator[None]:
    """Let the server break requests off that have a word in their path; the client tries again without waiting."""
    urllib.request.urlopen(f"{os.environ['HF_ENDPOINT']}/_breaks/{word}").close()
    sleep, time.sleep = time.sleep, lambda seconds: None
    try:
        yield
    finally:
        time.sleep = sleep
        urllib.request.urlopen(f"{os.environ['HF_ENDPOINT']}/_breaks/").close()


def failure(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def bias(model: Any) -> float:
    return model.head("topic").output.bias[0].item()


def set_bias(model: Any, value: float) -> None:
    with torch.no_grad():
        model.head("topic").output.bias.fill_(value)


@step
def push_model_and_tokenizer(job: dict[str, Any]) -> Any:
    """The way of transformers: each part pushes itself."""
    model, tokenizer = load_model(job["model"])
    set_bias(model, 1.0)
    commits = [model.push_to_hub("acme/parts"), tokenizer.push_to_hub("acme/parts")]
    return [commit.oid for commit in commits]


@step
def push_while_saving(job: dict[str, Any]) -> Any:
    model, _ = load_model(job["model"])
    model.save_pretrained(job["scratch"], push_to_hub=True, repo_id="acme/saving")
    model.save_pretrained(job["scratch"], push_to_hub=True, repo_id="acme/saving-again")


@step
def push_a_pipeline(job: dict[str, Any]) -> Any:
    pipeline("multi-task", model=job["model"]).push_to_hub("acme/pipeline")


@step
def push_folders(job: dict[str, Any]) -> Any:
    """Two revisions of one model, as whole folders; the tokens of both are told apart by their bias."""
    model, tokenizer = load_model(job["model"])
    addresses: list[str] = []
    for value in (1.0, 2.0):
        folder = Path(job["scratch"]) / f"version {value}"
        set_bias(model, value)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# Voices\n")
        (folder / "training_args.json").write_text("{}")
        for name in ("training_args.bin", "optimizer.pt", "checkpoint-1/optimizer.pt", "checkpoint-1/config.json"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"pickle")
        addresses.append(push_folder(folder, "acme/voices", message=f"version {value}"))
    push_folder(folder, "acme/voices", revision="candidate", message="a branch")
    return addresses


@step
def push_from_the_command_line(job: dict[str, Any]) -> Any:
    try:
        command_line(["push", job["model"], "acme/secret", "--private", "--message", "from a terminal"])
    except SystemExit as error:
        return error.code


@step
def push_from_the_trainer(job: dict[str, Any]) -> Any:
    sys.path.insert(0, job["tests"])
    from tiny import build, load, write_encoder, write_recipe

    from hf_mtl.training.arguments import MultiTaskTrainingArguments
    from hf_mtl.training.trainer import MultiTaskTrainer

    folder = Path(job["scratch"]) / "recipe"
    folder.mkdir()
    data = load(folder, write_recipe(folder, write_encoder(folder / "encoder")))
    arguments = MultiTaskTrainingArguments(
        output_dir=str(folder / "run"), max_steps=2, save_steps=1, save_strategy="steps", report_to=[],
        hub_model_id="acme/trained", use_cpu=True, disable_tqdm=True, eval_strategy="no", load_best_model_at_end=False,
    )  # fmt: skip
    trainer = MultiTaskTrainer(build(data), arguments, train_dataset=data.train, processing_class=data.tokenizer)
    trainer.train()
    (folder / "run" / "README.md").write_text("---\nlicense: mit\n---\n# Written by hand\n")
    trainer.push_to_hub()
    assert list((folder / "run").glob("checkpoint-*/optimizer.pt"))
    return pipeline("multi-task", model="acme/trained")(TEXT)["sentiment"]["label"]


@step
def push_when_a_recipe_says_so(job: dict[str, Any]) -> Any:
    from tiny import write_encoder, write_recipe

    from hf_mtl.data.recipe import parse_recipe
    from hf_mtl.training.run import run_training

    folder = Path(job["scratch"])
    recipe = write_recipe(folder, write_encoder(folder / "encoder"))
    recipe["training"] = {"max_steps": 2, "push_to_hub": True, "hub_model_id": "acme/recipe", "hub_private_repo": True}
    run_training(parse_recipe(recipe, base=folder), folder / "run")


@step
def load_revisions(job: dict[str, Any]) -> Any:
    first = job["results"]["push_folders"][0].rpartition("/")[2]
    cache = str(Path(job["scratch"]) / "cache")
    ways = {
        "main": lambda: load_model("acme/voices")[0],
        "old": lambda: load_model("acme/voices", revision=first)[0],
        "branch": lambda: MultiTaskModel.from_pretrained("acme/voices", revision="candidate"),
        "auto": lambda: AutoModel.from_pretrained("acme/voices", revision=first, token=os.environ["HF_TOKEN"]),
        "cache": lambda: AutoModel.from_pretrained("acme/voices", cache_dir=cache),
        "pipeline": lambda: pipeline("multi-task", model="acme/voices", revision=first).model,
    }
    found = {way: bias(load()) for way, load in ways.items()}
    return {**found, "cached": any(Path(cache).glob("models--acme--voices/**/model.safetensors"))}


@step
def load_with_a_token(job: dict[str, Any]) -> Any:
    token = os.environ["HF_TOKEN"]
    return {
        "with": bias(load_model("acme/secret", token=token)[0]),
        "without": failure(lambda: load_model("acme/secret", token=False, cache_dir=job["scratch"])),
        "nowhere": failure(lambda: load_model("acme/nowhere")),
        "no such revision": failure(lambda: load_model("acme/voices", revision="v9")),
    }


@step
def load_from_the_cache(job: dict[str, Any]) -> Any:
    with breaking("/"):
        return bias(load_model("acme/voices", local_files_only=True)[0])


@step
def break_pushes_off(job: dict[str, Any]) -> Any:
    """Pushes that end in the middle of each request they make; then what stands in the repository is loaded."""
    model, tokenizer = load_model(job["model"])
    set_bias(model, 3.0)
    folder = Path(job["scratch"]) / "broken off"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    errors: dict[str, Any] = {}
    before = HfApi().model_info("acme/voices").sha
    for word in ("create", "preupload", "commit"):
        with breaking(f"/{word}"):
            errors[word] = failure(lambda: push_folder(folder, "acme/voices"))
            errors[f"{word} of the model"] = failure(lambda: model.push_to_hub("acme/voices"))
    assert HfApi().model_info("acme/voices").sha == before
    errors["loaded"] = bias(load_model("acme/voices", cache_dir=str(folder / "cache"))[0])
    errors["pushed again"] = bool(push_folder(folder, "acme/voices", revision="again"))
    return errors


@step
def refuse_bad_pushes(job: dict[str, Any]) -> Any:
    scratch = Path(job["scratch"])
    model, tokenizer = load_model(job["model"])
    (scratch / "bert").mkdir()
    (scratch / "bert" / "config.json").write_text('{"model_type": "bert"}')
    model.save_pretrained(scratch / "no tokenizer")
    tokenizer.save_pretrained(scratch / "no weights")
    model.config.save_pretrained(scratch / "no weights")
    folders = ["nothing here", "bert", "no tokenizer", "no weights"]
    found = {name: failure(lambda name=name: push_folder(scratch / name, "acme/bad")) for name in folders}
    found["a bad name"] = failure(lambda: push_folder(job["model"], "acme/not a name"))
    found["a wrong token"] = failure(lambda: push_folder(job["model"], "acme/bad", token="hf_wrong"))
    return found


@step
def load_encoder_and_data(job: dict[str, Any]) -> Any:
    tasks = [{"name": "topic", "type": "sequence_classification", "labels": ["a", "b"]}]
    model = MultiTaskModel.from_encoder("acme/encoder", tasks)
    local = MultiTaskModel.from_encoder(job["encoder"], tasks)
    same = all(torch.equal(weight, local.state_dict()[name]) for name, weight in model.state_dict().items())
    rows = read_hub("acme/films", split="train").dataset
    return {
        "same weights": same,
        "tokens": load_tokenizer("acme/encoder")(TEXT)["input_ids"]
        == AutoTokenizer.from_pretrained(job["encoder"])(TEXT)["input_ids"],
        "rows": rows[:],
        "pickled": failure(lambda: MultiTaskModel.from_encoder("acme/pickled", tasks)),
        "pickled model": failure(lambda: load_model("acme/pickled-model")),
    }


def main(path: str) -> None:
    torch.set_num_threads(1)
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    results = job["results"] = {}
    for name, run in STEPS.items():
        job["scratch"] = str(Path(path).parent / name)
        Path(job["scratch"]).mkdir()
        try:
            results[name] = run(job)
        except Exception as error:
            results[name] = {"failed": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    Path(job["result"]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
