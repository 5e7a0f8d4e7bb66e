"""Tell that a loss is no number without making the device wait, and what in its step was at fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dkel_lightning.modules.batch import broken_images, describe_broken_images, unpack
from dkel_lightning.modules.interface import Coordinator


class Verdict:
    """Whether a loss is NaN or infinite, on any process; all of them must ask.

    On a GPU the answer travels to the host beside the computation. The host runs ahead of a GPU that replays a graph:
    read a step later it would wait for the replay to end, read two steps later the answer is there.
    """

    def __init__(self, loss: Tensor) -> None:
        bad = (~torch.isfinite(loss.detach()).all()).to(torch.uint8)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        self._bad, self._arrived = bad, None
        if bad.device.type == "cuda":
            self._bad = torch.empty_like(bad, device="cpu", pin_memory=True)
            self._bad.copy_(bad, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> bool:
        """Wait for the answer where it is not there yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._bad)


@dataclass
class Step:
    """A training step under way, as far as it tells what was at fault.

    Attributes:
        batch: as the loader gave it.
        epoch: from 0.
        number: optimizer steps done before.
        batch_idx: in the epoch.
        rank: of the process.
        terms: of its loss, once they are computed.
    """

    batch: Any
    epoch: int
    number: int
    batch_idx: int
    rank: int
    terms: Mapping[str, Tensor] = field(default_factory=dict)

    def note(self, terms: Mapping[str, Tensor]) -> None:
        """Keep the terms: stacked and so copied, as those of a captured step are overwritten by the next."""
        self.terms = dict(zip(terms, torch.stack([value.detach() for value in terms.values()]).unbind(), strict=True))

    def broken_images(self, module: Coordinator) -> str | None:
        """Say which images are NaN or infinite, or which the augmentation has made so; None if none."""
        views, where = unpack(self.batch).views, f"batch {self.batch_idx}"
        said = describe_broken_images(broken_images(views), len(views), where)
        if said is None:
            made = module.make_views(views, self.epoch, self.batch_idx, self.rank)
            said = describe_broken_images(broken_images(made), len(made), f"{where}, once augmented,")
        return said


def non_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Name the tensors that hold a NaN or an infinity, reading one verdict for all where there are none."""
    pairs = [(name, tensor.detach()) for name, tensor in named]
    if not pairs or all_finite([tensor for _, tensor in pairs]):
        return []
    return [name for name, tensor in pairs if not bool(tensor.isfinite().all())]


def all_finite(tensors: list[Tensor]) -> bool:
    """Tell whether the norms of all tensors are finite; a norm may overflow where no value does."""
    return bool(torch.stack([norm.float() for norm in torch._foreach_norm(tensors)]).isfinite().all())
