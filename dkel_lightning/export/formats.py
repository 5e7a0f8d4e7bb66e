"""Write a network in each format, and open it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dkel_lightning.assembly.weights import read_file, refuse_folder
from dkel_lightning.distillation import DistillationModule
from dkel_lightning.errors import CheckpointError, ConfigError, first_line
from dkel_lightning.export.metadata import Record
from dkel_lightning.networks import logits_of
from dkel_lightning.networks.outline import LogitsOf
from dkel_lightning.runtime.packages import need

FILES = {
    "safetensors": "weights.safetensors",
    "weights": "weights.pt",
    "torch_export": "model.pt2",
    "onnx": "model.onnx",
}
FORMATS = tuple(FILES)
_NEEDED = {"safetensors": ("safetensors.torch",), "onnx": ("onnx", "onnxscript", "onnxruntime")}
_OF_TEACHER = ("update", "batchnorm", "draw", "backbone")
"""Settings of a teacher that affect its network; the others name files or concern the training."""

Classifier = Callable[[Tensor], Tensor]
"""Normalised images [B, C, H, W] -> logits [B, num_classes], on the CPU."""


@dataclass(frozen=True)
class Exported:
    """An exported network.

    Attributes:
        path: its file.
        record: the content of `export.json`.
        classify: normalised images [B, C, H, W] -> logits [B, num_classes].
    """

    path: Path
    record: Record
    classify: Classifier


def check(kind: str) -> None:
    """Raise a ConfigError for an unknown format, or one whose packages are not installed."""
    if kind not in FORMATS:
        raise ConfigError(f"export.format is {kind!r}: choose one of {', '.join(FORMATS)}.")
    for package in _NEEDED.get(kind, ()):
        need(package, f"export.format={kind}", "export")


def write(kind: str, network: nn.Module, example: Tensor, folder: Path) -> Path:
    """Write a network (in eval mode, on the CPU) into a folder, traced with at least two images."""
    path = folder / FILES[kind]
    if kind == "torch_export":
        torch.export.save(_traced(LogitsOf(network), example), path)
    elif kind == "onnx":
        _write_onnx(LogitsOf(network).eval(), example, path)
    else:
        weights = {name: value.detach().contiguous().clone() for name, value in network.state_dict().items()}
        if kind == "weights":
            torch.save(weights, path)
        else:
            need("safetensors.torch", "safetensors", "export").save_file(weights, path, metadata={"format": "pt"})
    return path


def _write_onnx(network: nn.Module, example: Tensor, path: Path) -> None:
    try:
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # tracing a network can fail in any way
        raise ConfigError(f"torch cannot write this network as ONNX: {first_line(error)}") from error
    assert program is not None
    # Source locations: paths of this machine, several times the size of the graph.
    for part in (*program.model.graph, *(node for function in program.model.functions.values() for node in function)):
        part.metadata_props.clear()
    program.save(str(path))


def _traced(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad():
            program = torch.export.export(
                network, (example,), dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}}
            )
    except Exception as error:  # tracing a network can fail in any way
        raise ConfigError(f"torch.export cannot trace this network: {first_line(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


# ---------------------------------------------------------------------- opening


def open_exported(path: Path | str, *, trust: bool = False) -> Exported:
    """Open the folder of an export, or a file in it. Nothing in it is executed, unless `trust`.

    Weights are loaded into a network that is rebuilt by name. `trust` is required for a `.pt2`, parts of which torch
    unpickles, and for a backbone that is read from a folder named in the export.
    """
    path = Path(path)
    record = Record.read(path if path.is_dir() else path.parent)
    path = path / record.file if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"No exported network at {path}: pass the folder of an export.")
    if path.name != record.file:
        raise CheckpointError(f"{path.parent} describes {record.file}, a later export: export {path.name} again.")
    if path.suffix == ".pt2" and not trust:
        raise CheckpointError(
            f"{path} may contain objects that run code on loading, as any .pt2. Open your own files by "
            "open_exported(path, trust=True); use ONNX or safetensors for files of others."
        )
    return Exported(path, record, open_file(path, lambda: _rebuilt(record, path, trust=trust)))


def open_file(path: Path, build: Callable[[], nn.Module]) -> Classifier:
    """Open a file of any format; `build` makes the network for a file of weights."""
    if path.suffix == ".onnx":
        return _open_onnx(path)
    if path.suffix == ".pt2":
        return without_gradient(torch.export.load(path).module())
    network = build()
    try:
        network.load_state_dict(dict(read_file(path, "export again")), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {path} do not fit the network of the export: {error}") from error
    return without_gradient(network.eval())


def blank_copy(network: nn.Module) -> nn.Module:
    """Copy a network with zero weights, to verify that a file contains all of them."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in copied.state_dict().values():
            tensor.zero_()
    return copied


def is_exported(path: Path) -> bool:
    """Return whether a path is an export rather than a checkpoint."""
    return path.is_dir() or path.suffix in (".onnx", ".pt2", ".safetensors", ".pt")


def _rebuilt(record: Record, path: Path, *, trust: bool) -> nn.Module:
    if record.recipe is None:
        raise CheckpointError(
            f"{path} contains weights of a custom network, which cannot be rebuilt by name: load them into your class, "
            "or export as onnx."
        )
    recipe = {name: value for name, value in record.recipe.items() if name != "deploy"}
    recipe["teacher"] = {key: value for key, value in (recipe.get("teacher") or {}).items() if key in _OF_TEACHER}
    for name in () if trust else (recipe["backbone"], recipe["teacher"].get("backbone")):
        refuse_folder(path, "trust", name)
    network, _, peer = record.member.partition("_")
    return DistillationModule.build(**recipe).deploy(network, int(peer or 0))


def _open_onnx(path: Path) -> Classifier:
    library: Any = need("onnxruntime", "An .onnx file", "export")
    options = library.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has many error classes
        raise CheckpointError(f"onnxruntime cannot run {path} ({error}): export again.") from error

    def classify(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.cpu().numpy()})[0])

    return classify


def without_gradient(network: nn.Module) -> Classifier:
    """Wrap a network as images -> logits, without gradients."""

    def classify(images: Tensor) -> Tensor:
        with torch.no_grad():
            return logits_of(network(images))

    return classify
