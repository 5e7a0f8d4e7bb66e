"""The files of a run, read into records. What is missing or damaged becomes a sentence, never an error."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dkel_lightning.app.config.aliases import has_aliases
from dkel_lightning.app.config.schema import Values

LARGEST = 64 * 2**20
"""Bytes above which a file is not read: none of ours comes near."""
LISTED = 200
CONFUSION = "confusion.csv"
IGNORED: tuple[str, ...] = ("resume", "trust", "checkpoint", "logger", "callbacks.progress", "task", "modules")
IGNORED += ("data.root", "data.download", "data.workers", "data.mean", "data.std", "data.cache_dir")
"""Keys that do not set one job of a sweep apart from another."""


@dataclass(frozen=True)
class Curve:
    """One column of metrics.csv: values over epochs that count from 1."""

    epochs: Sequence[float]
    values: Sequence[float]

    @property
    def first_non_finite(self) -> float | None:
        """Epoch of the first value that is NaN or infinite."""
        return next((e for e, v in zip(self.epochs, self.values, strict=True) if not math.isfinite(v)), None)


@dataclass(frozen=True)
class Test:
    """One test of one checkpoint; what summary.json does not say is None or empty.

    Attributes:
        accuracy: by member, in [0, 1]; likewise nll, in nats, and calibration, the expected calibration error.
    """

    accuracy: Mapping[str, float]
    nll: Mapping[str, float]
    calibration: Mapping[str, float]
    deployed: str | None
    deployed_accuracy: float | None
    epoch: int | None
    images: int | None
    validated: bool
    disagreement: float | None
    distance: float | None


@dataclass(frozen=True)
class File:
    """A file of the folder, by its path in it."""

    path: Path
    size: int


@dataclass(frozen=True)
class Confusion:
    """How often images of each class (rows of `counts`) were given each class (columns)."""

    names: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class RunRecord:
    """Everything a run's folder says.

    Attributes:
        name: how a page calls it.
        config: the settings, empty where they cannot be read; `config_text` is the file as it stands.
        problems: what is missing or damaged, one sentence each.
        collapse: what collapse.json says, None where there is none.
        failure: why it failed, by failed.txt of a comparison or job.json of a sweep.
        overrides: of a job of a sweep, what was set on the command line; None where it is not known.
    """

    folder: Path
    name: str
    config: Values = field(default_factory=dict)
    config_text: str = ""
    summary: Values = field(default_factory=dict)
    provenance: Values = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    last: Test | None = None
    best: Test | None = None
    problems: Sequence[str] = ()
    collapse: Any = None
    failure: str | None = None
    overrides: Mapping[str, str] | None = None
    confusion: Confusion | None = None

    @property
    def finished(self) -> bool:
        """Whether it was tested, which comes last."""
        return self.last is not None

    @property
    def selected(self) -> Test | None:
        """The test of the epoch that validation chose, else of the last one."""
        return self.best or self.last

    @property
    def epochs_done(self) -> int:
        """Epochs that metrics.csv knows."""
        return int(max((curve.epochs[-1] for curve in self.curves.values() if curve.epochs), default=0))

    def setting(self, key: str) -> Any:
        """Return a setting by its dotted key, None if it is not there."""
        return dig(self.config, *key.split("."))


# ---------------------------------------------------------------------- reading


def read_run(folder: Path, name: str | None = None) -> RunRecord:
    """Read a run's folder, whatever state it is in."""
    problems: list[str] = []
    config, text = _yaml(folder / "config.yaml", problems)
    summary = _json(folder / "summary.json", problems, "the run has not finished, so nothing was tested")
    provenance = _json(folder / "provenance.json", problems, "versions and device are not known")
    collapse = _parsed(folder / "collapse.json", problems, None)
    job = _json(folder / "job.json", problems, None)
    last, best = (_test(dig(summary, "test", which)) for which in ("last", "best"))
    confusion = _confusion(folder / CONFUSION, problems)
    for file in sorted((folder / "loggers").glob("*.json")):
        missing = dig(_parsed(file, problems, None), "missing")
        if missing is not None:
            problems.append(f"The logger {file.stem} lacks some of this run: {missing}.")
    if summary and last is None:
        problems.append("summary.json holds no test of the last epoch: it is of another version, or damaged.")
    return RunRecord(
        folder=folder,
        name=name or folder.name,
        config=config,
        config_text=text,
        summary=summary,
        provenance=provenance,
        curves=_curves(folder / "metrics.csv", problems),
        last=last,
        best=best,
        problems=tuple(problems),
        collapse=collapse or None,
        failure=_last_line(folder / "failed.txt") or _failed_job(job),
        overrides=_overrides(folder, job),
        confusion=confusion,
    )


def text_of(path: Path, problems: list[str] | None = None, missing: str | None = None) -> str | None:
    """Read a text file, None where it cannot be; says why in `problems`, and of a missing one only `missing`."""
    problems = [] if problems is None else problems
    if not path.is_file():  # also a pipe, which would never end
        if missing is not None:
            problems.append(f"No {path.name}: {missing}.")
        return None
    try:
        if path.stat().st_size > LARGEST:
            problems.append(f"{path.name} is larger than {LARGEST // 2**20} MiB and was not read.")
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({error.strerror}).")
        return None


