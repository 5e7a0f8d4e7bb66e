"""One call in Python that does what the command line does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from dkel_lightning.app.cli import jobs, user_code
from dkel_lightning.app.cli.composition import compose, options
from dkel_lightning.app.cli.main import prepared
from dkel_lightning.app.cli.refusals import refusal
from dkel_lightning.app.runs.claim import release
from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.app.tasks import requirements, stages
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime import command_lines

if TYPE_CHECKING:
    from torch import nn

REST = ("task", "hydra.run.dir", "hydra.sweep.dir")


@dataclass(frozen=True)
class Trained:
    """What `train` gives.

    Attributes:
        network: the deployed network at the epoch that validation chose: float32 images [B, C, H, W] -> logits
            [B, classes], on the CPU, in eval mode.
        member: which member of the training it is, such as `student_1`.
        accuracy: of it on the test images, in [0, 1].
        summary: all scores, as summary.json has them.
        folder: of the run: settings, metrics, figures, checkpoints.
    """

    network: nn.Module
    member: str
    accuracy: float
    summary: Mapping[str, Any]
    folder: Path


def train(
    model: str | None = None,
    data: str | Path = "digits",
    method: str | None = None,
    *,
    epochs: int | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Trained:
    """Train as `dkel` does, in this process, and give back the deployed network.

    Args:
        model: a registered backbone, or `timm:`, `torchvision:` or `hf:` with a name; the experiment's by default.
        data: a registered data set, a folder with train/ and test/ (a folder a class), or an .npz file.
        method: one of the methods; dkel by default.
        epochs: length of the training.
        out: folder of the run, which must not hold another; under outputs/ by default.
        settings: any key of the command line with its value, such as `{"optimizer.lr": 0.05, "trainer": "cpu"}`; it
            wins over the arguments before it. `experiment` is the one of the data set's name by default, and own_data
            for data of one's own.

    Raises:
        DkelError: what the command line would refuse, with its cure; OSError where a file cannot be read or written.
    """
    overrides = [*_overrides(model, data, method, epochs, dict(settings or {}))]
    where = [] if out is None else [command_lines.override("hydra.run.dir", out)]
    invocation = prepared([*overrides, *where])
    whole = compose(invocation.arguments, with_hydra=True)
    cfg = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    job = jobs.Job(cfg, Path(whole.hydra.run.dir), overrides, invocation, None, whole.hydra)
    try:
        _refuse(job.values["trainer"])
        jobs.work(job)
    except BaseException as error:
        release(job.folder, begun=job.begun)
        if isinstance(error, OSError):
            raise refusal(error, job.folder) from error
        raise
    return _trained(job)


def _refuse(trainer: Mapping[str, Any]) -> None:
    """Refuse what leaves no network here.

    Raises:
        ConfigError: several processes, of which each would run the caller's script, or a trial that writes nothing.
    """
    if not requirements.one_process(trainer) or trainer["num_nodes"] != 1 or "ddp" in str(trainer["strategy"]):
        raise ConfigError(
            "train() trains in one process: start a training on several devices on the command line, or pass "
            "settings={'trainer': 'gpu'} or 'cpu'."
        )
    if trainer["fast_dev_run"]:
        raise ConfigError("train() gives back a network, and trainer.fast_dev_run writes none: leave it out.")


def _overrides(
    model: str | None, data: str | Path, method: str | None, epochs: int | None, settings: dict[str, Any]
) -> Iterator[str]:
    """Write the arguments as the command line takes them.

    Raises:
        ConfigError: a key that is an argument of this function, or of another task; or an object that has no name.
    """
    if not isinstance(data, str | Path):
        raise _nameless(data)
    data = str(data)
    for key in REST:
        if key in settings:
            raise ConfigError(f"train() takes no {key}: give out=, and run other tasks on the command line.")
    if settings.get("modules"):
        user_code.load([f"modules={_written(settings['modules'])}"], None)  # they may register the data
    given: dict[str, Any] = {}
    if data in options("data", None):
        given["experiment"] = data if data in options("experiment", None) else None
        given["data"] = data
    else:
        given |= {
            "experiment": "own_data",
            "data": "npz" if data.endswith(".npz") else "image_folder",
            "data.root": data,
        }
    given |= {"backbone": model, "method": method, "trainer.max_epochs": epochs}
    for key, value in {**{k: v for k, v in given.items() if v is not None}, **settings}.items():
        yield command_lines.override(key, value) if isinstance(value, str | Path) else f"{key}={_written(value)}"


def _written(value: Any) -> str:
    """Write a value in the grammar of overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_written, value)) + "]"
    if isinstance(value, str | Path):
        return command_lines.override("", value)[1:]
    if not isinstance(value, Real):
        raise _nameless(value)
    return repr(int(value) if isinstance(value, Integral) else float(value))


def _nameless(given: Any) -> ConfigError:
    return ConfigError(
        f"train() takes names, numbers and lists of them, and no {type(given).__name__}: with objects of your own "
        "build a DistillationModule and fit it in a Trainer (docs/python.md)."
    )


def _trained(job: jobs.Job) -> Trained:
    from dkel_lightning.app.tasks.evaluate import loaded

    folder = job.folder
    record = RunRecord(folder)
    chosen = record.selected
    assert chosen is not None
    checkpoint = stages.trained_weights(folder) or folder / "checkpoints" / "last.ckpt"
    module, _ = loaded(checkpoint, {**job.values, "trust": True})  # the caller has named what is read
    network, _, peer = chosen.deployed.partition("_")
    return Trained(
        module.deploy(network, int(peer or 0)), chosen.deployed, chosen.deployed_accuracy, record.summary, folder
    )
