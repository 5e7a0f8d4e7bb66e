"""KDCL: its targets against brute force, its loss and gradients by hand, a run."""

from __future__ import annotations

import itertools
import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from dkel_lightning.methods import kdcl
from tests.methods.family import draw, loss_of

Array: TypeAlias = npt.NDArray[Any]


def mix(weights: Array, logits: Array) -> Array:
    return np.tensordot(weights, logits, 1)


def mixed_loss(weights: Array, logits: Array, labels: Array) -> float:
    mixed = mix(weights, logits)
    top = mixed.max(-1, keepdims=True)
    normaliser = np.log(np.exp(mixed - top).sum(-1)) + top[:, 0]
    return float((normaliser - mixed[np.arange(len(labels)), labels]).mean())


def grid(peers: int, parts: int) -> list[Array]:
    whole = itertools.product(range(parts + 1), repeat=peers)
    return [np.array(point) / parts for point in whole if sum(point) == parts]


@pytest.mark.parametrize("scale", [0.3, 3.0, 15.0])
@pytest.mark.parametrize(("peers", "parts"), [(2, 400), (3, 60), (4, 20)])
def test_linear_finds_the_convex_weights_that_brute_force_finds(peers: int, parts: int, scale: float) -> None:
    draws = torch.Generator().manual_seed(peers)
    labels = torch.arange(12) % 5
    # Peers of different quality: the true class stands out more or less.
    logits = torch.randn(peers, 12, 5, generator=draws, dtype=torch.float64)
    logits += torch.arange(peers).view(-1, 1, 1) * F.one_hot(labels, 5) * 0.7
    logits *= scale
    found = kdcl.linear_weights(logits, labels)
    assert found.sum().item() == pytest.approx(1, abs=1e-12)
    assert found.min() >= 0
    best = min(mixed_loss(point, logits.numpy(), labels.numpy()) for point in grid(peers, parts))
    # The grid's best lies above the minimum, so only one side is bounded.
    assert mixed_loss(found.numpy(), logits.numpy(), labels.numpy()) <= best + 1e-3 * max(best, 1.0)
    assert torch.equal(found, kdcl.linear_weights(logits, labels))
    expected = mix(found.numpy(), logits.numpy())
    np.testing.assert_allclose(kdcl.linear(logits, labels).numpy(), expected, rtol=1e-12)


def independent_target(name: str, z: Array, labels: Array) -> Array:
    if name == "mean":
        return mix(np.full(len(z), 1 / len(z)), z)
    if name == "linear":
        points = grid(3, 300)
        return mix(min(points, key=lambda point: mixed_loss(point, z, labels)), z)
    target: Array = np.empty_like(z[0])
    for b, label in enumerate(labels):
        if name == "naive":
            probability = [math.exp(peer[b, label]) / np.exp(peer[b]).sum() for peer in z]
            target[b] = z[int(np.argmax(probability)), b]
        else:
            target[b] = [min(peer[b, c] - peer[b, label] for peer in z) for c in range(z.shape[-1])]
    return target


@pytest.mark.parametrize("name", ["naive", "min_logit", "mean", pytest.param("linear", marks=pytest.mark.slow)])
def test_loss_and_gradients_of_three_peers_whose_common_target_gets_none(name: str) -> None:
    logits = draw(3, 4, 3, seed=5).requires_grad_()
    labels, T, weight = torch.tensor([0, 2, 1, 1]), 3.0, 0.7
    value = loss_of("kdcl", logits, labels, target=name, weight=weight, temperature=T)
    target = torch.from_numpy(independent_target(name, logits.detach().numpy(), labels.numpy()))
    t = (target / T).softmax(-1)
    expected, expected_gradient = 0.0, torch.zeros(3, 4, 3, dtype=torch.float64)
    for k in range(3):
        z = logits[k].detach()
        soft = (z / T).softmax(-1)
        expected += -z.softmax(-1)[range(4), labels].log().mean().item()
        expected += weight * T**2 * (t * (t / soft).log()).sum().item() / 4
        # Of a constant target; through it there would be a further part.
        expected_gradient[k] = (z.softmax(-1) - F.one_hot(labels)) / 4 + weight * T * (soft - t) / 4
    tolerance = 5e-3 if name == "linear" else 1e-12
    assert value.item() == pytest.approx(expected, rel=tolerance)
    found = torch.autograd.grad(value, logits)[0]
    torch.testing.assert_close(found, expected_gradient, rtol=tolerance, atol=tolerance)
