"""Peers made of any torch classifier, by reference: whole copies of it whose modules before a split are the same ones.

Nothing is taken apart or traced. A dry pass shows which modules run before the split, and which linear layer comes
last. Each peer is a copy of the model with its own forward and its own names, but shares these modules with the others.
The trunk still runs once: a first pass over all views stops at the split and writes down what the outermost modules
before it return, and in each peer's pass they answer from what was written.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks.outline import IMAGE_SHAPE, Outline, check_name, logits_of, observe, tensors_of
from dkel_lightning.networks.peers import PeerFeatures, PeerStages, SharedTrunk
from dkel_lightning.networks.watching import StandIn
from dkel_lightning.runtime.texts import first_line

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
    with a linear layer. It is copied, never changed. What its forward computes, how, and under which names is its own
    affair: `network.peer(0)` is of its class and has its keys. Examples of split points: torchvision ResNet `layer4`,
    VGG `features.24`, MobileNet `features.9`, ConvNeXt `features.6`; timm ResNet `layer4`, ViT `blocks.8`.

    The modules before the split keep their weights. The others are drawn for each peer on their own from torch's global
    CPU generator: `redraw_`, and a new linear layer for the classifier. Weights used on both sides of the split are
    shared. The new network is in training mode. Modules after the split no longer work in place, because several peers
    read one trunk output.

    Args:
        model: A classifier, for instance from torchvision, timm or transformers.
        split_at: Name of the first module that each peer has for itself, as in `model.named_modules()`.
        peers: How many, at least 1.
        num_classes: Classes to tell apart, at least 2.
        classifier: Name of the final linear layer; by default the last one called. Its input are the features [B, D].
        image_shape: [C, H, W] of the noise on which the model is tried: what the network computes is compared with it.
        redraw_branches: False starts every peer with the model's own weights; its classifier is then replaced only
            if it tells another number of classes apart.
        views_per_pass: `all` or `one`, see `SharedTrunk`.

    Raises:
        ConfigError: If a number is out of range; a name is unknown; the model does not take such images, gives no
            logits, does not end with a linear layer on features [B, D], or calls `split_at` not exactly once; or its
            logits change because of the split.
    """
    if peers < 1:
        raise ConfigError(f"peers must be at least 1, not {peers}.")
    model = copied(model)
    check_name(model, split_at, "split_at")
    outline = observe(model, image_shape, classifier, split_at)
    shared = _shared(model, outline)
    copies = [model, *(copy.deepcopy(model, dict(shared)) for _ in range(peers - 1))]
    network = SplitModel([WholeModel(each, outline) for each in copies], outline, views_per_pass)
    network.image_shape = image_shape
    for module in (each for index in range(peers) for each in network.own_part(index).modules()):
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
    """Make one peer of a copy of `model`, its weights kept; arguments and errors of `branch_model`."""
    model = copied(model)
    peer = WholeModel(model, observe(model, image_shape, classifier))
    peer.start(num_classes, None)
    return peer.train()


def copied(model: nn.Module) -> nn.Module:
    """Copy a model of the user's own.

    Raises:
        ConfigError: it is compiled or scripted, has layers without weights, or cannot be copied.
    """
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise ConfigError(
            f"{kind} is compiled, and peers are made of a model as it was before: give that one; execution='compile' "
            "compiles what is trained."
        )
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ConfigError(f"{name!r} of {kind} has no form yet: pass the model a batch of images first.")
        if not (parameter.is_floating_point() or parameter.is_complex()):
            raise ConfigError(f"{name!r} of {kind} is a parameter of {parameter.dtype}: let it be a buffer.")
    try:
        return copy.deepcopy(model)
    except Exception as error:  # what a model of the user's own holds may be anything
        raise ConfigError(f"{kind} cannot be copied, and peers are copies of it ({first_line(error)}).") from error


