"""Ratios, rows and tables of a benchmark against a computation by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dkel_lightning.app.benchmark import page
from dkel_lightning.app.benchmark.processes import Begun, Measured, Memory
from dkel_lightning.app.benchmark.results import Aim, BenchmarkResult, Spread, aims, side_result
from dkel_lightning.app.benchmark.setting import Side
from dkel_lightning.app.benchmark.watch import Round

ABOUT: dict[str, Any] = {
    "command": "python -m dkel_lightning task=benchmark",
    "method": "dkel",
    "backbone": "resnet32",
    "peers": 3,
    "batch_size": 100,
    "precision": "fp32",
    "seed": 0,
    "images": {"what": "cifar100", "invented": False, "shape": "3x32x32"},
    "rounds": 3,
    "warmup": 1,
    "steps": 2,
    "device": {"kind": "cpu", "names": ["A processor"]},
    "cpus": 2,
    "threads": 2,
    "load": "0.1",
    "versions": "torch 2",
    "git": None,
}


def side(label: str, kind: str, seconds: list[float], megabytes: int, parts: dict[str, float] | None = None) -> Any:
    """Make a side of two steps a round, 100 images each."""
    rounds = [Round(each, 200) for each in seconds]
    watched = None if parts is None else Round(4.0, 200, parts)
    measured = Measured(Begun(9.0, 3.0), rounds, watched, Memory(megabytes * 2**20, "process"))
    return side_result(Side(label, kind, {"name": "eager"}), measured, 2)


def result(**changes: Any) -> BenchmarkResult:
    return BenchmarkResult(
        Path("somewhere"),
        ABOUT | changes,
        (
            side("plain", "plain", [4.0, 5.0, 8.0], 900),
            side("eager", "trainer", [2.0, 2.0, 2.0], 600, {"student": 1.0, "backward": 2.0}),
            side("bare_eager", "bare", [1.0, 2.0, 1.6], 500),
        ),
        {"compile": "no compiler"},
        {"device": [10.0, 30.0, 20.0], "workers": [1.0, 1.0, 1.0], "plain": [2.0, 2.0, 2.0]},
    )


def test_rates_and_times_are_medians_over_the_rounds() -> None:
    plain = result().find("plain")
    assert plain is not None
    assert plain.milliseconds == Spread(2500, 2000, 4000)
    assert plain.rate == Spread(40, 25, 50)


def test_sides_are_compared_round_by_round_and_not_by_their_medians() -> None:
    # 4/2, 5/2, 8/2: the median is 2.5; and 1/2, 2/2, 1.6/2.
    assert result().ratio("eager", "plain") == Spread(2.5, 2.0, 4.0)
    assert result().ratio("eager", "bare_eager") == Spread(0.8, 0.5, 1.0)
    assert result().ratio("compile", "plain") is None
    assert result().memory_ratio("eager", "plain") == pytest.approx(600 / 900)


def test_the_rest_of_a_step_is_what_no_part_has_taken() -> None:
    eager = result().find("eager")
    assert eager is not None
    assert eager.parts == {"student": 500, "backward": 1000, "rest": 500}


def test_rows_hold_every_side_with_its_spread_ratios_and_parts() -> None:
    rows = result().rows()
    assert [row["side"] for row in rows] == ["plain", "eager", "bare_eager"]
    assert all(row.keys() == rows[0].keys() for row in rows)
    eager = rows[1]
    assert (eager["milliseconds"], eager["images_per_second_low"], eager["images_per_second_high"]) == (1000, 100, 100)
    assert (eager["times_plain"], eager["times_plain_low"], eager["times_plain_high"]) == (2.5, 2.0, 4.0)
    assert (eager["share_of_bare"], rows[0]["share_of_bare"]) == (0.8, None)
    assert (eager["first_step_seconds"], eager["launch_seconds"]) == (3.0, 9.0)
    assert (eager["memory_bytes"], eager["memory_of"], eager["reserved_bytes"]) == (600 * 2**20, "process", None)
    assert (eager["backward_ms"], eager["rest_ms"], eager["teacher_ms"]) == (1000, 500, None)


def test_aims_are_those_of_the_device_and_the_backbone() -> None:
    on_cpu = aims("cpu", "resnet32")
    assert on_cpu[:2] == [Aim("eager", "plain", 1.3), Aim("compile", "plain", 1.6)]
    assert all("graph" not in aim.first for aim in on_cpu)
    assert [aim.first for aim in aims("cpu", "resnet8")] == ["eager", "compile"]
    on_cuda = aims("cuda", "resnet32")
    assert on_cuda[:2] == [Aim("cuda_graph", "plain", 6.0), Aim("cuda_graph_compiled", "plain", 8.0)]
    assert Aim("cuda_graph", "bare_cuda_graph", 0.85) in on_cuda
    assert Aim("cuda_graph", "plain", 1.0, "memory") in on_cuda
    assert aims("cuda", "resnet18")[0] == Aim("cuda_graph", "plain", 5.0)


def test_what_is_written_as_json_holds_rounds_and_ratios() -> None:
    content = result().as_dict()
    assert content["sides"][0]["images_per_second"] == (50, 40, 25)
    assert content["ratios"][0] == {
        "first": "eager",
        "second": "plain",
        "bound": 1.3,
        "what": "speed",
        "median": 2.5,
        "low": 2.0,
        "high": 4.0,
    }
    assert content["missing"] == {"compile": "no compiler"}
    assert content["loaders"]["device"]["median"] == 20


def test_the_page_shows_the_tables_and_says_what_was_not_measured() -> None:
    text = page.markdown(result())
    assert "| Trainer, eager | 1,000 (1,000-1,000) | 100 (100-100) | 2.5 (2-4) | 80% | 3.0 | 600 MiB |" in text
    assert "| Trainer, eager, against loop written by hand | images/s at least 1.3 | 2.50 (2.00-4.00) |" in text
    assert "images/s at least 1.6 | not measured: no compiler |" in text
    assert "| images on the device, augmented there in batches | 20 (10-30) | 100 |" in text
    assert "Not measured: Trainer, compiled (no compiler)." in text
    assert "resident set of the side's process" in text
    on_cuda = page.markdown(result(device={"kind": "cuda", "names": ["A GPU"]}))
    assert "tensors allocated on the GPU" in on_cuda
    assert "| Trainer, eager, against loop written by hand | peak memory at most 1 | 0.67 |" in on_cuda


def test_the_bars_of_the_figure_are_as_long_as_the_rates(tmp_path: Path) -> None:
    page.draw(result(), tmp_path / "benchmark.png")
    with Image.open(tmp_path / "benchmark.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    left = pixels[:, : pixels.shape[1] // 2].astype(int)

    def length(kind: str) -> int:
        colour = [int(page.COLOURS[kind][at : at + 2], 16) for at in (1, 3, 5)]
        return int((abs(left - colour).sum(axis=2) < 4).sum(axis=1).max())

    assert length("plain") > 20
    assert length("trainer") / length("plain") == pytest.approx(100 / 40, rel=0.05)
    assert length("bare") / length("plain") == pytest.approx(125 / 40, rel=0.05)


def test_objective_is_the_fastest_mode_of_the_trainer() -> None:
    assert result().objective == 100
