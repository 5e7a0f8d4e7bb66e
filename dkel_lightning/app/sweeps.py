"""The tables of a sweep, made from the folders of its jobs: what was varied, what came of it, over which seeds."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from scipy import stats

from dkel_lightning.app import figures
from dkel_lightning.app.compare.tables import DIFFERENCE_HEADING, Column, difference_row, markdown_rows, terminal_table
from dkel_lightning.app.loggers.metrics_file import write_whole
from dkel_lightning.app.runs.folder import read_summary, values_in
from dkel_lightning.app.tasks.compare import as_written, differences
from dkel_lightning.errors import NonFiniteError, OtherJobError
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.studies.seed_statistics import Paired, Sample, paired, sample, wilson

NOTE = "job.json"
SEARCH = "optimization_results.yaml"
"""What Optuna's sweeper writes at the end."""
OBJECTIVE = "selected validation accuracy"
SEED = "seed"
MEMBERS = {
    "student_mean": "students' mean",
    "student_ensemble": "students' ensemble",
    "ensemble": "ensemble classifier",
    "teacher_mean": "teachers' mean",
    "teacher_ensemble": "teachers' ensemble",
}
COMPARED = "selected deployed accuracy"
COLUMNS = (
    Column("last deployed accuracy", 100, 2, "%"),
    Column(COMPARED, 100, 2, "%"),
    Column(OBJECTIVE, 100, 2, "%"),
    Column("selected students' mean accuracy", 100, 2, "%"),
    Column("selected students' ensemble accuracy", 100, 2, "%"),
    Column("selected teachers' mean accuracy", 100, 2, "%"),
    Column("selected teachers' ensemble accuracy", 100, 2, "%"),
    Column("selected NLL", 1, 4),
    Column("selected calibration error", 100, 2, "%"),
    Column("selected peer disagreement", 100, 2, "%"),
    Column("selected teacher distance", 1, 3),
)
# Only where labels were made wrong.
NOISE_COLUMNS = tuple(
    Column(f"last {network}s' wrong labels learnt", 100, 2, "%") for network in ("student", "teacher")
)
SHOWN = ("last deployed accuracy", COMPARED, "selected peer disagreement", "selected NLL")
DRAWN = {
    COMPARED: ("test accuracy of the deployed peer (%)", 100.0),
    "selected students' ensemble accuracy": ("test accuracy of the students' mean probabilities (%)", 100.0),
    "selected peer disagreement": ("disagreement of the student peers (%)", 100.0),
    "selected NLL": ("negative log-likelihood, deployed peer (nats)", 1.0),
}
# Where trainings collapse, the likelihood of their last weights is without measure.
DRAWN_COLLAPSED = {
    **{name: panel for name, panel in DRAWN.items() if name != "selected NLL"},
    "last students' mean accuracy": ("mean test accuracy of the student peers, last epoch (%)", 100.0),
}
CURVES = {
    "val/acc/student_mean": "student peers,\nvalidation accuracy",
    "val/acc/teacher_mean": "teacher peers,\nvalidation accuracy",
    "diversity/distance/student-teacher": "distance of teacher\nand student",
    "diversity/agreement/student-teacher": "agreement of teacher\nand student",
    "diversity/agreement/student-student": "agreement of the\nstudent peers",
    "train/noise/fit_wrong/student_mean": "student peers, share of\nwrong labels learnt",
    "train/noise/fit_wrong/teacher_mean": "teacher peers, share of\nwrong labels learnt",
}
TABLED = (*CURVES, "diversity/agreement/teacher-teacher", "diversity/distance/student-student")
CHANCE_QUANTILE = 0.999

