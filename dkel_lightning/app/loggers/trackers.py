"""Lightning's TensorBoard, Weights & Biases and MLflow loggers beside metrics.csv, put into the run's folder."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from dkel_lightning.app import build
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.errors import DkelError
from dkel_lightning.runtime import ranks
from dkel_lightning.runtime.atomic_files import text_of

FILE = "loggers.json"
"""Which run of each logger this one is, so that a resume goes on with it."""

RUN_IDS = {"WandbLogger": "id", "MLFlowLogger": "run_id"}
"""What each logger calls the run to go on with."""

Loggers = Mapping[str, Logger]


def configured(run: Run, step: int | None) -> dict[str, Logger]:
    """Build the loggers of `logger.extra` by their names; only the first process has any.

    In their settings `{folder}` stands for the run's folder and `{run}` for its name. A resumed run goes on with what
    it has begun in each of them.

    Args:
        run: the run.
        step: the step at which it goes on; None for one that begins.
    """
    if run.values["trainer"]["fast_dev_run"] or not ranks.is_first():
        return {}
    known = _known(run.folder)
    found = {}
    for name, node in run.values["logger"]["extra"].items():
        if isinstance(node, Mapping):
            kind = str(node.get("_target_")).rpartition(".")[2]
            if kind == "MLFlowLogger":
                _quieten_mlflow()
            node = {**_placed(node, run.folder.resolve()), **_resumed(kind, known.get(name), step)}
        (found[name],) = build.extras({name: node}, "logger.extra", Logger)
    return found


def _placed(settings: Any, folder: Path) -> Any:
    if isinstance(settings, Mapping):
        return {key: _placed(value, folder) for key, value in settings.items()}
    if isinstance(settings, str):
        return settings.replace("{folder}", folder.as_posix()).replace("{run}", folder.name)
    return settings


def _resumed(kind: str, known: str | None, step: int | None) -> dict[str, Any]:
    """Give what each of Lightning's loggers takes to go on with a run."""
    if kind == "TensorBoardLogger" and step is not None:
        return {"purge_step": step}
    if kind in RUN_IDS and known is not None:
        return {RUN_IDS[kind]: known}
    return {}


def _quieten_mlflow() -> None:
    """Leave out its telemetry, which asks the network for a host, and several lines on the set-up of a database."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # it is read at the import
    import mlflow  # noqa: F401  (sets up its own logging)

    for name in ("mlflow", "alembic", "lightning.pytorch.loggers.mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def opened(loggers: Loggers, run: Run) -> Iterator[None]:
    """Begin the run in each logger with its settings, or go on with it; Weights & Biases' is ended with the block.

    Raises:
        DkelError: one of them cannot be opened.
    """
    known = _known(run.folder)
    failed = True
    try:
        for name, logger in loggers.items():
            try:
                if name not in known:  # MLflow takes no second value of a setting, and a resume may change some
                    logger.log_hyperparams(dict(run.values))
                getattr(logger, "experiment", None)
            except Exception as error:  # whatever a library and its server can fail of
                said = " ".join(str(error).split())[:300]
                raise DkelError(
                    f"logger.extra.{name} cannot be opened ({type(error).__name__}: {said.rstrip('.')}). "
                    "To train without it: logger=csv."
                ) from error
            known[name] = str(logger.version)
        if loggers:
            run.write_json(FILE, known)
        yield
        failed = False
    finally:
        for logger in loggers.values():
            # Lightning leaves it open, and the next run of this process would go on with it.
            if isinstance(logger, WandbLogger) and logger.version is not None:
                logger.experiment.finish(exit_code=int(failed))


def _known(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads(text_of(folder / FILE)))
    except (OSError, ValueError, TypeError):
        return {}


def log_picture(loggers: Loggers, name: str, path: Path, step: int) -> None:
    """Send a PNG to the loggers that take pictures."""
    for logger in loggers.values():
        if isinstance(logger, TensorBoardLogger):
            with Image.open(path) as image:
                logger.experiment.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(str(logger.run_id), str(path), "figures")


def log_tests(loggers: Loggers, settings: Mapping[str, Any], scores: Mapping[str, float], step: int) -> None:
    """Send the final scores, by names that say which checkpoint was tested."""
    for logger in loggers.values():
        if isinstance(logger, TensorBoardLogger):
            # Settings beside scores are what its table of runs shows.
            logger.log_hyperparams(dict(settings), dict(scores), step)
        else:
            logger.log_metrics(dict(scores), step)
        logger.save()
