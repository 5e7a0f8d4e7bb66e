"""What a benchmark has found: typed, as rows of a CSV file, as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dkel_lightning.app.benchmark.processes import Begun, Measured, Memory
from dkel_lightning.app.benchmark.setting import Side
from dkel_lightning.app.benchmark.watch import Round

PARTS = ("data", "student", "teacher", "loss", "backward", "replay", "optimizer", "ema")
REST = "rest"
"""Lightning, metrics and callbacks; in the loop written by hand, its metrics and Python itself."""


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


@dataclass(frozen=True)
class SideResult:
    """One side.

    Attributes:
        side: what it was.
        seconds: of a step, each round.
        images_per_second: each round, views counted once.
        begun: how long it took to be under way.
        memory: its peak.
        parts: milliseconds of a step in each part, in a round of its own in which each part was waited for.
    """

    side: Side
    seconds: tuple[float, ...]
    images_per_second: tuple[float, ...]
    begun: Begun
    memory: Memory
    parts: Mapping[str, float]

    @property
    def milliseconds(self) -> Spread:
        """The time of a step."""
        return Spread.of([1000 * seconds for seconds in self.seconds])

    @property
    def rate(self) -> Spread:
        """Training images a second."""
        return Spread.of(self.images_per_second)


def side_result(side: Side, found: Measured, steps: int) -> SideResult:
    """Turn what a side has measured into what is shown of it."""
    assert found.memory is not None
    return SideResult(
        side,
        tuple(turn.seconds / steps for turn in found.rounds),
        tuple(turn.images / turn.seconds for turn in found.rounds),
        found.begun,
        found.memory,
        _parts(found.parts, steps),
    )


def _parts(watched: Round | None, steps: int) -> dict[str, float]:
    if watched is None:
        return {}
    known = {name: 1000 * watched.parts[name] / steps for name in PARTS if name in watched.parts}
    return {**known, REST: 1000 * watched.seconds / steps - sum(known.values())}


@dataclass(frozen=True)
class Aim:
    """What this library aims at: the first side against the second, in images a second (or bytes) at least (at most).

    Attributes:
        first: a side's label.
        second: the other's.
        bound: of the ratio.
        what: `speed` or `memory`.
    """

    first: str
    second: str
    bound: float
    what: str = "speed"


def aims(device: str, backbone: str) -> list[Aim]:
    """List the aims that a machine and a backbone can tell something about."""
    modes = ("eager", "compile", "cuda_graph", "cuda_graph_compiled")
    share = [Aim(mode, f"bare_{mode}", 0.85) for mode in (modes if device == "cuda" else modes[:2])]
    if device == "cuda":
        graph = {"resnet32": [("cuda_graph", 6.0), ("cuda_graph_compiled", 8.0)], "resnet18": [("cuda_graph", 5.0)]}
        against = [Aim(label, "plain", bound) for label, bound in graph.get(backbone, [])]
        return [*against, *share, *(Aim(mode, "plain", 1.0, "memory") for mode in ("eager", "compile", "cuda_graph"))]
    cpu = [Aim("eager", "plain", 1.3), Aim("compile", "plain", 1.6)] if backbone == "resnet32" else []
    return [*cpu, *share]


@dataclass(frozen=True)
class BenchmarkResult:
    """All that was measured.

    Attributes:
        folder: where the files lie.
        about: what was trained, on what, with which versions and settings.
        sides: in the order of the table.
        missing: sides that were not measured, and why.
        loaders: images a second of each loader alone, each round.
    """

    folder: Path
    about: Mapping[str, Any]
    sides: tuple[SideResult, ...]
    missing: Mapping[str, str]
    loaders: Mapping[str, Sequence[float]]

    @property
    def objective(self) -> float:
        """Training images a second of the fastest mode of the Trainer; of the fastest side where there is none."""
        through = [each for each in self.sides if each.side.kind == "trainer"] or [*self.sides]
        return max(each.rate.median for each in through)

    def find(self, label: str) -> SideResult | None:
        """Find a side by its label."""
        return next((each for each in self.sides if each.side.label == label), None)

    def ratio(self, first: str, second: str) -> Spread | None:
        """Compare two sides in images a second, round by round; None unless both were measured."""
        a, b = self.find(first), self.find(second)
        if a is None or b is None:
            return None
        pairs = zip(a.images_per_second, b.images_per_second, strict=True)
        return Spread.of([one / other for one, other in pairs])

    def memory_ratio(self, first: str, second: str) -> float | None:
        """Compare the peak memory of two sides."""
        a, b = self.find(first), self.find(second)
        return None if a is None or b is None else a.memory.bytes / b.memory.bytes

    def as_dict(self) -> dict[str, Any]:
        """Return primitives, for benchmark.json."""
        return {
            **self.about,
            "sides": [
                {**asdict(each), "milliseconds": asdict(each.milliseconds), "rate": asdict(each.rate)}
                for each in self.sides
            ],
            "ratios": [*self._ratios()],
            "missing": dict(self.missing),
            "loaders": {
                label: {"rounds": list(rates), **asdict(Spread.of(rates))} for label, rates in self.loaders.items()
            },
        }

    def _ratios(self) -> Iterator[dict[str, Any]]:
        for aim in aims(self.about["device"]["kind"], self.about["backbone"]):
            if aim.what == "memory":
                memory = self.memory_ratio(aim.first, aim.second)
                if memory is not None:
                    yield {**asdict(aim), "median": memory, "low": memory, "high": memory}
            elif (found := self.ratio(aim.first, aim.second)) is not None:
                yield {**asdict(aim), **asdict(found)}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row a side, for benchmark.csv."""
        return [self._row(each) for each in self.sides]

    def _row(self, each: SideResult) -> dict[str, Any]:
        label = each.side.label
        against = self.ratio(label, "plain")
        share = self.ratio(label, f"bare_{label}")
        row: dict[str, Any] = {"side": label, "kind": each.side.kind}
        for name, spread in (("milliseconds", each.milliseconds), ("images_per_second", each.rate)):
            row |= {name: spread.median, f"{name}_low": spread.low, f"{name}_high": spread.high}
        for name, found in (("times_plain", against), ("share_of_bare", share)):
            row |= {
                name: found and found.median,
                f"{name}_low": found and found.low,
                f"{name}_high": found and found.high,
            }
        row |= {"first_step_seconds": each.begun.first_step, "launch_seconds": each.begun.launch}
        row |= {"memory_bytes": each.memory.bytes, "memory_of": each.memory.of, "reserved_bytes": each.memory.reserved}
        return row | {f"{name}_ms": each.parts.get(name) for name in (*PARTS, REST)}
