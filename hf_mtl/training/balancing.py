"""Balancing of losses and aggregation of gradients, by the methods of torchjd.

torchjd is imported when a method is used, here and nowhere else.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_mtl.errors import MissingExtraError, SpecError, one_of
from hf_mtl.training.balancing_methods import FAMILIES, Method
from hf_mtl.training.random_state import drawn_from

LEARNING_RATE = "lr"
"""The option of learned methods that is ours: the learning rate of their parameters."""

CODE_ONLY = ("f", "projector")
"""Options of torchjd that are functions or objects, which a recipe cannot say."""


def find_method(family: str, name: str, options: Iterable[str] = ()) -> Method:
    """Return the method of a name, after a look at what it needs.

    Args:
        family: `"balancing"` or `"aggregation"`.
        name: its name.
        options: names of the options given.

    Raises:
        SpecError: no method has that name, or the method no such option.
        MissingExtraError: a package is not installed.
    """
    methods, module = FAMILIES[family]
    if name not in methods:
        raise SpecError(f"{family} is {name!r}", mend=f"use one of {one_of(methods)}")
    method = methods[name]
    needs = {"torchjd": "balancing", **method.needs}
    missing = [package for package in needs if find_spec(package) is None]
    if missing:
        extras = dict.fromkeys(["balancing", *needs.values()])
        raise MissingExtraError(missing[0], extra=",".join(extras))
    target = getattr(importlib.import_module(module), method.target)
    known = [n for n in inspect.signature(target).parameters if n not in (method.sized, *CODE_ONLY)]
    known += [LEARNING_RATE] if method.learned else []
    for option in options:
        if option not in known:
            mend = f"use one of {one_of(known)}" if known else "it has no options"
            raise SpecError(f"{family} {name!r} has no option {option!r}", where=f"{family}_kwargs", mend=mend)
    return method


class _Built:
    """A method with its options, for some tasks."""

    family: str

    def __init__(
        self, name: str, options: Mapping[str, Any] | None, *, tasks: Sequence[str], device: torch.device, seed: int
    ) -> None:
        self.method = find_method(self.family, name, options or ())
        self.tasks = tuple(tasks)
        self.device = device
        self.seed = seed
        self.options = {**self.method.defaults, **(options or {})}
        self.numbers = {key: self._by_task(key) for key in self.method.by_task if self.options.get(key) is not None}

    def _by_task(self, option: str) -> dict[str, float]:
        value: Any = self.options[option]
        where = f"{self.family}_kwargs, {option}"
        if isinstance(value, int | float):
            value = dict.fromkeys(self.tasks, value)
        if not isinstance(value, Mapping) or set(cast(Mapping[str, Any], value)) != set(self.tasks):
            raise SpecError(
                f"{value!r} is given", where=where, mend=f"give a number, or one for each of {one_of(self.tasks)}"
            )
        numbers = {task: cast(Mapping[str, Any], value)[task] for task in self.tasks}
        for task, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise SpecError(f"{number!r} is given for {task!r}", where=where, mend="give a number")
        return {task: float(number) for task, number in numbers.items()}

    def _tensors(self, tasks: Sequence[str]) -> dict[str, Tensor]:
        return {
            option: torch.tensor([numbers[task] for task in tasks], device=self.device)
            for option, numbers in self.numbers.items()
        }

    def _make(self) -> nn.Module:
        """Build torchjd's object."""
        options = {**self.options, **self._tensors(self.tasks)}
        options.pop(LEARNING_RATE if self.method.learned else "", None)
        if self.method.sized:
            options[self.method.sized] = len(self.tasks)
        _, module = FAMILIES[self.family]
        return getattr(importlib.import_module(module), self.method.target)(**options).to(self.device)

    def _tried(self, *inputs: Tensor) -> nn.Module:
        """Build torchjd's object after a trial of another one, as some options are only looked at when it is called."""
        try:
            with drawn_from(self.seed, device=self.device), _quiet():
                self._make()(*inputs)
            return self._make()
        except (TypeError, ValueError) as error:
            raise SpecError(f"torchjd refuses {self.options!r}: {error}", where=f"{self.family}_kwargs") from error

    def _memory(self, target: nn.Module) -> dict[str, Any]:
        return {} if self.method.memory is None else self.method.memory.save(target)

    def _remember(self, target: nn.Module, state: dict[str, Any]) -> None:
        if self.method.memory is not None:
            self.method.memory.restore(target, state, self.device)


