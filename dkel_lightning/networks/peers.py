"""Networks of several peers: one trunk with branches, or separate networks side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import scale_gradient
from dkel_lightning.networks.watching import Named, Watched
from dkel_lightning.schedules import one_of

PeerFeatures: TypeAlias = Tensor | tuple[Tensor, ...]
"""Features of all peers: [P, B, D], or one [B, D_i] a peer where the widths D_i differ."""


class Branch(nn.Module):
    """The part of a network that each peer has for itself: a body, then a classifier.

    `body` maps the trunk's output to features [B, D], `classifier` maps those to logits [B, C].
    """

    def __init__(self, body: nn.Module, classifier: nn.Module, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.classifier = classifier
        self.feature_dim = feature_dim
        self.num_classes = num_classes

    def forward(self, trunk_output: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits [B, C], features [B, D], and what a stage `pool` of the body takes, [B, D', H', W'] or None."""
        if type(self.body) is not nn.Sequential:
            features = self.body(trunk_output)
            return self.classifier(features), features, None
        hidden, maps = trunk_output, None
        for name, stage in self.body.named_children():
            maps = hidden if name == "pool" else maps
            hidden = stage(hidden)
        return self.classifier(hidden), hidden, maps


def kaiming_(module: nn.Sequential, mode: str = "fan_out") -> nn.Sequential:
    """Draw the convolutions of a part of a backbone; BatchNorm and linear layers stay."""
    for conv in (child for child in module.modules() if isinstance(child, nn.Conv2d)):
        nn.init.kaiming_normal_(conv.weight, mode=mode, nonlinearity="relu")  # type: ignore[arg-type]
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    return module


class PeerOutputs(NamedTuple):
    """The outputs of all peers; `trunk`, `maps` and `named` have one tensor per peer.

    Attributes:
        logits: [P, B, C].
        features: [P, B, D], the input of each peer's classifier; a tuple of [B, D_i] where widths differ.
        ensemble_logits: [B, C] of the ensemble of student peers; None without one.
        trunk: outputs of the trunk, P of [B, ...] (one tensor P times for a shared view).
        maps: last feature maps before pooling, P of [B, D', H', W']; None if unknown.
        named: outputs of the watched modules, P of [B, ...] each; None if none are watched, see `PeerNetwork.watch`.
    """

    logits: Tensor
    features: PeerFeatures
    ensemble_logits: Tensor | None = None
    trunk: tuple[Tensor, ...] = ()
    maps: tuple[Tensor, ...] | None = None
    named: Named | None = None


class SinglePeer(nn.Module):
    """A complete classifier of a registered backbone, images [B, C, H, W] -> logits [B, num_classes]."""

    def __init__(self, trunk: nn.Module, branch: Branch) -> None:
        super().__init__()
        self.trunk = trunk
        self.branch = branch
        self.feature_dim = branch.feature_dim
        self.num_classes = branch.num_classes

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.branch(self.trunk(images))[0]
        return logits

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Return logits, features, last feature maps and the trunk's output."""
        trunk_output = self.trunk(images)
        return *self.branch(trunk_output), trunk_output

    @property
    def linear(self) -> nn.Module:
        """The classifier."""
        return self.branch.classifier

    @property
    def plain(self) -> nn.Module:
        """The deployed network: the peer itself."""
        return self


