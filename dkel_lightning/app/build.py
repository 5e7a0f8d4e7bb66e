"""From a configuration to objects: what has a `_target_` through Hydra, networks, methods and data by name."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import hydra.utils
import torch
from hydra.errors import InstantiationException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from dkel_lightning import data, networks
from dkel_lightning.app.config.checks import PRECISIONS
from dkel_lightning.app.config.schema import Values
from dkel_lightning.data import own
from dkel_lightning.distillation import DistillationModule
from dkel_lightning.errors import ConfigError, DkelError
from dkel_lightning.modules.batch import number_of_views
from dkel_lightning.modules.optim import OptimizerFactory, ParameterGroups, SchedulerFactory
from dkel_lightning.runtime.texts import first_line
from dkel_lightning.schedules import are_shares, milestones_in_epochs
from dkel_lightning.settings.keys import did_you_mean, unknown_choice
from dkel_lightning.settings.methods import usual_arrangement


def datamodule(values: Values) -> LightningDataModule:
    """Build the data module that `data` names, with the views that the method asks for where it makes views."""
    settings = {key: value for key, value in values["data"].items() if key not in ("name", "_target_")}
    if values["backbone"].get("pretrained") and settings.get("mean") is None:
        settings["mean"], settings["std"] = networks.normalisation(values["backbone"]["name"])
    method = values["method"]
    peers = method["peers"] if isinstance(method["peers"], int) else len(method["peers"])
    kind = _data_class(values["data"])
    of_run = {"seed": values["seed"], "views": number_of_views(method["views"], peers)}
    built: LightningDataModule = _try("data", partial(kind, **own.arguments(kind, settings, of_run)))
    return built


def known_data(settings: Values) -> type[LightningDataModule] | None:
    """Find the registered data module that `data` names; None where there is none, and nothing is imported."""
    path = settings.get("_target_")
    return data.DATASETS.get(settings["name"]) if path is None else data.registered_at(path)


def _data_class(settings: Values) -> type[LightningDataModule]:
    if (known := known_data(settings)) is not None:
        return known
    if (path := settings.get("_target_")) is not None:
        return data_at(path)
    cure = " One of your own is registered by a module that modules=[...] names."
    raise ConfigError(unknown_choice("data", settings["name"], list(data.DATASETS)) + cure)


def data_at(path: str) -> type[LightningDataModule]:
    """Import a data module of the user's own, found beside the working folder or installed.

    Raises:
        ConfigError: there is none.
    """
    module, _, name = path.rpartition(".")
    found = _imported(f"data._target_: {path}", module, name)
    if not (isinstance(found, type) and issubclass(found, LightningDataModule)):
        raise ConfigError(f"data._target_: {path} is no LightningDataModule.")
    return found


def set_up(images: LightningDataModule, values: Values) -> data.ClassificationData:
    """Let a data module that is prepared read its images, and answer what tasks ask of it.

    Raises:
        ConfigError: one of the user's own does not say what its images are.
    """
    if isinstance(images, data.ImageDataModule):
        images.setup()
        return images
    for stage in ("fit", "test"):
        images.setup(stage)
    return own.complete(images, values["data"])


def distillation(values: Values, images: data.ClassificationData) -> DistillationModule:
    """Build the module for these images (prepared and set up)."""
    arrangement = {key: values["method"].get(key) for key in usual_arrangement()}
    method = {key: value for key, value in values["method"].items() if key not in arrangement}
    of_run = {"samples": own.size(images, "train"), "student": values["backbone"]["name"]}
    if (known := of_run["samples"]) is not None and (given := method.get("samples")) not in (None, known):
        raise ConfigError(f"method.samples={given}: the data has {known} training samples. Leave it out.")
    method |= {key: value for key, value in of_run.items() if key in method and method[key] is None}
    channels, height, width = images.image_shape
    targets = dict(values["targets"])
    if targets["class_weights"] == "balanced" and isinstance(images, data.ImageDataModule):
        targets["class_weights"] = images.balanced_weights()
    return DistillationModule.build(
        values["backbone"]["name"],
        images.num_classes,
        method,
        **arrangement,
        teacher=values["teacher"],
        in_channels=channels,
        image_size=(height, width),
        views_per_pass=values["backbone"]["views_per_pass"],
        split_at=values["backbone"].get("split_at"),
        pretrained=values["backbone"].get("pretrained", False),
        weights=values["backbone"].get("weights"),
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


def _sees_gpu() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def device(values: Values) -> torch.device:
    """Give the device that Lightning would take."""
    accelerator, devices = values["trainer"]["accelerator"], values["trainer"]["devices"]
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", devices[0] if isinstance(devices, list) else 0)
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def optimizer(settings: Values) -> OptimizerFactory:
    """Make a factory of the optimizer, tried once so that a bad argument is named here and not in the fit."""
    build: OptimizerFactory = _partial(settings, "optimizer")
    _try("optimizer", lambda: build(_one_parameter()))
    return build


def scheduler(values: Values) -> SchedulerFactory | None:
    """Make a factory of the scheduler, tried once; None without one.

    Milestones that all lie below 1 are shares of the run.
    """
    settings = {key: value for key, value in values["scheduler"].items() if key != "interval"}
    if "_target_" not in settings:
        return None
    if "milestones" in settings:
        epochs = values["trainer"]["max_epochs"]
        if are_shares(settings["milestones"]) and epochs < 1:
            raise ConfigError("scheduler.milestones are shares of a run without a length: set trainer.max_epochs.")
        settings["milestones"] = milestones_in_epochs(settings["milestones"], epochs)
    build: SchedulerFactory = _partial(settings, "scheduler")
    _try("scheduler", lambda: build(optimizer(values["optimizer"])(_one_parameter())))
    return build


def precision(values: Values) -> str:
    """Name the precision in force: with `precision=auto` bf16 where the device computes in it by itself, else fp32."""
    name = str(values["precision"]["name"])
    if name != "auto":
        return name
    return "bf16" if has_bfloat16(device(values)) else "fp32"


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether the device has instructions on bfloat16, rather than emulates it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        known: Values = getattr(torch.cpu, "get_capabilities", dict)()
        return any(known.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))  # of x86, and of ARM
    return False


def trainer(values: Values, *, loggers: list[Logger], callbacks: list[Callback], plugins: list[Any]) -> Trainer:
    """Build Lightning's Trainer."""
    settings = _with_strategy(values["trainer"])
    if settings["accelerator"] in ("gpu", "cuda") and not _sees_gpu():
        raise ConfigError("trainer: PyTorch sees no GPU here; choose trainer=cpu (or ddp_cpu), or check the driver.")
    if values["precision"]["name"] == "fp16" and not _sees_gpu():
        raise ConfigError("precision=fp16 needs a GPU, and PyTorch sees none here: choose precision=bf16 or fp32.")
    torch.set_float32_matmul_precision(values["precision"]["matmul"])
    callbacks = [*callbacks, *extras(values["callbacks"]["extra"], "callbacks.extra", Callback)]
    settings.update(
        precision=PRECISIONS[precision(values)],
        logger=loggers,
        callbacks=callbacks,
        plugins=plugins,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_model_summary=False,
        # Our loaders share the images out by themselves.
        use_distributed_sampler=not issubclass(_data_class(values["data"]), data.ImageDataModule),
        enable_autolog_hparams=False,  # the task logs all settings; a part of them by other names would come twice
    )
    built: Trainer = _try("trainer", _partial(settings, "trainer"))
    return built


