"""Every side in a process of its own, all taking turns.

So the memory of a side is its own, and no side warms a cache or a thread pool for another. A side that waits holds its
memory and computes nothing (the workers of its DataLoader fill their queue and wait too).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dkel_lightning.app.benchmark.watch import Order, Round
from dkel_lightning.errors import DkelError
from dkel_lightning.runtime.parents import end_with_parent

Say = Callable[[str], None]


@dataclass(frozen=True)
class Begun:
    """How long a side took to be under way.

    Attributes:
        launch: seconds from the start of its process to the end of the first step, imports included.
        first_step: the same without the imports: images, networks, compiling, capturing, one step.
    """

    launch: float
    first_step: float


@dataclass(frozen=True)
class Memory:
    """The peak memory of a side's process.

    Attributes:
        bytes: tensors allocated on the GPU, or the resident set of the process, code included.
        of: `gpu` or `process`.
        reserved: what torch had taken from the GPU for them, None on the CPU.
    """

    bytes: int
    of: str
    reserved: int | None = None


@dataclass
class Measured:
    """What a side has measured: rounds in their order, then the round whose parts were watched."""

    begun: Begun
    rounds: list[Round] = field(default_factory=list)
    parts: Round | None = None
    memory: Memory | None = None


@dataclass(frozen=True)
class Plan:
    """How often each side has its turn, and for how long."""

    rounds: int
    warmup: int
    steps: int


class SideError(DkelError):
    """A side that could not go on; the message says why."""


class _Partner:
    """A side's process, seen from here."""

    def __init__(self, task: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, task), name=task.side.label)
        self._started = time.perf_counter()
        self._process.start()
        theirs.close()  # so that the end of the process ends the wait

    def begin(self) -> Begun:
        first_step = self._hear("begun")
        return Begun(time.perf_counter() - self._started, first_step)

    def turn(self, order: Order) -> Round:
        self._tell(order)
        found: Round = self._hear("round")
        return found

    def end(self) -> Memory:
        self._tell(None)
        found: Memory = self._hear("ended")
        self._process.join(30)
        return found

    def kill(self) -> None:
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()

    def _tell(self, order: Order | None) -> None:
        with contextlib.suppress(OSError):  # it is gone; why, is heard
            self._connection.send(order)

    def _hear(self, kind: str) -> Any:
        try:
            heard, content = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise SideError(f"its process ended with {self._process.exitcode}") from None
        if heard == "failed":
            raise SideError(content)
        assert heard == kind
        return content


class Sides:
    """The sides' processes, and what they have measured.

    Args:
        tasks: what each of them is told.
        say: takes a line on what happens.

    Attributes:
        found: by label, what was measured.
        failed: by label, why a side could not go on; it is then out of the benchmark.
    """

    def __init__(self, tasks: Sequence[Any], say: Say = print) -> None:
        self.tasks = tasks
        self.say = say
        self.found: dict[str, Measured] = {}
        self.failed: dict[str, str] = {}
        self._partners: dict[str, _Partner] = {}

    def measure(self, plan: Plan) -> None:
        """Start the sides one after the other, let them take turns, and end them.

        In every second round the order is turned round, so that what drifts meets all alike.
        """
        try:
            for task in self.tasks:
                with self._kept_or_left_out(task.side.label):
                    self._start(task)
            for number in range(plan.rounds):
                labels = [*self._partners]
                for label in labels if number % 2 == 0 else reversed(labels):
                    with self._kept_or_left_out(label):
                        self.found[label].rounds.append(self._partners[label].turn(Order(plan.warmup, plan.steps)))
                self.say(f"round {number + 1} of {plan.rounds}")
            for label in [*self._partners]:
                with self._kept_or_left_out(label):
                    self.found[label].parts = self._partners[label].turn(Order(plan.warmup, plan.steps, parts=True))
            for label in [*self._partners]:
                with self._kept_or_left_out(label):
                    self.found[label].memory = self._partners[label].end()
        finally:
            for partner in self._partners.values():
                partner.kill()

    def _start(self, task: Any) -> None:
        label = task.side.label
        self._partners[label] = partner = _Partner(task)
        self.found[label] = Measured(partner.begin())
        self.say(f"{label}: first step after {self.found[label].begun.first_step:.1f} s")

    @contextlib.contextmanager
    def _kept_or_left_out(self, label: str) -> Iterator[None]:
        try:
            yield
        except SideError as error:
            self.failed[label] = str(error)
            self.found.pop(label, None)
            self._partners.pop(label).kill()
            self.say(f"{label} is left out: {error}")


# ---------------------------------------------------------------------- in the side's process


class Line:
    """The turns of a side whose other end is another process."""

    def __init__(self, connection: Any, started: float) -> None:
        self.connection = connection
        self._started = started

    def begun(self) -> None:
        """Tell how long it took."""
        self.connection.send(("begun", time.perf_counter() - self._started))

    def next(self) -> Order | None:
        """Wait for what comes next."""
        order: Order | None = self.connection.recv()
        return order

    def done(self, found: Round) -> None:
        """Tell what was measured."""
        self.connection.send(("round", found))


def serve(connection: Any, task: Any) -> None:
    """Be a side's process."""
    started = time.perf_counter()
    # The process that has started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    from dkel_lightning.app import build
    from dkel_lightning.app.benchmark.sides import train
    from dkel_lightning.app.tasks import quieten
    from dkel_lightning.runtime import memory

    quieten()
    # Empty for the first side of a mode, or its first step would be as fast as the last run has left it.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(task.cache)
    with contextlib.suppress(EOFError, BrokenPipeError):
        try:
            build.import_modules(task.values["modules"])
            device = build.device(task.values)
            memory.begin(device)
            train(task, Line(connection, started))
            peak = memory.peak(device)
            reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
            connection.send(("ended", Memory(peak.bytes, peak.of, reserved)))
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:  # whatever it is, the other sides go on
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                traceback.print_exc(file=sys.stderr)
            connection.send(("failed", failure(error)))


def failure(error: Exception) -> str:
    """Say in a line why a side could not go on."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return said if isinstance(error, DkelError) and said else f"{type(error).__name__}: {said}"
