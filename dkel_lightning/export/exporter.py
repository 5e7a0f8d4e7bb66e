"""Exporting: write, open as a receiver would, compare with what was trained, describe; whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dkel_lightning.distillation import DistillationModule
from dkel_lightning.errors import CheckpointError, ConfigError
from dkel_lightning.export import card, costs, formats
from dkel_lightning.export.costs import Cost
from dkel_lightning.export.metadata import RECORD, Agreement, Facts, Preprocessing, Record
from dkel_lightning.modules.deployment import choose, deploy, deployed_member
from dkel_lightning.runtime import locks, provenance
from dkel_lightning.runtime.atomic_files import digest, write_text

_BATCH = 64


@dataclass(frozen=True)
class Shipped:
    """What an export gave.

    Attributes:
        folder: where all files lie.
        file: the one that holds the weights.
        member: which member of the training was exported.
        agreement: with the training network.
        costs: of the exported file, the deployed network and the training network.
    """

    folder: Path
    file: Path
    member: str
    agreement: Agreement
    costs: tuple[Cost, ...]


def export(
    module: DistillationModule,
    images: Tensor,
    folder: str | Path,
    preprocessing: Preprocessing,
    *,
    format: str = "safetensors",
    network: str | None = None,
    peer: int | str | None = None,
    tolerance: float = 1e-4,
    repeats: int = 20,
    facts: Facts | None = None,
) -> Shipped:
    """Write one network of a trained module as files.

    What was written is opened as its receiver would, and compared with the logits of the training network.

    Args:
        module: trained; it is put on the CPU and into eval mode. One in another precision than float32 is compared, and
            timed, with its weights in float32, and keeps its own.
        images: real images [N, C, H, W], normalised, of the test set where there is one.
        folder: is made, or replaced if it holds an earlier export and nothing else.
        preprocessing: how images become such as `images`.
        format: one of FORMATS.
        network: `teacher`, `student` or `ensemble`; as the module deploys by default.
        peer: an index, or `best` of the last validation; as the module deploys by default.
        tolerance: largest difference of two logits, relative to the largest logit where that exceeds 1.
        repeats: of each measurement of time; 0 measures none.
        facts: what the model card says of the training.

    Raises:
        ConfigError: the network cannot be written in this format, or the folder holds something else.
        CheckpointError: the file does not give the training network's logits. Nothing is left of it.
    """
    formats.check(format)
    module = module.cpu().eval()
    choice = choose(module, network, peer)
    member = deployed_member(module, choice=choice)
    deployed = deploy(module, choice)
    index = module.scores.members.index(member)
    _check_images(images, preprocessing)
    record = Record(format, member, module.student.num_classes, preprocessing, _recipe(module))
    facts = facts or Facts()
    title = facts.title or f"{member} of {type(module.method).__name__}"
    with whole_folder(Path(folder)) as draft, _in_float32(module):
        files = formats.write(deployed, images[:4], draft, record)
        classify = formats.received(files[0], record, deployed)
        with torch.no_grad():
            agreement = _agreement(module, index, classify, images, tolerance)
        if not agreement.holds:
            raise CheckpointError(
                f"The exported {files[0].name} does not give the logits of {member}: they differ by up to "
                f"{agreement.largest_difference:.2g} on {agreement.images} images, and "
                f"{tolerance:g} x {max(1.0, agreement.largest_logit):.3g} is allowed. Nothing was written; try another "
                "export.format, or raise export.tolerance if the difference does not matter to you."
            )
        measured: tuple[Cost, ...] = ()
        if repeats:
            size = sum(path.stat().st_size for path in files)
            measured = costs.measure(
                costs.Candidate(f"exported file ({format})", classify, size),
                costs.Candidate(f"deployed network ({member})", deployed, networks=deployed),
                costs.Candidate("training network (all members)", module.evaluate, networks=module),
                images=images,
                repeats=repeats,
            )
        where = {"device": provenance.device(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        own = {
            "title": title,
            "files": {path.name: digest(path, "sha256") for path in sorted(draft.iterdir()) if path.is_file()},
            "agreement": vars(agreement),
            "costs": [asdict(cost) for cost in measured],
            "measured_on": where,
            "facts": {name: dict(value) for name, value in vars(facts).items() if name != "title"},
        }
        write_text(draft / RECORD, json.dumps({**record.as_dict(), **own}, indent=2) + "\n")
        text = card.write(record, [path.name for path in files], agreement, measured, facts, where, title)
        write_text(draft / "README.md", text)
    place = Path(folder)
    return Shipped(place, place / files[0].name, member, agreement, measured)


@contextlib.contextmanager
def _in_float32(module: DistillationModule) -> Iterator[None]:
    """Lend float32 to a module in another precision, as what it deploys has it; then it is what it was."""
    kind = module.dtype
    if kind == torch.float32:
        yield
        return
    kept = {name: tensor.data for name, tensor in _tensors(module)}
    module.float()
    try:
        yield
    finally:
        module.to(kind)
        for name, tensor in _tensors(module):
            tensor.data = kept[name]


def _tensors(module: DistillationModule) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _recipe(module: DistillationModule) -> Mapping[str, Any] | None:
    """What rebuilds the networks by name; None where something of the user's own is needed for that."""
    recipe = module.recipe or {}
    return recipe if recipe.get("backbone") is not None and recipe.get("method") is not None else None


