"""Mixup of what heads read: pairs of texts made one, with the labels of both."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_mtl.errors import SpecError
from hf_mtl.model.modeling import MultiTaskModel, MultiTaskOutput
from hf_mtl.registry import PERTURBATIONS
from hf_mtl.training.perturbations.base import Losses, MicroBatch, Perturbation, check_number, mixed


@PERTURBATIONS.register("mixup")
class Mixup(Perturbation):
    """Mixes the pooled output of each text with that of another one labelled for the task.

    `h = c h_i + (1 - c) h_j`, and the loss `c l(h, y_i) + (1 - c) l(h, y_j)`, with `c` from Beta(alpha, alpha), or
    `1 - c` where that is more, drawn for each task and micro-batch, and `j` from a random order of the task's rows.
    This loss has the gradients of one with mixed labels, for cross-entropy and squared error alike. Zhang et al. 2018,
    "mixup: Beyond Empirical Risk Minimization" (https://arxiv.org/abs/1710.09412), on sentence representations as Guo
    et al. 2019 have it (https://arxiv.org/abs/1905.08941); Chen et al. 2020 ("MixText",
    https://arxiv.org/abs/2004.12239) mix states inside the encoder, which would mix the tokens of tagging tasks.

    Heads that read every token, such as those of tagging, are trained on unmixed texts: words of two texts that stand
    at one place have nothing to do with each other.

    Costs 1 pass forward and 1 backward, as plain training.

    Args:
        alpha: how much is mixed, above 0: at 0.4 one text outweighs the other most of the time, at 1 all shares are
            equally likely.

    Raises:
        SpecError: an option has a value that is not allowed.
    """

    needs_hooks = True

    def __init__(self, *, alpha: float = 0.4) -> None:
        self.alpha = check_number("alpha", alpha, above=True)

    def check_model(self, model: MultiTaskModel) -> None:
        if not any(model.head(spec.name).pooled for spec in model.specs):
            raise SpecError(
                "perturbation is 'mixup', which mixes pooled outputs, and no task of the model reads one",
                mend="choose another perturbation",
            )

    def losses(self, batch: MicroBatch) -> tuple[MultiTaskOutput, Losses]:
        orders: dict[str, Tensor] = {}
        shares: dict[str, float] = {}
        with batch.drawing():
            for task, rows in batch.inputs.get("rows", {}).items():
                if batch.heads.head(task).pooled:
                    share = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
                    shares[task] = max(share, 1.0 - share)
                    orders[task] = torch.randperm(len(rows)).to(batch.device)
        handles = [
            batch.heads.head(task).register_forward_pre_hook(_mixing(order, shares[task]))
            for task, order in orders.items()
        ]
        try:
            outputs = batch.run()
        finally:
            for handle in handles:
                handle.remove()
        own = outputs.losses or {}
        logits = cast(dict[str, Tensor], outputs.logits)
        others = {
            task: batch.heads.head(task).loss(logits[task], batch.labels(task)[order], batch.inputs["items"][task])
            for task, order in orders.items()
            if task in own
        }
        losses = own | {task: mixed({task: own[task]}, others, 1.0 - shares[task])[task] for task in others}
        outputs.losses = losses or None  # there is no plain loss to log
        return outputs, losses


def _mixing(order: Tensor, share: float) -> Any:
    def mix(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        features = args[0]  # (rows, hidden_size)
        return (share * features + (1.0 - share) * features[order], *args[1:])

    return mix
