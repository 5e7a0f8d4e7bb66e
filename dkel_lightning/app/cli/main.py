"""The command line: `python -m dkel_lightning` and `dkel`. Torch is imported only when a run begins."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import hydra
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dkel_lightning import __version__
from dkel_lightning.app.cli import jobs, sweep_session
from dkel_lightning.app.cli.checks import check, with_hydra
from dkel_lightning.app.cli.composition import groups_explained, prefer_own_presets
from dkel_lightning.app.cli.folders import with_checkpoint, with_folder
from dkel_lightning.app.cli.invocation import Invocation
from dkel_lightning.app.cli.refusals import TRACEBACK, fail, refusal
from dkel_lightning.app.cli.sweep_session import SweepSession
from dkel_lightning.app.config import choices
from dkel_lightning.errors import ConfigError, DkelError
from dkel_lightning.runtime import ranks
from dkel_lightning.runtime.texts import first_line


def main() -> Any:
    """Run the command line; on a mistake print one message and exit with 2 (configuration) or 1 (anything else).

    A character that the terminal's encoding lacks is written by its number.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    _main()


def _main() -> None:
    if "--version" in sys.argv[1:]:
        print(f"dkel_lightning {__version__}")
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads take the time of those they wait for
    try:
        invocation = prepared(sys.argv[1:])
        if invocation.multirun and not invocation.shows:
            _sweep(invocation)
        else:
            _hand_to_hydra(invocation, None)
    except DkelError as error:
        fail(error)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:
        fail(refusal(error))
    except (MemoryError, RuntimeError) as error:  # of torch: full memory, a lost process
        fail(DkelError(f"{type(error).__name__}: {first_line(error)}"))
    except CompactHydraException as error:
        fail(DkelError(str(error)))
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        fail(ConfigError(f"{error.full_key}: {first_line(error)}"))


def prepared(arguments: Sequence[str]) -> Invocation:
    """Read and check the arguments, and add the folder where a resumed run or an evaluation writes.

    Raises:
        DkelError: with all mistakes of the first composition that has any.
    """
    prefer_own_presets()
    try:
        invocation = Invocation.of(arguments)
        if invocation.unchecked:
            return invocation
        invocation = with_hydra(invocation)
        if ranks.is_launched_by_lightning():  # of a process that has checked the same
            return invocation
        invocation = invocation if invocation.shows else with_checkpoint(invocation)
        check(invocation)
        return invocation if invocation.shows else with_folder(invocation)
    except OSError as error:
        raise refusal(error) from error


def _sweep(invocation: Invocation) -> None:
    """Run the jobs of a sweep, write its tables however it ends, and exit with 1 where a job has failed.

    Raises:
        DkelError: its folder is another's.
    """
    whole = True
    with sweep_session.begun(invocation) as session:
        try:
            _hand_to_hydra(session.invocation, session)
        except Exception as error:
            message = _ended(error, session)
            if message is None:
                raise
            print(f"Error: {message}", file=sys.stderr)
            whole = False
        finally:
            tabled = session.end() if ranks.is_first() else True
    if session.failed:
        print(f"Error: {len(session.failed)} jobs of the sweep failed: {', '.join(session.failed)}.", file=sys.stderr)
    if session.failed or not (whole and tabled):
        raise SystemExit(1)


def _ended(error: Exception, session: SweepSession) -> str | None:
    """Say what a launcher or sweeper means that has lost a job, or has none, or what Hydra or the system says."""
    if type(error).__module__.split(".")[0] in ("submitit", "joblib", "concurrent"):
        return f"A job of the sweep has ended without a result: {error}"
    if "No trials are completed" in str(error):
        return "No trial of the search has finished."
    if isinstance(error, OSError):
        return str(refusal(error, session.folder, sweep_session.KEY))
    return str(error) if isinstance(error, CompactHydraException) else None


def _hand_to_hydra(invocation: Invocation, session: SweepSession | None) -> None:
    """Let Hydra compose what was given, and run or show it."""
    asked = os.environ.get(TRACEBACK)

    def job(cfg: DictConfig) -> float | None:
        with jobs.environment(TRACEBACK, asked):
            return jobs.run(cfg, invocation, session)

    sys.argv[1:] = invocation.arguments
    explained = partial(groups_explained, invocation.config_dir)
    OmegaConf.register_new_resolver("dkel_groups", explained, replace=True)
    # Hydra then raises what it fails of, which it would print as a traceback and exit.
    with jobs.environment(TRACEBACK, "1"):
        hydra.main(config_path=str(choices.folder()), config_name="config", version_base="1.3")(job)()
