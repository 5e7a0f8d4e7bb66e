"""Peers made of any torch classifier: whole copies of it that share the modules before a split.

Nothing is taken apart or traced. A dry run shows which modules run before the split, and which linear layer comes last.
Each peer is a copy of the model with its own forward and its own names, and shares the modules before the split with
the others. The trunk runs once: a first pass over all views stops at the split and records what the outermost modules
before it return; in each peer's pass these modules replay the record.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from dkel_lightning.errors import ConfigError, first_line
from dkel_lightning.networks.outline import IMAGE_SHAPE, Outline, logits_of, observe, tensors_of
from dkel_lightning.networks.peers import PeerOutputs, SharedTrunk
from dkel_lightning.networks.watching import StandIn, find

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def branch_model(
    model: nn.Module,
    split_at: str,
    peers: int,
    num_classes: int,
    *,
    classifier: str | None = None,
    image_shape: tuple[int, int, int] = IMAGE_SHAPE,
    redraw_branches: bool = True,
    views_per_pass: str = "all",
) -> SplitModel:
    """Make `peers` copies of `model` that share what runs before the module `split_at`.

    The model must map one image tensor [B, C, H, W] to logits, or to a mapping or an object that has `logits`, and end
    with a linear layer. It is copied, never changed, and `network.peer(0)` is of its class and has its keys. Examples
    of split points: torchvision ResNet `layer4`, VGG `features.24`, MobileNet `features.9`, ConvNeXt `features.6`; timm
    ResNet `layer4`, ViT `blocks.8`.

    The modules before the split keep their weights. The others are drawn for each peer from torch's global CPU
    generator: `redraw_`, and a new linear layer for the classifier. Weights used on both sides of the split are shared.
    The new network is in training mode. Modules after the split no longer work in place, because several peers read one
    trunk output.

    Args:
        model: A classifier, for instance from torchvision, timm or transformers.
        split_at: Name of the first module that each peer has for itself, as in `model.named_modules()`.
        peers: Number of peers, at least 1.
        num_classes: Number of classes, at least 2.
        classifier: Name of the final linear layer; by default the last one called. Its input are the features [B, D].
        image_shape: [C, H, W] of the noise on which the model is tried: the network's features are compared with it.
        redraw_branches: False starts every peer with the model's own weights; its classifier is then replaced only
            if its number of classes differs.
        views_per_pass: `all` or `one`, see `SharedTrunk`.
    """
    model = copied(model)
    find(model, split_at, "split_at")
    outline = observe(model, image_shape, classifier, split_at)
    shared = _shared(model, outline)
    copies = [model, *(copy.deepcopy(model, dict(shared)) for _ in range(peers - 1))]
    network = SplitModel([WholeModel(peer, outline) for peer in copies], outline, views_per_pass)
    network.image_shape = image_shape
    for module in (module for index in range(peers) for module in network.own_part(index).modules()):
        if getattr(module, "inplace", False) is True:
            module.__dict__["inplace"] = False
    _check_same_features(network)
    for index, peer in enumerate(cast("Sequence[WholeModel]", network.peers)):
        peer.start(num_classes, network.own_part(index) if redraw_branches else None)
    network.num_classes = num_classes
    return network.train()


def whole_model(
    model: nn.Module, num_classes: int, classifier: str | None = None, image_shape: tuple[int, int, int] = IMAGE_SHAPE
) -> WholeModel:
    """Make one peer of a copy of `model`, its weights kept; arguments as of `branch_model`."""
    model = copied(model)
    peer = WholeModel(model, observe(model, image_shape, classifier))
    peer.start(num_classes, None)
    return peer.train()


def copied(model: nn.Module) -> nn.Module:
    """Copy a model; refuse one that is compiled, scripted or lazy."""
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise ConfigError(
            f"{kind} is compiled: pass the model that it was compiled from; execution='compile' compiles the training."
        )
    try:
        return copy.deepcopy(model)
    except Exception as error:  # a user's model may hold anything
        raise ConfigError(f"{kind} cannot be copied, and peers are copies of it ({first_line(error)}).") from error


@torch.no_grad()
def redraw_(module: nn.Module) -> nn.Module:
    """Redraw the weights of any module in place, at their scale, from torch's global CPU generator.

    A parameter whose elements are all equal (weight and bias of an untrained norm, zero biases, LayerScale) stays; any
    other is drawn from a normal distribution with its own mean and standard deviation. Trained normalisation layers
    return to their `reset_parameters`, and running statistics are reset.
    """
    norms = [child for child in module.modules() if isinstance(child, _NORMS)]
    in_norms = {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}
    for norm in norms:
        if isinstance(norm, _NormBase):
            norm.reset_running_stats()
        # An untrained norm may start at other constants than torch's, such as the zeros of a residual block's last one.
        if not all(_is_constant(parameter) for parameter in norm.parameters(recurse=False)):
            norm.reset_parameters()
    for parameter in module.parameters():
        if id(parameter) not in in_norms and not _is_constant(parameter):
            # Drawn on the CPU, so that a seed gives the same weights on every device.
            values = parameter.detach().float().cpu()
            parameter.copy_(torch.empty_like(values).normal_(float(values.mean()), float(values.std(correction=0))))
    return module


def is_trained(model: nn.Module) -> bool | None:
    """Whether a model has trained weights: those of untrained normalisation layers are constant; None without any."""
    norms = [module for module in model.modules() if isinstance(module, _NORMS)]
    parameters = [parameter for norm in norms for parameter in norm.parameters(recurse=False)]
    return not all(map(_is_constant, parameters)) if parameters else None


def _is_constant(parameter: Tensor) -> bool:
    """Whether there is nothing to redraw: all elements equal, or none that a normal distribution could replace."""
    if parameter.is_meta or not parameter.is_floating_point() or parameter.numel() < 2:
        return True
    return bool(parameter.min() == parameter.max())


# --- the peers ---


_Record = list[tuple[str, Any]]
"""Outputs of the modules before the split by name, then the arguments of the split module."""


class _AtSplitError(Exception):
    """Ends the first pass at the split."""


class _Tape:
    """The mode of the modules up to the split in a pass: compute, record, or replay.

    With three peers of a ResNet that is split at `layer4`, and 128 images a view:

    * Recording, `conv1` to `layer3` compute on 384 images, and each appends its name and output. `layer4` appends its
      arguments, and ends the pass by an exception, as there is no other way out of a forward that is not ours.
    * Replaying, each peer has the chunk of that record that is of its 128 images. `conv1` to `layer3` return their
      recorded outputs and compute nothing; `layer4` takes its recorded arguments, and from there on the peer computes.

    Attributes:
        recording: the list that a first pass fills; else None.
        replay: the rest of a peer's record, until it reaches the split; else None.
    """

    def __init__(self) -> None:
        self.recording: _Record | None = None
        self.replay: _Record | None = None

    def next(self, name: str) -> Any:
        """Return the next recorded value, which must be that of the module `name`."""
        assert self.replay is not None
        expected, value = self.replay.pop(0) if self.replay else ("nothing", None)
        if expected != name:
            raise ConfigError(
                f"A peer calls {name!r} where the pass over all views called {expected!r}: what runs before the split "
                "must not depend on the values of the images. Split elsewhere, or set views_per_pass=one."
            )
        return value


class _Taped(StandIn):
    def __init__(self, module: nn.Module, name: str, tape: _Tape) -> None:
        super().__init__(module)
        self.name = name
        self.tape = tape


class _TrunkModule(_Taped):
    """Of a module before the split."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.tape.replay is not None:
            return self.tape.next(self.name)
        output = self.forward(*args, **kwargs)
        if self.tape.recording is not None:
            self.tape.recording.append((self.name, output))
        return output


