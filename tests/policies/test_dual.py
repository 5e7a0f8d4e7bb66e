"""Two learners around Stable-Baselines3: what imitation changes, how they are evaluated, and what is refused."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from dkel_lightning.errors import ConfigError
from dkel_lightning.policies.settings import DualPolicySettings

pytest.importorskip("gymnasium", reason="the extra rl is not installed")
pytest.importorskip("stable_baselines3", reason="the extra rl is not installed")

import gymnasium as gym
from stable_baselines3 import DDPG, PPO

from dkel_lightning.policies.dual import DualPolicy


class Reach(gym.Env[Any, Any]):
    """Solvable at once: say where you are. State s in [-1, 1] at random, reward -(a - s)^2, three steps an episode."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 3
        return self._state(), {}

    def _state(self) -> Any:
        self.state = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.state

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = -float((action[0] - self.state[0]) ** 2)
        self.left -= 1
        return self._state(), reward, self.left == 0, False, {}


@pytest.fixture(scope="module", autouse=True)
def environments() -> Iterator[None]:
    gym.register("Reach-v0", entry_point=cast(Any, Reach))
    yield
    del gym.registry["Reach-v0"]


def small(algorithm: str, **given: Any) -> DualPolicySettings:
    usual: dict[str, Any] = {"env": "Reach-v0"}
    if algorithm == "ddpg":
        usual |= {"steps": 400, "learner": {"learning_starts": 40, "batch_size": 32}}
    else:
        learner = {"learning_rate": 0.003, "n_epochs": 4, "n_steps": 32}
        usual |= {"steps": 5120, "learner": learner, "distil_lr": 1e-4}
    return DualPolicySettings(algorithm=algorithm, **{**usual, **given})


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ddpg", "ppo"])
def test_both_policies_of_a_solvable_task_improve_and_act_the_same_when_loaded(algorithm: str, tmp_path: Path) -> None:
    dual = DualPolicy(small(algorithm), seed=3)
    before = [statistics.fmean(learner.evaluate("evaluation")) for learner in dual.learners]
    evaluations = [*dual.train()]
    assert [evaluation.steps for evaluation in evaluations] == [dual.settings.steps * n // 10 for n in range(1, 11)]
    after = [statistics.fmean(returns) for returns in evaluations[-1].returns]
    assert all(late > early + 0.2 for early, late in zip(before, after, strict=True)), (before, after)
    names = {f"{name}_{number}" for name in ("loss", "distance", "peer_better") for number in (0, 1)}
    assert evaluations[-1].logged.keys() == names

    dual.learners[0].algorithm.save(tmp_path / "policy.zip")
    states = np.linspace(-1, 1, 9, dtype=np.float32)[:, None]
    loaded = (DDPG if algorithm == "ddpg" else PPO).load(tmp_path / "policy.zip")
    expected = dual.learners[0].algorithm.predict(states, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(states, deterministic=True)[0], expected)


def test_equal_seeds_give_equal_runs_and_others_do_not() -> None:
    first, again, other = (next(DualPolicy(small("ppo", steps=512), seed).train()) for seed in (1, 1, 2))
    assert first == again
    assert first.returns != other.returns


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("algorithm", "trained"), [("ddpg", "actor."), ("ppo", ("mlp_extractor.policy_net", "action_net"))]
)
def test_imitation_trains_the_own_actor_alone(algorithm: str, trained: str | tuple[str, ...]) -> None:
    dual = DualPolicy(small(algorithm, learner={}, distil_lr=0.1))
    own, peer = dual.learners
    assert dual.imitate(0) == {}  # the peer has not acted yet
    peer.take_turn()
    own.algorithm.num_timesteps = 400  # beyond DDPG's random actions
    before = [copy.deepcopy(each.algorithm.policy.state_dict()) for each in (own, peer)]
    states = copy.deepcopy(peer.recent)
    assert len(dual.imitate(0)["loss"]) == own.gradient_steps
    moved = changed(before[0], own.algorithm.policy.state_dict())
    assert moved
    assert all(name.startswith(trained) for name in moved)
    assert not changed(before[1], peer.algorithm.policy.state_dict())
    assert all(map(np.array_equal, states, peer.recent))


def test_a_policy_alone_has_all_the_steps_and_imitates_nobody() -> None:
    evaluations = [*DualPolicy(small("ppo", policies=1, steps=2560)).train()]
    assert [evaluation.steps for evaluation in evaluations] == [256 * n for n in range(1, 11)]
    assert {len(evaluation.returns) for evaluation in evaluations} == {1}
    assert evaluations[-1].logged == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"env": "Pendulm-v1"}, "rl.env=Pendulm-v1 cannot be made: .*Pendul"),
        ({"env": "os:system"}, "rl.env=os:system names a module"),
        ({"env": "CartPole-v1"}, "DDPG refuses rl.env or rl.learner: .*action space"),
        ({"learner": {"learning_rat": 1}}, "DDPG refuses rl.env or rl.learner: .*learning_rat"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DualPolicy(small("ddpg", **given))
