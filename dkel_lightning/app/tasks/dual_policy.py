"""task=dual_policy: two policies that teach each other; their returns, and the better one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dkel_lightning.app import drawing
from dkel_lightning.app.config.extras import missing_extra
from dkel_lightning.app.loggers.metrics_file import MetricsFile
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks.train import interruptible, refuse_edited
from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import CheckpointError, ConfigError
from dkel_lightning.policies.settings import DualPolicySettings
from dkel_lightning.runtime import locks
from dkel_lightning.runtime.atomic_files import text_of


@dataclass(frozen=True)
class DualPolicyResult:
    """What the task gave.

    Attributes:
        folder: where everything lies.
        better: the policy of the higher mean return in the last evaluation.
        returns: of its episodes in the closing test, from starts of their own.
        evaluated: its mean return in the last evaluation.
    """

    folder: Path
    better: int
    returns: list[float]
    evaluated: float

    @property
    def objective(self) -> float:
        """The better policy's mean return in the last evaluation, which chose it."""
        return self.evaluated


def dual_policy(run: Run) -> DualPolicyResult:
    """Train as configured and write the outputs into the run's folder.

    Raises:
        ConfigError: the extra is missing, or environment and algorithm do not fit.
        CheckpointError: the run that is resumed has been edited.
        NonFiniteError: the environment gave a reward or a state that is not finite.
    """
    for fault in missing_extra("task=dual_policy", "rl"):
        raise ConfigError(fault)
    with locks.acquire_lock(run.folder / locks.CLAIM, locks.PATIENCE), interruptible(run):
        return _trained(run)


def _trained(run: Run) -> DualPolicyResult:
    from dkel_lightning.policies.dual import DualPolicy

    settings, seed = DualPolicySettings(**run.values["rl"]), run.values["seed"]
    dual, step = DualPolicy(settings, seed), None
    if run.resume is not None:
        checkpoint = file_format.load(run.resume)
        if "settings" not in checkpoint:
            raise CheckpointError(f"{run.resume} was not written by task=dual_policy.")
        refuse_edited(run, checkpoint["settings"])
        dual.load_state_dict(checkpoint["state_dict"])
        step = dual.steps + 1  # the row of the checkpoint's own step stays
    run.describe()
    begun = text_of(run.folder / "config.yaml")
    rows, started, before = MetricsFile(run.folder / "metrics.csv", step), time.perf_counter(), dual.steps
    while not dual.finished:
        found = dual.advance()
        row = {f"return_{number}": statistics.fmean(each) for number, each in enumerate(found.returns)}
        row |= {f"deviation_{number}": statistics.stdev(each) for number, each in enumerate(found.returns)}
        rows.log_metrics({"epoch": float(dual.stage), **row, **found.logged}, found.steps)
        rows.save()
        content = {"state_dict": dual.state_dict(), "global_step": found.steps, "settings": begun}
        file_format.AtomicCheckpointIO().save_checkpoint(content, run.checkpoints / "last.ckpt")
        if run.values["callbacks"]["progress"] != "none":
            _say(row, found.steps, settings, (found.steps - before) / (time.perf_counter() - started))
    written = rows.rows()
    last = written[max(written)]
    evaluated = [last[f"return_{number}"] for number in range(settings.policies)]
    better = evaluated.index(max(evaluated))
    deployed = dual.learners[better]
    result = DualPolicyResult(run.folder, better, deployed.test(), evaluated[better])
    deployed.save(run.folder / "better_policy.zip")
    drawing.save(_draw(written, settings, seed), run.folder / "figures" / "returns.png", run.values["figures"]["also"])
    frames = [np.asarray(frame)[::2, ::2] for frame in deployed.film()]
    if frames:
        drawing.save_pixels(np.concatenate(frames, axis=1), run.folder / "figures" / "frames.png")
    _report(run, result, settings, pictured=bool(frames))
    return result


# ---------------------------------------------------------------------- what is shown


def _say(row: Mapping[str, float], steps: int, settings: DualPolicySettings, speed: float) -> None:
    parts = [f"step {steps}/{settings.steps}"]
    for number in range(settings.policies):
        parts.append(f"policy {number}: {row[f'return_{number}']:.1f} ± {row[f'deviation_{number}']:.1f}")
    left = timedelta(seconds=round((settings.steps - steps) / speed))
    print("  ".join([*parts, f"{speed:,.0f} steps/s", f"{left} left"]), flush=True)


def _draw(rows: Mapping[int, Mapping[str, float]], settings: DualPolicySettings, seed: int) -> Figure:
    """Draw the mean return of each policy, with one deviation of its episodes to both sides."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = sorted(rows)
    for number in range(settings.policies):
        mean = np.array([rows[step][f"return_{number}"] for step in steps])
        spread = np.array([rows[step][f"deviation_{number}"] for step in steps])
        axes.plot(steps, mean, label=f"policy {number}")
        axes.fill_between(steps, mean - spread, mean + spread, alpha=0.2)
    axes.set_xlabel("environment steps, all policies together")
    axes.set_ylabel(f"return, mean ± deviation of {settings.episodes} episodes")
    axes.set_title(f"{settings.algorithm} on {settings.env}, seed {seed}", fontsize=10)
    axes.grid(alpha=0.3)
    drawing.legend_beside(axes)
    return figure


def _report(run: Run, result: DualPolicyResult, settings: DualPolicySettings, *, pictured: bool) -> None:
    mean, deviation = statistics.fmean(result.returns), statistics.stdev(result.returns)
    run.write_json(
        "result.json",
        {
            "env": settings.env,
            "algorithm": settings.algorithm,
            "policies": settings.policies,
            "steps": settings.steps,
            "distil_steps": settings.distil_steps,
            "weighting": settings.weighting,
            "alpha": settings.alpha,
            "seed": run.values["seed"],
            "better": result.better,
            "evaluated": result.evaluated,
            "return": mean,
            "deviation": deviation,
            "episodes": len(result.returns),
        },
    )
    print(
        f"Policy {result.better} was better in the last evaluation; from {len(result.returns)} other starts it returns "
        f"{mean:.1f} ± {deviation:.1f}."
    )
    if settings.frames and not pictured:
        print(f"{settings.env} draws no pictures (rgb_array), so there is no frames.png.")
    print(f"Written to {run.folder}: better_policy.zip, metrics.csv, result.json, figures/.")
