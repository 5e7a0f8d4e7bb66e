"""Peak memory of a training."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PeakMemory:
    """A peak in bytes: `gpu`, tensors on one GPU; or `process`, the resident set."""

    bytes: int
    of: str


def begin(device: torch.device) -> None:
    """Reset the peak of a GPU; that of a process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> PeakMemory:
    """Return the peak memory so far."""
    if device.type == "cuda":
        return PeakMemory(torch.cuda.max_memory_allocated(device), "gpu")
    import resource  # missing on Windows

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return PeakMemory(resident if sys.platform == "darwin" else resident * 1024, "process")
