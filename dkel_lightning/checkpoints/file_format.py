"""Checkpoints: written whole or not at all, read without running anything in them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn

from dkel_lightning.checkpoints import archive
from dkel_lightning.errors import CheckpointError, full_disk
from dkel_lightning.runtime.atomic_files import opened, written_whole

KEY = "dkel_lightning"
FORMAT = 3
NEITHER_NETWORK_NOR_LOSS = ("deploy", "image_size", "seed")
_MOST_SPREAD = 16
_MOST_SETTINGS = 100_000


def sign(
    checkpoint: dict[str, Any],
    recipe: Mapping[str, Any] | None,
    members: Sequence[str],
    processes: Sequence[Mapping[str, Any]] = (),
    trained_with: Mapping[str, str] | None = None,
) -> None:
    """Add the format version, what rebuilds the networks, its hash, and what each process holds of its own.

    `trained_with` names what a recipe cannot hold: the classes of optimizer, scheduler and augmentation.
    """
    checkpoint[KEY] = {
        "format": FORMAT,
        "recipe": dict(recipe) if recipe is not None else None,
        "hash": networks_hash(recipe, checkpoint["state_dict"]),
        "members": [*members],
        "processes": [dict(own) for own in processes],
        "trained_with": dict(trained_with or {}),
    }


def networks_hash(recipe: Mapping[str, Any] | None, state_dict: Mapping[str, Any]) -> str:
    """Hash what built the networks, and the names, shapes and types of what they hold, and a checksum of each."""
    held = [
        [name, [*value.shape], str(value.dtype), _checksum(value)]
        for name, value in state_dict.items()
        if isinstance(value, Tensor)
    ]
    text = json.dumps([recipe, sorted(held)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(value: Tensor) -> int:
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        return 0  # of a network of the user's own; not one stretch of bytes
    plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return zlib.crc32(plain.reshape(-1).view(torch.uint8).numpy().data)


def own_states(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what each process held of its own; nothing where the checkpoint does not say so."""
    found = checkpoint[KEY].get("processes", [])
    return list(found)