def _failed_job(job: Values) -> str | None:
    return _first_line(str(job.get("message") or "no reason was noted")) if job.get("state") == "failed" else None


def _overrides(folder: Path, job: Values) -> dict[str, str] | None:
    """Read a job's overrides: from job.json, or from where Hydra writes them when told to (hydra.output_subdir)."""
    given = job.get("overrides")
    if not isinstance(given, list):
        text = text_of(folder / ".hydra" / "overrides.yaml")
        given = None if text is None else [line[2:].strip() for line in text.splitlines() if line.startswith("- ")]
    if given is None:
        return None
    pairs = [str(item).strip("'\"").lstrip("+").partition("=") for item in given]
    return {key: value.strip("'\"") for key, _, value in pairs}


def _json(path: Path, problems: list[str], missing: str | None) -> Values:
    found = _parsed(path, problems, missing)
    if found is None or isinstance(found, dict):
        return found or {}
    problems.append(f"{path.name} is damaged (it holds no mapping).")
    return {}


def _parsed(path: Path, problems: list[str], missing: str | None) -> Any:
    """Parse a JSON file; None where there is none, or none that can be read."""
    text = text_of(path, problems, missing)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.name} is damaged ({error}).")
        return None
    if found is None:
        problems.append(f"{path.name} is damaged (it holds nothing).")
    return found


def _yaml(path: Path, problems: list[str]) -> tuple[Values, str]:
    text = text_of(path, problems, "the settings of the run are not known")
    if text is None:
        return {}, ""
    try:
        if has_aliases(text):
            problems.append(f"{path.name} was not read: it uses YAML aliases, which no run writes.")
            return {}, text
        found = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except Exception as error:  # YAML and OmegaConf fail in many ways; all mean the same here
        problems.append(f"{path.name} is damaged ({_first_line(str(error))}).")
        return {}, text
    if not isinstance(found, dict) or list(found.values()) == [None]:
        problems.append(f"{path.name} is damaged (it holds no settings).")
        return {}, text
    return {str(key): value for key, value in found.items()}, text


def _curves(path: Path, problems: list[str]) -> dict[str, Curve]:
    text = text_of(path, problems, "there are no curves")
    if text is None:
        return {}
    found: dict[str, tuple[list[float], list[float]]] = {}
    bad = 0
    try:
        for row in csv.DictReader(text.splitlines(), strict=False):
            epoch = number(row.get("epoch"))
            cells = {name: cell for name, cell in row.items() if name not in (None, "", "epoch", "step")}
            if epoch is None or not math.isfinite(epoch):
                bad += 1
                continue
            for name, cell in cells.items():
                if cell in (None, ""):
                    continue
                value = number(cell)
                if value is None:
                    bad += 1
                    continue
                epochs, values = found.setdefault(name, ([], []))
                epochs.append(epoch + 1)
                values.append(value)
    except csv.Error as error:
        problems.append(f"metrics.csv is damaged ({error}); what stands before is drawn.")
    if bad:
        problems.append(f"metrics.csv is damaged: {bad} rows or cells hold no number and are left out.")
    elif not found:
        problems.append("metrics.csv is empty: no epoch has ended.")
    return {name: Curve(epochs, values) for name, (epochs, values) in found.items()}


def _confusion(path: Path, problems: list[str]) -> Confusion | None:
    text = text_of(path, problems)
    if text is None:
        return None
    try:
        heading, *rows = csv.reader(text.splitlines())
        counts = [[int(cell) for cell in row[1:]] for row in rows]
        square = all(len(row) == len(heading) - 1 == len(counts) for row in counts)
        if counts and square and all(0 <= count < 2**63 for row in counts for count in row):
            return Confusion(heading[1:], counts)
    except (csv.Error, ValueError):
        pass
    problems.append(f"{path.name} is damaged: it is no table of counts.")
    return None


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV table into rows; empty where it cannot be read."""
    text = text_of(path)
    if text is None:
        return []
    try:
        rows = csv.DictReader(text.splitlines())
        return [{str(name): str(cell or "") for name, cell in row.items() if name is not None} for row in rows]
    except csv.Error:
        return []


def _last_line(path: Path) -> str | None:
    text = text_of(path)
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1] if lines else None


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["unreadable"])[0]


def _test(found: Any) -> Test | None:
    if not isinstance(found, dict):
        return None
    accuracy = _numbers(found.get("accuracy"))
    deployed = found.get("deployed") if isinstance(found.get("deployed"), str) else None
    own = number(found.get("deployed_accuracy"))
    epoch, images = number(found.get("epoch")), number(found.get("images"))
    if not accuracy and own is None:
        return None
    return Test(
        accuracy=accuracy,
        nll=_numbers(found.get("nll")),
        calibration=_numbers(found.get("calibration")),
        deployed=deployed,
        deployed_accuracy=own,
        epoch=None if epoch is None or not math.isfinite(epoch) else int(epoch),
        images=None if images is None or not math.isfinite(images) else int(images),
        validated=found.get("validated") is not False,
        disagreement=number(found.get("disagreement")),
        distance=number(found.get("distance")),
    )


def _numbers(found: Any) -> dict[str, float]:
    if not isinstance(found, dict):
        return {}
    read = {str(name): number(value) for name, value in found.items()}
    return {name: value for name, value in read.items() if value is not None}


def number(value: Any) -> float | None:
    """Read a number, also NaN and infinity; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def dig(found: Any, *keys: str) -> Any:
    """Follow keys into nested mappings, None where one is missing."""
    for key in keys:
        if not isinstance(found, Mapping):
            return None
        found = found.get(key)
    return found