@torch.no_grad()
def redraw_(module: nn.Module) -> nn.Module:
    """Redraw the weights of any module in place, at the scale they have, from torch's global CPU generator.

    Works without knowing the architecture: a parameter whose elements are all equal (weight and bias of an untrained
    norm, zero biases, LayerScale) stays; any other is drawn from a normal distribution with its own mean and standard
    deviation, so that the model's own initialisation scale is kept. Trained normalisation layers return to their
    `reset_parameters`, and running statistics are reset. With it an independent teacher is drawn from a user's model.

    Returns:
        The module.
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
            # Drawn on the CPU, so that a seed gives the same weights wherever the module lies.
            values = parameter.detach().float().cpu()
            drawn = torch.empty_like(values).normal_(float(values.mean()), float(values.std(correction=0)))
            parameter.copy_(drawn)
    return module


def is_trained(model: nn.Module) -> bool:
    """Tell whether a model comes with weights worth keeping: those of an untrained normalisation layer are constant."""
    norms = [module for module in model.modules() if isinstance(module, _NORMS)]
    return not all(_is_constant(parameter) for norm in norms for parameter in norm.parameters(recurse=False))


def _is_constant(parameter: Tensor) -> bool:
    """Whether there is nothing to redraw: all elements equal, or none that a normal distribution could replace."""
    if parameter.is_meta or not parameter.is_floating_point() or parameter.numel() < 2:
        return True
    return bool(parameter.min() == parameter.max())


# --- the peers ---


_Told = list[tuple[str, Any]]
"""By module before the split what it returned, and of the split what it was given, last."""


class _AtSplitError(Exception):
    """The first pass has come to the split."""


class _Notes:
    """What modules up to the split do in a pass: compute, as in any model; write down; or answer.

    A first pass over all views writes, then each peer's own pass is answered. With three peers of a ResNet that is
    split at `layer4`, and 128 images a view:

    * Writing, `conv1` to `layer3` compute on 384 images, and each appends its name and output. `layer4` appends what
      it was given, and ends the pass by an exception, as no other way leads out of a forward that is not ours.
    * Answering, each peer has the part of that list that is of its 128 images. `conv1` to `layer3` take their outputs
      off it and compute nothing; `layer4` takes its input off it, and from there on the peer computes.

    Attributes:
        writing: the list that a first pass fills; else None.
        answers: what is left of a peer's list until it is at the split; else None.
        whole: whether outputs are written down whole, for a branch that reads more of the trunk than what the split is
            given. Where none does only their form is, so that their memory is free before the branches run.
    """

    def __init__(self) -> None:
        self.whole = True
        self.writing: _Told | None = None
        self.answers: _Told | None = None

    def answer(self, name: str) -> Any:
        """Give the next answer, which must be that of the module that asks."""
        assert self.answers is not None
        expected, value = self.answers.pop(0) if self.answers else ("nothing", None)
        if expected != name:
            raise ConfigError(
                f"A peer calls {name!r} where the pass over all views called {expected!r}: what runs before the split "
                "must not depend on the values of the images. Split elsewhere, or set views_per_pass=one."
            )
        return value


class _UpToSplit(StandIn):
    """Of a module whose pass is written down under a name."""

    def __init__(self, module: nn.Module, name: str, notes: _Notes) -> None:
        super().__init__(module)
        self.name = name
        self.notes = notes


class _Before(_UpToSplit):
    """Of a module before the split: it computes once, and then answers."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.notes.answers is not None:
            return self.notes.answer(self.name)
        output = self.forward(*args, **kwargs)
        if self.notes.writing is not None:
            self.notes.writing.append((self.name, output if self.notes.whole else tree_map(_form, output)))
        return output


class _Split(_UpToSplit):
    """Of the module at the split: a first pass ends here, and each peer's own begins."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.notes.writing is not None:
            self.notes.writing.append((self.name, (args, kwargs)))
            raise _AtSplitError
        if self.notes.answers is not None:
            args, kwargs = self.notes.answer(self.name)
            self.notes.answers = None  # from here on the peer computes
        return self.forward(*args, **kwargs)


def _form(leaf: Any) -> Any:
    """Keep the form of a tensor, with nothing in it."""
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.new_full((), float("nan") if leaf.is_floating_point() else 0).expand(leaf.shape)


class _Classifier(StandIn):
    """Of the final linear layer: what it was given last are the features."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.features: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.features = args[0] if args else next(iter(kwargs.values()))
        return self.forward(*args, **kwargs)


