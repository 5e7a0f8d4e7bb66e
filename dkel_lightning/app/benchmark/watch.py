"""Clocks of a benchmark: parts of a step, and the turns that sides take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was given; not amid a capture, which gives it nothing to do."""
    if device.type == "cuda":
        if not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Parts:
    """Measure the parts of a step, waiting for the device at both ends of each: only while `watching`.

    What lies inside another part counts for the inner one alone.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.watching = False
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what the block takes for `name`."""
        if not self.watching:
            yield
            return
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

    def begin(self, name: str) -> None:
        """Count for `name` from here on; does nothing unless watching."""
        if self.watching:
            self._switch()
            self._open.append(name)

    def end(self, name: str) -> None:
        """Count for what lies around it again; nothing unless `name` was begun."""
        if self.watching and name in self._open:
            self._switch()
            del self._open[self._open.index(name) :]

    def start(self) -> None:
        """Begin to watch."""
        self.seconds, self._open, self.watching = {}, [], True

    def stop(self) -> dict[str, float]:
        """Stop watching, and give the seconds of each part."""
        self.watching = False
        return self.seconds

    def _switch(self) -> None:
        wait_for(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now


def wrapped(owner: object, name: str, part: str, parts: Parts) -> None:
    """Let every call of a method of this one object count for a part."""
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        with parts(part):
            return original(*args, **kwargs)

    replace_method(owner, name, call)


def replace_method(owner: object, name: str, function: Callable[..., Any]) -> None:
    """Put a function in the place of a method of this one object."""
    setattr(owner, name, function)


class TimedLoader:
    """A loader whose batches count for the part `data`; in all else it is the loader."""

    def __init__(self, loader: Any, parts: Parts) -> None:
        self._loader = loader
        self._parts = parts

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        with self._parts("data"):
            batches = iter(self._loader)
        while True:
            try:
                with self._parts("data"):
                    batch = next(batches)
            except StopIteration:
                return
            yield batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


# ---------------------------------------------------------------------- taking turns


@dataclass(frozen=True)
class Order:
    """What a side shall do next: so many steps that do not count, so many that do, with their parts or without."""

    warmup: int
    steps: int
    parts: bool = False


@dataclass(frozen=True)
class Round:
    """What a side has measured.

    Attributes:
        seconds: of all steps that count.
        images: in them.
        parts: seconds of each part in them; empty where not asked for.
    """

    seconds: float
    images: int
    parts: dict[str, float] = field(default_factory=dict)


class Turns(Protocol):
    """The other end of a side: it says what comes next and takes what was measured."""

    def begun(self) -> None:
        """Hear that the first step is done."""

    def next(self) -> Order | None:
        """Say what comes next; None: nothing."""

    def done(self, found: Round) -> None:
        """Take what was measured."""


class Pace:
    """Counts the steps of a side and measures those that shall count.

    A side calls `border` after each step, the first one included; it ends when that says so.
    """

    def __init__(self, turns: Turns, parts: Parts) -> None:
        self.turns = turns
        self.parts = parts
        self._order: Order | None = None
        self._left = 0
        self._counting = False
        self._images = 0
        self._started = 0.0

    def border(self, images: int) -> bool:
        """Stand between two steps, the one before of so many images; False: no further step is wanted."""
        if self._order is None:
            wait_for(self.parts.device)
            self.turns.begun()
            return self._next()
        self._left -= 1
        if self._counting:
            self._images += images
        if self._left > 0:
            return True
        wait_for(self.parts.device)
        if not self._counting:
            self._count(self._order.steps)
            return True
        seconds = time.perf_counter() - self._started
        self.turns.done(Round(seconds, self._images, self.parts.stop() if self._order.parts else {}))
        return self._next()

    def _next(self) -> bool:
        self._order = self.turns.next()
        if self._order is None:
            return False
        self._counting, self._left = False, self._order.warmup
        if self._left == 0:
            self._count(self._order.steps)
        return True

    def _count(self, steps: int) -> None:
        self._counting, self._left, self._images = True, steps, 0
        if self._order is not None and self._order.parts:
            self.parts.start()
        self._started = time.perf_counter()
