"""A callback that goes wrong in one of several processes; copied beside the commands that use it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


class Fault(Callback):
    """Go wrong before a batch: `kill` or `no_number`."""

    def __init__(self, kind: str, rank: int, step: int) -> None:
        self.kind = kind
        self.rank = rank
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Do it."""
        if trainer.global_rank != self.rank or trainer.global_step != self.step:
            return
        Path("fault").write_text(str(time.time()))
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "no_number":
            batch[0].fill_(float("nan"))


class Slow(Callback):
    """Leave time for a signal."""

    def on_train_batch_end(self, *_: Any) -> None:
        """Wait a little."""
        time.sleep(0.05)
