"""A training step equals that of a plain loop written from the method's description."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from dkel_lightning import DistillationModule
from dkel_lightning.data.batch import Batch
from dkel_lightning.networks import BranchedNetwork
from tests.plain_loop import PlainLoop, Weights

PEERS, CLASSES, BATCH, STEPS = 3, 10, 8, 3


def built(method: str = "dkel") -> DistillationModule:
    # One forward a view, as the loop does it: BatchNorm's statistics are then those of each view.
    module = DistillationModule.build("resnet8", CLASSES, method, PEERS, in_channels=1, views_per_pass="one")
    return module.train()


def loop_of(module: DistillationModule, weights: Weights) -> PlainLoop:
    """Make the loop with the very weights of the module."""
    assert module.teacher is not None
    assert module.ensemble is not None
    student = copy.deepcopy(cast(BranchedNetwork, module.student.network))
    teacher = copy.deepcopy(cast(BranchedNetwork, module.teacher.network))
    classifier = copy.deepcopy(module.ensemble.classifier)
    optimizer = torch.optim.SGD([*student.parameters(), *classifier.parameters()], lr=0.1, momentum=0.9, nesterov=True)
    return PlainLoop(student, teacher, classifier, optimizer, weights)


def batches() -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(1)
    return [
        (torch.randn(BATCH, PEERS, 1, 8, 8, generator=draws), torch.randint(CLASSES, (BATCH,), generator=draws))
        for _ in range(STEPS)
    ]


@pytest.mark.parametrize(
    ("method", "rampup", "ensemble"), [("dkel", 0.4, 0.7), ("dkel", 1.0, 0.0), ("dkel_released", 0.3, 0.5)]
)
def test_its_losses_and_weights_are_those_of_the_library_step_for_step(
    method: str, rampup: float, ensemble: float
) -> None:
    module: Any = built(method)
    module.method.rampup_weight.fill_(rampup)
    module.method.ensemble_weight.fill_(ensemble)
    module.teacher.set_rate(0.9)
    scale = module.method.settings.rampup.scale
    # The first update of a released teacher has rate 0, which is the copy that it starts as.
    weights = Weights(scale, rampup, ensemble, 0.9, module.method.settings.ensemble.ramped)
    loop = loop_of(module, weights)
    optimizer = torch.optim.SGD(
        [*module.student.parameters(), *module.ensemble.parameters()], lr=0.1, momentum=0.9, nesterov=True
    )
    for step, (views, labels) in enumerate(batches()):
        if method == "dkel_released":
            weights.rate = min(1 - 1 / (step + 1), 0.9)
        terms, loss = module.losses(module.forward_all(Batch(views, labels, None)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.teacher.follow(module.student.network)
        assert loop.step(list(views.unbind(1)), labels) == pytest.approx(float(loss.detach()), rel=1e-5)
        for name, term in terms.items():
            assert loop.metrics[name] == pytest.approx(float(term.detach()), rel=1e-5, abs=1e-6)
    for ours, theirs in ((module.student.network, loop.student), (module.teacher.network, loop.teacher)):
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_its_teacher_begins_as_that_of_the_library() -> None:
    module = built()
    assert module.teacher is not None
    loop = loop_of(module, Weights())
    module.teacher.initialise([(views, labels) for views, labels in batches()], lr=0.01)
    loop.initialise([(list(views.unbind(1)), labels) for views, labels in batches()], 0.01, 5e-4)
    for a, b in zip(module.teacher.network.parameters(), loop.teacher.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert not b.requires_grad
