"""A teacher that is a network of its own: whose weights, and how the images of the data become those it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import torch

from dkel_lightning import networks
from dkel_lightning.assembly.draw import NetworkDraw
from dkel_lightning.assembly.teacher_weights import load_teacher
from dkel_lightning.errors import ConfigError
from dkel_lightning.modules.interface import Coordinator
from dkel_lightning.modules.teacher import TeacherModule
from dkel_lightning.settings.backbone import is_external
from dkel_lightning.settings.teacher import ExtraTeacher, TeacherSettings


def extra_teacher(
    draw: NetworkDraw,
    voice: ExtraTeacher,
    seed: int,
    normalize: networks.Constants | None,
    rebuild: Callable[..., Coordinator],
) -> TeacherModule:
    """Make the frozen teacher beside the peers; without weights it is away, as it is where a checkpoint is read.

    Raises:
        DkelError: as `teacher_of_its_own` and `load_teacher`.
    """
    own = {item.name: getattr(voice, item.name) for item in fields(voice) if item.name != "weight"}
    settings, place = TeacherSettings(**own, update="frozen", init_steps=0), voice.node
    teacher = teacher_of_its_own(draw, settings, seed, normalize, place)
    load_teacher(teacher, rebuild, place)
    teacher.place, teacher.weight, teacher.is_away = place, voice.weight, not (voice.weights or voice.pretrained)
    if not teacher.is_away:
        teacher.stay_outside(str(voice.backbone), Path(voice.weights).name if voice.weights else "pretrained")
    return teacher


def teacher_of_its_own(
    draw: NetworkDraw,
    settings: TeacherSettings,
    seed: int,
    normalize: networks.Constants | None,
    place: str = TeacherSettings.node,
) -> TeacherModule:
    """Draw the teacher, or fetch it with its weights and its normalisation; `normalize` is that of the images.

    Raises:
        ConfigError: its weights know other classes, or a normalisation that is needed is not known.
    """
    if settings.pretrained:
        settings = _of_library(settings.backbone or draw.backbone, draw.num_classes, settings, place)
    if settings.mean is not None and normalize is None:
        raise ConfigError(
            f"{place}.mean replaces the normalisation of the images, which is not known: pass normalize=(mean, std) "
            "to build, or give data.mean and data.std."
        )
    drawn = draw.alone(settings.backbone, settings.image_size, settings.pretrained)
    # A model of the user's own comes with weights, which an independent draw must not keep.
    network = drawn(seed, "teacher", redraw=settings.draw == "independent" and not settings.pretrained)
    if settings.sees_otherwise:
        taken = None if settings.mean is None or settings.std is None else (settings.mean, settings.std)
        networks.convert_before(network, networks.Conversion(normalize, taken, settings.image_size))
    teacher = TeacherModule(network.to(getattr(torch, settings.dtype)), settings)
    if settings.pretrained:
        teacher.take_weights()
    return teacher


def _of_library(name: object, num_classes: int, settings: TeacherSettings, place: str) -> TeacherSettings:
    if not isinstance(name, str) or not is_external(name):
        raise ConfigError(
            f"{place}.pretrained fetches weights of a library's network: set {place}.backbone to torchvision:NAME, "
            f"timm:NAME or hf:FOLDER, or give {place}.weights."
        )
    known = networks.pretrained_classes(name)
    if known != num_classes:
        raise ConfigError(
            f"{name} knows {known} classes, the data has {num_classes}: fine-tune it on these classes, and give "
            f"{place}.weights."
        )
    if settings.mean is not None:
        return settings
    mean, std = networks.normalisation(name)
    return replace(settings, mean=tuple(mean), std=tuple(std))
