"""Peak memory of a training."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PeakMemory:
    """A peak in bytes, of `gpu` (tensors allocated by torch on one GPU) or `process` (resident set, code included)."""

    bytes: int
    of: str


def begin(device: torch.device) -> None:
    """Forget earlier peaks of a GPU; that of a process counts from its start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> PeakMemory:
    """Return the peak memory so far."""
    if device.type == "cuda":
        return PeakMemory(torch.cuda.max_memory_allocated(device), "gpu")
    import resource  # missing on Windows

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return PeakMemory(resident if sys.platform == "darwin" else resident * 1024, "process")