def trained_with(checkpoint: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of what trained it; nothing in a checkpoint that does not say so."""
    found = checkpoint[KEY].get("trained_with", {})
    return {str(what): str(name) for what, name in found.items()} if isinstance(found, Mapping) else {}


def load(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of tensors and primitives.

    Raises:
        CheckpointError: the file is missing, torn, or holds objects that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"No checkpoint at {path}: give the path of a .ckpt file.")
    checkpoint = read(path, map_location)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise CheckpointError(f"{path} is not a Lightning checkpoint: it has no state_dict.")
    return checkpoint


def read(path: Path, map_location: Any = "cpu", cure: str = "use an earlier checkpoint") -> Any:
    """Read what torch has saved: checked byte by byte, without running anything in it, and within its size.

    Torch checks no byte. Files in its format from before 1.6 have no checksums to check.

    Raises:
        CheckpointError: damaged, packed, swollen, or with objects that would run code.
    """
    try:
        with opened(path) as file:
            has_checksums = file.read(4) == b"PK\x03\x04"  # as torch tells the two apart
            fault = archive.fault(file) if has_checksums else None
            if fault is not None:
                raise ValueError(fault)
            file.seek(0)
            content = torch.load(file, map_location=map_location, weights_only=True)
            _refuse_swollen(content, os.fstat(file.fileno()).st_size)
            return content
    except pickle.UnpicklingError as error:
        raise CheckpointError(_not_plain(path, str(error), cure)) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # on bytes that are no checkpoint torch fails in any way it likes
        first = str(error).partition(". ")[0]  # torch goes on with guesses
        raise CheckpointError(f"{path} is damaged or not as torch writes it ({first}): {cure}.") from error


def _refuse_swollen(content: Any, size: int) -> None:
    """Raise a ValueError if tensors of a few bytes are spread over many; tied weights and small constants are."""
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    tensors = [value for value in weights.values() if isinstance(value, Tensor) and value.layout is torch.strided]
    claimed = sum(value.numel() * value.itemsize for value in tensors)
    if claimed > _MOST_SPREAD * max(size, 1 << 20):
        raise ValueError(f"its tensors claim {claimed} bytes, and it has {size}")


def _not_plain(path: Path, said: str, cure: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", said)
    if found is None:
        return f"{path} is torn, or holds objects that could run code on loading; it was not loaded: {cure}."
    return (
        f"{path} holds objects that could run code on loading ({found[1]}); it was not loaded. In a checkpoint of your "
        "own that is a hyper-parameter of your data module or the state of a callback: keep it out with "
        "save_hyperparameters(ignore=[...]), or make it a number or a text. Of a model, save the state_dict alone."
    )


def recipe(checkpoint: Mapping[str, Any], path: str | Path) -> Mapping[str, Any]:
    """Return what rebuilds the networks of this checkpoint.

    Raises:
        CheckpointError: not written by this library, in another format, or from parts that the user put together.
    """
    found = _signed_recipe(checkpoint, path)
    if found is None:
        raise CheckpointError(
            f"{path} was trained with parts put together by hand: "
            "build the module the same way and load its state_dict."
        )
    return found


def check(checkpoint: Mapping[str, Any], ours: Mapping[str, Any] | None) -> None:
    """Refuse a checkpoint whose networks or method differ from `ours`, listing the differences.

    Raises:
        CheckpointError: something that shapes the networks or the loss differs.
    """
    theirs = _signed_recipe(checkpoint, "This checkpoint")
    if theirs is None or ours is None:
        return
    mine, other = dict(_leaves(ours)), dict(_leaves(theirs))
    differences = [
        f"{key}: {other.get(key)} in the checkpoint, {mine.get(key)} here"
        for key in mine
        # A key that one of them lacks is of a version that did not have it; its default is what was done before.
        if key in other and not key.startswith(NEITHER_NETWORK_NOR_LOSS) and mine.get(key) != other.get(key)
    ]
    if differences:
        raise CheckpointError(
            f"This checkpoint belongs to another configuration ({'; '.join(differences)}): "
            "use the settings of the run that wrote it."
        )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def load_weights(module: nn.Module, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Load the weights strictly: no key may be missing or left over, no type of another kind.

    Raises:
        CheckpointError: they do not fit.
    """
    weights = checkpoint["state_dict"]
    foreign = foreign_types(module.state_dict(), weights)
    try:
        if foreign:
            raise RuntimeError(f"of another type: {', '.join(foreign[:8])}")
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {path} do not fit the networks it names: {error}") from error


def foreign_types(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Name the tensors whose type torch would turn into ours though it means something else, such as int8 weights."""
    return [
        f"{name} {theirs[name].dtype} instead of {value.dtype}"
        for name, value in ours.items()
        if isinstance(value, Tensor) and isinstance(theirs.get(name), Tensor) and _kind(theirs[name]) != _kind(value)
    ]


def _kind(value: Tensor) -> tuple[bool, bool]:
    return value.is_floating_point(), value.is_complex()


def _signed_recipe(checkpoint: Mapping[str, Any], name: str | Path) -> Mapping[str, Any] | None:
    signed = checkpoint.get(KEY)
    if not isinstance(signed, Mapping):
        raise CheckpointError(f"{name} was not written by a DistillationModule.")
    if (version := signed.get("format")) != FORMAT:
        raise CheckpointError(
            f"{name} has format {version}, and this version reads format {FORMAT} alone: "
            "install the version of dkel_lightning that wrote it."
        )
    found = signed.get("recipe")
    recipe = found if isinstance(found, Mapping) else None
    try:
        _refuse_many(recipe)
        itself = signed.get("hash") == networks_hash(recipe, checkpoint["state_dict"])
    except (TypeError, ValueError, RecursionError):  # of a recipe that nothing writes
        itself = False
    if not itself:
        raise CheckpointError(
            f"{name} contradicts itself: what it says of its networks does not belong to its weights. "
            "It was edited or damaged; use another checkpoint."
        )
    return recipe


def _refuse_many(recipe: Any) -> None:
    """Raise a ValueError for a recipe of very many settings; a pickle may hold one list a million times over."""
    left, open_ones = _MOST_SETTINGS, [recipe]
    while open_ones:
        each = open_ones.pop()
        inside = [*each.values()] if isinstance(each, Mapping) else each if isinstance(each, list | tuple) else ()
        left -= len(inside)
        if left < 0:
            raise ValueError("a recipe of too many settings")
        open_ones += inside


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint as `written_whole` does, and onto the disk before it takes its name.

    Whatever interrupts the writing, the target is the old whole file or the new whole file. Reading executes
    nothing (`weights_only`).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written; the old file stays whole.
        """
        target = Path(path)
        try:
            with written_whole(target) as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError of its archive writer, about positions in the file.
            why = full_disk(error) or error
            why = getattr(why, "strerror", None) or why
            before = " The last checkpoint is untouched." if target.is_file() else ""
            raise CheckpointError(
                f"Could not write {target} ({why}): free some space or choose another output folder.{before}"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint without executing anything in it."""
        return load(path, map_location)
