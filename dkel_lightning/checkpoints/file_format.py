"""Write checkpoints atomically, and read them without executing anything in them."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dkel_lightning.errors import CheckpointError
from dkel_lightning.runtime.atomic_files import atomic_write
from dkel_lightning.runtime.mappings import leaves

KEY = "dkel_lightning"
"""Entry of a checkpoint that this library adds."""
FORMAT = 3
_MAY_DIFFER = ("batch_keys", "deploy", "image_size", "seed")
"""Settings of a recipe that affect neither the networks nor the loss."""


def load(path: str | Path, map_location: Any = "cpu", *, mmap: bool = False) -> dict[str, Any]:
    """Read a Lightning checkpoint of tensors and primitives; with `mmap`, tensors are read when they are used."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"No checkpoint at {path}: pass the path of a .ckpt file.")
    checkpoint = read(path, map_location, mmap=mmap)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise CheckpointError(f"{path} is not a Lightning checkpoint: it has no state_dict.")
    return checkpoint


def read(path: Path, map_location: Any = "cpu", hint: str = "use an earlier checkpoint", mmap: bool = False) -> Any:
    """Read a file of `torch.save` with `weights_only`, so that nothing in it is executed.

    Checksums are compared unless the file is mapped into memory. `hint` ends the message about a damaged file.
    """
    with path.open("rb") as file:
        has_checksums = file.read(4) == b"PK\x03\x04"  # the format before torch 1.6 has none
    fault = _fault(path) if has_checksums and not mmap else None
    if fault is not None:
        raise CheckpointError(f"{path} is damaged ({fault}): {hint}.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # plain values in files of timm
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises errors of many kinds
        raise CheckpointError(_describe(error, path, hint)) from error


def is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint is intact."""
    return checkpoint.is_file() and _fault(checkpoint) is None


def _fault(path: Path) -> str | None:
    """Compare the checksums of a ZIP archive, which torch does not do; None if all match."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile has no common error for damaged archives
        return str(error) or type(error).__name__
    return None if damaged is None else f"the checksum of {damaged} does not match"


def _describe(error: Exception, path: Path, hint: str) -> str:
    if not isinstance(error, pickle.UnpicklingError):
        reason = str(error).partition(". ")[0] or type(error).__name__
        return f"{path} is damaged or not a file of torch.save ({reason}): {hint}."
    name = re.search(r"GLOBAL ([\w.]+)", str(error))
    if name is None:
        return f"{path} is damaged, or holds objects that could run code on loading; it was not loaded: {hint}."
    return (
        f"{path} holds objects that could run code on loading ({name[1]}); it was not loaded. In a checkpoint of your "
        "own that is a hyper-parameter of your data module or the state of a callback: keep it out with "
        "save_hyperparameters(ignore=[...]), or make it a number or a text. Of a model, save the state_dict alone."
    )


def recipe(checkpoint: Mapping[str, Any], path: str | Path) -> Mapping[str, Any]:
    """Return the arguments of `DistillationModule.build` that rebuild the networks of this checkpoint."""
    arguments = _recipe(checkpoint, path)
    if arguments is None:
        raise CheckpointError(
            f"{path} was trained with parts constructed by hand: "
            "construct the module in the same way and load its state_dict."
        )
    return arguments


def check(checkpoint: Mapping[str, Any], ours: Mapping[str, Any] | None, fits: bool = True) -> None:
    """Raise an error if networks or method of a checkpoint, or (`fits`) its rates, differ from the recipe `ours`."""
    theirs = _recipe(checkpoint, "This checkpoint")
    if theirs is None or ours is None:
        return
    mine, other = leaves(ours), leaves(theirs)
    may_differ = _MAY_DIFFER if fits else (*_MAY_DIFFER, "lr_scale", "interval")
    differences = [
        f"{key}: {other.get(key)} in the checkpoint, {mine.get(key)} here"
        for key in mine
        # A key that is missing on one side belongs to another version, where the default applied.
        if key in other and not key.startswith(may_differ) and mine.get(key) != other.get(key)
    ]
    if differences:
        raise CheckpointError(
            f"This checkpoint belongs to another configuration ({'; '.join(differences)}): "
            "use the settings of the run that wrote it."
        )


def _recipe(checkpoint: Mapping[str, Any], name: str | Path) -> Mapping[str, Any] | None:
    metadata = checkpoint.get(KEY)
    if not isinstance(metadata, Mapping):
        raise CheckpointError(f"{name} was not written by a DistillationModule.")
    if (version := metadata.get("format")) != FORMAT:
        raise CheckpointError(
            f"{name} has format {version}, but this version of dkel_lightning reads format {FORMAT}: "
            "install the version that wrote it."
        )
    arguments: Mapping[str, Any] | None = metadata.get("recipe")
    return arguments


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to a temporary file, flush it to the disk, and rename it.

    An interrupted write leaves the old file intact. Reading always uses `weights_only`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        return load(path, map_location)
