"""Watch whether teacher and student, and peers among themselves, stay apart."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from dkel_lightning.metrics import PairDiversity, mutual_distance, relative_distance
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.runtime.processes import average_over_processes
from dkel_lightning.schedules import one_of

if TYPE_CHECKING:
    from dkel_lightning.distillation import DistillationModule

DETAILS = ("none", "means", "pairs")
KINDS = ("student-teacher", "student-student", "teacher-teacher")
ALIKE, POOR = 0.95, 0.5

Pair = tuple[int, int]


class DiversityMonitor(Callback):
    """Log how far apart the networks are, from the outputs that validation computes anyway.

    Measured over the validation set, for the pairs student peer i and teacher peer i (a single teacher is paired with
    every student peer), of student peers, and of teacher peers:

    * `diversity/agreement/...`: share of images on which both predict the same class;
    * `diversity/kl/...`: `(KL(a || b) + KL(b || a)) / 2` of the predictions at temperature 1, nats;
    * `diversity/cka/...`: linear CKA of the features before the classifier, exact; NaN where they do not vary;
    * `diversity/distance/...`: of parameters, where the networks have the same form. A student peer and its teacher:
      `|t - s| / |s|` over the path of the peer, trunk and branch (`diversity/distance/whole`: over the whole
      network). Two peers: `|a - b| / sqrt((|a|^2 + |b|^2) / 2)` over what they do not share.

    and of each member `diversity/entropy/...` (nats) and `diversity/classes/...` (how many classes it predicts).
    `diversity/homogenised` is 1 where teacher and student agree on 95 % of the images while the mean accuracy of each
    is below 50 %.

    From training come `share/loss/<term>`, the term's mean over the epoch as a share of the total, and
    `share/gradient/<term>`, the norm of the term's gradient with respect to the student peers' logits as a share of
    the sum of these norms, on the first batch of the epoch.

    Args:
        detail: `means` over the pairs of a kind and over the peers of a network; `pairs`: each of them too, as
            `diversity/<measure>/student_0-teacher_0` and `diversity/entropy/student_0`; `none`: nothing.
    """

    def __init__(self, detail: str = "means") -> None:
        one_of("callbacks.diversity", detail, DETAILS)
        self.detail = detail
        self._peers: tuple[int, ...] = ()
        self._pairs: dict[Pair, str] = {}
        self._between: PairDiversity | None = None
        self._gradients: dict[str, Tensor] = {}

    # ------------------------------------------------------------------ validation

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        module: DistillationModule = pl_module
        if self.detail == "none" or trainer.sanity_checking:
            return
        if self._between is None:
            self._peers, self._pairs = _peers_and_pairs(module)
            parts = (module.student, module.teacher)
            widths = [width for part in parts if part is not None for width in part.network.feature_dims]
            self._between = PairDiversity(widths, [*self._pairs])
        self._between.to(module.device)
        self._between.reset()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if self._between is not None and not trainer.sanity_checking and isinstance(outputs, Mapping):
            evaluated = outputs["evaluated"]
            self._between.update(evaluated.logits[list(self._peers)], evaluated.features)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self._between is None or trainer.sanity_checking:
            return
        module: DistillationModule = pl_module
        logs: dict[str, Tensor] = {}
        if self._pairs:
            measured = {name: value.reshape(-1) for name, value in self._between.compute().items()}
            for measure, values in measured.items():
                logs |= self._of_pairs(module, measure, dict(zip(self._pairs, values, strict=True)))
            logs |= self._of_pairs(module, "distance", parameter_distances(module, self._pairs))
            whole = module.teacher_distance()
            if whole is not None:
                logs["diversity/distance/whole"] = whole
        predictions = module.scores.predictions.compute()
        for measure in ("entropy", "classes"):
            logs |= self._of_members(module, measure, predictions[measure].reshape(-1))
        logs |= self._homogenised(module, logs.get("diversity/agreement/student-teacher"))
        pl_module.log_dict({name: value.detach().float() for name, value in logs.items()}, sync_dist=True)

    def _of_pairs(self, module: DistillationModule, measure: str, values: Mapping[Pair, Tensor]) -> dict[str, Tensor]:
        logs = {}
        for kind in KINDS:
            of_kind = [value for pair, value in values.items() if self._pairs[pair] == kind]
            if of_kind:
                logs[f"diversity/{measure}/{kind}"] = torch.stack(of_kind).nanmean()
        if self.detail == "pairs":
            names = _peer_names(module)
            logs |= {f"diversity/{measure}/{names[a]}-{names[b]}": value for (a, b), value in values.items()}
        return logs

    def _of_members(self, module: DistillationModule, measure: str, values: Tensor) -> dict[str, Tensor]:
        logs = {
            f"diversity/{measure}/{network}": mean for network, mean in module.scores.means_of_peers(values).items()
        }
        for member, value in zip(module.scores.members, values, strict=True):
            if self.detail == "pairs" or member == "ensemble":
                logs[f"diversity/{measure}/{member}"] = value
        return logs

    def _homogenised(self, module: DistillationModule, agreement: Tensor | None) -> dict[str, Tensor]:
        if agreement is None:
            return {}
        accuracies = module.scores.means_of_peers(module.scores.network_scores.per_network()["accuracy"]).values()
        return {"diversity/homogenised": (agreement >= ALIKE) & (torch.stack([*accuracies]) < POOR).all()}

    # ------------------------------------------------------------------ training

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.detail != "none" and batch_idx == 0:
            pl_module.observers.append(self._observe)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._stop_observing(pl_module):
            # Not left to the log, since a checkpoint within the epoch keeps the shares of one process.
            average_over_processes([*self._gradients.values()])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        module: DistillationModule = pl_module
        if self.detail == "none":
            return
        means = module.scores.term_means.compute()
        total = torch.stack([*means.values()]).sum()
        logs = {f"share/loss/{term}": value / total for term, value in means.items()}
        logs |= {f"share/gradient/{term}": value.to(total.device) for term, value in self._gradients.items()}
        pl_module.log_dict({name: value.detach().float() for name, value in logs.items()}, sync_dist=True)

    def _observe(self, step: MethodInputs, terms: Mapping[str, Tensor], loss: Tensor) -> None:
        self._gradients = gradient_shares(terms, step.student.logits)

    def _stop_observing(self, module: DistillationModule) -> bool:
        present = self._observe in module.observers
        if present:
            module.observers.remove(self._observe)
        return present

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self._stop_observing(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"gradients": {term: float(share) for term, share in self._gradients.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._gradients = {term: torch.tensor(share) for term, share in state_dict["gradients"].items()}


def gradient_shares(terms: Mapping[str, Tensor], logits: Tensor) -> dict[str, Tensor]:
    """Compute `|d term / d logits|` of each term, divided by the sum of these norms (or 0); the graph is kept."""
    gradients = []
    for value in terms.values():
        gradient = None
        if value.requires_grad and logits.requires_grad:
            (gradient,) = torch.autograd.grad(value, logits, retain_graph=True, allow_unused=True)
        gradients.append(torch.zeros_like(logits) if gradient is None else gradient.detach())
    flat = torch.stack(gradients).float().flatten(1)
    # Scaled, since the square of a large gradient overflows where the gradient does not.
    least = torch.finfo(flat.dtype).tiny
    stacked = (flat / flat.abs().max().clamp(min=least)).norm(dim=1)
    return dict(zip(terms, (stacked / stacked.sum().clamp(min=least)).unbind(), strict=True))


def parameter_distances(module: DistillationModule, pairs: Mapping[Pair, str]) -> dict[Pair, Tensor]:
    """Compute the distance of each pair of peers in their parameters, leaving out pairs that differ in form."""
    paths, branches = _paths(module, whole=True), _paths(module, whole=False)
    distances = {}
    for (a, b), kind in pairs.items():
        if kind == "student-teacher":
            distance = relative_distance(paths[b], paths[a])
        else:
            distance = mutual_distance(branches[a], branches[b])
        if distance is not None:
            distances[a, b] = distance
    return distances


def _paths(module: DistillationModule, *, whole: bool) -> list[Sequence[Tensor]]:
    paths: list[Sequence[Tensor]] = []
    for part in (module.student, module.teacher):
        if part is not None:
            for i in range(part.num_peers):
                network = part.network.peer(i) if whole else part.network.own_part(i)
                paths.append([*network.parameters()])
    return paths


def _peers_and_pairs(module: DistillationModule) -> tuple[tuple[int, ...], dict[Pair, str]]:
    """Return the peers' positions among the members, student first, and the pairs of peers with their kind."""
    students = module.student.num_peers
    teachers = module.teacher.num_peers if module.teacher is not None else 0
    pairs: dict[Pair, str] = {}
    if teachers:
        pairs |= {(i, students + i % teachers): KINDS[0] for i in range(students)}
    pairs |= dict.fromkeys(itertools.combinations(range(students), 2), KINDS[1])
    pairs |= dict.fromkeys(itertools.combinations(range(students, students + teachers), 2), KINDS[2])
    return tuple(module.scores.members.index(name) for name in _peer_names(module)), pairs


def _peer_names(module: DistillationModule) -> list[str]:
    return [peer for peers in module.scores.peers.values() for peer in peers]
