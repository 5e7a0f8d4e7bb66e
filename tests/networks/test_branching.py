"""Peers made of models of torchvision, timm, transformers and a user's own; redrawing weights."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks import branch_model, logits_of, redraw_
from dkel_lightning.runtime.seeding import seeded

tv = import_module("torchvision.models")
TINY, SMALL = (3, 8, 8), (3, 32, 32)


class Convolutional(nn.Module):
    """A user's own classifier, with what a split can go wrong on as options of its subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.third = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.first(images))).mean((2, 3)))


class Skipping(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        return self.head((self.third(self.second(first)) + first).mean((2, 3)))


class Branching(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        if first.sum() > 0:
            first = -first
        return self.head(self.third(self.second(first)).mean((2, 3)))


class Softmaxed(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        return F.log_softmax(super().forward(images), 1)


class Tied(Convolutional):
    def __init__(self) -> None:
        super().__init__()
        self.third.weight = self.second[0].weight  # type: ignore[assignment]


class Twice(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.third(self.third(self.first(images))).mean((2, 3)))


class Unpooled(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.third(self.first(images)).movedim(1, -1))


class ModeDependent(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * 2 if self.training else images)


class InPlace(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        second = self.third(first)
        first.mul_(2)
        return self.head((second + first).mean((2, 3)))


class Scaled(Convolutional):
    """Further arguments with defaults, a parameter and a buffer in the forward that is traced."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
        self.register_buffer("offset", torch.arange(3.0))

    def forward(self, images: Tensor, mask: Tensor | None = None, again: bool = True) -> Tensor:
        first = self.first(images + self.offset[:, None, None])
        if mask is not None:
            first = first * mask
        features = self.third(self.second(first)).mean((2, 3)) * self.scale
        return self.head(features)


class WithoutLinear(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Positions(Convolutional):
    """A module whose output has no batch, of as many rows as two views of four images."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        table = self.table()
        return self.head((self.third(first + table) * table).mean((2, 3)))


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.arange(8.0)[:, None] / 8)

    def forward(self) -> Tensor:
        return self.rows * 2


class Tupled(Convolutional):
    def forward(self, images: Tensor) -> Any:
        return (super().forward(images),)


class Auxiliary(Convolutional):
    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images)
        return (logits, logits) if self.training else logits


class Early(Convolutional):
    def forward(self, images: Tensor) -> Any:
        logits: Tensor = self.head(self.first(images).mean((2, 3)))
        self.third(self.first(images))
        return logits


class Remembering(Convolutional):
    """Its forward depends on how often it was called."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.third(self.first(images)).mean((2, 3)) + self.calls)


class BatchSecond(Convolutional):
    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Linear(6, 6)  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.third(self.first(images).mean((2, 3)).unsqueeze(0))[0])


class Uncopied(Convolutional):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Wayward(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images)
        if images.sum() > 0:
            hidden = self.second(hidden)
        return self.head(self.third(hidden).mean((2, 3)))


def torchvision_mobilenet() -> nn.Module:
    return tv.mobilenet_v3_small(num_classes=10)


def hf_vit() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: extra hf")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        num_labels=10,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


MODELS: list[tuple[str, Callable[[], nn.Module], str, int, int]] = [
    ("torchvision resnet18", lambda: tv.resnet18(num_classes=10), "layer4", 32, 512),
    ("inside a residual block", lambda: tv.resnet18(num_classes=10), "layer4.0.conv2", 32, 512),
    ("torchvision mobilenet", torchvision_mobilenet, "features.9", 32, 1024),
    ("torchvision densenet", lambda: tv.densenet121(num_classes=10), "features.denseblock4", 32, 1024),
    ("timm resnet18", lambda: timm.create_model("resnet18", num_classes=10, drop_rate=0.1), "layer4", 32, 512),
    ("classifier by 1x1 convolution", lambda: timm.create_model("resnetv2_50", num_classes=10), "stages.3", 32, 2048),
    ("timm vit", lambda: timm.create_model("test_vit", num_classes=10, img_size=32), "blocks.4", 32, 64),
    ("timm regnet", lambda: timm.create_model("regnety_002", num_classes=10), "s4", 32, 368),
    ("transformers vit", hf_vit, "vit.layers.2", 32, 16),
    ("own, arguments, parameter and buffer", Scaled, "second", 8, 6),
    ("a skip over the split", Skipping, "third", 8, 6),
    ("a choice by values", Branching, "third", 8, 6),
    ("another forward in training", ModeDependent, "third", 8, 6),
    ("weights tied over the split", Tied, "third", 8, 6),
    ("positions that are no batch", Positions, "third", 8, 6),
    ("split at the classifier", Convolutional, "head", 8, 6),
    ("split at the first module", Convolutional, "first", 8, 6),
]


@pytest.mark.parametrize(("make", "split_at", "size", "width"), [m[1:] for m in MODELS], ids=[m[0] for m in MODELS])
def test_peers_are_the_users_model_and_give_its_logits_features_and_gradients(
    make: Callable[[], nn.Module], split_at: str, size: int, width: int
) -> None:
    torch.manual_seed(0)  # a choice by values may fall otherwise on all views together
    model = make().eval()
    network = branch_model(model, split_at, 2, 10, redraw_branches=False, image_shape=(3, size, size))
    assert network.training
    assert network.feature_dims == (width, width)
    views = torch.randn(4, 2, 3, size, size)
    logits, features, *_ = network.eval()(views)
    assert features.shape == (2, 4, width)
    expected = torch.stack([logits_of(model(view)) for view in views.unbind(1)])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    logits.square().sum().backward()
    expected.square().sum().backward()
    theirs, peers = dict(model.named_parameters()), [network.peer(i) for i in (0, 1)]
    own = {id(parameter) for i in (0, 1) for parameter in network.own_part(i).parameters()}
    for peer in peers:
        assert type(peer) is type(model)
        assert peer.state_dict().keys() == model.state_dict().keys()
    for name, parameter in theirs.items():
        # What is shared has the gradients of both views, of what is not each peer has its own.
        each = [peer.get_parameter(name) for peer in peers]
        assert (each[0] is each[1]) is (id(each[0]) not in own), name
        grads = [one.grad for one in ({id(one): one for one in each}).values()]
        if parameter.grad is not None:
            assert all(grad is not None for grad in grads), name
            total = torch.stack([grad for grad in grads if grad is not None]).sum(0)
            torch.testing.assert_close(
                total, parameter.grad, rtol=1e-3, atol=1e-4 * float(parameter.grad.abs().max() + 1)
            )


def test_the_trunk_keeps_its_weights_and_every_branch_is_drawn_on_its_own() -> None:
    model = torchvision_mobilenet()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    network = branch_model(model, "features.9", 2, 10, image_shape=SMALL)
    own = [dict(network.own_part(index).named_parameters()) for index in (0, 1)]
    assert sum(not torch.equal(own[0][key], own[1][key]) for key in own[0] if own[0][key].dim() > 1) > 10
    kept = {id(parameter) for part in own for parameter in part.values()}
    for key, parameter in network.peer(0).named_parameters():
        if id(parameter) not in kept:
            assert torch.equal(parameter, before[key])
    # The copy is deep: training the network leaves the user's model alone.
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_branches_are_a_function_of_the_global_generator_and_trainable() -> None:
    model = Convolutional().requires_grad_(False)
    networks = []
    for seed in (0, 0, 1):
        with seeded(seed):
            networks.append(branch_model(model, "second", 2, 10, image_shape=TINY))
    first, again, other = ([*network.own_part(1).parameters()] for network in networks)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert all(parameter.requires_grad for parameter in first)
    assert not any(parameter.requires_grad for parameter in networks[0].peer(0).get_submodule("first").parameters())


def test_without_redrawing_only_a_classifier_of_another_size_is_new() -> None:
    model = Convolutional()
    kept = branch_model(model, "third", 1, 10, redraw_branches=False, image_shape=TINY).peer(0)
    assert torch.equal(kept.get_parameter("head.weight"), model.head.weight)
    new = branch_model(model, "third", 1, 4, redraw_branches=False, image_shape=TINY).peer(0)
    assert tuple(new.get_parameter("head.weight").shape) == (4, 6)
    assert torch.equal(new.get_parameter("third.weight"), model.third.weight)


def test_the_classifier_may_be_named() -> None:
    network = branch_model(torchvision_mobilenet(), "features.9", 1, 10, classifier="classifier.3", image_shape=SMALL)
    assert network.feature_dims == (1024,)
    with pytest.raises(ConfigError, match=r"classifier 'classifier.0' must be the model's output, but what follows it"):
        branch_model(torchvision_mobilenet(), "features.9", 1, 10, classifier="classifier.0", image_shape=SMALL)


class Noisy(Convolutional):
    """Dropout before the split, as a module and as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        first = F.dropout(self.drop(self.first(images)), 0.5, training=self.training)
        return self.head(self.third(first).mean((2, 3)))


def test_dropout_before_the_split_is_drawn_once_for_all_peers() -> None:
    network = branch_model(Noisy(), "third", 3, 10, redraw_branches=False, image_shape=TINY)
    logits, *_ = network(torch.randn(4, 3, 8, 8))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], network.eval()(torch.randn(4, 3, 8, 8))[0][0])


