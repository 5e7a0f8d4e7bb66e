"""task=compare: several labels, each with several seeds, into one table; goes on where it was interrupted.

Several processes may be given the same comparison: each takes the next member that none of the others has.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import shlex
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dkel_lightning.app.compare import tables
from dkel_lightning.app.compare.plan import Comparison, Variant
from dkel_lightning.app.config.schema import Values
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.runs.groups import COMPARED
from dkel_lightning.app.runs.kinds import FAILED
from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.app.runs.settings import differences_of
from dkel_lightning.app.tasks import stages
from dkel_lightning.app.tasks.train import train
from dkel_lightning.errors import ConfigError, DkelError, FolderInUseError
from dkel_lightning.runtime import command_lines, locks
from dkel_lightning.runtime.atomic_files import text_of, write_text
from dkel_lightning.runtime.texts import printable
from dkel_lightning.studies import seed_statistics

MEASURED_EPOCHS = 3
_TURN = 300.0
"""Seconds to wait while other processes of the comparison write its tables."""


@dataclass(frozen=True)
class CompareResult:
    """What a comparison gave: its folder, and the outcome of each member by (label, seed)."""

    folder: Path
    outcomes: tables.Outcomes
    reference: str

    @property
    def objective(self) -> float:
        """The reference's mean test accuracy, selected by validation."""
        found = [run.figure(COMPARED) for (label, _), run in self.outcomes.items() if label == self.reference]
        values = [value for value in found if value is not None]
        return seed_statistics.sample(values).mean if values else math.nan


def compare(run: Run, comparison: Comparison) -> CompareResult:
    """Train every member that is not finished, and write the table after each.

    Raises:
        DkelError: the folder holds a run, or members of another configuration; or every member has failed.
    """
    if RunRecord(run.folder).setting("task.name") not in (None, "compare"):
        raise ConfigError(f"compare.folder={run.folder} holds a run, whose settings would be lost: give another.")
    _refuse_others(run.folder, comparison, comparison.members())
    with _alone(run.folder):
        run.describe()
    members = [*comparison.members()]
    again = shlex.quote(command_lines.override("compare.folder", run.folder))
    own: dict[tuple[str, int], RunRecord] = {}
    left = [*enumerate(members, 1)]
    try:
        # What another process is at is passed over, and looked at again in the end: a killed one lets go by then.
        for patience in (0.0, locks.PATIENCE):
            for position, (variant, seed) in left:
                print(f"\n[{position}/{len(members)}] {variant.label}, seed {seed}", flush=True)
                found = _member(run.folder, comparison, variant, seed, patience)
                if found is None:
                    continue
                own[variant.label, seed] = found
                with _alone(run.folder):
                    done = _outcomes(run.folder, members, own)
                    tables.write(run.folder, comparison, done, _notes(run, comparison), run.values["figures"]["also"])
            left = [(position, (v, seed)) for position, (v, seed) in left if (v.label, seed) not in own]
    except (KeyboardInterrupt, SystemExit):
        print(f"Interrupted. Go on with: {comparison.go_on} {again}", flush=True)
        raise
    outcomes = _outcomes(run.folder, members, own)
    tables.show(comparison, outcomes)
    failed = [record.failure for record in outcomes.values() if record.failure is not None]
    if failed and len(failed) == len(outcomes):
        raise DkelError(f"All {len(failed)} runs have failed, the first one so: {failed[0]}")
    print(f"Written to {run.folder}: compare.md, compare.csv, members.csv, figures/.")
    if left:
        print(f"Other processes train {len(left)} of the {len(members)}: the last to end writes the whole table.")
    if failed:
        print(f"{len(failed)} of {len(outcomes)} runs failed; the same with {again} tries again.")
    return CompareResult(run.folder, outcomes, comparison.reference)


