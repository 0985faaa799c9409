"""A linear map in the heads of transformers' stock classes, most of which put a layer and an activation before it.

With `z = W x` for the logits without their bias, the layer before holds `W`, and the last one takes `z` back out of the
activation `f`:

- in pairs, `f(z) - f(-z) = z`: for ReLU, GELU, SiLU and every `f(y) = y s(y)` with `s(y) + s(-y) = 1`;
- made small, `(8 f(y) - f(2 y)) / 6 = y` with `y = z / 2^k`: for tanh, of which this leaves an error of `y^4 / 2`;
- in pairs beside large constants, where a layer normalisation follows: these alone decide then by what it divides.

The numbers are chosen so that float16 can hold them, too.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from hf_mtl.errors import ModelError

SMALL = {2: 2.0**-12, 4: 2.0**-6}
"""Numbers whose second or fourth power, in a sum with 1, is less than a rounding of float32."""
CONSTANT = 2.0**8
"""What stands beside small numbers so that a layer normalisation divides by it alone."""
ITSELF = "share the model itself, which loads with trust_remote_code=True"
"""What to do where a stock class cannot express a head."""
OUTPUTS = ("classifier.out_proj", "classifier", "score")
DENSE = ("head.dense", "classifier.dense", "pre_classifier", "pooler.dense", "{base}.pooler.dense", "{base}.pooler")


@dataclass(frozen=True)
class LinearMap:
    """Logits as a function of features.

    Args:
        weight: `(num_labels, hidden_size)`.
        bias: `(num_labels,)`.
        bound: what no logit of a real text exceeds, its bias left out.
    """

    weight: Tensor
    bias: Tensor
    bound: float

    @property
    def num_labels(self) -> int:
        """Number of logits."""
        return len(self.bias)


@dataclass(frozen=True)
class StockHead:
    """The layers of a stock class that stand after its encoder.

    Args:
        model: the whole model.
        output: the last layer.
        dense: the layer before it, if there is one.
        norm: the layer normalisation between them, if there is one.
    """

    model: PreTrainedModel
    output: nn.Linear
    dense: nn.Linear | None
    norm: nn.LayerNorm | None

    @classmethod
    def of(cls, model: PreTrainedModel, *, pooled: bool) -> StockHead:
        """Find the layers.

        Raises:
            ModelError: the class has none of the forms that are known.
        """
        names = [name.format(base=model.base_model_prefix) for name in DENSE]
        output = _first(model, OUTPUTS)
        # A pooler takes the first token; what tags each token has none before it, but ModernBERT has a dense layer.
        dense = _first(model, names if pooled else names[:1])
        sizes = {output.in_features, *((dense.in_features, dense.out_features) if dense else ())} if output else set()
        if output is None or output.out_features != model.config.num_labels or len(sizes) != 1:
            raise ModelError(f"the layers of {type(model).__name__} are not known", mend=ITSELF)
        norm = getattr(getattr(model, "head", None), "norm", None)
        return cls(model, output, dense, norm if isinstance(norm, nn.LayerNorm) else None)

    def poolings(self) -> tuple[str, ...]:
        """Return the kinds of pooling that the class knows."""
        if self.norm is not None and hasattr(self.model.config, "classifier_pooling"):
            return ("cls", "mean")
        return ("last",) if self.dense is None and not _has_bias(self.output) else ("cls",)

    def write(self, wanted: LinearMap, inputs: dict[str, Tensor]) -> Iterator[None]:
        """Write a linear map into the layers, in one way after the other; which of them is right can be tried out.

        Args:
            wanted: the map.
            inputs: any inputs of the model.

        Raises:
            ModelError: the layers cannot hold the map.
        """
        count, size = wanted.num_labels, self.output.in_features
        ways = {
            self._direct: self.dense is None,
            self._balanced: self.norm is not None and 2 * count + 2 <= size,
            self._paired: self.dense is not None and self.norm is None and 2 * count <= size,
            self._shrunk: self.dense is not None and self.norm is None and 2 * count <= size,
        }
        for way, fits in ways.items():
            if fits:
                with torch.no_grad():
                    way(wanted, inputs)
                yield

    def _direct(self, wanted: LinearMap, inputs: dict[str, Tensor]) -> None:
        self.output.weight.copy_(wanted.weight)
        if _has_bias(self.output):
            self.output.bias.copy_(wanted.bias)
        elif wanted.bias.any():
            # Features that are moved by d, with W d = bias, give the same logits.
            norm = _last_norm(self.model, inputs)
            if norm is None:
                raise ModelError(
                    f"{type(self.model).__name__} has no bias for its logits, and its encoder none for its states",
                    mend=ITSELF,
                )
            shift = torch.linalg.pinv(wanted.weight.double()) @ wanted.bias.double()
            norm.bias += shift.to(norm.bias)

    def _paired(self, wanted: LinearMap, inputs: dict[str, Tensor]) -> None:
        self._fill([(wanted.weight, 1.0), (-wanted.weight, -1.0)], wanted.bias)

    def _shrunk(self, wanted: LinearMap, inputs: dict[str, Tensor]) -> None:
        scale = _power_of_two(SMALL[4] / wanted.bound)
        small = wanted.weight * scale
        self._fill([(small, 8 / (6 * scale)), (2 * small, -1 / (6 * scale))], wanted.bias)

    def _balanced(self, wanted: LinearMap, inputs: dict[str, Tensor]) -> None:
        assert self.dense is not None
        assert self.norm is not None
        count, size = wanted.num_labels, self.output.in_features
        scale = _power_of_two(CONSTANT * SMALL[2] / wanted.bound)
        constants = (size - 2 * count) // 2 * 2  # as many above zero as below, so that their mean is zero
        deviation = math.sqrt(CONSTANT**2 * constants / size + self.norm.eps)
        back = deviation / (2 * scale * CONSTANT)
        self._fill([(wanted.weight * scale, back), (-wanted.weight * scale, -back)], wanted.bias)
        signs = torch.tensor([1.0, -1.0]).repeat(constants // 2)
        self.dense.bias[2 * count :][:constants] = CONSTANT * signs.to(self.dense.bias)
        self.norm.weight.fill_(CONSTANT)
        if _has_bias(self.norm):
            self.norm.bias.zero_()

    def _fill(self, rows: list[tuple[Tensor, float]], bias: Tensor) -> None:
        """Write blocks of rows into the layer before, and what the last layer multiplies each with."""
        assert self.dense is not None
        for weights in (*self.dense.parameters(), *self.output.parameters()):
            weights.zero_()
        for place, (weight, back) in enumerate(rows):
            block = slice(place * len(weight), (place + 1) * len(weight))
            self.dense.weight[block] = weight
            self.output.weight[:, block].fill_diagonal_(back)
        self.output.bias.copy_(bias)


def _first(model: nn.Module, names: Sequence[str]) -> nn.Linear | None:
    modules = dict(model.named_modules())
    return next((module for name in names if isinstance(module := modules.get(name), nn.Linear)), None)


def _has_bias(layer: nn.Module) -> bool:
    return getattr(layer, "bias", None) is not None


def _power_of_two(number: float) -> float:
    """Return the largest power of two that is not above a number: multiplied with it, nothing is rounded."""
    return 2.0 ** math.floor(math.log2(number))


def _last_norm(model: PreTrainedModel, inputs: dict[str, Tensor]) -> nn.LayerNorm | None:
    """Return the layer normalisation, with a bias, that is the last to be called."""
    with _calls(model, nn.LayerNorm) as called:
        model(**inputs)
    return called[-1] if called and _has_bias(called[-1]) else None


@contextmanager
def _calls(model: nn.Module, kind: type[Any]) -> Generator[list[Any]]:
    called: list[Any] = []
    handles = [
        module.register_forward_hook(lambda module, *_: called.append(module))
        for module in model.modules()
        if isinstance(module, kind)
    ]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()
