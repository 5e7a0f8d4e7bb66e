"""Rounds, medians, ratios and tables of a benchmark against a computation by hand."""

from __future__ import annotations

import csv
import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from dkel_lightning.app.benchmark import bench
from dkel_lightning.app.benchmark.bench import BenchmarkResult, Plan, Spread, Timed, measure
from dkel_lightning.app.benchmark.sides import Side, Steps, Turns
from dkel_lightning.errors import DkelError
from dkel_lightning.runtime.memory import PeakMemory

CPU = torch.device("cpu")


def side(label: str, kind: str = "trainer") -> Side:
    return Side(label, kind, {"name": "eager"})


def timed(label: str, kind: str, seconds: list[float]) -> Timed:
    """Make a side of 100 images a step."""
    return Timed(side(label, kind), 3.0, seconds, [100 / each for each in seconds])


def result(memory: PeakMemory | None = None) -> BenchmarkResult:
    sides = [
        timed("plain", "plain", [2.0, 2.5, 4.0]),
        timed("eager", "trainer", [1.0, 1.0, 1.0]),
        timed("bare_eager", "bare", [0.5, 1.0, 0.8]),
    ]
    return BenchmarkResult(Path("somewhere"), "dkel, resnet32, A processor", "Made by hand.", sides, {"x": "y"}, memory)


# ---------------------------------------------------------------------- figures


def test_rates_and_times_are_medians_over_the_rounds() -> None:
    spreads = result().spreads(result().sides[0])
    assert spreads["milliseconds"] == Spread(2500, 2000, 4000)
    assert spreads["images_per_second"] == Spread(40, 25, 50)


def test_sides_are_compared_round_by_round_and_not_by_their_medians() -> None:
    # 2/1, 2.5/1, 4/1: the median is 2.5; and 0.5/1, 1/1, 0.8/1.
    assert result().ratio("eager", "plain") == Spread(2.5, 2.0, 4.0)
    assert result().ratio("eager", "bare_eager") == Spread(0.8, 0.5, 1.0)
    assert result().ratio("compile", "plain") is None


def test_objective_is_the_fastest_mode_of_the_trainer() -> None:
    assert result().objective == 100


def test_the_csv_file_holds_every_side_with_its_spread_and_ratios(tmp_path: Path) -> None:
    measured = result()
    bench.write(BenchmarkResult(tmp_path, measured.title, measured.about, measured.sides, {}, None))
    with (tmp_path / "benchmark.csv").open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert [row["side"] for row in rows] == ["plain", "eager", "bare_eager"]
    eager = rows[1]
    assert (eager["milliseconds"], eager["images_per_second_low"], eager["images_per_second_high"]) == (
        "1000",
        "100",
        "100",
    )
    assert (eager["times_plain"], eager["times_plain_low"], eager["times_plain_high"]) == ("2.5", "2", "4")
    assert (eager["share_of_bare"], rows[0]["share_of_bare"]) == ("0.8", "")
    assert (eager["first_step_seconds"], eager["memory_bytes"]) == ("3", "")


def test_the_page_shows_the_table_and_says_what_was_not_measured(tmp_path: Path) -> None:
    measured = result()
    text = "\n".join(bench._page(measured))
    assert text.startswith("# Speed: dkel, resnet32, A processor\n\nMade by hand.\n")
    assert "| Trainer, eager | 1,000 | 100 | 2.5 (2-4) | 0.8 (0.5-1) | 3.0 |" in text
    assert "Not measured: Trainer, x (y)." in text
    assert "eak memory" not in text
    alone = BenchmarkResult(tmp_path, "", "", measured.sides[1:2], {}, PeakMemory(600 * 2**20, "process"))
    text = "\n".join(bench._page(alone))
    assert "| Trainer, eager | 1,000 | 100 |  |  | 3.0 | 600 MiB |" in text


