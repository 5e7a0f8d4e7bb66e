"""The command line: Hydra composes a configuration and its task runs. Only tasks import torch."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dkel_lightning.app import config, saved
from dkel_lightning.app.records import CONFIG, FAILED, RunRecord, write_failure
from dkel_lightning.app.run import Run, find_checkpoint, is_finished, load_config, lock, resume_path, run_of
from dkel_lightning.app.user_code import import_modules
from dkel_lightning.errors import ConfigError, DkelError, FolderInUseError, Interrupted

TRACEBACK = "HYDRA_FULL_ERROR"
SHOW_TRACEBACK = bool(os.environ.get(TRACEBACK))


def main() -> None:
    """Run the command. Errors are printed as one message without a traceback."""
    if "--version" in sys.argv:
        from dkel_lightning import __version__

        print(f"dkel_lightning {__version__}")
        return
    arguments = sys.argv[1:] = [_quote(argument) for argument in sys.argv[1:]]
    os.environ[TRACEBACK] = "1"  # Hydra raises what it would print
    try:
        config.register(arguments)
        hydra.main(config_path=str(config.conf_dir()), config_name="config", version_base="1.3")(run_job)()
    except (HydraException, OmegaConfBaseException) as error:
        if SHOW_TRACEBACK:
            raise
        sys.exit(f"Error: {config.explain(str(error), arguments)}")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        _fail(error)
    finally:
        if not SHOW_TRACEBACK:
            del os.environ[TRACEBACK]
    from dkel_lightning.app.sweep_callback import SweepTables

    if SweepTables.failed:
        print(f"Error: {len(SweepTables.failed)} jobs failed: {', '.join(SweepTables.failed)}.", file=sys.stderr)
    if SweepTables.error is not None:
        print(f"Error: {SweepTables.error}", file=sys.stderr)
    if SweepTables.failed or SweepTables.error is not None:
        sys.exit(1)


def _quote(argument: str) -> str:
    """Quote the path in `key=path` where it has an equals sign, as the folders of a sweep have; Hydra needs that."""
    key, _, value = argument.partition("=")
    return f"{key}='{value}'" if "=" in value and Path(value).exists() else argument


def run_job(cfg: DictConfig) -> float | None:
    """Run one composed configuration, alone or as a job of a sweep; return what a search maximises."""
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    overrides = list(hydra_config.overrides.task)
    run = _run_in_sweep if hydra_config.mode is RunMode.MULTIRUN else execute
    silence_lightning()
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"
    try:
        return run(config.resolve(cfg), run_dir, config.typed_keys(overrides))
    except Exception as error:
        _fail(error)
    finally:
        with contextlib.suppress(OSError):
            run_dir.rmdir()  # only if nothing was written


def _fail(error: Exception) -> NoReturn:
    if SHOW_TRACEBACK:
        raise error
    print(f"Error: {_describe(error)}", file=sys.stderr)
    raise SystemExit(getattr(error, "exit_code", 1)) from None


def _describe(error: Exception) -> str:
    if isinstance(error, DkelError):
        return str(error)
    return f"{type(error).__name__}: {error}\nSet {TRACEBACK}=1 for a traceback."


def execute(values: dict[str, Any], run_dir: Path, typed: set[str]) -> float | None:
    """Run the task of the configuration in `run_dir`; `typed` are the groups and keys that the user has set."""
    task = values["task"]["name"]
    trains = task == "train"
    if values["task"]["folder"] and not values["checkpoint"]:
        raise ConfigError(f"task={task} needs checkpoint=PATH.")
    if values["checkpoint"] and not values["task"]["folder"]:
        raise ConfigError(
            f"task={task} reads no checkpoint: backbone.weights=PATH starts from one, resume=RUN resumes."
        )
    if values["resume"] and not trains:
        raise ConfigError(f"task={task} resumes nothing: leave out resume, or give checkpoint=PATH.")
    import_modules(values["modules"])
    checkpoint = None
    if values["resume"]:
        path = resume_path(values["resume"])
        checkpoint = find_checkpoint(path)
        values = saved.resume_settings(run_of(path), values, typed)
    elif values["checkpoint"] and (run_of(Path(values["checkpoint"])) / CONFIG).is_file():
        values = saved.checkpoint_settings(run_of(Path(values["checkpoint"])), values, typed)
    with lock(run_dir) if trains else contextlib.nullcontext():
        (run_dir / FAILED).unlink(missing_ok=True)
        if checkpoint is None and trains and not values["resume"]:
            checkpoint = _continue(run_dir, values)
        result = hydra.utils.get_method(values["task"]["_target_"])(Run(values, run_dir, checkpoint))
    objective = getattr(result, "objective", None)
    return None if objective is None or math.isnan(objective) else float(objective)


def silence_lightning() -> None:
    """Silence Lightning's messages that a user cannot act on."""
    import lightning.pytorch  # noqa: F401  (its import sets the log level and the format of warnings)

    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*LeafSpec.*is deprecated.*",
        ".*exists and is not empty.*",
        ".*Consider setting `persistent_workers.*",
        ".*in eval mode at the start of training.*",
        ".*weights_only.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
    ):
        warnings.filterwarnings("ignore", message)


def _continue(run_dir: Path, values: dict[str, Any]) -> Path | None:
    """Return the checkpoint of an unfinished run in this folder; its settings must be the same."""
    if not (run_dir / CONFIG).is_file():
        return None
    _refuse_other_settings(run_dir, values)
    return find_checkpoint(run_dir)


def _refuse_other_settings(run_dir: Path, values: dict[str, Any]) -> None:
    if different := saved.differences(load_config(run_dir), values):
        raise ConfigError(f"{run_dir} contains a run with other settings ({different[0]}): choose another folder.")


def _run_in_sweep(values: dict[str, Any], run_dir: Path, typed: set[str]) -> float | None:
    """Run a job of a sweep unless it has finished. A failure is recorded in its folder, and the sweep continues."""
    trainer = values["trainer"]
    if "ddp" in str(trainer["strategy"]) and "SLURM_JOB_ID" not in os.environ:
        raise ConfigError("A sweep with trainer=ddp would start in every process: use hydra/launcher=slurm.")
    print(f"\n{run_dir.name}", flush=True)
    if (run_dir / CONFIG).is_file():
        _refuse_other_settings(run_dir, values)
    if is_finished(run_dir):
        print(f"already finished: {run_dir}", flush=True)
        return RunRecord(run_dir).objective
    try:
        return execute(values, run_dir, typed)
    except FolderInUseError:
        print("skipped: another process is running it", flush=True)
    except Interrupted:
        raise
    except Exception as error:
        print(f"Failed: {_describe(error)}", file=sys.stderr, flush=True)
        write_failure(run_dir, error)
    return None
