"""From a resolved configuration to objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import hydra.utils
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from torch import nn

from dkel_lightning import data
from dkel_lightning.app.config import Values
from dkel_lightning.app.user_code import import_modules
from dkel_lightning.data import own
from dkel_lightning.distillation import DistillationModule
from dkel_lightning.errors import ConfigError
from dkel_lightning.modules.batch import number_of_views
from dkel_lightning.modules.optim import OptimizerFactory, SchedulerFactory
from dkel_lightning.networks.external import normalisation
from dkel_lightning.schedules import are_shares, milestones_in_epochs
from dkel_lightning.settings.data import FACTS

MODELS: dict[str, nn.Module] = {}
"""Networks passed to `train`, by the name of their backbone."""


def datamodule(values: Values) -> LightningDataModule:
    """Build the data module that `data` names, with as many views as the method needs."""
    settings = {key: value for key, value in values["data"].items() if key not in ("name", "_target_")}
    settings |= pretrained_normalisation(values)
    method = values["method"]
    peers = method["peers"] if isinstance(method["peers"], int) else len(method["peers"])
    kind = data_class(values["data"])
    takes, shared = own.parameters(kind), own.parameters(data.ImageDataModule)
    # Experiments set what only our data sets take; `complete` reads the facts; a null root or fact means the default.
    settings = {key: value for key, value in settings.items() if key in takes or key not in (*shared, *FACTS)}
    settings = {key: value for key, value in settings.items() if value is not None or key not in (*FACTS, "root")}
    context = {"seed": values["seed"], "views": number_of_views(method["views"], peers)}
    built: LightningDataModule = kind(**{key: value for key, value in context.items() if key in takes}, **settings)
    return built


def pretrained_normalisation(values: Values) -> dict[str, Any]:
    """Return those of `mean` and `std` that are null in `data`, as the library's weights of the backbone need them."""
    backbone, settings = values["backbone"], values["data"]
    missing = [key for key in ("mean", "std") if settings.get(key) is None]
    if not missing or not backbone["pretrained"] or backbone["name"] in MODELS:
        return {}
    known = dict(zip(("mean", "std"), normalisation(backbone["name"]), strict=True))
    return {key: [*known[key]] for key in missing}


def data_class(settings: Values) -> type[LightningDataModule]:
    """Import the class of `data._target_`."""
    import_modules([settings["_target_"].rpartition(".")[0]])
    kind: type[LightningDataModule] = hydra.utils.get_class(settings["_target_"])
    return kind


def set_up(datamodule: LightningDataModule, values: Values) -> data.ClassificationData:
    """Set up a prepared data module, and complete what it says of its images."""
    if isinstance(datamodule, data.ImageDataModule):
        datamodule.setup()
        return datamodule
    for stage in ("fit", "test"):
        datamodule.setup(stage)
    return own.complete(datamodule, values["data"])


def distillation(values: Values, images: data.ClassificationData) -> DistillationModule:
    """Build the module for a data module that is set up."""
    method = dict(values["method"])
    context = {"samples": own.size(images, "train"), "student": values["backbone"]["name"]}
    method |= {key: value for key, value in context.items() if key in method and method[key] is None}
    channels, height, width = images.image_shape
    targets = dict(values["targets"])
    if targets["class_weights"] == "balanced" and isinstance(images, data.ImageDataModule):
        targets["class_weights"] = images.balanced_weights()
    backbone = values["backbone"]
    model = MODELS.get(backbone["name"])
    return DistillationModule.build(
        backbone["name"] if model is None else model,
        images.num_classes,
        method,
        teacher=values["teacher"],
        in_channels=channels,
        image_size=(height, width),
        views_per_pass=backbone["views_per_pass"],
        split_at=backbone["split_at"],
        pretrained=backbone["pretrained"] or (None if model is not None else False),
        weights=backbone["weights"],
        lr_scale=backbone["lr_scale"],
        targets=targets,
        batch_keys=images.batch_keys,
        optimizer=optimizer(values["optimizer"]),
        scheduler=scheduler(values),
        interval=values["scheduler"].get("interval", "epoch"),
        augmentation=getattr(images, "augmentation", None),
        deploy={key: value for key, value in values["deploy"].items() if value != "auto"},
        seed=values["seed"],
        execution=values["execution"],
    )


def optimizer(settings: Values) -> OptimizerFactory:
    """Make a factory of the optimizer."""
    factory: OptimizerFactory = _factory(settings)
    return factory


def scheduler(values: Values) -> SchedulerFactory | None:
    """Make a factory of the scheduler, or None. Milestones that are all below 1 are shares of the run."""
    settings = {key: value for key, value in values["scheduler"].items() if key != "interval"}
    if "_target_" not in settings:
        return None
    if "milestones" in settings:
        epochs = values["trainer"]["max_epochs"]
        if are_shares(settings["milestones"]) and epochs < 1:
            raise ConfigError(
                "scheduler.milestones are shares of the run, which has no length: set trainer.max_epochs."
            )
        settings["milestones"] = milestones_in_epochs(settings["milestones"], epochs)
    factory: SchedulerFactory = _factory(settings)
    return factory


def _factory(settings: Values) -> Any:
    arguments = {key: value for key, value in settings.items() if key != "_target_"}
    return partial(hydra.utils.get_class(settings["_target_"]), **arguments)


def trainer(
    values: Values, *, loggers: list[Logger], callbacks: list[Callback], plugins: Sequence[Any] = ()
) -> Trainer:
    """Build Lightning's Trainer."""
    if values["precision"]["name"] == "fp16" and not torch.cuda.is_available():
        raise ConfigError("precision=fp16 needs a GPU, and PyTorch finds none: choose precision=bf16 or fp32.")
    torch.set_float32_matmul_precision(values["precision"]["matmul"])
    if values["execution"]["threads"] is not None:
        torch.set_num_threads(values["execution"]["threads"])
    callbacks = [*callbacks, *instantiate_extras(values["callbacks"]["extra"], "callbacks.extra")]
    return Trainer(
        **values["trainer"],
        precision=values["precision"]["trainer"],
        logger=loggers,
        callbacks=callbacks,
        plugins=list(plugins),
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_model_summary=False,
        # Our loaders divide the images between processes themselves.
        use_distributed_sampler=not issubclass(data_class(values["data"]), data.ImageDataModule),
        enable_autolog_hparams=False,
    )


def instantiate_extras(nodes: Mapping[str, Any], where: str) -> list[Any]:
    """Instantiate the user's loggers or callbacks from `name: {_target_: ...}`."""
    build: Callable[..., Any] = hydra.utils.instantiate
    for name, node in nodes.items():
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise ConfigError(f"{where}.{name} must be a mapping with a _target_, got {node!r}.")
    return [build(node) for node in nodes.values()]
