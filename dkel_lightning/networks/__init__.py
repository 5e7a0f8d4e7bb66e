"""Networks of peers: the backbones of DKEL by name, and any torch classifier cut into a trunk and branches."""

from dkel_lightning.networks.adapters import adapter, at_common_size, check_pairs, maps_of
from dkel_lightning.networks.branching import (
    SplitModel,
    WholeModel,
    branch_model,
    copied,
    is_trained,
    redraw_,
    whole_model,
)
from dkel_lightning.networks.cuts import default_cut, usual_cut, working_cuts
from dkel_lightning.networks.external import make, normalisation, pretrained_classes, size_arguments
from dkel_lightning.networks.outline import IMAGE_SHAPE, LogitsOf, classes_of, logits_of
from dkel_lightning.networks.peers import (
    Branch,
    BranchedNetwork,
    IndependentPeers,
    PeerFeatures,
    PeerNetwork,
    PeerOutputs,
    SharedTrunk,
    SinglePeer,
    momentum,
)
from dkel_lightning.networks.registry import BACKBONES, Backbone, create, register_backbone
from dkel_lightning.networks.watching import Named, StandIn, find, layers_of, release_, stages_of

__all__ = [
    "BACKBONES",
    "IMAGE_SHAPE",
    "Backbone",
    "Branch",
    "BranchedNetwork",
    "IndependentPeers",
    "LogitsOf",
    "Named",
    "PeerFeatures",
    "PeerNetwork",
    "PeerOutputs",
    "SharedTrunk",
    "SinglePeer",
    "SplitModel",
    "StandIn",
    "WholeModel",
    "adapter",
    "at_common_size",
    "branch_model",
    "check_pairs",
    "classes_of",
    "copied",
    "create",
    "default_cut",
    "find",
    "is_trained",
    "layers_of",
    "logits_of",
    "make",
    "maps_of",
    "momentum",
    "normalisation",
    "pretrained_classes",
    "redraw_",
    "register_backbone",
    "release_",
    "size_arguments",
    "stages_of",
    "usual_cut",
    "whole_model",
    "working_cuts",
]
