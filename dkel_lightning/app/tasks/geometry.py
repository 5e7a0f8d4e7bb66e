"""task=geometry: student and teacher as two points; figures, tables and what they show."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.study_figures.geometry_figures import draw_all
from dkel_lightning.app.tasks.geometry_reading import reading
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.studies import geometry as analysis
from dkel_lightning.studies.geometry import Bowl, Geometry, Pair, Pull, Settings
from dkel_lightning.studies.recursion import Array


@dataclass(frozen=True)
class GeometryResult:
    """What the geometry gave: its folder, the simulations, and the figures drawn."""

    folder: Path
    found: Geometry
    figures: Sequence[Path]

    @property
    def objective(self) -> float:
        """Steps of the longest initialisation in the first bowl over those without a teacher; below 1 it helps."""
        bowl, settings = self.found.bowls[0], self.found.settings.bowl
        label = analysis.initialised_label(int(settings.init_steps[-1]), settings.init_lr_scale)
        steps = bowl.row(label, Pull(settings.weights[0])).arrival
        if steps is None:
            return float("inf")
        return steps / bowl.alone.arrival if bowl.alone.arrival else float("nan")


def geometry(run: Run) -> GeometryResult:
    """Simulate both landscapes and write figures, tables and their reading into the run's folder.

    Raises:
        ConfigError: settings that do not fit together.
        NonFiniteError: a pair has diverged.
    """
    found = analysis.simulate(Settings.of(run.values["geometry"]))
    run.describe()
    for name, rows in (
        ("bowl.csv", _bowl_rows(found)),
        ("directions.csv", _direction_rows(found)),
        ("mirror.csv", _mirror_rows(found)),
        ("series.csv", _series(found)),
    ):
        _write_csv(run.folder / name, rows)
    text = reading(found)
    write_text(run.folder / "reading.md", text)
    result = GeometryResult(run.folder, found, draw_all(found, run.folder / "figures"))
    _show(result)
    return result


# ---------------------------------------------------------------------- tables


def _write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows of equal keys; a missing value is an empty cell."""
    out = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(out, fieldnames=list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({name: _cell(value) for name, value in row.items()})
    write_text(path, out.getvalue())


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return "" if value is None else value


def _bowl_rows(found: Geometry) -> Iterator[dict[str, Any]]:
    for row in (row for bowl in found.bowls for row in bowl.rows):
        yield {
            "curvature": row.curvature,
            "start": row.start,
            "weight": row.pull.weight,
            "weight_time": row.pull.time,
            **{f"cosine_{step}": value for step, value in zip(analysis.COSINES_AT, row.cosines, strict=True)},
            "last_helpful_step": row.last_helpful,
            **{f"distance_{step}": value for step, value in zip(analysis.DISTANCES_AT, row.distances, strict=True)},
            "swept_area": row.swept,
            "steps_to_distance": row.arrival,
            "steps_to_loss": row.loss_arrival,
        }


def _direction_rows(found: Geometry) -> Iterator[dict[str, Any]]:
    for row in found.directions:
        yield {
            "curvature": row.curvature,
            "start": row.start,
            "weight": row.pull.weight,
            "weight_time": row.pull.time,
            "median_steps": row.median,
            "share_sooner_than_no_teacher": row.sooner,
        }


def _mirror_rows(found: Geometry) -> Iterator[dict[str, Any]]:
    for row in found.mirror.rows:
        yield {
            "start": row.start,
            "weight": row.weight,
            "student_steps": row.arrival,
            "teacher_steps": row.teacher_arrival,
            "teacher_first_loss": row.teacher_first,
            "teacher_peak_loss": row.teacher_peak,
            "teacher_peak_step": row.peak_step,
            "ends_in_other_branch": row.crossed,
        }


def _series(found: Geometry) -> Iterator[dict[str, Any]]:
    """Give every pair at every step that is drawn."""
    for bowl in found.bowls:
        for pair in bowl.pairs:
            yield from _steps_of(pair, bowl, found.settings.bowl.steps)
    for pair in found.mirror.pairs:
        yield from _steps_of(pair, None, found.settings.mirror.steps)


def _steps_of(pair: Pair, bowl: Bowl | None, last: int) -> Iterator[dict[str, Any]]:
    def loss(points: Array) -> Array:
        return analysis.mirror_loss(points) if bowl is None else bowl.loss(points)

    cosines = np.full(last + 1, np.nan) if bowl is None else analysis.alignment(pair)
    student, teacher = pair.student[: last + 1], pair.teacher[: last + 1]
    losses = zip(loss(student), loss(teacher), strict=True)
    for step, (student_loss, teacher_loss) in enumerate(losses):
        yield {
            "landscape": "mirror" if bowl is None else "bowl",
            "curvature": None if bowl is None else bowl.curvature,
            "start": pair.start.label,
            "weight": pair.pull.weight,
            "weight_time": pair.pull.time,
            "step": step,
            "student_x": float(student[step, 0]),
            "student_y": float(student[step, 1]),
            "teacher_x": float(teacher[step, 0]),
            "teacher_y": float(teacher[step, 1]),
            "distance": float(pair.distance[step]),
            "cosine": float(cosines[step]),
            "student_loss": float(student_loss),
            "teacher_loss": float(teacher_loss),
        }


# ---------------------------------------------------------------------- on the screen


def _show(result: GeometryResult) -> None:
    found, limit = result.found, result.found.settings.bowl.max_steps
    pull = Pull(found.settings.bowl.weights[0])
    share = 100 * found.settings.bowl.tolerance
    table = Table(title=f"Steps until the student's distance stays below {share:g} % of its first, {pull.label}")
    table.add_column("start")
    for bowl in found.bowls:
        table.add_column(f"curvature {bowl.curvature:g}", justify="right")
    for start in dict.fromkeys(row.start for row in found.bowls[0].rows):
        rows = [bowl.alone if start == analysis.NO_TEACHER else bowl.row(start, pull) for bowl in found.bowls]
        table.add_row(start, *(f"> {limit}" if row.arrival is None else str(row.arrival) for row in rows))
    Console().print(table)
    mirror = Table(title=f"Two mirror optima: steps until its loss stays below {found.settings.mirror.threshold:g}")
    mirror.add_column("start")
    for weight in found.mirror.weights:
        mirror.add_column(f"W = {weight:g}", justify="right")
    for start in found.mirror.starts:
        cells = [found.mirror.row(start, weight) for weight in found.mirror.weights]
        mirror.add_row(start, *(f"{'-' if c.arrival is None else c.arrival}{' *' if c.crossed else ''}" for c in cells))
    Console().print(mirror)
    print("* ends in the other branch.")
    print(f"Written to {result.folder}: reading.md, bowl.csv, directions.csv, mirror.csv, series.csv, figures/.")
