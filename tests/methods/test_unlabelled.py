"""Labels of -1, not known: what every method learns from the others, what it refuses, and what is scored."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from dkel_lightning import methods
from dkel_lightning.assembly.parts import check_data
from dkel_lightning.data.batch import Batch
from dkel_lightning.errors import DataError
from dkel_lightning.functional import cross_entropy, targets_of
from tests.methods.test_labels import weighted
from tests.methods.test_mean_teacher import loss
from tests.modules.test_targets import EVERY, settings_of
from tests.modules.toy import build, images_and_labels, trainer, val_loader

IMAGES, LABELS = images_and_labels(6)
FIRST, LAST = torch.arange(6) < 2, torch.arange(6) >= 2


def with_known(known: Tensor) -> Tensor:
    return torch.where(known, LABELS, -1)


def gradient(name: str, labels: Tensor, weight: float = 1.0) -> Tensor:
    module = weighted(name, weight)
    module.method.rampup_weight.fill_(1.0)
    module.training_step((IMAGES, labels, torch.arange(6)), 0).backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.student.network.parameters()]
    return torch.cat([part.flatten() for part in found])


@pytest.mark.parametrize("name", EVERY)
def test_labels_teach_by_their_mean_over_the_known_and_distillation_by_that_over_all(name: str) -> None:
    distilled = gradient(name, LABELS, 0.0)
    of_all, of_first, of_last = (gradient(name, with_known(known)) - distilled for known in (FIRST | LAST, FIRST, LAST))
    torch.testing.assert_close(of_all, of_first / 3 + of_last * 2 / 3, rtol=1e-4, atol=1e-6)
    assert torch.equal(gradient(name, with_known(FIRST & LAST)), distilled)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3.0, 0.5])])
def test_the_mean_over_the_known_is_torchs_with_ignore_index(smoothing: float, weights: Tensor | None) -> None:
    logits = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    labels = with_known(FIRST)
    ours = cross_entropy(logits, targets_of(labels, 3, smoothing, weights))
    expected = [F.cross_entropy(z, labels, weights, ignore_index=-1, label_smoothing=smoothing) for z in logits]
    torch.testing.assert_close(ours, torch.stack(expected))
    nothing = cross_entropy(logits, targets_of(torch.full((6,), -1), 3, smoothing, weights))
    assert torch.equal(nothing, torch.zeros(2))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, torch.ones(3)])
def test_a_sample_that_was_mixed_counts_by_its_known_share(smoothing: float, weights: Tensor | None) -> None:
    mixed = torch.eye(3)[[0, 1, 2]] * torch.tensor([1.0, 0.3, 0.0])[:, None]
    targets = targets_of(mixed, 3, smoothing, weights)
    assert cross_entropy(torch.zeros(3, 3), targets).item() == pytest.approx(math.log(3))
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    apart = F.cross_entropy(logits, torch.arange(3), reduction="none", label_smoothing=smoothing)
    assert cross_entropy(logits, targets).item() == pytest.approx(((apart[0] + 0.3 * apart[1]) / 1.3).item())


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "kdcl"},
        {"name": "kdcl", "target": "naive"},
        {"name": "dkel", "loss": "dkd"},
        {"name": "kd", "loss": "nkd"},
    ],
)
def test_a_method_that_compares_by_class_says_that_it_needs_labels(settings: dict[str, Any]) -> None:
    module = build(method=settings, peers=2, teacher={"update": "gradient"} if settings["name"] == "kd" else None)
    with pytest.raises(DataError, match="A label is -1, not known, and the method as it is set"):
        module.training_step((IMAGES, with_known(FIRST)), 0)


@pytest.mark.parametrize("size", [1200, 0])
def test_data_is_refused_before_a_batch_is_met_if_it_has_unknown_labels(size: int) -> None:
    module = build(method={"name": "kdcl"}, peers=2)
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(unlabelled_size=size))  # type: ignore[assignment]
    refusal = pytest.raises(DataError, match="1,200 training images have no label, and the method")
    with refusal if size else nullcontext():
        check_data(module)


def test_consistent_pairs_channels_by_the_classes_that_are_known() -> None:
    module: Any = build(**settings_of("consistent"))
    with pytest.raises(DataError, match=r"no label of the images .* is known .*: raise method.fit_batches"):
        module.method.fit(module.student, module.teacher, [Batch(IMAGES, with_known(FIRST & LAST), None)])
    module.method.fit(module.student, module.teacher, [Batch(IMAGES, with_known(LAST), None)])
    assert bool(module.method.fitted)


@pytest.mark.parametrize("name", ["kd", "kdpm", "online_checkpoints"])
def test_labels_are_not_read_where_their_weight_is_0(name: str) -> None:
    settings = settings_of(name)
    settings["method"]["ce_weight"] = 0.0

    def gradient_with(labels: Tensor) -> list[Tensor]:
        module = build(**settings)
        inputs = module.forward_all(module.make_batch(Batch(IMAGES, labels, torch.arange(6)), 0))
        terms = module.method.weighted_terms(inputs)
        parameters = [*module.student.network.parameters()]
        return [*torch.autograd.grad(torch.stack([*terms.values()]).sum(), parameters, materialize_grads=True)]

    expected = gradient_with(LABELS)
    assert any(gradient.any() for gradient in expected)
    for labels in (with_known(FIRST), with_known(FIRST & LAST), (LABELS + 1) % 3):
        assert all(torch.equal(*pair) for pair in zip(gradient_with(labels), expected, strict=True))


def test_an_evaluation_scores_the_known_alone() -> None:
    module = build()
    for labels, part in ((with_known(FIRST), slice(6)), (LABELS[:2], slice(2))):
        module.validation_step((IMAGES[part], labels), 0)
        module.test_step((IMAGES[part], labels), 0)
    found = []
    module.eval()
    logits = module.evaluate(IMAGES).logits.detach()
    for chosen, labels in ((logits, with_known(FIRST)), (logits[:, :2], LABELS[:2])):
        module.scores.begin()
        module.scores.update_validation(chosen, labels, labels)
        module.scores.update_test(chosen, labels, labels)
        scores = module.scores
        values = {**scores.network_scores.per_network(), **scores.predictions.compute()}
        found.append([*values.values(), scores.calibration.compute(), scores.confusion.compute()])
    for masked, alone in zip(*found, strict=True):
        torch.testing.assert_close(masked, alone)


def test_validation_images_without_any_label_are_refused() -> None:
    loader = DataLoader(TensorDataset(IMAGES, with_known(FIRST & LAST)), batch_size=2)
    with pytest.raises(DataError, match="The validation images have no known label"):
        trainer(max_epochs=1).validate(build(), loader)


def test_a_training_with_mixup_scores_and_learns_what_is_known() -> None:
    module = build(targets={"mixup": 0.2})
    images, labels = images_and_labels(24)
    data = TensorDataset(images, torch.where(torch.arange(24) % 2 == 1, labels, -1))
    trainer().fit(module, DataLoader(data, batch_size=6), val_loader())
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    logged = module.trainer.callback_metrics
    assert 0 < logged["train/ce"] < 20
    assert 0 <= logged["train/acc/student_mean"] <= 1


def test_scores_of_a_training_are_of_the_known() -> None:
    module = build()
    module.training_step((IMAGES, with_known(FIRST)), 0)
    logits, scores = module(IMAGES).logits[:, :2], module.scores.train_scores
    assert scores.samples == 2
    assert torch.equal(scores.correct, (logits.argmax(-1) == LABELS[:2]).sum(-1).float())
    torch.testing.assert_close(
        scores.nll, torch.stack([F.cross_entropy(z, LABELS[:2], reduction="sum") for z in logits])
    )


def test_targets_below_the_confidence_are_left_out_of_a_mean_over_all() -> None:
    draws = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, 6, 3, generator=draws, dtype=torch.float64) for _ in range(2))
    sure = teacher.softmax(-1).amax(-1) >= 0.8
    assert 0 < sure.sum() < sure.numel()
    labels, expected = torch.full((6,), -1), 0.0
    for z, t, kept in zip(student, teacher, sure, strict=True):
        divergences = F.kl_div(z.log_softmax(-1), t.softmax(-1), reduction="none").sum(-1)
        expected += 2.0 * (divergences * kept).sum().item() / 6
    found = loss(student, teacher, labels, 2.0, consistency="kl", confidence=0.8)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert methods.create("mean_teacher", 1).settings.confidence == 0
