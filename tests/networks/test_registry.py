"""Backbones by name: sizes against the golden counts, errors, and how the weights are drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dkel_lightning import DistillationModule
from dkel_lightning.errors import ConfigError
from dkel_lightning.networks import Branch, BranchedNetwork, create, register_backbone
from dkel_lightning.networks.registry import BACKBONES
from dkel_lightning.runtime.seeding import seeded

GOLDEN: dict[str, dict[str, int]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "dkel.json").read_text(encoding="utf-8")
)["peer_parameters"]
# A max-pool has no parameters.
GOLDEN |= {f"tiny_{name}": GOLDEN[name] for name in ("resnet18", "resnet34")}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", GOLDEN)
def test_parameter_counts_are_those_of_the_released_networks(name: str) -> None:
    expected = GOLDEN[name]
    with torch.device("meta"):
        network = create(name, expected["classes"], 3)
        ensemble = nn.Linear(3 * network.feature_dims[0], expected["classes"])
    assert network.feature_dims == (expected["features"],) * 3
    assert count(network) + count(ensemble) == expected["training_network"]
    assert count(network.peer(0)) == expected["one_peer"]


# 10 classes: about as many as the papers print, and exactly as many as the code that CIFAR work takes has: He et al.
# 2016 (arXiv 1512.03385), table 6, whose shortcuts have no parameters: those here add 2,752. Zagoruyko & Komodakis 2016
# (arXiv 1605.07146), table 4, and 2017 (arXiv 1612.03928) for WRN-16-2. The 18 and 34 layers: kuangliu/pytorch-cifar.
LITERATURE = {
    "resnet20": (0.27e6, 269_722 + 2_752),
    "resnet32": (0.46e6, 464_154 + 2_752),
    "resnet56": (0.85e6, 853_018 + 2_752),
    "resnet110_basic": (1.7e6, 1_727_962 + 2_752),
    "wrn_16_2": (0.7e6, 691_674),
    "wrn_40_2": (2.2e6, 2_243_546),
    "cifar_resnet18": (11.2e6, 11_173_962),
    "cifar_resnet34": (21.3e6, 21_282_122),
}


@pytest.mark.parametrize("name", LITERATURE)
def test_parameter_counts_are_those_of_the_literature(name: str) -> None:
    printed, exact = LITERATURE[name]
    with torch.device("meta"):
        assert count(create(name, 10, 1).peer(0)) == exact
    assert exact == pytest.approx(printed, rel=0.03)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_trains_at_its_smallest_size_and_not_below(name: str) -> None:
    size = BACKBONES[name].min_size
    network = create(name, 3, 1)
    logits, features, *_ = network(torch.randn(2, 3, size, size))
    assert isinstance(features, torch.Tensor)
    assert logits.shape == (1, 2, 3)
    assert features.shape == (1, 2, network.feature_dims[0])
    logits.square().sum().backward()
    without = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []
    if size > 1:
        with pytest.raises(RuntimeError, match="too small"):
            network(torch.randn(2, 3, size - 1, size - 1))


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def fan(conv: nn.Conv2d, mode: str) -> int:
    channels = conv.out_channels if mode == "fan_out" else conv.in_channels
    return channels * conv.kernel_size[0] * conv.kernel_size[1]


@pytest.mark.parametrize(("name", "mode"), [("resnet32", "fan_out"), ("vgg16", "fan_out"), ("densenet40_12", "fan_in")])
def test_convolutions_start_with_kaiming_deviation(name: str, mode: str) -> None:
    with seeded(0, name):
        network = create(name, 10, 1)
    tested = 0
    for conv in convolutions(network):
        elements = conv.weight.numel()
        if elements >= 4000:  # the deviation of fewer draws is too uncertain: its relative error is 1/sqrt(2n)
            expected = (2 / fan(conv, mode)) ** 0.5
            assert float(conv.weight.detach().std()) == pytest.approx(expected, rel=5 / (2 * elements) ** 0.5)
            tested += 1
        if conv.bias is not None:
            assert bool((conv.bias == 0).all())
    assert tested >= 10


def test_linear_layers_and_batchnorm_start_as_the_released_networks_do() -> None:
    with seeded(1):
        vgg, dense, res = (create(name, 100, 1) for name in ("vgg16", "densenet40_12", "resnet32"))
    linears = {
        name: [module for module in network.modules() if isinstance(module, nn.Linear)]
        for name, network in (("vgg", vgg), ("dense", dense), ("res", res))
    }
    assert [linear.out_features for linear in linears["vgg"]] == [512, 512, 100]
    for linear in linears["vgg"]:
        assert float(linear.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
        assert bool((linear.bias == 0).all())
    assert bool((linears["dense"][0].bias == 0).all())
    # torch's default: uniform within 1 / sqrt(width).
    for linear, width in ((linears["dense"][0], 132), (linears["res"][0], 64)):
        assert 0.97 * width**-0.5 < float(linear.weight.detach().abs().max()) <= width**-0.5
    assert float(linears["res"][0].bias.detach().abs().max()) > 0
    for module in dense.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())


@pytest.mark.parametrize("name", ["resnet8", "vgg16"])
def test_equal_classifiers_copies_the_first_classifier_only(name: str) -> None:
    network = create(name, 5, 3, equal_classifiers=True)
    assert isinstance(network, BranchedNetwork)
    first, *others = network.branches
    assert isinstance(first, Branch)
    for other in others:
        assert isinstance(other, Branch)
        copied = other.classifier.state_dict()
        for key, tensor in first.classifier.state_dict().items():
            assert torch.equal(copied[key], tensor)
            assert copied[key].data_ptr() != tensor.data_ptr()
        body = other.body.state_dict()
        assert not torch.equal(next(iter(first.body.state_dict().values())), next(iter(body.values())))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet23"}, r"Unknown choice backbone=resnet23\. Did you mean resnet\d+\? Choi"),
        ({"backbone": "zzz"}, r"^Unknown choice backbone=zzz\. Choices: cifar_resnet18, cifar_resnet34, dense"),
        ({"num_classes": 1}, r"num_classes must be at least 2, not 1"),
        ({"peers": 0}, r"peers must be a number above 0 or a list of backbones, not 0"),
        ({"peers": "resnet8"}, r"peers must be a number above 0 or a list of backbones, not 'resnet8'"),
        ({"peers": ["resnet8", "vgg61"]}, r"Unknown choice backbone=vgg61\. Did you mean vgg16\?"),
        ({"peers": ["resnet8"], "equal_classifiers": True}, r"equal_classifiers needs branches of one trunk"),
        ({"views_per_pass": "two"}, r"views_per_pass is 'two': choose one of all, one"),
        (
            {"backbone": "vgg16", "image_size": (64, 28)},
            r"Images of 64x28 are too small for vgg16, which needs at least 32x32: resize them or take another",
        ),
        (
            {"peers": ["resnet8", "densenet40_12"], "image_size": (3, 3)},
            r"Images of 3x3 are too small for densenet40_12, which needs at least 4x4",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_its_cure(arguments: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"backbone": "resnet8", "num_classes": 10, "peers": 2, **arguments}
    with pytest.raises(ConfigError, match=message):
        create(**settings)


def test_a_backbone_cannot_take_a_name_twice() -> None:
    with pytest.raises(ConfigError, match="A backbone named 'resnet8' exists already"):
        register_backbone(BACKBONES["resnet8"])


def test_the_ensemble_classifier_is_drawn_as_the_linear_layers_of_its_backbone() -> None:
    drawn = {name: DistillationModule.build(name, 10, "dkel").ensemble for name in ("vgg16", "densenet40_12")}
    vgg, densenet = (module.classifier for module in drawn.values() if module is not None)
    assert vgg.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not vgg.bias.any()
    assert not densenet.bias.any()
    mixed = DistillationModule.build("vgg16", 10, "dkel", ["resnet8", "vgg16"], image_size=(32, 32)).ensemble
    assert mixed is not None
    assert mixed.classifier.bias.any()  # as torch does: the backbones differ
