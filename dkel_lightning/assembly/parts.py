"""Method and teacher from names and primitives, and whether the parts of a module fit together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn

from dkel_lightning.assembly.draw import NetworkDraw
from dkel_lightning.assembly.weights import load_teacher
from dkel_lightning.errors import ConfigError, DataError
from dkel_lightning.methods import METHODS, Method, Needs, Preset, create, get_preset
from dkel_lightning.methods.base import Arrangement
from dkel_lightning.modules.ensemble import EnsembleModule
from dkel_lightning.modules.student import StudentModule
from dkel_lightning.modules.teacher import TeacherModule
from dkel_lightning.networks import PeerNetwork, SharedTrunk
from dkel_lightning.networks.external import pretrained_classes
from dkel_lightning.runtime.mappings import merge
from dkel_lightning.runtime.seeding import seeded
from dkel_lightning.schedules import one_of
from dkel_lightning.settings.backbone import is_external
from dkel_lightning.settings.declarations import from_mapping, unknown_choice
from dkel_lightning.settings.teacher import TEACHERS, TeacherSettings

if TYPE_CHECKING:
    from dkel_lightning.distillation import DistillationModule

# Lengths of the CIFAR protocol of 300 epochs as shares of it, as in conf/protocol/shares.yaml.
SHARES: dict[str, dict[str, float | None]] = {
    "rampup": {"epochs": None, "share": 0.27},
    "ensemble": {"decay": None, "decay_share": 0.02},
    "teacher": {"decay": None, "decay_share": 0.01},
}

# ---------------------------------------------------------------------- the method


def find_preset(method: str | Mapping[str, Any] | Method) -> tuple[Preset, dict[str, Any]]:
    """Return the preset of a method and the settings that are laid over it; of an instance, that of its class."""
    if isinstance(method, Method):
        kind, teacher = type(method), "independent" if method.needs.teacher else "none"
        preset = Preset(kind, "", {}, teacher, Arrangement(kind.__name__), "all")
        # Without settings: `dkel`, not `dkel_released`.
        preset = next((one for one in METHODS.values() if one.method is kind and not one.settings), preset)
        return replace(preset, arrangement=replace(preset.arrangement, peers=method.peers)), {}
    settings: dict[str, Any] = {"name": method} if isinstance(method, str) else dict(method)
    return get_preset(settings.pop("name", "")), settings


def make_method(
    method: str | Mapping[str, Any] | Method,
    preset: Preset,
    settings: dict[str, Any],
    arrangement: Arrangement,
    schedules: str,
) -> Method:
    """Build the method; `schedules` sets the lengths of ramp-up and ensemble decay that are not given."""
    one_of("schedules", schedules, ("epochs", "shares"))
    if isinstance(method, Method):
        return method
    usual = preset.default_settings()
    for term in ("rampup", "ensemble") if schedules == "shares" else ():
        default = getattr(usual, term, None)
        if default is not None and default == type(default)() and not _sets_length(term, settings.get(term)):
            settings[term] = {**(settings.get(term) or {}), **SHARES[term]}
    peers = arrangement.peers
    return create(arrangement.name, peers if isinstance(peers, int) else len(peers), settings)


def _sets_length(term: str, settings: Mapping[str, Any] | None) -> bool:
    return any((settings or {}).get(key) is not None for key in SHARES[term])


# ---------------------------------------------------------------------- the teacher


def named_teacher(teacher: str | Mapping[str, Any] | TeacherSettings | None) -> Mapping[str, Any]:
    """Return the settings of a teacher as a mapping, those of a preset by its name."""
    if isinstance(teacher, TeacherSettings):
        return asdict(teacher)
    if isinstance(teacher, str):
        if teacher not in TEACHERS:
            raise ConfigError(unknown_choice("teacher", teacher, TEACHERS))
        return TEACHERS[teacher].settings
    return teacher or {}


def teacher_settings(
    method: Method, preset: Preset, teacher: str | Mapping[str, Any] | TeacherSettings | None, schedules: str
) -> TeacherSettings | None:
    """Lay a mapping over the settings of the method's teacher, or replace them; None for no teacher."""
    usual = {} if isinstance(teacher, str | TeacherSettings) else preset.teacher_settings
    settings = dict(named_teacher(teacher))
    name, needs = type(method).__name__, method.needs
    if settings.get("update") == "none" or (usual.get("update") == "none" and not settings):
        if needs.teacher:
            hint = "frozen" if needs.foreign_teacher else "independent, copy or follow"
            raise ConfigError(f"teacher=none, but {name} needs a teacher: choose teacher={hint}.")
        return None
    if usual.get("update") == "none":
        usual = {}
    if schedules == "shares" and not _sets_length("teacher", settings):
        settings |= SHARES["teacher"]
    merged = from_mapping(TeacherSettings, merge(usual, settings), "teacher")
    check_teacher(name, needs, merged)
    return merged


