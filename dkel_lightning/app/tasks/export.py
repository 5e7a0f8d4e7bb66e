"""task=export: write the deployed network of a checkpoint as files for use elsewhere."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dkel_lightning.app.config.schema import Values
from dkel_lightning.app.runs import scores
from dkel_lightning.app.runs.folder import Run, run_folder, values_in
from dkel_lightning.app.runs.records import Test
from dkel_lightning.app.runs.tables import print_table
from dkel_lightning.app.tasks.evaluate import check_fits, loaded
from dkel_lightning.app.tasks.train import prepared
from dkel_lightning.data import ClassificationData
from dkel_lightning.data.own import describe_sizes
from dkel_lightning.distillation import DistillationModule
from dkel_lightning.errors import ConfigError
from dkel_lightning.export import Preprocessing, Shipped, export, formats, hub
from dkel_lightning.export.metadata import Facts, backbone_of
from dkel_lightning.modules.batch import renamed, unpack
from dkel_lightning.runtime.atomic_files import digest, text_of


@dataclass(frozen=True)
class ExportResult:
    """What an export gave: the files, and the test of the exported network."""

    shipped: Shipped
    scores: Test

    @property
    def objective(self) -> float:
        """The exported network's test accuracy."""
        return self.scores.deployed_accuracy


def export_checkpoint(run: Run) -> ExportResult:
    """Export the checkpoint `values["checkpoint"]` as `values["export"]` says, and print what was checked.

    The folder is `export.to`, or `<member>_<format>` in the run's.

    Raises:
        DkelError: with the thing at fault and its cure; nothing is left of an export that failed.
    """
    values, settings = run.values, run.values["export"]
    formats.check(settings["format"])
    if settings["hub"]:
        hub.check(settings["hub"])
    path = Path(values["checkpoint"])
    module, epoch = loaded(path, values)
    images = prepared(values)
    check_fits(module, images, path)
    preprocessing = _preprocessing(images)
    # One process: all of them would write the same files.
    alone = {**values["trainer"], "devices": 1, "num_nodes": 1, "strategy": "auto"}
    tested = scores.test_alone({**values, "trainer": alone}, module, images, epoch)
    member = module.deployed_member()
    target = Path(settings["to"]) if settings["to"] else run.folder / f"{member}_{settings['format']}"
    shipped = export(
        module,
        spread(images, settings["images"], getattr(images, "test_size", tested.images)),
        target,
        preprocessing,
        format=settings["format"],
        tolerance=settings["tolerance"],
        repeats=settings["repeats"],
        facts=_facts(path, values, module, images, tested),
    )
    if settings["to"]:
        with contextlib.suppress(OSError):  # rmdir refuses a folder that holds anything
            run.folder.rmdir()
    _report(shipped, tested)
    if settings["hub"]:
        print(f"Sent to {hub.push(shipped.folder, settings['hub'])}")
    return ExportResult(shipped, tested)


def spread(images: ClassificationData, most: int, total: int) -> Tensor:
    """Take at most `most` of `total` test images [N, C, H, W], spread over the whole set: it may be sorted by class."""
    wanted = torch.arange(min(most, total)) * total // min(most, total)
    images.trainer = None  # the loader of a Trainer would lie on its device
    found: list[Tensor] = []
    seen = 0
    for batch in images.test_dataloader():
        pixels = unpack(renamed(batch, images.batch_keys or {})).views
        inside = wanted[(wanted >= seen) & (wanted < seen + len(pixels))] - seen
        found.append(pixels[inside])
        seen += len(pixels)
    return torch.cat(found)


def _preprocessing(images: ClassificationData) -> Preprocessing:
    normalize = images.normalize
    if normalize is None:
        raise ConfigError(
            "An export says how images are prepared, and the data module does not: give it attributes mean and std (of "
            "images in [0, 1], one a channel), or data.mean=[...] and data.std=[...]."
        )
    margin = getattr(images, "margin", 1.0)  # which a data module of a user's own need not have
    return Preprocessing(*images.image_shape, normalize.mean, normalize.std, tuple(images.class_names), margin)


# ---------------------------------------------------------------------- what the model card says


def _facts(path: Path, values: Values, module: DistillationModule, images: ClassificationData, tested: Test) -> Facts:
    folder = run_folder(path)
    saved = values_in(folder) if folder is not None else {}
    recipe = module.recipe or {}
    method = str((recipe.get("method") or {}).get("name", type(module.method).__name__))
    data = values["data"]["name"]
    return Facts(
        title=f"{backbone_of(recipe, tested.deployed) or 'network'} trained with {method} on {data}: {tested.deployed}",
        data={
            "set": data,
            "images": describe_sizes(images),
            "form": f"{'x'.join(map(str, images.image_shape))} (channels, height, width), {images.num_classes} classes",
        },
        protocol=_protocol(recipe, saved, tested, method, str(values["data"]["selection"])),
        accuracy=_accuracy(tested),
        provenance=_provenance(path, folder),
        metrics={
            "accuracy": tested.deployed_accuracy,
            "negative_log_likelihood": tested.nll[tested.deployed],
            "expected_calibration_error": tested.calibration[tested.deployed],
        },
    )


