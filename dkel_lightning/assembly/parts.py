"""Method, teacher and deployment from names and primitives, and whether parts fit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn

from dkel_lightning.errors import ConfigError
from dkel_lightning.methods import Method, Needs, Preset, create
from dkel_lightning.methods import preset as preset_of
from dkel_lightning.methods.base import Arrangement
from dkel_lightning.modules.ensemble import EnsembleModule
from dkel_lightning.modules.interface import Coordinator
from dkel_lightning.modules.student import StudentModule
from dkel_lightning.modules.teacher import TeacherModule
from dkel_lightning.networks import SharedTrunk
from dkel_lightning.runtime.seeding import seeded
from dkel_lightning.schedules import one_of
from dkel_lightning.settings.declarations import from_mapping, merge, walk
from dkel_lightning.settings.teacher import TEACHERS, TeacherSettings

# Lengths of the CIFAR protocol of 300 epochs as shares of it; experiment=own_data has the same.
_SHARES: dict[str, dict[str, float | None]] = {
    "rampup": {"epochs": None, "share": 0.27},
    "ensemble": {"decay": None, "decay_share": 0.02},
    "teacher": {"decay": None, "decay_share": 0.01},
}


def _lengths(name: str, given: Any, schedules: str) -> Mapping[str, Any]:
    """Give what `schedules` says of the length of `name`, unless the user has set it."""
    set_by_user = isinstance(given, Mapping) and any(given.get(key) is not None for key in _SHARES[name])
    return {} if schedules == "epochs" or set_by_user else _SHARES[name]


def choose_method(method: str | Mapping[str, Any] | Method, peers: int | None, schedules: str) -> tuple[Method, Preset]:
    """Make a method from its name or settings, with its preset.

    A ramp-up or ensemble whose length follows the experiment's on the command line follows `schedules` here.
    """
    one_of("schedules", schedules, ("epochs", "shares"))
    if isinstance(method, Method):
        return method, Preset(type(method), "", {}, "independent", Arrangement(type(method).__name__), "all")
    if not isinstance(method, str | Mapping):
        raise ConfigError(f"method is {method!r}: give a name, a mapping with a name, or a Method that is built.")
    settings: dict[str, Any] = {"name": method} if isinstance(method, str) else dict(method)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError('A method given as a mapping needs its "name".')
    preset = preset_of(name)
    own = {item.name for item in fields(preset.method.Settings)}
    beside = [item.name for item in fields(Arrangement) if item.name in settings and item.name not in own]
    if beside:
        raise ConfigError(f"method.{beside[0]} is a key of the command line: pass {beside[0]}= beside method=.")
    usual = walk(preset.default_settings())
    follows = {key.partition(".")[0] for key, _, value in usual if str(value).startswith("${protocol.")}
    for term in follows & {"rampup", "ensemble"} - {*preset.settings}:
        if lengths := _lengths(term, settings.get(term), schedules):
            settings[term] = {**(settings.get(term) or {}), **lengths}
    usual = preset.arrangement.peers
    usual = usual if isinstance(usual, int) else len(usual)
    return create(name, usual if peers is None else peers, settings), preset


def teacher_settings(
    method: Method, preset: Preset, given: Mapping[str, Any] | None, schedules: str
) -> TeacherSettings | None:
    """Lay what is given over the method's teacher; None where there is none."""
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f'teacher is {given!r}: give its settings, such as {{"draw": "student", "start": "copy"}}.')
    given = dict(given or {})
    name = type(method).__name__
    if given.get("update") == "none" or (preset.teacher == "none" and not given):
        check_teacher(name, method.needs, {"update": "none"})
        if others := [key for key in given if key != "update"]:
            raise ConfigError(f"{name} has no teacher, so teacher.{others[0]} means nothing: choose teacher=none.")
        return None
    given |= _lengths("teacher", given, schedules)
    settings = from_mapping(TeacherSettings, merge(_preset_teacher(preset), given), "teacher")
    check_teacher(name, method.needs, vars(settings))
    return settings


def _preset_teacher(preset: Preset) -> Mapping[str, Any]:
    teacher = TEACHERS[preset.teacher].settings if isinstance(preset.teacher, str) else preset.teacher
    return {} if teacher.get("update") == "none" else teacher


def check_teacher(method: str, needs: Needs, teacher: Mapping[str, Any]) -> None:
    """Raise where settings of a teacher contradict what the method needs."""
    if teacher["update"] == "none":
        if needs.teacher == "required":
            cure = "frozen" if needs.foreign_teacher else "independent, copy or follow"
            raise ConfigError(f"teacher=none, but {method} needs a teacher: choose teacher={cure}.")
        return
    if not needs.foreign_teacher:
        for key in ("backbone", "pretrained", "init_student_from_branches"):
            default = getattr(TeacherSettings, key)
            if teacher.get(key, default) != default:
                raise ConfigError(
                    f"teacher.{key} is set, but the teacher of {method} has the student's form: leave it out."
                )
        return
    own = f"but the teacher of {method} is a network of its own"
    if teacher["update"] == "ema":
        raise ConfigError(f"teacher.update is ema, {own}: set teacher.update to frozen or gradient.")
    if teacher["update"] == "frozen" and teacher.get("init_steps"):
        raise ConfigError(f"The teacher of {method} is trained beforehand: set teacher.init_steps to 0.")
    if teacher.get("draw") == "student":
        raise ConfigError(f"teacher.draw is student, {own}: set teacher.draw to independent.")