class _SplitModule(_Taped):
    """Of the module at the split: a first pass ends here, and each peer's own begins."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.tape.recording is not None:
            self.tape.recording.append((self.name, (args, kwargs)))
            raise _AtSplitError
        if self.tape.replay is not None:
            args, kwargs = self.tape.next(self.name)
            self.tape.replay = None  # from here on the peer computes
        return self.forward(*args, **kwargs)


class _Classifier(StandIn):
    """Of the final linear layer: its last input are the features."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.features: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.features = args[0] if args else next(iter(kwargs.values()))
        return self.forward(*args, **kwargs)


class WholeModel(nn.Module):
    """A user's model, or one of torchvision, timm or transformers, as a peer."""

    def __init__(self, model: nn.Module, outline: Outline) -> None:
        super().__init__()
        self.model = model
        self.classifier = outline.classifier
        self.feature_dim = outline.feature_dim
        self.num_classes = outline.num_classes
        self._classifier = _Classifier(model.get_submodule(outline.classifier))

    @property
    def plain(self) -> nn.Module:
        """The deployed network: the model itself, under its own names."""
        return self.model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, num_classes] and features [B, D]."""
        logits, features = logits_of(self.model(images)), self._classifier.features
        self._classifier.features = None
        assert features is not None
        return logits, features.flatten(1)

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Return logits, features, no maps, and for the trunk's output the images, because nothing is shared."""
        return *self(images), None, images

    def start(self, num_classes: int, own: nn.Module | None) -> None:
        """Redraw `own`, the peer's part, if given; draw a classifier for `num_classes` if needed."""
        if own is not None:
            redraw_(own).requires_grad_(True)
        if own is not None or self.num_classes != num_classes:
            self.draw_classifier(num_classes)

    def draw_classifier(self, num_classes: int) -> None:
        """Draw the weights of the classifier for `num_classes` from torch's global generator."""
        if num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2, not {num_classes}.")
        old = self.linear
        bias = old.bias is not None
        new: nn.Linear | nn.Conv2d
        if isinstance(old, nn.Linear):
            new, old.out_features = nn.Linear(old.in_features, num_classes, bias), num_classes
        else:
            new, old.out_channels = nn.Conv2d(old.in_channels, num_classes, 1, bias=bias), num_classes
        new = new.to(old.weight.device, old.weight.dtype)
        old.weight, old.bias = new.weight, new.bias
        self.num_classes = num_classes
        for owner in (self.model, getattr(self.model, "config", None)):
            for name in ("num_classes", "num_labels"):
                if hasattr(owner, name):
                    setattr(owner, name, num_classes)

    @property
    def linear(self) -> nn.Linear | nn.Conv2d:
        """The classifier."""
        return cast(nn.Linear, self.model.get_submodule(self.classifier))


