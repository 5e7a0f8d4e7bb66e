"""How `build` arranges peers: a pass a view or one for all, and how classifiers and a method's own weights begin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from dkel_lightning import DistillationModule, MethodInputs
from dkel_lightning.errors import ConfigError
from dkel_lightning.methods.base import METHODS, Needs, register
from dkel_lightning.methods.baseline import Baseline
from dkel_lightning.networks import Branch, BranchedNetwork, SplitModel


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [("dkel", None, "all"), ("dkel_released", None, "one"), ("dkel_released", "all", "all")],
)
def test_the_released_method_takes_a_pass_a_view(method: str, given: str | None, expected: str) -> None:
    module = DistillationModule.build("resnet8", 4, method, views_per_pass=given)
    assert module.teacher is not None
    for part in (module.student, module.teacher):
        assert isinstance(part.network, BranchedNetwork)
        assert part.network.views_per_pass == expected


def classifiers(module: DistillationModule) -> list[Tensor]:
    network = module.student.network
    if isinstance(network, SplitModel):
        return [classifier.get_parameter("weight") for classifier in network.classifiers]
    assert isinstance(network, BranchedNetwork)
    return [next(branch.classifier.parameters()) for branch in network.branches if isinstance(branch, Branch)]


@pytest.mark.slow
def test_equal_classifiers_are_equal_in_a_model_of_ones_own_too() -> None:
    made = {
        name: classifiers(
            DistillationModule.build(
                resnet18(num_classes=4), 4, peers=2, split_at="layer4", classifiers=name, image_size=(32, 32)
            )
        )
        for name in ("own", "equal", "released")
    }
    assert [torch.equal(*pair) for pair in made.values()] == [False, True, True]


def test_networks_that_share_nothing_have_no_equal_classifiers() -> None:
    with pytest.raises(ConfigError, match="Networks that share nothing have classifiers of their own"):
        DistillationModule.build(
            resnet18(num_classes=4), 4, "dml", 2, sharing="nothing", classifiers="equal", image_size=(32, 32)
        )


@pytest.mark.parametrize(
    ("backbone", "repeated"), [("resnet8", True), ("densenet40_12", True), ("tiny_resnet18", True), ("vgg16", False)]
)
def test_released_branches_start_with_the_first_ones_classifier_but_for_vgg(backbone: str, repeated: bool) -> None:
    module = DistillationModule.build(backbone, 4, "dkel_released", 2)
    assert torch.equal(*classifiers(module)) is repeated


def test_a_methods_own_weights_are_drawn_from_the_seed() -> None:
    @register("gated")
    class Gated(Baseline):
        needs = Needs(teacher=False)

        def __init__(self, peers: int, settings: object = None) -> None:
            super().__init__(peers, settings)
            self.gate = nn.Linear(3, 3)

        def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
            return super().loss_terms(inputs)

    try:
        methods = [DistillationModule.build("resnet8", 4, "gated", seed=seed).method for seed in (0, 0, 1)]
        first, again, other = (dict(method.named_parameters())["gate.weight"] for method in methods)
    finally:
        del METHODS["gated"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
