"""Where the images of a run lie: on the device, or with worker processes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal

import torch

Residency = Literal["device", "workers"]
# The rest is for networks, activations and whoever else uses the device.
SHARE_OF_FREE_MEMORY = 0.3


def choose_residency(wanted: str, needed: int, device: torch.device, processes: int = 1) -> Residency:
    """Return where `needed` bytes of images go.

    `auto` means the device if they take at most `SHARE_OF_FREE_MEMORY` of its free memory; on the CPU, `processes`
    share the free memory.
    """
    if wanted != "auto":
        return "device" if wanted == "device" else "workers"
    available = _free_memory(device) // (processes if device.type == "cpu" else 1)
    return "device" if needed <= SHARE_OF_FREE_MEMORY * available else "workers"


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_host_memory()


def free_host_memory() -> int:
    """Return the bytes of the host's memory that are free or can be freed."""
    with contextlib.suppress(OSError):  # another system
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        # A system that does not say (Windows): what any machine that trains has.
        return 4 << 30
