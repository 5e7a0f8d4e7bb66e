"""Teachers: drawn as peers or as a network of its own, and whose weights they start with."""

from __future__ import annotations

from collections.abc import Callable

from dkel_lightning import networks
from dkel_lightning.assembly.draw import NetworkDraw
from dkel_lightning.assembly.teacher_weights import load_teacher
from dkel_lightning.errors import ConfigError
from dkel_lightning.methods import Needs
from dkel_lightning.modules.interface import Coordinator
from dkel_lightning.modules.teacher import TeacherModule
from dkel_lightning.settings.backbone import is_external
from dkel_lightning.settings.teacher import TeacherSettings


def make_teacher(
    draw: NetworkDraw,
    seed: int,
    needs: Needs,
    settings: TeacherSettings,
    student: networks.PeerNetwork,
    rebuild: Callable[..., Coordinator],
) -> tuple[TeacherModule, Coordinator | None]:
    """Make a method's teacher, and return the module of a checkpoint of this library if its weights are from one.

    `rebuild` makes the module of such a checkpoint.
    """
    if needs.foreign_teacher:
        teacher = _own_network(draw, seed, settings)
    else:
        # A model of the user's own comes with weights, which an independent draw must not keep.
        teacher = TeacherModule(draw(seed, "teacher", redraw=settings.draw == "independent"), settings)
    teacher.start_from(student)
    prepared = load_teacher(teacher, rebuild)
    given = settings.weights is not None or settings.pretrained
    # What this library has trained stays in the checkpoint, which needs no other file then.
    teacher.is_external = needs.foreign_teacher and settings.update == "frozen" and given and prepared is None
    return teacher, prepared


def _own_network(draw: NetworkDraw, seed: int, settings: TeacherSettings) -> TeacherModule:
    """Draw a teacher that is a network of its own, or fetch it with its weights."""
    if settings.pretrained:
        _check_library(settings.backbone or draw.backbone, draw.num_classes)
    drawn = draw.alone(settings.backbone, settings.pretrained)
    # A model of the user's own comes with weights, which an independent draw must not keep.
    network = drawn(seed, "teacher", redraw=settings.draw == "independent" and not settings.pretrained)
    teacher = TeacherModule(network, settings)
    if settings.pretrained:
        teacher.take_weights()
    return teacher


def _check_library(name: object, num_classes: int) -> None:
    if not isinstance(name, str) or not is_external(name):
        raise ConfigError(
            "teacher.pretrained fetches weights of a library's network: set teacher.backbone to torchvision:NAME, "
            "timm:NAME or hf:FOLDER, or give teacher.weights."
        )
    known = networks.pretrained_classes(name)
    if known != num_classes:
        raise ConfigError(
            f"{name} knows {known} classes, the data has {num_classes}: fine-tune it on these classes, and give "
            "teacher.weights."
        )
