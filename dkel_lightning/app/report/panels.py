"""Which columns of metrics.csv belong into one chart, and how their members look. Unknown ones are drawn too."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dkel_lightning.app.figures import TERM_NAMES
from dkel_lightning.app.report import charts
from dkel_lightning.app.report.charts import Line
from dkel_lightning.app.report.markup import Markup
from dkel_lightning.app.runs.parsing import Curve

STYLES = {"student": 0, "teacher": 1, "ensemble": 2, "teacher_ensemble": 3, "student_ensemble": 9}
STYLES |= {"student-teacher": 4, "student-student": 0, "teacher-teacher": 1, "deployed": 7}

CURVES, SCHEDULES, DIVERSITY = "Curves", "Schedules", "Diversity"
SHARES, NOISE, OTHER = "Shares of the loss", "Label noise", "Other metrics"
SECTIONS = (CURVES, SCHEDULES, DIVERSITY, SHARES, NOISE, OTHER)

TITLES = {
    "val/acc": "validation accuracy",
    "val/nll": "validation negative log-likelihood",
    "val/ece": "validation calibration error",
    "train/acc": "training accuracy",
    "diversity/agreement": "top-1 agreement",
    "diversity/entropy": "entropy of the predictions",
    "diversity/classes": "distinct predicted classes",
    "diversity/distance": "relative parameter distance",
    "diversity/cka": "linear CKA of the features",
    "diversity/kl": "KL divergence",
    "train/noise/fit_wrong": "wrong labels learnt by heart",
    "train/noise/fit_true": "true labels found in spite of wrong ones",
    "share/loss": "share of each term in the loss",
    "share/gradient": "share of each term in the gradient",
}
NOTES = {
    "val/nll": "nats",
    "diversity/kl": "nats",
    "diversity/entropy": "nats",
}
IN_PERCENT: tuple[str, ...] = ("val/acc", "train/acc", "val/ece", "diversity/agreement", "share/loss", "share/gradient")
IN_PERCENT += ("train/noise/fit_wrong", "train/noise/fit_true")
LEFT_OUT = ("train/loss_per_peer",)


@dataclass(frozen=True)
class Panel:
    """One chart: the columns by what they are called in it."""

    section: str
    key: str
    columns: Mapping[str, str]

    @property
    def title(self) -> str:
        """Say what is drawn."""
        return TITLES.get(self.key, self.key.rsplit("/", 1)[-1].replace("_", " ") if self.key else "others")

    @property
    def scale(self) -> float:
        """Factor on the values."""
        return 100.0 if self.key in IN_PERCENT else 1.0

    @property
    def note(self) -> str:
        """Say in which unit it is drawn."""
        return NOTES.get(self.key, "%" if self.scale == 100 else "")


def panels(names: Sequence[str]) -> list[Panel]:
    """Sort columns into charts, in the order of the sections."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        if name not in LEFT_OUT and not name.endswith("_best"):
            section, key, label = _place(name)
            found.setdefault((section, key), {})[label] = name
    return [
        Panel(section, key, columns)
        for wanted in SECTIONS
        for (section, key), columns in found.items()
        if section == wanted
    ]


def _place(name: str) -> tuple[str, str, str]:
    """Give section, chart and label of a column."""
    parts = name.split("/")
    head, tail = "/".join(parts[:-1]), parts[-1]
    if "noise" in parts[:-1] or tail.startswith("noise"):
        return NOISE, head if len(parts) > 2 else name, tail
    if parts[0] == "weights":
        return SCHEDULES, "weights/ema_rate" if tail == "ema_rate" else "weights", tail
    if parts[0] == "lr" or name.startswith("lr-") or tail in ("lr", "learning_rate"):
        return SCHEDULES, "learning rate", tail
    if parts[0] == "diversity":
        return DIVERSITY, head if len(parts) > 2 else name, tail
    if parts[0] == "share":
        return SHARES, head, TERM_NAMES.get(f"train/{tail}", tail)
    if name in ("val/acc", "val/nll"):
        return CURVES, name, "deployed"
    if parts[0] == "train" and len(parts) == 2:
        return CURVES, "train", TERM_NAMES.get(name, "total" if tail == "loss" else tail)
    if parts[0] in ("train", "val"):
        return CURVES, head, tail
    return OTHER, head or name, tail


def alone(name: str) -> tuple[str, str, float]:
    """Give title, note and scale of a chart of one column."""
    panel = panels([name])[0]
    label = next(iter(panel.columns))
    title = f"training loss, {label}" if panel.key == "train" else f"{panel.title}, {spoken(label)}"
    return title, panel.note, panel.scale


def draw(panel: Panel, curves: Mapping[str, Curve]) -> Markup:
    """Draw one chart of a run."""
    lines = _lines(panel, curves)
    scale: charts.Scale = "linear"
    title, note = panel.title, panel.note
    if panel.key == "train":
        title, note = "loss terms", "weighted, summed over peers"
        values = [abs(y) for one in lines for y in one.y if math.isfinite(y)]
        if values and max(values) > 30 * max(statistics.median_high(values), 1e-9):
            scale, note = "symlog", f"{note}; logarithmic above 0.01"
    elif panel.key == "weights":
        title, note = "weights in force", "at the end of the epoch"
    elif panel.key == "weights/ema_rate":
        title = "EMA rate of the teacher"
    if any(one.faint for one in lines):
        note = f"{note}; thin: single ones" if note else "thin: single ones"
    return charts.lines(title, lines, scale=scale, note=note)


def _lines(panel: Panel, curves: Mapping[str, Curve]) -> list[Line]:
    kinds = {label: kind_of(label) for label in panel.columns}
    means = {label for label, kind in kinds.items() if label in (kind, f"{kind}_mean")}
    found: list[Line] = []
    labels = panel.columns
    if panel.key == "train" and "total" in labels:
        labels = {"total": labels["total"], **labels}
    free = [number for number in range(charts.COLOURS * charts.DASHES) if number not in STYLES.values()]
    own: dict[str, int] = {}
    by_kind = any(kind in STYLES for kind in kinds.values())
    for label, name in labels.items():
        kind = kinds[label]
        group = kind if by_kind else label
        if group in STYLES and by_kind:
            style = STYLES[group]
        else:
            style = own.setdefault(group, free[len(own) % len(free)] if by_kind else len(own))
        if panel.key == "weights":
            # Weights that are equal lie on one another: dashes let the lower one be seen.
            style += charts.COLOURS * (len(found) % charts.DASHES)
        faint = label not in means and any(kinds[other] == kind for other in means)
        curve = curves[name]
        values = [value * panel.scale for value in curve.values]
        found.append(Line(spoken(label), curve.epochs, values, style, spoken(group), faint))
    return found


def kind_of(label: str) -> str:
    """Give what a member or pair is one of: student_0 is a student, student_0-teacher_1 a student-teacher."""
    if "-" in label:
        return "-".join(kind_of(part) for part in label.split("-"))
    stem, _, last = label.rpartition("_")
    return stem if stem and (last.isdecimal() or last in ("mean", "best")) else label


def spoken(label: str) -> str:
    """Write a label with spaces."""
    return label.replace("_", " ")
