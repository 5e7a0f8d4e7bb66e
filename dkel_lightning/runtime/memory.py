"""Peak memory of a stretch of work."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class PeakMemory:
    """A peak in bytes, of `gpu` (tensors allocated by torch on one GPU) or `process` (resident set, code included)."""

    bytes: int
    of: str


def begin(device: torch.device) -> None:
    """Forget earlier peaks, where the system lets us: the resident set's only on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return  # another system, or a container that forbids it: the peak is then that of the whole process


def peak(device: torch.device) -> PeakMemory:
    """Return the peak since `begin`."""
    if device.type == "cuda":
        return PeakMemory(torch.cuda.max_memory_allocated(device), "gpu")
    return PeakMemory(_resident_peak(), "process")


def _resident_peak() -> int:
    try:
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource  # missing on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