Setting = tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: its folder below that of the sweep.
        folder: where it wrote.
        overrides: every key that was set, with its value as it was written.
        state: `finished`, `failed`, or `unfinished` (running, or ended from outside).
        message: why it failed.
        figures: what it reached, by name; none unless it has finished, None for what it does not have.
        collapsed: whether its training collapsed, see `has_collapsed`; None where that is not known.
    """

    number: str
    folder: Path
    overrides: Mapping[str, str]
    state: str
    message: str
    figures: Mapping[str, float | None]
    collapsed: bool | None

    @property
    def seed(self) -> str:
        """The seed as it was written, empty where the sweep does not set it."""
        return self.overrides.get(SEED, "")


@dataclass(frozen=True)
class Sweep:
    """The jobs of a sweep, in their order, and the keys that set them apart, the seed aside."""

    folder: Path
    jobs: tuple[Job, ...]
    keys: tuple[str, ...]

    def setting(self, job: Job) -> Setting:
        """Give the values of the keys that vary."""
        return tuple(job.overrides.get(key, "") for key in self.keys)

    def settings(self) -> dict[Setting, list[Job]]:
        """Group the jobs by what was varied, in order of first appearance."""
        found: dict[Setting, list[Job]] = {}
        for job in self.jobs:
            found.setdefault(self.setting(job), []).append(job)
        return found

    def values(self, setting: Setting, name: str) -> dict[str, float]:
        """Give a figure of the jobs of a setting by seed (by number where the sweep sets none)."""
        found = {job.seed or job.number: job.figures.get(name) for job in self.settings()[setting]}
        return {seed: value for seed, value in found.items() if value is not None}


# ---------------------------------------------------------------------- what a job leaves behind


def note(folder: Path, overrides: Sequence[str], state: str, error: BaseException | None = None) -> None:
    """Note in a job's folder what it was and how it ended."""
    content = {"overrides": list(overrides), "state": state}
    if error is not None:
        content |= {"error": type(error).__name__, "message": str(error) or type(error).__name__}
    write_text(folder / NOTE, json.dumps(content, indent=2) + "\n")


def refuse_other(folder: Path, values: Mapping[str, Any]) -> None:
    """Refuse to go on with a job that was begun with other settings.

    Raises:
        OtherJobError: with the differences.
    """
    found = differences(values_in(folder), as_written(values))
    if found:
        raise OtherJobError(
            f"{folder} was trained with other settings ({'; '.join(found)}): "
            "give the same settings, or another hydra.sweep.dir."
        )


def is_of_other(folder: Path, overrides: Sequence[str]) -> bool:
    """Tell whether a job's folder holds the note of a job that was set otherwise."""
    noted = _json(folder / NOTE)
    return noted is not None and noted.get("overrides") != list(overrides)


def objective(folder: Path) -> float | None:
    """Read the objective of a finished job, as tasks.train gives it; None where it has not finished."""
    summary = read_summary(folder, ("deployed_accuracy",))
    if summary is None:
        return None
    chosen = summary["test"]["best"] or summary["test"]["last"]
    validation = chosen.get("validation_accuracy")
    return float(chosen["deployed_accuracy"] if validation is None else validation)


def has_failed(folder: Path) -> bool:
    """Tell whether a job has failed."""
    return (_json(folder / NOTE) or {}).get("state") == "failed"


def read(folder: Path) -> Sweep:
    """Read the jobs below the folder of a sweep, finished or not."""
    jobs = sorted((_job(path.parent, folder) for path in folder.rglob(NOTE)), key=_order)
    seen: dict[str, set[str]] = {}
    for key in dict.fromkeys(key for job in jobs for key in job.overrides):
        seen[key] = {job.overrides.get(key, "") for job in jobs}
    return Sweep(folder, tuple(jobs), tuple(key for key, found in seen.items() if len(found) > 1 and key != SEED))


def _order(job: Job) -> tuple[bool, int, str]:
    """Put numbered jobs in the order of their numbers, others after them."""
    number = job.number.partition("_")[0]
    return (not number.isdigit(), int(number) if number.isdigit() else 0, job.number)


def _job(folder: Path, sweep: Path) -> Job:
    noted = _json(folder / NOTE) or {}
    pairs = [str(item).lstrip("+").partition("=") for item in noted.get("overrides", ())]
    state = noted.get("state")
    # Of a job that has not finished, what lies there may be what another one reached.
    summary = read_summary(folder, ("deployed_accuracy",)) if state == "finished" else None
    found = {} if summary is None else _figures(summary)
    if found:
        found |= _diversity_at_the_end(folder / "metrics.csv")
    return Job(
        number=folder.relative_to(sweep).as_posix(),
        folder=folder,
        overrides={key: value.strip("'\"") for key, _, value in pairs},
        state=state if state in ("finished", "failed") else "unfinished",
        message=str(noted.get("message", "")),
        figures=found,
        collapsed=has_collapsed(noted, summary),
    )


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _figures(summary: Mapping[str, Any]) -> dict[str, float | None]:
    last = summary["test"]["last"]
    found: dict[str, float | None] = {}
    for when, scores in (("last", last), ("selected", summary["test"]["best"] or last)):
        deployed = scores["deployed"]
        found[f"{when} epoch"] = scores["epoch"]
        found[f"{when} deployed accuracy"] = scores["deployed_accuracy"]
        found[f"{when} validation accuracy"] = scores.get("validation_accuracy")
        found |= {f"{when} {name} accuracy": scores["accuracy"].get(member) for member, name in MEMBERS.items()}
        found[f"{when} NLL"] = scores["nll"].get(deployed)
        found[f"{when} calibration error"] = scores["calibration"].get(deployed)
        found[f"{when} peer disagreement"] = scores["disagreement"]
        found[f"{when} teacher distance"] = scores["distance"]
    return {**found, "seconds": summary["seconds"]}


