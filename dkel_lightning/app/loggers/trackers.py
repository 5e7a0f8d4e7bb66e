"""TensorBoard, Weights & Biases and MLflow beside metrics.csv: the same names, in the run's folder."""

from __future__ import annotations

import json
import logging
import os
import sys
from abc import abstractmethod
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from PIL import Image

from dkel_lightning.app.config import extras
from dkel_lightning.app.loggers.metrics_file import Row
from dkel_lightning.errors import ConfigError, DkelError
from dkel_lightning.runtime.atomic_files import write_text

FOLDER = "loggers"
"""Where a run keeps what each tracker has got so far."""

ATTEMPTS = 3
"""Entries in a row that a tracker may fail at before it is left alone."""


@dataclass(frozen=True)
class Tracked:
    """What a tracker has to know of a run.

    Attributes:
        folder: of the run.
        values: the resolved settings.
        rows: those of metrics.csv that a resumed run goes on from, by step.
        begins_at: the step at which it goes on; 0 for a new run, and for one that begins anew.
    """

    folder: Path
    values: Mapping[str, Any]
    rows: Mapping[int, Row] = field(default_factory=dict)
    begins_at: int = 0

    @property
    def title(self) -> str:
        """How a tracker lists the run."""
        return f"{self.values['name']}/{self.folder.name}"


@dataclass
class Sent:
    """What a tracker has got: kept in the run's folder, so that a resumed run repeats nothing.

    Attributes:
        id: of the run in the tracker; None where it has none.
        step: the last step that was sent.
        names: of the metrics sent at that step.
        missing: why it lacks something; None where it has all.
    """

    id: str | None = None
    step: int = -1
    names: list[str] = field(default_factory=list)
    missing: str | None = None


