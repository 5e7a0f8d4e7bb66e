"""What the folder of a run says: one reader for the command line, sweeps, comparisons and pages.

What is missing or damaged becomes a sentence, never an error. Imports neither torch nor Lightning.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dkel_lightning.app.config.schema import Values
from dkel_lightning.app.runs.kinds import FAILED, NOTE
from dkel_lightning.app.runs.parsing import (
    Confusion,
    Curve,
    number,
    parse_confusion,
    parse_curves,
    parse_settings,
    read_text,
)
from dkel_lightning.runtime.texts import first_line
from dkel_lightning.settings.declarations import at

CONFUSION, EVALUATION = "confusion.csv", "evaluation.json"
MEMBERS = {
    "student_mean": "students' mean",
    "student_ensemble": "students' ensemble",
    "ensemble": "ensemble classifier",
    "teacher_mean": "teachers' mean",
    "teacher_ensemble": "teachers' ensemble",
}
"""The networks whose accuracies are figures of a run, and what the figures call them."""
MEMORY_OF = {"gpu": "tensors on the GPU", "process": "resident set of the process"}
"""What the peak of the memory was measured of."""
WRONG_LABELS = {
    f"last {kind}s' wrong labels learnt": f"train/noise/fit_wrong/{kind}_mean" for kind in ("student", "teacher")
}
"""Figures and columns of metrics.csv that are there only where labels were made wrong."""
_EVERY_TEST = ("deployed", "deployed_accuracy", "accuracy", "nll", "calibration", "epoch")

State = Literal["finished", "failed", "unfinished"]


@dataclass(frozen=True)
class Test:
    """One test of one checkpoint, as summary.json holds it; what a file does not say is None, 0 or empty.

    Attributes:
        epoch: epochs trained when the checkpoint was written.
        images: test images it was tested on, all processes together.
        classes: classes that these have.
        validated: whether a validation has chosen the best peers.
        was_chosen: whether it chose the deployed one too, rather than the user or the method.
        deployed: the member that is deployed.
        deployed_accuracy: of that.
        validation_accuracy: of that, in the validation before this checkpoint; None without one.
        passed_over: the `network` that the method itself would have deployed, and its `validation_accuracy`; None where
            that is the deployed one.
        accuracy: by member (student_0, ..., student_mean, student_best, ensemble, teacher_0, ...), in [0, 1].
        nll: negative log-likelihood by member, in nats.
        calibration: expected calibration error by member, in 15 bins.
        disagreement: share of samples on which two student peers differ, mean over pairs; None with a single peer.
        distance: `||theta_t - theta_s|| / ||theta_s||`; None without a teacher of the student's form.
    """

    deployed_accuracy: float
    accuracy: Mapping[str, float]
    nll: Mapping[str, float]
    calibration: Mapping[str, float]
    epoch: int = 0
    images: int = 0
    classes: int = 0
    validated: bool = True
    was_chosen: bool = True
    deployed: str = ""
    validation_accuracy: float | None = None
    passed_over: Mapping[str, Any] | None = None
    disagreement: float | None = None
    distance: float | None = None

    @property
    def objective(self) -> float:
        """What a search maximises: the deployed network's accuracy in validation, in the test where there was none."""
        return self.deployed_accuracy if self.validation_accuracy is None else self.validation_accuracy

    @property
    def without_number(self) -> list[str]:
        """Name the networks whose likelihood or calibration is not finite: their outputs overflow."""
        values = (self.nll, self.calibration)
        return [name for name in self.accuracy if not all(math.isfinite(each.get(name, 0.0)) for each in values)]

    def figures(self) -> dict[str, float | None]:
        """Give what is tabled of it, by name."""
        return {
            "epoch": self.epoch or None,
            "deployed accuracy": self.deployed_accuracy,
            "validation accuracy": self.validation_accuracy,
            **{f"{name} accuracy": self.accuracy.get(member) for member, name in MEMBERS.items()},
            "NLL": self.nll.get(self.deployed),
            "calibration error": self.calibration.get(self.deployed),
            "peer disagreement": self.disagreement,
            "teacher distance": self.distance,
        }

    def logged(self, prefix: str) -> dict[str, float]:
        """Give all scores by names as they are logged: `<prefix>/acc`, `<prefix>/acc/teacher_0`, ..."""
        found = {f"{prefix}/acc": self.deployed_accuracy, f"{prefix}/epoch": float(self.epoch)}
        for kind, scores in (("acc", self.accuracy), ("nll", self.nll), ("ece", self.calibration)):
            found |= {f"{prefix}/{kind}/{member}": value for member, value in scores.items()}
        others = {f"{prefix}/disagreement": self.disagreement, f"{prefix}/distance": self.distance}
        return found | {name: value for name, value in others.items() if value is not None}


