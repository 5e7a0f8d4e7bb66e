"""DDPG and PPO of Stable-Baselines3 as policies that can be imitated. Needs the extra `rl`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DDPG, PPO
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.policies.settings import DualPolicySettings
from dkel_lightning.runtime.seeding import derive_seed

EPISODES = 20
"""Episodes of an evaluation."""
MEMORY = 1000
"""Number of recent states of a policy on which its peer imitates it."""


def make_envs(name: str, count: int) -> VecCheckNan:
    """Make environments that raise an error for non-finite numbers."""
    if ":" in name:
        raise ConfigError(f"rl.env={name} names a module: register the environment in a module of `modules=[...]`.")
    try:
        return VecCheckNan(DummyVecEnv([lambda: gym.make(name)] * count), raise_exception=True)
    except gym.error.Error as error:
        raise ConfigError(f"rl.env={name} cannot be made: {error}") from error


class Learner(ABC):
    """A learner with its environments and recent states, on the CPU, which is fastest for these networks."""

    algorithm_class: type[DDPG] | type[PPO]
    envs: int
    distil_lr: float
    distil_batch: int

    def __init__(self, settings: DualPolicySettings, seed: int, number: int) -> None:
        self.env, self.seed = settings.env, seed
        envs = make_envs(settings.env, self.envs)
        try:
            self.algorithm: Any = self.algorithm_class(
                "MlpPolicy",
                envs,
                seed=derive_seed(seed, "policy", number) % 2**31,
                device="cpu",
                **{**self.defaults(envs.action_space, settings.steps), **settings.learner},
            )
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"{self.algorithm_class.__name__} refuses rl.env or rl.learner: {error}") from error
        self.algorithm.set_logger(Logger(None, []))  # the default creates a temporary folder
        self.recent: deque[Any] = deque(maxlen=MEMORY)
        self.optimizer = torch.optim.Adam(self.imitating_parameters(), lr=settings.distil_lr or self.distil_lr)

    @abstractmethod
    def defaults(self, actions: spaces.Space[Any], steps: int) -> dict[str, Any]:
        """Return the arguments that `rl.learner` may override."""

    @abstractmethod
    def imitating_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that imitation trains: those of the actions."""

    @abstractmethod
    def actions(self, states: Tensor) -> Tensor: ...

    @abstractmethod
    def values(self, states: Tensor, actions: Tensor) -> Tensor: ...

    @property
    @abstractmethod
    def turn_steps(self) -> int:
        """Environment steps of a turn."""

    @property
    @abstractmethod
    def gradient_steps(self) -> int:
        """Gradient steps of the last turn."""

    def take_turn(self) -> None:
        """Act for a turn, and update as the algorithm does."""
        self.algorithm.learn(self.turn_steps, self._record, log_interval=None, reset_num_timesteps=False)

    def _record(self, *_: Any) -> bool:
        self.recent.extend(self.algorithm._last_obs.copy())
        return True

    def sample_recent(self) -> Tensor:
        """Draw a batch of recent states with replacement, by numpy's global generator."""
        states = np.stack([self.recent[i] for i in np.random.randint(len(self.recent), size=self.distil_batch)])
        return self.algorithm.policy.obs_to_tensor(states)[0]

    def evaluate(self, purpose: str) -> list[float]:
        """Return the returns of episodes without exploration; equal seeds and purposes give equal starts."""
        envs = make_envs(self.env, EPISODES)
        envs.seed(derive_seed(self.seed, purpose) % 2**31)
        returns, _ = evaluate_policy(
            self.algorithm, envs, EPISODES, deterministic=True, return_episode_rewards=True, warn=False
        )
        envs.close()
        return cast("list[float]", returns)


class DDPGLearner(Learner):
    """DDPG: V(s) is its critic's Q(s, pi(s)); actions are scaled to [-1, 1]."""

    algorithm_class = DDPG
    envs, distil_lr, distil_batch = 1, 1e-4, 64

    def defaults(self, actions: spaces.Space[Any], steps: int) -> dict[str, Any]:
        size = actions.shape or ()
        return {
            "policy_kwargs": {"net_arch": [64, 64, 64], "activation_fn": nn.ReLU},
            "action_noise": NormalActionNoise(np.zeros(size), np.full(size, 0.1)),
            "train_freq": 1,
            "gradient_steps": -1,
            "buffer_size": min(1_000_000, steps),
        }

    def imitating_parameters(self) -> list[nn.Parameter]:
        return [*self.algorithm.actor.parameters()]

    @property
    def turn_steps(self) -> int:
        return self.algorithm.train_freq.frequency

    @property
    def gradient_steps(self) -> int:
        if self.algorithm.num_timesteps <= self.algorithm.learning_starts:  # it acts at random
            return 0
        return self.turn_steps if self.algorithm.gradient_steps < 0 else self.algorithm.gradient_steps

    def actions(self, states: Tensor) -> Tensor:
        return self.algorithm.actor(states)

    def values(self, states: Tensor, actions: Tensor) -> Tensor:
        return self.algorithm.critic.q1_forward(states, actions).squeeze(-1)


class PPOLearner(Learner):
    """PPO: actions are the means of its normal distribution, or the probabilities of discrete actions."""

    algorithm_class = PPO
    envs, distil_lr, distil_batch = 8, 1e-5, 256

    def defaults(self, actions: spaces.Space[Any], steps: int) -> dict[str, Any]:
        if not isinstance(actions, spaces.Box | spaces.Discrete):
            raise ConfigError(f"The actions of rl.env={self.env} are {actions}: only Box and Discrete are supported.")
        network = {"net_arch": {"pi": [64, 64], "vf": [64, 64, 64]}, "activation_fn": nn.Tanh}
        return {"policy_kwargs": network, "n_steps": 128}

    def imitating_parameters(self) -> list[nn.Parameter]:
        # The standard deviation of the actions is not trained.
        policy = self.algorithm.policy
        return [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]

    @property
    def turn_steps(self) -> int:
        return self.algorithm.n_steps * self.envs

    @property
    def gradient_steps(self) -> int:
        return math.ceil(self.turn_steps / self.algorithm.batch_size) * self.algorithm.n_epochs

    def actions(self, states: Tensor) -> Tensor:
        chosen: Any = self.algorithm.policy.get_distribution(states)
        return chosen.distribution.probs if isinstance(chosen, CategoricalDistribution) else chosen.distribution.mean

    def values(self, states: Tensor, actions: Tensor) -> Tensor:
        return self.algorithm.policy.predict_values(states).squeeze(-1)


LEARNERS: Mapping[str, type[Learner]] = {"ddpg": DDPGLearner, "ppo": PPOLearner}
