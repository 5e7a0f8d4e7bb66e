"""The teacher: how it is drawn, how it follows, what it never receives, and what a checkpoint keeps of it."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch

from dkel_lightning import TeacherModule, TeacherSettings
from dkel_lightning.errors import ConfigError
from dkel_lightning.modules.peers import batch_norms
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.schedules import Clock
from tests.modules.toy import (
    Recorder,
    build,
    images_and_labels,
    parameters_of,
    peers_network,
    same,
    train_loader,
    trainer,
)


def teacher_and_student(**settings: Any) -> tuple[TeacherModule, PeerNetwork]:
    return TeacherModule(peers_network(seed=1), TeacherSettings(**settings)), peers_network(seed=2)


@pytest.mark.parametrize("start", ["keep", "mean_teacher", "copy"])
def test_golden_trajectory_through_the_module(golden: dict[str, Any], start: str) -> None:
    case = golden["ema"][0]
    teacher, student = teacher_and_student(start=start, decay=case["rate"])
    teacher, student = teacher.double(), student.double()
    torch.nn.utils.vector_to_parameters(
        torch.full((sum(p.numel() for p in teacher.network.parameters()),), case["teacher_start"]).double(),
        teacher.network.parameters(),
    )
    for value, expected in zip(case["student_after_each_step"], case["teacher_after_each_update"][start], strict=True):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.fill_(value)
        teacher.follow(student)
        moved = torch.nn.utils.parameters_to_vector(teacher.network.parameters())
        torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("start", ["keep", "mean_teacher"])
def test_the_average_of_a_student_in_a_half_type_is_that_of_float32(start: str) -> None:
    teacher, student = teacher_and_student(start=start, decay=0.999, batchnorm="ema")
    exact = copy.deepcopy(teacher)
    halves = student.to(torch.bfloat16), copy.deepcopy(student).float()
    teacher.to(torch.bfloat16)
    for _ in range(3):
        for one, followed in zip((teacher, exact), halves, strict=True):
            one.follow(followed)
    assert same(dict(teacher.state_dict()), dict(exact.state_dict()))
    images = torch.randn(2, 3, 8, 8)
    seen = teacher(images.to(torch.bfloat16))
    assert seen.logits.dtype == torch.bfloat16
    torch.testing.assert_close(seen.logits.float(), exact(images).logits, rtol=0.1, atol=0.1)
    teacher.initialise([(images.to(torch.bfloat16), torch.tensor([0, 1]))], 0.1)


def test_a_loaded_rate_of_the_settings_is_not_rounded_by_its_buffer() -> None:
    # 0.999 has no float32; were it read back from the buffer, a resumed run would differ from an uninterrupted one.
    teacher, _ = teacher_and_student(decay=0.999)
    loaded, _ = teacher_and_student(decay=0.999)
    loaded.load_state_dict(teacher.state_dict())
    for one in (teacher, loaded):
        one.double()
        one.network.requires_grad_(False)
        for parameter in one.network.parameters():
            parameter.fill_(1.0)
        student = peers_network().double()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.fill_(0.0)
        one.follow(student)
        assert next(one.network.parameters()).flatten()[0].item() == pytest.approx(0.999, rel=1e-12)


def statistics_of(network: PeerNetwork) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.named_buffers()}


@pytest.mark.parametrize("rule", ["own", "copy", "ema"])
def test_running_statistics_follow_their_rule_alone_although_the_teacher_runs_in_train_mode(rule: str) -> None:
    teacher, student = teacher_and_student(batchnorm=rule, decay=0.75)
    images, drawn = torch.randn(4, 3, 8, 8), statistics_of(teacher.network)
    student.train()(images)
    teacher.train()(images)
    before = statistics_of(teacher.network)
    assert all(torch.equal(before[name], drawn[name]) for name in drawn if "running" in name) is (rule != "own")
    teacher.follow(student)
    share = {"own": 1.0, "copy": 0.0, "ema": 0.75}[rule]
    moved = 0
    for name, value in teacher.network.named_buffers():
        source = student.get_buffer(name)
        if name.endswith("num_batches_tracked"):
            assert value.item() == 1
        else:
            expected = share * before[name] + (1 - share) * source
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
            moved += int(not torch.equal(drawn[name], source))
    assert moved > 0
    assert {layer.momentum for layer in batch_norms(teacher.network)} == {0.1}


def test_a_teacher_that_learns_keeps_the_statistics_of_its_own_batches() -> None:
    module = build("baseline", teacher={"update": "gradient", "init_steps": 0})
    assert module.teacher.settings.batchnorm == "ema"  # of baseline's preset
    alone = TeacherModule(peers_network(seed=4), module.teacher.settings)
    for fitted, network in ((module, module.teacher.network), (alone, alone.network)):
        drawn = statistics_of(network)
        trainer().fit(fitted, train_loader())
        moved = statistics_of(network)
        assert not any(torch.equal(moved[name], drawn[name]) for name in drawn if "running" in name)


def test_a_teacher_follows_networks_that_were_moved_to_another_type() -> None:
    module = build("baseline", teacher={"batchnorm": "copy"})
    module.update_teacher()
    module.double()
    for value in statistics_of(module.student.network):
        module.student.network.get_buffer(value).fill_(3)
    module.update_teacher()
    assert same(statistics_of(module.teacher.network), statistics_of(module.student.network))


def test_an_independent_draw_shares_no_random_tensor_with_its_student() -> None:
    module = build(peers=3)
    student = parameters_of(module.student.network)
    shared = [
        name for name, value in parameters_of(module.teacher.network).items() if torch.equal(value, student[name])
    ]
    # Only what is drawn as a constant: weight and bias of BatchNorm.
    constant = [name for name, value in student.items() if value.min() == value.max()]
    assert sorted(shared) == sorted(constant)
    assert len(student) > len(constant) > 0


def test_a_student_draw_is_an_equal_but_separate_network() -> None:
    module = build(peers=3, teacher={"draw": "student"})
    ours, theirs = module.teacher.network.state_dict(), module.student.network.state_dict()
    assert same(ours, theirs)
    assert not {value.data_ptr() for value in ours.values()} & {value.data_ptr() for value in theirs.values()}


def test_a_student_draw_takes_weights_that_were_loaded_after_building() -> None:
    module, recorder = build(teacher={"draw": "student", "init_steps": 0}), Recorder()
    module.student.network.load_state_dict(peers_network(seed=9).state_dict())
    trainer(recorder, limit_train_batches=1).fit(module, train_loader())
    assert same(recorder.teachers[0], parameters_of(peers_network(seed=9)))


@pytest.mark.parametrize("settings", [{}, {"update": "frozen"}, {"draw": "student", "start": "copy"}])
def test_a_teacher_never_receives_a_gradient(settings: dict[str, Any]) -> None:
    module = build(peers=2, teacher=settings)
    trainer(limit_train_batches=2).fit(module, train_loader())
    for parameter in module.teacher.network.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
    assert all(p.grad is not None for p in module.student.network.parameters())
    optimised = {id(p) for group in module.optimizers().param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in module.teacher.parameters()}


def test_a_teacher_that_learns_by_gradient_is_optimised_and_never_averaged() -> None:
    module = build(peers=2, teacher={"update": "gradient", "init_steps": 0})
    before = parameters_of(module.teacher.network)
    trainer(limit_train_batches=1).fit(module, train_loader())
    assert module.teacher.updates.item() == 0
    assert [group["name"] for group in module.optimizers().param_groups] == ["student", "ensemble", "teacher"]
    # SGD's first step at lr 0.05: theta - lr (g + weight decay theta), with g the labels' gradient alone.
    reference = copy.deepcopy(module.teacher.network)
    reference.load_state_dict(before, strict=False)
    reference.train()
    images, labels = next(iter(train_loader()))
    logits, *_ = reference(images)
    loss = sum(torch.nn.functional.cross_entropy(peer, labels) for peer in logits)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    for name, value in module.teacher.network.named_parameters():
        gradient = reference.get_parameter(name).grad
        assert gradient is not None
        expected = before[name] - 0.05 * (gradient + 5e-4 * before[name])
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


def test_a_frozen_teacher_neither_moves_nor_leaves_eval_mode() -> None:
    module, modes = build(teacher={"update": "frozen", "init_steps": 0}), []
    module.teacher.network.register_forward_hook(lambda network, *_: modes.append(network.training))
    before = copy.deepcopy(module.teacher.network.state_dict())
    trainer(max_epochs=2, limit_train_batches=2).fit(module, train_loader(), train_loader())
    assert same(module.teacher.network.state_dict(), before)
    assert modes
    assert not any(modes)


@pytest.mark.parametrize("schedule", [{0: 0.99, 2: 0.999}, {0: 0.99, 0.5: 0.999}])
def test_a_decay_schedule_takes_effect_at_its_epoch_or_share_of_the_run(schedule: dict[float, float]) -> None:
    module = build(teacher={"decay": schedule, "init_steps": 0})
    moved: list[float] = []
    follow = module.teacher.follow

    def recorded(student: PeerNetwork) -> None:
        name, target = next(iter(module.teacher.network.named_parameters()))
        before, source = target.detach().clone().double(), student.get_parameter(name).detach().double()
        follow(student)
        gap = source - before
        moved.append(float(1 - ((target.double() - before) * gap).sum() / (gap * gap).sum()))

    module.teacher.follow = recorded
    trainer(max_epochs=4, limit_train_batches=1).fit(module, train_loader())
    assert moved == pytest.approx([0.99, 0.99, 0.999, 0.999], abs=1e-6)


@pytest.mark.parametrize("change", [2, 0.5])
def test_a_time_constant_changes_at_its_epoch_or_share_of_the_run(change: float) -> None:
    settings = TeacherSettings(decay=None, decay_share={0: 0.1, change: 0.2})
    rates = [settings.rate(Clock(epoch, 25 * epoch, 25, 100)) for epoch in range(4)]
    assert rates == pytest.approx([0.9, 0.9, 0.95, 0.95])


@pytest.mark.parametrize("lr_scale", [0.0, 1.0])
def test_an_initialisation_leaves_no_gradient(lr_scale: float) -> None:
    module = build(lr_scale=lr_scale)
    module.teacher.initialise([images_and_labels(6)], 0.1)
    assert all(parameter.grad is None for parameter in module.teacher.parameters())


def test_what_a_teacher_learnt_alone_is_not_initialised_over() -> None:
    module = build(teacher={"draw": "student"})
    alone = TeacherModule(peers_network(seed=4), module.teacher.settings)
    trainer(limit_train_batches=2).fit(alone, train_loader())
    learnt = parameters_of(alone.network)
    module.teacher, recorder = alone, Recorder()
    trainer(recorder, limit_train_batches=1).fit(module, train_loader())
    assert same(recorder.teachers[0], learnt)


RATES = "teacher.decay must be a number between 0 and 1, or a schedule {from: value} of them that starts at 0"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"update": "none"}, "teacher.update must be one of ema, gradient, frozen, got 'none'."),
        ({"init_steps": 1.5}, "0 and 1000000, or epochs as in 3epochs, at most 1000, got 1.5."),
        ({"init_steps": "soon"}, "0 and 1000000, or epochs as in 3epochs, at most 1000, got 'soon'."),
        ({"decay": {0: 0.9, 3: 2.0}}, f"{RATES}, got {{0: 0.9, 3: 2.0}}."),
        ({"decay": {}}, f"{RATES}, got {{}}."),
        ({"decay": None}, "Set one of teacher.decay and teacher.decay_share, and the other to null."),
    ],
)
def test_impossible_teachers_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        TeacherSettings(**settings)


@pytest.mark.parametrize(("rule", "passes"), [("ema", 0), ("copy", 0), ("own", 3)])
def test_a_teacher_that_nobody_reads_is_passed_batches_for_its_own_statistics_alone(rule: str, passes: int) -> None:
    module = build("baseline", teacher={"batchnorm": rule, "init_steps": 0})
    passed: list[bool] = []
    module.teacher.network.register_forward_hook(lambda network, *_: passed.append(network.training))
    fit = trainer(limit_val_batches=0)
    fit.fit(module, train_loader())
    assert fit.global_step == module.teacher.updates.item() == 3
    assert passed == [True] * passes