def check_teacher(method: str, needs: Needs, settings: TeacherSettings) -> None:
    """Check that a teacher is of the kind that the method needs."""
    wrong: dict[str, bool]
    if needs.foreign_teacher:
        trained_before = settings.update == "frozen" and bool(settings.init_steps)
        wrong = {"update": settings.update == "ema", "init_steps": trained_before, "draw": settings.draw == "student"}
        form = "is a separate network, trained beforehand or by gradient"
    else:
        keys = ("backbone", "pretrained", "training", "training_epochs")
        wrong = {key: getattr(settings, key) != getattr(TeacherSettings, key) for key in keys}
        form = "has the student's form"
    for key in (key for key, is_wrong in wrong.items() if is_wrong):
        raise ConfigError(f"teacher.{key} is {getattr(settings, key)!r}, but the teacher of {method} {form}.")


def make_teacher(
    draw: NetworkDraw,
    seed: int,
    needs: Needs,
    settings: TeacherSettings,
    student: PeerNetwork,
    rebuild: Callable[..., DistillationModule],
    start: Callable[[PeerNetwork], Any] | None = None,
) -> tuple[TeacherModule, DistillationModule | None]:
    """Make a method's teacher, and the module of the checkpoint (rebuilt by `rebuild`) that its weights are from.

    `start` loads the weights that the student started from.
    """
    # An independent draw must not keep the random weights that a user's untrained model has.
    redraw = settings.draw == "independent" and not settings.pretrained
    if settings.pretrained:
        _check_pretrained(settings.backbone or draw.backbone, draw.num_classes)
    alone = draw.alone(settings.backbone, settings.pretrained) if needs.foreign_teacher else draw
    teacher = TeacherModule(alone(seed, "teacher", redraw=redraw), settings)
    if settings.pretrained:
        teacher.take_weights()
    if start is not None and not needs.foreign_teacher:
        start(teacher.network)
    teacher.start_from(student)
    prepared = load_teacher(teacher, rebuild)
    external = settings.pretrained or (settings.weights is not None and prepared is None)
    # Checkpoints keep a teacher that this library has trained, so that they need no other file.
    teacher.is_external = needs.foreign_teacher and settings.update == "frozen" and external
    return teacher, prepared


def _check_pretrained(backbone: object, num_classes: int) -> None:
    external = isinstance(backbone, str) and is_external(backbone)
    classes = pretrained_classes(str(backbone)) if external else "no"
    if classes != num_classes:
        raise ConfigError(
            f"teacher.pretrained: the library's weights of {backbone} have {classes} classes, the data "
            f"{num_classes}: set teacher.backbone to torchvision:NAME, timm:NAME or hf:FOLDER with weights of these "
            "classes, or give teacher.weights."
        )


# ---------------------------------------------------------------------- all parts together


def check_parts(
    student: StudentModule, method: Method, teacher: TeacherModule | None, ensemble: EnsembleModule | None, views: str
) -> None:
    """Check that the parts fit together."""
    name = type(method).__name__
    if student.num_peers != method.peers:
        raise ConfigError(f"{name} was built for {method.peers} peers, the student has {student.num_peers}.")
    method.needs.check(name, method.peers, isinstance(student.network, SharedTrunk), views)
    if method.needs.teacher and teacher is None:
        raise ConfigError(f"{name} needs a teacher: pass teacher=TeacherModule(...).")
    if method.wants_ensemble_classifier and ensemble is None:
        raise ConfigError(f"{name} needs an ensemble classifier: pass ensemble=EnsembleModule(...).")
    if teacher is None:
        return
    peers = 1 if method.needs.foreign_teacher else student.num_peers
    if (teacher.num_peers, teacher.num_classes) != (peers, student.num_classes):
        raise ConfigError(
            f"{name} needs a teacher of {peers} peers and {student.num_classes} classes, and this one has "
            f"{teacher.num_peers} peers and {teacher.num_classes} classes."
        )
    if method.needs.foreign_teacher:
        check_teacher(name, method.needs, teacher.settings)


