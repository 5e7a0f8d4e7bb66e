"""Metrics for several networks at once, kept on the device and correct across processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from dkel_lightning.functional import classes_of, is_known, not_halved, sample_cross_entropy


class Sums(Metric):
    """Sums that stay exact where a module is turned into a half type (`bf16-true`), in which they soon stop growing."""

    full_state_update = False

    def __init__(self, sums: Mapping[str, Tensor], persistent: bool = False) -> None:
        super().__init__()
        for name, zeros in sums.items():
            self.add_state(name, zeros, dist_reduce_fx="sum", persistent=persistent)

    def _apply(self, fn: Any, exclude_state: Sequence[str] = "") -> nn.Module:
        return super()._apply(not_halved(fn), exclude_state)


class TermMeans(Sums):
    """Average the loss terms of an epoch over its steps.

    The sums stay on the device and in the checkpoint; they are read once an epoch.
    """

    sums: Tensor
    steps: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__({"sums": torch.zeros(len(names)), "steps": torch.zeros(())}, persistent=True)
        self.names = tuple(names)

    def update(self, values: Tensor) -> None:
        """Add the terms of one step, stacked in the order of the names and without gradient."""
        self.sums += values
        self.steps += 1

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each term, by name."""
        means = self.sums / self.steps
        return {name: means[i] for i, name in enumerate(self.names)}


class NetworkScores(Sums):
    """Top-1 accuracy and negative log-likelihood of several networks on the same samples."""

    correct: Tensor
    nll: Tensor
    samples: Tensor

    def __init__(self, networks: int, *, persistent: bool = False) -> None:
        correct, nll = torch.zeros(networks), torch.zeros(networks)
        super().__init__({"correct": correct, "nll": nll, "samples": torch.zeros(())}, persistent)

    def update(self, correct: Tensor, nll: Tensor, samples: Tensor) -> None:
        """Add the result of `scores_of` for a batch."""
        self.correct += correct
        self.nll += nll
        self.samples += samples

    def compute(self) -> dict[str, Tensor]:
        """Return `accuracy` and `nll`, each [N]."""
        return {"accuracy": self.correct / self.samples, "nll": self.nll / self.samples}

    def per_network(self) -> dict[str, Tensor]:
        """Return `compute`'s values as [N] also for a single network, of which torchmetrics makes scalars."""
        return {name: value.reshape(-1) for name, value in self.compute().items()}


