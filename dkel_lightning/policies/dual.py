"""Two learners that take turns: each learns alone, then imitates the other. Needs the extra `rl`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dkel_lightning.policies.imitation import imitation
from dkel_lightning.policies.learners import EPISODES, LEARNERS
from dkel_lightning.policies.settings import DualPolicySettings
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.runtime.tables import write_csv

EVALUATIONS = 10


@dataclass(frozen=True)
class Evaluation:
    """The returns of every policy from the same starts.

    Attributes:
        steps: environment steps so far, all policies together.
        returns: of each policy, one per episode.
        logged: means since the evaluation before, of each policy's imitation.
    """

    steps: int
    returns: Sequence[Sequence[float]]
    logged: Mapping[str, float]

    def row(self) -> dict[str, float]:
        """Return what metrics.csv holds."""
        row: dict[str, float] = {"step": self.steps}
        for number, returns in enumerate(self.returns):
            row |= {f"return_{number}": statistics.fmean(returns), f"deviation_{number}": statistics.stdev(returns)}
        return {**row, **self.logged}


class DualPolicy:
    """Dual policy distillation of two learners, or a single learner without distillation.

    Random numbers come from the global generators, which Stable-Baselines3 seeds when the learners are built.
    """

    def __init__(self, settings: DualPolicySettings, seed: int = 0) -> None:
        self.settings = settings
        self.learners = [LEARNERS[settings.algorithm](settings, seed, number) for number in range(settings.policies)]

    def train(self) -> Iterator[Evaluation]:
        """Train to the next of ten evaluations; `steps` are rounded down to whole turns between evaluations."""
        turns = max(1, self.settings.steps // (self.learners[0].turn_steps * len(self.learners) * EVALUATIONS))
        for _ in range(EVALUATIONS):
            logged: dict[str, list[float]] = {}
            for _ in range(turns):
                for number, learner in enumerate(self.learners):
                    learner.take_turn()
                    for name, values in self.imitate(number).items():
                        logged.setdefault(f"{name}_{number}", []).extend(values)
            steps = sum(learner.algorithm.num_timesteps for learner in self.learners)
            returns = [learner.evaluate("evaluation") for learner in self.learners]
            yield Evaluation(steps, returns, {name: statistics.fmean(values) for name, values in logged.items()})

    def imitate(self, number: int) -> dict[str, list[float]]:
        """Let a learner imitate its peer on the peer's latest states, as often as it has made gradient steps."""
        own, peer = self.learners[number], self.learners[-1 - number]
        logged: dict[str, list[float]] = {}
        if own is peer or not peer.recent:
            return logged
        for _ in range(own.gradient_steps):
            states = peer.sample_recent()
            step = imitation(own, peer, states, self.settings.weighting)
            own.optimizer.zero_grad()
            step.loss.backward()  # type: ignore[no-untyped-call]
            own.optimizer.step()
            for name, value in vars(step).items():
                logged.setdefault(name, []).append(value.item())
        return logged


@dataclass(frozen=True)
class DualPolicyResult:
    """The outcome of a run.

    Attributes:
        better: the policy of the higher mean return in the last evaluation.
        objective: that mean return.
        returns: of its episodes in the closing test, from other starts.
        evaluations: a row of metrics.csv each.
    """

    better: int
    objective: float
    returns: Sequence[float]
    evaluations: Sequence[Mapping[str, float]]


def run(folder: Path, settings: DualPolicySettings, seed: int = 0) -> DualPolicyResult:
    """Train, and write metrics.csv, result.json, better_policy.zip and figures/returns.png."""
    dual, rows = DualPolicy(settings, seed), list[dict[str, float]]()
    for evaluation in dual.train():
        rows.append(evaluation.row())
        columns = dict.fromkeys(name for row in rows for name in row)
        write_csv(folder / "metrics.csv", [[*columns], *([row.get(name) for name in columns] for row in rows)])
        means = [f"policy {n}: {statistics.fmean(returns):.1f}" for n, returns in enumerate(evaluation.returns)]
        print(f"step {evaluation.steps}/{settings.steps}  {'  '.join(means)}", flush=True)
    means_at_end = [rows[-1][f"return_{number}"] for number in range(settings.policies)]
    better = int(np.argmax(means_at_end))
    result = DualPolicyResult(better, means_at_end[better], dual.learners[better].evaluate("test"), rows)
    dual.learners[better].algorithm.save(folder / "better_policy.zip")
    (folder / "figures").mkdir(exist_ok=True)
    _draw(rows, settings, seed).savefig(folder / "figures" / "returns.png", dpi=120)
    content: dict[str, Any] = {**asdict(settings), "seed": seed, "better": better, "evaluated": result.objective}
    content |= {"return": statistics.fmean(result.returns), "deviation": statistics.stdev(result.returns)}
    content["episodes"] = len(result.returns)
    write_text(folder / "result.json", json.dumps(content, indent=2) + "\n")
    return result


def _draw(rows: Sequence[Mapping[str, float]], settings: DualPolicySettings, seed: int) -> Figure:
    """Draw the mean return of each policy, with one deviation of its episodes to both sides."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] for row in rows]
    for number in range(settings.policies):
        mean, deviation = (np.array([row[f"{name}_{number}"] for row in rows]) for name in ("return", "deviation"))
        axes.plot(steps, mean, label=f"policy {number}")
        axes.fill_between(steps, mean - deviation, mean + deviation, alpha=0.2)
    axes.set(
        xlabel="environment steps, all policies together",
        ylabel=f"return, mean ± deviation of {EPISODES} episodes",
        title=f"{settings.algorithm} on {settings.env}, seed {seed}",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
