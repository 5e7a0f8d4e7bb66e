"""Which of several processes this one is, known from what started it. Imports neither torch nor Lightning."""

from __future__ import annotations

import os
import sys


def is_one_of_several() -> bool:
    """Tell whether Lightning, torchrun or srun has started several processes for this run."""
    return "LOCAL_RANK" in os.environ or ("SLURM_PROCID" in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1")


def is_launched_by_lightning() -> bool:
    """Tell whether the run's first process has started this one, which Lightning marks in its command."""
    return any(argument.startswith("hydra.job.name=train_ddp_process_") for argument in sys.argv)


def is_launched_by_torchrun() -> bool:
    """Tell whether torchrun's agent has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Tell whether this is the only process of the run, or the first.

    Lightning's `rank_zero_only` knows it only once there is a Trainer, in processes that were forked.
    """
    return rank() == 0


def rank() -> int:
    """Return the number of this process in the run."""
    if not is_one_of_several():
        return 0
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return int(next(os.environ[name] for name in names if name in os.environ))
