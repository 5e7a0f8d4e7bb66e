"""Classifiers of torchvision, timm and transformers by name. Only pretrained weights are downloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from dkel_lightning.errors import ConfigError, first_line
from dkel_lightning.networks.outline import IMAGE_SHAPE
from dkel_lightning.runtime.packages import need
from dkel_lightning.settings.backbone import reads_a_folder
from dkel_lightning.settings.declarations import did_you_mean

EXTRAS = {"timm": "timm", "hf": "transformers"}


def make(
    name: str, num_classes: int, in_channels: int, image_size: tuple[int, int] | None = None, pretrained: bool = False
) -> nn.Module:
    """Build the classifier `name` (`torchvision:resnet50`), its weights drawn from torch's global generator.

    Pretrained weights may come with another classifier than for `num_classes`.
    """
    source, _, model_name = name.partition(":")
    size = image_size or IMAGE_SHAPE[1:]
    if source not in EXTRAS:
        return _torchvision(model_name, num_classes, in_channels, size, pretrained)
    build = _timm if source == "timm" else _hf
    return build(_library(name), model_name, num_classes, in_channels, size, pretrained)


def size_arguments(name: str, size: Sequence[int]) -> dict[str, Any]:
    """Return the arguments that build a fixed-size model for images of `size`; transformers configure it otherwise."""
    source, _, model_name = name.partition(":")
    if source == "torchvision":
        return {"image_size": size[0]} if model_name.startswith("vit_") else {}
    fixed = source == "timm" and _library(name).get_pretrained_cfg_value(model_name, "fixed_input_size")
    return {"img_size": tuple(size)} if fixed else {}


def normalisation(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and deviation of the images on which the pretrained model `name` was trained."""
    source, _, model_name = name.partition(":")
    try:
        if source == "timm":
            config = _library(name).get_pretrained_cfg(model_name)
            return config.mean, config.std
        if source == "hf":
            processor = _library(name).AutoImageProcessor.from_pretrained(model_name)
            return processor.image_mean, processor.image_std
        from torchvision import models

        transforms = models.get_model_weights(model_name).DEFAULT.transforms()
        return transforms.mean, transforms.std
    except (AttributeError, OSError, ValueError) as error:
        raise ConfigError(
            f"The normalisation of images for {name} is unknown ({error}): set data.mean and data.std."
        ) from error


def pretrained_classes(name: str) -> int:
    """Return the number of classes of the pretrained weights of the model `name`."""
    source, _, model_name = name.partition(":")
    try:
        if source == "timm":
            return int(_library(name).get_pretrained_cfg(model_name).num_classes)
        if source == "hf":
            return int(_library(name).AutoConfig.from_pretrained(model_name).num_labels)
        from torchvision import models

        return len(models.get_model_weights(model_name).DEFAULT.meta["categories"])
    except (AttributeError, OSError, ValueError) as error:
        raise ConfigError(f"{name} has no pretrained weights with a known number of classes ({error}).") from error


def _library(name: str) -> Any:
    source = name.partition(":")[0]
    return need(EXTRAS[source], name, source)


def _torchvision(name: str, num_classes: int, in_channels: int, size: tuple[int, ...], pretrained: bool) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(_unknown("torchvision", name, known))
    if in_channels != 3:
        raise ConfigError(
            f"torchvision:{name} takes images of 3 channels, the data has {in_channels}: take a registered backbone, "
            "or timm:NAME, which adapts to the channels."
        )
    arguments = size_arguments(f"torchvision:{name}", size)
    if name in ("googlenet", "inception_v3"):
        if pretrained:
            raise ConfigError(f"The weights of torchvision:{name} need its auxiliary outputs: take timm:inception_v3.")
        arguments["aux_logits"] = False
    if pretrained:
        return _load(f"torchvision:{name}", lambda: models.get_model(name, weights="DEFAULT", **arguments))
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **arguments)
    return model


def _timm(
    timm: Any, name: str, num_classes: int, in_channels: int, size: tuple[int, ...], pretrained: bool
) -> nn.Module:
    if not timm.is_model(name):
        raise ConfigError(_unknown("timm", name, timm.list_models()))
    arguments = {"pretrained": pretrained, "num_classes": num_classes, "in_chans": in_channels}
    arguments |= size_arguments(f"timm:{name}", size)
    return _load(f"timm:{name}", lambda: timm.create_model(name, **arguments), pretrained)


def _hf(
    transformers: Any, name: str, num_classes: int, in_channels: int, size: tuple[int, ...], pretrained: bool
) -> nn.Module:
    auto = transformers.AutoModelForImageClassification
    arguments = {"num_labels": num_classes, "ignore_mismatched_sizes": True, "trust_remote_code": False}
    if pretrained:
        return _load(f"hf:{name}", lambda: auto.from_pretrained(name, **arguments))
    try:
        if not reads_a_folder(f"hf:{name}"):
            config = transformers.AutoConfig.for_model(name)
        else:
            config = transformers.AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        config.num_labels = num_classes
        config.num_channels = in_channels
        if hasattr(config, "image_size"):
            config.image_size = size[0]
        config.architectures = config.architectures or []  # of a type alone transformers would walk through None
        model: nn.Module = auto.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers may raise anything
        raise ConfigError(
            f"hf:{name} is not an available image classifier ({first_line(error)}): give a folder with a config.json "
            "(in the current folder: hf:./NAME), or a type such as hf:vit; backbone.pretrained=true downloads."
        ) from error
    return model


def _load(name: str, load: Callable[[], nn.Module], pretrained: bool = True) -> nn.Module:
    try:
        return load()
    except Exception as error:  # of the network, the disk, or the model's arguments
        if not pretrained:
            raise ConfigError(f"{name} cannot be built ({first_line(error)}).") from error
        raise ConfigError(
            f"The pretrained weights of {name} cannot be loaded ({first_line(error)}): check the connection or the "
            "cache, give a folder that has them (hf:FOLDER), or set backbone.pretrained=false."
        ) from error


def _unknown(source: str, name: str, known: list[str]) -> str:
    return f"{source} has no classifier {name!r}.{did_you_mean(name, known, most=3)}"
