"""A teacher's channels rearranged for its student: golden matchings and losses, and a shuffle that is undone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from dkel_lightning import DistillationModule
from dkel_lightning.data.batch import Batch
from dkel_lightning.errors import ConfigError
from dkel_lightning.methods.consistent import feature_loss, greedy, hungarian, natural, rearranged, similarity
from dkel_lightning.networks.watching import find
from dkel_lightning.schedules import Clock
from tests.methods import family
from tests.methods.family import check_gradient, golden, leaf, tensor
from tests.modules.toy import images_and_labels, train_loader, trainer
from tests.reliability.harness import differences

CASES = golden()["consistent"]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_golden_matchings(case: dict[str, Any]) -> None:
    given = case["inputs"] if "student_profile" in case["inputs"] else case["expected"]
    similar = similarity(tensor(given["student_profile"]), tensor(given["teacher_profile"]))
    expected = case["expected"]
    if "similarity" in expected:
        torch.testing.assert_close(similar, tensor(expected["similarity"]), rtol=1e-10, atol=1e-10)
    assert hungarian(similar).tolist() == expected["hungarian"]
    if "greedy" in expected:
        assert greedy(similar).tolist() == expected["greedy"]


@pytest.mark.parametrize("case", CASES[:4], ids=[case["name"] for case in CASES[:4]])
def test_golden_losses(case: dict[str, Any]) -> None:
    expected, teacher = case["expected"], tensor(case["inputs"]["teacher_features"])
    widths = (len(expected["student_profile"]), teacher.shape[1])
    orders = {"before": natural(*widths), "after": torch.tensor(expected["hungarian"])}
    for when, places in orders.items():
        for suffix, group in (("", "mean"), ("_mean", "mean"), ("_max", "max")):
            if f"loss_{when}{suffix}" not in expected:
                continue
            student = leaf(case["inputs"]["student_features"])
            loss = feature_loss(student, rearranged(teacher, places, group))
            assert loss.item() == pytest.approx(expected[f"loss_{when}{suffix}"], rel=1e-10, abs=1e-12)
            if f"grad_{when}{suffix}" in expected:
                loss.backward()
                check_gradient(student, expected[f"grad_{when}{suffix}"])


build = partial(family.build, "consistent", fit_batches=3)


@torch.no_grad()
def shuffled(module: DistillationModule) -> Tensor:
    """Make the teacher the student with the channels of its last stage shuffled; return the shuffle."""
    module.teacher.network.load_state_dict(module.student.network.state_dict())
    block: Any = find(module.teacher.network.peer(0), "stage3", "x")[0]  # type: ignore[index]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    for part in (block.residual[3], block.residual[4], block.shortcut[0], block.shortcut[1]):
        for value in (*part.parameters(), *part.buffers()):
            if value.dim():
                value.copy_(value[order].clone())
    return order.argsort()


@pytest.mark.parametrize("matcher", ["hungarian", "greedy"])
def test_a_teacher_that_is_the_student_with_shuffled_channels_is_unshuffled(matcher: str) -> None:
    module = build(layers=["stage3"], teacher_layers=["stage3"], matcher=matcher)
    expected = shuffled(module)
    images = torch.randn(6, 3, 8, 8)
    trainer(max_steps=1).fit(module, train_loader())
    shuffled(module)  # by the same order, of the student after its step
    module.eval()
    with torch.no_grad():
        seen = module(images).named, module.teacher.teach(images).named
    ours, theirs = (each["stage3"][0] for each in seen if each is not None)
    after = feature_loss(ours, rearranged(theirs, module.method.places_0)).item()
    if matcher == "greedy":  # what three classes say of two channels may be alike up to rounding
        assert after < 0.02 * feature_loss(ours, theirs).item()
        return
    assert after < 1e-10
    alive = ours.flatten(2).amax((0, 2)) > 0  # channels without any output are one like the other
    assert alive.sum() > 32
    assert module.method.places_0.flatten()[alive].tolist() == expected[alive].tolist()
    assert not any("places" in name for name in module.deploy().state_dict())


def test_a_refit_of_what_has_not_changed_changes_nothing_and_a_resume_does_not_fit_again(tmp_path: Path) -> None:
    once, again = (build(refit_epochs=every, weight=0.0) for every in (0, 1))
    for module in (once, again):
        fit = trainer(max_epochs=2)
        for part in (module.student, module.teacher):
            part.network.requires_grad_(False)
        module.student.network.peer(0).branch.classifier.bias.requires_grad_(True)
        fit.fit(module, train_loader())
    assert bool(once.method.fitted)
    fit.save_checkpoint(tmp_path / "x.ckpt")
    loaded: Any = DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt")
    assert torch.equal(loaded.method.places_2, again.method.places_2)
    assert bool(loaded.method.fitted)


def test_a_checkpoint_of_the_last_batch_of_an_epoch_goes_on_exactly(tmp_path: Path) -> None:
    def fit(resume: Path | None = None) -> dict[str, Any]:
        saving = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
        module, run = build(refit_epochs=1), trainer(saving, max_epochs=2, enable_checkpointing=True)
        run.fit(module, train_loader(), ckpt_path=resume, weights_only=True)
        return {**module.state_dict(), **run.callback_metrics}

    through = fit()
    again = fit(tmp_path / "step=3.ckpt")
    assert differences(again, through) == []


def test_the_fit_takes_means_by_class_however_often_a_class_comes() -> None:
    module = build(layers=["stage3"], teacher_layers=["stage3"])
    images, labels = images_and_labels(24)
    kept = torch.arange(24)[(labels != 1) | (torch.arange(24) < 4)]  # classes of 8, 2 and 8 images, in two batches
    parts = [Batch(images[part], labels[part], None) for part in kept.split(9)]
    module.method.fit(module.student, module.teacher, iter(parts))
    module.eval()
    with torch.no_grad():
        seen = module(images[kept]).named, module.teacher.teach(images[kept]).named
    pooled = [each["stage3"][0].double().mean((2, 3)) for each in seen if each is not None]

    def matched(summary: Any) -> Tensor:
        ours, theirs = (torch.stack([summary(maps[labels[kept] == c], 0) for c in range(3)], 1) for maps in pooled)
        return hungarian(similarity(ours, theirs))

    assert torch.equal(module.method.places_0, matched(torch.mean))
    assert not torch.equal(matched(torch.mean), matched(torch.sum))


def test_a_fit_changes_no_statistics_of_a_teacher_that_learns() -> None:
    module = build(teacher={"update": "gradient", "init_steps": 0}).train()
    before = {name: value.clone() for name, value in module.named_buffers() if "running" in name}
    module.method.fit(module.student, module.teacher, [Batch(*images_and_labels(24), None)])
    assert all(torch.equal(module.get_buffer(name), value) for name, value in before.items())
    assert module.student.training
    assert module.teacher.training


def test_it_is_fitted_before_the_first_step_and_then_every_so_many_epochs() -> None:
    module, fits = build(refit_epochs=2), []

    def draw(count: int) -> list[Batch]:
        fits.append(epoch)
        return [Batch(*images_and_labels(24), None)]

    for epoch in range(6):
        module.method.on_epoch_start(module.student, module.teacher, Clock(epoch), draw)
    assert fits == [0, 2, 4]


def test_unequal_widths_are_grouped_or_refused() -> None:
    grouped = build("resnet8", "wide_resnet20_8", group="max", kd_weight=0.5)
    assert [getattr(grouped.method, f"places_{i}").shape[1] for i in range(3)] == [4, 4, 4]
    trainer().fit(grouped, train_loader())
    with pytest.raises(ConfigError, match=r"stage3 of the student has 64 channels, stage2 of the teacher 120"):
        build("resnet8", "densenet40_12", layers=["stage3"], teacher_layers=["stage2"])
    with pytest.raises(ConfigError, match="takes at most 1 peer, got 2"):
        build(peers=2)
