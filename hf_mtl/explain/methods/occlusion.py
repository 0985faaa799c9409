"""Leave one out: what the score loses with each word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hf_mtl.explain.methods._removal import RemovalMethod
from hf_mtl.explain.methods.base import Attribution
from hf_mtl.explain.subject import Forward, Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target
from hf_mtl.registry import EXPLAINERS


@EXPLAINERS.register("occlusion")
@dataclass(frozen=True)
class Occlusion(RemovalMethod):
    """`a_i = S(x) - S(x without i)`, for the target's score `S`; `num_units + 1` readings of the text.

    Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901; for text Li et al. 2016, "Understanding Neural Networks
    through Representation Erasure", https://arxiv.org/abs/1612.08220. What two words say alike it gives to neither:
    without the one, the other still says it.

    captum's `FeatureAblation` gives the same numbers where words are masked. It cannot leave tokens out, and would read
    the variants again for each task.

    Args:
        perturb: how words are taken away: `"delete"` or `"mask"`.

    Raises:
        SpecError: an option is not allowed.
    """

    def attribute(
        self, subject: Subject, text: ExplainedText, forward: Forward, targets: Mapping[str, Target]
    ) -> dict[str, Attribution]:
        num_units = len(text.units)
        kept = np.concatenate([np.ones((1, num_units), dtype=bool), ~np.eye(num_units, dtype=bool)])
        scores = self.scores(subject, text, kept, targets)
        return {task: Attribution(scores=own[0] - own[1:], baseline=self.baseline) for task, own in scores.items()}