@pytest.mark.parametrize(("views_per_pass", "batches"), [("all", 1), ("one", 3)])
def test_batchnorm_before_the_split_sees_all_views_once(views_per_pass: str, batches: int) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=1.0), nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(6, 4))
    network = branch_model(model, "1", 3, 4, views_per_pass=views_per_pass, image_shape=TINY)
    views = torch.randn(5, 3, 3, 8, 8)
    network(views)
    norm = network.peer(2).get_submodule("0")
    assert int(norm.get_buffer("num_batches_tracked")) == batches
    seen = views if views_per_pass == "all" else views[:, 2]
    torch.testing.assert_close(norm.get_buffer("running_mean"), seen.transpose(-3, 0).flatten(1).mean(1))


def test_branches_do_not_spoil_the_trunk_output_they_share() -> None:
    # Split at an in-place activation: each branch would hand the next one an input that it has already changed.
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Hardswish(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    network = branch_model(model, "1", 3, 4, redraw_branches=False, image_shape=TINY)
    logits, *_ = network(torch.randn(4, 3, 8, 8))
    assert torch.equal(logits[0], logits[2])
    logits.sum().backward()


@pytest.mark.parametrize("views", [1, 2])
def test_a_copy_shares_as_the_original_does_and_learns_apart(views: int) -> None:
    network = branch_model(Scaled(), "second", 2, 7, image_shape=TINY)
    copied = copy.deepcopy(network)
    copied(torch.randn(2, views, 3, 8, 8))[0].square().sum().backward()
    assert [key for key, parameter in copied.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad is None for parameter in network.parameters())
    assert copied.peer(0).get_submodule("first") is copied.peer(1).get_submodule("first")
    own = {id(parameter) for parameter in copied.own_part(1).parameters()}
    assert {id(copied.peer(1).get_parameter("scale")), id(copied.peer(1).get_parameter("head.bias"))} <= own
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1)
    copied.load_state_dict(network.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), network.parameters(), strict=True))