class WholeModel(nn.Module):
    """A model of the user's own, or of torchvision, timm or transformers, as a peer."""

    def __init__(self, model: nn.Module, outline: Outline) -> None:
        super().__init__()
        self.model = model
        self.classifier = outline.classifier
        self.feature_dim = outline.feature_dim
        self.num_classes = outline.num_classes
        self._end = _Classifier(model.get_submodule(outline.classifier))

    @property
    def plain(self) -> nn.Module:
        """The model itself, under its own names."""
        return self.model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, num_classes] and features [B, D]."""
        logits, features = logits_of(self.model(images)), self._end.features
        self._end.features = None
        assert features is not None
        return logits, features

    def stages(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Return logits, features, no maps, and for the trunk's output the images: nothing is shared."""
        return *self(images), None, images

    def start(self, num_classes: int, own: nn.Module | None) -> None:
        """Draw the first weights of `own`, the peer's part, if any; and a classifier of so many classes if needed."""
        if own is not None:
            redraw_(own).requires_grad_(True)
        if own is not None or self.num_classes != num_classes:
            self.draw_classifier(num_classes)

    def draw_classifier(self, num_classes: int) -> None:
        """Draw the weights of the classifier anew from torch's global generator, for so many classes."""
        if num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2, not {num_classes}.")
        old = self.linear
        if "weight" not in old._parameters:
            raise ConfigError(
                f"The classifier {self.classifier!r} computes its weight (spectral or weight norm), and one is drawn "
                "for each peer: leave the norm of this layer out."
            )
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None).to(old.weight.device, old.weight.dtype)
        old.weight, old.bias, old.out_features = new.weight, new.bias, num_classes
        self.num_classes = num_classes
        for owner in (self.model, getattr(self.model, "config", None)):
            for name in ("num_classes", "num_labels"):
                if hasattr(owner, name):
                    setattr(owner, name, num_classes)

    @property
    def linear(self) -> nn.Linear:
        """The classifier."""
        return cast(nn.Linear, self.model.get_submodule(self.classifier))


class SplitModel(SharedTrunk):
    """Whole copies of one model, whose modules before a split are the same ones; made by `branch_model`."""

    def __init__(self, peers: Sequence[WholeModel], outline: Outline, views_per_pass: str = "all") -> None:
        super().__init__(peers, views_per_pass)
        assert outline.split_at is not None
        self.peers = nn.ModuleList(peers)
        self.outline = outline
        self._notes = _Notes()
        for name in outline.before:
            _Before(peers[0].model.get_submodule(name), name, self._notes)
        for peer in peers:
            _Split(peer.model.get_submodule(outline.split_at), outline.split_at, self._notes)

    def forward(self, views: Tensor) -> tuple[Tensor, PeerFeatures]:
        """Return logits [P, B, num_classes] and features; see `PeerNetwork.forward`."""
        views = self._with_view_axis(views)
        return self._gather(self._passes(views, self._crossing(views)))

    def _stages(self, views: Tensor) -> PeerStages:
        # For the trunk's output the first tensor of what crosses the split.
        views = self._with_view_axis(views)
        told = self._crossing(views)
        trunk = [next(leaf for leaf in tree_leaves(each[-1][1]) if isinstance(leaf, Tensor)) for each in told]
        return self._gather_stages(trunk, [(*outputs, None) for outputs in self._passes(views, told)])

    @property
    def classifiers(self) -> list[nn.Linear]:
        """The peers' classifiers."""
        return [cast(WholeModel, peer).linear for peer in self.peers]

    def peer(self, index: int) -> nn.Module:
        """Return model `index` itself; see `PeerNetwork.peer`."""
        self._check_peer(index)
        return cast(WholeModel, self.peers[index]).plain

    def shared_part(self) -> nn.Module:
        """Return the modules before the split, and the parameters that are read there beside them."""
        model = cast(WholeModel, self.peers[0]).model
        shared = nn.ModuleList([model.get_submodule(name) for name in self.outline.before])
        inside, tensors, beside = {id(each) for each in shared.parameters()}, tensors_of(model), nn.Module()
        for index, tensor in enumerate(tensors[name] for name in self.outline.used_before):
            if isinstance(tensor, nn.Parameter) and id(tensor) not in inside:
                beside.register_parameter(str(index), tensor)
        return shared.append(beside)

    def _own_part(self, index: int) -> OwnPart:
        model = cast(WholeModel, self.peers[index]).model
        return OwnPart(model, _shared(model, self.outline))

    def _passes(self, views: Tensor, told: Sequence[_Told]) -> Iterator[tuple[Tensor, Tensor]]:
        images = views.expand(-1, self.num_peers, -1, -1, -1).unbind(1)
        for peer, image, own in zip(self.peers, images, told, strict=True):
            self._notes.answers = list(own)
            try:
                yield peer(image)
            finally:
                self._notes.answers = None

    def _first_pass(self, images: Tensor, parts: int) -> Sequence[_Told]:
        """Pass `images` up to the split; return what was written down, for each of so many parts of the batch."""
        told: list[_Told] = [[] for _ in range(parts)]
        for name, value in self._written(images):
            leaves, form = tree_flatten(value)
            batched = self.outline.batched.get(name, [True] * len(leaves))
            chunks = [self._chunks(leaf, is_batch, parts) for leaf, is_batch in zip(leaves, batched, strict=True)]
            for own, part in zip(told, zip(*chunks, strict=True), strict=True):
                own.append((name, tree_unflatten(part, form)))
        return told

    def _written(self, images: Tensor) -> _Told:
        written: _Told = []
        self._notes.writing = written
        try:
            self.peers[0](images)
        except _AtSplitError:
            pass
        finally:
            self._notes.writing = None
        return written

    def _chunks(self, leaf: Any, is_batch: bool, parts: int) -> Sequence[Any]:
        if not isinstance(leaf, Tensor):
            return [leaf] * parts
        scaled = self._scaled(leaf) if leaf.is_floating_point() else leaf
        return scaled.chunk(parts) if is_batch and parts > 1 else [scaled] * parts


