"""metrics.csv is whole at any moment, and Lightning's loggers hold what it holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dkel_lightning.app.loggers import MetricsFile
from dkel_lightning.app.records import read_curves
from dkel_lightning.app.tasks.train import train
from tests.compose import interrupted_at, tiny_run


def test_rows_of_repeated_epochs_are_dropped_and_the_others_stay_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    for epoch in range(3):
        first.log_metrics({"epoch": epoch, "train/loss": 0.1 + epoch, **({"late": 1.0} if epoch else {})}, 10 * epoch)
        first.save()
    whole = path.read_text()
    again = MetricsFile(path, keep_before_step=20)
    again.log_metrics({"epoch": 2, "train/loss": 2.1, "late": 1.0}, 20)
    again.save()
    assert path.read_text() == whole
    assert whole.splitlines() == ["epoch,step,train/loss,late", "0,0,0.1,", "1,10,1.1,1.0", "2,20,2.1,1.0"]


def test_tensorboard_holds_every_value_of_metrics_csv_once_also_over_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tiny_run(tmp_path, "logger=tensorboard", "trainer.max_epochs=3")
    with pytest.raises(SystemExit):
        train(interrupted_at(2, run))
    train(replace(run, resume=run.checkpoints / "last.ckpt"))
    events = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True).Reload()
    for name, curve in read_curves(tmp_path / "metrics.csv").items():
        assert [e.value for e in events.Scalars(name)] == pytest.approx(curve.values, rel=1e-6, nan_ok=True), name
