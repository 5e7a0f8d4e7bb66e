"""Weights, losses and gradients of imitation, against tests/golden/dual_policy.json (its `source` says whence)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dkel_lightning.policies.imitation import distances, imitation, weighted, weights
from tests.methods.family import tensor

GOLDEN: dict[str, Any] = json.loads(Path("tests/golden/dual_policy.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["loss"], ids=lambda case: case["name"])
def test_weights_are_the_golden_ones(case: dict[str, Any]) -> None:
    own, peer = tensor(case["inputs"]["own_values"]), tensor(case["inputs"]["peer_values"])
    alpha, expected = case["settings"]["alpha"], case["expected"]
    found, turned = weights(own, peer, alpha), weights(peer, own, alpha)
    torch.testing.assert_close(found, tensor(expected["weights"]), rtol=1e-12, atol=0)
    torch.testing.assert_close(found / found.sum(), tensor(expected["weights_normalised"]), rtol=1e-12, atol=0)
    torch.testing.assert_close(turned, tensor(expected["released_ppo_weights"]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", GOLDEN["loss"], ids=lambda case: case["name"])
@pytest.mark.parametrize("weighting", ["normalised_sum", "ddpg_released", "ppo_released", "plain_cloning"])
def test_losses_and_gradients_are_the_golden_ones(case: dict[str, Any], weighting: str) -> None:
    given, expected = case["inputs"], case["expected"]
    own = tensor(given["own_actions"]).requires_grad_()
    distance = distances(own, tensor(given["peer_actions"]))
    torch.testing.assert_close(distance.detach(), tensor(expected["distance"]), rtol=1e-12, atol=0)
    kind = "uniform" if weighting == "plain_cloning" else weighting
    values = tensor(given["own_values"]), tensor(given["peer_values"])
    loss = weighted(distance, *values, kind, case["settings"]["alpha"])
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"][weighting], rel=1e-12)
    assert own.grad is not None
    torch.testing.assert_close(own.grad, tensor(expected["grad_own_actions"][weighting]), rtol=1e-11, atol=1e-16)


class GoldenActor:
    """The golden file's actor and critic, all of it leaves, so that a gradient that goes astray is seen."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.leaves = {name: tensor(values).requires_grad_() for name, values in given.items()}

    def actions(self, states: Tensor) -> Tensor:
        of = self.leaves
        return torch.tanh(torch.tanh(states @ of["actor_w1"].T + of["actor_b1"]) @ of["actor_w2"].T + of["actor_b2"])

    def values(self, states: Tensor, actions: Tensor) -> Tensor:
        of = self.leaves
        return torch.tanh(states @ of["critic_ws"].T + actions @ of["critic_wa"].T + of["critic_b"]) @ of["critic_v"]


def test_gradients_reach_the_own_actor_and_neither_a_critic_nor_the_peer() -> None:
    (case,) = GOLDEN["networks"]
    own, peer = GoldenActor(case["inputs"]["own"]), GoldenActor(case["inputs"]["peer"])
    found = imitation(own, peer, tensor(case["inputs"]["states"]))
    found.loss.backward()
    expected = case["expected"]["card"]
    assert found.loss.item() == pytest.approx(expected["normalised_sum"], rel=1e-12)
    assert found.peer_better.item() == pytest.approx(sum(weight > 1 for weight in expected["weights"]) / 5)
    for name, values in expected["grad_normalised_sum"].items():
        torch.testing.assert_close(own.leaves[name].grad, tensor(values), rtol=1e-10, atol=1e-15)
    without = [*peer.leaves.values(), *(each for name, each in own.leaves.items() if name.startswith("critic"))]
    assert len(without) == 12
    assert all(each.grad is None for each in without)
