"""The clocks: what counts for which part, and which steps count at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dkel_lightning.app.benchmark import watch
from dkel_lightning.app.benchmark.watch import Order, Pace, Parts, Round, TimedLoader, wrapped

CPU = torch.device("cpu")


class Clock:
    """Time that passes only when it is told to."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(watch, "time", found)
    return found


def test_what_lies_inside_another_part_counts_for_the_inner_one_alone(clock: Clock) -> None:
    parts = Parts(CPU)
    parts.start()
    with parts("backward"):
        clock.now += 2
        with parts("data"):
            clock.now += 5
        clock.now += 1
    clock.now += 100
    assert parts.stop() == {"backward": 3, "data": 5}


def test_nothing_is_counted_unless_asked_for(clock: Clock) -> None:
    parts = Parts(CPU)
    with parts("student"):
        clock.now += 1
    parts.begin("backward")
    parts.end("backward")
    parts.start()
    parts.end("optimizer")  # was not begun
    assert parts.stop() == {}


def test_a_wrapped_method_counts_and_returns_what_it_did(clock: Clock) -> None:
    class Network:
        def forward(self, x: int) -> int:
            clock.now += 4
            return x + 1

    network, parts = Network(), Parts(CPU)
    wrapped(network, "forward", "student", parts)
    parts.start()
    assert network.forward(1) == 2
    assert parts.stop() == {"student": 4}


def test_a_timed_loader_counts_its_batches_and_is_the_loader_in_all_else(clock: Clock) -> None:
    class Loader:
        epoch = 3

        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[int]:
            for batch in range(2):
                clock.now += 10
                yield batch

    parts = Parts(CPU)
    loader = TimedLoader(Loader(), parts)
    parts.start()
    found = []
    for batch in loader:
        clock.now += 1
        found.append(batch)
    assert found == [0, 1]
    assert (len(loader), loader.epoch) == (2, 3)
    assert parts.stop() == {"data": 20}


class Turns:
    def __init__(self, *orders: Order) -> None:
        self.orders: list[Order | None] = [*orders, None]
        self.heard: list[Any] = []

    def begun(self) -> None:
        self.heard.append("begun")

    def next(self) -> Order | None:
        return self.orders.pop(0)

    def done(self, found: Round) -> None:
        self.heard.append(found)


def test_a_side_makes_one_step_then_those_it_is_asked_for_and_only_these_count(clock: Clock) -> None:
    turns = Turns(Order(warmup=2, steps=3), Order(warmup=0, steps=2, parts=True))
    parts = Parts(CPU)
    pace = Pace(turns, parts)
    steps = 0
    while True:
        with parts("student"):
            clock.now += 1 + steps  # each step takes longer than the one before
        steps += 1
        if not pace.border(images=10 * steps):
            break
    assert steps == 1 + 2 + 3 + 2
    # Steps 4, 5, 6 of the first order; 7 and 8 of the second.
    assert turns.heard == ["begun", Round(4 + 5 + 6, 40 + 50 + 60), Round(7 + 8, 70 + 80, {"student": 15})]
