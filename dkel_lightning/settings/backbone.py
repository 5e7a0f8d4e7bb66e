"""The network of each peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dkel_lightning.settings.declarations import Settings
from dkel_lightning.settings.keys import (
    choice,
    registered,
)


@dataclass(frozen=True)
class BackboneSettings(Settings, node="backbone"):
    """The network of each peer."""

    name: Annotated[str, registered("Network of each peer.")]
    views_per_pass: Annotated[
        str, choice("Views through the trunk in one batch, or one after the other.", "all", "one")
    ] = "all"
