"""Memory of a process: its peak in a stretch of work, and whether what is freed goes back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from dkel_lightning.runtime.ranks import is_first

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Names of malloc.h of the GNU C library."""
ALLOCATORS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""How variables of the environment begin with which a user chooses or tunes an allocator."""


@dataclass(frozen=True)
class PeakMemory:
    """A peak in bytes, of `gpu` (tensors allocated by torch on one GPU) or `process` (resident set, code included)."""

    bytes: int
    of: str


class _Process:
    """What is in force for this process."""

    keeps_freed = False


def keeps_freed() -> bool:
    """Tell whether freed memory stays with this process."""
    return _Process.keeps_freed


def keep_freed() -> bool:
    """Let this process keep the memory that tensors on the CPU free, for those of the next step.

    The GNU C library gives large blocks back to the system when they are freed. Training asks for the same blocks
    again at every step, and the system clears every page of them anew: a fifth of an eager step of ResNet-32
    (docs/performance.md). Kept memory belongs to the process until it ends, and its holes
    may raise the peak by a tenth or so. It holds for the whole process and cannot be taken back.

    Returns:
        Whether it took effect: not on another system or C library, which are left as they are.
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False  # musl has no mallopt, and bionic other numbers
    # All blocks come from the heap, which does not shrink.
    _Process.keeps_freed = bool(library.mallopt(M_MMAP_MAX, 0)) and bool(library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    return _Process.keeps_freed


def give_back() -> None:
    """Give what is free back to the system once, where this process keeps it.

    What is made at first use lies between large blocks, and the holes beside it raise the peak of all that follows.
    """
    if _Process.keeps_freed:
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_as_asked(asked: bool | str, device: torch.device) -> None:
    """Follow `execution.keep_memory`; `auto` wants it on the CPU, unless the environment tunes an allocator."""
    own = any(name.startswith(ALLOCATORS) and value for name, value in os.environ.items())
    wanted = device.type == "cpu" and not own if asked == "auto" else bool(asked)
    if wanted and not keep_freed() and asked != "auto" and is_first():
        print("execution.keep_memory=true has no effect here: it needs Linux with the GNU C library.", flush=True)


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
