"""The methods of balancing and aggregation, by name: a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_mtl.training import balancing_memory
from hf_mtl.training.balancing_memory import Memory


@dataclass(frozen=True)
class Method:
    """One method of torchjd.

    Args:
        target: the class in `torchjd.scalarization` or `torchjd.aggregation`.
        source: the paper.
        defaults: options that torchjd leaves to the caller; its own defaults hold for the others.
        by_task: options that are a number for each task.
        sized: the option that is the number of tasks, which nobody else needs to give.
        every_task: whether the method makes no sense in a step without labels for some task.
        linear: whether the value is linear in the losses, so that the weights are known before they are.
        learned: whether the method has parameters that the optimizer of the model trains.
        memory: what it remembers outside `state_dict`.
        needs: packages beyond torchjd, each with the extra that brings it.
    """

    target: str
    source: str
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    by_task: tuple[str, ...] = ()
    sized: str | None = None
    every_task: bool = False
    linear: bool = True
    learned: bool = False
    memory: Memory | None = None
    needs: Mapping[str, str] = field(default_factory=dict[str, str])


QUADPROG = {"qpsolvers": "gpl", "quadprog": "gpl"}

BALANCINGS: dict[str, Method] = {
    "constant": Method("Constant", "fixed weights", defaults={"weights": 1.0}, by_task=("weights",)),
    "uw": Method("UW", "Kendall et al. 2018, arXiv:1705.07115", sized="shape", every_task=True, learned=True),
    "dwa": Method("DWA", "Liu et al. 2019, arXiv:1803.10704", every_task=True, memory=balancing_memory.DWA),
    "famo": Method(
        "FAMO",
        "Liu et al. 2023, arXiv:2306.03792",
        by_task=("min_losses",),
        sized="shape",
        every_task=True,
        linear=False,
        memory=balancing_memory.FAMO,
    ),
    "imtl_l": Method(
        "IMTLL", "Liu et al. 2021, openreview.net/forum?id=IMPnRXEWpvr", sized="shape", every_task=True, learned=True
    ),
    "stch": Method(
        "STCH",
        "Lin et al. 2024, arXiv:2402.19078",
        defaults={"mu": 0.1},  # one of the four values that the paper tries
        by_task=("weights", "reference"),
        every_task=True,
        linear=False,
    ),
    "geometric_mean": Method(
        "GeometricMean", "Chennupati et al. 2019, arXiv:1904.08492", every_task=True, linear=False
    ),
    "random": Method("Random", "Lin et al. 2022, arXiv:2111.10603"),
}
"""Methods that weight the losses."""

AGGREGATIONS: dict[str, Method] = {
    "upgrad": Method("UPGrad", "Quinton & Rey 2024, arXiv:2406.16232", by_task=("pref_vector",), needs=QUADPROG),
    "pcgrad": Method("PCGrad", "Yu et al. 2020, arXiv:2001.06782"),
    "mgda": Method("MGDA", "Désidéri 2012; Sener & Koltun 2018, arXiv:1810.04650"),
    "cagrad": Method("CAGrad", "Liu et al. 2021, arXiv:2110.14048", defaults={"c": 0.4}, needs={"cvxpy": "balancing"}),
    "nash_mtl": Method(
        "NashMTL",
        "Navon et al. 2022, arXiv:2202.01017",
        sized="n_tasks",
        every_task=True,
        memory=balancing_memory.NASH_MTL,
        needs={"cvxpy": "balancing", "ecos": "gpl"},
    ),
    "fairgrad": Method(
        "FairGrad",
        "Ban & Ji 2024, arXiv:2402.15638",
        defaults={"alpha": 1.0},  # proportional fairness
        needs={"scipy": "balancing"},
    ),
    "graddrop": Method("GradDrop", "Chen et al. 2020, arXiv:2010.06808", by_task=("leak",)),
    "gradvac": Method(
        "GradVac", "Wang et al. 2021, arXiv:2010.05874", every_task=True, memory=balancing_memory.GRADVAC
    ),
    "imtl_g": Method("IMTLG", "Liu et al. 2021, openreview.net/forum?id=IMPnRXEWpvr"),
    "aligned_mtl": Method("AlignedMTL", "Senushkin et al. 2023, arXiv:2305.19000", by_task=("pref_vector",)),
    "config": Method("ConFIG", "Liu et al. 2024, arXiv:2408.11104", by_task=("pref_vector",)),
    "dualproj": Method(
        "DualProj", "Lopez-Paz & Ranzato 2017, arXiv:1706.08840", by_task=("pref_vector",), needs=QUADPROG
    ),
}
"""Methods that make one gradient of the tasks' gradients on the shared parameters."""

FAMILIES = {"balancing": (BALANCINGS, "torchjd.scalarization"), "aggregation": (AGGREGATIONS, "torchjd.aggregation")}
