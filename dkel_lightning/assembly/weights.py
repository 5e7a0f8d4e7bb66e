"""Initial weights of teacher and student, from checkpoints of this library or files of a state_dict."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import CheckpointError
from dkel_lightning.modules.deployment import deploy, deployed_member
from dkel_lightning.modules.teacher import TeacherModule
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.runtime.packages import need
from dkel_lightning.settings.backbone import reads_a_folder

if TYPE_CHECKING:
    from dkel_lightning.distillation import DistillationModule

WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Entries of a training script's file that hold the state_dict."""
PREFIXES = ("module.", "model.", "network.", "_orig_mod.")
"""Prefixes that DDP, a LightningModule or torch.compile adds to the names of weights."""

Rebuild = Callable[..., "DistillationModule"]
"""`load_from_checkpoint` of the module's class."""


def load_teacher(teacher: TeacherModule, rebuild: Rebuild) -> DistillationModule | None:
    """Load the weights that a teacher's settings name; return the module of a checkpoint of this library.

    A teacher of several peers takes all peers of the network that the checkpoint deploys, or the state_dict of a
    whole network; for one peer see `read_weights`.
    """
    if teacher.settings.weights is None:
        return None
    network, path = teacher.network, Path(teacher.settings.weights)
    weights, module = read_weights(path, "teacher", rebuild, teacher.settings.backbone)
    if network.num_peers > 1 and module is not None:
        part = module.teacher if deployed_member(module).startswith("teacher") else module.student
        assert part is not None
        weights = part.network.state_dict()
    load(network if network.num_peers > 1 else network.peer(0), weights, path, network.num_classes, "teacher.backbone")
    teacher.take_weights()
    return module


def read_weights(
    path: Path, group: str, rebuild: Rebuild, backbone: object
) -> tuple[dict[str, Tensor], DistillationModule | None]:
    """Read a state_dict, or the deployed network of a checkpoint of this library together with its module."""
    content = read(path, group)
    if file_format.KEY not in content:
        return unwrap(content, path), None
    saved = file_format.recipe(content, path).get("backbone")
    # A folder is read only if the user names it too.
    module = rebuild(path, backbone=saved if isinstance(saved, str) and saved == backbone else None)
    return deploy(module, module.deployment).state_dict(), module


def load_peers(network: PeerNetwork, weights: Mapping[str, Tensor], path: Path) -> int | None:
    """Load weights into every peer; see `load` for a file with another number of classes."""
    classes = None
    for index in range(network.num_peers):
        classes = load(network.peer(index), weights, path, network.num_classes, "backbone", keep_classifier=True)
    return classes


def refuse_folder(path: str | Path, key: str, backbone: object) -> None:
    """Refuse a backbone `hf:FOLDER` that a file names: only a folder that the user names again (as `key`) is read."""
    if reads_a_folder(backbone):
        raise CheckpointError(
            f"{path} was trained with {backbone}, and no file chooses a folder that is read: pass {key}= to load it."
        )


def read(path: Path, group: str) -> Mapping[str, Any]:
    """Read a file of weights, named by `GROUP.weights`."""
    if not path.is_file():
        raise CheckpointError(f"No weights at {path}: give {group}.weights a .pt, .pth, .ckpt or .safetensors file.")
    content = read_file(path, "save the state_dict alone: torch.save(model.state_dict(), path)")
    return content if isinstance(content, Mapping) else {}


def read_file(path: Path, hint: str) -> Any:
    """Read a file of torch or safetensors, of which nothing is executed."""
    if path.suffix != ".safetensors":
        return file_format.read(path, hint=hint)
    library = need("safetensors.torch", "A .safetensors file", "export")
    try:
        return library.load_file(path)
    except Exception as error:  # its errors have no common base
        raise CheckpointError(f"{path} is damaged or cut short ({error}): {hint}.") from error


def unwrap(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Take the state_dict out of the mapping of a training script."""
    content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds no state_dict of named tensors.")
    return dict(content)


def _without_prefix(weights: Mapping[str, Tensor], names: Collection[str]) -> Mapping[str, Tensor]:
    """Take the part of a state_dict that a wrapper holds under a prefix, if its names are then those of the network."""
    part = weights
    while part.keys() != names:
        prefix = next((prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in part)), None)
        if prefix is None:
            return weights
        part = {key.removeprefix(prefix): value for key, value in part.items() if key.startswith(prefix)}
    return part


def load(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    path: Path,
    num_classes: int,
    key: str,
    *,
    keep_classifier: bool = False,
) -> int | None:
    """Load weights strictly, also from under the prefix of a wrapper.

    If the file has another number of classes, it is returned with `keep_classifier`, and the network keeps its own
    classifier; otherwise it is an error. `path` and the setting `key` are for messages.
    """
    ours, classes = module.state_dict(), None
    weights = dict(_without_prefix(weights, ours.keys()))
    if ours.keys() == weights.keys():
        others = {name for name in ours if ours[name].shape != weights[name].shape}
        counts = {weights[name].shape[:1] for name in others if ours[name].shape[:1] == (num_classes,)}
        if len(counts) == 1 and all(ours[name].shape[1:] == weights[name].shape[1:] for name in others):
            classes = int(*counts.pop())
            if not keep_classifier:
                raise CheckpointError(
                    f"{path} has {classes} classes, the data {num_classes}: take weights that were trained on "
                    "these classes."
                )
            weights |= {name: ours[name] for name in others}
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        missing, unknown = _first(ours.keys() - weights.keys()), _first(weights.keys() - ours.keys())
        shapes = _first(name for name in ours.keys() & weights.keys() if ours[name].shape != weights[name].shape)
        raise CheckpointError(
            f"The weights in {path} do not fit: set {key} to the network that they belong to. Missing: {missing}. "
            f"Not of this network: {unknown}. Of another shape: {shapes}."
        ) from error
    return classes


def _first(names: Iterable[str]) -> str:
    first, *others = sorted(names) or ["none"]
    return f"{first} and {len(others)} more" if others else first
