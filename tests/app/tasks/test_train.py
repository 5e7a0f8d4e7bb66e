"""task=train and task=evaluate as plain functions: their outputs, and a resume that ends where it would have."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import math
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from dkel_lightning.app.callbacks import BestCheckpoint, LastCheckpoint
from dkel_lightning.app.records import RunRecord
from dkel_lightning.app.run import Run, find_checkpoint, load_config, resume_path
from dkel_lightning.app.tasks.evaluate import evaluate
from dkel_lightning.app.tasks.train import train
from dkel_lightning.checkpoints.file_format import load
from dkel_lightning.errors import CheckpointError, NonFiniteError
from tests.compose import compose, interrupted_at, tiny_run, with_callback
from tests.modules.toy import trainer


class Spoil(Callback):
    """Makes every epoch worse than any before it."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for parameter in pl_module.parameters():
            parameter.data.zero_()


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, RunRecord]:
    run = tiny_run(tmp_path_factory.mktemp("once") / "run")
    return run, train(run)


@pytest.fixture
def finished(trained_once: tuple[Run, RunRecord], tmp_path: Path) -> Run:
    """Give a finished run in a folder of its own, to be gone on with or damaged."""
    run, _ = trained_once
    return replace(run, folder=shutil.copytree(run.folder, tmp_path / "finished"))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", ["dkel", "dkel_released", "pcl", "baseline"])
