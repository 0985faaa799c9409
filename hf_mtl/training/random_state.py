"""Random draws that depend on nothing drawn before, and leave no trace on what is drawn after."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch


class RandomState:
    """Where torch's random generators of the CPU and of a device stand at this moment.

    Args:
        device: the device.

    Example:
        >>> state = RandomState(torch.device("cpu"))
        >>> first = torch.rand(3)
        >>> with state.replayed():
        ...     again = torch.rand(3)
        >>> torch.equal(first, again)
        True
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        sources: list[Any] = [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]
        self._states = [(source, source.get_rng_state()) for source in sources]

    def restore(self) -> None:
        """Put the generators back to this state."""
        for source, state in self._states:
            source.set_rng_state(state)

    @contextmanager
    def replayed(self) -> Generator[None]:
        """Draw once more what was drawn from this state on, then go on as if nothing had been drawn."""
        now = RandomState(self.device)
        self.restore()
        try:
            yield
        finally:
            now.restore()


@contextmanager
def drawn_from(*key: object, device: torch.device) -> Generator[None]:
    """Draw from generators seeded with a key, then go on as if nothing had been drawn.

    Args:
        key: what the draws depend on, such as a seed and a step; the same on every process.
        device: the device that draws, besides the CPU.

    Example:
        >>> with drawn_from(42, "step", 7, device=torch.device("cpu")):
        ...     first = torch.rand(3)
        >>> with drawn_from(42, "step", 7, device=torch.device("cpu")):
        ...     torch.equal(first, torch.rand(3))
        True
    """
    now = RandomState(device)
    # Seeded with text, Python's generator hashes all of it: neighbouring steps have unrelated seeds.
    torch.manual_seed(random.Random("/".join(map(str, key))).getrandbits(63))
    try:
        yield
    finally:
        now.restore()