class OwnPart(nn.Module):
    """What a peer shares with no other: its modules from the split on, and the parameters of those around it."""

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
        self.weights.extend(each for each in module.parameters(recurse=False) if id(each) not in shared)
        for child in module.children():
            self._take(child, shared)

    def train(self, mode: bool = True) -> OwnPart:
        """Set the mode of what is the peer's own, and of no module that is shared."""
        for module in self._around:
            module.training = mode
        super().train(mode)
        return self


def _shared(model: nn.Module, outline: Outline) -> dict[int, Any]:
    """Collect what peers share, by identity: modules before the split with all inside, and what else is read there."""
    modules = [model.get_submodule(name) for name in outline.before]
    found = [part for module in modules for part in (*module.modules(), *module.parameters(), *module.buffers())]
    tensors = tensors_of(model)
    return {id(part): part for part in (*found, *(tensors[name] for name in outline.used_before))}


@torch.no_grad()
def _check_same_features(network: SplitModel) -> None:
    """Hold a pass of peers that still have equal weights against the model's own."""
    first = cast(WholeModel, network.eval().peers[0])
    weight = next(first.parameters())
    noise = torch.randn(1, network.num_peers, *network.image_shape, generator=torch.Generator().manual_seed(1))
    views = noise.to(weight.device, weight.dtype)
    _, expected = first(views[0].clone())
    told = network._crossing(views)
    crossing = [leaf for leaf in tree_leaves(told) if isinstance(leaf, Tensor)]
    versions = [leaf._version for leaf in crossing]
    found = torch.cat([features for _, features in network._passes(views, told)])
    if [leaf._version for leaf in crossing] != versions:
        raise ConfigError(
            "A branch changes a tensor that crosses the split in place, which would spoil it for the others: split "
            "elsewhere, or replace the in-place operation."
        )
    like = found.shape == expected.shape
    if not like or not torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
        raise ConfigError(
            f"Cut at {network.outline.split_at!r}, the model computes other features than whole: its forward must "
            "depend on its images alone, and the batch come first in what crosses the cut. Split elsewhere, or set "
            "views_per_pass=one."
        )
    network._notes.whole = False
    try:
        formal = torch.cat([features for _, features in network._passes(views, network._crossing(views))])
        network._notes.whole = not torch.allclose(formal, found, rtol=1e-3, atol=1e-4 * float(found.abs().max()))
    except Exception:  # a forward that reads what is not there fails in any way it likes
        network._notes.whole = True
