"""Whole runs through the command line, on real images."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dkel_lightning.checkpoints import file_format
from dkel_lightning.distillation import DistillationModule
from tests.commands import dkel


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
def test_two_processes_write_one_run_and_their_checkpoint_goes_on_in_one_process(tmp_path: Path) -> None:
    done = from_a_shell("debug=smoke", "trainer=ddp_cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path, "smoke")
    assert [path.name for path in sorted(folder.glob("*.csv"))] == ["confusion.csv", "metrics.csv"]
    assert column(folder, "epoch") == [0, 1]
    evaluated = dkel("task=evaluate", f"checkpoint={folder}/checkpoints/best.ckpt", "trainer=cpu", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert (folder / "evaluation_best" / "evaluation.json").is_file()


def test_a_saved_configuration_that_names_something_foreign_to_run_is_refused(trained: Path, tmp_path: Path) -> None:
    config = trained / "config.yaml"
    config.write_text(config.read_text().replace("torch.optim.SGD", "os.system"))
    done = dkel("resume=last", cwd=tmp_path)
    assert done.returncode == 2
    assert "names os.system (optimizer._target_), which is not trusted" in done.stderr
    assert file_format.load(trained / "checkpoints" / "last.ckpt")["epoch"] == 0


@pytest.mark.slow
@pytest.mark.skipif(
    "DKEL_REAL_DATA" not in os.environ, reason="set DKEL_REAL_DATA to a folder that contains tiny-imagenet-200/"
)
def test_tinyimagenet_is_read_from_its_own_files_and_its_loss_falls(tmp_path: Path) -> None:
    small = ["data.limit=320", "data.batch_size=32", "data.eval_batch_size=64", "trainer.limit_val_batches=1"]
    done = dkel(
        *("experiment=tinyimagenet", f"data.root={os.environ['DKEL_REAL_DATA']}", f"data.cache_dir={tmp_path}"),
        *(*small, "backbone=resnet8", "trainer=cpu", "trainer.max_epochs=2", "trainer.limit_test_batches=1"),
        *("optimizer.lr=0.05", "callbacks.progress=lines"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "200 classes" in done.stdout
    first, second = column(only_run(tmp_path, "tinyimagenet"), "train/loss")
    assert second < first < 1000
