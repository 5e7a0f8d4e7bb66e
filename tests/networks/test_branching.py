"""Cutting models of torchvision, timm and a user's own into trunk and branches; redrawing weights."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks import Branch, BranchedNetwork, branch_model, redraw_
from dkel_lightning.runtime.seeding import seeded

tv = import_module("torchvision.models")


class Convolutional(nn.Module):
    """A user's own classifier, with what a split can go wrong on as options of its subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.third = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.third(self.second(self.first(images))).mean((2, 3)))
        return logits


class Skipping(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        logits: Tensor = self.head((self.third(self.second(first)) + first).mean((2, 3)))
        return logits


class Branching(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        if first.sum() > 0:
            first = -first
        logits: Tensor = self.head(self.third(self.second(first)).mean((2, 3)))
        return logits


class Softmaxed(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        return F.log_softmax(super().forward(images), 1)


class Tied(Convolutional):
    def __init__(self) -> None:
        super().__init__()
        self.third.weight = self.second[0].weight  # type: ignore[assignment]


class Twice(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.third(self.third(self.first(images))).mean((2, 3)))
        return logits


class Unpooled(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.third(self.first(images)).movedim(1, -1))
        return logits


class ModeDependent(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(images * 2 if self.training else images)
        return logits


class InPlace(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        second = self.third(first)
        first.mul_(2)
        logits: Tensor = self.head((second + first).mean((2, 3)))
        return logits


class FunctionalDropout(Convolutional):
    def forward(self, images: Tensor) -> Tensor:
        features = self.third(self.first(images)).mean((2, 3))
        logits: Tensor = self.head(F.dropout(features, 0.5, training=self.training))
        return logits


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
        logits: Tensor = self.head(features)
        return logits


class WithoutLinear(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def torchvision_mobilenet() -> nn.Module:
    model: nn.Module = tv.mobilenet_v3_small(num_classes=10)
    return model


MODELS: list[tuple[str, Callable[[], nn.Module], str, int, int]] = [
    ("torchvision resnet18", lambda: tv.resnet18(num_classes=10), "layer4", 64, 512),
    ("torchvision vgg11", lambda: tv.vgg11(num_classes=10), "features.16", 32, 4096),
    ("torchvision mobilenet", torchvision_mobilenet, "features.9", 64, 1024),
    ("torchvision convnext", lambda: tv.convnext_tiny(num_classes=10), "features.6", 32, 768),
    ("torchvision densenet", lambda: tv.densenet121(num_classes=10), "features.denseblock4", 32, 1024),
    ("timm resnet18", lambda: timm.create_model("resnet18", num_classes=10, drop_rate=0.1), "layer4", 64, 512),
    (
        "timm vit",
        lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32),
        "blocks.8",
        32,
        192,
    ),
    ("timm regnet", lambda: timm.create_model("regnety_002", num_classes=10), "s4", 32, 368),
    ("own, traced forward", Scaled, "second", 8, 6),
    ("split at the classifier", Convolutional, "head", 8, 6),
    ("split at the first module", Convolutional, "first", 8, 6),
]


@pytest.mark.parametrize(("make", "split_at", "size", "width"), [m[1:] for m in MODELS], ids=[m[0] for m in MODELS])
def test_trunk_and_branch_give_the_models_own_logits(
    make: Callable[[], nn.Module], split_at: str, size: int, width: int
) -> None:
    model = make().eval()
    images = torch.randn(2, 3, size, size)
    network = branch_model(model, split_at, 1, 10, redraw_branches=False, example=images)
    assert network.training
    assert network.feature_dims == (width,)
    with torch.no_grad():
        logits, features = network.eval()(images)
        assert torch.allclose(logits[0], model(images), rtol=0, atol=1e-5)
    assert features.shape == (1, 2, width)
    used = sum(parameter.numel() for parameter in network.parameters())
    assert used == sum(parameter.numel() for parameter in model.parameters())


def test_the_trunk_is_what_runs_before_the_split_under_the_models_names() -> None:
    network = branch_model(tv.resnet18(), "layer3", 2, 5)
    branch = cast(Branch, network.branches[1])
    assert [name for name, _ in network.trunk.named_children()] == [
        "conv1",
        "bn1",
        "relu",
        "maxpool",
        "layer1",
        "layer2",
    ]
    assert {name for name, _ in branch.body.named_children()} == {"layer3", "layer4", "avgpool"}
    assert branch.classifier.out_features == network.num_classes == 5


def test_trunk_keeps_its_weights_and_every_branch_is_drawn_on_its_own() -> None:
    model = torchvision_mobilenet()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    network = branch_model(model, "features.9", 2, 10)
    for key, tensor in network.trunk.state_dict().items():
        assert torch.equal(tensor, before[key])
    one, other = (cast(Branch, branch) for branch in network.branches)
    drawn = 0
    for (key, first), second in zip(one.named_parameters(), other.parameters(), strict=True):
        if first.dim() > 1:
            assert not torch.equal(first, second), key
            drawn += 1
    assert drawn > 10
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
            networks.append(branch_model(model, "second", 2, 10))
    first, again, other = ([parameter.detach() for parameter in network.branches.parameters()] for network in networks)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert all(parameter.requires_grad for parameter in networks[0].branches.parameters())
    assert not any(parameter.requires_grad for parameter in networks[0].trunk.parameters())


def test_without_redrawing_only_a_classifier_of_another_size_is_new() -> None:
    model = Convolutional()
    kept = cast(Branch, branch_model(model, "third", 1, 10, redraw_branches=False).branches[0])
    assert torch.equal(kept.classifier.get_parameter("weight"), model.head.weight)
    new = cast(Branch, branch_model(model, "third", 1, 4, redraw_branches=False).branches[0])
    assert tuple(new.classifier.get_parameter("weight").shape) == (4, 6)
    assert torch.equal(new.body.get_parameter("third.weight"), model.third.weight)


def test_the_classifier_may_be_named() -> None:
    network = branch_model(torchvision_mobilenet(), "features.9", 1, 10, classifier="classifier.3")
    assert network.feature_dims == (1024,)
    with pytest.raises(ConfigError, match=r"The classifier 'classifier.0' is followed by the output of 'classifier.1'"):
        branch_model(torchvision_mobilenet(), "features.9", 1, 10, classifier="classifier.0")


def test_functional_dropout_follows_the_mode_after_the_split() -> None:
    network = branch_model(FunctionalDropout(), "third", 1, 10)
    images = torch.randn(4, 3, 8, 8)
    features = network(images)[1][0]
    assert 0.2 < float((features == 0).float().mean()) < 0.8
    assert float((network.eval()(images)[1][0] == 0).float().sum()) == 0


def test_branches_do_not_spoil_the_trunk_output_they_share() -> None:
    # Split at an in-place activation: each branch would hand the next one an input that it has already changed.
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Hardswish(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    network = branch_model(model, "1", 3, 4, redraw_branches=False)
    logits, _ = network(torch.randn(4, 3, 8, 8))
    assert torch.equal(logits[0], logits[2])
    logits.sum().backward()


@pytest.mark.parametrize("views", [1, 2])
def test_a_branched_model_trains_and_its_peer_stands_alone(views: int) -> None:
    network = branch_model(torchvision_mobilenet(), "features.9", 2, 7)
    logits, features = network(torch.randn(2, views, 3, 32, 32))
    assert logits.shape == (2, 2, 7)
    assert features.shape == (2, 2, 1024)
    logits.square().sum().backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []
    peer, other = network.eval().peer(1), branch_model(torchvision_mobilenet(), "features.9", 1, 7).eval().peer(0)
    other.load_state_dict(peer.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(other(images), network(images)[0][1])


def test_a_branched_model_compiles_as_one_graph() -> None:
    network = branch_model(Scaled(), "second", 2, 10).eval()
    views = torch.randn(4, 2, 3, 8, 8)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert torch.equal(compiled(views)[0], network(views)[0])


# --- errors ---


@pytest.mark.parametrize(
    ("make", "split_at", "message"),
    [
        (
            Convolutional,
            "thrid",
            r"^split_at names 'thrid', but Convolutional has no such .* Did you mean third\?",
        ),
        (Convolutional, "xyzzy", r"has no such module\. Its children are first, second, third, head\."),
        (
            Skipping,
            "third",
            r"at 'third' the output of 'first', the output of 'second' would cross: split at second or head",
        ),
        (
            Branching,
            "third",
            r"cannot trace the forward of the model \(Branching\) at `if first\.sum\(\) > 0:`: ",
        ),
        (Softmaxed, "third", r"The classifier 'head' is followed by the result of log_softmax"),
        (
            Tied,
            "third",
            r"The parameter 'second\.0\.weight' is used on both sides of the split: split before",
        ),
        (Twice, "third", r"'third' is called 2 times"),
        (Twice, "second", r"never calls 'second': split at one of its children second\.0, second\.1, second\.2"),
        (ModeDependent, "third", r"does different things in train and eval mode, which a split would freeze"),
        (WithoutLinear, "1", r"WithoutLinear calls no nn\.Linear, so it has no classifier to replace"),
        (Unpooled, "third", r"The features of a branch must have the form \[batch, 6\], not \[2, 8, 8, 6\]"),
        (InPlace, "third", r"The branch changes the tensor that crosses the split in place"),
    ],
)
def test_a_model_that_cannot_be_split_is_told_why(make: Callable[[], nn.Module], split_at: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        branch_model(make(), split_at, 2, 10, example=torch.randn(2, 3, 8, 8))


def test_a_split_inside_a_residual_block_suggests_splits_that_work() -> None:
    with pytest.raises(ConfigError, match="cross: split at ") as caught:
        branch_model(tv.resnet18(), "layer4.0.conv2", 2, 10)
    suggested = str(caught.value).rstrip(".").partition("split at ")[2].split(" or ")
    assert "layer4" in suggested
    for name in suggested:
        assert isinstance(branch_model(tv.resnet18(), name, 1, 10), BranchedNetwork)


@pytest.mark.parametrize(
    ("peers", "num_classes", "classifier", "message"),
    [
        (0, 10, None, "peers must be at least 1, not 0"),
        (2, 1, None, "num_classes must be at least 2, not 1"),
        (2, 10, "haed", r"^classifier names 'haed', .* Did you mean head\?"),
        (2, 10, "third", "The classifier 'third' is a Conv2d, but a branch needs an nn.Linear"),
    ],
)
def test_a_wrong_setting_is_named(peers: int, num_classes: int, classifier: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        branch_model(Convolutional(), "second", peers, num_classes, classifier=classifier)


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
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.LayerNorm(4))
    scale = nn.Parameter(torch.full((4,), 1e-6))
    module.register_parameter("layer_scale", scale)
    linear, zeroed, trained, layer = module
    with torch.no_grad():
        cast(Tensor, linear.bias).zero_()
        cast(Tensor, zeroed.weight).zero_()
        for norm in (trained, layer):
            cast(Tensor, norm.weight).copy_(torch.arange(4.0))
            cast(Tensor, norm.bias).copy_(torch.arange(4.0))
    module(torch.randn(8, 4))
    redraw_(module)
    assert torch.equal(scale, torch.full((4,), 1e-6))
    assert torch.equal(cast(Tensor, linear.bias), torch.zeros(4))
    assert torch.equal(cast(Tensor, zeroed.weight), torch.zeros(4))
    for norm in (trained, layer):
        assert torch.equal(cast(Tensor, norm.weight), torch.ones(4))
        assert torch.equal(cast(Tensor, norm.bias), torch.zeros(4))
    assert isinstance(trained, nn.BatchNorm1d)
    assert torch.equal(cast(Tensor, trained.running_mean), torch.zeros(4))
    assert int(cast(Tensor, trained.num_batches_tracked)) == 0
