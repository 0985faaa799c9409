"""Numbers on their way from the host to a device, which nothing waits for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def on_device(values: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor on a device; on a GPU the copy is queued, where `torch.tensor` would wait for it.

    Args:
        values: numbers, or lists or an array of them.
        dtype: what they become.
        device: where.

    Example:
        >>> on_device([1, 2], dtype=torch.float32, device=torch.device("cpu"))
        tensor([1., 2.])
    """
    tensor = torch.as_tensor(values, dtype=dtype)
    # Only from memory that is pinned can a GPU fetch by itself.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
