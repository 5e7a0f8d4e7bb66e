"""How much a policy imitates its peer, and where: pure functions of actions and values.

Lai et al., IJCAI 2020 (arXiv 2006.04061), Eq. 9 and 11. Shapes: actions [B, A], values, weights and distances [B].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

CLIP = 0.01, 100.0
"""Bounds of a weight, as in the released code."""


class Actor(Protocol):
    """What imitation asks of a policy."""

    def actions(self, states: Tensor) -> Tensor:
        """Compute the actions without exploration [B, A], or the probabilities of discrete actions."""

    def values(self, states: Tensor, actions: Tensor) -> Tensor:
        """Compute the expected returns [B] of states; `actions` are the policy's own, for a critic of actions."""


@dataclass(frozen=True)
class Imitation:
    """A step of imitation.

    Attributes:
        loss: of the own policy; its actions alone have a gradient.
        distance: mean distance of the actions.
        peer_better: share of the states in which the peer is better.
    """

    loss: Tensor
    distance: Tensor
    peer_better: Tensor


def weights(own_values: Tensor, peer_values: Tensor, alpha: float) -> Tensor:
    """Compute exp(alpha (V_peer - V_own)), clipped: above 1 exactly where the peer is better."""
    return (alpha * (peer_values - own_values)).exp().clamp(*CLIP)


def distances(own_actions: Tensor, peer_actions: Tensor) -> Tensor:
    """Compute the squared difference of the actions, averaged over their dimensions."""
    return (own_actions - peer_actions).square().mean(-1)


def weighted(
    distance: Tensor, own_values: Tensor, peer_values: Tensor, weighting: str = "normalised_sum", alpha: float = 1.0
) -> Tensor:
    """Reduce the distances to a loss.

    Args:
        distance: of the actions.
        own_values: of the imitating policy.
        peer_values: of the imitated policy.
        weighting: `normalised_sum`: a sum with weights that add up to 1. `uniform`: the mean. `ddpg_released`: the sum
            without weights, which drop out of the released code. `ppo_released`: the exponent's sign turned, weights
            that add up to 1, and then the mean.
        alpha: sharpness of the weights.
    """
    if weighting == "uniform":
        return distance.mean()
    if weighting == "ddpg_released":
        return distance.sum()
    turned = weighting == "ppo_released"
    weight = weights(peer_values, own_values, alpha) if turned else weights(own_values, peer_values, alpha)
    terms = weight / weight.sum() * distance
    return terms.mean() if turned else terms.sum()


def imitation(own: Actor, peer: Actor, states: Tensor, weighting: str = "normalised_sum") -> Imitation:
    """Compute the step in which `own` imitates `peer` on states of the peer; only the own actions get a gradient."""
    actions = own.actions(states)
    with torch.no_grad():
        target = peer.actions(states)
        own_values, peer_values = own.values(states, actions), peer.values(states, target)
    distance = distances(actions, target)
    loss = weighted(distance, own_values, peer_values, weighting)
    return Imitation(loss, distance.detach().mean(), (peer_values > own_values).to(distance.dtype).mean())
