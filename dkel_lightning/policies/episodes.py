"""Episodes that are functions of a seed, so that a run can be resumed within one. Needs the extra `rl`."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dkel_lightning.errors import ConfigError, NonFiniteError
from dkel_lightning.runtime.seeding import derive_seed

Observation = NDArray[Any]


def make(name: str, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Make an environment by its name.

    Raises:
        ConfigError: there is none of that name, or it cannot be made.
    """
    if ":" in name:
        raise ConfigError(f"rl.env={name} names a module: give modules=[...] that registers it, and its name alone.")
    try:
        # An environment need not know the word.
        shown: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        return gym.make(name, disable_env_checker=True, **shown)
    except Exception as error:  # whatever an environment raises that cannot be made is what is wrong with it
        said = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(f"rl.env={name} cannot be made: {said}") from error


class RecentStates:
    """The latest states in which a policy has acted, the oldest overwritten first.

    Args:
        size: how many are kept.
        shape: of one.
    """

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        self.states = np.zeros((size, *shape), dtype=np.float32)
        self.seen = 0

    def __len__(self) -> int:
        return min(self.seen, len(self.states))

    def add(self, state: Observation) -> None:
        """Keep a state."""
        self.states[self.seen % len(self.states)] = state
        self.seen += 1

    def sample(self, count: int) -> Observation:
        """Draw states with numpy's global generator, with replacement."""
        return self.states[np.random.randint(len(self), size=count)]


class Finite(gym.Wrapper[Any, Any, Any, Any]):
    """Refuse numbers from which nothing can be learnt."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step.

        Raises:
            NonFiniteError: its reward or state is NaN or infinite.
        """
        state, reward, terminated, truncated, info = self.env.step(action)
        number = float(reward)
        if not math.isfinite(number) or not np.isfinite(state).all():
            what = f"a reward of {number}" if not math.isfinite(number) else "a state that is not finite"
            name = self.env.spec.id if self.env.spec else type(self.env.unwrapped).__name__
            acted = "" if np.isfinite(action).all() else ", on an action that is none: lower the learning rate"
            raise NonFiniteError(f"rl.env={name} gave {what}{acted}.")
        return state, number, terminated, truncated, info


class Episodes(Finite):
    """Number the episodes, seed each by its number, and remember its actions: from these it can be gone on with.

    That takes an environment that does the same after the same seed and actions, as Gymnasium asks for.

    Args:
        env: the environment.
        seed: of the run.
        labels: which policy's which environment it is.
        memory: takes the states in which it is acted.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int, labels: tuple[int, ...], memory: RecentStates) -> None:
        super().__init__(env)
        self._seed, self._labels, self._memory = seed, labels, memory
        self._episode, self._taken = -1, list[Any]()
        self.state: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode, with its own seed rather than the given one."""
        return self._begin(self._episode + 1)

    def _begin(self, episode: int) -> tuple[Any, dict[str, Any]]:
        self._episode, self._taken = episode, []
        seed = derive_seed(self._seed, "episode", *self._labels, episode) % 2**31
        self.state, info = self.env.reset(seed=seed)
        return self.state, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step."""
        self._memory.add(self.state)
        self._taken.append(np.array(action))
        found = super().step(action)
        self.state = found[0]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Give the episode, and its actions so far as numbers and their type."""
        kind = str(self._taken[0].dtype) if self._taken else ""
        return {"episode": self._episode, "actions": [each.tolist() for each in self._taken], "type": kind}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Go through the episode again; tells whether it is at its beginning."""
        self._begin(state["episode"])
        self._taken = [np.array(each, dtype=state["type"]) for each in state["actions"]]
        for action in self._taken:
            self.state = self.env.step(action)[0]
        return not self._taken