class PeerNetwork(nn.Module, ABC):
    """P classifiers that are trained together; each part has `feature_dim` and `num_classes`.

    Views are [B, V, C, H, W] with V = P (peer i sees view i) or V = 1 (all peers see the same images), or
    [B, C, H, W], which is the same as V = 1.

    Attributes:
        num_peers: P.
        num_classes: The classes of every peer's logits.
        feature_dims: The width of each peer's features, P entries.
        image_shape: [C, H, W] of the images, used by `probe`.
    """

    def __init__(self, heads: Sequence[Any]) -> None:
        super().__init__()
        classes = sorted({head.num_classes for head in heads})
        if len(classes) > 1:
            raise ConfigError(f"All peers must have the same number of classes, but theirs are {classes}.")
        self.num_peers = len(heads)
        self.num_classes = classes[0]
        self.feature_dims: tuple[int, ...] = tuple(head.feature_dim for head in heads)
        self.image_shape: tuple[int, int, int] = (3, 224, 224)
        self._watched: Watched | None = None

    def forward(self, views: Tensor) -> PeerOutputs:
        """Return the outputs of all peers."""
        views = views.unsqueeze(1) if views.dim() == 4 else views
        if self._watched is None:
            return self._run(views)
        self._watched.begin()
        outputs = self._run(views)
        return outputs._replace(named=self._watched.end(views.shape[1] > 1))

    @abstractmethod
    def _run(self, views: Tensor) -> PeerOutputs:
        """Compute the outputs for views [B, V, C, H, W], V = 1 or P."""

    def watch(self, names: Sequence[str], setting: str = "names") -> Named:
        """Let `forward` also return the outputs of these modules, in place of those watched before.

        Classes, names, weights and keys of the modules stay, and the deployed network is not affected.

        Args:
            names: as in `named_modules()` of a peer's classifier; of registered backbones also `stage1` and so on.
            setting: the user's setting, for messages.

        Returns:
            The outputs for one black image in eval mode.
        """
        self.unwatch()
        self._watched = Watched([self.peer(index) for index in range(self.num_peers)], names, setting)
        named = self.probe().named
        assert named is not None
        return named

    def unwatch(self) -> None:
        """Undo `watch`."""
        if self._watched is not None:
            self._watched.remove()
            self._watched = None

    @property
    @abstractmethod
    def classifiers(self) -> list[nn.Module]:
        """The classifier of each peer."""

    @abstractmethod
    def peer(self, index: int) -> nn.Module:
        """Return peer `index` as a plain classifier that shares its parameters with this network."""

    def shared_part(self) -> nn.Module:
        """Return the trunk."""
        raise ConfigError("These peers share nothing, so there is no backbone: name a backbone, and peers as a number.")

    @abstractmethod
    def own_part(self, index: int) -> nn.Module:
        """Return what peer `index` shares with no other peer: its branch, or the whole of a separate network."""

    @torch.no_grad()
    def probe(self) -> PeerOutputs:
        """Pass one black image of `image_shape` in eval mode, to see the shapes of all outputs; changes nothing."""
        modes = [(module, module.training) for module in self.modules()]
        weight = next(self.parameters())
        image = torch.zeros(1, *self.image_shape, device=weight.device, dtype=weight.dtype)
        try:
            return self.eval()(image)
        except ConfigError:
            raise
        except Exception as error:  # a user's model may raise anything
            channels, height, width = self.image_shape
            raise ConfigError(
                f"The network does not take images of {channels} channels and {height}x{width} ({error}): "
                "set in_channels and image_size to those of your images."
            ) from error
        finally:
            for module, training in modes:
                module.training = training

    def _gather(self, trunk: Sequence[Tensor], outputs: Iterable[tuple[Tensor, Tensor, Tensor | None]]) -> PeerOutputs:
        logits, features, maps = zip(*outputs, strict=True)
        return PeerOutputs(
            torch.stack(logits),
            torch.stack(features) if len(set(self.feature_dims)) == 1 else features,
            trunk=tuple(trunk),
            maps=None if any(of_peer is None for of_peer in maps) else maps,
        )


