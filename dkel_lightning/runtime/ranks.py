"""Which of several processes this one is, known from what started it. Imports neither torch nor Lightning."""

from __future__ import annotations

import os


def is_one_of_several() -> bool:
    """Tell whether Lightning, torchrun, srun or this library has started several processes for this run."""
    return "LOCAL_RANK" in os.environ or ("SLURM_PROCID" in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1")


def is_first() -> bool:
    """Tell whether this is the only process of the run, or the first.

    Lightning's `rank_zero_only` knows it only once there is a Trainer, in processes that were forked or spawned.
    """
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    found = next((os.environ[name] for name in names if name in os.environ), "0")
    return not is_one_of_several() or found == "0"
