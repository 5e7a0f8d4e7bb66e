"""Two learners around Stable-Baselines3: what they change, what they refuse, and how they go on."""

from __future__ import annotations

import copy
import io
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from dkel_lightning.errors import ConfigError, NonFiniteError
from dkel_lightning.policies.settings import DualPolicySettings

pytest.importorskip("gymnasium", reason="the extra rl is not installed")
pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")

import gymnasium as gym
from stable_baselines3 import DDPG, PPO

from dkel_lightning.policies.dual import DualPolicy
from dkel_lightning.policies.episodes import Episodes, RecentStates, make


class Reach(gym.Env[Any, Any]):
    """Solvable at once: say where you are. State s in [-1, 1] at random, reward -(a - s)^2, three steps an episode."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    fault = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 3
        return self._state(), {}

    def _state(self) -> Any:
        self.state = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.state

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = -float((action[0] - self.state[0]) ** 2) + self.fault
        self.left -= 1
        return self._state(), reward, self.left == 0, False, {}


class NoNumber(Reach):
    fault = float("nan")


@pytest.fixture(scope="module", autouse=True)
def environments() -> Iterator[None]:
    for kind in (Reach, NoNumber):
        gym.register(f"{kind.__name__}-v0", entry_point=cast(Any, kind))
    yield
    for kind in (Reach, NoNumber):
        del gym.registry[f"{kind.__name__}-v0"]


def small(algorithm: str, **given: Any) -> DualPolicySettings:
    usual: dict[str, Any] = {"env": "Reach-v0", "evaluations": 2, "episodes": 30}
    if algorithm == "ddpg":
        usual |= {"steps": 400, "turn": 4, "learner": {"learning_starts": 40, "batch_size": 32}}
    else:
        learner = {"learning_rate": 0.003, "n_epochs": 4}
        usual |= {"steps": 4096, "envs": 4, "turn": 256, "learner": learner, "distil_lr": 1e-4}
    return DualPolicySettings(algorithm=algorithm, **{**usual, **given})


def written(dual: DualPolicy) -> dict[str, Any]:
    """Give what a checkpoint would hold after it was written and read without running anything."""
    file = io.BytesIO()
    torch.save(dual.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ddpg", "ppo"])
def test_both_policies_of_a_solvable_task_improve_and_go_on_from_a_checkpoint_as_they_would_have(
    algorithm: str, tmp_path: Path
) -> None:
    settings = small(algorithm)
    dual = DualPolicy(settings, seed=3)
    before = [statistics.fmean(learner.evaluate()) for learner in dual.learners]
    dual.advance()
    kept = written(dual)
    found = dual.advance()
    assert dual.finished
    assert found.steps == settings.steps
    after = [statistics.fmean(each) for each in found.returns]
    assert all(late > early + 0.2 for early, late in zip(before, after, strict=True)), (before, after)
    assert set(found.logged) == {
        f"{name}_{number}" for name in ("loss", "distance", "peer_better") for number in (0, 1)
    }

    resumed = DualPolicy(settings, seed=3)
    resumed.load_state_dict(kept)
    assert resumed.advance() == found

    # A saved policy acts as it did.
    path = tmp_path / "policy.zip"
    dual.learners[0].save(path)
    states = np.linspace(-1, 1, 9, dtype=np.float32)[:, None]
    loaded = (DDPG if algorithm == "ddpg" else PPO).load(path)
    expected = dual.learners[0].algorithm.predict(states, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(states, deterministic=True)[0], expected)


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("algorithm", "trained"), [("ddpg", "actor."), ("ppo", ("mlp_extractor.policy_net", "action_net"))]
)
def test_imitation_trains_the_own_actor_alone(algorithm: str, trained: str | tuple[str, ...]) -> None:
    dual = DualPolicy(small(algorithm, learner={}, distil_lr=0.1), seed=0)
    own, peer = dual.learners
    peer.turn()  # leaves states to imitate on
    own.algorithm.num_timesteps = own.settings.steps  # beyond DDPG's random actions, so that it imitates
    before = [copy.deepcopy(each.algorithm.policy.state_dict()) for each in (own, peer)]
    kept = copy.deepcopy(peer.recent.states)
    assert dual._imitate(0)["loss"]
    moved = changed(before[0], own.algorithm.policy.state_dict())
    assert moved
    assert all(name.startswith(trained) for name in moved)
    assert not changed(before[1], peer.algorithm.policy.state_dict())
    np.testing.assert_array_equal(peer.recent.states, kept)


def test_a_policy_alone_has_all_the_steps_and_imitates_nobody() -> None:
    dual = DualPolicy(small("ppo", policies=1, steps=1024), seed=0)
    first, second = dual.advance(), dual.advance()
    assert [first.steps, second.steps] == [512, 1024]
    assert len(second.returns) == 1
    assert second.logged == {}


def test_imitation_may_be_rarer_than_own_steps() -> None:
    dual = DualPolicy(small("ddpg", distil_steps=0.375, learner={"learning_starts": 0}), seed=0)
    counts = []
    dual.learners[1].turn()
    for _ in range(4):
        dual.learners[0].turn()
        counts.append(len(dual._imitate(0).get("loss", [])))
    assert counts == [1, 2, 1, 2]  # 1.5 each, what is left is kept


def test_the_latest_states_are_kept() -> None:
    recent = RecentStates(3, (1,))
    for number in range(5):
        recent.add(np.array([number]))
    assert sorted(recent.states[:, 0]) == [2, 3, 4]
    assert len(recent) == 3
    assert set(recent.sample(50)[:, 0]) == {2, 3, 4}


def test_an_episode_goes_on_where_it_was() -> None:
    def episodes() -> Episodes:
        return Episodes(make("Reach-v0"), 5, (0, 0), RecentStates(10, (1,)))

    first, second = episodes(), episodes()
    first.reset()
    first.reset()
    first.step(np.array([0.5], dtype=np.float32))
    assert second.load_state_dict(first.state_dict()) is False
    assert second.state == first.state
    assert second.step(np.zeros(1, np.float32))[:2] == first.step(np.zeros(1, np.float32))[:2]
    assert second.reset()[0] == first.reset()[0]
    assert len(second._memory) == 1  # going through it again is no experience


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"env": "Pendulm-v1"}, "rl.env=Pendulm-v1 cannot be made: .*Pendul"),
        ({"env": "os:system"}, "rl.env=os:system names a module"),
        ({"env": "CartPole-v1"}, "rl.algorithm=ddpg needs continuous actions.*use rl.algorithm=ppo"),
        ({"learner": {"learning_rat": 1}}, "rl.learner: .*learning_rat"),
        ({"learner": {"train_freq": 2}}, "rl.learner: .*train_freq"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DualPolicy(small("ddpg", **given))


@pytest.mark.parametrize("act", [lambda dual: dual.advance(), lambda dual: dual.learners[0].evaluate()])
def test_a_reward_that_is_no_number_ends_the_run(act: Callable[[DualPolicy], Any]) -> None:
    with pytest.raises(NonFiniteError, match=r"^rl.env=NoNumber-v0 gave a reward of nan\.$"):
        act(DualPolicy(small("ddpg", env="NoNumber-v0")))
