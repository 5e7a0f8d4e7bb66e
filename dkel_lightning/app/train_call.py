"""`dkel_lightning.train(...)`: train in this process as the command line does, and return the network."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from dkel_lightning.app import config
from dkel_lightning.app.records import SUMMARY
from dkel_lightning.app.run import best_checkpoint
from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.backbone import reads_a_folder

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, repr=False)
class Trained:
    """The result of `train`.

    Attributes:
        network: the deployed network at the epoch that validation chose: float32 images [B, C, H, W] -> logits
            [B, classes], on the CPU, in eval mode.
        member: which member of the training it is, such as `student_1`.
        accuracy: its test accuracy, in [0, 1].
        summary: all scores, as summary.json has them.
        folder: of the run: settings, metrics, figures, checkpoints.
    """

    network: nn.Module
    member: str
    accuracy: float
    summary: Mapping[str, Any]
    folder: Path

    def __repr__(self) -> str:
        test = self.summary["test"]["best"] or self.summary["test"]["last"]
        others = {name: test["accuracy"].get(name) for name in ("student_mean", "student_ensemble", "teacher_mean")}
        scores = [f"{name.replace('_', ' ')} {score:.2%}" for name, score in others.items() if score is not None]
        trained = ", ".join(str(self.summary[key]) for key in ("method", "backbone", "data"))
        speed, size = self.summary["images_per_second"] or 0, self.summary["deployed_parameters"]
        return "\n".join(
            [
                f"{self.member} of {trained}, epoch {test['epoch']} of {self.summary['test']['last']['epoch']}",
                f"test accuracy {self.accuracy:.2%} of {test['images']:,} images, {test['classes']} classes",
                f"others: {', '.join(scores)}",
                f"{size:,} parameters; trained in {self.summary['seconds']:.0f} s, {speed:,.0f} images/s",
                f"settings, figures and checkpoints in {self.folder}",
            ]
        )


def train(
    model: str | nn.Module | None = None,
    data: str | Path = "digits",
    method: str | None = None,
    *,
    epochs: int | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Trained:
    """Train as the command `dkel` does, in this process, and return the deployed network.

    Args:
        model: a registered backbone, `timm:`, `torchvision:` or `hf:` with a name, or your own classifier; a
            trained one keeps its weights (one without normalisation layers with `{"backbone.pretrained": True}`). By
            default the experiment's.
        data: a choice of conf/data, a folder with train/ and test/ (a folder a class), or an .npz file.
        method: one of the methods; dkel by default.
        epochs: length of the training.
        out: folder of the run; an unfinished run of the same settings there is resumed. Under outputs/ by default.
        settings: any key of the command line with its value, such as `{"optimizer.lr": 0.05, "trainer": "cpu"}`, or
            `{"+optimizer.fused": True}` to add one; it overrides the other arguments. The default `experiment` is the
            one named like the data set, or own_data for your own data.
    """
    import torch

    from dkel_lightning.app import build
    from dkel_lightning.app.main import execute, silence_lightning

    if not isinstance(model, str | None):
        name = f"own:{type(model).__name__}"
        build.MODELS[name], model = model, name
    cfg = compose_call(model, str(data), method, epochs, settings or {})
    values = config.resolve(cfg)
    if values["task"]["name"] != "train":
        raise ConfigError("train() returns a network: do not set task.")
    if values["resume"] is not None:
        raise ConfigError("train() resumes the run in out: pass its folder as out, and leave out resume.")
    if values["trainer"]["devices"] != 1 or values["trainer"]["num_nodes"] != 1:
        raise ConfigError("train() uses one process: train on several devices from the command line.")
    folder = Path(cfg.hydra.run.dir if out is None else out)
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            silence_lightning()
            execute(values, folder, set())
    finally:
        torch.set_num_threads(threads)
    name = values["backbone"]["name"]
    teacher = values["teacher"].get("backbone")
    return _trained(
        folder,
        build.MODELS.pop(name, name if reads_a_folder(name) else None),
        {"backbone": teacher} if reads_a_folder(teacher) else None,
    )


def compose_call(
    model: str | None, data: str, method: str | None, epochs: int | None, settings: Mapping[str, Any]
) -> DictConfig:
    """Compose the configuration of a call: Hydra composes the groups, other values are set unparsed."""
    arguments = {**_data(data), "backbone.name": model, "method": method, "trainer.max_epochs": epochs}
    chosen: dict[str, Any] = {key: value for key, value in arguments.items() if value is not None} | dict(settings)
    groups = {key: value for key, value in chosen.items() if _is_group(key) and not isinstance(value, Mapping)}
    modules = [f"modules=[{','.join(chosen['modules'])}]"] if chosen.get("modules") else []
    cfg = config.compose([*modules, *(f"{key}={value}" for key, value in groups.items())], with_hydra=True)
    for key in (key for key in chosen if key not in groups):
        value = str(chosen[key]) if isinstance(chosen[key], Path) else chosen[key]
        try:
            OmegaConf.update(cfg, key.lstrip("+"), value, force_add=key.startswith("+"))
        except (ConfigAttributeError, ConfigKeyError):
            del cfg.hydra
            raise ConfigError(config.explain_key(key, cfg)) from None
    return cfg


def _is_group(key: str) -> bool:
    return (config.conf_dir() / key).is_dir()


def _is_choice(group: str, name: str) -> bool:
    return (config.conf_dir() / group / f"{name}.yaml").is_file()


def _data(data: str) -> dict[str, str]:
    if data == "digits":
        return {"data": data}
    if _is_choice("data", data):
        return {"data": data, "experiment": data if _is_choice("experiment", data) else "own_data"}
    kind = "npz" if data.endswith(".npz") else "image_folder"
    return {"experiment": "own_data", "data": kind, "data.root": data}


def _trained(folder: Path, own: nn.Module | str | None, teacher: dict[str, Any] | None) -> Trained:
    from dkel_lightning.app.tasks.evaluate import class_names
    from dkel_lightning.distillation import DistillationModule

    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    test = summary["test"]["best"] or summary["test"]["last"]
    module = DistillationModule.load_from_checkpoint(best_checkpoint(folder), backbone=own, teacher=teacher)
    member, _, peer = test["deployed"].partition("_")
    network, names = module.deploy(member, int(peer or 0)), class_names(folder)
    config: Any = getattr(network, "config", None)
    if names and hasattr(config, "id2label"):  # of transformers
        config.id2label, config.label2id = dict(enumerate(names)), {name: index for index, name in enumerate(names)}
    return Trained(network, test["deployed"], test["deployed_accuracy"], summary, folder)
