"""An optimizer step: perturbation, losses, balancing of the losses, aggregation of the gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_mtl.errors import DataError, SpecError, one_of
from hf_mtl.model.modeling import MultiTaskModel, MultiTaskOutput
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.balancing import Aggregation, Balancing
from hf_mtl.training.gradients import Reduce, TaskGradients, conflict, own_parameters, shared_parameters
from hf_mtl.training.objective import StepTotals, loss_parts, shared_terms
from hf_mtl.training.optimization import HEAD_RATE
from hf_mtl.training.perturbations.base import MicroBatch
from hf_mtl.training.random_state import RandomState
from hf_mtl.training.step_checks import make_perturbation


class StepObjective:
    """What an optimizer step minimises and how its gradient is made; one for each training.

    Without balancing a step minimises `sum_t loss_weight_t * share_t * L_t`, with balancing
    `sum_t weight_t * loss_weight_t * L_t`, where `L_t` is the mean over the task's items in the whole step, or what
    perturbation makes of it. Aggregation takes the gradients of these terms on the shared parameters, each for itself,
    instead of their sum.

    For each step `begin` comes first, then `terms` and `gather` for each micro-batch, then `after_optimizer_step`.

    Args:
        args: the training arguments.
        tasks: loss weight of each task, in the order of the model's.
        reduce: sums a tensor over all processes; not given where there is one.
        broadcast: returns the first process's tensor; not given where there is one.

    Raises:
        SpecError: a method or an option cannot work.
        MissingExtraError: a package is not installed.
    """

    def __init__(
        self,
        args: MultiTaskTrainingArguments,
        tasks: Mapping[str, float],
        *,
        reduce: Reduce | None = None,
        broadcast: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.tasks = dict(tasks)
        self.reduce, self.broadcast = reduce, broadcast
        self.args = args
        self.device = args.device
        common: dict[str, Any] = {"tasks": list(tasks), "device": args.device, "seed": args.seed}
        self.balancing = (
            Balancing(args.balancing, cast(Any, args.balancing_kwargs), **common) if args.balancing else None
        )
        self.aggregation = (
            Aggregation(args.aggregation, cast(Any, args.aggregation_kwargs), **common) if args.aggregation else None
        )
        self.perturbation = make_perturbation(args)
        self.step = 0
        self._left = 0  # micro-batches of this step still to come
        self._losses = self._zeros()
        self._weights: Tensor | None = None  # of this step, where known before its losses
        self._weight_sum, self._weight_steps = self._zeros(), 0
        self._gradients: TaskGradients | None = None
        self._conflict: tuple[tuple[str, ...], Tensor] | None = None
        self._losses_again: Callable[[], Tensor] | None = None

    def parts(self) -> dict[str, Balancing | Aggregation]:
        """Return the parts that remember something between steps, by name."""
        parts = {"balancing": self.balancing, "aggregation": self.aggregation}
        return {name: part for name, part in parts.items() if part is not None}

    def stateful(self) -> dict[str, Any]:
        """Return what belongs into a checkpoint, by name."""
        perturbed = self.perturbation is not None and self.perturbation.remembers
        return {**self.parts(), **({"perturbation": self.perturbation} if perturbed else {})}

    def check_model(self, model: MultiTaskModel) -> None:
        """Refuse a perturbation that finds nothing to work on in the model.

        Raises:
            SpecError: it does not.
        """
        if self.perturbation is not None:
            self.perturbation.check_model(model)

    def join(self, optimizer: torch.optim.Optimizer, *, given: bool) -> None:
        """Let the model's optimizer train the parameters of the balancing method, without weight decay.

        Args:
            optimizer: the optimizer.
            given: whether the user made it, and must have put them in.

        Raises:
            SpecError: an optimizer that was given lacks them.
        """
        balancing = self.balancing
        if balancing is None or not balancing.learned:
            return
        if given:
            raise SpecError(
                f"balancing {self.args.balancing!r} learns weights, which the optimizer given does not know",
                mend="leave optimizers out, or choose another method",
            )
        rates = (balancing.lr, self.args.head_learning_rate, HEAD_RATE * self.args.learning_rate)
        rate = next(rate for rate in rates if rate is not None)  # they begin untrained, as the heads do
        optimizer.add_param_group({"params": balancing.learned, "lr": rate, "weight_decay": 0.0})

    # ------------------------------------------------------------------ one step

    def begin(self, model: MultiTaskModel, totals: StepTotals, *, micro_batches: int, step: int, epoch: int) -> None:
        """Begin an optimizer step.

        Args:
            model: the model, without wrappers.
            totals: labelled items of the step, over all its micro-batches and processes.
            micro_batches: micro-batches of the step on each process.
            step: number of the step, from 0.
            epoch: number of the epoch, from 0.

        Raises:
            DataError: a method needs every task, and the step lacks one.
            SpecError: gradients are asked for, and the tasks share no parameter in training.
        """
        if step == 0:
            self._weight_sum, self._weight_steps = self._zeros(), 0
        self.step, self._left, self._losses = step, micro_batches, self._zeros()
        self._weights = self._gradients = self._losses_again = None
        if self.perturbation is not None:
            self.perturbation.begin(model, step=step)
        apart = self.aggregation is not None or self._logs_conflict()
        if apart or any(part.method.every_task for part in self.parts().values()):
            items = torch.stack([totals.items[task] for task in self.tasks]).tolist()  # waits for the device
            present = [task for task, count in zip(self.tasks, items, strict=True) if count > 0]
            self._check_present(present)
            self._gradients = self._no_gradients(model, present) if apart and present else None
        if self.balancing is not None:
            self.balancing.begin(epoch)
            if micro_batches > 1:
                self._weights = self.balancing.ahead(step)

    def _logs_conflict(self) -> bool:
        every = self.args.log_gradient_conflict
        return every > 0 and (self.step + 1) % every == 0

    def _no_gradients(self, model: MultiTaskModel, present: Sequence[str]) -> TaskGradients:
        shared = shared_parameters(model)
        if not shared:
            raise SpecError(
                "the tasks share no parameter in training",
                mend="freeze less, or leave out aggregation and log_gradient_conflict",
            )
        # Where nothing is aggregated, the parameters of single tasks get their gradients as usual.
        aggregates = self.aggregation is not None
        return TaskGradients(shared, {task: own_parameters(model, task) if aggregates else [] for task in present})

    def _check_present(self, present: Sequence[str]) -> None:
        for family, part in self.parts().items():
            missing = [task for task in self.tasks if task not in present]
            if part.method.every_task and missing:
                raise DataError(
                    f"no row of step {self.step + 1} has a label for {one_of(missing)}",
                    where=f"{family} by {part.method.target}, which needs every task",
                    mend="set every_task_in_batch, train on larger batches, or choose another method",
                )

    def terms(
        self, model: nn.Module, inputs: Mapping[str, Any], totals: StepTotals, *, heads: MultiTaskModel
    ) -> tuple[MultiTaskOutput, dict[str, Tensor]]:
        """Run the model on a micro-batch.

        Args:
            model: the model, as it is called.
            inputs: the micro-batch.
            totals: those of the step.
            heads: the model without wrappers.

        Returns:
            What the model returned, and the micro-batch's part of each term of the step's loss: the parts of all
            micro-batches and processes add up to the terms.
        """
        self._left -= 1
        state = RandomState(self.device) if self.balancing is not None and self.balancing.looks_back else None
        outputs, losses = self._losses_of(model, inputs, totals, heads)
        parts = loss_parts(losses, inputs, totals)
        if self.balancing is None:
            return outputs, shared_terms(heads, parts, totals)
        self._losses += self._vector(parts)
        if self._left == 0:
            self._weights = self.balancing(self._sum(self._losses), self.step)
            self._weight_sum += self._weights
            self._weight_steps += 1
        weights = dict(zip(self.tasks, cast(Tensor, self._weights), strict=True))
        if state is not None:

            def losses_again() -> Tensor:
                with torch.no_grad(), state.replayed():  # the same dropout: only the step makes a difference
                    return self._vector(loss_parts(model(**inputs).losses or {}, inputs, totals))

            self._losses_again = losses_again
        return outputs, {task: weights[task] * self.tasks[task] * part for task, part in parts.items()}

    def _losses_of(
        self, model: nn.Module, inputs: Mapping[str, Any], totals: StepTotals, heads: MultiTaskModel
    ) -> tuple[MultiTaskOutput, dict[str, Tensor]]:
        if self.perturbation is None:
            outputs: MultiTaskOutput = model(**inputs)
            return outputs, outputs.losses or {}

        def objective(means: Mapping[str, Tensor]) -> Tensor:
            terms = shared_terms(heads, loss_parts(means, inputs, totals), totals)
            return torch.stack([*terms.values()]).sum()

        key = (self.args.seed, "perturbation", self.step, self._left, self.args.process_index)
        return self.perturbation.losses(MicroBatch(model, heads, inputs, objective=objective, key=key))

    def gather(self, terms: Mapping[str, Tensor]) -> None:
        """Gather the gradient of each term of a micro-batch, where this step needs them apart from each other.

        With aggregation nothing goes backward later: the last micro-batch writes `.grad`.

        Args:
            terms: from `terms`.
        """
        gradients = self._gradients
        if gradients is None:
            return
        apart = self.aggregation is not None
        for number, (task, term) in enumerate(terms.items(), start=1):
            if task in gradients.tasks:
                gradients.add(task, term, retain_graph=not apart or number < len(terms))
        if self._left:
            return
        gradients.reduce(self.reduce)
        if self._logs_conflict():
            self._conflict = gradients.tasks, gradients.gramian()
        if self.aggregation is not None:
            gradient = self.aggregation(gradients.matrix, gradients.tasks, self.step)
            # The parts of a distributed model must stay equal to the bit, which solvers on unlike machines need not be.
            gradients.assign(gradient if self.broadcast is None else self.broadcast(gradient))
        self._gradients = None

    def tie(self, outputs: MultiTaskOutput, heads: MultiTaskModel) -> Tensor | float:
        """Return what ties the tasks' parameters to each other, once a step: for `backward`, with the last micro-batch.

        Where gradients are aggregated, which leaves nothing for `backward`, its gradient is added to `.grad`.

        Args:
            outputs: what the model returned for the micro-batch.
            heads: the model without wrappers.
        """
        if outputs.tie is None or self._left:
            return 0.0
        if self.aggregation is None:
            return outputs.tie
        own = [parameter for parameter in heads.task_adapters.parameters() if parameter.requires_grad]
        for parameter, gradient in zip(own, torch.autograd.grad(outputs.tie, own) if own else (), strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return outputs.tie.detach()

    def after_optimizer_step(self) -> None:
        """Let a method learn from what the step did to the losses of its rows; every process must call it."""
        if self._losses_again is not None and self.balancing is not None:
            self.balancing.look_back(self._sum(self._losses_again()))
        self._losses_again = None
        if self.perturbation is not None:
            self.perturbation.after_step()

    def _vector(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return `loss_weight_t * L_t` as far as a micro-batch knows it, `(num_tasks,)`."""
        zero = torch.zeros((), device=self.device)
        return torch.stack([w * parts[task].detach() if task in parts else zero for task, w in self.tasks.items()])

    def _sum(self, values: Tensor) -> Tensor:
        return values if self.reduce is None else self.reduce(values)

    def _zeros(self) -> Tensor:
        return torch.zeros(len(self.tasks), device=self.device)

    # ------------------------------------------------------------------ logs

    def mean_weights(self) -> dict[str, float]:
        """Return `weight_<task>`, the mean of the weights of balancing over the steps since the last call."""
        if not self._weight_steps:
            return {}
        means = (self._weight_sum / self._weight_steps).tolist()
        self._weight_sum, self._weight_steps = self._zeros(), 0
        return {f"weight_{task}": mean for task, mean in zip(self.tasks, means, strict=True)}

    def conflict(self) -> dict[str, float]:
        """Return norms and cosines of the last step's gradients, where it was one of those to log; only once."""
        found, self._conflict = self._conflict, None
        return {} if found is None else conflict(*found)


class StepCallback(TrainerCallback):
    """Calls what comes after the optimizer's step.

    Args:
        objective: the step's objective.
        log: logs some values.
    """

    def __init__(self, objective: StepObjective, log: Callable[[dict[str, float]], None]) -> None:
        self.objective = objective
        self.log = log

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.objective.after_optimizer_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = self.objective.conflict()
        if logs:
            due = control.should_log
            self.log(logs)
            control.should_log = due  # a log of our own must not take the place of the regular one
