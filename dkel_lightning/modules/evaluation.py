"""What is measured: the members' scores in validation and test, and the means of a training epoch.

Logged each epoch: `train/loss`, `train/loss_per_peer`, `train/<term>`, `train/acc/...`, `weights/...`; `val/acc`,
`val/acc/...`, `val/nll/...` with student_0.., student_mean, student_best, student_ensemble (mean of probabilities),
ensemble (the ensemble classifier, or what the method makes), and the same of the teacher. In tests `best` and `acc` are
the peers that the last validation chose, and `test/ece/...` (expected calibration error), `test/disagreement` (of the
student peers) and `test/distance` (of teacher and student) are logged too. What
`diversity/...` and `share/...` hold: see callbacks.DiversityMonitor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from dkel_lightning.functional import classes_of
from dkel_lightning.metrics import (
    CalibrationErrors,
    Confusion,
    Disagreement,
    NetworkScores,
    Predictions,
    TermMeans,
    relative_distance,
    scores_of,
)
from dkel_lightning.modules.batch import check_views, checked, images_of, with_shape_errors_explained
from dkel_lightning.modules.deployment import best_peer, deployed_member, means_of_peers
from dkel_lightning.modules.interface import Coordinator
from dkel_lightning.modules.outputs import Evaluated


def attach_metrics(module: Coordinator) -> None:
    """Give the module its sums; those of the training epoch belong to its checkpoint."""
    members, peers = len(module.members), module.student.num_peers
    module.term_means = TermMeans(module.method.terms)
    module.train_scores = NetworkScores(peers, persistent=True)
    module.scores = NetworkScores(members)
    module.calibration = CalibrationErrors(members)
    module.predictions = Predictions(members, module.student.num_classes)
    module.disagreement = Disagreement()
    module.confusion = Confusion(module.student.num_classes)
    module.tested_confusion = None
    module.tested_member = 0
    module.register_buffer("validation_accuracy", torch.full((members,), float("nan")))


# ---------------------------------------------------------------------- an epoch of training


def log_training_epoch(module: Coordinator) -> None:
    """Log the epoch's mean terms, the peers' training accuracy and the weights in force, and begin anew."""
    means = module.term_means.compute()
    total = torch.stack(list(means.values())).sum()
    accuracy = module.train_scores.per_network()["accuracy"]
    logs = {f"train/{name}": value for name, value in means.items()}
    logs |= {"train/loss": total, "train/loss_per_peer": total / module.student.num_peers}
    logs |= {f"train/acc/student_{i}": value for i, value in enumerate(accuracy)}
    logs["train/acc/student_mean"] = accuracy.mean()
    weight = module.ensemble.weight if module.ensemble is not None else torch.zeros(())
    logs |= {f"weights/{name}": value for name, value in module.method.weights_in_force(weight).items()}
    if module.teacher is not None and module.teacher.settings.update == "ema":
        logs["weights/ema_rate"] = module.teacher.rate
    module.log_dict({name: value.detach().float() for name, value in logs.items()}, sync_dist=True)
    module.term_means.reset()
    module.train_scores.reset()


# ---------------------------------------------------------------------- validation and test


def evaluate(module: Coordinator, views: Tensor) -> Evaluated:
    """Ask all members about `views`, once."""
    with with_shape_errors_explained(views, module.student.network):
        return _evaluated(module, *module.views_of_each(views))


def predict(module: Coordinator, batch: Any) -> Tensor:
    """Return the deployed network's logits [B, C] for the images of a batch, with or without labels."""
    views = images_of(module.read(batch))
    check_views(views, module.student.num_peers, module.method.needs.teacher_views)
    return evaluate(module, views).logits[module.members.index(deployed_member(module))]


def _evaluated(module: Coordinator, views: Tensor, teacher_views: Tensor) -> Evaluated:
    student = module(views)
    rows = [student.logits.float()]
    if module.student.num_peers > 1:
        rows.append(_mean_probability(rows[0]))
    if student.ensemble_logits is not None:
        rows.append(student.ensemble_logits.float().unsqueeze(0))
    features = [*student.features]
    if (teacher := module.teacher) is not None:
        # One teacher of peers with a view each is scored on the first one's.
        single = teacher.num_peers == 1 and teacher_views.dim() == 5
        taught = teacher(teacher_views[:, 0] if single else teacher_views)
        teachers = taught.logits.float()
        rows += [teachers, _mean_probability(teachers)] if teacher.num_peers > 1 else [teachers]
        features += [*taught.features]
    return Evaluated(torch.cat(rows), tuple(features))


def _mean_probability(logits: Tensor) -> Tensor:
    """Give logits whose softmax is the mean probability over the first axis: [P, ..., C] -> [1, ..., C]."""
    return logits.log_softmax(-1).logsumexp(0, keepdim=True) - math.log(logits.shape[0])


