"""trainer=ddp_spawn: a task in processes that this one starts and waits for, so that it can start more after them."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.lightning import find_free_network_port

from dkel_lightning.app.callbacks.saving import SaveOnSignal, heard, leave_terminal, put_back
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.errors import DkelError, ProcessError
from dkel_lightning.runtime import failures, unread_output
from dkel_lightning.runtime.process_group import GRACE, PAUSE, Child, Children, end_with_parent, named_error

Task = Callable[[Run], float]


def spawned(task: Task, run: Run, processes: int) -> float:
    """Call `task(run)` in so many processes and return what the first one returns.

    Each process does all that a process of torchrun does, so results are those of trainer=ddp. Signals are passed on.

    Raises:
        DkelError: what the first process to fail has said.
        SystemExit: a signal ended them in good order, or nobody reads what they print.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="dkel_lightning_") as name:
        folder = Path(name)
        port = find_free_network_port()
        with _environment(folder, port):
            workers = [context.Process(target=_work, args=(task, run, rank)) for rank in range(processes)]
            for worker in workers:
                worker.start()
        children = Children([_child(rank, worker) for rank, worker in enumerate(workers)], folder)
        try:
            with _signals_passed_on(workers) as received:
                _join(children)
        finally:
            children.kill()
        codes = [child.code() for child in children.each]
        if not any(codes):
            return float(json.loads((folder / "result").read_text(encoding="utf-8")))
        interrupted = [128 + number for number in received or SaveOnSignal.SIGNALS]
        if received or set(codes) <= set(interrupted):
            raise SystemExit(128 + received[0] if received else codes[0])
        if unread_output.UNREAD in codes:
            raise SystemExit(unread_output.UNREAD)
        raise children.first_cause() or ProcessError(f"The processes ended with {codes}.")


def _child(rank: int, worker: Any) -> Child:
    return Child(rank, lambda: worker.exitcode, worker.kill)


@contextlib.contextmanager
def _environment(folder: Path, port: int) -> Iterator[None]:
    """Set what the processes need to find each other, and take it away again for those of the next run."""
    ours = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        with failures.passed_to_children(folder):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _join(children: Children) -> None:
    """Wait for all, and once one has failed no longer than the others need to notice."""
    while all(child.code() in (None, 0) for child in children.each):
        if all(child.code() == 0 for child in children.each):
            return
        children.wait(PAUSE)
    children.wait(GRACE)


@contextlib.contextmanager
def _signals_passed_on(workers: list[Any]) -> Iterator[list[int]]:
    """Pass signals on to the workers, which end in good order; give the list of those received."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        leave_terminal(number)
        received.append(number)
        for worker in workers:
            if worker.is_alive():
                os.kill(worker.pid, number)

    if threading.current_thread() is not threading.main_thread():  # Python allows it only there
        yield received
        return
    before = heard(pass_on)
    try:
        yield received
    finally:
        put_back(before)


def _work(task: Task, run: Run, rank: int) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    end_with_parent()
    try:
        result = task(run)
    except DkelError as error:
        failures.note(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        unread_output.end_if_unread(error)
        named = named_error(error)
        failures.note(named if isinstance(named, DkelError) else DkelError(f"\n{traceback.format_exc()}"))
        sys.exit(1)
    if rank == 0:
        (Path(os.environ[failures.FOLDER]) / "result").write_text(json.dumps(result), encoding="utf-8")
