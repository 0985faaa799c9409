"""What a run of prediction is: two runs that would write the same have the same identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import astuple
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hf_mtl import __version__
from hf_mtl.inference.predictor import Predictor

LIBRARIES = ("torch", "transformers", "tokenizers")


def identity(predictor: Predictor, source: Path) -> dict[str, Any]:
    """Return all that the output depends on, as plain JSON values by the name that a user knows it by.

    A file is known by its path, size and time of change, a model by its weights.

    Args:
        predictor: what answers.
        source: the file of rows.
    """
    place = source.resolve()
    found = place.stat()
    model = predictor.model
    return {
        "input": [str(place), found.st_size, found.st_mtime_ns],
        "model": fingerprint(model, predictor.tokenizer),
        "tasks": predictor.tasks,
        "columns": list(astuple(predictor.columns)),
        "precision": [model.device.type, predictor.precision],
        "batches": [predictor.batch_size, predictor.max_tokens, predictor.compile],
        "versions": [__version__, *map(version, LIBRARIES)],
    }


def fingerprint(model: Any, tokenizer: Any) -> str:
    """Return a hash of a model's configuration and weights, and of its tokenizer.

    Args:
        model: a `MultiTaskModel`, or an exported graph that is known by its files.
        tokenizer: its tokenizer.
    """
    found = hashlib.sha256()
    for part in (_configuration(model), *_weights(model), *_vocabulary(tokenizer)):
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def _configuration(model: Any) -> bytes:
    values = model.config.to_dict()
    values.pop("transformers_version", None)
    return json.dumps(values, sort_keys=True, default=str).encode()


def _weights(model: Any) -> Iterator[Any]:
    if not isinstance(model, torch.nn.Module):
        folder = Path(model.config.name_or_path)
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        yield str([(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files or [folder]]).encode()
        return
    for name, values in model.state_dict().items():
        yield f"{name} {values.dtype} {tuple(values.shape)}".encode()
        yield values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _vocabulary(tokenizer: Any) -> Iterator[bytes]:
    yield f"{type(tokenizer).__name__} {tokenizer.model_max_length} {tokenizer.truncation_side}".encode()
    if tokenizer.is_fast:
        values = json.loads(tokenizer.backend_tokenizer.to_str())
        for key in ("truncation", "padding"):  # what the last call left
            values.pop(key, None)
        yield json.dumps(values).encode()
    else:
        yield json.dumps(sorted(tokenizer.get_vocab().items())).encode()
