"""One label out of an ordered set for each text or text pair, such as stars or grades."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import DataError
from hf_mtl.model.cross_entropy import softmax
from hf_mtl.model.heads._one_label import OneLabelHead
from hf_mtl.model.heads.base import Words
from hf_mtl.model.labels import are_numbers, label_id, label_name, sorted_labels, wanted_labels
from hf_mtl.model.targets import Target, Wanted, contrast, contrast_name
from hf_mtl.registry import HEADS


@HEADS.register("ordinal_regression")
class OrdinalRegressionHead(OneLabelHead):
    """CORN over labels from the lowest rank to the highest; labels `(batch_size,)` long, -100 where missing.

    One output per threshold gives the probability to pass it, for what has passed those below:

        P(y > k | y > k - 1) = sigmoid(z_k),    P(y > k) = prod_{j <= k} sigmoid(z_j)

    so that P(y > k) never rises with k. Logits are log P(y = k), and their cross-entropy is CORN's loss: the sum of the
    binary cross-entropies of each threshold over the rows that reach it, here divided by the labelled rows. The answer
    is the median, the highest label with P(y >= label) > 1/2, as in the paper, which need not be the likeliest label.

    Source: Shi, Cao and Raschka, Deep neural networks for rank-consistent ordinal regression based on conditional
    probabilities, 2021, https://arxiv.org/abs/2111.08851.

    Args:
        spec: the task; its labels stand in their order.
        hidden_size: size of the features the head reads.
        dropout: dropout of the features, used where the spec names none.
    """

    def __init__(self, spec: TaskSpec, hidden_size: int, *, dropout: float) -> None:
        super().__init__(spec, hidden_size, dropout=dropout)
        self.output = nn.Linear(hidden_size, spec.num_labels - 1)

    @classmethod
    def infer_labels(cls, values: Iterable[Any]) -> tuple[str, ...]:
        labels = sorted_labels(label_name(value) for value in values if value is not None)
        if not are_numbers(labels):
            raise DataError(
                f"the labels {list(labels[:6])!r} are no numbers, so nobody knows their order",
                mend="name them in the task's 'labels', from the lowest to the highest",
            )
        return labels

    def forward(self, features: Tensor) -> Tensor:
        steps = self.output(features).float()  # (rows, num_labels - 1)
        passed = F.pad(F.logsigmoid(steps).cumsum(dim=-1), (1, 0))  # log P(y > k - 1), 0 for the lowest label
        stopped = F.pad(F.logsigmoid(-steps), (0, 1))  # log P(y <= k | y > k - 1), 0 for the highest
        return passed + stopped

    @classmethod
    def choose(cls, probabilities: np.ndarray) -> np.ndarray:
        return median_ranks(probabilities)

    @classmethod
    def prediction(cls, spec: TaskSpec, answer: dict[str, Any]) -> int:
        return spec.label2id[answer["label"]]

    @classmethod
    def reference(cls, spec: TaskSpec, value: Any) -> int:
        return label_id(spec, value)

    @classmethod
    def metric_name(cls, spec: TaskSpec) -> str:
        return "ordinal"

    @classmethod
    def target(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None, wanted: Wanted) -> Target:
        names = spec.labels or ()
        if wanted.label is None:  # the answer, which need not have the highest logit
            answered = names[int(median_ranks(softmax(logits)))]
            wanted = Wanted(answered, wanted.over, wanted.span)
        label, over = wanted_labels(spec, logits, wanted.without_span(spec.name))
        name = contrast_name(names[label], None if over is None else names[over])
        return Target(name, (label,), contrast(spec.num_labels, label, over)[None])

    @classmethod
    def holds(cls, spec: TaskSpec, target: Target, logits: np.ndarray) -> np.ndarray:
        return (median_ranks(softmax(logits)) == np.array(target.labels)).all(axis=-1)


def median_ranks(probabilities: np.ndarray) -> np.ndarray:
    """Return the highest rank that is reached with a probability above 1/2.

    Args:
        probabilities: of the ranks, lowest first, `(..., num_labels)`; they sum to 1.

    Returns:
        Ranks from 0, `(...)`.

    Example:
        >>> median_ranks(np.array([[0.4, 0.3, 0.3], [0.6, 0.1, 0.3]])).tolist()
        [1, 0]
    """
    return (probabilities.cumsum(axis=-1)[..., :-1] < 0.5).sum(axis=-1)
