"""Teachers: drawn as peers or as a network of its own, whose weights, and how images become those that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import nn

from dkel_lightning import networks
from dkel_lightning.assembly.draw import NetworkDraw
from dkel_lightning.assembly.teacher_weights import load_teacher
from dkel_lightning.errors import ConfigError
from dkel_lightning.methods import Needs
from dkel_lightning.modules.interface import Coordinator
from dkel_lightning.modules.teacher import TeacherModule
from dkel_lightning.settings.backbone import is_external
from dkel_lightning.settings.teacher import ExtraTeacher, TeacherSettings


@dataclass(frozen=True)
class TeacherMaker:
    """Makes the teachers of a student that was drawn by `draw`, for images with the normalisation `normalize`.

    `rebuild` makes the module of a checkpoint of this library. Errors are those of `_of_its_own` and `load_teacher`.
    """

    draw: NetworkDraw
    seed: int
    normalize: networks.Constants | None
    rebuild: Callable[..., Coordinator]

    def main(
        self, needs: Needs, settings: TeacherSettings, student: networks.PeerNetwork
    ) -> tuple[TeacherModule, Coordinator | None]:
        """Make a method's teacher, and give the module of a checkpoint of this library if its weights are from one."""
        if needs.foreign_teacher:
            teacher = self._of_its_own(settings, TeacherSettings.node)
        else:
            # A model of the user's own comes with weights, which an independent draw must not keep.
            teacher = TeacherModule(self.draw(self.seed, "teacher", redraw=settings.draw == "independent"), settings)
        teacher.start_from(student)
        prepared = load_teacher(teacher, self.rebuild)
        # What no training of this library gave, no checkpoint holds.
        if needs.foreign_teacher and settings.update == "frozen" and prepared is None:
            _leave_outside(teacher, settings.backbone or self.draw.backbone, settings)
        return teacher, prepared

    def extra(self, voice: ExtraTeacher) -> TeacherModule:
        """Make the frozen teacher beside the peers; without weights it is away, as it is where a checkpoint is read."""
        own = {item.name: getattr(voice, item.name) for item in fields(voice) if item.name != "weight"}
        settings, place = TeacherSettings(**own, update="frozen", init_steps=0), voice.node
        teacher = self._of_its_own(settings, place)
        load_teacher(teacher, self.rebuild, place)
        teacher.place, teacher.weight = place, voice.weight
        teacher.is_away = not _leave_outside(teacher, str(voice.backbone), settings)
        return teacher

    def _of_its_own(self, settings: TeacherSettings, place: str) -> TeacherModule:
        """Draw a teacher that is a network of its own, or fetch it with its weights and its normalisation.

        Raises:
            ConfigError: its weights know other classes, or a normalisation that is needed is not known.
        """
        if settings.pretrained:
            settings = _of_library(settings.backbone or self.draw.backbone, self.draw.num_classes, settings, place)
        if settings.mean is not None and self.normalize is None:
            raise ConfigError(
                f"{place}.mean replaces the normalisation of the images, which is not known: pass normalize=(mean, "
                "std) to build, or give data.mean and data.std."
            )
        drawn = self.draw.alone(settings.backbone, settings.image_size, settings.pretrained)
        # A model of the user's own comes with weights, which an independent draw must not keep.
        network = drawn(self.seed, "teacher", redraw=settings.draw == "independent" and not settings.pretrained)
        if settings.sees_otherwise:
            taken = None if settings.mean is None or settings.std is None else (settings.mean, settings.std)
            networks.convert_before(network, networks.Conversion(self.normalize, taken, settings.image_size))
        teacher = TeacherModule(network.to(getattr(torch, settings.dtype)), settings)
        if settings.pretrained:
            teacher.take_weights()
        return teacher


def _leave_outside(teacher: TeacherModule, backbone: str | nn.Module, settings: TeacherSettings) -> bool:
    """Leave weights that were read or fetched out of checkpoints; tell whether there are such."""
    source = Path(settings.weights).name if settings.weights else "pretrained" if settings.pretrained else None
    if source is not None:
        teacher.stay_outside(backbone if isinstance(backbone, str) else type(backbone).__name__, source)
    return source is not None


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