def _check_images(images: Tensor, preprocessing: Preprocessing) -> None:
    if images.dim() != 4 or len(images) == 0 or tuple(images.shape[1:]) != preprocessing.shape:
        raise ConfigError(
            f"The images to compare on are {list(images.shape)}, the preprocessing gives "
            f"[batch, {', '.join(map(str, preprocessing.shape))}]: pass normalised images of that form."
        )


def _agreement(
    module: DistillationModule, index: int, classify: formats.Classifier, images: Tensor, tolerance: float
) -> Agreement:
    # A batch of one first: the size that a fixed batch dimension would betray.
    batches = [images[:1], *torch.split(images[1:], _BATCH)]
    expected = torch.cat([module.evaluate(batch).logits[index] for batch in batches if len(batch)])
    found = torch.cat([classify(batch.contiguous()) for batch in batches if len(batch)])
    difference = (found.double() - expected.double()).abs().max()
    same = int((found.argmax(-1) == expected.argmax(-1)).sum())
    return Agreement(len(images), float(difference), float(expected.abs().max()), same, tolerance)


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write into that takes the place of `target` at the end; on any error nothing is left of it.

    Raises:
        ConfigError: `target` holds something that is no export, or is the folder in which this runs.
        OSError: with the name that the file would have had in `target`.
    """
    if not target.name.strip("."):
        raise ConfigError(f"An export takes the place of its whole folder, and {target} has no name: give one in it.")
    draft, old, lock = (target.with_name(f".{target.name}.dkel_{kind}") for kind in ("part", "old", "lock"))
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        with locks.taking_turns(lock.parent, lock.name, f"the export {target}"), _swept(target, draft, old):
            if target.exists() and not (target.is_dir() and _replaceable(target)):
                raise ConfigError(f"{target} holds something else than an export: choose another export.to.")
            draft.mkdir()
            yield draft
            if target.exists():
                target.rename(old)  # a folder cannot be renamed over one that holds files
            draft.rename(target)
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(draft):
            error.filename = str(target / Path(error.filename).relative_to(draft))
        raise
    finally:
        with contextlib.suppress(OSError):  # rmdir refuses a folder that holds anything
            for parent in missing:
                parent.rmdir()


@contextlib.contextmanager
def _swept(target: Path, draft: Path, old: Path) -> Iterator[None]:
    """Leave `target` alone, before and after: what an error or a kill has cut short is put back or removed."""

    def sweep() -> None:
        if old.exists() and not target.exists():
            old.rename(target)
        for folder in (draft, old):
            shutil.rmtree(folder, ignore_errors=True)

    sweep()
    try:
        yield
    finally:
        sweep()


def _replaceable(folder: Path) -> bool:
    """Tell whether a folder is empty, or holds an export and nothing of anybody else's."""
    inside = {path.name for path in folder.iterdir()}
    return not inside or (RECORD in inside and inside <= formats.WRITTEN)
