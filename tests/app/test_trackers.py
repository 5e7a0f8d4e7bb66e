"""Lightning's loggers hold what metrics.csv holds, also over a resume, and say in time when they cannot be opened."""

from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import Logger
from PIL import Image

from dkel_lightning.app.config import checks
from dkel_lightning.app.loggers import trackers
from dkel_lightning.app.loggers.metrics_file import read_rows
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks.train import train
from dkel_lightning.data import ImageDataModule
from dkel_lightning.errors import ConfigError, DataError, DkelError
from tests.compose import compose, interrupted_at, tiny_run

ALL = ("logger=[tensorboard,wandb,mlflow]", "logger.extra.wandb.mode=offline")


Points = dict[str, list[tuple[int, float]]]


def in_tensorboard(folder: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True).Reload()
    assert {"views", "confusion"} <= set(events.Tags()["images"])
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def in_mlflow(folder: Path) -> Points:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "quickstart")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer/lr"] == "0.1"
    found = {f"{part}/{f.path}" for part in ("", "figures") for f in client.list_artifacts(run.info.run_id, part)}
    assert {"figures/figures/views.png", "figures/figures/confusion.png"} <= found
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(m.step, m.value) for m in history] for name, history in histories.items()}


def records(file: Path) -> Iterator[Any]:
    """Read the records of an offline run of W&B: LevelDB's log format after a header of 7 bytes."""
    wandb_internal_pb2: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    data, position, pending = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        pending += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            pending = b""
            yield record


