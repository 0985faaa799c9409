"""The machine that figures come from."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def describe() -> str:
    """Describe processor, cores, threads and versions, in one line."""
    processor = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    flags = cpu_info.read_text(encoding="utf-8") if cpu_info.is_file() else ""
    names = [line.partition(":")[2].strip() for line in flags.splitlines() if line.startswith("model name")]
    extensions = [name for name in ("avx512_bf16", "amx_bf16", "avx512_vnni") if f" {name}" in flags]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return (
        f"{names[0] if names else processor} ({', '.join(extensions) or 'no bf16 instructions'}){gpu}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
