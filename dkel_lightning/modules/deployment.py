"""The scored members, the choice of the deployed one, and its plain network."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks.watching import release_
from dkel_lightning.settings.deploy import Deploy

if TYPE_CHECKING:
    from dkel_lightning.distillation import DistillationModule


def members(module: DistillationModule) -> tuple[str, ...]:
    """Name the scored members, in the order of the logits of `DistillationModule.evaluate`."""
    names = [f"student_{peer}" for peer in range(module.student.num_peers)]
    names += ["student_ensemble"] if module.student.num_peers > 1 else []
    names += ["ensemble"] if module.method.has_ensemble else []
    teachers = module.teacher.num_peers if module.teacher is not None else 0
    names += [f"teacher_{peer}" for peer in range(teachers)]
    return (*names, *(["teacher_ensemble"] if teachers > 1 else []))


def check_deployment(module: DistillationModule, choice: Deploy) -> None:
    """Refuse a network or peer that the module does not have."""
    network, peer = choice.network, choice.peer
    if (network == "teacher" and module.teacher is None) or (network == "ensemble" and not module.method.has_ensemble):
        raise ConfigError(f"deploy.network={network}, but this method has no {network}: choose another network.")
    if network == "ensemble" or not isinstance(peer, int):
        return
    peers = len(module.scores.peers[_networks(module, choice)[0]])
    if not -peers <= peer < peers:
        raise ConfigError(f"deploy.peer={peer}, but peers are numbered 0 to {peers - 1}.")


def candidates(module: DistillationModule, choice: Deploy) -> list[str]:
    """Name the members among which validation chooses; those that the method deploys by default come first.

    A teacher of another form than the student is a candidate only if it is asked for.
    """
    if choice.network == "ensemble":
        return ["ensemble"]
    default, names = module.method.needs.deploy, []
    for network in _networks(module, choice):
        peer = choice.peer if choice.peer != "auto" else default.peer if network == default.network else "best"
        peers = module.scores.peers[network]
        names += peers if isinstance(peer, str) else [peers[peer]]
    return names


def default_member(module: DistillationModule) -> str:
    """Name the member that the method deploys by default, whatever the other network has reached."""
    return deployed_member(module, choice=Deploy(_networks(module, Deploy())[0]))


def _networks(module: DistillationModule, choice: Deploy) -> list[str]:
    """Name the candidate networks, the method's default first; the index of a peer alone belongs to that one."""
    if choice.network != "auto":
        return [choice.network]
    needs = module.method.needs
    if module.teacher is None or needs.foreign_teacher:
        return ["student"]
    both = sorted(["student", "teacher"], key=lambda network: network != needs.deploy.network)
    return both[:1] if isinstance(choice.peer, int) else both


def deployed_member(module: DistillationModule, accuracy: Tensor | None = None, choice: Deploy | None = None) -> str:
    """Name the member that is deployed, such as `teacher_1`: of the candidates the one of the highest accuracy.

    Args:
        module: its choice is the default.
        accuracy: by member [N]; of the last validation by default. Ties, and NaN before any validation, are won by the
            first candidate.
        choice: the network and peer to deploy.
    """
    accuracy = module.scores.validation_accuracy if accuracy is None else accuracy
    return module.scores.best(candidates(module, choice or module.deployment), accuracy)


def choose(module: DistillationModule, network: str | None, peer: int | str | None) -> Deploy:
    """Override the module's choice."""
    default = module.deployment
    choice = Deploy(network or default.network, default.peer if peer is None else peer)
    check_deployment(module, choice)
    return choice


def deploy(module: DistillationModule, choice: Deploy) -> nn.Module:
    """Copy the chosen network out of the training: float32, contiguous, on the CPU, in eval mode."""
    network, _, peer = deployed_member(module, choice=choice).partition("_")
    if network == "ensemble":
        whole: nn.Module = EnsembleNetwork(module)
    else:
        part = module.teacher if network == "teacher" else module.student
        assert part is not None
        whole = part.peer(int(peer))
    deployed = copy.deepcopy(whole).cpu().to(memory_format=torch.contiguous_format)
    if network != "ensemble":
        release_(deployed)
    if module.dtype != torch.float32:  # a user's network may hold other types on purpose
        deployed = deployed.float()
    return deployed.requires_grad_(True).eval()


class EnsembleNetwork(nn.Module):
    """All peers and the ensemble classifier as one plain network: images [B, C, H, W] -> logits [B, classes]."""

    def __init__(self, module: DistillationModule) -> None:
        super().__init__()
        self.network = module.student.network
        self.method = module.method if module.method.needs.ensemble == "own" else None
        self.classifier = module.ensemble.classifier if self.method is None and module.ensemble is not None else None

    def forward(self, images: Tensor) -> Tensor:
        if self.method is not None:
            combined: Tensor = self.method.combine(self.network(images))
            return combined
        assert self.classifier is not None
        logits: Tensor = self.classifier(torch.cat(tuple(self.network(images).features), dim=-1))
        return logits
