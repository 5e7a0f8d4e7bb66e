"""Build the coordinator from names and primitives, and rebuild it from a checkpoint that holds these."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from torch import nn

from dkel_lightning import networks
from dkel_lightning.assembly.draw import NetworkDraw, image_shape, made
from dkel_lightning.assembly.file_checks import no_more_than, refuse_folder, refuse_non_finite
from dkel_lightning.assembly.own_teacher import make_teacher
from dkel_lightning.assembly.parts import choose_method, method_recipe, teacher_settings
from dkel_lightning.assembly.teacher_weights import load_student
from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import CheckpointError, ConfigError
from dkel_lightning.methods import Method
from dkel_lightning.modules import resume
from dkel_lightning.modules.batch import batch_keys_of
from dkel_lightning.modules.ensemble import EnsembleModule
from dkel_lightning.modules.interface import Augmentation, Coordinator
from dkel_lightning.modules.optim import OptimizerFactory, SchedulerFactory
from dkel_lightning.modules.student import StudentModule
from dkel_lightning.runtime.seeding import seeded
from dkel_lightning.schedules import one_of
from dkel_lightning.settings.backbone import is_external
from dkel_lightning.settings.declarations import from_mapping, keys_of, merge
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.execution import Execution
from dkel_lightning.settings.keys import unknown_choice
from dkel_lightning.settings.methods import Arrangement
from dkel_lightning.settings.targets import Targets
from dkel_lightning.settings.teacher import TEACHERS, TeacherSettings

_OF_LIGHTNING = {"hparams_file": None, "strict": True, "weights_only": True}
"""What Lightning's `load_from_checkpoint` takes beside, and what always holds here."""

_NOT_OF_A_FILE = {"weights": None, "pretrained": False}
"""Settings of a teacher by which something is read or fetched, as they are where a checkpoint is loaded."""

C = TypeVar("C", bound=Coordinator)
P = ParamSpec("P")


class ConstructedBy(classmethod, Generic[P]):  # type: ignore[type-arg]  # classmethod takes none when it runs
    """A classmethod whose body lies elsewhere, and whose result is of the class it is called on, also for mypy."""

    def __init__(self, function: Callable[Concatenate[Any, P], Coordinator]) -> None:
        super().__init__(function)
        # For help() and editors.
        shown = inspect.signature(function).replace(return_annotation="Self")
        function.__signature__ = shown  # type: ignore[attr-defined]

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type[C]) -> Callable[P, C]: ...  # type: ignore[override]