class Tracker(Logger):
    """A copy of the run's metrics somewhere else.

    A run's own files are its record, so a tracker never ends a training that has begun: what it fails at is said on
    standard error, kept and sent again with the next entry. After `ATTEMPTS` failures in a row it is left alone, which
    is said again at the end, and noted in `loggers/<name>.json`. Before the training a failure is an error.

    What Lightning logs in tests is left out: it does not say which checkpoint was tested; `log_tests` does.

    Args:
        settings: arguments of Lightning's logger.
    """

    NAME: ClassVar[str]
    REWINDS: ClassVar[bool] = False
    """Whether rows that were sent can be taken back, as those of epochs that a resumed run repeats."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        fault = extras.missing_extra(f"logger={self.NAME}", self.NAME)
        if fault is not None:
            raise ConfigError(fault)
        self._settings = settings
        self._sent = Sent()
        self._before = Sent()
        self._file: Path | None = None
        self._queue: deque[Callable[[], None]] = deque()
        self._failures = 0

    # ------------------------------------------------------------------ what the task calls

    @rank_zero_only
    def begin(self, run: Tracked) -> None:
        """Open the tracker's run, or go on with it, and send what it lacks.

        Raises:
            DkelError: it cannot be opened.
        """
        self._file = run.folder / FOLDER / f"{self.NAME}.json"
        self._sent = _read(self._file) if self._file.is_file() else Sent()
        if self.REWINDS and self._sent.step >= run.begins_at:
            self._sent.step, self._sent.names = run.begins_at, []
        known, self._sent.missing = self._sent.id is not None, None
        self._before = Sent(**asdict(self._sent))
        try:
            self._sent.id = self._open(run, self._sent.id)
            if not known:
                self._configure(run)
        except Exception as error:  # whatever a library and its server can fail of
            self._file = None
            raise DkelError(
                f"{self.NAME} cannot be opened ({_reason(error)}). To train without it: logger=csv."
            ) from error
        self._keep()
        for step, row in sorted(run.rows.items()):
            self.log_metrics(row, step)

    @rank_zero_only
    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Send a PNG."""
        self._send(partial(self._picture, name, path, step))

    @rank_zero_only
    def log_tests(self, scores: Mapping[str, float], step: int) -> None:
        """Send the final scores, by names that say which checkpoint was tested."""
        self._send(partial(self._row, dict(scores), step))

    @rank_zero_only
    def finish(self, *, failed: bool = False) -> None:
        """Send what is left and close the tracker's run."""
        if self._file is None:
            return
        self._try()
        if self._queue and self._failures < ATTEMPTS:
            self._give_up(f"{len(self._queue)} entries were not sent")
        try:
            self._close(failed)
        except Exception as error:
            self._give_up(f"not closed in good order: {_reason(error)}")
        if self._sent.missing is not None:
            _warn(f"{self.NAME} lacks some of this run ({self._sent.missing}); metrics.csv has all of it.")
        self._keep()
        self._file = None

    # ------------------------------------------------------------------ what Lightning calls

    @property
    def name(self) -> str:
        """Name this tracker."""
        return self.NAME

    @property
    def version(self) -> str | None:
        """Return the id of the run in the tracker."""
        return self._sent.id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send the metrics of a step, those that a run before this one has sent left out."""
        at = int(step or 0)
        row = {name: float(value) for name, value in metrics.items() if not name.startswith("test/")}
        if at < self._before.step:
            return
        if at == self._before.step:
            row = {name: value for name, value in row.items() if name not in self._before.names}
        if row.keys() - {"epoch"}:
            self._send(partial(self._row, row, at))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the whole configuration was sent when the run began."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Do nothing: Lightning calls it after the fit and after each test, the task calls `finish`."""

    # ------------------------------------------------------------------ what each tracker is

    @abstractmethod
    def _open(self, run: Tracked, known: str | None) -> str:
        """Open the run, of an earlier process where its id is known, and return its id."""

    @abstractmethod
    def _configure(self, run: Tracked) -> None:
        """Send the whole configuration."""

    @abstractmethod
    def _write(self, row: Mapping[str, float], step: int) -> None:
        """Send metrics."""

    @abstractmethod
    def _picture(self, name: str, path: Path, step: int) -> None:
        """Send a PNG."""

    @abstractmethod
    def _close(self, failed: bool) -> None:
        """Close the run."""

    # ------------------------------------------------------------------ inside

    def _row(self, row: Mapping[str, float], step: int) -> None:
        self._write(row, step)
        if step > self._sent.step:
            self._sent.step, self._sent.names = step, []
        self._sent.names += row
        self._keep()

    def _send(self, entry: Callable[[], None]) -> None:
        if self._file is not None and self._failures < ATTEMPTS:
            self._queue.append(entry)
            self._try()

    def _try(self) -> None:
        try:
            while self._queue and self._failures < ATTEMPTS:
                self._queue[0]()
                self._queue.popleft()
                self._failures = 0
        except Exception as error:  # whatever a library, its server and the disk can fail of
            self._failures += 1
            if self._failures == 1:
                _warn(f"{self.NAME}: {_reason(error)}. The training goes on; this is sent again with the next entry.")
            if self._failures == ATTEMPTS:
                self._give_up(_reason(error))

    def _give_up(self, why: str) -> None:
        self._queue.clear()
        self._failures, self._sent.missing = ATTEMPTS, why
        _warn(f"{self.NAME} is left alone from here on: {why}.")

    def _keep(self) -> None:
        assert self._file is not None
        write_text(self._file, json.dumps(asdict(self._sent), indent=2) + "\n")


class TensorBoard(Tracker):
    """Event files in `tensorboard/` of the run's folder: `tensorboard --logdir outputs` shows all runs.

    A resumed run tells TensorBoard to forget the steps that it repeats.
    """

    NAME = "tensorboard"
    REWINDS = True

    def _open(self, run: Tracked, known: str | None) -> str:
        settings = {"save_dir": run.folder, "name": "", "version": self.NAME, "purge_step": run.begins_at}
        self._writer = TensorBoardLogger(**{**settings, **self._settings}).experiment
        return self.NAME

    def _configure(self, run: Tracked) -> None:
        from torch.utils.tensorboard.summary import hparams

        # The table of runs shows these metrics of each, read from the curves.
        shown = {"val/acc": 0.0, "test/best/acc": 0.0, "test/last/acc": 0.0}
        plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in flat(run.values).items()}
        for summary in hparams(plain, shown):  # type: ignore[no-untyped-call]
            self._writer._get_file_writer().add_summary(summary)
        text = "\n".join(f"    {line}" for line in _yaml(run.values).splitlines())
        self._writer.add_text("configuration", text)
        self._writer.flush()

    def _write(self, row: Mapping[str, float], step: int) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def _picture(self, name: str, path: Path, step: int) -> None:
        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def _close(self, failed: bool) -> None:
        self._writer.close()


