"""Settings of task=dual_policy. Imports neither torch nor the extra `rl`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from dkel_lightning.settings.declarations import Settings, anything, choice, number, text, whole

WEIGHTINGS = ("normalised_sum", "uniform", "ddpg_released", "ppo_released")


@dataclass(frozen=True)
class DualPolicySettings(Settings, node="rl"):
    """Two reinforcement learners that imitate each other."""

    algorithm: Annotated[str, choice("Algorithm of both learners.", "ddpg", "ppo")] = "ddpg"
    env: Annotated[str, text("Name of a registered Gymnasium environment.")] = "Pendulum-v1"
    policies: Annotated[int, whole("2: policies that teach each other; 1: one alone, with all the steps.", 1, 2)] = 2
    steps: Annotated[int, whole("Environment steps of the run, all policies together.", 1, 1_000_000_000)] = 20_480
    weighting: Annotated[str, choice("Weights of the states on which a policy imitates its peer.", *WEIGHTINGS)] = (
        "normalised_sum"
    )
    distil_lr: Annotated[
        float | None, number("Learning rate of imitation; null: 1e-4 (ddpg), 1e-5 (ppo).", 0, 1000, above=True)
    ] = None
    learner: Annotated[Mapping[str, Any], anything("An argument of Stable-Baselines3's DDPG or PPO.")] = field(
        default_factory=dict
    )