class SharedTrunk(PeerNetwork):
    """Peers on one trunk (the networks of DKEL, PCL, ONE).

    With a view for each peer the trunk runs once over all of them, a batch of P * B. That is nearly twice as fast as P
    passes, but BatchNorm in the trunk takes its statistics over all views together; `views_per_pass="one"` runs P
    passes, as the released code of DKEL does.

    Attributes:
        gradient_scale: Factor on the gradient that flows from the branches back into the trunk.
    """

    def __init__(self, heads: Sequence[Any], views_per_pass: str) -> None:
        super().__init__(heads)
        one_of("views_per_pass", views_per_pass, ("all", "one"))
        self.views_per_pass = views_per_pass
        self.gradient_scale = 1.0

    def _trunk_outputs(self, views: Tensor) -> Sequence[Any]:
        """Run the trunk on views [B, V, C, H, W]; return the input of each peer's branch."""
        if views.shape[1] == 1:
            return [self._run_trunk(views[:, 0], 1)[0]] * self.num_peers
        if self.views_per_pass == "one":
            return [self._run_trunk(view, 1)[0] for view in views.unbind(1)]
        return self._run_trunk(views.transpose(0, 1).flatten(0, 1), self.num_peers)

    @abstractmethod
    def _run_trunk(self, images: Tensor, chunks: int) -> Sequence[Any]:
        """Run the trunk once; return its output in so many chunks of the batch."""

    def _scaled(self, trunk_output: Tensor) -> Tensor:
        return trunk_output if self.gradient_scale == 1.0 else scale_gradient(trunk_output, self.gradient_scale)


@contextmanager
def momentum(layers: Sequence[nn.Module], value: float | None) -> Iterator[None]:
    """Set the momentum of normalisation layers for a while: 0 freezes their statistics, None makes them plain means."""
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = value  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer, previous in zip(layers, before, strict=True):
            layer.momentum = previous


class BranchedNetwork(SharedTrunk):
    """A trunk, and a branch for each peer: the form of registered backbones."""

    def __init__(self, trunk: nn.Module, branches: Sequence[Branch], views_per_pass: str = "all") -> None:
        super().__init__(branches, views_per_pass)
        self.trunk = trunk
        self.branches = nn.ModuleList(branches)

    def _run(self, views: Tensor) -> PeerOutputs:
        trunk_outputs = self._trunk_outputs(views)
        outputs = [branch(output) for branch, output in zip(self.branches, trunk_outputs, strict=True)]
        return self._gather(trunk_outputs, outputs)

    @property
    def classifiers(self) -> list[nn.Module]:
        return [cast(Branch, branch).classifier for branch in self.branches]

    def peer(self, index: int) -> SinglePeer:
        peer = SinglePeer(self.trunk, cast(Branch, self.own_part(index)))
        # Not `peer.train(...)`, which would also set the modes of the modules that both share.
        peer.training = self.training
        return peer

    def shared_part(self) -> nn.Module:
        return self.trunk

    def own_part(self, index: int) -> nn.Module:
        return self.branches[index]

    def _run_trunk(self, images: Tensor, chunks: int) -> Sequence[Tensor]:
        output = self._scaled(self.trunk(images))
        return output.chunk(chunks) if chunks > 1 else [output]


class IndependentPeers(PeerNetwork):
    """P complete networks that share nothing, possibly of different architectures (DML, KDCL).

    Each is a `SinglePeer`, or a `branching.WholeModel` around a model of a library.
    """

    def __init__(self, peers: Sequence[Any]) -> None:
        super().__init__(peers)
        self.peers = nn.ModuleList(peers)

    def _run(self, views: Tensor) -> PeerOutputs:
        images = views.expand(-1, self.num_peers, -1, -1, -1).unbind(1)
        outputs = [peer.outputs(image) for peer, image in zip(cast(Any, self.peers), images, strict=True)]
        return self._gather([trunk for *_, trunk in outputs], [of_peer[:3] for of_peer in outputs])

    @property
    def classifiers(self) -> list[nn.Module]:
        return [cast(Any, peer).linear for peer in self.peers]

    def peer(self, index: int) -> nn.Module:
        return cast(Any, self.peers[index]).plain

    def own_part(self, index: int) -> nn.Module:
        return self.peers[index]
