"""The formats: writing a network in each, and opening what was written as its receiver would."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dkel_lightning.assembly.file_checks import no_more_than, refuse_folder
from dkel_lightning.checkpoints import file_format
from dkel_lightning.distillation import DistillationModule
from dkel_lightning.errors import CheckpointError, ConfigError, DkelError
from dkel_lightning.export.metadata import KEY, RECORD, Record, check_files, files_of
from dkel_lightning.methods import preset
from dkel_lightning.modules.deployment import EnsembleNetwork
from dkel_lightning.networks import LogitsOf, SinglePeer, logits_of
from dkel_lightning.runtime.atomic_files import naming, text_of, write_bytes
from dkel_lightning.runtime.packages import need

FOLDER = "model.safetensors"
"""Of a model of transformers in its own form."""
_FILES = {
    "original": "weights.pt",
    "state_dict": "weights.pt",
    "safetensors": "weights.safetensors",
    "torch_export": "model.pt2",
    "onnx": "model.onnx",
}
FORMATS = tuple(_FILES)
WRITTEN = {*_FILES.values(), FOLDER, "config.json", "model.onnx.data", RECORD, "README.md"}
"""Names of all files that an export may consist of."""
_OF_TRAINING = ("deploy",)
_OF_TEACHER = ("update", "batchnorm", "draw")
_OF_ITS_OWN = ("backbone", "image_size", "mean", "std", "dtype")
_INSIDE_PT2 = f"{KEY}.json"
_NEEDED = {"safetensors": ("safetensors.torch",), "onnx": ("onnx", "onnxscript", "onnxruntime")}

Classifier = Callable[[Tensor], Tensor]
"""Normalised images [B, C, H, W] -> logits [B, num_classes], on the CPU."""


@dataclass(frozen=True)
class Exported:
    """An exported file that is open.

    Attributes:
        path: the file.
        record: what it says of itself.
        classify: normalised images -> logits.
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


# ---------------------------------------------------------------------- writing


def write(network: nn.Module, example: Tensor, folder: Path, record: Record) -> list[Path]:
    """Write `network` (in eval mode, on the CPU) into `folder`, the file that is opened first.

    Args:
        network: what `DistillationModule.deploy` returns.
        example: a few normalised images.
        folder: an existing one.
        record: what the file says of itself.

    Raises:
        ConfigError: the network cannot be written in this format, or a package is missing.
        OSError: with the name of the file.
    """
    check(record.format)
    target = folder / _FILES[record.format]
    if record.format == "original" and isinstance(network, SinglePeer | EnsembleNetwork):
        raise ConfigError(
            f"export.format=original is for networks of torchvision, timm, transformers or your own, and "
            f"{record.member} is this library's: choose one of {', '.join(FORMATS[1:])}."
        )
    if record.format == "original" and hasattr(network, "save_pretrained"):
        return _write_folder(network, folder, record)
    if record.format in ("original", "state_dict", "safetensors"):
        _write_weights(network, target, record)
    elif record.format == "torch_export":
        written = io.BytesIO()
        torch.export.save(_program_of(LogitsOf(network), example), written, extra_files={_INSIDE_PT2: record.as_text()})
        write_bytes(target, written.getvalue())
    else:
        _write_onnx(LogitsOf(network).eval(), example, target, record)
    return [target]


def _write_weights(network: nn.Module, target: Path, record: Record) -> None:
    tensors = {name: value.detach().contiguous().clone() for name, value in network.state_dict().items()}
    if target.suffix == ".pt":
        written = io.BytesIO()
        torch.save(tensors, written)
        write_bytes(target, written.getvalue())
    else:
        save = need("safetensors.torch", "safetensors", "export").save
        write_bytes(target, save(tensors, metadata={"format": "pt", KEY: record.as_text()}))


def _write_folder(network: Any, folder: Path, record: Record) -> list[Path]:
    """Write a model of transformers as its `from_pretrained` reads it."""
    if names := record.preprocessing.classes:
        network.config.id2label = dict(enumerate(names))
        network.config.label2id = {name: index for index, name in enumerate(names)}
    with naming(folder / FOLDER):
        network.save_pretrained(folder)
    return [folder / FOLDER, folder / "config.json"]