def build(  # noqa: D417
    cls: Any,
    /,
    backbone: str | nn.Module = "resnet32",
    num_classes: int | None = None,
    method: str | Mapping[str, Any] | Method = "dkel",
    peers: int | Sequence[str] | None = None,
    *,
    split_at: str | None = None,
    classifier: str | None = None,
    pretrained: bool | None = None,
    weights: str | Path | None = None,
    teacher: str | Mapping[str, Any] | TeacherSettings | None = None,
    in_channels: int = 3,
    image_size: tuple[int, int] | None = None,
    views_per_pass: str | None = None,
    classifiers: str | None = None,
    sharing: str | None = None,
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    interval: str = "epoch",
    augmentation: Augmentation | None = None,
    views: str | None = None,
    targets: Mapping[str, Any] | Targets | None = None,
    batch_keys: Mapping[str, str] | None = None,
    schedules: str = "epochs",
    deploy: Mapping[str, Any] | Deploy | None = None,
    seed: int = 0,
    execution: str | Mapping[str, Any] | Execution = "eager",
) -> Coordinator:
    """Build student, teacher, ensemble and method from names and primitives.

    Args:
        backbone: a registered name; `torchvision:NAME`, `timm:NAME`, `hf:FOLDER` or `hf:TYPE`; or any torch classifier.
        num_classes: C; by default those of a model of your own, or 100.
        method: a registered name, a mapping `{"name": ..., <settings>}`, or a Method.
        peers: P, the method's by default; or a backbone's name for each peer, which then share nothing.
        split_at: for a model of your own, the module at which the branches begin, such as "layer4". Models by name
            have a place of their own, docs/own_model.md.
        classifier: for a model of your own, its classifier's name; the last linear layer by default.
        pretrained: keep the weights of the branches too, all but the classifiers', which are drawn; a model by name
            fetches weights then. By default those of a model of your own are kept whose normalisation layers show that
            it was trained. A teacher of independent draw keeps none.
        weights: file of each peer's first weights, a checkpoint of this library or a state_dict; drawn by default.
        teacher: settings laid over the method's, see TeacherSettings, or the name of such, as `follow`; `none` for no
            teacher.
        in_channels: channels of the images.
        image_size: (height, width), checked against what the backbone can take; 224 for a model of your own.
        views_per_pass: `all` views through the trunk as one batch, which pools BatchNorm statistics over
            views, or `one` after the other; the method's by default.
        classifiers: how the branches' classifiers start: `own`, `equal`, `released`; the method's by default.
        sharing: peers given as a number share a `trunk`, or `nothing`; the method's by default. Peers of a model
            of your own that share nothing all keep its weights up to `split_at`.
        optimizer: see the class.
        scheduler: see the class.
        interval: see the class.
        augmentation: see the class.
        views: see the class; the method's by default.
        targets: settings of Targets: label smoothing, mixup, cutmix, class weights.
        batch_keys: of batches that are mappings, what `images`, `labels` and `indices` are called, where that is not
            one of the usual names.
        schedules: ramp-up, ensemble decay and EMA that you do not set last as many `epochs` as in the CIFAR
            protocol of 300, or the same `shares` of any run.
        deploy: settings of Deploy.
        seed: student, teacher and ensemble are drawn from it, each for itself.
        execution: see the class.

    Raises:
        ConfigError: an unknown name or key, or parts that do not fit together.
    """
    registered = isinstance(backbone, str) and not is_external(backbone)
    for key, value in (("split_at", split_at), ("pretrained", pretrained)):
        if registered and value:
            raise ConfigError(f"{key}={value!r} belongs to a model of your own or a library's; {backbone} has its own.")
    if peers is not None and (mistake := keys_of(Arrangement)["method.peers"].mistake("peers", peers)):
        raise ConfigError(mistake)
    laid_over = _teacher_overrides(teacher)
    deploy = asdict(deploy) if isinstance(deploy, Deploy) else deploy
    if deploy is not None and not isinstance(deploy, Mapping):
        raise ConfigError(f'deploy is {deploy!r}: give its settings, such as {{"network": "student"}}.')
    if image_size is not None and not isinstance(image_size, Sequence):
        raise ConfigError(f"image_size is {image_size!r}: give (height, width).")
    if isinstance(targets, Targets):
        targets = asdict(targets)
    with seeded(seed, "method"):
        chosen, preset = choose_method(method, len(peers) if isinstance(peers, Sequence) else peers, schedules)
    peers = chosen.peers if peers is None else peers
    share = sharing or preset.arranged("sharing")
    one_of("method.sharing", share, ("trunk", "nothing"))
    if isinstance(peers, int) and share == "nothing" and registered and isinstance(backbone, str):
        peers = [backbone] * peers
    settings = teacher_settings(chosen, preset, laid_over, schedules)
    if num_classes is None:
        shape = image_shape(in_channels, image_size)
        num_classes = 100 if isinstance(backbone, str) else networks.classes_of(made(backbone), classifier, shape)
    draw = NetworkDraw(
        backbone, num_classes, peers, split_at, classifier, in_channels, image_size,
        views_per_pass or preset.views_per_pass, classifiers or preset.arranged("classifiers"), share, pretrained,
    )  # fmt: skip
    student = StudentModule(draw(seed, "student"))
    if weights is not None:
        load_student(student.network, Path(weights), cls.load_from_checkpoint, backbone)
    teacher_module, prepared = None, None
    if settings is not None:
        teacher_module, prepared = make_teacher(
            draw, seed, chosen.needs, settings, student.network, cls.load_from_checkpoint
        )
    ensemble = None
    if chosen.wants_ensemble_classifier or chosen.ensemble is not None:
        with seeded(seed, "ensemble"):
            ensemble = EnsembleModule(student.network.feature_dims, num_classes, chosen.ensemble)
            draw.start_ensemble(ensemble.classifier)
    module = cls(
        student,
        chosen,
        teacher=teacher_module,
        ensemble=ensemble,
        optimizer=optimizer,
        scheduler=scheduler,
        interval=interval,
        augmentation=augmentation,
        views=views or preset.arranged("views"),
        targets=from_mapping(Targets, targets or {}, "targets"),
        deploy=from_mapping(Deploy, deploy or {}, "deploy"),
        seed=seed,
        execution=execution,
    )
    if prepared is not None:
        chosen.take_over(prepared)
    if settings is not None and settings.init_student_from_branches and settings.weights is not None:
        (chosen if prepared is None else prepared.method).start_student(student.network)
    module.batch_keys = batch_keys_of(batch_keys)
    module.recipe = {
        **draw.recipe(),
        "method": method_recipe(method, chosen),
        "teacher": {"update": "none"} if teacher_module is None else asdict(teacher_module.settings),
        "deploy": asdict(module.deployment),
        "targets": asdict(module.targets.settings),
        "seed": seed,
        "views": views or preset.arranged("views"),
        "interval": interval,
    }
    # Under one name: Lightning refuses a data module that saves another `seed` or `image_size` beside them.
    module.save_hyperparameters({"distillation": module.recipe})
    return cast(Coordinator, module)


def _teacher_overrides(given: str | Mapping[str, Any] | TeacherSettings | None) -> Mapping[str, Any] | None:
    """Return the settings that replace those of the method's teacher."""
    if isinstance(given, TeacherSettings):
        return asdict(given)
    if not isinstance(given, str):
        return given
    named = _of_preset(given)
    # All that the name stands for, but for the rate, whose length `schedules` may give.
    usual = {key: value for key, value in asdict(TeacherSettings()).items() if key not in TeacherSettings.exclusive}
    return named if named.get("update") == "none" else {**usual, **named}


