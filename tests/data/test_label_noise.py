from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from dkel_lightning.callbacks.label_noise import LabelNoiseFit
from dkel_lightning.data import DigitsDataModule
from dkel_lightning.data.label_noise import with_wrong_labels
from dkel_lightning.distillation import DistillationModule
from dkel_lightning.networks import PeerOutputs
from dkel_lightning.settings.data import LabelNoise
from tests.modules.toy import trainer

from .batches import whole

# 10 classes with 100 samples each, in no order.
LABELS = np.random.RandomState(0).permutation(np.repeat(np.arange(10), 100))


def digits(**settings: Any) -> DigitsDataModule:
    module = DigitsDataModule(**{"batch_size": 64, "workers": 0, **settings})
    module.setup()
    return module


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.4567, 1.0])
def test_exactly_the_rate_is_wrong_and_in_every_class_its_share(kind: str, rate: float) -> None:
    wrong = with_wrong_labels(LABELS, 10, LabelNoise(kind, rate)) != LABELS
    assert int(wrong.sum()) == round(rate * 1000)
    shares = np.bincount(LABELS[wrong], minlength=10)
    assert np.abs(shares - rate * 100).max() <= 1


def test_a_pair_is_a_class_and_the_next_one() -> None:
    noisy = with_wrong_labels(LABELS, 10, LabelNoise("pair", 0.3, 7))
    wrong = noisy != LABELS
    assert (noisy[wrong] == (LABELS[wrong] + 1) % 10).all()
    assert 0 in noisy[wrong & (LABELS == 9)]


def test_the_noise_never_changes_between_versions() -> None:
    # Written down once: another result would silently change everyone's noisy labels.
    noisy = with_wrong_labels(np.arange(20) % 5, 5, LabelNoise("symmetric", 0.5, 0))
    assert noisy.tolist() == [3, 4, 3, 3, 3, 0, 3, 4, 3, 4, 1, 1, 2, 4, 4, 0, 1, 2, 4, 3]


NOISE = {"kind": "symmetric", "rate": 0.4, "seed": 3}


def labels_by_index(module: DigitsDataModule, batches: Any) -> list[int]:
    found = torch.full((module.train_size,), -1)
    for _, labels, indices in batches:
        found[indices] = labels
    return found.tolist()


def test_every_kind_of_training_loader_gives_the_same_wrong_labels() -> None:
    seen = []
    for residency, workers in (("device", 0), ("workers", 0), ("workers", 2)):
        module = digits(residency=residency, workers=workers, limit=200, label_noise=NOISE)
        loader = module.train_dataloader()
        seen.append(labels_by_index(module, loader))
        seen.append(labels_by_index(module, loader.initialisation_batches(0, len(loader))))
    assert all(labels == seen[0] for labels in seen)
    assert -1 not in seen[0]
    expected = with_wrong_labels(module.true_labels.numpy(), 10, LabelNoise(**NOISE))  # type: ignore[arg-type]
    assert seen[0] == expected.tolist()
    assert int((torch.tensor(seen[0]) != module.true_labels).sum()) == 80


@pytest.mark.parametrize("selection", ["validation", "paper"])
def test_validation_and_test_stay_as_they_are(selection: str) -> None:
    clean, noisy = digits(selection=selection), digits(selection=selection, label_noise=NOISE)
    for loaders in (
        (clean.val_dataloader(), noisy.val_dataloader()),
        (clean.test_dataloader(), noisy.test_dataloader()),
    ):
        for ours, theirs in zip(*loaders, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(whole(ours), whole(theirs), strict=True))
    assert torch.equal(clean.true_labels, noisy.true_labels)
    # The images are those of the labels that they had, and only their labels differ.
    ours, theirs = next(iter(clean.train_dataloader())), next(iter(noisy.train_dataloader()))
    assert torch.equal(ours[0], theirs[0])
    assert not torch.equal(ours[1], theirs[1])


def test_the_wrongly_labelled_images_come_with_both_labels() -> None:
    module = digits(limit=200, label_noise=NOISE, eval_batch_size=32)
    batches = list(module.wrongly_labelled(50))
    assert [len(batch[1]) for batch in batches] == [32, 18]
    images, wrong, true = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert (wrong != true).all()
    # Of 80, spread over the whole set: the images are those of the clean set that lie at the same places.
    clean = digits(limit=200, padding=0)
    by_image: dict[bytes, int] = {}
    for views, labels, _ in clean.train_dataloader():
        by_image |= {view[0].numpy().tobytes(): int(label) for view, label in zip(views, labels, strict=True)}
    assert [by_image[image.numpy().tobytes()] for image in images] == true.tolist()
    assert sum(len(batch[1]) for batch in module.wrongly_labelled(999)) == 80
    assert list(digits(limit=200).wrongly_labelled(50)) == []


def test_what_is_learnt_by_heart_is_logged_for_student_and_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    module = DistillationModule.build("resnet8", 10, "mean_teacher", peers=1, in_channels=1, image_size=(8, 8))
    data = digits(limit=100, label_noise=NOISE)
    ((_, wrong, true),) = data.wrongly_labelled(999)
    # The student predicts the true label of every image, the teacher the wrong label of every second one.
    teacher = torch.where(torch.arange(len(true)) % 2 == 0, wrong, true)
    evaluated = PeerOutputs(nn.functional.one_hot(torch.stack([true, teacher]), 10).float(), ())
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "evaluate", lambda views: evaluated)
    monkeypatch.setattr(module, "log", lambda name, share: logged.update({name: float(share)}))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    monkeypatch.setattr(trainer, "datamodule", data, raising=False)
    assert tuple(module.scores.members) == ("student_0", "teacher_0")
    LabelNoiseFit().on_validation_epoch_end(trainer, module)
    assert logged == {
        "train/noise/fit_wrong/student_mean": 0,
        "train/noise/fit_true/student_mean": 1,
        "train/noise/fit_wrong/teacher_mean": 0.5,
        "train/noise/fit_true/teacher_mean": 0.5,
    }


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_it_is_logged_in_a_precision_that_weights_are_converted_to(precision: Any) -> None:
    module = DistillationModule.build("resnet8", 10, "baseline", peers=1, in_channels=1, image_size=(8, 8))
    fit = trainer(LabelNoiseFit(), precision=precision, limit_train_batches=1)
    data = digits(limit=100, label_noise=NOISE)
    fit.fit(module, data)
    ((images, wrong, true),) = data.wrongly_labelled(999)
    module.eval()
    predicted = module.evaluate(images.to(next(module.student.parameters()).dtype)).logits.argmax(-1)
    for kind, labels in (("wrong", wrong), ("true", true)):
        share = (predicted[0] == labels).float().mean().item()
        assert fit.callback_metrics[f"train/noise/fit_{kind}/student_mean"].item() == pytest.approx(share)
