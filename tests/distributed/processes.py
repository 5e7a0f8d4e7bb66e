"""Processes for the tests: forked ones, which share what was imported, and real commands that may go wrong."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

MARK = "DKEL_TEST_COMMAND"
"""Environment variable that only the processes of one command have."""
FAULTS = Path(__file__).with_name("faults.py")
TINY = (
    *("debug=smoke", "backbone=resnet8", "method.peers=2", "trainer.max_epochs=2", "trainer.limit_train_batches=12"),
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "data.batch_size=8", "execution.threads=1"),
)


def fork(world: int, work: Callable[[int], None], *, seconds: float = 120) -> list[int]:
    """Call `work(rank)` in forked processes that find each other as those of a launcher do; return the exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def child(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NODE_RANK="0", LOCAL_RANK=str(rank))
        work(rank)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=child, args=(rank,)) for rank in range(world)]
    for each in children:
        each.start()
    deadline = time.monotonic() + seconds
    try:
        for each in children:
            each.join(max(deadline - time.monotonic(), 0.1))
        assert all(each.exitcode is not None for each in children), "processes hang"
        return [int(each.exitcode or 0) for each in children]
    finally:
        for each in children:
            each.kill()


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code.
        text: what it and its processes printed.
        seconds: from the fault to its end; None without a fault.
    """

    code: int
    text: str
    seconds: float | None

    @property
    def errors(self) -> list[str]:
        return [line for line in self.text.splitlines() if re.match(r"Error(:| in process)", line)]


class Command:
    """A `python -m dkel_lightning` in a session of its own, in a folder with `faults.py`."""

    def __init__(self, folder: Path, *arguments: str, launcher: Sequence[str] = ()) -> None:
        self.folder = folder
        shutil.copy(FAULTS, folder)
        self._log = (folder / "log.txt").open("a")
        # Not what the tests' own processes were given.
        dropped = ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "DKEL_RUN_FOLDER")
        environment = {name: value for name, value in os.environ.items() if name not in dropped}
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", MARK: self._mark.split("=")[1]}
        self.process = subprocess.Popen(
            [*(launcher or [sys.executable]), "-m", "dkel_lightning", *arguments],
            cwd=folder, env=environment, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def wait(self, seconds: float = 240) -> Ended:
        """Wait for its end; all its processes must have ended soon after."""
        try:
            code = self.process.wait(seconds)
            ended = time.time()
            deadline = time.monotonic() + 15
            while self.processes() and time.monotonic() < deadline:
                time.sleep(0.1)
            left = self.processes()
        finally:
            self.kill()
        assert left == [], f"processes are left: {left}"
        fault = self.folder / "fault"
        at = float(fault.read_text()) if fault.is_file() else None
        return Ended(code, self.text, None if at is None else ended - at)

    @property
    def text(self) -> str:
        return (self.folder / "log.txt").read_text()

    def until(self, pattern: str) -> None:
        """Wait until it has printed this."""
        self._wait_for(lambda: re.search(pattern, self.text) is not None)

    def _wait_for(self, happened: Callable[[], bool], seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)

    def processes(self) -> list[int]:
        """Return its living processes, whatever session torchrun has put them into; zombies have no environment."""
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if self._mark.encode() in environment.read_bytes():
                    found.append(int(environment.parent.name))
        return found

    def kill(self) -> None:
        """End what is left of it."""
        for number in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait()
        self._log.close()


def run_folder(folder: Path) -> Path:
    """Return the folder of the only run."""
    (found,) = (path.parent for path in folder.glob("outputs/*/*/config.yaml"))
    return found
