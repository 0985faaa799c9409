"""A program that loads the folders it is given with little memory left, and writes the error that each one raised.

Usage: python loading_job.py RESULT MIB FOLDER...; anything but an error of the package, lack of memory included, is
written with its type.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch
from transformers import AutoModel

import hf_mtl.auto  # noqa: F401
from hf_mtl.errors import HfMtlError
from hf_mtl.inference.loading import load_model
from hf_mtl.model.modeling import MultiTaskModel

LOADERS = {"class": MultiTaskModel.from_pretrained, "auto": AutoModel.from_pretrained, "load_model": load_model}


def address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def main(result: str, mib: str, good: str, *folders: str) -> None:
    torch.set_num_threads(1)
    load_model(good)  # what is loaded once for all, such as threads, is not counted
    limit = address_space() + int(mib) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    load_model(good)
    errors: dict[str, dict[str, str]] = {}
    for folder in folders:
        for name, load in LOADERS.items():
            try:
                load(folder)
                message = "loaded"
            except HfMtlError as error:
                message = str(error)
            except BaseException as error:
                message = f"{type(error).__name__}: {error}"
            errors.setdefault(folder, {})[name] = message
    Path(result).write_text(json.dumps(errors), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
