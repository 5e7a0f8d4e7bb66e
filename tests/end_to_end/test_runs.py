"""Whole runs through the command line, on real images."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dkel_lightning.checkpoints import file_format
from dkel_lightning.distillation import DistillationModule
from dkel_lightning.runtime import command_lines
from tests.commands import dkel
from tests.disks import as_root, fill, small_disk


def from_a_shell(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dkel_lightning", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=560, check=False, env=environment)


def only_run(cwd: Path, name: str) -> Path:
    (folder,) = (cwd / "outputs" / name).iterdir()
    return folder


def column(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


SMALL: tuple[str, ...] = ("debug=smoke", "trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
SMALL += ("callbacks.progress=none",)


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    done = dkel(*SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """Give a finished run below `tmp_path`, to be damaged."""
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)
    return only_run(tmp_path, "smoke")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_quickstart_deploys_a_peer_above_97_percent(tmp_path: Path) -> None:
    done = dkel(cwd=tmp_path, drawn=True)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path, "quickstart")
    result = summary(folder)
    assert result["test"]["best"]["deployed_accuracy"] > 0.97
    assert result["test"]["last"]["deployed_accuracy"] > 0.97
    assert "epoch 20/20" in done.stdout
    for label in ("student peer 2", "ensemble classifier", "teacher peers, mean", "teacher peer, best in validation"):
        assert label in done.stdout
    # Both schedules act: the assembled teachers teach at first, the individual ones at the end.
    assert column(folder, "train/kd_assembled")[0] > column(folder, "train/kd_individual")[0]
    assert column(folder, "weights/ensemble_decay")[-1] == 0.0
    assert column(folder, "weights/rampup")[-1] == 1.0
    network = DistillationModule.load_from_checkpoint(folder / "checkpoints" / "best.ckpt").deploy()
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    "DKEL_REAL_DATA" not in os.environ, reason="set DKEL_REAL_DATA to a folder that holds tiny-imagenet-200/"
)
def test_two_epochs_on_tinyimagenet_through_the_real_reader_end_with_a_finite_falling_loss(tmp_path: Path) -> None:
    done = dkel(
        "experiment=tinyimagenet",
        f"data.root={os.environ['DKEL_REAL_DATA']}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.limit=320",
        "data.eval_batch_size=64",
        "data.batch_size=32",
        "backbone=resnet8",
        "trainer=cpu",
        "trainer.max_epochs=2",
        "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
        "optimizer.lr=0.05",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "200 classes" in done.stdout
    losses = column(only_run(tmp_path, "tinyimagenet"), "train/loss")
    assert all(map(math.isfinite, losses))
    assert losses[1] < losses[0]


@pytest.mark.slow
def test_an_npz_of_ones_own_trains_with_bf16_and_a_single_peer(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        f"{split}_{kind}": value
        for split, count in (("train", 40), ("test", 12))
        for kind, value in (
            ("images", generator.integers(0, 256, (count, 12, 12), dtype=np.uint8)),
            ("labels", np.arange(count)[:, None] % 4),
        )
    }
    np.savez(tmp_path / "mine.npz", **arrays)
    done = dkel(
        "experiment=own_data", "data=npz", "data.root=mine.npz", "backbone=resnet8", "data.batch_size=8",
        "method=baseline", "method.peers=1", "precision=bf16", "trainer.max_epochs=1", "trainer=cpu", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    accuracy = summary(only_run(tmp_path, "own_data"))["test"]["last"]["accuracy"]
    assert set(accuracy) == {f"{kind}_{peer}" for kind in ("student", "teacher") for peer in (0, "mean", "best")}


@pytest.mark.slow
def test_two_processes_write_one_run_and_their_checkpoint_goes_on_in_one_process(tmp_path: Path) -> None:
    done = from_a_shell("debug=smoke", "trainer=ddp_cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path, "smoke")
    assert [path.name for path in sorted(folder.glob("*.csv"))] == ["confusion.csv", "metrics.csv"]
    assert column(folder, "epoch") == [0, 1]
    evaluated = dkel("task=evaluate", f"checkpoint={folder}/checkpoints/best.ckpt", "trainer=cpu", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert (folder / "evaluation_best" / "evaluation.json").is_file()


def test_a_damaged_checkpoint_is_named_and_nothing_is_lost(trained: Path, tmp_path: Path) -> None:
    last = trained / "checkpoints" / "last.ckpt"
    metrics = (trained / "metrics.csv").read_bytes()
    last.write_bytes(last.read_bytes()[:1000])
    done = dkel(f"resume={last}", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"{last}" in done.stderr
    assert (trained / "metrics.csv").read_bytes() == metrics


def test_a_saved_configuration_that_names_something_foreign_to_run_is_refused(trained: Path, tmp_path: Path) -> None:
    config = trained / "config.yaml"
    config.write_text(config.read_text().replace("torch.optim.SGD", "os.system"))
    done = dkel("resume=last", cwd=tmp_path)
    assert done.returncode == 2
    assert "names os.system (optimizer._target_), which is used only if you name it" in done.stderr
    assert file_format.load(trained / "checkpoints" / "last.ckpt")["epoch"] == 0


@pytest.mark.long
def test_the_jobs_of_a_sweep_lie_in_one_folder_whatever_varies(tmp_path: Path) -> None:
    done = dkel("-m", *SMALL, "name=one,other", "seed=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs").glob("*/sweep_*")
    assert [summary(sweep / job)["test"]["last"]["epoch"] for job in ("0", "1")] == [1, 1]
    assert "2 jobs: 2 finished." in (sweep / "sweep.md").read_text()


@pytest.mark.slow
def test_a_job_whose_folder_is_anothers_leaves_it_as_it_is_and_is_credited_nothing(tmp_path: Path) -> None:
    first = dkel("-m", *SMALL, "method=dkel", "seed=0,1", "hydra.sweep.dir=sw", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "sw"
    before = {path: path.read_bytes() for job in ("0", "1") for path in (folder / job).rglob("*") if path.is_file()}
    table = (folder / "sweep.md").read_text()
    for changed in (["method=pcl", "seed=0,1"], ["method=dkel", "seed=2,0"]):
        arguments = ["-m", *SMALL, *changed]
        done = dkel(*arguments, "hydra.sweep.dir=sw", cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.count("was trained with other settings") == 2
        assert done.stderr.endswith("Error: 2 jobs of the sweep failed: 0, 1.\n")
        # Not the command that would be refused again.
        again = command_lines.typed(*arguments, "hydra.sweep.dir=sw_1")
        own = f"sw holds other jobs under 0, 1: in a folder of its own this sweep is run by: {again}\n"
        assert done.stdout.endswith(own)
        assert "What is missing" not in done.stdout
        assert before == {
            path: path.read_bytes() for job in ("0", "1") for path in (folder / job).rglob("*") if path.is_file()
        }
        assert (folder / "sweep.md").read_text() == table
        assert not [*folder.glob(".refused*")]
    done = dkel("-m", "resume=sw/0", "hydra.sweep.dir=sw", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr == "Error: resume= goes on with one run, without -m; a sweep goes on with hydra.sweep.dir=FOLDER.\n"
    )
    assert before == {path: path.read_bytes() for path in before}
    assert (folder / "sweep.md").read_text() == table


@pytest.mark.slow
def test_a_failing_job_does_not_end_the_sweep(tmp_path: Path) -> None:
    done = dkel("-m", *SMALL[:3], "trainer.limit_train_batches=3", "optimizer.lr=1e30,0.1", cwd=tmp_path)
    assert done.returncode == 1
    assert "Error: 1 jobs of the sweep failed: 0." in done.stderr
    (sweep,) = (tmp_path / "outputs" / "smoke").iterdir()
    assert summary(sweep / "1")["test"]["last"]["epoch"] == 1


@as_root
@pytest.mark.long
def test_a_sweep_on_a_full_disk_is_one_error_and_goes_on_once_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        arguments = ["-m", *SMALL, "seed=0", f"hydra.sweep.dir={disk}/sweep"]
        filler = fill(disk)
        done = dkel(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (
            1,
            f"Error: Could not write {disk}/sweep (No space left on device): free some space. "
            "What was written before is whole.\n",
        )
        filler.unlink()
        assert dkel(*arguments, cwd=tmp_path).returncode == 0
        before = {path: path.read_bytes() for path in (disk / "sweep").rglob("*.csv")}
        filler = fill(disk)
        again = dkel(*arguments, cwd=tmp_path)
        assert again.returncode == 1
        lost = [f"Error in job 0 of the sweep: Could not write {disk}/sweep/0/job.json"]
        lost += [f"Error: Could not write {disk}/sweep/sweep.csv", "Error: 1 jobs of the sweep failed: 0."]
        assert [line.partition(" (")[0] for line in again.stderr.splitlines()] == lost
        assert again.stdout.rstrip().endswith(f"hydra.sweep.dir={disk}/sweep")
        assert {path: path.read_bytes() for path in before} == before
        filler.unlink()
        whole = dkel(*arguments, cwd=tmp_path)
        assert (whole.returncode, whole.stderr) == (0, "")


# Without a buffer nothing is left to flush.
@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=pytest.mark.long)])
def test_a_sweep_whose_output_nobody_reads_any_more_ends_quietly(unbuffered: str, tmp_path: Path) -> None:
    lines = ["debug=smoke", "trainer=cpu", "trainer.max_epochs=200", "callbacks.progress=lines"]
    command = [sys.executable, "-m", "dkel_lightning", "-m", *lines, "seed=0,1", "hydra.sweep.dir=sweep"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as process:
        while process.stdout.readline() != "[1/2] seed=0\n":
            pass
        process.stdout.readline()  # of the job itself
        process.stdout.close()
        assert (process.wait(timeout=200), process.stderr.read()) == (141, "")
    # The job is gone on with, and the other one has not begun.
    assert json.loads((tmp_path / "sweep" / "0" / "job.json").read_text())["state"] == "running"
    assert not (tmp_path / "sweep" / "1").exists()


@pytest.mark.long
def test_evaluations_with_other_settings_lie_beside_each_other_and_an_export_is_asked_within_its_run(
    tmp_path: Path,
) -> None:
    assert dkel(*SMALL, "method.peers=4", "hydra.run.dir=run", cwd=tmp_path).returncode == 0
    of = ("checkpoint=run/checkpoints/last.ckpt", "trainer=cpu")
    expected = {"evaluation_last": "deploy.peer=0", "evaluation_last_1": "deploy.peer=3", "mine": "deploy.peer=1"}
    for folder, peer in [*expected.items(), ("evaluation_last", "deploy.peer=0"), ("mine", "deploy.peer=2")]:
        named = ["hydra.run.dir=run/mine"] if folder == "mine" else []
        done = dkel("task=evaluate", *of, peer, *named, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"Written to {tmp_path}/run/{folder}/evaluation.json"
        written = json.loads((tmp_path / "run" / folder / "evaluation.json").read_text())
        assert f"deploy.peer={written['settings']['deploy']['peer']}" == peer
        assert written["test"]["deployed"] == f"teacher_{peer[-1]}"
    done = dkel("task=evaluate", *of, "deploy.peer=4", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "Error: deploy.peer=4, but peers are numbered 0 to 3.\n")
    assert {path.name for path in (tmp_path / "run").glob("evaluation*")} == {"evaluation_last", "evaluation_last_1"}

    done = dkel("task=export", *of, "deploy.peer=3", "export.repeats=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "image.png")
    ask = ("task=predict", "checkpoint=run/export_last/teacher_3_safetensors", "predict.images=image.png")
    done = dkel(*ask, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 images by teacher_3" in done.stdout
    assert (tmp_path / "run" / "predict_teacher_3_safetensors" / "predictions.csv").is_file()
    done = dkel(*ask, "method=pcl", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "Error: method: the export decides this; leave it out.\n")
