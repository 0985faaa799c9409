"""What is checked of a checkpoint before memory is allocated for it: that it is no pickle, and that its weights fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import file_exists
from safetensors import safe_open
from torch import nn

from hf_mtl.errors import ModelError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that can run code when they are read."""


def pickled_error(name_or_path: str, **hub_kwargs: Any) -> ModelError | None:
    """Return the error to raise where a model has nothing but pickled weights, else `None`.

    Args:
        name_or_path: id on the Hub, or a folder.
        hub_kwargs: what `from_pretrained` was given: `revision`, `token` and `subfolder` are read.
    """
    subfolder = hub_kwargs.get("subfolder") or ""
    folder = Path(name_or_path) / subfolder
    if folder.is_dir():
        names = sorted(
            path.name for path in folder.iterdir() if path.suffix in PICKLES and path.stem != "training_args"
        )
        found = names[0] if names and not any(folder.glob("*.safetensors")) else None
    else:
        found = _pickle_on_hub(name_or_path, subfolder, **hub_kwargs)
    if found is None:
        return None
    return ModelError(
        f"its weights are pickled ({found}), and a pickle can run code when it is read",
        mend="convert a file that you trust: safetensors.torch.save_file(torch.load(file, weights_only=True), "
        "'model.safetensors', {'format': 'pt'}); on the Hub, look for a revision that has it",
    )


def _pickle_on_hub(name: str, subfolder: str, **hub_kwargs: Any) -> str | None:
    given = {key: hub_kwargs.get(key) for key in ("revision", "token")}
    prefix = f"{subfolder}/" if subfolder else ""
    with suppress(Exception):  # offline, or no such repository: then that is what is wrong
        for file in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
            if file_exists(name, prefix + file, **given):
                return file
    return None


def check_weights(model: nn.Module, files: Sequence[str] | None) -> None:
    """Compare a model that has no memory yet with the weights that it is to be given.

    Args:
        model: the model, its parameters on the meta device; others are not looked at.
        files: the safetensors files.

    Raises:
        ModelError: a weight has another shape, or the encoder has more weights than the files.
    """
    if not files:
        return
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items() if value.is_meta}
    given = _shapes(files)
    wrong = sorted(name for name in wanted.keys() & given.keys() if wanted[name] != given[name])
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"{len(wrong)} weights have another shape than config.json says, {name!r} among them: {list(given[name])}, "
            f"not {list(wanted[name])}",
            mend="train it again, or fetch it anew",
        )
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", {})
    absent = [name for name in wanted if name.startswith("encoder.") and name not in given and name not in tied]
    # transformers may know some of them by another name, but then as many numbers stand under it.
    spare = sum(_count(shape) for name, shape in given.items() if name not in wanted)
    if sum(_count(wanted[name]) for name in absent) > spare:
        raise ModelError(
            f"{len(absent)} weights of the encoder are missing, {min(absent)!r} among them",
            mend="train it again, or fetch it anew; random weights are never used in their place",
        )


def _shapes(files: Sequence[str]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="pt") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    return shapes


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def align_weights(model: nn.Module) -> None:
    """Move weights on the CPU that do not begin at a multiple of 64 bytes to where torch would have allocated them.

    Weights mapped from a safetensors file begin anywhere, and matrix products of a few columns then take another kernel
    that rounds differently.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()
