"""The gradient of each task, apart from the others, over a whole optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.optimization import head_parameters

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes, for all of them."""


def shared_parameters(model: MultiTaskModel) -> list[nn.Parameter]:
    """Return the parameters in training that belong to no single task: those of the encoder, as far as not frozen."""
    own = {id(parameter) for spec in model.specs for parameter in head_parameters(model, spec.name)}
    return [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in own]


def own_parameters(model: MultiTaskModel, task: str) -> list[nn.Parameter]:
    """Return the parameters in training of one task alone."""
    return [parameter for parameter in head_parameters(model, task) if parameter.requires_grad]


class TaskGradients:
    """Gathers the gradients of several tasks' losses over micro-batches and processes.

    The gradients on the shared parameters are the rows of the Jacobian; those on the parameters of one task are summed
    as usual. Both are float32, whatever the precision of training.

    Args:
        shared: the parameters that the tasks share; at least one.
        own: per task of the step, in the order of the rows, the parameters that it has for itself.
    """

    def __init__(self, shared: Sequence[nn.Parameter], own: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self.tasks = tuple(own)
        self.shared = list(shared)
        self.own = {task: list(parameters) for task, parameters in own.items()}
        device, columns = self.shared[0].device, _size(self.shared)
        self.matrix = torch.zeros(len(self.tasks), columns, device=device)  # (num_tasks, num_shared_weights)
        self._own = {task: torch.zeros(_size(parameters), device=device) for task, parameters in self.own.items()}
        self._reached: set[int] = set()

    def add(self, task: str, loss: Tensor, *, retain_graph: bool) -> None:
        """Add the gradient of a task's loss, or of a part of it; nothing is written to any `.grad`.

        Args:
            task: the task.
            loss: a scalar with a graph.
            retain_graph: whether the graph is still needed, for another task or for `backward`.
        """
        shared, own = self.shared, self.own[task]
        # Neither hooks nor accumulation into `.grad` run here: data-parallel wrappers notice nothing.
        found = torch.autograd.grad(loss, [*shared, *own], retain_graph=retain_graph, allow_unused=True)
        self._gather(self.matrix[self.tasks.index(task)], shared, found[: len(shared)])
        self._gather(self._own[task], own, found[len(shared) :])

    def _gather(self, row: Tensor, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
        for part, parameter, gradient in zip(_split(row, parameters), parameters, gradients, strict=True):
            if gradient is not None:
                part += gradient
                self._reached.add(id(parameter))

    def reduce(self, reduce: Reduce | None) -> None:
        """Sum over all processes; every process must call it, with the same tasks."""
        if reduce is None:
            return
        for row in (*self.matrix, *self._own.values()):  # one at a time: no second matrix
            if row.numel():
                row.copy_(reduce(row))
        parameters = self._parameters()
        reached = torch.tensor([float(id(parameter) in self._reached) for parameter in parameters])
        reached = reduce(reached.to(self.matrix.device)).tolist()
        self._reached = {id(p) for p, times in zip(parameters, reached, strict=True) if times}

    def assign(self, gradient: Tensor) -> None:
        """Write `.grad`: that of the shared parameters as given, that of the others as gathered.

        A parameter that no loss has reached keeps none, so that the optimizer leaves it alone.

        Args:
            gradient: one gradient on the shared parameters made of the rows, `(num_shared_weights,)`.
        """
        self._assign(gradient, self.shared)
        for task, parameters in self.own.items():
            self._assign(self._own[task], parameters)

    def _assign(self, gradient: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        for part, parameter in zip(_split(gradient, parameters), parameters, strict=True):
            if id(parameter) in self._reached:
                parameter.grad = part.to(parameter.dtype)

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.shared, *(parameter for own in self.own.values() for parameter in own)]

    def gramian(self) -> Tensor:
        """Return the inner products of the tasks' gradients on the shared parameters, `(num_tasks, num_tasks)`."""
        return self.matrix @ self.matrix.T


def conflict(tasks: Sequence[str], gramian: Tensor) -> dict[str, float]:
    """Return `gradient_norm_<task>` per task and `gradient_cosine_<task>_<task>` per pair; waits for the device.

    Args:
        tasks: the tasks, in the order of the rows.
        gramian: inner products of their gradients, `(num_tasks, num_tasks)`.

    Returns:
        Euclidean norms, and cosines in [-1, 1], which a task with no gradient does not have.

    Example:
        >>> gradients = torch.tensor([[3.0, 4.0], [-5.0, 0.0]])
        >>> conflict(["ner", "topic"], gradients @ gradients.T)
        {'gradient_norm_ner': 5.0, 'gradient_norm_topic': 5.0, 'gradient_cosine_ner_topic': -0.6}
    """
    products: list[list[float]] = gramian.double().tolist()
    norms = [products[i][i] ** 0.5 for i in range(len(tasks))]
    logs = {f"gradient_norm_{task}": norm for task, norm in zip(tasks, norms, strict=True)}
    for a, b in combinations(range(len(tasks)), 2):
        if norms[a] and norms[b]:
            logs[f"gradient_cosine_{tasks[a]}_{tasks[b]}"] = products[a][b] / (norms[a] * norms[b])
    return logs


def _size(parameters: Sequence[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _split(vector: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return views of a vector, each in the shape of its parameter."""
    parts = vector.split([parameter.numel() for parameter in parameters]) if parameters else ()
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]
