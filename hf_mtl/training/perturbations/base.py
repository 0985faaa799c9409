"""`Perturbation`: the losses of a micro-batch whose texts, states or dropout are disturbed on purpose."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_mtl.errors import ModelError, SpecError, one_of
from hf_mtl.model.modeling import MultiTaskModel, MultiTaskOutput
from hf_mtl.training.random_state import RandomState, drawn_from

Losses = dict[str, Tensor]
"""Per task of a micro-batch the mean over its labelled items, a scalar with a graph."""


class MicroBatch:
    """One micro-batch, on which the model can be run as often as a method needs.

    All passes drop the same values, so that nothing but the noise makes a difference; the random generators stand
    afterwards where a single pass would have left them.

    Args:
        model: the model as it is called; the first pass runs on it.
        heads: the model without wrappers; further passes run on it, since a data-parallel wrapper expects one pass
            before each backward.
        inputs: the micro-batch, as the collator makes it.
        objective: makes one number of the losses, or of other means over the same items, for the direction of noise.
        key: what random draws depend on: a seed, the step, the place in it, the process.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: MultiTaskModel,
        inputs: Mapping[str, Any],
        *,
        objective: Callable[[Mapping[str, Tensor]], Tensor],
        key: tuple[object, ...],
    ) -> None:
        self.model, self.heads = model, heads
        self.inputs = inputs
        self.objective = objective
        self.key = key
        self.device = heads.device
        self._state: RandomState | None = None

    def run(self, noise: Tensor | None = None, *, other_dropout: bool = False) -> MultiTaskOutput:
        """Run the model once.

        Args:
            noise: added to the token embeddings, `(batch_size, seq_len, embedding_size)`.
            other_dropout: whether to drop other values than the first pass did.
        """
        with adding(self.heads, noise):
            if self._state is None:
                self._state = RandomState(self.device)
                return self.model(**self.inputs)
            if other_dropout:
                return self.heads(**self.inputs)
            with self._state.replayed():
                return self.heads(**self.inputs)

    def run_with(self, weights: Mapping[str, Tensor]) -> MultiTaskOutput:
        """Run the model with other weights, without a graph.

        Args:
            weights: by name, those that are other.
        """
        assert self._state is not None  # never the first pass
        with torch.no_grad(), self._state.replayed():
            return torch.func.functional_call(self.heads, dict(weights), kwargs=dict(self.inputs))

    def no_noise(self) -> Tensor:
        """Return noise of zeros, `(batch_size, seq_len, embedding_size)` float32, whose gradient can be taken."""
        size = cast(Any, self.heads.get_input_embeddings()).weight.shape[-1]
        shape = (*self.inputs["input_ids"].shape, size)
        return torch.zeros(shape, device=self.device, requires_grad=True)

    def on_tokens(self, noise: Tensor) -> Tensor:
        """Return noise with zeros on padding."""
        mask = self.inputs.get("attention_mask")
        return noise if mask is None else noise * (mask > 0).unsqueeze(-1)

    def gradient(self, means: Mapping[str, Tensor], noise: Tensor, *, keep_graph: bool) -> Tensor:
        """Return the gradient of the objective on noise, in its shape, 0 on padding.

        Args:
            means: losses or divergences of a pass with this noise.
            noise: a leaf of their graph.
            keep_graph: whether the graph is needed again.
        """
        value = self.objective(means)
        # Neither hooks nor accumulation into `.grad` run here: data-parallel wrappers notice nothing.
        (found,) = torch.autograd.grad(value, noise, retain_graph=keep_graph)
        return self.on_tokens(found)

    def divergences(self, outputs: MultiTaskOutput, others: MultiTaskOutput) -> Losses:
        """Return how far the answers of two passes lie apart, as each head measures it, for each task with labels."""
        a, b = cast(dict[str, Tensor], outputs.logits), cast(dict[str, Tensor], others.logits)
        return {
            task: self.heads.head(task).divergence(a[task], b[task], self.labels(task), self.inputs["items"][task])
            for task in outputs.losses or {}
        }

    def labels(self, task: str) -> Tensor:
        """Return the labels of a task's labelled rows."""
        return self.inputs["labels"][task][self.inputs["rows"][task]]

    @contextmanager
    def drawing(self) -> Generator[None]:
        """Draw from generators that depend on the step alone, and leave those of the training where they are."""
        with drawn_from(*self.key, device=self.device):
            yield


