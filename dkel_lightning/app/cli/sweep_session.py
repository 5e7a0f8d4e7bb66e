"""A sweep in this process: its folder, held for it alone, its jobs that failed, and what it says at its end."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from dkel_lightning.app.cli import composition
from dkel_lightning.app.cli.invocation import Invocation
from dkel_lightning.app.cli.overrides import split
from dkel_lightning.app.cli.refusals import refusal
from dkel_lightning.app.runs.claim import claim, numbered
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime import command_lines, locks, ranks

KEY = "hydra.sweep.dir"
REFUSED = ".refused_"
"""Begins the name of the file by which a job, in whatever process, tells that its folder is another's."""


@dataclass
class SweepSession:
    """What a sweep and its jobs know of it; jobs in other processes get a copy.

    Attributes:
        invocation: what was given, with the folder.
        folder: of the sweep.
        named: whether it was named, and what lies there is gone on with.
        cwd: where the command was given.
        failed: the numbers of the jobs of this process that failed.
    """

    invocation: Invocation
    folder: Path
    named: bool
    cwd: Path = field(default_factory=Path.cwd)
    failed: list[str] = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        """Whether a job goes on with what lies in its folder.

        The sweep's folder was named, or SLURM has put the job back into its queue and starts it again.
        """
        return self.named or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"

    def refuse(self, number: str) -> None:
        """Tell the process of the sweep that a job's folder is another's."""
        (self.cwd / self.folder / f"{REFUSED}{number}").touch()

    def refused(self) -> list[str]:
        """Give the numbers of the jobs that were refused, and remove their files."""
        found = sorted(self.folder.glob(f"{REFUSED}*"), key=lambda path: (len(path.name), path.name))
        with contextlib.suppress(OSError):
            for path in found:
                path.unlink()
        return [path.name.removeprefix(REFUSED) for path in found]

    def end(self) -> bool:
        """Write the tables, also of a sweep that was interrupted, and say how to go on with it.

        Returns:
            whether the tables could be written; `failed` then names the jobs of all processes.
        """
        from dkel_lightning.app import sweeps
        from dkel_lightning.app.runs.groups import read_sweep

        refused = self.refused()
        sweep = read_sweep(self.folder)
        tabled = True
        if any(job.figures for job in sweep.jobs):
            sweeps.show(sweep)
        if sweep.jobs:
            try:
                print(f"The sweep's tables: {', '.join(sweeps.write(sweep))} in {self.folder}", flush=True)
            except BrokenPipeError:
                raise
            except OSError as error:
                print(f"Error: {refusal(error, self.folder, KEY)}", file=sys.stderr)
                tabled = False
        if refused:
            free = next(path for path in numbered(self.folder) if not path.exists())
            held = f"{self.folder} holds other jobs under {', '.join(refused)}"
            print(f"{held}: in a folder of its own this sweep is run by: {self._again(free)}", flush=True)
        elif not tabled or not all(job.state == "finished" for job in sweep.jobs):
            print(f"What is missing is run by: {self._again(self.folder)}", flush=True)
        # Jobs that other processes ran have only noted it in their folders.
        noted = [job.name for job in sweep.jobs if job.state == "failed"]
        self.failed = [*dict.fromkeys([*noted, *refused, *self.failed])]
        return tabled

    def _again(self, folder: Path) -> str:
        """Write this command for a sweep in a folder."""
        return command_lines.typed(*_in_folder(self.invocation, folder).arguments)


@contextlib.contextmanager
def begun(invocation: Invocation) -> Iterator[SweepSession]:
    """Take a folder for a sweep alone, for as long as it lasts: what lies there is gone on with, and only once.

    One that was named is taken as it is; the time in the name of another may be that of a sweep beside this one.

    Raises:
        DkelError: another process works on it, or it cannot be written.
    """
    named = KEY in invocation.values
    folder = _composed(invocation)
    if ranks.is_one_of_several():
        yield SweepSession(_in_folder(invocation, folder), folder, named)
        return
    with contextlib.ExitStack() as until_the_end:
        try:
            folder = folder if named else claim(folder)
            until_the_end.enter_context(locks.acquire_lock(folder / locks.CLAIM))
        except OSError as error:
            raise refusal(error, folder, KEY) from error
        session = SweepSession(_in_folder(invocation, folder), folder, named)
        session.refused()  # of a sweep that was killed
        yield session


def _composed(invocation: Invocation) -> Path:
    """Give the folder with what Hydra fills into its name, such as the time."""
    items = [item.input_line or "" for item in invocation.overrides if not item.is_sweep_override()]
    try:
        return Path(composition.compose(items, invocation.config_dir, with_hydra=True).hydra.sweep.dir)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error


def _in_folder(invocation: Invocation, folder: Path) -> Invocation:
    kept = [argument for argument in invocation.arguments if split(argument)[0] != KEY]
    return invocation.with_arguments([*kept, command_lines.override(KEY, folder)])
