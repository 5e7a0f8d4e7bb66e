"""task=geometry: student and teacher as two points; figures and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dkel_lightning.app import drawing
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tables import write_csv
from dkel_lightning.app.study_figures import geometry_figures
from dkel_lightning.settings.declarations import from_mapping
from dkel_lightning.studies.bowl import COSINES_AT, DISTANCES_AT, initialised_label
from dkel_lightning.studies.geometry import Geometry, simulate
from dkel_lightning.studies.geometry_settings import GeometrySettings
from dkel_lightning.studies.mirror import mirror_loss
from dkel_lightning.studies.pairs import Pair, Pull, alignment
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
        label = initialised_label(int(settings.init_steps[-1]), settings.init_lr_scale)
        steps = bowl.row(label, Pull(settings.weights[0])).arrival
        if steps is None:
            return float("inf")
        return steps / bowl.alone.arrival if bowl.alone.arrival else float("nan")


def geometry(run: Run) -> GeometryResult:
    """Simulate both landscapes and write figures and tables into the run's folder.

    Raises:
        ConfigError: settings that do not fit together.
        NonFiniteError: a pair has diverged.
    """
    found = simulate(from_mapping(GeometrySettings, run.values["geometry"], "geometry"))
    run.describe()
    tables = {
        "bowl": _bowl(found),
        "directions": _directions(found),
        "mirror": _mirror(found),
        "series": _series(found),
    }
    for name, rows in tables.items():
        write_csv(run.folder / f"{name}.csv", ([_cell(value) for value in row] for row in rows))
    drawn = drawing.save_all(geometry_figures.draw(found), run.folder / "figures")
    print(f"Written to {run.folder}: {', '.join(f'{name}.csv' for name in tables)}, figures/*.png.")
    return GeometryResult(run.folder, found, drawn)


# ---------------------------------------------------------------------- tables

Rows = Iterator[Sequence[Any]]


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return None if np.isnan(value) else f"{value:.6g}"
    return value


def _bowl(found: Geometry) -> Rows:
    cosines = [f"cosine_{step}" for step in COSINES_AT]
    distances = [f"distance_{step}" for step in DISTANCES_AT]
    yield [*PAIR, *cosines, "last_helpful_step", *distances, "swept_area", "steps_to_distance", "steps_to_loss"]
    for row in (row for bowl in found.bowls for row in bowl.rows):
        pair = row.curvature, row.start, row.pull.weight, row.pull.time
        yield [*pair, *row.cosines, row.last_helpful, *row.distances, row.swept, row.arrival, row.loss_arrival]


def _directions(found: Geometry) -> Rows:
    yield [*PAIR, "median_steps", "share_sooner_than_no_teacher"]
    for row in found.directions:
        yield [row.curvature, row.start, row.pull.weight, row.pull.time, row.median, row.sooner]


def _mirror(found: Geometry) -> Rows:
    teacher = ("teacher_steps", "teacher_first_loss", "teacher_peak_loss", "teacher_peak_step")
    yield ["start", "weight", "student_steps", *teacher, "ends_in_other_branch"]
    for row in found.mirror.rows:
        of_teacher = row.teacher_arrival, row.teacher_first, row.teacher_peak, row.peak_step
        yield [row.start, row.weight, row.arrival, *of_teacher, row.crossed]


PAIR = ("curvature", "start", "weight", "weight_time")


def _series(found: Geometry) -> Rows:
    """Give every pair at every step that is drawn."""
    places = ("student_x", "student_y", "teacher_x", "teacher_y")
    yield ["landscape", *PAIR, "step", *places, "distance", "cosine", "student_loss", "teacher_loss"]
    for bowl in found.bowls:
        for pair in bowl.pairs:
            cosines = alignment(pair)
            yield from _steps_of(pair, ["bowl", bowl.curvature], bowl.loss, cosines, found.settings.bowl.steps)
    for pair in found.mirror.pairs:
        cosines = np.full(len(pair.student), np.nan)
        yield from _steps_of(pair, ["mirror", None], mirror_loss, cosines, found.settings.mirror.steps)


def _steps_of(pair: Pair, landscape: Sequence[Any], loss: Callable[[Array], Array], cosines: Array, last: int) -> Rows:
    student, teacher = pair.student[: last + 1], pair.teacher[: last + 1]
    columns = np.column_stack(
        [student, teacher, pair.distance[: last + 1], cosines[: last + 1], loss(student), loss(teacher)]
    )
    for step, values in enumerate(columns.tolist()):
        yield [*landscape, pair.start.label, pair.pull.weight, pair.pull.time, step, *values]
