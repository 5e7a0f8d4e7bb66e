"""Sides in turns: rounds, their medians and ratios, as a CSV file, a table and a figure."""

from __future__ import annotations

import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure

from dkel_lightning.app import drawing
from dkel_lightning.app.benchmark.sides import Side, Steps, Turns
from dkel_lightning.app.runs.tables import markdown_table, write_csv
from dkel_lightning.errors import DkelError
from dkel_lightning.runtime import memory
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.runtime.memory import PeakMemory

COLOURS = {"plain": "#888888", "trainer": "#1f77b4", "bare": "#9ecae1"}


@dataclass(frozen=True)
class Plan:
    """How often each side has its turn; steps of a turn that do not count, and then those that do."""

    rounds: int
    warmup: int
    steps: int

    @property
    def most(self) -> int:
        """Steps that a side makes in all: one, and then its turns."""
        return 1 + self.rounds * (self.warmup + self.steps)


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, with the least and the most."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return Spread(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        said = _number(self.median)
        return said if self.low == self.high else f"{said} ({_number(self.low)}-{_number(self.high)})"


def _number(value: float) -> str:
    """Write a number with three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Timed:
    """What was measured of a side: seconds until its first step was done, and each round's of a step and images/s.

    An image counts once, however many views it has.
    """

    side: Side
    first_step: float
    seconds: list[float] = field(default_factory=list)
    images_per_second: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class BenchmarkResult:
    """All that was measured: of what, in which circumstances, and why sides are missing.

    `memory` is the peak of the process where a single side was measured, None otherwise; `over` what a side was timed
    against, if anything (`benchmark.over`).
    """

    folder: Path
    title: str
    about: str
    sides: Sequence[Timed]
    missing: Mapping[str, str]
    memory: PeakMemory | None = None
    over: str | None = None

    @property
    def objective(self) -> float:
        """Training images a second of the fastest mode of the Trainer; of the fastest side where there is none."""
        through = [each for each in self.sides if each.side.kind == "trainer"] or [*self.sides]
        return max(statistics.median(each.images_per_second) for each in through)

    def ratio(self, first: str, second: str) -> Spread | None:
        """Compare two sides in images a second, round by round; None unless both were measured."""
        rates = {each.side.label: each.images_per_second for each in self.sides}
        if first not in rates or second not in rates:
            return None
        return Spread.of([one / other for one, other in zip(rates[first], rates[second], strict=True)])

    def spreads(self, each: Timed) -> dict[str, Spread | None]:
        """Summarise the rounds of a side, by the names of the CSV file."""
        label = each.side.label
        return {
            "milliseconds": Spread.of([1000 * seconds for seconds in each.seconds]),
            "images_per_second": Spread.of(each.images_per_second),
            "times_plain": self.ratio(label, "plain"),
            "share_of_bare": self.ratio(label, f"bare_{label}"),
        }


def measure(
    begun: Sequence[tuple[Side, Callable[[], Steps]]],
    plan: Plan,
    device: torch.device,
    say: Callable[[str], object] = print,
) -> tuple[list[Timed], dict[str, str], PeakMemory | None]:
    """Let all sides make their first step, and then take turns; returns what was measured, failures, and the peak.

    In every second round the order is turned round, so that what drifts meets all alike. A side that fails is out.
    """
    found: dict[str, Timed] = {}
    failed: dict[str, str] = {}
    running: dict[str, Steps] = {}

    def turn(label: str, steps: int) -> tuple[float, int] | None:
        _wait_for(device)
        started = time.perf_counter()
        try:
            images = running[label](steps)
            _wait_for(device)
        except Exception as error:  # whatever it is, the other sides go on
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                traceback.print_exception(error)
            failed[label] = _failure(error)
            found.pop(label, None)
            running.pop(label)
            say(f"{label} is left out: {failed[label]}")
            return None
        return time.perf_counter() - started, images

    memory.begin(device)
    try:
        for side, begin in begun:
            running[side.label] = begin()
            if (first := turn(side.label, 1)) is not None:
                found[side.label] = Timed(side, first[0])
                say(f"{side.label}: first step after {first[0]:.1f} s")
        for number in range(plan.rounds):
            for label in [*running] if number % 2 == 0 else [*reversed(running)]:
                if plan.warmup and turn(label, plan.warmup) is None:
                    continue
                if (timed := turn(label, plan.steps)) is not None:
                    found[label].seconds.append(timed[0] / plan.steps)
                    found[label].images_per_second.append(timed[1] / timed[0])
            say(f"round {number + 1} of {plan.rounds}")
        return [*found.values()], failed, memory.peak(device) if len(begun) == 1 else None
    finally:
        for steps in running.values():
            if isinstance(steps, Turns):
                steps.close()


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _failure(error: Exception) -> str:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return said if isinstance(error, DkelError) and said else f"{type(error).__name__}: {said}"


# ---------------------------------------------------------------------- files


def write(result: BenchmarkResult, also: Sequence[str] = ()) -> None:
    """Write benchmark.csv, .md and .png, and growth.png where one side was timed at several sizes."""
    rows = [_row(result, each) for each in result.sides]
    write_csv(result.folder / "benchmark.csv", [[*rows[0]], *([*row.values()] for row in rows)])
    write_text(result.folder / "benchmark.md", "\n".join(_page(result)) + "\n")
    drawing.save(figure(result), result.folder / "benchmark.png", also)
    if result.over is not None:
        drawing.save(growth(result), result.folder / "growth.png", also)


def _row(result: BenchmarkResult, each: Timed) -> dict[str, str]:
    row = {"side": each.side.label, "kind": each.side.kind}
    for name, spread in result.spreads(each).items():
        for end, part in (("", "median"), ("_low", "low"), ("_high", "high")):
            row[f"{name}{end}"] = "" if spread is None else f"{getattr(spread, part):.6g}"
    row["first_step_seconds"] = f"{each.first_step:.6g}"
    row["memory_bytes"], row["memory_of"] = (str(result.memory.bytes), result.memory.of) if result.memory else ("", "")
    return row


def table(result: BenchmarkResult) -> tuple[list[str], list[list[str]]]:
    """Show a row a side."""
    heading = ["", "ms a step", "images/s", "times by hand", "of without Lightning", "first step, s"]
    rows = [
        [_name(each.side.label), *(str(s or "") for s in result.spreads(each).values()), f"{each.first_step:.1f}"]
        for each in result.sides
    ]
    if result.memory is not None:
        heading.append("peak memory")
        rows[0].append(f"{result.memory.bytes / 2**20:,.0f} MiB")
    return heading, rows


def _name(label: str) -> str:
    if label == "plain":
        return "loop written by hand"
    return f"without Lightning, {label[5:]}" if label.startswith("bare_") else f"Trainer, {label}"


def _page(result: BenchmarkResult) -> Iterator[str]:
    yield from (f"# Speed: {result.title}", "", result.about, "")
    yield from markdown_table(*table(result))
    yield from ("", "Medians over the rounds, with the least and the most: docs/performance.md says of what.")
    if result.over is not None:
        each = ", ".join(f"{share} ms with {size}" for size, share in _shares(result).items())
        yield f"A step divided by its number of {result.over}: {each}. ![a step](growth.png)"
    if result.missing:
        yield "Not measured: " + "; ".join(f"{_name(label)} ({why})" for label, why in result.missing.items()) + "."
    yield from ("", "![images a second](benchmark.png)")


@drawing.styled
def figure(result: BenchmarkResult) -> Figure:
    """Draw images a second of all sides."""
    drawn, ((axes,),) = drawing.grid(1, 1, 8, 1 + 0.42 * len(result.sides))
    for place, each in enumerate(result.sides):
        rate = Spread.of(each.images_per_second)
        spread = [[rate.median - rate.low], [rate.high - rate.median]]
        axes.barh(place, rate.median, xerr=spread, color=COLOURS[each.side.kind], error_kw={"elinewidth": 1})
        axes.text(rate.high, place, f"  {_number(rate.median)}", va="center", ha="left", fontsize=8)
    axes.set_yticks(range(len(result.sides)), [_name(each.side.label) for each in result.sides])
    axes.set_ylim(len(result.sides) - 0.5, -0.5)
    axes.margins(x=0.15)
    drawing.name(axes, "training images a second (median, least and most)", "")
    return drawn


def _shares(result: BenchmarkResult) -> dict[int, Spread]:
    """Give the milliseconds of a step, divided by the number of what it was timed against, by that number."""
    sized = {each.side.size: each.seconds for each in result.sides if each.side.size is not None}
    return {size: Spread.of([1000 * second / size for second in seconds]) for size, seconds in sized.items()}


@drawing.styled
def growth(result: BenchmarkResult) -> Figure:
    """Draw the time of a step, divided by the number of peers or images, against that number."""
    drawn, ((axes,),) = drawing.grid(1, 1, 6, 4)
    shares = _shares(result)
    middle = [share.median for share in shares.values()]
    ends = [[share.median - share.low for share in shares.values()], [s.high - s.median for s in shares.values()]]
    axes.errorbar([*shares], middle, yerr=ends, marker="o", capsize=3)
    axes.set_ylim(bottom=0)
    drawing.name(axes, f"a step, divided by its {result.over}", str(result.over), "ms", log_x=True)
    axes.set_xticks([*shares])
    return drawn