class Balancing(_Built):
    """A method that weights the losses of an optimizer step.

    Every method is a function `f` of the vector of losses `l`. Its gradient is what matters: minimising `f(l)` is, at
    this step, minimising `sum_t w_t l_t` with the weights `w_t = df/dl_t` held fixed. So a step calls `f` once, on the
    losses of all its micro-batches and processes, without the model's graph; the backward pass of that call gives the
    weights, and the gradients of the method's own parameters.

    Args:
        name: name of the method.
        options: its options; those that are a number per task as a mapping of all tasks, or one number for all.
        tasks: the tasks, in the order of the losses.
        device: device of the losses.
        seed: seed of random draws.

    Raises:
        SpecError: the method or an option cannot work.
        MissingExtraError: a package is not installed.
    """

    family = "balancing"

    def __init__(
        self, name: str, options: Mapping[str, Any] | None, *, tasks: Sequence[str], device: torch.device, seed: int
    ) -> None:
        super().__init__(name, options, tasks=tasks, device=device, seed=seed)
        self.scalarizer = self._tried(torch.ones(len(self.tasks), device=device))
        self.epoch: int | None = None
        if self.lr is not None and not (isinstance(cast(object, self.lr), int | float) and self.lr >= 0):
            raise SpecError(f"{LEARNING_RATE} is {self.lr!r}", where="balancing_kwargs", mend="give a number from 0")

    @property
    def learned(self) -> list[nn.Parameter]:
        """Parameters that belong into the optimizer."""
        return list(self.scalarizer.parameters()) if self.method.learned else []

    @property
    def lr(self) -> float | None:
        """Learning rate of these parameters, where the options name one."""
        return self.options.get(LEARNING_RATE) if self.method.learned else None

    @property
    def looks_back(self) -> bool:
        """Whether the method learns from the losses of the same rows after the optimizer's step."""
        return hasattr(self.scalarizer, "update")

    def begin(self, epoch: int) -> None:
        """Begin a step of an epoch, and a new epoch where it is another one than before.

        The end of an epoch is not waited for: a run resumed between two epochs would never see it.
        """
        if self.epoch not in (None, epoch) and hasattr(self.scalarizer, "step"):
            cast(Any, self.scalarizer).step()
        self.epoch = epoch

    def ahead(self, step: int) -> Tensor:
        """Return a step's weights before its losses are known, which a linear method allows, `(num_tasks,)`.

        Args:
            step: number of the optimizer step.
        """
        return self._weights(copy.deepcopy(self.scalarizer), torch.ones(len(self.tasks), device=self.device), step)

    def __call__(self, losses: Tensor, step: int) -> Tensor:
        """Return a step's weights, and give the method's own parameters their gradients; once for each step.

        Args:
            losses: loss of each task over the whole step, `(num_tasks,)`.
            step: number of the optimizer step.

        Returns:
            A weight for each task, `(num_tasks,)`.
        """
        for parameter in self.learned:
            parameter.grad = None
        return self._weights(self.scalarizer, losses, step)

    def _weights(self, scalarizer: nn.Module, losses: Tensor, step: int) -> Tensor:
        leaf = losses.detach().clone().requires_grad_()
        with drawn_from(self.seed, self.family, step, device=self.device):
            scalarizer(leaf).backward()
        return cast(Tensor, leaf.grad)

    def look_back(self, losses: Tensor) -> None:
        """Learn from the losses of the step's rows after it, `(num_tasks,)`."""
        cast(Any, self.scalarizer).update(losses)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the method remembers."""
        own = self.scalarizer.state_dict()
        return {"scalarizer": own, "memory": self._memory(self.scalarizer), "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take over what `state_dict` returned."""
        self.scalarizer.load_state_dict(state["scalarizer"])
        self._remember(self.scalarizer, state["memory"])
        self.epoch = state["epoch"]


class Aggregation(_Built):
    """A method that makes one gradient of the gradients of several tasks.

    Args:
        name: name of the method.
        options: its options; those that are a number per task as a mapping of all tasks, or one number for all.
        tasks: the tasks, in the order of the rows.
        device: device of the gradients.
        seed: seed of random draws.

    Raises:
        SpecError: the method or an option cannot work.
        MissingExtraError: a package is not installed.
    """

    family = "aggregation"

    def __init__(
        self, name: str, options: Mapping[str, Any] | None, *, tasks: Sequence[str], device: torch.device, seed: int
    ) -> None:
        super().__init__(name, options, tasks=tasks, device=device, seed=seed)
        self.aggregator = self._tried(torch.eye(len(self.tasks), device=device))

    def __call__(self, matrix: Tensor, tasks: Sequence[str], step: int) -> Tensor:
        """Return one gradient, `(num_shared_weights,)`.

        Args:
            matrix: gradients of the tasks of the step, `(num_present_tasks, num_shared_weights)`.
            tasks: those tasks, in the order of the rows.
            step: number of the optimizer step.
        """
        for option, numbers in self._tensors(tasks).items():
            setattr(self.aggregator, option, numbers)
        with drawn_from(self.seed, self.family, step, device=self.device), _quiet():
            return self.aggregator(matrix)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the method remembers."""
        return {"memory": self._memory(self.aggregator)}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take over what `state_dict` returned."""
        self._remember(self.aggregator, state["memory"])


@contextmanager
def _quiet() -> Generator[None]:
    """Keep cvxpy from telling users how the solver behind Nash-MTL could be made faster."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are solving a parameterized problem that is not DPP")
        yield
