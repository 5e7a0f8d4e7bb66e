"""Networks of peers: the backbones of DKEL by name, and any torch classifier cut into a trunk and branches."""

from dkel_lightning.networks.branching import (
    SplitModel,
    WholeModel,
    branch_model,
    is_trained,
    redraw_,
    release_,
    whole_model,
)
from dkel_lightning.networks.conversion import Constants, Conversion, convert_before
from dkel_lightning.networks.external import default_cut, make, normalisation, pretrained_classes
from dkel_lightning.networks.outline import IMAGE_SHAPE, LogitsOf, classes_of, logits_of
from dkel_lightning.networks.peers import (
    VIEWS_PER_PASS,
    Branch,
    BranchedNetwork,
    IndependentPeers,
    PeerFeatures,
    PeerNetwork,
    PeerStages,
    SharedTrunk,
    SinglePeer,
)
from dkel_lightning.networks.registry import BACKBONES, Backbone, create, register_backbone, start_linear

__all__ = [
    "BACKBONES",
    "IMAGE_SHAPE",
    "VIEWS_PER_PASS",
    "Backbone",
    "Branch",
    "BranchedNetwork",
    "Constants",
    "Conversion",
    "IndependentPeers",
    "LogitsOf",
    "PeerFeatures",
    "PeerNetwork",
    "PeerStages",
    "SharedTrunk",
    "SinglePeer",
    "SplitModel",
    "WholeModel",
    "branch_model",
    "classes_of",
    "convert_before",
    "create",
    "default_cut",
    "is_trained",
    "logits_of",
    "make",
    "normalisation",
    "pretrained_classes",
    "redraw_",
    "register_backbone",
    "release_",
    "start_linear",
    "whole_model",
]