def _write_onnx(network: nn.Module, example: Tensor, target: Path, record: Record) -> None:
    try:
        program = torch.onnx.export(
            network,
            (_example_of(example),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # tracing someone's network fails in any way it likes
        raise ConfigError(f"torch cannot write this network as ONNX: {str(error).splitlines()[0]}") from error
    assert program is not None
    model = program.model
    model.metadata_props.update(
        {KEY: record.as_text(), "preprocessing": json.dumps(record.preprocessing.as_dict(), sort_keys=True)}
    )
    # Notes on where each operation came from: paths of the machine that exported, several times the graph's size.
    for part in (*model.graph, *(node for function in model.functions.values() for node in function)):
        part.metadata_props.clear()
    with naming(target):  # not by way of memory: above 2 GiB it writes a second file
        program.save(str(target))


def _program_of(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Trace a network with a batch of any size, without a word of where its code lies.

    Raises:
        ConfigError: torch.export cannot trace it.
    """
    try:
        with torch.no_grad():
            program = torch.export.export(
                network, (_example_of(example),), dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}}
            )
    except Exception as error:  # the forward of someone's network fails in any way it likes
        raise ConfigError(f"torch.export cannot trace this network: {str(error).splitlines()[0]}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _example_of(images: Tensor) -> Tensor:
    """Take two images to trace with: a batch of one would be taken for the only size."""
    return images[:2] if len(images) > 1 else images.repeat(2, 1, 1, 1)


# ---------------------------------------------------------------------- opening as a receiver does


def received(path: Path, record: Record, network: nn.Module) -> Classifier:
    """Open a file just written as its receiver will: by torch.export, onnxruntime, or a network that is rebuilt.

    What cannot be rebuilt by name is a copy of `network` with other weights, into which those of the file are loaded.
    """
    if path.suffix == ".onnx":
        return _onnx(path)[1]
    if path.suffix == ".pt2":
        return _program(path)
    if path.name == FOLDER:
        return _without_gradient(_from_folder(path))
    tensors = _safetensors(path)[1] if path.suffix == ".safetensors" else _tensors(path)
    if record.recipe is not None:
        return _without_gradient(_rebuilt(record, tensors, path, trust=True))
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in copied.state_dict().values():
            tensor.zero_()
    copied.load_state_dict(dict(tensors), strict=True)
    return _without_gradient(copied)


def open_exported(path: Path, *, trust: bool = False) -> Exported:
    """Open an exported file, or the folder that holds one. Nothing in it is executed, unless `trust`.

    Weights are loaded into networks that are rebuilt by name. A `.pt2` is refused without
    `trust`, since torch unpickles parts of it.

    Raises:
        CheckpointError: missing, damaged, not written by an export, or not to be trusted.
    """
    path = _file_in(path)
    check_files(path.parent)
    if path.suffix == ".onnx":
        text, classify = _onnx(path)
        return Exported(path, Record.from_text(text, path), classify)
    if path.suffix == ".pt2":
        if not trust:
            raise CheckpointError(
                f"{path} may hold objects that run code on loading, as every .pt2 may. If the file is your own, add "
                "trust=true; from a stranger, ask for ONNX or safetensors."
            )
        # Read from the archive itself, before torch loads what is in it.
        return Exported(path, Record.from_text(_inside_pt2(path), path), _program(path))
    inside, tensors = _safetensors(path) if path.suffix == ".safetensors" else (None, _tensors(path))
    beside = path.parent / RECORD
    if inside is None and beside.is_file():
        inside = text_of(beside)
    record = Record.from_text(inside, path)
    if path.name == FOLDER:
        return Exported(path, record, _without_gradient(_from_folder(path)))
    return Exported(path, record, _without_gradient(_rebuilt(record, tensors, path, trust=trust)))


def is_exported(path: Path) -> bool:
    """Tell whether a path names an export rather than a checkpoint of a training."""
    return path.is_dir() or path.suffix in (".onnx", ".pt2", ".safetensors", ".pt")


def _file_in(path: Path) -> Path:
    if path.is_dir():
        names = dict.fromkeys([*_FILES.values(), FOLDER])
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise CheckpointError(f"{path} holds no exported network ({', '.join(names)}).")
        # Of several, such as those of an earlier export that a repository still holds: the one of the record.
        recorded = files_of(path)
        return next((file for file in found if file.name in recorded), found[0])
    if not path.is_file():
        raise CheckpointError(f"No exported network at {path}: give a file that task=export wrote, or its folder.")
    return path


def _rebuilt(record: Record, tensors: Mapping[str, Tensor], path: Path, *, trust: bool) -> nn.Module:
    if record.recipe is None:
        raise CheckpointError(
            f"{path} holds weights of a network of the user's own, which cannot be rebuilt by name: export it as onnx."
        )
    try:
        settings, kind = _shaping(record.recipe, record.member)
        for name in () if trust else (settings["backbone"], settings["teacher"].get("backbone")):
            refuse_folder(path, "trust", name)
        with no_more_than(tensors, settings, path):
            network = DistillationModule.build(**settings).deploy(kind, 0)
    except DkelError:
        raise  # it says what is wrong with a name or a setting
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be rebuilt from its record ({error}): export it again.") from error
    wanted = network.state_dict()
    try:
        network.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights in {path} do not fit the network it names ({len(wanted)} tensors): {error}"
        ) from error
    return network


def _shaping(recipe: Mapping[str, Any], member: str) -> tuple[dict[str, Any], str]:
    """Give of a recipe what shapes one of its networks, as the first of as few peers as its method takes, and its kind.

    First weights on the exporter's disk are not wanted, nor schedules; and of many peers only one is in the file.
    """
    settings = {name: value for name, value in recipe.items() if name not in _OF_TRAINING}
    kind, _, number = member.partition("_")
    shaping = (*_OF_TEACHER, *_OF_ITS_OWN) if kind == "teacher" else _OF_TEACHER
    teacher = {name: value for name, value in recipe.get("teacher", {}).items() if name in shaping}
    if kind != "ensemble":
        fewest = preset(recipe["method"]["name"]).needs.minimum_peers
        peers = recipe["peers"]
        settings["peers"] = [peers[int(number)]] * fewest if isinstance(peers, list) else fewest
    return {**settings, "teacher": teacher}, kind


def _from_folder(path: Path) -> nn.Module:
    library = need("transformers", f"{path.name} of transformers", "hf")
    try:
        auto = library.AutoModelForImageClassification
        network: nn.Module = auto.from_pretrained(path.parent, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # as with any file of weights
        raise CheckpointError(
            f"{path.parent} is no model that transformers can read ({error}): export again."
        ) from error
    return network.eval()


def _tensors(path: Path) -> Mapping[str, Tensor]:
    found = file_format.read(path, cure="export again")
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} is no file of weights.")
    if file_format.KEY in found and "state_dict" in found:
        raise CheckpointError(f"{path} is a checkpoint of a training: call it {path.stem}.ckpt.")
    if not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} is no file of weights.")
    return dict(found)


def _safetensors(path: Path) -> tuple[str | None, Mapping[str, Tensor]]:
    library = need("safetensors", "A .safetensors file", "export")
    try:
        with library.safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(KEY), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # its own error type is no Exception of ours, and torn files raise others
        raise CheckpointError(f"{path} is damaged or cut short ({error}): export again.") from error


def _onnx(path: Path) -> tuple[str | None, Classifier]:
    library = need("onnxruntime", "An .onnx file", "export")
    options = library.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an error class for every state
        raise CheckpointError(f"{path} is no ONNX file that onnxruntime can run ({error}): export again.") from error
    name = session.get_inputs()[0].name

    def classify(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.cpu().numpy()})[0])

    return session.get_modelmeta().custom_metadata_map.get(KEY), classify


def _program(path: Path) -> Classifier:
    try:
        program = torch.export.load(path)
    except Exception as error:  # as with any archive of torch
        raise CheckpointError(f"{path} is damaged or of another version of torch ({error}): export again.") from error
    return _without_gradient(program.module())


def _inside_pt2(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.split("/")[-1].startswith(_INSIDE_PT2)]
            return archive.read(names[0]).decode() if names else None
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error}): export again.") from error


def _without_gradient(network: nn.Module) -> Classifier:
    def classify(images: Tensor) -> Tensor:
        with torch.no_grad():
            return logits_of(network(images))

    return classify
