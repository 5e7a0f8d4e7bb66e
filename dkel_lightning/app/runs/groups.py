"""Runs side by side: the settings of a sweep, or the labels of a comparison, each over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dkel_lightning.app.runs import kinds
from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.errors import NonFiniteError
from dkel_lightning.studies.seed_statistics import Paired, Sample, chance_bound, paired, sample

COMPARED = "selected deployed accuracy"
"""The figure by which groups are compared: the deployed network's test accuracy at the epoch that validation chose."""
SEED = "seed"


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
        name: how tables and charts call it.
        values: of the keys that were varied; of a comparison its label.
        runs: by seed.
    """

    name: str
    values: tuple[str, ...]
    runs: Mapping[str, RunRecord]

    def figures(self, name: str) -> dict[str, float]:
        """Give a figure of the runs that have it, by seed."""
        found = {seed: run.figure(name) for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def sample(self, name: str) -> Sample | None:
        """Summarise a figure over the seeds; None without any."""
        values = [*self.figures(name).values()]
        return sample(values) if values else None

    def less(self, other: Group, name: str = COMPARED) -> Paired | None:
        """Compare with another group over the seeds that both have; None where there are none."""
        own, its = self.figures(name), other.figures(name)
        seeds = [seed for seed in own if seed in its]
        return paired([own[seed] for seed in seeds], [its[seed] for seed in seeds]) if seeds else None

    def curve(self, name: str) -> tuple[list[float], list[list[float]]] | None:
        """Give a column of metrics.csv of each finished run, at the epochs that all of them have; None without any."""
        empty = dict[float, float]()
        curves = [run.curves.get(name) for run in self.runs.values() if run.figures]
        courses = [empty if c is None else dict(zip(c.epochs, c.values, strict=True)) for c in curves]
        epochs = sorted(set.intersection(*map(set, courses))) if courses else []
        return (epochs, [[one[e] for e in epochs] for one in courses]) if epochs else None

    @property
    def collapses(self) -> tuple[int, int]:
        """Count the runs that collapsed, and those of which it is known whether they did."""
        known = [found for run in self.runs.values() if (found := has_collapsed(run)) is not None]
        return sum(known), len(known)


@dataclass(frozen=True)
class Sweep:
    """The jobs of a sweep, in their order, and what sets them apart.

    Attributes:
        keys: that vary, seeds aside.
        seeds: keys of further seeds that vary, which repeat a setting as `seed` does.
    """

    folder: Path
    jobs: tuple[RunRecord, ...]
    keys: tuple[str, ...]
    seeds: tuple[str, ...] = ()

    def setting(self, job: RunRecord) -> tuple[str, ...]:
        """Give the values of the keys that vary."""
        given = _given(job)
        return tuple(given.get(key, "") for key in self.keys)

    @property
    def varied(self) -> tuple[str, ...]:
        """All that tells jobs apart: the keys, and the seeds behind them."""
        return (*self.keys, *self.seeds, SEED)

    @property
    def constant(self) -> list[str]:
        """The overrides that all jobs share."""
        first = _given(self.jobs[0]) if self.jobs else {}
        return [f"{key}={value}" for key, value in first.items() if key not in self.varied]

    def name(self, setting: Sequence[str], without: int | None = None) -> str:
        """Name a setting as on the command line, by the last parts of its keys where these are told apart."""
        last = [key.rsplit(".", 1)[-1] for key in self.keys]
        brief = [one if last.count(one) == 1 else key for one, key in zip(last, self.keys, strict=True)]
        return ", ".join(f"{brief[i]}={value}" for i, value in enumerate(setting) if i != without)

    @cached_property
    def groups(self) -> list[Group]:
        """The jobs by what was varied, in order of first appearance."""
        found: dict[tuple[str, ...], dict[str, RunRecord]] = {}
        for job in self.jobs:
            same = found.setdefault(self.setting(job), {})
            others = [f"{key}={_given(job).get(key, '')}" for key in self.seeds]
            seed = ", ".join([job.seed or job.name, *others])
            same[seed if seed not in same else f"{seed}, job {job.name}"] = job
        return [Group(self.name(setting) or "all", setting, runs) for setting, runs in found.items()]

    @property
    def finished(self) -> list[Group]:
        """The settings of which a job has finished."""
        return [group for group in self.groups if any(job.figures for job in group.runs.values())]

    @cached_property
    def best(self) -> Group | None:
        """The setting with the highest mean, None where nothing finished."""
        means = [(found.mean, group) for group in self.groups if (found := group.sample(COMPARED)) is not None]
        return max(means, key=lambda item: item[0])[1] if means else None


def read_sweep(folder: Path) -> Sweep:
    """Read the jobs below the folder of a sweep, whatever state they are in."""
    jobs = [RunRecord(path, path.relative_to(folder).as_posix()) for path in kinds.jobs(folder)]
    given = [_given(job) for job in jobs]
    every = dict.fromkeys(key for one in given for key in one)
    varied = [key for key in every if len({one.get(key, "") for one in given}) > 1]
    keys = tuple(key for key in varied if not is_seed(key))
    return Sweep(folder, tuple(jobs), keys, tuple(key for key in varied if is_seed(key) and key != SEED))


def _given(job: RunRecord) -> Mapping[str, str]:
    """Give what a job was set to; one that has noted nothing is a setting by itself."""
    return {"job": job.name} if job.overrides is None else job.overrides


def is_seed(key: str) -> bool:
    """Whether runs that differ in this key alone repeat one another."""
    last = key.rsplit(".", 1)[-1]
    return last == SEED or last.endswith("_seed")


def has_collapsed(run: RunRecord) -> bool | None:
    """Tell whether a training collapsed, by its outcome; None where it has none.

    It has if its loss or weights became non-finite, or if after the last epoch the student peers' mean test accuracy
    is no better than chance: at most the 99.9 % quantile of guessing one of the classes on each image. One class that
    takes all predictions is the same on a test set of equal classes. How close teacher and student are plays no part.
    """
    if run.job.get("error") == NonFiniteError.__name__:
        return True
    last = run.last if run.figures else None
    if last is None or not last.classes or not last.images or "student_mean" not in last.accuracy:
        return None
    return last.accuracy["student_mean"] <= chance_bound(1 / last.classes, last.images)
