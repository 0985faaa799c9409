"""Meta-learning over tasks: weights from which a few steps on a few rows of a task go far.

Each outer step draws some tasks. For each of them a few plain steps go from the weights `w` over batches of its support
rows, `w_{k+1} = w_k - inner_rate * grad L(w_k)`, to `w_K`; what the algorithm makes of it is the task's meta-gradient:

- `reptile`: `w - w_K` (Nichol et al. 2018, "On First-Order Meta-Learning Algorithms", https://arxiv.org/abs/1803.02999);
- `fomaml`: the gradient of the loss on query rows at `w_K`, taken as it is for `w` (first-order MAML, the same paper);
- `maml`: the gradient of that loss on `w`, through all inner steps (Finn et al. 2017, "Model-Agnostic Meta-Learning for
  Fast Adaptation of Deep Networks", https://arxiv.org/abs/1703.03400), which keeps the graphs of all of them: for small
  models.

A parameter follows the mean over the tasks of the step that have it. Reptile takes a plain step of `outer_rate`, so
that 1 goes all the way to the mean of the adapted weights; the gradients of the others go through Adam. The rate falls
to 0 over the training, in a line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_mtl.errors import SpecError, one_of
from hf_mtl.model.modeling import MultiTaskModel

OUTER_RATES = {"reptile": 0.5, "fomaml": 1e-4, "maml": 1e-4}
"""The algorithms, and the outer rate of each where none is given."""

Weights = dict[str, Tensor]
"""The weights in training, by name."""
Batch = Mapping[str, Any]
"""Rows of one task, as the collator makes them."""
Loss = Callable[[Weights, Batch], Tensor]
"""The loss of a batch with some weights, a scalar."""


@dataclass(frozen=True, kw_only=True)
class MetaOptions:
    """How to meta-learn.

    Args:
        algorithm: `reptile`, `fomaml` or `maml`.
        steps: outer steps.
        tasks_per_step: tasks that each of them draws; all where there are no more.
        inner_steps: steps on the support rows of a task.
        inner_rate: learning rate of these steps, plain gradient descent.
        max_grad_norm: the longest gradient of these steps, a longer one is made as long; 0 for any length. Pretrained
            encoders have gradients so long that they would be lost in a few steps otherwise.
        outer_rate: rate of the outer steps; 0.5 for Reptile, 1e-4 for the others, where not given.
        shots: support rows per label, and as many others as query rows; of a task that answers numbers, in all.
        batch_size: rows of an inner step, and the most of a query.
        seed: seed of all draws.

    Raises:
        SpecError: a value is not allowed.

    Example:
        >>> MetaOptions(algorithm="fomaml").rate
        0.0001
    """

    algorithm: str = "reptile"
    steps: int = 200
    tasks_per_step: int = 4
    inner_steps: int = 5
    inner_rate: float = 0.05
    max_grad_norm: float = 1.0
    outer_rate: float | None = None
    shots: int = 8
    batch_size: int = 16
    seed: int = 42

    def __post_init__(self) -> None:
        if self.algorithm not in OUTER_RATES:
            raise SpecError(f"algorithm is {self.algorithm!r}", mend=f"use one of {one_of(OUTER_RATES)}")
        for name in ("steps", "tasks_per_step", "inner_steps", "shots", "batch_size"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} is {getattr(self, name)!r}", mend="give a whole number above 0")
        if not 0.0 <= self.max_grad_norm < math.inf:
            raise SpecError(f"max_grad_norm is {self.max_grad_norm!r}", mend="give a number of at least 0")
        for name in ("inner_rate", "outer_rate"):
            value = getattr(self, name)
            if value is not None and not (0.0 < value < math.inf):
                raise SpecError(f"{name} is {value!r}", mend="give a number above 0")

    @property
    def rate(self) -> float:
        """The outer rate that training begins with."""
        return OUTER_RATES[self.algorithm] if self.outer_rate is None else self.outer_rate


def task_loss(model: MultiTaskModel, task: str) -> Loss:
    """Return the loss of a task, with what ties its parameters to others', as a function of the model's weights."""

    def loss(weights: Weights, batch: Batch) -> Tensor:
        outputs = torch.func.functional_call(model, weights, kwargs=dict(batch))
        return outputs.losses[task] if outputs.tie is None else outputs.losses[task] + outputs.tie

    return loss


def task_weights(model: MultiTaskModel, task: str) -> Weights:
    """Return the weights in training that a task uses: those of the encoder and its own."""
    of_others = {
        id(parameter)
        for spec in model.specs
        if spec.name != task
        for module in model.own_modules(spec.name)
        for parameter in module.parameters()
    }
    named = model.named_parameters()
    return {name: weight for name, weight in named if weight.requires_grad and id(weight) not in of_others}


def inner_steps(
    loss: Loss,
    weights: Weights,
    support: Sequence[Batch],
    *,
    rate: float,
    max_norm: float = 0.0,
    second_order: bool = False,
) -> Weights:
    """Take plain steps from some weights, one for each batch; the weights given stay as they are.

    Args:
        loss: the loss.
        weights: where to begin.
        support: the batches.
        rate: the learning rate.
        max_norm: the longest gradient; 0 for any length.
        second_order: whether the result keeps its graph back to the weights given.
    """
    now = dict(weights)
    for batch in support:
        if not second_order:
            now = {name: weight.detach().requires_grad_() for name, weight in now.items()}
        found = _clipped(_gradients(loss(now, batch), now, create_graph=second_order), max_norm)
        now = {name: weight - rate * found[name] if name in found else weight for name, weight in now.items()}
    return now


def meta_gradient(
    algorithm: str,
    loss: Loss,
    weights: Weights,
    support: Sequence[Batch],
    query: Batch,
    *,
    rate: float,
    max_norm: float = 0.0,
) -> tuple[Weights, Tensor]:
    """Return a task's meta-gradient, and its loss on the query rows after the inner steps.

    Args:
        algorithm: `reptile`, `fomaml` or `maml`.
        loss: the task's loss.
        weights: the weights `w`, leaves of the graph.
        support: a batch for each inner step.
        query: a batch of other rows.
        rate: the learning rate of the inner steps.
        max_norm: the longest gradient of the inner steps; 0 for any length.

    Returns:
        Gradients by name, of the weights that the loss reaches; and a scalar without a graph.
    """
    second_order = algorithm == "maml"
    # The fused kernels of attention have no second derivative.
    with sdpa_kernel(SDPBackend.MATH) if second_order else nullcontext():
        adapted = inner_steps(loss, weights, support, rate=rate, max_norm=max_norm, second_order=second_order)
        if algorithm == "reptile":
            with torch.no_grad():
                moved = {name: weight - adapted[name] for name, weight in weights.items()}
                return moved, loss(adapted, query)
        if not second_order:
            adapted = {name: weight.detach().requires_grad_() for name, weight in adapted.items()}
        value = loss(adapted, query)
        return _gradients(value, weights if second_order else adapted), value.detach()


def _gradients(value: Tensor, weights: Weights, *, create_graph: bool = False) -> Weights:
    found: Any = torch.autograd.grad(value, list(weights.values()), create_graph=create_graph, allow_unused=True)
    return {name: gradient for name, gradient in zip(weights, found, strict=True) if gradient is not None}


def _clipped(gradients: Weights, max_norm: float) -> Weights:
    if not max_norm or not gradients:
        return gradients
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    share = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return {name: share * gradient for name, gradient in gradients.items()}


class OuterLoop:
    """The weights and the optimizer of the outer steps.

    Args:
        model: the model, whose weights move.
        options: how to meta-learn.
    """

    def __init__(self, model: MultiTaskModel, options: MetaOptions) -> None:
        self.model, self.options = model, options
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        kind: Any = torch.optim.SGD if options.algorithm == "reptile" else torch.optim.Adam
        self.optimizer: torch.optim.Optimizer = kind(list(self.weights.values()), lr=options.rate)
        self.step = 0

    def task(self, task: str, support: Sequence[Batch], query: Batch) -> tuple[Weights, float]:
        """Return a task's meta-gradient, and its loss on query rows after the inner steps.

        Raises:
            SpecError: the loss is no number any more.
        """
        weights, options = task_weights(self.model, task), self.options
        gradient, value = meta_gradient(
            options.algorithm,
            task_loss(self.model, task),
            weights,
            support,
            query,
            rate=options.inner_rate,
            max_norm=options.max_grad_norm,
        )
        if not math.isfinite(value):
            raise SpecError(
                f"the loss of task {task!r} is {float(value)} in outer step {self.step + 1}",
                mend=f"give an inner_rate below {options.inner_rate:g}, an outer_rate below {options.rate:g}, "
                "or a smaller max_grad_norm above 0",
            )
        return gradient, float(value)

    def take(self, gradients: Sequence[Weights]) -> None:
        """Take an outer step along the mean of the meta-gradients of some tasks."""
        for name, weight in self.weights.items():
            own = [gradient[name] for gradient in gradients if name in gradient]
            weight.grad = torch.stack(own).mean(dim=0).to(weight.dtype) if own else None
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate * (1.0 - self.step / self.options.steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed training needs: plain values and tensors."""
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        return {"step": self.step, "weights": weights, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.step = state["step"]
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(cast(Tensor, state["weights"][name]))
        self.optimizer.load_state_dict(state["optimizer"])
