"""Outputs of modules by name: what each peer's module returned, of any network, and nothing of it deployed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks import IndependentPeers, PeerNetwork, branch_model, create
from dkel_lightning.networks.adapters import adapter, at_common_size
from dkel_lightning.networks.branching import whole_model
from dkel_lightning.networks.watching import find, release_, stages_of

SIZE = (16, 16)


def resnet18() -> nn.Module:
    return models.resnet18(weights=None, num_classes=3)


def shared(views_per_pass: str) -> PeerNetwork:
    return create("resnet8", 3, 2, views_per_pass=views_per_pass)


def split(views_per_pass: str) -> PeerNetwork:
    return branch_model(resnet18(), "layer3", 2, 3, image_shape=(3, *SIZE), views_per_pass=views_per_pass)


NETWORKS: dict[str, tuple[Callable[[], PeerNetwork], tuple[str, ...]]] = {
    "shared": (partial(shared, "all"), ("stem", "stage2", "stage3", "body.pool")),
    "shared, a pass for each view": (partial(shared, "one"), ("stem", "stage2", "stage3")),
    "split": (partial(split, "all"), ("layer1", "layer2.1", "layer3", "layer4.0.bn1", "avgpool")),
    "split, a pass for each view": (partial(split, "one"), ("layer1", "layer2.1", "layer4")),
    "independent": (partial(create, "resnet8", 3, ["resnet8", "densenet40_12"]), ("stage1", "stage3")),
}


def whole(model: nn.Module) -> PeerNetwork:
    network = IndependentPeers([whole_model(model, 3, image_shape=(3, *SIZE))])
    network.image_shape = (3, *SIZE)
    return network


NETWORKS["one"] = (lambda: whole(resnet18()), ("layer1", "layer4"))


def by_hooks(peer: nn.Module, name: str, images: Tensor) -> Tensor:
    """Pass a copy of a peer that stands alone, and take what its module returns from a hook."""
    alone = release_(copy.deepcopy(peer)).eval()
    seen: list[Tensor] = []
    find(alone, name, "names").register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))
    alone(images)
    return seen[0]


@pytest.mark.parametrize("views", ["shared", "per_peer"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_each_peer_s_modules_are_seen_as_hooks_see_them_on_the_peer_alone(kind: str, views: str) -> None:
    make, names = NETWORKS[kind]
    network = make()
    network.image_shape = (3, *SIZE)
    plain = network.eval().state_dict().keys()
    shapes = network.watch(names)
    images = torch.randn(4, network.num_peers if views == "per_peer" else 1, 3, *SIZE)
    seen = network(images)
    expected, *_ = network(images)
    torch.testing.assert_close(seen.logits, expected)
    assert network.state_dict().keys() == plain
    assert seen.named is not None
    assert tuple(seen.named) == names
    for name in names:
        for index in range(network.num_peers):
            own = images[:, index if views == "per_peer" else 0]
            found = seen.named[name][index]
            torch.testing.assert_close(found, by_hooks(network.peer(index), name, own), rtol=1e-4, atol=1e-5)
            assert found.shape[1:] == shapes[name][index].shape[1:]


def test_an_ordinary_pass_keeps_nothing_and_a_deployed_copy_has_its_own_forwards() -> None:
    network = split("all")
    network.watch(["layer2", "layer4"])
    network(torch.randn(2, 3, *SIZE))
    assert network._watched._outputs.tensors is None
    deployed = release_(copy.deepcopy(network.peer(1)))
    assert not any("forward" in module.__dict__ for module in deployed.modules())
    network.unwatch()
    assert network(torch.randn(2, 3, *SIZE)).named is None
    assert "forward" not in find(network.peer(1), "layer4", "names").__dict__


def test_compiled_it_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = shared("all").eval()
    network.watch(["stage1", "stage3"])
    images = torch.randn(4, 2, 3, 8, 8)
    compiled: Any = torch.compile(network, backend="eager", fullgraph=True, dynamic=False)
    for _ in range(2):  # with nothing left over from the first
        ours, theirs = compiled(images).named, network(images).named
        assert theirs is not None
        for name in ("stage1", "stage3"):
            torch.testing.assert_close(ours[name], theirs[name])


class Twice(nn.Module):
    """Calls one layer twice, and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.never = nn.Conv2d(3, 3, 1)
        self.again = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.relu(self.norm(self.conv(images))).mean((2, 3))
        return self.fc(self.again(self.again(hidden)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("layer5", "no such module. Did you mean"),
        ("nor", "method.layers names 'nor', but Twice has no such module. Did you mean norm"),
        ("again", "'again', which a pass calls 2 times"),
        ("never", "'never', which a pass calls 0 times"),
    ],
)
def test_what_cannot_be_watched_is_refused_by_name(name: str, said: str) -> None:
    network = whole(resnet18()) if name == "layer5" else whole(Twice())
    with pytest.raises(ConfigError) as caught:
        network.watch([name], "method.layers")
    assert said in str(caught.value)


def test_stages_are_named_by_the_network_or_have_to_be_given() -> None:
    assert stages_of(create("densenet40_12", 3, 1).peer(0), "method.layers") == ("stage1", "stage2", "stage3")
    assert stages_of(create("vgg16", 3, 1).peer(0), "x") == tuple(f"stage{number}" for number in range(1, 6))
    assert stages_of(resnet18(), "method.layers") == ("layer1", "layer2", "layer3", "layer4")
    with pytest.raises(ConfigError, match=r"stages of Twice are not known: give method\.layers names .* conv, norm"):
        stages_of(Twice(), "method.layers")


def test_adapters_join_maps_and_vectors_and_refuse_what_differs() -> None:
    maps = adapter((1, 4, 8, 8), (1, 6, 4, 4))
    assert maps(torch.randn(2, 4, 8, 8)).shape == (2, 6, 8, 8)
    assert [type(layer) for layer in maps.children()] == [nn.Conv2d, nn.BatchNorm2d]
    assert adapter((1, 9, 4), (1, 9, 6))(torch.randn(2, 9, 4)).shape == (2, 9, 6)
    first, second = at_common_size(torch.randn(2, 4, 8, 3), torch.randn(2, 5, 4, 6))
    assert first.shape == (2, 4, 4, 3)
    assert second.shape == (2, 5, 4, 3)
    with pytest.raises(ConfigError, match=r"layer4 cannot be adapted \(maps \[B, C, H, W\] \[1, 4, 8, 8\] and vectors"):
        adapter((1, 4, 8, 8), (1, 6), "layer4")
    with pytest.raises(ConfigError, match="cannot be adapted"):
        adapter((1, 9, 4), (1, 10, 4))


def test_parts_of_registered_backbones_are_no_prefixes_in_a_model_of_ones_own() -> None:
    model = nn.Module()
    model.trunk = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"split_at names '0', but Module has no such module"):
        find(model, "0", "split_at")