def in_wandb(folder: Path) -> Points:
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1, "the resumed run has another id"
    found: Points = {}
    settings: dict[str, Any] = {}
    for record in (record for file in files for record in records(file)):
        kind = record.WhichOneof("record_type")
        if kind in ("run", "config"):
            update = record.run.config if kind == "run" else record.config
            settings |= {item.key or item.nested_key[0]: item.value_json for item in update.update}
        if kind == "history":
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for name, value in row.items():
                if isinstance(value, int | float) and not name.startswith("_"):
                    found.setdefault(name, []).append((row["trainer/global_step"], value))
                elif name in ("views", "confusion"):
                    found.setdefault(name, []).append((row["trainer/global_step"], 0.0))
    assert json.loads(settings["optimizer"])["lr"] == 0.1
    return found


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with all trackers, interrupted after an epoch that no checkpoint holds, and go on."""
    folder = tmp_path_factory.mktemp("run")
    run = tiny_run(folder, *ALL, "trainer.max_epochs=4", "callbacks.checkpoint_every_n_epochs=2")
    with pytest.raises(SystemExit):
        train(interrupted_at(3, run))
    assert max(row["epoch"] for row in read_rows(folder / "metrics.csv").values()) == 2
    last = folder / "checkpoints" / "last.ckpt"
    train(Run(run.values, folder, resume=last))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("reader", [in_tensorboard, in_mlflow, in_wandb])
def test_each_logger_has_each_value_of_metrics_csv_and_only_tensorboard_replaces_a_repeated_epoch(
    reader: Any, resumed: Path
) -> None:
    tracked = reader(resumed)
    rows = read_rows(resumed / "metrics.csv")
    assert len(rows) == 4
    repeated = sorted(rows)[2]
    names = {name for row in rows.values() for name in row}
    for name in names - {"epoch"}:
        expected = [(step, row[name]) for step, row in sorted(rows.items()) if name in row]
        if reader is not in_tensorboard:
            # The repeated epoch gives the same values: the run goes on bit for bit.
            expected = sorted([*expected, *((step, value) for step, value in expected if step == repeated)])
        steps, values = zip(*tracked[name], strict=True)
        assert list(steps) == [step for step, _ in expected], name
        assert values == pytest.approx([value for _, value in expected], rel=1e-6, nan_ok=True), name


@pytest.mark.parametrize("reader", [in_tensorboard, in_mlflow, in_wandb])
def test_final_scores_say_which_checkpoint_was_tested(reader: Any, resumed: Path) -> None:
    tests = json.loads((resumed / "summary.json").read_text())["test"]
    tracked = reader(resumed)
    for which in ("last", "best"):
        ((_, accuracy),) = tracked[f"test/{which}/acc"]
        assert accuracy == pytest.approx(tests[which]["deployed_accuracy"], rel=1e-6)
        ((_, accuracy),) = tracked[f"test/{which}/acc/teacher_1"]
        assert accuracy == pytest.approx(tests[which]["accuracy"]["teacher_1"], rel=1e-6)
    assert not [name for name in tracked if name.startswith("test/acc")]


def test_pictures_are_sent_once(resumed: Path) -> None:
    assert [len(in_wandb(resumed)[name]) for name in ("views", "confusion")] == [1, 1]


def test_everything_of_a_run_lies_in_its_folder(resumed: Path) -> None:
    for name in ("tensorboard/hparams.yaml", "wandb", "mlflow.db", "mlartifacts", "loggers.json", "confusion.csv"):
        assert (resumed / name).exists(), name
    assert [*json.loads((resumed / "loggers.json").read_text())] == ["tensorboard", "wandb", "mlflow"]


def test_the_picture_of_the_views_shows_the_images_that_are_trained_on(tmp_path: Path) -> None:
    from dkel_lightning.app import build

    run = tiny_run(tmp_path, "trainer.max_epochs=1", "method.peers=2")
    train(run)
    sheet = np.asarray(Image.open(tmp_path / "figures" / "views.png"))
    assert sheet.shape == (2 * 66 - 2, 8 * 66 - 2, 3)
    images = build.datamodule(run.values)
    assert isinstance(images, ImageDataModule)
    images.setup()
    stored = images._splits["train"]
    views, _, indices = next(iter(images.train_dataloader()))
    assert indices is not None
    # Padded by one pixel and cut at a random place: undone by hand, the pixels are those of the data set.
    shown = sheet[:64:8, :64:8, 0].astype(int)
    original = np.pad(stored.read(indices[:1])[0, 0].numpy(), 1)
    assert any(np.array_equal(shown, original[t : t + 8, left : left + 8]) for t in range(3) for left in range(3))
    assert views.shape[1] == 2


# ---------------------------------------------------------------------- failures


class Unreachable(Logger):
    """Stands for a server that does not answer, at once or later."""

    name, version = "unreachable", "1"

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        if self.at == "start":
            raise ConnectionError("no route\nto host.")

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        raise ConnectionError("gone")


def with_logger(run: Run, **node: Any) -> Run:
    return replace(run, values={**run.values, "logger": {"extra": {"mine": node}}})


def test_a_logger_that_cannot_be_opened_is_an_error_before_the_training(tmp_path: Path) -> None:
    run = with_logger(tiny_run(tmp_path), _target_=f"{__name__}.Unreachable", at="start")
    said = (
        r"logger\.extra\.mine cannot be opened \(ConnectionError: no route to host\)\. To train without it: logger=csv"
    )
    with pytest.raises(DkelError, match=said):
        train(run)
    assert not (tmp_path / "checkpoints").exists()


def test_a_logger_that_fails_later_ends_the_run_which_goes_on_without_it(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    with pytest.raises(ConnectionError, match="gone"):
        train(with_logger(run, _target_=f"{__name__}.Unreachable", at="later"))
    train(run)
    assert len(read_rows(tmp_path / "metrics.csv")) == 2


@pytest.mark.slow
def test_a_logger_of_ones_own_may_be_put_into_the_folder_of_the_run(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "now")
    values = {
        "_target_": "lightning.pytorch.loggers.CSVLogger",
        "save_dir": "{folder}",
        "name": "mine",
        "version": "{run}",
    }
    train(with_logger(run, **values))
    assert (tmp_path / "now" / "mine" / "now" / "metrics.csv").is_file()


def test_other_processes_than_the_first_have_no_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert trackers.configured(tiny_run(tmp_path, *ALL), None) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extra", ["tensorboard", "wandb", "mlflow"])
def test_an_extra_that_is_missing_is_named_before_anything_is_imported(
    extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf'logger={extra} needs \w+, .* pip install "dkel-lightning\[{extra}\]"\.$'):
        checks.check(compose(f"logger={extra}"))


def test_wandb_refuses_a_mode_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DkelError, match=r"logger\.extra\.wandb cannot be opened \(.*mode"):
        train(tiny_run(tmp_path, "logger=wandb", "logger.extra.wandb.mode=ofline"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0,1,0.5", "1,x71,0.6"], "line 3: step is 'x71'"),
        (["0,1,0.5", "1,2,0.6", "2,3,0.7x"], "line 4: loss is '0.7x'"),
        (["0,1,0.5,9"], "line 2 has more cells than the heading"),
        (["0,,0.5"], "line 2 has no step"),
        (["0,1.5,0.5"], "line 2: step is '1.5'"),
    ],
)
def test_of_a_damaged_metrics_csv_the_line_and_the_cell_are_named(
    rows: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "metrics.csv").write_text("\n".join(["epoch,step,loss", *rows, ""]))
    with pytest.raises(DataError, match=rf"metrics\.csv is damaged \({message}\): move it away"):
        read_rows(tmp_path / "metrics.csv")
