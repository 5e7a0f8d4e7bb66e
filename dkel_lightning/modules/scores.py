"""The scores of all members in validation and test, and the sums of a training epoch.

Logged each epoch: `train/loss`, `train/loss_per_peer`, `train/<term>`, `train/acc/...`, `weights/...`; `val/acc`,
`val/acc/...`, `val/nll/...` with student_0.., student_mean, student_best, student_ensemble (mean of probabilities),
ensemble (the ensemble classifier, or what the method makes), and the same of the teacher. In tests `best` and `acc` are
the peers that the last validation chose, and `test/ece/...` (expected calibration error), `test/disagreement` (of the
student peers) and `test/distance` (of teacher and student) are logged too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from dkel_lightning.errors import DataError
from dkel_lightning.functional import not_halved
from dkel_lightning.metrics import (
    CalibrationErrors,
    Confusion,
    Disagreement,
    NetworkScores,
    Predictions,
    TermMeans,
    scores_of,
)


class Scores(nn.Module):
    """Metrics of validation, test and training epoch; the checkpoint holds those of training.

    Args:
        members: names of the N scored members: student peers, their ensemble, and the same of the teacher.
        num_classes: C.
        terms: names of the loss terms.

    Attributes:
        peers: the members that are peers of `student` and of `teacher`.
        validation_accuracy: [N] of the last validation, NaN before; a buffer that chooses the deployed peer.
        predictions: of all members in a validation.
        tested_confusion: [C, C] of the deployed member in the last test; rows are true classes, columns predicted ones.
    """

    validation_accuracy: Tensor

    def __init__(self, members: Sequence[str], num_classes: int, terms: Sequence[str]) -> None:
        super().__init__()
        self.members = tuple(members)
        self.peers = {network: peers_among(members, network) for network in ("student", "teacher")}
        self.term_means = TermMeans(terms)
        self.train_scores = NetworkScores(len(self.peers["student"]), persistent=True)
        self.network_scores = NetworkScores(len(members))
        self.calibration = CalibrationErrors(len(members))
        self.predictions = Predictions(len(members), num_classes)
        self.disagreement = Disagreement()
        self.confusion = Confusion(num_classes)
        self.tested_confusion: Tensor | None = None
        self._tested = 0
        self.register_buffer("validation_accuracy", torch.full((len(members),), float("nan")))

    def _apply(self, fn: Any, recurse: bool = True) -> Scores:
        """Keep the accuracies that choose a peer out of half types, in which many are equal."""
        accuracy = self.validation_accuracy
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.validation_accuracy = not_halved(fn)(accuracy)
        return self

    # ---------------------------------------------------------------------- an epoch of training

    def begin_training(self) -> None:
        """Reset the sums of the epoch."""
        self.term_means.reset()
        self.train_scores.reset()

    def update_training(self, terms: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a training step: its stacked terms, and the student's logits [P, B, C] with the labels of the batch."""
        self.term_means.update(terms.detach())
        self.train_scores.update(*scores_of(logits, labels))

    def log_training(self, module: LightningModule, weights: Mapping[str, Tensor]) -> None:
        """Log the epoch's mean terms, the peers' training accuracy and `weights`."""
        means = self.term_means.compute()
        total = torch.stack(list(means.values())).sum()
        accuracy = self.train_scores.per_network()["accuracy"]
        if bool(accuracy.isnan().any()):
            rank_zero_warn("No training image of this epoch has a known label, so its supervised loss is 0.")
        logs = {f"train/{name}": value for name, value in means.items()}
        logs |= {"train/loss": total, "train/loss_per_peer": total / len(accuracy)}
        logs |= {f"train/acc/{peer}": value for peer, value in zip(self.peers["student"], accuracy, strict=True)}
        logs["train/acc/student_mean"] = accuracy.mean()
        logs |= {f"weights/{name}": value for name, value in weights.items()}
        module.log_dict({name: value.detach().float() for name, value in logs.items()}, sync_dist=True)

    # ---------------------------------------------------------------------- validation and test

    def begin(self, tested: str | None = None) -> None:
        """Reset the sums; `tested` is the deployed member of a test."""
        for sums in (self.network_scores, self.predictions, self.calibration, self.confusion, self.disagreement):
            sums.reset()
        self._tested = 0 if tested is None else self.members.index(tested)

    def update_validation(self, logits: Tensor, labels: Tensor, classes: Tensor) -> None:
        """Add a batch: `logits` [N, B, C], labels of the data, and their `classes` [B]."""
        self.network_scores.update(*scores_of(logits, labels))
        self.predictions.update(logits, classes)

    def update_test(self, logits: Tensor, labels: Tensor, classes: Tensor) -> None:
        """Add a batch: its scores, calibration, the peers' disagreement and the deployed member's mistakes."""
        self.network_scores.update(*scores_of(logits, labels))
        self.calibration.update(logits, classes)
        self.confusion.update(logits[self._tested], classes)
        if (peers := len(self.peers["student"])) > 1:
            self.disagreement.update(logits[:peers])

    def log_validation(self, module: LightningModule) -> Tensor:
        """Log the members' scores and return their accuracies [N]; a sanity check does not choose the deployed peer."""
        scores = self.network_scores.per_network()
        accuracy = scores["accuracy"]
        if not module.trainer.sanity_checking:
            _check_any_known(accuracy, "validation")
            self.validation_accuracy.copy_(accuracy)
        self._log(module, "val", {"acc": accuracy, "nll": scores["nll"]}, accuracy)
        return accuracy

    def log_test(self, module: LightningModule) -> Tensor:
        """Log the members' scores, the best peers being those that validation chose; return their accuracies [N]."""
        scores = self.network_scores.per_network()
        _check_any_known(scores["accuracy"], "test")
        module.log("test/images", self.network_scores.samples.clone(), reduce_fx="sum", sync_dist=True)
        self.tested_confusion = self.confusion.compute().clone()
        values = {"acc": scores["accuracy"], "nll": scores["nll"], "ece": self.calibration.compute().reshape(-1)}
        self._log(module, "test", values, self.validation_accuracy)
        if len(self.peers["student"]) > 1:
            module.log("test/disagreement", self.disagreement.compute(), sync_dist=True)
        return scores["accuracy"]

    def _log(self, module: LightningModule, stage: str, values: Mapping[str, Tensor], chooser: Tensor) -> None:
        logs: dict[str, Tensor] = {}
        for kind, of_members in values.items():
            named = dict(zip(self.members, of_members, strict=True))
            for network, mean in self.means_of_peers(of_members).items():
                named[f"{network}_mean"] = mean
                named[f"{network}_best"] = named[self.best(self.peers[network], chooser)]
            logs |= {f"{stage}/{kind}/{member}": value for member, value in named.items()}
        module.log_dict(logs, sync_dist=True)

    # ---------------------------------------------------------------------- members and their peers

    @property
    def names(self) -> list[str]:
        """The names under which scores are logged: the members, and the mean and best peer of each network."""
        networks = [network for network, peers in self.peers.items() if peers]
        return [*self.members, *(f"{network}_{what}" for network in networks for what in ("mean", "best"))]

    def means_of_peers(self, values: Tensor) -> dict[str, Tensor]:
        """Average values of all members, [N, ...], over the peers of `student` and of `teacher`, where there is one."""
        named = dict(zip(self.members, values, strict=True))
        return {
            network: torch.stack([named[peer] for peer in peers]).mean(0)
            for network, peers in self.peers.items()
            if peers
        }

    def best(self, among: Sequence[str], scores: Tensor) -> str:
        """Name the first of some members with the highest of all members' `scores` [N]; NaN counts as 0."""
        by_name = dict(zip(self.members, torch.nan_to_num(scores, nan=0.0).tolist(), strict=True))
        return max(among, key=by_name.__getitem__)


def _check_any_known(accuracy: Tensor, split: str) -> None:
    """Refuse to score images without a single known label, of which accuracies are 0 / 0."""
    if bool(accuracy.isnan().any()):
        raise DataError(f"The {split} images have no known label (all are -1), and no accuracy: give them labels.")


def peers_among(members: Sequence[str], network: str) -> list[str]:
    """Return the members that are peers of a network, such as `teacher_0` and `teacher_1`."""
    return [member for member in members if re.fullmatch(rf"{network}_\d+", member)]


def mean_probability(logits: Tensor) -> Tensor:
    """Return logits whose softmax is the mean probability over the first axis: [P, ..., C] -> [1, ..., C]."""
    return logits.log_softmax(-1).logsumexp(0, keepdim=True) - math.log(logits.shape[0])
