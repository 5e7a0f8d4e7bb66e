"""Networks of peers: the backbones of DKEL by name, and any torch classifier cut into a trunk and branches."""

from dkel_lightning.networks.branching import SplitModel, branch_model, redraw_
from dkel_lightning.networks.outline import logits_of
from dkel_lightning.networks.peers import (
    Branch,
    BranchedNetwork,
    IndependentPeers,
    PeerNetwork,
    PeerOutputs,
    SharedTrunk,
    SinglePeer,
)
from dkel_lightning.networks.registry import Backbone, create, register_backbone

__all__ = [
    "Backbone",
    "Branch",
    "BranchedNetwork",
    "IndependentPeers",
    "PeerNetwork",
    "PeerOutputs",
    "SharedTrunk",
    "SinglePeer",
    "SplitModel",
    "branch_model",
    "create",
    "logits_of",
    "redraw_",
    "register_backbone",
]