class Perturbation(ABC):
    """Makes the losses of a micro-batch out of one or several passes.

    Its options are the keyword arguments of its `__init__`. What it returns takes the place of the plain losses: it is
    weighted, balanced and aggregated as they are. A method whose noise follows the gradient takes that of
    `sum_t loss_weight_t * share_t * L_t`, whatever balancing makes of the losses. "A text" is a row of the encoder.

    Raises:
        SpecError: an option has a value that is not allowed.
    """

    needs_embeddings: ClassVar[bool] = False
    """Whether noise is added to the embeddings, so that the encoder must be in training."""

    needs_hooks: ClassVar[bool] = False
    """Whether it reaches into the model while it runs."""

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Return the names of the method's options."""
        parameters = inspect.signature(cls).parameters.values()
        return tuple(one.name for one in parameters if one.kind is one.KEYWORD_ONLY)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Check the names of options.

        Raises:
            SpecError: the method has no such option; lists those it has.
        """
        for name in options:
            if name not in cls.options():
                raise SpecError(f"{cls.__name__} has no option {name!r}", mend=f"use {one_of(cls.options())}")

    @property
    def remembers(self) -> bool:
        """Whether it remembers something between steps, which `state_dict` returns."""
        return False

    @property
    def finest(self) -> float:
        """The size of the smallest disturbance of a single number; infinite where it is never small."""
        return float("inf")

    def check_model(self, model: MultiTaskModel) -> None:  # noqa: B027 (most work with every model)
        """Check that the method has something to work on.

        Raises:
            SpecError: it has not.
        """

    @abstractmethod
    def losses(self, batch: MicroBatch) -> tuple[MultiTaskOutput, Losses]:
        """Run the model and return what to train on.

        Args:
            batch: the micro-batch.

        Returns:
            The output of the first pass, and the losses; none where no row has a label left.
        """

    # ------------------------------------------------------------------ methods that remember something

    def begin(self, model: MultiTaskModel, *, step: int) -> None:  # noqa: B027
        """Begin an optimizer step, numbered from 0."""

    def after_step(self) -> None:  # noqa: B027
        """Take note that the optimizer has made its step."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered between steps, of a method that `remembers`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:  # noqa: B027
        """Take over what `state_dict` returned."""


@contextmanager
def adding(model: MultiTaskModel, noise: Tensor | None) -> Generator[None]:
    """Add noise to the token embeddings inside the block.

    A hook reaches every architecture; not all of them take `inputs_embeds`, and some number positions otherwise then.

    Args:
        model: the model.
        noise: `(batch_size, seq_len, embedding_size)`; nothing is done where not given.

    Raises:
        ModelError: the model does not look up its embeddings once in a pass.
    """
    if noise is None:
        yield
        return
    reached: list[nn.Module] = []

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        reached.append(module)
        padding = output.shape[1] - noise.shape[1]  # Longformer pads rows to whole windows
        return output + F.pad(noise.to(output.dtype), (0, 0, 0, padding))

    table: Any = model.get_input_embeddings()
    # T5 names one module and calls another, which has the same weights.
    alike = [module for module in model.modules() if type(module) is type(table) and module.weight is table.weight]
    handles = [module.register_forward_hook(add) for module in alike]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if len(reached) != 1:
        raise ModelError(
            f"the encoder looks up its token embeddings {len(reached)} times in a pass, so they cannot be disturbed",
            mend="choose r_drop or mixup as perturbation, or another encoder",
        )


def row_norms(noise: Tensor) -> Tensor:
    """Return the Euclidean norm of each text's noise, `(batch_size, 1, 1)`; tiny instead of 0, to divide by."""
    flat, tiny = noise.flatten(1), torch.finfo(noise.dtype).tiny
    largest = flat.abs().amax(dim=1, keepdim=True).clamp(min=tiny)  # else the squares of small numbers would be 0
    return ((flat / largest).norm(dim=1, keepdim=True) * largest).clamp(min=tiny).view(-1, 1, 1)


def mixed(losses: Mapping[str, Tensor], others: Mapping[str, Tensor], weight: float) -> Losses:
    """Return `(1 - weight) * losses + weight * others`, task by task."""
    return {task: (1.0 - weight) * loss + weight * others[task] for task, loss in losses.items()}


def check_number(name: str, value: Any, *, least: float = 0.0, above: bool = False, most: float | None = None) -> float:
    """Return an option's value if it is a number within bounds.

    Args:
        name: the option.
        value: what was given.
        least: the lower bound.
        above: whether the bound itself is too low.
        most: the upper bound.

    Raises:
        SpecError: it is not.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and value < float("inf")
    if not good or value < least or (above and value == least) or (most is not None and value > most):
        bound = f"above {least:g}" if above else f"from {least:g}"
        raise SpecError(f"{name} is {value!r}", mend=f"give a number {bound}" + (f" to {most:g}" if most else ""))
    return float(value)


def check_count(name: str, value: Any) -> int:
    """Return an option's value if it is a whole number above 0.

    Raises:
        SpecError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SpecError(f"{name} is {value!r}", mend="give a whole number above 0")
    return value
