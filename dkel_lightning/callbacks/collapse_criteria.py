"""What counts as a collapse: by its outcome, against what guessing would reach by luck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Collapse:
    """What was seen, as collapse.json holds it.

    Attributes:
        kind: `non_finite`, `chance` or `one_class`.
        epoch: from 0.
        step: optimizer steps done before.
        what: in words.
        members: the peers concerned.
        accuracy: of each, in the validation; empty for `non_finite`, as the next three.
        top_share: of the predictions of each, the share of the class it predicts most.
        chance: accuracy of the best constant prediction, the share of the commonest class.
        bound: the accuracy up to which a peer counts as at chance.
        homogenised: whether teacher and student were indistinguishable while poor; beside it, and no part of it.
        action: `warned`, `stopped` or `restored`.
        record: the file from which the step is replayed.
        recovered: the epoch from which its members were well again, so that it is withdrawn; None where they are not.
    """

    kind: str
    epoch: int
    step: int
    what: str
    members: tuple[str, ...] = ()
    accuracy: tuple[float, ...] = ()
    top_share: tuple[float, ...] = ()
    chance: float | None = None
    bound: float | None = None
    homogenised: bool | None = None
    action: str = ""
    record: str | None = None
    recovered: int | None = None


def can_tell(chance: float, bound: float) -> bool:
    """Tell whether there are images enough to take a peer up to `bound` for one that knows nothing.

    On twenty images of ten classes 35 % are within the luck of guessing, and are what a healthy peer has early.
    """
    return bound < clearly_better(chance)


def clearly_better(bound: float) -> float:
    """Return the accuracy from which a peer has left chance for good.

    Early validations go up and down: of healthy runs on a hundred images, one in six was above the bound and below it
    again before the third epoch.
    """
    return min(3 * bound, (1 + bound) / 2)


def fault_of(accuracy: float, top_share: float, chance: float, bound: float, limit: float) -> str | None:
    """Name what is wrong with a peer: `chance`, `one_class`, or None; a set of one class tells nothing."""
    if bound >= 1:
        return None
    if accuracy <= bound:
        return "chance"
    return "one_class" if top_share >= limit > chance else None


def describe(kind: str, peers: Sequence[str], accuracy: Sequence[float], shares: Sequence[float], chance: float) -> str:
    """Say what is wrong with some peers, by the `kind` that `fault_of` has found."""
    names = f"{', '.join(peers)} {'is' if len(peers) == 1 else 'are'}"
    reached = ", ".join(f"{100 * value:.1f} %" for value in (accuracy if kind == "chance" else shares))
    if kind == "chance":
        return f"{names} at chance in validation ({reached}; the best constant prediction {100 * chance:.1f} %)"
    return f"{names} predicting one class for nearly all validation images ({reached})"
