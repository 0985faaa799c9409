"""A trained model with its tokenizer, from the Hub or a folder, with errors that say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from hf_mtl.configuration import MultiTaskConfig
from hf_mtl.data.formats import shorten
from hf_mtl.data.preparation import load_tokenizer
from hf_mtl.errors import HfMtlError, ModelError, SpecError, one_of
from hf_mtl.inference.exported import ExportedModel
from hf_mtl.model.encoders.base import encoder_not_found
from hf_mtl.model.modeling import MultiTaskModel

DTYPES = {"fp32": torch.float32, "float32": torch.float32, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
          "fp16": torch.float16, "float16": torch.float16}  # fmt: skip

MEND = "train it again, or fetch it anew"


def load_model(
    name_or_path: str | Path, *, device: str | None = None, dtype: str | None = None, **hub_kwargs: Any
) -> tuple[MultiTaskModel, Any]:
    """Load a model and its tokenizer, ready to answer.

    Args:
        name_or_path: id on the Hub, or a folder.
        device: `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`; a GPU if there is one, where not given.
        dtype: `"fp32"`, `"bf16"` or `"fp16"`; as the model was saved, where not given.
        hub_kwargs: passed to `from_pretrained`: `revision`, `token`, `cache_dir` and others.

    Returns:
        The model in evaluation mode on its device, and its tokenizer. A folder that `export_model` wrote as a graph
        gives an `ExportedModel`, which answers in the same places and does nothing else.

    Raises:
        MissingExtraError: it is a graph, and the software that runs it is not installed.
        ModelError: there is no model of this package, or its weights do not fit its configuration.
        SpecError: the device or dtype is not one that exists, or that the graph runs in.
    """
    if dtype is not None and dtype not in DTYPES:
        raise SpecError(f"dtype is {dtype!r}", mend=f"use one of {one_of(DTYPES)}")
    name = str(name_or_path)
    where = f"model {name!r}"
    if _check_config(name, where, **hub_kwargs).get("exported") is not None:
        if device not in (None, "cpu"):
            raise SpecError(f"device is {device!r}", where=where, mend="use 'cpu': exported graphs run there")
        graph = ExportedModel.load(name, dtype=dtype, **hub_kwargs)
        # What answering asks of a model is all there.
        return cast(MultiTaskModel, graph), _tokenizer(name, where, **hub_kwargs)
    place = _device(device)
    try:
        model, info = MultiTaskModel.from_pretrained(
            name,
            dtype=DTYPES[dtype] if dtype is not None else "auto",
            output_loading_info=True,
            **hub_kwargs,
        )
    except HfMtlError as error:
        raise error.at(where) from error.__cause__
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"its weights cannot be loaded ({_reason(error)})", where=where, mend=MEND) from error
    absent = info["missing_keys"]
    if absent:  # those of another shape were an error before
        raise ModelError(f"{len(absent)} weights are missing, {min(absent)!r} among them", where=where, mend=MEND)
    return model.to(place).eval(), _tokenizer(name, where, **hub_kwargs)


def _tokenizer(name: str, where: str, **hub_kwargs: Any) -> Any:
    try:
        return load_tokenizer(name, **hub_kwargs)
    except ModelError as error:
        raise ModelError(error.problem, where=where, mend=error.mend) from error.__cause__


def _check_config(name: str, where: str, **hub_kwargs: Any) -> dict[str, Any]:
    """Check that there is a model of this package, before its weights are looked at, and return its configuration."""
    try:
        # Not AutoConfig, which would ask whether to trust the code of a model of another kind.
        values, _ = MultiTaskConfig.get_config_dict(name, **hub_kwargs)
        if not values:
            raise OSError("there is no config.json")
        kind = values.get("model_type")
        if kind == MultiTaskConfig.model_type:
            MultiTaskConfig.from_dict(values)
    except HfMtlError as error:
        raise error.at(where) from error.__cause__
    except (OSError, ValueError, StrictDataclassError, KeyError, TypeError, AttributeError) as error:
        if not Path(name).is_dir():
            found = encoder_not_found(name, error)
            raise ModelError(found.problem, where=where, mend=found.mend) from error
        if not Path(name, "config.json").is_file():
            raise ModelError(
                "the folder has no config.json", where=where, mend="name a folder that holds a model"
            ) from error
        raise ModelError(f"its config.json cannot be used ({_reason(error)})", where=where, mend=MEND) from error
    if kind != MultiTaskConfig.model_type:
        raise ModelError(
            f"its configuration has the model_type {kind!r}, not {MultiTaskConfig.model_type!r}",
            where=where,
            mend="name a model trained with hf-mtl train",
        )
    return values


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SpecError(f"device is {name!r} ({_reason(error)})", mend="use 'cpu', 'cuda' or 'mps'") from error
    return device


def _reason(error: Exception) -> str:
    return shorten(" ".join(str(error).split()).rstrip(".") or type(error).__name__, 200)