def test_the_bars_of_the_figure_are_as_long_as_the_rates() -> None:
    (axes,) = bench.figure(result()).axes
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [bar.get_width() for bar in bars] == [40, 100, 125]
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [*bench.COLOURS.values()]


# ---------------------------------------------------------------------- turns


class Clock:
    """Time that passes only when it is told to."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(bench, "time", found)
    return found


def test_sides_take_turns_in_an_order_that_is_turned_round_and_warm_up_does_not_count(clock: Clock) -> None:
    calls: list[tuple[str, int]] = []

    def begin(label: str, seconds: float) -> Callable[[], Steps]:
        def steps(count: int) -> int:
            calls.append((label, count))
            clock.now += count * seconds
            return 10 * count

        return lambda: steps

    begun = [(side("a"), begin("a", 1)), (side("b"), begin("b", 2))]
    found, failed, memory = measure(begun, Plan(2, 3, 4), CPU)
    first, second = [("a", 3), ("a", 4), ("b", 3), ("b", 4)], [("b", 3), ("b", 4), ("a", 3), ("a", 4)]
    assert calls == [("a", 1), ("b", 1), *first, *second]
    assert [(each.first_step, each.seconds, each.images_per_second) for each in found] == [
        (1, [1, 1], [10, 10]),
        (2, [2, 2], [5, 5]),
    ]
    assert failed == {}
    assert memory is None
    assert Plan(2, 3, 4).most == sum(count for label, count in calls if label == "a")


def test_a_side_that_fails_is_left_out_and_the_others_go_on() -> None:
    def fails(count: int) -> int:
        raise ValueError("no such thing\nlong story")

    said: list[str] = []
    found, failed, _ = measure(
        [(side("good"), lambda: lambda count: count), (side("bad"), lambda: fails)], Plan(1, 0, 1), CPU, said.append
    )
    assert [each.side.label for each in found] == ["good"]
    assert failed == {"bad": "ValueError: no such thing"}
    assert "bad is left out: ValueError: no such thing" in said


def test_a_training_makes_so_many_steps_as_it_is_asked_for_and_ends_when_it_is_closed() -> None:
    made: list[int] = []
    ended: list[bool] = []

    def train(border: Callable[[int], bool]) -> None:
        images = 1
        made.append(images)
        while border(images):
            images += 1
            made.append(images)
        ended.append(True)

    turns = Turns(train)
    assert turns(1) == 1
    assert turns(3) == 2 + 3 + 4
    assert made == [1, 2, 3, 4]
    turns.close()
    assert ended == [True]


def test_a_training_computes_with_as_many_threads_as_the_other_sides() -> None:
    maps = Path("/proc/self/maps")
    loaded = maps.read_text(encoding="utf-8").split() if maps.is_file() else []
    # Other packages bring one of their own.
    found = sorted((name for name in loaded if "libgomp" in name), key=lambda name: "torch" not in name)
    openmp = ctypes.CDLL(found[0]) if found else None
    if openmp is None:
        pytest.skip("torch computes without the GNU OpenMP library here")
    seen: list[int] = []

    def train(border: Callable[[int], bool]) -> None:
        seen.append(openmp.omp_get_max_threads())  # asked past torch, which corrects it when it is asked itself
        border(1)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        turns = Turns(train)
        turns(1)
        turns.close()
    finally:
        torch.set_num_threads(before)
    assert seen == [3]


def test_what_a_training_fails_at_is_heard_by_who_asks() -> None:
    def train(border: Callable[[int], bool]) -> None:
        border(1)
        raise ValueError("broken")

    turns = Turns(train)
    assert turns(1) == 1
    with pytest.raises(ValueError, match="broken"):
        turns(1)
    turns.close()


def test_a_training_that_ends_before_its_turn_says_so() -> None:
    turns = Turns(lambda border: None)
    with pytest.raises(DkelError, match="ended before its turn"):
        turns(1)
    turns.close()
