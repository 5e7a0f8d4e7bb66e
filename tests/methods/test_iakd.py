"""IAKD: golden mixing and schedules, coins, and what swapping leaves untouched."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from dkel_lightning import DistillationModule
from dkel_lightning.callbacks import MethodBatches
from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import cross_entropy
from dkel_lightning.methods import iakd
from dkel_lightning.modules.peers import batch_norms
from dkel_lightning.networks.watching import find, release_
from dkel_lightning.schedules import Clock, swap_rate
from tests.methods import family
from tests.methods.family import check_gradient, golden, leaf
from tests.modules import toy
from tests.modules.toy import same, train_loader, trainer, val_loader


class Block(nn.Module):
    """v -> tanh(v W^T + b)."""

    def __init__(self, weight: Any, bias: Any) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(leaf(weight)), nn.Parameter(leaf(bias))

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(images @ self.weight.t() + self.bias)


@pytest.mark.parametrize("index", [0, 1])
def test_golden_mixing(index: int) -> None:
    case = golden()["iakd"]["mixing"][index]
    given = case["inputs"]
    for expected in case["expected"]:
        both = [
            [Block(*pair) for pair in zip(given[f"{who}_weights"], given[f"{who}_biases"], strict=True)]
            for who in ("student", "teacher")
        ]
        coins = iakd._Coins()
        coins.own = torch.tensor(expected["coins"], dtype=torch.bool)
        for number, (own, other) in enumerate(zip(*both, strict=True)):
            iakd._Swapped(own, number, coins, iakd._Between(None, other.requires_grad_(False), None))
        classifier = leaf(given["classifier"])
        hidden = torch.tensor(given["x"], dtype=torch.float64)
        for own, output in zip(both[0], expected["block_outputs"], strict=True):
            hidden = own(hidden)
            torch.testing.assert_close(hidden.detach(), torch.tensor(output, dtype=torch.float64))
        loss = cross_entropy(hidden @ classifier.t(), torch.tensor(given["labels"]))
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-12)
        loss.backward()
        for own, grad in zip(both[0], expected["grad_student_weights"], strict=True):
            check_gradient(own.weight, grad)


def test_golden_schedules() -> None:
    case = golden()["iakd"]["schedule"][0]
    given = case["settings"]
    for name, values in case["expected"].items():
        found = [swap_rate(name, t, given["length"], given["start"], given["period"]) for t in case["inputs"]["t"]]
        assert found == pytest.approx(values, rel=1e-12)
    with pytest.raises(ConfigError, match="needs the end of the run"):
        swap_rate("linear", 0, None, 0.5, 1)


build = partial(family.build, "iakd", schedule="uniform")


def fitted(module: DistillationModule, **settings: Any) -> dict[str, Tensor]:
    trainer(max_epochs=2, **settings).fit(module, train_loader())
    return dict(module.student.network.state_dict())


def test_with_the_student_s_own_blocks_alone_it_is_plain_training_bit_for_bit() -> None:
    plain = toy.build("baseline", 1, teacher={"update": "none"}, image_size=(8, 8))
    assert same(fitted(build(start=1.0)), fitted(plain))


def test_with_none_of_them_it_is_the_teacher_s_trunk_under_the_student_s_head() -> None:
    module = build(start=0.0)
    module.method.set_time(Clock(0))
    assert module.teacher is not None
    images = torch.randn(4, 3, 8, 8)
    teacher, student = (release_(part.network.peer(0)) for part in (build().teacher, build().student))
    hidden = find(student, "stem", "x")(images)
    for stage in ("stage1", "stage2", "stage3"):
        hidden = find(teacher, stage, "x").eval()(hidden)
    for part in ("pool", "flatten", "classifier"):
        hidden = find(student, part, "x")(hidden)
    torch.testing.assert_close(module(images).logits[0], hidden)
    own = module.student.eval()(images).logits
    assert not torch.allclose(own[0], hidden)  # evaluated, the student's blocks are its own


def test_no_training_batch_passes_the_whole_teacher() -> None:
    module, batch = build(start=0.5), next(iter(train_loader()))
    module.teacher.network.register_forward_hook(lambda *_: pytest.fail("passed"))
    module.training_step(batch, 0).backward()


def test_the_coins_come_from_seed_and_time_with_the_frequency_of_q() -> None:
    method = build(start=0.3).method
    tossed = []
    for batch in range(300):
        method.set_time(Clock(0, batch))
        tossed.append(method.own_blocks.clone())
    assert torch.stack(tossed).float().mean().item() == pytest.approx(0.3, abs=0.05)
    method.set_time(Clock(0, 7))
    assert torch.equal(method.own_blocks, tossed[7])
    assert len({tuple(coins.tolist()) for coins in tossed}) == 8
    teeth = build(schedule="review", period=2).method
    assert [teeth.chance_at(time, Clock(0)) for time in (0, 1, 2, 3, 3.5)] == [0.5, 0.75, 0.5, 0.75, 0.875]


def test_statistics_are_estimated_anew_and_training_does_not_notice() -> None:
    modules = [build(start=0.5, statistics_batches=count) for count in (3, 0)]
    anew, mixed = (fitted(module) for module in modules)
    weights = [{name: value for name, value in state.items() if "running" not in name and "num_" not in name}
               for state in (anew, mixed)]  # fmt: skip
    assert same(*weights)
    assert not same(anew, mixed)
    stem = find(modules[0].student.network.peer(0), "stem", "x")
    images = torch.cat([batch[0] for batch in train_loader()])
    # Its three batches are the whole set, so the plain mean of their means is the mean of all.
    torch.testing.assert_close(stem[1].running_mean, stem[0](images).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)  # type: ignore[index]
    untouched = build().teacher
    assert same(dict(modules[0].teacher.network.state_dict()), dict(untouched.network.state_dict()))


def test_statistics_of_frozen_layers_are_left_alone() -> None:
    module = build(start=0.5, statistics_batches=3)
    module.scale_rate(0.0)
    for layer in batch_norms(module.student.network):
        layer.running_mean.fill_(0.5)
    drawn = {name: value.clone() for name, value in module.student.network.named_buffers()}
    fitted(module)
    assert same(dict(module.student.network.named_buffers()), drawn)


@pytest.mark.parametrize("ends", [{"max_steps": 2}, {"val_check_interval": 2}])
def test_statistics_are_estimated_anew_wherever_an_evaluation_may_follow(ends: dict[str, int]) -> None:
    seen: list[Tensor] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                stem = find(module.student.network.peer(0), "stem", "x")
                seen.append(stem[1].running_mean.clone())  # type: ignore[index]

    module = build(start=0.5, statistics_batches=3)
    callbacks = [MethodBatches(), Look()]  # in this order
    trainer(*callbacks, **ends).fit(module, train_loader(), val_loader())
    reference = build(start=0.5, statistics_batches=0)
    trainer(max_steps=2).fit(reference, train_loader())
    stem = find(reference.student.network.peer(0), "stem", "x")
    images = torch.cat([batch[0] for batch in train_loader()])
    torch.testing.assert_close(seen[0], stem[0](images).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)  # type: ignore[index]


def test_blocks_of_other_widths_are_joined_and_of_other_sizes_refused() -> None:
    module = build("resnet8", "wide_resnet20_8", start=0.5)
    assert sorted(module.method.adapters) == [
        f"{i}_{side}" for i in range(3) for side in ("after", "before") if i or side == "after"
    ]
    fitted(module)
    assert not any("adapter" in name for name in module.deploy().state_dict())
    assert not any("forward" in part.__dict__ for part in module.deploy().modules())
    with pytest.raises(
        ConfigError, match=r"stage2 of the student and stage1 of the teacher cannot be swapped: their maps"
    ):
        build(layers=["stage2"], teacher_layers=["stage1"])
    with pytest.raises(ConfigError, match=r"the student has 3 .* the teacher 1"):
        build(teacher_layers=["stage1"])
    with pytest.raises(ConfigError, match="takes at most 1 peer, got 2"):
        build(peers=2)
