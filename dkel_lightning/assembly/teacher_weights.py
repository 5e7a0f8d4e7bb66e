"""First weights of teacher and student, from checkpoints of this library or files of a state_dict."""

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

SHOWN = 8
WRAPPERS = ("state_dict", "model", "model_state_dict")


def load_teacher(teacher: TeacherModule, rebuild: Callable[..., Coordinator]) -> Coordinator | None:
    """Load into a teacher's network the weights that its settings name, if they name any.

    A teacher of one peer takes the deployed network of a checkpoint of this library, or a state_dict of its own
    model: of torchvision or timm for those, else of a deployed network. A teacher of several peers takes all peers
    of the network that such a checkpoint deploys, or the state_dict of its whole network.

    Args:
        teacher: its `initialised` is then set.
        rebuild: makes the module of a checkpoint of this library.

    Returns:
        The module of a checkpoint of this library, which may hold what a method goes on with; else None.
    """
    if teacher.settings.weights is None:
        return None
    network, path = teacher.network, Path(teacher.settings.weights)
    content, module = read(path), None
    if file_format.KEY in content:
        module = rebuild(path, backbone=_typed_again(content, path, teacher.settings.backbone))
        _load_checkpoint(network, module, path)
    else:
        single = network.num_peers == 1
        _load(network.peer(0) if single else network, state_dict(content, path), path, network.num_classes)
    teacher.take_weights()
    return module


def _typed_again(content: Mapping[str, Any], path: Path, backbone: object) -> str | None:
    """Return the backbone of a checkpoint if the user names the same, which allows a folder to be read."""
    saved = file_format.recipe(content, path).get("backbone")
    return saved if isinstance(saved, str) and saved == backbone else None


def load_student(network: PeerNetwork, path: Path, rebuild: Callable[..., Coordinator], backbone: object) -> None:
    """Start every peer of the student with the weights in a file: those that a checkpoint deploys, or a state_dict."""
    content = read(path, "backbone")
    if file_format.KEY in content:
        module = rebuild(path, backbone=_typed_again(content, path, backbone))
        weights = deploy(module, module.deployment).state_dict()
    else:
        weights = state_dict(content, path)
    for index in range(network.num_peers):
        _load(network.peer(index), weights, path, network.num_classes, "backbone")


def _load_checkpoint(network: PeerNetwork, module: Coordinator, path: Path) -> None:
    choice, _, _ = deployed_member(module).partition("_")
    if choice == "ensemble":
        raise CheckpointError(f"{path} deploys an ensemble, and a teacher is a network of peers: choose another run.")
    if network.num_peers == 1:
        _load(network.peer(0), deploy(module, module.deployment).state_dict(), path, network.num_classes)
        return
    part = module.teacher if choice == "teacher" else module.student
    assert part is not None
    _load(network, part.network.state_dict(), path, network.num_classes)


def read(path: Path, group: str = "teacher") -> Mapping[str, Any]:
    """Read a file of tensors and primitives, which `teacher.weights` or `backbone.weights` names."""
    if not path.is_file():
        raise CheckpointError(f"No weights at {path}: give {group}.weights the path of a .pt, .pth or .ckpt file.")
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} is in another format: save its state_dict with torch.save and give that file.")
    content = file_format.read(path, cure="save the state_dict alone: torch.save(model.state_dict(), path)")
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state_dict of named tensors.")
    return content


def state_dict(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Unwrap the named tensors from the mapping of a training script, and strip DDP's prefix."""
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        raise CheckpointError(f"{path} is no state_dict: {_listed(others) or 'it'} holds no tensor.")
    prefix = "module." if all(str(key).startswith("module.") for key in content) else ""
    return {str(key).removeprefix(prefix): value for key, value in content.items()}


def _load(
    module: nn.Module, weights: Mapping[str, Tensor], path: Path, num_classes: int, group: str = "teacher"
) -> None:
    key, whose = ("backbone", "network") if group == "backbone" else (f"{group}.backbone", "teacher")
    ours = module.state_dict()
    faults = []
    if missing := [key for key in ours if key not in weights]:
        faults.append(f"missing: {_listed(missing)}")
    if unexpected := [key for key in weights if key not in ours]:
        faults.append(f"unexpected: {_listed(unexpected)}")
    shapes = [key for key in ours if key in weights and ours[key].shape != weights[key].shape]
    counts = {weights[key].shape[0] for key in shapes if _differs_in_classes(ours[key], weights[key], num_classes)}
    if not faults and len(counts) == 1 and all(_differs_in_classes(ours[k], weights[k], num_classes) for k in shapes):
        raise CheckpointError(
            f"{path} knows {counts.pop()} classes, the data has {num_classes}: "
            f"take a {whose} that was trained on these classes."
        )
    if shapes:
        pairs = [f"{key} {list(weights[key].shape)} instead of {list(ours[key].shape)}" for key in shapes]
        faults.append(f"of another shape: {_listed(pairs)}")
    if faults:
        raise CheckpointError(
            f"The weights in {path} do not fit the {whose} ({'; '.join(faults)}): "
            f"set {key} to the network that they belong to."
        )
    module.load_state_dict(dict(weights), strict=True)


def _differs_in_classes(ours: Tensor, theirs: Tensor, num_classes: int) -> bool:
    same_rest = ours.dim() > 0 and ours.dim() == theirs.dim() and ours.shape[1:] == theirs.shape[1:]
    return same_rest and ours.shape[0] == num_classes


def _listed(items: list[str]) -> str:
    rest = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + rest
