"""A trained model with its tokenizer, from the Hub or a folder, with errors that say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from hf_mtl.configuration import MultiTaskConfig
from hf_mtl.data.preparation import load_tokenizer
from hf_mtl.errors import HfMtlError, ModelError, SpecError, one_of
from hf_mtl.model.encoders.base import load_encoder_config
from hf_mtl.model.modeling import MultiTaskModel

DTYPES = {"fp32": torch.float32, "float32": torch.float32, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
          "fp16": torch.float16, "float16": torch.float16}  # fmt: skip


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
        The model in evaluation mode on its device, and its tokenizer.

    Raises:
        ModelError: there is no model of this package, or its weights do not fit its configuration.
        SpecError: the device or dtype is not one that exists.
    """
    import hf_mtl.auto  # noqa: F401  # pyright: ignore[reportUnusedImport] (the configuration must be known by name)

    if dtype is not None and dtype not in DTYPES:
        raise SpecError(f"dtype is {dtype!r}", mend=f"use one of {one_of(DTYPES)}")
    place = _device(device)
    name = str(name_or_path)
    where = f"model {name!r}"
    try:
        config = load_encoder_config(name, **hub_kwargs)
    except ModelError as error:
        raise ModelError(error.problem, where=where, mend=error.mend) from error.__cause__
    except (StrictDataclassError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"its config.json cannot be used ({_reason(error)})", where=where, mend="train it again, or fetch it anew"
        ) from error
    if not isinstance(config, MultiTaskConfig):
        raise ModelError(
            f"its configuration is of type {config.model_type!r}, not 'hf_mtl'",
            where=where,
            mend="name a model trained with hf-mtl train",
        )
    try:
        weights = DTYPES[dtype] if dtype is not None else "auto"
        model, info = MultiTaskModel.from_pretrained(name, dtype=weights, output_loading_info=True, **hub_kwargs)
    except HfMtlError as error:
        raise error.at(where) from error.__cause__
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"its weights cannot be loaded ({_reason(error)})", where=where, mend="train it again, or fetch it anew"
        ) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(
            f"{len(missing)} weights are missing, {missing[0]!r} among them", where=where, mend="fetch the model anew"
        )
    return model.to(place).eval(), load_tokenizer(name, **hub_kwargs)


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
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
