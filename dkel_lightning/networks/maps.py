"""Feature maps of two networks side by side: which modules give them, and whether they come in pairs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks.peers import PeerNetwork
from dkel_lightning.networks.watching import Named, layers_of


def maps_of(network: PeerNetwork, given: Sequence[str] | None, setting: str, why: str) -> tuple[tuple[str, ...], Named]:
    """Watch modules of a network, by default every stage; give their names and, of a dry pass, maps [B, C, H, W].

    Args:
        network: is watched from now on.
        given: names; None for every stage.
        setting: under which they are given, for messages.
        why: what is done with maps, such as "ekd guides blocks".

    Raises:
        ConfigError: there is no such module, none at all, or one that gives no maps.
    """
    layers = layers_of(network.peer(0), given, setting)
    if not layers:
        raise ConfigError(f"{setting} is empty, and {why}: name modules, or null for every stage.")
    seen = network.watch(layers, setting)
    flat = [name for name, outputs in seen.items() if any(output.dim() != 4 for output in outputs)]
    if flat:
        raise ConfigError(f"{setting} names {', '.join(flat)}, which gives no maps [B, C, H, W]: name convolutions.")
    return layers, seen


def check_pairs(ours: Collection[str], theirs: Collection[str], why: str) -> None:
    """Refuse modules that are not as many of the student as of the teacher.

    Raises:
        ConfigError: with both lists; `why` is what is done in pairs, such as "iakd swaps blocks".
    """
    if len(ours) != len(theirs):
        raise ConfigError(
            f"{why} in pairs, and the student has {len(ours)} ({', '.join(ours)}), the teacher {len(theirs)} "
            f"({', '.join(theirs)}): give method.layers and method.teacher_layers as many."
        )
