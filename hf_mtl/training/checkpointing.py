"""What the parts of the trainer remember, in a checkpoint beside the states of the optimizer and the scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from hf_mtl.errors import SpecError

STATE_NAME = "multi_task_state.pt"


class Stateful(Protocol):
    """A part of the trainer that remembers something between steps, which a resumed run must know too."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: tensors, numbers, texts, and lists and mappings of them."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Take over a state that `state_dict` returned."""
        ...


def save_parts(parts: Mapping[str, Stateful], folder: str | Path) -> None:
    """Write the states of the parts, by their names, into a checkpoint."""
    if parts:
        torch.save({name: part.state_dict() for name, part in parts.items()}, Path(folder) / STATE_NAME)


def load_parts(parts: Mapping[str, Stateful], folder: str | Path) -> None:
    """Give the parts the states of a checkpoint; no code is unpickled.

    Raises:
        SpecError: the checkpoint holds no state of a part.
    """
    path = Path(folder) / STATE_NAME
    state = torch.load(path, map_location="cpu", weights_only=True) if parts and path.is_file() else {}
    for name, part in parts.items():
        if name not in state:
            raise SpecError(
                f"the checkpoint has no state of {name}: it is of a run with other arguments",
                where=str(folder),
                mend="resume with the arguments of that run",
            )
        part.load_state_dict(state[name])