def attach(module: DistillationModule) -> None:
    """Let the method make its parts and watch layers; freeze the student if the method needs that."""
    method, student, teacher, seed = module.method, module.student, module.teacher, module.seed
    student.freeze_weights(method.needs.fixed_student)
    for part in (student, teacher):
        if part is not None:
            part.network.unwatch()
    with seeded(seed, "method parts"):
        method.attach(student.network, None if teacher is None else teacher.network)
    # DDP broadcasts buffers from the first process at every step. These differ on purpose, or are constant.
    ignored = [f"method.{name}" for name in method.process_buffers]
    if teacher is not None:
        teacher.is_read = method.needs.teacher and method.needs.teacher_outputs
        if teacher.settings.update == "frozen":
            ignored += [f"teacher.network.{key}" for key in teacher.network.state_dict()]
    module._ddp_params_and_buffers_to_ignore = ignored


def check_is_trained_itself(module: DistillationModule) -> None:
    """Check that the module is the one that is trained: of a part, Lightning calls no hooks."""
    if module._trainer is not None and module.trainer.lightning_module is not module:
        raise ConfigError(
            f"{type(module).__name__} is a part of {type(module.trainer.lightning_module).__name__} here, so nothing "
            "calls its hooks: the teacher would never follow, and weights would stay at their start. Pass it to "
            "Trainer.fit itself, and derive from it what it should do differently."
        )


def check_data(module: DistillationModule) -> None:
    """Refuse strong views or images without labels that the method cannot use, before the first batch."""
    data, method, peers = getattr(module.trainer, "datamodule", None), module.method, module.student.num_peers
    apart = method.needs.teacher_views and getattr(data, "views", None) == 2 * peers
    if getattr(data, "augment_strong", None) is not None and not apart:
        raise ConfigError(
            "data.augment_strong needs separate views for the teacher: choose mean_teacher with "
            f"method.views=per_peer_and_teacher (in Python views={2 * peers} of the data module), or use data.augment."
        )
    unlabelled = getattr(data, "unlabelled_size", 0)
    if unlabelled and method.wants_classes:
        raise DataError(
            f"{unlabelled:,} training images have no label, and the method as it is set needs the class of every "
            "image: leave them out (data.unlabelled_share=0), or choose another method, method.loss or method.target."
        )


def check_no_weight_averaging(module: DistillationModule) -> None:
    """Refuse Lightning's weight averaging: it averages all buffers, and so the scores that choose the peer."""
    for callback in getattr(module.trainer, "callbacks", ()):
        if isinstance(callback, WeightAveraging):
            raise ConfigError(
                f"{type(callback).__name__} averages scores and counters with the weights: leave it out. A teacher "
                "that follows is the student's average (teacher='follow'), and may be deployed."
            )


def warn_of_an_untrained_teacher(module: DistillationModule) -> None:
    """Warn if a frozen teacher, or parts fitted on it, have random weights."""
    teacher, method = module.teacher, module.method
    if (fitted_by := method.needs.fitted_by) is not None and not bool(method.fitted):
        rank_zero_warn(
            f"The parts of {type(method).__name__} that method={fitted_by} fits have random weights and do not learn: "
            f"train method={fitted_by} on the teacher, and set teacher.weights to its checkpoint."
        )
    untrained = teacher is not None and teacher.settings.update == "frozen" and not bool(teacher.initialised)
    if untrained and method.needs.foreign_teacher and module.recipe is not None:
        rank_zero_warn(
            f"The teacher of {type(method).__name__} has random weights and stays as it is: pass "
            'teacher={"weights": PATH}, or {"update": "gradient"} for one that learns beside the student.'
        )