def _of_preset(name: str) -> Mapping[str, Any]:
    if name not in TEACHERS:
        raise ConfigError(unknown_choice("teacher", name, TEACHERS))
    settings = TEACHERS[name].settings
    return {"update": "none"} if settings is None else settings


def _given_again(teacher: Any) -> Any:
    """Give what a teacher's name or settings change of a checkpoint's own."""
    if isinstance(teacher, TeacherSettings):
        usual = asdict(TeacherSettings())
        return {key: value for key, value in asdict(teacher).items() if value != usual[key]}
    return _of_preset(teacher) if isinstance(teacher, str) else teacher or {}


def load_from_checkpoint(  # noqa: D417
    cls: Any,
    /,
    checkpoint_path: str | Path,
    map_location: Any = "cpu",
    *,
    backbone: nn.Module | str | None = None,
    method: Method | None = None,
    **others: Any,
) -> Coordinator:
    """Rebuild a module from its checkpoint. Nothing in the file is executed, and it makes nobody read a folder.

    Args:
        checkpoint_path: a file written by a Trainer.
        map_location: the device on which the module is put.
        backbone: the model it was built from, if that was not a name, or hf:FOLDER.
        method: the method, if that was not a registered name.
        others: passed to `build`: `optimizer`, `scheduler` and `augmentation`, which no checkpoint holds and a
            training that goes on needs as it had them; and what is to differ, such as `deploy`. Settings of a
            `teacher` are laid over the checkpoint's. Give a frozen teacher from elsewhere, which no checkpoint holds,
            again with `teacher={"weights": FILE}` or `{"pretrained": True}`.

    Raises:
        CheckpointError: missing, torn, unsafe, not written by this library, or with weights that are no numbers.
        ConfigError: `build` does not take one of `others`, or peers would share other weights than in the file.
    """
    known = inspect.signature(cls.build).parameters.keys()
    for name, fixed in _OF_LIGHTNING.items():
        if others.get(name) in (None, fixed):
            others.pop(name, None)
    if foreign := others.keys() - known:
        raise ConfigError(
            f"load_from_checkpoint takes no {', '.join(sorted(foreign))}: settings are in the checkpoint, weights must "
            f"fit exactly, and nothing in the file runs. What may differ is what build takes: {', '.join(known)}."
        )
    checkpoint = file_format.load(checkpoint_path, map_location)
    module = rebuilt(cls, checkpoint, checkpoint_path, backbone=backbone, method=method, **others)
    return module.to(next(iter(checkpoint["state_dict"].values())).device)


def rebuilt(
    cls: Any,
    checkpoint: dict[str, Any],
    checkpoint_path: str | Path,
    *,
    backbone: nn.Module | str | None = None,
    method: Method | None = None,
    **others: Any,
) -> Any:
    """Do what `load_from_checkpoint` does with a checkpoint that has been read from a file."""
    known = inspect.signature(cls.build).parameters.keys()
    recipe = dict(file_format.recipe(checkpoint, checkpoint_path))
    if unknown := recipe.keys() - known:
        raise CheckpointError(
            f"{checkpoint_path} cannot be rebuilt from its recipe, which has unknown keys: {', '.join(unknown)}."
        )
    for key in ("split_at", "sharing"):  # other weights would be one and the same, and the last of a file stand for all
        if others.get(key, recipe.get(key)) != recipe.get(key):
            raise ConfigError(f"{key} is {recipe[key]!r} in {checkpoint_path}, and {others[key]!r} here: leave it out.")
    given = {"backbone": backbone, "method": method}
    for key, value in given.items():
        if value is not None:
            recipe[key] = value
        elif recipe.get(key) is None:
            raise CheckpointError(f"{checkpoint_path} was trained with a {key} of its own: pass {key}= to load it.")
    if backbone is None:
        refuse_folder(checkpoint_path, "backbone", recipe["backbone"])
    teacher = recipe.get("teacher")
    again = _given_again(others.get("teacher"))
    if isinstance(teacher, Mapping) and isinstance(again, Mapping):
        if not again.get("backbone"):
            refuse_folder(checkpoint_path, "teacher", teacher.get("backbone"))
        # Its weights are in the checkpoint, or given again: no file chooses what is read or fetched.
        read_nothing = {key: value for key, value in _NOT_OF_A_FILE.items() if key in teacher}
        others["teacher"] = merge({**teacher, **read_nothing}, again)
    state = checkpoint["state_dict"]
    # The teacher that a checkpoint leaves out is no part of its size.
    with no_more_than(state, recipe, checkpoint_path) if resume.holds_teacher(state) else nullcontext():
        module = cls.build(**(recipe | others))
    resume.load(module, checkpoint, checkpoint_path)
    refuse_non_finite(module, checkpoint_path)
    return module
