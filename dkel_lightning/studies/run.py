"""The studies as one call each: compute, then write tables and figures into a folder."""

from __future__ import annotations

from pathlib import Path

from dkel_lightning.studies import convergence_figures, convergence_study, geometry_figures
from dkel_lightning.studies.geometry import Geometry, simulate
from dkel_lightning.studies.output import save_figures, write_tables
from dkel_lightning.studies.settings import ConvergenceSettings, GeometrySettings


def run_geometry(folder: Path, settings: GeometrySettings) -> Geometry:
    """Simulate a student and its teacher as two points; nothing is random."""
    geometry = simulate(settings)
    write_tables(folder, {"bowl": [*geometry.bowl_rows.values()], "mirror": [*geometry.mirror_rows.values()]})
    save_figures(folder / "figures", geometry_figures.draw(geometry))
    return geometry


def run_convergence(folder: Path, settings: ConvergenceSettings, seed: int = 0) -> convergence_study.Study:
    """Compute the noisy quadratic model and the collapse experiment."""
    study = convergence_study.study(settings, seed)
    write_tables(folder, convergence_study.tables(study))
    save_figures(folder / "figures", convergence_figures.draw(study))
    return study
