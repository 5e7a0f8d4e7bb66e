"""What runs inside Hydra: one composed configuration, alone or as a job of a sweep. Torch is imported from here on."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dkel_lightning.app.cli import saved_settings, user_code
from dkel_lightning.app.cli.checks import planned, searches
from dkel_lightning.app.cli.composition import resolved
from dkel_lightning.app.cli.folders import folder_beside, folder_of
from dkel_lightning.app.cli.invocation import Invocation
from dkel_lightning.app.cli.overrides import split
from dkel_lightning.app.cli.refusals import fail, refusal
from dkel_lightning.app.cli.sweep_session import KEY, SweepSession
from dkel_lightning.app.runs import notes
from dkel_lightning.app.runs.claim import SETTINGS, begin, claim, release
from dkel_lightning.app.runs.folder import Run, run_folder, saved_values
from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.app.tasks import registry, stages
from dkel_lightning.app.tasks.registry import Place, Task
from dkel_lightning.errors import DkelError, OtherJobError
from dkel_lightning.runtime import ranks
from dkel_lightning.runtime.atomic_files import write_text

FOLDER = "DKEL_RUN_FOLDER"  # where the processes that Lightning starts for a run find its folder


@dataclass
class Job:
    """One composed configuration on its way.

    Attributes:
        cfg: its settings as they were composed.
        folder: where it writes; another one beside it once it has claimed that.
        overrides: what was given for it.
        invocation: what was given to the command.
        session: the sweep that it belongs to, if any.
        own: Hydra's own settings.
        begun: whether this process has begun the run in its folder.
        running: whether its folder holds the note of a sweep that it runs.
    """

    cfg: DictConfig
    folder: Path
    overrides: list[str]
    invocation: Invocation
    session: SweepSession | None
    own: HydraConf
    begun: bool = False
    running: bool = False

    @functools.cached_property
    def values(self) -> dict[str, Any]:
        """Its settings."""
        return user_code.with_own_data(resolved(self.cfg))

    @property
    def task(self) -> Task:
        """Its task."""
        return registry.of(self.values)

    @property
    def number(self) -> str:
        """Its number in the sweep."""
        return str(self.own.job.num)

    @property
    def goes_on(self) -> bool:
        """Whether it goes on with what lies in its folder."""
        return self.session is not None and self.session.goes_on

    @property
    def in_search(self) -> bool:
        """Whether what it is depends on how those before it ended."""
        return searches(self.own)

    def launched_by(self, launcher: str) -> bool:
        """Tell what runs the jobs of its sweep."""
        return launcher in str(self.own.launcher.get("_target_"))


def run(cfg: DictConfig, invocation: Invocation, session: SweepSession | None) -> float | None:
    """Run the task of one composed configuration; returns the objective of a sweep."""
    own = HydraConfig.get()
    job = Job(cfg, Path(own.runtime.output_dir), [*own.overrides.task], invocation, session, own)
    if session is not None:
        return _run_in_sweep(job, session)
    try:
        return work(job)
    except DkelError as error:
        fail(error)
    except OSError as error:
        fail(refusal(error, job.folder))


def _run_in_sweep(job: Job, session: SweepSession) -> float | None:
    """Run one job of a sweep, and note in its folder what it was and how it ended; another job's is left as it is.

    Whatever it fails of, the others are still wanted. It then has no objective, by which Optuna knows it as failed.
    """
    failure: Exception | None = None
    result: float | None = None
    try:
        if ranks.is_first():
            print(f"\n{_headed(job)}", flush=True)
        if job.in_search and job.goes_on and RunRecord(job.folder).job.get("state") == "failed":
            # Had it not failed, the search would have gone on in another way than its jobs did.
            print(f"Job {job.number} has failed before; the search has gone on without it.", flush=True)
            return None
        result = work(job)
        result = None if result is None or math.isnan(result) else result
    except Exception as error:
        known = isinstance(error, DkelError | OSError)
        failure = error
        if isinstance(error, OSError):
            with contextlib.suppress(OSError):
                failure = refusal(error, session.folder, KEY)
        session.failed.append(job.number)
        said = failure if known else traceback.format_exc()
        print(f"Error in job {job.number} of the sweep: {said}", file=sys.stderr)
    with contextlib.suppress(OSError):  # a full disk, as the job has said
        if not ranks.is_first() or (job.running and not job.folder.is_dir()):
            return result  # a folder that was moved away is not made anew
        if isinstance(failure, OtherJobError) or (failure and notes.is_of_other(job.folder, job.overrides)):
            session.refuse(job.number)
            return result
        notes.note(job.folder, job.overrides, "failed" if failure else "finished", failure, search=job.in_search)
    return result


def _headed(job: Job) -> str:
    """Say which of how many jobs it is, and what tells it from the others."""
    varied = job.invocation.varied
    count = job.own.sweeper.n_trials if job.in_search else math.prod(varied.values())
    own = ", ".join(item.lstrip("+") for item in job.overrides if split(item)[0] in varied)
    return f"[{int(job.number) + 1}/{count}] {own}".rstrip()


def work(job: Job) -> float | None:
    """Run the task of a job in its folder, or go on with what lies there; returns the objective of a sweep.

    A folder into which it has written nothing but its settings is given back where it fails or is interrupted.
    """
    try:
        with environment(FOLDER, os.environ.get(FOLDER)):  # it is of this job, and no later one's of this process
            return _work(job)
    except (KeyboardInterrupt, DkelError, OSError):
        release(job.folder, begun=job.begun)
        raise


@contextlib.contextmanager
def environment(name: str, value: str | None) -> Iterator[None]:
    """Set a variable of the environment for a while; None: leave it out."""
    before = os.environ.pop(name, None)
    os.environ.update({} if value is None else {name: value})
    try:
        yield
    finally:
        os.environ.pop(name, None)
        os.environ.update({} if before is None else {name: before})


def _work(job: Job) -> float | None:
    from dkel_lightning.app import tasks

    if job.values["resume"]:
        resume = Path(job.values["resume"])
        folder = folder_of(resume)
        values = saved_settings.resumed(folder, job.values, job.overrides)
        saved_settings.announce(folder, job.values, values)
        again = tuple(item.lstrip("+") for item in job.overrides if split(item)[0] != "resume")
        # A run that never came to a checkpoint begins anew, which gives what it would have given.
        done = tasks.run(Run(values, job.folder, None if resume.is_dir() else resume, again=again))
        if ranks.is_first():
            notes.note_finished(folder)
        return done
    shown = job.values["callbacks"]
    if job.session is not None and shown["progress"] == "auto" and not job.launched_by("BasicLauncher"):
        # One terminal has no room for the bars of several jobs.
        job.values["callbacks"] = {**shown, "progress": "lines"}
    if job.goes_on and (job.folder / SETTINGS).is_file():
        notes.refuse_other(job.folder, job.values)
        _note_running(job)
        objective = RunRecord(job.folder).objective
        if objective is None:
            return tasks.run(Run(job.values, job.folder, stages.last_checkpoint(job.folder)))
        print(f"Job {job.number} has finished before, in {job.folder}.", flush=True)
        return objective
    values = _with_checkpoint(job)
    plan = planned(values, job.overrides, job.invocation) if job.task.plans else None
    again = ("trust=true",) if saved_settings.foreign(values, {}) else ()
    if job.task.place is Place.OWN:
        _begin(job, Run(values, job.folder))
    _note_running(job)
    return tasks.run(Run(values, _claim_by_settings(job, values), again=again), plan)


def _note_running(job: Job) -> None:
    """Note in the folder of a sweep's job that it runs."""
    if job.session is not None and ranks.is_first():
        notes.note(job.folder, job.overrides, "running", search=job.in_search)
        job.running = True