class WandB(Tracker):
    """Weights & Biases, with its files in `wandb/` of the run's folder.

    What was sent stays: of epochs that a resumed run repeats, the first values are kept.

    Args:
        mode: online, offline (`wandb sync FOLDER` sends it later) or disabled; None: as WANDB_MODE says, or online.
        settings: of Lightning's WandbLogger and `wandb.init`: project, name, group, tags, entity, ...
    """

    NAME = "wandb"

    def __init__(self, *, mode: str | None = None, **settings: Any) -> None:
        if mode not in (None, "online", "offline", "disabled"):
            raise ConfigError(f"logger.extra.wandb.mode is {mode!r}: choose one of online, offline, disabled, null.")
        super().__init__(**settings, mode=mode)

    def _open(self, run: Tracked, known: str | None) -> str:
        import wandb

        if wandb.run is not None:  # left behind by something else in this process, which would be gone on with
            wandb.finish()
        settings = {"save_dir": run.folder, "name": run.title, "id": known}
        # The terminal has lines that overwrite themselves; and what it says is in the run's files.
        quiet = wandb.Settings(console="off", quiet=True)
        self._backend = WandbLogger(**{**settings, "settings": quiet, **self._settings})
        return str(self._backend.experiment.id)

    def _configure(self, run: Tracked) -> None:
        self._backend.log_hyperparams(dict(run.values))

    def _write(self, row: Mapping[str, float], step: int) -> None:
        self._backend.log_metrics(dict(row), step)

    def _picture(self, name: str, path: Path, step: int) -> None:
        self._backend.log_image(name, [str(path)], step)

    def _close(self, failed: bool) -> None:
        self._backend.experiment.finish(exit_code=int(failed))


class MLflow(Tracker):
    """MLflow, by default with a database of the run's own: `mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db`.

    Not with MLflow's store of files, which is given up and cannot hold both `val/acc` and `val/acc/student_0`. What was
    sent stays: of epochs that a resumed run repeats, the first values are kept.

    Args:
        tracking_uri: of a server or database; None: as MLFLOW_TRACKING_URI says, or `mlflow.db` in the run's folder.
        settings: of Lightning's MLFlowLogger: experiment_name, run_name, tags, artifact_location, ...
    """

    NAME = "mlflow"

    def __init__(self, *, tracking_uri: str | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self._uri = tracking_uri

    def _open(self, run: Tracked, known: str | None) -> str:
        import mlflow  # noqa: F401  (sets up its own logging)

        folder = run.folder.resolve()
        uri = self._uri or os.environ.get("MLFLOW_TRACKING_URI")
        settings = {"run_name": run.title, "tracking_uri": uri, "run_id": known}
        if uri is None:
            # Without a place for them pictures would go into the working folder.
            settings |= {"tracking_uri": f"sqlite:///{folder}/mlflow.db"}
            settings |= {"artifact_location": (folder / "mlartifacts").as_uri()}
        # The database's set-up says several lines about itself.
        for name in ("mlflow", "alembic", "lightning.pytorch.loggers.mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._backend = MLFlowLogger(**{**settings, **self._settings})
        opened = str(self._backend.run_id)
        if known is not None:
            self._backend.experiment.update_run(known, status="RUNNING")
        return opened

    def _configure(self, run: Tracked) -> None:
        self._backend.log_hyperparams(flat(run.values))
        self._backend.experiment.log_text(self._backend.run_id, _yaml(run.values), "config.yaml")

    def _write(self, row: Mapping[str, float], step: int) -> None:
        self._backend.log_metrics(dict(row), step)

    def _picture(self, name: str, path: Path, step: int) -> None:
        self._backend.experiment.log_artifact(self._backend.run_id, str(path), "figures")

    def _close(self, failed: bool) -> None:
        self._backend.finalize("failed" if failed else "success")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give settings by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _yaml(values: Mapping[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))


def _read(file: Path) -> Sent:
    """Read what a tracker has got; nothing, where the file is damaged."""
    try:
        return Sent(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Sent()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}".rstrip(".") if lines else type(error).__name__


def _warn(message: str) -> None:
    print(f"Warning: {message}", file=sys.stderr, flush=True)
