"""The network of each peer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from dkel_lightning.settings.declarations import Settings, choice, number, switch, text

LIBRARIES = ("torchvision", "timm", "hf")


def is_external(name: str | None) -> bool:
    """Tell whether `name` has the form torchvision:NAME, timm:NAME or hf:FOLDER."""
    return name is not None and ":" in name and name.partition(":")[0] in LIBRARIES


def reads_a_folder(name: object) -> bool:
    """Tell whether `name` is hf:FOLDER, which is read to build the network, rather than hf:TYPE or another name."""
    return isinstance(name, str) and name.startswith("hf:") and re.fullmatch(r"hf:[\w-]+", name) is None


@dataclass(frozen=True)
class BackboneSettings(Settings, node="backbone"):
    """The network of each peer."""

    name: Annotated[str, text("Network of each peer.")]
    views_per_pass: Annotated[
        str, choice("Views through the trunk in one batch, or one after the other.", "all", "one")
    ] = "all"
    split_at: Annotated[
        str | None, text("First module of the branches of a library's network; null: the usual one.")
    ] = None
    pretrained: Annotated[bool, switch("Download and keep the pretrained weights of a library's network.")] = False
    weights: Annotated[
        str | None, text("File of each peer's initial weights, a checkpoint or a state_dict; null: drawn.")
    ] = None
    lr_scale: Annotated[
        float | None,
        number(
            "Rate of all but the classifiers, as a share of optimizer.lr; null: 1, from trained weights 0.3.", 0, 1000
        ),
    ] = None