@contextlib.contextmanager
def trainer_settings_named() -> Iterator[None]:
    """Name what Lightning refuses of its settings only once it knows how long the loaders are.

    Raises:
        ConfigError: with what Lightning says.
    """
    try:
        yield
    except (MisconfigurationException, ValueError) as error:
        if isinstance(error, DkelError) or not _raised_by_lightning(error):
            raise
        raise ConfigError(f"trainer: {first_line(error)}") from error


def _raised_by_lightning(error: Exception) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("lightning.")


def _with_strategy(given: Values) -> dict[str, Any]:
    """Return the settings with Lightning's plain DDP, whose processes wait for each other for a bounded time.

    Raises:
        ConfigError: a strategy that starts processes by forking or spawning them.
    """
    settings = dict(given)
    wait = timedelta(minutes=settings.pop("process_timeout"))
    name = str(settings["strategy"])
    found = re.fullmatch(r"ddp(_find_unused_parameters_(?P<find>true|false))?", name)
    if found is not None or (name == "auto" and _several(settings)):
        find = found is not None and found["find"] == "true"
        settings["strategy"] = DDPStrategy(timeout=wait, find_unused_parameters=find)
    elif "ddp" in name:
        raise ConfigError(f"trainer.strategy={name} is not supported: use trainer=ddp, alone or under torchrun.")
    return settings


