"""Default split points of networks of libraries: the last stage, or two thirds of equal blocks."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

from torch import nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks.branching import branch_model
from dkel_lightning.networks.outline import observe

# The last stage of each class of torchvision.
TORCHVISION = {
    "AlexNet": "features.6",
    "ConvNeXt": "features.6",
    "DenseNet": "features.denseblock4",
    "EfficientNet": "features.6",
    "GoogLeNet": "inception5a",
    "Inception3": "Mixed_7a",
    "MNASNet": "layers.12",
    "MaxVit": "blocks.3",
    "RegNet": "trunk_output.block4",
    "ResNet": "layer4",
    "ShuffleNetV2": "stage4",
    "SwinTransformer": "features.6",
}


def usual_cut(model: nn.Module, image_shape: tuple[int, int, int], classifier: str | None = None) -> str:
    """Return the default cut of a network; without one, name two that work."""
    if (cut := default_cut(model)) is not None:
        return cut
    working = " or ".join(working_cuts(model, image_shape, classifier)) or "the name of a module, as in named_modules()"
    raise ConfigError(
        f"{type(model).__name__} has no default split point: set backbone.split_at (split_at= in Python) to {working}."
    )


def working_cuts(model: nn.Module, image_shape: tuple[int, int, int], classifier: str | None = None) -> list[str]:
    """Name two modules at which a network can be cut, as near to two thirds of its parameters as there are."""
    outline = observe(model, image_shape, classifier)
    places = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    shares: dict[str, float] = {}
    for name, part in model.named_modules():
        first = next(part.parameters(), None)
        if first is not None and name.count(".") < 2 and name != outline.classifier and places[id(first)] > 0:
            shares[name] = places[id(first)] / len(places)
    working: list[str] = []
    for name in sorted(shares, key=lambda name: abs(shares[name] - 2 / 3))[:8]:
        with contextlib.suppress(ConfigError):
            branch_model(model, name, 2, outline.num_classes, classifier=classifier, image_shape=image_shape)
            working.append(name)
        if len(working) == 2:
            break
    return working


def default_cut(model: nn.Module) -> str | None:
    """Name the module at which branches begin; None for other networks, or without known stages."""
    info: Any = getattr(model, "feature_info", None)
    if info:  # timm
        return _of_timm(model, info.get_dicts() if hasattr(info, "get_dicts") else info)
    if hasattr(getattr(model, "config", None), "model_type"):  # transformers
        return _of_transformers(model)
    kinds = [kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("torchvision.models.")]
    return _of_torchvision(model, kinds[0]) if kinds else None


def _of_timm(model: nn.Module, stages: list[dict[str, Any]]) -> str | None:
    """Name the module behind the last stage but one, or behind two thirds of the blocks where none is downsampled."""
    if "mobilenetv3_small" in str(getattr(model, "pretrained_cfg", "")):
        return "blocks.5"  # as recorded runs have it
    last = stages[-1]["reduction"]
    larger = [stage["module"] for stage in stages if stage["reduction"] < last]
    end = larger[-1] if larger else stages[len(stages) * 2 // 3 - 1]["module"]
    names = [name for name, _ in model.named_modules()]
    if end not in names:  # mvitv2 gives names that it does not have
        return _item(model, len(stages), len(stages) - 1)
    following = itertools.islice(names, names.index(end) + 1, None)
    return next((name for name in following if not name.startswith(f"{end}.")), None)


def _of_transformers(model: Any) -> str | None:
    if stages := getattr(model.config, "depths", None):
        return _item(model, len(stages), len(stages) - 1)
    count = getattr(model.config, "num_hidden_layers", 0)
    return _item(model, count, count * 2 // 3)


def _item(model: nn.Module, count: int, index: int) -> str | None:
    """Name an item of the first list of `count` modules."""
    kinds = (nn.ModuleList, nn.Sequential)
    lists = (name for name, part in model.named_modules() if isinstance(part, kinds) and len(part) == count)
    return next((f"{name}.{index}" for name in lists), None)


def _of_torchvision(model: Any, kind: str) -> str | None:
    if kind == "VisionTransformer":
        return f"encoder.layers.encoder_layer_{len(model.encoder.layers) * 2 // 3}"
    if kind.startswith("MobileNet"):  # torchvision marks the blocks that downsample
        return f"features.{max(i for i, block in enumerate(model.features) if getattr(block, '_is_cn', False))}"
    if kind == "VGG":  # behind the last pooling but one
        return f"features.{[i for i, layer in enumerate(model.features) if isinstance(layer, nn.MaxPool2d)][-2] + 1}"
    return TORCHVISION.get(kind)
