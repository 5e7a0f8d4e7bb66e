"""Processors that this process may use, and how OpenMP's threads wait for each other. Imports no torch."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables of the environment by which a user chooses."""
GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment chooses; before torch is imported.

    By default they spin, and take the time of those they wait for where other programs share the processors.
    """
    if not any(os.environ.get(name) for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def allowed() -> int:
    """Count the processors that this process may use: those it is bound to, and the quota of its container."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, _quota())))


def sensible_threads(chosen: int) -> int | None:
    """Give the number of threads where torch has chosen more than there are processors for; None: leave it."""
    return None if any(map(os.environ.get, THREADS)) or chosen <= allowed() else allowed()


def _quota() -> float:
    """Return the least quota of the control groups around this process, in processors (Linux, version 2)."""
    try:
        own = GROUP.read_text(encoding="utf-8").partition("0::/")[2].splitlines()
    except OSError:
        return math.inf
    groups = GROUPS / (own[0] if own else "")
    quota = math.inf
    for group in (groups, *groups.parents):
        with contextlib.suppress(OSError, ValueError):
            most, period = (group / "cpu.max").read_text(encoding="ascii").split()
            quota = quota if most == "max" else min(quota, int(most) / int(period))
    return quota
