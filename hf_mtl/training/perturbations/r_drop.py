"""R-Drop: the same answers, whatever is dropped."""

from __future__ import annotations

from hf_mtl.model.modeling import MultiTaskOutput
from hf_mtl.registry import PERTURBATIONS
from hf_mtl.training.perturbations.base import Losses, MicroBatch, Perturbation, check_number


@PERTURBATIONS.register("r_drop")
class RDrop(Perturbation):
    """Runs each text twice with other dropout, and asks for the same answers.

    `1/2 (L_1 + L_2) + weight / 2 * 1/2 (KL(p_1 || p_2) + KL(p_2 || p_1))`, half of what Liang et al. 2021 minimise
    ("R-Drop: Regularized Dropout for Neural Networks", https://arxiv.org/abs/2106.14448), so that without dropout it
    is plain training. Where a task answers a number, its squared difference stands in the place of the sum of both KL.

    Costs 2 passes forward and 2 backward; memory of 2 passes.

    Args:
        weight: alpha in the paper, from 0.

    Raises:
        SpecError: an option has a value that is not allowed.
    """

    def __init__(self, *, weight: float = 1.0) -> None:
        self.weight = check_number("weight", weight)

    def losses(self, batch: MicroBatch) -> tuple[MultiTaskOutput, Losses]:
        first = batch.run()
        if not first.losses:
            return first, {}
        second = batch.run(other_dropout=True)
        apart = batch.divergences(first, second)
        again = second.losses or {}
        return first, {
            task: (loss + again[task]) / 2 + self.weight / 4 * apart[task] for task, loss in first.losses.items()
        }
