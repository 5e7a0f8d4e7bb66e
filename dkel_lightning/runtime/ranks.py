"""The rank of this process, from its environment. Imports neither torch nor Lightning."""

from __future__ import annotations

import os


def is_one_of_several() -> bool:
    """Whether Lightning, torchrun or srun has started several processes for this run."""
    return "LOCAL_RANK" in os.environ or ("SLURM_PROCID" in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1")


def is_first() -> bool:
    """Whether this is the first process of the run; unlike `rank_zero_only` also before there is a Trainer."""
    return rank() == 0


def rank() -> int:
    """Return the global rank."""
    if not is_one_of_several():
        return 0
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return int(next(os.environ[name] for name in names if name in os.environ))