def _several(settings: Values) -> bool:
    """Tell whether Lightning would take plain DDP by itself."""
    devices = settings["devices"]
    if str(devices) in ("auto", "-1"):
        return settings["accelerator"] != "cpu" and torch.cuda.device_count() > 1
    count = devices if isinstance(devices, int) else len(devices if isinstance(devices, list) else devices.split(","))
    return bool(count > 1 or settings["num_nodes"] > 1)


def extras(nodes: Values | None, where: str, kind: type[Any]) -> list[Any]:
    """Build the user's own loggers or callbacks, given as name: {_target_: ...}.

    Raises:
        ConfigError: one is no such mapping, or makes something else.
    """
    built = []
    for name, node in (nodes or {}).items():
        if not isinstance(node, Mapping):
            raise ConfigError(f"{where}.{name} must be a mapping with a _target_, got {node!r}.")
        built.append(_try(f"{where}.{name}", _partial(node, f"{where}.{name}")))
        if not isinstance(built[-1], kind):
            raise ConfigError(f"{where}.{name} makes a {type(built[-1]).__name__}, not a {kind.__name__}.")
    return built


def import_modules(names: list[str]) -> None:
    """Import the user's modules, found beside the working folder or installed.

    Raises:
        ConfigError: one cannot be imported.
    """
    for name in names:
        _imported(f"modules: {name}", name)


def _imported(where: str, module: str, name: str | None = None) -> Any:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
        return found if name is None else getattr(found, name)
    except Exception as error:  # whatever the user's module raises is what is wrong with it
        raise ConfigError(f"{where} cannot be imported ({type(error).__name__}: {error}).") from error


def _partial(settings: Values, where: str) -> Callable[..., Any]:
    if "_target_" not in settings:
        raise ConfigError(f"{where} has no _target_: name the class to build.")
    arguments = {key: value for key, value in settings.items() if key != "_target_"}
    try:
        target = hydra.utils.get_object(settings["_target_"])
    except (InstantiationException, ImportError, ValueError) as error:
        raise ConfigError(f"{where}._target_: {settings['_target_']} cannot be imported ({error}).") from error
    return partial(target, **arguments)


def _try(where: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except ConfigError:
        raise
    except Exception as error:  # whatever a class raises that was given these settings is what is wrong with them
        raise ConfigError(f"{where}: {first_line(error)}{_nearest_argument(str(error), build)}") from error


def _nearest_argument(message: str, build: Any) -> str:
    """Find the argument that a misspelt one was meant to be."""
    found = re.search(r"unexpected keyword argument '(\w+)'", message)
    if found is None or not isinstance(build, partial):
        return ""
    return f".{did_you_mean(found[1], inspect.signature(build.func).parameters)}".rstrip(".")


def _one_parameter() -> ParameterGroups:
    return [{"params": [torch.nn.Parameter(torch.zeros(1))], "name": "student"}]