def scores_of(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score `logits` [N, B, C]: right predictions [N], summed negative log-likelihood [N], and the samples, a scalar.

    Samples whose label is not known are left out. Of labels that are distributions [B, C] the largest entry
    is the right class. An output that is not finite is wrong: argmax returns the first NaN.
    """
    logits = logits.detach()
    nll = sample_cross_entropy(logits, labels)
    known = is_known(labels)
    correct = (logits.argmax(-1) == classes_of(labels)) & nll.isfinite() & known
    return correct.sum(-1).to(torch.float32), nll.sum(-1), known.sum()


class CalibrationErrors(Sums):
    """Expected calibration error of several networks on the same samples: `sum_b n_b / n |accuracy_b - confidence_b|`.

    The value of torchmetrics' MulticlassCalibrationError with the l1 norm, which keeps every confidence until the
    end; this one keeps sums by bin. As there, bins are [k / bins, (k + 1) / bins), and a confidence of exactly 1 has a
    bin of its own.

    Source: Guo et al. 2017, "On calibration of modern neural networks".
    """

    samples: Tensor
    correct: Tensor
    confidence: Tensor

    def __init__(self, networks: int, bins: int = 15) -> None:
        super().__init__({name: torch.zeros(networks, bins + 1) for name in ("samples", "correct", "confidence")})
        self.bins = bins

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: `logits` [N, B, C] of the N networks, `labels` [B], of which unknown ones are left out."""
        confidence, predicted = logits.detach().to(self.confidence.dtype).softmax(-1).max(-1)
        edges = torch.linspace(0, 1, self.bins + 1, dtype=confidence.dtype, device=confidence.device)
        position = torch.bucketize(confidence, edges, right=True) - 1
        position = position.clamp(0, self.bins)
        known = is_known(labels).to(confidence.dtype).expand_as(confidence)
        self.samples.scatter_add_(1, position, known)
        self.correct.scatter_add_(1, position, (predicted == labels).to(confidence.dtype))
        self.confidence.scatter_add_(1, position, confidence * known)

    def compute(self) -> Tensor:
        """Return the errors, [N]."""
        return (self.correct - self.confidence).abs().sum(1) / self.samples.sum(1)


class Disagreement(Sums):
    """Share of samples on which two peers predict different classes, averaged over all pairs of peers."""

    different: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__({"different": torch.zeros(()), "samples": torch.zeros(())})

    def update(self, logits: Tensor) -> None:
        """Add a batch: `logits` [P, B, C] of at least two peers."""
        predicted = logits.detach().argmax(-1)
        peers = len(predicted)
        # Each unordered pair is met twice, and a peer never differs from itself.
        unequal = (predicted.unsqueeze(0) != predicted.unsqueeze(1)).sum()
        self.different += unequal.to(self.different.dtype) / (peers * (peers - 1))
        self.samples += predicted.shape[1]

    def compute(self) -> Tensor:
        """Return the share, a scalar in [0, 1]."""
        return self.different / self.samples


class Predictions(Sums):
    """Entropy of the predictions of several networks, and counts of predicted classes and of labels."""

    entropy: Tensor
    predicted: Tensor
    labelled: Tensor

    def __init__(self, networks: int, classes: int) -> None:
        predicted, labelled = torch.zeros(networks, classes), torch.zeros(1, classes)
        super().__init__({"entropy": torch.zeros(networks), "predicted": predicted, "labelled": labelled})

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: `logits` [N, B, C] of the N networks, `labels` [B], of which unknown ones are left out."""
        logits = logits.detach().to(self.entropy.dtype)
        log_probabilities = logits.log_softmax(-1)
        known = is_known(labels).to(logits.dtype)
        self.entropy -= (log_probabilities.exp() * log_probabilities * known.unsqueeze(-1)).sum((-2, -1))
        labels = labels.clamp_min(0).unsqueeze(0)  # unknown ones add 0 to a class
        for counts, classes in ((self.predicted, logits.argmax(-1)), (self.labelled, labels)):
            counts.scatter_add_(1, classes, known.expand(classes.shape))

    def compute(self) -> dict[str, Tensor]:
        """Return means and shares over the samples.

        Of each network [N] `entropy` in nats, and `classes`, how many it predicts; `commonest` [1], the share of the
        commonest label, and `samples` [1].
        """
        samples = self.labelled.sum(1)
        return {
            "entropy": self.entropy / samples,
            "classes": (self.predicted > 0).sum(1).to(samples.dtype),
            "commonest": self.labelled.max(1).values / samples,
            "samples": samples,
        }


class Confusion(Sums):
    """The confusion matrix of one network.

    The value of torchmetrics' MulticlassConfusionMatrix, which under deterministic algorithms compares every image
    with every cell: gigabytes for a thousand classes.
    """

    counts: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__({"counts": torch.zeros(classes, classes, dtype=torch.int64)})
        self.classes = classes

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: `logits` [B, C] of the network, `labels` [B], of which unknown ones are left out."""
        cells = labels.clamp_min(0) * self.classes + logits.detach().argmax(-1)
        self.counts.view(-1).scatter_add_(0, cells, is_known(labels).to(cells.dtype))

    def compute(self) -> Tensor:
        """Return the counts [C, C]: rows are true classes, columns predicted ones."""
        return self.counts


class PairDiversity(Sums):
    """How far apart pairs of networks are on the same samples.

    * `agreement`: share of samples on which both predict the same class.
    * `kl`: `(KL(a || b) + KL(b || a)) / 2` of the predictions at temperature 1, in nats, averaged over the samples.
    * `cka`: linear CKA of the features, `|A^T B|^2 / (|A^T A| |B^T B|)` of centred features, Frobenius norms; NaN
      where features of one do not vary at all. Exact: the sums [D, D] are accumulated over all samples.

    Each batch is centred by its own mean before its product is taken, and the product of the means added apart, so
    that a product in reduced precision (TF32) loses digits of the covariance and not of the means.

    Args:
        widths: D of each network's features; zeros fill the narrower ones up, which changes no norm.
        pairs: indices of the networks that are compared.

    Source: CKA of Kornblith et al. 2019, "Similarity of neural network representations revisited".
    """

    WIDEST = 2048
    """Wider features are left out: their products would take more memory than the networks."""

    agreeing: Tensor
    divergence: Tensor
    samples: Tensor
    sums: Tensor
    products: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, widths: Sequence[int], pairs: Sequence[tuple[int, int]]) -> None:
        # Products of each network with itself, then of the pairs.
        products = [*((i, i) for i in range(len(widths))), *pairs]
        agreeing, divergence, width = torch.zeros(len(pairs)), torch.zeros(len(pairs)), max(widths)
        sums = {"agreeing": agreeing, "divergence": divergence, "samples": torch.zeros(())}
        compares_features = width <= self.WIDEST and bool(pairs)
        if compares_features:
            sums |= {"sums": torch.zeros(len(widths), width), "products": torch.zeros(len(products), width, width)}
        super().__init__(sums)
        self.pairs, self.width, self.compares_features = tuple(pairs), width, compares_features
        self.register_buffer("first", torch.tensor([a for a, _ in products]), persistent=False)
        self.register_buffer("second", torch.tensor([b for _, b in products]), persistent=False)

    def update(self, logits: Tensor, features: Sequence[Tensor]) -> None:
        """Add a batch: `logits` [N, B, C], `features` N tensors [B, D_i]."""
        logits = logits.detach().float()
        self.samples += logits.shape[1]
        log_probabilities = logits.log_softmax(-1)
        probabilities, predicted = log_probabilities.exp(), logits.argmax(-1)
        networks = len(logits)
        for start in range(0, len(self.pairs), _PAIRS_AT_ONCE):
            chosen = slice(start, start + _PAIRS_AT_ONCE)
            a, b = self.first[networks:][chosen], self.second[networks:][chosen]
            self.agreeing[chosen] += (predicted[a] == predicted[b]).sum(-1)
            symmetric = (probabilities[a] - probabilities[b]) * (log_probabilities[a] - log_probabilities[b])
            self.divergence[chosen] += symmetric.sum((-2, -1)) / 2
        if self.compares_features:
            self._add_features(features)

    def _add_features(self, features: Sequence[Tensor]) -> None:
        padded = [F.pad(x.detach().float(), (0, self.width - x.shape[-1])) for x in features]
        stacked = torch.stack(padded)
        batch = stacked.shape[1]
        mean = stacked.mean(1)
        centred = stacked - mean.unsqueeze(1)
        self.sums += mean * batch
        for start in range(0, len(self.first), _PAIRS_AT_ONCE):
            chosen = slice(start, start + _PAIRS_AT_ONCE)
            a, b = self.first[chosen], self.second[chosen]
            self.products[chosen].baddbmm_(centred[a].transpose(1, 2), centred[b])
            self.products[chosen].addcmul_(mean[a].unsqueeze(2), mean[b].unsqueeze(1), value=batch)

    def compute(self) -> dict[str, Tensor]:
        """Return `agreement`, `kl` and, unless features are too wide, `cka`, each [pairs]."""
        result = {"agreement": self.agreeing / self.samples, "kl": self.divergence / self.samples}
        if self.compares_features:
            result["cka"] = self._cka()
        return result

    def _cka(self) -> Tensor:
        mean = self.sums / self.samples
        means = mean[self.first].unsqueeze(2) * mean[self.second].unsqueeze(1)
        covariance = self.products / self.samples - means
        norms = torch.linalg.matrix_norm(covariance)
        networks = len(mean)
        scales = norms[:networks]
        # Of features that do not vary only rounding errors are left.
        varies = scales > 1e-6 * torch.linalg.matrix_norm(means[:networks])
        scales = torch.where(varies, scales, torch.full_like(scales, float("nan")))
        cka: Tensor = norms[networks:].square() / (scales[self.first[networks:]] * scales[self.second[networks:]])
        return cka


_PAIRS_AT_ONCE = 64


def relative_distance(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor | None:
    """Compute `||theta_t - theta_s|| / ||theta_s||` over all parameters; None where their shapes differ."""
    if [p.shape for p in teacher] != [p.shape for p in student]:
        return None
    differences = [(t.detach() - s.detach()).float() for t, s in zip(teacher, student, strict=True)]
    return _norm(differences) / _norm([s.detach().float() for s in student])


def mutual_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor | None:
    """Compute `|a - b| / sqrt((|a|^2 + |b|^2) / 2)` over all parameters; None where their shapes differ.

    0 for equal ones, sqrt(2) for orthogonal ones, such as two independent draws of many weights around zero.
    """
    if not first or [p.shape for p in first] != [p.shape for p in second]:
        return None
    differences = [(a.detach() - b.detach()).float() for a, b in zip(first, second, strict=True)]
    norms = torch.stack([_norm([p.detach().float() for p in weights]) for weights in (first, second)])
    return _norm(differences) / norms.square().mean().sqrt()


def _norm(tensors: list[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return norm
