"""task=geometry, task=convergence and task=dual_policy: run a study in the run's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dkel_lightning.app.run import Run
from dkel_lightning.policies.settings import DualPolicySettings
from dkel_lightning.runtime.packages import need
from dkel_lightning.settings.declarations import from_mapping
from dkel_lightning.studies import convergence_figures, geometry_figures
from dkel_lightning.studies.convergence_study import Study, study, tables
from dkel_lightning.studies.geometry import Geometry, simulate
from dkel_lightning.studies.output import save_figures, write_tables
from dkel_lightning.studies.settings import ConvergenceSettings, GeometrySettings

if TYPE_CHECKING:
    from dkel_lightning.policies.dual import DualPolicyResult


def geometry(run: Run) -> Geometry:
    """Simulate a student and its teacher as two points of a plane; nothing is random."""
    run.write_config()
    result = simulate(from_mapping(GeometrySettings, run.values["geometry"], "geometry"))
    write_tables(run.folder, {"bowl": [*result.bowl_rows.values()], "mirror": [*result.mirror_rows.values()]})
    save_figures(run.folder / "figures", geometry_figures.draw(result))
    print(f"Tables and figures are in {run.folder}.")
    return result


def convergence(run: Run) -> Study:
    """Compute when teachers help in a noisy quadratic model, and when training collapses."""
    run.write_config()
    settings = from_mapping(ConvergenceSettings, run.values["convergence"], "convergence")
    result = study(settings, run.values["seed"])
    write_tables(run.folder, tables(result))
    save_figures(run.folder / "figures", convergence_figures.draw(result))
    print(f"Tables and figures are in {run.folder}.")
    return result


def dual_policy(run: Run) -> DualPolicyResult:
    """Train two reinforcement learners that imitate each other."""
    need("stable_baselines3", "task=dual_policy", "rl")
    from dkel_lightning.policies import dual

    run.write_config()
    result = dual.run(run.folder, from_mapping(DualPolicySettings, run.values["rl"], "rl"), run.values["seed"])
    print(f"Policy {result.better} returned most; metrics, figure and better_policy.zip are in {run.folder}.")
    return result
