"""How much a policy imitates its peer, and where: pure functions of actions and values.

Lai et al., IJCAI 2020 (arXiv 2006.04061), Eq. 9 and 11. Shapes: actions [B, A], values, weights and distances [B].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

CLIP = 0.01, 100.0
"""Bounds of a weight, as released."""


class Actor(ABC):
    """What imitation asks of a policy."""

    @abstractmethod
    def actions(self, states: Tensor) -> Tensor:
        """Give what it does, without exploration [B, A]: actions, or their probabilities where they are discrete."""

    @abstractmethod
    def values(self, states: Tensor, actions: Tensor) -> Tensor:
        """Give what it expects of each state [B]; `actions` are its own, about which a critic is asked."""


@dataclass(frozen=True)
class Imitation:
    """A step's loss, and what is logged of it.

    Attributes:
        loss: of the own policy; its actions alone have a gradient.
        distance: mean distance of the actions.
        peer_better: share of the states in which the peer is better.
    """

    loss: Tensor
    distance: Tensor
    peer_better: Tensor


def weights(own_values: Tensor, peer_values: Tensor, alpha: float) -> Tensor:
    """Give exp(alpha (V_peer - V_own)), clipped: above 1 exactly where the peer is better."""
    return (alpha * (peer_values - own_values)).exp().clamp(*CLIP)


def distances(own_actions: Tensor, peer_actions: Tensor) -> Tensor:
    """Give the squared difference of the actions, its mean over their dimensions."""
    return (own_actions - peer_actions).square().mean(-1)


def weighted(distance: Tensor, own_values: Tensor, peer_values: Tensor, alpha: float, weighting: str) -> Tensor:
    """Sum distances into a loss.

    Args:
        distance: of the actions.
        own_values: what the imitating policy expects of the states.
        peer_values: what the imitated policy does.
        alpha: sharpness of the weights.
        weighting: `normalised_sum`: weights of sum 1, summed. `ddpg_released`: the sum without weights, which drop out
            of the released lines. `ppo_released`: the exponent's sign turned, weights of sum 1, and then the mean.
    """
    if weighting == "ddpg_released":
        return distance.sum()
    if weighting == "ppo_released":
        found = weights(peer_values, own_values, alpha)
        return (found / found.sum() * distance).mean()
    found = weights(own_values, peer_values, alpha)
    return (found / found.sum() * distance).sum()


def imitation(own: Actor, peer: Actor, states: Tensor, alpha: float, weighting: str) -> Imitation:
    """Let `own` imitate `peer` on states of the peer; nothing but the own actions gets a gradient."""
    actions = own.actions(states)
    with torch.no_grad():
        target = peer.actions(states)
        own_values, peer_values = own.values(states, actions), peer.values(states, target)
    distance = distances(actions, target)
    loss = weighted(distance, own_values, peer_values, alpha, weighting)
    return Imitation(loss, distance.detach().mean(), (peer_values > own_values).to(distance.dtype).mean())
