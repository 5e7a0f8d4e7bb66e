"""Several processes of one training: they wait for each other for a bounded time, and end together."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from dkel_lightning.errors import FULL, DiskFullError, DkelError, MemoryFullError, ProcessError, full_disk
from dkel_lightning.runtime import failures

GRACE = 10.0
"""Seconds that the others have to end by themselves once one has failed."""

PAUSE = 0.2
"""Seconds between two looks at the others."""

_LOST = re.compile(r"gloo|NCCL|pair closure|by peer|Broken pipe|Socket Timeout|c10d", re.IGNORECASE)
_LATE = re.compile(r"timed? ?out", re.IGNORECASE)
_FULL = re.compile(r"out of memory|can(no|')t allocate memory", re.IGNORECASE)


class Child(NamedTuple):
    """A process that this one has started: its rank, how to ask for its exit code, and how to end it at once."""

    rank: int
    code: Callable[[], int | None]
    kill: Callable[[], None]


@dataclass(frozen=True)
class Children:
    """The processes that this one has started, and the folder in which they say why they failed."""

    each: Sequence[Child]
    notes: Path

    def first_cause(self) -> DkelError | None:
        """Say why the first one failed, None if none has."""
        return failures.cause(self.notes, {child.rank: child.code() for child in self.each})

    def kill(self) -> None:
        """End those that still run."""
        for child in self.each:
            if child.code() is None:
                child.kill()

    def wait(self, seconds: float) -> None:
        """Wait until all have ended or the time is up."""
        deadline = time.monotonic() + seconds
        while any(child.code() is None for child in self.each) and time.monotonic() < deadline:
            time.sleep(PAUSE)


class ProcessGroup(DDPStrategy):
    """Plain DDP whose processes end together.

    Lightning's own ends the main process with SIGKILL, and so without a word, up to five seconds after another one
    has failed; a process whose main process is gone waits for the backend's timeout.

    Args:
        minutes: how long a process waits for the others.
        cluster_environment: who started the processes; found out by default.
        arguments: of DDPStrategy.
    """

    def __init__(self, minutes: float, cluster_environment: ClusterEnvironment | None = None, **arguments: Any) -> None:
        super().__init__(cluster_environment=cluster_environment, timeout=timedelta(minutes=minutes), **arguments)

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)


class _Launcher(_SubprocessScriptLauncher):
    """Runs this command once for each other process, and watches them."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the others unless they are there, then call `function`."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            folder = Path(tempfile.mkdtemp(prefix="dkel_lightning_"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            with failures.passed_to_children(folder):
                self._call_children_scripts()
            started = [Child(i + 1, process.poll, process.kill) for i, process in enumerate(self.procs)]
            _Task.children = Children(started, folder)
            threading.Thread(target=_watch, args=(_Task.children,), daemon=True, name="watch-children").start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


class _Task:
    """The task of this process: whom it has started, and how to go on when it fails."""

    children: Children | None = None
    how_to_go_on: Callable[[], str] = staticmethod(lambda: "")


@contextlib.contextmanager
def together(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Run a task that may be one of several processes: whatever ends it ends the others, with one message.

    Args:
        how_to_go_on: a sentence, added to errors that a new start may cure.

    Raises:
        DkelError: what was wrong, in this process or in the one that failed first.
    """
    _Task.how_to_go_on = staticmethod(how_to_go_on)
    if failures.is_child():
        end_with_parent()
    try:
        yield
    except Exception as error:
        named = named_error(error)
        if isinstance(named, ProcessError):
            named = _first_cause(named)
        if _Task.children is not None:
            _Task.children.kill()
        advised = _advised(named)
        if advised is error:
            raise
        raise advised from error


def named_error(error: Exception) -> Exception:
    """Give what stands for a lost process, or for memory that ran out, an error of its own."""
    text = str(error)
    if isinstance(error, DkelError):
        return error
    if isinstance(error, OSError) and error.errno in FULL:
        return DiskFullError.of(error)
    if isinstance(error, MemoryError | RuntimeError | OSError) and (
        _FULL.search(text) or isinstance(error, MemoryError)
    ):
        first = (text.strip().splitlines() or ["the system has none left"])[0]
        return MemoryFullError(
            f"Out of memory ({first}): lower data.batch_size, choose precision=bf16, or keep the images off the "
            "device with data.residency=workers."
        )
    if not torch.distributed.is_available():
        return error
    several = torch.distributed.is_initialized()
    if isinstance(error, torch.distributed.DistError) or (
        several and isinstance(error, RuntimeError) and _LOST.search(text)
    ):
        if _LATE.search(text):
            return ProcessError("Another process has not answered within trainer.process_timeout: it hangs or is slow.")
        return ProcessError("Another process of this training has ended.")
    return error


def _first_cause(lost: ProcessError) -> DkelError:
    """Find out which process was lost: one that has just broken the connection needs a moment to end."""
    children = _Task.children
    if children is None:
        return lost
    deadline = time.monotonic() + GRACE / 2
    while (found := children.first_cause()) is None and time.monotonic() < deadline:
        time.sleep(PAUSE)
    return found or lost


def _advised(error: Exception) -> Exception:
    """Add how to go on to an error that a new start may cure; the process that says it does so, once."""
    curable = isinstance(error, ProcessError | MemoryFullError | DiskFullError) or full_disk(error) is not None
    if curable and not failures.is_child():
        return type(error)(f"{error} {_Task.how_to_go_on()}".strip())
    return error


def _watch(children: Children) -> None:
    """End this process and the others if one has failed and this one does not notice by itself."""
    while children.first_cause() is None:
        if all(child.code() == 0 for child in children.each):
            return
        time.sleep(PAUSE)
    time.sleep(GRACE)
    found = children.first_cause() or ProcessError("Another process of this training has ended.")
    print(f"Error: {_advised(found)}", file=sys.stderr, flush=True)
    children.kill()
    os._exit(found.exit_code)


def end_with_parent() -> None:
    """End this process soon after the one that started it: what it would wait for never comes."""
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True, name="watch-parent").start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PAUSE)
    time.sleep(GRACE / 2)  # to end in good order, as after the last test
    os._exit(1)