def _protocol(
    recipe: Mapping[str, Any], saved: Mapping[str, Any], tested: Test, method: str, selection: str
) -> dict[str, str]:
    peers = recipe.get("peers")
    optimizer, trainer, data = (saved.get(group, {}) for group in ("optimizer", "trainer", "data"))
    found = {
        "method": method,
        "peers": ", ".join(peers) if isinstance(peers, list) else f"{peers} of {recipe.get('backbone')}",
        "epochs": f"{tested.epoch} of {trainer.get('max_epochs', 'an unknown number')}",
        "seed": str(recipe.get("seed")),
        "exported": f"{tested.deployed}: {_chosen(tested, selection)}",
    }
    if optimizer:
        name = str(optimizer.get("_target_", "")).rsplit(".", 1)[-1]
        settings = ", ".join(f"{key} {value}" for key, value in optimizer.items() if key != "_target_")
        found["optimizer"] = f"{name}, {settings}, batches of {data.get('batch_size')}"
    return found


def _chosen(tested: Test, selection: str) -> str:
    """Say what chose the exported network."""
    if not tested.was_chosen:
        return "set beforehand, by the method or by deploy.*"
    if not tested.validated:
        return "the first, since nothing was validated"
    where = "the test set itself, so its accuracy is flattered" if selection == "paper" else "held-out training images"
    return f"the network with the highest accuracy in the last validation of this checkpoint, on {where}"


def _accuracy(tested: Test) -> dict[str, str]:
    name = tested.deployed
    return {
        "test accuracy": f"{tested.deployed_accuracy:.2%} on {tested.images:,} test images, measured at this export",
        "negative log-likelihood": f"{tested.nll[name]:.4f} nats",
        "calibration": f"expected calibration error {tested.calibration[name]:.2%} in 15 bins; temperature 1",
        "other members": ", ".join(f"{key} {value:.2%}" for key, value in tested.accuracy.items() if key != name),
    }


def _provenance(path: Path, folder: Path | None) -> dict[str, str]:
    found = {"checkpoint": f"{path.name}, SHA-256 {digest(path, 'sha256')}"}
    try:
        told = json.loads(text_of(folder / Run.PROVENANCE)) if folder is not None else {}
        packages = {name: version for name, version in dict(told.get("packages") or {}).items() if version}
        git, device = told.get("git") or {}, told.get("device") or {}
        found |= {"trained with": ", ".join(f"{name} {version}" for name, version in packages.items())}
        found |= {"trained on": f"{', '.join(device.get('names', []))} ({device.get('kind')})"} if device else {}
        changed = " with uncommitted changes" if git.get("dirty") else ""
        found |= {"code": f"commit {git['commit']}{changed}"} if git.get("commit") else {}
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        found["trained with"] = "unknown: the run's provenance.json is missing or damaged"
    return {name: text for name, text in found.items() if text}


def _report(shipped: Shipped, tested: Test) -> None:
    agreement = shipped.agreement
    print(
        f"{shipped.member}: test accuracy {tested.deployed_accuracy:.2%}, calibration error "
        f"{tested.calibration[tested.deployed]:.2%}, {tested.images} test images"
    )
    print(
        f"Checked on {agreement.images} test images: logits differ from the training network's by at most "
        f"{agreement.largest_difference:.2g} (largest logit {agreement.largest_logit:.3g}), the same class for "
        f"{agreement.same_class}."
    )
    if shipped.costs:
        measured = (f"ms, batch {latency.batch}" for latency in shipped.costs[0].latencies)
        rows = []
        for cost in shipped.costs:
            parameters = f"{cost.parameters:,}" if cost.parameters is not None else ""
            flops = f"{cost.flops / 1e6:,.1f}" if cost.flops is not None else ""
            times = [latency.milliseconds for latency in cost.latencies]
            rows.append([cost.name, parameters, f"{cost.bytes / 1e6:.2f}", flops, *times])
        print_table("Costs, on the CPU", ["network", "parameters", "MB", "MFLOPs", *measured], rows)
    print(f"Written to {shipped.folder}: {', '.join(sorted(path.name for path in shipped.folder.iterdir()))}")