def _diversity_at_the_end(path: Path) -> dict[str, float | None]:
    rows = curves(path)
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("diversity/"))
    found: dict[str, float | None] = {
        f"last {name}": next(row[name] for row in reversed(rows) if name in row) for name in names
    }
    for network, column in zip(("student", "teacher"), NOISE_COLUMNS, strict=True):
        learnt = [row[name] for row in rows if (name := f"train/noise/fit_wrong/{network}_mean") in row]
        if learnt:
            found[column.name] = learnt[-1]
    return found


def curves(path: Path) -> list[dict[str, float]]:
    """Read the rows of a metrics.csv, empty cells left out; none where there is no such file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, AttributeError):  # missing or damaged
        return []


def has_collapsed(noted: Mapping[str, Any], summary: Mapping[str, Any] | None) -> bool | None:
    """Tell whether a training collapsed, by its outcome; None where it has none.

    It has if its loss or weights became non-finite, or if after the last epoch the student peers' mean test accuracy
    is no better than chance: at most the 99.9 % quantile of guessing one of the classes on each image. One class that
    takes all predictions is the same on a test set of equal classes. How close teacher and student are plays no part.
    """
    if noted.get("error") == NonFiniteError.__name__:
        return True
    last = (summary or {"test": {"last": {}}})["test"]["last"]
    if not last.get("classes") or "student_mean" not in last["accuracy"]:
        return None
    guessed = stats.binom.ppf(CHANCE_QUANTILE, last["images"], 1 / last["classes"]) / last["images"]
    return bool(last["accuracy"]["student_mean"] <= guessed)


# ---------------------------------------------------------------------- over the seeds


def summary_of(sweep: Sweep, setting: Setting, name: str) -> Sample | None:
    """Summarise a figure of a setting over its seeds; None without any."""
    values = sweep.values(setting, name)
    return sample([*values.values()]) if values else None


def difference(sweep: Sweep, setting: Setting, reference: Setting) -> Paired | None:
    """Compare a setting with another over the seeds that both have; None where there are none."""
    own, other = sweep.values(setting, COMPARED), sweep.values(reference, COMPARED)
    seeds = [seed for seed in own if seed in other]
    return paired([own[seed] for seed in seeds], [other[seed] for seed in seeds]) if seeds else None


def collapses(jobs: Iterable[Job]) -> tuple[int, int]:
    """Count the jobs that collapsed, and those of which it is known whether they did."""
    known = [job.collapsed for job in jobs if job.collapsed is not None]
    return sum(known), len(known)


# ---------------------------------------------------------------------- files


def write(sweep: Sweep) -> list[str]:
    """Write sweep.csv, sweep.md, curves.csv and the figures into the folder of the sweep, and return their names."""
    write_whole(sweep.folder / "sweep.csv", _csv(sweep))
    write_text(sweep.folder / "sweep.md", "\n".join(_markdown(sweep)) + "\n")
    written = ["sweep.csv", "sweep.md"]
    if is_search(sweep):
        points = [([job.overrides.get(key, "") for key in sweep.keys], value) for job, value in best_first(sweep)]
        if points and sweep.keys:
            figures.draw_search(points, sweep.keys, sweep.folder / "figures" / "search.png")
            written.append("figures/search.png")
        return written
    drawn = {
        label: {
            setting: [scale * value for value in sweep.values(setting, name).values()] for setting in _finished(sweep)
        }
        for name, (label, scale) in (DRAWN_COLLAPSED if any(job.collapsed for job in sweep.jobs) else DRAWN).items()
    }
    drawn = {label: found for label, found in drawn.items() if any(found.values())}
    if drawn:
        figures.draw_sweep(drawn, sweep.keys, sweep.folder / "figures" / "sweep.png")
        written.append("figures/sweep.png")
    courses = [*_courses(sweep)]
    if courses:
        write_whole(sweep.folder / "curves.csv", courses)
        written.append("curves.csv")
    series = {label: mean_curves(sweep, name) for name, label in CURVES.items()}
    series = {label: found for label, found in series.items() if found}
    if series and len(sweep.keys) <= 3:
        figures.draw_sweep_curves(series, sweep.keys, sweep.folder / "figures" / "curves.png")
        written.append("figures/curves.png")
    return written


def is_search(sweep: Sweep) -> bool:
    """Tell whether a search chose the settings: each is then one of many, and their mean over seeds means nothing."""
    return (sweep.folder / SEARCH).is_file()


def best_first(sweep: Sweep) -> list[tuple[Job, float]]:
    """Give the finished jobs of a search with the validation accuracy that it maximises, in percent."""
    found = [(job, job.figures.get(OBJECTIVE)) for job in sweep.jobs]
    known = [(job, 100 * value) for job, value in found if value is not None]
    return sorted(known, key=lambda item: -item[1])


def _finished(sweep: Sweep) -> list[Setting]:
    return [setting for setting, jobs in sweep.settings().items() if any(job.figures for job in jobs)]


def mean_curves(sweep: Sweep, name: str) -> dict[Setting, tuple[list[float], list[float]]]:
    """Average a column of metrics.csv over the jobs of each setting, at the epochs that all of them have."""
    found = {}
    for setting, jobs in sweep.settings().items():
        read_in = [
            {
                row["epoch"] + 1: row[name]
                for row in curves(job.folder / "metrics.csv")
                if name in row and "epoch" in row
            }
            for job in jobs
            if job.figures
        ]
        epochs = sorted(set.intersection(*map(set, read_in))) if read_in else []
        if epochs:
            found[setting] = (epochs, [sum(one[epoch] for one in read_in) / len(read_in) for epoch in epochs])
    return found


def _courses(sweep: Sweep) -> Iterator[list[str]]:
    """Write the course of each job: a row an epoch, under a heading; nothing where there is none."""
    rows = [(job, row) for job in sweep.jobs for row in curves(job.folder / "metrics.csv") if "epoch" in row]
    names = [name for name in TABLED if any(name in row for _, row in rows)]
    if names:
        yield ["job", *sweep.keys, SEED, "epoch", *names]
    for job, row in rows:
        if any(name in row for name in names):
            cells = [f"{row[name]:.6g}" if name in row else "" for name in names]
            yield [job.number, *sweep.setting(job), job.seed, str(int(row["epoch"]) + 1), *cells]


def _csv(sweep: Sweep) -> list[list[str]]:
    names = [*dict.fromkeys(name for job in sweep.jobs for name in job.figures)]
    lines = [["job", *sweep.keys, SEED, "state", "collapsed", *names, "message"]]
    for job in sweep.jobs:
        values = [job.figures.get(name) for name in names]
        cells = ["" if value is None else repr(value) for value in (job.collapsed, *values)]
        message = " ".join(job.message.split())
        lines.append([job.number, *sweep.setting(job), job.seed, job.state, *cells, message])
    return lines


def _markdown(sweep: Sweep) -> list[str]:
    states = [job.state for job in sweep.jobs]
    lines = ["# Sweep", "", f"{len(states)} jobs: {', '.join(_counted(states))}. Mean ± sample deviation over n seeds."]
    constant = [f"`{key}={value}`" for key, value in _constant(sweep).items()]
    if constant:
        lines += ["", f"In all jobs: {', '.join(constant)}."]
    failures = [job for job in sweep.jobs if job.state == "failed"]
    lines += [
        "",
        *(f"- Job {job.number} ({_named(sweep, job)}) failed: {_first_line(job.message)}" for job in failures),
    ]
    if is_search(sweep):
        return [*lines, "", *_search_lines(sweep)]
    noisy = [column for column in NOISE_COLUMNS if any(column.name in job.figures for job in sweep.jobs)]
    columns = (*COLUMNS, *noisy)
    heading = [*(sweep.keys or ("setting",)), "n", *(column.heading for column in columns)]
    lines += ["", *markdown_rows(heading, _cells(sweep, columns))]
    settings = _finished(sweep)
    if len(settings) > 1:
        lines += ["", f"## {COMPARED.capitalize()} less that of {_label(sweep, settings[0])}, over the same seeds", ""]
        lines += markdown_rows(DIFFERENCE_HEADING, _difference_rows(sweep, settings))
    if any(job.collapsed for job in sweep.jobs):
        lines += ["", "## Collapsed by its outcome: non-finite, or at chance after the last epoch", ""]
        lines += markdown_rows(["label", "collapsed", "of", "share", "95 % Wilson interval"], _collapse_rows(sweep))
    return lines


def _search_lines(sweep: Sweep) -> list[str]:
    rows = []
    for job, value in best_first(sweep):
        test = job.figures.get(COMPARED)
        values = map(short, sweep.setting(job))
        rows.append([job.number, *values, f"{value:.2f}", "n/a" if test is None else f"{100 * test:.2f}"])
    return [
        "## Search, best first",
        "",
        "Chosen by the accuracy in validation. The highest of many is too high by luck; the test accuracy is not what "
        "was searched for.",
        "",
        *markdown_rows(["job", *sweep.keys, "validation accuracy (%)", "test accuracy (%)"], rows),
    ]


def short(value: str) -> str:
    """Shorten a number of many digits, as a search proposes them."""
    try:
        return value if len(value) <= 8 else f"{float(value):.4g}"
    except ValueError:
        return value


def _constant(sweep: Sweep) -> dict[str, str]:
    first = sweep.jobs[0].overrides if sweep.jobs else {}
    return {key: value for key, value in first.items() if key not in (*sweep.keys, SEED)}


def _counted(states: Sequence[str]) -> list[str]:
    return [f"{states.count(state)} {state}" for state in ("finished", "failed", "unfinished") if state in states]


def _first_line(message: str) -> str:
    return (message.splitlines() or [""])[0]


def _named(sweep: Sweep, job: Job) -> str:
    seed = [f"seed={job.seed}"] if job.seed else []
    return ", ".join([*(f"{key}={value}" for key, value in zip(sweep.keys, sweep.setting(job), strict=True)), *seed])


def _label(sweep: Sweep, setting: Setting) -> str:
    return ", ".join(f"{key}={value}" for key, value in zip(sweep.keys, setting, strict=True)) or "all"


def _cells(sweep: Sweep, columns: Sequence[Column]) -> list[list[str]]:
    rows = []
    for setting in sweep.settings():
        number = str(len(sweep.values(setting, COMPARED)))
        cells = [column.cell(summary_of(sweep, setting, column.name)) for column in columns]
        rows.append([*(setting or ("all",)), number, *cells])
    return rows


def _difference_rows(sweep: Sweep, settings: Sequence[Setting]) -> list[list[str]]:
    return [difference_row(_label(sweep, s), difference(sweep, s, settings[0])) for s in settings[1:]]


def _collapse_rows(sweep: Sweep) -> list[list[str]]:
    rows = []
    for setting, jobs in sweep.settings().items():
        count, known = collapses(jobs)
        cells = ["n/a", "n/a"]
        if known:
            low, high = wilson(count, known)
            cells = [f"{100 * count / known:.0f} %", f"{100 * low:.0f} to {100 * high:.0f} %"]
        rows.append([_label(sweep, setting), str(count), str(known), *cells])
    return rows


def show(sweep: Sweep, console: Console | None = None) -> None:
    """Print the main columns, a row a setting."""
    # Without a terminal rich takes 80 columns, too few for the table.
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    if is_search(sweep):
        rows = [[job.number, *map(short, sweep.setting(job)), f"{value:.2f}"] for job, value in best_first(sweep)[:10]]
        heading = ["job", *sweep.keys, "validation accuracy (%)"]
        console.print(terminal_table("The best of the search", heading, rows))
        return
    columns = [column for column in COLUMNS if column.name in SHOWN]
    headings = [*(sweep.keys or ("setting",)), "n", *(column.heading for column in columns)]
    console.print(terminal_table("Mean ± deviation over seeds", headings, _cells(sweep, columns)))