def list_files(folder: Path, depth: int = 2) -> list[File]:
    """List the files of a folder, hidden ones and reports aside, at most `LISTED`; figures at any depth."""
    found: list[File] = []

    def walk(where: Path, left: int) -> None:
        try:
            entries = sorted(where.iterdir(), key=lambda path: (path.is_dir(), path.name))
        except OSError:
            return
        for path in entries:
            if path.name.startswith(".") or path.name == "report.html" or len(found) >= LISTED:
                continue
            if path.is_file():
                found.append(File(path.relative_to(folder), path.stat().st_size))
            elif path.is_dir() and (left > 1 or path.name == "figures") and not path.is_symlink():
                walk(path, left - 1)

    walk(folder, depth)
    return found


# ---------------------------------------------------------------------- what sets runs apart


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk the leaves of nested mappings by dotted key."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{path}.")
        else:
            yield path, value


@dataclass(frozen=True)
class Varied:
    """What sets the jobs of a sweep apart, seeds aside.

    Attributes:
        keys: the fewest keys, in order, that tell all settings apart.
        following: keys that differ too, each a function of `keys` in these jobs.
        values: by job, the values of `keys`.
    """

    keys: Sequence[str]
    following: Sequence[str]
    values: Sequence[tuple[Any, ...]]


def varied(configs: Sequence[Values], named: Sequence[str] = ()) -> Varied:
    """Find what sets configurations apart; keys or groups in `named` are preferred as the cause.

    A key is kept only if the keys before it leave a difference that it explains: `method=dkel,pcl` changes many keys,
    and is reported as `method.name`.
    """
    flattened = [dict(flat(config)) for config in configs]
    every = dict.fromkeys(key for one in flattened for key in one)
    differing = [key for key in every if sets_apart(key) and _differs(key, flattened)]
    ordered = sorted(differing, key=lambda key: _priority(key, named))
    kept: list[str] = []
    for key in ordered:
        if not _follows(key, kept, flattened):
            kept.append(key)
    values = [tuple(one.get(key) for key in kept) for one in flattened]
    return Varied(kept, [key for key in differing if key not in kept], values)


def is_seed(key: str) -> bool:
    """Whether runs that differ in this key alone repeat one another."""
    last = key.rsplit(".", 1)[-1]
    return last == "seed" or last.endswith("_seed")


def sets_apart(key: str) -> bool:
    """Whether a key can make jobs differ in what they compute, repetitions aside."""
    return not is_seed(key) and not any(key == one or key.startswith(f"{one}.") for one in IGNORED)


def _differs(key: str, flattened: Sequence[Values]) -> bool:
    return len({repr(one.get(key)) for one in flattened}) > 1


def _priority(key: str, named: Sequence[str]) -> int:
    if key in named or key.removesuffix(".name") in named:
        return 0
    if any(key.startswith(f"{name}.") for name in named):
        return 1
    return 2 if key == "name" or key.endswith(".name") else 3


def _follows(key: str, kept: Sequence[str], flattened: Sequence[Values]) -> bool:
    seen: dict[tuple[str, ...], str] = {}
    return all(
        seen.setdefault(tuple(repr(one.get(k)) for k in kept), repr(one.get(key))) == repr(one.get(key))
        for one in flattened
    )


def swept_keys(sweep: Path) -> list[str]:
    """Read from multirun.yaml which keys or groups got several values; empty where it does not say."""
    config, _ = _yaml(sweep / "multirun.yaml", [])
    given = dig(config, "hydra", "overrides", "task")
    params = dig(config, "hydra", "sweeper", "params")
    found = [str(key) for key in params] if isinstance(params, Mapping) else []
    for item in given if isinstance(given, list) else []:
        key, _, value = str(item).partition("=")
        opened = value.startswith(("choice(", "range(", "interval(", "glob("))
        if opened or ("," in value and not value.startswith(("[", "{", "'", '"'))):
            found.append(key.lstrip("+"))
    return found


def grouped(runs: Sequence[RunRecord], key: Callable[[int], tuple[Any, ...]]) -> dict[tuple[str, ...], list[int]]:
    """Group the positions of runs by what `key` gives, in order of first appearance."""
    found: dict[tuple[str, ...], list[int]] = {}
    for position in range(len(runs)):
        found.setdefault(tuple(map(show, key(position))), []).append(position)
    return found


def show(value: Any) -> str:
    """Write a setting as YAML would."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return json.dumps(value, default=str) if isinstance(value, list | Mapping) else str(value)
