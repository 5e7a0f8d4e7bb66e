"""task=benchmark: a tiny one from end to end, what is refused, and images that are not there."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dkel_lightning.app.benchmark import sides
from dkel_lightning.app.config import checks
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks.benchmark import benchmark
from dkel_lightning.errors import ConfigError, DataError, DkelError
from tests.compose import check_arguments, compose

CPU = torch.device("cpu")
TINY = [
    "task=benchmark",
    "trainer=cpu",
    "benchmark.rounds=1",
    "benchmark.steps=2",
    "benchmark.warmup=0",
    "data.workers=0",
    "data.batch_size=8",
]


@pytest.mark.slow
def test_a_tiny_benchmark_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = compose(*TINY, "benchmark.sides=[plain,eager,bare_eager]", f"benchmark.to={tmp_path / 'to'}")
    checks.check(values)
    found = benchmark(Run(values, tmp_path / "run"))
    printed = capsys.readouterr().out
    assert {path.name for path in found.folder.iterdir()} == {f"benchmark.{kind}" for kind in ("csv", "md", "png")}
    with (tmp_path / "to" / "benchmark.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["side"]: row for row in csv.DictReader(file)}
    assert [*rows] == ["plain", "eager", "bare_eager"]
    for label, row in rows.items():
        # One round: 2 steps of 8 images.
        assert float(row["images_per_second"]) == pytest.approx(8000 / float(row["milliseconds"]), rel=1e-3)
        plain = float(rows["plain"]["images_per_second"])
        assert float(row["times_plain"]) == pytest.approx(float(row["images_per_second"]) / plain, rel=1e-3), label
        assert float(row["first_step_seconds"]) > 0
        assert row["memory_bytes"] == ""  # all sides have the process in common
    share = float(rows["eager"]["images_per_second"]) / float(rows["bare_eager"]["images_per_second"])
    assert float(rows["eager"]["share_of_bare"]) == pytest.approx(share, rel=1e-3)
    assert "3 peers, digits, batch 8, fp32, seed 0; 1 rounds of 2 steps after 0" in found.about
    assert "without Lightning, eager" in printed
    assert f"Written to {tmp_path / 'to'}" in printed
    assert (tmp_path / "run" / "config.yaml").is_file()


@pytest.mark.slow
def test_a_side_alone_has_the_peak_memory_of_the_process(tmp_path: Path) -> None:
    found = benchmark(Run(compose(*TINY, "benchmark.sides=[eager]"), tmp_path))
    assert found.memory is not None
    assert found.memory.of == "process"
    assert found.memory.bytes > 50 * 2**20
    assert "| peak memory |" in (tmp_path / "benchmark.md").read_text(encoding="utf-8")


def test_a_side_that_cannot_be_executed_so_is_left_out_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(DkelError, match=r"could be measured \(cuda_graph: CUDA graphs need a CUDA device\)"):
        benchmark(Run(compose(*TINY, "benchmark.sides=[cuda_graph]"), tmp_path))


# ---------------------------------------------------------------------- sides and images


def test_all_sides_of_a_device_are_taken_unless_some_are_chosen() -> None:
    found, missing = sides.chosen(compose("task=benchmark"), CPU)
    labels = [side.label for side in found]
    assert labels[:2] == ["plain", "eager"]
    assert "bare_eager" in labels
    assert not any("cuda_graph" in label for label in labels)
    assert missing == {}
    found, missing = sides.chosen(compose("task=benchmark", "benchmark.sides=[eager,cuda_graph]"), CPU)
    assert [side.label for side in found] == ["eager"]
    assert "cuda_graph" in missing


def test_another_method_is_measured_without_the_loop_written_by_hand() -> None:
    found, missing = sides.chosen(compose("task=benchmark", "method=pcl"), CPU)
    assert "plain" not in [side.label for side in found]
    assert "computes method=dkel or dkel_released, not pcl" in missing["plain"]


def test_the_contiguous_side_differs_in_its_memory_layout_only() -> None:
    eager, contiguous = sides.chosen(compose("task=benchmark", "benchmark.sides=[eager,eager_contiguous]"), CPU)[0]
    execution = {**eager.execution, "channels_last": False}
    assert contiguous == replace(eager, label="eager_contiguous", execution=execution)


def test_images_in_workers_differ_in_where_they_lie_only() -> None:
    found, _ = sides.chosen(compose("task=benchmark", "benchmark.sides=[eager,eager_workers]"), CPU)
    assert [side.residency for side in found] == [None, "workers"]
    assert found[0].execution == found[1].execution


@pytest.mark.parametrize(
    ("name", "shape", "classes"), [("cifar100", (3, 32, 32), 100), ("tinyimagenet", (3, 64, 64), 200)]
)
def test_images_that_are_not_there_are_invented_in_their_shape(
    name: str, shape: tuple[int, ...], classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides, "RANDOM_IMAGES", 2000)
    # A download would be tried in vain here: none may be.
    values = compose("task=benchmark", f"experiment={name}", f"data.root={tmp_path}", "data.batch_size=4")
    why = sides.must_invent(values)
    assert why is not None
    assert str(tmp_path) in why
    images = sides.images_of(values, invented=True)
    assert (images.image_shape, images.num_classes) == (shape, classes)
    assert images.augment.normalize.mean == type(images).default_mean
    views, labels, _ = next(iter(images.training_loader_on(CPU)))
    assert views.shape == (4, 3, *shape)
    assert int(labels.max()) < classes


def test_images_of_ones_own_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folder train"):
        sides.must_invent(compose("task=benchmark", "experiment=own_data", f"data.root={tmp_path}"))


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer=ddp_cpu"], "task=benchmark measures one device: leave trainer.devices at 1"),
        (["trainer.num_nodes=2"], "task=benchmark measures one process"),
        (["trainer.fast_dev_run=true"], "task=benchmark measures ordinary training"),
        (["trainer.accumulate_grad_batches=2"], "task=benchmark takes a batch for a step"),
        (["resume=somewhere"], "task=benchmark takes no resume=: leave it out"),
        (["benchmark.sides=[plane]"], "benchmark.sides must be a list, each one of plain, eager, "),
        (
            ["benchmark.sides=[plain]", "method=pcl"],
            "benchmark.sides: plain cannot be measured: the loop written by hand",
        ),
        (["benchmark.sides=[plain]", "method.ensemble.space=probabilities"], "plain cannot be measured"),
        (["benchmark.sides=[plain]", "teacher=copy"], "knows teacher=independent only"),
        (["benchmark.rounds=0"], "benchmark.rounds must be a whole number between 1 and 1000000, got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_cure(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_arguments(["task=benchmark", *overrides], None, multirun=False)
    assert message in str(caught.value)


# ---------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_ratios_of_the_captured_step_are_there(tmp_path: Path) -> None:
    steps = ("task=benchmark", "trainer=gpu", "benchmark.rounds=2", "benchmark.steps=20", "benchmark.warmup=2")
    chosen = "benchmark.sides=[plain,eager,cuda_graph,bare_cuda_graph]"
    found = benchmark(Run(compose(*steps, chosen, "data.batch_size=32"), tmp_path))
    assert found.missing == {}
    share = found.ratio("cuda_graph", "bare_cuda_graph")
    assert share is not None
    assert 0 < share.low <= share.median <= share.high
    # What a graph is for: fewer launches than the loop that makes each by itself.
    against = found.ratio("cuda_graph", "plain")
    assert against is not None
    assert against.median > 1


@pytest.mark.parametrize(("over", "sizes"), [("peers", (2, 4)), ("images", (4, 8))])
def test_one_side_is_timed_against_its_size(
    over: str, sizes: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides, "GROWTH", {over: sizes})
    values = compose(*TINY, f"benchmark.over={over}", "benchmark.sides=[bare_eager]", "backbone=resnet8")
    checks.check(values)
    found = benchmark(Run(values, tmp_path))
    assert [(each.side.label, each.side.size) for each in found.sides] == [(f"bare_eager_{n}_{over}", n) for n in sizes]
    assert {path.name for path in tmp_path.glob("*.png")} == {"benchmark.png", "growth.png"}
    assert f"A step divided by its number of {over}: " in (tmp_path / "benchmark.md").read_text()
    for each, size in zip(found.sides, sizes, strict=True):
        images = each.seconds[0] * each.images_per_second[0]
        assert images == pytest.approx(size if over == "images" else 8)


def test_several_sides_are_not_timed_against_their_size() -> None:
    with pytest.raises(ConfigError, match=r"name one in benchmark\.sides"):
        checks.check(compose(*TINY, "benchmark.over=peers", "benchmark.sides=[eager,bare_eager]"))