def test_the_gradient_is_scaled_where_anything_crosses_the_split() -> None:
    network = branch_model(Skipping(), "third", 2, 10, image_shape=TINY)
    images = torch.randn(2, 3, 8, 8)
    grads = []
    for scale in (1.0, 0.25):
        network.gradient_scale = scale
        network.zero_grad()
        network(images)[0].square().sum().backward()
        grads.append([network.peer(0).get_parameter(name).grad for name in ("first.weight", "third.weight")])
    torch.testing.assert_close(grads[1][0], 0.25 * cast(Tensor, grads[0][0]))
    torch.testing.assert_close(grads[1][1], grads[0][1])


def test_a_branched_model_compiles_as_one_graph() -> None:
    network = branch_model(Scaled(), "second", 2, 10, image_shape=TINY).eval()
    views = torch.randn(4, 2, 3, 8, 8)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert torch.equal(compiled(views)[0], network(views)[0])


# --- errors ---


@pytest.mark.parametrize(
    ("make", "split_at", "message"),
    [
        (Convolutional, "thrid", r"^split_at names 'thrid', but Convolutional has no such .* Did you mean third\?"),
        (Convolutional, "xyzzy", r"has no such module\. The first are first, second, second\.0"),
        (
            Softmaxed,
            "third",
            r"The output of the classifier 'head' must be the model's output, but what the forward does",
        ),
        (Twice, "third", r"'third' is called 2 times"),
        (Twice, "second", r"never calls 'second': split at one of its children second\.0, second\.1, second\.2"),
        (
            WithoutLinear,
            "1",
            r"WithoutLinear calls no nn\.Linear, so it has no classifier to replace \(it ends with '3'",
        ),
        (Unpooled, "third", r"The features of a peer must have the form \[batch, width\], not \[3, 8, 8, 6\]"),
        (InPlace, "third", r"A branch changes a tensor that crosses the split in place"),
        (Convolutional, "third", r"does not take images of 1 channels and 8x8 .*: set in_channels and image_size"),
        (Tupled, "third", r"returns a tuple without logits"),
        (Auxiliary, "third", r"returns different types in training and evaluation \(tuple and Tensor\)"),
        (Early, "third", r"The classifier 'head' comes before 'third'"),
        (Remembering, "third", r"Cut at 'third', the model computes other features than whole"),
        (BatchSecond, "third", r"the batch come first .* or set views_per_pass=one"),
        (lambda: torch.compile(Convolutional()), "third", "OptimizedModule is compiled: pass the model"),
        (Uncopied, "third", r"Uncopied cannot be copied, and peers are copies of it \(cannot pickle"),
    ],
)
def test_a_model_that_cannot_be_split_is_told_why(make: Callable[[], nn.Module], split_at: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        branch_model(make(), split_at, 2, 10, image_shape=(1, 8, 8) if "1 channels" in message else TINY)


def test_a_peer_that_goes_another_way_than_the_first_pass_is_named() -> None:
    network = branch_model(Wayward(), "third", 2, 10, image_shape=TINY)
    views = torch.stack([torch.full((2, 3, 8, 8), 5.0), torch.full((2, 3, 8, 8), -1.0)], 1)
    with pytest.raises(ConfigError, match="'third' where the pass over all views called 'second': what runs before"):
        network(views)


@pytest.mark.parametrize(
    ("num_classes", "classifier", "message"),
    [
        (1, None, "num_classes must be at least 2, not 1"),
        (10, "haed", r"^classifier names 'haed', .* Did you mean head\?"),
        (10, "third", "The classifier 'third' is a Conv2d, but it must be an nn.Linear"),
    ],
)
def test_a_wrong_setting_is_named(num_classes: int, classifier: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        branch_model(Convolutional(), "second", 2, num_classes, classifier=classifier, image_shape=TINY)


# --- redrawing ---


def test_redraw_keeps_mean_and_deviation_and_changes_every_weight() -> None:
    linear = nn.Linear(200, 200)
    with torch.no_grad():
        linear.weight.normal_(0.5, 0.02)
    before = linear.weight.detach().clone()
    with seeded(0):
        assert redraw_(linear) is linear
    drawn = linear.weight.detach()
    assert not bool((drawn == before).all(1).any())
    assert float(drawn.mean()) == pytest.approx(0.5, abs=5 * 0.02 / 200)
    assert float(drawn.std()) == pytest.approx(0.02, rel=5 / (2 * 200 * 200) ** 0.5)


def test_redraw_keeps_constants_and_resets_trained_norms() -> None:
    linear, zeroed, trained, layer = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.LayerNorm(4)
    module = nn.Sequential(linear, zeroed, trained, layer)
    scale = nn.Parameter(torch.full((4,), 1e-6))
    module.register_parameter("layer_scale", scale)
    with torch.no_grad():
        linear.bias.zero_()
        zeroed.weight.zero_()
        for norm in (trained, layer):
            norm.weight.copy_(torch.arange(4.0))
            norm.bias.copy_(torch.arange(4.0))
    module(torch.randn(8, 4))
    redraw_(module)
    assert torch.equal(scale, torch.full((4,), 1e-6))
    assert torch.equal(linear.bias, torch.zeros(4))
    assert torch.equal(zeroed.weight, torch.zeros(4))
    for norm in (trained, layer):
        assert torch.equal(norm.weight, torch.ones(4))
        assert torch.equal(norm.bias, torch.zeros(4))
    assert torch.equal(trained.get_buffer("running_mean"), torch.zeros(4))
    assert trained.get_buffer("num_batches_tracked") == 0
