"""Networks of peers: the backbones of DKEL by name, and any torch classifier cut into a trunk and branches."""

from dkel_lightning.networks.branching import branch_model, classes_of, redraw_
from dkel_lightning.networks.peers import (
    VIEWS_PER_PASS,
    Branch,
    BranchedNetwork,
    IndependentPeers,
    PeerFeatures,
    PeerNetwork,
    PeerStages,
    SinglePeer,
)
from dkel_lightning.networks.registry import BACKBONES, Backbone, create, register_backbone, start_linear

__all__ = [
    "BACKBONES",
    "VIEWS_PER_PASS",
    "Backbone",
    "Branch",
    "BranchedNetwork",
    "IndependentPeers",
    "PeerFeatures",
    "PeerNetwork",
    "PeerStages",
    "SinglePeer",
    "branch_model",
    "classes_of",
    "create",
    "redraw_",
    "register_backbone",
    "start_linear",
]