def _alone(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the folder for as long as its own files are written, which is not what takes the time."""
    return locks.acquire_lock(folder / locks.CLAIM, _TURN)


def _outcomes(folder: Path, members: Sequence[tuple[Variant, int]], own: tables.Outcomes) -> tables.Outcomes:
    """Give what has ended so far: here, earlier, and by other processes."""
    records = {(v.label, seed): RunRecord(member_folder(folder, v.label, seed)) for v, seed in members}
    return {key: record if record.whole else own[key] for key, record in records.items() if record.whole or key in own}


# ---------------------------------------------------------------------- one member


def _member(folder: Path, comparison: Comparison, variant: Variant, seed: int, patience: float) -> RunRecord | None:
    """Train a member, or read what it gave; None where another process is at it."""
    try:
        with locks.acquire_lock(folder / variant.label / f".seed_{seed}", patience):
            return _trained(folder, comparison, variant, seed, last=patience > 0)
    except _ReferenceMissingError:
        print("looked at again in the end: its length follows from a run that has not ended", flush=True)
        return None
    except FolderInUseError:
        print("another process trains it", flush=True)
        return None


class _ReferenceMissingError(DkelError):
    """A label as long as the reference, of which no run has ended: another process may be at it."""


def _trained(folder: Path, comparison: Comparison, variant: Variant, seed: int, *, last: bool) -> RunRecord:
    where = member_folder(folder, variant.label, seed)
    failure = where / FAILED
    # Another process may have begun it since the start, of a command that differs.
    _refuse_others(folder, comparison, [(variant, seed)])
    try:
        if RunRecord(where).whole:
            print("finished before")
        else:
            _train(variant.values(seed, _epochs(folder, comparison, variant)), where)
        failure.unlink(missing_ok=True)
        found = RunRecord(where)
        assert found.whole
        return found
    except FolderInUseError:
        raise
    except Exception as error:  # whatever one member fails of, the others are still wanted
        if isinstance(error, _ReferenceMissingError) and not last:
            raise
        message = str(error).strip() or type(error).__name__
        write_text(failure, traceback.format_exc())
        print(f"Failed: {printable(message)}", flush=True)
        return RunRecord(where, failure=message)


def member_folder(folder: Path, label: str, seed: int) -> Path:
    """Return where a member is written."""
    return folder / label / f"seed_{seed}"


def _train(values: Values, where: Path) -> None:
    # What the member before left in reference cycles would count as this one's memory.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    resume = stages.last_checkpoint(where) if (where / "config.yaml").is_file() else None
    train(Run(values, where, resume=resume, part=True))


# ---------------------------------------------------------------------- the same compute


def _epochs(folder: Path, comparison: Comparison, variant: Variant) -> int | None:
    """Say how many epochs take as long as the reference's training; None for a label with a length of its own.

    Measured once for all seeds, and written down so that an interrupted comparison goes on with the same.
    """
    if not variant.same_compute:
        return None
    found = _written_epochs(folder, variant)
    if found is None:
        found = _measured(folder, comparison, variant)
        Run({}, folder / variant.label).write_json("compute.json", found)
    return int(found["epochs"])


def _written_epochs(folder: Path, variant: Variant) -> dict[str, Any] | None:
    path = folder / variant.label / "compute.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(text_of(path))
    return found


def _measured(folder: Path, comparison: Comparison, variant: Variant) -> dict[str, Any]:
    for seed in comparison.seeds:
        where = member_folder(folder, comparison.reference, seed)
        last, speed = RunRecord(where).last, _speed(where)
        if last is None or not last.epoch or not speed:
            continue
        own, epochs = _own_speed(folder, comparison, variant, seed), last.epoch
        return {
            "reference": comparison.reference,
            "seed": seed,
            "reference_epochs": epochs,
            "reference_images_per_second": speed,
            "images_per_second": own,
            "ratio": own / speed,
            "epochs": max(1, math.ceil(epochs * own / speed)),
        }
    raise _ReferenceMissingError(
        f"Its length follows from {comparison.reference}, of which no run has finished so far."
    )


def _own_speed(folder: Path, comparison: Comparison, variant: Variant, seed: int) -> float:
    """Take the speed of a member that differs in nothing but its length, or train a few epochs to measure it."""
    wanted = variant.values(seed)
    for other in comparison.variants:
        where = member_folder(folder, other.label, seed)
        if not other.same_compute and _speed(where) and other.values(seed) == wanted:
            break
    else:
        where = folder / variant.label / "measured"
        if not _speed(where):
            _train(variant.values(seed, min(MEASURED_EPOCHS, wanted["trainer"]["max_epochs"])), where)
    return _speed(where)


def _speed(where: Path) -> float:
    """Read the training images a second of a finished run; 0 where it says none."""
    found = RunRecord(where)
    return found.figure("images per second") or 0.0 if found.whole else 0.0


# ---------------------------------------------------------------------- going on, and saying what was done


def _refuse_others(folder: Path, comparison: Comparison, members: Iterable[tuple[Variant, int]]) -> None:
    """Refuse a folder with members of another configuration, before anything is trained.

    Raises:
        ConfigError: naming what differs.
    """
    mistakes = []
    for variant, seed in members:
        where = member_folder(folder, variant.label, seed)
        if not (where / "config.yaml").is_file():
            continue
        written = _written_epochs(folder, variant) if variant.same_compute else None
        if written and written["reference"] != comparison.reference:
            mistakes.append(f"{where} was trained as long as {written['reference']}, not {comparison.reference}.")
            continue
        wanted = variant.values(seed, written["epochs"] if written else None)
        if found := differences_of(where, wanted):
            mistakes.append(f"{where} was trained with other settings ({'; '.join(found)}).")
    if mistakes:
        raise ConfigError("\n".join([*mistakes, "Give the same settings, or another compare.folder."]))


def _notes(run: Run, comparison: Comparison) -> list[str]:
    values = run.values
    selection = "the test set itself" if values["data"]["selection"] == "paper" else "held-out training images"
    notes = [
        f"{values['data']['name']}, {values['backbone']['name']}, {values['trainer']['max_epochs']} epochs unless a "
        f"label says otherwise, seeds {', '.join(map(str, comparison.seeds))}; epoch and peer selected on {selection}."
    ]
    for variant in comparison.variants:
        found = _written_epochs(run.folder, variant) if variant.same_compute else None
        if found is not None:
            notes.append(
                f"{variant.label}: {found['epochs']} epochs take as long as the {found['reference_epochs']} of "
                f"{found['reference']}, by {found['images_per_second']:,.0f} against "
                f"{found['reference_images_per_second']:,.0f} training images a second, measured with seed "
                f"{found['seed']}."
            )
    return notes