def method_recipe(method: str | Mapping[str, Any] | Method, chosen: Method) -> dict[str, Any] | None:
    """Return name and settings as primitives; None for a method that was made by hand."""
    if isinstance(method, Method):
        return None
    name = method if isinstance(method, str) else method["name"]
    return {"name": name, **chosen.settings_as_dict()}


def check_parts(
    student: StudentModule,
    method: Method,
    teacher: TeacherModule | None,
    ensemble: EnsembleModule | None,
    views: str,
) -> None:
    """Refuse parts that do not belong together.

    Raises:
        ConfigError: with the parts and what is wrong between them.
    """
    name = type(method).__name__
    if student.num_peers != method.peers:
        raise ConfigError(f"{name} was built for {method.peers} peers, the student has {student.num_peers}.")
    trunk = isinstance(student.network, SharedTrunk)
    method.needs.check(name, method.peers, trunk, views)
    if method.needs.teacher == "required" and teacher is None:
        raise ConfigError(f"{name} needs a teacher: pass teacher=TeacherModule(...).")
    if method.wants_ensemble_classifier and ensemble is None:
        raise ConfigError(f"{name} needs an ensemble classifier: pass ensemble=EnsembleModule(...).")
    if method.ensemble is not None and (ensemble is None or ensemble.term != method.ensemble):
        raise ConfigError(f"{name} assembles teachers: pass ensemble=EnsembleModule(..., term=method.ensemble).")
    if method.needs.foreign_teacher:
        _check_foreign_teacher(name, method, student, teacher)
    elif teacher is not None and (teacher.num_peers, teacher.num_classes) != (student.num_peers, student.num_classes):
        raise ConfigError(
            f"Student and teacher must have as many peers and classes: {student.num_peers} and {student.num_classes} "
            f"against {teacher.num_peers} and {teacher.num_classes}."
        )


def _check_foreign_teacher(name: str, method: Method, student: StudentModule, teacher: TeacherModule | None) -> None:
    if teacher is None:
        return
    if teacher.num_peers != 1 or teacher.num_classes != student.num_classes:
        raise ConfigError(
            f"{name} learns from one teacher of the same classes: it has {teacher.num_peers} peers and "
            f"{teacher.num_classes} classes, the student {student.num_classes} classes."
        )
    check_teacher(name, method.needs, vars(teacher.settings))


def attach(module: Coordinator) -> None:
    """Let the method make its own parts to fit the networks, and say what it wants to see of them."""
    method, student, teacher, seed = module.method, module.student, module.teacher, module.seed
    student.wants_stages = method.needs.stages
    student.freeze_weights(method.needs.fixed_student)
    for part in (student, teacher):
        if part is not None:
            part.network.unwatch()
    with seeded(seed, "method parts"):
        method.attach(student.network)
    if teacher is not None:
        teacher.is_read = method.needs.teacher != "none" and method.needs.teacher_outputs
        with seeded(seed, "method parts of the teacher"):  # the same whoever its student is
            method.attach_teacher(teacher.network)
    # DDP would overwrite them with those of the first process before every step; a frozen teacher has the same on all.
    ignored = [f"method.{name}" for name in method.own_buffers]
    if teacher is not None and teacher.settings.update == "frozen":
        ignored += [f"teacher.network.{key}" for key in teacher.network.state_dict()]
    module._ddp_params_and_buffers_to_ignore = ignored


def check_is_trained_itself(module: Coordinator) -> None:
    """Refuse a module inside another one, whose Trainer calls none of its hooks.

    Raises:
        ConfigError: the Trainer fits another module.
    """
    if module.is_attached and cast(Any, module.trainer.lightning_module) is not module:
        raise ConfigError(
            f"{type(module).__name__} is a part of {type(module.trainer.lightning_module).__name__} here, so nothing "
            "calls its hooks: the teacher would never follow, and weights would stay at their start. Pass it to "
            "Trainer.fit itself, and derive from it what it should do differently."
        )


def check_nobody_averages_scores(module: Coordinator) -> None:
    """Refuse Lightning's WeightAveraging, which averages all buffers too: scores that choose the peer, and counters.

    Raises:
        ConfigError: the Trainer has such a callback.
    """
    for callback in getattr(module.trainer, "callbacks", ()):
        if isinstance(callback, WeightAveraging):
            raise ConfigError(
                f"{type(callback).__name__} averages scores and counters with the weights, so that no peer could be "
                "chosen any longer: leave it out. A teacher that follows is the student's average (teacher='follow' "
                "for a method without one), and may be deployed."
            )


def warn_of_an_untrained_teacher(module: Coordinator) -> None:
    """Say so where a teacher of its own has random weights and stays as it is."""
    teacher = module.teacher
    if (lacking := module.method.lacks()) is not None:
        rank_zero_warn(lacking)
    untrained = teacher is not None and teacher.settings.update == "frozen" and not bool(teacher.initialised)
    if untrained and module.method.needs.foreign_teacher and module.recipe is not None:
        rank_zero_warn(
            f"The teacher of {type(module.method).__name__} has random weights and stays as it is: pass "
            'teacher={"weights": PATH}, or {"update": "gradient"} for one that learns beside the student.'
        )
