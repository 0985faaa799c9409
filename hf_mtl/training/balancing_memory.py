"""What torchjd's methods remember between steps outside `state_dict`, taken out of them and put back in.

The names are those of torchjd 0.18's private attributes: look again when its version moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Memory:
    """How a method's memory is saved and put back.

    Args:
        save: from a method to tensors, numbers and lists of them.
        restore: puts what `save` returned back into a method; the last argument is the device of its tensors.
    """

    save: Callable[[Any], dict[str, Any]]
    restore: Callable[[Any, dict[str, Any], torch.device], None]


def _save_dwa(dwa: Any) -> dict[str, Any]:
    return {"sum": dwa._loss_sum, "batches": dwa._n_batches, "averages": list(dwa._previous_averages)}


def _restore_dwa(dwa: Any, state: dict[str, Any], device: torch.device) -> None:
    dwa._loss_sum = None if state["sum"] is None else state["sum"].to(device)
    dwa._n_batches = state["batches"]
    dwa._previous_averages = [average.to(device) for average in state["averages"]]


def _save_famo(famo: Any) -> dict[str, Any]:
    optimizer = famo._optimizer
    return {"losses": famo._prev_losses, "optimizer": None if optimizer is None else optimizer.state_dict()}


def _restore_famo(famo: Any, state: dict[str, Any], device: torch.device) -> None:
    famo._prev_losses = None if state["losses"] is None else state["losses"].to(device)
    famo._optimizer = None
    if state["optimizer"] is not None:
        # As `FAMO.update` makes it; the state goes to the device of the weights by itself.
        famo._optimizer = torch.optim.Adam([famo._w], lr=famo.lr, weight_decay=famo.weight_decay)
        famo._optimizer.load_state_dict(state["optimizer"])


def _save_nash_mtl(nash: Any) -> dict[str, Any]:
    return {"step": nash.weighting.step, "weights": torch.from_numpy(nash.weighting.prvs_alpha.copy())}


def _restore_nash_mtl(nash: Any, state: dict[str, Any], device: torch.device) -> None:
    nash.weighting.step = state["step"]
    nash.weighting.prvs_alpha = state["weights"].numpy()
    if nash.weighting.step:  # torchjd states the problem at step 0 only
        nash.weighting._init_optim_problem()


def _save_gradvac(gradvac: Any) -> dict[str, Any]:
    return {"targets": gradvac.gramian_weighting._phi_t}


def _restore_gradvac(gradvac: Any, state: dict[str, Any], device: torch.device) -> None:
    targets = state["targets"]  # on the CPU, on any device
    gradvac.gramian_weighting._phi_t = targets
    gradvac.gramian_weighting._state_key = None if targets is None else (len(targets), targets.dtype)


DWA = Memory(_save_dwa, _restore_dwa)
FAMO = Memory(_save_famo, _restore_famo)
NASH_MTL = Memory(_save_nash_mtl, _restore_nash_mtl)
GRADVAC = Memory(_save_gradvac, _restore_gradvac)