def _with_checkpoint(job: Job) -> dict[str, Any]:
    """Take from the run of the checkpoint what it decides."""
    given, values = job.values["checkpoint"], job.values
    source: Path | None = None  # the folder whose config.yaml is laid under what was given
    if given and job.task.reads_checkpoint:
        path = Path(given)
        from dkel_lightning.export import formats

        if job.task.reads_exports and formats.is_exported(path):
            # An export says itself all that is known of it; a run around it has nothing to add.
            saved_settings.refuse_decided(saved_settings.explicit(job.overrides), "export")
        elif (source := run_folder(path)) is not None:
            values = saved_settings.of_checkpoint(saved_values(path), values, job.overrides, source)
    saved_settings.check_values(values, source)
    return values


def _begin(job: Job, run: Run) -> None:
    """Take a folder for this run alone, with its settings: before anything that takes time, or may be killed in it.

    Processes that Lightning starts for a run share the folder of the process that started them. Those that torchrun and
    srun start share the one that was named, and the first writes.
    """
    if ranks.is_one_of_several():
        job.folder = Path(os.environ.get(FOLDER, job.folder))
        if ranks.is_first() and not (job.folder / SETTINGS).exists():
            write_text(job.folder / SETTINGS, run.settings)
        return
    job.folder = begin(job.folder, run.settings)
    job.begun = True
    os.environ[FOLDER] = str(job.folder)


def _claim_by_settings(job: Job, values: Mapping[str, Any]) -> Path:
    """Take a folder for what a task makes of a checkpoint: the same settings replace it, others stay beside it.

    A folder that was named, and that of a sweep's job, are taken as they are. Of several processes only the first
    one writes.
    """
    owner = job.task.owner
    if owner is None or job.session is not None or not ranks.is_first():
        return job.folder
    beside = folder_beside(Path(values["checkpoint"]), job.task)
    if "hydra.run.dir" not in job.invocation.values or job.folder == beside:
        job.folder = claim(job.folder, json.dumps(registry.load(owner)(values)))
    return job.folder