class RunRecord:
    """Everything a run's folder says; each file is read when it is first asked for.

    Args:
        folder: of the run.
        name: how tables and pages call it.
        failure: why it failed, where the folder does not say so (yet).
    """

    def __init__(self, folder: Path, name: str | None = None, failure: str | None = None) -> None:
        self.folder = folder
        self.name = name or folder.name
        self._failure = failure
        self._said: dict[str, list[str]] = {}

    # ---------------------------------------------------------------------- how it went

    @property
    def state(self) -> State:
        """How it ended. What a sweep has noted of it counts: what lies there may be what another job has left."""
        if self.failure is not None:
            return "failed"
        noted = self.job.get("state", "finished" if self.tested else None)
        behind = self.last is not None and not self.tested
        return "finished" if noted == "finished" and not behind else "unfinished"

    @property
    def failure(self) -> str | None:
        """Why it failed, in one line: by failed.txt of a comparison or the note of a sweep; None where it did not."""
        return None if self.message is None else first_line(self.message)

    @cached_property
    def message(self) -> str | None:
        """Why it failed, in full."""
        if self._failure is not None:
            return self._failure
        lines = [line.strip() for line in (read_text(self.folder / FAILED) or "").splitlines() if line.strip()]
        if lines:
            return lines[-1]  # of a traceback
        return str(self.job.get("message") or "no reason was noted") if self.job.get("state") == "failed" else None

    @cached_property
    def problems(self) -> Sequence[str]:
        """What is missing or damaged, one sentence each."""
        parts = ("config", "summary", "provenance", "job", "confusion", "curves")
        for part in parts:
            getattr(self, part)
        if self.summary and self.last is None:
            self._say("summary", "summary.json holds no test of the last epoch: it is of another version, or damaged.")
        return tuple(said for part in parts for said in self._said.get(part, ()))

    def _say(self, part: str, *said: str) -> None:
        self._said.setdefault(part, []).extend(said)

    # ---------------------------------------------------------------------- files

    @cached_property
    def config_text(self) -> str | None:
        """config.yaml as it stands, None where it cannot be read."""
        return self._text("config", "config.yaml", "the settings of the run are not known")

    @cached_property
    def config(self) -> Values:
        """The settings, empty where they cannot be read."""
        if self.config_text is None:
            return {}
        try:
            return parse_settings(self.config_text)
        except ValueError as error:
            self._say("config", f"config.yaml is damaged ({error}).")
            return {}

    @cached_property
    def summary(self) -> Values:
        """What the run ended with: summary.json is written last."""
        return self._mapping("summary", "summary.json", "the run has not finished, so nothing was tested")

    @cached_property
    def provenance(self) -> Values:
        """Versions, device and command."""
        return self._mapping("provenance", "provenance.json", "versions and device are not known")

    @cached_property
    def job(self) -> Values:
        """The note of a job of a sweep."""
        return self._mapping("job", NOTE)

    @cached_property
    def curves(self) -> Mapping[str, Curve]:
        """The columns of metrics.csv by name, cells that hold no number left out."""
        text = self._text("curves", "metrics.csv", "there are no curves")
        if text is None:
            return {}
        found, faults = parse_curves(text)
        self._say("curves", *faults)
        return found

    @cached_property
    def confusion(self) -> Confusion | None:
        """The mistakes of the deployed network, None where they were not counted."""
        text = self._text("confusion", CONFUSION)
        if text is None:
            return None
        found = parse_confusion(text)
        if found is None:
            self._say("confusion", f"{CONFUSION} is damaged: it is no table of counts.")
        return found

    @cached_property
    def overrides(self) -> Mapping[str, str] | None:
        """Of a job of a sweep, what was set on the command line, as it was written; None where it is not known."""
        given = self.job.get("overrides")
        if not isinstance(given, list):
            return None
        pairs = [str(item).strip("'\"").lstrip("+").partition("=") for item in given]
        return {key: value.strip("'\"") for key, _, value in pairs}

    def setting(self, key: str) -> Any:
        """Return a setting by its dotted key, None if it is not there."""
        return at(self.config, key)

    @property
    def seed(self) -> str:
        """The seed as text, empty where nothing says it."""
        known = ((self.overrides or {}).get("seed"), self.setting("seed"), self.summary.get("seed"))
        return next((str(seed) for seed in known if seed is not None), "")

    @property
    def epochs_done(self) -> int:
        """Epochs that metrics.csv knows."""
        return int(max((curve.epochs[-1] for curve in self.curves.values() if curve.epochs), default=0))

    # ---------------------------------------------------------------------- what it reached

    @cached_property
    def last(self) -> Test | None:
        """The test of the last epoch; of an evaluation, which has one alone, that."""
        return _test(at(self.summary, "test.last") or at(self._mapping("evaluation", EVALUATION), "test"))

    @cached_property
    def best(self) -> Test | None:
        """The test of the epoch that validation chose."""
        return _test(at(self.summary, "test.best"))

    @property
    def selected(self) -> Test | None:
        """The test of the epoch that validation chose, else of the last one."""
        return self.best or self.last

    @property
    def tested(self) -> bool:
        """Whether it was tested, which comes last; a longer one has the tests of its first end until then."""
        return self.last is not None and not 0 < self.last.epoch < self.epochs_done

    @property
    def whole(self) -> bool:
        """Whether summary.json holds every test with all that any table needs of it."""
        last, best = (at(self.summary, f"test.{which}") for which in ("last", "best"))
        tests = [last] if best is None else [last, best]
        return all(isinstance(test, dict) and all(name in test for name in _EVERY_TEST) for test in tests)

    @property
    def objective(self) -> float | None:
        """What a search maximises; None where nothing was tested."""
        return None if self.selected is None else self.selected.objective

    @cached_property
    def figures(self) -> Mapping[str, float | None]:
        """What a finished run reached, by name, None for what it does not have; empty unless it has finished."""
        if self.state != "finished" or self.last is None or self.selected is None:
            return {}
        found: dict[str, float | None] = {}
        for when, test in (("last", self.last), ("selected", self.selected)):
            found |= {f"{when} {name}": value for name, value in test.figures().items()}
        own, before = (number(self.summary.get(key)) for key in ("seconds", "seconds_before"))
        found["seconds"] = None if own is None else own + (before or 0.0)
        ends = {f"last {name}": name for name in self.curves if name.startswith("diversity/")} | WRONG_LABELS
        return found | {name: self.curves[column].values[-1] for name, column in ends.items() if column in self.curves}

    @property
    def costs(self) -> Mapping[str, float | None]:
        """What a comparison tables beside the figures."""
        return {
            "images per second": number(self.summary.get("images_per_second")),
            "peak memory": number(at(self.summary, "peak_memory.bytes")),
            "parameters deployed": number(self.summary.get("deployed_parameters")),
        }

    def figure(self, name: str) -> float | None:
        """Give a figure or a cost of a finished run."""
        return self.figures.get(name, self.costs.get(name)) if self.figures else None

    # ---------------------------------------------------------------------- reading

    def _text(self, part: str, name: str, missing: str | None = None) -> str | None:
        return read_text(self.folder / name, self._said.setdefault(part, []), missing)

    def _mapping(self, part: str, name: str, missing: str | None = None) -> Values:
        found = self._parsed(part, name, missing)
        if found is None or isinstance(found, dict):
            return found or {}
        self._say(part, f"{name} is damaged (it holds no mapping).")
        return {}

    def _parsed(self, part: str, name: str, missing: str | None = None) -> Any:
        """Parse a JSON file; None where there is none, or none that can be read."""
        text = self._text(part, name, missing)
        if text is None:
            return None
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            self._say(part, f"{name} is damaged ({error}).")
            return None
        if found is None:
            self._say(part, f"{name} is damaged (it holds nothing).")
        return found


def _test(found: Any) -> Test | None:
    if not isinstance(found, dict) or (own := number(found.get("deployed_accuracy"))) is None:
        return None
    return Test(
        own,
        accuracy=_numbers(found.get("accuracy")),
        nll=_numbers(found.get("nll")),
        calibration=_numbers(found.get("calibration")),
        epoch=_count(found.get("epoch")),
        images=_count(found.get("images")),
        classes=_count(found.get("classes")),
        validated=found.get("validated") is not False,
        deployed=found["deployed"] if isinstance(found.get("deployed"), str) else "",
        validation_accuracy=number(found.get("validation_accuracy")),
        disagreement=number(found.get("disagreement")),
        distance=number(found.get("distance")),
    )


def _count(value: Any) -> int:
    read = number(value)
    return 0 if read is None or not math.isfinite(read) else int(read)


def _numbers(found: Any) -> dict[str, float]:
    read = {str(name): number(value) for name, value in found.items()} if isinstance(found, dict) else {}
    return {name: value for name, value in read.items() if value is not None}
