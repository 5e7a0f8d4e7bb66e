"""Supervision complexity: golden kernels and values, identities, and targets that are hard or easy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks import create
from dkel_lightning.studies.complexity import centred, gradient_kernel, supervision_complexity
from tests.methods.family import tensor

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "supervision_complexity.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["kernel"], ids=[case["name"] for case in GOLDEN["kernel"]])
def test_golden_values_of_given_kernels(case: dict[str, Any]) -> None:
    kernel, targets = tensor(case["inputs"]["K"]), tensor(case["inputs"]["Y"])
    expected, scale = case["expected"], case["settings"]["scale"]
    for ridge in case["settings"]["eps_relative"]:
        name = f"eps_{ridge:g}" if ridge == 0 else f"eps_{ridge}"
        assert supervision_complexity(kernel, targets, ridge) == pytest.approx(expected[name], rel=1e-10)
        found = supervision_complexity(scale * kernel, targets, ridge)
        assert found == pytest.approx(expected["scaled"][name], rel=1e-10)
    if case["settings"]["kind"] == "identity":
        assert supervision_complexity(kernel, targets, 0) == pytest.approx(expected["rms_per_sample"], rel=1e-10)


def test_golden_kernel_and_values_of_a_network() -> None:
    (case,) = GOLDEN["network"]
    said, given, expected = case["settings"], case["inputs"], case["expected"]
    network = nn.Sequential(
        nn.Linear(said["inputs"], said["hidden"]), nn.Tanh(), nn.Linear(said["hidden"], said["outputs"])
    ).double()
    weights = {key: tensor(value) for key, value in given["weights"].items()}
    names = {"0.weight": "w1", "0.bias": "b1", "2.weight": "w2", "2.bias": "b2"}
    network.load_state_dict({name: weights[key] for name, key in names.items()})
    images = tensor(given["x"])
    torch.testing.assert_close(network(images), tensor(expected["logits"]), rtol=1e-10, atol=1e-10)
    kernel = gradient_kernel(network, images, said["outputs"], chunk=2)
    torch.testing.assert_close(kernel, tensor(expected["kernel"]), rtol=1e-10, atol=1e-10)
    for name, values in expected["adjusted"].items():
        for ridge, key in ((0.0, "eps_0"), (1e-4, "eps_0.0001")):
            found = supervision_complexity(kernel, tensor(given["targets"][name]), ridge)
            assert found == pytest.approx(values[key], rel=1e-8)  # of a kernel near singular
    labels = F.one_hot(torch.tensor(given["labels"]), said["outputs"])
    torch.testing.assert_close(centred(labels), tensor(given["targets"]["labels"]), rtol=0, atol=0)


def test_the_kernel_of_a_network_with_batchnorm_is_that_of_its_gradients_one_by_one() -> None:
    torch.manual_seed(0)
    network, images = create("resnet8", 3, 1).peer(0), torch.randn(3, 3, 8, 8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kernel = gradient_kernel(network, images, 3, chunk=2)
    copied = create("resnet8", 3, 1).peer(0)
    copied.load_state_dict(before)
    copied.double().eval()
    rows = torch.zeros(3, 3, sum(each.numel() for each in copied.parameters()), dtype=torch.float64)
    for sample in range(3):
        for index in range(3):
            gradients = torch.autograd.grad(
                copied(images[sample : sample + 1].double())[0, index], tuple(copied.parameters())
            )
            rows[sample, index] = torch.cat([each.flatten() for each in gradients])
    expected = torch.einsum("icp,jcp->ij", rows, rows) / 3
    torch.testing.assert_close(kernel, expected, rtol=1e-9, atol=1e-12)
    assert network.training  # what is looked at stays as it was
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_it_is_the_norm_of_the_least_linear_model_that_fits_and_shuffled_labels_are_harder() -> None:
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, 40, generator=draws, dtype=torch.float64)
    weights = inputs[:4].T
    targets = inputs @ weights / 40
    kernel = inputs @ inputs.T
    # The minimum-norm solution W of X W = Y has ||W||^2 = Y^T K^-1 Y.
    least = torch.linalg.pinv(inputs) @ targets
    expected = (kernel.trace() * least.square().sum()).sqrt() / 12
    assert supervision_complexity(kernel, targets, 0.0) == pytest.approx(expected.item(), rel=1e-9)
    shuffled = targets[torch.randperm(12, generator=draws)]
    assert supervision_complexity(kernel, shuffled, 0.0) > 1.2 * expected.item()


def test_a_singular_kernel_is_refused_and_a_ridge_cures_it() -> None:
    twice = torch.ones(4, 4, dtype=torch.float64)
    with pytest.raises(ConfigError, match="kernel of 4 images cannot be inverted: two images are alike"):
        supervision_complexity(twice, torch.eye(4, dtype=torch.float64), 0.0)
    assert supervision_complexity(twice, torch.eye(4, dtype=torch.float64), 1e-4) > 0
