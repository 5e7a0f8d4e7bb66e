"""Build a DistillationModule from names and primitives, and rebuild it from a checkpoint that holds these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from dkel_lightning.assembly.draw import NetworkDraw, copy_model, image_shape
from dkel_lightning.assembly.parts import find_preset, make_method, make_teacher, named_teacher, teacher_settings
from dkel_lightning.assembly.weights import load_peers, read_weights, refuse_folder
from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import CheckpointError, ConfigError
from dkel_lightning.methods import Method
from dkel_lightning.modules import checkpoint_state
from dkel_lightning.modules.batch import Augmentation
from dkel_lightning.modules.ensemble import EnsembleModule
from dkel_lightning.modules.optim import OptimizerFactory, SchedulerFactory
from dkel_lightning.modules.student import StudentModule
from dkel_lightning.networks.branching import is_trained
from dkel_lightning.networks.outline import observe
from dkel_lightning.runtime.mappings import merge
from dkel_lightning.runtime.processes import print_once
from dkel_lightning.runtime.seeding import seeded
from dkel_lightning.settings.backbone import is_external
from dkel_lightning.settings.declarations import from_mapping
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.execution import Execution
from dkel_lightning.settings.targets import Targets
from dkel_lightning.settings.teacher import TeacherSettings

if TYPE_CHECKING:
    from dkel_lightning.distillation import DistillationModule

LR_SCALE_OF_TRAINED = 0.3
"""Default `lr_scale` of trained weights. Measured: docs/results/recipe."""


def build(  # noqa: D417
    cls: type[DistillationModule],
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
    lr_scale: float | None = None,
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
) -> DistillationModule:
    """Build student, teacher, ensemble and method from names and primitives.

    Args:
        backbone: a registered name; `torchvision:NAME`, `timm:NAME`, `hf:FOLDER` or `hf:TYPE`; or any torch classifier.
        num_classes: C; by default that of a model of your own, or 100.
        method: a registered name; a mapping `{"name": ..., <settings>}`, which may hold `peers`, `sharing`, `views` and
            `classifiers` too, as conf/method/*.yaml do; or a Method.
        peers: P, the method's by default; or a backbone's name for each peer, which then share nothing.
        split_at: the module at which the branches begin, such as "layer4". Models of timm, torchvision and transformers
            have a default, see docs/own_model.md.
        classifier: for a model of your own, the name of its classifier; the last linear layer by default.
        pretrained: keep the weights of the branches too, except the classifiers, which are drawn; a model by name
            downloads its weights. By default a model of your own keeps them if its normalisation layers show that it
            was trained. A teacher that is drawn independently keeps the same.
        weights: file of the initial weights of each peer, and of a teacher that is drawn independently: a checkpoint of
            this library or a state_dict. The classifiers are drawn if the file's has another number of classes.
        lr_scale: learning rate of all but the classifiers, as a share of the optimizer's; 0 freezes them, statistics
            included. By default 0.3 where they start from trained weights, else 1. Schedulers that replace the rates of
            all groups, such as OneCycleLR, undo it.
        teacher: settings that change those of the method, or a preset's name or TeacherSettings instead; `none` for
            no teacher.
        in_channels: channels of the images.
        image_size: (height, width), checked against the backbone; 224 for a model of your own.
        views_per_pass: `all` views through the trunk as one batch, which pools BatchNorm statistics over views, or
            `one` after the other; the method's by default.
        classifiers: initial classifiers of the branches: `own`, `equal`, `released`; the method's by default.
        sharing: peers given as a number share a `trunk`, or `nothing`; the method's by default. Peers of a model of
            your own that share nothing all keep its weights up to `split_at`.
        optimizer, scheduler, interval, augmentation, execution: see the class.
        views: see the class; the method's by default.
        targets: settings of Targets: label smoothing, mixup, cutmix, class weights.
        batch_keys: names of `images`, `labels` and `indices` in batches that are mappings, where they are unusual.
        schedules: ramp-up, ensemble decay and EMA that you do not set last as many `epochs` as in the CIFAR protocol
            of 300, or the same `shares` of any run.
        deploy: settings of Deploy.
        seed: student, teacher and ensemble are each drawn from it.
    """
    registered = isinstance(backbone, str) and not is_external(backbone)
    for key, value in (("split_at", split_at), ("pretrained", pretrained)):
        if registered and value:
            raise ConfigError(f"{key}={value!r} is for your own model or a library's; {backbone} has its own.")
    preset, settings = find_preset(method)
    arranged: dict[str, Any] = {"peers": peers, "sharing": sharing, "views": views, "classifiers": classifiers}
    beside = {key: settings.pop(key) for key in arranged if key in settings}
    arranged = beside | {key: value for key, value in arranged.items() if value is not None}
    arrangement = replace(preset.arrangement, **arranged)
    with seeded(seed, "method"):
        chosen = make_method(method, preset, settings, arrangement, schedules)
    if isinstance(arrangement.peers, int) and arrangement.sharing == "nothing" and registered:
        arrangement = replace(arrangement, peers=(str(backbone),) * arrangement.peers)
    teaching = teacher_settings(chosen, preset, teacher, schedules)
    if num_classes is None:
        shape = image_shape(in_channels, image_size)
        num_classes = 100 if isinstance(backbone, str) else observe(copy_model(backbone), shape, classifier).num_classes
    draw = NetworkDraw(
        backbone=backbone,
        num_classes=num_classes,
        peers=arrangement.peers,
        split_at=split_at,
        classifier=classifier,
        in_channels=in_channels,
        image_size=image_size,
        views_per_pass=views_per_pass or preset.views_per_pass,
        classifiers=arrangement.classifiers,
        sharing=arrangement.sharing,
        pretrained=pretrained,
    )
    if not isinstance(backbone, str) and pretrained is None and is_trained(backbone) is None:
        print_once(
            f"{type(backbone).__name__} has no normalisation layers that show whether it was trained, and counts as "
            "untrained: pretrained=True (backbone.pretrained) keeps its weights."
        )
    student = StudentModule(draw(seed, "student"))
    start = None
    if weights is not None:
        state_dict, _ = read_weights(Path(weights), "backbone", cls.load_from_checkpoint, backbone)
        start = partial(load_peers, weights=state_dict, path=Path(weights))
        if (classes := start(student.network)) is not None:
            print_once(f"{weights} has {classes} classes, the data {num_classes}: the classifiers are re-initialised.")
    teacher_module, prepared = None, None
    if teaching is not None:
        teacher_module, prepared = make_teacher(
            draw, seed, chosen.needs, teaching, student.network, cls.load_from_checkpoint, start
        )
    ensemble = None
    if chosen.wants_ensemble_classifier:
        with seeded(seed, "ensemble"):
            ensemble = EnsembleModule(student.network.feature_dims, num_classes)
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
        views=arrangement.views,
        targets=from_mapping(Targets, targets or {}, "targets"),
        deploy=from_mapping(Deploy, deploy or {}, "deploy"),
        seed=seed,
        execution=execution,
    )
    if lr_scale is None:
        trained = (weights is not None or draw.starts_trained) and not chosen.needs.fixed_student
        lr_scale = LR_SCALE_OF_TRAINED if trained else 1.0
        if trained:
            print_once(f"From trained weights: all but the classifiers learn at {lr_scale} of the rate (lr_scale).")
    module.scale_rate(lr_scale)
    if prepared is not None:
        chosen.load_prepared(prepared.method)
    module.batch_keys = dict(batch_keys or {})
    module.recipe = {
        **draw.recipe(),
        "method": None if method is chosen else {"name": arrangement.name, **chosen.settings_as_dict()},
        "teacher": {"update": "none"} if teacher_module is None else asdict(teacher_module.settings),
        "deploy": asdict(module.deployment),
        "targets": asdict(module.targets.settings),
        "seed": seed,
        "views": arrangement.views,
        "interval": interval,
        "lr_scale": lr_scale,
        "batch_keys": module.batch_keys,
    }
    # Under one name, because Lightning refuses a data module that saves another `seed` or `image_size`.
    module.save_hyperparameters({"distillation": module.recipe})
    return module


def load_from_checkpoint(  # noqa: D417
    cls: type[DistillationModule],
    /,
    checkpoint_path: str | Path,
    map_location: Any = "cpu",
    *,
    backbone: nn.Module | str | None = None,
    method: Method | None = None,
    teacher: str | Mapping[str, Any] | TeacherSettings | None = None,
    **others: Any,
) -> DistillationModule:
    """Rebuild a module from its checkpoint. Nothing in the file is executed, and it names no file that is read.

    Args:
        checkpoint_path: a file written by a Trainer.
        map_location: the device of the module.
        backbone: the model it was built from, if that was not a name, or was hf:FOLDER.
        method: the method, if that was not a registered name.
        teacher: settings that replace the checkpoint's. An external frozen teacher, which no checkpoint holds, is
            given again: `{"weights": FILE}` or `{"pretrained": True}`.
        others: passed to `build`: `optimizer`, `scheduler` and `augmentation`, which no checkpoint holds and a
            resumed training needs again; and settings to change, such as `deploy`.
    """
    checkpoint = file_format.load(checkpoint_path, map_location)
    recipe = dict(file_format.recipe(checkpoint, checkpoint_path))
    for key in ("split_at", "sharing"):  # weights that peers share would be overwritten by those of the last peer
        if others.get(key, recipe.get(key)) != recipe.get(key):
            raise ConfigError(f"{key} is {recipe[key]!r} in {checkpoint_path}, and {others[key]!r} here: leave it out.")
    for key, value in (("backbone", backbone), ("method", method)):
        recipe[key] = value or recipe[key]
        if recipe[key] is None:
            raise CheckpointError(f"{checkpoint_path} was trained with your own {key}: pass {key}= to load it.")
    if backbone is None:
        refuse_folder(checkpoint_path, "backbone", recipe["backbone"])
    typed = named_teacher(teacher)
    if isinstance(teacher, TeacherSettings):  # its defaults do not replace what the checkpoint was trained with
        typed = {key: value for key, value in typed.items() if value != asdict(TeacherSettings())[key]}
    if not typed.get("backbone"):
        refuse_folder(checkpoint_path, "teacher", recipe["teacher"].get("backbone"))
    if recipe["teacher"]["update"] != "none":  # its weights are in the checkpoint, or typed again
        typed = {"weights": None, "pretrained": False, **typed}
    recipe["teacher"] = merge(recipe["teacher"], typed)
    module = cls.build(**({"pretrained": False} | recipe | others))
    checkpoint_state.load(module, checkpoint)
    return module.to(next(iter(checkpoint["state_dict"].values())).device)
