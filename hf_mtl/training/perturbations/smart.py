"""SMART: answers that change little near each text, and from one step of training to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_mtl.model.modeling import MultiTaskModel, MultiTaskOutput
from hf_mtl.registry import PERTURBATIONS
from hf_mtl.training.perturbations.base import Losses, MicroBatch, Perturbation, check_count, check_number


@PERTURBATIONS.register("smart")
class Smart(Perturbation):
    """Adds a penalty on how far answers move within a small cube around each text.

    `L(x) + weight * max_{|d| <= epsilon} D(f(x + d), f(x))`, where `D` is `KL(p || q) + KL(q || p)` between the answers
    (the squared difference of numbers). The maximum is looked for from normal noise of deviation `noise`, by
    `d <- clip(d + step_size * g / max|g|, epsilon)` with `g` the gradient of `D` on the noise, its maximum over all
    tokens of a text. No labels enter it, but only labelled items count.

    With `momentum` the momentum Bregman proximal point method is added, `proximity * D(f(x), f_average(x))`, where the
    weights of `f_average` are `momentum * average + (1 - momentum) * weights` after every optimizer step. Jiang et al.
    2020, "SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models through Principled
    Regularized Optimization" (https://arxiv.org/abs/1911.03437). Their epsilon, 1e-5, is lost in bfloat16's eight bits;
    the one here is not.

    Costs `2 + steps` passes forward and as many backward, `steps` of those without gradients of weights; one more pass
    forward with `momentum`, and a copy of the weights in training. Memory of 2 passes.

    Args:
        weight: weight of the penalty, from 0.
        epsilon: the farthest that a single number of the embeddings is moved.
        step_size: the length of a step, as that of its largest number.
        steps: number of steps.
        noise: deviation of the noise that is begun with; above 0, for the gradient is 0 without any.
        momentum: share of the average that each step keeps, in [0, 1); 0 leaves the proximal point method out.
        proximity: weight of the distance from the average.

    Raises:
        SpecError: an option has a value that is not allowed.
    """

    needs_embeddings = True
    needs_hooks = True

    def __init__(
        self,
        *,
        weight: float = 1.0,
        epsilon: float = 1e-2,
        step_size: float = 1e-2,
        steps: int = 1,
        noise: float = 1e-2,
        momentum: float = 0.0,
        proximity: float = 1.0,
    ) -> None:
        self.weight = check_number("weight", weight)
        self.epsilon = check_number("epsilon", epsilon, above=True)
        self.step_size = check_number("step_size", step_size)
        self.steps = check_count("steps", steps)
        self.noise = check_number("noise", noise, above=True)
        self.momentum = check_number("momentum", momentum, most=1.0 - 1e-9)
        self.proximity = check_number("proximity", proximity)
        self._model: MultiTaskModel | None = None
        self._average: dict[str, Tensor] = {}

    @property
    def remembers(self) -> bool:
        return bool(self.momentum)

    @property
    def finest(self) -> float:
        return min(self.epsilon, self.noise)

    def losses(self, batch: MicroBatch) -> tuple[MultiTaskOutput, Losses]:
        outputs = batch.run()
        if not outputs.losses:
            return outputs, {}
        near = batch.run(self._worst(batch, outputs))
        apart = batch.divergences(near, outputs)
        losses = {task: loss + self.weight * apart[task] for task, loss in outputs.losses.items()}
        if self._average:
            moved = batch.divergences(outputs, batch.run_with(self._average))
            losses = {task: loss + self.proximity * moved[task] for task, loss in losses.items()}
        return outputs, losses

    def _worst(self, batch: MicroBatch, outputs: MultiTaskOutput) -> Tensor:
        """Return noise that moves the answers far, `(batch_size, seq_len, embedding_size)`."""
        fixed = MultiTaskOutput(logits={task: logits.detach() for task, logits in (outputs.logits or {}).items()})
        with batch.drawing():
            noise = batch.on_tokens(self.noise * torch.randn_like(batch.no_noise().detach()))
        for _ in range(self.steps):
            noise.requires_grad_()
            gradient = batch.gradient(batch.divergences(batch.run(noise), fixed), noise, keep_graph=False)
            largest = gradient.abs().amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
            noise = (noise.detach() + self.step_size * gradient / largest).clamp(-self.epsilon, self.epsilon)
        return noise

    # ------------------------------------------------------------------ momentum

    def begin(self, model: MultiTaskModel, *, step: int) -> None:
        if not self.momentum:
            return
        self._model = model
        if step == 0 or not self._average:
            self._average = {name: weight.detach().clone() for name, weight in _trained(model)}
        self._average = {name: weight.to(model.device) for name, weight in self._average.items()}

    def after_step(self) -> None:
        if self._model is not None:
            for name, weight in _trained(self._model):
                self._average[name].lerp_(weight.detach(), 1.0 - self.momentum)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._average = dict(state["average"])


def _trained(model: MultiTaskModel) -> list[tuple[str, Tensor]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