def test_a_run_writes_what_it_promises(method: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if method == "dkel":  # drawing takes most of the time
        request.getfixturevalue("drawn")
    result = train(tiny_run(tmp_path, f"method={method}"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    expected = {f"{network}_{peer}" for network in ("student", "teacher") for peer in (0, 1, 2, "mean", "best")}
    tested = summary["test"]["last"]
    assert set(tested["accuracy"]) == expected | {"ensemble", "student_ensemble", "teacher_ensemble"}
    assert set(tested["calibration"]) == set(tested["accuracy"])
    assert all(0 <= value <= 1 for value in (*tested["calibration"].values(), tested["disagreement"]))
    assert tested["distance"] >= 0
    assert summary["method"] == method
    # What a search maximises must not look at the test set.
    assert summary["test"]["best"]["validation_accuracy"] == result.objective
    assert result.objective == pytest.approx(max(float(row["val/acc"]) for row in rows(tmp_path)), abs=1e-6)
    assert summary["images_per_second"] > 0
    assert summary["peak_memory"]["of"] == "process"
    assert summary["peak_memory"]["bytes"] > 2**20
    assert summary["deployed_parameters"] == 77754
    assert [row["epoch"] for row in rows(tmp_path)] == ["0", "1"]
    assert all(row["train/loss"] and row["val/acc"] and row["train/ce"] for row in rows(tmp_path))
    assert not any(column.startswith("test/") for column in rows(tmp_path)[0])
    assert (tmp_path / "figures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    saved = load_config(tmp_path)
    assert (saved["method"]["name"], saved["data"]["mean"]) == (method, [0.3051])  # an evaluation computes it no more
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["packages"]["torch"] == importlib.metadata.version("torch")
    assert provenance["execution"]["name"] == "eager"


def test_the_teachers_deployed_accuracy_is_that_of_the_reloaded_checkpoint(
    trained_once: tuple[Run, RunRecord], tmp_path: Path
) -> None:
    run, trained = trained_once
    path = run.checkpoints / "best.ckpt"
    values = compose("task=evaluate", f"checkpoint={path}", "trainer=cpu", "trainer.limit_test_batches=1")
    evaluated = evaluate(Run(values, tmp_path / "evaluation"))
    assert trained.best is not None
    assert evaluated == trained.best
    written = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert written["test"] == asdict(trained.best)
    assert written["data"] == values["data"]


def state(folder: Path) -> dict[str, Any]:
    return load(folder / "checkpoints" / "last.ckpt")


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(
    trained_once: tuple[Run, RunRecord], tmp_path: Path
) -> None:
    for name, seed in (("b", 0), ("c", 2)):
        train(tiny_run(tmp_path / name, f"seed={seed}"))
    first, again, other = (
        (folder / "metrics.csv").read_bytes() for folder in (trained_once[0].folder, tmp_path / "b", tmp_path / "c")
    )
    assert first == again
    assert first != other


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="became NaN or infinite"):
        train(tiny_run(tmp_path, "optimizer.lr=1e12"))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_early_stopping_stops(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "trainer.max_epochs=30", "optimizer.lr=0", "callbacks.early_stopping=2")
    result = train(run)
    assert result.last.epoch <= 10
    # Complete: a resume trains nothing, whether it was tested before or was killed in between.
    before = (run.checkpoints / "best.ckpt").read_bytes(), rows(tmp_path)
    for summary in (True, False):
        if not summary:
            (tmp_path / "summary.json").unlink()
        again = train(replace(run, resume=run.checkpoints / "last.ckpt"))
        assert again.last.epoch == result.last.epoch
        assert ((run.checkpoints / "best.ckpt").read_bytes(), rows(tmp_path)) == before


def test_of_equally_good_epochs_the_latest_is_kept(tmp_path: Path) -> None:
    overrides = ["teacher.update=frozen", "teacher.init_steps=0", "optimizer.lr=0", "trainer.max_epochs=3"]
    overrides += ["deploy.network=teacher"]
    # At a learning rate of 0 with no initialisation nothing is learnt: all epochs of a frozen teacher are alike.
    result = train(tiny_run(tmp_path, *overrides))
    assert result.best is not None
    assert len({row["val/acc"] for row in rows(tmp_path)}) == 1
    assert result.best.epoch == 3


class Scored(BoringModel):
    """Logs a given metric in each epoch."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values

    def on_validation_epoch_end(self) -> None:
        self.log("metric", self.values[self.current_epoch])


@pytest.mark.parametrize(
    ("values", "mode", "images", "kept"),
    [
        ([0.2, 0.6, 0.5, 0.4], "max", 10, 2),  # one standard error is 0.155; 0.4 would be in reach of 0.5 alone
        ([0.2, 0.6, 0.5, 0.6, 0.5], "max", 1000, 3),
        ([0.2, 0.6, 0.5, 0.6, 0.5], "max", None, 3),
        ([2.0, 1.0, 1.0, 1.1], "min", None, 2),
        ([math.nan, 0.0, math.nan], "max", 10, 1),
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_the_latest_epoch_within_a_standard_error_of_the_highest_accuracy_is_kept(
    values: list[float], mode: str, images: int | None, kept: int, resumed: bool, tmp_path: Path
) -> None:
    def fit(epochs: int) -> None:
        best = BestCheckpoint(
            tmp_path,
            images=images,
            filename="best",
            monitor="metric",
            mode=mode,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        last = tmp_path / "last.ckpt"
        run = trainer(best, LastCheckpoint(last), max_epochs=epochs, limit_train_batches=1, enable_checkpointing=True)
        run.fit(Scored(values), ckpt_path=last if last.exists() else None, weights_only=True)

    if resumed:
        fit(len(values) - 1)
    fit(len(values))
    assert load(tmp_path / "best.ckpt")["epoch"] == kept


@pytest.mark.slow
def test_the_best_epoch_survives_a_move_of_the_run_and_a_worse_resume(tmp_path: Path) -> None:
    first = tmp_path / "first"
    settings = ["trainer.max_epochs=4", "trainer.limit_train_batches=20", "trainer.limit_val_batches=1.0"]
    full = tiny_run(first, *settings)
    with pytest.raises(SystemExit):
        train(interrupted_at(2, full))
    best = load(first / "checkpoints" / "best.ckpt")["state_dict"]["scores.validation_accuracy"]
    moved = tmp_path / "moved"
    first.rename(moved)
    spoiling = with_callback(full, f"{__name__}.Spoil")
    train(replace(spoiling, folder=moved, resume=moved / "checkpoints" / "last.ckpt"))
    again = load(moved / "checkpoints" / "best.ckpt")["state_dict"]
    assert torch.equal(again["scores.validation_accuracy"], best)


def test_an_epoch_without_validation_is_never_the_best_and_the_last_one_is_always_kept(tmp_path: Path) -> None:
    overrides = ["trainer.max_epochs=5", "trainer.check_val_every_n_epoch=2", "callbacks.checkpoint_every_n_epochs=3"]
    result = train(tiny_run(tmp_path, *overrides))
    assert result.best is not None
    assert result.best.epoch in (2, 4)
    assert state(tmp_path)["epoch"] == 4


def test_without_validation_nothing_is_said_to_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_run(tmp_path, "trainer.limit_val_batches=0"))
    shown = capsys.readouterr().out
    assert "Without validation, no epoch" in " ".join(shown.split())
    assert "best in validation" not in shown


def test_resume_last_is_the_newest_run_and_a_torn_checkpoint_is_named_with_the_one_that_is_whole(
    finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs, best, last = finished.folder.parent, finished.checkpoints / "best.ckpt", finished.checkpoints / "last.ckpt"
    older = shutil.copytree(finished.folder, outputs / "older")
    for path in older.rglob("*"):
        os.utime(path, (1_000_000, 1_000_000))
    study = shutil.copytree(older, outputs / "geometry")
    (study / "config.yaml").write_text("task: {name: geometry}\n")
    assert resume_path("last", str(outputs)) == finished.folder
    assert find_checkpoint(finished.folder) == last
    last.write_bytes(last.read_bytes()[:1000])
    assert find_checkpoint(finished.folder) == best
    assert f"{last} is damaged: resuming from {best}" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=f"{last} is damaged or not a checkpoint: resume={best}"):
        find_checkpoint(last)


def test_a_run_goes_on_from_most_steps_whatever_the_times_of_the_files(finished: Run) -> None:
    best, last = finished.checkpoints / "best.ckpt", finished.checkpoints / "last.ckpt"
    os.utime(best, (last.stat().st_mtime + 100,) * 2)
    assert find_checkpoint(finished.folder) == last
    # Killed after the best.ckpt of an epoch, before its last.ckpt.
    ahead = load(best)
    torch.save({**ahead, "global_step": load(last)["global_step"] + 300}, best)
    assert find_checkpoint(finished.folder) == best
