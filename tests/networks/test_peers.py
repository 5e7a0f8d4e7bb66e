"""Networks of peers: which view reaches which branch, BatchNorm, forms of input and output, sharing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks import Branch, BranchedNetwork, IndependentPeers, PeerNetwork, SinglePeer, create
from dkel_lightning.runtime.seeding import seeded


def network_of(peers: int | list[str], views_per_pass: str = "all") -> PeerNetwork:
    with seeded(0):
        return create("resnet8", 4, peers, in_channels=1, views_per_pass=views_per_pass)


def views_of(peers: int, batch: int = 5) -> Tensor:
    return torch.randn(batch, peers, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def pooled_branch(width: int, classes: int = 4) -> Branch:
    body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Branch(body, nn.Linear(width, classes), width, classes)


@pytest.mark.parametrize("peers", [2, ["resnet8", "resnet8"]])
@pytest.mark.parametrize("views_per_pass", ["all", "one"])
def test_peer_i_sees_view_i(peers: int | list[str], views_per_pass: str) -> None:
    network = network_of(peers, views_per_pass).eval()
    views = views_of(2)
    logits, *_ = network(views)
    assert logits.shape == (2, 5, 4)
    for index in (0, 1):
        torch.testing.assert_close(logits[index], network.peer(index)(views[:, index]), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(logits[index], network.peer(index)(views[:, 1 - index]), atol=1e-3)


@pytest.mark.parametrize("peers", [3, ["resnet8"] * 3])
def test_all_peers_share_one_view_with_or_without_a_view_axis(peers: int | list[str]) -> None:
    network = network_of(peers).eval()
    images = views_of(1)
    logits, features, *_ = network(images)
    flat_logits, flat_features, *_ = network(images[:, 0])
    assert torch.equal(logits, flat_logits)
    assert torch.equal(features, flat_features)
    expected = torch.stack([network.peer(index)(images[:, 0]) for index in range(3)])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def batchnorm_network(views_per_pass: str) -> BranchedNetwork:
    trunk = nn.Sequential(nn.BatchNorm2d(1, affine=False, momentum=1.0))
    return BranchedNetwork(trunk, [pooled_branch(1), pooled_branch(1)], views_per_pass)


def test_one_pass_pools_batchnorm_statistics_over_the_views_and_p_passes_do_not() -> None:
    # View 0 is all 1, view 1 all 3: pooled mean 2 and deviation 1 give -1 and 1, a mean for each view gives 0 and 0.
    views = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1, 1).expand(4, 2, 1, 6, 6)
    pooled, single = batchnorm_network("all"), batchnorm_network("one")
    torch.testing.assert_close(pooled(views)[1].flatten(1).mean(1), torch.tensor([-1.0, 1.0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(single(views)[1].flatten(1).mean(1), torch.zeros(2), rtol=0, atol=1e-4)
    assert float(pooled.get_buffer("trunk.0.running_mean")) == pytest.approx(2.0)
    assert float(single.get_buffer("trunk.0.running_mean")) == pytest.approx(3.0)


@pytest.mark.parametrize(("views_per_pass", "views", "passes"), [("all", 3, 1), ("one", 3, 3), ("one", 1, 1)])
def test_number_of_trunk_passes(views_per_pass: str, views: int, passes: int) -> None:
    network = network_of(3, views_per_pass)
    assert isinstance(network, BranchedNetwork)
    batches: list[int] = []
    network.trunk.register_forward_pre_hook(lambda _module, inputs: batches.append(len(inputs[0])))
    network(views_of(views))
    assert batches == [5 * views // passes] * passes


def test_features_of_equal_width_are_one_tensor_and_of_different_widths_a_tuple() -> None:
    same = network_of(2)(views_of(2))[1]
    assert same.shape == (2, 5, 64)
    mixed = network_of(["resnet8", "densenet40_12"])
    logits, features, *_ = mixed(views_of(2))
    assert logits.shape == (2, 5, 4)
    assert [tuple(one.shape) for one in features] == [(5, 64), (5, 132)]
    assert mixed.feature_dims == (64, 132)


@pytest.mark.parametrize("peers", [2, ["resnet8", "resnet8"]])
def test_a_peer_shares_its_parameters_and_stands_alone(peers: int | list[str]) -> None:
    network = network_of(peers)
    peer = network.peer(1)
    assert isinstance(peer, SinglePeer)
    assert {key.partition(".")[0] for key in peer.state_dict()} == {"trunk", "branch"}
    with torch.no_grad():
        next(peer.branch.classifier.parameters()).fill_(7.0)
    assert sum(bool((parameter == 7).all()) for parameter in network.parameters()) == 1
    other = network_of(peers).peer(0)
    other.load_state_dict(peer.state_dict())
    images = views_of(1)[:, 0]
    assert torch.equal(other.eval()(images), peer.eval()(images))


def test_taking_a_peer_keeps_the_modes_of_a_partly_frozen_network() -> None:
    network = network_of(2).train()
    assert isinstance(network, BranchedNetwork)
    network.trunk.eval()
    assert network.peer(0).training
    assert not network.trunk.training


@pytest.mark.parametrize("peers", [2, ["resnet8", "resnet8"]])
@pytest.mark.parametrize("views", [1, 2])
def test_forward_compiles_as_one_graph(peers: int | list[str], views: int) -> None:
    network = network_of(peers).eval()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    images = views_of(views)
    assert torch.equal(compiled(images)[0], network(images)[0])


def test_branches_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"same number of classes, but theirs are \[4, 5\]"):
        IndependentPeers([SinglePeer(nn.Identity(), pooled_branch(1, classes)) for classes in (4, 5)])


@pytest.mark.parametrize(
    ("peers", "trunk", "maps"),
    [
        (2, [(1, 32, 4, 4)] * 2, [(1, 64, 2, 2)] * 2),
        (["resnet8", "densenet40_12"], [(1, 32, 4, 4), (1, 60, 2, 2)], [(1, 64, 2, 2), (1, 132, 2, 2)]),
    ],
)
def test_a_probe_tells_the_shapes_and_changes_nothing(
    peers: int | list[str], trunk: list[tuple[int, ...]], maps: list[tuple[int, ...]]
) -> None:
    network = create("resnet8", 4, peers, in_channels=1, image_size=(8, 8))
    network.get_submodule("trunk" if isinstance(peers, int) else "peers.0.trunk").eval()  # partly frozen
    modes = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    draws = torch.get_rng_state()
    seen = network.probe()
    assert [tuple(output.shape) for output in seen.trunk] == trunk
    assert seen.maps is not None
    assert [tuple(of_peer.shape) for of_peer in seen.maps] == maps
    assert torch.equal(torch.get_rng_state(), draws)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_probe_with_images_of_another_kind_names_the_cure() -> None:
    network = create("resnet8", 4, 2, in_channels=1)
    network.image_shape = (3, 8, 8)
    with pytest.raises(ConfigError, match=r"of 3 channels and 8x8 \(.*\): set in_channels and image_size to those"):
        network.probe()
    assert all(module.training for module in network.modules())
