"""The pieces of an encoder that can be looked at, compared and put back: embeddings, layers and attention heads."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_mtl.errors import ModelError
from hf_mtl.explain.attention_heads import head_projections
from hf_mtl.model.modeling import MultiTaskModel

State = Mapping[str, Tensor]
"""The parameters of an encoder by name."""

SEPARATE = ("query", "key", "value", "q", "k", "v", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin",
            "query_proj", "key_proj", "value_proj")  # fmt: skip
TOGETHER = ("Wqkv", "c_attn")
"""Projections to queries, keys and values: three modules, or one that gives these one after the other."""


@dataclass(frozen=True)
class Region:
    """A parameter, or a stretch of it.

    Args:
        parameter: name of the parameter in the encoder.
        axis: the axis that the stretch is of.
        start: where it begins; `None` is the whole parameter.
        end: where it ends.
    """

    parameter: str
    axis: int = 0
    start: int | None = None
    end: int | None = None

    def of(self, state: State) -> Tensor:
        """Return a view of it."""
        whole = state[self.parameter]
        if self.start is None or self.end is None:
            return whole
        return whole.narrow(self.axis, self.start, self.end - self.start)


@dataclass(frozen=True)
class Piece:
    """A named part of an encoder.

    Args:
        name: `embeddings`, `layer 1` (the lowest), `rest`, or a head as `1.2`: layer and head, counted from 1.
        regions: what it is made of, no number twice.
    """

    name: str
    regions: tuple[Region, ...]

    def of(self, state: State) -> list[Tensor]:
        """Return views of it."""
        return [region.of(state) for region in self.regions]


def layer_pieces(model: MultiTaskModel) -> list[Piece]:
    """Return the embeddings, each layer, and what is of neither; every parameter of the encoder is in one of them.

    Raises:
        ModelError: the layers cannot be told apart.
    """
    try:
        parts = model.adapter.parts(model.encoder)
    except ModelError as error:
        raise ModelError(error.problem, mend="use an encoder whose layers stand in one list") from None
    names = {id(parameter): name for name, parameter in model.encoder.named_parameters()}
    named = [("embeddings", parts.embeddings), ("rest", parts.rest)]
    named[1:1] = [(f"layer {number}", layer) for number, layer in enumerate(parts.layers, start=1)]
    return [Piece(name, tuple(Region(names[id(own)]) for own in part)) for name, part in named if part]


def head_pieces(model: MultiTaskModel) -> list[list[Piece]]:
    """Return the attention heads of each layer: their rows of queries, keys and values, and columns of the projection.

    Queries, keys and values are left out where several heads share them, or where they do not stand in modules of a
    usual name; layers that share their weights are one.

    Raises:
        ModelError: the encoder has no attention heads that meet in one projection.
    """
    modules = dict(model.encoder.named_modules())
    names = {id(module): name for name, module in modules.items()}
    count = int(model.encoder.config.get_text_config().num_attention_heads)
    layers: list[list[Piece]] = []
    for number, projection in enumerate(head_projections(model), start=1):
        name = names[id(projection)]
        width = _sizes(projection)[0] // count
        inside = [modules[other] for other in modules if other.startswith(f"{_block(name)}.")]
        heads: list[Piece] = []
        for head in range(count):
            regions = [_stretch(name, projection, head * width, width, inputs=True)]
            for module in inside:
                own = names[id(module)].rpartition(".")[2]
                parts = 1 if own in SEPARATE else 3 if own in TOGETHER else 0
                if parts and isinstance(module, nn.Linear | Conv1D) and _sizes(module)[1] == parts * count * width:
                    starts = [(part * count + head) * width for part in range(parts)]
                    regions += [_stretch(names[id(module)], module, start, width) for start in starts]
                    if getattr(module, "bias", None) is not None:
                        bias = f"{names[id(module)]}.bias"
                        regions += [Region(bias, 0, start, start + width) for start in starts]
            heads.append(Piece(f"{number}.{head + 1}", tuple(regions)))
        layers.append(heads)
    return layers


@contextmanager
def put_back(model: MultiTaskModel, pieces: Sequence[Piece], start: State) -> Generator[None]:
    """Give pieces of an encoder the values of another inside the block; afterwards they have their own again."""
    state: dict[str, Tensor] = dict(model.encoder.named_parameters())
    own = [[view.detach().clone() for view in piece.of(state)] for piece in pieces]
    _copy(pieces, state, [piece.of(start) for piece in pieces])
    try:
        yield
    finally:
        _copy(pieces, state, own)


def encoder_state(encoder: nn.Module) -> dict[str, Tensor]:
    """Return copies of an encoder's parameters, as float32 on the CPU."""
    return {name: own.detach().float().cpu().clone() for name, own in encoder.named_parameters()}


def _copy(pieces: Sequence[Piece], state: State, values: Sequence[Sequence[Tensor]]) -> None:
    with torch.no_grad():
        for piece, own in zip(pieces, values, strict=True):
            for view, value in zip(piece.of(state), own, strict=True):
                view.copy_(value)


def _block(name: str) -> str:
    """Return the attention that a projection is part of: `layer.0.attention` of `layer.0.attention.output.dense`."""
    steps = name.split(".")
    places = [place for place, step in enumerate(steps) if "att" in step.lower()]
    return ".".join(steps[: places[0] + 1])


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Return how many numbers a projection takes and gives."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    first, second = int(weight.shape[0]), int(weight.shape[1])
    return (first, second) if isinstance(module, Conv1D) else (second, first)


def _stretch(name: str, module: nn.Module, start: int, width: int, *, inputs: bool = False) -> Region:
    """Return what a projection reads from some places, or writes to them."""
    axis = int(inputs != isinstance(module, Conv1D))
    return Region(f"{name}.weight", axis, start, start + width)
