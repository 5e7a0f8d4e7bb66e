"""Stable-Baselines3's DDPG and PPO as policies that can be imitated and resumed. Needs the extra `rl`."""

from __future__ import annotations

import io
import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DDPG, PPO
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.policies.episodes import Episodes, Finite, RecentStates, make
from dkel_lightning.policies.imitation import Actor
from dkel_lightning.policies.settings import DualPolicySettings
from dkel_lightning.runtime.atomic_files import write_bytes
from dkel_lightning.runtime.seeding import derive_seed

BUFFER = 1_000_000
REPLAYED = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
"""What a replay buffer holds of a transition."""


class Learner(Actor):
    """A learner with its environments and its latest states; on the CPU, where these networks are fastest.

    Args:
        settings: of the run.
        seed: of the run.
        number: which of the policies it is.

    Raises:
        ConfigError: the environment cannot be made or is not for this algorithm, or an argument does not fit.
    """

    kind: type[DDPG] | type[PPO]

    def __init__(self, settings: DualPolicySettings, seed: int, number: int) -> None:
        self.settings, self.used, self._seed, self._number = settings, settings.used, seed, number
        envs = [make(settings.env) for _ in range(self.used.envs)]
        space = envs[0].observation_space
        if not isinstance(space, spaces.Box):
            raise ConfigError(f"rl.env={settings.env} gives states of {space}: only plain numbers (Box) are read.")
        self._check_actions(envs[0].action_space)
        assert space.shape is not None
        self.recent = RecentStates(settings.memory, space.shape)
        self.episodes = [Episodes(env, seed, (number, place), self.recent) for place, env in enumerate(envs)]
        try:
            self.algorithm: Any = self.kind(
                "MlpPolicy",
                DummyVecEnv([cast(Any, lambda env=env: env) for env in self.episodes]),
                seed=derive_seed(seed, "policy", number) % 2**31,
                device="cpu",
                **self._arguments(envs[0].action_space),
                **{**self._usual(), **settings.learner},
            )
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"rl.learner: {str(error) or type(error).__name__}") from error
        self.algorithm.set_logger(Logger(None, []))  # its own makes a folder in the temporary one
        self.optimizer = torch.optim.Adam(self.imitating_parameters(), lr=self.used.distil_lr)

    @abstractmethod
    def _check_actions(self, space: spaces.Space[Any]) -> None: ...

    @abstractmethod
    def _arguments(self, actions: spaces.Space[Any]) -> dict[str, Any]:
        """Give what the settings decide of the algorithm's arguments."""

    @abstractmethod
    def _usual(self) -> dict[str, Any]:
        """Give what `rl.learner` may change: the paper's networks, and what a run of this length asks for."""

    @abstractmethod
    def imitating_parameters(self) -> list[nn.Parameter]:
        """Give the parameters that imitation trains: those of the actions."""

    @property
    @abstractmethod
    def gradient_steps(self) -> int:
        """How many gradient steps the last turn took."""

    @property
    def steps(self) -> int:
        """Environment steps so far."""
        return self.algorithm.num_timesteps

    def begin(self, stage: int) -> None:
        """Seed what draws random actions; the global generators are the caller's."""
        self.algorithm.action_space.seed(derive_seed(self._seed, "random actions", self._number, stage) % 2**31)

    def turn(self) -> None:
        """Act for a turn, and update as the algorithm does."""
        self.algorithm.learn(self.used.turn, reset_num_timesteps=False, log_interval=None)

    def tensor(self, states: Any) -> Tensor:
        """Make a batch of states a tensor, as the networks read it."""
        return self.algorithm.policy.obs_to_tensor(states)[0]

    def evaluate(self) -> list[float]:
        """Give the returns of episodes without exploration, from starts that are the same for all policies."""
        return returns(self.algorithm, self.settings.env, self.settings.episodes, self._seed_of("evaluation"))

    def test(self) -> list[float]:
        """Give the same from other starts, with which nothing was chosen."""
        return returns(self.algorithm, self.settings.env, self.settings.episodes, self._seed_of("test"))

    def film(self) -> list[Any]:
        """Give evenly spaced frames of an episode of the test; none where the environment draws no pictures."""
        return film(self.algorithm, self.settings.env, self.settings.frames, self._seed_of("test"))

    def _seed_of(self, purpose: str) -> int:
        return derive_seed(self._seed, purpose) % 2**31

    def save(self, path: Path) -> None:
        """Write it as Stable-Baselines3 does: `stable_baselines3.DDPG.load(path)` or `PPO.load(path)` reads it."""
        written = io.BytesIO()
        self.algorithm.save(written)
        write_bytes(path, written.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """Give all that a resume needs, as tensors and primitives."""
        return {
            "parameters": self.algorithm.get_parameters(),
            "imitation": self.optimizer.state_dict(),
            "steps": self.steps,
            "recent": {"states": torch.from_numpy(self.recent.states.copy()), "seen": self.recent.seen},
            "episodes": [each.state_dict() for each in self.episodes] if self.steps else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, amid the episodes."""
        self.algorithm.set_parameters(state["parameters"])
        self.optimizer.load_state_dict(state["imitation"])
        self.algorithm.num_timesteps = state["steps"]
        self.recent.states[:] = state["recent"]["states"].numpy()
        self.recent.seen = state["recent"]["seen"]
        if state["steps"]:
            begins = [each.load_state_dict(own) for each, own in zip(self.episodes, state["episodes"], strict=True)]
            self.algorithm._last_obs = np.stack([each.state for each in self.episodes])
            self.algorithm._last_episode_starts = np.array(begins)


class DDPGLearner(Learner):
    """DDPG: V(s) is its critic's Q(s, pi(s)); actions are scaled to [-1, 1]."""

    kind = DDPG

    def _check_actions(self, space: spaces.Space[Any]) -> None:
        if not isinstance(space, spaces.Box):
            raise ConfigError(
                f"rl.algorithm=ddpg needs continuous actions, and those of {self.settings.env} are {space}: "
                "use rl.algorithm=ppo."
            )

    def _arguments(self, actions: spaces.Space[Any]) -> dict[str, Any]:
        size = actions.shape or ()
        noise = NormalActionNoise(np.zeros(size), np.full(size, self.settings.noise))
        return {"train_freq": self.used.turn // len(self.episodes), "action_noise": noise}

    def _usual(self) -> dict[str, Any]:
        network = {"net_arch": [64, 64, 64], "activation_fn": nn.ReLU}
        return {"policy_kwargs": network, "gradient_steps": -1, "buffer_size": min(BUFFER, self.settings.steps)}

    def imitating_parameters(self) -> list[nn.Parameter]:
        """Give those of the actor."""
        return [*self.algorithm.actor.parameters()]

    @property
    def gradient_steps(self) -> int:
        """None while it acts at random."""
        if self.steps <= self.algorithm.learning_starts:
            return 0
        given = self.algorithm.gradient_steps
        return self.used.turn if given < 0 else given

    def actions(self, states: Tensor) -> Tensor:
        """Give the actor's output."""
        return self.algorithm.actor(states)

    def values(self, states: Tensor, actions: Tensor) -> Tensor:
        """Give the critic's values of the actions."""
        return self.algorithm.critic.q1_forward(states, actions).squeeze(-1)

    def state_dict(self) -> dict[str, Any]:
        """Add the replay buffer as far as it is filled."""
        buffer: ReplayBuffer = self.algorithm.replay_buffer
        filled = {name: torch.from_numpy(getattr(buffer, name)[: buffer.size()].copy()) for name in REPLAYED}
        return {**super().state_dict(), "replay": {**filled, "pos": buffer.pos, "full": buffer.full}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Fill the replay buffer too."""
        super().load_state_dict(state)
        buffer: ReplayBuffer = self.algorithm.replay_buffer
        buffer.pos, buffer.full = state["replay"]["pos"], state["replay"]["full"]
        for name in REPLAYED:
            getattr(buffer, name)[: buffer.size()] = state["replay"][name].numpy()


class PPOLearner(Learner):
    """PPO: actions are means of its normal distribution, or the probabilities of discrete ones."""

    kind = PPO

    def _check_actions(self, space: spaces.Space[Any]) -> None:
        if not isinstance(space, spaces.Box | spaces.Discrete):
            raise ConfigError(
                f"The actions of rl.env={self.settings.env} are {space}: only Box and Discrete are known."
            )

    def _arguments(self, actions: spaces.Space[Any]) -> dict[str, Any]:
        return {"n_steps": self.used.turn // len(self.episodes)}

    def _usual(self) -> dict[str, Any]:
        network = {"net_arch": {"pi": [64, 64], "vf": [64, 64, 64]}, "activation_fn": nn.Tanh}
        return {"policy_kwargs": network}

    def imitating_parameters(self) -> list[nn.Parameter]:
        """Give those of the action's mean; its deviation stays the learner's own."""
        policy = self.algorithm.policy
        return [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]

    @property
    def gradient_steps(self) -> int:
        """Passes over the turn, in batches."""
        return math.ceil(self.used.turn / self.algorithm.batch_size) * self.algorithm.n_epochs

    def actions(self, states: Tensor) -> Tensor:
        """Give means or probabilities."""
        policy: ActorCriticPolicy = self.algorithm.policy
        found = policy.get_distribution(states)
        drawn_from: Any = found.distribution
        return drawn_from.probs if isinstance(found, CategoricalDistribution) else drawn_from.mean

    def values(self, states: Tensor, actions: Tensor) -> Tensor:
        """Give the value network's output."""
        return self.algorithm.policy.predict_values(states).squeeze(-1)


LEARNERS: Mapping[str, type[Learner]] = {"ddpg": DDPGLearner, "ppo": PPOLearner}


def returns(policy: Any, env: str, episodes: int, seed: int) -> list[float]:
    """Give the returns of a policy's episodes, one beside the other; `policy` predicts as Stable-Baselines3's do."""
    several = DummyVecEnv([lambda: Finite(make(env))] * episodes)
    several.seed(seed)
    found, _ = evaluate_policy(policy, several, episodes, return_episode_rewards=True, warn=False)
    several.close()
    return cast("list[float]", found)


def film(policy: Any, env: str, count: int, seed: int) -> list[Any]:
    """Give `count` evenly spaced frames [H, W, 3] of one episode; none where the environment draws no pictures."""
    plain = make(env)
    drawn = "rgb_array" in plain.metadata.get("render_modes", ())
    plain.close()
    if not count or not drawn:
        return []
    shown = make(env, "rgb_array")
    state, _ = shown.reset(seed=seed)
    frames, over = [shown.render()], False
    while not over:
        state, _, terminated, truncated, _ = shown.step(policy.predict(state, deterministic=True)[0])
        frames.append(shown.render())
        over = terminated or truncated
    shown.close()
    return [frames[place] for place in np.linspace(0, len(frames) - 1, count).round().astype(int)]
