"""task=geometry, task=convergence and task=dual_policy: each runs a study that writes into the run's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dkel_lightning.app.config.extras import missing_extra
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.errors import ConfigError
from dkel_lightning.policies.settings import DualPolicySettings
from dkel_lightning.settings.declarations import from_mapping
from dkel_lightning.studies import run as studies
from dkel_lightning.studies.convergence_study import Study
from dkel_lightning.studies.geometry import Geometry
from dkel_lightning.studies.settings import ConvergenceSettings, GeometrySettings

if TYPE_CHECKING:
    from dkel_lightning.policies.dual import DualPolicyResult


def geometry(run: Run) -> Geometry:
    """Simulate a student and its teacher as two points of a plane."""
    run.describe()
    result = studies.run_geometry(run.folder, from_mapping(GeometrySettings, run.values["geometry"], "geometry"))
    print(f"Tables and figures are in {run.folder}.")
    return result


def convergence(run: Run) -> Study:
    """Compute when teachers help in a noisy quadratic model, and when training collapses."""
    run.describe()
    settings = from_mapping(ConvergenceSettings, run.values["convergence"], "convergence")
    result = studies.run_convergence(run.folder, settings, run.values["seed"])
    print(f"Tables and figures are in {run.folder}.")
    return result


def dual_policy(run: Run) -> DualPolicyResult:
    """Train two reinforcement learners that imitate each other."""
    for fault in missing_extra("task=dual_policy", "rl"):
        raise ConfigError(fault)
    from dkel_lightning.policies import dual

    run.describe()
    result = dual.run(run.folder, from_mapping(DualPolicySettings, run.values["rl"], "rl"), run.values["seed"])
    print(f"Policy {result.better} returned most; metrics, figure and better_policy.zip are in {run.folder}.")
    return result
