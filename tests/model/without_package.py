"""A program for an interpreter that has no hf_mtl: load saved models as their code tells, and write what they answer.

Usage: python without_package.py JOB, a JSON file with `logits` and `answers` (folders or ids of models), `handled`
(requests by folder), `asked` (rows for the pipeline), `inputs` (those of models; `inputs.pt` in each folder where not
given), `scratch` (a folder to write to) and `result`, the file that gets what torch.load reads. It prints nothing.
"""
# ruff: noqa: E402 (the package is made absent before anything is imported)

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any


class NotInstalled:
    """Makes the package as absent as if it had never been installed."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] == "hf_mtl":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if __name__ == "__main__":  # pytest imports every file in search of doctests
    sys.meta_path.insert(0, NotInstalled())  # type: ignore[arg-type]
    warnings.simplefilter("error")

import torch
from transformers import AutoModel, pipeline
from transformers.utils.logging import disable_progress_bar

torch.set_num_threads(1)


class Refused(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            raise AssertionError(record.getMessage())


def logits_of(name: str, inputs: str) -> dict[str, Any]:
    model = AutoModel.from_pretrained(name, trust_remote_code=True)
    inputs = torch.load(inputs)
    with torch.no_grad():
        return {"logits": dict(model(**inputs).logits), "module": type(model).__module__}


def answers_of(name: str, asked: Any, again: Path) -> dict[str, Any]:
    pipe = pipeline("multi-task", model=name, trust_remote_code=True)
    pipe.save_pretrained(str(again))
    saved = pipeline("multi-task", model=str(again), trust_remote_code=True)
    return {"answers": pipe(asked), "saved again": saved(asked), "module": type(pipe).__module__}


def handled(folder: Path, asked: Any) -> dict[str, Any]:
    """Serve the model as the toolkit of Inference Endpoints does: `handler.py` by its path, the folder on sys.path."""
    spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
    sys.path.insert(0, str(folder))
    handler = importlib.util.module_from_spec(spec)
    sys.modules["handler"] = handler
    spec.loader.exec_module(handler)
    serve = handler.EndpointHandler(str(folder))

    def call(data: Any) -> Any:
        try:
            return json.loads(json.dumps(serve(data), allow_nan=False))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    sys.path.remove(str(folder))
    return {"handled": [call(data) for data in asked]}


def main(job: dict[str, Any]) -> None:
    disable_progress_bar()
    result: dict[str, Any] = {}
    for name in job["logits"]:
        result[name] = logits_of(name, job.get("inputs") or f"{name}/inputs.pt")
    logging.getLogger("transformers").addHandler(Refused())
    for number, name in enumerate(job["answers"]):
        again = Path(job["scratch"]) / str(number)
        result.setdefault(name, {}).update(answers_of(name, job["asked"], again))
    for folder, asked in job["handled"].items():
        result.setdefault(folder, {}).update(handled(Path(folder), asked))
    assert not [name for name in sys.modules if name.partition(".")[0] == "hf_mtl"]
    torch.save(result, job["result"])


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
