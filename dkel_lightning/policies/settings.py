"""What dual policy distillation can be told. Imports neither torch nor the extra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.declarations import Settings, anything, choice, number, text, whole

WEIGHTINGS = ("normalised_sum", "ddpg_released", "ppo_released")


@dataclass(frozen=True)
class Usual:
    """What an algorithm takes where nothing is given; imitation as in the paper, the rest our choice."""

    envs: int
    turn: int
    distil_lr: float
    distil_batch: int


USUAL = {"ddpg": Usual(1, 1, 1e-4, 64), "ppo": Usual(8, 1024, 1e-5, 256)}


@dataclass(frozen=True)
class DualPolicySettings(Settings, node="rl"):
    """task=dual_policy."""

    algorithm: Annotated[str, choice("Algorithm of both learners.", *USUAL)] = "ddpg"
    env: Annotated[str, text("Gymnasium's name of the environment; `modules` may register one of your own.")] = (
        "Pendulum-v1"
    )
    policies: Annotated[int, whole("2: policies that teach each other; 1: one alone, with all the steps.", 1, 2)] = 2
    steps: Annotated[int, whole("Environment steps of the run, all policies together.", 1, 1_000_000_000)] = 20_480
    evaluations: Annotated[
        int, whole("Evaluations, at even distances; after each the run can be resumed.", 1, 10_000)
    ] = 10
    episodes: Annotated[int, whole("Episodes of an evaluation of a policy, and of the closing test.", 2, 10_000)] = 20
    envs: Annotated[int | None, whole("Environments of a policy, side by side; null: 1 (ddpg), 8 (ppo).", 1, 1024)] = (
        None
    )
    turn: Annotated[
        int | None, whole("A policy's environment steps before its updates; null: 1 (ddpg), 1024 (ppo).", 1, 1_000_000)
    ] = None
    noise: Annotated[float, number("Deviation of ddpg's exploration, in half ranges of the action.", 0, 10)] = 0.1
    learner: Annotated[Mapping[str, Any], anything("An argument of Stable-Baselines3's DDPG or PPO.")] = field(
        default_factory=dict
    )
    weighting: Annotated[
        str, choice("Weights of the states: the paper's, normalised, or a released program's.", *WEIGHTINGS)
    ] = "normalised_sum"
    alpha: Annotated[float, number("alpha: how much the better policy's states count; 0: all alike.", 0, 1000)] = 1.0
    memory: Annotated[int, whole("Latest states of a policy on which its peer imitates it.", 1, 1_000_000)] = 1000
    distil_steps: Annotated[
        float, number("Steps of imitation for each of a learner's own gradient steps; 0: none.", 0, 1000)
    ] = 1.0
    distil_lr: Annotated[
        float | None, number("Learning rate of imitation; null: 1e-4 (ddpg), 1e-5 (ppo).", 0, 1000, above=True)
    ] = None
    distil_batch: Annotated[
        int | None, whole("States of a step of imitation; null: 64 (ddpg), 256 (ppo).", 1, 1_000_000)
    ] = None
    frames: Annotated[int, whole("Frames of an episode of the better policy in frames.png; 0: none.", 0, 100)] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        used = self.used
        if used.turn % used.envs:
            raise ConfigError(f"rl.turn={used.turn} must be a multiple of rl.envs={used.envs}.")
        share = used.turn * self.policies * self.evaluations
        if self.steps % share:
            raise ConfigError(
                f"rl.steps={self.steps} must be a multiple of rl.turn * rl.policies * rl.evaluations = {share}: "
                f"take {max(1, round(self.steps / share)) * share}."
            )

    @property
    def used(self) -> Usual:
        """What is given, and where nothing is what is usual for the algorithm."""
        usual = asdict(USUAL[self.algorithm])
        given = {name: getattr(self, name) for name in usual}
        return Usual(**{name: usual[name] if value is None else value for name, value in given.items()})

    @property
    def turns(self) -> int:
        """Turns of each policy between two evaluations."""
        return self.steps // (self.used.turn * self.policies * self.evaluations)