class SplitModel(SharedTrunk):
    """Whole copies of one model that share the modules before a split; made by `branch_model`."""

    def __init__(self, peers: Sequence[WholeModel], outline: Outline, views_per_pass: str = "all") -> None:
        super().__init__(peers, views_per_pass)
        assert outline.split_at is not None
        self.peers = nn.ModuleList(peers)
        self.outline = outline
        self._tape = _Tape()
        for name in outline.before:
            _TrunkModule(peers[0].model.get_submodule(name), name, self._tape)
        for peer in peers:
            _SplitModule(peer.model.get_submodule(outline.split_at), outline.split_at, self._tape)

    def _run(self, views: Tensor) -> PeerOutputs:
        records = self._trunk_outputs(views)
        # The trunk's output is the first tensor among the arguments of the split module.
        trunk = [next(leaf for leaf in tree_leaves(record[-1][1]) if isinstance(leaf, Tensor)) for record in records]
        return self._gather(trunk, [(*outputs, None) for outputs in self._run_branches(views, records)])

    @property
    def classifiers(self) -> list[nn.Module]:
        return [cast(WholeModel, peer).linear for peer in self.peers]

    def peer(self, index: int) -> nn.Module:
        return cast(WholeModel, self.peers[index]).plain

    def shared_part(self) -> nn.Module:
        """Return the modules before the split, and other parameters that are used there."""
        model = cast(WholeModel, self.peers[0]).model
        shared = nn.ModuleList([model.get_submodule(name) for name in self.outline.before])
        inside, tensors, beside = {id(parameter) for parameter in shared.parameters()}, tensors_of(model), nn.Module()
        for index, tensor in enumerate(tensors[name] for name in self.outline.used_before):
            if isinstance(tensor, nn.Parameter) and id(tensor) not in inside:
                beside.register_parameter(str(index), tensor)
        return shared.append(beside)

    def own_part(self, index: int) -> OwnPart:
        model = self.peer(index)
        return OwnPart(model, _shared(model, self.outline))

    def _run_branches(self, views: Tensor, records: Sequence[_Record]) -> Iterator[tuple[Tensor, Tensor]]:
        images = views.expand(-1, self.num_peers, -1, -1, -1).unbind(1)
        for peer, image, record in zip(self.peers, images, records, strict=True):
            self._tape.replay = list(record)
            try:
                yield peer(image)
            finally:
                self._tape.replay = None

    def _run_trunk(self, images: Tensor, chunks: int) -> Sequence[_Record]:
        recording: _Record = []
        self._tape.recording = recording
        try:
            self.peers[0](images)
        except _AtSplitError:
            pass
        finally:
            self._tape.recording = None
        records: list[_Record] = [[] for _ in range(chunks)]
        for name, value in recording:
            leaves, structure = tree_flatten(value)
            batched = self.outline.batched.get(name, [True] * len(leaves))
            parts = [self._chunk(leaf, is_batch, chunks) for leaf, is_batch in zip(leaves, batched, strict=True)]
            for record, part in zip(records, zip(*parts, strict=True), strict=True):
                record.append((name, tree_unflatten(part, structure)))
        return records

    def _chunk(self, leaf: Any, is_batch: bool, chunks: int) -> Sequence[Any]:
        if not isinstance(leaf, Tensor):
            return [leaf] * chunks
        scaled = self._scaled(leaf) if leaf.is_floating_point() else leaf
        return scaled.chunk(chunks) if is_batch and chunks > 1 else [scaled] * chunks