def begin_validation(module: Coordinator) -> None:
    """Begin anew, also after a validation that was broken off."""
    module.scores.reset()
    module.predictions.reset()


def begin_test(module: Coordinator) -> None:
    """Begin anew, also after a test that was broken off; look up which member is deployed, which is a read."""
    for sums in (module.calibration, module.confusion, module.disagreement):
        sums.reset()
    begin_validation(module)
    module.tested_member = module.members.index(deployed_member(module))


def score(module: Coordinator, batch: Any, batch_idx: int, stage: str) -> tuple[Evaluated, Tensor]:
    """Score every member on a batch; return what they say of it, and its labels [B]."""
    student, teacher_too = module.student, module.method.needs.teacher_views
    views, labels, _ = checked(module.read(batch), batch_idx, student.num_peers, student.num_classes, teacher_too)
    evaluated = evaluate(module, views)
    correct, nll = scores_of(evaluated.logits, labels)
    module.scores.update(correct, nll, len(labels))
    classes = classes_of(labels)
    if stage == "validation":
        module.predictions.update(evaluated.logits, classes)
    return evaluated, classes


def score_test(module: Coordinator, batch: Any, batch_idx: int) -> None:
    """Score every member on a batch, its calibration, the peers' disagreement and the deployed one's mistakes."""
    evaluated, labels = score(module, batch, batch_idx, "test")
    module.calibration.update(evaluated.logits, labels)
    module.confusion.update(evaluated.logits[module.tested_member], labels)
    if module.student.num_peers > 1:
        module.disagreement.update(evaluated.logits[: module.student.num_peers])


def end_validation(module: Coordinator) -> None:
    """Log the members' scores and remember them for the choice of the deployed peer."""
    scores = module.scores.per_network()
    module.scores.reset()
    if not module.trainer.sanity_checking:
        module.validation_accuracy.copy_(scores["accuracy"])
    _log_scores(module, "val", scores, scores["accuracy"])


def end_test(module: Coordinator) -> None:
    """Log the members' scores; the best peers are those that validation chose."""
    scores = module.scores.per_network() | {"calibration": module.calibration.compute().reshape(-1)}
    module.log("test/images", module.scores.samples.clone(), reduce_fx="sum", sync_dist=True)
    module.tested_confusion = module.confusion.compute().clone()
    for sums in (module.scores, module.calibration, module.confusion):
        sums.reset()
    _log_scores(module, "test", scores, module.validation_accuracy)
    if module.student.num_peers > 1:
        module.log("test/disagreement", module.disagreement.compute(), sync_dist=True)
        module.disagreement.reset()
    distance = teacher_distance(module)
    if distance is not None:
        module.log("test/distance", distance, sync_dist=True)


def teacher_distance(module: Coordinator) -> Tensor | None:
    """Return `||theta_t - theta_s|| / ||theta_s||` of all parameters; None without a teacher of the same form."""
    if module.teacher is None:
        return None
    return relative_distance([*module.teacher.network.parameters()], [*module.student.network.parameters()])


def scored_names(module: Coordinator) -> list[str]:
    """Name what is scored: all members, and the mean and best peer of each network."""
    kinds = ["student"] if module.teacher is None else ["student", "teacher"]
    return [*module.members, *(f"{kind}_{what}" for kind in kinds for what in ("mean", "best"))]


def _log_scores(module: Coordinator, stage: str, scores: Mapping[str, Tensor], chooser: Tensor) -> None:
    logs: dict[str, Tensor] = {}
    for short, name in (("acc", "accuracy"), ("nll", "nll"), ("ece", "calibration")):
        if name not in scores:
            continue
        values = dict(zip(module.members, scores[name], strict=True))
        for network, mean in means_of_peers(module, scores[name]).items():
            values[f"{network}_mean"] = mean
            values[f"{network}_best"] = values[f"{network}_{best_peer(module, network, chooser)}"]
        logs |= {f"{stage}/{short}/{member}": value for member, value in values.items()}
    if module.trainer.state.fn != "fit":
        _warn_of_overflow(module, stage, scores["nll"])
    module.log_dict(logs, sync_dist=True)
    deployed = deployed_member(module, chooser)
    module.log(f"{stage}/acc", logs[f"{stage}/acc/{deployed}"], prog_bar=True, sync_dist=True)


def _warn_of_overflow(module: Coordinator, stage: str, nll: Tensor) -> None:
    """Say that scores mean nothing; in a training the CollapseGuard does."""
    bad = [name for name, value in zip(module.members, nll.tolist(), strict=True) if not math.isfinite(value)]
    if bad:
        rank_zero_warn(
            f"Outputs of {', '.join(bad[:3])} became NaN or infinite ({stage}), on images that are finite: their "
            "scores mean nothing. Take a checkpoint whose weights are sound, or precision=bf16 or fp32."
        )
