"""Which network leaves the training."""

from __future__ import annotations

from dataclasses import dataclass

from dkel_lightning.errors import ConfigError


@dataclass(frozen=True)
class Deploy:
    """Which network leaves the training: a peer of `teacher` or `student`, or the `ensemble`.

    `peer` is an index (negative counts from the last), or `best`: the one with the highest accuracy in the last
    validation.
    """

    network: str = "teacher"
    peer: int | str = "best"

    def __post_init__(self) -> None:
        if self.network not in ("teacher", "student", "ensemble"):
            raise ConfigError(f"deploy.network is {self.network!r}: choose one of teacher, student, ensemble.")
        if self.peer != "best" and not (isinstance(self.peer, int) and not isinstance(self.peer, bool)):
            raise ConfigError(f"deploy.peer is {self.peer!r}: give the index of a peer, or best.")