class OwnPart(nn.Module):
    """The part of a peer that it does not share: modules from the split on, and parameters of modules around them."""

    def __init__(self, model: nn.Module, shared: Mapping[int, Any]) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.weights = nn.ParameterList()
        self._around: list[nn.Module] = []
        self._take(model, shared)

    def _take(self, module: nn.Module, shared: Mapping[int, Any]) -> None:
        if id(module) in shared:
            return
        if not any(id(part) in shared for part in (*module.modules(), *module.parameters(), *module.buffers())):
            self.parts.append(module)
            return
        self._around.append(module)
        self.weights.extend(weight for weight in module.parameters(recurse=False) if id(weight) not in shared)
        for child in module.children():
            self._take(child, shared)

    def train(self, mode: bool = True) -> OwnPart:
        """Set the mode of no module that is shared."""
        for module in self._around:
            module.training = mode
        super().train(mode)
        return self


def _shared(model: nn.Module, outline: Outline) -> dict[int, Any]:
    """Collect what peers share, by identity: modules before the split with all inside, and what else is read there."""
    modules = [model.get_submodule(name) for name in outline.before]
    parts = [part for module in modules for part in (*module.modules(), *module.parameters(), *module.buffers())]
    tensors = tensors_of(model)
    return {id(part): part for part in (*parts, *(tensors[name] for name in outline.used_before))}


@torch.no_grad()
def _check_same_features(network: SplitModel) -> None:
    """Compare the features of peers that still have equal weights with the model's own."""
    first = cast(WholeModel, network.eval().peers[0])
    weight = next(first.parameters())
    noise = torch.randn(1, network.num_peers, *network.image_shape, generator=torch.Generator().manual_seed(1))
    views = noise.to(weight.device, weight.dtype)
    _, expected = first(views[0].clone())
    records = network._trunk_outputs(views)
    crossing = [leaf for leaf in tree_leaves(records) if isinstance(leaf, Tensor)]
    versions = [leaf._version for leaf in crossing]
    features = torch.cat([features for _, features in network._run_branches(views, records)])
    if [leaf._version for leaf in crossing] != versions:
        raise ConfigError(
            "A branch changes a tensor that crosses the split in place, which would spoil it for the others: split "
            "elsewhere, or replace the in-place operation."
        )
    atol = 1e-4 * float(expected.abs().max())
    if features.shape != expected.shape or not torch.allclose(features, expected, rtol=1e-3, atol=atol):
        raise ConfigError(
            f"Cut at {network.outline.split_at!r}, the model computes other features than whole: its forward must "
            "depend on its images alone, and the batch come first in what crosses the cut. Split elsewhere, or set "
            "views_per_pass=one."
        )
