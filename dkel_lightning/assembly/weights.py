"""Initial weights of teacher and student, from checkpoints of this library or files of a state_dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import CheckpointError
from dkel_lightning.modules.deployment import deploy, deployed_member
from dkel_lightning.modules.interface import Coordinator
from dkel_lightning.modules.teacher import TeacherModule
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.settings.backbone import reads_a_folder

WRAPPERS = ("state_dict", "model", "model_state_dict")

Rebuild = Callable[..., Coordinator]
"""`load_from_checkpoint` of the module's class."""


def load_teacher(teacher: TeacherModule, rebuild: Rebuild) -> Coordinator | None:
    """Load the weights that a teacher's settings name; return the module of a checkpoint of this library.

    A teacher of one peer takes the deployed network of such a checkpoint, or a state_dict of its own model: of
    torchvision or timm for those, else of a deployed network. A teacher of several peers takes all peers of the
    network that the checkpoint deploys, or the state_dict of its whole network.
    """
    if teacher.settings.weights is None:
        return None
    network, path = teacher.network, Path(teacher.settings.weights)
    single = network.num_peers == 1
    content, module = read(path, "teacher"), None
    if file_format.KEY in content:
        module = rebuild(path, backbone=_typed_again(content, path, teacher.settings.backbone))
        member = deployed_member(module)
        part = module.teacher if member.startswith("teacher") else module.student
        assert part is not None
        weights = (deploy(module, module.deployment) if single else part.network).state_dict()
    else:
        weights = unwrap(content, path)
    load(network.peer(0) if single else network, weights, path, network.num_classes, "teacher.backbone")
    teacher.take_weights()
    return module


def load_student(network: PeerNetwork, path: Path, rebuild: Rebuild, backbone: object) -> None:
    """Start every peer of the student with the network that a checkpoint deploys, or with a state_dict."""
    content = read(path, "backbone")
    if file_format.KEY in content:
        module = rebuild(path, backbone=_typed_again(content, path, backbone))
        weights = deploy(module, module.deployment).state_dict()
    else:
        weights = unwrap(content, path)
    for index in range(network.num_peers):
        load(network.peer(index), weights, path, network.num_classes, "backbone")


def _typed_again(content: Mapping[str, Any], path: Path, backbone: object) -> str | None:
    """Return the backbone of a checkpoint if the user names it too, which permits reading its folder."""
    saved = file_format.recipe(content, path).get("backbone")
    return saved if isinstance(saved, str) and saved == backbone else None


def refuse_folder(path: str | Path, key: str, backbone: object) -> None:
    """Refuse a backbone `hf:FOLDER` that a file names: only a folder that is typed again (as `key`) is read."""
    if reads_a_folder(backbone):
        raise CheckpointError(
            f"{path} was trained with {backbone}, and no file chooses a folder that is read: pass {key}= to load it."
        )


def read(path: Path, group: str) -> Mapping[str, Any]:
    """Read a file of weights, named by `GROUP.weights`."""
    if not path.is_file():
        raise CheckpointError(f"No weights at {path}: give {group}.weights the path of a .pt, .pth or .ckpt file.")
    content = file_format.read(path, cure="save the state_dict alone: torch.save(model.state_dict(), path)")
    return content if isinstance(content, Mapping) else {}


def unwrap(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Take the state_dict out of the mapping of a training script, and strip DDP's prefix."""
    content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds no state_dict of named tensors.")
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value for key, value in content.items()}


def load(module: nn.Module, weights: Mapping[str, Tensor], path: Path, num_classes: int, key: str) -> None:
    """Load weights strictly; the error says which entries do not fit, or how many classes the file knows."""
    ours = module.state_dict()
    if ours.keys() == weights.keys():
        others = {name for name in ours if ours[name].shape != weights[name].shape}
        classes = {weights[name].shape[0] for name in others if ours[name].shape[:1] == (num_classes,)}
        if len(classes) == 1 and all(ours[name].shape[1:] == weights[name].shape[1:] for name in others):
            raise CheckpointError(
                f"{path} knows {classes.pop()} classes, the data has {num_classes}: take weights that were trained on "
                "these classes."
            )
    try:
        module.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights in {path} do not fit: set {key} to the network that they belong to. {error}"
        ) from error
