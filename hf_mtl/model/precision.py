"""Which number format a device is fast and safe in."""

from __future__ import annotations

import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def best_precision(device_type: str) -> str:
    """Return `"bf16"` where the device multiplies bfloat16 faster than float32, else `"fp32"`.

    Args:
        device_type: `"cpu"`, `"cuda"` or another.

    Example:
        >>> best_precision("mps")
        'fp32'
    """
    if device_type == "cuda":
        return "bf16" if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8 else "fp32"
    if device_type == "cpu":
        # Without these instructions bfloat16 is emulated, several times slower than float32. torch has no public test.
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
        return "bf16" if fast else "fp32"
    return "fp32"
