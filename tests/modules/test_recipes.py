"""Groups of parameters, warm-up and cosine, the student's moving average of any method, flips in tests."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from dkel_lightning.errors import ConfigError
from dkel_lightning.modules.optim import Grouped, WarmupCosine, parameter_groups
from dkel_lightning.settings.methods import PRESETS
from dkel_lightning.settings.teacher import TEACHERS, TeacherSettings
from tests.modules.toy import build, images_and_labels, train_loader, trainer, val_loader


def groups_of(module: Any) -> dict[str, dict[str, Any]]:
    configured = module.configure_optimizers()
    return {group["name"]: group for group in configured.param_groups}


def test_normalisation_and_biases_have_no_decay_where_it_is_not_for_all() -> None:
    module = build(optimizer=Grouped(decay_all=False, factory=partial(AdamW, lr=1e-3, weight_decay=0.1)))
    groups = groups_of(module)
    assert [*groups] == ["student", "student/no_decay", "ensemble", "ensemble/no_decay"]
    network = module.student.network
    expected = {id(p) for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    expected |= {id(m.bias) for m in network.modules() if isinstance(m, nn.Linear)}
    assert {id(p) for p in groups["student/no_decay"]["params"]} == expected
    assert [group["weight_decay"] for group in groups.values()] == [0.1, 0.0, 0.1, 0.0]
    held = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters() if p.requires_grad)


def test_the_rate_falls_from_layer_to_layer_alike_in_all_peers() -> None:
    module = build(peers=2, optimizer=Grouped(layer_decay=0.5, factory=partial(SGD, lr=1.0)), peer_lr_scale=[1.0, 0.1])
    network: Any = module.student.network
    rates = {id(p): group["lr"] for group in groups_of(module).values() for p in group["params"]}
    # Stem with its norm, three blocks, classifier: the classifier is the last.
    for parameter in (network.trunk.stem[0].weight, network.trunk.stem[1].bias):
        assert rates[id(parameter)] == 0.5**4
    assert rates[id(network.trunk.stage2[0].shortcut[0].weight)] == 0.5**2
    for branch, scale in zip(network.branches, (1.0, 0.1), strict=True):
        assert rates[id(branch.body.stage3[0].residual[1].weight)] == pytest.approx(0.5 * scale)
        assert rates[id(branch.classifier.bias)] == pytest.approx(scale)
    assert rates[id(module.ensemble.classifier.weight)] == 1.0


def test_layers_of_a_library_model_are_its_blocks() -> None:
    timm = pytest.importorskip("timm")
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=16, depth=3, num_classes=3)
    from dkel_lightning import DistillationModule

    module = DistillationModule.build(vit, split_at="blocks.2", num_classes=3, peers=2, image_size=(32, 32))
    found = parameter_groups({"student": module.student.network}, None, Grouped(layer_decay=0.5))
    names = {id(p): name for name, p in module.student.network.peer(1).named_parameters()}
    depth = {names[id(p)]: g["name"] for g in found for p in g["params"] if id(p) in names}
    assert [depth[f"blocks.{block}.attn.qkv.weight"] for block in range(3)] == [f"student/layer_{n}" for n in (3, 2, 1)]
    assert depth["norm.weight"] == "student/layer_1"
    assert (depth["patch_embed.proj.weight"], depth["head.weight"]) == ("student/layer_4", "student")


def test_by_default_groups_are_as_they_were() -> None:
    plain, asked = build(), build(optimizer=Grouped())
    assert [*groups_of(plain)] == [*groups_of(asked)] == ["student", "ensemble"]
    with pytest.raises(ConfigError, match=r"optimizer.layer_decay must be a number between 0.1 and 1, got 2"):
        Grouped(layer_decay=2)


@pytest.mark.parametrize(("warmup", "length"), [(4, 4), (0.2, 4.0), (0, 0)])
def test_the_rate_rises_linearly_and_falls_by_a_cosine(warmup: float, length: float) -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = SGD(groups, lr=1.0)
    schedule = WarmupCosine(optimizer, T_max=20, warmup=warmup, end=0.1)
    for time in range(23):
        fallen = min((time - length) / (20 - length), 1)
        expected = (time + 1) / (length + 1) if time < length else 0.55 + 0.45 * math.cos(math.pi * fallen)
        for group, base in zip(optimizer.param_groups, (1.0, 0.1), strict=True):
            assert group["lr"] == pytest.approx(base * expected)
        optimizer.step()
        schedule.step()
    with pytest.raises(ConfigError, match=r"scheduler.warmup=20 must be less than scheduler.T_max=20"):
        WarmupCosine(optimizer, T_max=20, warmup=20)


PREPARING = ("heads", "sftn", "soteacher")  # a teacher is what they train
WITHOUT_TEACHER = [n for n, preset in PRESETS.items() if preset.teacher == "none" and n not in PREPARING]


@pytest.mark.parametrize("name", WITHOUT_TEACHER)
def test_any_method_can_have_its_students_moving_average_beside_it(name: str) -> None:
    peers = 3 if name == "okddip" else 2
    plain, averaged = build(name, peers), build(name, peers, teacher="follow", deploy={"network": "teacher"})
    assert plain.teacher is None
    images, labels = images_and_labels(6)
    # It follows passively: the loss is what it was.
    assert averaged.training_step((images, labels), 0).item() == plain.training_step((images, labels), 0).item()
    fit = trainer()
    fit.fit(averaged, train_loader(), val_loader())
    assert averaged.teacher.updates.item() == 3
    assert averaged.deployed_member().startswith("teacher_")
    assert "val/acc/teacher_mean" in fit.callback_metrics


@pytest.mark.parametrize("name", [name for name, preset in TEACHERS.items() if preset.settings is not None])
def test_a_teacher_by_name_is_all_that_the_name_stands_for(name: str) -> None:
    for method in ("dkel", "pcl", "baseline"):  # whose own differ
        settings = build(method, teacher=name, schedules="shares").teacher.settings
        assert settings == TeacherSettings(**{**(TEACHERS[name].settings or {}), "decay": None, "decay_share": 0.01})


def test_an_unknown_teacher_by_name_is_answered() -> None:
    with pytest.raises(ConfigError, match=r"Unknown choice teacher=folow\. Did you mean follow"):
        build(teacher="folow")


def test_flips_in_tests_take_the_mean_probability_of_both() -> None:
    module = build().eval()
    images, _ = images_and_labels(5)
    images[:, :, :, :4] += 1.0  # not symmetric
    with torch.no_grad():
        plain, mirrored = (module.member_logits(each).softmax(-1) for each in (images, images.flip(-1)))
        module.test_flips = True
        torch.testing.assert_close(module.member_logits(images).softmax(-1), (plain + mirrored) / 2)
    assert not torch.allclose(plain, mirrored)
