"""The weight of the labels, in every method: what it weighs, what it leaves alone, and its schedule."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dkel_lightning import DistillationModule
from dkel_lightning.app.tasks.train import train
from dkel_lightning.data import Batch
from dkel_lightning.errors import ConfigError
from dkel_lightning.methods import MethodSettings
from dkel_lightning.methods.baseline import Baseline
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.schedules import Clock
from tests.compose import compose, resumed, tiny_run
from tests.modules.test_targets import EVERY, settings_of
from tests.modules.toy import build, images_and_labels

WITHOUT_OTHER_TERMS = ("baseline", "heads", "iakd")


def weighted(name: str, labels: Any) -> DistillationModule:
    settings = settings_of(name)
    if name == "mean_teacher":
        settings["teacher"] = {"draw": "independent"}  # a copy agrees with its student on one view
    settings["method"] |= {"labels": labels} | ({"target": "mean"} if name == "kdcl" else {})
    return build(**settings)


def gradients(name: str, labels: Any, part: str = "student", shift: int = 0) -> list[Tensor]:
    module = weighted(name, labels)
    module.method.rampup_weight.fill_(1.0)
    images, classes = images_and_labels(6)
    module.training_step((images, (classes + shift) % 3, torch.arange(6)), 0).backward()
    network = getattr(module, part).network
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]


@pytest.mark.parametrize("name", EVERY)
def test_the_gradient_of_the_student_is_what_labels_teach_times_the_weight_and_what_is_distilled(name: str) -> None:
    default, none, half, other = (
        torch.cat([gradient.flatten() for gradient in gradients(name, labels, shift=shift)])
        for labels, shift in ((1, 0), (0, 0), (0.5, 0), (0, 1))
    )
    assert torch.equal(none, other)  # at 0 nothing depends on the labels
    assert bool(none.any()) is (name not in WITHOUT_OTHER_TERMS)
    torch.testing.assert_close(half, (default + none) / 2, rtol=1e-4, atol=1e-6)
    assert bool(default.any()) is (name != "heads")  # whose network stays as it is


@pytest.mark.parametrize("name", ["kd", "kdpm", "ekd", "online_checkpoints"])
def test_a_teacher_that_learns_keeps_its_labels(name: str) -> None:
    kept, default = (gradients(name, labels, "teacher") for labels in (0, 1))
    assert all(torch.equal(*pair) for pair in zip(kept, default, strict=True))
    assert any(gradient.any() for gradient in kept)


def test_a_term_of_another_name_is_not_weighted() -> None:
    class Centred(Baseline):
        terms = ("ce", "ce_again", "center")

        def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
            return dict.fromkeys(self.terms, torch.ones(()))

    module = build(Centred(2, MethodSettings(labels=0.5)), teacher="none")
    terms = module.method.weighted_terms(module.forward_all(Batch(*images_and_labels(6), None)))
    assert {name: term.item() for name, term in terms.items()} == {"ce": 0.5, "ce_again": 0.5, "center": 1.0}


def test_the_default_adds_nothing_to_a_checkpoint_and_a_weight_of_its_own_is_in_it() -> None:
    assert "method.labels_weight" not in build().state_dict()
    assert weighted("dkel", 0.5).state_dict()["method.labels_weight"] == 0.5


def test_a_schedule_is_read_at_every_step_or_epoch() -> None:
    module = weighted("pcl", {0: 1.0, 0.5: 0.25})
    found = []
    for step in range(4):
        module.set_time(Clock(0, step, 4, 4))
        found.append(module.method.labels_weight.item())
    assert found == [1.0, 1.0, 0.25, 0.25]
    by_epoch = weighted("pcl", {0: 1.0, 2: 0.0})
    by_epoch.set_time(Clock(2))
    assert by_epoch.method.labels_weight.item() == 0
    with pytest.raises(ConfigError, match=r"method\.labels is a share of the run, but the run has no end"):
        module.set_time(Clock(0))
    with pytest.raises(ConfigError, match=r"method\.labels must be a number between 0 and 1e\+06, or a schedule"):
        weighted("dkel", {0.5: 1.0})


def test_the_recipe_of_wrong_labels_fits_every_method() -> None:
    for name, scale in (("dkel", 3.0), ("pcl", 3.0), ("dkel_released", 0.1)):
        values = compose("experiment=own_data", "recipe=wrong_labels", f"method={name}")
        assert values["method"]["rampup"]["scale"] == scale
    schedule = compose("recipe=wrong_labels", "method=kd")["scheduler"]
    assert (schedule["_target_"].rpartition(".")[2], schedule["end"]) == ("WarmupCosine", 0.0)


def test_a_run_logs_the_weight_and_trains_its_teacher_with_all_labels(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "method=kd", "method.labels={0:1,0.5:0.2}", "teacher.backbone=resnet8")
    assert compose("method=dih", "method.labels=0.5")["method"]["labels"] == 0.5
    train(run)

    def logged(folder: Path) -> list[str]:
        with (folder / "metrics.csv").open(newline="") as file:
            return [row.get("weights/labels", "") for row in csv.DictReader(file)]

    assert [float(value) for value in logged(tmp_path)] == pytest.approx([1.0, 0.2])
    assert set(logged(tmp_path / "teacher")) == {""}
    assert resumed(run).last.epoch == 2
